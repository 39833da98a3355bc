//! A processor of the guest: accesses, and the faults of those that find nothing.

use std::fmt;
use std::sync::Arc;

use mmu_notifier::{PAGE_SIZE, Range};

use super::Shared;
use super::memslots::{Slot, of_page};
use crate::device::{Access, Inside, Seat};
use crate::sync::{Backoff, Ordering, fence};

/// A processor of the guest, until it is dropped.
#[doc(alias = "kvm_vcpu")]
pub struct Vcpu<'a> {
    shared: &'a Shared,
    seat: Seat<'a>,
}

/// A guest access did not take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// No memslot has that address: it may be a device's.
    #[doc(alias = "KVM_EXIT_MMIO")]
    #[error("no memslot has guest address {guest:#x}")]
    NoMemslot {
        /// The guest-physical address.
        guest: usize,
    },
    /// The memslot can only be read.
    #[error("the memslot of guest address {guest:#x} can only be read")]
    ReadOnly {
        /// The guest-physical address.
        guest: usize,
    },
    /// This process has no page there, or it does not allow that access. KVM: EFAULT.
    #[error("nothing at {host:#x}, which is guest address {guest:#x}, allows access for {access}")]
    NotMapped {
        /// The guest-physical address.
        guest: usize,
        /// The address in this process.
        host: usize,
        /// What for.
        access: Access,
    },
    /// The calling thread itself is changing the memory: to wait for the end would be for ever.
    #[error("access to guest address {guest:#x} inside a change of the calling thread")]
    Changing {
        /// The guest-physical address.
        guest: usize,
    },
    /// The address space has been [released](mmu_notifier::AddressSpace::release).
    #[error("access to guest address {guest:#x} of an address space that has been released")]
    Released {
        /// The guest-physical address.
        guest: usize,
    },
}

impl<'a> Vcpu<'a> {
    pub(super) fn new(shared: &'a Shared, seat: Seat<'a>) -> Vcpu<'a> {
        Vcpu { shared, seat }
    }

    /// Accesses the byte at guest-physical address `guest`: `operation` gets the pointer to it in the frame, and may use it and
    /// the rest of its page.
    ///
    /// A start of a change waits until `operation` returns, and so does the deletion of a memslot. So it should be short, and
    /// must not change the page itself: that change does not wait for it. On a miss this waits for changes that are in
    /// progress, and for the page table.
    ///
    /// # Errors
    ///
    /// [`Fault`] says why there is no access; `operation` has not run.
    #[doc(alias = "kvm_mmu_page_fault")]
    pub fn access<R>(
        &mut self,
        guest: usize,
        access: Access,
        operation: impl FnOnce(usize) -> R,
    ) -> Result<R, Fault> {
        let mut has_faulted = false;
        loop {
            if let Some((inside, pointer)) = self.find(guest, access)? {
                let result = operation(pointer);
                drop(inside);
                return Ok(result);
            }
            if !std::mem::replace(&mut has_faulted, true) {
                self.shared.counters.faults.fetch_add(1, Ordering::Relaxed);
            }
            self.shared.fault(guest, access)?;
        }
    }

    /// Where the table says it is, for as long as the first lives.
    fn find(&mut self, guest: usize, access: Access) -> Result<Option<(Inside<'_>, usize)>, Fault> {
        let (shared, page) = (self.shared, guest / PAGE_SIZE);
        // Before the memslots are looked at: who replaces them waits for this.
        let inside = self.seat.enter(shared.space.caller().thread(), guest);
        let slots = shared.memslots.current();
        let slot = of_page(&slots, page).ok_or(Fault::NoMemslot { guest })?;
        if access.includes(Access::Write) && !slot.may_write() {
            return Err(Fault::ReadOnly { guest });
        }
        let Some(found) = slot.entry(page).find(access) else { return Ok(None) };
        if found.is_first_write && slot.logging.load(Ordering::Relaxed) {
            slot.mark_dirty(page);
        }
        Ok(Some((inside, found.frame + guest % PAGE_SIZE)))
    }
}

impl Shared {
    /// Puts the page into the table.
    fn fault(&self, guest: usize, access: Access) -> Result<(), Fault> {
        let page = guest / PAGE_SIZE;
        let mut backoff = Backoff::default();
        loop {
            // Here for those that find nothing, too; behind the mark it is what counts.
            if self.released.load(Ordering::Relaxed) {
                return Err(Fault::Released { guest });
            }
            let slot = of_page(&self.memslots.current(), page).cloned();
            let slot = slot.ok_or(Fault::NoMemslot { guest })?;
            if self.try_fault(&slot, guest, access)? {
                return Ok(());
            }
            self.counters.retries.fetch_add(1, Ordering::Relaxed);
            if self.retry.covers(page..=page) && !self.space.wait_for_changes(Range::EVERYTHING) {
                return Err(Fault::Changing { guest });
            }
            backoff.wait();
        }
    }

    /// Whether nothing came between.
    fn try_fault(&self, slot: &Arc<Slot>, guest: usize, access: Access) -> Result<bool, Fault> {
        let page = guest / PAGE_SIZE;
        let host = slot.host(page);
        let sequence = self.retry.sequence();
        let found = self.table.look_up(host, access).filter(|found| found.allows(access));
        let Some(found) = found else {
            // A page that is just being replaced is not missing.
            fence(Ordering::SeqCst);
            let is_changing = self.retry.must_retry(sequence, page..=page);
            return if is_changing { Ok(false) } else { Err(Fault::NotMapped { guest, host, access }) };
        };
        let Some(loading) = slot.entry(page).load() else { return Ok(false) };
        // Pairs with the fence in `start`: see the module documentation.
        fence(Ordering::SeqCst);
        if self.released.load(Ordering::Relaxed) {
            return Err(Fault::Released { guest });
        }
        if self.retry.must_retry(sequence, page..=page) {
            return Ok(false);
        }
        Ok(loading.install(found, found.is_writable() && slot.may_write()))
    }
}

impl fmt::Debug for Vcpu<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu").field("number", &self.seat.number()).finish_non_exhaustive()
    }
}
