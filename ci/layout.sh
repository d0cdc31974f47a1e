# shellcheck shell=bash
# Checks of the source text that no compiler makes. Sourced by stages.sh.

# The Rust files of this tree, build output left out.
rust_files() {
    find . -name target -prune -o -name '*.rs' -print | sed 's,^\./,,' | sort
}

# Code that only tests run: test files, and the test module that ends a file.
is_test_file() {
    case $1 in
        *tests.rs | */tests/* | */benches/*) true ;;
        *) false ;;
    esac
}

# without_tests FILE: its lines up to its test module.
without_tests() {
    awk '
        held != "" && /^(pub(\([a-z]+\))? )?mod [a-z_]+ \{/ { held = ""; exit }
        held != "" { print held; held = "" }
        /^#\[cfg\((all\()?test[,)]/ { held = $0; next }
        { print }
        END { if (held != "") print held }' "$1"
}

# has_word PATTERN: whether the code on standard input, comments left out, has a word like this.
has_word() {
    awk -v word="(^|[^A-Za-z0-9_])($1)([^A-Za-z0-9_]|\$)" '
        { sub(/\/\/.*/, "") }
        $0 ~ word { found = 1 }
        END { exit !found }'
}

# `unsafe` is in the files of unsafe-files.txt and in no other, and no file is listed without need.
unsafe_only_in_listed_files() {
    local file listed found=
    listed=$(awk '!/^#/ && NF { print $1 }' ci/unsafe-files.txt | sort)
    for file in $(rust_files); do
        if has_word unsafe <"$file"; then found+=$file$'\n'; fi
    done
    diff <(echo "$listed") <(printf %s "$found") ||
        fail 'ci/unsafe-files.txt (<) and the files that have unsafe code (>) differ'
}

# Core names atomics and cells in sync.rs alone, or loom would not see them all; and none wider than a pointer.
atomics_only_in_sync() {
    local file bad=0
    for file in $(rust_files | grep '^transport-core/src/'); do
        is_test_file "$file" && continue
        if without_tests "$file" | has_word 'Atomic[IU](64|128)'; then
            complain "$file: an atomic wider than a pointer"
        fi
        [ "$file" = transport-core/src/sync.rs ] && continue
        if without_tests "$file" | has_word '(core|std)::(sync::atomic|cell::UnsafeCell)'; then
            complain "$file: atomics and cells come from crate::sync"
        fi
    done
    [ "$bad" -eq 0 ] || fail 'atomics out of place'
}

# no_long_files LINES: no file under a src folder is longer, its tests not counted.
no_long_files() {
    local file lines bad=0
    for file in $(rust_files | grep '/src/'); do
        is_test_file "$file" && continue
        lines=$(without_tests "$file" | wc -l)
        [ "$lines" -le "$1" ] || complain "$file: $lines lines without its tests, more than $1"
    done
    [ "$bad" -eq 0 ] || fail 'files too long'
}

# Says what is wrong, and lets the caller's `bad` remember it.
complain() {
    printf '%s\n' "$*" >&2
    bad=1
}
