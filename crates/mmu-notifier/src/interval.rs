//! Interval subscribers: told only of what overlaps their range, and able to read it consistently.
//!
//! An interval has no end. In its place it has a sequence that every overlapping change raises, and the protocol of a
//! reader: take a [`Ticket`], look at the primary page table (translate, pin, register - it may take long), then, under
//! the lock that the subscriber's `invalidate` takes too, ask whether the ticket is stale, and only if it is not,
//! install what was read.
//!
//! ```text
//! loop {
//!     let ticket = interval.read();               // waits for overlapping changes
//!     let translation = look_at_the_page_table();
//!     let mut mirror = mirror.lock();             // the lock that `invalidate` takes
//!     if !interval.is_stale(&ticket) {
//!         mirror.install(translation);
//!         break;
//!     }
//! }
//! ```
//!
//! # Why nothing stale is ever installed
//!
//! ```text
//! change                                   reader
//! ------                                   ------
//! slot := Starting (RMW)                   ticket := sequence
//! full fence                               full fence
//! sequence += 1                            wait for overlapping changes on record
//! invalidate: lock, zap, unlock            lock; sequence == ticket? install; unlock
//! Changing
//! ```
//!
//! If the reader finds the change on record, it waits until it is done. If not, the change raises the sequence after
//! the ticket was taken. Then either the reader gets the lock first, and what it installs is zapped before the change
//! begins, or it gets the lock after `invalidate`, and sees the raised sequence.

// UNSAFETY: the tree refers to an interval by a raw pointer, so that no walk counts references; the owner of the
// subscription frees it when nobody can reach it any more.
#![expect(unsafe_code)]

use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use crate::held::Held;
use crate::invalidation::Panic;
use crate::slot::Phase;
use crate::space::AddressSpace;
use crate::stall::{Patience, Waiting};
use crate::sync::{Alive, AtomicBool, AtomicU64, Ordering};
use crate::tree::{Key, Tree};
use crate::{Blocking, Change, Range, WouldBlock};

/// Is told before every change that overlaps its range. Has no end; may refuse a change that must not wait.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use mmu_notifier::{AddressSpace, Change, Event, IntervalSubscriber, Pass, Range, WouldBlock};
///
/// /// One pinned translation.
/// #[derive(Default)]
/// struct Mirror(Mutex<Option<&'static str>>);
///
/// impl IntervalSubscriber for Mirror {
///     fn invalidate(&self, _: &Change) -> Pass {
///         *self.0.lock().unwrap() = None;
///         Pass::Done
///     }
///     fn try_invalidate(&self, _: &Change) -> Result<Pass, WouldBlock> {
///         *self.0.try_lock().map_err(|_| WouldBlock)? = None;
///         Ok(Pass::Done)
///     }
/// }
///
/// let space = AddressSpace::new();
/// let mirror = Arc::new(Mirror::default());
/// let pages = Range::new(0x1000, 0x3000)?;
/// let interval = space.insert(pages, mirror.clone())?;
///
/// let ticket = interval.read();
/// let frame = "frame 7"; // look at the page table
/// space.invalidate(Range::new(0x2000, 0x9000)?, Event::Unmap, || ());
/// assert!(interval.is_stale(&ticket), "what was read must not be installed");
///
/// let ticket = interval.read();
/// space.invalidate(Range::new(0x3000, 0x9000)?, Event::Unmap, || ());
/// let mut locked = mirror.0.lock().unwrap();
/// assert!(!interval.is_stale(&ticket), "that was somewhere else");
/// *locked = Some(frame);
/// # drop(locked);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "mmu_interval_notifier_ops")]
pub trait IntervalSubscriber: Send + Sync {
    /// Whether to leave this change alone: its subscriber makes it itself, and knows by
    /// [`event`](Change::event) *and* [`owner`](Change::owner). Then nothing is invalidated, no ticket goes stale,
    /// neither of the calls below is made, and [`read`](IntervalSubscription::read), which asks this, too, does not
    /// wait for it. Otherwise a subscriber that moves pages inside its own fault handler would wait for itself. Must give
    /// the same answer for the same change every time, and not call the address space.
    fn ignores(&self, change: &Change) -> bool {
        let _ = change;
        false
    }

    /// The part of the range that `change` overlaps is about to change, and there is time to wait. Must take the lock
    /// under which tickets are looked at, and cannot fail.
    ///
    /// Returns whether it is [done](Pass).
    #[doc(alias = "mmu_interval_set_seq")]
    fn invalidate(&self, change: &Change) -> Pass;

    /// The same, and this must not wait, not for a lock and not for memory.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`] if it would have to: then the change does not take place, and nobody behind is asked.
    fn try_invalidate(&self, change: &Change) -> Result<Pass, WouldBlock>;

    /// The second pass of an invalidation that was [`Unfinished`](Pass::Unfinished): waits for what the first one has
    /// begun. Runs also if somebody else has refused the change.
    #[doc(alias = "invalidate_finish")]
    fn finish(&self, change: &Change) {
        let _ = change;
    }
}

/// Whether an invalidation is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Nothing goes through this subscriber to the range any more.
    Done,
    /// It has begun; [`finish`](IntervalSubscriber::finish) waits for it. First all subscribers begin, then all
    /// are finished, so that many devices work at the same time. (At most 16 at a time: then those are finished first.)
    Unfinished,
}

impl<S: IntervalSubscriber + ?Sized> IntervalSubscriber for std::sync::Arc<S> {
    fn ignores(&self, change: &Change) -> bool {
        (**self).ignores(change)
    }

    fn invalidate(&self, change: &Change) -> Pass {
        (**self).invalidate(change)
    }

    fn try_invalidate(&self, change: &Change) -> Result<Pass, WouldBlock> {
        (**self).try_invalidate(change)
    }

    fn finish(&self, change: &Change) {
        (**self).finish(change);
    }
}

/// An interval with its subscriber.
struct Interval<S: IntervalSubscriber + ?Sized> {
    range: Range,
    /// Raised by every overlapping change, before the subscriber is told.
    sequence: AtomicU64,
    /// No callback may begin any more. Set once.
    gone: AtomicBool,
    /// Its type, for reports.
    name: &'static str,
    alive: Alive,
    subscriber: S,
}

/// An interval in the tree. Whoever frees it says why nobody else has it.
#[derive(Clone, Copy)]
pub(crate) struct Kept(NonNull<Interval<dyn IntervalSubscriber>>);

// SAFETY: an interval is only ever shared (`&`), and all its parts are `Sync`; freeing argues for itself.
unsafe impl Send for Kept {}
// SAFETY: as above.
unsafe impl Sync for Kept {}

impl Kept {
    fn new<S: IntervalSubscriber + 'static>(range: Range, subscriber: S) -> Kept {
        let interval: Box<Interval<dyn IntervalSubscriber>> = Box::new(Interval {
            range,
            sequence: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            name: std::any::type_name::<S>(),
            alive: Alive::default(),
            subscriber,
        });
        Kept(NonNull::from(Box::leak(interval)))
    }

    /// # Safety
    ///
    /// Nobody has freed it, or can while the reference lives.
    unsafe fn get<'a>(self) -> &'a Interval<dyn IntervalSubscriber> {
        // SAFETY: made by `new`; by the caller's promise.
        let interval = unsafe { self.0.as_ref() };
        interval.alive.look();
        interval
    }

    /// # Safety
    ///
    /// Nobody can reach it any more, and nobody else frees it.
    pub(crate) unsafe fn free(self) {
        // SAFETY: made by `Box::leak` in `new`; by the caller's promise.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }

    /// Its identity, for [`Held::set_calling`].
    fn address(self) -> usize {
        self.0.as_ptr().cast::<()>() as usize
    }
}

/// What became of the interval side of a start.
#[derive(Default)]
pub(crate) struct Started {
    pub(crate) refused: bool,
    pub(crate) panic: Option<Panic>,
}

/// How many invalidations of one change can be unfinished at one time.
const UNFINISHED: usize = if cfg!(mmu_loom) { 2 } else { 16 };

/// The type of the interval's subscriber at that address. `held` is on record with a change of everything, and has
/// [entered](Tree::enter) the tree.
pub(crate) fn name_of_interval(tree: &Tree, held: &Held<'_>, address: usize) -> Option<&'static str> {
    let mut name = None;
    tree.walk(held, &Range::EVERYTHING, |kept| {
        if kept.address() != address {
            return ControlFlow::Continue(());
        }
        // SAFETY: as in `start`.
        name = Some(unsafe { kept.get() }.name);
        ControlFlow::Break(())
    });
    name
}

/// Tells every interval that overlaps `change`; those behind one that refuses, or, unless `ALL` are to be told, panics,
/// are not asked. `held` has [entered](Tree::enter) the tree, which is left.
#[inline(never)]
pub(crate) fn start_intervals<const ALL: bool>(tree: &Tree, held: &Held<'_>, change: &Change) -> Started {
    let mut started = Started::default();
    let mut unfinished = [None; UNFINISHED];
    let mut count = 0;
    let walked = catch_unwind(AssertUnwindSafe(|| {
        tree.walk(held, &change.range(), |interval| {
            let pass = if ALL {
                catch_unwind(AssertUnwindSafe(|| start(interval, held, change))).unwrap_or_else(|panic| {
                    started.panic.get_or_insert(panic);
                    Ok(Pass::Done)
                })
            } else {
                start(interval, held, change)
            };
            match pass {
                Ok(Pass::Done) => {}
                Ok(Pass::Unfinished) => {
                    if count == UNFINISHED {
                        let first = finish(&mut unfinished[..count], held, change);
                        started.panic = started.panic.take().or(first);
                        count = 0;
                    }
                    unfinished[count] = Some(interval);
                    count += 1;
                }
                Err(WouldBlock) => {
                    started.refused = true;
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
    }));
    let first = finish(&mut unfinished[..count], held, change);
    started.panic = started.panic.or(walked.err()).or(first);
    held.set_calling(0);
    held.walks_no_more();
    started
}

/// The first pass of one interval that overlaps the change.
fn start(kept: Kept, held: &Held<'_>, change: &Change) -> Result<Pass, WouldBlock> {
    // SAFETY: `held` is on record in phase Starting with a change that overlaps this interval, and walks a tree that
    // has it: whoever removes it waits for that phase to end before he frees it, or, in this thread, leaves it to
    // `Tree::collect`, which looks at the era of `held`.
    let interval = unsafe { kept.get() };
    // Relaxed: the full fence of the claim lies before, that of the remover behind the store.
    if interval.gone.load(Ordering::Relaxed) {
        return Ok(Pass::Done);
    }
    let is_own = held.skips(kept.address());
    if !is_own {
        held.set_calling(kept.address());
        if interval.subscriber.ignores(change) {
            return Ok(Pass::Done);
        }
    }
    // Before the subscriber takes its lock: see the module documentation. Relaxed: the lock and the fences order it.
    interval.sequence.fetch_add(1, Ordering::Relaxed);
    if is_own {
        // The change is made in a callback of this subscriber, which knows.
        return Ok(Pass::Done);
    }
    match change.blocking() {
        Blocking::Allowed => Ok(interval.subscriber.invalidate(change)),
        Blocking::Forbidden => interval.subscriber.try_invalidate(change),
    }
}

/// The second pass of those that asked for one, in their order; the first panic, after all were called.
fn finish(unfinished: &mut [Option<Kept>], held: &Held<'_>, change: &Change) -> Option<Panic> {
    let mut first = None;
    for kept in unfinished.iter_mut().filter_map(Option::take) {
        // SAFETY: as in `start`: still the same phase.
        let interval = unsafe { kept.get() };
        // Relaxed: as in `start`.
        if interval.gone.load(Ordering::Relaxed) {
            continue;
        }
        held.set_calling(kept.address());
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| interval.subscriber.finish(change))) {
            first.get_or_insert(panic);
        }
    }
    first
}

/// What a reader has seen: whether a change came between is asked by [`IntervalSubscription::is_stale`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what is read under a ticket is good only if the ticket is not stale"]
pub struct Ticket {
    /// `None`: the calling thread itself was changing the range.
    sequence: Option<u64>,
}

/// An interval was not inserted: the address space has been [released](AddressSpace::release).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released;

impl fmt::Display for Released {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the address space has been released: nothing can be inserted any more")
    }
}

impl std::error::Error for Released {}

impl AddressSpace {
    /// Tells `subscriber` of every change that overlaps `range` from now on, until the subscription is dropped.
    ///
    /// Ranges of any size at any address; they may overlap or be equal. Waits for nothing: changes that are open
    /// are waited for by [`read`](IntervalSubscription::read). Allocates; O(log n).
    ///
    /// # Errors
    ///
    /// [`Released`] after [`release`](AddressSpace::release).
    #[doc(alias = "mmu_interval_notifier_insert")]
    pub fn insert(
        &self,
        range: Range,
        subscriber: impl IntervalSubscriber + 'static,
    ) -> Result<IntervalSubscription, Released> {
        if self.is_released() {
            return Err(Released);
        }
        let kept = Kept::new(range, subscriber);
        let shared = &self.shared;
        let caller = self.caller();
        let held = shared.claim(&caller, Phase::Editing);
        let key = shared.tree.insert(&held, &range, kept);
        shared.open.free(held);
        shared.collect_if_due(&caller);
        // If a release came between, either it has found this interval, or it is found here.
        crate::sync::fence(Ordering::SeqCst);
        let subscription = IntervalSubscription { space: self.clone(), key, kept, fork: shared.fork() };
        if self.is_released() { Err(Released) } else { Ok(subscription) }
    }
}

/// Keeps an interval subscriber subscribed. Dropping it removes it.
///
/// What was installed for the range must be torn down before: nobody calls the subscriber any more while the drop is
/// under way. The drop waits for callbacks of overlapping changes that other threads are starting, and for nothing else;
/// when it returns, no callback of the subscriber runs or will run, and the subscriber has been dropped. Dropped inside
/// a callback of its own it waits for nobody, and inside any callback the subscriber itself may be dropped later.
#[must_use = "dropping a subscription unsubscribes"]
#[doc(alias = "mmu_interval_notifier")]
#[doc(alias = "mmu_interval_notifier_remove")]
pub struct IntervalSubscription {
    space: AddressSpace,
    key: Key,
    kept: Kept,
    /// [`Shared::fork`](crate::space::Shared::fork) when it was inserted.
    fork: u64,
}

impl IntervalSubscription {
    fn interval(&self) -> &Interval<dyn IntervalSubscriber> {
        // SAFETY: only the drop of `self` frees it.
        unsafe { self.kept.get() }
    }

    /// Whether this process was forked after the insertion: then it is in no tree of it.
    fn is_of_the_parent(&self) -> bool {
        self.fork != self.space.shared.fork()
    }

    /// The range, as given to [`insert`](AddressSpace::insert).
    pub fn range(&self) -> Range {
        self.interval().range
    }

    /// Begins to read the primary page table for this range. Waits until no other thread is changing any part of it,
    /// but for changes that its subscriber [ignores](IntervalSubscriber::ignores).
    ///
    /// Only *overlapping* changes are waited for; and changes whose range is not on record: for a dozen instructions each
    /// of them, and until they are done those that began when nobody at all was to be told of changes.
    ///
    /// Inside a change of the calling thread itself that would be waited for, which would be for ever, the ticket is
    /// stale from the beginning. Two threads that read what the other one is changing wait for each other, for ever; so
    /// does one that reads what an [`Invalidation`](crate::Invalidation) changes that it has been handed.
    ///
    /// It may be stale already when this returns; a reader that finds it stale begins anew, as often as it has time.
    #[doc(alias = "mmu_interval_read_begin")]
    pub fn read(&self) -> Ticket {
        let shared = &self.space.shared;
        let caller = self.space.caller();
        // Relaxed: the full fence in `wait_for_changes` follows.
        let sequence = self.interval().sequence.load(Ordering::Relaxed);
        let mut patience = Patience::new(shared, caller.thread(), Waiting::ToRead);
        let interval = self.interval();
        let ignored = |change: &Change| interval.subscriber.ignores(change);
        // To look for own changes once more would be wrong: one that bore this thread's name and was not waited for may
        // have been taken over since, and then its end lies before nothing that is done here.
        let all_done = shared.open.wait_for_changes(&caller, &interval.range, ignored, &mut patience);
        Ticket { sequence: all_done.then_some(sequence) }
    }

    /// Whether a change came since the ticket was taken, so that what was read must not be installed.
    ///
    /// To be asked under the lock that the subscriber's `invalidate` takes. Without it, true is reliable, and false a
    /// hint. In a [forked](AddressSpace::forked) child, where the parent's intervals hear of nothing, always true of these.
    #[doc(alias = "mmu_interval_read_retry")]
    #[doc(alias = "mmu_interval_check_retry")]
    pub fn is_stale(&self, ticket: &Ticket) -> bool {
        // Relaxed: the lock orders it, see the module documentation. In a forked child nobody tells the parent's intervals.
        self.is_of_the_parent() || ticket.sequence != Some(self.interval().sequence.load(Ordering::Relaxed))
    }
}

impl Drop for IntervalSubscription {
    fn drop(&mut self) {
        let shared = &self.space.shared;
        if self.is_of_the_parent() {
            // It is the parent's: in the child it is in no tree, and nobody walks.
            // SAFETY: see above; the owner drops its subscription once.
            unsafe { self.kept.free() };
            return;
        }
        let caller = self.space.caller();
        let (address, range) = (self.kept.address(), self.range());
        let in_own_callback = shared.open.is_in_callback(&caller, address);
        // This thread may go on to walk a tree that has it.
        let is_reading = shared.open.is_reading(&caller);
        // Relaxed: the fence in `wait_for_starts` follows before anybody relies on it.
        self.interval().gone.store(true, Ordering::Relaxed);
        let held = shared.claim(&caller, Phase::Editing);
        shared.tree.remove(&held, self.key);
        shared.open.free(held);
        if !in_own_callback {
            let patience = Patience::new(shared, caller.thread(), Waiting::ToRemove);
            let mut patience = patience.of(address, self.interval().name);
            shared.open.wait_for_starts(&caller, &range, &mut patience);
        }
        if is_reading {
            shared.tree.retire_interval(self.kept);
        } else {
            // SAFETY: it is in no tree that can be found now. Who walks an older one and can reach it is a change that
            // overlaps it, in phase Starting: all those of other threads are over, by the wait, and this thread is not
            // in one.
            unsafe { self.kept.free() };
        }
        shared.collect_if_due(&caller);
    }
}

impl fmt::Debug for IntervalSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntervalSubscription").field("range", &self.range()).finish_non_exhaustive()
    }
}
