//! What the doctor's child has found, on its way to the doctor.

use mmu_notifier_primary::Strict;
use mmu_notifier_primary::probe::Outcome;
use serde::{Deserialize, Serialize};

use crate::session::Wanted;

/// Who makes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A function of the C library.
    Libc,
    /// The C library's function `syscall`.
    Syscall,
    /// An instruction in the program itself.
    Own,
    /// An instruction in a library that is loaded while the program runs.
    Late,
    /// An instruction in memory that was made executable at run time.
    Made,
}

impl Origin {
    pub const ALL: [Origin; 5] = [Origin::Libc, Origin::Syscall, Origin::Own, Origin::Late, Origin::Made];

    /// As a heading.
    pub fn name(self) -> &'static str {
        match self {
            Origin::Libc => "libc",
            Origin::Syscall => "sysc",
            Origin::Own => "own",
            Origin::Late => "late",
            Origin::Made => "made",
        }
    }

    /// In a sentence.
    pub fn is(self) -> &'static str {
        match self {
            Origin::Libc => "functions of the C library",
            Origin::Syscall => "its function syscall()",
            Origin::Own => "instructions in the program",
            Origin::Late => "those in a library loaded late",
            Origin::Made => "those in code made at run time",
        }
    }
}

/// How programs are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// By rewriting alone, as `mmun run` does it where everything can be rewritten.
    Plain,
    /// As `mmun run --strict` does it.
    Strict,
    /// Not at all, but for the memory in question, which is caught in a net of userfaultfd.
    Net,
}

impl Mode {
    /// The ways to watch a program.
    pub const ALL: [Mode; 2] = [Mode::Plain, Mode::Strict];

    /// The session of programs that are watched so.
    pub fn wanted(self) -> Wanted {
        let strict = match self {
            Mode::Plain | Mode::Net => Strict::Never,
            Mode::Strict => Strict::Always,
        };
        Wanted { strict, ..Wanted::default() }
    }

    /// Whether this machine can.
    pub fn is_possible(self) -> bool {
        self == Mode::Plain || super::machine::has_dispatch().is_ok()
    }

    /// Whether calls of this origin are to be announced.
    pub fn covers(self, origin: Origin) -> bool {
        match self {
            Mode::Plain => origin != Origin::Made,
            Mode::Strict => true,
            // The kernel tells of some, and of most of these late.
            Mode::Net => false,
        }
    }
}

/// Where a call was seen: in which file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The file, or what else the mapping is called; empty: memory without a file.
    pub file: String,
    /// The byte of the `syscall` instruction.
    pub offset: usize,
}

/// A call that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// What it does: `madvise DONTNEED`.
    pub event: String,
    /// The system call.
    pub call: String,
    /// Who made it; `None`: see `event`.
    pub origin: Option<Origin>,
    /// Whether it changes something that has to be announced.
    pub changes: bool,
    /// It was announced when everything was as before.
    pub before: bool,
    /// It was announced as done when it was, and before it returned. `None`: nobody is left to be told.
    pub after: Option<bool>,
    /// How often it was announced.
    pub starts: usize,
    pub ends: usize,
    /// Which rewritten instruction made it.
    pub site: Option<Place>,
    /// What the kernel refused it with.
    pub errno: Option<i32>,
}

impl Finding {
    pub fn new(origin: Origin, outcome: &Outcome, site: Option<Place>) -> Finding {
        Finding {
            event: outcome.name.to_owned(),
            call: outcome.call.name().to_owned(),
            origin: Some(origin),
            changes: outcome.changes,
            before: outcome.before,
            after: Some(outcome.after),
            starts: outcome.starts,
            ends: outcome.ends,
            site,
            errno: outcome.errno,
        }
    }

    /// Whether it was announced before and after, as far as somebody was there.
    pub fn is_delivered(&self) -> bool {
        self.before && self.after != Some(false) && (self.after.is_none() || self.starts == self.ends)
    }

    /// Whether all is as it should be where `covered` says that such calls are announced.
    pub fn is_right(&self, covered: bool) -> bool {
        match self.changes {
            true => !covered || self.is_delivered(),
            false => self.starts == 0,
        }
    }
}

/// What a call costs, in nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Time {
    /// As in [`Finding`].
    pub event: String,
    /// The median.
    pub ns: u64,
}

/// All that a child has found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Findings {
    /// Whether the object is in it.
    pub hooked: bool,
    /// Calls by each origin.
    pub calls: Vec<Finding>,
    /// What is done for the program by the C library and the loader, and the end of processes.
    pub others: Vec<Finding>,
    /// How long calls take.
    pub times: Vec<Time>,
    /// What is not as it was written in the hook's code, in sentences. Calls may be announced all the same.
    pub notes: Vec<String>,
    /// The process id of the static program that was started.
    pub alone: Option<u32>,
}
