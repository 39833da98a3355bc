//! i915 today: an interval an object. A change stops nothing; whoever submits next finds the pages stale.
//!
//! ```
//! use mmu_notifier::{AddressSpace, Event, Range};
//! use mmu_notifier_secondary::device::{Access, Page};
//! use mmu_notifier_secondary::userptr::tracked::{Object, Pinner, Stale};
//!
//! /// Memory whose pages stay while somebody has them pinned.
//! struct Memory;
//! impl Pinner for Memory {
//!     fn pin(&self, address: usize, _: Access) -> Option<Page> { Some(Page::writable(address)) }
//!     fn unpin(&self, _: usize, _: Page) {}
//! }
//!
//! let space = AddressSpace::new();
//! let memory = Range::new(0x10000, 0x14000)?;
//! let object = Object::new(&space, Memory, memory, Access::Write)?;
//!
//! let job = object.prepare()?.submit()?;
//! assert_eq!(job.pages().len(), 4);
//! let late = object.prepare()?;
//! assert!(space.try_invalidate(memory, Event::Clear, || ()).is_ok(), "never refused");
//! assert_eq!(late.submit().unwrap_err(), Stale);
//! assert_eq!(job.pages().len(), 4, "the old pages, still pinned");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What that keeps, and what not
//!
//! A job that is prepared after the end of a change has the pages of after it. A job that is being submitted while a change
//! begins may have those of before; they are pinned until it is dropped, so what it writes goes nowhere, but destroys nothing.
//! Who needs more must stop the jobs: [`listed`](super::listed).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mmu_notifier::{
    AddressSpace, Change, IntervalSubscriber, IntervalSubscription, PAGE_SIZE, Pass, Range, Ticket,
    WouldBlock,
};

use super::{ATTEMPTS, BindError, ObjectError, of_pages, pages};
use crate::device::{Access, Page};

/// Memory whose pages can be pinned: they stay, if nowhere else, as long as somebody has them pinned.
///
/// Called outside of callbacks and without a lock, by several threads at a time.
#[doc(alias = "pin_user_pages_fast")]
pub trait Pinner: Send + Sync {
    /// Pins the page that begins at `address`, for that access; none if there is none or the access is forbidden.
    fn pin(&self, address: usize, access: Access) -> Option<Page>;

    /// Gives back what [`pin`](Pinner::pin) returned for that address, once each.
    #[doc(alias = "unpin_user_page")]
    fn unpin(&self, address: usize, page: Page);
}

impl<P: Pinner + ?Sized> Pinner for Arc<P> {
    fn pin(&self, address: usize, access: Access) -> Option<Page> {
        (**self).pin(address, access)
    }

    fn unpin(&self, address: usize, page: Page) {
        (**self).unpin(address, page);
    }
}

/// Memory of the program that jobs may use.
#[doc(alias = "i915_gem_userptr_ops")]
pub struct Object {
    space: AddressSpace,
    interval: IntervalSubscription,
    pinner: Arc<dyn Pinner>,
    access: Access,
    /// The last ones. The lock is held for no call.
    pinned: Mutex<Option<Pinned>>,
}

/// Pages, and the ticket that they were pinned under.
#[derive(Clone)]
struct Pinned {
    pages: Arc<Pages>,
    ticket: Ticket,
}

/// Pinned until dropped.
struct Pages {
    pinner: Arc<dyn Pinner>,
    start: usize,
    pages: Vec<Page>,
}

impl Drop for Pages {
    fn drop(&mut self) {
        for (number, page) in self.pages.iter().enumerate() {
            self.pinner.unpin(self.start + number * PAGE_SIZE, *page);
        }
    }
}

/// What the address space tells: the sequence of the interval is raised, and that is all.
struct Told;

impl IntervalSubscriber for Told {
    fn invalidate(&self, _: &Change) -> Pass {
        Pass::Done
    }

    fn try_invalidate(&self, _: &Change) -> Result<Pass, WouldBlock> {
        Ok(Pass::Done)
    }
}

impl Object {
    /// An object for that memory; pins nothing yet.
    ///
    /// # Errors
    ///
    /// [`ObjectError`] if the range is not of whole pages, or `space` has been released.
    #[doc(alias = "i915_gem_userptr_init__mmu_notifier")]
    pub fn new(
        space: &AddressSpace,
        pinner: impl Pinner + 'static,
        range: Range,
        access: Access,
    ) -> Result<Object, ObjectError> {
        let interval = space.insert(of_pages(range)?, Told).map_err(|_| ObjectError::Released)?;
        let (pinner, pinned) = (Arc::new(pinner), Mutex::new(None));
        Ok(Object { space: space.clone(), interval, pinner, access, pinned })
    }

    /// The memory.
    pub fn range(&self) -> Range {
        self.interval.range()
    }

    fn pinned(&self) -> MutexGuard<'_, Option<Pinned>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pages as they are now: those that are pinned, if no change came since, or new ones.
    ///
    /// On a miss waits for open changes of the memory and for the pinner.
    ///
    /// # Errors
    ///
    /// [`BindError`] says why there are none.
    #[doc(alias = "i915_gem_object_userptr_submit_init")]
    pub fn prepare(&self) -> Result<Prepared<'_>, BindError> {
        let pinned = self.pinned().clone();
        if let Some(pinned) = pinned
            && !self.interval.is_stale(&pinned.ticket)
        {
            return Ok(Prepared { object: self, pinned });
        }
        let range = self.range();
        for _ in 0..ATTEMPTS {
            let ticket = self.interval.read();
            if self.space.is_released() {
                return Err(BindError::Released);
            }
            if self.interval.is_stale(&ticket) && !self.space.wait_for_changes(range) {
                return Err(BindError::Changing { range });
            }
            let (found, missing) = self.pin();
            if self.interval.is_stale(&ticket) {
                continue;
            }
            if let Some(address) = missing {
                return Err(BindError::NotMapped { address, access: self.access });
            }
            let pinned = Pinned { pages: Arc::new(found), ticket };
            let old = self.pinned().replace(pinned.clone());
            drop(old);
            return Ok(Prepared { object: self, pinned });
        }
        Err(BindError::Unsettled { range })
    }

    /// Those that can be pinned, and the first that cannot.
    fn pin(&self) -> (Pages, Option<usize>) {
        let range = self.range();
        let (pinner, start) = (self.pinner.clone(), range.start());
        let mut found = Pages { pinner, start, pages: Vec::with_capacity(range.len() / PAGE_SIZE) };
        for address in pages(range) {
            match self.pinner.pin(address, self.access) {
                Some(page) => found.pages.push(page),
                None => return (found, Some(address)),
            }
        }
        (found, None)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("range", &self.range()).finish_non_exhaustive()
    }
}

/// The pages have changed since the job was prepared: prepare it again.
#[doc(alias = "EAGAIN")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pages have changed since the job was prepared")]
pub struct Stale;

/// A job whose commands can be built, as its pages are known, but which has not been submitted.
pub struct Prepared<'a> {
    object: &'a Object,
    pinned: Pinned,
}

impl Prepared<'_> {
    /// Those of the object, in order.
    pub fn pages(&self) -> &[Page] {
        &self.pinned.pages.pages
    }

    /// The last look at the sequence, when everything else is done. Never waits.
    ///
    /// # Errors
    ///
    /// [`Stale`] if a change has begun since the pages were pinned.
    #[doc(alias = "i915_gem_object_userptr_submit_done")]
    pub fn submit(self) -> Result<Job, Stale> {
        if self.object.interval.is_stale(&self.pinned.ticket) {
            return Err(Stale);
        }
        Ok(Job(self.pinned.pages))
    }
}

impl fmt::Debug for Prepared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Prepared").field(&self.object.range()).finish()
    }
}

/// Work of the device on pinned pages, until it is dropped. May outlive the object.
pub struct Job(Arc<Pages>);

impl Job {
    /// Those of the object when the job was prepared, in order. They stay pinned.
    pub fn pages(&self) -> &[Page] {
        &self.0.pages
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Job").field(&self.pages().len()).finish()
    }
}
