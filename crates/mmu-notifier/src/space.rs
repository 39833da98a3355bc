//! An address space and who is told of its changes.

// UNSAFETY: declares one unsafe function: that a process has been forked cannot be checked.
#![expect(unsafe_code)]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::caller::Caller;
use crate::held::Held;
use crate::interval::{name_of_interval, start_intervals};
use crate::invalidation::Panic;
use crate::list::{Entry, Published, Which};
use crate::open::OpenChanges;
use crate::slot::{Phase, UseBits};
use crate::stall::{Patience, Reports, Stall, Waiting};
use crate::subscriber::{Paired, Refusing};
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
#[repr(C, align(64))]
pub(crate) struct Shared {
    // What every change reads comes first, and nothing that is often written shares a cache line with it.
    /// Uses of a slot that are timed: those without these bits.
    untimed: UseBits,
    /// `None`: [`Caller::current`].
    caller: Option<fn() -> Caller>,
    pub(crate) open: OpenChanges,
    /// Who is told of changes.
    pub(crate) list: Published,
    /// Who is told of changes of a range.
    pub(crate) tree: Tree,
    /// Who is asked about age, and who is told to flush.
    pub(crate) aging: Published,
    pub(crate) tlbs: Published,
    pub(crate) reports: Reports,
    released: AtomicBool,
    /// Threads that may be calling `release` of a subscriber, or are about to: one that unsubscribes, one that releases
    /// all.
    releasing: AtomicUsize,
    fork: AtomicU64,
    /// The thread that frees what nobody can reach any more, 0 if none does. One at a time, so that who finds nothing
    /// to free knows that there is nothing.
    collector: AtomicU64,
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
            time_every: 1024,
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
    #[inline]
    fn caller(&self) -> Caller {
        match self.caller {
            Some(caller) => caller(),
            None => Caller::current(),
        }
    }

    /// The calling thread, if that is known without a call. A checker, to which threads are known in no other way, makes the
    /// call.
    #[inline(always)]
    pub(crate) fn known_caller(&self) -> Option<Caller> {
        match self.caller {
            None => Caller::known(),
            Some(caller) => cfg!(any(mmu_loom, mmu_shuttle)).then(caller),
        }
    }

    /// Goes on record; waits while all slots are in use.
    pub(crate) fn claim(&self, caller: &Caller, phase: Phase) -> Held<'_> {
        let mut patience = Patience::new(self, caller.thread(), Waiting::ForASlot);
        loop {
            if let Some(held) = self.open.claim(caller, phase) {
                return held;
            }
            patience.wait_for_anybody();
        }
    }

    /// Whether the callbacks of this change are timed.
    #[inline(always)]
    pub(crate) fn is_timed(&self, held: Held<'_>) -> bool {
        held.is_use_without(self.untimed)
    }

    /// How often this address space was forked away from its parent.
    pub(crate) fn fork(&self) -> u64 {
        // Relaxed: written by the only thread of a process.
        self.fork.load(Ordering::Relaxed)
    }

    /// The type of the subscriber at that address, if it is on a list or in the tree.
    pub(crate) fn name_of(&self, address: usize) -> Option<&'static str> {
        let caller = self.caller();
        let name = self.lists().into_iter().find_map(|list| {
            let held = self.open.claim(&caller, Phase::Editing)?;
            let mut entries = list.walk(held).iter();
            let name = entries.find_map(|entry| (entry.address() == address).then(|| entry.name()));
            self.open.free(held);
            name
        });
        name.or_else(|| {
            // As a change of everything, so that nobody frees an interval meanwhile.
            let held = self.open.claim(&caller, Phase::Starting)?;
            self.tree.enter(&held);
            held.write(&Change::new(Range::EVERYTHING, Event::Clear, Blocking::Forbidden));
            held.walks(0);
            let name = name_of_interval(&self.tree, &held, address);
            self.open.free(held);
            name
        })
    }

    /// Frees what nobody can reach any more; does nothing if somebody is at it. the oldest of what is left.
    pub(crate) fn collect(&self, caller: &Caller) -> Option<Retired> {
        self.collecting(caller).map(|_collecting| self.collect_all())
    }

    /// Frees what the tree has come to consist of no more, if that is much.
    pub(crate) fn collect_if_due(&self, caller: &Caller) {
        if self.tree.is_due()
            && let Some(_collecting) = self.collecting(caller)
        {
            self.tree.collect(&self.open);
        }
    }

    fn collect_all(&self) -> Retired {
        let lists = self.lists().map(|list| list.collect(&self.open));
        Retired { lists, tree: self.tree.collect(&self.open) }
    }

    /// Whatever is retired from now on.
    pub(crate) fn now(&self) -> Retired {
        Retired { lists: self.lists().map(Published::now), tree: self.tree.now() }
    }

    fn collecting(&self, caller: &Caller) -> Option<Collecting<'_>> {
        // Acquire pairs with the Release in the drop of `Collecting`: what was freed, and what was kept.
        self.collector.compare_exchange(0, caller.thread(), Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(Collecting { collector: &self.collector })
    }

    /// Whether the calling thread is freeing something right now: this is the drop of a subscriber.
    pub(crate) fn is_collecting(&self, caller: &Caller) -> bool {
        // Relaxed: the calling thread wrote it, or another one did.
        self.collector.load(Ordering::Relaxed) == caller.thread()
    }

    /// All lists.
    pub(crate) fn lists(&self) -> [&Published; 3] {
        [&self.list, &self.aging, &self.tlbs]
    }

    fn list_of(&self, entry: &Entry) -> &Published {
        match entry.which() {
            Which::Changes => &self.list,
            Which::Aging => &self.aging,
            Which::Tlb => &self.tlbs,
        }
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
            untimed: UseBits::new(
                options.time_every.max(1).checked_next_power_of_two().unwrap_or(1 << 60) - 1,
            ),
            released: AtomicBool::new(false),
            releasing: AtomicUsize::new(0),
            fork: AtomicU64::new(0),
            collector: AtomicU64::new(0),
            caller: options.caller,
        };
        AddressSpace { shared: Arc::new(shared) }
    }

    /// The calling thread, as this address space knows it.
    #[inline]
    pub fn caller(&self) -> Caller {
        self.shared.caller()
    }

    /// Whether as many changes are open as can be on record (512): then one that must not wait is refused though nobody has
    /// refused it, and can be tried again.
    ///
    /// ```
    /// assert!(!mmu_notifier::AddressSpace::new().is_full());
    /// ```
    pub fn is_full(&self) -> bool {
        self.shared.open.is_full()
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
        self.add(Entry::telling(Paired(subscriber), std::any::type_name::<S>()))
    }

    /// Asks `refuser` before every change from now on. As [`subscribe`](AddressSpace::subscribe).
    pub fn subscribe_refuser<R: Refuser + 'static>(&self, refuser: R) -> Subscription {
        self.add(Entry::telling(Refusing(refuser), std::any::type_name::<R>()))
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
        shared.open.free(held);
        assert!(!is_full.get(), "an address space has at most 65,535 subscribers");
        let Some(list) = list else { return false };
        if entry.which() == Which::Changes {
            let mut patience = Patience::new(shared, caller.thread(), Waiting::ToSubscribe);
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

    /// Waits until every change of `range` that another thread had begun is over. Whether the calling thread has none
    /// open itself, which would be to wait for itself: then the range is still changing.
    ///
    /// For who is told of *every* change and reads the page table now and then, as a cache that registers memory on demand:
    /// write down, where [`try_start`](Refuser::try_start) looks for it, what is going to be read; wait; read; and see
    /// whether a start has come meanwhile. A change that this does not wait for makes its calls later, and they see
    /// whatever was written before this was called. (Who is told of one range only has
    /// [`read`](crate::IntervalSubscription::read).)
    ///
    /// ```
    /// use mmu_notifier::{AddressSpace, Event, Range};
    ///
    /// let space = AddressSpace::new();
    /// let pages = Range::new(0x1000, 0x2000)?;
    /// space.invalidate(pages, Event::Unmap, || {
    ///     assert!(!space.wait_for_changes(pages), "this thread is changing them");
    /// });
    /// assert!(space.wait_for_changes(pages));
    /// # Ok::<(), mmu_notifier::RangeError>(())
    /// ```
    #[doc(alias = "mmu_interval_read_begin")]
    pub fn wait_for_changes(&self, range: Range) -> bool {
        let caller = self.caller();
        let mut patience = Patience::new(&self.shared, caller.thread(), Waiting::ToRead);
        self.shared.open.wait_for_changes(&caller, &range, |_| false, &mut patience)
    }

    /// Whether some thread, the calling one too, has a change open that may overlap `range`. Never waits.
    ///
    /// For who touches memory by itself, and must not where somebody is changing it: write down, where whoever starts a change
    /// looks for it, what is going to be touched; ask; and if nothing is open, touch it. A change that this does not see
    /// begins later, and its maker sees whatever was written before. A change that began while nobody was subscribed may be
    /// one of any range.
    ///
    /// ```
    /// use mmu_notifier::{AddressSpace, Event, Range};
    ///
    /// let space = AddressSpace::new();
    /// let pages = Range::new(0x1000, 0x2000)?;
    /// space.invalidate(pages, Event::Unmap, || assert!(space.may_be_changing(pages)));
    /// assert!(!space.may_be_changing(pages));
    /// # Ok::<(), mmu_notifier::RangeError>(())
    /// ```
    pub fn may_be_changing(&self, range: Range) -> bool {
        self.shared.open.is_any_of(&range)
    }

    /// Whether the calling thread has begun a change that is not over, or is in a callback of one: to wait for
    /// its end would be for ever. Never waits.
    ///
    /// A change that is ended by another thread than that which began it is the other one's from then on. One that its
    /// thread has jumped out of is still its own, until that is found out.
    ///
    /// ```
    /// use mmu_notifier::{AddressSpace, Event, Range};
    ///
    /// let space = AddressSpace::new();
    /// space.invalidate(Range::new(0x1000, 0x2000)?, Event::Unmap, || assert!(space.is_changing()));
    /// assert!(!space.is_changing());
    /// # Ok::<(), mmu_notifier::RangeError>(())
    /// ```
    pub fn is_changing(&self) -> bool {
        self.shared.open.is_changing(&self.caller())
    }

    /// The address space is going: tells every interval by a change with [`Event::Release`], and every subscriber once
    /// by `release`, then nobody on a list of anything. Intervals stay, and hear of the unmapping that follows.
    ///
    /// Returns when no subscriber's `release` is running any more, also if another thread has called it, by
    /// unsubscribing or by releasing as well; called inside a callback, it does not wait for that. Subscriptions stay
    /// to be dropped.
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
            let mut patience = Patience::new(shared, caller.thread(), Waiting::ToSynchronize);
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
        let held = shared.claim(&caller, Phase::Starting);
        held.count(going.event());
        shared.tree.enter(&held);
        held.write(&going);
        // Nobody on the list of today is told of this change as a change.
        held.walks(0);
        let mut panic = start_intervals::<true>(&shared.tree, &held, &going).panic;
        shared.open.free(held);
        // Relaxed: the fence of the claim follows.
        shared.releasing.fetch_add(1, Ordering::Relaxed);
        for list in shared.lists() {
            // The fence of the claim above lies between: who comes now sees that this has been released.
            if list.is_empty() {
                continue;
            }
            let held = shared.claim(&caller, Phase::Calling);
            for entry in list.walk(held) {
                if let Err(first) = release(entry, &held) {
                    panic.get_or_insert(first);
                }
                entry.leave();
            }
            shared.open.free(held);
            // A place of its own: the list of now may be another one than that on record above.
            let held = shared.claim(&caller, Phase::Editing);
            list.clear(&held);
            shared.open.free(held);
        }
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
    ///
    /// # Safety
    ///
    /// The calling thread is the only one of its process, and in no callback.
    #[doc(alias = "dup_mmap")]
    pub unsafe fn forked(&self) {
        let shared = &self.shared;
        shared.open.forget_all();
        // Relaxed: there is only one thread.
        shared.fork.fetch_add(1, Ordering::Relaxed);
        shared.releasing.store(0, Ordering::Relaxed);
        shared.collector.store(0, Ordering::Relaxed);
        shared.released.store(false, Ordering::Relaxed);
        shared.tree.forget_all();
        let caller = self.caller();
        for list in shared.lists() {
            let held = shared.claim(&caller, Phase::Editing);
            list.forget_all(&held);
            shared.open.free(held);
        }
    }
}

/// A moment in the life of what is retired: numbers of lists, and an era of the tree.
pub(crate) struct Retired {
    lists: [u64; 3],
    tree: u64,
}

impl Retired {
    /// Whether this, the oldest of what is left, is not older than that moment.
    pub(crate) fn is_since(&self, moment: &Retired) -> bool {
        self.lists.iter().zip(&moment.lists).all(|(left, then)| left >= then) && self.tree >= moment.tree
    }
}

/// Somebody frees what nobody can reach any more; until this is dropped, nobody else does.
struct Collecting<'a> {
    collector: &'a AtomicU64,
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        // Release pairs with the Acquire in `collecting`.
        self.collector.store(0, Ordering::Release);
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
    let result = match entry.subscriber(*held) {
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
        let (mut released, mut gone) = (Ok(()), None);
        if in_own_callback {
            let held = shared.claim(&caller, Phase::Calling);
            released = release(&self.entry, &held);
            shared.open.free(held);
        }
        // Release, inside: see `AddressSpace::release`.
        self.entry.leave();
        let held = shared.claim(&caller, Phase::Editing);
        shared.list_of(&self.entry).remove(&held, &self.entry);
        shared.open.free(held);
        if !in_own_callback {
            let patience = Patience::new(shared, caller.thread(), Waiting::ToUnsubscribe);
            let mut patience = patience.of(self.entry.address(), self.entry.name());
            gone = Published::take(&shared.open, &caller, &mut patience, &self.entry);
            if let Some(kind) = &gone
                && self.entry.claim_release()
            {
                // On record, so that whatever is done inside knows that it is a callback.
                let held = shared.claim(&caller, Phase::Calling);
                held.set_calling(self.entry.address());
                released = catch_unwind(AssertUnwindSafe(|| kind.release()));
                held.set_calling(0);
                shared.open.free(held);
            }
        }
        // Release pairs with the Acquire in `AddressSpace::release`: what it did happened before.
        shared.releasing.fetch_sub(1, Ordering::Release);
        // Not before: it may panic, or wait for a release.
        drop(gone);
        shared.collect(&caller);
        if let Err(panic) = released {
            resume_unwind(panic);
        }
    }
}
