//! The list of subscribers, replaced as a whole and read without a lock.
//!
//! A list never changes once it is published. Who walks it has put on record that it does
//! ([`OpenChanges`]); a list that was replaced is freed when nobody is on record with it.
//!
//! # Cost
//!
//! A walk loads one pointer. A replacement allocates and copies the list; nobody ever holds a lock, so
//! it may happen anywhere, also inside a callback and while the allocator itself changes the address
//! space.

// UNSAFETY: lists are shared by a raw pointer so that a walk writes to no shared cache line (an `Arc`
// would count), and a subscriber is taken out of its entry while walks that began earlier still see the
// entry. Both rest on the record of open changes.
#![expect(unsafe_code)]

use std::fmt;

use crate::caller::Caller;
use crate::open::{Held, OpenChanges};
use crate::sync::{Arc, AtomicBool, AtomicPtr, Ordering, UnsafeCell};
use crate::{Refuser, Subscriber};

/// What a subscriber is.
pub(crate) enum Kind {
    Paired(Box<dyn Subscriber>),
    Refuser(Box<dyn Refuser>),
}

impl Kind {
    pub(crate) fn release(&self) {
        match self {
            Kind::Paired(subscriber) => subscriber.release(),
            Kind::Refuser(refuser) => refuser.release(),
        }
    }
}

/// One subscriber on the list.
pub(crate) struct Entry {
    /// No callback may begin any more. Set once.
    gone: AtomicBool,
    /// `release` has been called. Set once.
    released: AtomicBool,
    /// `None` once it has been taken out.
    kind: UnsafeCell<Option<Kind>>,
}

// SAFETY: `kind` is read (shared) by callers on record, and written only in `Entry::take`, whose caller
// has waited until no caller on record can read it. `Kind` itself is `Send + Sync` by its traits' bounds.
unsafe impl Sync for Entry {}
// SAFETY: all parts are `Send`.
unsafe impl Send for Entry {}

impl Entry {
    pub(crate) fn new(kind: Kind) -> Arc<Entry> {
        Arc::new(Entry {
            gone: AtomicBool::new(false),
            released: AtomicBool::new(false),
            kind: UnsafeCell::new(Some(kind)),
        })
    }

    /// The identity of the entry, for [`Held::calling`].
    pub(crate) fn address(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    /// Its subscriber, unless it has gone. The proof of being on record is `held`.
    #[inline]
    pub(crate) fn subscriber<'a>(&'a self, _held: &'a Held<'_>) -> Option<&'a Kind> {
        // Relaxed: the full fence of `claim` or `finish`, whose phase `held` is in, lies before.
        if self.gone.load(Ordering::Relaxed) {
            return None;
        }
        // SAFETY: `held` is in phase Starting or Ending, and `gone` was false after its fence. Whoever sets
        // `gone` and wants to take the subscriber fences after that and then waits for our phase to end
        // (`OpenChanges::wait_for_callbacks`), so `take` cannot run while this reference lives.
        self.kind.with(|kind| unsafe { (*kind).as_ref() })
    }

    /// No callback begins after this, except by who is on record already.
    pub(crate) fn leave(&self) {
        // Relaxed: the fence in `wait_for_callbacks` follows before anybody relies on it.
        self.gone.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_left(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// True for the first who asks: that one calls `release`.
    pub(crate) fn claim_release(&self) -> bool {
        // Relaxed: only who is first matters.
        !self.released.swap(true, Ordering::Relaxed)
    }

    /// Drops the subscriber, after its callbacks are over for good.
    ///
    /// # Safety
    ///
    /// [`leave`](Entry::leave) was called, then [`OpenChanges::wait_for_callbacks`] returned true in the same
    /// thread, and no other thread calls this.
    unsafe fn take(&self) -> Option<Kind> {
        // SAFETY: by the caller's promise no reference from `subscriber` lives, and none will be made.
        self.kind.with_mut(|kind| unsafe { (*kind).take() })
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("gone", &self.has_left()).finish_non_exhaustive()
    }
}

/// Some subscribers, the newest first, as in Linux.
struct List {
    entries: Box<[Arc<Entry>]>,
    /// The next list that waits to be freed; written only by who owns this list exclusively.
    next_retired: *mut List,
}

/// The list in force, and those that were replaced and may still be walked.
pub(crate) struct Published {
    /// Null: nobody.
    current: AtomicPtr<List>,
    /// A stack linked by `next_retired`.
    retired: AtomicPtr<List>,
}

impl Published {
    pub(crate) fn new() -> Published {
        Published {
            current: AtomicPtr::new(std::ptr::null_mut()),
            retired: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Whether nobody is subscribed.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // Relaxed: the list is not looked into.
        self.current.load(Ordering::Relaxed).is_null()
    }

    /// Finds the list in force for a change that has just been put on record, and records it.
    #[inline]
    pub(crate) fn walk<'a>(&self, held: &'a Held<'_>) -> &'a [Arc<Entry>] {
        // Acquire pairs with the Release in `replace`: the entries are complete.
        let list = self.current.load(Ordering::Acquire);
        held.walks(list as usize);
        Self::entries(list, held)
    }

    /// The list that a change found when it was put on record.
    #[inline]
    pub(crate) fn walk_again<'a>(&self, held: &'a Held<'_>) -> &'a [Arc<Entry>] {
        Self::entries(held.list() as *mut List, held)
    }

    #[inline]
    fn entries<'a>(list: *mut List, _held: &'a Held<'_>) -> &'a [Arc<Entry>] {
        if list.is_null() {
            return &[];
        }
        // SAFETY: the list was in force after the claim's fence, and the slot of `held` has been on record
        // with it (or with "any list") ever since, so `collect` has not freed it; lists are not written
        // after they are published, but for `next_retired`, which nobody reads through this reference.
        unsafe { &(*list).entries }
    }

    /// Publishes a changed list: `edit` turns the entries in force into new ones, or says that there is
    /// nothing to do. Returns the address of the new list.
    pub(crate) fn replace(
        &self,
        held: &Held<'_>,
        edit: impl Fn(&[Arc<Entry>]) -> Option<Box<[Arc<Entry>]>>,
    ) -> Option<usize> {
        loop {
            // Acquire pairs with the Release below. `held` is on record as walking any list, so this one stays, and
            // its address cannot come back as that of another list before the exchange.
            let old = self.current.load(Ordering::Acquire);
            let entries = edit(Self::entries(old, held))?;
            let new = if entries.is_empty() {
                std::ptr::null_mut()
            } else {
                Box::into_raw(Box::new(List { entries, next_retired: std::ptr::null_mut() }))
            };
            // Release pairs with the Acquire in `walk`.
            if self.current.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                self.retire(old);
                return Some(new as usize);
            }
            if !new.is_null() {
                // SAFETY: made by `Box::into_raw` above and never published.
                drop(unsafe { Box::from_raw(new) });
            }
        }
    }

    fn retire(&self, list: *mut List) {
        if list.is_null() {
            return;
        }
        // Relaxed load: the exchange below checks it.
        let mut head = self.retired.load(Ordering::Relaxed);
        loop {
            // SAFETY: whoever took `list` out of force (or off the retired stack) is the only one who writes
            // `next_retired`, and nobody reads it before the exchange below publishes it.
            unsafe { (&raw mut (*list).next_retired).write(head) };
            // Release pairs with the Acquire in `collect`.
            match self.retired.compare_exchange_weak(head, list, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Frees the lists that nobody walks any more. Must not run in a hook: it frees memory.
    pub(crate) fn collect(&self, open: &OpenChanges) {
        // Acquire pairs with the Release in `retire`. From here on the whole stack is ours.
        let mut list = self.retired.swap(std::ptr::null_mut(), Ordering::Acquire);
        while !list.is_null() {
            // SAFETY: the list is ours, by the swap.
            let next = unsafe { (&raw const (*list).next_retired).read() };
            if open.holds(list as usize) {
                self.retire(list);
            } else {
                // SAFETY: it came from `Box::into_raw`, was taken out of force before the fence in `holds`, and
                // nobody on record holds it: nobody can reach it.
                drop(unsafe { Box::from_raw(list) });
            }
            list = next;
        }
    }

    /// Takes `entry` off the list, waits until its callbacks are over, and hands out its subscriber; `None`
    /// if the calling thread is in one of these callbacks: then the subscriber goes with the last list.
    ///
    /// To be called once per entry, by the owner of its subscription.
    pub(crate) fn remove(
        &self,
        open: &OpenChanges,
        caller: &Caller,
        held: Held<'_>,
        entry: &Arc<Entry>,
    ) -> Option<Kind> {
        entry.leave();
        self.replace(&held, |entries| {
            let others: Box<[_]> =
                entries.iter().filter(|other| !Arc::ptr_eq(other, entry)).cloned().collect();
            (others.len() < entries.len()).then_some(others)
        });
        held.free();
        if open.wait_for_callbacks(caller, entry.address()) {
            // SAFETY: `leave` and `wait_for_callbacks` came before, in this order, in this thread; the owner of
            // the subscription calls this once.
            unsafe { entry.take() }
        } else {
            None
        }
    }

    /// Forgets all lists without freeing them: in a forked child the allocator may be locked.
    pub(crate) fn forget_all(&self, open: &OpenChanges, caller: &Caller, nobody: &crate::Change) {
        if let Some(held) = open.claim(caller, nobody) {
            for entry in self.walk(&held) {
                entry.leave();
                // Whoever drops the parent's subscription here must not tell the parent's subscriber.
                entry.claim_release();
            }
            held.free();
        }
        // Relaxed: there is only one thread.
        self.current.store(std::ptr::null_mut(), Ordering::Relaxed);
        self.retired.store(std::ptr::null_mut(), Ordering::Relaxed);
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        // SAFETY (both blocks): `&mut self` means that nobody walks; the lists came from `Box::into_raw`.
        let current = self.current.load(Ordering::Relaxed);
        if !current.is_null() {
            // SAFETY: see above.
            drop(unsafe { Box::from_raw(current) });
        }
        let mut list = self.retired.load(Ordering::Relaxed);
        while !list.is_null() {
            // SAFETY: see above.
            let owned = unsafe { Box::from_raw(list) };
            list = owned.next_retired;
        }
    }
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Published")
    }
}
