#!/usr/bin/env bash
# What mmun costs around the calls: a process's start, and whole programs. About five minutes.
#
#   ci/bench-programs.sh [ROUNDS [OTHER/mmun ..]]     11 rounds; other builds of mmun are measured in turn with this one
#
# All contenders in turn in every round, medians over rounds.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-11}
target=${CARGO_TARGET_DIR:-target}
cargo build --quiet --release -p mmun
builds=("$(realpath "$target/release/mmun")")
for other in "${@:2}"; do builds+=("$(realpath "$other")"); done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gcc -O2 benches/start/spawn.c -o "$work/spawn"
echo 'int nothing;' >"$work/empty.c"
gcc -shared -fPIC "$work/empty.c" -o "$work/empty.so"
printf '#include <stdio.h>\n#include <stdlib.h>\nint main(void) { for (int i = 0; i < 9; i++) printf("%%d", rand()); }\n' >"$work/one.c"
# The object as mmun keeps it.
# shellcheck disable=SC2016
object() { "$1" run --quiet -- sh -c 'tr "\0" "\n" </proc/$$/environ | sed -n "s/^LD_PRELOAD=//p"'; }

median() { sort -g | awk '{ v[NR] = $1 } END { if (NR) print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
cell() { awk -v name="$1" -v how="$2" -v at="$3" '$1 == name && $2 == how { print $at }' "$work/rows" | median; }
load() { awk '{ print $1 }' /proc/loadavg; }

echo "load $(load)"
for ((round = 0; round < rounds; round++)); do
    for way in vfork fork; do
        echo "$way plain $("$work/spawn" 200 $way /bin/true)"
        echo "$way empty $(LD_PRELOAD=$work/empty.so "$work/spawn" 200 $way /bin/true)"
        for index in "${!builds[@]}"; do
            echo "$way object$index $(LD_PRELOAD=$(object "${builds[index]}") "$work/spawn" 200 $way /bin/true)"
            echo "$way mmun$index $("${builds[index]}" run --quiet -- "$work/spawn" 200 $way /bin/true)"
        done
    done >>"$work/rows"
done
printf '\none start of /bin/true, microseconds\n%-8s %-10s %8s %14s %8s\n' by how wall 'user + system' faults
for way in vfork fork; do
    for how in plain empty $(for index in "${!builds[@]}"; do echo "object$index mmun$index"; done); do
        printf '%-8s %-10s %8s %14s %8s\n' $way "$how" "$(cell $way "$how" 3)" "$(cell $way "$how" 4)" "$(cell $way "$how" 5)"
    done
done

programs=(
    "true|exec /bin/true"
    "shell|for i in \$(seq 100); do /bin/true; done"
    "numpy|exec /usr/bin/python3 -c 'import numpy as n; [n.ones((512, 512)) * i for i in range(400)]'"
    "node|exec node -e 'let s = 0; for (let i = 0; i < 300; i++) s += Buffer.alloc(1 << 19).length'"
    "java|exec java -version"
    "gcc|exec gcc -O2 -c $work/one.c -o $work/one.o"
    "malloc|exec stress-ng --quiet --malloc 1 --malloc-ops 30000"
)
# Wall, then user + system, of the program and whoever watches it.
seconds() { local TIMEFORMAT='%R %U %S'; { time "$@" >/dev/null 2>&1; } 2>&1 | awk '{ print $1, $2 + $3 }'; }
for ((round = 0; round < rounds; round++)); do
    for program in "${programs[@]}"; do
        echo "${program%%|*} plain $(seconds bash -c "${program#*|}")"
        for index in "${!builds[@]}"; do
            echo "${program%%|*} mmun$index $(seconds "${builds[index]}" run --quiet -- bash -c "${program#*|}")"
        done
    done >>"$work/rows"
done
printf '\nwhole programs, seconds; mmun0 is this build\n%-8s %-8s %8s %14s %8s\n' program how wall 'user + system' ratio
for program in "${programs[@]}"; do
    name=${program%%|*} plain=$(cell "${program%%|*}" plain 4)
    for how in plain $(for index in "${!builds[@]}"; do echo "mmun$index"; done); do
        took=$(cell "$name" "$how" 4)
        printf '%-8s %-8s %8s %14s %8s\n' "$name" "$how" "$(cell "$name" "$how" 3)" "$took" \
            "$(awk -v a="$took" -v b="$plain" 'BEGIN { if (b > 0) printf "%.2f", a / b }')"
    done
done
echo "load $(load)"
