#!/bin/bash
# Runs the self-checking programs under `mmun run` for many rounds, refusing every third start that may be
# refused, and checks each time that the program ended as it should and that every start had its end.
#
#   ci/storm.sh [SECONDS [PATH/OF/mmun]]      150 seconds and target/release/mmun (built if it is not there)
set -u
cd "$(dirname "$0")/.." || exit 2
seconds=${1:-150}
mmun=${2:-target/release/mmun}
if [ ! -x "$mmun" ]; then
    cargo build --release --package mmun || exit 2
fi
mmun=$(realpath "$mmun")
work=$(mktemp -d "${TMPDIR:-/tmp}/mmun-storm.XXXXXX") || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

for name in torture signals cancel vfork rawclone registers; do
    gcc -O2 -pthread -o "$work/$name" "crates/mmun/tests/programs/$name.c" || exit 2
done
cp "$(command -v bash)" "$work/bash"
cp crates/mmun/tests/programs/processes.sh "$work/"
cd "$work" || exit 2

# Each line: what it must print last, and the program.
storm=(
    "checksum|torture 16 400"
    "signals ok|signals 1500"
    "cancel ok|cancel 300"
    "vfork ok|vfork 40"
    "checksum|torture 2 4000"
    "rawclone ok|rawclone"
    "registers ok|registers"
    "and out|bash processes.sh"
)

# The number of a key in the report's `balance`; there is only one of each name in it.
balance() {
    grep -o '"balance" *: *{[^}]*}' <(tr -d '\n' < report.json) | grep -o "\"$1\" *: *[0-9]*" | grep -o '[0-9]*$'
}

passed=0 failed=0 round=0
begun=$SECONDS
while [ $((SECONDS - begun)) -lt "$seconds" ]; do
    entry=${storm[round % ${#storm[@]}]}
    round=$((round + 1))
    wanted=${entry%%|*}
    read -r -a program <<< "${entry#*|}"
    rm -f report.json
    started=$(date +%s.%N)
    timeout --signal=KILL 120 "$mmun" run --quiet --refuse 1/3 --json report.json -- \
        "./${program[0]}" "${program[@]:1}" > out 2> err < /dev/null
    status=$?
    took=$(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
    why=
    [ "$status" = 0 ] || why="exit status $status"
    tail -n 1 out | grep -q "^$wanted" || why="$why; last line: $(tail -n 1 out)"
    starts='' ends='' cut='' abandoned=''
    if [ -s report.json ]; then
        starts=$(balance starts) ends=$(balance ends) cut=$(balance cut_short) abandoned=$(balance abandoned)
        if [ -z "$starts" ] || [ "$starts" != "$((${ends:-0} + ${cut:-0}))" ]; then
            why="$why; not balanced"
        elif [ "$starts" = 0 ]; then
            why="$why; nothing was announced"
        fi
    else
        why="$why; no report"
    fi
    if [ "${program[0]}" = torture ]; then
        # Without mmun it prints the same.
        timeout --signal=KILL 120 "./${program[0]}" "${program[@]:1}" > plain 2>&1
        cmp -s plain out || why="$why; another checksum than without mmun"
    fi
    line="round $round: ${program[*]}: ${took}s, $starts starts, $ends ends, $cut cut short, $abandoned abandoned"
    if [ -z "$why" ]; then
        passed=$((passed + 1))
        echo "$line: passed"
    else
        failed=$((failed + 1))
        echo "$line: FAILED: ${why#; }"
        tail -n 20 err | sed 's/^/    /'
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
