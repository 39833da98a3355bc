//! A slot in the hands of its holder: what only he may write there, and which use of the slot it is.
//!
//! The protocol that these steps are part of is that of [`open`](crate::open).

use std::num::NonZeroUsize;

use crate::slot::{END, Phase, Slot, State, UseBits, count};
use crate::sync::{Ordering, fence_after_rmw};
use crate::{Change, Event};

/// A slot that the caller holds. Two registers.
#[derive(Clone, Copy)]
pub(crate) struct Held<'a> {
    pub(crate) slot: &'a Slot,
    /// Which use of the slot: its state, in phase `Free`.
    pub(crate) state: State,
}

/// One use of one slot, for who holds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// The address of the slot. Not 0, so that it and the state are all that an `Option` of this takes: it is handed on in
    /// registers.
    pub(crate) slot: NonZeroUsize,
    /// As in [`Held`].
    pub(crate) state: State,
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
pub struct OpenChange(pub(crate) Token);

impl Held<'_> {
    /// The state of the slot in this use and that phase.
    #[inline(always)]
    pub(crate) fn in_phase(&self, phase: Phase) -> u64 {
        // Its own phase is 0.
        self.state.0 | phase as u64
    }

    /// Whether the change has not been ended yet. For the thread that started it, if nobody else can end it: the change can
    /// be used once, and only this thread itself may find it abandoned, or forget it in a forked child.
    #[inline(always)]
    pub(crate) fn is_changing(&self) -> bool {
        self.slot.state.load(Ordering::Relaxed) == self.in_phase(Phase::Changing)
    }

    /// Whether the number of this use of the slot has none of these bits.
    #[inline(always)]
    pub(crate) fn is_use_without(&self, bits: UseBits) -> bool {
        bits.is_disjoint(self.state)
    }

    /// Makes the slot free, on which nothing is on record but who holds it.
    #[inline(always)]
    pub(crate) fn leave_unheard(self) {
        // Relaxed, and Release: as in `leave`.
        self.slot.thread.store(0, Ordering::Relaxed);
        self.slot.state.store(self.state.0, Ordering::Release);
    }

    /// Makes the slot free, of which nothing is on record but what every change has.
    #[inline(always)]
    pub(crate) fn leave(self) {
        let Held { slot, state } = self;
        // Release pairs with the Acquire in `finish_token`: the change is in a later phase.
        slot.list.store(0, Ordering::Release);
        // Relaxed: published by the Release below. Cleared so that nobody takes the next holder, who has not written it yet, for himself.
        slot.thread.store(0, Ordering::Relaxed);
        // Release pairs with the Acquire in `claim_slot` and in `scan`.
        slot.state.store(state.0, Ordering::Release);
    }

    /// Puts the change on record; [`walks`](Held::walks) publishes it. Until then the holder is taken to change
    /// everything.
    #[inline(always)]
    pub(crate) fn write(&self, change: &Change) {
        self.slot.write(change);
    }

    /// Counts the change, which is because of `event`.
    #[inline(always)]
    pub(crate) fn count(&self, event: Event) {
        count(&self.slot.counts.changes[event as usize]);
    }

    /// Puts on record which list is walked; before this, the holder is taken to walk any.
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

    /// Puts on record which interval trees are walked: those that were in force in `era` or later. Before the list.
    #[inline]
    pub(crate) fn walks_since(&self, era: u64) {
        debug_assert!(self.slot.list().is_none(), "whoever sees the list takes the era to be on record");
        // Release pairs with the Acquire in `walkers`: as in `walks`. Who misses it takes the holder to walk any.
        self.slot.era.store(era, Ordering::Release);
    }

    /// No interval tree is walked any more.
    #[inline]
    pub(crate) fn walks_no_more(&self) {
        // Release pairs with the Acquire in `walkers`: the walk is over.
        self.slot.era.store(0, Ordering::Release);
        // Relaxed: with no era it means nothing.
        self.slot.until.store(0, Ordering::Relaxed);
    }

    /// Narrows it down: only those that were in force in `era` or before.
    #[inline]
    pub(crate) fn walks_until(&self, era: u64) {
        // Relaxed: who misses it takes the holder to walk more.
        self.slot.until.store(era, Ordering::Relaxed);
    }

    /// The change on record.
    pub(crate) fn change(&self) -> Change {
        self.slot.change()
    }

    /// Puts on record that only the first `count` on the list have started, and no more will.
    pub(crate) fn cut_short(&self, count: usize) {
        // Relaxed, here and below: as in `list`.
        self.slot.started.store(count as u32 + 1, Ordering::Relaxed);
    }

    /// How many on the list have started, if that was put on record; else all have.
    pub(crate) fn started(&self) -> Option<usize> {
        Some(self.slot.started.load(Ordering::Relaxed))
            .filter(|&some| some != 0)
            .map(|count| count as usize - 1)
    }

    /// Nothing of this change's callbacks is to be found in the next use of the slot.
    pub(crate) fn forget_callbacks(&self) {
        self.set_calling(0);
        self.slot.started.store(0, Ordering::Relaxed);
    }

    /// The change will not take place: from `Starting` to `Ending` at once.
    pub(crate) fn ending(&self) {
        // A reader before, a reader after: nobody may conclude anything from it. Release all the same: who sees this
        // phase must see what came with the claim, as the list that is walked.
        self.slot.state.store(self.in_phase(Phase::Ending), Ordering::Release);
    }

    /// Whether the change was made in a callback of the subscriber at that address, which then hears nothing of it.
    #[inline]
    pub(crate) fn skips(&self, subscriber: usize) -> bool {
        self.slot.skips(subscriber)
    }

    /// Whether this is not the only thing that its thread has open.
    #[inline]
    pub(crate) fn is_nested(&self) -> bool {
        self.slot.nesting().is_some()
    }

    /// Puts on record whose callback is about to run; 0: nobody's.
    #[inline]
    pub(crate) fn set_calling(&self, subscriber: usize) {
        // Relaxed: read by the same thread, and for reports.
        self.slot.calling.store(subscriber, Ordering::Relaxed);
    }

    /// The same of the end of who is on the list.
    #[inline(always)]
    pub(crate) fn set_calling_end(&self, subscriber: usize) {
        self.set_calling(subscriber + END);
    }

    /// The change is done: from `Changing` to `Ending`, as there is somebody to call. For who has started it and has given
    /// it to nobody else; false if it was forgotten, in a forked child.
    #[inline(always)]
    pub(crate) fn finish(&self) -> bool {
        // No need to compare and exchange at once: as in `is_changing`. That takes longer.
        if !self.is_changing() {
            return false;
        }
        // Release pairs with the Acquire in `scan`: who waited for the change sees what it did.
        self.slot.state.swap(self.in_phase(Phase::Ending), Ordering::Release);
        // Pairs with the fence in `scan`: see the module documentation.
        fence_after_rmw();
        true
    }

    /// All callbacks of the start have returned: to phase `Changing`.
    #[inline(always)]
    pub(crate) fn changing(&self) {
        // Release pairs with the Acquire in `scan`: the callbacks are over.
        self.slot.state.store(self.in_phase(Phase::Changing), Ordering::Release);
    }

    /// The same change for who will [`finish`](OpenChanges::finish) it.
    #[inline(always)]
    pub(crate) fn open(self) -> OpenChange {
        OpenChange(Token { slot: self.slot.address(), state: self.state })
    }
}
