#!/usr/bin/env bash
# Contexts in which nobody may wait, for long: about twenty minutes. With each allocator (glibc's, jemalloc, mimalloc, tcmalloc) a
# subscriber that allocates under its own lock, and one that refuses every other time, for a minute each while 16 threads
# allocate; 10,000 times installed and uninstalled while 64 threads map and unmap; 10,000 forks of every form while threads change
# memory. A run that hangs is killed, and counts as failed.
#
#   ci/contexts.sh [SECONDS [TIMES]]      60 seconds and 10000 times
set -u
cd "$(dirname "$0")/.." || exit 2
seconds=${1:-60}
times=${2:-10000}
cargo build --quiet --profile preload -p mmu-notifier-capi || exit 2
work=$(mktemp -d "${TMPDIR:-/tmp}/mmu-notifier-contexts.XXXXXX") || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
for name in allocator cycles forms; do
    gcc -O2 -Wall -Werror -pthread -I crates/mmu-notifier-capi/include -o "$work/$name" \
        "crates/mmu-notifier-capi/tests/$name.c" -L target/preload -lmmu_notifier_capi || exit 2
done
export LD_LIBRARY_PATH=$PWD/target/preload

failed=0
# LIMIT (seconds), what is preloaded, and a program.
run() {
    local limit=$1 preloaded=$2
    shift 2
    LD_PRELOAD=$preloaded timeout --signal=KILL "$limit" "$work/$1" "${@:2}" >"$work/said" 2>"$work/complained"
    local status=$?
    local last
    last=$(tail -n 1 "$work/said")
    if [ "$status" = 0 ] && [[ $last = ok* ]]; then
        echo "$* ${preloaded##*/}: $last"
    else
        failed=$((failed + 1))
        echo "$* ${preloaded##*/}: FAILED with status $status (137: it hung): $(cat "$work/said")"
        tail -n 5 "$work/complained"
    fi
}

for allocator in '' libjemalloc.so.2 libmimalloc.so.2 libtcmalloc_minimal.so.4; do
    path=${allocator:+/usr/lib/x86_64-linux-gnu/$allocator}
    if [ -n "$path" ] && [ ! -e "$path" ]; then
        echo "SKIPPED: $path is not installed"
        continue
    fi
    for what in locks half; do
        run $((seconds * 3 + 60)) "$path" allocator "$what" "$seconds" 16
    done
done
run $((times / 5 + 120)) '' cycles "$times" 64
run $((times / 5 + 120)) '' forms "$times" 8
[ "$failed" = 0 ] && echo "all well" || { echo "$failed failed"; exit 1; }
