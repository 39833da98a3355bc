//! The same things in the core's types and in the model's.

use mmu_notifier::Range;
use mmu_notifier_model::{Args, Blocking, Change, Event};

/// What a callback of the core was told.
pub(crate) fn change(change: &mmu_notifier::Change) -> Change {
    Change {
        start: change.range().start() as u64,
        end: change.range().end() as u64,
        event: Event::ALL[change.event() as usize],
        blocking: match change.blocking() {
            mmu_notifier::Blocking::Allowed => Blocking::Allowed,
            mmu_notifier::Blocking::Forbidden => Blocking::Forbidden,
        },
        owner: change.owner() as u64,
    }
}

/// What the core is to be told; `None` if it is no range here.
pub(crate) fn to_core(change: &Change) -> Option<mmu_notifier::Change> {
    let blocking = match change.blocking {
        Blocking::Allowed => mmu_notifier::Blocking::Allowed,
        Blocking::Forbidden => mmu_notifier::Blocking::Forbidden,
    };
    let event = mmu_notifier::Event::ALL[Event::ALL.iter().position(|event| *event == change.event)?];
    let range = range(change.start, change.end)?;
    Some(mmu_notifier::Change::new(range, event, blocking).with_owner(change.owner as usize))
}

pub(crate) fn range(start: u64, end: u64) -> Option<Range> {
    Range::new(start as usize, end as usize).ok()
}

pub(crate) fn bounds(range: Range) -> Args {
    Args::Bounds(range.start() as u64, range.end() as u64)
}
