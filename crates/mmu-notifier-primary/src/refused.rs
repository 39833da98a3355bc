//! What becomes of a call whose change somebody has refused.
//!
//! | call | what it is told |
//! | --- | --- |
//! | `munmap` | that it is done; the pages stay until they can be unmapped ([`crate::quarantine`]) |
//! | `mprotect` that leaves all rights to data | what the kernel says: it is made at once, and announced later |
//! | `madvise` that only allows something (`MADV_FREE`, `MADV_PAGEOUT`) | that it is done; nothing happens |
//! | any other | asked again a few times, with short breaks; then it fails with an error that its manual page allows |
//!
//! Never does it wait for whoever has refused: it may hold a lock that this one needs.
//!
//! A call that touches what is in quarantine makes that change first: at once if it may wait; else it asks a few times, and
//! then it fails as if nothing were mapped there (as the program was told), or, if it only has a wish where to be, gets
//! another place.

// UNSAFETY: makes the system calls that were put off.
#![expect(unsafe_code)]

use core::sync::atomic::Ordering;

use mmu_notifier::{Blocking, Caller, Change, Event, PAGE_SIZE, Range, WouldBlock};

use crate::Syscall;
use crate::bracket::{self, Opened, count};
use crate::entry::{Frame, Site};
use crate::gate;
use crate::gate::safe;
use crate::hook::return_address;
use crate::hot;
use crate::log;
use crate::primary::Primary;
use crate::quarantine::Waiting;
use crate::session::PutOff;

/// How often somebody who refuses is asked, as the kernel's OOM reaper does.
pub(crate) const ATTEMPTS: u32 = 10;

/// Breaks between attempts.
#[derive(Debug)]
pub(crate) struct Attempts {
    left: u32,
    blocking: Blocking,
}

impl Attempts {
    pub(crate) fn new(blocking: Blocking) -> Attempts {
        Attempts { left: ATTEMPTS, blocking }
    }

    /// Only one, if it is refused.
    pub(crate) fn one(blocking: Blocking) -> Attempts {
        Attempts { left: 1, blocking }
    }

    /// Whether to ask once more; takes a break before it.
    #[cold]
    pub(crate) fn again(&mut self, primary: &Primary) -> bool {
        if self.blocking == Blocking::Allowed {
            // Cannot be refused.
            return true;
        }
        if primary.space.is_full() {
            // Nobody has refused. Who is on record is in a system call.
            safe::yield_processor();
            return true;
        }
        self.left -= 1;
        if self.left == 0 {
            return false;
        }
        match ATTEMPTS - self.left {
            1 => {}
            2..5 => safe::yield_processor(),
            _ => safe::sleep(100_000),
        }
        true
    }
}

/// How often a call was refused, and asked for again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Refusals {
    pub(crate) refused: u64,
    pub(crate) again: u64,
}

/// What a call gets that was not made.
#[derive(Debug)]
pub(crate) struct NotMade {
    /// As the kernel returns it.
    pub(crate) result: isize,
}

/// The one change of a common call was refused, once: starts it all the same, or says what the call is told.
#[cold]
#[inline(never)]
pub(crate) fn one(
    primary: &Primary,
    caller: &Caller,
    call: Syscall,
    args: &[usize; 6],
    (range, event): (Range, Event),
    refusals: &mut Refusals,
) -> Result<Opened, NotMade> {
    refusals.refused += 1;
    if call == Syscall::Munmap && !primary.space.is_full() && primary.put_off(caller, range) {
        return Err(NotMade { result: 0 });
    }
    if is_only_allowed(call, args) {
        return Err(NotMade { result: 0 });
    }
    if takes_nothing(call, args) {
        hot::unrecorded(primary, range, event);
        return Ok(Opened::Later(range));
    }
    let mut attempts = Attempts::new(Blocking::Forbidden);
    while attempts.again(primary) {
        refusals.again += 1;
        match bracket::start(primary, caller, range, event, Blocking::Forbidden) {
            Ok(open) => return Ok(open),
            Err(WouldBlock) => refusals.refused += 1,
        }
    }
    Err(NotMade { result: error(call) })
}

/// Whether the call asks for nothing that must happen.
fn is_only_allowed(call: Syscall, args: &[usize; 6]) -> bool {
    const MADV_FREE: i32 = 8;
    const MADV_PAGEOUT: i32 = 21;
    call == Syscall::Madvise && matches!(args[2] as i32, MADV_FREE | MADV_PAGEOUT)
}

/// Whether whoever has a copy of a translation loses nothing by the call: all rights to the data are there afterwards.
/// Allocators commit memory so, under their locks; one (mimalloc 2.0) tries for ever if it fails.
fn takes_nothing(call: Syscall, args: &[usize; 6]) -> bool {
    const READ_WRITE: usize = 3;
    call == Syscall::Mprotect && args[2] & READ_WRITE == READ_WRITE
}

/// How a call fails that was refused: the errors are those of its manual page.
pub(crate) fn error(call: Syscall) -> isize {
    const EINTR: isize = 4;
    const EAGAIN: isize = 11;
    const ENOMEM: isize = 12;
    const EINVAL: isize = 22;
    match call {
        // "Attempting to release locked pages": what a program does then is what has to be done here, it keeps them. Not
        // EAGAIN: gperftools' allocator asks again for ever, under its lock.
        Syscall::Madvise | Syscall::ProcessMadvise | Syscall::Shmdt | Syscall::RemapFilePages => -EINVAL,
        Syscall::Ftruncate | Syscall::Truncate | Syscall::Fallocate => -EINTR,
        Syscall::Fork
        | Syscall::Vfork
        | Syscall::Clone
        | Syscall::Clone3
        | Syscall::Execve
        | Syscall::Execveat
        | Syscall::ExitGroup => -EAGAIN,
        // It returns where the break is.
        // SAFETY: only asks.
        Syscall::Brk => unsafe { gate::call(Syscall::Brk.number(), &[0; 6]) },
        Syscall::Mmap
        | Syscall::Munmap
        | Syscall::Mremap
        | Syscall::Mprotect
        | Syscall::PkeyMprotect
        | Syscall::Shmat => -ENOMEM,
    }
}

/// How a call fails that needs what the program has given up: as the kernel answers where nothing is mapped.
pub(crate) fn untouched(call: Syscall) -> isize {
    const ENOMEM: isize = 12;
    match call {
        Syscall::Shmdt | Syscall::RemapFilePages | Syscall::Brk => error(call),
        _ => -ENOMEM,
    }
}

/// Gives the program the result of a call that is not made.
#[cold]
#[inline(never)]
pub(crate) fn answer(
    primary: &Primary,
    caller: &Caller,
    frame: &mut Frame,
    (call, site): (Syscall, &Site),
    changes: &[(Range, Event)],
    (refusals, time): (Refusals, u64),
    NotMade { result }: NotMade,
) {
    let args = frame.args();
    frame.rax = result as usize;
    frame.go = site.back;
    let failed = result != 0;
    if failed && let Some(put_off) = primary.put_off_counts() {
        put_off.declined.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(shard) = primary.log.shard(caller.home()) {
        count(shard, call, failed, !changes.is_empty());
        bracket::count_changes(shard, changes, refusals);
    }
    if primary.log.records_wanted() {
        let (range, event) = changes.first().copied().unzip();
        primary.log.record(&log::Entry {
            call,
            event,
            failed,
            refused: true,
            time,
            starts: primary.log.now() - time,
            change: 0,
            ends: 0,
            thread: caller.thread(),
            home: caller.home(),
            start: range.map_or(args[0], |range| range.start()),
            len: range.map_or(args[1], |range| range.len()),
            caller: return_address(frame, site),
        });
    }
}

/// Who makes a change that was put off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Worker,
    /// A call that touches it, or has no room for its own.
    Call,
}

/// Bytes of memory that a mapped range has: of a large one, which may be hardly used.
fn memory_of(range: Range) -> usize {
    const MINCORE: usize = 27;
    const LARGE: usize = 4 << 20;
    const AT_ONCE: usize = 1024;
    if range.len() < LARGE {
        return range.len();
    }
    let mut memory = 0;
    for start in (range.start()..range.end()).step_by(AT_ONCE * PAGE_SIZE) {
        let len = (range.end() - start).min(AT_ONCE * PAGE_SIZE);
        let mut pages = [0u8; AT_ONCE];
        // SAFETY: the kernel writes a byte for each page.
        if unsafe { gate::call(MINCORE, &[start, len, pages.as_mut_ptr() as usize, 0, 0, 0]) } != 0 {
            return range.len();
        }
        memory += pages.iter().filter(|&page| page & 1 != 0).count() * PAGE_SIZE;
    }
    memory
}

impl Primary {
    pub(crate) fn put_off_counts(&self) -> Option<&PutOff> {
        self.log.process().map(|process| &process.put_off)
    }

    /// Puts an `munmap` off. False: it cannot be.
    fn put_off(&self, caller: &Caller, range: Range) -> bool {
        const MSYNC: usize = 26;
        const MS_ASYNC: usize = 1;
        // Only what is mapped without a hole: what is not, the kernel may give to somebody else, who would lose it.
        // SAFETY: with this flag it looks at the mappings, and does nothing.
        if unsafe { gate::call(MSYNC, &[range.start(), range.len(), MS_ASYNC, 0, 0, 0]) } != 0 {
            return false;
        }
        let charge = memory_of(range);
        while !self.quarantine.insert(range, charge) {
            // Too many: the one that waits longest is finished by whoever wants its place.
            let Some(oldest) = self.quarantine.oldest() else { return false };
            if self.make(caller, &oldest, Attempts::new(Blocking::Forbidden), By::Call).is_err() {
                return false;
            }
        }
        // Behind the insert, and before the program goes on.
        self.mode.quarantine(true);
        if let Some(counts) = self.put_off_counts() {
            counts.ranges.fetch_add(1, Ordering::Relaxed);
            counts.bytes.fetch_add(range.len() as u64, Ordering::Relaxed);
        }
        self.worker.wake(self);
        true
    }

    /// Announces later what has changed now.
    #[cold]
    #[inline(never)]
    pub(crate) fn tell_later(&self, range: Range) {
        // Without room nobody hears of it: nobody has lost anything.
        if self.quarantine.insert_notice(range) {
            self.mode.quarantine(true);
            self.worker.wake(self);
        }
    }

    /// Makes a change that was put off, unless somebody else does.
    ///
    /// # Errors
    ///
    /// If it must not wait, and was refused again each time.
    pub(crate) fn make(
        &self,
        caller: &Caller,
        waiting: &Waiting,
        mut attempts: Attempts,
        by: By,
    ) -> Result<(), WouldBlock> {
        let blocking = attempts.blocking;
        let open = loop {
            match self.space.start(caller, Change::new(waiting.range, waiting.event(), blocking)) {
                Ok(open) => break open,
                Err(WouldBlock) if attempts.again(self) => {}
                Err(WouldBlock) => return Err(WouldBlock),
            }
        };
        self.finish_waiting(waiting, by);
        self.space.end(caller, open);
        Ok(())
    }

    /// Makes everything that was put off, announced as one change of all around it: for the worker, when there is so much that
    /// asking for each would leave no room. Waits for whoever refuses. False: there was nothing to unmap.
    pub(crate) fn make_all(&self, caller: &Caller) -> bool {
        let Some(around) = self.quarantine.around() else { return false };
        let Ok(open) = self.space.start(caller, Change::new(around, Event::Unmap, Blocking::Allowed)) else {
            return false;
        };
        // Once through: what comes meanwhile is for the next time, or this one would never end.
        for waiting in self.quarantine.inside(around) {
            self.finish_waiting(&waiting, By::Worker);
        }
        self.space.end(caller, open);
        true
    }

    /// What is announced is made, unless somebody else has done so.
    fn finish_waiting(&self, waiting: &Waiting, by: By) {
        hot::before(self, waiting.range, waiting.event());
        // Not before: nobody may wait while he has it.
        if let Some(taken) = self.quarantine.take(waiting) {
            if !waiting.is_notice() {
                self.unmap(waiting.range);
            }
            if self.quarantine.drop(taken) {
                self.mode.quarantine(false);
                // Somebody may have come in between: whoever is second sees the other.
                if !self.quarantine.is_empty() {
                    self.mode.quarantine(true);
                }
            }
            if !waiting.is_notice()
                && let Some(counts) = self.put_off_counts()
            {
                let counter = match by {
                    By::Worker => &counts.by_worker,
                    By::Call => &counts.by_calls,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn unmap(&self, range: Range) {
        // SAFETY: the program's own call, which it was told was done.
        unsafe { gate::call(Syscall::Munmap.number(), &[range.start(), range.len(), 0, 0, 0, 0]) };
        if let Some(process) = self.log.process() {
            process.own_calls.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Before a call: makes the changes that were put off and that it touches. `Err`: one was refused again.
    #[cold]
    #[inline(never)]
    pub(crate) fn make_touched(
        &self,
        caller: &Caller,
        call: Syscall,
        args: &[usize; 6],
        blocking: Blocking,
    ) -> Result<(), WouldBlock> {
        // Without a thread for it, each call does a bit.
        if !self.worker.is_running()
            && let Some(oldest) = self.quarantine.oldest()
        {
            let _ = self.make(caller, &oldest, Attempts::one(blocking), By::Call);
        }
        for range in touched(call, args, self.memory.program_break()).into_iter().flatten() {
            while let Some(waiting) = self.quarantine.overlapping(&range) {
                self.make(caller, &waiting, Attempts::new(blocking), By::Call)?;
            }
            // Who is unmapping it is in that system call.
            let mut attempts = Attempts::new(Blocking::Forbidden);
            while self.quarantine.is_being_unmapped(&range) && attempts.again(self) {}
        }
        Ok(())
    }
}

/// Whether a call can do without the memory that it touches: it only says where it would like to be.
pub(crate) fn is_only_a_wish(call: Syscall, args: &[usize; 6]) -> bool {
    const MAP_FIXED: usize = 0x10;
    call == Syscall::Mmap && args[3] & MAP_FIXED == 0
}

/// Which addresses a call names.
fn touched(call: Syscall, args: &[usize; 6], program_break: usize) -> [Option<Range>; 2] {
    let &[a, b, c, _, e, _] = args;
    let pages = |start: usize, len: usize| Range::with_len(start, len).ok().map(|range| range.to_pages());
    match call {
        Syscall::Mmap
        | Syscall::Munmap
        | Syscall::Madvise
        | Syscall::Mprotect
        | Syscall::PkeyMprotect
        | Syscall::RemapFilePages => [pages(a, b), None],
        // It may grow where it is.
        Syscall::Mremap => [pages(a, b.max(c)), pages(e, c)],
        Syscall::Brk => [Range::new(program_break.min(a), program_break.max(a)).ok(), None],
        // How large the segment is, it does not say.
        Syscall::Shmat => [Range::new(b.max(1), usize::MAX).ok().filter(|_| b != 0), None],
        Syscall::Shmdt => [Range::new(a, usize::MAX).ok(), None],
        // Its ranges are in memory.
        Syscall::ProcessMadvise => [Some(Range::EVERYTHING), None],
        Syscall::Ftruncate
        | Syscall::Truncate
        | Syscall::Fallocate
        | Syscall::Fork
        | Syscall::Vfork
        | Syscall::Clone
        | Syscall::Clone3
        | Syscall::Execve
        | Syscall::Execveat
        | Syscall::ExitGroup => [None, None],
    }
}
