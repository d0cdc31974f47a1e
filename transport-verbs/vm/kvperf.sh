#!/usr/bin/env bash
# Runs kvperf over RDMA in the virtual machine: real rooms of engines of one rank and of several, every byte checked.
#
#   vm/run.sh vm/kvperf.sh KVPERF MODELS_FOLDER
set -euo pipefail
kvperf=$1 models=$2

# verified RDMA_PORTS ARGUMENT...
verified() {
    local ports=$1 report
    shift
    report=$(timeout 120 "$kvperf" loopback --fabric verbs --rdma-ports "$ports" --stall-seconds 20 --json "$@" 2>/tmp/log) ||
        { cat /tmp/log; echo "failed: $ports $*"; exit 1; }
    case $report in
        *'"verified":true'*) printf 'verified over %s: %s\n' "$ports" "$*" ;;
        *) printf 'not verified: %s\n' "$report"; exit 1 ;;
    esac
}

# raw RDMA_PORTS WORKLOAD...: the bare fabric between two processes.
raw() {
    local ports=$1 workload line
    shift
    for workload; do
        line=$("$kvperf" raw --fabric verbs --rdma-ports "$ports" --workload "$workload" --iters 3)
        printf '%s: %s\n' "$ports" "$line"
        case $line in *'"verified":true'*) ;; *) exit 1 ;; esac
    done
}

"$kvperf" devices
verified rxc --model "$models/tiny-hybrid.json" --requests 5
verified rxa,rxb --model "$models/tiny-hybrid.json" --requests 5
verified rxa --model "$models/tiny-hybrid.json" --requests 5 --prefill-tp 4 --decode-tp 2
verified rxc --model "$models/tiny-hybrid.json" --requests 5 --prefill-tp 2 --decode-tp 4 --prefill-pp 2
verified rxc --model "$models/tiny-latent.json" --requests 5 --prefill-tp 4 --prefill-cp 2
# Pages on a device that the NIC does not reach: that is said, with the reasons, and they are staged.
verified rxc --model "$models/tiny-hybrid.json" --requests 5 --memory mock-device
grep 'staged through host memory; not DMA-BUF: .*; not nvidia-peermem: .*Bad address' /tmp/log || exit 1
# Small scattered pages, one there and back, layer by layer.
raw rxc W2 W3
raw rxa,rxb W4
