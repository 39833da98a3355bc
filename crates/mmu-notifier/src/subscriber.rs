//! Who is told: the two kinds of subscriber.
//!
//! In Linux a subscriber that can refuse a start and also has an end is found out at run time
//! (`mn_hlist_invalidate_range_start` warns), and so is one that refuses a start it must not refuse.
//! Here they are two traits: a [`Subscriber`] cannot refuse and has an end; a [`Refuser`] may refuse
//! *non-blocking* starts and has no end.

use std::sync::Arc;

use crate::list::Told;
use crate::slot::Slot;
use crate::{Blocking, Change, WouldBlock};

/// Is told before and after every change. Its start cannot fail; every start that returned is followed
/// by exactly one end.
///
/// Between the two it must not take up anything new from the range: the pages are about to go.
///
/// A callback must not unwind: a panic is carried on to whoever changes the address space, after all
/// others got their ends. A change that a callback itself makes is not announced to the same
/// subscriber again; all others are told.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
/// use mmu_notifier::{AddressSpace, Change, Event, Range, Subscriber};
///
/// /// Counts the changes in progress, as KVM does.
/// #[derive(Default)]
/// struct InProgress(AtomicI64);
/// impl Subscriber for InProgress {
///     fn start(&self, _: &Change) { self.0.fetch_add(1, Relaxed); }
///     fn end(&self, _: &Change) { self.0.fetch_sub(1, Relaxed); }
/// }
///
/// let space = AddressSpace::new();
/// let count = Arc::new(InProgress::default());
/// let subscription = space.subscribe(count.clone());
/// space.invalidate(Range::new(0x1000, 0x2000)?, Event::Unmap, || assert_eq!(count.0.load(Relaxed), 1));
/// assert_eq!(count.0.load(Relaxed), 0);
/// # Ok::<(), mmu_notifier::RangeError>(())
/// ```
///
/// A `Subscriber` has no way to refuse:
///
/// ```compile_fail
/// # use mmu_notifier::{Change, Subscriber, WouldBlock};
/// struct Nouveau;
/// impl Subscriber for Nouveau {
///     fn start(&self, _: &Change) -> Result<(), WouldBlock> { Err(WouldBlock) }
///     fn end(&self, _: &Change) {}
/// }
/// ```
#[doc(alias = "mmu_notifier_ops")]
pub trait Subscriber: Send + Sync {
    /// The range is about to change. When this returns, nothing goes through this subscriber to the
    /// range any more. May wait only if [`change.blocking()`](Change::blocking) allows it.
    #[doc(alias = "invalidate_range_start")]
    fn start(&self, change: &Change);

    /// The change is done (or was called off). Same rule for waiting as at the start.
    #[doc(alias = "invalidate_range_end")]
    fn end(&self, change: &Change);

    /// The address space is going, or the subscription is: drop everything. The last callback, but for
    /// those that other threads are in already when the address space goes. Open changes get no end.
    fn release(&self) {}
}

/// Is told before every change, may refuse those that must not wait, and has no end.
///
/// ```
/// use mmu_notifier::{AddressSpace, Change, Event, Range, Refuser, WouldBlock};
///
/// /// Drops pages at once when idle; a busy one has to wait for its job.
/// struct Userptr { busy: bool }
/// impl Refuser for Userptr {
///     fn start(&self, _: &Change) { /* wait for the job, drop the pages */ }
///     fn try_start(&self, _: &Change) -> Result<(), WouldBlock> {
///         if self.busy { Err(WouldBlock) } else { Ok(()) }
///     }
/// }
///
/// let space = AddressSpace::new();
/// let subscription = space.subscribe_refuser(Userptr { busy: true });
/// let pages = Range::new(0x1000, 0x2000)?;
/// assert!(space.try_invalidate(pages, Event::Clear, || unreachable!("it was refused")).is_err());
/// space.invalidate(pages, Event::Clear, || { /* there is time to wait: cannot be refused */ });
/// # Ok::<(), mmu_notifier::RangeError>(())
/// ```
///
/// A `Refuser` cannot have an end:
///
/// ```compile_fail
/// # use mmu_notifier::{Change, Refuser, WouldBlock};
/// struct Kvm;
/// impl Refuser for Kvm {
///     fn start(&self, _: &Change) {}
///     fn try_start(&self, _: &Change) -> Result<(), WouldBlock> { Ok(()) }
///     fn end(&self, _: &Change) {}
/// }
/// ```
pub trait Refuser: Send + Sync {
    /// The range is about to change, and there is time to wait. Cannot fail.
    fn start(&self, change: &Change);

    /// The range is about to change, and this must not wait, not for a lock and not for memory.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`] if it would have to: then the change does not take place. Other subscribers are
    /// asked all the same.
    fn try_start(&self, change: &Change) -> Result<(), WouldBlock>;

    /// See [`Subscriber::release`].
    fn release(&self) {}
}

impl<S: Subscriber + ?Sized> Subscriber for Arc<S> {
    fn start(&self, change: &Change) {
        (**self).start(change);
    }

    fn end(&self, change: &Change) {
        (**self).end(change);
    }

    fn release(&self) {
        (**self).release();
    }
}

impl<S: Refuser + ?Sized> Refuser for Arc<S> {
    fn start(&self, change: &Change) {
        (**self).start(change);
    }

    fn try_start(&self, change: &Change) -> Result<(), WouldBlock> {
        (**self).try_start(change)
    }

    fn release(&self) {
        (**self).release();
    }
}

/// A [`Subscriber`] on the list.
pub(crate) struct Paired<S>(pub(crate) S);

impl<S: Subscriber> Told for Paired<S> {
    fn start(&self, _: &Slot, change: &Change) -> Result<(), WouldBlock> {
        self.0.start(change);
        Ok(())
    }

    fn end(&self, _: &Slot, change: &Change) {
        self.0.end(change);
    }

    fn release(&self) {
        self.0.release();
    }
}

/// A [`Refuser`] on the list.
pub(crate) struct Refusing<R>(pub(crate) R);

impl<R: Refuser> Told for Refusing<R> {
    fn start(&self, _: &Slot, change: &Change) -> Result<(), WouldBlock> {
        match change.blocking() {
            Blocking::Forbidden => self.0.try_start(change),
            Blocking::Allowed => {
                self.0.start(change);
                Ok(())
            }
        }
    }

    fn end(&self, _: &Slot, _: &Change) {}

    fn release(&self) {
        self.0.release();
    }
}
