//! The ranges that may be reaped: a table of slots, each with one word that says whose turn it is.
//!
//! ```text
//!         add              ready            claim
//!  free --------> claimed --------> ready <-------> reaping
//!    ^                                |      settle
//!    +-------------- remove ----------+
//! ```
//!
//! The reaper takes no lock and waits for nobody: who removes a range while it is being reaped waits. So once a range has
//! been removed, its memory is the owner's alone.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use mmu_notifier::Range;

use super::locked::Locked;
use super::{ATTEMPTS, StartError};

/// One range, or room for one.
#[derive(Debug)]
pub(super) struct Slot {
    /// A phase and flags.
    state: AtomicU32,
    /// How often in a row it was not freed.
    refusals: AtomicU32,
    /// Good if ready or reaping.
    start: AtomicUsize,
    end: AtomicUsize,
    /// Bytes of it that were discarded and that somebody held then.
    held: AtomicU64,
}

const PHASE: u32 = 3;
const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const READY: u32 = 2;
const REAPING: u32 = 3;

/// The last walk did not free it: it is to be tried again.
const LEFT: u32 = 4;
/// No walk has for so long that it is left alone.
const MARKED: u32 = 8;
/// While it was being reaped, somebody said that it is worth trying again.
const ASKED: u32 = 16;

/// Where a range is in a walk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    start: usize,
    number: usize,
}

/// What came of trying to reap a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its memory has gone.
    Freed,
    /// Somebody refused, or still holds it.
    Left,
}

/// What has become of a range that was not freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing more is to be done.
    Done,
    /// It is tried again.
    Again,
    /// It is marked as of now.
    Marked,
}

#[derive(Debug)]
pub(super) struct Table {
    slots: Locked<Slot>,
}

impl Table {
    pub(super) fn new(ranges: usize) -> Result<Table, StartError> {
        Ok(Table { slots: Locked::new(ranges)? })
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Puts a range in; `None` if there is no room.
    pub(super) fn add(&self, range: Range) -> Option<usize> {
        let number = self.slots.iter().position(|slot| {
            let claim = slot.state.compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed);
            claim.is_ok()
        })?;
        let slot = &self.slots[number];
        slot.start.store(range.start(), Ordering::Relaxed);
        slot.end.store(range.end(), Ordering::Relaxed);
        slot.refusals.store(0, Ordering::Relaxed);
        slot.held.store(0, Ordering::Relaxed);
        // Release pairs with the Acquire in `claim` and in `ranges`: the range is seen.
        slot.state.store(READY, Ordering::Release);
        Some(number)
    }

    /// Takes a range out. Waits while it is being reaped, unless `is_gone` says that nobody is at it any more.
    pub(super) fn remove(&self, number: usize, is_gone: impl Fn() -> bool) {
        let slot = &self.slots[number];
        for tries in 0.. {
            let state = slot.state.load(Ordering::Relaxed);
            // Acquire pairs with the Release in `settle`: the walk is done with the memory. Release pairs with the
            // Acquire in `add`.
            let free = || slot.state.compare_exchange(state, FREE, Ordering::AcqRel, Ordering::Relaxed);
            if (state & PHASE == READY || is_gone()) && free().is_ok() {
                return;
            }
            match tries {
                0..100 => core::hint::spin_loop(),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    }

    /// It is worth trying again: a mark goes, and with it the attempts that led to it.
    pub(super) fn retry(&self, number: usize) {
        let slot = &self.slots[number];
        let ask = |state| Some(state & !MARKED | if state & PHASE == REAPING { ASKED } else { 0 });
        // Release pairs with the Acquire in `claim`: what made it worth trying is seen.
        let _ = slot.state.fetch_update(Ordering::Release, Ordering::Relaxed, ask);
    }

    pub(super) fn is_marked(&self, number: usize) -> bool {
        self.slots[number].state.load(Ordering::Relaxed) & MARKED != 0
    }

    /// How many are marked.
    pub(super) fn marked(&self) -> usize {
        (0..self.len()).filter(|&number| self.is_marked(number)).count()
    }

    /// Bytes that were discarded and that somebody held then.
    pub(super) fn held(&self) -> u64 {
        self.slots.iter().map(|slot| slot.held.load(Ordering::Relaxed)).sum()
    }

    /// Every range is worth trying again.
    pub(super) fn retry_all(&self) {
        (0..self.len()).for_each(|number| self.retry(number));
    }

    /// The ranges there are, marked ones included.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range> {
        self.slots.iter().filter_map(|slot| {
            // Acquire pairs with the Release in `add`.
            let is_there = slot.state.load(Ordering::Acquire) & PHASE >= READY;
            is_there.then(|| slot.range())?
        })
    }

    /// Writes those that are to be reaped into `places`, the highest address first, as the kernel walks mappings.
    pub(super) fn in_order<'a>(&self, places: &'a mut [Place]) -> &'a [Place] {
        let mut count = 0;
        for (number, slot) in self.slots.iter().enumerate() {
            let state = slot.state.load(Ordering::Relaxed);
            if state & PHASE == READY && state & MARKED == 0 {
                // Relaxed: whether it still is that range is seen when it is claimed.
                places[count] = Place { start: slot.start.load(Ordering::Relaxed), number };
                count += 1;
            }
        }
        let places = &mut places[..count];
        // In place: allocates nothing.
        places.sort_unstable_by_key(|place| core::cmp::Reverse(place.start));
        places
    }

    /// Keeps a range from being removed, until it is settled.
    pub(super) fn claim(&self, place: Place) -> Option<Claim<'_>> {
        let slot = &self.slots[place.number];
        let state = slot.state.load(Ordering::Relaxed);
        if state & PHASE != READY || state & MARKED != 0 {
            return None;
        }
        // Acquire pairs with the Release in `add` and in `retry`. If it fails, somebody has just removed it, or said that it is worth
        // trying: the next walk will see.
        slot.state.compare_exchange(state, state | REAPING, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(Claim { slot, was_left: state & LEFT != 0 })
    }
}

impl Slot {
    fn range(&self) -> Option<Range> {
        // Relaxed: the state was loaded before, with Acquire.
        Range::new(self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed)).ok()
    }
}

/// A range that is being reaped. If that panics, it was not freed.
pub(super) struct Claim<'a> {
    slot: &'a Slot,
    pub(super) was_left: bool,
}

impl Claim<'_> {
    pub(super) fn range(&self) -> Range {
        self.slot.range().expect("a slot that is claimed has a range")
    }

    /// What somebody holds of it, bytes, has become more or less. How much that is.
    pub(super) fn hold(&self, before: u64, after: u64) -> u64 {
        // Relaxed: only who has claimed it writes this.
        let held = (self.slot.held.load(Ordering::Relaxed) + after).saturating_sub(before).min(after);
        self.slot.held.store(held, Ordering::Relaxed);
        held
    }

    /// The reaper is done with it.
    pub(super) fn settle(self, outcome: Outcome) -> Then {
        core::mem::ManuallyDrop::new(self).done(outcome)
    }

    fn done(&self, outcome: Outcome) -> Then {
        // Relaxed: who claims a slot is the only one who writes this, and passes it on with the state.
        let refusals = match outcome {
            Outcome::Freed => 0,
            Outcome::Left => self.slot.refusals.load(Ordering::Relaxed) + 1,
        };
        let (mut then, mut flags) = match refusals {
            0 => (Then::Done, 0),
            ATTEMPTS.. => (Then::Marked, MARKED),
            _ => (Then::Again, LEFT),
        };
        self.slot.refusals.store(refusals % ATTEMPTS, Ordering::Relaxed);
        // Release pairs with the Acquire in `remove` and in `claim`.
        let settled = |state| {
            if state & ASKED != 0 && flags == MARKED {
                (then, flags) = (Then::Again, LEFT);
            }
            Some(READY | flags)
        };
        let _ = self.slot.state.fetch_update(Ordering::Release, Ordering::Relaxed, settled);
        then
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.done(Outcome::Left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(page: usize) -> Range {
        Range::with_len(page * 4096, 4096).unwrap()
    }

    fn places(table: &Table) -> Vec<Place> {
        let mut places = vec![Place { start: 0, number: 0 }; table.len()];
        table.in_order(&mut places).to_vec()
    }

    #[test]
    fn the_highest_comes_first_whatever_order_they_came_in() {
        let table = Table::new(4).unwrap();
        for page in [5, 9, 2] {
            table.add(range(page)).unwrap();
        }
        let pages: Vec<_> = places(&table).iter().map(|place| place.start / 4096).collect();
        assert_eq!(pages, [9, 5, 2]);
        assert!(table.add(range(1)).is_some());
        assert!(table.add(range(3)).is_none(), "there is room for four");
    }

    #[test]
    fn ten_refusals_in_a_row_mark_a_range() {
        let table = Table::new(1).unwrap();
        let number = table.add(range(1)).unwrap();
        let once = |outcome| table.claim(places(&table)[0]).unwrap().settle(outcome);
        for _ in 1..ATTEMPTS {
            assert_eq!(once(Outcome::Left), Then::Again);
        }
        assert_eq!(once(Outcome::Freed), Then::Done, "the tenth attempt may still succeed");
        for _ in 1..ATTEMPTS {
            assert_eq!(once(Outcome::Left), Then::Again);
        }
        assert_eq!(once(Outcome::Left), Then::Marked);
        assert!(table.is_marked(number) && places(&table).is_empty());
        table.retry(number);
        assert!(!table.is_marked(number));
        assert_eq!(once(Outcome::Left), Then::Again, "and has all its attempts again");
    }

    #[test]
    fn who_asks_while_the_last_attempt_is_made_is_heard() {
        let table = Table::new(1).unwrap();
        let number = table.add(range(1)).unwrap();
        for _ in 1..ATTEMPTS {
            table.claim(places(&table)[0]).unwrap().settle(Outcome::Left);
        }
        let last = table.claim(places(&table)[0]).unwrap();
        table.retry(number);
        assert_eq!(last.settle(Outcome::Left), Then::Again);
        assert!(!table.is_marked(number) && places(&table).len() == 1);
    }

    #[test]
    fn who_removes_a_range_waits_for_the_reaper() {
        let table = Table::new(1).unwrap();
        let number = table.add(range(1)).unwrap();
        let claim = table.claim(places(&table)[0]).unwrap();
        assert!(table.claim(Place { start: 4096, number }).is_none(), "claimed once");
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| table.remove(number, || false));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!removal.is_finished());
            claim.settle(Outcome::Freed);
        });
        assert_eq!(table.ranges().count(), 0);
        assert!(table.add(range(2)).is_some(), "and the room can be used again");
    }
}
