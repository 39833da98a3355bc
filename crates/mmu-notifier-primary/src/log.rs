//! The hook's side of a [session](crate::session): counting and recording.
//!
//! Plain atomic instructions on shared memory; threads write to different cache lines as long as there are no
//! more of them than shards.

// UNSAFETY: the session is memory that other processes write to as well; it is reached by a raw pointer, and only
// as atomics.
#![expect(unsafe_code)]

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use mmu_notifier::{Caller, Event, Range};

use crate::Syscall;
use crate::gate::safe::{getpid, getppid, sleep, without_signals};
use crate::session::{
    self, BUCKETS, Header, Histogram, MAGIC, MODULES, Module, PATH, PROCESSES, Path, Process, ProcessState,
    Record, RingHead, SHARDS, Shard, UNSEEN, UnseenReason, VERSION,
};

/// Ticks of the time stamp counter.
#[inline]
pub(crate) fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the counter, and Linux lets user space read it unless a program asks
    // for the contrary (PR_SET_TSC), which then kills the program at its own calls, too.
    unsafe { _rdtsc() }
}

/// Where this process counts and records.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Log {
    /// Somebody reads: without one nothing is timed or counted.
    watched: bool,
    records_wanted: bool,
    /// Brackets go on record as they open and close.
    audited: bool,
    base: AtomicPtr<Header>,
    rings: usize,
    ring_records: usize,
    /// Index of this process's entry; `PROCESSES`: it has none.
    process: AtomicUsize,
}

/// One call, as it was.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) call: Syscall,
    pub(crate) event: Option<Event>,
    pub(crate) failed: bool,
    pub(crate) refused: bool,
    pub(crate) time: u64,
    pub(crate) starts: u64,
    pub(crate) change: u64,
    pub(crate) ends: u64,
    pub(crate) thread: u64,
    pub(crate) home: usize,
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) caller: usize,
}

impl Log {
    /// A log in the session at `base`, which is mapped with `bytes` bytes; `None` if that is no session of ours.
    ///
    /// # Safety
    ///
    /// `base` is the start of a shared mapping of at least `bytes` bytes that stays for ever.
    pub(crate) unsafe fn open(base: *mut u8, bytes: usize) -> Option<Log> {
        if bytes < session::ring_offset(0, 0) {
            return None;
        }
        let header = base.cast::<Header>();
        // SAFETY: mapped, long enough, page-aligned; all fields are atomics.
        let head = unsafe { &*header };
        // Acquire pairs with the Release of who made the session.
        let ours =
            head.magic.load(Ordering::Acquire) == MAGIC && head.version.load(Ordering::Relaxed) == VERSION;
        let rings = head.rings.load(Ordering::Relaxed) as usize;
        let ring_records = head.ring_records.load(Ordering::Relaxed) as usize;
        let fits = (1..=1024).contains(&rings)
            && ring_records.is_power_of_two()
            && ring_records < 1 << 32
            && session::session_bytes(rings, ring_records) <= bytes;
        let fits = fits
            && (head.check.load(Ordering::Relaxed) == 0
                || session::checked_session_bytes(rings, ring_records) <= bytes);
        let closed = head.closed.load(Ordering::Relaxed) != 0;
        (ours && fits && !closed).then(|| Log {
            base: AtomicPtr::new(header),
            rings,
            ring_records,
            records_wanted: head.records_wanted.load(Ordering::Relaxed) != 0,
            audited: head.audit.load(Ordering::Relaxed) != 0,
            watched: true,
            process: AtomicUsize::new(PROCESSES),
        })
    }

    pub(crate) fn header(&self) -> &Header {
        // SAFETY: by the promise at `open`.
        unsafe { &*self.base.load(Ordering::Relaxed) }
    }

    fn at(&self, offset: usize) -> *mut u8 {
        // SAFETY: offsets are computed from the checked shape of the session, inside the mapping.
        unsafe { self.base.load(Ordering::Relaxed).cast::<u8>().add(offset) }
    }

    fn entry(&self, index: usize) -> &Process {
        debug_assert!(index < PROCESSES);
        // SAFETY: inside the mapping and aligned by the layout; all fields are atomics.
        unsafe { &*self.at(session::process_offset(index)).cast::<Process>() }
    }

    /// A place for the call sites of a file.
    pub(crate) fn file(&self, index: usize) -> &session::File {
        debug_assert!(index < session::FILES);
        // SAFETY: inside the mapping and aligned by the layout; all fields are atomics.
        unsafe { &*self.at(session::file_offset(index)).cast::<session::File>() }
    }

    /// Where findings about registrations go, if they are checked.
    pub(crate) fn check(&self) -> Option<&'static session::check::Area> {
        let wanted = self.watched && self.header().check.load(Ordering::Relaxed) != 0;
        let offset = session::check_offset(self.rings, self.ring_records);
        // SAFETY: inside the mapping, as was looked at in `open`, and never unmapped; all fields are atomics.
        wanted.then(|| unsafe { &*self.at(offset).cast::<session::check::Area>() })
    }

    /// Index of this process's entry; [`PROCESSES`]: it has none.
    pub(crate) fn process_index(&self) -> usize {
        self.process.load(Ordering::Relaxed)
    }

    /// This process's entry, if it got one.
    #[inline]
    pub(crate) fn process(&self) -> Option<&Process> {
        let index = self.process.load(Ordering::Relaxed);
        (index < PROCESSES).then(|| self.entry(index))
    }

    /// The counters for a thread, if anybody reads them.
    #[inline]
    pub(crate) fn shard(&self, home: usize) -> Option<&Shard> {
        let process = self.watched.then(|| self.process()).flatten()?;
        Some(&process.shards[home % SHARDS])
    }

    /// Takes an entry for a process; its index.
    pub(crate) fn claim(&self, pid: u32, parent: u32, forked: bool) -> Option<usize> {
        let header = self.header();
        let hint = header.process_hint.fetch_add(1, Ordering::Relaxed) as usize;
        for step in 0..PROCESSES {
            let index = (hint + step) % PROCESSES;
            let process = self.entry(index);
            let claimed = process.state.compare_exchange(
                ProcessState::Free as u32,
                ProcessState::Starting as u32,
                // Acquire pairs with the Release by which the reader frees an entry.
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            if claimed.is_ok() {
                // A program that was exec'ed is not a new process; the first one is.
                if forked || header.processes_total.load(Ordering::Relaxed) == 0 {
                    header.processes_total.fetch_add(1, Ordering::Relaxed);
                }
                process.pid.store(pid, Ordering::Relaxed);
                process.parent.store(parent, Ordering::Relaxed);
                process.forked.store(forked.into(), Ordering::Relaxed);
                process.born.store(ticks(), Ordering::Relaxed);
                return Some(index);
            }
        }
        header.processes_lost.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Makes an entry for this process, freshly started.
    pub(crate) fn begin(&self) {
        let index = self.claim(getpid(), getppid(), false).unwrap_or(PROCESSES);
        self.process.store(index, Ordering::Relaxed);
    }

    /// From now on this process is watched.
    pub(crate) fn ready(&self) {
        if let Some(process) = self.process() {
            process.threads.store(1, Ordering::Relaxed);
            process.ready.store(ticks(), Ordering::Relaxed);
            // Release: the reader may look at everything above.
            process.state.store(ProcessState::Running as u32, Ordering::Release);
        }
    }

    /// Makes an entry for a process that has just been forked, with what it has in common with its parent.
    pub(crate) fn forked(&self) {
        let parent = self.process();
        let index = self.claim(getpid(), getppid(), true).unwrap_or(PROCESSES);
        self.process.store(index, Ordering::Relaxed);
        if let (Some(parent), Some(child)) = (parent, self.process()) {
            copy_path(&parent.exe, &child.exe);
            let modules = parent.modules_used.load(Ordering::Relaxed).min(MODULES as u64);
            for (from, to) in parent.modules.iter().zip(&child.modules).take(modules as usize) {
                to.start.store(from.start.load(Ordering::Relaxed), Ordering::Relaxed);
                to.end.store(from.end.load(Ordering::Relaxed), Ordering::Relaxed);
                to.offset.store(from.offset.load(Ordering::Relaxed), Ordering::Relaxed);
                copy_path(&from.file, &to.file);
            }
            child.modules_used.store(modules, Ordering::Relaxed);
            child.strict.store(parent.strict.load(Ordering::Relaxed), Ordering::Relaxed);
            child.own_bytes.store(parent.own_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.ready();
    }

    /// An entry for a `vfork`ed child that is about to exec; it shares everything else with its parent.
    pub(crate) fn vforked_exec(&self, path: &[u8]) -> Option<usize> {
        let index = self.claim(getpid(), getppid(), true)?;
        let process = self.entry(index);
        put_path(&process.exec, path);
        process.threads.store(1, Ordering::Relaxed);
        process.ended.store(ticks(), Ordering::Relaxed);
        process.state.store(ProcessState::Exec as u32, Ordering::Release);
        Some(index)
    }

    /// The exec that was announced by [`vforked_exec`](Log::vforked_exec) has failed.
    pub(crate) fn vforked_exec_failed(&self, index: usize) {
        let process = self.entry(index);
        process.exec.len.store(0, Ordering::Relaxed);
        process.ended.store(0, Ordering::Relaxed);
        self.header().processes_total.fetch_sub(1, Ordering::Relaxed);
        // Release pairs with the Acquire of the next claim.
        process.state.store(ProcessState::Free as u32, Ordering::Release);
    }

    /// The process is about to become another program or to end.
    pub(crate) fn ending(&self, state: ProcessState) {
        if let Some(process) = self.process() {
            process.ended.store(ticks(), Ordering::Relaxed);
            process.state.store(state as u32, Ordering::Release);
        }
    }

    /// It is not: the exec failed.
    pub(crate) fn not_ending(&self) {
        if let Some(process) = self.process() {
            process.ended.store(0, Ordering::Relaxed);
            process.state.store(ProcessState::Running as u32, Ordering::Release);
        }
    }

    /// Something that cannot be watched.
    pub(crate) fn unseen(&self, reason: UnseenReason, number: Option<usize>, address: usize, file: &[u8]) {
        if let Some(process) = self.process() {
            process.note_unseen(reason, number, address, file);
        }
    }

    /// An executable mapping of a file.
    pub(crate) fn module(&self, range: Range, offset: usize, file: &[u8]) {
        let Some(process) = self.process() else { return };
        let index = process.modules_used.fetch_add(1, Ordering::Relaxed) as usize;
        if index >= MODULES {
            process.modules_used.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let module: &Module = &process.modules[index];
        put_path(&module.file, file);
        module.offset.store(offset as u64, Ordering::Relaxed);
        module.end.store(range.end() as u64, Ordering::Relaxed);
        module.start.store(range.start() as u64, Ordering::Release);
    }

    /// The log of a process that nobody watches: where the search for call sites is noted, but no call.
    pub(crate) fn unwatched(self) -> Log {
        Log { watched: false, records_wanted: false, audited: false, ..self }
    }

    /// The time, if anybody wants to know; reading it four times a call is a third of what the hook costs.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        if self.watched { ticks() } else { 0 }
    }

    /// Whether anybody reads what is counted.
    #[inline]
    pub(crate) fn is_watched(&self) -> bool {
        self.watched
    }

    /// Whether anybody wants records.
    #[inline]
    pub(crate) fn records_wanted(&self) -> bool {
        self.records_wanted
    }

    /// Whether somebody wants to hold every bracket against what the kernel does.
    #[inline]
    pub(crate) fn is_audited(&self) -> bool {
        self.audited
    }

    /// Index of this process's entry, if it got one.
    pub(crate) fn index(&self) -> Option<usize> {
        let index = self.process.load(Ordering::Relaxed);
        (index < PROCESSES).then_some(index)
    }

    /// Records a call, or one change of it.
    #[inline(never)]
    pub(crate) fn record(&self, entry: &Entry) {
        let short = |ticks: u64| ticks.min(u32::MAX.into());
        let event = entry.event.map_or(255, |event| event as u64);
        let flags = u64::from(entry.failed) << 16 | u64::from(entry.refused) << 17;
        self.write(entry.home, |record, who| {
            set(&record.time, entry.time);
            set(&record.what, entry.call as u64 | event << 8 | flags | short(entry.starts) << 32);
            set(&record.took, short(entry.change) | short(entry.ends) << 32);
            set(&record.who, entry.thread & 0xffff_ffff | who);
            set(&record.start, entry.start as u64);
            set(&record.len, entry.len as u64);
            set(&record.caller, entry.caller as u64);
        });
    }

    /// Records that a call's changes have been announced, at `time`.
    #[inline(never)]
    pub(crate) fn opened(&self, caller: &Caller, call: Syscall, changes: &[(Range, Event)], time: u64) {
        self.wait_for_the_reader(caller.home());
        without_signals(|| {
            for (range, event) in changes {
                let what = call as u64 | (*event as u64) << 8 | session::OPENED;
                self.mark(caller, what, (range.start(), range.len()), caller.stack(), time);
            }
        });
    }

    /// Waits while much is still to be read, as nothing that an audit needs may be dropped: neither here nor in the rings
    /// of the kernel, which hold about as many reports. Not for ever: the reader may be gone.
    fn wait_for_the_reader(&self, home: usize) {
        const MUCH: u64 = 1 << 14;
        const TIMES: u32 = 5_000;
        const NANOSECONDS: u64 = 1_000_000;
        let Some(process) = self.index() else { return };
        let offset = session::ring_offset((process + home) % self.rings, self.ring_records);
        // SAFETY: inside the mapping and aligned by the layout; all fields are atomics.
        let head = unsafe { &*self.at(offset).cast::<RingHead>() };
        for _ in 0..TIMES {
            // Relaxed: only to see how many there are. Less than none, if the reader moves in between.
            let tail = head.tail.0.load(Ordering::Relaxed);
            let unread = head.head.load(Ordering::Relaxed).wrapping_sub(tail).cast_signed();
            if unread < MUCH.min(self.ring_records as u64 / 2).cast_signed() {
                return;
            }
            sleep(NANOSECONDS);
        }
    }

    /// Records that the changes that were announced at this stack position are over, at `time`.
    #[inline(never)]
    pub(crate) fn closed(&self, caller: &Caller, stack: usize, time: u64) {
        without_signals(|| self.mark(caller, session::CLOSED, (0, 0), stack, time));
    }

    // A record whose writer is cancelled or jumps away in the middle would be waited for by the reader, and by all who
    // wait for the reader: so signals are held back meanwhile.
    fn mark(&self, caller: &Caller, what: u64, (start, len): (usize, usize), stack: usize, time: u64) {
        self.write(caller.home(), |record, who| {
            set(&record.time, time);
            set(&record.what, what);
            set(&record.took, 0);
            set(&record.who, caller.thread() & 0xffff_ffff | who);
            set(&record.start, start as u64);
            set(&record.len, len as u64);
            set(&record.caller, stack as u64);
        });
    }

    /// Writes one record, if there is room for it; `fill` gets it and the process's half of its `who`.
    #[inline(always)]
    fn write(&self, home: usize, fill: impl FnOnce(&Record, u64)) {
        let Some(process) = self.index() else { return };
        // Threads of one process, and processes, spread over the rings.
        let ring = (process + home) % self.rings;
        let offset = session::ring_offset(ring, self.ring_records);
        // SAFETY: inside the mapping and aligned by the layout; all fields are atomics.
        let head = unsafe { &*self.at(offset).cast::<RingHead>() };
        let mut position = head.head.load(Ordering::Relaxed);
        loop {
            // Acquire pairs with the reader's Release: it is done with the record that we overwrite.
            if position.wrapping_sub(head.tail.0.load(Ordering::Acquire)) >= self.ring_records as u64 {
                // Full; or others have written and the reader has read since we looked, and is past our position.
                let now = head.head.load(Ordering::Relaxed);
                if now != position {
                    position = now;
                    continue;
                }
                head.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            match head.head.compare_exchange_weak(
                position,
                position + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => position = now,
            }
        }
        let index = position as usize & (self.ring_records - 1);
        let at = offset + size_of::<RingHead>() + index * size_of::<Record>();
        // SAFETY: as above.
        let record = unsafe { &*self.at(at).cast::<Record>() };
        fill(record, (process as u64) << 32);
        // Release pairs with the reader's Acquire: the record is complete.
        record.sequence.store(position + 1, Ordering::Release);
    }
}

fn set(field: &AtomicU64, value: u64) {
    field.store(value, Ordering::Relaxed);
}

/// Adds a duration.
#[inline]
pub(crate) fn observe(histogram: &Histogram, ticks: u64) {
    histogram.sum.fetch_add(ticks, Ordering::Relaxed);
    if ticks > histogram.max.load(Ordering::Relaxed) {
        histogram.max.fetch_max(ticks, Ordering::Relaxed);
    }
    let bucket = (63 - (ticks | 1).leading_zeros()) as usize;
    histogram.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
}

impl Process {
    /// Lists something that cannot be watched, if there is room in the list: `address` is where, `file` what.
    pub fn note_unseen(&self, reason: UnseenReason, number: Option<usize>, address: usize, file: &[u8]) {
        let index = self.unseen.fetch_add(1, Ordering::Relaxed) as usize;
        if index < UNSEEN {
            let unseen = &self.unseen_list[index];
            unseen.number.store(number.map_or(u32::MAX, |number| number as u32), Ordering::Relaxed);
            unseen.address.store(address as u64, Ordering::Relaxed);
            put_path(&unseen.file, file);
            unseen.reason.store(reason as u32, Ordering::Release);
        }
    }
}

/// Stores a path; of a long one the end.
pub(crate) fn put_path(path: &Path, bytes: &[u8]) {
    let bytes = &bytes[bytes.len().saturating_sub(PATH)..];
    path.len.store(0, Ordering::Relaxed);
    for (to, &byte) in path.bytes.iter().zip(bytes) {
        to.store(byte, Ordering::Relaxed);
    }
    path.len.store(bytes.len() as u64, Ordering::Release);
}

fn copy_path(from: &Path, to: &Path) {
    for (from, to) in from.bytes.iter().zip(&to.bytes) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    to.len.store(from.len.load(Ordering::Relaxed), Ordering::Release);
}
