#!/usr/bin/env bash
# What only a machine with an NVIDIA GPU can say: that every copy is right, and how fast the paths are beside the GPU's
# and the network's own speed.
#
#   benches/gpu.sh pack FOLDER   builds, here, and puts all that is needed into FOLDER
#   FOLDER/gpu.sh [GPU [GPU]]    there: needs the NVIDIA driver, and neither a network nor Rust
#
# Ends with status 0 if every byte was right and every ratio is reached, 1 if not, 2 where there is no GPU.
set -euo pipefail

main() {
    case ${1:-} in
        pack) pack "${2:?where to}" ;;
        -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" ;;
        *) measure "${1:-0}" "${2:-${1:-0}}" ;;
    esac
}

pack() {
    cd "$(dirname "$0")/.."
    cargo build --release -p kvperf
    mkdir -p "$1"
    cp "${CARGO_TARGET_DIR:-target}/release/kvperf" benches/gpu.sh "$1"
    ldd "$1/kvperf" | grep -qi cuda && { echo 'kvperf must not be linked against CUDA' >&2; exit 1; }
    echo "carry $1 to the machine, and run gpu.sh there"
}

# measure GPU GPU: the prefill side's, and the decode side's.
measure() {
    local copies host staged pulled pinned floor
    kvperf=$(dirname "$0")/kvperf
    [ -x "$kvperf" ] || { echo "no kvperf beside $0: pack it first" >&2; exit 2; }
    "$kvperf" devices || exit 2
    gpus=$1,$2 failed=0

    # Fresh random bytes, poisoned outputs; ends the script when a byte is wrong.
    copies=$("$kvperf" gpu --gpu "$1")
    echo "$copies"

    # Every byte of every page, through rooms, by both ways and between shapes that need slices.
    right --device-path staged
    right --device-path auto
    right --device-path staged --prefill-tp 4 --decode-tp 2 --requests 4
    right --device-path auto --prefill-tp 2 --decode-tp 4 --requests 4

    host=$(rate --memory host)
    staged=$(rate --memory cuda --gpu "$gpus" --device-path staged)
    pulled=$(rate --memory cuda --gpu "$gpus" --device-path auto)
    pinned=$(least "$(field to_host "$copies")" "$(field to_device "$copies")")
    floor=$(least "$pinned" "$host")
    ratio 'staged loopback / the slower of pinned copy and host loopback' "$staged" "$floor" 0.9
    ratio 'slices within the device / a plain copy of as many bytes' \
        "$(field within "$copies")" "$(field device_copy "$copies")" 0.8
    ratio 'hand-over to another process / a plain copy within the device' \
        "$pulled" "$(field device_copy "$copies")" 0.9
    exit "$failed"
}

# right OPTION...: a loopback over GPU memory whose every byte is checked.
right() {
    echo "checking: $*"
    "$kvperf" loopback --memory cuda --gpu "$gpus" --requests 8 "$@" >/dev/null || {
        echo "WRONG: $*" >&2
        exit 1
    }
}

# rate OPTION...: bytes a second of a loopback, the median of five. Unchecked: checking reads back every page.
rate() {
    local round
    for round in 1 2 3 4 5; do
        field gbps "$("$kvperf" loopback --json --verify false --seed "$round" "$@" 2>/dev/null | tail -n 1)"
    done | sort -g | awk 'NR == 3 { printf "%.0f", $1 * 1e9 }'
}

# field NAME JSON: a number of a line of JSON.
field() {
    sed -n "s/.*\"$1\":\([0-9.eE+-]*\).*/\1/p" <<<"$2"
}

least() {
    printf '%s\n' "$@" | sort -g | head -n 1
}

# ratio NAME A B LEAST
ratio() {
    awk -v name="$1" -v a="$2" -v b="$3" -v least="$4" 'BEGIN {
        r = b > 0 ? a / b : 0
        printf "%.2f  %s (%.1f of %.1f GB/s; at least %s)\n", r, name, a / 1e9, b / 1e9, least
        exit r < least
    }' || failed=1
}

main "$@"
