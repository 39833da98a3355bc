//! KVM's second stage: memory of this process as the physical memory of a guest.
//!
//! Memslots say where guest-physical memory lies in this process; the second-stage table, filled by faults, says in which
//! frames it lies. Changes take out of the table what they hit, and never refuse.
//!
//! ```
//! use mmu_notifier::{AddressSpace, Event, Range};
//! use mmu_notifier_secondary::device::{Access, Page};
//! use mmu_notifier_secondary::stage2::{Fault, Memslot, Stage2};
//!
//! let space = AddressSpace::new();
//! let own = |address: usize, _: Access| Some(Page::writable(address)); // look at the page table
//! let stage2 = Stage2::new(&space, own);
//! let memory = Range::new(0x70_0000, 0x74_0000)?;
//! stage2.add(0, Memslot { guest: 0, memory, access: Access::ReadWrite })?;
//!
//! let mut vcpu = stage2.vcpu()?;
//! assert_eq!(vcpu.access(0x1008, Access::Write, |pointer| pointer)?, 0x70_1008);
//! space.invalidate(memory, Event::Clear, || { /* madvise */ });
//! assert_eq!(stage2.stats().zapped, 1);
//!
//! stage2.delete(0)?;
//! assert_eq!(vcpu.access(0x1008, Access::Read, |_| ()), Err(Fault::NoMemslot { guest: 0x1008 }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Why no guest access reaches a page that has gone
//!
//! ```text
//! fault                                     start                              end
//! -----                                     -----                              ---
//! take the sequence                         active += 1                        sequence += 1
//! look at the page table                    in progress += 1, range to union   in progress -= 1
//! entry := loading                          full fence                         active -= 1
//! full fence                                entry := empty, or killed          at 0: wake who waits
//! in progress and in the union, or another  wait for accesses under way
//!     sequence? begin anew                  change
//! entry: loading -> present, unless killed
//! ```
//!
//! A change that begins before the fault's last look, and is not over, is in progress there; one that is over has raised the
//! sequence; one that begins later finds the entry. The union of the open ranges only grows until none is open, so a fault
//! between two of them may begin anew without need.
//!
//! # Memslots
//!
//! They are constant while a change is open, so that an end finds what its start found: an update waits until none is, at
//! most [`PATIENCE`](Stage2::PATIENCE) (a stream of changes that overlap in time can use that up), and not at all inside a
//! change of its own thread. There are two sides, of
//! which one bit says which is in use; that bit and the count of open changes are one word, so a start takes both in one
//! instruction, and waits for no lock.

#[cfg(all(test, mmu_loom))]
mod loom;
mod memslots;
mod table;
mod told;
mod vcpu;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mmu_notifier::{AddressSpace, PAGE_SIZE, Subscription};

use memslots::Memslots;
pub use memslots::{Memslot, MemslotError};
use told::Told;
pub use vcpu::{Fault, Vcpu};

use crate::device::{InFlight, PageTable, Retry};
use crate::sync::{AtomicBool, AtomicU64, Ordering, fence};

/// The second stage of a guest: see the [module documentation](self).
#[doc(alias = "kvm")]
pub struct Stage2 {
    shared: Arc<Shared>,
    patience: Duration,
    _told: [Subscription; 2],
}

struct Shared {
    space: AddressSpace,
    table: Box<dyn PageTable>,
    memslots: Memslots,
    retry: Retry,
    accesses: InFlight,
    /// No start comes any more: nothing may be installed.
    released: AtomicBool,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    starts: AtomicU64,
    faults: AtomicU64,
    retries: AtomicU64,
    zapped: AtomicU64,
    unbalanced: AtomicU64,
}

impl Stage2 {
    /// How long an update of the memslots waits for changes.
    pub const PATIENCE: Duration = Duration::from_secs(10);

    /// How many memslots there are at a time; their numbers are less than that.
    pub const MEMSLOTS: usize = 512;

    /// How many processors there are at a time.
    pub const VCPUS: usize = if cfg!(mmu_loom) { 2 } else { 64 };

    /// The size of the guest's physical address space, in bytes.
    pub const GUEST_SIZE: usize = Retry::PAGES * PAGE_SIZE;

    /// A guest without memory yet, which is going to be that of `space`, seen through `table`. Subscribes.
    ///
    /// # Panics
    ///
    /// As [`AddressSpace::subscribe`].
    #[doc(alias = "kvm_init_mmu_notifier")]
    pub fn new(space: &AddressSpace, table: impl PageTable + 'static) -> Stage2 {
        Stage2::with_patience(space, table, Stage2::PATIENCE)
    }

    /// The same with another patience than [`PATIENCE`](Stage2::PATIENCE).
    ///
    /// # Panics
    ///
    /// As [`AddressSpace::subscribe`].
    pub fn with_patience(
        space: &AddressSpace,
        table: impl PageTable + 'static,
        patience: Duration,
    ) -> Stage2 {
        let shared = Arc::new(Shared {
            space: space.clone(),
            table: Box::new(table),
            memslots: Memslots::default(),
            retry: Retry::default(),
            accesses: InFlight::new(Stage2::VCPUS),
            released: AtomicBool::new(false),
            counters: Counters::default(),
        });
        let aging = space.subscribe_aging(Told(shared.clone()));
        let changes = space.subscribe(Told(shared.clone()));
        Stage2 { shared, patience, _told: [changes, aging] }
    }

    /// Gives the guest memory. Waits until no change is open; allocates.
    ///
    /// # Errors
    ///
    /// [`MemslotError`] says what is wrong with it; nothing is changed.
    #[doc(alias = "KVM_SET_USER_MEMORY_REGION")]
    #[doc(alias = "kvm_swap_active_memslots")]
    pub fn add(&self, id: usize, memslot: Memslot) -> Result<(), MemslotError> {
        self.shared.update(self.patience, |slots| memslots::add(slots, id, memslot))
    }

    /// Takes memory from the guest. Waits until no change is open, and for accesses under way; when it returns, no access goes
    /// there any more.
    ///
    /// # Errors
    ///
    /// [`MemslotError`] if it is not there, or cannot be deleted now; nothing is changed.
    pub fn delete(&self, id: usize) -> Result<(), MemslotError> {
        self.shared.update(self.patience, |slots| memslots::delete(slots, id))
    }

    /// Moves memory to another guest-physical address. As [`delete`](Stage2::delete) and [`add`](Stage2::add) at once.
    ///
    /// # Errors
    ///
    /// As those; nothing is changed.
    #[doc(alias = "KVM_MR_MOVE")]
    pub fn relocate(&self, id: usize, guest: usize) -> Result<(), MemslotError> {
        self.shared.update(self.patience, |slots| memslots::relocate(slots, id, guest))
    }

    /// Logs from now on which pages of that memslot are written. Waits for accesses under way.
    ///
    /// # Errors
    ///
    /// [`MemslotError::NoSuch`].
    #[doc(alias = "KVM_MEM_LOG_DIRTY_PAGES")]
    pub fn log_dirty(&self, id: usize) -> Result<(), MemslotError> {
        let slot = self.shared.memslots.by_id(id)?;
        slot.logging.store(true, Ordering::Relaxed);
        // Who has not seen that is waited for; who has, marks the page, if it is clean.
        fence(Ordering::SeqCst);
        slot.entries.iter().for_each(|entry| entry.clean());
        self.shared.wait_for_accesses();
        Ok(())
    }

    /// The guest-physical addresses of the pages that were written since the last call, or since logging began, in order.
    /// What is written later is in the next one. Waits for accesses under way: all that is reported has been written.
    /// Allocates.
    ///
    /// # Errors
    ///
    /// [`MemslotError::NoSuch`], [`MemslotError::NotLogged`].
    ///
    /// ```
    /// # use mmu_notifier::{AddressSpace, Range};
    /// # use mmu_notifier_secondary::device::{Access, Page};
    /// # use mmu_notifier_secondary::stage2::{Memslot, Stage2};
    /// # let own = |address: usize, _: Access| Some(Page::writable(address));
    /// # let stage2 = Stage2::new(&AddressSpace::new(), own);
    /// # let memory = Range::new(0x70_0000, 0x74_0000)?;
    /// # stage2.add(0, Memslot { guest: 0, memory, access: Access::ReadWrite })?;
    /// stage2.log_dirty(0)?;
    /// stage2.vcpu()?.access(0x3008, Access::Write, |_| ())?;
    /// assert_eq!(stage2.dirty_log(0)?, [0x3000]);
    /// assert_eq!(stage2.dirty_log(0)?, []);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "KVM_GET_DIRTY_LOG")]
    pub fn dirty_log(&self, id: usize) -> Result<Vec<usize>, MemslotError> {
        let slot = self.shared.memslots.by_id(id)?;
        if !slot.logging.load(Ordering::Relaxed) {
            return Err(MemslotError::NotLogged { id });
        }
        let mut pages = Vec::with_capacity(slot.entries.len());
        for (number, entry) in slot.entries.iter().enumerate() {
            if slot.take_dirty(number) {
                // Behind the mark: who writes between has his in this log, who writes later makes a new one.
                entry.clean();
                pages.push((slot.first + number) * PAGE_SIZE);
            }
        }
        self.shared.wait_for_accesses();
        Ok(pages)
    }

    /// A processor of the guest. Never waits.
    ///
    /// # Errors
    ///
    /// [`NoVcpu`] if all [`VCPUS`](Stage2::VCPUS) are in use.
    pub fn vcpu(&self) -> Result<Vcpu<'_>, NoVcpu> {
        self.shared.accesses.take().map(|seat| Vcpu::new(&self.shared, seat)).ok_or(NoVcpu)
    }

    /// How many pages are in the table. Looks at each entry of each memslot, one by one; never waits.
    ///
    /// ```
    /// # use mmu_notifier::{AddressSpace, Event, PAGE_SIZE, Range};
    /// # use mmu_notifier_secondary::device::{Access, Page};
    /// # use mmu_notifier_secondary::stage2::{Memslot, Stage2};
    /// # let own = |address: usize, _: Access| Some(Page::writable(address));
    /// # let space = AddressSpace::new();
    /// # let stage2 = Stage2::new(&space, own);
    /// # let memory = Range::new(0x70_0000, 0x74_0000)?;
    /// # stage2.add(0, Memslot { guest: 0, memory, access: Access::ReadWrite })?;
    /// # let mut vcpu = stage2.vcpu()?;
    /// for page in 0..4 {
    ///     vcpu.access(page * PAGE_SIZE, Access::Read, |_| ())?;
    /// }
    /// assert_eq!(stage2.pages(), 4);
    /// space.invalidate(Range::with_len(0x70_0000, PAGE_SIZE)?, Event::Clear, || { /* madvise */ });
    /// assert_eq!(stage2.pages(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "pages_4k")]
    pub fn pages(&self) -> usize {
        let slots = self.shared.memslots.current();
        slots.iter().flat_map(|slot| &slot.entries).filter(|entry| entry.is_present()).count()
    }

    /// What it has done.
    pub fn stats(&self) -> Stats {
        let Shared { counters, memslots, retry, .. } = &*self.shared;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            active: memslots.active(),
            in_progress: retry.in_progress(),
            sequence: retry.sequence(),
            starts: get(&counters.starts),
            faults: get(&counters.faults),
            retries: get(&counters.retries),
            zapped: get(&counters.zapped),
            unbalanced: get(&counters.unbalanced),
        }
    }
}

impl fmt::Debug for Stage2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage2").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Shared {
    fn wait_for_accesses(&self) {
        self.accesses.wait(self.space.caller().thread(), |_| true);
    }
}

/// All processors of the guest are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {} processors of the guest are in use", Stage2::VCPUS)]
pub struct NoVcpu;

/// What a [`Stage2`] has done since it was made, and what it is doing. The numbers are taken one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Changes that are open.
    #[doc(alias = "mn_active_invalidate_count")]
    pub active: u32,
    /// Those of them that hit a memslot.
    #[doc(alias = "mmu_invalidate_in_progress")]
    pub in_progress: u32,
    /// Changes that hit a memslot and are over.
    #[doc(alias = "mmu_invalidate_seq")]
    pub sequence: u64,
    /// Changes that have begun.
    pub starts: u64,
    /// Accesses that did not find their page at once.
    pub faults: u64,
    /// How often a fault began anew because of a change.
    pub retries: u64,
    /// Pages that starts have taken out of the table.
    pub zapped: u64,
    /// Ends without a start: a caller's mistake, without effect.
    pub unbalanced: u64,
}
