//! Subscribers of the core that behave as a class of the model programs them.
//!
//! The programs are written anew here: periodic refusals, answers of aging, second passes. A guest that the model does
//! not call (yet, or any more: `refine.rs` says when) is told by `counts`: it agrees to everything and does not count.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mmu_notifier::{
    Aging, IntervalSubscriber, Pass, Range, Refuser, SecondaryTlb, Shared, Subscriber, Subscription,
    Ticketed, WouldBlock,
};
use mmu_notifier_model::{
    Args, Blocking, CallKind, Callback, Change, Class, IntervalClass, Passes, Qualifying,
};

use crate::convert;
use crate::seen::{Said, Seen};
use crate::threads;

/// What all guests of one run share.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) log: Mutex<Vec<Seen>>,
    /// Who is subscribed: by the number of the subscriber.
    pub(crate) handles: Mutex<BTreeMap<u64, Handle>>,
}

/// What keeps a subscriber subscribed.
#[derive(Debug, Default)]
pub(crate) struct Handle {
    pub(crate) parts: Vec<Subscription>,
    pub(crate) shares: Vec<AnyShare>,
    /// How many of its parts have not been dropped by the core.
    pub(crate) present: Arc<AtomicUsize>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A guest that panics has noticed something, and that is what should be said.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn saw(&self, seen: Seen) {
        lock(&self.log).push(seen);
    }

    /// Gives back one reference: of a shared subscriber one share, and the rest with the last; of another everything.
    /// False if there is nothing to give back.
    pub(crate) fn put(&self, s: u64) -> bool {
        let mut handles = lock(&self.handles);
        let Some(handle) = handles.get_mut(&s) else { return false };
        let share = handle.shares.pop();
        let rest = if handle.shares.is_empty() { handles.remove(&s) } else { None };
        drop(handles);
        // Runs callbacks, which may want the lock.
        drop((share, rest));
        true
    }
}

/// Notices when the core drops what it was given.
#[derive(Debug)]
struct Presence(Arc<AtomicUsize>);

impl Presence {
    fn new(present: &Arc<AtomicUsize>) -> Presence {
        present.fetch_add(1, Ordering::SeqCst);
        Presence(present.clone())
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An hlist subscriber.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) s: u64,
    pub(crate) world: Arc<World>,
    /// Whether the model calls it, too.
    pub(crate) counts: AtomicBool,
    counters: Mutex<Counters>,
    /// Starts that are to be ended.
    pub(crate) open: Mutex<Vec<Change>>,
}

#[derive(Debug, Default)]
struct Counters {
    /// Starts that qualify for the programmed failure.
    qualifying: u64,
    /// Answers given, for each aging callback.
    answered: [usize; 3],
}

impl Guest {
    pub(crate) fn new(s: u64, world: Arc<World>) -> Guest {
        let (counts, counters, open) = Default::default();
        Guest { s, world, counts, counters, open }
    }
}

/// One subscription of a guest under the rules of a class.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) guest: Arc<Guest>,
    class: Arc<Class>,
    /// Whether release is told by this part: the others of the same guest do not count.
    is_main: bool,
    _presence: Presence,
}

impl Part {
    pub(crate) fn new(
        guest: &Arc<Guest>,
        class: &Arc<Class>,
        is_main: bool,
        present: &Arc<AtomicUsize>,
    ) -> Part {
        let presence = Presence::new(present);
        Part { guest: guest.clone(), class: class.clone(), is_main, _presence: presence }
    }

    fn counts(&self) -> bool {
        self.guest.counts.load(Ordering::SeqCst)
    }

    /// A start; whether the program has it fail, which a blocking one cannot.
    fn starts(&self, change: Change) -> bool {
        if !self.class.has(Callback::Start) {
            lock(&self.guest.open).push(change);
            return false;
        }
        let mut refused = false;
        if let Some(fail) = self.class.start_fail
            && self.counts()
            && fail.when.counts(change.blocking)
        {
            let mut counters = lock(&self.guest.counters);
            counters.qualifying += 1;
            refused =
                counters.qualifying.is_multiple_of(fail.every) && change.blocking == Blocking::Forbidden;
        }
        self.guest.world.saw(Seen::Start { s: self.guest.s, change, refused });
        if !refused {
            lock(&self.guest.open).push(change);
        }
        refused
    }

    fn ends(&self, change: Change) {
        let mut open = lock(&self.guest.open);
        let at = open.iter().position(|other| *other == change);
        open.swap_remove(at.expect("an end has a start"));
        drop(open);
        if self.class.has(Callback::End) {
            self.guest.world.saw(Seen::End { s: self.guest.s, change });
        }
    }

    fn released(&self) {
        if !self.is_main || !self.class.has(Callback::Release) {
            return;
        }
        self.guest.world.saw(Seen::Release { s: self.guest.s });
        if self.class.release_puts {
            self.guest.world.put(self.guest.s);
        }
    }

    fn ages(&self, callback: Callback, args: Args) -> bool {
        if !self.class.has(callback) {
            return false;
        }
        let answers = &self.class.answers;
        let (which, at, list) = match callback {
            Callback::ClearFlushYoung => (CallKind::ClearFlushYoung, 0, &answers.clear_flush_young),
            Callback::ClearYoung => (CallKind::ClearYoung, 1, &answers.clear_young),
            _ => (CallKind::TestYoung, 2, &answers.test_young),
        };
        let mut young = false;
        if self.counts() {
            let mut counters = lock(&self.guest.counters);
            young = !list.is_empty() && list[counters.answered[at] % list.len()] != 0;
            counters.answered[at] += 1;
        }
        self.guest.world.saw(Seen::Young { s: self.guest.s, which, args, young });
        young
    }
}

/// A part that cannot refuse.
#[derive(Debug)]
pub(crate) struct Told(pub(crate) Part);

impl Subscriber for Told {
    fn start(&self, change: &mmu_notifier::Change) {
        let refused = self.0.starts(convert::change(change));
        assert!(!refused, "its class has no failures");
    }

    fn end(&self, change: &mmu_notifier::Change) {
        self.0.ends(convert::change(change));
    }

    fn release(&self) {
        self.0.released();
    }
}

/// A shared part: the core tells classes apart by type.
#[derive(Debug)]
pub(crate) struct Member<const CLASS: usize>(pub(crate) Told);

impl<const CLASS: usize> Subscriber for Member<CLASS> {
    fn start(&self, change: &mmu_notifier::Change) {
        self.0.start(change);
    }

    fn end(&self, change: &mmu_notifier::Change) {
        self.0.end(change);
    }

    fn release(&self) {
        self.0.release();
    }
}

/// A share of a member, whatever its class.
pub(crate) struct AnyShare(#[expect(dead_code, reason = "kept to be dropped")] Box<dyn std::any::Any + Send>);

impl std::fmt::Debug for AnyShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AnyShare")
    }
}

impl AnyShare {
    pub(crate) fn new<const CLASS: usize>(share: Shared<Member<CLASS>>) -> AnyShare {
        AnyShare(Box::new(share))
    }
}

/// A part that may refuse and has no end.
#[derive(Debug)]
pub(crate) struct Asked(pub(crate) Part);

impl Asked {
    /// Nobody will end it.
    fn forget(&self) {
        lock(&self.0.guest.open).clear();
    }
}

impl Refuser for Asked {
    fn start(&self, change: &mmu_notifier::Change) {
        assert!(!self.0.starts(convert::change(change)), "a blocking start cannot be refused");
        self.forget();
    }

    fn try_start(&self, change: &mmu_notifier::Change) -> Result<(), WouldBlock> {
        let refused = self.0.starts(convert::change(change));
        self.forget();
        if refused { Err(WouldBlock) } else { Ok(()) }
    }

    fn release(&self) {
        self.0.released();
    }
}

/// A part that may refuse and has an end.
#[derive(Debug)]
pub(crate) struct Paired(pub(crate) Part);

impl Ticketed for Paired {
    type Ticket = Change;

    fn start(&self, change: &mmu_notifier::Change) -> Change {
        let change = convert::change(change);
        assert!(!self.0.starts(change), "a blocking start cannot be refused");
        change
    }

    fn try_start(&self, change: &mmu_notifier::Change) -> Result<Change, WouldBlock> {
        let change = convert::change(change);
        if self.0.starts(change) { Err(WouldBlock) } else { Ok(change) }
    }

    fn end(&self, change: &mmu_notifier::Change, started: Change) {
        assert_eq!(convert::change(change), started, "the ticket of another change");
        self.0.ends(started);
    }

    fn release(&self) {
        self.0.released();
    }
}

/// The part that is asked about age.
#[derive(Debug)]
pub(crate) struct Ages(pub(crate) Part);

impl Aging for Ages {
    fn clear_flush_young(&self, range: Range) -> bool {
        self.0.ages(Callback::ClearFlushYoung, convert::bounds(range))
    }

    fn clear_young(&self, range: Range) -> bool {
        self.0.ages(Callback::ClearYoung, convert::bounds(range))
    }

    fn test_young(&self, address: usize) -> bool {
        self.0.ages(Callback::TestYoung, Args::Address(address as u64))
    }

    fn release(&self) {
        self.0.released();
    }
}

/// The part that flushes.
#[derive(Debug)]
pub(crate) struct Flushes(pub(crate) Part);

impl SecondaryTlb for Flushes {
    fn flush(&self, range: Range) {
        let (start, end) = (range.start() as u64, range.end() as u64);
        self.0.guest.world.saw(Seen::Flush { s: self.0.guest.s, start, end });
    }

    fn release(&self) {
        self.0.released();
    }
}

/// An interval subscriber.
#[derive(Debug)]
pub(crate) struct IntervalGuest {
    pub(crate) i: u64,
    world: Arc<World>,
    /// Whether the model calls it, too.
    pub(crate) counts: AtomicBool,
    /// Calls that qualify for the programmed failure, and calls that came as far as to ask for a second pass or not.
    counters: Mutex<(u64, u64)>,
}

impl IntervalGuest {
    pub(crate) fn new(i: u64, world: Arc<World>) -> IntervalGuest {
        let (counts, counters) = Default::default();
        IntervalGuest { i, world, counts, counters }
    }

    /// Counts a call; what the program says.
    pub(crate) fn program(&self, class: &IntervalClass, change: Change) -> (Said, Pass) {
        let mut counters = lock(&self.counters);
        let (qualifying, passed) = &mut *counters;
        if let Some(fail) = class.fail
            && (fail.when == Qualifying::Always || change.blocking == Blocking::Forbidden)
        {
            *qualifying += 1;
            if qualifying.is_multiple_of(fail.every) {
                return (Said::Refused, Pass::Done);
            }
        }
        if let Passes::Two { finish_every, .. } = class.passes {
            *passed += 1;
            if finish_every != 0 && passed.is_multiple_of(finish_every) {
                return (Said::Agreed, Pass::Unfinished);
            }
        }
        (Said::Agreed, Pass::Done)
    }
}

/// One insertion of an interval guest under the rules of a class.
#[derive(Debug)]
pub(crate) struct Inserted {
    guest: Arc<IntervalGuest>,
    class: IntervalClass,
    /// A wrong driver: see `faults.rs`.
    pub(crate) ignores_nothing: bool,
    _presence: Presence,
}

impl Inserted {
    pub(crate) fn new(
        guest: &Arc<IntervalGuest>,
        class: &IntervalClass,
        present: &Arc<AtomicUsize>,
    ) -> Inserted {
        let presence = Presence::new(present);
        Inserted { guest: guest.clone(), class: class.clone(), ignores_nothing: false, _presence: presence }
    }

    /// A call that is not ignored: what the program says, and whether there is a second pass.
    fn asked(&self, change: Change) -> (Said, Pass) {
        let (mut answer, pass) = match self.guest.counts.load(Ordering::SeqCst) {
            true => self.guest.program(&self.class, change),
            false => (Said::Agreed, Pass::Done),
        };
        if change.blocking == Blocking::Allowed {
            // It has no way to say no.
            answer = Said::Agreed;
        }
        let unfinished = pass == Pass::Unfinished;
        self.guest.world.saw(Seen::Interval { i: self.guest.i, change, answer, unfinished });
        (answer, pass)
    }
}

impl IntervalSubscriber for Inserted {
    fn ignores(&self, change: &mmu_notifier::Change) -> bool {
        let change = convert::change(change);
        let own = |ignored: mmu_notifier_model::Ignored| {
            ignored.event == change.event && ignored.owner == change.owner
        };
        let ignores = !self.ignores_nothing && self.class.ignore.is_some_and(own);
        // Readers ask, too.
        if ignores && !threads::is_reading() {
            let answer = Said::Ignored;
            self.guest.world.saw(Seen::Interval { i: self.guest.i, change, answer, unfinished: false });
        }
        ignores
    }

    fn invalidate(&self, change: &mmu_notifier::Change) -> Pass {
        self.asked(convert::change(change)).1
    }

    fn try_invalidate(&self, change: &mmu_notifier::Change) -> Result<Pass, WouldBlock> {
        match self.asked(convert::change(change)) {
            (Said::Refused, _) => Err(WouldBlock),
            (_, pass) => Ok(pass),
        }
    }

    fn finish(&self, _: &mmu_notifier::Change) {
        self.guest.world.saw(Seen::Finish { i: self.guest.i });
    }
}
