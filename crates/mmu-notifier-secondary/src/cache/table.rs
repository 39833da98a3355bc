//! The table of entries, and the life of an entry.
//!
//! ```text
//!          commit               change, eviction            no user left, deregistered
//! Free ---> New ---> Live -------------------------> Dead ----------------------------> Free (its next life)
//!            \____________________________________/
//! ```
//!
//! Memory of an entry is never given back before the cache is, so who looks up an entry needs no protection of its
//! memory: what is found is first pinned and then looked at. All of the life is in one word, and every step of it one
//! exchange of that word.

// UNSAFETY: the handle of a registration lies in a cell that belongs to whoever may change the phase next.
#![expect(unsafe_code)]

use std::cell::Cell;
use std::mem::MaybeUninit;

use mmu_notifier::Range;

use super::Access;
use crate::memory::{Zeroed, Zeroes};
use crate::sync::{AtomicU32, AtomicU64, Ordering, UnsafeCell};

/// Number of an entry in its table.
pub(super) type Id = u32;

/// Where an entry is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody's, or of who is registering memory for it.
    Free = 0,
    /// Registered, and in the index, but nobody may use it yet: whether a change came meanwhile is being looked at.
    New = 1,
    /// Good.
    Live = 2,
    /// Nobody finds it any more; still registered until those who use it let go.
    Dead = 3,
}

/// The phase of an entry, what its registration is good for, how many users it counts, and in which life it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State(u64);

impl State {
    const PHASE: u64 = 3;
    const ACCESS_SHIFT: u32 = 2;
    const USER: u64 = 1 << 4;
    const USERS: u64 = ((1 << 20) - 1) << 4;
    const LIFE: u64 = 1 << 24;

    /// Acquire pairs with the Releases below: what the entry says in that life.
    #[inline(always)]
    pub(super) fn load(word: &AtomicU64) -> State {
        State(word.load(Ordering::Acquire))
    }

    pub(super) fn phase(self) -> Phase {
        match self.0 & State::PHASE {
            0 => Phase::Free,
            1 => Phase::New,
            2 => Phase::Live,
            _ => Phase::Dead,
        }
    }

    pub(super) fn access(self) -> Access {
        Access::from_bits(self.0 >> State::ACCESS_SHIFT)
    }

    /// Users that count here: those that found no room in a home, and after death all.
    pub(super) fn users(self) -> u64 {
        (self.0 & State::USERS) / State::USER
    }

    /// Whether it is the same life in the same phase.
    #[inline(always)]
    pub(super) fn is_still(self, then: State) -> bool {
        (self.0 ^ then.0) & !State::USERS == 0
    }

    fn is_same_life(self, then: State) -> bool {
        self.0 / State::LIFE == then.0 / State::LIFE
    }

    #[inline(always)]
    pub(super) fn is_live(self) -> bool {
        self.0 & State::PHASE == Phase::Live as u64
    }

    /// Whether a change must kill it.
    pub(super) fn can_die(self) -> bool {
        matches!(self.phase(), Phase::New | Phase::Live)
    }

    fn with_phase(self, phase: Phase) -> State {
        State(self.0 & !State::PHASE | phase as u64)
    }
}

/// One registration.
#[repr(align(64))]
pub(super) struct Entry<H> {
    state: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
    /// The next one in the chain that it is in, plus one.
    next: AtomicU32,
    /// Used since the clock of eviction came by.
    visited: AtomicU32,
    /// Neighbours on the list of the dying, plus one.
    pub(super) older: AtomicU32,
    pub(super) newer: AtomicU32,
    handle: UnsafeCell<MaybeUninit<H>>,
}

// SAFETY: atomics that may be zero, and a cell without a value.
unsafe impl<H> Zeroed for Entry<H> {
    fn zeroed() -> Entry<H> {
        Entry {
            state: AtomicU64::new(0),
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            next: AtomicU32::new(0),
            visited: AtomicU32::new(0),
            older: AtomicU32::new(0),
            newer: AtomicU32::new(0),
            handle: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }
}

// SAFETY: the handle is written by the one who makes the entry New, lent (`&`) to users, and taken by the one who
// buries it; handing it on needs `Send`, lending it `Sync`.
unsafe impl<H: Send + Sync> Sync for Entry<H> {}
// SAFETY: as above.
unsafe impl<H: Send> Send for Entry<H> {}

impl<H> Entry<H> {
    #[inline(always)]
    pub(super) fn state(&self) -> State {
        State::load(&self.state)
    }

    /// The word that [`state`](Entry::state) reads, for tokens.
    pub(super) fn word(&self) -> &AtomicU64 {
        &self.state
    }

    /// Good as long as the life is the same before and after.
    #[inline(always)]
    pub(super) fn range(&self) -> Option<Range> {
        Range::new(self.start(), self.end()).ok()
    }

    // Relaxed, both: whoever relies on them reads the state before and after.
    #[inline(always)]
    pub(super) fn start(&self) -> usize {
        self.start.load(Ordering::Relaxed) as usize
    }

    #[inline(always)]
    pub(super) fn end(&self) -> usize {
        self.end.load(Ordering::Relaxed) as usize
    }

    /// Free -> New. The caller has this entry from [`Books`](super::books::Books), so nobody else writes it.
    pub(super) fn fill(&self, range: Range, access: Access, handle: H) -> State {
        // Relaxed: published by the state.
        self.start.store(range.start() as u64, Ordering::Relaxed);
        self.end.store(range.end() as u64, Ordering::Relaxed);
        self.visited.store(0, Ordering::Relaxed);
        // SAFETY: in phase Free, and handed out to the caller, nobody else reads or writes the handle.
        self.handle.with_mut(|cell| unsafe { (*cell).write(handle) });
        // Relaxed: nobody else writes it in phase Free.
        let life = self.state.load(Ordering::Relaxed) & !(State::LIFE - 1);
        let state = State(life | (access as u64) << State::ACCESS_SHIFT | Phase::New as u64);
        self.state.store(state.0, Ordering::Release);
        state
    }

    /// New -> Live with one user, unless somebody has killed it.
    pub(super) fn bring_to_life(&self, new: State) -> bool {
        self.exchange(new, State(new.with_phase(Phase::Live).0 + State::USER))
    }

    /// New or Live -> Dead, with the killer as one more user: it is not buried before he lets go. Whether the caller is he.
    pub(super) fn kill(&self, seen: State) -> bool {
        let mut seen = seen;
        while seen.can_die() {
            if self.exchange(seen, State(seen.with_phase(Phase::Dead).0 + State::USER)) {
                return true;
            }
            // It may have come to life meanwhile, or another user may have come or gone.
            let now = self.state();
            if !now.is_same_life(seen) {
                return false;
            }
            seen = now;
        }
        false
    }

    /// One more user of a Live entry of that life; or of a Dead one that is not being buried.
    pub(super) fn add_user(&self, seen: State) -> bool {
        let mut seen = seen;
        while seen.is_live() || (seen.phase() == Phase::Dead && seen.users() > 0) {
            debug_assert!(seen.0 & State::USERS != State::USERS, "a million users of one registration");
            if self.exchange(seen, State(seen.0 + State::USER)) {
                return true;
            }
            let now = self.state();
            if !now.is_still(seen) {
                return false;
            }
            seen = now;
        }
        false
    }

    /// One user less. Whether it was the last one of a dead entry: then the caller sees to its burial.
    #[must_use]
    pub(super) fn remove_user(&self) -> bool {
        // AcqRel: what users did is before the burial. SeqCst orders nothing more here.
        let before = State(self.state.fetch_sub(State::USER, Ordering::AcqRel));
        before.phase() == Phase::Dead && before.users() == 1
    }

    /// Whether it is used by somebody who counts here.
    pub(super) fn has_users(&self) -> bool {
        self.state().users() > 0
    }

    fn exchange(&self, from: State, to: State) -> bool {
        // SeqCst: of a death it is half of the race with a pin, see `homes`. Acquire for who goes on with the new state.
        self.state.compare_exchange(from.0, to.0, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// The handle of a registration that is in use.
    ///
    /// # Safety
    ///
    /// The caller is a user of this entry: pinned, or counted.
    #[inline(always)]
    pub(super) unsafe fn handle(&self) -> &H {
        // SAFETY: written before the entry was New, and taken only when it is Dead and nobody uses it.
        self.handle.with(|cell| unsafe { (*cell).assume_init_ref() })
    }

    /// Takes the handle out, to deregister.
    ///
    /// # Safety
    ///
    /// The entry is Dead without users, and the caller is who buries it.
    pub(super) unsafe fn take_handle(&self) -> H {
        // SAFETY: written before the entry was New, and nobody else takes it.
        self.handle.with(|cell| unsafe { (*cell).assume_init_read() })
    }

    /// Puts it back: it could not be deregistered now.
    ///
    /// # Safety
    ///
    /// As [`take_handle`](Entry::take_handle), which the caller has called.
    pub(super) unsafe fn put_handle_back(&self, handle: H) {
        // SAFETY: nobody else reads or writes the cell now.
        self.handle.with_mut(|cell| unsafe { (*cell).write(handle) });
    }

    /// Dead -> Free, into its next life: it is not registered any more.
    pub(super) fn bury(&self) {
        // Relaxed: nobody else writes it in phase Dead without users.
        let state = self.state.load(Ordering::Relaxed);
        debug_assert!(State(state).phase() == Phase::Dead && State(state).users() == 0);
        let next_life = (state & !(State::LIFE - 1)).wrapping_add(State::LIFE);
        // Release: what was done to deregister is before whoever sees it buried.
        self.state.store(next_life, Ordering::Release);
    }

    /// It is used: not to be evicted soon. Written only if the clock came by since the last time.
    #[inline(always)]
    pub(super) fn visit(&self) {
        // Relaxed: a hint.
        if self.visited.load(Ordering::Relaxed) == 0 {
            self.visited.store(1, Ordering::Relaxed);
        }
    }

    /// The clock comes by. Whether it was used since it came by the last time.
    pub(super) fn was_visited(&self) -> bool {
        // Relaxed: a hint.
        let visited = self.visited.load(Ordering::Relaxed) != 0;
        if visited {
            self.visited.store(0, Ordering::Relaxed);
        }
        visited
    }
}

/// All entries of a cache.
pub(super) struct Table<H> {
    entries: Zeroes<Entry<H>>,
    /// Entries that were ever used: those behind are all Free.
    used: AtomicU32,
}

impl<H> Table<H> {
    pub(super) fn new(entries: usize) -> Table<H> {
        Table { entries: Zeroes::new(entries), used: AtomicU32::new(0) }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What an entry takes, in bytes.
    pub(super) const fn entry_bytes(&self) -> usize {
        size_of::<Entry<H>>()
    }

    #[inline(always)]
    pub(super) fn entry(&self, id: Id) -> &Entry<H> {
        &self.entries[id as usize]
    }

    /// What somebody found in the index while it was being changed need not be a number of an entry.
    #[inline(always)]
    pub(super) fn get(&self, id: Id) -> Option<&Entry<H>> {
        self.entries.get(id as usize)
    }

    /// The next one that was never used. Called under the lock of the books.
    pub(super) fn take_fresh(&self) -> Option<Id> {
        // Relaxed: written under the lock; readers have a fence, see `ever_used`.
        let id = self.used.load(Ordering::Relaxed);
        ((id as usize) < self.entries.len()).then(|| {
            self.used.store(id + 1, Ordering::Relaxed);
            id
        })
    }

    /// Every entry that may be anything but Free. To be called behind a full fence if new ones matter.
    pub(super) fn ever_used(&self) -> std::ops::Range<Id> {
        0..self.used.load(Ordering::Relaxed)
    }
}

/// A stack of entries that is only ever pushed to and taken as a whole. An entry is on one at a time.
#[derive(Default)]
pub(super) struct Chain {
    /// The last one pushed, plus one; 0: empty.
    head: AtomicU32,
}

impl Chain {
    pub(super) fn is_empty(&self) -> bool {
        // Relaxed: whoever must not miss one has a fence.
        self.head.load(Ordering::Relaxed) == 0
    }

    pub(super) fn push<H>(&self, table: &Table<H>, id: Id) {
        self.push_all(table, id, id);
    }

    /// Entries that are linked, from the one to the other.
    fn push_all<H>(&self, table: &Table<H>, first: Id, last: Id) {
        let next = &table.entry(last).next;
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // Relaxed: published by the exchange, whose Release pairs with the Acquire in `take`.
            next.store(head, Ordering::Relaxed);
            match self.head.compare_exchange(head, first + 1, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Everything that is on it. The next one is read before an entry is handed out, so it may go on another chain.
    pub(super) fn take<'a, H>(&self, table: &'a Table<H>) -> Taken<'a, H> {
        // Acquire pairs with the Release in `push`. Most of the time there is nothing, which a load sees, too.
        let next = if self.is_empty() { 0 } else { self.head.swap(0, Ordering::Acquire) };
        Taken { table, next }
    }
}

/// Entries that this thread has killed, on no other chain yet.
#[derive(Default)]
pub(super) struct Victims {
    /// The last one, plus one; 0: none.
    head: Cell<u32>,
    /// The first one.
    first: Cell<u32>,
    count: Cell<u32>,
}

impl Victims {
    pub(super) fn count(&self) -> u32 {
        self.count.get()
    }

    pub(super) fn push<H>(&self, table: &Table<H>, id: Id) {
        if self.count.get() == 0 {
            self.first.set(id);
        }
        // Relaxed: nobody else looks at it before it is pushed to a chain.
        table.entry(id).next.store(self.head.get(), Ordering::Relaxed);
        self.head.set(id + 1);
        self.count.set(self.count.get() + 1);
    }

    pub(super) fn push_to<H>(self, chain: &Chain, table: &Table<H>) {
        if let Some(last) = self.head.get().checked_sub(1) {
            chain.push_all(table, last, self.first.get());
        }
    }
}

/// What was on a [`Chain`], the youngest first.
pub(super) struct Taken<'a, H> {
    table: &'a Table<H>,
    next: u32,
}

impl<H> Iterator for Taken<'_, H> {
    type Item = Id;

    fn next(&mut self) -> Option<Id> {
        let id = self.next.checked_sub(1)?;
        // Relaxed: see `Chain::take`.
        self.next = self.table.entry(id).next.load(Ordering::Relaxed);
        Some(id)
    }
}
