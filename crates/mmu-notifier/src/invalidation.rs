//! The bracket: start, change, end.
//!
//! # Guarantee
//!
//! Every start that returned is followed by exactly one end, whatever happens in between: the change
//! fails, somebody refuses, a callback panics. `start` of all subscribers has returned before the change
//! begins, and the first `end` runs after it is done. All subscribers that were on the list when the
//! change went on record see both, others neither; who unsubscribes in between is told by `release`.
//!
//! A refusal does not stop the walk: everybody is asked, as in Linux, and then everybody who started is
//! ended.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::caller::Caller;
use crate::list::{Entry, Kind};
use crate::open::{Held, OpenChange};
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
        let caller = self.caller();
        let bracket = Invalidation { space: self, open: Some(self.start_blocking(&caller, range, event)) };
        let result = change();
        bracket.end();
        result
    }

    /// The same, but nobody may wait: if somebody would have to, `change` is not made.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`] if a [`Refuser`](crate::Refuser) refused, or if there is no room to put the change on
    /// record (more than 1024 are open). Everybody who was told of the start has been told of the end.
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
        let open = self.start(&self.caller(), Change::new(range, event, Blocking::Forbidden))?;
        let bracket = Invalidation { space: self, open: Some(open) };
        let result = change();
        bracket.end();
        Ok(result)
    }

    /// Announces a change and leaves it open until [`end`](AddressSpace::end).
    ///
    /// For code that must not rely on a destructor, as the hook of a system call, whose frame may be jumped
    /// over. Everybody else uses [`invalidate`](AddressSpace::invalidate).
    ///
    /// # Errors
    ///
    /// As [`try_invalidate`](AddressSpace::try_invalidate); never if `change` allows to wait.
    ///
    /// # Panics
    ///
    /// If a callback panics, after the others have been told of the end.
    pub fn start(&self, caller: &Caller, change: Change) -> Result<OpenChange, WouldBlock> {
        let held = match change.blocking() {
            Blocking::Allowed => self.claim(caller, &change),
            Blocking::Forbidden => self.shared.open.claim(caller, &change).ok_or(WouldBlock)?,
        };
        let entries = self.shared.list.walk(&held);
        let mut refused = false;
        let mut panic = None;
        for (index, entry) in entries.iter().enumerate() {
            match call(&held, entry, |kind| start(kind, &change)) {
                Ok(answer) => refused |= answer == Some(Err(WouldBlock)),
                Err(first) => {
                    // The one that panicked has not started.
                    panic = Some(first);
                    break;
                }
            }
            held.set_started(index + 1);
        }
        if !refused && panic.is_none() {
            return Ok(held.changing());
        }
        held.ending();
        let panic = panic.or(end_all(&held, entries, &change));
        held.free();
        panic.map_or(Err(WouldBlock), |panic| resume_unwind(panic))
    }

    fn start_blocking(&self, caller: &Caller, range: Range, event: Event) -> OpenChange {
        match self.start(caller, Change::new(range, event, Blocking::Allowed)) {
            Ok(open) => open,
            // `try_start` is called for non-blocking changes only, and only it can refuse.
            Err(WouldBlock) => unreachable!("a blocking start cannot be refused"),
        }
    }

    /// Announces that an open change is done; false if it was ended before (by who found it abandoned).
    ///
    /// # Panics
    ///
    /// If a callback panics, after all others have been told.
    #[doc(alias = "mmu_notifier_invalidate_range_end")]
    pub fn end(&self, caller: &Caller, open: OpenChange) -> bool {
        let Some(held) = self.shared.open.finish(caller, open) else { return false };
        let change = held.change();
        self.finish(held, &change);
        true
    }

    fn finish(&self, held: Held<'_>, change: &Change) {
        let panic = end_all(&held, self.shared.list.walk_again(&held), change);
        held.free();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Ends the calling thread's open changes of which `gone` says, by the stack position they were started
    /// with, that their frame does not exist any more.
    ///
    /// A thread that is cancelled or jumps out of a signal handler leaves its change open, perhaps in the middle
    /// of a callback. Those whose start had returned, and whose end had not been called, get their end. At the
    /// latest a thread's next change should ask.
    pub fn end_abandoned(&self, caller: &Caller, mut gone: impl FnMut(usize) -> bool) -> Abandoned {
        let mut abandoned = Abandoned::default();
        for (open, stack) in self.shared.open.of_thread(caller) {
            if gone(stack)
                && let Some((held, inside_a_callback)) = self.shared.open.adopt(caller, open)
            {
                let change = held.change();
                self.finish(held, &change);
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
struct Invalidation<'a> {
    space: &'a AddressSpace,
    open: Option<OpenChange>,
}

impl Invalidation<'_> {
    fn end(mut self) {
        if let Some(open) = self.open.take() {
            self.space.end(&self.space.caller(), open);
        }
    }
}

impl Drop for Invalidation<'_> {
    /// Runs only when `change` panics. A callback that panics as well is one too many: the process aborts.
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.space.end(&self.space.caller(), open);
        }
    }
}

/// One subscriber's start.
fn start(kind: &Kind, change: &Change) -> Result<(), WouldBlock> {
    match (kind, change.blocking()) {
        (Kind::Paired(subscriber), _) => subscriber.start(change),
        (Kind::Refuser(refuser), Blocking::Allowed) => refuser.start(change),
        (Kind::Refuser(refuser), Blocking::Forbidden) => return refuser.try_start(change),
    }
    Ok(())
}

/// Calls end of every subscriber that started and has one; the first panic, after all have been called.
fn end_all(held: &Held<'_>, entries: &[Arc<Entry>], change: &Change) -> Option<Panic> {
    let mut first = None;
    for (index, entry) in entries.iter().enumerate().take(held.started()).skip(held.ended()) {
        // Before the call: an end that is jumped out of is not called again.
        held.set_ended(index + 1);
        let called = call(held, entry, |kind| match kind {
            Kind::Paired(subscriber) => subscriber.end(change),
            Kind::Refuser(_) => {}
        });
        if let Err(panic) = called {
            first.get_or_insert(panic);
        }
    }
    first
}

/// Runs a callback of `entry`'s subscriber, unless it has gone or the change was made in one of its callbacks.
#[inline]
fn call<R>(held: &Held<'_>, entry: &Entry, callback: impl FnOnce(&Kind) -> R) -> Result<Option<R>, Panic> {
    if held.skips(entry.address()) {
        return Ok(None);
    }
    held.calling(entry.address(), || match entry.subscriber(held) {
        Some(kind) => catch_unwind(AssertUnwindSafe(|| callback(kind))).map(Some),
        None => Ok(None),
    })
}
