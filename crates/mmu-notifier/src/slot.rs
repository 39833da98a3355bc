//! One place in the record of open changes: what is written there, and in which phase its holder is.

// UNSAFETY: asks for zeroed memory instead of writing the zeroes, which would touch a quarter of a megabyte in every
// process that is watched.
#![expect(unsafe_code)]

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;

use crate::event::What;
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::{Change, Event, Range};

/// Open changes of one home: nested ones, and a neighbour's when its own set is full.
pub(crate) const WAYS: usize = if cfg!(mmu_loom) { 2 } else { 4 };

/// Threads with different homes modulo this number write to different cache lines. A home is [`WAYS`] slots, one behind
/// the other.
#[cfg(not(any(mmu_loom, mmu_shuttle, miri)))]
pub(crate) const HOMES: usize = 128;
#[cfg(any(mmu_shuttle, miri))]
pub(crate) const HOMES: usize = 4;
#[cfg(mmu_loom)]
pub(crate) const HOMES: usize = 1;

/// Slots of an address space, and so changes that can be open at one time.
pub(crate) const SLOTS: usize = HOMES * WAYS;

/// In [`Slot::calling`]: it is an end.
pub(crate) const END: usize = 1;

/// How many callbacks deep a change is still kept from the subscribers whose callbacks these are. Who makes
/// changes in callbacks deeper than that is told of them himself.
const SKIPPED: usize = if cfg!(mmu_loom) { 1 } else { 7 };

/// What the holder of a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Phase {
    /// Nobody holds the slot.
    Free = 0,
    /// A change: its starts are being called.
    Starting = 1,
    /// A change: no callback runs; the address space is changing.
    Changing = 2,
    /// A change that is done: its ends are being called.
    Ending = 3,
    /// A change in its middle that another thread is taking over.
    Taken = 4,
    /// No change: callbacks of another kind are being called (aging, flushing).
    Calling = 5,
    /// No change and no callback: lists are being replaced, and nothing that is read there may be freed.
    Editing = 6,
}

impl Phase {
    /// Callbacks may be running: whoever takes a subscriber away waits for these.
    pub(crate) fn calls(self) -> bool {
        matches!(self, Phase::Starting | Phase::Ending | Phase::Calling)
    }

    /// The address space is changing, or about to: whoever reads it waits for these.
    pub(crate) fn changes(self) -> bool {
        matches!(self, Phase::Starting | Phase::Changing | Phase::Taken)
    }
}

/// A slot's state: the number of its uses and a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State(pub(crate) u64);

impl State {
    const PHASE: u64 = 7;

    /// The same use in another phase.
    #[inline]
    pub(crate) const fn in_phase(self, phase: Phase) -> State {
        State(self.0 & !State::PHASE | phase as u64)
    }

    /// The next use of a slot that is free, in phase `Free` yet.
    #[inline]
    pub(crate) const fn next(self) -> State {
        State(self.0.wrapping_add(State::PHASE + 1))
    }

    #[inline]
    pub(crate) const fn is_free(self) -> bool {
        self.0 & State::PHASE == Phase::Free as u64
    }

    #[inline]
    pub(crate) const fn phase(self) -> Phase {
        match self.0 & State::PHASE {
            1 => Phase::Starting,
            2 => Phase::Changing,
            3 => Phase::Ending,
            4 => Phase::Taken,
            5 => Phase::Calling,
            6 => Phase::Editing,
            _ => Phase::Free,
        }
    }

    /// The number of the use.
    #[inline]
    pub(crate) const fn sequence(self) -> u64 {
        self.0 >> 3
    }
}

/// Some bits of the number of a use, where they are in a [`State`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct UseBits(u64);

impl UseBits {
    pub(crate) const fn new(bits: u64) -> UseBits {
        UseBits(bits << 3)
    }

    #[inline(always)]
    pub(crate) const fn is_disjoint(self, state: State) -> bool {
        self.0 & state.0 == 0
    }
}

/// What is on record of one holder. No two share a cache line, nor a pair of them that is fetched together.
#[derive(Debug)]
#[repr(C, align(256))]
pub(crate) struct Slot {
    /// See [`State`].
    pub(crate) state: AtomicU64,
    /// [`Caller::thread`](crate::Caller::thread) of the holder, 0 if it is free or not written yet; `stack` of who
    /// claimed it.
    pub(crate) thread: AtomicU64,
    pub(crate) stack: AtomicUsize,
    /// The list that the holder walks: address | 1; 0 while it is not known yet, and if there was nobody to tell.
    /// Written after the change.
    pub(crate) list: AtomicUsize,
    /// The change: range, and event and blocking.
    start: AtomicUsize,
    end: AtomicUsize,
    what: AtomicU32,
    /// If a start was cut short: how many on the list have started, plus 1. 0 in a free slot.
    pub(crate) started: AtomicU32,
    /// Whose callback runs, or ran last, and so how far the callbacks have come: the address of the subscriber, and
    /// [`END`] if it is its end. 0, or an end, in a free slot. See [`Slot::calling`].
    pub(crate) calling: AtomicUsize,

    // The second line: looked at, and counted in.
    /// In the first slot of a home: 0 if the home was never used, else 1 more than other slots are held by threads of this
    /// home.
    pub(crate) nested: AtomicU32,
    /// See [`Nesting`]. 0 in a free slot.
    nesting: AtomicU32,
    pub(crate) counts: Counts,

    // Behind these: hardly ever touched.
    owner: AtomicUsize,
    /// The era of the interval tree that the holder walks; 0 while it is not known yet, `u64::MAX`: none. 0 in a free
    /// slot.
    pub(crate) era: AtomicU64,
    /// The last era in which what the holder walks can have been in force; 0 while it is not known. 0 in a free slot.
    pub(crate) until: AtomicU64,
    /// The subscribers in whose callbacks the change was made: they hear neither its start nor its end.
    skipped: [AtomicUsize; SKIPPED],
}

/// What happened in a slot so far. Only its holder writes, so nothing here needs an atomic addition.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Counts {
    /// Changes, by [`Event`].
    pub(crate) changes: [AtomicU64; Event::ALL.len()],
    /// Changes that somebody refused.
    pub(crate) refused: AtomicU64,
    /// Changes that were ended by who found them abandoned.
    pub(crate) abandoned: AtomicU64,
}

/// Adds one, without an atomic instruction: for the only writer.
#[inline]
pub(crate) fn count(counter: &AtomicU64) {
    if cfg!(mmu_loom) {
        // A number that nothing depends on is not worth the interleavings.
        return;
    }
    // Relaxed: readers want a number, not an order.
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Where a change was made that is not the only one of its thread: in how many callbacks, and for which home it is in
/// a slot behind the first, if it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nesting(u32);

impl Nesting {
    /// Set in all of them, so that 0 is none.
    const SOME: u32 = 1 << 31;

    pub(crate) fn new(skipped: usize, home: usize) -> Nesting {
        Nesting(Nesting::SOME | (home as u32) << 8 | skipped as u32)
    }

    fn skipped(self) -> usize {
        (self.0 & 0xff) as usize
    }

    /// The home whose `nested` counts it.
    pub(crate) fn home(self) -> usize {
        (self.0 & !Nesting::SOME) as usize >> 8
    }
}

/// The slots of an address space, in memory that the kernel gives only when it is touched.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: NonNull<[Slot; SLOTS]>,
    /// What the allocator gave: the slots lie in it at the next multiple of their alignment.
    #[cfg(not(any(mmu_loom, mmu_shuttle, miri)))]
    memory: NonNull<u8>,
}

// SAFETY: the slots are owned, and consist of atomics.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Deref for Slots {
    type Target = [Slot; SLOTS];

    #[inline]
    fn deref(&self) -> &[Slot; SLOTS] {
        // SAFETY: owned, and as many as `new` has made.
        unsafe { self.slots.as_ref() }
    }
}

#[cfg(not(any(mmu_loom, mmu_shuttle, miri)))]
mod memory {
    use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

    use super::*;

    /// What a home takes, in bytes, and begins at a multiple of.
    const HOME: usize = WAYS * size_of::<Slot>();

    /// An alignment that the system's allocator gives without writing the zeroes itself.
    const LAYOUT: Layout = match Layout::from_size_align(HOMES * HOME + HOME, 16) {
        Ok(layout) => layout,
        Err(_) => panic!("less than a terabyte"),
    };

    impl Slots {
        pub(crate) fn new() -> Slots {
            // SAFETY: the layout is not empty.
            let memory = unsafe { alloc_zeroed(LAYOUT) };
            let Some(memory) = NonNull::new(memory) else { handle_alloc_error(LAYOUT) };
            let padding = memory.align_offset(HOME);
            // SAFETY: `LAYOUT` has room for the padding and the slots. A slot consists of atomic integers, of which zero
            // is a value.
            let slots = unsafe { memory.add(padding) }.cast();
            Slots { slots, memory }
        }
    }

    impl Drop for Slots {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.memory.as_ptr(), LAYOUT) };
        }
    }
}

/// The same for a checker, which has to see every atomic made.
#[cfg(any(mmu_loom, mmu_shuttle, miri))]
mod memory {
    use super::*;

    impl Slots {
        pub(crate) fn new() -> Slots {
            let slots: Box<[Slot]> = (0..SLOTS).map(|_| Slot::new()).collect();
            let slots: Box<[Slot; SLOTS]> = slots.try_into().expect("as many");
            Slots { slots: NonNull::from(Box::leak(slots)) }
        }
    }

    impl Drop for Slots {
        fn drop(&mut self) {
            // SAFETY: leaked in `new`.
            drop(unsafe { Box::from_raw(self.slots.as_ptr()) });
        }
    }

    impl Slot {
        fn new() -> Slot {
            Slot {
                state: AtomicU64::new(0),
                thread: AtomicU64::new(0),
                stack: AtomicUsize::new(0),
                list: AtomicUsize::new(0),
                start: AtomicUsize::new(0),
                end: AtomicUsize::new(0),
                what: AtomicU32::new(0),
                started: AtomicU32::new(0),
                calling: AtomicUsize::new(0),
                nested: AtomicU32::new(u32::from(cfg!(mmu_loom))),
                nesting: AtomicU32::new(0),
                owner: AtomicUsize::new(0),
                era: AtomicU64::new(0),
                until: AtomicU64::new(0),
                skipped: std::array::from_fn(|_| AtomicUsize::new(0)),
                counts: Counts {
                    changes: std::array::from_fn(|_| AtomicU64::new(0)),
                    refused: AtomicU64::new(0),
                    abandoned: AtomicU64::new(0),
                },
            }
        }
    }
}

impl Slot {
    #[inline]
    pub(crate) fn address(&self) -> NonZeroUsize {
        NonNull::from(self).addr()
    }

    /// Which slot it is.
    #[inline]
    pub(crate) fn number(&self) -> usize {
        self.address().get() / size_of::<Slot>() % SLOTS
    }

    /// The phase as the calling thread sees it: exact for what it holds itself.
    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        // Relaxed: the calling thread's own.
        State(self.state.load(Ordering::Relaxed)).phase()
    }

    /// Writes down a change, all but the list that it walks. For the holder.
    #[inline]
    pub(crate) fn write(&self, change: &Change) {
        // Relaxed, all: `list`, or a later phase, publishes it.
        self.start.store(change.range().start(), Ordering::Relaxed);
        self.end.store(change.range().end(), Ordering::Relaxed);
        self.what.store(change.what().0, Ordering::Relaxed);
        if change.what().is_owned() {
            self.owner.store(change.owner(), Ordering::Relaxed);
        }
    }

    /// Writes down where a change was made that is not the only one of its thread.
    pub(crate) fn write_nesting(&self, home: usize, skipped: impl Iterator<Item = usize>) {
        let mut count = 0;
        // Relaxed, all: only the holder reads it.
        for (subscriber, place) in skipped.zip(&self.skipped) {
            place.store(subscriber, Ordering::Relaxed);
            count += 1;
        }
        self.nesting.store(Nesting::new(count, home).0, Ordering::Relaxed);
    }

    /// The slot goes over to a thread of another home; for that thread.
    pub(crate) fn move_nesting(&self, home: usize) {
        let skipped = self.nesting().map_or(0, Nesting::skipped);
        // Relaxed: only the holder reads it.
        self.nesting.store(Nesting::new(skipped, home).0, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn nesting(&self) -> Option<Nesting> {
        // Relaxed: only the holder reads it.
        let nesting = self.nesting.load(Ordering::Relaxed);
        (nesting != 0).then_some(Nesting(nesting))
    }

    pub(crate) fn forget_nesting(&self) {
        self.nesting.store(0, Ordering::Relaxed);
    }

    /// The addresses on record.
    #[inline]
    pub(crate) fn range(&self) -> Range {
        // Relaxed: the caller wrote it, or has acquired `list` or a later phase.
        Range::new(self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed))
            .unwrap_or(Range::EVERYTHING)
    }

    /// The change on record.
    #[inline]
    pub(crate) fn change(&self) -> Change {
        // Relaxed, both: as in `range`.
        let what = What(self.what.load(Ordering::Relaxed));
        let owner = if what.is_owned() { self.owner.load(Ordering::Relaxed) } else { 0 };
        Change::from_parts(self.range(), what, owner)
    }

    /// The list that is walked, if it is on record.
    #[inline]
    pub(crate) fn list(&self) -> Option<usize> {
        // Acquire pairs with the Release in `Held::walks`: the change was written before.
        let list = self.list.load(Ordering::Acquire);
        (list != 0).then_some(list & !1)
    }

    /// The subscriber in whose callback the holder is, in this phase: for the holder itself, and for reports.
    ///
    /// What was left by an earlier phase is nobody: an end in `Starting` is of the last use of the slot, a start in
    /// `Ending` is over. So the word need not be cleared in between, nor when the slot is given back.
    pub(crate) fn calling(&self, phase: Phase) -> Option<usize> {
        // Relaxed: the calling thread wrote it.
        let calling = self.calling.load(Ordering::Relaxed);
        let is_of_phase = (calling & END != 0) == (phase == Phase::Ending);
        (phase.calls() && calling != 0 && is_of_phase).then_some(calling & !END)
    }

    /// Whether the change was made in a callback of `subscriber`, which then hears nothing of it.
    #[inline]
    pub(crate) fn skips(&self, subscriber: usize) -> bool {
        self.nesting().is_some_and(|nesting| self.skips_nested(subscriber, nesting))
    }

    #[cold]
    fn skips_nested(&self, subscriber: usize, nesting: Nesting) -> bool {
        let mut skipped = self.skipped.iter().take(nesting.skipped());
        // Relaxed: only the holder reads it.
        skipped.any(|skipped| skipped.load(Ordering::Relaxed) == subscriber)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_takes_what_the_memory_of_a_process_was_planned_with() {
        if !cfg!(mmu_loom) {
            assert_eq!(size_of::<Slot>(), 256);
            assert!(std::mem::offset_of!(Slot, nested) == 64, "the first line is for every change");
        }
    }
}
