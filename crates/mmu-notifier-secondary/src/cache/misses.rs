//! Memory that is being registered right now.
//!
//! Between the look at a page table and the entry lies the registration itself, which takes long and holds no lock. A
//! change that overlaps it meanwhile says so here, and then what was registered is undone:
//!
//! ```text
//! miss                                     change
//! ----                                     ------
//! claimed |= this            (RMW)         on record in the address space (RMW)
//! full fence                               full fence
//! wait for open changes of the range       claimed? mark those that overlap
//! register                                 full fence, if there are any
//! put into the index as New                kill what overlaps in the index
//! full fence
//! marked? undo : Live
//! ```
//!
//! Either the miss waits for the change, or the change sees the claim. And then either the miss sees the mark, or the
//! change sees the entry.

use std::sync::PoisonError;

use mmu_notifier::Range;

use super::Access;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, fence, fence_after_rmw};

/// How much can be registered at the same time; who comes then waits.
pub(super) const MISSES: usize = if cfg!(mmu_loom) { 2 } else { 64 };

/// All of them claimed.
const ALL: u64 = u64::MAX >> (64 - MISSES);

#[derive(Default)]
struct Miss {
    start: AtomicUsize,
    end: AtomicUsize,
    access: AtomicU64,
    stale: AtomicBool,
    /// Raised when it is over.
    turn: AtomicU64,
}

impl Miss {
    // Relaxed, here: published by the claim.
    fn range(&self) -> Option<Range> {
        Range::new(self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed)).ok()
    }
}

pub(super) struct Misses {
    /// A bit for each that is claimed. Written under the lock of the books.
    claimed: AtomicU64,
    waiting: AtomicUsize,
    lock: Mutex<()>,
    over: Condvar,
    misses: [Miss; MISSES],
}

impl Default for Misses {
    fn default() -> Misses {
        Misses {
            claimed: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            lock: Mutex::new(()),
            over: Condvar::new(),
            misses: std::array::from_fn(|_| Miss::default()),
        }
    }
}

/// A miss of somebody else.
pub(super) struct Other {
    at: usize,
    turn: u64,
}

impl Misses {
    fn claimed(&self) -> impl Iterator<Item = (usize, &Miss)> {
        // Acquire pairs with the Release in the drop of a claim: what was committed is in the index; and with the claim.
        let mut bits = self.claimed.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            let at = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
            bits &= bits - 1;
            Some((at, &self.misses[at]))
        })
    }

    /// Somebody who is registering all of `range` for at least `access`; or, if there is no room for one more, anybody. Called under
    /// the lock of the books.
    pub(super) fn other(&self, range: Range, access: Access) -> Option<Other> {
        let includes = |miss: &Miss| {
            miss.range().is_some_and(|it| it.contains(&range))
                && Access::from_bits(miss.access.load(Ordering::Relaxed)).includes(access)
        };
        let is_full = self.claimed.load(Ordering::Relaxed) == ALL;
        self.claimed().find_map(|(at, miss)| {
            // The turn before another look at the claim: if it is claimed still, this is its turn. Acquire pairs with the drop
            // of a claim.
            let turn = miss.turn.load(Ordering::Acquire);
            let is_claimed = self.claimed.load(Ordering::Acquire) >> at & 1 != 0;
            (is_claimed && (is_full || includes(miss))).then_some(Other { at, turn })
        })
    }

    /// Waits until it is over.
    pub(super) fn wait_for(&self, other: &Other) {
        let miss = &self.misses[other.at];
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in the drop of a claim: either who is waited for sees that somebody waits, or that one sees
        // that it is over.
        fence_after_rmw();
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Acquire pairs with the Release there: what was committed is in the index.
        while miss.turn.load(Ordering::Acquire) == other.turn {
            guard = self.over.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Writes down what is going to be registered. Called under the lock of the books, when there is room.
    pub(super) fn claim(&self, range: Range, access: Access) -> Claim<'_> {
        let at = (!self.claimed.load(Ordering::Relaxed)).trailing_zeros() as usize;
        let miss = &self.misses[at];
        miss.start.store(range.start(), Ordering::Relaxed);
        miss.end.store(range.end(), Ordering::Relaxed);
        miss.access.store(access as u64, Ordering::Relaxed);
        miss.stale.store(false, Ordering::Relaxed);
        // SeqCst: the first line of the race; a full fence follows in `wait_for_changes`. Release publishes the range.
        self.claimed.fetch_or(1 << at, Ordering::SeqCst);
        Claim { misses: self, at }
    }

    /// A change of `range` begins. Whatever is being registered there is stale.
    #[inline]
    pub(super) fn mark(&self, range: Range) {
        // Relaxed: the full fence of the change on record lies before. Acquire, inside, where it matters.
        if self.claimed.load(Ordering::Acquire) == 0 {
            return;
        }
        for (_, miss) in self.claimed() {
            if miss.range().is_some_and(|it| it.overlaps(&range)) {
                // Relaxed: the fence follows.
                miss.stale.store(true, Ordering::Relaxed);
            }
        }
        // Pairs with the fence in `is_stale`.
        fence(Ordering::SeqCst);
    }
}

/// What this thread is registering.
pub(super) struct Claim<'a> {
    misses: &'a Misses,
    at: usize,
}

impl Claim<'_> {
    /// Whether a change has come. To be asked behind putting the entry into the index.
    pub(super) fn is_stale(&self) -> bool {
        // Pairs with the fence in `mark`.
        fence(Ordering::SeqCst);
        self.misses.misses[self.at].stale.load(Ordering::Relaxed)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let misses = self.misses;
        let miss = &misses.misses[self.at];
        // Release, both, pairs with the Acquires in `claimed`, `other` and `wait_for`.
        misses.claimed.fetch_and(!(1 << self.at), Ordering::Release);
        miss.turn.fetch_add(1, Ordering::Release);
        // Pairs with the fence in `wait_for`.
        fence_after_rmw();
        if misses.waiting.load(Ordering::Relaxed) > 0 {
            drop(misses.lock.lock().unwrap_or_else(PoisonError::into_inner));
            misses.over.notify_all();
        }
    }
}
