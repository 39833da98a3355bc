//! The record of open changes: who is changing what right now, and who is being called.
//!
//! This is the project's sleepable RCU. Linux counts its readers in per-CPU counters (`srcu_read_lock`);
//! here every reader is *on record* in a slot of its own, so that one can wait for the right readers
//! only, say whom one waits for, and find a change whose thread has jumped out of it.
//!
//! # Protocol
//!
//! A change takes its slot through four phases ([`Phase`]). Only the thread that holds a slot writes it; a change in
//! its middle may be ended by another thread, which then holds it.
//!
//! ```text
//!           claim (CAS)            changing()           finish (RMW)          free()
//! Free ---------------> Starting ------------> Changing -----------> Ending ---------> Free
//!                       callbacks              no callback           callbacks
//!                       run: a reader          runs                  run: a reader
//! ```
//!
//! Another thread goes from `Changing` to `Ending` by way of `Taken`, in which it writes its own name over the
//! name of who started: in `Starting` and `Ending` the name is that of who calls, for whoever sees the phase.
//! `Calling` and `Editing` are held by who makes no change, between a claim and `free()`.
//!
//! * In `Starting`, `Ending` and `Calling` the holder may call subscribers: whoever took a subscriber off the
//!   list waits for these ([`OpenChanges::wait_for_callbacks`]).
//! * From `Starting` to `Free` the holder keeps the list it found: a subscriber who is not on that list
//!   is not told of this change, so `subscribe` waits for it ([`OpenChanges::wait_for_strangers`]), and
//!   the list must not be freed ([`OpenChanges::holds`]).
//! * In `Starting` and `Changing` the range on record is no longer what it was: who reads it for an interval waits
//!   ([`OpenChanges::wait_for_changes`]).
//!
//! The one hard race, three times:
//!
//! ```text
//! change                                   subscribe / unsubscribe / read
//! ------                                   ------------------------------
//! slot := Starting | Ending  (RMW)         list := without S / S.gone := true / ticket := sequence
//! full fence                               full fence
//! read list / S.gone / raise sequence      read all slots
//!
//!    [ the change sees the new list / S.gone / comes after the ticket, or the other sees the slot: never neither ]
//! ```
//!
//! The fences forbid that both read the old state (store buffering). On x86-64 the claim is the fence.

use std::fmt;

use crate::caller::Caller;
use crate::slot::{Home, Phase, Slot, State, WAYS, What, count};
use crate::stall::Patience;
use crate::sync::{AtomicUsize, Ordering, fence, fence_after_rmw};
use crate::{Change, Range};

/// Threads with different homes modulo this number write to different cache lines.
#[cfg(not(any(mmu_loom, mmu_shuttle, miri)))]
const SETS: usize = 256;
#[cfg(any(mmu_shuttle, miri))]
const SETS: usize = 4;
#[cfg(mmu_loom)]
const SETS: usize = 1;

/// The slots of one address space.
pub(crate) struct OpenChanges {
    homes: Box<[Home]>,
    /// Homes that were ever used: those behind are all free.
    used: AtomicUsize,
    /// Slots claimed or taken over by threads that have another home: while there are none, a thread finds all that it has open
    /// at home.
    away: AtomicUsize,
}

/// A slot that the caller holds.
#[derive(Clone, Copy)]
pub(crate) struct Held<'a> {
    open: &'a OpenChanges,
    pub(crate) slot: &'a Slot,
    token: Token,
    what: What,
}

/// One use of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    index: u32,
    sequence: u64,
}

/// A change that has been started and not ended: what [`AddressSpace::start`](crate::AddressSpace::start)
/// returns and [`end`](crate::AddressSpace::end) takes.
///
/// A plain value without a destructor, for code that must stay in control of its stack (the hook of a
/// system call). Everybody else uses [`begin`](crate::AddressSpace::begin) or
/// [`invalidate`](crate::AddressSpace::invalidate).
///
/// It can be used once: to end a change twice, or one that was refused, does not compile.
///
/// ```compile_fail
/// # use mmu_notifier::{AddressSpace, Blocking, Change, Event, Range};
/// # let (space, pages) = (AddressSpace::new(), Range::new(0x1000, 0x2000).unwrap());
/// let open = space.start(&space.caller(), Change::new(pages, Event::Unmap, Blocking::Allowed)).unwrap();
/// space.end(&space.caller(), open);
/// space.end(&space.caller(), open);
/// ```
///
/// ```
/// # use mmu_notifier::{AddressSpace, Blocking, Change, Event, Range};
/// # let (space, pages) = (AddressSpace::new(), Range::new(0x1000, 0x2000).unwrap());
/// let open = space.start(&space.caller(), Change::new(pages, Event::Unmap, Blocking::Allowed)).unwrap();
/// space.end(&space.caller(), open);
/// ```
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a change that was started must be ended"]
pub struct OpenChange(Token);

impl OpenChanges {
    pub(crate) const BYTES: usize = SETS * size_of::<Home>();
    /// Slots, and so changes that can be open at one time.
    pub(crate) const SLOTS: usize = SETS * WAYS;

    pub(crate) fn new() -> OpenChanges {
        OpenChanges { homes: Home::many(SETS), used: AtomicUsize::new(1), away: AtomicUsize::new(0) }
    }

    /// Takes a slot for `change`, in phase `Starting`; `None` if all are in use.
    #[inline]
    pub(crate) fn claim(&self, caller: &Caller, change: &Change) -> Option<Held<'_>> {
        let held = self.claim_for(caller, change, Phase::Starting)?;
        count(&held.slot.counts.changes[change.event() as usize]);
        Some(held)
    }

    /// Takes a slot in any phase.
    #[inline]
    pub(crate) fn claim_for(&self, caller: &Caller, change: &Change, phase: Phase) -> Option<Held<'_>> {
        let index = caller.home % SETS;
        let home = &self.homes[index];
        // Relaxed: the exchange checks the one that matters; the calling thread sees at least what it holds itself.
        let taken = home.states.iter().fold(0, |all, state| all | State(state.load(Ordering::Relaxed)).0 & 7);
        if taken == Phase::Free as u64
            && self.away.load(Ordering::Relaxed) == 0
            && let Some(held) = self.claim_slot(caller, change, phase, index, 0, std::iter::empty())
        {
            return Some(held);
        }
        self.claim_anywhere(caller, change, phase)
    }

    /// The same where the home is not empty: this change is made inside another one, or a neighbour is here.
    #[cold]
    fn claim_anywhere(&self, caller: &Caller, change: &Change, phase: Phase) -> Option<Held<'_>> {
        for step in 0..SETS {
            let index = (caller.home + step) % SETS;
            for way in 0..WAYS {
                // Relaxed: as above.
                if State(self.homes[index].states[way].load(Ordering::Relaxed)).phase() == Phase::Free {
                    // The callbacks that this thread is in. The slot itself is none of them.
                    let busy = self.callbacks_of(caller);
                    if let Some(held) = self.claim_slot(caller, change, phase, index, way, busy) {
                        return Some(held);
                    }
                }
            }
        }
        None
    }

    #[inline]
    fn claim_slot(
        &self,
        caller: &Caller,
        change: &Change,
        phase: Phase,
        index: usize,
        way: usize,
        skipped: impl Iterator<Item = usize>,
    ) -> Option<Held<'_>> {
        // Relaxed: only grows, and a scan that misses it has fenced before the claim below.
        if index >= self.used.load(Ordering::Relaxed) {
            self.used.fetch_max(index + 1, Ordering::Relaxed);
        }
        let home = &self.homes[index];
        let free = State(home.states[way].load(Ordering::Relaxed));
        if free.phase() != Phase::Free {
            return None;
        }
        let token = Token { index: (index * WAYS + way) as u32, sequence: free.sequence() + 1 };
        let claimed = State::new(token.sequence, phase).0;
        // Acquire pairs with the Release in `free`: the fields of the last use are over.
        home.states[way].compare_exchange(free.0, claimed, Ordering::Acquire, Ordering::Relaxed).ok()?;
        // Pairs with the fences in `scan` and in `holds`: see the module documentation.
        fence_after_rmw();
        let slot = &home.slots[way];
        let away = index != caller.home % SETS;
        if away {
            // Relaxed: only the calling thread has to see it.
            self.away.fetch_add(1, Ordering::Relaxed);
        }
        let what = slot.write(change, away, skipped);
        // Relaxed: read by others for reports only, or after an Acquire of a later phase.
        slot.stack.store(caller.stack, Ordering::Relaxed);
        // Release: a signal handler that finds its own thread here finds the rest, too.
        slot.thread.store(caller.thread, Ordering::Release);
        Some(Held { open: self, slot, token, what })
    }

    /// Takes a change out of phase `Changing` into `Ending`, if there is anybody to call; `None` if it has been ended
    /// already.
    #[inline]
    pub(crate) fn finish(&self, caller: &Caller, open: OpenChange) -> Option<Held<'_>> {
        self.finish_token(caller, open.0)
    }

    #[inline]
    fn finish_token(&self, caller: &Caller, token: Token) -> Option<Held<'_>> {
        let mut held = self.held(token)?;
        let state = held.state();
        let changing = State::new(token.sequence, Phase::Changing).0;
        // Relaxed, both: who started the change reads what it wrote itself; who got it from there reads that, or
        // something later.
        let own = held.slot.thread.load(Ordering::Relaxed) == caller.thread;
        if own && held.slot.list.load(Ordering::Relaxed) == 1 {
            // Nobody to call: the phase need not be seen by anybody. No exchange either: the change can be used
            // once, and only this thread itself may find it abandoned.
            return (state.load(Ordering::Relaxed) == changing).then_some(held);
        }
        let next = State::new(token.sequence, if own { Phase::Ending } else { Phase::Taken }).0;
        // Acquire pairs with the Release in `changing`, for the one who ends somebody else's. Release pairs with the
        // Acquire in `scan`: who waited for the change sees what it did.
        state.compare_exchange(changing, next, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        if !own {
            if !held.what.away && token.index as usize / WAYS != caller.home % SETS {
                // Relaxed, both: only the calling thread has to see that it has something open elsewhere.
                self.away.fetch_add(1, Ordering::Relaxed);
                held.what.away = true;
                held.slot.what.store(held.what.to_word(), Ordering::Relaxed);
            }
            // Relaxed: published by the exchange below.
            held.slot.thread.store(caller.thread, Ordering::Relaxed);
            // Release pairs with the Acquire in `scan` and `of`: who sees this phase sees who is calling.
            state.swap(State::new(token.sequence, Phase::Ending).0, Ordering::Release);
        }
        // Pairs with the fence in `scan`: see the module documentation.
        fence_after_rmw();
        Some(held)
    }

    #[inline]
    fn held(&self, token: Token) -> Option<Held<'_>> {
        let index = token.index as usize;
        let slot = self.homes.get(index / WAYS)?.slots.get(index % WAYS)?;
        Some(Held { open: self, slot, token, what: slot.what() })
    }

    /// Whether the calling thread may have anything open: one look at one cache line.
    #[inline]
    pub(crate) fn may_have_open(&self, caller: &Caller) -> bool {
        let home = &self.homes[caller.home % SETS];
        // Relaxed: the calling thread sees at least what it holds itself.
        home.states.iter().any(|state| State(state.load(Ordering::Relaxed)).phase() != Phase::Free)
            || self.away.load(Ordering::Relaxed) > 0
    }

    /// The slots that the calling thread holds, in any phase.
    ///
    /// One that bears its name in phase `Changing` or `Taken` may be somebody else's by now: nothing of what is written
    /// there may be believed. In the phases in which callbacks run the name is that of who calls.
    fn of(&self, caller: &Caller) -> impl Iterator<Item = (Token, Phase, &Slot)> + use<'_> {
        let home = caller.home % SETS;
        let thread = caller.thread;
        // Relaxed: the calling thread sees at least its own.
        let homes = if self.away.load(Ordering::Relaxed) > 0 { 0..SETS } else { home..home + 1 };
        homes.flat_map(|home| (0..WAYS).map(move |way| (home, way))).filter_map(move |(home, way)| {
            let slot = &self.homes[home].slots[way];
            // Acquire: a slot that somebody else has claimed does not bear the name of its last holder any more.
            let state = State(self.homes[home].states[way].load(Ordering::Acquire));
            // Relaxed: see above.
            let mine = state.phase() != Phase::Free && slot.thread.load(Ordering::Relaxed) == thread;
            let token = Token { index: (home * WAYS + way) as u32, sequence: state.sequence() };
            mine.then_some((token, state.phase(), slot))
        })
    }

    /// The changes that the calling thread has open, in any phase, with the stack position of each.
    pub(crate) fn of_thread(&self, caller: &Caller) -> impl Iterator<Item = (Token, usize)> + use<'_> {
        // Relaxed: the calling thread wrote it.
        self.of(caller).map(|(token, _, slot)| (token, slot.stack.load(Ordering::Relaxed)))
    }

    /// The subscribers in whose callbacks the calling thread is.
    fn callbacks_of(&self, caller: &Caller) -> impl Iterator<Item = usize> + use<'_> {
        self.of(caller).filter(|(_, phase, _)| phase.calls()).filter_map(|(_, _, slot)| slot.calling())
    }

    /// Whether the calling thread is in a callback of `subscriber`.
    pub(crate) fn is_in_callback(&self, caller: &Caller, subscriber: usize) -> bool {
        self.callbacks_of(caller).any(|calling| calling == subscriber)
    }

    /// Whether the calling thread is in any callback, or is editing: what it reads there must not be freed by itself.
    pub(crate) fn is_reading(&self, caller: &Caller) -> bool {
        self.of(caller).any(|(_, phase, _)| phase.calls() || phase == Phase::Editing)
    }

    /// Takes over a change that the calling thread itself has abandoned, in whatever phase it was, into
    /// `Ending`; `None` if it is over, or was none. Says whether a callback was left in its middle.
    pub(crate) fn adopt(&self, caller: &Caller, token: Token) -> Option<(Held<'_>, bool)> {
        let held = self.held(token)?;
        // Acquire pairs with the Release in `finish`: another thread that is ending it has written its name.
        let state = State(held.state().load(Ordering::Acquire));
        if state.sequence() != token.sequence || held.slot.thread.load(Ordering::Relaxed) != caller.thread {
            return None;
        }
        match state.phase() {
            Phase::Changing => self.finish_token(caller, token).map(|held| (held, false)),
            Phase::Starting | Phase::Ending => {
                let inside = held.slot.calling().is_some();
                held.slot.calling.store(0, Ordering::Relaxed);
                held.ending();
                Some((held, inside))
            }
            Phase::Calling | Phase::Editing => {
                held.slot.calling.store(0, Ordering::Relaxed);
                held.free();
                None
            }
            Phase::Free | Phase::Taken => None,
        }
    }

    /// Whether some open change may still walk the list at `list`.
    pub(crate) fn holds(&self, list: usize) -> bool {
        // Pairs with `fence_after_rmw` in `claim`: who is not seen here sees the list that replaced this one.
        fence(Ordering::SeqCst);
        self.slots().any(|(state, slot)| {
            // Acquire pairs with the claim and, through it, with the Release in `free`: `list` is not older.
            let state = State(state.load(Ordering::Acquire));
            // If the list is of a later use (see `list`), the use seen above is over.
            let held = slot.list();
            state.phase() != Phase::Free && held.is_none_or(|held| held == list)
        })
    }

    /// The oldest era of the interval tree that somebody may still walk; `u64::MAX` if nobody walks it.
    pub(crate) fn oldest_era(&self) -> u64 {
        // Pairs with `fence_after_rmw` in `claim`: who is not seen here sees the tree of today.
        fence(Ordering::SeqCst);
        let walks = |(state, slot): (&crate::sync::AtomicU64, &Slot)| {
            // Acquire, both: as in `holds`.
            let phase = State(state.load(Ordering::Acquire)).phase();
            let era = slot.era.load(Ordering::Acquire);
            matches!(phase, Phase::Starting | Phase::Editing).then_some(era)
        };
        self.slots().filter_map(walks).min().unwrap_or(u64::MAX)
    }

    /// Waits until every callback that was running in another thread is over.
    pub(crate) fn wait_for_callbacks(&self, caller: &Caller, patience: &mut Patience<'_>) {
        self.scan(caller, patience, |phase, _| phase.calls());
    }

    /// Waits until every callback of another thread's change that overlaps `range`, or whose range is not on
    /// record yet, is over. Changes themselves are not waited for.
    pub(crate) fn wait_for_starts(&self, caller: &Caller, range: &Range, patience: &mut Patience<'_>) {
        self.scan(caller, patience, |phase, slot| phase == Phase::Starting && concerns(slot, range));
    }

    /// Waits until every change of another thread that overlaps `range`, or whose range is not on record yet (a dozen
    /// instructions), is done. Whether all are: the calling thread's own, or what bears its name still, are not waited for.
    pub(crate) fn wait_for_changes(
        &self,
        caller: &Caller,
        range: &Range,
        patience: &mut Patience<'_>,
    ) -> bool {
        self.scan(caller, patience, |phase, slot| phase.changes() && concerns(slot, range))
    }

    /// Waits until every list and tree that was replaced so far has been retired, by whichever thread replaced it.
    pub(crate) fn wait_for_edits(&self, caller: &Caller, patience: &mut Patience<'_>) {
        self.scan(caller, patience, |phase, _| phase == Phase::Editing);
    }

    /// The same without waiting: whether it is so.
    pub(crate) fn is_nobody_editing(&self) -> bool {
        // Pairs with `fence_after_rmw` in `claim`, as in `scan`; and Acquire with the Release in `free`.
        fence(Ordering::SeqCst);
        self.slots().all(|(state, _)| State(state.load(Ordering::Acquire)).phase() != Phase::Editing)
    }

    /// Waits until every change of other threads that does not walk the list at `list` is over.
    pub(crate) fn wait_for_strangers(&self, caller: &Caller, list: usize, patience: &mut Patience<'_>) {
        self.scan(caller, patience, |phase, slot| {
            (phase.changes() || phase == Phase::Ending) && slot.list() != Some(list)
        });
    }

    /// Waits for every slot in use now that `concerns`, but for the calling thread's own; whether there was none such.
    fn scan(
        &self,
        caller: &Caller,
        patience: &mut Patience<'_>,
        concerns: impl Fn(Phase, &Slot) -> bool,
    ) -> bool {
        let mut all = true;
        // Pairs with `fence_after_rmw` in `claim` and `finish`: see the module documentation.
        fence(Ordering::SeqCst);
        for (place, slot) in self.slots() {
            // Acquire, here and below, pairs with the Release in `changing` and `free`: what the callbacks did
            // happened before.
            let mut state = State(place.load(Ordering::Acquire));
            let first = state.sequence();
            while state.sequence() == first && concerns(state.phase(), slot) {
                // Relaxed: the Acquire of the phase makes the name of who calls visible, or that nobody has
                // written one yet.
                if slot.thread.load(Ordering::Relaxed) == caller.thread {
                    all = false;
                    break;
                }
                patience.wait(state.phase(), slot);
                state = State(place.load(Ordering::Acquire));
            }
            patience.renew();
        }
        all
    }

    /// Every slot that was ever used.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (&crate::sync::AtomicU64, &Slot)> {
        // Relaxed: after a fence; see `claim_slot`.
        let used = self.used.load(Ordering::Relaxed).min(SETS);
        self.homes[..used].iter().flat_map(|home| home.states.iter().zip(&home.slots))
    }

    /// Forgets everything: in the only thread of a forked child, the other threads do not exist.
    pub(crate) fn forget_all(&self) {
        for (state, slot) in self.slots() {
            // Relaxed: there is only one thread. What is free already is not written: it would be copied.
            let now = State(state.load(Ordering::Relaxed));
            if now.phase() != Phase::Free {
                slot.list.store(0, Ordering::Relaxed);
                slot.era.store(0, Ordering::Relaxed);
                slot.thread.store(0, Ordering::Relaxed);
                slot.calling.store(0, Ordering::Relaxed);
                state.store(State::new(now.sequence(), Phase::Free).0, Ordering::Relaxed);
            }
        }
        self.away.store(0, Ordering::Relaxed);
    }
}

/// Whether a change overlaps `range`, or may: its range is not on record yet.
fn concerns(slot: &Slot, range: &Range) -> bool {
    slot.list().is_none() || slot.range().overlaps(range)
}

impl<'a> Held<'a> {
    #[inline]
    fn state(&self) -> &'a crate::sync::AtomicU64 {
        let index = self.token.index as usize;
        &self.open.homes[index / WAYS].states[index % WAYS]
    }

    /// Which slot it is, and how often that was used.
    pub(crate) fn index(&self) -> usize {
        self.token.index as usize
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.token.sequence
    }

    /// Puts on record which list is walked, and with it the change; before this, the holder is taken to walk any
    /// and to change everything.
    #[inline]
    pub(crate) fn walks(&self, list: usize) {
        // A reader that misses it takes the slot to hold any list. Release pairs with the Acquire in `Slot::list`: a
        // reader that sees it knows that the last use of the slot is over, and sees the change.
        self.slot.list.store(list | 1, Ordering::Release);
    }

    /// The list that is walked, as given to [`walks`](Held::walks).
    #[inline]
    pub(crate) fn list(&self) -> usize {
        // Relaxed: the holder wrote it, or the Acquire in `finish` made it visible.
        self.slot.list.load(Ordering::Relaxed) & !1
    }

    /// Puts on record which interval trees are walked: those that were in force in `era` or later.
    pub(crate) fn walks_since(&self, era: u64) {
        // Release pairs with the Acquire in `oldest_era`: as in `walks`.
        self.slot.era.store(era, Ordering::Release);
    }

    /// The change on record.
    pub(crate) fn change(&self) -> Change {
        self.slot.change(self.what)
    }

    /// How many starts have returned, in the order of the list.
    pub(crate) fn started(&self) -> usize {
        // Relaxed, here and below: as in `list`.
        self.slot.started.load(Ordering::Relaxed).into()
    }

    #[inline]
    pub(crate) fn set_started(&self, count: usize) {
        self.slot.started.store(count as u16, Ordering::Relaxed);
    }

    /// How many ends have been called, in the order of the list.
    pub(crate) fn ended(&self) -> usize {
        self.slot.ended.load(Ordering::Relaxed).into()
    }

    #[inline]
    pub(crate) fn set_ended(&self, count: usize) {
        self.slot.ended.store(count as u16, Ordering::Relaxed);
    }

    /// The change will not take place: from `Starting` to `Ending` at once.
    pub(crate) fn ending(&self) {
        // A reader before, a reader after: nobody may conclude anything from it. Release all the same: who sees this
        // phase must see what came with the claim, as the list that is walked.
        self.state().store(State::new(self.token.sequence, Phase::Ending).0, Ordering::Release);
    }

    /// Whether the change was made in a callback of the subscriber at that address, which then hears nothing of it.
    #[inline]
    pub(crate) fn skips(&self, subscriber: usize) -> bool {
        self.what.skipped > 0 && self.slot.skips(self.what, subscriber)
    }

    /// Puts on record whose callback is about to run; 0: nobody's.
    #[inline]
    pub(crate) fn set_calling(&self, subscriber: usize) {
        // Relaxed: read by the same thread, and for reports.
        self.slot.calling.store(subscriber, Ordering::Relaxed);
    }

    /// All callbacks of the start have returned: to phase `Changing`.
    #[inline]
    pub(crate) fn changing(self) -> OpenChange {
        // Release pairs with the Acquire in `scan`: the callbacks are over.
        self.state().store(State::new(self.token.sequence, Phase::Changing).0, Ordering::Release);
        OpenChange(self.token)
    }

    /// All is over: the slot can be used again.
    #[inline]
    pub(crate) fn free(self) {
        if self.what.away {
            // Relaxed: as in `claim_slot`.
            self.open.away.fetch_sub(1, Ordering::Relaxed);
        }
        // Relaxed: published by the Release below. The thread is cleared so that nobody takes the next holder,
        // who has not written it yet, for himself.
        self.slot.list.store(0, Ordering::Relaxed);
        self.slot.era.store(0, Ordering::Relaxed);
        self.slot.thread.store(0, Ordering::Relaxed);
        // Release pairs with the Acquire in `claim_slot` and in `scan`.
        self.state().store(State::new(self.token.sequence, Phase::Free).0, Ordering::Release);
    }
}

impl fmt::Debug for OpenChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Relaxed: a picture of a moment.
        let open = self
            .slots()
            .filter(|(state, _)| State(state.load(Ordering::Relaxed)).phase() != Phase::Free)
            .map(|(_, slot)| slot.range());
        f.debug_list().entries(open).finish()
    }
}
