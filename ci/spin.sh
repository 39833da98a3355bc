#!/usr/bin/env bash
# Model checking of the core's protocol: models/*.pml, every state of each, and then with one step taken away at a time,
# which must be noticed. A few minutes on two cores, less than 4 GiB. `ci/spin.sh WORD` runs the rows with that word.
# To see the trail of a mutation: KEEP=directory ci/spin.sh WORD, then `spin -t -p` there.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v spin >/dev/null || ! command -v gcc >/dev/null; then
    echo "SKIPPED: THE PROTOCOL WAS NOT MODEL-CHECKED: spin or gcc is not installed (Debian: apt-get install spin gcc)" >&2
    exit 0
fi

# model | options | what it is about
checks=(
'subscribe||subscribe, two changes, unsubscribe: G1 G3 G4 G5'
'subscribe|-DTSO|the same with the stores in order, as on x86-64'
'subscribe|-DLONG_CHANGE -DCHANGES=1|unsubscribing does not wait for a change'
'subscribe|-DAGING|callbacks beside changes: G5'
'subscribe|-DEDITORS|two who subscribe and unsubscribe at the same time'
)
# model | options | mutation | what is taken away
mutations=(
'subscribe||WITHOUT_CLAIM_FENCE|the full fence of the claim'
'subscribe|-DTSO -DROOM=3|WITHOUT_CLAIM_FENCE|the full fence of the claim, where stores stay in order'
'subscribe||WITHOUT_FINISH_FENCE|the full fence of the finish'
'subscribe|-DTSO|WITHOUT_FINISH_FENCE|the full fence of the finish, where stores stay in order'
'subscribe||WITHOUT_SCAN_FENCE|the full fence before slots are read'
'subscribe||WITHOUT_STRANGERS|waiting for changes that do not know the newcomer'
'subscribe||WITHOUT_CALLBACKS|waiting for callbacks that run'
'subscribe||WITHOUT_GONE|looking at gone before a callback'
'subscribe||CURRENT_AT_END|the end walks the recorded list, not the current one'
'subscribe||WITHOUT_CLEARING_NAME|clearing the name when a slot is freed'
'subscribe||WITHOUT_RELEASE_OF_CHANGING|release when the starts are over'
'subscribe||WITHOUT_RELEASE_OF_FREE|release when a slot is freed'
'subscribe|-DLONG_CHANGE -DCHANGES=1|WAITS_FOR_CHANGES|unsubscribing waits for callbacks only'
'subscribe|-DAGING|WITHOUT_HOLDS_FENCE|the full fence before lists are freed'
'subscribe|-DAGING|WITHOUT_ANY_LIST|a slot without a list on record holds every list'
'subscribe|-DEDITORS|WITHOUT_ANY_LIST|who edits holds the list it copies'
'subscribe|-DEDITORS|STORE_INSTEAD_OF_EXCHANGE|the exchange of the list'
)

word=${1:-}
root=$PWD
work=${KEEP:-$(mktemp -d)}
mkdir -p "$work"
[ -n "${KEEP:-}" ] || trap 'rm -rf "$work"' EXIT
failed=0

# run MODEL OPTIONS OPTIMISATION: sets `result` (none, error, or what went wrong), `what`, `states`, `seconds`.
run() {
    local dir
    dir=$(mktemp -d "$work/$1.XXXX")
    cp "$root"/models/*.h "$root/models/$1.pml" "$dir"
    result=broken what= states=0 seconds=0
    # shellcheck disable=SC2086 # options are words
    if ! (cd "$dir" && spin -a $2 "$1.pml" && gcc -w "$3" -DSAFETY -DCOLLAPSE -DMEMLIM=3000 -DVECTORSZ=2048 -o pan pan.c) >"$dir/log" 2>&1; then
        what=$(grep -m 1 -E 'rror' "$dir/log" || true)
        return
    fi
    (cd "$dir" && timeout "${LIMIT:-200}" ./pan -m1000000 -w24) >"$dir/out" 2>&1 || true
    states=$(grep -oE '^ *[0-9.e+]+ states, stored' "$dir/out" | grep -oE '[0-9.e+]+' | head -n 1 || true)
    seconds=$(grep -oE 'elapsed time [0-9.]+' "$dir/out" | grep -oE '[0-9.]+' | head -n 1 || true)
    what=$(grep -m 1 -E '^pan:1: ' "$dir/out" | sed -E 's/^pan:1: //; s/ +/ /g' || true)
    if grep -q 'errors: [1-9]' "$dir/out"; then
        if [ -s "$dir/$1.pml.trail" ]; then result=error; else result=broken what="an error without a trail"; fi
    elif grep -qE 'MEMLIM|max search depth too small|Search not completed|out of memory' "$dir/out" || ! grep -q 'errors: 0' "$dir/out"; then
        result=broken what="not finished: more states than there is room or time for"
    else
        result=none
    fi
}

echo "== every state of the protocol"
for row in "${checks[@]}"; do
    [[ "$row" == *"$word"* ]] || continue
    IFS='|' read -r model options about <<<"$row"
    run "$model" "$options" -O2
    case $result in
        none) printf 'holds     %10s states %5ss  %-10s %s\n' "$states" "$seconds" "$model" "$about" ;;
        *) printf 'FAILED    %10s states %5ss  %-10s %s: %s\n' "$states" "$seconds" "$model" "$about" "$what"; failed=$((failed + 1)) ;;
    esac
done
echo "== one step taken away at a time"
for row in "${mutations[@]}"; do
    [[ "$row" == *"$word"* ]] || continue
    IFS='|' read -r model options mutation about <<<"$row"
    run "$model" "$options -D$mutation" -O1
    case $result in
        error) printf 'noticed   %10s states %5ss  %-10s %s: %s\n' "$states" "$seconds" "$model" "$about" "${what:0:70}" ;;
        none) printf 'SURVIVED  %10s states %5ss  %-10s %s (%s)\n' "$states" "$seconds" "$model" "$about" "$mutation"; failed=$((failed + 1)) ;;
        *) printf 'FAILED    %10s states %5ss  %-10s %s (%s): %s\n' "$states" "$seconds" "$model" "$about" "$mutation" "$what"; failed=$((failed + 1)) ;;
    esac
done
[ "$failed" = 0 ] || { echo "spin: $failed failed"; exit 1; }
echo "spin: passed"
