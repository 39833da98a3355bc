//! The lock of the cache's books: held for short, without a memory call inside, and tried where nobody may wait.

// UNSAFETY: what it guards lies in a cell.
#![expect(unsafe_code)]

use std::ops::{Deref, DerefMut};

use crate::sync::{AtomicU64, Backoff, Ordering, UnsafeCell};

/// A lock that knows who holds it: a signal handler finds out that it has interrupted its own holder. No lock of the C
/// library's and none that allocates, as it is taken inside changes of memory.
pub(super) struct Lock<T> {
    /// [`Caller::thread`](mmu_notifier::Caller::thread), or 0.
    holder: AtomicU64,
    value: UnsafeCell<T>,
}

// SAFETY: a guard is made by one exchange of `holder` at a time, and hands out the only reference.
unsafe impl<T: Send> Sync for Lock<T> {}
// SAFETY: as of any cell.
unsafe impl<T: Send> Send for Lock<T> {}

impl<T> Lock<T> {
    pub(super) fn new(value: T) -> Lock<T> {
        Lock { holder: AtomicU64::new(0), value: UnsafeCell::new(value) }
    }

    /// Waits for whoever holds it.
    ///
    /// # Panics
    ///
    /// If the calling thread does: it is in a signal handler.
    pub(super) fn lock(&self, thread: u64) -> Guard<'_, T> {
        let mut backoff = Backoff::default();
        loop {
            if let Some(guard) = self.try_lock(thread) {
                return guard;
            }
            assert!(!self.is_held_by(thread), "a registration cache must not be asked in a signal handler");
            backoff.wait();
        }
    }

    pub(super) fn try_lock(&self, thread: u64) -> Option<Guard<'_, T>> {
        // Acquire pairs with the Release in the drop of a guard.
        self.holder.compare_exchange(0, thread, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(Guard { lock: self })
    }

    pub(super) fn is_held_by(&self, thread: u64) -> bool {
        // Relaxed: the calling thread wrote it, or another one did.
        self.holder.load(Ordering::Relaxed) == thread
    }
}

pub(super) struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard is the only one; see `Lock`.
        self.lock.value.with(|value| unsafe { &*value })
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard is the only one, and borrowed mutably.
        self.lock.value.with_mut(|value| unsafe { &mut *value })
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // Release pairs with the Acquire in `try_lock`. An exchange, as whoever lets go looks next at what others have left,
        // which takes a full fence.
        self.lock.holder.swap(0, Ordering::Release);
    }
}
