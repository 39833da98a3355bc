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

// UNSAFETY: declares one unsafe function, as what a caller says of its own stack cannot be checked.
#![expect(unsafe_code)]

use std::any::Any;
use std::hint::cold_path;
use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use crate::caller::Caller;
use crate::held::{Held, OpenChange};
use crate::interval::start_intervals;
use crate::list::{Entry, Timed};
use crate::slot::{Phase, count};
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
    #[inline(always)]
    pub fn invalidate<R>(&self, range: Range, event: Event, change: impl FnOnce() -> R) -> R {
        match self.bracket(range, event, Blocking::Allowed, change) {
            Ok(result) => result,
            // `try_start` and `try_invalidate` are called for non-blocking changes only, and only they can refuse.
            Err(WouldBlock) => unreachable!("a blocking start cannot be refused"),
        }
    }

    /// The whole bracket in one frame: what was started is at hand at the end. There is one of these for each `make`, so that
    /// it may as well be part of its caller.
    #[inline(always)]
    fn bracket<R>(
        &self,
        range: Range,
        event: Event,
        blocking: Blocking,
        make: impl FnOnce() -> R,
    ) -> Result<R, WouldBlock> {
        // What needs a call, as to find out who calls for the first time, goes the long way.
        if !self.has_subscribers()
            && let Some(held) =
                self.shared.known_caller().and_then(|caller| self.claim_unheard(&caller, event))
        {
            let unheard = Unheard { held };
            let result = make();
            drop(unheard);
            return Ok(result);
        }
        let change = Change::new(range, event, blocking);
        let caller = self.caller();
        let started = self.start_all(&caller, &change).ok_or(WouldBlock)?;
        started.held.changing();
        let begun = Begun { space: self, held: started.held };
        let result = make();
        forget(begun);
        // In a child that was forked inside, the change is forgotten already.
        if started.entries.is_empty() {
            if started.held.is_changing() {
                self.shared.open.free(started.held);
            }
        } else if started.held.finish() {
            self.end_all(started, &change);
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
    #[inline(always)]
    pub fn try_invalidate<R>(
        &self,
        range: Range,
        event: Event,
        change: impl FnOnce() -> R,
    ) -> Result<R, WouldBlock> {
        self.bracket(range, event, Blocking::Forbidden, change)
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
    #[inline(always)]
    pub fn start(&self, caller: &Caller, change: Change) -> Result<OpenChange, WouldBlock> {
        let held = self.start_all(caller, &change).ok_or(WouldBlock)?.held;
        held.changing();
        Ok(held.open())
    }

    /// The start of a change; `None`: it was refused, and is over.
    #[inline(always)]
    fn start_all(&self, caller: &Caller, change: &Change) -> Option<Started<'_>> {
        let shared = &*self.shared;
        let Some(held) = shared.open.claim_at_home(caller, Phase::Starting) else {
            return self.start_elsewhere(*caller, change).map(|held| self.started(held));
        };
        held.count(change.event());
        if !shared.tree.is_empty() || shared.is_timed(held) {
            return self.start_special(held, change).map(|held| self.started(held));
        }
        let Some(entries) = shared.list.walk_with(held, change) else {
            return Some(Started { held, entries: &[], special: false });
        };
        if !self.start_plain(held, entries, change) {
            self.stop(held, None);
            return None;
        }
        Some(Started { held, entries, special: false })
    }

    /// The same inside another change, or where a neighbour is at home.
    #[cold]
    fn start_elsewhere(&self, caller: Caller, change: &Change) -> Option<Held<'_>> {
        let held = match change.blocking() {
            Blocking::Forbidden => self.shared.open.claim(&caller, Phase::Starting)?,
            Blocking::Allowed => self.shared.claim(&caller, Phase::Starting),
        };
        held.count(change.event());
        self.start_special(held, change)
    }

    /// The start of a change that meets intervals, is timed, or was made in a callback.
    #[inline(never)]
    fn start_special<'a>(&self, held: Held<'a>, change: &Change) -> Option<Held<'a>> {
        let shared = &self.shared;
        let has_intervals = !shared.tree.is_empty();
        // Nobody to tell: then the change need not be on record with its range either. Who comes now waits for it,
        // whatever it changes.
        if !has_intervals && shared.list.is_empty() {
            return Some(held);
        }
        held.write(change);
        if has_intervals {
            shared.tree.enter(&held);
        }
        let entries = shared.list.walk(held);
        if has_intervals {
            let started = start_intervals::<false>(&shared.tree, &held, change);
            if started.refused || started.panic.is_some() {
                held.cut_short(0);
                self.stop(held, started.panic);
                return None;
            }
        }
        if !self.start_each(held, entries, change) {
            self.stop(held, None);
            return None;
        }
        Some(held)
    }

    /// What is on record of a change whose starts have all returned.
    #[inline(always)]
    fn started<'a>(&self, held: Held<'a>) -> Started<'a> {
        Started { held, entries: self.shared.list.walk_again(held), special: self.is_special(held) }
    }

    /// Whether callbacks need more than to be called: they are timed, or the change was made in a callback.
    #[inline(always)]
    fn is_special(&self, held: Held<'_>) -> bool {
        self.shared.is_timed(held) || held.is_nested()
    }

    /// Calls start of everybody on the list; whether nobody refused. One who panics has not started.
    #[inline(always)]
    fn start_plain(&self, held: Held<'_>, entries: &[Arc<Entry>], change: &Change) -> bool {
        let called = Called { space: self, held };
        let mut refused = 0;
        for entry in entries {
            // Until the next one is, or the phase is over: who panics, or jumps away, has not started.
            held.set_calling(entry.address());
            let Some(subscriber) = entry.told(held) else {
                cold_path();
                continue;
            };
            refused |= u8::from(subscriber.start(held.slot, change).is_err());
        }
        forget(called);
        refused == 0
    }

    /// The same if callbacks are timed, or if the change was made in a callback.
    #[inline(never)]
    fn start_each(&self, held: Held<'_>, entries: &[Arc<Entry>], change: &Change) -> bool {
        let timed = self.shared.is_timed(held);
        let called = Called { space: self, held };
        // It may be that nobody is called.
        held.set_calling(0);
        let mut agreed = true;
        for entry in entries.iter().filter(|entry| !is_skipped(held, entry)) {
            held.set_calling(entry.address());
            if let Some(subscriber) = entry.told(held) {
                let began = timed.then(Instant::now);
                agreed &= subscriber.start(held.slot, change).is_ok();
                if let Some(began) = began {
                    entry.took(Timed::Start, began.elapsed());
                }
            }
        }
        forget(called);
        agreed
    }

    /// The change does not take place: who has started is ended.
    #[cold]
    fn stop(&self, held: Held<'_>, panic: Option<Panic>) {
        if panic.is_none() {
            count(&held.slot.counts.refused);
        }
        held.ending();
        self.end_special(held, &held.change());
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Announces that an open change is done; false if it was ended before (by who found it abandoned).
    ///
    /// # Panics
    ///
    /// If a callback panics, after all others have been told.
    #[doc(alias = "mmu_notifier_invalidate_range_end")]
    #[inline(always)]
    pub fn end(&self, caller: &Caller, open: OpenChange) -> bool {
        let Some(held) = self.shared.open.finish(caller, open) else { return false };
        let started = self.started(held);
        if started.entries.is_empty() {
            self.shared.open.free(held);
        } else {
            self.end_all(started, &held.change());
        }
        true
    }

    /// Gives an open change to another thread: it is one of those that `to` [has open](AddressSpace::end_abandoned) at its
    /// stack position, and the calling thread waits for it as others do. Either may still [`end`](AddressSpace::end) it; who
    /// is first does. False if it was over.
    ///
    /// For a change that must last until another thread, which does not know of it, is done with something else. Nothing
    /// may jump out of this (it is a few stores): what is half handed over nobody finds.
    ///
    /// ```
    /// use mmu_notifier::{AddressSpace, Blocking, Caller, Change, Event, Range};
    ///
    /// let space = AddressSpace::new();
    /// let change = Change::new(Range::new(0x1000, 0x2000)?, Event::Clear, Blocking::Allowed);
    /// let open = space.start(&space.caller(), change).expect("nobody refuses");
    /// // SAFETY: nobody else has that number.
    /// let other = unsafe { Caller::new(1000, 0) }.with_stack(0x7000);
    /// assert!(space.hand_to(&open, &other));
    /// // SAFETY: nothing of that thread goes on in the change.
    /// let ended = unsafe { space.end_abandoned(&other, |stack| stack == 0x7000) };
    /// assert_eq!(ended.changes, 1);
    /// assert!(!space.end(&space.caller(), open), "it is over");
    /// # Ok::<(), mmu_notifier::RangeError>(())
    /// ```
    pub fn hand_to(&self, open: &OpenChange, to: &Caller) -> bool {
        self.shared.open.hand_to(open, to)
    }

    /// Tells everybody that a change is done of which everybody was told that it starts.
    #[inline(always)]
    fn end_all(&self, started: Started<'_>, change: &Change) {
        let Started { held, entries, special } = started;
        if special {
            return self.end_special(held, change);
        }
        let called = Called { space: self, held };
        for entry in entries {
            // Before the call: an end that is jumped out of, or panics, is not called again.
            held.set_calling_end(entry.address());
            let Some(subscriber) = entry.told(held) else {
                cold_path();
                continue;
            };
            subscriber.end(held.slot, change);
        }
        forget(called);
        held.leave();
    }

    /// The same if callbacks are timed, if the change was made in a callback, or if not all were called.
    #[inline(never)]
    fn end_special(&self, held: Held<'_>, change: &Change) {
        let called = Called { space: self, held };
        self.end_rest(held, change);
        forget(called);
        self.forget(held);
    }

    /// Calls end of everybody who has started and has not been called yet.
    fn end_rest(&self, held: Held<'_>, change: &Change) {
        let timed = self.shared.is_timed(held);
        let entries = self.shared.list.walk_again(held);
        let ended = place(held, entries, Phase::Ending).map_or(0, |last| last + 1);
        let to_end = ended..held.started().unwrap_or(entries.len());
        for entry in entries.get(to_end).unwrap_or_default() {
            if is_skipped(held, entry) {
                continue;
            }
            // As in `end_all`.
            held.set_calling_end(entry.address());
            if let Some(subscriber) = entry.told(held) {
                let began = timed.then(Instant::now);
                subscriber.end(held.slot, change);
                if let Some(began) = began {
                    entry.took(Timed::End, began.elapsed());
                }
            }
        }
    }

    /// All callbacks have returned, and the change is over.
    fn forget(&self, held: Held<'_>) {
        held.forget_callbacks();
        self.shared.open.free(held);
    }

    /// No callback goes on: if it was a start, those before it have started, and nobody else will.
    #[cold]
    fn break_off(&self, held: Held<'_>) {
        if held.slot.phase() == Phase::Starting {
            held.cut_short(place(held, self.shared.list.walk_again(held), Phase::Starting).unwrap_or(0));
            held.ending();
        }
    }

    /// A callback of the list has panicked: everybody who has started and not been ended is ended, and the change is over.
    #[cold]
    fn end_after_panic(&self, held: Held<'_>) {
        self.break_off(held);
        // What else panics now is lost behind the first one, which goes on when this returns. Each time there is one less
        // to end.
        while catch_unwind(AssertUnwindSafe(|| self.end_rest(held, &held.change()))).is_err() {}
        self.forget(held);
    }

    /// What changes the address space has panicked: the change is over.
    #[cold]
    fn end_unwinding(&self, held: Held<'_>) {
        let is_open = if held.list() != 0 { held.finish() } else { held.is_changing() };
        if is_open {
            self.end_special(held, &held.change());
        }
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

    /// Inside a callback: where on its stack the calling thread is making the change, that is the
    /// [`stack`](Caller::stack) of who started it. Of several that are open, the nearest above the stack position of
    /// `caller`: the innermost one, if all of the thread is on one stack. `None`: nothing is open there, or it was started
    /// without a position.
    ///
    /// ```
    /// use mmu_notifier::{AddressSpace, Blocking, Change, Event, Range};
    ///
    /// let space = AddressSpace::new();
    /// let caller = space.caller().with_stack(0x7000);
    /// let change = Change::new(Range::new(0x1000, 0x2000)?, Event::Unmap, Blocking::Allowed);
    /// let open = space.start(&caller, change).expect("nobody refuses");
    /// assert_eq!(space.changes_at(&space.caller().with_stack(0x6f00)), Some(0x7000));
    /// assert_eq!(space.changes_at(&space.caller().with_stack(0x7100)), None);
    /// space.end(&caller, open);
    /// assert_eq!(space.changes_at(&space.caller()), None);
    /// # Ok::<(), mmu_notifier::RangeError>(())
    /// ```
    pub fn changes_at(&self, caller: &Caller) -> Option<usize> {
        let open = self.shared.open.of_thread(caller).map(|(_, stack)| stack);
        open.filter(|&stack| stack > caller.stack()).min()
    }

    #[cold]
    fn end_those_gone(&self, caller: &Caller, mut gone: impl FnMut(usize) -> bool) -> Abandoned {
        let mut abandoned = Abandoned::default();
        for (token, stack) in self.shared.open.of_thread(caller) {
            if gone(stack)
                && let Some((held, inside_a_callback)) = self.shared.open.adopt(caller, token)
            {
                count(&held.slot.counts.abandoned);
                self.break_off(held);
                self.end_special(held, &held.change());
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

/// A change whose starts have all returned.
#[derive(Clone, Copy)]
struct Started<'a> {
    held: Held<'a>,
    /// Who was told.
    entries: &'a [Arc<Entry>],
    /// Whether their callbacks need more than to be called.
    special: bool,
}

/// Callbacks of a list are being called. Dropped if one of them panics.
struct Called<'a> {
    space: &'a AddressSpace,
    held: Held<'a>,
}

impl Drop for Called<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.space.end_after_panic(self.held);
    }
}

/// The address space is being changed, and nobody was told. Dropped when it is done, or panics.
struct Unheard<'a> {
    held: Held<'a>,
}

impl Drop for Unheard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.held.is_changing() {
            self.held.leave_unheard();
        }
    }
}

/// The address space is being changed. Dropped if that panics.
struct Begun<'a> {
    space: &'a AddressSpace,
    held: Held<'a>,
}

impl Drop for Begun<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.space.end_unwinding(self.held);
    }
}

/// Whether a change was made in a callback of `entry`'s, which then hears nothing of it; who relays does.
fn is_skipped(held: Held<'_>, entry: &Entry) -> bool {
    held.skips(entry.address()) && !entry.relays()
}

/// Where on the list the one is who is on record as being called in `phase`, or as called last.
fn place(held: Held<'_>, entries: &[Arc<Entry>], phase: Phase) -> Option<usize> {
    let address = held.slot.calling(phase)?;
    entries.iter().position(|entry| entry.address() == address)
}
