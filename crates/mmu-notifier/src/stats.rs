//! What happened so far, in numbers. Counted always: a holder counts in its own slot, so nobody waits for it.

use std::time::Duration;

use crate::list::Timed;
use crate::sync::Ordering;
use crate::{AddressSpace, Event, Subscription};

/// What happened in an address space since it was made, over all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Changes that were announced, by [`Event`]: refused ones included.
    pub changes: [u64; Event::ALL.len()],
    /// Changes that somebody refused.
    pub refused: u64,
    /// Changes that were left open and [found](AddressSpace::end_abandoned).
    pub abandoned: u64,
}

impl Stats {
    /// Changes because of `event`.
    pub fn of(&self, event: Event) -> u64 {
        self.changes[event as usize]
    }
}

/// The longest callbacks of one subscriber that were timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Longest {
    /// Of its starts.
    pub start: Duration,
    /// Of its ends.
    pub end: Duration,
}

impl AddressSpace {
    /// What happened so far. Adds up what the threads have counted; numbers of threads that are at it may be one behind.
    ///
    /// ```
    /// use mmu_notifier::{AddressSpace, Event, Range};
    ///
    /// let space = AddressSpace::new();
    /// space.invalidate(Range::new(0x1000, 0x2000)?, Event::Clear, || ());
    /// assert_eq!(space.stats().of(Event::Clear), 1);
    /// assert_eq!(space.stats().refused, 0);
    /// # Ok::<(), mmu_notifier::RangeError>(())
    /// ```
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for slot in self.shared.open.slots() {
            // Relaxed, in this function: numbers.
            for (sum, count) in stats.changes.iter_mut().zip(&slot.counts.changes) {
                *sum += count.load(Ordering::Relaxed);
            }
            stats.refused += slot.counts.refused.load(Ordering::Relaxed);
            stats.abandoned += slot.counts.abandoned.load(Ordering::Relaxed);
        }
        stats
    }
}

impl Subscription {
    /// How long the longest start and end took so far, of those changes that were timed: every 1024th of a thread, unless
    /// [`Options::time_every`](crate::Options::time_every) says otherwise. Reading the clock for each would take longer
    /// than everything else.
    pub fn longest(&self) -> Longest {
        Longest { start: self.entry().longest(Timed::Start), end: self.entry().longest(Timed::End) }
    }
}
