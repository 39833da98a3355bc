//! Secondary TLBs: hardware that walks the processor's own page table and caches what it finds.
//!
//! Such hardware can refill its cache at any time, so the start of a change is too early to flush it and the end too
//! late: it is flushed where the processor's own TLB is, between a page-table entry's change and the free of its page.
//! Linux since 6.6 refuses a subscriber that has both this callback and start or end
//! (`__mmu_notifier_register`); here they are different traits and different subscriptions.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::list::{Entry, Kind};
use crate::slot::Phase;
use crate::{AddressSpace, Range, Subscription};

/// Is told to flush what it has cached of a range, independently of changes.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use mmu_notifier::{AddressSpace, Range, SecondaryTlb};
///
/// struct Iommu(Mutex<Vec<Range>>);
/// impl SecondaryTlb for Iommu {
///     fn flush(&self, range: Range) { self.0.lock().unwrap().push(range); }
/// }
///
/// let space = AddressSpace::new();
/// let iommu = Arc::new(Iommu(Mutex::default()));
/// let subscription = space.subscribe_tlb(iommu.clone());
/// let pages = Range::new(0x1000, 0x2000)?;
/// space.flush(pages);
/// assert_eq!(*iommu.0.lock().unwrap(), [pages]);
/// # Ok::<(), mmu_notifier::RangeError>(())
/// ```
///
/// It has no start and no end:
///
/// ```compile_fail
/// # use mmu_notifier::{Change, Range, SecondaryTlb};
/// struct Both;
/// impl SecondaryTlb for Both {
///     fn flush(&self, _: Range) {}
///     fn start(&self, _: &Change) {}
/// }
/// ```
pub trait SecondaryTlb: Send + Sync {
    /// Drops every cached translation of `range`, which may be part of a change that is open, or of none. Must not wait.
    /// [`Range::EVERYTHING`] means all.
    #[doc(alias = "arch_invalidate_secondary_tlbs")]
    fn flush(&self, range: Range);

    /// The address space is going, or the subscription is: stop to walk the page table, as no flush comes any more.
    fn release(&self) {}
}

impl<S: SecondaryTlb + ?Sized> SecondaryTlb for Arc<S> {
    fn flush(&self, range: Range) {
        (**self).flush(range);
    }

    fn release(&self) {
        (**self).release();
    }
}

impl AddressSpace {
    /// Tells `tlb` of every flush from now on. As [`subscribe`](AddressSpace::subscribe), but waits for nothing.
    pub fn subscribe_tlb<S: SecondaryTlb + 'static>(&self, tlb: S) -> Subscription {
        self.add(Entry::new(Kind::Tlb(Box::new(tlb)), std::any::type_name::<S>()))
    }

    /// Flushes every secondary TLB: to be called where the processor's own is flushed.
    ///
    /// # Panics
    ///
    /// If a callback panics, after everybody was told.
    #[doc(alias = "mmu_notifier_arch_invalidate_secondary_tlbs")]
    pub fn flush(&self, range: Range) {
        let shared = &self.shared;
        if shared.tlbs.is_empty() {
            return;
        }
        let held = shared.claim(&self.caller(), Phase::Calling);
        let mut panic = None;
        for entry in shared.tlbs.walk(held) {
            if let Some(Kind::Tlb(tlb)) = entry.subscriber(held)
                && !held.skips(entry.address())
            {
                held.set_calling(entry.address());
                if let Err(first) = catch_unwind(AssertUnwindSafe(|| tlb.flush(range))) {
                    panic.get_or_insert(first);
                }
            }
        }
        held.set_calling(0);
        shared.open.free(held);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}
