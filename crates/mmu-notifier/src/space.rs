//! An address space and who is told of its changes.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::caller::Caller;
use crate::interval::start_intervals;
use crate::invalidation::Panic;
use crate::list::{Entry, Kind, Published, Which};
use crate::open::{Held, OpenChanges};
use crate::slot::Phase;
use crate::stall::{Patience, Reports, Stall, Waiting};
use crate::sync::{Arc as SyncArc, AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use crate::tree::Tree;
use crate::{Blocking, Change, Event, Range, Refuser, Subscriber};

/// An address space: the subscribers that mirror it, and the changes that are under way.
///
/// Cloning gives another handle to the same address space. Everything may be called from any thread, also
/// inside callbacks.
///
/// # Cost
///
/// A change costs two atomic read-modify-write instructions on a cache line that other threads do not
/// write, and two calls per subscriber; one such instruction if there is nobody to tell. Nothing is allocated and no
/// lock is taken between start and end. [`subscribe`](AddressSpace::subscribe) and dropping a [`Subscription`]
/// allocate and may wait.
#[derive(Clone, Debug)]
#[doc(alias = "mm_struct")]
#[doc(alias = "notifier_subscriptions")]
pub struct AddressSpace {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) open: OpenChanges,
    /// Who is told of changes, who is asked about age, and who is told to flush.
    pub(crate) list: Published,
    pub(crate) aging: Published,
    pub(crate) tlbs: Published,
    /// Who is told of changes of a range.
    pub(crate) tree: Tree,
    pub(crate) reports: Reports,
    /// Uses of a slot that are timed: those whose number has none of these bits.
    untimed: u64,
    released: AtomicBool,
    /// Threads that may be calling `release` of a subscriber, or are about to: one that unsubscribes, one that releases all.
    releasing: AtomicUsize,
    /// The [`Caller::thread`] of who is freeing what nobody can reach any more, 0 if nobody is.
    freeing: AtomicU64,
    fork: AtomicU64,
    caller: fn() -> Caller,
}

/// How an address space is made.
pub struct Options {
    /// Says who is calling, where thread-locals must not be touched.
    ///
    /// It must give the same [`Caller::thread`] for the same thread, whoever asks, and different ones for
    /// threads that live at the same time. `None`: found out by a thread-local.
    pub caller: Option<fn() -> Caller>,
    /// How long a wait may go without progress before it is reported, and how long until the next report of it.
    pub stall_after: Duration,
    /// What is done with such a report; runs on the thread that waits. The default writes a line to stderr.
    pub on_stall: Box<dyn Fn(&Stall) + Send + Sync>,
    /// Of how many changes of a thread one is timed, callback by callback
    /// ([`Subscription::longest`]); rounded up to a power of two. 1: all.
    pub time_every: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            caller: None,
            stall_after: Duration::from_secs(10),
            on_stall: Box::new(|stall| eprintln!("mmu-notifier: {stall}")),
            time_every: 64,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("stall_after", &self.stall_after)
            .field("time_every", &self.time_every)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Goes on record as a reader of any list, without a change; waits while all slots are in use.
    pub(crate) fn claim(&self, caller: &Caller, phase: Phase) -> Held<'_> {
        let nothing = Change::new(Range::EVERYTHING, Event::Release, Blocking::Allowed);
        self.claim_with(caller, &nothing, phase)
    }

    /// Goes on record; waits while all slots are in use.
    pub(crate) fn claim_with(&self, caller: &Caller, change: &Change, phase: Phase) -> Held<'_> {
        let claim = || match phase {
            Phase::Starting => self.open.claim(caller, change),
            _ => self.open.claim_for(caller, change, phase),
        };
        if let Some(held) = claim() {
            return held;
        }
        let mut patience = Patience::new(self, caller.thread, Waiting::ForASlot);
        loop {
            patience.wait_for_anybody();
            if let Some(held) = claim() {
                return held;
            }
        }
    }

    /// Whether the callbacks of this change are timed.
    #[inline]
    pub(crate) fn is_timed(&self, held: &Held<'_>) -> bool {
        held.sequence() & self.untimed == 0
    }

    /// How often this address space was forked away from its parent.
    pub(crate) fn fork(&self) -> u64 {
        // Relaxed: written by the only thread of a process.
        self.fork.load(Ordering::Relaxed)
    }

    /// The type of the subscriber at that address, if it is on a list.
    pub(crate) fn name_of(&self, address: usize) -> Option<&'static str> {
        let held = self.open.claim_for(
            &(self.caller)(),
            &Change::new(Range::EVERYTHING, Event::Release, Blocking::Allowed),
            Phase::Editing,
        )?;
        let lists = [&self.list, &self.aging, &self.tlbs];
        let name = lists
            .into_iter()
            .flat_map(|list| list.look(&held))
            .find_map(|entry| (entry.address() == address).then(|| entry.name()));
        held.free();
        name
    }

    /// Frees what nobody can reach any more; whether that was all there is, and it is freed. If somebody is at it
    /// already, what he does not find is left for the next who comes.
    pub(crate) fn collect(&self, caller: &Caller) -> bool {
        let Some(_freeing) = self.begin_to_free(caller) else { return false };
        let lists = [&self.list, &self.aging, &self.tlbs].map(|list| list.collect(&self.open));
        self.tree.collect(&self.open) & lists.into_iter().all(|all| all)
    }

    /// The same for the tree, if much has come together.
    pub(crate) fn collect_intervals(&self, caller: &Caller) {
        if self.tree.is_collection_due()
            && let Some(_freeing) = self.begin_to_free(caller)
        {
            self.tree.collect(&self.open);
        }
    }

    /// One frees at a time, so that what is not found retired has been freed: see `synchronize`.
    fn begin_to_free(&self, caller: &Caller) -> Option<Freeing<'_>> {
        // Acquire pairs with the Release in the drop of `Freeing`: what was freed is.
        let begun = self.freeing.compare_exchange(0, caller.thread, Ordering::Acquire, Ordering::Relaxed);
        begun.ok().map(|_| Freeing(&self.freeing))
    }

    /// Whether the calling thread is freeing: this is the drop of a subscriber.
    pub(crate) fn is_freeing(&self, caller: &Caller) -> bool {
        // Relaxed: the calling thread wrote it, or does not care.
        self.freeing.load(Ordering::Relaxed) == caller.thread
    }

    fn list_of(&self, entry: &Entry) -> &Published {
        match entry.which() {
            Which::Changes => &self.list,
            Which::Aging => &self.aging,
            Which::Tlb => &self.tlbs,
        }
    }
}

/// For as long as somebody frees, even if a subscriber's drop panics.
struct Freeing<'a>(&'a AtomicU64);

impl Drop for Freeing<'_> {
    fn drop(&mut self) {
        // Release pairs with the Acquire in `begin_to_free`.
        self.0.store(0, Ordering::Release);
    }
}

impl AddressSpace {
    /// Memory that the record of open changes takes, in bytes: the most of an address space without subscribers. What
    /// threads have not used is not touched.
    pub const BYTES: usize = OpenChanges::BYTES;

    /// An address space without subscribers.
    pub fn new() -> AddressSpace {
        AddressSpace::with(Options::default())
    }

    /// An address space for changes that are made where thread-locals must not be touched: `caller` says
    /// who is calling, as in [`Options::caller`].
    pub fn with_callers(caller: fn() -> Caller) -> AddressSpace {
        AddressSpace::with(Options { caller: Some(caller), ..Options::default() })
    }

    /// An address space made to order.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mmu_notifier::{AddressSpace, Options};
    ///
    /// let space = AddressSpace::with(Options {
    ///     stall_after: Duration::from_secs(1),
    ///     on_stall: Box::new(|stall| eprintln!("{stall}")),
    ///     ..Options::default()
    /// });
    /// assert!(!space.has_subscribers());
    /// ```
    pub fn with(options: Options) -> AddressSpace {
        let shared = Shared {
            open: OpenChanges::new(),
            list: Published::new(),
            aging: Published::new(),
            tlbs: Published::new(),
            tree: Tree::new(),
            reports: Reports { after: options.stall_after, report: options.on_stall },
            untimed: options.time_every.max(1).checked_next_power_of_two().unwrap_or(1 << 63) - 1,
            released: AtomicBool::new(false),
            releasing: AtomicUsize::new(0),
            freeing: AtomicU64::new(0),
            fork: AtomicU64::new(0),
            caller: options.caller.unwrap_or(Caller::current),
        };
        AddressSpace { shared: Arc::new(shared) }
    }

    /// The calling thread, as this address space knows it.
    #[inline]
    pub fn caller(&self) -> Caller {
        (self.shared.caller)()
    }

    /// Whether anybody is told of changes at all.
    #[doc(alias = "mm_has_notifiers")]
    #[inline]
    pub fn has_subscribers(&self) -> bool {
        !self.shared.list.is_empty() || !self.shared.tree.is_empty()
    }

    /// Tells `subscriber` of every change from now on.
    ///
    /// Returns when no change is under way any more that `subscriber` was not told of; changes that the
    /// calling thread itself has open (this is a callback) are left out, as they could never end.
    /// Allocates.
    ///
    /// # Panics
    ///
    /// If there are 65,535 subscribers already, or the address space has been [released](AddressSpace::release).
    ///
    /// The subscriber is told until the [`Subscription`] is dropped. To keep a handle to it, subscribe
    /// an [`Arc`].
    #[doc(alias = "mmu_notifier_register")]
    pub fn subscribe<S: Subscriber + 'static>(&self, subscriber: S) -> Subscription {
        self.add(Entry::new(Kind::Paired(Box::new(subscriber)), std::any::type_name::<S>()))
    }

    /// Asks `refuser` before every change from now on. As [`subscribe`](AddressSpace::subscribe).
    pub fn subscribe_refuser<R: Refuser + 'static>(&self, refuser: R) -> Subscription {
        self.add(Entry::new(Kind::Refuser(Box::new(refuser)), std::any::type_name::<R>()))
    }

    pub(crate) fn add(&self, entry: Entry) -> Subscription {
        let entry = SyncArc::new(entry);
        self.publish(&entry, |_| false);
        Subscription { space: self.clone(), entry }
    }

    /// Puts `entry` on its list, unless somebody is there who `excludes` it; whether it is there.
    pub(crate) fn publish(&self, entry: &SyncArc<Entry>, excludes: impl Fn(&Entry) -> bool) -> bool {
        const RELEASED: &str = "nobody can subscribe to an address space that has been released";
        assert!(!self.is_released(), "{RELEASED}");
        let shared = &self.shared;
        let caller = self.caller();
        let held = shared.claim(&caller, Phase::Editing);
        let is_full = Cell::new(false);
        let list = shared.list_of(entry).replace(&held, |entries| {
            is_full.set(entries.len() >= usize::from(u16::MAX));
            let joins = !is_full.get() && !entries.iter().any(|other| excludes(other));
            joins.then(|| std::iter::once(entry).chain(entries).cloned().collect())
        });
        held.free();
        assert!(!is_full.get(), "an address space has at most 65,535 subscribers");
        let Some(list) = list else { return false };
        if entry.which() == Which::Changes {
            let mut patience = Patience::new(shared, caller.thread, Waiting::ToSubscribe);
            shared.open.wait_for_strangers(&caller, list, &mut patience);
            entry.settle();
        }
        shared.collect(&caller);
        // If a release came between, either it has found the newcomer, or it is found here.
        fence(Ordering::SeqCst);
        if self.is_released() {
            drop(Subscription { space: self.clone(), entry: entry.clone() });
            panic!("{RELEASED}");
        }
        true
    }

    /// Whether [`release`](AddressSpace::release) has been called.
    pub fn is_released(&self) -> bool {
        // Relaxed: the fence before the second look, and that of the claim in `release`, order it.
        self.shared.released.load(Ordering::Relaxed)
    }

    /// The address space is going: tells every interval by a change with [`Event::Release`], and every subscriber once
    /// by `release`, then nobody on a list of anything. Intervals stay, and hear of the unmapping that follows.
    ///
    /// Returns when no subscriber's `release` is running any more, also if another thread has called it, by
    /// unsubscribing or by releasing as well; called inside a callback, it does not wait for that. Subscriptions stay to be dropped.
    ///
    /// # Panics
    ///
    /// If somebody's callback panics, after all others have been told.
    #[doc(alias = "mmu_notifier_release")]
    pub fn release(&self) {
        let panic = self.tell_release();
        let shared = &self.shared;
        let caller = self.caller();
        if !shared.open.is_reading(&caller) {
            // Whoever was found there to have left, or to call `release` already, has said so in `releasing` before. The
            // one pairs with the Release in `leave`, the other with the fence of his claim: both are seen here.
            fence(Ordering::Acquire);
            let mut patience = Patience::new(shared, caller.thread, Waiting::ToSynchronize);
            // Acquire pairs with the Release in `tell_release` and in the drop of a subscription.
            while shared.releasing.load(Ordering::Acquire) > 0 {
                patience.wait_for_anybody();
            }
        }
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// The same without waiting for anybody, and without a panic: for a process that is about to exit.
    pub fn release_now(&self) {
        drop(self.tell_release());
    }

    fn tell_release(&self) -> Option<Panic> {
        let shared = &self.shared;
        // Relaxed: the fences of the claims follow.
        shared.released.store(true, Ordering::Relaxed);
        let caller = self.caller();
        let going = Change::new(Range::EVERYTHING, Event::Release, Blocking::Allowed);
        let held = shared.claim_with(&caller, &going, Phase::Starting);
        // Not on record as walking the list of today: nobody on it is told of this change as a change.
        held.walks(0);
        let mut panic = start_intervals(&shared.tree, &held, &going).panic;
        held.free();
        // Relaxed: the fence of the claim follows.
        shared.releasing.fetch_add(1, Ordering::Relaxed);
        let held = shared.claim(&caller, Phase::Calling);
        for list in [&shared.list, &shared.aging, &shared.tlbs] {
            for entry in list.look(&held) {
                if let Err(first) = release(entry, &held) {
                    panic.get_or_insert(first);
                }
                entry.leave();
            }
            list.clear(&held);
        }
        held.free();
        // Release pairs with the Acquire in `release`: what the callbacks did happened before.
        shared.releasing.fetch_sub(1, Ordering::Release);
        panic
    }

    /// Makes this the empty address space of a forked child.
    ///
    /// To be called in the child, by its only thread, before anything else of this address space is used.
    /// No subscriber of the parent is told anything any more, not even by `release`: they are the parent's.
    /// Neither allocates nor frees (the allocator may be locked by a thread that does not exist here), so
    /// the memory of the parent's subscribers stays.
    #[doc(alias = "dup_mmap")]
    pub fn forked(&self) {
        let shared = &self.shared;
        shared.open.forget_all();
        // Relaxed: there is only one thread.
        shared.fork.fetch_add(1, Ordering::Relaxed);
        shared.releasing.store(0, Ordering::Relaxed);
        shared.freeing.store(0, Ordering::Relaxed);
        shared.released.store(false, Ordering::Relaxed);
        shared.tree.forget_all();
        let held = shared.claim(&self.caller(), Phase::Editing);
        for list in [&shared.list, &shared.aging, &shared.tlbs] {
            list.forget_all(&held);
        }
        held.free();
    }
}

impl Default for AddressSpace {
    fn default() -> AddressSpace {
        AddressSpace::new()
    }
}

/// Calls `release`, if nobody has yet.
fn release(entry: &Entry, held: &Held<'_>) -> Result<(), Panic> {
    held.set_calling(entry.address());
    let result = match entry.subscriber(held) {
        Some(kind) if entry.claim_release() => catch_unwind(AssertUnwindSafe(|| kind.release())),
        _ => Ok(()),
    };
    held.set_calling(0);
    result
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

impl Subscription {
    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let space = &self.space;
        let shared = &space.shared;
        let caller = space.caller();
        let in_own_callback = shared.open.is_in_callback(&caller, self.entry.address());
        // Before `leave`, whose Release publishes it: see `AddressSpace::release`.
        shared.releasing.fetch_add(1, Ordering::Relaxed);
        let mut released = Ok(());
        if in_own_callback {
            let held = shared.claim(&caller, Phase::Calling);
            released = release(&self.entry, &held);
            held.free();
        }
        // Release, inside: see `AddressSpace::release`.
        self.entry.leave();
        let held = shared.claim(&caller, Phase::Editing);
        shared.list_of(&self.entry).remove(&held, &self.entry);
        held.free();
        if !in_own_callback {
            let mut patience = Patience::new(shared, caller.thread, Waiting::ToUnsubscribe);
            if let Some(kind) = Published::take(&shared.open, &caller, &mut patience, &self.entry)
                && self.entry.claim_release()
            {
                // On record, so that whatever is done inside knows that it is a callback.
                let held = shared.claim(&caller, Phase::Calling);
                held.set_calling(self.entry.address());
                released = catch_unwind(AssertUnwindSafe(|| kind.release()));
                held.set_calling(0);
                held.free();
            }
        }
        // Release pairs with the Acquire in `AddressSpace::release`: what it did happened before.
        shared.releasing.fetch_sub(1, Ordering::Release);
        shared.collect(&caller);
        if let Err(panic) = released {
            resume_unwind(panic);
        }
    }
}
