//! `mmun doctor`: makes every kind of memory call on this machine and says what is announced; and what the machine lacks.
//!
//! | file | what |
//! | --- | --- |
//! | `doctor/patient.rs` | the child that makes the calls, under the preload object as any program of `mmun run` |
//! | `doctor/origins.rs`, `../doctor/` | from where it makes them; the library and the static program that it takes along |
//! | `doctor/others.rs` | what the C library and the loader do for it; exec and exit |
//! | `doctor/hook.rs` | the object's C interface |
//! | `doctor/findings.rs` | what it has found |
//! | `doctor/machine.rs` | what this machine lacks, and the remedy |
//! | `doctor/table.rs`, `doctor/json.rs` | the answer, for people and for scripts |
//!
//! The calls themselves are those of `mmu_notifier_primary::probe`, which a program can also make by `Primary::check`.

mod findings;
mod hook;
mod json;
mod machine;
mod origins;
mod others;
mod patient;
mod table;

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use mmu_notifier_primary::Syscall;

use findings::{Finding, Findings, Mode, Origin};

use crate::cli::Doctor;
use crate::page::{self, Page};
use crate::preload;
use crate::run::preload_list;
use crate::session::Session;

/// Seconds after which a child that does not come back is ended.
const PATIENCE: u32 = 60;
/// How often the time is taken.
const RUNS: usize = 3;

/// All that is known in the end.
#[derive(Debug)]
pub struct Diagnosis {
    modes: Vec<(Mode, Findings)>,
    alone: Alone,
    /// What calls take in nanoseconds: the medians of all runs, by who watches and by event.
    times: HashMap<(Option<Mode>, String), Vec<u64>>,
    machine: Vec<machine::Item>,
}

/// What becomes of a program without a dynamic loader.
#[derive(Debug, Default)]
struct Alone {
    /// By `mmun run`: whether its calls were announced, or what was said instead of running it.
    run: Option<std::result::Result<bool, String>>,
    /// Started by a program that is watched: whether its calls were announced.
    started: bool,
}

impl Diagnosis {
    /// What a call takes with somebody watching.
    fn watched(&self, mode: Mode, event: &str) -> Option<u64> {
        self.time(Some(mode), event)
    }

    /// What it takes without.
    fn alone(&self, event: &str) -> Option<u64> {
        self.time(None, event)
    }

    /// The least of all medians: the others had company on this machine.
    fn time(&self, mode: Option<Mode>, event: &str) -> Option<u64> {
        self.times.get(&(mode, event.to_owned()))?.iter().min().copied()
    }

    fn find(&self, mode: Mode, origin: Origin, event: &str) -> Option<&Finding> {
        let (_, findings) = self.modes.iter().find(|(other, _)| *other == mode)?;
        findings.calls.iter().find(|finding| finding.origin == Some(origin) && finding.event == event)
    }

    fn took(&mut self, mode: Option<Mode>, findings: Findings) {
        for time in findings.times {
            self.times.entry((mode, time.event)).or_default().push(time.ns);
        }
    }

    /// What was not announced as it should have been, in sentences.
    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        // A net is told of what the kernel has to tell: there is nothing that should be otherwise.
        for (mode, findings) in self.modes.iter().filter(|(mode, _)| *mode != Mode::Net) {
            let covered = |finding: &Finding| finding.origin.is_none_or(|origin| mode.covers(origin));
            let all = findings.calls.iter().chain(&findings.others);
            for finding in all.filter(|finding| !finding.is_right(covered(finding))) {
                let from = finding.origin.map_or(String::new(), |origin| format!(" by {}", origin.is()));
                let what = match (finding.changes, finding.starts, finding.before) {
                    (false, ..) => "changes nothing, and is announced",
                    (_, 0, _) => "is not announced",
                    (_, _, false) => "is announced too late",
                    _ => "is not announced as done when it is",
                };
                let how = if *mode == Mode::Plain { "" } else { ", in strict mode" };
                wrong.push(format!("{}{from} {what}{how}", finding.event));
            }
        }
        if self.alone.run == Some(Ok(false)) {
            wrong.push("munmap by a static program is not announced".to_owned());
        }
        wrong
    }
}

/// Examines and shows; gives the exit status.
pub fn show(options: &Doctor) -> i32 {
    if let Some(what) = options.patient {
        return match patient::be(what) {
            Ok(()) => 0,
            Err(error) => {
                crate::complain(&error);
                2
            }
        };
    }
    let diagnosis = match diagnose(if options.quick { 0 } else { RUNS }) {
        Ok(diagnosis) => diagnosis,
        Err(error) => {
            crate::complain(&error);
            return 2;
        }
    };
    let status = i32::from(!diagnosis.wrong().is_empty());
    let mut page = Page::on_stdout(options.color);
    let written = match options.json {
        true => json::write(&mut page, &diagnosis),
        false => table::write(&mut page, &diagnosis),
    };
    page::status(written.and_then(|()| page.flush()).map(|()| status))
}

fn diagnose(runs: usize) -> Result<Diagnosis> {
    let mut diagnosis = Diagnosis {
        modes: Vec::new(),
        alone: Alone::default(),
        times: HashMap::new(),
        machine: machine::look(),
    };
    let modes = Mode::ALL.into_iter().filter(|mode| mode.is_possible());
    for mode in modes.clone() {
        let (session, findings) = watched(mode, What::All)?;
        diagnosis.alone.started |= findings.alone.is_some_and(|pid| has_unmapped(&session, pid));
        diagnosis.modes.push((mode, findings));
    }
    let caught = read(patient(What::Net)?)?;
    if !caught.calls.is_empty() {
        diagnosis.modes.push((Mode::Net, caught));
    }
    diagnosis.alone.run = Some(run_alone()?);
    // In turn, so that all have the same company.
    for _ in 0..runs {
        diagnosis.took(None, read(patient(What::Times)?)?);
        for mode in modes.clone() {
            // What is rewritten costs the same in both.
            let what = if mode == Mode::Plain { What::Times } else { What::MadeTimes };
            diagnosis.took(Some(mode), watched(mode, what)?.1);
        }
    }
    Ok(diagnosis)
}

/// What a patient does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Makes all calls, and sees what it is told.
    All,
    /// Makes calls of which only a net tells.
    Net,
    /// Takes the time.
    Times,
    /// That of calls of code made at run time.
    MadeTimes,
}

/// A patient that is watched as `mmun run` does it.
fn watched(mode: Mode, what: What) -> Result<(Session, Findings)> {
    let object = preload::object()?;
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    let session = Session::create(mode.wanted(), cpus)?;
    let mut command = patient(what)?;
    command.env("MMUN_SESSION", session.path());
    command.env("LD_PRELOAD", preload_list(&object, std::env::var_os("LD_PRELOAD")));
    let findings = read(command)?;
    if !findings.hooked {
        bail!("{} was not loaded into a program: is LD_PRELOAD forbidden here?", object.display());
    }
    Ok((session, findings))
}

/// This program.
fn own() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("cannot find mmun itself (/proc/self/exe)")?))
}

/// This program as its own patient.
fn patient(what: What) -> Result<Command> {
    let mut command = own()?;
    let what = what.to_possible_value().map_or(String::new(), |what| what.get_name().to_owned());
    command.args(["doctor", "--patient", &what]).stdin(Stdio::null());
    machine::alarm_before_exec(&mut command, PATIENCE);
    Ok(command)
}

fn read(mut command: Command) -> Result<Findings> {
    let output = command.output().context("cannot run mmun itself")?;
    if let Some(signal) = output.status.signal() {
        let hint = if signal == libc::SIGALRM { ": it hung" } else { "" };
        bail!("the program that makes the calls was killed by signal {signal}{hint}");
    }
    if !output.status.success() {
        bail!(
            "the program that makes the calls failed: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    serde_json::from_slice(&output.stdout).context("the program that makes the calls says something else")
}

/// The static program by `mmun run`: whether its calls are announced, or why it is not run.
fn run_alone() -> Result<std::result::Result<bool, String>> {
    // Where programs may be run from, as the object is there. Not a file in memory: its call sites could not be looked up.
    let object = preload::object()?;
    let path = object.with_file_name(format!(".alone-{}", std::process::id()));
    let ended = origins::write_alone(&path).and_then(|()| {
        let mut command = own()?;
        command.args(["run", "--quiet", "--json", "-", "--"]).arg(&path).stdin(Stdio::null());
        machine::alarm_before_exec(&mut command, PATIENCE);
        command.output().context("cannot run mmun itself")
    });
    // It is in nobody's way if it stays.
    let _ = std::fs::remove_file(&path);
    let output = ended?;
    if !output.status.success() {
        // mmun: PATH: why
        let said = String::from_utf8_lossy(&output.stderr);
        let why =
            said.trim_end().rsplit_once(&format!("{}: ", path.display())).map_or(&*said, |(_, why)| why);
        return Ok(Err(why.to_owned()));
    }
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).context("mmun run --json")?;
    Ok(Ok(report["calls"]["munmap"]["bracketed"].as_u64() >= Some(origins::ALONE_ROUNDS)))
}

/// Whether a process of that id has announced its calls of `munmap`.
fn has_unmapped(session: &Session, pid: u32) -> bool {
    session.entries().into_iter().any(|index| {
        let own = session.process(index).pid.load(Ordering::Relaxed) == pid;
        let announced = |index| {
            let calls = session.shards(index).map(|shard| &shard.calls[Syscall::Munmap as usize]);
            calls.map(|calls| calls.bracketed.load(Ordering::Relaxed)).sum::<u64>()
        };
        own && announced(index) > 0
    })
}
