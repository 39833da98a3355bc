//! A program that meets the memory limit of its control group, four ways.

mod disk;
mod group;
mod memory;
pub mod program;
mod table;

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::cli::{Alarms, Oom, Way};
use crate::page::{self, Page};
use crate::signals;
use group::{Group, Version};
use program::{CACHES, Found, LIMIT, busy};

/// How long a program may take before it counts as hung: it may be stopped at the limit for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// How one run has ended.
enum Ending {
    Survived(Found),
    /// By the kernel, for its memory.
    Killed,
    Hung,
}

/// All runs of one way with one alarm.
struct Course {
    way: Way,
    alarm: Alarms,
    endings: Vec<Ending>,
}

impl Course {
    fn survivors(&self) -> impl Iterator<Item = &Found> {
        self.endings.iter().filter_map(|ending| match ending {
            Ending::Survived(found) => Some(found),
            _ => None,
        })
    }

    fn killed(&self) -> usize {
        self.endings.iter().filter(|ending| matches!(ending, Ending::Killed)).count()
    }

    /// What is not as it should be.
    fn faults(&self) -> Vec<String> {
        let should_survive = matches!(self.way, Way::Reaper | Way::Busy);
        let mut faults = Vec::new();
        for ending in &self.endings {
            match ending {
                Ending::Hung => faults.push("it hung".to_owned()),
                Ending::Killed if should_survive => faults.push("it was killed".to_owned()),
                Ending::Survived(_) if !should_survive => faults.push("it was not killed".to_owned()),
                Ending::Survived(found) => {
                    faults.extend(found.wrong.iter().cloned());
                    let busy = busy(self.way);
                    if found.untouched != busy {
                        faults.push(format!("{} of {busy} that were in use are untouched", found.untouched));
                    }
                    if found.reaped != CACHES - busy {
                        faults.push(format!("{} of {} caches were taken", found.reaped, CACHES - busy));
                    }
                    if (found.refused > 0) != (busy > 0) {
                        faults.push(format!("{} changes were refused", found.refused));
                    }
                }
                Ending::Killed => {}
            }
        }
        faults
    }
}

/// Somebody wants mmun to end, by this signal.
#[derive(Debug)]
struct AskedToEnd(i32);

impl std::fmt::Display for AskedToEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ended by signal {}", self.0)
    }
}

impl std::error::Error for AskedToEnd {}

/// Runs the experiment and shows it; gives the exit status.
pub fn show(options: &Oom) -> i32 {
    signals::defer_the_end();
    let courses = match courses(options) {
        Ok(courses) => courses,
        Err(error) => {
            // All is cleaned up by now.
            if let Some(AskedToEnd(signal)) = error.downcast_ref() {
                signals::die_of(*signal);
            }
            crate::complain(&error);
            return 2;
        }
    };
    let mut page = Page::on_stdout(options.color);
    let written = table::write(&mut page, &courses).and_then(|()| page.flush());
    let is_as_it_should_be = courses.iter().all(|course| course.faults().is_empty());
    page::status(written.map(|()| i32::from(!is_as_it_should_be)))
}

fn courses(options: &Oom) -> anyhow::Result<Vec<Course>> {
    let alarms = match (options.alarm, group::version()?) {
        (Alarms::All, Version::V1) => vec![Alarms::Threshold, Alarms::OomControl],
        (Alarms::All, Version::V2) => vec![Alarms::Polling],
        (Alarms::Threshold | Alarms::OomControl, Version::V2) => {
            bail!("control groups of version 2 have no such alarm; give --alarm polling, or no --alarm")
        }
        (one, _) => vec![one],
    };
    let mut courses = Vec::new();
    for alarm in alarms {
        for &way in Way::value_variants() {
            let endings = (0..options.runs).map(|_| once(way, alarm)).collect::<Result<_, _>>()?;
            courses.push(Course { way, alarm, endings });
        }
    }
    Ok(courses)
}

fn once(way: Way, alarm: Alarms) -> anyhow::Result<Ending> {
    let group = Group::new("mmun-oom", LIMIT)?;
    let own = std::env::current_exe().context("cannot find mmun itself")?;
    let name = |value: clap::builder::PossibleValue| value.get_name().to_owned();
    let mut command = Command::new(own);
    command.args(["demo", "oom-program"]).arg(group.path());
    command.args([way.to_possible_value(), alarm.to_possible_value()].into_iter().flatten().map(name));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start mmun itself")?;
    let Some(status) = wait(&mut child)? else { return Ok(Ending::Hung) };
    let mut text = String::new();
    child.stdout.take().context("no pipe")?.read_to_string(&mut text)?;
    if status.signal() == Some(libc::SIGKILL) && group.kills()? > 0 {
        return Ok(Ending::Killed);
    }
    if !status.success() {
        bail!("the program did not come to its end: {status}");
    }
    Ok(Ending::Survived(serde_json::from_str(&text).context("what the program says cannot be read")?))
}

/// Waits for its end; if it takes too long it is killed, and there is no status.
fn wait(child: &mut Child) -> anyhow::Result<Option<std::process::ExitStatus>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let asked = signals::asked_to_end();
        if asked.is_some() || began.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return asked.map_or(Ok(None), |signal| Err(AskedToEnd(signal).into()));
        }
        sleep(Duration::from_millis(5));
    }
}
