//! The record of open changes: who is changing what right now, and who is being called.
//!
//! This is the project's sleepable RCU. Linux counts its readers in per-CPU counters (`srcu_read_lock`);
//! here every reader is *on record* in a slot of its own, so that one can wait for the right readers
//! only, say whom one waits for, and find a change whose thread has jumped out of it.
//!
//! # Protocol
//!
//! A slot goes through four phases. Only the thread that holds it writes it; a change in its middle may be
//! ended by another thread, which then holds it.
//!
//! ```text
//!           claim (CAS)            changing()           finish (CAS)          free()
//! Free ---------------> Starting ------------> Changing -----------> Ending ---------> Free
//!                       callbacks              no callback           callbacks
//!                       run: a reader          runs                  run: a reader
//! ```
//!
//! Another thread goes from `Changing` to `Ending` by way of `Taken`, in which it writes its own name over the
//! name of who started: in `Starting` and `Ending` the name is that of who calls, for whoever sees the phase.
//!
//! * In `Starting` and `Ending` the holder may call subscribers: whoever took a subscriber off the list
//!   waits for these two ([`OpenChanges::wait_for_callbacks`]).
//! * From `Starting` to `Free` the holder keeps the list it found: a subscriber who is not on that list
//!   is not told of this change, so `subscribe` waits for it ([`OpenChanges::wait_for_strangers`]), and
//!   the list must not be freed ([`OpenChanges::holds`]).
//!
//! The one hard race, twice:
//!
//! ```text
//! change                                   subscribe / unsubscribe
//! ------                                   -----------------------
//! slot := Starting | Ending  (RMW)         list := without S / S.gone := true
//! full fence                               full fence
//! read list / read S.gone                  read all slots
//!
//!    [ the change sees the new list / S.gone, or the other sees the slot: never neither ]
//! ```
//!
//! The fences forbid that both read the old state (store buffering). On x86-64 the claim is the fence.

use std::fmt;

use crate::caller::Caller;
use crate::sync::{AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Backoff, Ordering, fence, fence_after_rmw};
use crate::{Blocking, Change, Event, Range};

/// Threads with different homes modulo this number write to different cache lines.
#[cfg(not(any(mmu_loom, miri)))]
const SETS: usize = 256;
#[cfg(miri)]
const SETS: usize = 4;
#[cfg(mmu_loom)]
const SETS: usize = 1;

/// Open changes of one home: nested ones, and a neighbour's when its own set is full.
const WAYS: usize = if cfg!(mmu_loom) { 2 } else { 4 };

/// How many callbacks deep a change is still kept from the subscribers whose callbacks these are. Who makes
/// changes in callbacks deeper than that is told of them himself.
const SKIPPED: usize = if cfg!(mmu_loom) { 1 } else { 8 };

const FREE: u64 = 0;
const STARTING: u64 = 1;
const CHANGING: u64 = 2;
const ENDING: u64 = 3;
const TAKEN: u64 = 4;

/// A slot's state is the number of its uses and a phase.
const fn state(sequence: u64, phase: u64) -> u64 {
    sequence << 3 | phase
}

const fn phase(state: u64) -> u64 {
    state & 7
}

const fn sequence(state: u64) -> u64 {
    state >> 3
}

/// One open change. Two slots never share a cache line, nor a pair of them that is fetched together. The second
/// line is touched only by changes that are made in callbacks.
#[derive(Debug)]
#[repr(align(128))]
struct Slot {
    /// See [`state`].
    state: AtomicU64,
    /// [`Caller::thread`] of the holder, 0 if it is free or not written yet; [`Caller::stack`] of who claimed it.
    thread: AtomicU64,
    stack: AtomicUsize,
    /// The change.
    start: AtomicUsize,
    end: AtomicUsize,
    /// See [`What`].
    what: AtomicU32,
    /// Subscribers of the list whose start has returned, and those whose end has been called.
    started: AtomicU16,
    ended: AtomicU16,
    /// The list that the holder walks: address | 1; 0 while it is not known yet.
    list: AtomicUsize,
    /// The subscriber that the holder is calling, 0 if none.
    calling: AtomicUsize,
    /// The subscribers in whose callbacks the change was made: they hear neither its start nor its end.
    skipped: [AtomicUsize; SKIPPED],
}

/// The small things on record, in one word.
#[derive(Clone, Copy)]
struct What {
    event: Event,
    blocking: Blocking,
    /// How many of `skipped` are in use.
    skipped: usize,
    /// The slot is not of the claimer's home.
    away: bool,
}

impl What {
    fn to_word(self) -> u32 {
        let may_wait = u32::from(self.blocking == Blocking::Allowed);
        (self.event as u32) << 8 | (self.skipped as u32) << 2 | u32::from(self.away) << 1 | may_wait
    }

    fn from_word(word: u32) -> What {
        What {
            event: Event::ALL[(word >> 8) as usize % Event::ALL.len()],
            blocking: if word & 1 == 1 { Blocking::Allowed } else { Blocking::Forbidden },
            skipped: (word >> 2 & 63) as usize,
            away: word & 2 == 2,
        }
    }
}

/// The slots of one address space.
pub(crate) struct OpenChanges {
    sets: Box<[[Slot; WAYS]]>,
    /// Slots in use by threads that have another home: while there are none, a thread finds all that it has open
    /// at home.
    away: AtomicUsize,
}

/// A slot that the caller holds: a change in phase `Starting` or `Ending`.
#[derive(Clone, Copy)]
pub(crate) struct Held<'a> {
    open: &'a OpenChanges,
    slot: &'a Slot,
    token: OpenChange,
    what: What,
}

/// A change that has been started and not ended: what [`AddressSpace::start`](crate::AddressSpace::start)
/// returns and [`end`](crate::AddressSpace::end) takes.
///
/// A plain value without a destructor, for code that must stay in control of its stack (the hook of a
/// system call). Everybody else uses [`invalidate`](crate::AddressSpace::invalidate).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a change that was started must be ended"]
pub struct OpenChange {
    index: u32,
    sequence: u64,
}

impl OpenChanges {
    pub(crate) const BYTES: usize = SETS * WAYS * size_of::<Slot>();

    pub(crate) fn new() -> OpenChanges {
        let slot = || Slot {
            state: AtomicU64::new(FREE),
            thread: AtomicU64::new(0),
            stack: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            what: AtomicU32::new(0),
            started: AtomicU16::new(0),
            ended: AtomicU16::new(0),
            list: AtomicUsize::new(0),
            calling: AtomicUsize::new(0),
            skipped: std::array::from_fn(|_| AtomicUsize::new(0)),
        };
        let sets = (0..SETS).map(|_| std::array::from_fn(|_| slot())).collect();
        OpenChanges { sets, away: AtomicUsize::new(0) }
    }

    /// Takes a slot for `change`, in phase `Starting`; `None` if all are in use.
    pub(crate) fn claim(&self, caller: &Caller, change: &Change) -> Option<Held<'_>> {
        let home = caller.home % SETS;
        for step in 0..SETS {
            let set = (home + step) % SETS;
            for (way, slot) in self.sets[set].iter().enumerate() {
                let free = slot.state.load(Ordering::Relaxed);
                if phase(free) != FREE {
                    continue;
                }
                let sequence = sequence(free) + 1;
                // The callbacks that this thread is in. Before the claim: the slot itself is none of them.
                let mut busy = self.of(caller).filter_map(|(_, slot)| calling(slot));
                let first = busy.next();
                // Acquire pairs with the Release in `free`: the fields of the last use are over.
                let claimed = slot.state.compare_exchange(
                    free,
                    state(sequence, STARTING),
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                if claimed.is_err() {
                    continue;
                }
                // Pairs with the fence in `wait` and in `holds`: see the module documentation.
                fence_after_rmw();
                // Relaxed: read by others for reports only, or after an Acquire of a later phase.
                slot.stack.store(caller.stack, Ordering::Relaxed);
                slot.started.store(0, Ordering::Relaxed);
                slot.ended.store(0, Ordering::Relaxed);
                slot.start.store(change.range().start(), Ordering::Relaxed);
                slot.end.store(change.range().end(), Ordering::Relaxed);
                let mut skipped = 0;
                if let Some(first) = first {
                    for (subscriber, place) in std::iter::once(first).chain(busy).zip(&slot.skipped) {
                        place.store(subscriber, Ordering::Relaxed);
                        skipped += 1;
                    }
                }
                let away = step > 0;
                if away {
                    // Relaxed: only the calling thread has to see it.
                    self.away.fetch_add(1, Ordering::Relaxed);
                }
                let what = What { event: change.event(), blocking: change.blocking(), skipped, away };
                slot.what.store(what.to_word(), Ordering::Relaxed);
                // Release: a signal handler that finds its own thread here finds the rest, too.
                slot.thread.store(caller.thread, Ordering::Release);
                let token = OpenChange { index: (set * WAYS + way) as u32, sequence };
                return Some(Held { open: self, slot, token, what });
            }
        }
        None
    }

    /// The same, but only the first slot of the caller's home, and not inside a callback: `None` if it is in use. Small
    /// enough to be compiled into its caller.
    #[inline(always)]
    pub(crate) fn claim_first(&self, caller: &Caller, change: &Change) -> Option<Held<'_>> {
        let set = caller.home % SETS;
        let slot = self.sets.get(set)?.first()?;
        let free = slot.state.load(Ordering::Relaxed);
        if phase(free) != FREE {
            return None;
        }
        let sequence = sequence(free) + 1;
        // As in `claim`, all of it.
        slot.state
            .compare_exchange(free, state(sequence, STARTING), Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        fence_after_rmw();
        slot.stack.store(caller.stack, Ordering::Relaxed);
        slot.started.store(0, Ordering::Relaxed);
        slot.ended.store(0, Ordering::Relaxed);
        slot.start.store(change.range().start(), Ordering::Relaxed);
        slot.end.store(change.range().end(), Ordering::Relaxed);
        let what = What { event: change.event(), blocking: change.blocking(), skipped: 0, away: false };
        slot.what.store(what.to_word(), Ordering::Relaxed);
        slot.thread.store(caller.thread, Ordering::Release);
        let token = OpenChange { index: (set * WAYS) as u32, sequence };
        Some(Held { open: self, slot, token, what })
    }

    /// Ends a change that has nobody to call, in the thread that started it: from phase `Changing` to `Free` at once.
    #[inline(always)]
    pub(crate) fn free_unheard(&self, open: OpenChange) {
        if let Some(slot) = self.slot(open)
            // Relaxed: the calling thread wrote it. No exchange: nobody else has the token.
            && slot.state.load(Ordering::Relaxed) == state(open.sequence, CHANGING)
        {
            let what = What { event: Event::Unmap, blocking: Blocking::Forbidden, skipped: 0, away: false };
            Held { open: self, slot, token: open, what }.free();
        }
    }

    /// Whether the calling thread may hold a slot.
    #[inline(always)]
    pub(crate) fn may_hold(&self, caller: &Caller) -> bool {
        // Relaxed: the calling thread sees at least its own.
        self.away.load(Ordering::Relaxed) > 0
            || self
                .sets
                .get(caller.home % SETS)
                .is_none_or(|set| set.iter().any(|slot| phase(slot.state.load(Ordering::Relaxed)) != FREE))
    }

    /// Takes a change out of phase `Changing` into `Ending`; `None` if it has been ended already.
    pub(crate) fn finish(&self, caller: &Caller, open: OpenChange) -> Option<Held<'_>> {
        let slot = self.slot(open)?;
        // Relaxed: who started the change reads what it wrote itself; who got the token from there reads
        // that, or something later.
        let next = if slot.thread.load(Ordering::Relaxed) == caller.thread { ENDING } else { TAKEN };
        // Acquire pairs with the Release in `changing`, for the one who ends somebody else's.
        let taken = slot.state.compare_exchange(
            state(open.sequence, CHANGING),
            state(open.sequence, next),
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        taken.ok()?;
        if next == TAKEN {
            // Relaxed: published by the exchange below.
            slot.thread.store(caller.thread, Ordering::Relaxed);
            // Release pairs with the Acquire in `wait` and `of`: who sees this phase sees who is calling.
            slot.state.swap(state(open.sequence, ENDING), Ordering::Release);
        }
        // Pairs with the fence in `wait`: see the module documentation.
        fence_after_rmw();
        Some(self.held(slot, open))
    }

    #[inline]
    fn slot(&self, open: OpenChange) -> Option<&Slot> {
        let index = open.index as usize;
        self.sets.get(index / WAYS)?.get(index % WAYS)
    }

    fn held<'a>(&'a self, slot: &'a Slot, token: OpenChange) -> Held<'a> {
        // Relaxed: the caller wrote it, or has acquired a later phase.
        let what = What::from_word(slot.what.load(Ordering::Relaxed));
        Held { open: self, slot, token, what }
    }

    /// The slots that the calling thread holds, in any phase.
    fn of(&self, caller: &Caller) -> impl Iterator<Item = (OpenChange, &Slot)> + use<'_> {
        let home = caller.home % SETS;
        let thread = caller.thread;
        // Relaxed: the calling thread sees at least its own.
        let away = self.away.load(Ordering::Relaxed) > 0;
        let sets = if away { 0..SETS } else { home..home + 1 };
        sets.flat_map(move |set| (0..WAYS).map(move |way| (set, way))).filter_map(move |(set, way)| {
            let slot = &self.sets[set][way];
            // Acquire: a slot that somebody else has claimed does not bear the name of its last holder any more.
            let state = slot.state.load(Ordering::Acquire);
            // Relaxed: see above.
            let mine = phase(state) != FREE && slot.thread.load(Ordering::Relaxed) == thread;
            let open = OpenChange { index: (set * WAYS + way) as u32, sequence: sequence(state) };
            mine.then_some((open, slot))
        })
    }

    /// The changes that the calling thread has open, in any phase, with the stack position of each.
    pub(crate) fn of_thread(&self, caller: &Caller) -> impl Iterator<Item = (OpenChange, usize)> + use<'_> {
        // Relaxed: the calling thread wrote it.
        self.of(caller).map(|(open, slot)| (open, slot.stack.load(Ordering::Relaxed)))
    }

    /// Whether the calling thread is in a callback of `subscriber`.
    pub(crate) fn is_in_callback(&self, caller: &Caller, subscriber: usize) -> bool {
        self.of(caller).any(|(_, slot)| calling(slot) == Some(subscriber))
    }

    /// Takes over a change that the calling thread itself has abandoned, in whatever phase it was, into
    /// `Ending`; `None` if it is over. Says whether a callback was left in its middle.
    pub(crate) fn adopt(&self, caller: &Caller, open: OpenChange) -> Option<(Held<'_>, bool)> {
        let slot = self.slot(open)?;
        // Acquire pairs with the Release in `finish`: another thread that is ending it has written its name.
        let state = slot.state.load(Ordering::Acquire);
        if sequence(state) != open.sequence || slot.thread.load(Ordering::Relaxed) != caller.thread {
            return None;
        }
        match phase(state) {
            CHANGING => self.finish(caller, open).map(|held| (held, false)),
            STARTING | ENDING => {
                let inside = calling(slot).is_some();
                slot.calling.store(0, Ordering::Relaxed);
                let held = self.held(slot, open);
                held.ending();
                Some((held, inside))
            }
            _ => None,
        }
    }

    /// Whether some open change may still walk the list at `list`.
    pub(crate) fn holds(&self, list: usize) -> bool {
        // Pairs with `fence_after_rmw` in `claim`: who is not seen here sees the list that replaced this one.
        fence(Ordering::SeqCst);
        self.sets.iter().flatten().any(|slot| {
            // Acquire pairs with the claim and, through it, with the Release in `free`: `list` is not older.
            let state = slot.state.load(Ordering::Acquire);
            // Acquire pairs with the Release in `walks`: if this is of a later use, the use seen above is over.
            let held = slot.list.load(Ordering::Acquire);
            phase(state) != FREE && (held == 0 || held == list | 1)
        })
    }

    /// Waits until every callback that was running in another thread is over. If the calling thread itself is in
    /// a callback of `subscriber`, returns false at once: two who do that would wait for each other.
    pub(crate) fn wait_for_callbacks(&self, caller: &Caller, subscriber: usize) -> bool {
        if self.is_in_callback(caller, subscriber) {
            return false;
        }
        self.wait(caller, |phase, _| phase == STARTING || phase == ENDING);
        true
    }

    /// Waits until every change of other threads that does not walk the list at `list` is over.
    pub(crate) fn wait_for_strangers(&self, caller: &Caller, list: usize) {
        self.wait(caller, |phase, held| phase != FREE && held != list | 1);
    }

    fn wait(&self, caller: &Caller, concerns: impl Fn(u64, usize) -> bool) {
        // Pairs with `fence_after_rmw` in `claim` and `finish`: see the module documentation.
        fence(Ordering::SeqCst);
        for slot in self.sets.iter().flatten() {
            // Acquire, here and below, pairs with the Release in `change` and `free`: what the callbacks did
            // happened before.
            let mut state = slot.state.load(Ordering::Acquire);
            let first = sequence(state);
            let mut backoff = Backoff::default();
            // Acquire of the list as in `holds`.
            while sequence(state) == first && concerns(phase(state), slot.list.load(Ordering::Acquire)) {
                // Relaxed: the Acquire of the phase makes the name of who calls visible, or that nobody has
                // written one yet.
                if slot.thread.load(Ordering::Relaxed) == caller.thread {
                    break;
                }
                backoff.wait();
                state = slot.state.load(Ordering::Acquire);
            }
        }
    }

    /// Forgets everything: in the only thread of a forked child, the other threads do not exist.
    pub(crate) fn forget_all(&self) {
        for slot in self.sets.iter().flatten() {
            // Relaxed: there is only one thread.
            let sequence = sequence(slot.state.load(Ordering::Relaxed));
            slot.list.store(0, Ordering::Relaxed);
            slot.thread.store(0, Ordering::Relaxed);
            slot.calling.store(0, Ordering::Relaxed);
            slot.state.store(state(sequence, FREE), Ordering::Relaxed);
        }
        self.away.store(0, Ordering::Relaxed);
    }
}

/// The subscriber that the holder of a slot is calling. For the holder itself.
fn calling(slot: &Slot) -> Option<usize> {
    // Relaxed: the calling thread wrote it.
    Some(slot.calling.load(Ordering::Relaxed)).filter(|&subscriber| subscriber != 0)
}

impl Held<'_> {
    /// Puts on record which list is walked; before this, the holder is taken to walk any.
    #[inline]
    pub(crate) fn walks(&self, list: usize) {
        // A reader that misses it takes the slot to hold any list. Release pairs with the Acquire in `holds` and
        // in `wait`: a reader that sees it knows that the last use of the slot is over.
        self.slot.list.store(list | 1, Ordering::Release);
    }

    /// The list that is walked, as given to [`walks`](Held::walks).
    pub(crate) fn list(&self) -> usize {
        // Relaxed: the holder wrote it, or the Acquire in `finish` made it visible.
        self.slot.list.load(Ordering::Relaxed) & !1
    }

    /// The change on record.
    pub(crate) fn change(&self) -> Change {
        // Relaxed: as in `list`.
        let range =
            Range::new(self.slot.start.load(Ordering::Relaxed), self.slot.end.load(Ordering::Relaxed))
                .unwrap_or(Range::EVERYTHING);
        Change::new(range, self.what.event, self.what.blocking)
    }

    /// How many starts have returned, in the order of the list.
    pub(crate) fn started(&self) -> usize {
        // Relaxed, here and below: as in `list`.
        self.slot.started.load(Ordering::Relaxed).into()
    }

    pub(crate) fn set_started(&self, count: usize) {
        self.slot.started.store(count as u16, Ordering::Relaxed);
    }

    /// How many ends have been called, in the order of the list.
    pub(crate) fn ended(&self) -> usize {
        self.slot.ended.load(Ordering::Relaxed).into()
    }

    pub(crate) fn set_ended(&self, count: usize) {
        self.slot.ended.store(count as u16, Ordering::Relaxed);
    }

    /// The change will not take place: from `Starting` to `Ending` at once.
    pub(crate) fn ending(&self) {
        // A reader before, a reader after: nobody may conclude anything from it. Release all the same: who sees this
        // phase must see what came with the claim, as the list that is walked.
        self.slot.state.store(state(self.token.sequence, ENDING), Ordering::Release);
    }

    /// Whether the change was made in a callback of the subscriber at that address, which then hears nothing of it.
    #[inline]
    pub(crate) fn skips(&self, subscriber: usize) -> bool {
        // Relaxed: as in `list`.
        let mut skipped = self.slot.skipped.iter().take(self.what.skipped);
        skipped.any(|skipped| skipped.load(Ordering::Relaxed) == subscriber)
    }

    /// Runs `callback` of the subscriber at that address with the call on record. It must not unwind.
    #[inline]
    pub(crate) fn calling<R>(&self, subscriber: usize, callback: impl FnOnce() -> R) -> R {
        // Relaxed: read by the same thread only.
        self.slot.calling.store(subscriber, Ordering::Relaxed);
        let result = callback();
        self.slot.calling.store(0, Ordering::Relaxed);
        result
    }

    /// All callbacks of the start have returned: to phase `Changing`.
    #[inline]
    pub(crate) fn changing(self) -> OpenChange {
        // Release pairs with the Acquire in `wait`: the callbacks are over.
        self.slot.state.store(state(self.token.sequence, CHANGING), Ordering::Release);
        self.token
    }

    /// All is over: the slot can be used again.
    #[inline]
    pub(crate) fn free(self) {
        if self.what.away {
            // Relaxed: as in `claim`.
            self.open.away.fetch_sub(1, Ordering::Relaxed);
        }
        // Relaxed: published by the Release below. The thread is cleared so that nobody takes the next holder,
        // who has not written it yet, for himself.
        self.slot.list.store(0, Ordering::Relaxed);
        self.slot.thread.store(0, Ordering::Relaxed);
        // Release pairs with the Acquire in `claim` and in `wait`.
        self.slot.state.store(state(self.token.sequence, FREE), Ordering::Release);
    }
}

impl fmt::Debug for OpenChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open =
            self.sets.iter().flatten().filter(|slot| phase(slot.state.load(Ordering::Relaxed)) != FREE);
        f.debug_list().entries(open).finish()
    }
}
