//! Who uses what: pins, each on a cache line of the thread that made it.
//!
//! The one hard race:
//!
//! ```text
//! hit                                      death of the entry (a change, an eviction)
//! ---                                      -----------------------------------------
//! pin := entry          (RMW)              entry := Dead     (RMW)
//! full fence                               full fence
//! entry still Live?                        read all pins
//!
//!    [ the hit sees the death, or who kills the entry sees the pin: never neither ]
//! ```
//!
//! Whoever kills an entry marks the pins that he sees, after he has counted each as a user of the entry itself. So who
//! unpins finds out by the same instruction whether somebody waits for him, and the last one of all buries the entry.

// UNSAFETY: promises that a home may consist of zeroes.
#![expect(unsafe_code)]

use std::cell::Cell;

use super::table::{Id, Table};
use crate::memory::{Zeroed, Zeroes};
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence_after_rmw};

/// How many threads have a home of their own; more share.
const HOMES: usize = if cfg!(mmu_loom) { 2 } else { 64 };

/// How many pins a home has room for; more are counted in the entry.
const PINS: usize = if cfg!(mmu_loom) { 1 } else { 7 };

/// A place for a pin.
pub(super) struct Pin {
    /// The number of the entry plus one, and whether it has been marked; 0 if nothing is pinned here.
    word: AtomicU64,
    /// Hits that were pinned here. Written by who has the pin.
    hits: AtomicU64,
}

/// The pins of a thread.
#[repr(C, align(128))]
pub(super) struct Home {
    /// Whether it is one of this process: a forked child finds zeroes.
    open: AtomicU32,
    /// The entry of the last hit.
    pub(super) last: AtomicU32,
    pins: [Pin; PINS],
}

// SAFETY: atomics that may be zero.
unsafe impl Zeroed for Home {
    fn zeroed() -> Home {
        let pin = || Pin { word: AtomicU64::new(0), hits: AtomicU64::new(0) };
        Home { open: AtomicU32::new(0), last: AtomicU32::new(0), pins: std::array::from_fn(|_| pin()) }
    }
}

impl Home {
    #[inline(always)]
    pub(super) fn is_open(&self) -> bool {
        // Relaxed: in a forked child zero, by the kernel, before the child runs.
        self.open.load(Ordering::Relaxed) != 0
    }

    /// Pins the entry, if there is room. Behind it there is a full fence.
    #[inline(always)]
    pub(super) fn pin(&self, id: Id) -> Option<&Pin> {
        let first = &self.pins[0];
        if first.take(id) { Some(first) } else { self.pin_further(id) }
    }

    #[inline(never)]
    fn pin_further(&self, id: Id) -> Option<&Pin> {
        self.pins[1..].iter().find(|pin| pin.take(id))
    }
}

impl Pin {
    const MARKED: u64 = 1 << 32;

    #[inline(always)]
    fn take(&self, id: Id) -> bool {
        // SeqCst: the first line of the race above; a full fence follows. Acquire pairs with the Release of who unpinned
        // here last: his count.
        self.word.compare_exchange(0, u64::from(id) + 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// One more hit. By the holder.
    #[inline(always)]
    pub(super) fn count(&self) {
        // Relaxed: only the holder writes it, and holders are ordered by the pin.
        self.hits.store(self.hits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Lets go. The entry, if the pin has been marked: then the caller is one of its users, and has to go as such, too.
    /// (In a forked child there was no pin any more: the entry is the parent's.)
    #[inline(always)]
    #[must_use]
    pub(super) fn unpin(&self) -> Option<Id> {
        // AcqRel: what was done with the entry is before its burial, and the next holder counts on.
        let word = self.word.swap(0, Ordering::AcqRel);
        (word & Pin::MARKED != 0).then(|| (word & !Pin::MARKED) as u32 - 1)
    }
}

/// All pins of a cache.
pub(super) struct Homes {
    homes: Zeroes<Home>,
    /// Homes that were ever used: the pins of those behind are all free.
    used: AtomicUsize,
}

impl Homes {
    pub(super) fn new() -> Homes {
        let homes = Homes { homes: Zeroes::wiped_on_fork(HOMES + 1), used: AtomicUsize::new(0) };
        // The last one is nobody's: it says whether this is still the process that made it.
        homes.homes[HOMES].open.store(1, Ordering::Relaxed);
        homes
    }

    /// The calling thread's.
    #[inline(always)]
    pub(super) fn mine(&self) -> &Home {
        &self.homes[number() % HOMES]
    }

    /// Whether this process is a child of the one that made it.
    pub(super) fn is_of_the_parent(&self) -> bool {
        !self.homes[HOMES].is_open()
    }

    /// Makes the calling thread's home one that is looked at; and one for which no lock is needed, if it `is_free`.
    #[cold]
    pub(super) fn open(&self, is_free: bool) {
        let number = number() % HOMES;
        // Relaxed: before the first pin and the full fence behind it, see `used`.
        self.used.fetch_max(number + 1, Ordering::Relaxed);
        self.homes[number].open.store(u32::from(is_free), Ordering::Relaxed);
    }

    /// Stands for a user who has no pin, and counts in the entry.
    #[inline(always)]
    pub(super) fn no_pin(&self) -> &Pin {
        &self.homes[HOMES].pins[0]
    }

    fn used(&self) -> &[Home] {
        // Relaxed: behind a full fence. Who opens a home that is not seen here pins later, and sees the death.
        &self.homes[..self.used.load(Ordering::Relaxed)]
    }

    /// Marks every pin of a dead entry that still has users, after counting it as one more. For who has just killed
    /// some of them and has not let go yet. `ripe` gets those whose last user went meanwhile.
    pub(super) fn mark<H>(&self, table: &Table<H>, mut ripe: impl FnMut(Id)) {
        // Pairs with the pin: see the module documentation. The death was an exchange.
        fence_after_rmw();
        for pin in self.used().iter().flat_map(|home| &home.pins) {
            // Acquire pairs with `unpin`, as below.
            let word = pin.word.load(Ordering::Acquire);
            if word == 0 || word & Pin::MARKED != 0 {
                continue;
            }
            let id = word as u32 - 1;
            let entry = table.entry(id);
            let state = entry.state();
            // If it is being buried, who killed it was here before: this pin is one that sees the death.
            if state.is_live() || !entry.add_user(state) {
                continue;
            }
            // Release: who unpins finds himself counted. Acquire is not needed: nothing is read.
            let marked =
                pin.word.compare_exchange(word, word | Pin::MARKED, Ordering::AcqRel, Ordering::Relaxed);
            if marked.is_err() && entry.remove_user() {
                ripe(id);
            }
        }
    }

    /// Whether anybody pins the entry right now. A hint.
    pub(super) fn is_pinned(&self, id: Id) -> bool {
        let pins = self.used().iter().flat_map(|home| &home.pins);
        pins.map(|pin| pin.word.load(Ordering::Relaxed) & !Pin::MARKED).any(|word| word == u64::from(id) + 1)
    }

    /// Hits that were pinned here.
    pub(super) fn hits(&self) -> u64 {
        let pins = self.homes.iter().flat_map(|home| &home.pins);
        pins.map(|pin| pin.hits.load(Ordering::Relaxed)).sum()
    }
}

/// The calling thread's number, in the order of first calls.
#[cfg(not(mmu_loom))]
#[inline(always)]
fn number() -> usize {
    let number = NUMBER.get();
    if number == 0 { first() } else { number as usize }
}

#[cfg(not(mmu_loom))]
#[cold]
fn first() -> usize {
    use std::sync::atomic::{AtomicU32, Ordering};
    static THREADS: AtomicU32 = AtomicU32::new(1);
    // Relaxed: should be unique; if it wraps around, two threads share a home.
    let number = THREADS.fetch_add(1, Ordering::Relaxed).max(1);
    NUMBER.set(number);
    number as usize
}

#[cfg(not(mmu_loom))]
std::thread_local! {
    static NUMBER: Cell<u32> = const { Cell::new(0) };
}

/// loom's threads share the thread-locals of the standard library; a test says which one it is.
#[cfg(mmu_loom)]
fn number() -> usize {
    NUMBER.with(Cell::get)
}

#[cfg(mmu_loom)]
loom::thread_local! {
    pub(super) static NUMBER: Cell<usize> = Cell::new(0);
}
