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

cells=('none 0 1' 'ours 0 1' 'ours 1 1' 'ours 4 1' 'ucm 1 1' 'none 0 2' 'ours 0 2' 'ours 1 2' 'ours 4 2' 'ucm 1 2')
for ((round = 0; round < rounds; round++)); do
    for cell in "${cells[@]}"; do
        # shellcheck disable=SC2086
        "$work/hook" $cell 2>>"$work/errors" | sed "s/^/$cell /" >>"$work/rows" || echo "SKIPPED: hook $cell: $(tail -n 1 "$work/errors")"
    done
done

median() { sort -g | awk '{ v[NR] = $1 } END { if (NR) print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
column() { awk -v mode="$1" -v subs="$2" -v threads="$3" -v kind="$4" -v at="$5" '$1 == mode && $2 == subs && $3 == threads && $4 == kind { print $at }' "$work/rows" | median; }

printf '\n%-8s %-11s %-8s %-8s %10s %10s %10s\n' hook subscribers threads call 'plain ns' 'hooked ns' 'added ns'
for cell in "${cells[@]}"; do
    for kind in madvise pair touched; do
        read -r mode subs threads <<<"$cell"
        # shellcheck disable=SC2086
        printf '%-8s %-11s %-8s %-8s %10s %10s %10s\n' "$mode" "$subs" "$threads" "$kind" \
            "$(column $cell $kind 5)" "$(column $cell $kind 6)" "$(column $cell $kind 7)"
    done
done

echo
ratio() { awk -v cell="$1" -v a="$2" -v b="$3" 'BEGIN { if (b != "" && b != 0) printf "ratio %s %.3f\n", cell, a / b }'; }
for kind in madvise pair touched; do
    for threads in 1 2; do
        for subs in 0 1 4; do
            ratio "$kind/$threads-threads/$subs-subscribers/hooked-to-plain" "$(column ours $subs $threads $kind 6)" "$(column ours $subs $threads $kind 5)"
        done
        ratio "$kind/$threads-threads/added-ours-to-ucm" "$(column ours 1 $threads $kind 7)" "$(column ucm 1 $threads $kind 7)"
    done
done
