//! What a run was like, in numbers: filled by the watcher, shown by the reports.
//!
//! All times are nanoseconds, all sizes bytes.

use std::collections::BTreeMap;
use std::time::Duration;

pub use mmu_notifier_primary::session::check::{Registered, Verdict};

/// Everything that is known at the end of a run (or, for the live line, so far).
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// From start to end.
    pub wall: Duration,
    /// How the program ended.
    pub outcome: Outcome,
    /// Processes that were watched.
    pub processes: u64,
    /// Processes that ran unwatched because the session had no room.
    pub processes_lost: u64,
    /// Processes that still ran when the program ended; their numbers are those of that moment.
    pub processes_left: u64,
    /// Programs that were started by a watched process and never reported: path and how often.
    pub programs_unseen: BTreeMap<String, u64>,
    /// Threads, the first of each process included.
    pub threads: u64,
    /// By system call name: every call there is a counter for, also if it was never made.
    pub calls: BTreeMap<&'static str, Calls>,
    /// By event name, in the kernel's order; only events that occurred.
    pub events: Vec<(&'static str, Events)>,
    /// How long all starts of a call took together.
    pub starts: Times,
    /// How long the bracketed system calls themselves took.
    pub changes: Times,
    /// How long all ends of a call took together.
    pub ends: Times,
    /// Starts and ends that the paired counting subscriber got, those of `cut_short` brackets included.
    pub balance_starts: u64,
    /// See `balance_starts`. Short by `cut_short + still_open` at most, unless something is wrong.
    pub balance_ends: u64,
    /// Brackets that `exec` or a kill took with it: no end can come.
    pub cut_short: u64,
    /// Brackets that were open in processes that outlived the program: they still run, the ends are to come.
    pub still_open: u64,
    /// Brackets that a thread left open (cancelled, longjmp) and that were ended when that was found out.
    pub abandoned: u64,
    /// 1/N of the non-blocking starts were to be refused; 0: no refuser attached.
    pub refuse_every: u32,
    /// Refused starts.
    pub refused: u64,
    /// How often a refused change was announced again.
    pub announced_again: u64,
    /// What did not take place when it was asked for.
    pub put_off: PutOff,
    /// Call sites patched: by shape T1, T2, T3.
    pub sites: [u64; 3],
    /// Executable mappings searched.
    pub mappings_searched: u64,
    /// Time to search and patch, summed over processes.
    pub search: Duration,
    /// Memory calls that the hook itself made while a program ran.
    pub own_calls: u64,
    /// The most memory that the hook held in a process, record buffer not included.
    pub own_bytes: u64,
    /// What was caught that could not be rewritten.
    pub strict: Strict,
    /// What could not be watched.
    pub unseen: Vec<Unseen>,
    /// Things that could not be watched beyond the listed ones.
    pub unseen_more: u64,
    /// Records of single calls that were read.
    pub records: u64,
    /// Records that were dropped because the buffer was full.
    pub records_dropped: u64,
    /// Size of the record buffer in bytes; 0: no records wanted.
    pub record_buffer: u64,
    /// What was found of registrations, if they were checked.
    pub check: Option<Check>,
    /// What the kernel itself reported, if that was asked for.
    pub audit: Option<Audit>,
}

/// The kernel's own reports, held against the brackets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Invalidations of the watched processes that the kernel reported.
    pub invalidations: u64,
    /// Of them, those inside an open bracket of the thread.
    pub covered: u64,
    /// Those that have a cause of the kernel's own: a word, words for people, and how many.
    pub causes: Vec<(&'static str, &'static str, u64)>,
    /// The rest.
    pub unexplained: u64,
    /// By place; the first of each kind as example.
    pub kinds: Vec<Unexplained>,
    /// Samples of the kernel that found no room.
    pub samples_lost: u64,
    /// Brackets that found no room.
    pub records_lost: u64,
    /// Address spaces (a process has another one after each `exec`) whose oracle has reported.
    pub judged: u64,
    /// Address spaces whose oracle did not report what it must have seen.
    pub unproven: u64,
    /// Processes that had no oracle: why, and how many.
    pub without_oracle: BTreeMap<String, u64>,
    /// Reports of address spaces that are not watched.
    pub elsewhere: u64,
}

impl Audit {
    /// Invalidations with a cause of the kernel's own.
    pub fn caused(&self) -> u64 {
        self.causes.iter().map(|(_, _, count)| count).sum()
    }

    /// What could not be judged: samples, brackets, and processes, of which each has made some.
    pub fn lost(&self) -> u64 {
        self.samples_lost + self.records_lost + self.processes_lost()
    }

    /// Processes that could not be judged.
    pub fn processes_lost(&self) -> u64 {
        self.unproven + self.without_oracle.values().sum::<u64>()
    }

    /// Whether everything is explained and nothing lost.
    pub fn is_clean(&self) -> bool {
        self.unexplained == 0 && self.lost() == 0
    }
}

/// Invalidations that nobody announced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unexplained {
    /// The system call that the thread was in.
    pub call: Option<String>,
    /// Where it was made from.
    pub caller: Caller,
    /// How many.
    pub count: u64,
    /// The process of the first.
    pub pid: u32,
    /// Its thread.
    pub tid: u32,
    /// Its first address.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
    /// The bracket of that thread that was open, or the last before.
    pub nearest: Option<Nearest>,
    /// The kernel's functions, innermost first.
    pub chain: Vec<String>,
}

/// A bracket near something unexplained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nearest {
    /// Its system call.
    pub call: &'static str,
    /// Its first address.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
    /// How long before it was over; `None`: it was open, but not of that range.
    pub before_ns: Option<u64>,
}

/// What became of changes that were refused and could not wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOff {
    /// Ranges that were put in quarantine.
    pub ranges: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Ranges that were unmapped in the background.
    pub by_worker: u64,
    /// Ranges that were unmapped by a later call.
    pub by_calls: u64,
    /// Calls that failed.
    pub declined: u64,
}

/// Strict mode: system calls caught wherever they are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strict {
    /// Processes that were in it as asked.
    pub asked: u64,
    /// Processes that were in it because a call site could not be rewritten.
    pub needed: u64,
    /// Processes in which the kernel refused it.
    pub refused: u64,
    /// Places in these processes, summed, that could not be rewritten.
    pub places: u64,
    /// System calls that were caught there.
    pub trapped: u64,
    /// Places where that was so again and again, which were rewritten while they ran.
    pub rewritten: u64,
    /// Such places that could not be when that was tried first.
    pub kept: u64,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// It has not yet.
    #[default]
    Running,
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// One system call's counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// All calls.
    pub count: u64,
    /// Calls that returned an error.
    pub failed: u64,
    /// Calls that announced at least one change.
    pub bracketed: u64,
}

/// One event's counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Changes announced.
    pub changes: u64,
    /// Bytes of their ranges; changes of the whole address space count 0.
    pub bytes: u64,
}

/// A distribution of durations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub total_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Upper bound of each bucket and how many are in it, ascending; only buckets in use.
    pub buckets: Vec<(u64, u64)>,
}

impl Times {
    /// The duration that `share` (0.0 to 1.0) of all stay below, as the upper bound of its bucket, at most the maximum.
    pub fn quantile_ns(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for &(bound, count) in &self.buckets {
            seen += count;
            if seen >= wanted.max(1) {
                return bound.min(self.max_ns);
            }
        }
        self.max_ns
    }
}

/// One kind of thing that is not watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen {
    /// Why, in words.
    pub reason: &'static str,
    /// The file or memory.
    pub file: String,
    /// The system call at the site, if it is known.
    pub call: Option<String>,
    /// Where, in the first process that reported it.
    pub address: u64,
    /// In how many processes.
    pub processes: u64,
}

/// One system call, for timelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When the hook was entered, since the start of the run.
    pub time_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// System call name.
    pub call: &'static str,
    /// The first change's event, if the call announced one.
    pub event: Option<&'static str>,
    /// It returned an error.
    pub failed: bool,
    /// Its non-blocking start was refused.
    pub refused: bool,
    /// First address of the first change, or the first argument.
    pub start: u64,
    /// Bytes of the first change, or the second argument.
    pub len: u64,
    /// All starts.
    pub starts_ns: u64,
    /// The system call itself.
    pub change_ns: u64,
    /// All ends.
    pub ends_ns: u64,
    /// Who called: an index into the symbols of the run.
    pub caller: u32,
}

/// A place in a program that makes memory system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// `function+0x12`, or the bare address.
    pub symbol: String,
    /// The file it is in, or what kind of memory.
    pub file: String,
}

/// What was found of registrations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Registrations made and their bytes, by what holds them; only what occurred.
    pub registered: Vec<(Registered, u64, u64)>,
    /// Memory calls that met a registration.
    pub changes: u64,
    /// Pages that were compared at these.
    pub compared: u64,
    /// Registrations that were not followed: a table was full.
    pub untracked: u64,
    /// Calls that were not looked at, as another thread held the table for too long.
    pub missed: u64,
    /// Findings that are not here: there were too many at a time.
    pub lost: u64,
    /// Processes that had no memory for their tables.
    pub unchecked: u64,
    /// Processes that may not see page frames.
    pub blind: u64,
    /// The worst first.
    pub findings: Vec<Finding>,
}

impl Check {
    /// Findings of stale registrations, repeated ones once.
    pub fn stale(&self) -> usize {
        self.of(Verdict::Stale)
    }

    /// Findings with that verdict.
    pub fn of(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }
}

/// A mistake: one registration, or several of the same call stack, and the call stack that changed its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub verdict: Verdict,
    /// What holds the memory.
    pub kind: Registered,
    /// It happened so often. What follows is of the first time, but for the bytes and pages, which are of all.
    pub times: u64,
    /// Registrations affected.
    pub registrations: u64,
    /// The descriptor that it was registered with, if it has one.
    pub descriptor: Option<i32>,
    /// Buffer, slot, handle, or address in the device.
    pub index: u64,
    /// First address of the registration.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
    /// First address of what was changed.
    pub from: u64,
    /// Bytes changed.
    pub changed: u64,
    /// Pages changed.
    pub pages: u64,
    /// Pages that have another frame.
    pub other: u64,
    /// Pages that are mapped, but empty.
    pub empty: u64,
    /// Pages that are not mapped.
    pub unmapped: u64,
    /// The process is a child of the one that registered.
    pub inherited: bool,
    /// Of an unmapped one: it was taken back later, and nothing else was mapped there before.
    pub taken_back: bool,
    /// The process.
    pub pid: u32,
    /// Who registered.
    pub registered: At,
    /// Who changed.
    pub changed_by: At,
}

/// A system call, and where it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// The call, with the arguments that matter.
    pub call: String,
    /// Thread id.
    pub tid: u32,
    /// Since the start of the run.
    pub time_ns: u64,
    /// The system call's place first; empty: not known.
    pub stack: Vec<Caller>,
}
