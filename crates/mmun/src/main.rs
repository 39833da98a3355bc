//! `mmun`: see every change of a program's address space.
//!
//! `mmun run` starts a program with an object preloaded that brackets its memory system calls and
//! counts into memory shared with mmun ([`session`]); a thread reads that ([`watch`]) and at the end it
//! is summed up and reported.
//!
//! `mmun replay` ([`replay`]) and `mmun demo` ([`demo`]) start no program: they show how the kernels and this
//! library behave. `mmun doctor` ([`doctor`]) runs itself as the program.

#![expect(unreachable_pub, reason = "a program is reached by nobody; here `pub` means: for other modules")]

mod audit;
mod check;
mod cli;
mod clock;
mod demo;
mod doctor;
mod elf;
mod inject;
mod launch;
mod live;
mod page;
mod preload;
mod processes;
mod program;
mod replay;
mod report;
mod reports;
mod rings;
mod run;
mod session;
mod signals;
mod summary;
mod symbols;
mod totals;
mod tracee;
mod tracer;
mod unwind;
mod watch;

use std::io::Write;

use clap::Parser;

use crate::cli::{Cli, Command, Demo, Experiment, Run};
use crate::report::fit::printable;
use crate::summary::Outcome;

fn main() {
    match Cli::parse().command {
        Command::Run(options) => run(&options),
        Command::Replay(options) => std::process::exit(replay::replay(&options)),
        Command::Doctor(options) => std::process::exit(doctor::show(&options)),
        Command::Demo(Demo { experiment }) => std::process::exit(match experiment {
            Experiment::Pairing(options) => demo::pairing::show(&options),
            Experiment::IoUring(options) => demo::io_uring::show(&options),
            Experiment::Hole(options) => demo::hole::show(&options),
            Experiment::Oom(options) => demo::oom::show(&options),
            Experiment::OomProgram(options) => demo::oom::program::run(&options),
        }),
    }
}

fn run(options: &Run) {
    match run::run(options) {
        Ok(Outcome::Exited(status)) => std::process::exit(status),
        Ok(Outcome::Killed(signal)) => signals::die_of(signal),
        Ok(Outcome::Running) => unreachable!("it was waited for"),
        Err(error) => {
            complain(&error);
            std::process::exit(run::status_of(&error));
        }
    }
}

/// One line on stderr; who has closed it does not want to know.
fn complain(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "mmun: {}", printable(&format!("{error:#}")));
}
