//! A sanitizer for registrations: memory that the program has registered with the kernel, and what becomes of it.
//!
//! Only where a session asks for it ([`session::check`](crate::session::check)): then the call sites of a few more calls
//! are rewritten ([`calls::NUMBERS`]), what they register is kept in a table ([`table`]), and behind every memory
//! call that touches what is in the table, the pages are compared ([`judge`]). Elsewhere none of this costs anything but
//! a look at a pointer that is null.
//!
//! | file | what |
//! | --- | --- |
//! | `calls`, `books` | which calls register what; noting it |
//! | `table`, `frames`, `stack` | what is registered; its page frames; who registered it |
//! | `owner` | whether a ring, a machine or a device is still open |
//! | `judge`, `pending` | what is wrong after a change; what only time tells |
//!
//! The calls that register are made here, not by the entry code: they are short, and nobody is cancelled in them. The
//! table has one lock; signals wait while it is held, so that its holder comes to an end.

// UNSAFETY: makes the program's calls, and keeps the table behind its lock.
#![expect(unsafe_code)]

mod books;
mod calls;
mod frames;
mod judge;
mod owner;
mod pending;
mod stack;
mod table;

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mmu_notifier::{Event, Range};

use self::books::Books;
use self::calls::IO_URING_ENTER;
use self::judge::{Found, Made, judge};
use self::owner::{Alive, Rings};
use self::pending::{Changer, Outcome};
use self::stack::Snapshot;
use self::table::Table;
use crate::Syscall;
use crate::entry::{Frame, Site};
use crate::gate::{self, safe};
use crate::log::Log;
use crate::session::check::{Area, FINDINGS, Finding, Registered, Verdict};

pub(crate) use self::calls::NUMBERS;

/// What is registered by this process, and where findings go.
pub(crate) struct Check {
    area: &'static Area,
    /// What all registrations lie between; nothing: `high` is 0. Written under the lock, read as a hint: who registers and
    /// who changes are ordered by the program, or it is a race of the program's.
    low: AtomicUsize,
    high: AtomicUsize,
    /// Some are of before this process was forked, and none of them was found in use yet.
    inherited: AtomicBool,
    busy: AtomicBool,
    books: UnsafeCell<Books>,
}

/// Where a change was made.
enum Where<'a> {
    Here(&'a Frame, &'a Site),
    Then(Option<&'a Snapshot>),
}

// SAFETY: `books` is reached only through `Check::with`, by one thread at a time.
unsafe impl Sync for Check {}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check")
    }
}

/// Whether the call sites of this number matter to who checks.
pub(crate) fn is_wanted(number: usize) -> bool {
    NUMBERS.contains(&number)
}

impl Check {
    /// For a session that asks for it.
    pub(crate) fn new(log: &Log) -> Option<Check> {
        let area = log.check()?;
        let Some(table) = Table::new() else {
            area.unchecked.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        if !frames::visible() {
            area.blind.fetch_add(1, Ordering::Relaxed);
        }
        Some(Check {
            area,
            low: AtomicUsize::new(0),
            high: AtomicUsize::new(0),
            inherited: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            books: UnsafeCell::new(Books::new(table)),
        })
    }

    /// Whether a call that is no memory call has to come to [`Check::call`].
    #[inline(always)]
    pub(crate) fn concerns(&self, number: usize, second: usize) -> bool {
        calls::concerns(number, second)
            || number == IO_URING_ENTER && second != 0 && self.inherited.load(Ordering::Relaxed)
    }

    /// Makes a call that [concerns](Check::concerns) registrations, or has it made.
    #[inline(never)]
    pub(crate) fn call(&self, log: &Log, frame: &mut Frame, site: &Site) {
        let (number, args) = (frame.rax, frame.args());
        if number == IO_URING_ENTER {
            frame.go = site.plain;
            self.entered(log, &args, frame, site);
            return;
        }
        frame.go = site.back;
        // SAFETY: the program's own call; all that come here return once.
        let result = unsafe { gate::call(number, &args) };
        frame.rax = result.cast_unsigned();
        if !(-4095..0).contains(&result) {
            self.with(log, |books| books.registered(self.area, number, &args, frame, site));
        }
    }

    /// Behind a memory call that has succeeded.
    #[inline(never)]
    pub(crate) fn changed(
        &self,
        log: &Log,
        frame: &Frame,
        site: &Site,
        call: Syscall,
        changes: &[(Range, Event)],
    ) {
        let (low, high) = (self.low.load(Ordering::Relaxed), self.high.load(Ordering::Relaxed));
        let touches = |range: &Range| range.start() < high && low < range.end();
        let args = frame.args();
        let made = Made { call, args: &args, result: frame.rax, changes };
        if !changes.iter().any(|(range, _)| touches(range)) && !made.mapped().is_some_and(|m| touches(&m)) {
            return;
        }
        self.with(log, |books| {
            let Books { table, rings, lock_future } = books;
            let mut alive = Alive::new(rings);
            let changer = Changer::this(call.number(), frame);
            let (met, compared) = judge(
                table,
                &made,
                *lock_future,
                |entry| alive.is(entry),
                |table, found| match found.pending {
                    Some(pending) => table.found(pending, found, &changer, frame, site),
                    None => self.write(log, table, found, &changer, Where::Here(frame, site), false),
                },
            );
            self.area.changes.fetch_add(u64::from(met > 0), Ordering::Relaxed);
            self.area.compared.fetch_add(compared.pages, Ordering::Relaxed);
        });
    }

    /// This process is about to end, or to become another program: what was never taken back?
    #[inline(never)]
    pub(crate) fn ending(&self, log: &Log) {
        if self.high.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.with(log, |books| {
            let Books { table, rings, .. } = books;
            let mut alive = Alive::new(rings);
            for place in table.places() {
                let entry = *table.entry(place);
                if table.pending(place).is_some() {
                    let outcome = if alive.is(&entry) { Outcome::Mistake } else { Outcome::TakenBack };
                    table.settle(place, outcome);
                }
            }
        });
    }

    /// In a forked child, by its only thread: what its parent has registered is of the parent's pages.
    pub(crate) fn forked(&self, log: &Log) {
        // Nobody else is here; who held the lock in the parent is not.
        self.busy.store(false, Ordering::Relaxed);
        let inherited = self.with(log, |books| {
            books.table.forget_pending();
            let mut inherited = false;
            for place in books.table.places() {
                match books.table.entry(place).kind() {
                    // A ring goes on in the child; machines and devices do not, nor do locks.
                    Some(Registered::Buffer) => {
                        books.table.inherit(place);
                        inherited = true;
                    }
                    Some(_) => books.table.remove(place),
                    None => {}
                }
            }
            books.rings = Rings::NONE;
            books.lock_future = false;
            inherited
        });
        self.inherited.store(inherited == Some(true), Ordering::Relaxed);
    }

    /// A child submits to a ring: are the buffers of that ring its parent's?
    fn entered(&self, log: &Log, args: &[usize; 6], frame: &Frame, site: &Site) {
        const REGISTERED_RING: usize = 1 << 4;
        if args[3] & REGISTERED_RING != 0 {
            // Indices of rings are not inherited.
            return;
        }
        let descriptor = args[0] as i32;
        let Some(ring) = owner::of_descriptor(descriptor) else { return };
        self.with(log, |books| {
            let table = &mut *books.table;
            let mut found: Option<Found> = None;
            let mut others = false;
            for place in table.places() {
                let entry = *table.entry(place);
                if !entry.inherited || entry.kind().is_none() {
                    continue;
                }
                if entry.owner != ring {
                    others = true;
                    continue;
                }
                let Some(pages) = entry.pages() else { continue };
                let Some((start, words)) = table.words(place, &pages) else { continue };
                let compared = frames::compare(start, words, true);
                if compared.other + compared.empty == 0 {
                    // Shared memory: the child's pages are the parent's.
                    continue;
                }
                let (verdict, pending, from, bytes) = (Verdict::Stale, None, entry.start, entry.len as u64);
                match &mut found {
                    Some(found) => {
                        found.count += 1;
                        found.bytes += bytes;
                        found.compared.add(&compared);
                    }
                    None => found = Some(Found { verdict, pending, entry, count: 1, from, bytes, compared }),
                }
            }
            if let Some(found) = found {
                let changer = Changer::this(IO_URING_ENTER, frame);
                self.write(log, table, &found, &changer, Where::Here(frame, site), false);
            }
            // Once is enough: what this process does to its memory is nothing to them.
            books.remove(|entry| entry.inherited && entry.owner == ring);
            self.inherited.store(others, Ordering::Relaxed);
        });
    }

    /// Writes a finding for whoever watches.
    fn write(
        &self,
        log: &Log,
        table: &Table,
        found: &Found,
        changer: &Changer,
        at: Where<'_>,
        taken_back: bool,
    ) {
        let Found { verdict, entry, count, from, bytes, compared, .. } = found;
        let free = (0..FINDINGS).find(|&index| {
            // Acquire pairs with the Release of the reader, who is done with it.
            self.area.states[index].compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
        });
        let Some(index) = free else {
            self.area.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let finding: &Finding = &self.area.findings[index];
        let small = [
            (&finding.verdict, *verdict as u32),
            (&finding.kind, entry.kind().map_or(0, |kind| kind as u32)),
            (&finding.process, log.process_index() as u32),
            (&finding.count, *count),
            (&finding.descriptor, entry.descriptor as u32),
            (&finding.registered_thread, entry.thread),
            (&finding.changed_thread, changer.thread),
            (&finding.inherited, entry.inherited.into()),
            (&finding.taken_back, taken_back.into()),
        ];
        for (to, value) in small {
            to.store(value, Ordering::Relaxed);
        }
        let large = [
            (&finding.index, entry.index),
            (&finding.start, entry.start as u64),
            (&finding.len, entry.len as u64),
            (&finding.from, *from as u64),
            (&finding.changed, *bytes),
            (&finding.pages, compared.pages),
            (&finding.other, compared.other),
            (&finding.empty, compared.empty),
            (&finding.unmapped, compared.unmapped),
            (&finding.registered_time, entry.time),
            (&finding.changed_time, changer.time),
            (&finding.registering, entry.registering.into()),
            (&finding.call, changer.call as u64),
        ];
        for (to, value) in large {
            to.store(value, Ordering::Relaxed);
        }
        for (to, value) in finding.args.iter().zip(changer.args) {
            to.store(value as u64, Ordering::Relaxed);
        }
        match table.stack(entry) {
            Some(snapshot) => snapshot.put(&finding.registered_at),
            None => stack::put_none(&finding.registered_at),
        }
        match at {
            Where::Here(frame, site) => stack::put(frame, site, &finding.changed_at),
            Where::Then(Some(snapshot)) => snapshot.put(&finding.changed_at),
            Where::Then(None) => stack::put_none(&finding.changed_at),
        }
        // Release pairs with the Acquire of the reader: the finding is complete.
        self.area.states[index].store(2, Ordering::Release);
    }

    /// Runs `work` with the books. `None`, counted, if somebody has them for too long.
    fn with<R>(&self, log: &Log, work: impl FnOnce(&mut Books) -> R) -> Option<R> {
        const TRIES: usize = 1_000_000;
        let signals = safe::block_signals();
        let mut tries = 0;
        // Acquire pairs with the Release below.
        while self.busy.swap(true, Ordering::Acquire) {
            tries += 1;
            if tries == TRIES {
                self.area.missed.fetch_add(1, Ordering::Relaxed);
                safe::set_signals(signals);
                return None;
            }
            safe::sched_yield();
        }
        // SAFETY: `busy` keeps everybody else out until the store below.
        let books = unsafe { &mut *self.books.get() };
        let result = work(books);
        books.table.tell_pending(|table, found, changer, stack, taken_back| {
            self.write(log, table, found, changer, Where::Then(stack), taken_back);
        });
        let (low, high) = books.table.hull();
        self.low.store(low, Ordering::Relaxed);
        self.high.store(high, Ordering::Relaxed);
        self.busy.store(false, Ordering::Release);
        safe::set_signals(signals);
        Some(result)
    }
}
