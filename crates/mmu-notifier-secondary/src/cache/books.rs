//! What is kept under the lock: which entries are free, which are dying, and what they take up.

use mmu_notifier::Range;

use super::index::Writer;
use super::table::{Id, Phase, State, Table};
// Everywhere here: the lock orders it.
use crate::sync::Ordering::Relaxed;

/// Whoever holds the lock has these.
pub(super) struct Books {
    /// To change the index.
    pub(super) writer: Writer,
    /// Free entries that were used before, plus one; linked by `older`.
    free: u32,
    /// The youngest of the dying - out of the index, and perhaps still registered - plus one.
    dying: u32,
    /// Where the clock of eviction stands.
    pub(super) hand: Id,
    /// Entries that are not free.
    pub(super) entries: usize,
    /// Bytes of these.
    pub(super) bytes: usize,
    /// See [`Stats`](super::Stats), all three.
    pub(super) misses: u64,
    pub(super) registered: u64,
    pub(super) deregistered: u64,
}

impl Books {
    pub(super) fn new(writer: Writer) -> Books {
        Books {
            writer,
            free: 0,
            dying: 0,
            hand: 0,
            entries: 0,
            bytes: 0,
            misses: 0,
            registered: 0,
            deregistered: 0,
        }
    }

    /// An entry for so many bytes; nobody else has it.
    pub(super) fn take<H>(&mut self, table: &Table<H>, bytes: usize) -> Option<Id> {
        let id = match self.free.checked_sub(1) {
            Some(id) => {
                self.free = table.entry(id).older.load(Relaxed);
                id
            }
            None => table.take_fresh()?,
        };
        self.entries += 1;
        self.bytes += bytes;
        Some(id)
    }

    /// Gives it back.
    pub(super) fn give<H>(&mut self, table: &Table<H>, id: Id, bytes: usize) {
        table.entry(id).older.store(self.free, Relaxed);
        self.free = id + 1;
        self.entries -= 1;
        self.bytes -= bytes;
    }

    /// It is out of the index, and will be buried.
    pub(super) fn add_dying<H>(&mut self, table: &Table<H>, id: Id) {
        let entry = table.entry(id);
        entry.newer.store(0, Relaxed);
        entry.older.store(self.dying, Relaxed);
        if let Some(older) = self.dying.checked_sub(1) {
            table.entry(older).newer.store(id + 1, Relaxed);
        }
        self.dying = id + 1;
    }

    /// It has been buried.
    pub(super) fn remove_dying<H>(&mut self, table: &Table<H>, id: Id) {
        let entry = table.entry(id);
        let (older, newer) = (entry.older.load(Relaxed), entry.newer.load(Relaxed));
        match newer.checked_sub(1) {
            Some(newer) => table.entry(newer).older.store(older, Relaxed),
            None => self.dying = older,
        }
        if let Some(older) = older.checked_sub(1) {
            table.entry(older).newer.store(newer, Relaxed);
        }
    }

    /// One that overlaps `range` and is still registered, as it is now.
    pub(super) fn dying_in<H>(
        &self,
        table: &Table<H>,
        range: Range,
        concerns: impl Fn(State) -> bool,
    ) -> Option<(Id, State)> {
        let mut next = self.dying;
        std::iter::from_fn(|| {
            let id = next.checked_sub(1)?;
            next = table.entry(id).older.load(Relaxed);
            Some(id)
        })
        .find_map(|id| {
            let entry = table.entry(id);
            // Once: it may be buried at any moment.
            let state = entry.state();
            let is_there = entry.range().is_some_and(|it| it.overlaps(&range));
            (is_there && state.phase() == Phase::Dead && concerns(state)).then_some((id, state))
        })
    }
}
