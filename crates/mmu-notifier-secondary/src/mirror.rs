//! Nouveau's shared virtual memory: a device that sees a range of the program's memory at the program's addresses.
//!
//! The device has a page table of its own, filled by faults. It is told of changes of its range only, by an interval, and may
//! refuse those that must not wait. It can move pages to memory of its own, and have pages for itself.
//!
//! ```
//! use mmu_notifier::{AddressSpace, Event, Range};
//! use mmu_notifier_secondary::device::{Access, Page};
//! use mmu_notifier_secondary::mirror::Mirror;
//!
//! let space = AddressSpace::new();
//! let own = |address: usize, _: Access| Some(Page::writable(address)); // look at the page table
//! let memory = Range::new(0x10000, 0x14000)?;
//! let mirror = Mirror::new(&space, memory, own)?;
//! let mut engine = mirror.engine()?;
//!
//! mirror.fault(memory, Access::Read)?; // or page by page, by accesses
//! assert_eq!(engine.access(0x11008, Access::Write, |pointer| pointer)?, 0x11008);
//! assert_eq!(mirror.stats().misses, 0);
//!
//! let page = Range::new(0x11000, 0x12000)?;
//! space.try_invalidate(page, Event::Clear, || { /* madvise */ }).expect("the device is idle");
//! assert_eq!(mirror.stats().zapped, 1);
//!
//! let madvise = || unreachable!("it was refused");
//! let during = |_| std::thread::scope(|scope| {
//!     scope.spawn(|| space.try_invalidate(page, Event::Clear, madvise)).join().unwrap()
//! });
//! assert!(engine.access(0x11008, Access::Write, during)?.is_err(), "the device is at work there");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Why no access reaches a page that has gone
//!
//! ```text
//! fault                                    change
//! -----                                    ------
//! take a ticket (waits for open changes)   sequence += 1 (the address space does that)
//! look at the page table                   full fence
//! entries := loading                       entries := empty, or killed
//! full fence                               wait for accesses under way, or refuse
//! ticket stale? begin anew                 change
//! entries: loading -> present, unless
//!     killed; or else begin anew
//! ```
//!
//! If the fault finds its ticket good, then a change that comes finds the entries, and kills them. The kernel's drivers take a
//! lock for the last three steps, and a change that must not wait is refused while somebody has it. Here each entry is one
//! word, so there is no lock: a change is refused for nothing but an access under way, and one in a signal handler does not
//! wait for a fault that the handler has interrupted.
//!
//! # Own changes
//!
//! A device that moves pages, or takes them from the processor, is not told of that ([`ignores`](IntervalSubscriber::ignores)):
//! inside its own fault it would wait for itself, and begin anew for ever. So these changes make no ticket stale either. The
//! mirror has a count and a sequence for them, with the same rule as [`stage2`](crate::stage2): a migration counts, takes the
//! entries out and waits for accesses before anybody is told, and raises the sequence when it is over. To take a page from the
//! processor moves nothing, and leaves the entries as they are.

mod engine;
mod fault;
#[cfg(all(test, mmu_loom))]
mod loom;
mod own;
mod table;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mmu_notifier::{
    AddressSpace, Change, Event, IntervalSubscriber, IntervalSubscription, PAGE_SIZE, Pass, Range, WouldBlock,
};

pub use engine::Engine;
pub use fault::Fault;
use table::Entry;

use crate::device::{InFlight, PageTable, Retry};
use crate::sync::{AtomicU64, Ordering, fence};

/// A range of memory as a device sees it: see the [module documentation](self).
///
/// In a forked child it is the parent's, and brings nothing in: make a new one.
#[doc(alias = "nouveau_svmm")]
#[doc(alias = "dmirror")]
pub struct Mirror {
    interval: IntervalSubscription,
    shared: Arc<Shared>,
    patience: Duration,
}

struct Shared {
    space: AddressSpace,
    range: Range,
    table: Box<dyn PageTable>,
    /// One a page of the range.
    entries: Box<[Entry]>,
    /// Migrations of the device itself.
    own: Retry,
    accesses: InFlight,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    misses: AtomicU64,
    retries: AtomicU64,
    zapped: AtomicU64,
    refused: AtomicU64,
    migrations: AtomicU64,
}

/// There is no mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MirrorError {
    /// The memory is not of whole pages.
    #[error("{range} is not of whole pages")]
    Unaligned {
        /// What was to be mirrored.
        range: Range,
    },
    /// The memory is larger than [`Mirror::LARGEST`].
    #[error("{range} is larger than {:#x} bytes", Mirror::LARGEST)]
    TooLarge {
        /// What was to be mirrored.
        range: Range,
    },
    /// The address space has been [released](mmu_notifier::AddressSpace::release).
    #[error("the address space has been released")]
    Released,
}

/// All engines of the device are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {} engines of the device are in use", Mirror::ENGINES)]
pub struct NoEngine;

/// What a [`Mirror`] has done since it was made. The numbers are taken one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Accesses that did not find their page at once.
    pub misses: u64,
    /// How often a fault or a snapshot began anew.
    pub retries: u64,
    /// Pages that changes have taken out of the table, also the device's own.
    pub zapped: u64,
    /// Changes that were refused, as they must not wait, and the device was at work in their range.
    pub refused: u64,
    /// Changes of the device's own that move pages.
    pub migrations: u64,
}

impl Mirror {
    /// How many [engines](Mirror::engine) there are at a time.
    pub const ENGINES: usize = if cfg!(mmu_loom) { 2 } else { 16 };

    /// How many bytes a mirror can have: 64 GiB. Its table takes 8 bytes a page.
    pub const LARGEST: usize = 1 << 36;

    /// How long a fault begins anew while changes come.
    #[doc(alias = "HMM_RANGE_DEFAULT_TIMEOUT")]
    pub const PATIENCE: Duration = Duration::from_secs(1);

    /// A mirror of that memory of `space`, seen through `table`. Subscribes to the range; brings nothing in yet.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] says what is wrong with the range, or that `space` has been released.
    pub fn new(
        space: &AddressSpace,
        range: Range,
        table: impl PageTable + 'static,
    ) -> Result<Mirror, MirrorError> {
        Mirror::with_patience(space, range, table, Mirror::PATIENCE)
    }

    /// The same with another patience than [`PATIENCE`](Mirror::PATIENCE).
    ///
    /// # Errors
    ///
    /// As [`new`](Mirror::new).
    #[doc(alias = "mmu_interval_notifier_insert")]
    pub fn with_patience(
        space: &AddressSpace,
        range: Range,
        table: impl PageTable + 'static,
        patience: Duration,
    ) -> Result<Mirror, MirrorError> {
        if range != range.to_pages() || !range.end().is_multiple_of(PAGE_SIZE) {
            return Err(MirrorError::Unaligned { range });
        }
        if range.len() > Mirror::LARGEST {
            return Err(MirrorError::TooLarge { range });
        }
        let shared = Arc::new(Shared {
            space: space.clone(),
            range,
            table: Box::new(table),
            entries: (0..range.len() / PAGE_SIZE).map(|_| Entry::default()).collect(),
            own: Retry::default(),
            accesses: InFlight::new(Mirror::ENGINES),
            counters: Counters::default(),
        });
        let interval = space.insert(range, Told(shared.clone())).map_err(|_| MirrorError::Released)?;
        Ok(Mirror { interval, shared, patience })
    }

    /// The memory that is mirrored.
    pub fn range(&self) -> Range {
        self.shared.range
    }

    /// What tells the device's own changes from those of others: [`Change::owner`].
    pub fn owner(&self) -> usize {
        self.shared.owner()
    }

    /// An engine of the device. Never waits.
    ///
    /// # Errors
    ///
    /// [`NoEngine`] if all [`ENGINES`](Mirror::ENGINES) are in use.
    pub fn engine(&self) -> Result<Engine<'_>, NoEngine> {
        self.shared.accesses.take().map(|seat| Engine::new(self, seat)).ok_or(NoEngine)
    }

    /// What it has done.
    pub fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { misses, retries, zapped, refused, migrations } = &self.shared.counters;
        Stats {
            misses: get(misses),
            retries: get(retries),
            zapped: get(zapped),
            refused: get(refused),
            migrations: get(migrations),
        }
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut mirror = f.debug_struct("Mirror");
        mirror.field("range", &self.range()).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Shared {
    fn owner(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// The address of a page.
    fn address(&self, page: usize) -> usize {
        self.range.start() + page * PAGE_SIZE
    }

    /// The entry of the page at an address of the range.
    fn entry(&self, address: usize) -> &Entry {
        &self.entries[(address - self.range.start()) / PAGE_SIZE]
    }

    /// Takes the pages of `range` out of the table. Takes no lock; neither allocates nor frees.
    fn zap(&self, range: Range) {
        // Pairs with the fence in `Mirror::is_stale`: see the module documentation.
        fence(Ordering::SeqCst);
        let Some(common) = self.range.intersection(&range) else { return };
        let page = |address: usize| (address - self.range.start()) / PAGE_SIZE;
        let entries = &self.entries[page(common.start())..=page(common.end() - 1)];
        let zapped = entries.iter().filter(|entry| entry.zap()).count();
        self.counters.zapped.fetch_add(zapped as u64, Ordering::Relaxed);
    }

    /// Waits for the accesses under way to pages of `range`. Also if nothing was zapped: it may be another change that has,
    /// and is waiting.
    fn wait_for_accesses(&self, range: Range) {
        self.accesses.wait(self.space.caller().thread(), concerns(range));
    }
}

/// Whether the page at an address belongs to what changes.
fn concerns(range: Range) -> impl Fn(usize) -> bool {
    let pages = range.to_pages();
    move |page| pages.start() <= page && page < pages.end()
}

/// What the address space tells.
struct Told(Arc<Shared>);

impl IntervalSubscriber for Told {
    fn ignores(&self, change: &Change) -> bool {
        matches!(change.event(), Event::Migrate | Event::Exclusive) && change.owner() == self.0.owner()
    }

    fn invalidate(&self, change: &Change) -> Pass {
        self.0.zap(change.range());
        // First all devices are told, then all are waited for.
        Pass::Unfinished
    }

    fn try_invalidate(&self, change: &Change) -> Result<Pass, WouldBlock> {
        let shared = &*self.0;
        shared.zap(change.range());
        if shared.accesses.is_used(shared.space.caller().thread(), concerns(change.range())) {
            shared.counters.refused.fetch_add(1, Ordering::Relaxed);
            return Err(WouldBlock);
        }
        Ok(Pass::Done)
    }

    fn finish(&self, change: &Change) {
        self.0.wait_for_accesses(change.range());
    }
}

#[cfg(all(test, not(mmu_loom)))]
mod tests {
    use super::*;
    use crate::device::{Access, Page};
    use table::Need;

    /// As one in a signal handler that has interrupted a fault: in the middle of installing there is nobody else to ask.
    #[test]
    fn a_change_on_top_of_a_fault_waits_for_nobody() {
        let space = AddressSpace::new();
        let pages = Range::new(0x1000, 0x3000).unwrap();
        let own = |address: usize, _: Access| Some(Page::writable(address));
        let mirror = Mirror::new(&space, pages, own).unwrap();
        let need = Need::Shared(Access::Write);
        let [first, second] = [0x1000, 0x2000].map(|at| mirror.shared.entry(at).load().unwrap());
        assert!(first.install(Page::writable(0x1000), need));
        space.try_invalidate(pages, Event::Clear, || ()).unwrap();
        space.invalidate(pages, Event::Unmap, || ());
        assert!(!second.install(Page::writable(0x2000), need));
        assert_eq!([0x1000, 0x2000].map(|at| mirror.shared.entry(at).find(need)), [None, None]);
        assert_eq!(mirror.stats().zapped, 1);
    }
}
