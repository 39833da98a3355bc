//! A context: accesses, and the faults of those that miss.

use std::fmt;

use mmu_notifier::{PAGE_SIZE, Range};

use super::{Shared, count};
use crate::device::{Access, Inside, Page, Seat};
use crate::sync::{Ordering, fence};

/// A user's context of a [`Gru`](super::Gru): accesses memory through a TLB of its own, until it is dropped.
#[doc(alias = "gru_thread_state")]
pub struct Context<'a> {
    shared: &'a Shared,
    seat: Seat<'a>,
}

/// An access did not take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// There is no page, or it does not allow that access.
    #[error("nothing at {address:#x} allows access for {access}")]
    NotMapped {
        /// Where the access went.
        address: usize,
        /// What for.
        access: Access,
    },
    /// The calling thread itself has a change open: to wait for its end would be for ever.
    #[error("access to {address:#x} inside a change of the calling thread")]
    Changing {
        /// Where the access went.
        address: usize,
    },
    /// The address space has been [released](mmu_notifier::AddressSpace::release).
    #[error("access to {address:#x} of an address space that has been released")]
    Released {
        /// Where the access went.
        address: usize,
    },
}

impl<'a> Context<'a> {
    pub(super) fn new(shared: &'a Shared, seat: Seat<'a>) -> Context<'a> {
        shared.tlbs[seat.number()].clear();
        Context { shared, seat }
    }

    /// Accesses the byte at `address`: `operation` gets where the device finds it, and may use it and the rest of its page.
    ///
    /// A start of a change of the page waits until `operation` returns. So it should be short, and must not change the page
    /// itself: that change does not wait for it. On a miss this waits until no change is open, and for the page table.
    ///
    /// # Errors
    ///
    /// [`Fault`] says why there is no access; `operation` has not run.
    #[doc(alias = "gru_try_dropin")]
    pub fn access<R>(
        &mut self,
        address: usize,
        access: Access,
        operation: impl FnOnce(usize) -> R,
    ) -> Result<R, Fault> {
        let page = address & !(PAGE_SIZE - 1);
        let (shared, mut has_faulted) = (self.shared, false);
        loop {
            if let Some((inside, found)) = self.find(page, access) {
                let result = operation(found.frame() + (address - page));
                drop(inside);
                if !has_faulted {
                    count(&shared.counters.hits);
                }
                return Ok(result);
            }
            if !std::mem::replace(&mut has_faulted, true) {
                count(&shared.counters.faults);
            }
            self.load(address, access)?;
        }
    }

    /// What the TLB has, for as long as the first lives.
    fn find(&mut self, page: usize, access: Access) -> Option<(Inside<'_>, Page)> {
        let entry = self.shared.tlbs[self.seat.number()].entry_of(page);
        let inside = self.seat.enter(self.shared.space.caller().thread(), page);
        entry.get(page, access).map(|found| (inside, found))
    }

    /// Loads the page into the TLB.
    fn load(&self, address: usize, access: Access) -> Result<(), Fault> {
        let shared = self.shared;
        let page = address & !(PAGE_SIZE - 1);
        let entry = shared.tlbs[self.seat.number()].entry_of(page);
        loop {
            let loading = entry.load(page);
            // Pairs with the fence in `start`: see the module documentation.
            fence(Ordering::SeqCst);
            // Acquire pairs with the Release in `end`: the page table is that of after the change.
            if shared.active.load(Ordering::Acquire) > 0 {
                drop(loading);
                shared.wait_until_idle(address)?;
                continue;
            }
            if shared.released.load(Ordering::Relaxed) {
                return Err(Fault::Released { address });
            }
            match shared.table.look_up(page, access).filter(|found| found.allows(access)) {
                Some(found) if loading.install(found) => return Ok(()),
                Some(_) => {}
                // A page that is just being replaced is not missing.
                None if loading.is_killed() => {}
                None => return Err(Fault::NotMapped { address, access }),
            }
            count(&shared.counters.retries);
        }
    }
}

impl Shared {
    /// Waits until no change is open, for a moment at least.
    fn wait_until_idle(&self, address: usize) -> Result<(), Fault> {
        count(&self.counters.waits);
        // Waits for the changes themselves, unless the calling thread has one; after that only their ends are to be waited for.
        if !self.space.wait_for_changes(Range::EVERYTHING) {
            return Err(Fault::Changing { address });
        }
        loop {
            let ticket = self.idle.ticket();
            if self.released.load(Ordering::Relaxed) {
                return Err(Fault::Released { address });
            }
            if self.active.load(Ordering::Relaxed) == 0 {
                return Ok(());
            }
            self.idle.wait(ticket, None);
        }
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("number", &self.seat.number()).finish_non_exhaustive()
    }
}
