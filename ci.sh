#!/usr/bin/env bash
# Every check of this project, as named stages that also run alone.
#
#   ./ci.sh               all of them, in the order of the list
#   ./ci.sh loom clippy   these two
#   ./ci.sh list          what there is
#
# A stage passes, fails, or is SKIPPED where this machine cannot run it: it then says why, and counts as neither.
# The exit status is 0 if no stage failed and at least one passed, 2 for a name that is no stage.
#
# The stages are the functions `stage_*` of ci/stages.sh; a new one needs nothing else. Settings:
#   CARGO_TARGET_DIR   where to build (target)
#   CI_STAGE_LIMIT     seconds after which a stage has failed (1200)
#   NO_COLOR           no colours on a terminal either
set -u
set -m # gives each stage a process group of its own, so that all of it can be ended
cd "$(dirname "$0")" || exit 1

CI_TMP=$(mktemp -d) || exit 1
export CI_TMP
trap 'rm -rf "$CI_TMP"' EXIT
running=
trap interrupted INT TERM

red='' green='' yellow='' bold='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    red=$'\e[31m' green=$'\e[32m' yellow=$'\e[33m' bold=$'\e[1m' plain=$'\e[0m'
fi

main() {
    case ${1:-} in
        list) list ;;
        -h | --help | help) usage ;;
        *) run_all "$@" ;;
    esac
}

usage() {
    sed -n '2,/^set -u/{/^#/s/^# \{0,1\}//p}' ci.sh
}

# One line a stage: its name and the comment behind its function's head.
list() {
    sed -n 's/^stage_\([a-z_]*\)() { # \(.*\)/\1 \2/p' ci/stages.sh | while read -r name what; do
        printf '%-12s %s\n' "${name//_/-}" "$what"
    done
}

run_all() {
    local names name
    names=$(list | cut -d ' ' -f 1)
    for name; do
        grep -qx -- "$name" <<<"$names" || { usage_error "$name"; return 2; }
    done
    [ $# -gt 0 ] && names=$*
    passed=0 failed=0 skipped=0 rows=
    for name in $names; do
        run_stage "$name"
    done
    summary
}

usage_error() {
    printf 'ci.sh: no stage %s; there are:\n' "$1" >&2
    list >&2
}

run_stage() {
    local began=$SECONDS status
    printf '\n%s==== %s%s\n' "$bold" "$1" "$plain"
    rm -f "$CI_TMP/skipped"
    timeout -k 10 "${CI_STAGE_LIMIT:-1200}" bash ci/stages.sh "$1" </dev/null &
    running=$!
    wait "$running"
    status=$?
    end_running
    verdict "$1" "$status" $((SECONDS - began))
}

# verdict STAGE STATUS SECONDS: counts the stage and says how it went.
verdict() {
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
        record "$green" "$1" passed "$3" ''
    elif [ "$2" -eq 77 ] && [ -f "$CI_TMP/skipped" ]; then
        skipped=$((skipped + 1))
        record "$yellow" "$1" SKIPPED "$3" "$(cat "$CI_TMP/skipped")"
    else
        failed=$((failed + 1))
        record "$red" "$1" FAILED "$3" "$(reason "$2")"
    fi
}

reason() {
    case $1 in
        124 | 137) echo "stopped after ${CI_STAGE_LIMIT:-1200} s" ;;
        *) echo "exit status $1" ;;
    esac
}

# record COLOUR STAGE RESULT SECONDS REMARK: prints the row of the summary, and keeps it.
record() {
    local row
    row=$(printf '%s%-12s %-8s%s %5d s%s' "$1" "$2" "$3" "$plain" "$4" "${5:+  $5}")
    rows+=$row$'\n'
    printf '%s\n' "$row"
}

summary() {
    printf '\n%s==== summary, %d s%s\n%s' "$bold" "$SECONDS" "$plain" "$rows"
    printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}

# Ends whatever the stage still has running: all of it after an interrupt, strays otherwise.
end_running() {
    [ -z "$running" ] || kill -- "-$running" 2>/dev/null
    running=
}

interrupted() {
    end_running
    exit 130
}

main "$@"
