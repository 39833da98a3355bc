//! What is compared: callbacks in the words of the contract, from the model's records and from the core's calls.

use mmu_notifier_model::{Args, Call, CallKind, Change, Ret, Who};

/// One callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Start { s: u64, change: Change, refused: bool },
    End { s: u64, change: Change },
    Interval { i: u64, change: Change, answer: Said, unfinished: bool },
    Finish { i: u64 },
    Young { s: u64, which: CallKind, args: Args, young: bool },
    Flush { s: u64, start: u64, end: u64 },
    Release { s: u64 },
}

/// What an interval made of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// It is its own.
    Ignored,
    Agreed,
    Refused,
}

impl Seen {
    /// What the model has recorded; `None` for what is no contract: when exactly something is freed. (What `get`
    /// allocates is part of its result.)
    pub(crate) fn of(call: &Call) -> Option<Seen> {
        let s = || match call.who {
            Who::Subscriber(Some(s)) => s,
            other => panic!("{other:?} is called"),
        };
        let i = || match call.who {
            Who::Interval(i) => i,
            other => panic!("{other:?} is no interval"),
        };
        let change = || match call.args {
            Some(Args::Change(change)) => change,
            other => panic!("{other:?} is no change"),
        };
        let code = match call.ret {
            Some(Ret::Code(code)) => code,
            _ => 0,
        };
        Some(match call.kind {
            CallKind::Start => Seen::Start { s: s(), change: change(), refused: code != 0 },
            CallKind::End => Seen::End { s: s(), change: change() },
            CallKind::Invalidate | CallKind::InvalidateStart => Seen::Interval {
                i: i(),
                change: change(),
                // Who agrees without a look stores nothing either: see `Refinement::AlwaysRaised`.
                answer: match call.ret {
                    Some(Ret::Truth(true)) => Said::Agreed,
                    _ => Said::Refused,
                },
                unfinished: call.finish == Some(true),
            },
            CallKind::InvalidateFinish => Seen::Finish { i: i() },
            CallKind::ClearFlushYoung | CallKind::ClearYoung | CallKind::TestYoung => Seen::Young {
                s: s(),
                which: call.kind,
                args: call.args.expect("aging is asked about something"),
                young: code != 0,
            },
            CallKind::Tlb => match call.args {
                Some(Args::Bounds(start, end)) => Seen::Flush { s: s(), start, end },
                other => panic!("a flush of {other:?}"),
            },
            CallKind::Release => Seen::Release { s: s() },
            CallKind::Alloc | CallKind::Free | CallKind::MmFree => return None,
            CallKind::ChangePte => panic!("the newest kernel has no change_pte"),
        })
    }

    /// Intervals come before the list, second passes after the first, ends after starts.
    fn rank(&self) -> u32 {
        match self {
            Seen::Interval { .. } => 0,
            Seen::Finish { .. } => 1,
            Seen::Start { .. } => 2,
            Seen::End { .. } => 3,
            Seen::Young { .. } | Seen::Flush { .. } | Seen::Release { .. } => 4,
        }
    }
}

/// Whether the callbacks of one operation came in the order that is contract. (Who of several comes first is not.)
pub(crate) fn is_in_order(seen: &[Seen]) -> bool {
    seen.is_sorted_by_key(Seen::rank)
}

/// What is in one and not in the other, each as often as it is.
pub(crate) fn difference(expected: &[Seen], got: &[Seen]) -> Option<String> {
    let mut missing = expected.to_vec();
    let mut added = Vec::new();
    for seen in got {
        match missing.iter().position(|other| other == seen) {
            Some(at) => drop(missing.swap_remove(at)),
            None => added.push(*seen),
        }
    }
    let same = missing.is_empty() && added.is_empty();
    (!same).then(|| format!("callbacks that did not come: {missing:?}; that should not have come: {added:?}"))
}
