//! The bracket: start, change, end.
//!
//! # Guarantee
//!
//! Every start that returned is followed by exactly one end, whatever happens in between: the change
//! fails, somebody refuses, a callback panics. `start` of all subscribers has returned before the change
//! begins, and the first `end` runs after it is done. All subscribers that were on the list when the
//! change went on record see both, others neither; who unsubscribes in between is told by `release`.
//!
//! Intervals come first: if one of them refuses, nobody else is asked. A refusal of a subscriber of the list does not
//! stop the walk: everybody is asked, as in Linux, and then everybody who started is ended.

// UNSAFETY: declares one unsafe function: what a caller says of its own stack cannot be checked.
#![expect(unsafe_code)]

use std::any::Any;
use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use crate::caller::Caller;
use crate::interval::start_intervals;
use crate::list::{Entry, Kind, Timed, Told};
use crate::open::{Held, OpenChange};
use crate::slot::count;
use crate::sync::Arc;
use crate::{AddressSpace, Blocking, Change, Event, Range, WouldBlock};

pub(crate) type Panic = Box<dyn Any + Send>;

impl AddressSpace {
    /// Announces that `range` changes because of `event`, makes the change, and announces that it is done.
    ///
    /// Subscribers may wait, so this may; none can refuse. `change` runs after all starts and before all
    /// ends, on the calling thread.
    ///
    /// # Panics
    ///
    /// If a callback or `change` panics, after everybody who was told of the start has been told of the end.
    ///
    /// ```
    /// use mmu_notifier::{AddressSpace, Event, Range};
    ///
    /// let space = AddressSpace::new();
    /// let answer = space.invalidate(Range::new(0x1000, 0x2000)?, Event::Unmap, || 42 /* munmap(...) */);
    /// assert_eq!(answer, 42);
    /// # Ok::<(), mmu_notifier::RangeError>(())
    /// ```
    #[doc(alias = "mmu_notifier_invalidate_range_start")]
    pub fn invalidate<R>(&self, range: Range, event: Event, change: impl FnOnce() -> R) -> R {
        match self.bracket(Change::new(range, event, Blocking::Allowed), change) {
            Ok(result) => result,
            // `try_start` and `try_invalidate` are called for non-blocking changes only, and only they can refuse.
            Err(WouldBlock) => unreachable!("a blocking start cannot be refused"),
        }
    }

    /// The whole bracket in one frame: what was started is at hand at the end.
    #[inline]
    fn bracket<R>(&self, change: Change, make: impl FnOnce() -> R) -> Result<R, WouldBlock> {
        let caller = self.caller();
        let held = self.start_held(&caller, &change).ok_or(WouldBlock)?;
        let open = held.changing();
        // Ends it if `make` panics.
        let bracket = Invalidation { space: self, open: Some(open) };
        let result = make();
        forget(bracket);
        if self.shared.open.finish_held(&caller, held) {
            self.finish(held, || change);
        }
        Ok(result)
    }

    /// The same, but nobody may wait: if somebody would have to, `change` is not made.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`] if somebody refused, or if there is no room to put the change on
    /// record (more than 512 are open). Everybody who was told of the start has been told of the end.
    ///
    /// # Panics
    ///
    /// As [`invalidate`](AddressSpace::invalidate).
    ///
    /// ```
    /// use mmu_notifier::{AddressSpace, Event, Range};
    ///
    /// let space = AddressSpace::new();
    /// assert_eq!(space.try_invalidate(Range::new(0x1000, 0x2000)?, Event::Clear, || 42), Ok(42));
    /// # Ok::<(), mmu_notifier::RangeError>(())
    /// ```
    #[doc(alias = "mmu_notifier_invalidate_range_start_nonblock")]
    pub fn try_invalidate<R>(
        &self,
        range: Range,
        event: Event,
        change: impl FnOnce() -> R,
    ) -> Result<R, WouldBlock> {
        self.bracket(Change::new(range, event, Blocking::Forbidden), change)
    }

    /// Announces a change and gives a guard that announces its end when it is dropped, on whatever thread.
    ///
    /// # Errors
    ///
    /// As [`try_invalidate`](AddressSpace::try_invalidate) if the change must not wait; never if it may.
    ///
    /// # Panics
    ///
    /// If a callback panics, after the others have been told of the end.
    ///
    /// ```
    /// use mmu_notifier::{AddressSpace, Blocking, Change, Event, Range};
    ///
    /// let space = AddressSpace::new();
    /// let pages = Range::new(0x1000, 0x2000)?;
    /// let bracket = space.begin(Change::new(pages, Event::Migrate, Blocking::Allowed).with_owner(7))?;
    /// // ... migrate ...
    /// bracket.end();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "mmu_notifier_invalidate_range_start")]
    pub fn begin(&self, change: Change) -> Result<Invalidation<'_>, WouldBlock> {
        let open = self.start(&self.caller(), change)?;
        Ok(Invalidation { space: self, open: Some(open) })
    }

    /// Announces a change and leaves it open until [`end`](AddressSpace::end).
    ///
    /// For code that must not rely on a destructor, as the hook of a system call, whose frame may be jumped
    /// over. Everybody else uses [`begin`](AddressSpace::begin) or [`invalidate`](AddressSpace::invalidate).
    ///
    /// # Errors
    ///
    /// As [`try_invalidate`](AddressSpace::try_invalidate); never if `change` allows to wait.
    ///
    /// # Panics
    ///
    /// If a callback panics, after the others have been told of the end.
    #[inline]
    pub fn start(&self, caller: &Caller, change: Change) -> Result<OpenChange, WouldBlock> {
        self.start_held(caller, &change).map(Held::changing).ok_or(WouldBlock)
    }

    /// The start of a change; `None`: it was refused, and is over.
    #[inline]
    fn start_held(&self, caller: &Caller, change: &Change) -> Option<Held<'_>> {
        let shared = &self.shared;
        let held = match shared.open.claim(caller, change.event()) {
            Some(held) => held,
            None if change.blocking() == Blocking::Forbidden => return None,
            None => shared.claim_change(caller, change.event()),
        };
        // Nobody to tell: then the change need not be on record with its range either. Who comes now waits for it,
        // whatever it changes.
        let nobody = shared.list.is_empty() && shared.tree.is_empty();
        (nobody || self.start_all(held, change)).then_some(held)
    }

    /// The start of a change that somebody may want to hear of; false: it was refused, and is over.
    #[inline(never)]
    fn start_all(&self, held: Held<'_>, change: &Change) -> bool {
        let shared = &self.shared;
        held.write(change);
        let entries = shared.list.walk(&held);
        if !shared.tree.is_empty() || self.is_special(held) {
            return self.start_special(held, entries, change);
        }
        held.walks_since(u64::MAX);
        let bracket = Called { space: self, held };
        let refused = start_list::<false>(held, entries, change);
        forget(bracket);
        !refused || self.stop(held, None)
    }

    /// Whether callbacks need more than to be called: they are timed, or the change was made in a callback.
    #[inline]
    fn is_special(&self, held: Held<'_>) -> bool {
        self.shared.is_timed(&held) || held.is_nested()
    }

    /// The start of a change that meets intervals, is timed, or was made in a callback.
    #[inline(never)]
    fn start_special(&self, held: Held<'_>, entries: &[Arc<Entry>], change: &Change) -> bool {
        if !self.shared.tree.is_empty() {
            let started = start_intervals::<false>(&self.shared.tree, &held, change);
            if started.refused || started.panic.is_some() {
                return self.stop(held, started.panic);
            }
        }
        // The tree is not walked any more.
        held.walks_since(u64::MAX);
        let bracket = Called { space: self, held };
        let refused = if self.is_special(held) {
            start_list::<true>(held, entries, change)
        } else {
            start_list::<false>(held, entries, change)
        };
        forget(bracket);
        !refused || self.stop(held, None)
    }

    /// The change does not take place: who has started is ended.
    #[cold]
    fn stop(&self, held: Held<'_>, panic: Option<Panic>) -> bool {
        if panic.is_none() {
            count(&held.slot.counts.refused);
        }
        held.ending();
        self.finish(held, || held.change());
        match panic {
            Some(panic) => resume_unwind(panic),
            None => false,
        }
    }

    /// Announces that an open change is done; false if it was ended before (by who found it abandoned).
    ///
    /// # Panics
    ///
    /// If a callback panics, after all others have been told.
    #[doc(alias = "mmu_notifier_invalidate_range_end")]
    #[inline]
    pub fn end(&self, caller: &Caller, open: OpenChange) -> bool {
        let Some(held) = self.shared.open.finish(caller, open) else { return false };
        self.finish(held, || held.change());
        true
    }

    #[inline]
    fn finish(&self, held: Held<'_>, change: impl FnOnce() -> Change) {
        let entries = self.shared.list.walk_again(&held);
        if entries.is_empty() {
            self.shared.open.free(held);
        } else {
            self.end_all(held, entries, &change());
        }
    }

    #[inline(never)]
    fn end_all(&self, held: Held<'_>, entries: &[Arc<Entry>], change: &Change) {
        let bracket = Called { space: self, held };
        if self.is_special(held) {
            end_special(held, entries, change);
        } else {
            end_list::<false>(held, entries, change);
        }
        bracket.free();
    }

    /// Ends the calling thread's open changes of which `gone` says, by the stack position they were started
    /// with, that their frame does not exist any more.
    ///
    /// A thread that is cancelled or jumps out of a signal handler leaves its change open, perhaps in the middle
    /// of a callback. Those whose start had returned, and whose end had not been called, get their end. At the
    /// latest a thread's next change should ask.
    ///
    /// # Safety
    ///
    /// `gone` tells the truth: no code of the calling thread that was inside a change it calls gone, or in a callback of
    /// it, goes on afterwards.
    pub unsafe fn end_abandoned(&self, caller: &Caller, gone: impl FnMut(usize) -> bool) -> Abandoned {
        if self.shared.open.may_have_open(caller) {
            self.end_those_gone(caller, gone)
        } else {
            Abandoned::default()
        }
    }

    #[cold]
    fn end_those_gone(&self, caller: &Caller, mut gone: impl FnMut(usize) -> bool) -> Abandoned {
        let mut abandoned = Abandoned::default();
        for (token, stack) in self.shared.open.of_thread(caller) {
            if gone(stack)
                && let Some((held, inside_a_callback)) = self.shared.open.adopt(caller, token)
            {
                count(&held.slot.counts.abandoned);
                self.finish(held, || held.change());
                abandoned.changes += 1;
                abandoned.callbacks += usize::from(inside_a_callback);
            }
        }
        abandoned
    }
}

/// What [`AddressSpace::end_abandoned`] has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abandoned {
    /// Changes that were ended.
    pub changes: usize,
    /// Callbacks that a thread had left in their middle: a start that has not returned, and so has no end, or an
    /// end that has not.
    pub callbacks: usize,
}

/// A change in progress: started when it was made, ended when it is dropped.
///
/// May be handed to another thread, which then ends it. Until it does, the change is one of the thread that started it:
/// who has been handed it waits for it as others do if it subscribes or reads the range, which is for ever. The thread
/// that started it must not take it for [abandoned](AddressSpace::end_abandoned).
#[derive(Debug)]
#[must_use = "dropping it ends the change"]
pub struct Invalidation<'a> {
    space: &'a AddressSpace,
    /// `None` once it is ended.
    open: Option<OpenChange>,
}

impl Invalidation<'_> {
    /// The change is done.
    ///
    /// # Panics
    ///
    /// If a callback panics, after all others have been told.
    pub fn end(mut self) {
        self.end_once();
    }

    fn end_once(&mut self) {
        if let Some(open) = self.open.take() {
            self.space.end(&self.space.caller(), open);
        }
    }
}

impl Drop for Invalidation<'_> {
    /// In a panic, a callback that panics as well is one too many: the process aborts.
    fn drop(&mut self) {
        self.end_once();
    }
}

/// Callbacks of a list are being called. Dropped if one of them panics: then everybody who has started and not been
/// ended is ended, and the change is over.
struct Called<'a> {
    space: &'a AddressSpace,
    held: Held<'a>,
}

impl Called<'_> {
    /// All callbacks have returned, and the change is over.
    #[inline]
    fn free(self) {
        let (space, held) = (self.space, self.held);
        forget(self);
        held.forget_progress();
        space.shared.open.free(held);
    }
}

impl Drop for Called<'_> {
    #[cold]
    fn drop(&mut self) {
        let Called { space, held } = *self;
        held.ending();
        let entries = space.shared.list.walk_again(&held);
        // What else panics now is lost behind the first one, which goes on when this returns.
        while catch_unwind(AssertUnwindSafe(|| end_special(held, entries, &held.change()))).is_err() {}
        Called { space, held }.free();
    }
}

#[inline(never)]
fn end_special(held: Held<'_>, entries: &[Arc<Entry>], change: &Change) {
    end_list::<true>(held, entries, change);
}

/// Calls start of everybody on the list; whether somebody refused. One who panics has not started.
///
/// `SPECIAL`: the change was made in a callback, or is timed.
#[inline]
fn start_list<const SPECIAL: bool>(held: Held<'_>, entries: &[Arc<Entry>], change: &Change) -> bool {
    let mut refused = false;
    for (index, entry) in entries.iter().enumerate() {
        if let Some(subscriber) = called::<SPECIAL>(held, entry) {
            let began = SPECIAL.then(Instant::now);
            refused |= subscriber.start(held, change).is_err();
            if let Some(began) = began {
                entry.took(Timed::Start, began.elapsed());
            }
        }
        held.set_started(index + 1);
    }
    held.set_calling(0);
    refused
}

/// Calls end of every subscriber that has started, has one, and has not been called yet.
#[inline]
fn end_list<const SPECIAL: bool>(held: Held<'_>, entries: &[Arc<Entry>], change: &Change) {
    let started = entries.get(..held.started()).unwrap_or(entries);
    for (index, entry) in started.iter().enumerate().skip(held.ended()) {
        // On record as called first: who jumps away behind it is known to have been about to call an end.
        let subscriber = called::<SPECIAL>(held, entry);
        // Before the call: an end that is jumped out of, or panics, is not called again.
        held.set_ended(index + 1);
        if let Some(subscriber) = subscriber {
            let began = SPECIAL.then(Instant::now);
            subscriber.end(held, change);
            if let Some(began) = began {
                entry.took(Timed::End, began.elapsed());
            }
        }
    }
    held.set_calling(0);
}

/// The subscriber of `entry`, on record as being called, unless it has gone or the change was made in one of its
/// callbacks.
#[inline]
fn called<'a, const SPECIAL: bool>(held: Held<'a>, entry: &'a Entry) -> Option<&'a dyn Told> {
    if SPECIAL && held.skips(entry.address()) {
        return None;
    }
    held.set_calling(entry.address());
    match entry.subscriber(held)? {
        Kind::Told(told) => Some(&**told),
        // These are on lists of their own.
        Kind::Aging(_) | Kind::Tlb(_) => None,
    }
}
