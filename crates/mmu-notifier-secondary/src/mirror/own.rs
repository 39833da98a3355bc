//! Changes that the device makes itself, of which its interval does not hear.

use mmu_notifier::{Blocking, Change, Event, Invalidation, PAGE_SIZE, Range};

use super::table::Need;
use super::{Fault, Mirror, Shared};
use crate::device::Page;
use crate::sync::Ordering;

/// A change that the mirror makes itself, from before its start until behind its end: of the pages with those numbers nothing is
/// installed, and who has looked before begins anew.
struct Own<'a>(&'a Shared);

impl<'a> Own<'a> {
    fn begin(shared: &'a Shared, range: Range) -> Own<'a> {
        let number = |address: usize| (address - shared.range.start()) / PAGE_SIZE;
        shared.own.begin(number(range.start()), number(range.end() - 1));
        Own(shared)
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        self.0.own.end();
    }
}

impl Mirror {
    /// Moves pages of `range` to the device or back: `change` does it. Everybody else is told, by [`Event::Migrate`] with this
    /// mirror's [`owner`](Mirror::owner); the device itself is not, and has been taken out its entries before. A
    /// [page table](crate::device::PageTable) may call this for the page that it is asked about.
    ///
    /// Waits for accesses under way of the device, and as whoever else is told does. `change` should not bring pages of the
    /// range in: that is [`Fault::Changing`].
    ///
    /// # Errors
    ///
    /// [`Fault::Outside`], before anything is done.
    ///
    /// ```
    /// # use mmu_notifier::{AddressSpace, Range};
    /// # use mmu_notifier_secondary::device::{Access, Page};
    /// # use mmu_notifier_secondary::mirror::Mirror;
    /// # let space = AddressSpace::new();
    /// # let own = |address: usize, _: Access| Some(Page::writable(address));
    /// # let memory = Range::new(0x10000, 0x14000)?;
    /// let mirror = Mirror::new(&space, memory, own)?;
    /// mirror.fault(memory, Access::Read)?;
    /// let moved = mirror.migrate(Range::new(0x11000, 0x12000)?, || "to the device")?;
    /// assert_eq!(moved, "to the device");
    /// assert_eq!(mirror.stats().zapped, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "migrate_vma_setup")]
    pub fn migrate<R>(&self, range: Range, change: impl FnOnce() -> R) -> Result<R, Fault> {
        self.pages_of(range)?;
        let (shared, range) = (&*self.shared, range.to_pages());
        shared.counters.migrations.fetch_add(1, Ordering::Relaxed);
        let own = Own::begin(shared, range);
        shared.zap(range);
        shared.wait_for_accesses(range);
        let open = self.open(range, Event::Migrate);
        let result = change();
        drop(open);
        drop(own);
        Ok(result)
    }

    /// Takes the pages of `range` from the processor, for [accesses of the device alone](super::Engine::access_alone): the page
    /// table's [`take`](crate::device::PageTable::take) does it. Everybody else is told, by [`Event::Exclusive`] with this mirror's
    /// [`owner`](Mirror::owner). Any later change of a page takes it from the device, also the one by which the processor gets it
    /// back.
    ///
    /// Waits as [`fault`](Mirror::fault).
    ///
    /// # Errors
    ///
    /// [`Fault`] says why not; then some of the pages may have been taken.
    #[doc(alias = "make_device_exclusive")]
    pub fn make_exclusive(&self, range: Range) -> Result<(), Fault> {
        self.bring(range, Need::Exclusive)
    }

    pub(super) fn take(&self, address: usize) -> Option<Page> {
        let page = Range::with_len(address, PAGE_SIZE).expect("a page of the range");
        let open = self.open(page, Event::Exclusive);
        let taken = self.shared.table.take(address);
        drop(open);
        taken
    }

    fn open(&self, range: Range, event: Event) -> Invalidation<'_> {
        let change = Change::new(range, event, Blocking::Allowed).with_owner(self.owner());
        self.shared.space.begin(change).expect("who may wait is not refused")
    }
}
