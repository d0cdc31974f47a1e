#!/usr/bin/env bash
# Hands a language model over in the middle, and compares the text with that of one process that does both. Needs Rust,
# and pip to fetch the model (98 MB, once). Builds, runs, and ends with status 0 if all is identical; 1 if not, as with
#
#   examples/handoff/run.sh --fault withhold     # a chunk's pages are never reported
#   examples/handoff/run.sh --fault corrupt      # a byte of a page is another
#
# Further options are those of `handoff run` (--help): --prompts 3, --brief, --tokens 16, --path tcp, ... Status 3: the
# model could not be fetched.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

model=$("$here/fetch.sh")
cd "$here/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --release --quiet --package handoff
exec "$target/release/handoff" run --gguf "$model" --svg "$target/handoff-timeline.svg" "$@"
