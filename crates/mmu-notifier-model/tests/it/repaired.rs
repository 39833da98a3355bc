//! The repaired kernel: the newest one without its two defects.

use mmu_notifier_model::{Blocking, CallKind, Kernel, Line, MmState, Op, Ret, Trace, Trait, replay};

use crate::golden;

/// The first operation in which one of the two defects shows.
fn first_defect(trace: &Trace) -> Option<usize> {
    trace.lines.iter().find(|line| leaks(line) || ends_early(line)).map(|line| line.number)
}

/// An hlist subscriber refuses after the interval side was entered, which is then never left.
fn leaks(line: &Line) -> bool {
    let failed =
        |kind| line.seen.calls.iter().any(|call| call.kind == kind && call.ret != Some(Ret::Code(0)));
    let has_itree =
        matches!(&line.seen.state, Some(MmState::Live { subs: Some(subs), .. }) if subs.has_itree);
    matches!(&line.op, Op::Start { change, .. } if change.blocking == Blocking::Forbidden)
        && failed(CallKind::Start)
        && has_itree
}

/// Subscribers get an end in a blockable start, whose caller sends them another.
fn ends_early(line: &Line) -> bool {
    matches!(&line.op, Op::Start { change, .. } if change.blocking == Blocking::Allowed)
        && line.seen.calls.iter().any(|call| call.kind == CallKind::End)
}

#[test]
fn it_differs_from_the_newest_exactly_where_the_defects_are() {
    let (mut same, mut different) = (0, 0);
    for trace in golden::traces().iter().filter(|trace| trace.header.kernel == Kernel::LINUX_7_2) {
        let first = replay(trace, Kernel::REPAIRED).mismatches.first().map(|mismatch| mismatch.line);
        assert_eq!(first, first_defect(trace), "{}", trace.file);
        match first {
            None => same += 1,
            Some(_) => different += 1,
        }
        let announced = [Trait::IntervalLeak, Trait::BlockableFailure];
        if first.is_some() {
            assert!(announced.iter().any(|which| trace.header.traits.contains(which)), "{}", trace.file);
        }
        if trace.header.traits.contains(&Trait::IntervalLeak) {
            assert!(first.is_some(), "{}: the leak is still there", trace.file);
        }
    }
    assert_eq!((same, different), (182, 10));
}

/// I8: who agreed is not left waiting.
#[test]
fn nobody_is_stuck_after_a_refusal() {
    for scenario in [
        "interval_ok_then_hlist_eagain",
        "interval_missed_then_hlist_eagain",
        "no_interval_left_then_hlist_eagain",
    ] {
        let trace = golden::trace(scenario, "7.2.13");
        for (kernel, leaks) in [(Kernel::LINUX_7_2, true), (Kernel::REPAIRED, false)] {
            let mut replay = mmu_notifier_model::Replay::new(trace, kernel);
            replay.by_ref().for_each(drop);
            let left = replay.machine().finish();
            let active = left
                .mms
                .iter()
                .any(|mm| matches!(mm, MmState::Live { subs: Some(subs), .. } if subs.active != 0));
            assert_eq!((active, !left.stuck.is_empty()), (leaks, leaks), "{scenario} as {kernel}");
        }
    }
}

/// P13: one end for each start, also for one that a broken subscriber failed.
#[test]
fn a_failed_blockable_start_is_ended_once() {
    let trace = golden::trace("blockable_failure_double_end", "7.2.13");
    let lowest =
        |kernel| replay(trace, kernel).balances.iter().filter(|b| b.is_paired).map(|b| b.open()).min();
    assert_eq!(lowest(Kernel::LINUX_7_2), Some(-1));
    assert_eq!(lowest(Kernel::REPAIRED), Some(0));
}
