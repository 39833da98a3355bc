//! The edge cases of the subsystem, by group and number, and the golden scenarios that show them.
//!
//! P is pairing, L life cycle, I intervals, A aging, O the out-of-memory reaper. A scenario must be there
//! for every kernel that has what it is about, and replay without a mismatch: none can be dropped, or
//! lose a kernel, unnoticed. Cases of concurrency and of single subscribers have no trace; they are
//! tested where that code lives.

use std::collections::BTreeSet;

use mmu_notifier_model::replay;
use mmu_notifier_model::{
    Blocking, Callback, Change, Class, Event, IntervalClass, Kernel, Machine, Op, Passes, Ret,
};

use crate::golden;

/// Number, what must come out, scenarios.
type Case = (&'static str, &'static str, &'static [&'static str]);

const CASES: &[Case] = &[
    ("P1", "one pair: start, then end, with equal arguments", &["pair_single"]),
    ("P2", "three subscribers: all asked, newest first, at start and end", &["pair_three_walk_order"]),
    (
        "P3",
        "non-blocking and nobody refuses: 0, everybody sees that it may not block",
        &["nonblock_all_succeed"],
    ),
    (
        "P4",
        "the refuser is walked first: the others are asked, and ended inside the start",
        &["eagain_refuser_walked_first"],
    ),
    ("P5", "the refuser is walked last: the same", &["eagain_refuser_walked_last"]),
    (
        "P6",
        "the refuser is in the middle: the same, and the next pair is normal",
        &["eagain_refuser_in_middle"],
    ),
    ("P7", "two refusers: one round of ends", &["eagain_two_refusers"]),
    (
        "P8",
        "before the fix: who started stays raised",
        &["eagain_refuser_walked_first", "eagain_refuser_walked_last"],
    ),
    (
        "P9",
        "who refuses every so often: balanced after each attempt",
        &["eagain_every_second", "eagain_periodic_oom_like"],
    ),
    ("P10", "a refuser in a blockable range: does not refuse", &["eagain_not_in_blockable"]),
    ("P11", "a refuser that has an end: a warning, and it is ended as well", &["failing_start_has_end"]),
    ("P12", "another code than -EAGAIN: a warning, ends, the code is returned", &["bad_error_code_nonblock"]),
    (
        "P13",
        "a failed blockable start: a warning, and two ends where one is due",
        &["blockable_failure_double_end"],
    ),
    ("P14", "two codes: the last walked counts", &["last_failure_code_wins"]),
    ("P15", "a positive return is a failure", &["positive_start_return"]),
    ("P16", "an end without a start: called at end and after a refusal", &["end_only_subscriber"]),
    ("P17", "a start without an end: nothing at end", &["start_only_subscriber"]),
    ("P18", "no callbacks: nothing happens", &["no_callback_subscriber"]),
    ("P19", "nested equal ranges: two pairs", &["nested_same_range"]),
    (
        "P20",
        "overlapping pairs ended out of order: each end has its own range",
        &["overlapping_out_of_order"],
    ),
    ("P21", "a refusal inside an open pair: only the inner one is undone", &["eagain_inside_open_range"]),
    ("P22", "nobody ever subscribed: 0, no callbacks", &["no_subscriptions"]),
    ("P23", "everybody went: 0, the structure stays", &["empty_after_unregister"]),
    (
        "P24",
        "the caller ends a refused start: one end too many, or the count wraps",
        &["misuse_end_after_refused_start", "misuse_end_after_interval_refusal"],
    ),
    ("L1", "unregister: release once, then no callback", &["register_unregister"]),
    (
        "L2",
        "no memory at the first registration: -ENOMEM, nothing changed, the next one works",
        &["register_enomem"],
    ),
    ("L3", "interrupted while locking: -EINTR, nothing changed", &["register_eintr"]),
    (
        "L4",
        "registration during an open pair: waits for the last end, sees neither half",
        &["register_waits_for_open_range", "register_waits_for_last_range", "get_waits_for_open_range"],
    ),
    ("L5", "a refused start does not hold up a registration", &["register_after_refused_start"]),
    ("L6", "who goes inside a pair gets no end", &["unregister_inside_range", "put_inside_range"]),
    ("L7", "the same object again: at the head", &["reregister_same_object"]),
    ("L8", "get twice: one instance; put twice: one free", &["get_get_put_put"]),
    ("L9", "get between the last put and the free: a new instance", &["get_after_last_put"]),
    ("L10", "the instance cannot be allocated: nothing is registered", &["get_alloc_fails"]),
    ("L11", "registration inside get fails: freed at once", &["get_register_fails"]),
    ("L12", "the count is at its maximum: -EOVERFLOW, unchanged", &["get_users_overflow"]),
    ("L13", "one put too many: a warning, nothing else", &["put_without_users"]),
    ("L14", "release puts its own subscriber: allowed", &["exit_release_puts"]),
    (
        "L15",
        "exit: release for all, an empty list; no second release",
        &["exit_then_unregister", "exit_then_put", "exit_twice"],
    ),
    ("L16", "exit without a release callback: unlinked", &["exit_without_release_callback"]),
    ("L17", "exit inside a pair: its end reaches nobody", &["exit_inside_range"]),
    ("L18", "two address spaces: independent but for grace periods", &["two_mms_independent"]),
    (
        "L19",
        "secondary-TLB callback with start or end: -EINVAL since 6.6",
        &["mixed_tlb_and_range_ops", "mixed_ops_through_get"],
    ),
    ("L20", "registration with a dead address space: a bug", &["register_after_exit"]),
    ("L21", "the last reference goes while someone is linked: a bug", &["unregister_twice"]),
    ("I1", "overlap: 2, 3, 4; a miss leaves the sequence alone", &["interval_basic", "interval_missed"]),
    ("I2", "the edges: up to the first byte misses, one more hits, so does the last", &["interval_edges"]),
    ("I3", "by start, equal starts by insertion", &["interval_order"]),
    ("I4", "intervals before the hlist at start, hlist only at end", &["interval_then_hlist"]),
    (
        "I5",
        "a refusal: nobody further is asked, even again",
        &["interval_eagain", "interval_eagain_every_second"],
    ),
    (
        "I6",
        "a refusal inside another pair: the count drops, odd stays",
        &["interval_eagain_nested", "interval_eagain_nested_miss"],
    ),
    ("I7", "false for a blockable range: a warning, and it goes on", &["interval_refuses_blockable"]),
    (
        "I8",
        "the intervals agree, the hlist refuses: entered for ever, or repaired",
        &[
            "interval_ok_then_hlist_eagain",
            "interval_missed_then_hlist_eagain",
            "no_interval_left_then_hlist_eagain",
        ],
    ),
    ("I9", "insert while odd: deferred, its reader waits", &["insert_deferred"]),
    ("I10", "insert while active and even: at once, and makes it odd", &["insert_active_even"]),
    ("I11", "a deferred insert is removed: never in the tree, no wait", &["insert_deferred_then_remove"]),
    (
        "I12",
        "remove while odd: waits for all pairs, is called meanwhile",
        &["remove_waits", "remove_waits_still_called", "remove_waits_unrelated"],
    ),
    ("I13", "remove while active but even: at once", &["remove_active_even"]),
    ("I14", "several deferred: the newest request first", &["deferred_order"]),
    ("I15", "reading without a collision, and with one", &["read_no_collision", "read_collision"]),
    ("I16", "reading while hit: waits", &["read_begin_waits"]),
    ("I17", "reading while others are hit: does not wait", &["read_begin_unrelated"]),
    ("I18", "hit in an earlier phase only: does not wait", &["read_begin_next_cycle"]),
    ("I19", "hit, own pair ended, another open: waits", &["read_begin_waits_for_unrelated"]),
    ("I20", "the sequence is not stored: the collision is missed", &["interval_never_sets_seq"]),
    (
        "I21",
        "own invalidations are let pass, those of others are not",
        &["owner_filter_exclusive", "owner_filter_migrate", "owner_filter_mixed"],
    ),
    ("I22", "length 0 and overflow: -EOVERFLOW; up to the last byte: fine", &["insert_bad_lengths"]),
    ("I23", "insert with a dead address space: a warning and -EINVAL", &["insert_dead_mm"]),
    (
        "I24",
        "the first insert waits and can fail, later ones do neither",
        &["insert_first_waits", "insert_first_fails"],
    ),
    (
        "I25",
        "exit: RELEASE to all, who then also get the unmapping",
        &["exit_intervals", "exit_intervals_inside_range"],
    ),
    ("I26", "RELEASE refused: a warning", &["release_refused"]),
    ("I27", "the sequence wraps", &["seq_wraparound"]),
    ("I28", "an empty range: hits inside, misses at the edge", &["empty_ranges"]),
    (
        "I29",
        "two passes: all finishes after all first passes, before the hlist, also after a refusal",
        &[
            "two_pass_basic",
            "two_pass_exit",
            "two_pass_no_finish_wanted",
            "two_pass_refused",
            "two_pass_without_finish",
        ],
    ),
    ("A1", "aging: the OR of all answers", &["young_or", "young_integer_answers", "young_inside_range"]),
    ("A2", "testing stops at the first yes", &["test_young_short_circuit"]),
    ("A3", "aging after exit: 0", &["young_after_exit"]),
    (
        "O1",
        "ten refused attempts: everybody balanced after each",
        &["oom_reaper_gives_up", "kvm_nouveau_oom_exit"],
    ),
    (
        "X1",
        "whatever else was recorded",
        &[
            "change_pte",
            "every_event",
            "exit_empty_tree",
            "get_finds_registered",
            "get_two_classes",
            "get_two_mms",
            "hlist_sees_all_ranges",
            "insert_locked_variant",
            "interval_unaligned",
            "many_waiters",
            "synchronize_idle",
            "tlb_callback",
            "unregister_flushes_pending_put",
            "update_to_read_only",
            "whole_space_range",
        ],
    ),
];

/// The kernels that a scenario was recorded on: all but where one lacks what it is about.
fn kernels_of(scenario: &str) -> Vec<Kernel> {
    let has = |kernel: &Kernel| match scenario {
        "change_pte" => kernel.has_change_pte,
        "update_to_read_only" => kernel.has_read_only_check,
        "mixed_ops_through_get" => kernel.tlb_excludes_ranges,
        "owner_filter_exclusive" => kernel.has_exclusive,
        scenario if scenario.starts_with("two_pass_") => kernel.has_two_pass,
        _ => true,
    };
    Kernel::ALL.into_iter().filter(|kernel| kernel.release.is_some() && has(kernel)).collect()
}

#[test]
fn every_edge_case_has_its_scenarios() {
    for (case, outcome, scenarios) in CASES {
        for scenario in *scenarios {
            for kernel in kernels_of(scenario) {
                let trace = golden::trace(scenario, kernel.release.expect("recorded"));
                let mismatches = replay(trace, kernel).mismatches;
                assert!(mismatches.is_empty(), "{case} ({outcome}): {mismatches:?}");
            }
        }
    }
}

#[test]
fn every_scenario_is_in_the_table() {
    let listed: BTreeSet<&str> = CASES.iter().flat_map(|(_, _, scenarios)| *scenarios).copied().collect();
    let there: BTreeSet<&str> = golden::traces()
        .iter()
        .map(|trace| trace.header.name.as_str())
        .filter(|name| !name.starts_with("random_"))
        .collect();
    assert_eq!(listed, there);
    let recorded = golden::traces().iter().filter(|trace| trace.header.random.is_none()).count();
    assert_eq!(recorded, listed.iter().map(|scenario| kernels_of(scenario).len()).sum::<usize>());
}

#[test]
fn no_case_is_missing() {
    for (group, cases) in [("P", 24), ("L", 21), ("I", 29), ("A", 3), ("O", 1)] {
        for number in 1..=cases {
            let case = format!("{group}{number}");
            assert!(
                CASES.iter().any(|(name, _, scenarios)| *name == case && !scenarios.is_empty()),
                "{case}"
            );
        }
    }
}

/// A4: intervals alone have no accessed bits.
#[test]
fn aging_with_intervals_only_is_0() {
    for kernel in Kernel::ALL {
        let mut machine = Machine::new(kernel);
        let class = IntervalClass { fail: None, set_seq: true, ignore: None, passes: Passes::One };
        for op in [
            Op::Mm { m: 0 },
            Op::Iclass { c: 0, class },
            Op::Insert { i: 0, c: 0, m: 0, start: 0x1000, length: 0x1000 },
        ] {
            machine.apply(&op).expect("possible");
        }
        for op in [
            Op::ClearFlushYoung { m: 0, start: 0x1000, end: 0x2000 },
            Op::ClearYoung { m: 0, start: 0x1000, end: 0x2000 },
            Op::TestYoung { m: 0, address: 0x1000 },
        ] {
            let observed = machine.apply(&op).expect("possible");
            assert_eq!(observed.ret, Some(Ret::Code(0)));
            assert!(observed.calls.is_empty());
        }
    }
}

/// O3: of three mappings one is refused. The others are ended, the attempt can be made again.
#[test]
fn a_refused_mapping_does_not_hold_up_the_others() {
    let mut machine = Machine::new(Kernel::REPAIRED);
    let paired = Class { callbacks: vec![Callback::Start, Callback::End], ..Class::default() };
    let refuser = Class {
        callbacks: vec![Callback::Start],
        start_fail: Some(mmu_notifier_model::Failing {
            every: 2,
            code: -11,
            when: mmu_notifier_model::Qualifying::Nonblock,
        }),
        ..Class::default()
    };
    for op in [
        Op::Mm { m: 0 },
        Op::Class { c: 0, class: paired },
        Op::Class { c: 1, class: refuser },
        Op::Register { s: 0, c: 0, m: 0 },
        Op::Register { s: 1, c: 1, m: 0 },
    ] {
        machine.apply(&op).expect("possible");
    }
    let mut codes = Vec::new();
    for r in 0..3 {
        let start = 0x1000 * (r + 1);
        let change = Change {
            start,
            end: start + 0x1000,
            event: Event::Clear,
            blocking: Blocking::Forbidden,
            owner: 0,
        };
        let observed = machine.apply(&Op::Start { r, m: 0, change }).expect("possible");
        codes.push(observed.ret);
        if observed.ret == Some(Ret::Code(0)) {
            machine.apply(&Op::End { r }).expect("possible");
        }
        let balance = machine.balances()[0];
        assert_eq!((balance.started, balance.open()), (r + 1, 0));
    }
    assert_eq!(codes, [0, -11, 0].map(|code| Some(Ret::Code(code))));
}
