#!/usr/bin/env bash
# What the hook costs per call, against UCX's hooks (Debian's libucx0). About three minutes. For starts and whole programs
# there is ci/bench-programs.sh.
# Prints medians over rounds; the last lines are one `ratio <cell> <value>` each.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5}
cargo build --quiet --profile preload -p mmu-notifier-capi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gcc -O2 -pthread -I crates/mmu-notifier-capi/include benches/hook/hook.c -o "$work/hook" -ldl
export LD_LIBRARY_PATH=$PWD/target/preload

# Hook, subscribers, threads, bytes of stack.
cells=('none 0 1 0' 'ours 0 1 0' 'ours 1 1 0' 'ours 4 1 0' 'ucm 1 1 0' 'ours 1 1 4096' 'ours 1 1 16384'
    'none 0 2 0' 'ours 0 2 0' 'ours 1 2 0' 'ours 4 2 0' 'ucm 1 2 0')
for ((round = 0; round < rounds; round++)); do
    for cell in "${cells[@]}"; do
        # shellcheck disable=SC2086
        "$work/hook" $cell 2>>"$work/errors" | sed "s/^/$cell /" >>"$work/rows" || echo "SKIPPED: hook $cell: $(tail -n 1 "$work/errors")"
    done
done

median() { sort -g | awk '{ v[NR] = $1 } END { if (NR) print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
column() { awk -v mode="$1" -v subs="$2" -v threads="$3" -v depth="$4" -v kind="$5" -v at="$6" \
    '$1 == mode && $2 == subs && $3 == threads && $4 == depth && $5 == kind { print $at }' "$work/rows" | median; }

printf '\n%-8s %-11s %-8s %-8s %-8s %10s %10s %10s\n' hook subscribers threads depth call 'plain ns' 'hooked ns' 'added ns'
for cell in "${cells[@]}"; do
    for kind in madvise pair touched; do
        read -r mode subs threads depth <<<"$cell"
        # shellcheck disable=SC2086
        printf '%-8s %-11s %-8s %-8s %-8s %10s %10s %10s\n' "$mode" "$subs" "$threads" "$depth" "$kind" \
            "$(column $cell $kind 6)" "$(column $cell $kind 7)" "$(column $cell $kind 8)"
    done
done

echo
ratio() { awk -v cell="$1" -v a="$2" -v b="$3" 'BEGIN { if (b != "" && b != 0) printf "ratio %s %.3f\n", cell, a / b }'; }
for kind in madvise pair touched; do
    for threads in 1 2; do
        for subs in 0 1 4; do
            ratio "$kind/$threads-threads/$subs-subscribers/hooked-to-plain" "$(column ours $subs $threads 0 $kind 7)" "$(column ours $subs $threads 0 $kind 6)"
        done
        ratio "$kind/$threads-threads/added-ours-to-ucm" "$(column ours 1 $threads 0 $kind 8)" "$(column ucm 1 $threads 0 $kind 8)"
    done
done
