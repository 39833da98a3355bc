//! One place in the record of open changes: what is written there, and in which phase its holder is.

// UNSAFETY: asks for zeroed memory instead of writing the zeroes, which would touch a quarter of a megabyte in every
// process that is watched.
#![expect(unsafe_code)]

use crate::sync::{AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::{Blocking, Change, Event, Range};

/// Open changes of one home: nested ones, and a neighbour's when its own set is full.
pub(crate) const WAYS: usize = if cfg!(mmu_loom) { 2 } else { 4 };

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
    pub(crate) const fn new(sequence: u64, phase: Phase) -> State {
        State(sequence << 3 | phase as u64)
    }

    pub(crate) const fn phase(self) -> Phase {
        match self.0 & 7 {
            1 => Phase::Starting,
            2 => Phase::Changing,
            3 => Phase::Ending,
            4 => Phase::Taken,
            5 => Phase::Calling,
            6 => Phase::Editing,
            _ => Phase::Free,
        }
    }

    pub(crate) const fn sequence(self) -> u64 {
        self.0 >> 3
    }
}

/// The slots of one home. Two homes never share a cache line, nor a pair of them that is fetched together.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Home {
    /// See [`State`]. Side by side, so that a thread sees with one line whether it has anything open.
    pub(crate) states: [AtomicU64; WAYS],
    pub(crate) slots: [Slot; WAYS],
}

/// What is on record of one holder. The first line is written by every change; the second by changes that are made
/// in callbacks or have an owner; the third counts.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Slot {
    /// [`Caller::thread`](crate::Caller::thread) of the holder, 0 if it is free or not written yet; `stack` of who
    /// claimed it.
    pub(crate) thread: AtomicU64,
    pub(crate) stack: AtomicUsize,
    /// The change.
    start: AtomicUsize,
    end: AtomicUsize,
    /// See [`What`].
    pub(crate) what: AtomicU32,
    /// Subscribers of the list whose start has returned, and those whose end has been called.
    pub(crate) started: AtomicU16,
    pub(crate) ended: AtomicU16,
    /// The list that the holder walks: address | 1; 0 while it is not known yet. Written after the change.
    pub(crate) list: AtomicUsize,
    /// The subscriber that the holder is calling, 0 if none.
    pub(crate) calling: AtomicUsize,
    /// The era of the interval tree that the holder walks; 0 while it is not known yet, `u64::MAX`: none.
    pub(crate) era: AtomicU64,
    owner: AtomicUsize,
    /// The subscribers in whose callbacks the change was made: they hear neither its start nor its end.
    skipped: [AtomicUsize; SKIPPED],
    pub(crate) counts: Counts,
}

/// What happened in a slot so far. Only its holder writes, so nothing here needs an atomic addition.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Counts {
    /// Changes, by [`Event`].
    pub(crate) changes: [AtomicU64; Event::ALL.len()],
    /// Changes that somebody refused.
    pub(crate) refused: AtomicU64,
    /// Changes that were ended by who found them abandoned.
    pub(crate) abandoned: AtomicU64,
}

/// Adds one, without an atomic instruction: for the only writer.
pub(crate) fn count(counter: &AtomicU64) {
    if cfg!(mmu_loom) {
        // A number that nothing depends on is not worth the interleavings.
        return;
    }
    // Relaxed: readers want a number, not an order.
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// The small things on record, in one word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct What {
    pub(crate) event: Event,
    pub(crate) blocking: Blocking,
    /// How many of `skipped` are in use.
    pub(crate) skipped: usize,
    /// The slot is not of the home of who claimed it, or took it over.
    pub(crate) away: bool,
    /// The change has an owner.
    pub(crate) owned: bool,
}

impl What {
    pub(crate) fn to_word(self) -> u32 {
        let may_wait = u32::from(self.blocking == Blocking::Allowed);
        (self.event as u32) << 16
            | (self.skipped as u32) << 8
            | u32::from(self.owned) << 2
            | u32::from(self.away) << 1
            | may_wait
    }

    pub(crate) fn from_word(word: u32) -> What {
        What {
            event: Event::ALL[(word >> 16) as usize % Event::ALL.len()],
            blocking: if word & 1 == 1 { Blocking::Allowed } else { Blocking::Forbidden },
            skipped: (word >> 8 & 0xff) as usize % (SKIPPED + 1),
            away: word & 2 == 2,
            owned: word & 4 == 4,
        }
    }
}

impl Home {
    /// Homes nobody has been to, in memory that the kernel gives only when it is touched.
    pub(crate) fn many(count: usize) -> Box<[Home]> {
        if cfg!(any(mmu_loom, mmu_shuttle, miri)) {
            // A checker has to see every atomic made.
            return (0..count).map(|_| Home::new()).collect();
        }
        // SAFETY: a home consists of atomic integers only, of which zero is a value: that of `new`.
        unsafe { Box::new_zeroed_slice(count).assume_init() }
    }

    fn new() -> Home {
        let slot = || Slot {
            thread: AtomicU64::new(0),
            stack: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            what: AtomicU32::new(0),
            started: AtomicU16::new(0),
            ended: AtomicU16::new(0),
            list: AtomicUsize::new(0),
            calling: AtomicUsize::new(0),
            era: AtomicU64::new(0),
            owner: AtomicUsize::new(0),
            skipped: std::array::from_fn(|_| AtomicUsize::new(0)),
            counts: Counts {
                changes: std::array::from_fn(|_| AtomicU64::new(0)),
                refused: AtomicU64::new(0),
                abandoned: AtomicU64::new(0),
            },
        };
        Home {
            states: std::array::from_fn(|_| AtomicU64::new(State::new(0, Phase::Free).0)),
            slots: std::array::from_fn(|_| slot()),
        }
    }
}

impl Slot {
    /// Writes down a change, all but the list that it walks. For the holder.
    #[inline]
    pub(crate) fn write(&self, change: &Change, away: bool, skipped: impl Iterator<Item = usize>) -> What {
        // Relaxed: `list`, or a later phase, publishes it.
        self.started.store(0, Ordering::Relaxed);
        self.ended.store(0, Ordering::Relaxed);
        self.start.store(change.range().start(), Ordering::Relaxed);
        self.end.store(change.range().end(), Ordering::Relaxed);
        let owned = change.owner() != 0;
        if owned {
            self.owner.store(change.owner(), Ordering::Relaxed);
        }
        let mut count = 0;
        for (subscriber, place) in skipped.zip(&self.skipped) {
            place.store(subscriber, Ordering::Relaxed);
            count += 1;
        }
        let what = What { event: change.event(), blocking: change.blocking(), skipped: count, away, owned };
        self.what.store(what.to_word(), Ordering::Relaxed);
        what
    }

    pub(crate) fn what(&self) -> What {
        // Relaxed: as in `range`.
        What::from_word(self.what.load(Ordering::Relaxed))
    }

    /// The addresses on record.
    pub(crate) fn range(&self) -> Range {
        // Relaxed: the caller wrote it, or has acquired `list` or a later phase.
        Range::new(self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed))
            .unwrap_or(Range::EVERYTHING)
    }

    /// The change on record.
    pub(crate) fn change(&self, what: What) -> Change {
        let change = Change::new(self.range(), what.event, what.blocking);
        // Relaxed: as in `range`.
        if what.owned { change.with_owner(self.owner.load(Ordering::Relaxed)) } else { change }
    }

    /// The list that is walked, if it is on record.
    #[inline]
    pub(crate) fn list(&self) -> Option<usize> {
        // Acquire pairs with the Release in `Held::walks`: the change was written before.
        let list = self.list.load(Ordering::Acquire);
        (list != 0).then_some(list & !1)
    }

    /// The subscriber that the holder is calling. For the holder itself, and for reports.
    pub(crate) fn calling(&self) -> Option<usize> {
        // Relaxed: the calling thread wrote it.
        Some(self.calling.load(Ordering::Relaxed)).filter(|&subscriber| subscriber != 0)
    }

    /// Whether the change was made in a callback of `subscriber`, which then hears nothing of it.
    pub(crate) fn skips(&self, what: What, subscriber: usize) -> bool {
        // Relaxed: as in `range`.
        self.skipped.iter().take(what.skipped).any(|skipped| skipped.load(Ordering::Relaxed) == subscriber)
    }
}
