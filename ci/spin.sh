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
'subscribe|-DNOBODY|the same where nobody is there at first: then a change has no list on record'
'subscribe|-DAGING|callbacks beside changes: G5'
'subscribe|-DEDITORS|two who subscribe and unsubscribe at the same time'
'intervals||insert, read, mirror, remove, and two changes: G5 G7'
'intervals|-DCHANGES=1 -DTRIES=1 -DROOM=4|the same with one change and more stores on their way'
'intervals|-DCHANGES=1 -DTRIES=1 -DROOM=5 -DTSO|the same with the stores in order, as on x86-64'
'intervals|-DCHANGES=1 -DTRIES=1 -DROOM=3 -DLAZY|the same with a fence less after the insertion'
'intervals|-DCHANGES=1 -DTRIES=1 -DROOM=3 -DNOBODY|the same where there is no interval at first: then a change has no range on record'
'intervals|-DFAR -DCHANGES=1|a reader and a remover do not wait for a change of other pages: G8'
'intervals|-DNEAR -DCHANGES=1|a remover does not wait for a change, only for its start'
'bracket||three subscribers, refusals: G1 G2 G3'
'bracket|-DJUMPS|the thread jumps out of callbacks and changes, and comes back: G1'
'bracket|-DHANDED|another thread ends the change, and who started it unsubscribes: G5'
'exit||the space goes while somebody subscribes and unsubscribes: one release each'
'exit|-DSHARES|the space goes while shares are given back'
'synchronize||returns when the last one put has been dropped'
'waits||three threads, every wait, none of them inside a callback or an open change: no circle'
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
'intervals|-DCHANGES=1 -DTRIES=1 -DROOM=4|WITHOUT_CLAIM_FENCE|the full fence of the claim'
'intervals|-DCHANGES=1 -DTRIES=1 -DROOM=5 -DTSO|WITHOUT_CLAIM_FENCE|the same, where stores stay in order'
'intervals|-DCHANGES=1 -DTRIES=1 -DROOM=3 -DLAZY|WITHOUT_SCAN_FENCE|the full fence between ticket and scan'
'intervals|-DCHANGES=1 -DTRIES=1 -DROOM=3|WITHOUT_HOLDS_FENCE|the full fence before trees are freed'
'intervals||TICKET_AFTER_SCAN|the ticket is taken before the scan'
'intervals||STALE_AFTER_CALLBACK|the sequence is raised before the callback'
'intervals||WITHOUT_READ_WAIT|a reader waits for overlapping changes'
'intervals||WAITS_FOR_STARTS_ONLY|a reader waits for changes, not only for their starts'
'intervals||WITHOUT_IS_STALE|asking whether the ticket is stale'
'intervals||WITHOUT_REMOVE_WAIT|a remover waits for overlapping starts'
'intervals||WITHOUT_ERAS|trees that are walked are not freed'
'intervals||ERA_AFTER_ROOT|the era goes on record before the root is loaded'
'intervals|-DCHANGES=1 -DTRIES=1 -DROOM=4|ERA_AFTER_LIST|the era goes on record before the list'
'intervals|-DCHANGES=1 -DTRIES=1 -DROOM=4|ERA_UNTIL_WALK|the era stays on record until the callbacks have returned'
'intervals|-DCHANGES=1 -DTRIES=1 -DROOM=4|WITHOUT_UNKNOWN_RANGE|a range that is not on record yet may be any'
'intervals|-DTRIES=1 -DROOM=4|WITHOUT_CLEARING_LIST|clearing the list, and with it the range, when a slot is freed'
'intervals|-DTRIES=1 -DROOM=4|WITHOUT_RELEASE_OF_LIST|release of the list behind the range'
'intervals|-DFAR -DCHANGES=1|WITHOUT_RANGE|looking at the range: G8'
'intervals|-DNEAR -DCHANGES=1|WAITS_FOR_CHANGES|a remover waits for starts only'
'bracket||WITHOUT_ENDS|the ends after a refusal'
'bracket||REFUSAL_ENDS_WALK|everybody is asked'
'bracket|-DJUMPS|WITHOUT_ADOPTION|the ends of an abandoned change'
'bracket|-DJUMPS|ADOPTED_FROM_SCRATCH|going on where the thread jumped away'
'bracket|-DJUMPS|NOTED_BEHIND|an end is noted before it is called'
'bracket|-DJUMPS|WITHOUT_CUT|only those who have started are ended'
'bracket|-DJUMPS|WITHOUT_FORGETTING|what was cut short leaves nothing to the next change'
'bracket||START_IS_END|what a start has left on record is no end'
'bracket|-DHANDED|WITHOUT_TAKEN|the new name is written before the phase in which it counts'
'exit||WITHOUT_CLAIM_FENCE|the full fence of the claim'
'exit||WITHOUT_SECOND_LOOK|who has subscribed looks whether the space has gone'
'exit||WITHOUT_WAIT_FOR_RELEASE|waiting for a release in who unsubscribes'
'exit|-DSHARES|CLEARS_UNDER_OLD_RECORD|who replaces a list is on record with any list'
'synchronize||ANYBODY_COLLECTS|one thread frees lists at a time: the lists may be in other hands'
'synchronize||ONCE_IS_ENOUGH|it goes on: a change that has just begun keeps every list'
'synchronize||MOMENT_BEFORE_EDITORS|the moment is taken when those who were editing are done'
'synchronize||WITHOUT_EDITORS|waiting for those who are editing'
)
# model | options | what does not hold, and is documented: must fail, so that the documentation stays true
limits=(
'waits|-DINSIDE|waits inside callbacks or open changes of one'"'"'s own can make a circle'
'bracket|-DJUMPS -DANYWHERE|a jump between the return of a start and the note of what comes next'
'intervals|-DFAR -DCHANGES=1 -DNOBODY|a reader waits for other pages if the change found nobody to tell'
'intervals|-DTORN_DOWN_BEHIND|a mirror that is torn down only after the removal'
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
    [[ "$what" != *buffer* ]] || what="a store arrives where or when it must not"
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
        none) printf 'holds     %10s states %5ss  %-11s %s\n' "$states" "$seconds" "$model" "$about" ;;
        *) printf 'FAILED    %10s states %5ss  %-11s %s: %s\n' "$states" "$seconds" "$model" "$about" "$what"; failed=$((failed + 1)) ;;
    esac
done
echo "== one step taken away at a time"
for row in "${mutations[@]}"; do
    [[ "$row" == *"$word"* ]] || continue
    IFS='|' read -r model options mutation about <<<"$row"
    run "$model" "$options -D$mutation" -O1
    case $result in
        error) printf 'noticed   %10s states %5ss  %-11s %s: %s\n' "$states" "$seconds" "$model" "$about" "${what:0:70}" ;;
        none) printf 'SURVIVED  %10s states %5ss  %-11s %s (%s)\n' "$states" "$seconds" "$model" "$about" "$mutation"; failed=$((failed + 1)) ;;
        *) printf 'FAILED    %10s states %5ss  %-11s %s (%s): %s\n' "$states" "$seconds" "$model" "$about" "$mutation" "$what"; failed=$((failed + 1)) ;;
    esac
done
echo "== what is known not to hold"
for row in "${limits[@]}"; do
    [[ "$row" == *"$word"* ]] || continue
    IFS='|' read -r model options about <<<"$row"
    run "$model" "$options" -O1
    case $result in
        error) printf 'known     %10s states %5ss  %-11s %s: %s\n' "$states" "$seconds" "$model" "$about" "${what:0:70}" ;;
        *) printf 'FAILED    %10s states %5ss  %-11s %s: no trail %s\n' "$states" "$seconds" "$model" "$about" "$what"; failed=$((failed + 1)) ;;
    esac
done
[ "$failed" = 0 ] || { echo "spin: $failed failed"; exit 1; }
echo "spin: passed"
