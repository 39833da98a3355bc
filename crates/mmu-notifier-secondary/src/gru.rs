//! SGI's UV GRU: a device whose TLBs are loaded by faults, and that never refuses a change.
//!
//! The simplest subscriber that has an end. It counts the changes that are open; a fault waits until there is none; a start
//! flushes what the TLBs have of the range.
//!
//! ```
//! use mmu_notifier::{AddressSpace, Event, Range};
//! use mmu_notifier_secondary::device::{Access, Page};
//! use mmu_notifier_secondary::gru::Gru;
//!
//! let space = AddressSpace::new();
//! let own = |address: usize, _: Access| Some(Page::writable(address)); // look at the page table
//! let gru = Gru::new(&space, own);
//! let mut context = gru.context()?;
//!
//! assert_eq!(context.access(0x1008, Access::Read, |pointer| pointer)?, 0x1008);
//! assert_eq!(context.access(0x1010, Access::Read, |pointer| pointer)?, 0x1010);
//! assert_eq!((gru.stats().faults, gru.stats().hits), (1, 1));
//!
//! space.invalidate(Range::new(0x1000, 0x2000)?, Event::Clear, || { /* madvise */ });
//! assert_eq!(gru.stats().flushed, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Why nothing stale is ever loaded
//!
//! There is no sequence number. A fault is *resident*: it marks its entry before it looks at the page table, where a start
//! finds it.
//!
//! ```text
//! fault                                    start
//! -----                                    -----
//! entry := loading                         active += 1
//! full fence                               full fence
//! active == 0? or else give up, wait       entry: valid -> empty, loading -> killed
//! look at the page table                   wait for accesses under way
//! entry: loading -> valid; or killed:      change
//!     begin anew                           active -= 1, wake all
//! ```
//!
//! If the fault finds no change active, then one that comes finds the entry. A change that is over before is seen in the page
//! table.
//!
//! A start never waits for a lock, but it waits for accesses that have begun, as a processor does for the others' when it
//! shoots down their TLBs.

mod context;
#[cfg(all(test, mmu_loom))]
mod loom;
mod tlb;

use std::fmt;
use std::sync::Arc;

use mmu_notifier::{AddressSpace, Change, Range, Subscriber, Subscription};

pub use context::{Context, Fault};
use tlb::{Flushed, Tlb};

use crate::device::{InFlight, PageTable, WaitQueue};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// The device: see the [module documentation](self).
#[doc(alias = "gru_mm_struct")]
pub struct Gru {
    shared: Arc<Shared>,
    _told: Subscription,
}

struct Shared {
    space: AddressSpace,
    table: Box<dyn PageTable>,
    /// Changes that are open. `ms_range_active` in the kernel.
    active: AtomicU32,
    /// Faults that wait until there is none.
    idle: WaitQueue,
    /// No start comes any more: nothing may be loaded.
    released: AtomicBool,
    tlbs: Box<[Tlb]>,
    accesses: InFlight,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    starts: AtomicU64,
    hits: AtomicU64,
    faults: AtomicU64,
    waits: AtomicU64,
    retries: AtomicU64,
    flushed: AtomicU64,
    killed: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Gru {
    /// How many [contexts](Gru::context) there are at a time.
    pub const CONTEXTS: usize = if cfg!(mmu_loom) { 2 } else { 16 };

    /// A device that accesses the memory of `space` through `table`. Subscribes.
    ///
    /// # Panics
    ///
    /// As [`AddressSpace::subscribe`].
    #[doc(alias = "gru_register_mmu_notifier")]
    pub fn new(space: &AddressSpace, table: impl PageTable + 'static) -> Gru {
        let shared = Arc::new(Shared {
            space: space.clone(),
            table: Box::new(table),
            active: AtomicU32::new(0),
            idle: WaitQueue::default(),
            released: AtomicBool::new(false),
            tlbs: (0..Gru::CONTEXTS).map(|_| Tlb::new()).collect(),
            accesses: InFlight::new(Gru::CONTEXTS),
            counters: Counters::default(),
        });
        let told = space.subscribe(Told(shared.clone()));
        Gru { shared, _told: told }
    }

    /// A context of the device, with a TLB of its own. Never waits.
    ///
    /// # Errors
    ///
    /// [`NoContext`] if all [`CONTEXTS`](Gru::CONTEXTS) are in use.
    pub fn context(&self) -> Result<Context<'_>, NoContext> {
        self.shared.accesses.take().map(|seat| Context::new(&self.shared, seat)).ok_or(NoContext)
    }

    /// What it has done.
    pub fn stats(&self) -> Stats {
        let Shared { counters, active, idle, .. } = &*self.shared;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            active: active.load(Ordering::Relaxed),
            waiting: idle.waiting(),
            starts: get(&counters.starts),
            hits: get(&counters.hits),
            faults: get(&counters.faults),
            waits: get(&counters.waits),
            retries: get(&counters.retries),
            flushed: get(&counters.flushed),
            killed: get(&counters.killed),
        }
    }
}

impl fmt::Debug for Gru {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gru").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// All contexts of the device are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {} contexts of the device are in use", Gru::CONTEXTS)]
pub struct NoContext;

/// What a [`Gru`] has done since it was made, and what it is doing. The numbers are taken one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Changes that are open.
    pub active: u32,
    /// Faults that wait until none is.
    pub waiting: u32,
    /// Changes that have begun.
    pub starts: u64,
    /// Accesses that found their page in the TLB at once.
    pub hits: u64,
    /// Accesses that did not.
    pub faults: u64,
    /// How often a fault found changes open and waited.
    pub waits: u64,
    /// How often a fault began anew because a change came.
    pub retries: u64,
    /// Entries that starts have flushed.
    pub flushed: u64,
    /// Entries that starts have found while they were being loaded.
    pub killed: u64,
}

impl Shared {
    /// Takes out what the TLBs have of the range, and waits until nobody uses it any more. Takes no lock, allocates nothing.
    fn flush(&self, range: Range) {
        for tlb in &self.tlbs {
            let Flushed { valid, loading } = tlb.flush(range);
            self.counters.flushed.fetch_add(valid, Ordering::Relaxed);
            self.counters.killed.fetch_add(loading, Ordering::Relaxed);
        }
        // Also if nothing was found: it may be another start that has taken it out, and is waiting.
        self.accesses.wait(self.space.caller().thread(), |page| range.contains(&tlb::page_at(page)));
    }
}

/// What the address space tells.
struct Told(Arc<Shared>);

impl Subscriber for Told {
    fn start(&self, change: &Change) {
        let shared = &*self.0;
        shared.active.fetch_add(1, Ordering::Relaxed);
        count(&shared.counters.starts);
        // Pairs with the fence in `Context::load`: see the module documentation.
        fence(Ordering::SeqCst);
        shared.flush(change.range().to_pages());
    }

    fn end(&self, _: &Change) {
        // Release pairs with the Acquire of a fault that finds no change active: it sees the page table as it is now.
        self.0.active.fetch_sub(1, Ordering::Release);
        self.0.idle.wake_all();
    }

    fn release(&self) {
        self.0.released.store(true, Ordering::Relaxed);
        // As in `start`.
        fence(Ordering::SeqCst);
        self.0.flush(Range::EVERYTHING);
        self.0.idle.wake_all();
    }
}
