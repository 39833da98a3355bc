//! The processes of a session, and what becomes of them.
//!
//! Entries of processes that are gone are summed up and given back, so that a session can hold any
//! number of processes one after the other. A process is gone when
//!
//! * the kernel no longer knows its pid, or only as a zombie;
//! * a younger entry has its pid: it has `exec`ed, and its next program reports;
//! * it announced its exit some time ago (a pid that says nothing: that of another pid namespace).
//!
//! A program that was announced by an `exec` and does not report (static, setuid, or started without
//! our variables) is counted by path. That is taken back if it reports after all or the `exec` fails.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mmu_notifier_primary::session::{Process, ProcessState};

use crate::session::Session;
use crate::totals::{self, Fate, Progress, Totals};

/// How long a program may take from its `exec` to its report, and a process from its announced exit to its end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Knows what became of every process so far.
#[derive(Debug, Default)]
pub struct Processes {
    totals: Totals,
    unseen: BTreeMap<String, u64>,
    tracks: HashMap<usize, Track>,
}

/// What is known of a process from earlier looks.
#[derive(Debug)]
struct Track {
    pid: u32,
    born: u64,
    state: ProcessState,
    /// When it was first seen in this state.
    since: Instant,
    /// It announced an `exec` and an earlier look found it gone.
    gone: bool,
    /// The program that it became, counted as unseen.
    unseen: Option<String>,
}

/// A process entry as one look found it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    index: usize,
    pid: u32,
    born: u64,
    state: ProcessState,
}

/// Processes that are gone: to be summed up as soon as their records are read.
#[derive(Debug, Default)]
pub struct Gone(Vec<(usize, Fate)>);

impl Processes {
    /// Looks at all processes; `is_gone` says whether a pid is nobody's any more.
    ///
    /// Who is gone at the time of the call has written everything, so the order is: look, read the
    /// records, [`fold`](Processes::fold).
    pub fn look(&mut self, session: &Session, now: Instant, is_gone: &dyn Fn(u32) -> bool) -> Gone {
        let seen = entries(session);
        let mut youngest: HashMap<u32, u64> = HashMap::new();
        for entry in &seen {
            let born = youngest.entry(entry.pid).or_default();
            *born = entry.born.max(*born);
        }
        let mut gone = Gone::default();
        for entry in seen {
            let superseded = youngest[&entry.pid] > entry.born;
            let process = session.process(entry.index);
            if let Some(fate) = self.judge(entry, process, superseded, now, is_gone) {
                gone.0.push((entry.index, fate));
            }
        }
        gone
    }

    fn judge(
        &mut self,
        entry: Seen,
        process: &Process,
        superseded: bool,
        now: Instant,
        is_gone: &dyn Fn(u32) -> bool,
    ) -> Option<Fate> {
        let fresh = |gone| Track {
            pid: entry.pid,
            born: entry.born,
            state: entry.state,
            since: now,
            gone,
            unseen: None,
        };
        let track = self.tracks.entry(entry.index).or_insert_with(|| fresh(false));
        let same = track.pid == entry.pid && track.born == entry.born;
        if !same || track.state != entry.state || superseded {
            if same && let Some(path) = track.unseen.take() {
                forget(&mut self.unseen, &path);
            }
            *track = fresh(false);
        }
        let waited = now.saturating_duration_since(track.since) >= PATIENCE;
        let ordered = if process.threads.load(Ordering::Relaxed) > 1 { Fate::CutShort } else { Fate::Exited };
        match entry.state {
            ProcessState::Free => None,
            ProcessState::Starting | ProcessState::Running => {
                (superseded || is_gone(entry.pid)).then_some(Fate::CutShort)
            }
            ProcessState::Exited => (superseded || waited || is_gone(entry.pid)).then_some(ordered),
            ProcessState::Exec if superseded => Some(Fate::CutShort),
            ProcessState::Exec => {
                let gone = is_gone(entry.pid);
                // Gone now, its next program's entry may have come after this look passed its place:
                // the next look will tell.
                let sure = gone && track.gone;
                track.gone = gone;
                if (waited || sure) && track.unseen.is_none() {
                    let path = totals::path(&process.exec);
                    *self.unseen.entry(path.clone()).or_default() += 1;
                    track.unseen = Some(path);
                }
                sure.then_some(Fate::CutShort)
            }
        }
    }

    /// Sums up who is gone and gives the entries back.
    pub fn fold(&mut self, session: &Session, gone: Gone) {
        for (index, fate) in gone.0 {
            self.totals.add(session.process(index), session.shards(index), fate);
            self.tracks.remove(&index);
            session.free(index);
        }
    }

    /// The last look: everything there is, also of processes that still run. Returns how many those are.
    pub fn finish(&mut self, session: &Session, now: Instant, is_gone: &dyn Fn(u32) -> bool) -> u64 {
        // Twice, for programs that never reported.
        for _ in 0..2 {
            let gone = self.look(session, now, is_gone);
            self.fold(session, gone);
        }
        let mut left = 0;
        for index in session.entries() {
            let process = session.process(index);
            let state = ProcessState::from_u32(process.state.load(Ordering::Acquire));
            let fate = match state {
                // Given back too early (a pid of another namespace): what was counted since.
                ProcessState::Free | ProcessState::Exited => Fate::Exited,
                ProcessState::Starting | ProcessState::Running | ProcessState::Exec => Fate::Running,
            };
            left += u64::from(fate == Fate::Running);
            // Its next program has not reported, and cannot any more: the session is closed.
            let is_counted = self.tracks.get(&index).is_some_and(|track| track.unseen.is_some());
            if state == ProcessState::Exec && !is_counted {
                *self.unseen.entry(totals::path(&process.exec)).or_default() += 1;
            }
            self.totals.add(process, session.shards(index), fate);
        }
        left
    }

    /// The sums, of those who are gone and, after [`finish`](Processes::finish), of all.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Programs that never reported, by path.
    pub fn unseen(&self) -> &BTreeMap<String, u64> {
        &self.unseen
    }

    /// The numbers of all, right now.
    pub fn progress(&self, session: &Session) -> Progress {
        let mut progress = self.totals.progress();
        for entry in entries(session) {
            progress.add(session.shards(entry.index));
        }
        progress
    }
}

/// The entries in use. One that is claimed but has no pid yet is not.
fn entries(session: &Session) -> Vec<Seen> {
    let read = |index| {
        let process = session.process(index);
        // Pairs with the Release of the watched process: what it wrote before the state is seen.
        let state = ProcessState::from_u32(process.state.load(Ordering::Acquire));
        let pid = process.pid.load(Ordering::Relaxed);
        Seen { index, pid, born: process.born.load(Ordering::Relaxed), state }
    };
    let used = |seen: &Seen| seen.state != ProcessState::Free && seen.pid != 0;
    session.entries().into_iter().map(read).filter(used).collect()
}

fn forget(unseen: &mut BTreeMap<String, u64>, path: &str) {
    if let Some(count) = unseen.get_mut(path) {
        *count -= 1;
        if *count == 0 {
            unseen.remove(path);
        }
    }
}

/// Whether the process is gone or a zombie.
pub fn is_gone(pid: u32) -> bool {
    match std::fs::read(format!("/proc/{pid}/stat")) {
        // The state follows the name, which is in parentheses and may contain anything.
        Ok(stat) => {
            let after = stat.iter().rposition(|byte| *byte == b')').map_or(0, |at| at + 1);
            matches!(stat[after..].trim_ascii_start().first(), Some(b'Z' | b'X' | b'x'))
        }
        Err(error) => matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    }
}

#[cfg(test)]
#[path = "processes_tests.rs"]
mod tests;
