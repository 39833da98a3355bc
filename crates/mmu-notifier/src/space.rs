//! An address space and who is told of its changes.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::caller::Caller;
use crate::invalidation::Panic;
use crate::list::{Entry, Kind, Published};
use crate::open::{Held, OpenChange, OpenChanges};
use crate::sync::{Arc as SyncArc, Backoff};
use crate::{Blocking, Change, Event, Range, Refuser, Subscriber};

/// An address space: the subscribers that mirror it, and the changes that are under way.
///
/// Cloning gives another handle to the same address space. Everything may be called from any thread, also
/// inside callbacks.
///
/// # Cost
///
/// A change costs two atomic read-modify-write instructions on a cache line that other threads do not
/// write, and two calls per subscriber. Nothing is allocated and no lock is taken between start and end.
/// [`subscribe`](AddressSpace::subscribe) and dropping a [`Subscription`] allocate and may wait.
#[derive(Clone, Debug)]
#[doc(alias = "mm_struct")]
#[doc(alias = "notifier_subscriptions")]
pub struct AddressSpace {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) open: OpenChanges,
    pub(crate) list: Published,
    caller: fn() -> Caller,
}

impl AddressSpace {
    /// Memory that the record of open changes takes, in bytes: the most of an address space without subscribers.
    pub const BYTES: usize = OpenChanges::BYTES;

    /// An address space without subscribers.
    pub fn new() -> AddressSpace {
        AddressSpace::with_callers(Caller::current)
    }

    /// An address space for changes that are made where thread-locals must not be touched: `caller` says
    /// who is calling.
    ///
    /// It must give the same [`Caller::thread`] for the same thread, whoever asks, and different ones for
    /// threads that live at the same time.
    pub fn with_callers(caller: fn() -> Caller) -> AddressSpace {
        let shared = Shared { open: OpenChanges::new(), list: Published::new(), caller };
        AddressSpace { shared: Arc::new(shared) }
    }

    /// The calling thread, as this address space knows it.
    pub fn caller(&self) -> Caller {
        (self.shared.caller)()
    }

    /// Tells `subscriber` of every change from now on.
    ///
    /// Returns when no change is under way any more that `subscriber` was not told of; changes that the
    /// calling thread itself has open (this is a callback) are left out, as they could never end.
    /// Allocates.
    ///
    /// # Panics
    ///
    /// If there are 65,535 subscribers already.
    ///
    /// The subscriber is told until the [`Subscription`] is dropped. To keep a handle to it, subscribe
    /// an [`Arc`].
    #[doc(alias = "mmu_notifier_register")]
    pub fn subscribe(&self, subscriber: impl Subscriber + 'static) -> Subscription {
        self.add(Kind::Paired(Box::new(subscriber)))
    }

    /// Asks `refuser` before every change from now on. As [`subscribe`](AddressSpace::subscribe).
    pub fn subscribe_refuser(&self, refuser: impl Refuser + 'static) -> Subscription {
        self.add(Kind::Refuser(Box::new(refuser)))
    }

    fn add(&self, kind: Kind) -> Subscription {
        let entry = Entry::new(kind);
        let caller = self.caller();
        let held = self.record(&caller);
        let list = self.shared.list.replace(&held, |entries| {
            let room = entries.len() < usize::from(u16::MAX);
            room.then(|| std::iter::once(&entry).chain(entries).cloned().collect())
        });
        held.free();
        let list = list.expect("an address space has at most 65,535 subscribers");
        self.shared.open.wait_for_strangers(&caller, list);
        self.shared.list.collect(&self.shared.open);
        Subscription { space: self.clone(), entry }
    }

    /// Goes on record as a reader of any list, without a change.
    fn record(&self, caller: &Caller) -> Held<'_> {
        let nothing = Change::new(Range::EVERYTHING, Event::Release, Blocking::Allowed);
        self.claim(caller, &nothing)
    }

    /// Goes on record; waits while all slots are in use.
    pub(crate) fn claim(&self, caller: &Caller, change: &Change) -> Held<'_> {
        let mut backoff = Backoff::default();
        loop {
            if let Some(held) = self.shared.open.claim(caller, change) {
                return held;
            }
            backoff.wait();
        }
    }

    /// Starts a change that nobody has to be told of: `None` if somebody is subscribed, if the calling thread is inside
    /// another change, or if its place is taken. Then [`start`](AddressSpace::start) does it.
    ///
    /// For the hook of a system call. Calls nobody, and is meant to become a few dozen instructions of its caller.
    #[inline(always)]
    pub fn start_unheard(&self, caller: &Caller, change: &Change) -> Option<OpenChange> {
        let Shared { open, list, .. } = &*self.shared;
        if !list.is_empty() || open.may_hold(caller) {
            return None;
        }
        let held = open.claim_first(caller, change)?;
        // After the claim and its fence: who subscribes now sees the claim and waits.
        if list.is_empty() {
            held.walks(0);
            Some(held.changing())
        } else {
            held.free();
            None
        }
    }

    /// Ends what [`start_unheard`](AddressSpace::start_unheard) has returned, in the same thread.
    #[inline(always)]
    pub fn end_unheard(&self, open: OpenChange) {
        self.shared.open.free_unheard(open);
    }

    /// Whether the calling thread may have a change open, whether it is inside of it or has abandoned it: one look,
    /// to know whether [`end_abandoned`](AddressSpace::end_abandoned) can have anything to do.
    #[inline(always)]
    pub fn may_have_open(&self, caller: &Caller) -> bool {
        self.shared.open.may_hold(caller)
    }

    /// The address space is going: tells every subscriber once by `release`, then nobody of anything.
    ///
    /// Does not wait for callbacks that other threads are in. Subscriptions stay to be dropped.
    ///
    /// # Panics
    ///
    /// If somebody's `release` panics, after all others have been told.
    #[doc(alias = "mmu_notifier_release")]
    pub fn release(&self) {
        let caller = self.caller();
        let held = self.record(&caller);
        let mut panic = None;
        for entry in self.shared.list.walk(&held) {
            if let Err(first) = release(entry, &held) {
                panic.get_or_insert(first);
            }
            entry.leave();
        }
        held.free();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Makes this the empty address space of a forked child.
    ///
    /// To be called in the child, by its only thread, before anything else of this address space is used.
    /// No subscriber of the parent is told anything any more, not even by `release`: they are the parent's.
    /// Neither allocates nor frees (the allocator may be locked by a thread that does not exist here), so
    /// the memory of the parent's subscribers stays.
    #[doc(alias = "dup_mmap")]
    pub fn forked(&self) {
        self.shared.open.forget_all();
        let nothing = Change::new(Range::EVERYTHING, Event::Release, Blocking::Allowed);
        self.shared.list.forget_all(&self.shared.open, &self.caller(), &nothing);
    }
}

impl Default for AddressSpace {
    fn default() -> AddressSpace {
        AddressSpace::new()
    }
}

/// Calls `release`, if nobody has yet.
fn release(entry: &Entry, held: &Held<'_>) -> Result<(), Panic> {
    held.calling(entry.address(), || match entry.subscriber(held) {
        Some(kind) if entry.claim_release() => catch_unwind(AssertUnwindSafe(|| kind.release())),
        _ => Ok(()),
    })
}

/// Keeps a subscriber subscribed. Dropping it unsubscribes.
///
/// The drop waits for callbacks of other threads that are running; when it returns, no callback of the
/// subscriber runs or will run, `release` was the last one, and the subscriber itself has been dropped.
/// Changes that are open have no end for it. Changes that begin while the drop is under way may go unannounced
/// before `release` is called: nothing may be reached any more through what the subscriber keeps.
///
/// Dropped inside a callback of its own, it waits for nobody: this callback is the last one of this thread, other
/// threads finish those that they are in, and the subscriber is dropped later, by somebody else's `subscribe` or
/// unsubscribe. Dropped inside a callback of another subscriber, it waits as ever; two threads that do that at
/// the same time wait for each other's callback, for ever.
#[derive(Debug)]
#[must_use = "dropping a subscription unsubscribes"]
#[doc(alias = "mmu_notifier")]
#[doc(alias = "mmu_notifier_unregister")]
pub struct Subscription {
    space: AddressSpace,
    entry: SyncArc<Entry>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let space = &self.space;
        let caller = space.caller();
        let in_own_callback = space.shared.open.is_in_callback(&caller, self.entry.address());
        let held = space.record(&caller);
        let released = if in_own_callback { release(&self.entry, &held) } else { Ok(()) };
        let shared = &space.shared;
        if let Some(subscriber) = shared.list.remove(&shared.open, &caller, held, &self.entry)
            && self.entry.claim_release()
        {
            subscriber.release();
        }
        shared.list.collect(&shared.open);
        if let Err(panic) = released {
            resume_unwind(panic);
        }
    }
}
