//! Reading the primary page table: faults and snapshots.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use mmu_notifier::{PAGE_SIZE, Range, Ticket};

use super::Mirror;
use super::table::Need;
use crate::device::{Access, Page};
use crate::sync::{Backoff, Ordering, fence};

/// Pages were not brought in, or not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The mirror does not reach there.
    #[error("{address:#x} lies outside of the mirror")]
    Outside {
        /// The first such address.
        address: usize,
    },
    /// There is no page, or it does not allow that access. In the kernel: EFAULT.
    #[error("nothing at {address:#x} allows access for {access}")]
    NotMapped {
        /// The first such page.
        address: usize,
        /// What for.
        access: Access,
    },
    /// There is no page that the device can have for itself. In the kernel: EBUSY.
    #[error("the page at {address:#x} cannot be taken from the processor")]
    NotTaken {
        /// The first such page.
        address: usize,
    },
    /// The calling thread itself is changing the memory: to wait for the end would be for ever.
    #[error("{range} cannot be read: the calling thread is in the middle of changing it")]
    Changing {
        /// What was to be read.
        range: Range,
    },
    /// Changes have come during every attempt. In the kernel: EBUSY.
    #[error("{range} could not be read: it has been changing for {waited:?}")]
    Unsettled {
        /// What was to be read.
        range: Range,
        /// How long this has tried.
        waited: Duration,
    },
    /// The address space has been [released](mmu_notifier::AddressSpace::release).
    #[error("the address space has been released")]
    Released,
}

/// What a reader has seen before he looked at the page table.
struct Seen {
    ticket: Ticket,
    /// That of the mirror's own changes.
    own: u64,
}

impl Mirror {
    /// Brings the pages of `range` into the device's table, for that access; those that are there already are left. A change
    /// may take them out at any time, also before this returns.
    ///
    /// Waits for open changes and for the page table; allocates. Begins anew while changes come, for at most
    /// [`PATIENCE`](Mirror::PATIENCE).
    ///
    /// # Errors
    ///
    /// [`Fault`] says why not; then some of the pages may have been brought in.
    #[doc(alias = "hmm_range_fault")]
    pub fn fault(&self, range: Range, access: Access) -> Result<(), Fault> {
        self.bring(range, Need::Shared(access))
    }

    /// What the primary page table has at each page of `range`, in order, all of one moment: no change of the range was
    /// under way. Makes nothing present, neither there nor in the device's table.
    ///
    /// Waits as [`fault`](Mirror::fault).
    ///
    /// # Errors
    ///
    /// [`Fault`] but for what is not mapped: that is none.
    #[doc(alias = "HMM_DMIRROR_SNAPSHOT")]
    pub fn snapshot(&self, range: Range) -> Result<Vec<Option<Page>>, Fault> {
        let pages = self.pages_of(range)?;
        let mut found = Vec::with_capacity(pages.end() - pages.start() + 1);
        self.settled(range, |seen| {
            found.clear();
            found.extend(pages.clone().map(|page| self.shared.table.peek(self.shared.address(page))));
            Ok(!self.is_stale(seen, pages.clone()))
        })?;
        Ok(found)
    }

    /// The fault loop.
    pub(super) fn bring(&self, range: Range, need: Need) -> Result<(), Fault> {
        let pages = self.pages_of(range)?;
        let entries = &self.shared.entries;
        let missing = || pages.clone().filter(|page| entries[*page].find(need).is_none());
        let mut found = Vec::with_capacity(pages.end() - pages.start() + 1);
        let mut loading = Vec::with_capacity(found.capacity());
        self.settled(range, |seen| {
            found.clear();
            loading.clear();
            // Without any mark, lock or access of ours: this may take long, and change memory.
            for page in missing() {
                match self.look(page, need) {
                    Ok(frame) => found.push((page, frame)),
                    // A page that is just being replaced is not missing.
                    Err(fault) => {
                        return if self.is_stale(seen, pages.clone()) { Ok(false) } else { Err(fault) };
                    }
                }
            }
            for (page, _) in &found {
                let Some(entry) = entries[*page].load() else {
                    loading.clear();
                    return Ok(false);
                };
                loading.push(entry);
            }
            // In the place of the lock of the kernel's drivers: see the module documentation.
            if self.is_stale(seen, pages.clone()) {
                loading.clear();
                return Ok(false);
            }
            let mut loading = loading.drain(..).zip(&found);
            Ok(loading.all(|(entry, (_, frame))| entry.install(*frame, need)))
        })
    }

    /// The page as the primary page table has it, good enough for `need`.
    fn look(&self, page: usize, need: Need) -> Result<Page, Fault> {
        let address = self.shared.address(page);
        match need {
            Need::Shared(access) => {
                let found = self.shared.table.look_up(address, access).filter(|found| found.allows(access));
                found.ok_or(Fault::NotMapped { address, access })
            }
            Need::Exclusive => {
                let found = self.take(address).filter(Page::is_writable);
                found.ok_or(Fault::NotTaken { address })
            }
        }
    }

    /// Makes attempts until one says that nothing came between.
    fn settled(
        &self,
        range: Range,
        mut attempt: impl FnMut(&Seen) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        let (shared, begin) = (&*self.shared, Instant::now());
        let mut backoff = Backoff::default();
        loop {
            // Own changes are not waited for here: they are not on record for this interval.
            let seen = Seen { own: shared.own.sequence(), ticket: self.interval.read() };
            if shared.space.is_released() {
                return Err(Fault::Released);
            }
            if attempt(&seen)? {
                return Ok(());
            }
            shared.counters.retries.fetch_add(1, Ordering::Relaxed);
            if !shared.space.wait_for_changes(range.to_pages()) {
                return Err(Fault::Changing { range });
            }
            let waited = begin.elapsed();
            if waited >= self.patience {
                return Err(Fault::Unsettled { range, waited });
            }
            backoff.wait();
        }
    }

    /// Whether what was read since of those pages must not be installed.
    #[doc(alias = "mmu_interval_read_retry")]
    fn is_stale(&self, seen: &Seen, pages: RangeInclusive<usize>) -> bool {
        // Pairs with the fence in `Shared::zap`: see the module documentation.
        fence(Ordering::SeqCst);
        self.interval.is_stale(&seen.ticket) || self.shared.own.must_retry(seen.own, pages)
    }

    /// The numbers of the pages of `range`.
    pub(super) fn pages_of(&self, range: Range) -> Result<RangeInclusive<usize>, Fault> {
        let (own, pages) = (self.range(), range.to_pages());
        if !own.contains(&pages) {
            let address =
                if pages.start() < own.start() { pages.start() } else { own.end().max(pages.start()) };
            return Err(Fault::Outside { address });
        }
        let number = |address: usize| (address - own.start()) / PAGE_SIZE;
        Ok(number(pages.start())..=number(pages.end() - 1))
    }
}
