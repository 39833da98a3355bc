//! Deregistering what is dead and not used any more, and waiting for what is.

// UNSAFETY: hands out and takes the handles of entries, to whom they belong.
#![expect(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use mmu_notifier::{Change, Range, WouldBlock};

use super::options::{Overdue, WhenOverdue};
use super::registrar::{Registrar, Wait};
use super::store::Store;
use super::table::{Chain, Id, Phase, State};
use crate::sync::{Backoff, Ordering};

impl<R: Registrar> Store<R> {
    /// Deregisters everything that is ripe. May wait. How many that were.
    pub(super) fn bury(&self) -> usize {
        let mut count = 0;
        for id in self.written.graves.take(&self.table) {
            let (range, handle) = self.exhume(id);
            let deregister = || self.registrar.deregister(range, handle);
            if catch_unwind(AssertUnwindSafe(deregister)).is_err() {
                self.counters().panics.add_one();
            }
            self.buried(id, range);
            count += 1;
        }
        count
    }

    /// Deregisters what is ripe and can be without waiting.
    pub(super) fn try_bury(&self) {
        let left = Chain::default();
        for id in self.written.graves.take(&self.table) {
            let (range, handle) = self.exhume(id);
            let deregister = || self.registrar.try_deregister(range, handle);
            match catch_unwind(AssertUnwindSafe(deregister)) {
                Ok(Err(handle)) => {
                    // SAFETY: just taken out, by the only one who has it.
                    unsafe { self.table.entry(id).put_handle_back(handle) };
                    left.push(&self.table, id);
                    continue;
                }
                Ok(Ok(())) => {}
                Err(_) => self.counters().panics.add_one(),
            }
            self.buried(id, range);
        }
        for id in left.take(&self.table) {
            self.written.graves.push(&self.table, id);
        }
    }

    fn buried(&self, id: Id, range: Range) {
        // Release pairs with the Acquire in `unreleased`: a change that finds nothing to wait for is behind this.
        self.written.unreleased.fetch_sub(range.len(), Ordering::Release);
        self.table.entry(id).bury();
        self.written.buried.push(&self.table, id);
    }

    /// A change that may wait begins: deregisters what it can, and waits for the rest, as far as the registrar wants that.
    pub(super) fn bury_before(&self, change: &Change) {
        if self.is_interrupted() {
            return;
        }
        let range = change.range();
        // The common case: what this change has killed is in the graves by now.
        self.bury();
        if self.unreleased() == 0 {
            return;
        }
        // What somebody else is deregistering right now is waited for in any case.
        let concerns = |state: State| self.wait == Wait::UntilUnused || state.users() == 0;
        let (mut began, mut deadline) = (None, self.options.patience);
        let mut backoff = Backoff::default();
        loop {
            let next = self.with_books(|books| {
                if let Some(id) = self.being_killed(range) {
                    return Some((id, None));
                }
                let (id, state) = books.dying_in(&self.table, range, concerns)?;
                Some((id, Some((state, self.table.entry(id).add_user(state)))))
            });
            self.bury();
            let Some((id, dying)) = next else { return };
            let is_there = |state| self.table.entry(id).state().is_still(state);
            if let Some((_, true)) = dying {
                self.hurry(id);
                if self.remove_user(id) {
                    self.bury();
                }
            }
            let began = *began.get_or_insert_with(|| {
                self.counters().waited.add_one();
                Instant::now()
            });
            while dying.is_none_or(|(state, _)| is_there(state)) {
                if began.elapsed() >= deadline {
                    if self.goes_on(change, id, began.elapsed()) {
                        return;
                    }
                    deadline += self.options.patience.max(Duration::from_millis(1));
                    // Once more from the beginning: what was begun meanwhile is called off, too.
                    break;
                }
                backoff.wait();
                self.bury();
                if dying.is_none() {
                    break;
                }
            }
        }
    }

    /// What another change has just killed there and is about to hand on. Under the lock.
    fn being_killed(&self, range: Range) -> Option<Id> {
        let mut killed = None;
        let visited = self.index.visit(&self.table, range, |id| {
            let entry = self.table.entry(id);
            let is_hit = entry.range().is_some_and(|it| it.overlaps(&range));
            if is_hit && entry.state().phase() == Phase::Dead {
                killed = Some(id);
            }
        });
        debug_assert!(visited.is_ok(), "nobody else changes the index");
        killed
    }

    /// A change has waited too long; whether it goes on all the same.
    fn goes_on(&self, change: &Change, id: Id, waited: Duration) -> bool {
        let entry = self.table.entry(id);
        let then = match self.options.when_overdue {
            WhenOverdue::Quarantine if self.unreleased() > self.options.unreleased => WhenOverdue::Wait,
            then => then,
        };
        self.counters().overdue.add_one();
        let Some(registered) = entry.range() else { return false };
        let users = entry.state().users();
        let overdue = Overdue { change: *change, registered, users, waited, then };
        let report = || (self.options.on_overdue)(&overdue);
        if catch_unwind(AssertUnwindSafe(report)).is_err() {
            self.counters().panics.add_one();
        }
        match then {
            WhenOverdue::Wait => false,
            WhenOverdue::Quarantine | WhenOverdue::Report => true,
            WhenOverdue::Abort => std::process::abort(),
        }
    }

    /// A change that must not wait begins.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`] if the registrar wants it to wait for something that is in use, or too much is not yet deregistered.
    pub(super) fn try_bury_before(&self, change: &Change) -> Result<(), WouldBlock> {
        self.try_bury();
        let written = &self.written;
        let is_too_much = self.unreleased() > self.options.unreleased && !written.graves.is_empty();
        let must_wait = || {
            if self.wait == Wait::ForNothing {
                return false;
            }
            let Some(mut books) = written.books.try_lock(self.thread()) else { return true };
            self.settle(&mut books);
            if self.being_killed(change.range()).is_some() {
                return true;
            }
            books.dying_in(&self.table, change.range(), |state| state.users() > 0).is_some()
        };
        if is_too_much || must_wait() {
            self.counters().refused.add_one();
            self.try_settle();
            return Err(WouldBlock);
        }
        self.try_settle();
        Ok(())
    }

    /// Deregisters what is dead and forgotten by its users, of whom there are none any more.
    pub(super) fn bury_forgotten(&self) {
        for id in self.table.ever_used() {
            let entry = self.table.entry(id);
            while entry.state().phase() == Phase::Dead && entry.has_users() {
                self.remove_user(id);
            }
        }
        self.bury();
    }

    /// Tells the registrar that a change waits for this entry, of which the caller is a user.
    fn hurry(&self, id: Id) {
        let entry = self.table.entry(id);
        let Some(range) = entry.range() else { return };
        // SAFETY: a user.
        let hurry = || self.registrar.hurry(range, unsafe { entry.handle() });
        if catch_unwind(AssertUnwindSafe(hurry)).is_err() {
            self.counters().panics.add_one();
        }
    }

    /// What is to be deregistered: the entry is one from the graves, which the caller has taken.
    fn exhume(&self, id: Id) -> (Range, R::Handle) {
        let entry = self.table.entry(id);
        let range = entry.range().expect("an entry that was filled has a range");
        // SAFETY: whoever takes the last user of a dead entry puts it into the graves, once; who takes it from there is
        // the only one to have it.
        (range, unsafe { entry.take_handle() })
    }
}
