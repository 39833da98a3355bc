#!/usr/bin/env bash
# Takes away, one at a time, what keeps a promise of a crate, and checks that a test notices: `docs/mutations.md`. Three hours.
# With an argument only the rows of these tests (`loom`, `cache-unit`, 'primary*'), with another one only those with that word.
# With `check`, only that each substitution still finds its place: at once. One at a time in a tree: all share a directory of builds.
#
# The rows are in `ci/mutations/CRATE.rows`: promise | file in the crate's src | perl substitution | tests, or tests:FILTER.
# A row counts as noticed only if its tests pass as long as nothing is taken away; that is tried first, but under loom (`ci/loom.sh`).
# A hang counts as noticed, but under loom, where it may be only slow, unless it has reported something.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
tests=${1:-}
word=${2:-}

# Of each row that is asked for: calls a function with the crate, the promise, the file, the edit, the suite, the filter.
each_row() {
    local table row promise file edit suite
    for table in "$root"/ci/mutations/*.rows; do
        while IFS= read -r row; do
            case "$row" in '' | '#'*) continue ;; esac
            promise=${row%%|*}; row=${row#*|}
            file=${row%%|*}; row=${row#*|}
            edit=${row%|*}; row=${row##*|}
            suite=${row%%:*}; row=${row#"$suite"}
            # Not quoted: a pattern.
            [[ $tests = check || $suite = ${tests:-*} ]] && [[ $promise = *"$word"* ]] || continue
            "$1" "crates/$(basename "$table" .rows)/src/$file" "$promise" "$edit" "$suite" "${row#:}" </dev/null
        done <"$table"
    done
}

failed=0
tried=0
fail() { echo "$*"; failed=$((failed + 1)); }

# Whether a substitution changes anything.
changes() { ! perl -0pe "$2" "$root/$1" | cmp -s - "$root/$1"; }

check() {
    tried=$((tried + 1))
    changes "$1" "$3" || fail "STALE     $2: the substitution changes nothing"
}
if [ "$tests" = check ]; then
    each_row check
    echo "$tried mutations, $failed of which change nothing"
    exit $((failed > 0))
fi

# A copy. The core under loom is no core for the interception, on which nothing that loom looks at depends. What is loaded into
# programs is built faster, and lies with the copy.
tree=$root/target/mutations-tree
log=$tree.log
mkdir -p "$tree"
exec 9>"$tree.lock"
flock -n 9 || { echo "another one is running in this tree"; exit 1; }
rm -rf "$tree/crates"
cp -r Cargo.toml Cargo.lock crates docs "$tree/"
sed -i '/^mmu-notifier-primary/d' "$tree/crates/mmu-notifier-secondary/Cargo.toml"
sed -i 's/^lto = "fat"/lto = "off"\nincremental = true/; s/^codegen-units = 1$/codegen-units = 16/' "$tree/Cargo.toml"
# Who looks for names of a backtrace maps and unmaps.
export XDG_CACHE_HOME=$tree/cache MUTATIONS=$$ RUST_BACKTRACE=0
cd "$tree"

# Builds and runs the tests of a suite that a filter names, and leaves what they say in the log. Gives 200 if they do not compile.
run_tests() {
    local suite=$1 filter=$2 package target shown=() limit=100 status=0 process
    case "$suite" in
        cache-* | subscribers-*) package=mmu-notifier-secondary target=(--lib) ;;
        cache) package=mmu-notifier-secondary target=(--test it) ;;
        subscribers | kvm) package=mmu-notifier-secondary target=(--test "$suite") ;;
        reaper) package=mmu-notifier-primary target=(--test reaper) ;;
        reaper-unit | primary-unit | primary-loom) package=mmu-notifier-primary target=(--lib) ;;
        primary-*) package=mmu-notifier-primary target=(--test "${suite#primary-}") limit=40 ;;
        capi) package=mmu-notifier-capi target=(--test c) ;;
        mmun) package=mmun target=(--test it) ;;
        mmun-unit) package=mmun target=(--bin mmun) ;;
        *) package=mmu-notifier target=(--test "$suite") ;;
    esac
    local run=(env RUSTFLAGS="-A warnings" cargo test -q --offline -p "$package" "${target[@]}" --target-dir "$root/target/mutations")
    if [[ $suite = *loom ]]; then
        run=(env RUSTFLAGS="--cfg mmu_loom -A warnings" CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_INCREMENTAL=true
            cargo test -q --release --offline -p "$package" "${target[@]}" --target-dir "$root/target/mutations-loom")
        limit=300 shown=(--nocapture)
    fi
    "${run[@]}" --no-run >"$log" 2>&1 9>&- || return 200
    rm -rf "$XDG_CACHE_HOME"
    # What a test under loom has found, it may find again without an end.
    # shellcheck disable=SC2086
    timeout -k 5 "$limit" "${run[@]}" -- $filter "${shown[@]}" 2>&1 9>&- | head -c 1000000 >"$log" || status=$?
    # What was killed for hanging has left its programs.
    if [ "$status" = 124 ] || [ "$status" = 137 ]; then
        status=124
        for process in $(grep -lzsx "MUTATIONS=$$" /proc/[0-9]*/environ | cut -d/ -f3); do
            [ "$process" = $$ ] || kill -9 "$process" 2>/dev/null || true
        done
    fi
    return "$status"
}

declare -A passes
pass() {
    local suite=$4 filter=$5 status=0
    [[ $suite != *loom && -z "${passes[$suite:$filter]:-}" ]] || return 0
    run_tests "$suite" "$filter" || status=$?
    passes[$suite:$filter]=$status
    [ "$status" = 0 ] || { fail "FAILS     $suite:$filter, although nothing is taken away"; tail -n 30 "$log"; }
}

mutate() {
    local file=$1 promise=$2 edit=$3 suite=$4 filter=$5 status=0 by
    [ "${passes[$suite:$filter]:-0}" = 0 ] || return 0
    tried=$((tried + 1))
    if ! changes "$file" "$edit"; then
        fail "STALE     $promise: the substitution changes nothing"
        return
    fi
    perl -0pi -e "$edit" "$file"
    run_tests "$suite" "$filter" || status=$?
    cp "$root/$file" "$file"
    if [ "$status" = 200 ]; then
        fail "BROKEN    $promise: does not compile"; grep -m 1 -A 8 '^error' "$log" || true
    elif grep -q 'running 0 tests' "$log"; then
        fail "STALE     $promise: there is no test $filter"
    elif [ "$status" = 0 ]; then
        fail "SURVIVED  $promise ($file)"
    elif [ "$status" = 124 ] && [[ $suite = *loom ]] && ! grep -q 'Causality violation' "$log"; then
        fail "SURVIVED  $promise ($file), so far: loom was not done"
    else
        by=$(grep -oE "^---- [a-z0-9_:]+|^thread '[a-z0-9_:]+|^test [a-z0-9_:]+ .* FAILED|[a-z0-9_:]+ --- FAILED|SIGSEGV|SIGABRT" "$log" |
            sed -E "s/^---- |^test |^thread '//" | grep -oE '[a-z0-9_]+(::[a-z0-9_]+)+|^[a-z0-9_]+|SIG[A-Z]+' | grep -vx main | head -n 1 || true)
        if [ "$status" = 124 ]; then by=${by:-it hangs}; fi
        echo "noticed   $promise: ${by:-it fails}"
    fi
}

each_row pass
each_row mutate
[ "$((tried + failed))" -gt 0 ] || fail "there is no row of ${tests:-any test} with ${word:-any word}"
echo "$tried mutations, $failed not noticed"
exit $((failed > 0))
