//! Taking entries out of the cache: because their memory changes, to make room, or because there is something better.
//!
//! To kill is one exchange of a word, so that a change can do it wherever it comes from. What remains to be done - taking
//! the dead out of the index, and burying those that nobody uses - can wait for the lock and for a better moment.

use mmu_notifier::{Event, Range};

use super::books::Books;
use super::counters::Counter;
use super::registrar::Registrar;
use super::store::Store;
use super::table::{Id, State, Victims};
use crate::sync::{Ordering, fence};

/// How often a change tries to read the index at one moment, before it looks through the table instead.
const TRIES: usize = if cfg!(mmu_loom) { 1 } else { 64 };

impl<R: Registrar> Store<R> {
    /// A change of `range` begins: nobody finds anything there any more, and what is being registered there is stale.
    /// Takes no lock and waits for nobody; O(log n) if there is nothing.
    #[inline]
    pub(super) fn kill_in(&self, range: Range, event: Event) {
        self.misses.mark(range);
        let victims = Victims::default();
        let kill = |id| self.kill(id, range, &victims);
        if self.index.visit(&self.table, range, kill).is_err() {
            self.kill_beside_a_writer(range, kill);
        }
        if victims.count() > 0 {
            self.lay_out(victims, &self.counters().invalidated[event as usize]);
            self.try_settle();
        }
    }

    /// The same while the index is being changed. Its writer may have been interrupted for long, by this very thread even.
    #[cold]
    fn kill_beside_a_writer(&self, range: Range, kill: impl Fn(Id)) {
        for _ in 0..TRIES {
            std::hint::spin_loop();
            if self.index.visit(&self.table, range, &kill).is_ok() {
                return;
            }
        }
        // Behind the fence there is no new entry that is not seen: whoever makes one sees the mark, see `misses`.
        fence(Ordering::SeqCst);
        self.table.ever_used().for_each(kill);
    }

    /// Kills an entry if it overlaps `range`.
    fn kill(&self, id: Id, range: Range, victims: &Victims) {
        let Some(entry) = self.table.get(id) else { return };
        let state = entry.state();
        // If the life has changed meanwhile, so has the state, and it is not killed: then it is one that was not there.
        if state.can_die()
            && let Some(registered) = entry.range().filter(|it| it.overlaps(&range))
        {
            self.kill_now(id, state, registered.len(), victims);
        }
    }

    /// Whether it was this that killed it.
    fn kill_now(&self, id: Id, state: State, bytes: usize, victims: &Victims) -> bool {
        // Before the death, so that another change that sees the death sees that there is something to bury. Release
        // pairs with the Acquire in `unreleased`.
        self.written.unreleased.fetch_add(bytes, Ordering::Release);
        let is_killed = self.table.entry(id).kill(state);
        match is_killed {
            true => victims.push(&self.table, id),
            false => _ = self.written.unreleased.fetch_sub(bytes, Ordering::Release),
        }
        is_killed
    }

    /// Kills an entry whatever it is. Whether it was alive.
    pub(super) fn kill_one(&self, id: Id, victims: &Victims) -> bool {
        let entry = self.table.entry(id);
        let state = entry.state();
        state.can_die() && self.kill_now(id, state, entry.end() - entry.start(), victims)
    }

    /// Marks the pins of those that the calling thread has just killed, and leaves them to whoever has the lock next.
    pub(super) fn lay_out(&self, victims: Victims, counter: &Counter) {
        self.homes.mark(&self.table, |id| self.written.graves.push(&self.table, id));
        self.counters().most_unreleased.raise_to(self.unreleased());
        counter.add(victims.count());
        victims.push_to(&self.written.corpses, &self.table);
    }

    /// Kills what contains `range` or is contained in it, and takes it out of the index, where no entry may contain another.
    pub(super) fn supersede(&self, books: &mut Books, range: Range) {
        if self.index.is_free(&self.table, range) {
            return;
        }
        let victims = Victims::default();
        loop {
            let mut found = [None; 16];
            let mut count = 0;
            let visited = self.index.visit(&self.table, range, |id| {
                let other = self.table.entry(id).range();
                let is_in_the_way =
                    other.is_some_and(|other| other.contains(&range) || range.contains(&other));
                if is_in_the_way && count < found.len() {
                    found[count] = Some(id);
                    count += 1;
                }
            });
            debug_assert!(visited.is_ok(), "nobody else changes the index");
            for id in found.into_iter().flatten() {
                self.kill_one(id, &victims);
                if let Some(range) = self.table.entry(id).range() {
                    self.index.remove(&mut books.writer, range, id);
                }
            }
            if count == 0 {
                break;
            }
        }
        if victims.count() > 0 {
            self.lay_out(victims, &self.counters().superseded);
        }
    }

    /// Kills entries that nobody uses and that were not used for long, until at least so many and so many bytes are dead, or
    /// there are no more. How many are.
    ///
    /// The clock: who was used since its hand came by the last time is spared once.
    pub(super) fn evict(&self, books: &mut Books, entries: usize, bytes: usize) -> usize {
        let victims = Victims::default();
        let (mut killed, mut freed) = (0, 0);
        let used = self.table.ever_used().end;
        for _ in 0..2 * u64::from(used) {
            if killed >= entries.max(1) && freed >= bytes {
                break;
            }
            let id = books.hand;
            books.hand = if id + 1 < used { id + 1 } else { 0 };
            let entry = self.table.entry(id);
            let is_idle = entry.state().is_live() && !entry.has_users() && !self.homes.is_pinned(id);
            if is_idle && !entry.was_visited() && self.kill_one(id, &victims) {
                killed += 1;
                freed += entry.end() - entry.start();
            }
        }
        if killed > 0 {
            self.lay_out(victims, &self.counters().evicted);
            self.settle(books);
        }
        killed
    }
}
