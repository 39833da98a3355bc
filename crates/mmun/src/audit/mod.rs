//! The audit: the running kernel's own MMU notifier as judge of the brackets.
//!
//! Every watched process has a virtual machine ([`oracles`]), so that the kernel tells KVM of each change of its address
//! space, and a tracepoint tells us ([`kernel`]): the range, the thread, the time, and the kernel's call chain. Each such
//! invalidation
//!
//! * lies inside a bracket of the same thread that was open at that time ([`brackets`]): it is *covered*;
//! * or has a *cause* of the kernel's own, which its call chain shows ([`cause`]); or a task did it that is not of that
//!   address space ([`tasks`]);
//! * or is *unexplained*.
//!
//! What could not be judged is counted as *lost*: samples and records that found no room, and processes without an
//! oracle.
//!
//! # Order
//!
//! A round reads the kernel's rings first, then the oracles, then the brackets: of whatever the kernel has reported, the
//! bracket was on record before. Several rings are not read at one moment; so what is younger than [`SETTLED`] waits for
//! the next round.

pub mod brackets;
pub mod cause;
pub mod clock;
pub mod kallsyms;
pub mod kernel;
pub mod oracles;
pub mod tasks;

mod foreign;
pub mod tracefs;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use anyhow::Result;
use mmu_notifier_primary::session::{self, PROCESSES};

use self::brackets::{Bracket, Brackets, SLACK};
use self::cause::{Cause, system_call};
use self::clock::Clock;
use self::foreign::Mappings;
use self::kallsyms::Kallsyms;
use self::kernel::{Happening, Invalidated, Kernel, What};
use self::oracles::Oracles;
use self::tasks::{Space, Tasks};
use self::tracefs::Tracefs;
use crate::rings::Mark;
use crate::session::Session;
use crate::summary::{self, Caller, Nearest, Unexplained};
use crate::symbols::Symbols;

/// How old, in nanoseconds, what happened must be to be in the rings for certain.
const SETTLED: u64 = 250_000_000;
/// How long, in nanoseconds, after its last task's end a process's memory may still be there.
const TAKEN_DOWN: u64 = 10_000_000_000;
/// The kernel's functions that go through all mappings of a file.
const FILE_WALKS: [&str; 3] = ["unmap_mapping_range", "unmap_mapping_pages", "unmap_mapping_folio"];
/// The calls that make it do so.
const FILE_CALLS: [&str; 5] = ["ftruncate", "truncate", "fallocate", "madvise", "process_madvise"];
/// Kinds of unexplained invalidations that are told apart.
const KINDS: usize = 64;

/// The audit of a run.
pub struct Audit {
    kernel: Kernel,
    names: Kallsyms,
    oracles: Oracles,
    clock: Clock,
    tasks: Tasks,
    judged: HashMap<Space, Judged>,
    /// What those shared that are at their end, and when: the kernel takes their memory down later.
    departed: VecDeque<(u64, Vec<(u64, u64)>)>,
    brackets: Brackets,
    mappings: Mappings,
    /// Where [`FILE_WALKS`] are.
    file_walks: Vec<Range<u64>>,
    waiting: Vec<Happening>,
    arrived: Vec<Arrived>,
    marks: VecDeque<(u64, Mark)>,
    /// When the kernel's rings were last begun to be read: what happened later may not be there yet.
    heard: u64,
    summary: summary::Audit,
    causes: [u64; Cause::ALL.len()],
}

/// An address space with an oracle.
#[derive(Debug)]
struct Judged {
    machine: OwnedFd,
    pid: u32,
    index: usize,
    born: u64,
    gate: u64,
    entry: u64,
    probe: u64,
    /// What it shared with others when it began: a forked child has its parent's.
    shared: Vec<(u64, u64)>,
    /// The kernel has told of the probe.
    proven: bool,
}

/// An oracle that has come, and what its process said of itself.
#[derive(Debug)]
struct Arrived {
    time: u64,
    judged: Judged,
}

impl Audit {
    /// Begins to listen; to be called before the program is started, and before there are other threads.
    pub fn open() -> Result<Audit> {
        let oracles = Oracles::listen()?;
        let names = Kallsyms::read()?;
        let kernel = Kernel::listen(&Tracefs::find()?)?;
        Ok(Audit {
            kernel,
            file_walks: names.places(&FILE_WALKS),
            names,
            oracles,
            clock: Clock::start(),
            tasks: Tasks::new(std::process::id()),
            judged: HashMap::new(),
            departed: VecDeque::new(),
            brackets: Brackets::default(),
            mappings: Mappings::default(),
            waiting: Vec::new(),
            arrived: Vec::new(),
            marks: VecDeque::new(),
            heard: 0,
            summary: summary::Audit::default(),
            causes: [0; Cause::ALL.len()],
        })
    }

    /// What watched processes send their oracles to.
    pub fn key(&self) -> u64 {
        self.oracles.key()
    }

    /// The first part of a round: what the kernel has reported, and which oracles have come. How full the fullest ring
    /// was, from 0 to 1.
    pub fn listen(&mut self, session: &Session) -> f64 {
        self.heard = self.clock.read();
        let known = self.waiting.len();
        let fullest = self.kernel.read(&mut self.waiting);
        self.clock.read();
        self.find_owners(known);
        while let Some(sent) = self.oracles.next() {
            let index = sent.index as usize % PROCESSES;
            let process = session.process(index);
            let [born, gate, entry, probe] = [&process.born, &process.gate, &process.entry, &process.probe]
                .map(|word| word.load(Ordering::Relaxed));
            if process.pid.load(Ordering::Relaxed) != sent.pid {
                // Its threads have other names on record than in the kernel's reports.
                *self
                    .summary
                    .without_oracle
                    .entry("it is in another pid namespace".to_owned())
                    .or_default() += 1;
                self.oracles.close(sent.machine);
                process.oracle_taken.store(1, Ordering::Relaxed);
                continue;
            }
            let (machine, pid, shared) = (sent.machine, sent.pid, foreign::shared(sent.pid));
            process.oracle_taken.store(1, Ordering::Relaxed);
            let judged = Judged { machine, pid, index, born, gate, entry, probe, shared, proven: false };
            self.arrived.push(Arrived { time: self.clock.ns(sent.ticks), judged });
        }
        fullest
    }

    /// Whose memory it may have been that tasks of other address spaces have changed: as long as it is there.
    fn find_owners(&mut self, known: usize) {
        self.mappings.forget();
        let made = |happening: &Happening| match happening.what {
            What::NewTask { child, .. } => Some(child),
            _ => None,
        };
        let young: HashSet<u32> = self.waiting.iter().filter_map(made).collect();
        for happening in &mut self.waiting[known..] {
            let What::Invalidated(what) = &mut happening.what else { continue };
            let task = self.tasks.get(happening.tid);
            let stranger = task.is_none() && !young.contains(&happening.tid);
            let of_file = what.chain.iter().any(|at| self.file_walks.iter().any(|place| place.contains(at)));
            if stranger || of_file {
                let others =
                    self.judged.iter().filter(|(space, _)| task.is_none_or(|task| task.space != **space));
                let others = others.map(|(_, judged)| judged.pid).filter(|pid| *pid != happening.pid);
                what.elsewhere = self.mappings.owner(others, what.start, what.end).is_some();
            }
        }
    }

    fn walks_a_file(&self, chain: &[u64]) -> bool {
        chain.iter().any(|at| self.file_walks.iter().any(|place| place.contains(at)))
    }

    /// The second part: what the hook has put on record.
    pub fn mark(&mut self, mark: &Mark) {
        self.marks.push_back((self.clock.ns(mark.time), *mark));
    }

    /// The third part: judges what is old enough; with `last`, all.
    pub fn judge(&mut self, session: &Session, symbols: &mut Symbols, last: bool) {
        let settled = if last { u64::MAX } else { self.heard.saturating_sub(SETTLED) };
        self.waiting.sort_by_key(|happening| happening.time);
        // Each round's are in order, but rounds may overlap a little.
        self.marks.make_contiguous().sort_by_key(|(time, _)| *time);
        self.arrived.sort_by_key(|arrived| arrived.time);
        let until = self.waiting.partition_point(|happening| happening.time < settled);
        let ripe: Vec<_> = self.waiting.drain(..until).collect();
        for happening in ripe {
            self.oracles_until(happening.time);
            self.marks_until(happening.time.saturating_add(SLACK));
            self.happened(happening, session, symbols);
        }
        self.oracles_until(settled);
        self.marks_until(settled);
    }

    /// Takes in what the hook had put on record by then.
    fn marks_until(&mut self, until: u64) {
        while let Some(&(time, mark)) = self.marks.front().filter(|(time, _)| *time <= until) {
            self.marks.pop_front();
            match mark.change {
                None => self.brackets.close(mark.tid, mark.stack, time),
                Some((call, start, len)) => {
                    let end = start.saturating_add(len);
                    let (stack, call) = (mark.stack, call.name());
                    let bracket =
                        Bracket { opened: time, closed: None, stack, ticks: mark.time, start, end, call };
                    self.brackets.open(mark.tid, bracket);
                }
            }
        }
    }

    /// Takes in the oracles that had come by then.
    fn oracles_until(&mut self, time: u64) {
        let until = self.arrived.partition_point(|arrived| arrived.time <= time);
        for Arrived { judged, .. } in self.arrived.drain(..until) {
            match self.tasks.get(judged.pid) {
                Some(task) => {
                    if let Some(old) = self.judged.insert(task.space, judged) {
                        self.summary.unproven += u64::from(!old.proven);
                        self.oracles.close(old.machine);
                    }
                }
                // Nobody has seen this process begin.
                None => {
                    self.summary.unproven += 1;
                    self.oracles.close(judged.machine);
                }
            }
        }
    }

    fn happened(&mut self, happening: Happening, session: &Session, symbols: &mut Symbols) {
        let Happening { time, pid, tid, what } = happening;
        let gone = match what {
            What::Invalidated(what) => return self.invalidated(time, pid, tid, &what, session, symbols),
            What::NewTask { child, flags } => {
                self.tasks.made(pid, tid, child, flags);
                None
            }
            What::Exec { before } => {
                self.brackets.forget(before);
                self.brackets.forget(tid);
                self.tasks.exec(tid, before)
            }
            What::Exit => {
                self.brackets.forget(tid);
                self.tasks.exit(tid)
            }
        };
        if let Some(mut judged) = gone.and_then(|space| self.judged.remove(&space)) {
            while self.departed.front().is_some_and(|(then, _)| then + TAKEN_DOWN < time) {
                self.departed.pop_front();
            }
            self.departed.push_back((time, std::mem::take(&mut judged.shared)));
            self.over(judged);
        }
    }

    /// An address space is gone.
    fn over(&mut self, judged: Judged) {
        if judged.proven {
            self.summary.judged += 1;
        } else {
            self.summary.unproven += 1;
        }
        self.oracles.close(judged.machine);
    }

    fn invalidated(
        &mut self,
        time: u64,
        pid: u32,
        tid: u32,
        what: &Invalidated,
        session: &Session,
        symbols: &mut Symbols,
    ) {
        let &Invalidated { start, end, ref chain, user, elsewhere } = what;
        let shown = Cause::shown_by(self.names.names(chain));
        let task = self.tasks.get(tid);
        let judged = task.and_then(|task| self.judged.get_mut(&task.space));
        let (Some(task), Some(judged)) = (task, judged) else {
            // Of another task.
            if elsewhere && pid == std::process::id() {
                // The session, which is mapped in all of them.
                self.caused(Cause::Hook);
            } else if elsewhere {
                self.caused(shown.unwrap_or(Cause::ForeignTask));
            } else {
                self.summary.elsewhere += 1;
            }
            return;
        };
        judged.proven |= start == judged.probe && user == judged.gate;
        let names = [Some(tid), task.borrowed_from];
        if names.iter().flatten().any(|&tid| self.brackets.cover(tid, time, start, end)) {
            self.summary.invalidations += 1;
            self.summary.covered += 1;
            return;
        }
        if let Some(cause) = shown {
            return self.caused(cause);
        }
        if user == judged.gate {
            return self.caused(Cause::Hook);
        }
        // A file is changed in all processes that map it at once. What this one had of it the hook has found and
        // announced: it is the hook that made the call.
        let (own, by_hook) = (judged.pid, user == judged.entry);
        let call = system_call(self.names.names(chain));
        let overlaps =
            |shared: &Vec<(u64, u64)>| shared.iter().any(|(first, behind)| *first < end && start < *behind);
        let shares = |judged: &Judged| judged.pid != own && overlaps(&judged.shared);
        if by_hook
            && call.is_some_and(|call| FILE_CALLS.contains(&call))
            && self.walks_a_file(chain)
            && (elsewhere
                || self.judged.values().any(shares)
                || self.departed.iter().any(|(_, shared)| overlaps(shared)))
        {
            return self.caused(Cause::ForeignTask);
        }
        self.unexplained(time, pid, tid, task.space, what, session, symbols);
    }

    fn caused(&mut self, cause: Cause) {
        self.summary.invalidations += 1;
        self.causes[cause as usize] += 1;
    }

    #[expect(clippy::too_many_arguments, reason = "an invalidation, and where its names are to be had")]
    fn unexplained(
        &mut self,
        time: u64,
        pid: u32,
        tid: u32,
        space: Space,
        what: &Invalidated,
        session: &Session,
        symbols: &mut Symbols,
    ) {
        self.summary.invalidations += 1;
        self.summary.unexplained += 1;
        let call = system_call(self.names.names(&what.chain)).map(str::to_owned);
        let caller = self.place(space, what.user, session, symbols);
        let same = |kind: &&mut Unexplained| kind.call == call && kind.caller == caller;
        if let Some(kind) = self.summary.kinds.iter_mut().find(same) {
            kind.count += 1;
            return;
        }
        if self.summary.kinds.len() >= KINDS {
            return;
        }
        let nearest = self.brackets.nearest(tid, time).map(|bracket| Nearest {
            call: bracket.call,
            start: bracket.start,
            len: bracket.end - bracket.start,
            before_ns: bracket.closed.map(|closed| time.saturating_sub(closed)),
        });
        let chain = self.names.names(&what.chain).map(str::to_owned).collect();
        let (start, len) = (what.start, what.end.saturating_sub(what.start));
        self.summary.kinds.push(Unexplained { call, caller, count: 1, pid, tid, start, len, nearest, chain });
    }

    /// Names the place in the program from which the kernel was entered.
    fn place(&self, space: Space, address: u64, session: &Session, symbols: &mut Symbols) -> Caller {
        let unnamed = || Caller { symbol: format!("{address:#x}"), file: String::new() };
        let Some(judged) = self.judged.get(&space) else { return unnamed() };
        let process: &session::Process = session.process(judged.index);
        if process.born.load(Ordering::Relaxed) != judged.born || address == 0 {
            return unnamed();
        }
        let index = symbols.caller(judged.index, process, address);
        symbols.get(index).clone()
    }

    /// The verdict, after a last round. `records_lost` is how many records the session has lost.
    pub fn finish(mut self, records_lost: u64) -> summary::Audit {
        for (_, judged) in std::mem::take(&mut self.judged) {
            self.over(judged);
        }
        self.summary.samples_lost = self.kernel.lost();
        self.summary.records_lost = records_lost;
        self.summary.causes = Cause::ALL
            .into_iter()
            .zip(self.causes)
            .filter(|(_, count)| *count > 0)
            .map(|(cause, count)| (cause.name(), cause.words(), count))
            .collect();
        self.summary
    }
}
