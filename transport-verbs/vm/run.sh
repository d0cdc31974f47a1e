#!/usr/bin/env bash
# Runs a command in the virtual machine, on a kernel with two RDMA devices (see devices.sh), and ends with its status.
#
#   vm/run.sh COMMAND ARGUMENT...
#
# The guest sees the host's files at their places, read-only; /tmp, /run and /dev/shm are its own. The command runs in
# this folder, as root, with the variables of the environment that begin with RUST, KV_ or PROPTEST. Cargo can use it as a
# runner: CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=transport-verbs/vm/run.sh cargo test -p transport-verbs
#
#   KV_VM_LIMIT     seconds after which it has failed, with status 124 (540)
#   KV_VM_MEMORY    MiB (1024)
#
# Status 125: the machine died before the command ended. Emulated, without KVM: it starts in 4 s on any machine.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -gt 0 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 2; }
image=$("$here/image.sh")
io=$(mktemp -d)
trap 'rm -rf "$io"' EXIT

main() {
    write_job "$@" >"$io/job"
    boot "$@" </dev/null 2>&1 | sed -u 's/\r$//' || true
    if [ -s "$io/status" ]; then
        exit "$(cat "$io/status")"
    fi
    if [ -f "$io/timeout" ]; then
        echo "vm/run.sh: stopped after ${KV_VM_LIMIT:-540} s" >&2
        exit 124
    fi
    echo 'vm/run.sh: the virtual machine died' >&2
    exit 125
}

write_job() {
    local name
    echo 'export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp'
    for name in $(compgen -e | grep -E '^(RUST|KV_|PROPTEST)' | grep -vE '^(RUSTUP|RUSTC)'); do
        printf 'export %s=%q\n' "$name" "${!name}"
    done
    printf '. %q || exit 126\n' "$here/devices.sh"
    printf 'cd %q || exit 126\n' "$PWD"
    # Through a pipe, so that nobody takes the console for a person's terminal.
    printf '%q ' "$@"
    # shellcheck disable=SC2016
    printf '2>&1 | cat\nexit "${PIPESTATUS[0]}"\n'
}

# A machine of type q35: microvm hangs now and then. Two threads of emulation, or what polls starves what answers. The
# time-stamp counter is the clock: another one costs a microsecond each time it is read. Without the old timer chip,
# against which a busy host's counter is measured wrong: seconds of the guest were a third as long then, in one start of
# three, and every timeout with them. In the foreground, so that it stays in the process group of whoever may end us.
boot() {
    local status=0
    timeout --foreground -k 5 "${KV_VM_LIMIT:-540}" qemu-system-x86_64 -M q35,pit=off -accel tcg,thread=multi -cpu max -smp 2 \
        -m "${KV_VM_MEMORY:-1024}" -nodefaults -no-user-config -display none -no-reboot -nic none -serial stdio \
        -kernel "$image/vmlinux" -initrd "$image/initrd.gz" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off nokaslr clocksource=tsc tsc=reliable $(tsc) vm_keep=$(kept "$1")" \
        -device isa-debug-exit,iobase=0xf4,iosize=0x04 \
        -fsdev local,id=hr,path=/,security_model=none,readonly=on,multidevs=remap \
        -device virtio-9p-pci,fsdev=hr,mount_tag=hostroot \
        -fsdev local,id=io,path="$io",security_model=none \
        -device virtio-9p-pci,fsdev=io,mount_tag=io || status=$?
    [ "$status" -ne 124 ] || touch "$io/timeout"
}

# How fast the counter counts, where the host knows: in a virtual machine. Elsewhere the guest finds out, within a fifth.
tsc() {
    grep -q '^flags.* hypervisor' /proc/cpuinfo || return 0
    sed -n 's/^cpu MHz.*: *\([0-9]*\)\.\([0-9]\{3\}\).*/tsc_early_khz=\1\2/p' /proc/cpuinfo | sed -n 1p
}

# kept COMMAND: folders under /tmp that the guest must see: where we are, where the build's output is, and the command.
kept() {
    local folder list=
    for folder in "$PWD" "$here" "${CARGO_TARGET_DIR:-}" "$(dirname "$1")"; do
        case $folder in /tmp/*) list+=${list:+,}$folder ;; esac
    done
    echo "$list"
}

main "$@"
