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
use crate::held::{Held, OpenChange, Token};
use crate::slot::{HOMES, Nesting, Phase, SLOTS, Slot, Slots, State, WAYS};
use crate::stall::Patience;
use crate::sync::{AtomicUsize, Ordering, fence, fence_after_rmw};
use crate::{Change, Range};

/// The slots of one address space.
pub(crate) struct OpenChanges {
    slots: Slots,
    /// Homes that were ever used: the slots behind are all free.
    used: AtomicUsize,
    /// Slots in use by threads that have another home: while there are none, a thread finds all that it has open
    /// at home.
    away: AtomicUsize,
}

impl OpenChanges {
    pub(crate) const BYTES: usize = SLOTS * size_of::<Slot>();

    pub(crate) fn new() -> OpenChanges {
        OpenChanges {
            slots: Slots::new(),
            used: AtomicUsize::new(usize::from(cfg!(mmu_loom))),
            away: AtomicUsize::new(0),
        }
    }

    /// Takes a slot; `None` if all are in use.
    pub(crate) fn claim(&self, caller: &Caller, phase: Phase) -> Option<Held<'_>> {
        self.use_home(caller.home() % HOMES);
        self.claim_at_home(caller, phase).or_else(|| self.claim_anywhere(*caller, phase))
    }

    /// Whether all slots are in use.
    #[cold]
    pub(crate) fn is_full(&self) -> bool {
        // Relaxed: a picture of a moment.
        self.slots.iter().all(|slot| !State(slot.state.load(Ordering::Relaxed)).is_free())
    }

    /// Takes the first slot of the caller's home, if that is in use, the caller has nothing open and the slot is free. Calls
    /// nothing, so that who calls this needs to save no registers.
    #[inline(always)]
    pub(crate) fn claim_at_home(&self, caller: &Caller, phase: Phase) -> Option<Held<'_>> {
        let home = caller.home() % HOMES;
        let slot = &self.slots[home * WAYS];
        // Relaxed: the calling thread sees at least what it holds itself; the exchange checks the state.
        let free = State(slot.state.load(Ordering::Relaxed));
        // Acquire pairs with the Release in `use_home`.
        if !free.is_free() || slot.nested.load(Ordering::Acquire) != 1 {
            return None;
        }
        Self::claim_slot(caller, phase, slot, free)
    }

    /// Ends a change that has nobody to call and is not nested, in the thread that started it: from `Changing` to
    /// `Free` at once.
    #[inline]
    pub(crate) fn end_unheard(&self, open: OpenChange) {
        // Relaxed: the calling thread wrote it. No exchange: as in `Held::is_changing`.
        if let Some(held) = self.held(open.0)
            && held.slot.state.load(Ordering::Relaxed) == held.in_phase(Phase::Changing)
        {
            held.leave_unheard();
        }
    }

    /// The same where the home is not empty: this change is made inside another one, or a neighbour is here.
    #[cold]
    fn claim_anywhere(&self, caller: Caller, phase: Phase) -> Option<Held<'_>> {
        let home = caller.home() % HOMES;
        for step in 0..SLOTS {
            let index = (home * WAYS + step) % SLOTS;
            let slot = &self.slots[index];
            // Relaxed: the exchange checks it.
            let free = State(slot.state.load(Ordering::Relaxed));
            if !free.is_free() {
                continue;
            }
            self.use_home(index / WAYS);
            // The callbacks that this thread is in. Before the claim, as the slot itself is none of them.
            let mut busy = self.callbacks_of(&caller);
            let first = busy.next();
            // Before the claim: a thread that jumps away behind it has to find the slot.
            self.count_in(index, home);
            let Some(held) = Self::claim_slot(&caller, phase, slot, free) else {
                self.count_out(index, home);
                continue;
            };
            // A slot that is being claimed has no callback yet, so the rest of `busy` are others.
            held.slot.write_nesting(home, first.into_iter().chain(busy));
            return Some(held);
        }
        None
    }

    /// Takes a slot that was found `free`, unless somebody is faster. Its home is in use.
    #[inline(always)]
    fn claim_slot<'a>(caller: &Caller, phase: Phase, slot: &'a Slot, free: State) -> Option<Held<'a>> {
        let state = free.next();
        // Acquire pairs with the Release in `free`: the fields of the last use are over.
        let claimed = state.in_phase(phase).0;
        slot.state.compare_exchange(free.0, claimed, Ordering::Acquire, Ordering::Relaxed).ok()?;
        // Pairs with the fences in `scan` and in `holds`: see the module documentation.
        fence_after_rmw();
        // Relaxed: read by others for reports only, or after an Acquire of a later phase.
        slot.stack.store(caller.stack(), Ordering::Relaxed);
        // Release: a signal handler that finds its own thread here finds the rest, too.
        slot.thread.store(caller.thread(), Ordering::Release);
        Some(Held { slot, state })
    }

    /// Lets others look at the slots of `home` from now on.
    #[cold]
    fn use_home(&self, home: usize) {
        let nested = &self.slots[home * WAYS].nested;
        // Acquire pairs with the Release below.
        if nested.load(Ordering::Acquire) == 0 {
            // Relaxed: only grows. A scan that misses it has fenced before the fence of the claim that follows, in whichever
            // thread, and so that claim comes behind the scan.
            self.used.fetch_max(home + 1, Ordering::Relaxed);
            // Release pairs with the Acquire above and in `claim_at_home`: whoever takes a slot here knows `used`.
            let _ = nested.compare_exchange(0, 1, Ordering::Release, Ordering::Relaxed);
        }
    }

    /// Takes a change out of phase `Changing` into `Ending`, if there is anybody to call; `None` if it has been ended
    /// already.
    #[inline(always)]
    pub(crate) fn finish(&self, caller: &Caller, open: OpenChange) -> Option<Held<'_>> {
        self.finish_token(caller, open.0)
    }

    #[inline(always)]
    fn finish_token(&self, caller: &Caller, token: Token) -> Option<Held<'_>> {
        let held = self.held(token)?;
        let slot = held.slot;
        // Relaxed, both: who started the change reads what it wrote itself; who got it from there reads that, or
        // something later.
        if slot.thread.load(Ordering::Relaxed) != caller.thread() {
            return self.finish_of_another(*caller, held);
        }
        // Acquire, in `list`: if somebody else has ended the change and cleared the list, the phase is seen to be another.
        if slot.list().unwrap_or(0) == 0 {
            return held.is_changing().then_some(held);
        }
        Self::take(held, Phase::Ending).then_some(held)
    }

    /// Takes a change out of phase `Changing`, unless somebody else is faster.
    #[inline(always)]
    fn take(held: Held<'_>, to: Phase) -> bool {
        // Acquire pairs with the Release in `changing`, and in `hand_to`; Release with the Acquire in `scan`: who waited for
        // the change sees what it did.
        let [changing, next] = [Phase::Changing, to].map(|phase| held.in_phase(phase));
        let taken =
            held.slot.state.compare_exchange(changing, next, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        // Pairs with the fence in `scan`: see the module documentation.
        fence_after_rmw();
        taken
    }

    /// The same for a change that bears the name of another thread.
    #[cold]
    fn finish_of_another<'a>(&self, caller: Caller, held: Held<'a>) -> Option<Held<'a>> {
        let slot = held.slot;
        if !Self::take(held, Phase::Taken) {
            return None;
        }
        self.hand_over(slot, caller.home() % HOMES);
        // Relaxed: published by the exchange below.
        slot.thread.store(caller.thread(), Ordering::Relaxed);
        // Release pairs with the Acquire in `scan` and `of`: who sees this phase sees who is calling.
        slot.state.swap(held.in_phase(Phase::Ending), Ordering::Release);
        // Pairs with the fence in `scan`: see the module documentation.
        fence_after_rmw();
        Some(held)
    }

    /// Gives an open change to another thread, that goes on with it as with its own; false if it is over.
    #[cold]
    pub(crate) fn hand_to(&self, open: &OpenChange, to: &Caller) -> bool {
        let Some(held) = self.held(open.0) else { return false };
        // While it is taken, neither thread finds it abandoned.
        if !Self::take(held, Phase::Taken) {
            return false;
        }
        self.hand_over(held.slot, to.home() % HOMES);
        // Relaxed: published by the Release below, which pairs with the Acquire in `of`.
        held.slot.stack.store(to.stack(), Ordering::Relaxed);
        held.slot.thread.store(to.thread(), Ordering::Release);
        held.changing();
        true
    }

    /// Lets a thread of `home`, that ends a change that another thread has started, find it among those it has open.
    fn hand_over(&self, slot: &Slot, home: usize) {
        let index = self.index_of(slot.address().get());
        if let Some(nesting) = slot.nesting() {
            self.count_out(index, nesting.home() % HOMES);
        }
        self.count_in(index, home);
        slot.move_nesting(home);
    }

    /// A thread of `home` holds the slot at `index`.
    fn count_in(&self, index: usize, home: usize) {
        self.use_home(home);
        // Relaxed, both: only the calling thread has to see it.
        if index != home * WAYS {
            self.slots[home * WAYS].nested.fetch_add(1, Ordering::Relaxed);
        }
        if index / WAYS != home {
            self.away.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The reverse.
    fn count_out(&self, index: usize, home: usize) {
        // Relaxed, both: as above.
        if index != home * WAYS {
            self.slots[home * WAYS].nested.fetch_sub(1, Ordering::Relaxed);
        }
        if index / WAYS != home {
            self.away.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn held(&self, token: Token) -> Option<Held<'_>> {
        // An address from another address space is behind the last one.
        let slot = self.slots.get(self.index_of(token.slot.get()))?;
        Some(Held { slot, state: token.state })
    }

    #[inline]
    fn index_of(&self, slot: usize) -> usize {
        slot.wrapping_sub(self.slots.as_ptr() as usize) / size_of::<Slot>()
    }

    /// Whether the calling thread may have anything open: a look at two cache lines of its own.
    #[inline]
    pub(crate) fn may_have_open(&self, caller: &Caller) -> bool {
        let first = &self.slots[caller.home() % HOMES * WAYS];
        // Relaxed, both: the calling thread sees at least what it holds itself.
        !State(first.state.load(Ordering::Relaxed)).is_free() || first.nested.load(Ordering::Relaxed) > 1
    }

    /// The slots that the calling thread holds, in any phase.
    ///
    /// One that bears its name in phase `Changing` or `Taken` may be somebody else's by now: nothing of what is written
    /// there may be believed. In the phases in which callbacks run the name is that of who calls.
    fn of(&self, caller: &Caller) -> impl Iterator<Item = (Token, Phase, &Slot)> + use<'_> {
        let first = caller.home() % HOMES * WAYS;
        let thread = caller.thread();
        // Relaxed: the calling thread sees at least its own.
        let all = self.away.load(Ordering::Relaxed) > 0;
        let range = if all { 0..SLOTS } else { first..first + WAYS };
        range.filter_map(move |index| {
            let slot = &self.slots[index];
            // Acquire: a slot that somebody else has claimed does not bear the name of its last holder any more.
            let state = State(slot.state.load(Ordering::Acquire));
            // Acquire pairs with the Release in `hand_to`: who sees his name sees his stack position.
            let mine = !state.is_free() && slot.thread.load(Ordering::Acquire) == thread;
            mine.then_some((
                Token { slot: slot.address(), state: state.in_phase(Phase::Free) },
                state.phase(),
                slot,
            ))
        })
    }

    /// The changes that the calling thread has open, in any phase, with the stack position of each.
    pub(crate) fn of_thread(&self, caller: &Caller) -> impl Iterator<Item = (Token, usize)> + use<'_> {
        // Relaxed: the calling thread wrote it.
        self.of(caller).map(|(token, _, slot)| (token, slot.stack.load(Ordering::Relaxed)))
    }

    /// The subscribers in whose callbacks the calling thread is.
    fn callbacks_of(&self, caller: &Caller) -> impl Iterator<Item = usize> + use<'_> {
        self.of(caller).filter_map(|(_, phase, slot)| slot.calling(phase))
    }

    /// Whether the calling thread is in a callback of `subscriber`.
    pub(crate) fn is_in_callback(&self, caller: &Caller, subscriber: usize) -> bool {
        self.callbacks_of(caller).any(|calling| calling == subscriber)
    }

    /// Whether the calling thread is in any callback, or is editing: what it reads there must not be freed by itself.
    pub(crate) fn is_reading(&self, caller: &Caller) -> bool {
        self.of(caller).any(|(_, phase, _)| phase.calls() || phase == Phase::Editing)
    }

    /// Whether the calling thread makes a change, or ends one.
    pub(crate) fn is_changing(&self, caller: &Caller) -> bool {
        // Not what is `Taken`: another thread ends that.
        self.of(caller)
            .any(|(_, phase, _)| matches!(phase, Phase::Starting | Phase::Changing | Phase::Ending))
    }

    /// Takes over a change that the calling thread itself has abandoned, in `Starting` or `Ending`; `None` if it is over, or
    /// was none. Says whether a callback was left in its middle.
    pub(crate) fn adopt(&self, caller: &Caller, token: Token) -> Option<(Held<'_>, bool)> {
        let held = self.held(token)?;
        // Acquire pairs with the Release in `finish`: another thread that is ending it has written its name.
        let state = State(held.slot.state.load(Ordering::Acquire));
        if state.sequence() != token.state.sequence()
            || held.slot.thread.load(Ordering::Relaxed) != caller.thread()
        {
            return None;
        }
        match state.phase() {
            // Not as in `finish_token`: whom the change was handed by may be taking it back, also if there is nobody to tell.
            Phase::Changing => Self::take(held, Phase::Ending).then_some((held, false)),
            Phase::Starting | Phase::Ending => Some((held, held.slot.calling(state.phase()).is_some())),
            Phase::Calling | Phase::Editing => {
                held.set_calling(0);
                self.free(held);
                None
            }
            Phase::Free | Phase::Taken => None,
        }
    }

    /// Whether some open change may still walk the list at `list`.
    pub(crate) fn holds(&self, list: usize) -> bool {
        // Pairs with `fence_after_rmw` in `claim`: who is not seen here sees the list that replaced this one.
        fence(Ordering::SeqCst);
        self.slots().any(|slot| {
            // Acquire pairs with the claim and, through it, with the Release in `free`: `list` is not older.
            let state = State(slot.state.load(Ordering::Acquire));
            // If the list is of a later use (see `list`), the use seen above is over.
            match slot.list() {
                Some(held) => state.phase() != Phase::Free && held == list,
                // Any list, before it is on record which; behind the starts none, as there was nobody to tell.
                None => matches!(state.phase(), Phase::Starting | Phase::Calling | Phase::Editing),
            }
        })
    }

    /// The eras of the interval trees that somebody may still walk: for each, the first and the last. Who has a list on
    /// record and no era walks none.
    pub(crate) fn walkers(&self) -> Vec<(u64, u64)> {
        // Pairs with `fence_after_rmw` in `claim`: who is not seen here sees the tree of today.
        fence(Ordering::SeqCst);
        let walks = |slot: &Slot| {
            // Acquire: as in `holds`.
            let phase = State(slot.state.load(Ordering::Acquire)).phase();
            // Before the era, which is put on record before the list.
            let is_known = slot.list().is_some();
            // Acquire pairs with the Release in `walks_no_more`: the walk is over.
            let since = slot.era.load(Ordering::Acquire);
            // In this order, as a walker writes them in this one. Relaxed: what is of a later use is not too early.
            let until = match slot.until.load(Ordering::Relaxed) {
                0 => u64::MAX,
                until => until,
            };
            let is_walking = matches!(phase, Phase::Starting | Phase::Editing) && !(is_known && since == 0);
            is_walking.then_some((since, until))
        };
        self.slots().filter_map(walks).collect()
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

    /// Waits until every change of another thread that overlaps `range`, or whose range is not on record (yet, or as there
    /// was nobody to tell), is done; but for those that are `ignored`. Whether all are: the calling thread's own, or
    /// what bears its name still, are not waited for.
    pub(crate) fn wait_for_changes(
        &self,
        caller: &Caller,
        range: &Range,
        ignored: impl Fn(&Change) -> bool,
        patience: &mut Patience<'_>,
    ) -> bool {
        // If what is seen is a mixture with a later use of the slot, the use that is waited for is over; the later one
        // raises the sequence after the ticket was taken.
        self.scan(caller, patience, |phase, slot| phase.changes() && matters(slot, range, &ignored))
    }

    /// Whether a change of any thread is open now that overlaps `range`, or whose range is not on record (yet, or as there
    /// was nobody to tell).
    pub(crate) fn is_any_of(&self, range: &Range) -> bool {
        // Pairs with `fence_after_rmw` in `claim`: see the module documentation.
        fence(Ordering::SeqCst);
        // Acquire pairs with the Release in `changing` and `free`. A mixture with a later use of the slot: as in
        // `wait_for_changes`, the use that was open is over, and the later one comes behind the fence.
        let open = self
            .slots()
            .any(|slot| State(slot.state.load(Ordering::Acquire)).phase().changes() && concerns(slot, range));
        // What is not seen any more happened before.
        fence(Ordering::Acquire);
        open
    }

    /// Waits until every change of other threads that does not walk the list at `list` is over.
    pub(crate) fn wait_for_strangers(&self, caller: &Caller, list: usize, patience: &mut Patience<'_>) {
        self.scan(caller, patience, |phase, slot| {
            (phase.changes() || phase == Phase::Ending) && slot.list() != Some(list)
        });
    }

    /// Waits until every list that another thread was replacing is.
    pub(crate) fn wait_for_editors(&self, caller: &Caller, patience: &mut Patience<'_>) {
        self.scan(caller, patience, |phase, _| phase == Phase::Editing);
    }

    /// Whether another thread is replacing a list, or may be.
    pub(crate) fn is_anybody_editing(&self, caller: &Caller) -> bool {
        fence(Ordering::SeqCst);
        self.slots().any(|slot| {
            // Acquire: what is not seen any more is over. Relaxed: as in `scan`.
            State(slot.state.load(Ordering::Acquire)).phase() == Phase::Editing
                && slot.thread.load(Ordering::Relaxed) != caller.thread()
        })
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
        for slot in self.slots() {
            // Acquire, here and below, pairs with the Release in `changing` and `free`: what the callbacks did
            // happened before.
            let mut state = State(slot.state.load(Ordering::Acquire));
            let first = state.sequence();
            while state.sequence() == first && concerns(state.phase(), slot) {
                // Relaxed: the Acquire of the phase makes the name of who calls visible, or that nobody has
                // written one yet.
                if slot.thread.load(Ordering::Relaxed) == caller.thread() {
                    all = false;
                    break;
                }
                patience.wait(state.phase(), slot);
                state = State(slot.state.load(Ordering::Acquire));
            }
            patience.renew();
        }
        // What `concerns` has read may be of a later use; then the use that was looked at is over. Acquire pairs with
        // the fence in the claim of that later use: what the callbacks did happened before.
        fence(Ordering::Acquire);
        all
    }

    /// All is over: the slot can be used again.
    #[inline]
    pub(crate) fn free(&self, held: Held<'_>) {
        let slot = held.slot;
        if let Some(nesting) = slot.nesting() {
            self.free_nesting(slot, nesting);
        }
        // Relaxed: the holder wrote it.
        if slot.era.load(Ordering::Relaxed) != 0 {
            held.walks_no_more();
        }
        held.leave();
    }

    #[cold]
    fn free_nesting(&self, slot: &Slot, nesting: Nesting) {
        self.count_out(self.index_of(slot.address().get()), nesting.home() % HOMES);
        slot.forget_nesting();
    }

    /// Every slot that was ever used.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &Slot> {
        // Relaxed: after a fence; see `claim_slot`.
        let used = self.used.load(Ordering::Relaxed).min(HOMES);
        self.slots[..used * WAYS].iter()
    }

    /// Forgets everything: in the only thread of a forked child, the other threads do not exist.
    pub(crate) fn forget_all(&self) {
        for slot in self.slots() {
            // Relaxed: there is only one thread. What is free already is not written: it would be copied.
            let now = State(slot.state.load(Ordering::Relaxed));
            if now.phase() != Phase::Free {
                slot.started.store(0, Ordering::Relaxed);
                slot.list.store(0, Ordering::Relaxed);
                slot.era.store(0, Ordering::Relaxed);
                slot.until.store(0, Ordering::Relaxed);
                slot.thread.store(0, Ordering::Relaxed);
                slot.calling.store(0, Ordering::Relaxed);
                slot.forget_nesting();
                slot.state.store(now.in_phase(Phase::Free).0, Ordering::Relaxed);
            }
            if slot.nested.load(Ordering::Relaxed) > 1 {
                slot.nested.store(1, Ordering::Relaxed);
            }
        }
        self.away.store(0, Ordering::Relaxed);
    }
}

/// Whether a change overlaps `range`, or may: its range is not on record yet.
fn concerns(slot: &Slot, range: &Range) -> bool {
    slot.list().is_none() || slot.range().overlaps(range)
}

/// The same for a reader, who does not mind changes that are `ignored`.
fn matters(slot: &Slot, range: &Range, ignored: impl Fn(&Change) -> bool) -> bool {
    slot.list().is_none() || slot.range().overlaps(range) && !ignored(&slot.change())
}

impl fmt::Debug for OpenChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Relaxed: a picture of a moment.
        let open = self.slots().filter(|slot| slot.phase() != Phase::Free).map(Slot::range);
        f.debug_list().entries(open).finish()
    }
}
