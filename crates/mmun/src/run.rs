//! `mmun run`: a program from its start to its report.

// UNSAFETY: a question to the kernel that no crate asks.
#![expect(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};

use crate::audit::Audit;
use crate::cli::{self, Run};
use crate::clock::Clock;
use crate::inject::Injection;
use crate::launch;
use crate::live::Live;
use crate::preload;
use crate::program::{self, Way};
use crate::reports::{self, Reports};
use crate::session::{Session, Wanted};
use crate::signals;
use crate::summary::{self, Outcome};
use crate::tracer::Tracer;
use crate::watch::Watcher;

/// Brackets of an audit take at least this, in bytes: none may be lost.
const AUDIT_BUFFER: u64 = 64 << 20;

/// Runs the program and reports. The outcome is the program's, or 125 if it was well and a report failed.
pub fn run(options: &Run) -> Result<Outcome> {
    let name = options.program.first().context("no program given")?;
    let file = program::resolve(name, std::env::var_os("PATH").as_deref())?;
    let way = program::check(&file)?;
    if options.strict == cli::Strict::Always {
        has_dispatch()?;
    }
    let (json, trace, html) = (&options.json, &options.trace, &options.report);
    let reports = Reports::open(json.as_deref(), trace.as_deref(), html.as_deref())?;
    let found = signals::take_over();
    let object = preload::object()?;

    let audit = options.audit.then(Audit::open).transpose()?;
    let calls = reports.want_records();
    let buffer = match &audit {
        Some(_) => Some(options.buffer.max(AUDIT_BUFFER)),
        None => calls.then_some(options.buffer),
    };
    let wanted = Wanted {
        refuse_every: options.refuse.unwrap_or(0),
        strict: options.strict.into(),
        buffer,
        check: options.check,
        calls,
        audit: audit.as_ref().map_or(0, Audit::key),
    };
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    let session = Session::create(wanted, cpus)?;
    let variables = [
        ("MMUN_SESSION", session.path().into()),
        ("LD_PRELOAD", preload_list(&object, std::env::var_os("LD_PRELOAD"))),
    ];
    let injection = Injection { object, session: session.path() };
    let tracer = Tracer::start(&session, &injection)?;
    // Into which nothing is preloaded does not look at these variables, and must not see them.
    let (variables, injection) = match way {
        Way::Preload => (&variables[..], None),
        Way::Inject => (&[][..], Some(&injection)),
    };

    let clock = Clock::start();
    let child = match launch::start(&file, &options.program, variables, injection, &found)? {
        Ok(child) => child,
        Err(error) => return Err(program::exec_failed(&file, &error).into()),
    };
    let live = if options.quiet { None } else { Live::on_stderr() };
    let watcher = Watcher::start(session, clock, reports, live, audit)
        .context("the program runs unwatched; end it if you do not want that")?;
    let outcome = child.wait();
    let wall = clock.elapsed();
    let mut watched = watcher.finish()?;
    tracer.end();
    found.give_back();

    watched.summary.command =
        options.program.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    watched.summary.wall = wall;
    watched.summary.outcome = outcome;
    if !options.quiet {
        // Who closed our stderr does not want to know.
        let _ = reports::write_text(&watched.summary, options.color.on(&std::io::stderr()));
    }
    let stale = watched.summary.check.as_ref().is_some_and(|check| check.stale() > 0);
    let finished = watched.reports.finish(&watched.summary, &watched.callers);
    let audited = watched.summary.audit.as_ref().map_or(Ok(()), verdict);
    match watched.failure.map_or(finished.and(audited), Err) {
        Err(error) if outcome == Outcome::Exited(0) => Err(error),
        Err(error) => {
            crate::complain(&error);
            Ok(outcome)
        }
        Ok(()) if stale && options.check_status != 0 && matches!(outcome, Outcome::Exited(_)) => {
            Ok(Outcome::Exited(options.check_status.into()))
        }
        Ok(()) => Ok(outcome),
    }
}

/// Whether the kernel can do what strict mode takes.
fn has_dispatch() -> Result<()> {
    const PR_SET_SYSCALL_USER_DISPATCH: libc::c_int = 59;
    const OFF: libc::c_ulong = 0;
    // SAFETY: off is what it is.
    if unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, OFF, 0, 0, 0) } == 0 {
        return Ok(());
    }
    let hint =
        "--strict takes Syscall User Dispatch (Linux 5.11 or later, outside of sandboxes that forbid it)";
    Err(std::io::Error::last_os_error()).context(hint)
}

/// What is preloaded: our object, and what was to be preloaded anyway.
pub fn preload_list(object: &Path, others: Option<OsString>) -> OsString {
    let mut list = object.as_os_str().to_owned();
    if let Some(others) = others.filter(|others| !others.is_empty()) {
        list.push(":");
        list.push(others);
    }
    list
}

/// The audit has found changes that nobody announced, or could not see all.
#[derive(Debug)]
struct NotClean {
    unexplained: u64,
    lost: u64,
}

impl std::fmt::Display for NotClean {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let NotClean { unexplained, lost } = self;
        write!(f, "the audit failed: {unexplained} kernel invalidations unexplained, {lost} lost")
    }
}

impl std::error::Error for NotClean {}

fn verdict(audit: &summary::Audit) -> Result<()> {
    if audit.is_clean() {
        return Ok(());
    }
    Err(NotClean { unexplained: audit.unexplained, lost: audit.lost() }.into())
}

/// The status that mmun itself fails with.
pub fn status_of(error: &anyhow::Error) -> i32 {
    if error.is::<NotClean>() {
        return 123;
    }
    error.downcast_ref::<program::Refusal>().map_or(125, |refusal| refusal.status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn keeps_what_was_preloaded() {
        let object = Path::new("/o.so");
        assert_eq!(preload_list(object, None), "/o.so");
        assert_eq!(preload_list(object, Some("".into())), "/o.so");
        assert_eq!(preload_list(object, Some("a.so b.so".into())), "/o.so:a.so b.so");
    }

    #[test]
    fn statuses() {
        assert_eq!(status_of(&anyhow!("anything")), 125);
        let refusal = program::resolve("".as_ref(), None).unwrap_err();
        assert_eq!(status_of(&anyhow::Error::from(refusal)), 127);
    }
}
