//! A request: a hit, or a miss that registers.

use std::panic::{AssertUnwindSafe, catch_unwind};

use mmu_notifier::Range;

use super::books::Books;
use super::error::GetError;
use super::homes::{Home, Pin};
use super::mappings;
use super::misses::{Claim, Other};
use super::registrar::{Access, RegisterError, Registrar};
use super::registration::Registration;
use super::store::Store;
use super::table::{Id, State, Victims};
use crate::sync::{Backoff, Ordering, fence_after_rmw};

/// How a request goes on.
enum Plan<'s, R: Registrar> {
    /// It is there.
    Found(Registration<'s, R>),
    /// Somebody is registering it.
    Join(Other),
    /// To be registered, into this entry.
    Register(Miss<'s>),
    /// Room is being made.
    MakeRoom,
    Fail(GetError),
}

/// What is going to be registered.
struct Miss<'s> {
    id: Id,
    range: Range,
    access: Access,
    claim: Claim<'s>,
}

/// A pin of an entry, or [none](super::homes::Homes::no_pin) if the caller is counted.
pub(super) type Hit<'s> = (&'s Pin, Id);

/// Why nothing came of a registration.
enum Undone {
    /// A change came.
    Stale,
    /// There is no room in the index.
    NoRoom,
}

impl<R: Registrar> Store<R> {
    /// Looks whether it is what this thread found the last time. `None` means nothing.
    #[inline(always)]
    pub(super) fn hit_again(&self, asked: Range, access: Access) -> Option<Hit<'_>> {
        let home = self.homes.mine();
        if !home.is_open() {
            return None;
        }
        // Relaxed: a hint, like what the index says.
        self.pin(home, home.last.load(Ordering::Relaxed), asked, access)
    }

    /// Looks into the index, without a lock. `None` means nothing.
    // Not in line, and what it returns fits into two registers: by way of memory it would take twice as long.
    #[inline(never)]
    pub(super) fn hit(&self, asked: Range, access: Access) -> Option<Hit<'_>> {
        let home = self.homes.mine();
        if !home.is_open() {
            return None;
        }
        self.index.find_map(asked, |id| {
            let hit = self.pin(home, id, asked, access)?;
            home.last.store(id, Ordering::Relaxed);
            Some(hit)
        })
    }

    /// Pins an entry, if it is good for what is asked.
    #[inline(always)]
    fn pin<'s>(&'s self, home: &'s Home, id: Id, asked: Range, access: Access) -> Option<Hit<'s>> {
        let entry = self.table.get(id)?;
        let state = entry.state();
        // Of the same life as the state if that is still the same when it is pinned.
        let contains = entry.start() <= asked.start() && asked.end() <= entry.end();
        if !(contains && state.is_live() && state.access().includes(access)) {
            return None;
        }
        let Some(pin) = home.pin(id) else { return self.count(id, state) };
        // See `homes`: either this sees the death, or who kills the entry sees the pin.
        fence_after_rmw();
        if !entry.state().is_still(state) {
            self.unpin(pin);
            return None;
        }
        pin.count();
        entry.visit();
        Some((pin, id))
    }

    #[cold]
    fn unpin(&self, pin: &Pin) {
        if let Some(id) = pin.unpin() {
            self.let_go(id);
        }
    }

    /// The home is full: one more user who counts in the entry.
    #[cold]
    fn count(&self, id: Id, state: State) -> Option<Hit<'_>> {
        self.table.entry(id).add_user(state).then(|| {
            self.counters().found.add_one();
            (self.homes.no_pin(), id)
        })
    }

    /// Looks under the lock, and registers.
    #[cold]
    pub(super) fn miss(&self, asked: Range, access: Access) -> Result<Registration<'_, R>, GetError> {
        let range = self.align(asked)?;
        if !self.homes.mine().is_open() {
            self.homes.open(self.frames.is_none());
        }
        let mut attempts = 0;
        // Whether more than was asked for may be registered.
        let mut may_widen = true;
        let mut is_counted = false;
        let mut backoff = Backoff::default();
        loop {
            let plan =
                self.with_books(|books| self.plan(books, asked, range, access, may_widen, &mut is_counted));
            let miss = match plan {
                Plan::Found(registration) => return Ok(registration),
                Plan::Fail(error) => return Err(error),
                Plan::Join(other) => {
                    self.counters().joined.add_one();
                    self.misses.wait_for(&other);
                    continue;
                }
                Plan::MakeRoom => {
                    if self.bury() == 0 {
                        backoff.wait();
                    }
                    continue;
                }
                Plan::Register(miss) => miss,
            };
            // What others have left behind takes up what this one may need.
            self.bury();
            let (id, range, access) = (miss.id, miss.range, miss.access);
            if !self.space.wait_for_changes(range) {
                self.give_back(&miss);
                return Err(GetError::Changing { range });
            }
            let register = || self.registrar.register(range, access);
            let handle = match catch_unwind(AssertUnwindSafe(register)) {
                Ok(Ok(handle)) => handle,
                Ok(Err(error)) => {
                    self.counters().failed.add_one();
                    self.give_back(&miss);
                    drop(miss);
                    if let RegisterError::Exhausted(_) = error
                        && self.make_room(range.len())
                    {
                        continue;
                    }
                    if may_widen && range != self.align(asked)? {
                        may_widen = false;
                        continue;
                    }
                    return Err(mappings::why(range, access, error));
                }
                Err(panic) => {
                    self.counters().panics.add_one();
                    self.give_back(&miss);
                    return Err(GetError::Panicked { range, message: message_of(&*panic) });
                }
            };
            if let Some(frames) = &self.frames {
                frames.note(id, range);
            }
            match self.with_books(|books| self.commit(books, &miss, handle)) {
                Ok(registration) => {
                    self.bury();
                    return Ok(registration);
                }
                Err(undone) => {
                    drop(miss);
                    self.bury();
                    attempts += 1;
                    match undone {
                        Undone::Stale if attempts < self.options.attempts => {
                            self.counters().retries.add_one()
                        }
                        Undone::Stale => return Err(GetError::Unsettled { range, attempts }),
                        Undone::NoRoom => {
                            return Err(GetError::Full { range, entries: self.options.entries });
                        }
                    }
                }
            }
        }
    }

    fn plan<'s>(
        &'s self,
        books: &mut Books,
        asked: Range,
        range: Range,
        access: Access,
        may_widen: bool,
        is_counted: &mut bool,
    ) -> Plan<'s, R> {
        let mut registers = (range, access);
        if !self.index.is_free(&self.table, asked)
            && let Some(id) = self.index.find(asked.start())
        {
            if let Some((pin, id)) = self.pin(self.homes.mine(), id, asked, access) {
                return Plan::Found(Registration::new(self, id, pin));
            }
            // It is there, but not good for that access: all of it is going to be.
            let entry = self.table.entry(id);
            let (state, other) = (entry.state(), entry.range());
            if may_widen
                && state.is_live()
                && let Some(other) = other.filter(|other| other.contains(&range))
            {
                registers = (other, state.access().with(access));
            }
        }
        let (range, access) = (registers.0, self.registrar.grants(registers.1).with(registers.1));
        if self.space.is_released() {
            return Plan::Fail(GetError::Released { range });
        }
        if let Some(other) = self.misses.other(range, access) {
            return Plan::Join(other);
        }
        let is_too_much = |books: &Books| books.bytes.saturating_add(range.len()) > self.options.bytes;
        let is_full = |books: &Books| books.entries >= self.table.len();
        if is_too_much(books) || is_full(books) {
            let missing = books.bytes.saturating_add(range.len()).saturating_sub(self.options.bytes);
            let is_hopeless = range.len() > self.options.bytes;
            let evicted = if is_hopeless { 0 } else { self.evict(books, 1, missing) };
            // What is being deregistered already makes room, too.
            let is_coming = || books.dying_in(&self.table, Range::EVERYTHING, |state| state.users() == 0);
            return match evicted > 0 || !is_hopeless && is_coming().is_some() {
                true => Plan::MakeRoom,
                false if is_full(books) => Plan::Fail(GetError::Full { range, entries: self.table.len() }),
                false => {
                    let (in_use, limit) = (books.bytes, self.options.bytes);
                    Plan::Fail(GetError::TooMuch { range, in_use, limit })
                }
            };
        }
        match books.take(&self.table, range.len()) {
            Some(id) => {
                books.misses += u64::from(!std::mem::replace(is_counted, true));
                Plan::Register(Miss { id, range, access, claim: self.misses.claim(range, access) })
            }
            None => Plan::Fail(GetError::Full { range, entries: self.table.len() }),
        }
    }

    /// Puts what has been registered into the index, unless a change has come meanwhile.
    fn commit(
        &self,
        books: &mut Books,
        miss: &Miss<'_>,
        handle: R::Handle,
    ) -> Result<Registration<'_, R>, Undone> {
        let (id, range) = (miss.id, miss.range);
        books.registered += 1;
        self.supersede(books, range);
        let entry = self.table.entry(id);
        let new = entry.fill(range, miss.access, handle);
        let inserted = self.index.insert(&mut books.writer, range, id);
        // From here on a change kills it, or else has marked the claim before this looks.
        if inserted.is_ok() && !miss.claim.is_stale() && entry.bring_to_life(new) {
            return Ok(Registration::new(self, id, self.homes.no_pin()));
        }
        let victims = Victims::default();
        // If it is dead already, a change has done that.
        if self.kill_one(id, &victims) {
            self.lay_out(victims, &super::counters::Counter::default());
        }
        self.settle(books);
        Err(if inserted.is_ok() { Undone::Stale } else { Undone::NoRoom })
    }

    /// Nothing was registered: the entry is free again.
    fn give_back(&self, miss: &Miss<'_>) {
        self.with_books(|books| books.give(&self.table, miss.id, miss.range.len()));
    }

    /// Something is used up that other registrations may have: ends those of at least so many bytes that nobody uses.
    /// Whether there were any.
    fn make_room(&self, bytes: usize) -> bool {
        let evicted = self.with_books(|books| self.evict(books, 1, bytes));
        self.bury() > 0 || evicted > 0
    }

    /// What is registered for a request.
    fn align(&self, asked: Range) -> Result<Range, GetError> {
        let start = asked.start() & !(self.alignment - 1);
        let end = asked.end().checked_next_multiple_of(self.alignment);
        let aligned = end.and_then(|end| Range::new(start, end).ok());
        let range = aligned.ok_or(GetError::NotMapped { range: asked, hole: asked.start() })?;
        if range.len() > self.max_len {
            return Err(GetError::TooLong { range, max: self.max_len });
        }
        Ok(range)
    }
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
