//! Memslots: which guest-physical memory is which memory of this process.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};
use std::time::{Duration, Instant};

use mmu_notifier::{PAGE_SIZE, Range};

use super::table::Entry;
use super::{Shared, Stage2};
use crate::device::{Access, WaitQueue};
use crate::sync::{AtomicBool, AtomicU64, Backoff, Ordering};

/// Memory of this process as memory of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "kvm_userspace_memory_region")]
pub struct Memslot {
    /// Where it begins in the guest, in bytes: the guest-physical address.
    pub guest: usize,
    /// The memory of this process.
    pub memory: Range,
    /// What the guest may do: anything, if it includes writing, and else only read.
    #[doc(alias = "KVM_MEM_READONLY")]
    pub access: Access,
}

/// Memslots are as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemslotError {
    /// There are no memslots with such numbers. KVM: EINVAL.
    #[error("memslot {id}: numbers are less than {}", Stage2::MEMSLOTS)]
    BadId {
        /// The number.
        id: usize,
    },
    /// There is one with that number, which would have to be deleted first. KVM: EINVAL.
    #[error("memslot {id} exists")]
    Exists {
        /// The number.
        id: usize,
    },
    /// There is none with that number. KVM: EINVAL, for a dirty log ENOENT.
    #[error("memslot {id} does not exist")]
    NoSuch {
        /// The number.
        id: usize,
    },
    /// Addresses or length are not multiples of [`PAGE_SIZE`]. KVM: EINVAL.
    #[error("memslot {id}: guest address {guest:#x} or memory {memory} is not of whole pages")]
    Unaligned {
        /// The number.
        id: usize,
        /// The guest-physical address.
        guest: usize,
        /// The memory.
        memory: Range,
    },
    /// Its end lies behind [`Stage2::GUEST_SIZE`], or there is none. KVM: EINVAL.
    #[error("memslot {id}: {len:#x} bytes at guest address {guest:#x} end behind {:#x}", Stage2::GUEST_SIZE)]
    TooHigh {
        /// The number.
        id: usize,
        /// The guest-physical address.
        guest: usize,
        /// The length in bytes.
        len: usize,
    },
    /// Part of that guest-physical memory is another memslot. KVM: EEXIST.
    #[error("memslot {id} overlaps memslot {other}")]
    Overlaps {
        /// The number.
        id: usize,
        /// The other's.
        other: usize,
    },
    /// The calling thread itself is changing the address space, or is in a callback of a change: to wait for its end would be
    /// for ever. (KVM waits for ever.)
    #[error("memslots cannot be changed inside a change of the calling thread")]
    Changing,
    /// Changes have been open all the time. If one of them was begun by somebody who never ends it, it would have been for
    /// ever. (KVM waits for ever.)
    #[error("memslots could not be changed: {open} changes are open, some have been for {waited:?}")]
    Stalled {
        /// How many are open.
        open: u32,
        /// How long this has waited.
        waited: Duration,
    },
    /// Its writes are not [logged](Stage2::log_dirty). KVM: ENOENT.
    #[error("memslot {id}: writes are not logged")]
    NotLogged {
        /// The number.
        id: usize,
    },
    /// The address space has been [released](mmu_notifier::AddressSpace::release).
    #[error("the address space has been released")]
    Released,
}

/// A memslot with its part of the table.
pub(super) struct Slot {
    id: usize,
    /// The number of its first guest page.
    pub(super) first: usize,
    memory: Range,
    access: Access,
    pub(super) entries: Box<[Entry]>,
    /// A bit a page: written, and not reported yet.
    dirty: Box<[AtomicU64]>,
    pub(super) logging: AtomicBool,
}

impl Slot {
    fn new(id: usize, memslot: Memslot) -> Result<Slot, MemslotError> {
        let Memslot { guest, memory, access } = memslot;
        if id >= Stage2::MEMSLOTS {
            return Err(MemslotError::BadId { id });
        }
        if [guest, memory.start(), memory.end()].iter().any(|at| !at.is_multiple_of(PAGE_SIZE)) {
            return Err(MemslotError::Unaligned { id, guest, memory });
        }
        let len = memory.len();
        if guest.checked_add(len).is_none_or(|end| end > Stage2::GUEST_SIZE) {
            return Err(MemslotError::TooHigh { id, guest, len });
        }
        let pages = len / PAGE_SIZE;
        Ok(Slot {
            id,
            first: guest / PAGE_SIZE,
            memory,
            access,
            entries: (0..pages).map(|_| Entry::default()).collect(),
            dirty: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            logging: AtomicBool::new(false),
        })
    }

    /// The first guest page behind it.
    fn end(&self) -> usize {
        self.first + self.entries.len()
    }

    /// The host address of a guest page of it.
    pub(super) fn host(&self, page: usize) -> usize {
        self.memory.start() + (page - self.first) * PAGE_SIZE
    }

    pub(super) fn entry(&self, page: usize) -> &Entry {
        &self.entries[page - self.first]
    }

    pub(super) fn may_write(&self) -> bool {
        self.access.includes(Access::Write)
    }

    /// The numbers of its own pages that lie in `range` of the host, if any.
    pub(super) fn pages_in(&self, range: &Range) -> Option<std::ops::Range<usize>> {
        let common = self.memory.intersection(range)?;
        let at = |address: usize| address - self.memory.start();
        Some(at(common.start()) / PAGE_SIZE..at(common.end()).div_ceil(PAGE_SIZE))
    }

    pub(super) fn mark_dirty(&self, page: usize) {
        let number = page - self.first;
        self.dirty[number / 64].fetch_or(1 << (number % 64), Ordering::Relaxed);
    }

    /// Whether the page with that number in it was written; forgets it.
    pub(super) fn take_dirty(&self, number: usize) -> bool {
        let bit = 1 << (number % 64);
        let word = &self.dirty[number / 64];
        word.load(Ordering::Relaxed) & bit != 0 && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0
    }
}

/// Sorted by guest page; do not overlap.
pub(super) type Slots = Vec<Arc<Slot>>;

/// The memslot of a guest page.
pub(super) fn of_page(slots: &Slots, page: usize) -> Option<&Arc<Slot>> {
    let behind = slots.partition_point(|slot| slot.first <= page);
    slots[..behind].last().filter(|slot| page < slot.end())
}

pub(super) fn add(slots: &Slots, id: usize, memslot: Memslot) -> Result<Slots, MemslotError> {
    let new = Slot::new(id, memslot)?;
    if slots.iter().any(|slot| slot.id == id) {
        return Err(MemslotError::Exists { id });
    }
    if let Some(other) = slots.iter().find(|slot| slot.first < new.end() && new.first < slot.end()) {
        return Err(MemslotError::Overlaps { id, other: other.id });
    }
    let mut slots = slots.clone();
    slots.insert(slots.partition_point(|slot| slot.first < new.first), Arc::new(new));
    Ok(slots)
}

pub(super) fn delete(slots: &Slots, id: usize) -> Result<Slots, MemslotError> {
    find(slots, id)?;
    Ok(slots.iter().filter(|slot| slot.id != id).cloned().collect())
}

pub(super) fn relocate(slots: &Slots, id: usize, guest: usize) -> Result<Slots, MemslotError> {
    let old = find(slots, id)?;
    let moved = Memslot { guest, memory: old.memory, access: old.access };
    let slots = add(&delete(slots, id)?, id, moved)?;
    let is_logged = old.logging.load(Ordering::Relaxed);
    find(&slots, id)?.logging.store(is_logged, Ordering::Relaxed);
    Ok(slots)
}

fn find(slots: &Slots, id: usize) -> Result<&Arc<Slot>, MemslotError> {
    slots.iter().find(|slot| slot.id == id).ok_or(MemslotError::NoSuch { id })
}

/// The two sides, and the word that says which is in use.
#[derive(Default)]
pub(super) struct Memslots {
    /// How many changes are open, and the two bits below. While any is, the side does not change.
    gate: AtomicU64,
    /// That in use is never written; so whoever reads it need not wait.
    sides: [RwLock<Slots>; 2],
    /// Who updates. Neither callbacks nor processors take it.
    updating: Mutex<()>,
    idle: WaitQueue,
}

const OPEN: u64 = u32::MAX as u64;
const SIDE: u64 = 1 << 32;
/// Accesses of the other side may be under way.
const DRAINING: u64 = 1 << 33;

fn side(gate: u64) -> usize {
    usize::from(gate & SIDE != 0)
}

impl Memslots {
    /// A change begins: the memslots that it is to look at, also at its end, and whether accesses through others may be under
    /// way.
    pub(super) fn enter(&self) -> (RwLockReadGuard<'_, Slots>, bool) {
        // Acquire pairs with the Release in `switch`: the memslots are seen.
        let gate = self.gate.fetch_add(1, Ordering::Acquire);
        (self.current(), gate & DRAINING != 0)
    }

    /// It is over; whether it had begun.
    pub(super) fn leave(&self) -> bool {
        let less = |gate: u64| (gate & OPEN > 0).then(|| gate - 1);
        // Release pairs with the Acquire in `switch`: who reads there has read.
        let gate = self.gate.fetch_update(Ordering::Release, Ordering::Relaxed, less);
        if gate.is_ok_and(|gate| gate & OPEN == 1) {
            self.idle.wake_all();
        }
        gate.is_ok()
    }

    /// Nobody's end comes any more.
    pub(super) fn reset(&self) {
        self.gate.fetch_and(!OPEN, Ordering::Relaxed);
        self.idle.wake_all();
    }

    pub(super) fn active(&self) -> u32 {
        (self.gate.load(Ordering::Relaxed) & OPEN) as u32
    }

    /// Those in use. Never waits for a lock; begins anew if they are exchanged just then.
    pub(super) fn current(&self) -> RwLockReadGuard<'_, Slots> {
        let mut backoff = Backoff::default();
        loop {
            // Acquire, both, pairs with the Release in `switch`.
            let gate = self.gate.load(Ordering::Acquire);
            let slots = match self.sides[side(gate)].try_read() {
                Ok(slots) => Some(slots),
                Err(TryLockError::Poisoned(slots)) => Some(slots.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            };
            match slots {
                Some(slots) if side(self.gate.load(Ordering::Acquire)) == side(gate) => return slots,
                _ => backoff.wait(),
            }
        }
    }

    pub(super) fn by_id(&self, id: usize) -> Result<Arc<Slot>, MemslotError> {
        find(&self.current(), id).cloned()
    }

    /// The side that is not in use. For who updates.
    fn other(&self) -> RwLockWriteGuard<'_, Slots> {
        let gate = self.gate.load(Ordering::Relaxed);
        self.sides[1 - side(gate)].write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the other side to use if no change is open; or else says how many are.
    fn switch(&self) -> Result<(), u32> {
        let switch = |gate: u64| (gate & OPEN == 0).then_some((gate ^ SIDE) | DRAINING);
        // Release pairs with the Acquire in `enter` and `current`, Acquire with the Release in `leave`.
        let gate = self.gate.fetch_update(Ordering::AcqRel, Ordering::Relaxed, switch);
        gate.map(|_| ()).map_err(|gate| (gate & OPEN) as u32)
    }
}

impl Shared {
    /// Replaces the memslots by what `make` makes of them, when no change is open. Returns when nothing goes through the old
    /// ones any more.
    pub(super) fn update(
        &self,
        patience: Duration,
        make: impl FnOnce(&Slots) -> Result<Slots, MemslotError>,
    ) -> Result<(), MemslotError> {
        let memslots = &self.memslots;
        let _updating = memslots.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let old = memslots.current().clone();
        let new = make(&old)?;
        *memslots.other() = new;
        if let Err(error) = self.switch(patience) {
            let unused = std::mem::take(&mut *memslots.other());
            drop(unused);
            return Err(error);
        }
        self.wait_for_accesses();
        // Relaxed: a change that sees it too late only waits once more.
        memslots.gate.fetch_and(!DRAINING, Ordering::Relaxed);
        let unused = std::mem::take(&mut *memslots.other());
        drop(unused);
        Ok(())
    }

    fn switch(&self, patience: Duration) -> Result<(), MemslotError> {
        let begin = Instant::now();
        loop {
            let ticket = self.memslots.idle.ticket();
            if self.released.load(Ordering::Relaxed) {
                return Err(MemslotError::Released);
            }
            let Err(open) = self.memslots.switch() else { return Ok(()) };
            if self.space.is_changing() {
                return Err(MemslotError::Changing);
            }
            let waited = begin.elapsed();
            let Some(left) = patience.checked_sub(waited).filter(|left| !left.is_zero()) else {
                return Err(MemslotError::Stalled { open, waited });
            };
            self.memslots.idle.wait(ticket, Some(left));
        }
    }
}
