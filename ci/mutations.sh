#!/usr/bin/env bash
# Takes away, one at a time, what keeps a promise of the core, of the registration cache, of the kernel's subscribers or of the
# reaper, and checks that a test notices: `docs/mutations.md`. Two hours. With an argument, `it`, `loom` or `oracle`, for the
# cache `cache`, `cache-unit` or `cache-loom`, for the subscribers `subscribers`, `subscribers-unit`, `subscribers-loom` or `kvm`
# (beside the real KVM), or for the reaper `reaper` or `reaper-unit`, only the rows of these tests; with another one, only those
# with that word. With `check`, only that each substitution still finds its place: at once. One at a time in a tree: all share
# a directory of builds.
#
# Each row: promise | file in crates/mmu-notifier/src, of the reaper in crates/mmu-notifier-primary/src, or of the others in
# crates/mmu-notifier-secondary/src | perl substitution | tests, or tests:FILTER.
# A hang counts as noticed, but under loom, where it may be only slow, unless it has reported something.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/crates"
cp -r crates/mmu-notifier{,-model,-primary,-secondary} "$work/crates/"
sed -i '/^mmu-notifier-primary/d' "$work/crates/mmu-notifier-secondary/Cargo.toml"
cp Cargo.lock "$work/"
sed 's|^mmu-notifier-primary = .*||' Cargo.toml >"$work/Cargo.toml"
cd "$work"

rows=(
# Exactly one end.
'G1 ends after a refusal|invalidation.rs|s/(held\.ending\(\);\n\s+)self\.end_special\(held, &held\.change\(\)\);(\n\s+if let Some\(panic\))/$1self.forget(held);$2/|it'
'G1 ends after a panic in the change|invalidation.rs|s/(fn drop\(&mut self\) \{\n\s+)self\.end_once\(\);/$1/|it'
'G1 ends after a panic in a change of one frame|invalidation.rs|s/self\.space\.end_unwinding\(self\.held\);/let _ = self.space;/|it'
'G1 a change that nobody hears of is over after a panic|invalidation.rs|s/self\.held\.leave_unheard\(\);/let _ = self.held;/|it'
'G1 the other ends after a panic in a callback|invalidation.rs|s/while catch_unwind\(.*?\)\.is_err\(\) \{\}//|it'
'G1 the other ends after one more panic|invalidation.rs|s/while (catch_unwind\(.*?\))\.is_err\(\) \{\}/let _ = $1;/|it'
'G1 an end that was jumped out of is not called again|invalidation.rs|s/held\.set_calling_end\(entry\.address\(\)\);//g|it'
'G1 a start is not taken for an end|slot.rs|s/ && is_of_phase\)/)/|it'
'G1 a start that was jumped out of, or has panicked, has no end|invalidation.rs|s/(Phase::Starting\)\.)unwrap_or\(0\)/$1map_or(0, |at| at + 1)/|it'
'G1 a change that was cut short leaves nothing to the next|held.rs|s/self\.slot\.started\.store\(0, Ordering::Relaxed\);//|it'
'G1 one end, whoever comes first|open.rs|s/compare_exchange\(changing, taken,/compare_exchange(slot.state.load(Ordering::Relaxed), taken,/|loom:a_change_is_ended_once'
'G1 one end, also in the thread that started|open.rs|s/compare_exchange\(changing, ending,/compare_exchange(slot.state.load(Ordering::Relaxed), ending,/|it'
'G1 one end, also with nobody to tell|held.rs|s/self\.slot\.state\.load\(Ordering::Relaxed\) == self\.in_phase\(Phase::Changing\)/true/|it'
'G1 whoever ends the change of another is in its callbacks|open.rs|s/self\.hand_over\(slot, caller\.home\(\) % HOMES\);//|it'
'G1 only who holds a change finds it abandoned|open.rs|s/\n\s+\|\| held\.slot\.thread\.load\(Ordering::Relaxed\) != caller\.thread\(\)//|it'
'G1 callbacks of others are not taken for own ones|slot.rs|s/\(phase\.calls\(\) && calling/(calling/|loom:handover'
'G1 the name is published with the phase|open.rs|s/(slot\.state\.swap\(held\.in_phase\(Phase::Ending\), Ordering::)Release/$1Relaxed/|loom:handover'
'G1 the name is written before the phase|open.rs|s/\[Phase::Changing, Phase::Taken\]/[Phase::Changing, Phase::Ending]/|loom:handover'
'G1 a slot forgets its list behind its phase|held.rs|s/slot\.list\.store\(0, Ordering::Release\);/slot.list.store(0, Ordering::Relaxed);/|loom:handover'
# Nothing remains.
'G2 only those who started are ended|invalidation.rs|s/entries\.get\(to_end\)\.unwrap_or_default\(\)/\&entries[to_end.start..]/|it'
'G2 the record is given back after a panic|invalidation.rs|s/(is_err\(\) \{\}\n\s+)self\.forget\(held\);/$1/|it'
# Both or neither.
'G4 the end walks the list of the start|list.rs|s/Self::entries\(held\.list\(\) as \*mut List, held\)/Self::entries(self.current.load(Ordering::Acquire), held)/|it'
'G4 subscribing waits for strangers|space.rs|s/shared\.open\.wait_for_strangers\(&caller, list, &mut patience\);/let _ = (list, &mut patience);/|it'
'G4 so does getting what another subscribes|shared.rs|s/while !found\.entry\.is_settled\(\) \{/while false {/|it'
'G4 also inside a change|shared.rs|s/shared\.open\.wait_for_strangers\(&caller, list, &mut patience\);/let _ = (list, &mut patience);/|it'
'G4 the claim is a full fence|open.rs|s/(Pairs with the fences in `scan` and in `holds`: see the module documentation\.\n)\s+fence_after_rmw\(\);/$1/|loom:no_unknown_change'
'G4 who is told by nobody looks again behind the claim|unheard.rs|s/if self\.has_subscribers\(\) \{\n\s+held\.leave_unheard/if false {\n            held.leave_unheard/|loom:no_unknown_change'
'G4 two who subscribe are both on the list|list.rs|s/if self\.current\.compare_exchange\(old, new, Ordering::AcqRel, Ordering::Relaxed\)\.is_ok\(\) \{/self.current.store(new, Ordering::Release);\n            if true {/|loom:nobody_is_lost_when_two_subscribe'
# No callback afterwards.
'G5 unsubscribing waits for callbacks|list.rs|s/open\.wait_for_callbacks\(caller, patience\);/let _ = patience;/|it'
'G5 no end begins after leaving|list.rs|s/self\.told\.store\(std::ptr::null_mut\(\), Ordering::Relaxed\);//|it'
'G5 nor is anybody else asked|list.rs|s/if self\.gone\.load\(Ordering::Relaxed\) \{/if false {/|it'
'G5 leaving inside an own callback is deferred|open.rs|s/self\.callbacks_of\(caller\)\.any\(\|calling\| calling == subscriber\)/self.callbacks_of(caller).any(|calling| calling == subscriber \&\& false)/|it'
'G5 the finish is a full fence|open.rs|s/(Pairs with the fence in `scan`: see the module documentation\.\n)\s+fence_after_rmw\(\);(.*?fn finish_of_another)/$1$2/s|loom:no_end_after_unsubscribing'
'G5 the finish is a full fence, in one frame|held.rs|s/(fn finish\(&self\) -> bool \{.*?Pairs with the fence in `scan`: see the module documentation\.\n)\s+fence_after_rmw\(\);/$1/s|loom:no_end_in_one_frame'
'G5 the finish is a full fence, in another thread|open.rs|s/(fn finish_of_another.*?Pairs with the fence in `scan`: see the module documentation\.\n)\s+fence_after_rmw\(\);/$1/s|loom:no_end_by_another'
'G5 the end of a callback is published|held.rs|s/self\.in_phase\(Phase::Changing\), Ordering::Release\)/self.in_phase(Phase::Changing), Ordering::Relaxed)/|loom:no_callback_after_unsubscribing'
'G5 the end of a change is published|held.rs|s/slot\.state\.store\(state\.0, Ordering::Release\)/slot.state.store(state.0, Ordering::Relaxed)/|loom:after_unsubscribing'
'G5 aging is waited for|slot.rs|s/Phase::Starting \| Phase::Ending \| Phase::Calling\)/Phase::Starting | Phase::Ending)/|loom:nobody_is_asked_about_age'
'G5 flushing is waited for|slot.rs|s/Phase::Starting \| Phase::Ending \| Phase::Calling\)/Phase::Starting | Phase::Ending)/|loom:nobody_is_told_to_flush'
'G5 removing waits for starts|interval.rs|s/shared\.open\.wait_for_starts\(&caller, &range, &mut patience\);/let _ = (range, &mut patience);/|loom:no_callback_after_removing'
'G5 no second pass after removing|interval.rs|s/shared\.open\.wait_for_starts\(&caller, &range, &mut patience\);/let _ = (range, &mut patience);/|loom:no_second_pass_after_removing'
'G5 a start whose range is not on record yet is waited for|open.rs|s/slot\.list\(\)\.is_none\(\) \|\| slot\.range\(\)\.overlaps\(range\)\n/slot.list().is_some() \&\& slot.range().overlaps(range)\n/|loom:no_callback_after_removing'
'G5 an interval that is removed in a callback is kept|interval.rs|s/if is_reading \{/if false {/|it'
# Never waits.
'G6 a full record refuses|invalidation.rs|s/Blocking::Forbidden => self\.shared\.open\.claim\(&caller, Phase::Starting\)\?/Blocking::Forbidden => self.shared.claim(\&caller, Phase::Starting)/|it'
# Nothing stale is live.
'G7 a change raises the sequence|interval.rs|s/interval\.sequence\.fetch_add\(1, Ordering::Relaxed\);//|loom:nothing_stale_is_live_inside_a_change'
'G7 before its subscriber is told|interval.rs|s/interval\.sequence\.fetch_add\(1, Ordering::Relaxed\);(.*?)Blocking::Allowed => Ok\(interval\.subscriber\.invalidate\(change\)\),/$1Blocking::Allowed => {\n            let pass = interval.subscriber.invalidate(change);\n            interval.sequence.fetch_add(1, Ordering::Relaxed);\n            Ok(pass)\n        }/s|loom:nothing_stale_is_live_inside_a_change'
'G7 a reader waits for changes|interval.rs|s/shared\.open\.wait_for_changes\(&caller, &interval\.range, ignored, &mut patience\)/{\n            let _ = (ignored, \&mut patience);\n            true\n        }/|loom:nothing_stale_is_live_inside_a_change'
'G7 also in their middle|slot.rs|s/Phase::Starting \| Phase::Changing \| Phase::Taken\)/Phase::Starting)/|loom:nothing_stale_is_live_inside_a_change'
'G7 a reader in his own change has no good ticket|open.rs|s/all = false;/let _ = \&mut all;/|loom:nothing_stale_is_read'
'G7 the sequence is taken before the wait|interval.rs|s/let sequence = self\.interval\(\)\.sequence\.load\(Ordering::Relaxed\);\n(.*?)Ticket \{ sequence: all_done\.then_some\(sequence\) \}/$1Ticket { sequence: all_done.then_some(self.interval().sequence.load(Ordering::Relaxed)) }/s|loom:nothing_stale_is_live_inside_a_change'
'G7 the claim is a full fence|open.rs|s/(Pairs with the fences in `scan` and in `holds`: see the module documentation\.\n)\s+fence_after_rmw\(\);/$1/|loom:nothing_stale_is_live_inside_a_change'
'G7 the wait is a full fence|open.rs|s/(Pairs with `fence_after_rmw` in `claim` and `finish`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|loom:nothing_stale_is_live_inside_a_change'
'G7 who waited sees what he waited for|open.rs|s/State\(slot\.state\.load\(Ordering::Acquire\)\)(;\n\s+let first.*?)State\(slot\.state\.load\(Ordering::Acquire\)\)(.*?)fence\(Ordering::Acquire\);/State(slot.state.load(Ordering::Relaxed))$1State(slot.state.load(Ordering::Relaxed))$2/s|loom:nothing_stale_is_live_inside_a_change'
'G7 what a change did is published with its end|open.rs|s/(compare_exchange\(changing, ending, Ordering::)Release/$1Relaxed/|loom:nothing_stale_is_live_inside_a_change_that_is_left_open'
'G7 what a change did is published with its end, in one frame|held.rs|s/(self\.slot\.state\.swap\(self\.in_phase\(Phase::Ending\), Ordering::)Release/$1Relaxed/|loom:nothing_stale_is_live_inside_a_change_that_has_ends'
'G7 also if there is nobody to call|held.rs|s/slot\.state\.store\(state\.0, Ordering::Release\)/slot.state.store(state.0, Ordering::Relaxed)/|loom:nothing_stale_is_live_inside_a_change'
'G7 also if nobody is subscribed at all|held.rs|s/self\.slot\.state\.store\(self\.state\.0, Ordering::Release\)/self.slot.state.store(self.state.0, Ordering::Relaxed)/|loom:unheard'
'G7 a range on record is the one of the list on record: written|held.rs|s/self\.slot\.list\.store\(list \| 1, Ordering::Release\);/self.slot.list.store(list | 1, Ordering::Relaxed);/|loom:used_again'
'G7 a range on record is the one of the list on record: read|slot.rs|s/self\.list\.load\(Ordering::Acquire\)/self.list.load(Ordering::Relaxed)/|loom:used_again'
'G7 a slot forgets its list|held.rs|s/slot\.list\.store\(0, Ordering::Release\);//|loom:used_again'
'G7 who has not put his range on record is waited for|open.rs|s/slot\.list\(\)\.is_none\(\) \|\| (slot\.range\(\)\.overlaps\(range\) && !ignored)/slot.list().is_some() \&\& $1/|loom:nothing_stale_is_live_inside_a_change'
# Relays, by which other copies of the library are told.
'relay: changes in its callbacks are passed on|invalidation.rs|s/held\.skips\(entry\.address\(\)\) && !entry\.relays\(\)/held.skips(entry.address())/|it:relaying'
'relay: and their ends|invalidation.rs|s/if is_skipped\(held, entry\) \{/if held.skips(entry.address()) {/|it:relaying'
'relay: it stays in a forked child|list.rs|s/\.filter\(\|entry\| !entry\.relays\(\)\)//|it:relaying'
'relay: wherever it was on the list|list.rs|s/self\.entries\.swap\(kept, at\);//|it:relaying'
'relay: a list is given up if there is none|list.rs|s/list\.keep_relays\(\) == 0/list.keep_relays() > usize::MAX - 1/|it:subscribing'
'relay: the others are released in the parent|list.rs|s/entry\.claim_release\(\);//|it:relaying'
# Memory.
'lists: the slot is looked at before the list|open.rs|s/(Acquire pairs with the claim and, through it.*?Ordering::)Acquire/$1Relaxed/s|loom:a_walked_list'
'lists: who replaces one is on record with none|space.rs|s/shared\.open\.free\(held\);\n(\s+\/\/ A place of its own[^\n]*\n)\s+let held = shared\.claim\(&caller, Phase::Editing\);/$1/|it'
'lists: a list that is walked is not freed|open.rs|s/(Whether some open change may still walk.*?)fence\(Ordering::SeqCst\);/$1/s|loom:a_list_that_is_asked'
'lists: who is not on record with one holds any|open.rs|s/None => matches!\(state\.phase\(\), Phase::Starting \| Phase::Calling \| Phase::Editing\),/None => false,/|loom:a_list_that_is_asked'
'lists: a list is published|list.rs|s/compare_exchange\(old, new, Ordering::AcqRel, Ordering::Relaxed\)/compare_exchange(old, new, Ordering::Acquire, Ordering::Relaxed)/|loom:subscribing'
'lists: and acquired|list.rs|s/(Acquire pairs with the Release in `replace`.*?Ordering::)Acquire/$1Relaxed/s|loom:subscribing'
'lists: what is retired is published|list.rs|s/compare_exchange_weak\(head, list, Ordering::Release,/compare_exchange_weak(head, list, Ordering::Relaxed,/|loom:who_was_put'
'lists: and acquired by who frees|list.rs|s/self\.retired\.swap\(std::ptr::null_mut\(\), Ordering::Acquire\)/self.retired.swap(std::ptr::null_mut(), Ordering::Relaxed)/|loom:who_was_put'
'tree: the era is on record|tree.rs|s/held\.walks_since\(since\);/held.walks_since(u64::MAX);/|loom:walked_nodes'
'tree: and before the list is|invalidation.rs|s/(if has_intervals \{\n\s+shared\.tree\.enter\(&held\);\n\s+\}\n)(\s+let entries = shared\.list\.walk\(held\);\n)/$2$1/|loom:walked_nodes'
'tree: until the walk is over|interval.rs|s/    held\.walks_no_more\(\);\n//;s/(let mut unfinished = )/held.walks_no_more();\n    $1/|loom:walked_nodes'
'tree: the end of the walk is published|held.rs|s/slot\.era\.store\(0, Ordering::Release\)/slot.era.store(0, Ordering::Relaxed)/|loom:walked_nodes'
'tree: before the root is loaded|tree.rs|s/let since = self\.enter\(held\);\n\s+\(self\.load_root\(\), since\)/let root = self.load_root();\n        (root, self.enter(held))/|loom:nobody_is_lost'
'tree: before it is by who walks, too|tree.rs|s/let root = self\.load_root\(\);(\n\s+\/\/ Only who loads one root)/let root = self.load_root();\n        held.slot.era.store(self.era.load(Ordering::Acquire), Ordering::Release);$1/|loom:walked_nodes'
'tree: the last era is on record behind that|tree.rs|s/(let root = self\.load_root\(\);)(.*?)(held\.walks_until\(self\.era\.load\(Ordering::Relaxed\)\);)/$3\n        $1$2/s|loom:walked_nodes'
'tree: first eras are looked at|tree.rs|s/since <= era && born <= until/since < era \&\& born <= until/|loom:walked_nodes'
'tree: last eras are looked at|tree.rs|s/since <= era && born <= until/since <= era \&\& born < until/|loom:walked_nodes'
'tree: a node is not taken for younger|tree.rs|s/Node \{ born: self\.born, kind \}/Node { born: self.born + 2, kind }/|loom:walked_nodes'
'tree: who walks is looked at|open.rs|s/matches!\(phase, Phase::Starting \| Phase::Editing\) && !\(is_known/matches!(phase, Phase::Editing) \&\& !(is_known/|loom:walked_nodes'
'tree: who edits is looked at|open.rs|s/matches!\(phase, Phase::Starting \| Phase::Editing\) && !\(is_known/matches!(phase, Phase::Starting) \&\& !(is_known/|loom:nobody_is_lost'
'tree: who has no era on record yet may walk any|open.rs|s/&& !\(is_known && since == 0\)/\&\& since != 0/|loom:walked_nodes'
'tree: what is walked is not freed|open.rs|s/(The eras of the interval trees.*?)fence\(Ordering::SeqCst\);/$1/s|loom:walked_nodes'
'tree: the era is raised before the nodes are freed|tree.rs|s/let era = self\.era\.fetch_add\(1, Ordering::AcqRel\);(\n\s+)self\.retire\(era, edit/let era = 0;$1self.retire(era, edit/|loom:walked_nodes'
'tree: two who insert are both in it|tree.rs|s/if self\.root\.compare_exchange\(old, new, Ordering::AcqRel, Ordering::Relaxed\)\.is_ok\(\) \{/self.root.store(new, Ordering::Release);\n            if true {/|loom:nobody_is_lost_when_two_insert'
'tree: nodes are published|tree.rs|s/compare_exchange\(old, new, Ordering::AcqRel,/compare_exchange(old, new, Ordering::Acquire,/|loom:walked_nodes'
'tree: and acquired|tree.rs|s/self\.root\.load\(Ordering::Acquire\)/self.root.load(Ordering::Relaxed)/|loom:walked_nodes'
'tree: a slot forgets its era|open.rs|s/if slot\.era\.load\(Ordering::Relaxed\) != 0 \{/if false {/|it'
'tree: a slot forgets its last era|held.rs|s/self\.slot\.until\.store\(0, Ordering::Relaxed\);//|loom:used_again'
'tree: what is retired is published|tree.rs|s/compare_exchange_weak\(head, batch, Ordering::Release,/compare_exchange_weak(head, batch, Ordering::Relaxed,/|loom:nobody_is_lost'
'synchronize: one frees at a time|space.rs|s/self\.collector\.compare_exchange\(0, caller\.thread\(\), Ordering::Acquire, Ordering::Relaxed\)\.ok\(\)\?;/self.collector.store(caller.thread(), Ordering::Relaxed);/|loom:who_was_put'
'synchronize: what was freed is seen: written|space.rs|s/self\.collector\.store\(0, Ordering::Release\);/self.collector.store(0, Ordering::Relaxed);/|loom:who_was_put'
'synchronize: what was freed is seen: read|space.rs|s/compare_exchange\(0, caller\.thread\(\), Ordering::Acquire,/compare_exchange(0, caller.thread(), Ordering::Relaxed,/|loom:who_was_put'
'synchronize: who edits is waited for|shared.rs|s/shared\.open\.wait_for_editors\(&caller, &mut patience\);//|loom:who_was_put'
# Sharing.
'sharing: who was put is not shared again|shared.rs|s/if users == 0 \{/if false {/|loom:who_gets_while_the_last_puts'
'sharing: two who get have one|shared.rs|s/\|other\| is_alive\(other, key\)/|_| false/|loom:two_get_one'
'sharing: getting comes to an end|shared.rs|s/&& entry\.users\.load\(Ordering::Relaxed\) > 0//|loom:who_gets'
# Tickets.
'tickets: each change has its own|ticketed.rs|s/\.0\[slot\.number\(\) % WAYS\]/.0[0]/|it'
'tickets: the end takes it|ticketed.rs|s/self\.put\(slot, ticket\.ok\(\)\)/ticket.ok()/|it'
'tickets: who need not wait is not asked to|ticketed.rs|s/Blocking::Forbidden => self\.subscriber\.try_start\(change\)/Blocking::Forbidden => Ok(self.subscriber.start(change))/|it'
# The end of the address space.
'release: every other one is waited for|space.rs|s/while shared\.releasing\.load\(Ordering::Acquire\) > 0 \{/while false {/|loom:who_unsubscribes_meanwhile'
'release: who releases as well says so|space.rs|s/(Relaxed: the fence of the claim follows\.\n\s+)shared\.releasing\.fetch_add\(1, Ordering::Relaxed\);(.*?)shared\.releasing\.fetch_sub\(1, Ordering::Release\);/$1$2/s|loom:two_release'
'release: what it did is seen: written|space.rs|s/(Release pairs with the Acquire in `AddressSpace::release`: what it did happened before\.\n\s+shared\.releasing\.fetch_sub\(1, Ordering::)Release/$1Relaxed/|loom:what_who_unsubscribes'
'release: what it did is seen: read|space.rs|s/shared\.releasing\.load\(Ordering::Acquire\)/shared.releasing.load(Ordering::Relaxed)/|loom:what_who_unsubscribes'
'release: once|list.rs|s/!self\.released\.swap\(true, Ordering::Relaxed\)/true/|it'
'release: who inserts looks again|interval.rs|s/if self\.is_released\(\) \{ Err\(Released\) \} else \{ Ok\(subscription\) \}/Ok(subscription)/|loom:who_inserts_meanwhile'
# The rest.
'nesting: nobody is called inside his own callback|invalidation.rs|s/\.filter\(\|entry\| !is_skipped\(held, entry\)\)//|it'
'nesting: nor has he an end there|invalidation.rs|s/if is_skipped\(held, entry\) \{/if false {/|it'
'nesting: no interval either|interval.rs|s/let is_own = held\.skips\(kept\.address\(\)\);/let is_own = false;/|it'
'nesting: the next holder of a slot is not taken for oneself|held.rs|s/(Relaxed: published by the Release below\. Cleared[^\n]*\n\s+)slot\.thread\.store\(0, Ordering::Relaxed\);/$1/|loom:subscribing'
'fork: a change of one frame is forgotten|held.rs|s/if !self\.is_changing\(\) \{/if false {/|it'
'fork: tickets of the parent are stale|interval.rs|s/self\.is_of_the_parent\(\) \|\| ticket/ticket/|it'
'fork: the parent is not told in a child|list.rs|s/entry\.claim_release\(\);\n//|it'
'fork: the intervals of the parent stay his|interval.rs|s/if self\.is_of_the_parent\(\) \{/if false {/|it'
'fork: a slot forgets how far the parent came|open.rs|s/slot\.started\.store\(0, Ordering::Relaxed\);//|it'
# The reaper.
'reaper: the highest address comes first|reaper/table.rs|s/core::cmp::Reverse\(place\.start\)/place.start/|reaper:walk'
'reaper: each range is announced|reaper/walk.rs|s/self\.space\.try_invalidate\(range, Event::Clear, (.*?)\);/Ok::<_, WouldBlock>(($1)());\n        let _ = (Event::Clear, \&self.space);/s|reaper:walk'
'reaper: as a change that must not wait|reaper/walk.rs|s/self\.space\.try_invalidate\(range, Event::Clear, (.*?)\);/Ok::<_, WouldBlock>(self.space.invalidate(range, Event::Clear, $1));/s|reaper:walk'
'reaper: who refuses keeps it|reaper/walk.rs|s/Err\(WouldBlock\) => \{/Err(WouldBlock) => {\n                \/\/ SAFETY: none.\n                let _ = unsafe { discard(range) };/|reaper:walk'
'reaper: and is asked again|reaper/watch.rs|s/unwrap_or\(is_left\)/unwrap_or(is_left \&\& false)/|reaper:thread'
'reaper: ten times|reaper/table.rs|s/ATTEMPTS\.\. => /u32::MAX => /|reaper-unit:reaper'
'reaper: what is marked is left alone|reaper/table.rs|s/ && state & MARKED == 0 \{/ {/;s/ \|\| state & MARKED != 0 \{/ {/|reaper:pressure_it_goes_on'
'reaper: until the next alarm|reaper/walk.rs|s/self\.table\.retry_all\(\);//|reaper:thread'
'reaper: or until its owner says so|reaper/table.rs|s/Some\(state & !MARKED/Some(state/|reaper:thread'
'reaper: also while the last attempt is made|reaper/table.rs|s/if state & ASKED != 0 && flags == MARKED/if state \& ASKED != 0 \&\& flags > MARKED/|reaper-unit:reaper'
'reaper: a range that is being reaped cannot be removed|reaper/table.rs|s/\(state & PHASE == READY \|\| is_gone\(\)\) && free/let _ = \&is_gone;\n            if free/;s/if let _ = &is_gone;/let _ = \&is_gone;/|reaper-unit:reaper'
'reaper: but in a forked child|reaper/table.rs|s/ \|\| is_gone\(\)\)/ || is_gone() \&\& false)/|reaper:thread'
'reaper: whose reaper waits for nobody|reaper.rs|s/std::mem::forget\(self\.thread\.take\(\)\);\n\s+return;//|reaper:thread'
'reaper: one walk at a time|reaper/walk.rs|s/Err\(TryLockError::WouldBlock\) => return None,/Err(TryLockError::WouldBlock) => self.places.lock().unwrap_or_else(|it| it.into_inner()),/|reaper:walk'
'reaper: what is not present is passed over|reaper/walk.rs|s/if present == 0 && !was_left \{/if present == 1 \&\& !was_left {/|reaper:walk'
'reaper: the page of zeroes is not present|reaper/walk.rs|s/\(PRESENT \| OF_A_FILE \| EXCLUSIVE\) == PRESENT \| EXCLUSIVE/(PRESENT | OF_A_FILE | EXCLUSIVE) >= PRESENT/|reaper:walk'
'reaper: locked memory goes, too|reaper/walk.rs|s/MADV_DONTNEED_LOCKED: usize = 24/MADV_DONTNEED_LOCKED: usize = 4/|reaper:walk'
'reaper: what is held is not free|reaper/walk.rs|s/claim\.hold\(before, \(self\.unreleased\)\(\)\) > 0/claim.hold(before, before) > u64::MAX - 1/|reaper:walk'
'reaper: a panic is a refusal|reaper/walk.rs|s/catch_unwind\(reap\)\.is_err\(\)/{\n                let _ = catch_unwind(|| ());\n                reap.0();\n                false\n            }/|reaper:walk'
'reaper: and ends the claim|reaper/table.rs|s/(fn drop\(&mut self\) \{\n\s+)self\.done\(Outcome::Left\);/$1/|reaper:walk'
'reaper: shared memory is not added|reaper/mapping.rs|s/if mapping\.shared \{/if mapping.shared \&\& false {/|reaper:walk'
'reaper: nor huge pages|reaper/mapping.rs|s/has\(b"ht"\)/has(b"--")/|reaper-unit:reaper'
'reaper: nor what has no pages|reaper/mapping.rs|s/has\(b"pf"\)/has(b"--")/|reaper-unit:reaper'
'reaper: nor a hole|reaper/mapping.rs|s/if part\.start\(\) > mapped_to \{/if part.start() > usize::MAX - 1 {/|reaper-unit:reaper'
'reaper: nor anything twice|reaper.rs|s/other\.overlaps\(&range\)\)/other.overlaps(\&range) \&\& false)/|reaper:walk'
'reaper: its stack is locked|reaper/watch.rs|s/lock\(own\)\?;/let _ = own;/|reaper:thread'
'reaper: an alarm is heard once|reaper/watch.rs|s/Ok\(read\) => read > 0,/Ok(_) => true,/|reaper:thread'
'reaper: a file is heard of when it changes|reaper/watch.rs|s/(Some\(Alarm::Notified\(file\)\) =>) read\(file, &mut bytes\)\.is_some\(\)/$1 { let _ = file; true }/|reaper-unit:reaper'
'reaper: who is over the level already is reaped|reaper/watch.rs|s/let mut pressed = watch\.is_pressed\(\) == Some\(true\);/let mut pressed = false;/|reaper:over_the_level'
'reaper: it goes on as long as there is pressure|reaper/watch.rs|s/Some\(shared\.retry_after\) \} else/watch.every } else/|reaper:pressure_it_goes_on'
'reaper: there are more thresholds|reaper/source.rs|s/THRESHOLDS: u64 = 5/THRESHOLDS: u64 = 1/|reaper:more_thresholds'
'reaper: the killer goes on when nothing is left|reaper/watch.rs|s/&& watch\.let_the_killer_go\(\)/\&\& false/|reaper:the_killer_waits'
'reaper: and when the reaper goes|reaper/watch.rs|s/if safe::getpid\(\) == self\.pid \{/if false {/;s/self\.killer\.as_ref\(\)\.is_some_and\(Killer::let_go\)/false/|reaper:the_killer_is'
'reaper: but not if it was stopped before|reaper/watch.rs|s/if !is_stopped \{/if true {/;s/AtomicBool::new\(!is_stopped\)/AtomicBool::new(true)/|reaper:the_killer_is'
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
'no ends where no start was|invalidation.rs|s/held\.cut_short\(0\);//|oracle'
'readers wait for what overlaps|open.rs|s/phase\.changes\(\) && matters/false \&\& phase.changes() \&\& matters/|oracle'
'readers wait for nothing else|open.rs|s/slot\.range\(\)\.overlaps\(range\) \&\& !ignored/range.len() > 0 \&\& !ignored/|oracle'
)

# What the registration cache promises (crates/mmu-notifier-secondary/src/cache).
rows+=(
# Hits.
'cache: a hit looks again behind the pin|cache/get.rs|s/if !entry\.state\(\)\.is_still\(state\) \{/if false {/|cache-loom:a_change_that_waits'
'cache: a pin is a full fence|cache/get.rs|s/(either this sees the death, or who kills the entry sees the pin\.\n)\s+fence_after_rmw\(\);/$1/|cache-loom:a_change_that_waits'
'cache: so is a death|cache/homes.rs|s/(The death was an exchange\.\n)\s+fence_after_rmw\(\);/$1/|cache-loom:a_change_that_waits'
'cache: pins of the dead are counted|cache/homes.rs|s/if state\.is_live\(\) \|\| !entry\.add_user\(state\) \{/if true {/|cache'
'cache: pins of the dead are marked|cache/homes.rs|s/word \| Pin::MARKED, Ordering::AcqRel/word, Ordering::AcqRel/|cache'
'cache: who lets go before the mark is not counted|cache/homes.rs|s/if marked\.is_err\(\) && entry\.remove_user\(\) \{/if false {/|cache-loom:two_users'
'cache: every home that was used is looked at|cache/homes.rs|s/self\.used\.fetch_max\(number \+ 1, Ordering::Relaxed\);//|cache'
'cache: what was done with a pin is before its end: written|cache/homes.rs|s/self\.word\.swap\(0, Ordering::AcqRel\)/self.word.swap(0, Ordering::Acquire)/|cache-loom:a_change_that_waits'
'cache: a full home is not the end|cache/get.rs|s/else \{ return self\.count\(id, state\) \};/else { return None };/|cache'
'cache: a hit is good for what is asked|cache/get.rs|s/ && state\.access\(\)\.includes\(access\)\)/)/|cache'
'cache: a hit contains what is asked|cache/get.rs|s/ && asked\.end\(\) <= entry\.end\(\);/;/|cache'
'cache: rights that are not to be had everywhere are had in part|cache/get.rs|s/if may_widen && range != self\.align\(asked\)\? \{/if false {/|cache'
# The life of an entry.
'cache: what comes to life meanwhile is killed all the same|cache/table.rs|s/(It may have come to life meanwhile.*?)if !now\.is_same_life\(seen\) \{/$1if true {/s|cache-loom:a_miss_beside'
'cache: nobody buries before the killer|cache/table.rs|s/seen\.with_phase\(Phase::Dead\)\.0 \+ State::USER/seen.with_phase(Phase::Dead).0/|cache'
'cache: what users did is before the burial|cache/table.rs|s/fetch_sub\(State::USER, Ordering::AcqRel\)/fetch_sub(State::USER, Ordering::Relaxed)/|cache-loom:a_change_that_waits'
'cache: a burial is published|cache/table.rs|s/self\.state\.store\(next_life, Ordering::Release\)/self.state.store(next_life, Ordering::Relaxed)/|cache-loom:a_change_that_waits'
'cache: each life has its number|cache/table.rs|s/\.wrapping_add\(State::LIFE\)//|cache'
'cache: a chain is taken by one|cache/table.rs|s/self\.head\.swap\(0, Ordering::Acquire\)/{ let head = self.head.load(Ordering::Acquire); self.head.store(0, Ordering::Relaxed); head }/|cache-loom:two_changes'
'cache: what is on a chain is published|cache/table.rs|s/first \+ 1, Ordering::Release, Ordering::Relaxed/first + 1, Ordering::Relaxed, Ordering::Relaxed/|cache-loom:two_'
'cache: and what was taken is acquired|cache/table.rs|s/self\.head\.swap\(0, Ordering::Acquire\)/self.head.swap(0, Ordering::Relaxed)/|cache-loom:two_'
'cache: who was killed is linked before it is handed on|cache/table.rs|s/(Relaxed: nobody else looks at it before it is pushed to a chain\.\n)[^\n]*\n/$1/|cache'
# Misses.
'cache: what changes while it is registered is undone|cache/misses.rs|s/miss\.stale\.store\(true, Ordering::Relaxed\);//|cache'
'cache: the mark is looked at before it lives|cache/get.rs|s/inserted\.is_ok\(\) && !miss\.claim\.is_stale\(\)/inserted.is_ok()/|cache'
'cache: and behind its being in the index|cache/get.rs|s/(let new = entry\.fill\(range, miss\.access, handle\);\n)(.*?)!miss\.claim\.is_stale\(\)/        let is_stale = miss.claim.is_stale();\n$1$2!is_stale/s|cache-loom:a_miss_beside'
'cache: the look at the mark is a full fence|cache/misses.rs|s/(Pairs with the fence in `mark`\.\n)\s+fence\(Ordering::SeqCst\);/$1/|cache-loom:a_miss_beside'
'cache: the mark is a full fence|cache/misses.rs|s/(Pairs with the fence in `is_stale`\.\n)\s+fence\(Ordering::SeqCst\);/$1/|cache-loom:a_miss_beside'
'cache: what is marked is only what overlaps|cache/misses.rs|s/\.is_some_and\(\|it\| it\.overlaps\(&range\)\)/.is_some()/|cache'
'cache: a miss waits for open changes|cache/get.rs|s/if !self\.space\.wait_for_changes\(range\) \{/if false {/|cache'
'cache: behind the claim|cache/get.rs|s/(\s+let plan =\n)/\n_ = self.space.wait_for_changes(range);$1/;s/if !self\.space\.wait_for_changes\(range\) \{/if false {/|cache-loom:a_miss_beside'
'cache: one registers what two ask for|cache/get.rs|s/if let Some\(other\) = self\.misses\.other\(range, access\) \{/if let Some(other) = self.misses.other(range, access).filter(|_| false) {/|cache'
'cache: who waits for a miss says so before he looks|cache/misses.rs|s/(that one sees\n\s+\/\/ that it is over\.\n)\s+fence_after_rmw\(\);/$1/|cache-loom:two_misses'
'cache: who is done looks behind that|cache/misses.rs|s/(Pairs with the fence in `wait_for`\.\n)\s+fence_after_rmw\(\);/$1/|cache-loom:two_misses'
'cache: nothing is left of what failed|cache/get.rs|s/(counters\(\)\.failed\.add_one\(\);\n)\s+self\.give_back\(&miss\);/$1/|cache'
'cache: nor of what panicked|cache/get.rs|s/(counters\(\)\.panics\.add_one\(\);\n)\s+self\.give_back\(&miss\);/$1/|cache'
'cache: no entry contains another|cache/get.rs|s/self\.supersede\(books, range\);//|cache'
'cache: nor is contained|cache/kill.rs|s/other\.contains\(&range\) \|\| range\.contains/range.contains/|cache'
'cache: all that are contained go|cache/kill.rs|s/if count == 0 \{\n/if true {\n/|cache'
'cache: a released address space registers nothing|cache/get.rs|s/if self\.space\.is_released\(\) \{/if false {/|cache'
# Changes.
'cache: a change kills what it overlaps and nothing else|cache/kill.rs|s/\.filter\(\|it\| it\.overlaps\(&range\)\)//|cache-unit:there_an_index'
'cache: who is killed first says that there is something to bury|cache/kill.rs|s/(self\.written\.unreleased\.fetch_add\(bytes, Ordering::Release\);)(\n.*?kill\(state\);)/$2\n        $1/s|cache-loom:two_changes'
'cache: a change waits for what another one is killing|cache/burial.rs|s/if let Some\(id\) = self\.being_killed\(range\) \{/if let Some(id) = self.being_killed(range).filter(|_| false) {/|cache-loom:two_changes'
'cache: and leaves no user behind meanwhile|cache/burial.rs|s/return Some\(\(id, None\)\);/if let Some((other, state)) = books.dying_in(&self.table, range, concerns) { self.table.entry(other).add_user(state); } return Some((id, None));/|cache-unit:a_change_waits'
'cache: the killer is told first|cache.rs|s/(let undertaker = [^\n]*\n)(\s+let killer = [^\n]*\n)/$2$1/|cache'
'cache: also of what is changed while deregistering|cache/told.rs|s/(fn try_start\(&self, change: &Change\) -> Result<\(\), WouldBlock> \{\n\s+)self\.told\(change\);\n\s+Ok/$1Ok/|cache'
'cache: what survives a change stays|cache/told.rs|s/&& !store\.registrar\.survives\(change\.event\(\)\)//g|cache'
'cache: the end of the address space ends everything|cache/told.rs|s/self\.0\.kill_in\(Range::EVERYTHING, Event::Release\);//|cache'
'cache: who lets go of the lock looks what was left|cache/store.rs|s/(let value = with\(&mut books\);\n\s+drop\(books\);\n)\s+self\.try_settle\(\);/$1/|cache-unit:signal_handler'
'cache: who leaves something looks for the lock behind that|cache/store.rs|s/(or who had the lock sees the corpse\.\n)\s+fence_after_rmw\(\);/$1/|cache-loom:a_change_beside'
'cache: the lock is released|cache/lock.rs|s/self\.lock\.holder\.swap\(0, Ordering::Release\)/self.lock.holder.swap(0, Ordering::Relaxed)/|cache-loom:two_misses'
'cache: and the lock is acquired|cache/lock.rs|s/compare_exchange\(0, thread, Ordering::Acquire,/compare_exchange(0, thread, Ordering::Relaxed,/|cache-loom:two_misses'
'cache: a signal handler does not wait for its own thread|cache/lock.rs|s/assert!\(!self\.is_held_by/assert!(true || !self.is_held_by/|cache-unit:there_nothing'
'cache: nor does a change in one|cache/burial.rs|s/if self\.is_interrupted\(\) \{/if false {/|cache-unit:signal_handler'
'cache: a change that cannot look is refused|cache/burial.rs|s/else \{ return true \};/else { return false };/|cache-unit:refused_if_it_might'
'cache: a change that must not wait leaves what it cannot deregister|cache/burial.rs|s/left\.push\(&self\.table, id\);\n//|cache'
'cache: not without a bound|cache/burial.rs|s/let is_too_much = /let is_too_much = false \&\& /|cache'
'cache: a change that must not wait is refused if it has to|cache/burial.rs|s/if self\.wait == Wait::ForNothing \{/if true {/|cache'
'cache: a change waits for users|cache/burial.rs|s/self\.wait == Wait::UntilUnused \|\| state\.users\(\) == 0/state.users() == 0/|cache'
'cache: also for who is deregistering|cache/burial.rs|s/self\.wait == Wait::UntilUnused \|\| state\.users\(\) == 0/self.wait == Wait::UntilUnused/|cache'
'cache: users are told to hurry|cache/burial.rs|s/self\.hurry\(id\);//|cache'
'cache: a wait is reported|cache/burial.rs|s/if began\.elapsed\(\) >= deadline \{/if false {/|cache'
'cache: again and again|cache/burial.rs|s/deadline \+= /deadline = Duration::MAX; let _ = /|cache'
'cache: a change goes on if it shall|cache/burial.rs|s/WhenOverdue::Quarantine \| WhenOverdue::Report => true/WhenOverdue::Quarantine | WhenOverdue::Report => false/|cache'
'cache: quarantine is bounded|cache/burial.rs|s/if self\.unreleased\(\) > self\.options\.unreleased => WhenOverdue::Wait/if false => WhenOverdue::Wait/|cache'
'cache: a registrar that panics is not asked again|cache/burial.rs|s/Err\(_\) => self\.counters\(\)\.panics\.add_one\(\),/Err(panic) => std::panic::resume_unwind(panic),/|cache'
'cache: what was forgotten is deregistered in the end|cache.rs|s/self\.store\.bury_forgotten\(\);//|cache'
# Limits.
'cache: bytes are limited|cache/get.rs|s/> self\.options\.bytes;\n(\s+let is_full)/> usize::MAX;\n$1/|cache'
'cache: what is counted is not evicted|cache/kill.rs|s/ && !entry\.has_users\(\)//|cache'
'cache: what is pinned is not evicted|cache/kill.rs|s/ && !self\.homes\.is_pinned\(id\)//|cache'
'cache: what was used is spared|cache/kill.rs|s/is_idle && !entry\.was_visited\(\)/is_idle/|cache'
'cache: what is being deregistered makes room, too|cache/get.rs|s/evicted > 0 \|\| !is_hopeless && is_coming\(\)\.is_some\(\)/evicted > 0/|cache'
'cache: more than there can be evicts nothing|cache/get.rs|s/if is_hopeless \{ 0 \} else/if false { 0 } else/|cache'
'cache: what is used up elsewhere makes room|cache/get.rs|s/&& self\.make_room\(range\.len\(\)\)/\&\& false/|cache'
# fork.
'cache: a child does not hit|cache/homes.rs|s/self\.open\.load\(Ordering::Relaxed\) != 0/true/|cache'
'cache: nor miss|cache.rs|s/(fn get_slowly.*?)if self\.store\.homes\.is_of_the_parent\(\) \{/$1if false {/s|cache'
'cache: nor by letting go|cache/registration.rs|s/!self\.homes\.is_of_the_parent\(\) && self\.remove_user/self.remove_user/|cache'
'cache: nor by dropping the cache|cache.rs|s/(impl<R: Registrar> Drop for Cache<R>.*?)if !self\.store\.homes\.is_of_the_parent\(\) \{/$1if true {/s|cache'
# The index.
'index: a change of it is seen at the end|cache/index.rs|s/\(self\.sequence\.load\(Ordering::Relaxed\) == sequence\)\.then_some\(\(\)\)\.ok_or\(Torn\)/Ok(())/|cache-loom:a_change_beside'
'index: and at the beginning|cache/index.rs|s/if !sequence\.is_multiple_of\(2\) \{/if false {/|cache-loom:a_change_beside'
'index: what was read is not newer than the sequence: read|cache/index.rs|s/(if anything that was read is newer, so is the sequence\.\n)\s+fence\(Ordering::Acquire\);/$1/|cache-loom:a_change_beside'
'index: and written|cache/index.rs|s/(Pairs with the fence in `visit`\.\n)\s+fence\(Ordering::Release\);/$1/|cache-loom:a_change_beside'
'index: nor older: written|cache/index.rs|s/self\.sequence\.store\(sequence \+ 2, Ordering::Release\)/self.sequence.store(sequence + 2, Ordering::Relaxed)/|cache-loom:a_change_beside'
'index: and read|cache/index.rs|s/let sequence = self\.sequence\.load\(Ordering::Acquire\);/let sequence = self.sequence.load(Ordering::Relaxed);/|cache-loom:a_change_beside'
'index: beside a writer the whole table is looked through|cache/kill.rs|s/self\.table\.ever_used\(\)\.for_each\(kill\);/let _ = kill;/|cache-unit:there_an_index'
'index: ends are looked at|cache/index.rs|s/if !reaches \{/if reaches {/|cache-unit:index'
'index: leaves before it are looked at|cache/index.rs|s/Some\(further\) if is_same\(\) => before = further,/Some(_) if is_same() => break,/|cache-unit:index'
'index: leaves behind it are looked at|cache/index.rs|s/            from = behind;/            return Ok(());/|cache-unit:index'
'index: the lowest key is that of the child|cache/index.rs|s/node\.keys\[0\]\.store\(key, Ordering::Relaxed\);//|cache-unit:index'
'index: also after it was taken out|cache/index.rs|s/above\.keys\[at\]\.store\(self\.node\(child\)\.key\(0\), Ordering::Relaxed\);//|cache-unit:index'
'index: empty nodes are given back|cache/index.rs|s/above\.remove_at\(at\);\n\s+self\.give_node\(writer, child\);\n\s+return;/return;/|cache-unit:index'
'index: nearly empty ones are put together|cache/index.rs|s/<= MERGED \{/<= 0 {/|cache-unit:index'
'index: the tree gets lower|cache/index.rs|s/while root\.height > 0 && self\.node\(root\.node\)\.len\(\) <= 1 \{/while false {/|cache-unit:index'
'index: there are nodes for every entry|cache/index.rs|s/let is_behind_filled = /let is_behind_filled = true || /|cache-unit:there_is_room'
'index: nodes are used again|cache/index.rs|s/writer\.free = number \+ 1;//|cache-unit:index'
'places: what finds no room is missing|cache/places.rs|s/None => add\(&place\.missing, 1\),/None => {}/|cache-unit:index'
'places: until it is gone|cache/places.rs|s/None => add\(&place\.missing, u64::MAX\),/None => {}/|cache-unit:index'
'places: where something is missing nothing is free|cache/places.rs|s/                if place\.has_missing\(\) \{/                if false {/|cache-unit:index'
'places: nor found to be nothing|cache/places.rs|s/0 if place\.has_missing\(\) => Short::Unknown,/0 if false => Short::Unknown,/|cache-unit:index'
'places: nor further on|cache/places.rs|s/is_known &= !place\.has_missing\(\);//|cache-unit:index'
'places: nor if there are more orders than looks|cache/places.rs|s/(            orders &= orders - 1;\n            if orders == 0 \{.*?\n            \}\n        \}\n        Short::)Unknown/$1Nothing/s|cache-unit:index'
'places: both pieces are looked at|cache/places.rs|s/for number in first\.\.=last \{/for number in first..=first {/|cache-unit:index'
'places: what lies outside of all is not there|cache/places.rs|s/\.min\(range\.start\(\)\)/.max(range.start())/|cache-unit:index'
'places: up to the end|cache/places.rs|s/\.max\(range\.end\(\)\)/.max(range.start())/|cache-unit:index'
'places: both pieces are written down|cache/places.rs|s/\(range\.start\(\) >> order\.\.=\(range\.end\(\) - 1\) >> order\)/(range.start() >> order..=range.start() >> order)/|cache-unit:index'
'places: an order stays as long as there is one of it|cache/places.rs|s/if orders\.0\[order as usize\] == 0 \{/{/|cache-unit:index'
'places: and no longer|cache/places.rs|s/if orders\.0\[order as usize\] == 0 \{/if false {/|cache-unit:index'
# The kernel's subscribers.
'gru: a start counts|gru.rs|s/shared\.active\.fetch_add\(1, Ordering::Relaxed\);//|subscribers:gru'
'gru: a start flushes|gru.rs|s/shared\.flush\(change\.range\(\)\.to_pages\(\)\);//|subscribers:gru::a_start_flushes'
'gru: a start kills faults|gru/tlb.rs|s/LOADING => page \| KILLED,/LOADING => return 0,/|subscribers:gru'
'gru: a fault waits until idle|gru/context.rs|s/if shared\.active\.load\(Ordering::Acquire\) > 0 \{/if false {/|subscribers:gru'
'gru: an end wakes|gru.rs|s/(self\.0\.active\.fetch_sub\(1, Ordering::Release\);\n\s+)self\.0\.idle\.wake_all\(\);/$1/|subscribers:gru::the_last_end'
'gru: an end counts|gru.rs|s/self\.0\.active\.fetch_sub\(1, Ordering::Release\);//|subscribers:gru::the_count'
'gru: a start waits for accesses|gru.rs|s/self\.accesses\.wait\(self\.space\.caller\(\)\.thread\(\), \|page\| range\.contains\(&tlb::page_at\(page\)\)\);//|subscribers:gru'
'gru: a start waits for accesses of its pages only|gru.rs|s/\|page\| range\.contains\(&tlb::page_at\(page\)\)/|_| true/|subscribers:gru'
'accesses: a start does not wait for its own thread|device/in_flight.rs|s/self\.thread\.load\(Ordering::Relaxed\) != thread && //|subscribers:a_thread_that_changes'
'gru: a fault in an own change is an error|gru/context.rs|s/if !self\.space\.wait_for_changes\(Range::EVERYTHING\) \{/if false {/|subscribers:gru::a_fault_inside'
'gru: nothing is loaded after a release|gru/context.rs|s/(\n            if )shared\.released\.load\(Ordering::Relaxed\)/$1false/|subscribers:gru'
'gru: release flushes|gru.rs|s/self\.0\.flush\(Range::EVERYTHING\);//|subscribers:gru'
'gru: release wakes|gru.rs|s/(self\.0\.flush\(Range::EVERYTHING\);\n\s+)self\.0\.idle\.wake_all\(\);/$1/|subscribers:gru::release_wakes'
'gru: a new context is empty|gru/context.rs|s/shared\.tlbs\[seat\.number\(\)\]\.clear\(\);//|subscribers:gru'
'gru: a page being replaced is not missing|gru/context.rs|s/None if loading\.is_killed\(\) => \{\}//|subscribers:gru'
'gru: whole pages|gru.rs|s/change\.range\(\)\.to_pages\(\)/change.range()/|subscribers:gru'
'gru: rights are looked at|gru/tlb.rs|s/page\.allows\(access\)\.then_some\(page\)/Some(page)/|subscribers:gru'
'gru: the page is compared|gru/tlb.rs|s/self\.tag\.load\(Ordering::Relaxed\) != page \| VALID/self.tag.load(Ordering::Relaxed) \& STATE != VALID/|subscribers:gru::two_pages'
'gru: a fault looks at the count behind its mark|gru/context.rs|s/let loading = entry\.load\(page\);(.*?)drop\(loading\);(.*?)(match shared\.table)/$1$2let loading = entry.load(page);\n            $3/s|subscribers-loom:gru'
'gru: the mark of a fault is a full fence|gru/context.rs|s/(Pairs with the fence in `start`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|subscribers-loom:gru'
'gru: so is the count of a start|gru.rs|s/(Pairs with the fence in `Context::load`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|subscribers-loom:gru'
'accesses: the beginning of one is a full fence: gru|device/in_flight.rs|s/(Pairs with the fence in `wait`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|subscribers-loom:gru'
'accesses: of stage2|device/in_flight.rs|s/(Pairs with the fence in `wait`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|subscribers-loom:stage2'
'accesses: of mirror|device/in_flight.rs|s/(Pairs with the fence in `wait`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|subscribers-loom:mirror'
'accesses: the wait for them is a full fence: gru|device/in_flight.rs|s/(Pairs with the fence in `enter`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|subscribers-loom:gru'
'accesses: of stage2, the wait|device/in_flight.rs|s/(Pairs with the fence in `enter`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|subscribers-loom:stage2'
'accesses: of mirror, the wait|device/in_flight.rs|s/(Pairs with the fence in `enter`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|subscribers-loom:mirror'
'accesses: so is the look who is there|device/in_flight.rs|s/(As in `wait`, both\.\n)\s+fence\(Ordering::SeqCst\);/$1/|subscribers-loom:mirror::loom::an_access_beside_a_change_that'
'accesses: the end of one is published|device/in_flight.rs|s/(the access happened before the change\.\n\s+place\.inside|the access happened before the change\.\n\s+self\.place\.inside)\.store\(inside, Ordering::Release\)/$1.store(inside, Ordering::Relaxed)/|subscribers-loom:an_access'
'accesses: and acquired|device/in_flight.rs|s/while place\.inside\.load\(Ordering::Acquire\) == inside/while place.inside.load(Ordering::Relaxed) == inside/|subscribers-loom:an_access'
'accesses: also by who only looks|device/in_flight.rs|s/is_odd\(place\.inside\.load\(Ordering::Acquire\)\) && place\.is_used/is_odd(place.inside.load(Ordering::Relaxed)) \&\& place.is_used/|subscribers-loom:mirror::loom::an_access_beside_a_change_that'
'stage2: a start zaps|stage2/told.rs|s/shared\.zap\(&slots, &range\);//|subscribers:stage2::a_start_zaps'
'retry: a fault in a range that is in progress begins anew|device/retry.rs|s/self\.covers\(pages\) \|\| //|subscribers:stage2'
'retry: union low|device/retry.rs|s/first\.min\(open & NUMBER\)/first/|subscribers:stage2'
'retry: union high|device/retry.rs|s/last\.max\(open >> BITS & NUMBER\)/last/|subscribers:stage2'
'retry: union is reset|device/retry.rs|s/0 => \(first, last\),/0 if open == 0 => (first, last),/|subscribers:stage2'
'retry: another sequence begins anew|device/retry.rs|s/ \|\| self\.sequence\.load\(Ordering::Relaxed\) != sequence//|subscribers:stage2'
'retry: only the union has to wait|device/retry.rs|s/open >= ONE && low [^\n]*/open >= ONE/|subscribers:stage2'
'stage2: a loading entry is killed|stage2/table.rs|s/Some\(LOADING \| KILLED\)/None/|subscribers-unit:stage2'
'stage2: a fault looks again behind its mark|stage2/vcpu.rs|s/if self\.retry\.must_retry\(sequence, page\.\.=page\) \{\n\s+return Ok\(false\);\n\s+\}//|subscribers:stage2'
'stage2: what is missing in a change is looked for again|stage2/vcpu.rs|s/let is_changing = self\.retry\.must_retry\(sequence, page\.\.=page\);/let is_changing = false;/|subscribers:stage2'
'stage2: the mark of a fault is a full fence|stage2/vcpu.rs|s/(Pairs with the fence in `start`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|subscribers-loom:stage2'
'stage2: a start waits for accesses|stage2/told.rs|s/if hit\.is_some\(\) \|\| is_draining \{/if is_draining {/|subscribers:stage2'
'stage2: a start drains|stage2/told.rs|s/if hit\.is_some\(\) \|\| is_draining \{/if hit.is_some() {/|subscribers:stage2'
'stage2: update waits for accesses|stage2/memslots.rs|s/(return Err\(error\);\n\s+\}\n\s+)self\.wait_for_accesses\(\);/$1/|subscribers:stage2'
'stage2: update waits for changes|stage2/memslots.rs|s/\(gate & OPEN == 0\)\.then_some\(/Some(/|subscribers:stage2'
'stage2: last end wakes|stage2/memslots.rs|s/if gate\.is_ok_and\(\|gate\| gate & OPEN == 1\) \{/if false {/|subscribers:stage2::memslots_wait'
'stage2: an update gives up|stage2/memslots.rs|s/return Err\(MemslotError::Stalled \{ open, waited \}\);/continue;/|subscribers:stage2::memslots_do'
'stage2: release resets active|stage2/told.rs|s/shared\.memslots\.reset\(\);//|subscribers:stage2'
'stage2: release resets progress|stage2/told.rs|s/shared\.retry\.reset\(\);//|subscribers:stage2'
'stage2: released memslots|stage2/memslots.rs|s/return Err\(MemslotError::Released\);//|subscribers:stage2'
'stage2: released faults|stage2/vcpu.rs|s/return Err\(Fault::Released \{ guest \}\);//g|subscribers:stage2'
'stage2: a fault in an own change is an error|stage2/vcpu.rs|s/return Err\(Fault::Changing \{ guest \}\);//|subscribers:stage2::during'
'stage2: write needs rights|stage2/table.rs|s/\(PRESENT \| WRITABLE, ACCESSED \| DIRTY\)/(PRESENT, ACCESSED | DIRTY)/|subscribers:stage2'
'stage2: read-only memslot|stage2/vcpu.rs|s/if access\.includes\(Access::Write\) && !slot\.may_write\(\) \{/if false {/|subscribers:stage2'
'stage2: memslots do not overlap|stage2/memslots.rs|s/\|slot\| slot\.first < new\.end\(\) && new\.first < slot\.end\(\)/|_| false/|subscribers:stage2::bad'
'stage2: dirty: cleaned with log|stage2.rs|s/(who writes later makes a new one\.\n\s+)entry\.clean\(\);/$1/|subscribers:stage2'
'stage2: dirty: cleaned when begun|stage2.rs|s/slot\.entries\.iter\(\)\.for_each\(\|entry\| entry\.clean\(\)\);//|subscribers:stage2'
'stage2: dirty: marked|stage2/vcpu.rs|s/slot\.mark_dirty\(page\);//|subscribers:stage2'
'stage2: aging asks all|stage2/told.rs|s/filter\(\|entry\| entry\.make_old\(\)\)\.count\(\) > 0/any(|entry| entry.make_old())/|subscribers:stage2'
'stage2: an end without a start has no effect|stage2/memslots.rs|s/\(gate & OPEN > 0\)\.then\(\|\| gate - 1\)/Some(gate.wrapping_sub(1))/|subscribers-unit:stage2'
'userptr: a start takes pages away|userptr/listed.rs|s/slot\.take_away\(&range, true\)\.expect\("[^"]*"\);//|subscribers:userptr::a_change_that_may_wait'
'userptr: a busy object refuses|userptr/listed.rs|s/if state\.has_jobs\(\) && !stopping \{/if false {/|subscribers:userptr'
'userptr: a start waits for steps|userptr/listed.rs|s/shared\.engines\.wait\(shared\.space\.caller\(\)\.thread\(\), shared\.concerns\(range\)\);//|subscribers:userptr'
'userptr: a quick one refuses beside a step|userptr/listed.rs|s/if is_used \{ Err\(WouldBlock\) \} else \{ Ok\(\(\)\) \}/{ let _ = is_used; Ok(()) }/|subscribers:userptr'
'userptr: a start takes a binding under way, too|userptr/listed.rs|s/Phase::Pinning \| Phase::Bound\) \|\| !self/Phase::Bound) || !self/|subscribers:userptr'
'userptr: binding waits|userptr/listed.rs|s/if !shared\.space\.wait_for_changes\(range\) \{/if false {/|subscribers:userptr'
'userptr: what is missing in the middle of a change|userptr/listed.rs|s/Some\(address\) if self\.slot\(\)\.state\(\) == pinning => \{/Some(address) => {/|subscribers:userptr'
'userptr: nothing is bound after a release|userptr/listed.rs|s/if shared\.released\.load\(Ordering::Relaxed\) \{/if false {/|subscribers:userptr'
'userptr: release takes away|userptr/listed.rs|s/slot\.take_away\(&Range::EVERYTHING, true\)\.expect\("[^"]*"\);//|subscribers:userptr'
'userptr: tracked: sequence at submission|userptr/tracked.rs|s/if self\.object\.interval\.is_stale\(&self\.pinned\.ticket\) \{/if false {/|subscribers:userptr'
'userptr: tracked: sequence at use|userptr/tracked.rs|s/&& !self\.interval\.is_stale\(&pinned\.ticket\)//|subscribers:userptr'
'userptr: tracked: sequence behind pinning|userptr/tracked.rs|s/(let \(found, missing\) = self\.pin\(\);\n\s+if )self\.interval\.is_stale\(&ticket\)/$1false/|subscribers:userptr'
'userptr: tracked: given back|userptr/tracked.rs|s/self\.pinner\.unpin\(self\.start \+ number \* PAGE_SIZE, \*page\);//|subscribers:userptr'
'userptr: tracked: own change|userptr/tracked.rs|s/return Err\(BindError::Changing \{ range \}\);//|subscribers:userptr'
'mirror: a change zaps|mirror.rs|s/self\.0\.zap\(change\.range\(\)\);//|subscribers:mirror::a_change_zaps'
'mirror: a quick one zaps, too|mirror.rs|s/shared\.zap\(change\.range\(\)\);(\n\s+if shared)/$1/|subscribers:mirror'
'mirror: a change waits for accesses|mirror.rs|s/self\.0\.wait_for_accesses\(change\.range\(\)\);//|subscribers:mirror'
'mirror: in its second pass|mirror.rs|s/Pass::Unfinished/Pass::Done/|subscribers:mirror'
'mirror: a quick one refuses beside an access|mirror.rs|s/if shared\.accesses\.is_used\([^\n]*\{/if false {/|subscribers:mirror'
'mirror: of its pages only|mirror.rs|s/pages\.start\(\) <= page && page < pages\.end\(\)/pages.start() <= page.max(pages.start())/|subscribers:mirror::an_idle'
'mirror: whole pages|mirror.rs|s/let pages = range\.to_pages\(\);/let pages = range;/|subscribers:mirror::an_idle'
'mirror: tickets are looked at|mirror/fault.rs|s/self\.interval\.is_stale\(&seen\.ticket\) \|\| //|subscribers:mirror::a_change_while'
'mirror: and the own sequence|mirror/fault.rs|s/ \|\| self\.shared\.own\.must_retry\(seen\.own, pages\)//|subscribers:mirror::a_migration'
'mirror: behind the marks|mirror/fault.rs|s/(see the module documentation\.\n\s+)if self\.is_stale\(seen, pages\.clone\(\)\) \{/$1if false {/|subscribers:mirror::a_change_while'
'mirror: a loading entry is killed|mirror/table.rs|s/Some\(LOADING \| KILLED\)/None/|subscribers-unit:mirror'
'mirror: a snapshot is of one moment|mirror/fault.rs|s/Ok\(!self\.is_stale\(seen, pages\.clone\(\)\)\)/{\n                let _ = seen;\n                Ok(true)\n            }/|subscribers:mirror'
'mirror: what is missing in the middle of a change is not missing|mirror/fault.rs|s/return if self\.is_stale\(seen, pages\.clone\(\)\) \{ Ok\(false\) \} else \{ Err\(fault\) \}/return Err(fault)/|subscribers:mirror'
'mirror: a fault in an own change is an error|mirror/fault.rs|s/return Err\(Fault::Changing \{ range \}\);//|subscribers:mirror'
'mirror: a fault gives up|mirror/fault.rs|s/return Err\(Fault::Unsettled \{ range, waited \}\);//|subscribers:mirror::changes_for_ever'
'mirror: nothing is brought in after a release|mirror/fault.rs|s/return Err\(Fault::Released\);//|subscribers:mirror'
'mirror: nothing lies outside|mirror/fault.rs|s/if !own\.contains\(&pages\) \{/if false {/|subscribers:mirror'
'mirror: rights are looked at|mirror/fault.rs|s/\.filter\(\|found\| found\.allows\(access\)\)//|subscribers:mirror::what_does_not'
'mirror: also of what is taken|mirror/fault.rs|s/\.filter\(Page::is_writable\)//|subscribers:mirror::what_does_not'
'mirror: write needs rights|mirror/table.rs|s/PRESENT \| WRITABLE,(\n\s+Need::Shared\(_\))/PRESENT,$1/|subscribers:mirror'
'mirror: to be alone, the page must have been taken|mirror/table.rs|s/PRESENT \| WRITABLE \| EXCLUSIVE,/PRESENT | WRITABLE,/|subscribers:mirror'
'mirror: and what was not taken is not|mirror/table.rs|s/if need == Need::Exclusive \{ EXCLUSIVE \} else \{ 0 \}/EXCLUSIVE/|subscribers:mirror'
'mirror: own changes are ignored|mirror.rs|s/matches!\(change\.event\(\), Event::Migrate \| Event::Exclusive\) &&/false \&\&/|subscribers:mirror'
'mirror: by owner|mirror.rs|s/ && change\.owner\(\) == self\.0\.owner\(\)//|subscribers:mirror'
'mirror: and by event|mirror.rs|s/matches!\(change\.event\(\), Event::Migrate \| Event::Exclusive\) && //|subscribers:mirror'
'mirror: others are told whose it is|mirror/own.rs|s/\.with_owner\(self\.owner\(\)\)//|subscribers:mirror'
'mirror: an own migration zaps first|mirror/own.rs|s/shared\.zap\(range\);//|subscribers:mirror'
'mirror: and waits for accesses|mirror/own.rs|s/shared\.wait_for_accesses\(range\);//|subscribers:mirror'
'mirror: it counts|mirror/own.rs|s/shared\.own\.begin\([^\n]*\);//|subscribers:mirror::a_fault_during'
'mirror: and raises the sequence|mirror/own.rs|s/self\.0\.own\.end\(\);/self.0.own.reset();/|subscribers:mirror'
'mirror: to take a page is a change|mirror/own.rs|s/let open = self\.open\(page, Event::Exclusive\);(.*?)drop\(open\);/let _ = page;$1/s|subscribers:mirror'
'mirror: a shared page table has its own way to take|device.rs|s/\(\*\*self\)\.take\(address\)/{\n            let _ = address;\n            None\n        }/|subscribers:mirror'
'mirror: and to peek|device.rs|s/\(\*\*self\)\.peek\(address\)/self.look_up(address, Access::Read)/|subscribers:mirror'
'mirror: the marks of a fault are a full fence|mirror/fault.rs|s/(Pairs with the fence in `Shared::zap`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|subscribers-loom:mirror'
'mirror: a change is a full fence|mirror.rs|s/(Pairs with the fence in `Mirror::is_stale`: see the module documentation\.\n)\s+fence\(Ordering::SeqCst\);/$1/|subscribers-loom:mirror'
)

# What the real KVM does, and stage2 as well: where there is /dev/kvm, as root.
rows+=(
'kvm: a start takes out what it hits|stage2/told.rs|s/shared\.zap\(&slots, &range\);/let _ = \&range;/|kvm:each_way'
'kvm: up to the last page of it|stage2/memslots.rs|s/at\(common\.end\(\)\)\.div_ceil\(PAGE_SIZE\)/at(common.end()) \/ PAGE_SIZE - 1/|kvm:each_way'
'kvm: and no other one|stage2/memslots.rs|s/at\(common\.start\(\)\) \/ PAGE_SIZE/at(common.start()) \/ PAGE_SIZE \/ 2/|kvm:each_way'
'kvm: what was found for reading is not written|stage2/vcpu.rs|s/found\.is_writable\(\) && slot\.may_write\(\)/slot.may_write()/|kvm:agree'
'kvm: a start waits for accesses|stage2/told.rs|s/if hit\.is_some\(\) \|\| is_draining \{/if false {/|kvm:beside'
'kvm: no memslot ends too high|stage2/memslots.rs|s/guest\.checked_add\(len\)\.is_none_or\(\|end\| end > Stage2::GUEST_SIZE\)/false/|kvm:memslots'
'kvm: neighbours do not overlap|stage2/memslots.rs|s/new\.first < slot\.end\(\)\) \{/new.first <= slot.end()) {/|kvm:memslots'
'stage2: an update inside an own change fails at once|stage2/memslots.rs|s/if self\.space\.is_changing\(\) \{/if false {/|subscribers:stage2::memslots_do_not_wait_for_their'
'stage2: a release wakes who updates|stage2/memslots.rs|s/(fn reset.*?)self\.idle\.wake_all\(\);/$1/s|subscribers:stage2::who_waits'
'kvm: what is reported dirty is clean|stage2.rs|s/entry\.clean\(\);\n(\s+)pages\.push/$1pages.push/|kvm:memslots'
)
# What a thread knows of its own changes.
rows+=(
'own changes: one is known in its middle|open.rs|s/Phase::Starting \| Phase::Changing \| Phase::Ending\)\)/Phase::Starting | Phase::Ending))/|it:own_changes'
'own changes: and in its end|open.rs|s/Phase::Starting \| Phase::Changing \| Phase::Ending\)\)/Phase::Starting | Phase::Changing))/|it:own_changes'
)

failed=0
tried=0
mutated=
for row in "${rows[@]}"; do
    promise=${row%%|*}; rest=${row#*|}
    file=${rest%%|*}; rest=${rest#*|}
    tests=${rest##*|}; edit=${rest%|*}
    suite=${tests%%:*}; filter=${tests#"$suite"}; filter=${filter#:}
    [ "${1:-$suite}" = "$suite" ] || [ "$1" = check ] || continue
    case "$promise" in *"${2:-}"*) ;; *) continue ;; esac
    tried=$((tried + 1))
    case "$suite" in
        cache* | subscribers*) package=mmu-notifier-secondary target=(--lib) ;;
        reaper*) package=mmu-notifier-primary target=(--lib) ;;
        *) package=mmu-notifier target=(--test "$suite") ;;
    esac
    [ "$suite" != cache ] || target=(--test it)
    [ "$suite" != subscribers ] || target=(--test subscribers)
    [ "$suite" != kvm ] || { package=mmu-notifier-secondary; target=(--test kvm); }
    [ "$suite" != reaper ] || target=(--test reaper)
    [ -z "$mutated" ] || cp "$root/$mutated" "$mutated"
    mutated=crates/$package/src/$file
    perl -0pi -e "$edit" "$mutated"
    if cmp -s "$root/$mutated" "$mutated"; then
        echo "STALE     $promise: the substitution changes nothing"; failed=$((failed + 1)); continue
    fi
    [ "${1:-}" != check ] || continue
    case "$suite" in
        *loom)
            run=(env RUSTFLAGS="--cfg mmu_loom -A warnings" CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_INCREMENTAL=true
                cargo test -q --release --offline -p "$package" "${target[@]}" --target-dir "$root/target/mutations-loom")
            limit=300 shown=(--nocapture)
            ;;
        *)
            run=(env RUSTFLAGS="-A warnings"
                cargo test -q --offline -p "$package" "${target[@]}" --target-dir "$root/target/mutations")
            limit=100 shown=()
            ;;
    esac
    if ! "${run[@]}" --no-run >"$work/log" 2>&1; then
        echo "BROKEN    $promise: does not compile"; grep -m 1 -A 8 '^error' "$work/log" || true; failed=$((failed + 1)); continue
    fi
    status=0
    # What a test under loom has found, it may find again without an end.
    timeout "$limit" "${run[@]}" -- $filter "${shown[@]}" 2>&1 | head -c 1000000 >"$work/log" || status=$?
    if grep -q 'running 0 tests' "$work/log"; then
        echo "STALE     $promise: there is no test $filter"; failed=$((failed + 1))
    elif [ "$status" = 0 ]; then
        echo "SURVIVED  $promise ($file)"; failed=$((failed + 1))
    elif [ "$status" = 124 ] && [[ "$suite" = *loom ]] && ! grep -q 'Causality violation' "$work/log"; then
        echo "SURVIVED  $promise ($file), so far: loom was not done"; failed=$((failed + 1))
    else
        by=$(grep -oE "^---- [a-z0-9_:]+|^thread '[a-z0-9_:]+|^test [a-z0-9_:]+ .* FAILED|[a-z0-9_:]+ --- FAILED|SIGSEGV|SIGABRT" "$work/log" |
            grep -oE '[a-z0-9_]+(::[a-z0-9_]+)+|^---- [a-z0-9_]+|SIG[A-Z]+' | head -n 1 || true)
        if [ "$status" = 124 ]; then by=${by:-it hangs}; fi
        echo "noticed   $promise: ${by:-it fails}"
    fi
done
if [ "${1:-}" = check ]; then
    echo "$tried mutations, $failed of which change nothing"
else
    echo "$tried mutations, $failed not noticed"
fi
[ "$failed" = 0 ]
