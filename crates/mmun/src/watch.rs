//! The watcher: a thread that reads the session while the program runs.
//!
//! It wakes every 1 to 50 ms (by how full the rings are) if single calls are wanted, otherwise every
//! 50 ms: looks who is gone, reads records, sums up who is gone, and keeps the live line. It takes no
//! lock and never makes the watched processes wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::audit::Audit;
use crate::check::Collector;
use crate::clock::{Clock, Scale};
use crate::live::Live;
use crate::processes::{Gone, Processes, is_gone};
use crate::reports::Reports;
use crate::rings::{Entry, Rings, Said};
use crate::session::Session;
use crate::summary::{Caller, Record, Summary};
use crate::symbols::Symbols;
use crate::tracer;

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(50);
/// An audit names places in processes, up to some tenths of a second after they are gone: their entries stay so long.
const AUDIT_LOOK: Duration = Duration::from_millis(500);

/// The running thread.
#[derive(Debug)]
pub struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Watched>,
}

/// What the watcher leaves behind.
#[derive(Debug)]
pub struct Watched {
    /// Everything but the command, the outcome and the wall time.
    pub summary: Summary,
    /// Who made the calls that were recorded.
    pub callers: Vec<Caller>,
    /// Where they were written to, to be finished.
    pub reports: Reports,
    /// The first failure to write one.
    pub failure: Option<anyhow::Error>,
}

impl Watcher {
    /// Begins to read.
    pub fn start(
        session: Session,
        clock: Clock,
        reports: Reports,
        live: Option<Live>,
        audit: Option<Audit>,
    ) -> Result<Watcher> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let work = move || Work::new(session, clock, reports, live, audit).run(&seen);
        let thread = std::thread::Builder::new().name("watch".into()).spawn(work);
        Ok(Watcher { stop, thread: thread.map_err(|error| anyhow!("cannot start a thread: {error}"))? })
    }

    /// Reads the rest and sums up. Processes that still run are left alone from here on.
    pub fn finish(self) -> Result<Watched> {
        // Pairs with the Acquire in `Work::run`; what matters was ordered by the end of the program.
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        self.thread.join().map_err(|_| anyhow!("the watching thread has failed; this is a bug in mmun"))
    }
}

struct Work {
    session: Session,
    clock: Clock,
    reports: Reports,
    live: Option<Live>,
    processes: Processes,
    rings: Rings,
    symbols: Symbols,
    check: Collector,
    batch: Vec<Said>,
    audit: Option<Audit>,
    /// Processes that are gone and not summed up yet.
    held: Gone,
    failure: Option<anyhow::Error>,
}

impl Work {
    fn new(
        session: Session,
        clock: Clock,
        reports: Reports,
        live: Option<Live>,
        audit: Option<Audit>,
    ) -> Work {
        Work {
            rings: Rings::new(&session),
            session,
            clock,
            reports,
            live,
            processes: Processes::default(),
            symbols: Symbols::default(),
            check: Collector::default(),
            batch: Vec::new(),
            audit,
            held: Gone::default(),
            failure: None,
        }
    }

    fn run(mut self, stop: &AtomicBool) -> Watched {
        let records = self.reports.want_records() || self.audit.is_some();
        let mut pause = if records { SHORTEST } else { LONGEST };
        let mut next_look = Instant::now();
        while !stop.load(Ordering::Acquire) {
            std::thread::park_timeout(pause);
            let now = Instant::now();
            let gone = (now >= next_look).then(|| {
                self.processes.fold(&self.session, std::mem::take(&mut self.held));
                self.processes.look(&self.session, now, &is_gone)
            });
            if records {
                let fullest = self.read_records(now, false);
                // Processes may wait for their oracles to be taken.
                let longest = if self.audit.is_some() { 2 * SHORTEST } else { LONGEST };
                pause = if fullest > 0.1 { pause / 2 } else { pause * 2 }.clamp(SHORTEST, longest);
            }
            // Before who has written them is forgotten. Where there are some, more come soon.
            if self.check.collect(&self.session, &mut self.symbols, &self.clock) > 0 {
                pause = SHORTEST;
            } else if !records {
                pause = (pause * 2).min(LONGEST);
            }
            if let Some(gone) = gone {
                if self.audit.is_some() {
                    self.held = gone;
                    next_look = now + AUDIT_LOOK;
                } else {
                    self.processes.fold(&self.session, gone);
                    next_look = now + LONGEST;
                }
            }
            if let Some(live) = &mut self.live {
                let progress = || self.processes.progress(&self.session);
                let processes = self.session.header().processes_total.load(Ordering::Relaxed);
                live.show(self.clock.elapsed(), processes, progress);
            }
        }
        if let Some(live) = self.live.take() {
            live.clear();
        }
        self.sum_up(records)
    }

    fn sum_up(mut self, records: bool) -> Watched {
        // Pairs with the Acquire of a program that starts: from here on it does not begin to watch.
        self.session.header().closed.store(1, Ordering::Release);
        tracer::session_closed(&self.session);
        let now = Instant::now();
        if records {
            self.read_records(now, true);
        }
        self.check.collect(&self.session, &mut self.symbols, &self.clock);
        self.processes.fold(&self.session, std::mem::take(&mut self.held));
        let left = self.processes.finish(&self.session, now, &is_gone);
        let header = self.session.header();
        let mut summary = Summary {
            processes: header.processes_total.load(Ordering::Relaxed),
            processes_lost: header.processes_lost.load(Ordering::Relaxed),
            processes_left: left,
            programs_unseen: self.processes.unseen().clone(),
            refuse_every: header.refuse_every.load(Ordering::Relaxed),
            records: self.rings.read(),
            records_dropped: self.rings.dropped(&self.session),
            record_buffer: if self.reports.want_records() { self.session.record_bytes() } else { 0 },
            ..Summary::default()
        };
        self.processes.totals().fill(&mut summary, &self.clock.scale());
        summary.check = self.check.summary(&self.session);
        if let Some(audit) = self.audit {
            let mut verdict = audit.finish(summary.records_dropped - self.rings.unfinished());
            verdict.without_oracle.extend(self.processes.totals().without_oracle());
            summary.audit = Some(verdict);
        }
        Watched {
            summary,
            callers: self.symbols.into_callers(),
            reports: self.reports,
            failure: self.failure,
        }
    }

    /// Reads what was recorded and passes it on, and says how full the fullest ring was.
    fn read_records(&mut self, now: Instant, last: bool) -> f64 {
        let listened = self.audit.as_mut().map_or(0.0, |audit| audit.listen(&self.session));
        let drained = self.rings.drain(&self.session, now, last, &mut self.batch);
        let fullest = drained.fullest.max(listened);
        let scale = if self.batch.is_empty() { None } else { Some(self.clock.scale()) };
        for said in self.batch.drain(..) {
            let entry = match (said, &mut self.audit) {
                (Said::Call(entry), _) => entry,
                (Said::Mark(mark), Some(audit)) => {
                    audit.mark(&mark);
                    continue;
                }
                (Said::Mark(_), None) => continue,
            };
            let Some(scale) = &scale else { continue };
            let process = self.session.process(entry.process);
            let index = self.symbols.caller(entry.process, process, entry.caller);
            let record = in_nanoseconds(&entry, process.pid.load(Ordering::Relaxed), index, scale);
            let result = self.reports.record(&record, self.symbols.get(index));
            if let Err(error) = result
                && self.failure.is_none()
            {
                self.failure = Some(error);
            }
        }
        if let Some(audit) = &mut self.audit
            && (drained.complete || last)
        {
            audit.judge(&self.session, &mut self.symbols, last);
        }
        fullest
    }
}

fn in_nanoseconds(entry: &Entry, pid: u32, caller: u32, scale: &Scale) -> Record {
    Record {
        time_ns: scale.since_start(entry.time),
        pid,
        tid: entry.tid,
        call: entry.call.name(),
        event: entry.event.map(|event| event.name()),
        failed: entry.failed,
        refused: entry.refused,
        start: entry.start,
        len: entry.len,
        starts_ns: scale.ns(entry.starts),
        change_ns: scale.ns(entry.change),
        ends_ns: scale.ns(entry.ends),
        caller,
    }
}
