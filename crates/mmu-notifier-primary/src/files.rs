//! Calls that map files and calls that change files, on record while they are under way: so neither misses the other.
//!
//! A call that changes a file (`ftruncate`, `fallocate`, ..) announces where the file is mapped, and has to look that up. A
//! mapping that another thread makes after the look, and before the change, would not be among them. Nobody may wait for the
//! other: both run wherever the program makes them, under any lock of its own.
//!
//! ```text
//! changing call                                        mapping call
//! on record                                            on record
//! full fence                                           full fence
//! who is mapping?                                      who is changing?
//!   nobody: announces where the file is mapped           nobody: nothing
//!   somebody: announces everything                       somebody: announces everything, *for him*
//! the call                                             the call
//! ends what it has announced                           off the record
//! off the record; ends what was announced for it
//!
//!    [ the first sees the second, or the second the first, or what the second has mapped is found: never none of them ]
//! ```
//!
//! What is announced for somebody is a change that is handed over to him
//! ([`hand_to`](mmu_notifier::AddressSpace::hand_to)): it began before the mapping is there, and is over when he is done.
//! One is enough for each changing call, as it is of everything. Whether he is still there when it is handed over, one
//! exchange decides ([`Files::join`]).
//!
//! # Which concern each other
//!
//! Those of the same file, by a hash of its device and inode. A call that maps does not know which file that is if it was never
//! asked (before the first change of any file), or cannot know (`shmat`); one that moves mappings (`mremap`) moves those of
//! files that are mapped already.
//!
//! # Who jumps out of a call
//!
//! leaves it on record, with its thread and stack position. A changing call is found by the thread's next change, as open
//! changes are; a mapping call as well, by the thread's next call that maps a file. In between more is announced than need be,
//! as it is for good if the jump was out of the few instructions in which a call goes on record or off it without a name.

#[cfg(mmu_loom)]
use ::loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(not(mmu_loom))]
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

use mmu_notifier::Caller;

use crate::gate::safe::FileId;

#[cfg(all(test, mmu_loom))]
mod loom;
#[cfg(all(test, not(mmu_loom)))]
mod tests;

/// Calls that can be on record at a time: a thread's first one has a place of its own.
const RECORDS: usize = if cfg!(mmu_loom) { 2 } else { 128 };

/// Which files a call concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u64);

impl Key {
    /// Any file.
    pub(crate) const ANY: Key = Key(0);
    /// Of a mapping call: any that is mapped already.
    pub(crate) const MAPPED: Key = Key(1);
    const BITS: u32 = 24;

    pub(crate) fn of(file: &FileId) -> Key {
        let hash = (file.inode ^ file.device.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Key((hash >> (u64::BITS - Key::BITS)).max(2))
    }
}

/// What is on record in one place, in one word.
///
/// | bits | |
/// | --- | --- |
/// | 0, 1 | `FREE`, `CLAIMED`, `MAPS` or `CHANGES` |
/// | 2 | of a change: everything is announced until it is done |
/// | 3 | of a change: by others, at least also |
/// | 4 | of a change: the file was not mapped when it began |
/// | 8 to 31 | the [`Key`] |
/// | 32 to 63 | the number of the use |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State(u64);

const KIND: u64 = 3;
const FREE: u64 = 0;
const CLAIMED: u64 = 1;
const MAPS: u64 = 2;
const CHANGES: u64 = 3;
const EVERYTHING: u64 = 1 << 2;
const GUESTS: u64 = 1 << 3;
const NOT_MAPPED: u64 = 1 << 4;
const KEY: u32 = 8;
const USE: u32 = 32;

impl State {
    fn kind(self) -> u64 {
        self.0 & KIND
    }

    fn key(self) -> Key {
        Key(self.0 >> KEY & ((1 << Key::BITS) - 1))
    }

    fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    fn next(self, kind: u64, key: Key) -> State {
        State(((self.0 >> USE).wrapping_add(1) << USE) | key.0 << KEY | kind)
    }

    /// Nothing but the number.
    fn over(self) -> State {
        State(self.0 >> USE << USE)
    }

    /// Whether it is still that use.
    fn is_of(self, entered: Entered) -> bool {
        self.kind() == entered.state.kind() && self.over() == entered.state.over()
    }

    /// Whether a mapping call with that key may map what this change is of.
    fn concerns(self, maps: Key) -> bool {
        match maps {
            Key::ANY => true,
            Key::MAPPED => !self.has(NOT_MAPPED),
            file => self.key() == Key::ANY || self.key() == file,
        }
    }
}

#[derive(Debug)]
#[repr(align(64))]
struct Record {
    /// See [`State`].
    state: AtomicU64,
    /// Whose call it is; 0: not written yet, or nobody's.
    thread: AtomicU64,
    home: AtomicUsize,
    stack: AtomicUsize,
}

/// A call that is on record. A plain value: its frame may be jumped over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entered {
    /// [`RECORDS`]: only counted.
    place: usize,
    /// As it was entered.
    state: State,
}

impl Entered {
    /// Whether it changes a file; else it maps one.
    pub(crate) fn changes(self) -> bool {
        self.state.kind() == CHANGES
    }

    /// What it concerns.
    pub(crate) fn key(self) -> Key {
        self.state.key()
    }
}

/// A change under way, of another call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Other {
    place: usize,
    state: State,
    pub(crate) thread: u64,
    pub(crate) home: usize,
    pub(crate) stack: usize,
}

/// Who maps what a change is of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mapping {
    /// Somebody maps, or may map, that file.
    pub(crate) file: bool,
    /// Somebody moves mappings of any files.
    pub(crate) moves: bool,
}

/// The calls of this process that map files, or change them.
#[derive(Debug)]
pub(crate) struct Files {
    records: [Record; RECORDS],
    /// Changing calls on record, at most.
    changing: AtomicUsize,
    /// Mapping calls for which there was no room.
    crowd: AtomicUsize,
    /// Somebody has changed a file: those who map say which.
    ever_changed: AtomicBool,
}

impl Files {
    pub(crate) fn new() -> Files {
        let record = || Record {
            state: AtomicU64::new(FREE),
            thread: AtomicU64::new(0),
            home: AtomicUsize::new(0),
            stack: AtomicUsize::new(0),
        };
        Files {
            records: core::array::from_fn(|_| record()),
            changing: AtomicUsize::new(0),
            crowd: AtomicUsize::new(0),
            ever_changed: AtomicBool::new(false),
        }
    }

    /// Whether a mapping call should find out which file it maps.
    pub(crate) fn key_wanted(&self) -> bool {
        // Relaxed: it only says less than it could.
        self.ever_changed.load(Ordering::Relaxed)
    }

    /// Whether a change may be under way.
    #[inline]
    pub(crate) fn is_changing(&self) -> bool {
        // Relaxed: of the calling thread's own it sees at least these. `enter_mapping` has its fence.
        self.changing.load(Ordering::Relaxed) != 0
    }

    fn claim(&self, caller: &Caller, kind: u64, key: Key) -> Option<(&Record, Entered)> {
        (0..RECORDS).find_map(|step| {
            let place = (caller.home() + step) % RECORDS;
            let record = &self.records[place];
            // Relaxed: the exchange checks it.
            let free = State(record.state.load(Ordering::Relaxed));
            if free.kind() != FREE {
                return None;
            }
            let state = free.next(kind, key);
            // Acquire pairs with the Release in `off`: its fields are over. Release: who sees a mapping call sees what it
            // has found on its way here.
            let claimed =
                record.state.compare_exchange(free.0, state.0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            claimed.then_some((record, Entered { place, state }))
        })
    }

    /// Puts a call on record that maps what `key` says.
    pub(crate) fn enter_mapping(&self, caller: &Caller, key: Key) -> Entered {
        let entered = match self.claim(caller, MAPS, key) {
            Some((record, entered)) => {
                record.sign(caller);
                entered
            }
            None => {
                self.crowd.fetch_add(1, Ordering::Relaxed);
                Entered { place: RECORDS, state: State(FREE).next(MAPS, Key::ANY) }
            }
        };
        // Pairs with the fence in `who_maps`: whose look has missed this is seen by the look behind this.
        fence(Ordering::SeqCst);
        entered
    }

    /// Puts a call on record that changes what `key` says. `None`: there is no room, and it has to announce everything itself.
    pub(crate) fn enter_change(&self, caller: &Caller, key: Key) -> Option<Entered> {
        // Relaxed, both: as they are read. The second comes before the fence in `who_maps`.
        self.ever_changed.store(true, Ordering::Relaxed);
        self.changing.fetch_add(1, Ordering::Relaxed);
        let Some((record, entered)) = self.claim(caller, CLAIMED, key) else {
            self.changing.fetch_sub(1, Ordering::Relaxed);
            return None;
        };
        record.sign(caller);
        let state = State(entered.state.0 | CHANGES);
        // Release pairs with the Acquire in `find`: whose call it is.
        record.state.store(state.0, Ordering::Release);
        Some(Entered { state, ..entered })
    }

    /// Who maps the file of a change that is on record.
    pub(crate) fn who_maps(&self, change: Entered) -> Mapping {
        // Pairs with the fence in `enter_mapping`.
        fence(Ordering::SeqCst);
        // Acquire pairs with the Release in `leave`, as below.
        let mut mapping = Mapping { file: self.crowd.load(Ordering::Acquire) != 0, moves: false };
        for record in &self.records {
            // Acquire pairs with the Release in `off`: what a call has mapped that is over is found.
            let state = State(record.state.load(Ordering::Acquire));
            if state.kind() == MAPS {
                match state.key() {
                    Key::MAPPED => mapping.moves = true,
                    key => mapping.file |= change.state.concerns(key),
                }
            }
        }
        mapping
    }

    /// The file of a change on record is not mapped.
    pub(crate) fn is_not_mapped(&self, change: Entered) {
        // Relaxed: who misses it announces too much.
        self.records[change.place].state.fetch_or(NOT_MAPPED, Ordering::Relaxed);
    }

    /// Everything has been announced by a change on record.
    pub(crate) fn is_everything(&self, change: Entered) {
        // Release pairs with the Acquire in `find`: the starts are over.
        self.records[change.place].state.fetch_or(EVERYTHING, Ordering::Release);
    }

    /// The next changing call, from `place` on, that a mapping call has to announce everything for.
    pub(crate) fn find(&self, mapping: Entered, place: &mut usize) -> Option<Other> {
        // Behind the fence in `enter_mapping`. Acquire pairs with the Release in `off`: what is over is changed.
        if self.changing.load(Ordering::Acquire) == 0 {
            return None;
        }
        while let Some(record) = self.records.get(*place) {
            *place += 1;
            // Acquire pairs with the Release in `enter_change`, and in `is_everything` and `join`.
            let state = State(record.state.load(Ordering::Acquire));
            if state.kind() == CHANGES && !state.has(EVERYTHING) && state.concerns(mapping.key()) {
                // Acquire pairs with the Release in `off`: without a name it is changed. Relaxed, the others: if it is of a
                // later use, `join` fails.
                let other = Other {
                    place: *place - 1,
                    state,
                    thread: record.thread.load(Ordering::Acquire),
                    home: record.home.load(Ordering::Relaxed),
                    stack: record.stack.load(Ordering::Relaxed),
                };
                // Without a name its call has been made, and it is about to leave.
                if other.thread != 0 {
                    return Some(other);
                }
            }
        }
        None
    }

    /// A change of everything has been handed over to a changing call. False: that is done, or has another one; it has to be
    /// ended by who has started it.
    pub(crate) fn join(&self, other: &Other) -> bool {
        let record = &self.records[other.place];
        let mut state = other.state;
        loop {
            let joined = State(state.0 | EVERYTHING | GUESTS);
            // Release pairs with the Acquire in `off`, who then finds what was handed over; and in `find`. Acquire: what is
            // known of who else has joined is that it is open.
            match record.state.compare_exchange(state.0, joined.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                // Only that the file is not mapped was added.
                Err(now) if now == state.0 | NOT_MAPPED && now != state.0 => state = State(now),
                Err(_) => return false,
            }
        }
    }

    /// A call is over. Whether others have announced something for it, which it has to end.
    pub(crate) fn leave(&self, entered: Entered) -> bool {
        match self.records.get(entered.place) {
            Some(record) => {
                // Relaxed: the caller's own, unless it was taken for gone or is in a forked child, and is over.
                let state = State(record.state.load(Ordering::Relaxed));
                state.is_of(entered) && self.off(record)
            }
            None => {
                // Release: as in `off`. In a forked child it is over.
                let left = |crowd: usize| crowd.checked_sub(1);
                _ = self.crowd.fetch_update(Ordering::Release, Ordering::Relaxed, left);
                false
            }
        }
    }

    fn off(&self, record: &Record) -> bool {
        // So that nobody takes the next one, who has not signed yet, for himself. Release pairs with the Acquire in `find` and
        // `wait_for_changes`.
        record.thread.store(0, Ordering::Release);
        // Relaxed: the caller wrote it, or others who have joined, which the exchange shows.
        let over = State(record.state.load(Ordering::Relaxed)).over();
        // Acquire pairs with the Release in `join`, Release with the Acquire in `claim` and `who_maps`.
        let state = State(record.state.swap(over.0, Ordering::AcqRel));
        if state.kind() != MAPS {
            // Release pairs with the Acquire in `find`.
            self.changing.fetch_sub(1, Ordering::Release);
        }
        state.has(GUESTS)
    }

    /// Ends what the calling thread has left: those of which `gone` says so by their stack position.
    pub(crate) fn leave_gone(&self, caller: &Caller, mut gone: impl FnMut(usize) -> bool) {
        for record in &self.records {
            // Relaxed, here and below: the calling thread's own.
            if record.thread.load(Ordering::Relaxed) == caller.thread()
                && gone(record.stack.load(Ordering::Relaxed))
            {
                self.off(record);
            }
        }
    }

    /// Calls `wait` as long as a change is under way that was at the call of this, but those of the calling thread.
    pub(crate) fn wait_for_changes(&self, caller: &Caller, mut wait: impl FnMut()) {
        // Pairs with the fence in `who_maps`: who is not seen here as one that changes comes later.
        fence(Ordering::SeqCst);
        for record in &self.records {
            // Acquire pairs with the Release in `off`: what it has changed is changed.
            let state = || State(record.state.load(Ordering::Acquire));
            let first = state().over();
            let is_made = || {
                // Without a name its call has been made: Acquire pairs with the Release in `off`.
                let thread = record.thread.load(Ordering::Acquire);
                thread == 0 || thread == caller.thread()
            };
            while state().kind() == CHANGES && state().over() == first && !is_made() {
                wait();
            }
        }
    }

    /// Whether the calling thread may have left something on record.
    pub(crate) fn may_have_left(&self, caller: &Caller) -> bool {
        // Relaxed: the calling thread's own. Its first one is at home, if nobody else was there.
        let home = &self.records[caller.home() % RECORDS];
        self.is_changing() || home.thread.load(Ordering::Relaxed) == caller.thread()
    }

    /// In the only thread of a forked child: nothing is under way.
    pub(crate) fn forked(&self) {
        // Relaxed, all: there is one thread. What is free is not written, as it would be copied.
        for record in &self.records {
            let state = State(record.state.load(Ordering::Relaxed));
            if state.kind() != FREE {
                record.thread.store(0, Ordering::Relaxed);
                record.state.store(state.over().0, Ordering::Relaxed);
            }
        }
        self.changing.store(0, Ordering::Relaxed);
        self.crowd.store(0, Ordering::Relaxed);
    }
}

impl Record {
    fn sign(&self, caller: &Caller) {
        // Relaxed, both: published by what follows.
        self.home.store(caller.home(), Ordering::Relaxed);
        self.stack.store(caller.stack(), Ordering::Relaxed);
        // Release: a signal handler of this thread that finds the name finds the rest.
        self.thread.store(caller.thread(), Ordering::Release);
    }
}
