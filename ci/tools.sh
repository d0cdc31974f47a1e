# shellcheck shell=bash
# What the stages share: running things, and getting the tools for it. Sourced by stages.sh.
#
# A `need_*` function returns with the tool in place. It installs what rustup, cargo or (as root) apt-get can bring,
# and ends the stage as skipped where that fails.

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Ends the stage as not run; the summary repeats the reason.
skip() {
    printf 'SKIPPED: %s\n' "$*" >&2
    printf '%s\n' "$*" >"$CI_TMP/skipped"
    exit 77
}

# Runs a command and keeps all that it prints in $CI_TMP/log as well.
logged() {
    "$@" 2>&1 | tee "$CI_TMP/log"
}

# Runs a test command, which must run at least one test: a filter that matches nothing has checked nothing.
tested() {
    logged "$@"
    awk '/^test result: ok/ { ran += $4 } END { exit ran == 0 }' "$CI_TMP/log" || fail 'no test ran'
}

# fails_with PATTERN COMMAND...: the command must fail, and say why in words that match. Only that line is shown.
fails_with() {
    local pattern=$1
    shift
    ! "$@" >"$CI_TMP/log" 2>&1 || fail "this should have failed: $*"
    grep -m 1 -- "$pattern" "$CI_TMP/log" || fail "this failed, but not with '$pattern': $* $(cat "$CI_TMP/log")"
    printf 'as it should, this failed: %s\n' "$*"
}

# Ends a command that takes more than two minutes, as a download that stalls would. In the foreground, so that it
# stays in the stage's process group, which ci.sh ends as a whole.
bounded() {
    timeout --foreground -k 10 120 "$@"
}

host() {
    rustc -vV | sed -n 's/^host: //p'
}

# rust_version MANIFEST: the oldest Rust that a Cargo.toml promises to build with.
rust_version() {
    sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$1"
}

# need_cargo_command COMMAND COMPONENT
need_cargo_command() {
    cargo "$1" --version >/dev/null 2>&1 || bounded rustup component add "$2" || skip "no cargo $1"
}

# need_package NAME: a Debian package with a command of the same name.
need_package() {
    command -v "$1" >/dev/null || bounded apt-get install -y --no-install-recommends "$1" || skip "no $1"
}

# What transport-verbs is built with.
need_verbs_packages() {
    need_installed libibverbs-dev ibverbs-providers libnl-3-dev libnl-route-3-dev cmake make python3 libclang-dev pkg-config
}

# What makes the machine that it is tested in, and is compared with there.
need_verbs_machine() {
    need_installed qemu-system-x86 busybox-static kmod cpio xz-utils iproute2 perftest
}

# need_installed PACKAGE...: Debian packages, also those without a command.
need_installed() {
    local package missing=()
    for package; do
        # A package that another one merely recommends is known too, and not there.
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] || bounded apt-get install -y --no-install-recommends "${missing[@]}" ||
        skip "no ${missing[*]}"
}

# in_verbs_machine COMMAND...: with cargo running what it builds in that machine, instead of here. One test at a time:
# some cut a wire that others use.
in_verbs_machine() {
    local name
    name=CARGO_TARGET_$(host | tr 'a-z-' 'A-Z_')_RUNNER
    env "$name=$PWD/transport-verbs/vm/run.sh" RUST_TEST_THREADS=1 "$@"
}

need_target() {
    bounded rustup target add "$1" || skip "no standard library for $1"
}

# need_toolchain CHANNEL [COMPONENT]
need_toolchain() {
    has_toolchain "$1" || bounded rustup toolchain install --profile minimal "$1" || skip "no $1 toolchain"
    [ $# -eq 1 ] || bounded rustup component add --toolchain "$1" "$2" || skip "no $2 for the $1 toolchain"
}

has_toolchain() {
    RUSTUP_AUTO_INSTALL=0 rustup run "$1" rustc --version >/dev/null 2>&1
}

# Any cargo-deny that is there will do; this version is installed where there is none (2 to 3 minutes, once).
need_cargo_deny() {
    cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny@0.20.2 || skip 'no cargo-deny'
}

# old_cargo VERSION ARGUMENT...: cargo with that Rust. It is rustup's or, failing that, today's cargo over a rustc
# unpacked from Debian's packages, which needs no root and leaves the system as it is.
old_cargo() {
    local version=$1 root=$TARGET/debian-rust-$1
    shift
    if has_toolchain "$version" || bounded rustup toolchain install --profile minimal "$version"; then
        cargo "+$version" "$@"
    else
        [ -x "$root/usr/bin/rustc" ] || unpack_debian_rust "$version" "$root" || skip "no Rust $version"
        RUSTC=$root/usr/bin/rustc LD_LIBRARY_PATH=$root/usr/lib/$(gcc -print-multiarch) cargo "$@"
    fi
}

# unpack_debian_rust VERSION FOLDER
unpack_debian_rust() (
    debs=$CI_TMP/debs
    exact=$(apt-cache madison rustc-web | awk -v want="$1." 'index($3, want) == 1 { print $3; exit }')
    [ -n "$exact" ] && mkdir -p "$debs" "$2" && cd "$debs" || return 1
    bounded apt-get -q download "rustc-web=$exact" "libstd-rust-web-dev=$exact" "libstd-rust-web-$1=$exact" || return 1
    llvm=$(dpkg-deb -f libstd-rust-web-"$1"_*.deb Depends | grep -o 'libllvm[0-9]*') || return 1
    bounded apt-get -q download "$llvm" || return 1
    for deb in *.deb; do dpkg -x "$deb" "$2" || return 1; done
)
