#!/usr/bin/env bash
# What strict mode costs: system calls unwatched, watched, and in strict mode (docs/performance.md).
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --release -p mmun
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
gcc -O2 -o "$out/cost" crates/mmun/tests/programs/cost.c
"$out/cost" >"$out/plain"
target/release/mmun run --quiet --strict=never -- "$out/cost" >"$out/never"
target/release/mmun run --quiet --strict -- "$out/cost" >"$out/strict"
printf '%-46s %9s %9s %9s\n' 'nanoseconds each' unwatched watched strict
paste "$out/plain" "$out/never" "$out/strict" |
    sed -E 's/^(.{46}) +([0-9]+)\t.* ([0-9]+)\t.* ([0-9]+)$/\1\t\2\t\3\t\4/' |
    while IFS=$'\t' read -r what plain never strict; do
        printf '%-46s %9s %9s %9s\n' "$what" "$plain" "$never" "$strict"
    done
