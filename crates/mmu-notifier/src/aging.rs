//! Aging: whether pages were accessed through a secondary MMU.
//!
//! Reclaim asks the page table which pages are young; who reaches pages by a table of its own has to be asked, too.
//! In Linux these are three more callbacks of a subscriber; here aging is a kind of subscriber of its own, so that a
//! change walks nobody who only ages, and aging nobody who does not. Who does both subscribes twice.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::list::{Entry, Kind};
use crate::slot::Phase;
use crate::{AddressSpace, Range, Subscription};

/// Knows which pages were accessed through it.
///
/// The callbacks run inside the reclaim of memory: they must not wait. What they get wrong costs time, not data.
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
/// use mmu_notifier::{AddressSpace, Aging, Range};
///
/// struct OnePage(AtomicBool);
/// impl Aging for OnePage {
///     fn clear_flush_young(&self, range: Range) -> bool { self.clear_young(range) /* and flush the TLB */ }
///     fn clear_young(&self, _: Range) -> bool { self.0.swap(false, Relaxed) }
///     fn test_young(&self, _: usize) -> bool { self.0.load(Relaxed) }
/// }
///
/// let space = AddressSpace::new();
/// let subscription = space.subscribe_aging(OnePage(AtomicBool::new(true)));
/// assert!(space.test_young(0x1000), "accessed");
/// assert!(space.clear_young(Range::new(0x1000, 0x2000)?), "accessed, and now old");
/// assert!(!space.test_young(0x1000));
/// # Ok::<(), mmu_notifier::RangeError>(())
/// ```
pub trait Aging: Send + Sync {
    /// Makes the pages of `range` old and flushes their cached translations; whether one was young. Who has no accessed
    /// bits drops the translations and says whether there were any.
    fn clear_flush_young(&self, range: Range) -> bool;

    /// The same without the duty to flush: the next access through a cached translation may go unseen.
    fn clear_young(&self, range: Range) -> bool;

    /// Whether the page at `address` is young; changes nothing.
    fn test_young(&self, address: usize) -> bool;

    /// See [`Subscriber::release`](crate::Subscriber::release).
    fn release(&self) {}
}

impl<S: Aging + ?Sized> Aging for Arc<S> {
    fn clear_flush_young(&self, range: Range) -> bool {
        (**self).clear_flush_young(range)
    }

    fn clear_young(&self, range: Range) -> bool {
        (**self).clear_young(range)
    }

    fn test_young(&self, address: usize) -> bool {
        (**self).test_young(address)
    }

    fn release(&self) {
        (**self).release();
    }
}

impl AddressSpace {
    /// Asks `aging` from now on. As [`subscribe`](AddressSpace::subscribe), but waits for nothing.
    pub fn subscribe_aging<S: Aging + 'static>(&self, aging: S) -> Subscription {
        self.add(Entry::new(Kind::Aging(Box::new(aging)), std::any::type_name::<S>()))
    }

    /// Makes the pages of `range` old in every secondary MMU and flushes what they have cached; whether any was young.
    /// Everybody is asked. To be OR-ed with what the page table itself says.
    ///
    /// # Panics
    ///
    /// If a callback panics, after everybody was asked.
    #[doc(alias = "mmu_notifier_clear_flush_young")]
    pub fn clear_flush_young(&self, range: Range) -> bool {
        self.age(|aging| aging.clear_flush_young(range), false)
    }

    /// The same without a flush.
    ///
    /// # Panics
    ///
    /// As [`clear_flush_young`](AddressSpace::clear_flush_young).
    #[doc(alias = "mmu_notifier_clear_young")]
    pub fn clear_young(&self, range: Range) -> bool {
        self.age(|aging| aging.clear_young(range), false)
    }

    /// Whether the page at `address` is young in some secondary MMU; the first who says so is the last who is asked.
    ///
    /// # Panics
    ///
    /// If a callback panics.
    #[doc(alias = "mmu_notifier_test_young")]
    pub fn test_young(&self, address: usize) -> bool {
        self.age(|aging| aging.test_young(address), true)
    }

    fn age(&self, ask: impl Fn(&dyn Aging) -> bool, one_is_enough: bool) -> bool {
        let shared = &self.shared;
        if shared.aging.is_empty() {
            return false;
        }
        let held = shared.claim(&self.caller(), Phase::Calling);
        let (mut young, mut panic) = (false, None);
        for entry in shared.aging.walk(held) {
            if let Some(Kind::Aging(aging)) = entry.subscriber(held)
                && !held.skips(entry.address())
            {
                held.set_calling(entry.address());
                match catch_unwind(AssertUnwindSafe(|| ask(&**aging))) {
                    Ok(answer) => young |= answer,
                    Err(first) => drop(panic.get_or_insert(first)),
                }
                if young && one_is_enough {
                    break;
                }
            }
        }
        held.set_calling(0);
        shared.open.free(held);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        young
    }
}
