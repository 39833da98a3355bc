#!/usr/bin/env bash
# Takes away, one at a time, what keeps a promise of the core, and checks that a test notices. Ten minutes.
# Each row: promise | file in crates/mmu-notifier/src | perl substitution | tests: `it`, `loom` or `oracle`.
# With an argument, only the rows of these tests.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/crates"
cp -r crates/mmu-notifier crates/mmu-notifier-model "$work/crates/"
cp Cargo.lock "$work/"
sed 's|^mmu-notifier-primary = .*||' Cargo.toml >"$work/Cargo.toml"
cd "$work"

rows=(
'G1 ends after a refusal|invalidation.rs|s/let panic = panic\.or\(end_all\(&held, entries, &change\)\);/let panic: Option<Panic> = panic;/|it'
'G1 ends after a panic in the change|invalidation.rs|s/(fn drop\(&mut self\) \{\n\s+if let Some\(open\) = self\.open\.take\(\) \{\n)\s+self\.space\.end\(&self\.space\.caller\(\), open\);/$1            let _ = open;/|it'
'G1 the other ends after a panic in an end|invalidation.rs|s/first\.get_or_insert\(panic\);/first.get_or_insert(panic);\n            break;/|it'
'G1 an end that was jumped out of is not called again|invalidation.rs|s/held\.set_ended\(index \+ 1\);//|it'
'G1 one end, whoever comes first|open.rs|s/open\.sequence << 2 \| CHANGING,\n\s+open/slot.state.load(Ordering::Relaxed),\n            open/|it'
'G2 only those who started are ended|invalidation.rs|s/\.take\(held\.started\(\)\)//|it'
'G2 the record is given back after a panic|invalidation.rs|s/(let panic = panic\.or\(end_all\(&held, entries, &change\)\);\n)\s+held\.free\(\);/$1/|it'
'G4 the end walks the list of the start|list.rs|s/Self::entries\(held\.list\(\) as \*mut List, held\)/Self::entries(self.current.load(Ordering::Acquire), held)/|it'
'G4 subscribing waits for strangers|space.rs|s/self\.shared\.open\.wait_for_strangers\(&caller, list\);/let _ = list;/|it'
'G4 the claim is a full fence|open.rs|s/(Pairs with the fence in `wait` and in `holds`: see the module documentation\.\n)\s+fence_after_rmw\(\);/$1/|loom'
'G5 unsubscribing waits for callbacks|open.rs|s/self\.wait\(caller, \|phase, _\| phase == STARTING \|\| phase == ENDING\);//|it'
'G5 no end begins after leaving|list.rs|s/if self\.gone\.load\(Ordering::Relaxed\) \{/if false {/|it'
'G5 the finish is a full fence|open.rs|s/(Pairs with the fence in `wait`: see the module documentation\.\n)\s+fence_after_rmw\(\);/$1/|loom'
'G5 the wait is a full fence|open.rs|s/(Pairs with `fence_after_rmw` in `claim` and `finish`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|loom'
'G5 the end of a callback is published|open.rs|s/CHANGING, Ordering::Release\)/CHANGING, Ordering::Relaxed)/|loom'
'G5 the end of a change is published|open.rs|s/FREE, Ordering::Release\)/FREE, Ordering::Relaxed)/|loom'
'G5 leaving inside an own callback is deferred|open.rs|s/!self\.busy\(caller\)\.contains\(&subscriber\)/true/|it'
'G6 a full record refuses|invalidation.rs|s/self\.shared\.open\.claim\(caller, &change\)\.ok_or\(WouldBlock\)\?/self.claim(caller, &change)/|it'
'nobody is called inside his own callback|open.rs|s/if self\.is_calling\(subscriber\) \{/if false {/|it'
'two who subscribe are both on the list|list.rs|s/if self\.current\.compare_exchange\(old, new, Ordering::AcqRel, Ordering::Relaxed\)\.is_ok\(\) \{/self.current.store(new, Ordering::Release);\n            if true {/|loom'
'the parent is not told in a child|list.rs|s/entry\.claim_release\(\);\n//|it'
)

# What the core must do like the model of the repaired kernel, or better.
rows+=(
'tickets go stale|interval.rs|s/    interval\.sequence\.fetch_add\(1, Ordering::Relaxed\);\n//|oracle'
'own changes are left alone|interval.rs|s/(if interval\.subscriber\.ignores\(change\)) \{/$1 \&\& false {/|oracle'
'a leaf is searched to the end|tree.rs|s/if leaf\.key\.start >= range\.end\(\)/if leaf.key.start + 4096 >= range.end()/|oracle'
'what ends where the change begins is not hit|tree.rs|s/if leaf\.end > range\.start\(\)/if leaf.end >= range.start()/|oracle'
'a node is searched to the end|tree.rs|s/if inner\.key\.start >= range\.end\(\)/if inner.key.start + 4096 >= range.end()/|oracle'
'a node knows its largest end|tree.rs|s/map\(\|leaf\| leaf\.end\)\.max\(\)/map(|leaf| leaf.end).min()/|oracle'
'nobody is asked behind an interval that refused|interval.rs|s/(started\.refused = true;\n)\s+return ControlFlow::Break\(\(\)\);/$1/|oracle'
'no ends where no start was|invalidation.rs|s/(if started\.refused \|\| started\.panic\.is_some\(\) \{\n)/$1                held.set_started(entries.len());\n/|oracle'
'readers wait for what overlaps|open.rs|s/phase\.changes\(\) && matters/false \&\& phase.changes() \&\& matters/|oracle'
'readers wait for nothing else|open.rs|s/slot\.range\(\)\.overlaps\(range\) \&\& !ignored/range.len() > 0 \&\& !ignored/|oracle'
)

failed=0
ran=0
for row in "${rows[@]}"; do
    promise=${row%%|*}; rest=${row#*|}
    file=${rest%%|*}; rest=${rest#*|}
    tests=${rest##*|}; edit=${rest%|*}
    [ "${1:-$tests}" = "$tests" ] || continue
    ran=$((ran + 1))
    cp "$root/crates/mmu-notifier/src/"*.rs crates/mmu-notifier/src/
    perl -0pi -e "$edit" "crates/mmu-notifier/src/$file"
    if cmp -s "$root/crates/mmu-notifier/src/$file" "crates/mmu-notifier/src/$file"; then
        echo "STALE     $promise: the substitution changes nothing"; failed=$((failed + 1)); continue
    fi
    if [ "$tests" = loom ]; then
        run=(env RUSTFLAGS="--cfg mmu_loom -A warnings" cargo test -q --release --offline -p mmu-notifier --test loom --target-dir "$root/target/mutations-loom")
    else
        run=(env RUSTFLAGS="-A warnings" cargo test -q --offline -p mmu-notifier --test "$tests" --target-dir "$root/target/mutations")
    fi
    if ! "${run[@]}" --no-run >"$work/log" 2>&1; then
        echo "BROKEN    $promise: does not compile"; sed -n 1,12p "$work/log"; failed=$((failed + 1)); continue
    fi
    if timeout 100 "${run[@]}" >"$work/log" 2>&1; then
        echo "SURVIVED  $promise ($file)"; failed=$((failed + 1))
    else
        by=$(grep -oE '^test [a-z_:]+ .* FAILED|^---- [a-z_:]+|panicked at|SIGSEGV|SIGABRT' "$work/log" | grep -oE '[a-z_]+(::[a-z_]+)+|^---- [a-z_]+|SIG[A-Z]+' | head -n 1 || true)
        echo "noticed   $promise: ${by:-it hangs}"
    fi
done
echo "$ran mutations, $failed not noticed"
[ "$failed" = 0 ]
