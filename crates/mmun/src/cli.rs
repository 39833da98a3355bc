//! What can be said on the command line.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum};
use mmu_notifier_model::Kernel;

/// See every change of a program's address space: what, why, how often, how long.
#[derive(Debug, Parser)]
#[command(name = "mmun", version, about, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    // What help says of each stands at its options.
    Run(Run),
    Replay(Replay),
    Doctor(Doctor),
    Demo(Demo),
}

const EXAMPLES: &str = "\
EXAMPLES:
  mmun run -- ls -l                            what ls does to its address space
  mmun doctor                                  what is announced on this machine, and what not
  mmun demo pairing                            the bug that started it, and its fix
  mmun demo io-uring                           data lost by a stale registration, and not
  mmun demo oom                                killed at the memory limit, and not
  mmun replay golden:eagain_every_second       what the kernel's own code did

  mmun help COMMAND says more, with more examples.";

const RUN_EXAMPLES: &str = "\
EXAMPLES:
  mmun run -- ls -l                            a summary on stderr when ls is done
  mmun run --report out.html -- ./server       a page with pictures
  mmun run --trace out.json -- make -j8        a timeline for ui.perfetto.dev, all processes
  mmun run --json - --quiet -- ./job | jq .    numbers for scripts
  mmun run --refuse 1/3 -- ./program           refuse every third change that may not wait
  mmun run --strict -- node app.js             also system calls of code made at run time
  mmun run --check -- ./server                 find registrations that went stale
  mmun run --audit -- ./program                the kernel as judge: did anything escape?

EXIT STATUS:
  That of the program; a signal that kills it kills mmun too. 66: --check found a stale
  registration (--check-status says another). 123: the program was well, but its audit found
  something unexplained or lost something. Otherwise 125: mmun itself failed; 126: the program
  cannot be run or not be watched; 127: not found; 2: wrong usage.";

/// Run a program and report its changes of memory.
///
/// Every system call of the program, and of the processes that it starts, that changes an address space
/// (mmap, munmap, madvise, brk, fork and so on) is bracketed: subscribers are told before and after it.
/// The program is not changed on disk, needs no symbols, and sees its terminal, signals and exit status as
/// always. A setuid program is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = RUN_EXAMPLES)]
pub struct Run {
    /// Write all numbers as JSON; - is stdout.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write every call with its times as a trace for ui.perfetto.dev or chrome://tracing.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// Write a page with pictures; one file, works offline.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,

    /// Attach a subscriber that refuses every N-th change that may not wait. munmap is put off then; other calls
    /// ask again and, with 1/1, fail.
    #[arg(long, value_name = "1/N", value_parser = parse_refuse)]
    pub refuse: Option<u32>,

    /// Catch system calls of all code, also of what cannot be rewritten: hand-made, made at run time.
    ///
    /// auto: in processes that have a call site which cannot be rewritten. Then every call that was not
    /// rewritten takes microseconds longer (docs/performance.md).
    #[arg(long, value_name = "WHEN", default_value = "auto", default_missing_value = "always",
          num_args = 0..=1, require_equals = true)]
    pub strict: Strict,

    /// Check what the program registers with the kernel (fixed buffers of io_uring, DMA mappings, memslots of KVM,
    /// locked memory): is it still the memory that is there?
    ///
    /// A registration whose memory was replaced is stale: data go where the program does not see them. Both calls are
    /// told with their call stacks. docs/check.md says more.
    #[arg(long)]
    pub check: bool,

    /// Exit with this status if --check found a stale registration; 0: with the program's.
    #[arg(long, value_name = "STATUS", default_value = "66", requires = "check", value_parser = clap::value_parser!(u8))]
    pub check_status: u8,

    /// Hold the kernel's own reports of changes against what was announced; needs root and KVM.
    #[arg(long)]
    pub audit: bool,

    /// Memory for single calls on their way to --trace and --report (64k to 4g); what finds it full is
    /// dropped and counted.
    #[arg(long, value_name = "SIZE", default_value = "8m", value_parser = parse_size)]
    pub buffer: u64,

    /// No live line and no summary.
    #[arg(long, short)]
    pub quiet: bool,

    /// Colours in the summary.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Color,

    /// The program and its arguments.
    #[arg(trailing_var_arg = true, required = true, value_names = ["PROGRAM", "ARGS"])]
    pub program: Vec<OsString>,
}

const DOCTOR_EXAMPLES: &str = "\
EXAMPLES:
  mmun doctor                                  what is announced here, and what this machine lacks
  mmun doctor --json | jq .wrong               for scripts
  mmun doctor --quick > /dev/null && echo well

EXIT STATUS:
  0: everything that should be announced here is.  1: something is not (the last lines say what).
  2: it cannot be found out here, or wrong usage.";

/// Make every kind of memory call on this machine, and say what is announced.
///
/// A program watched as mmun run watches it makes each memory system call and each advice of madvise: by the
/// functions of the C library, by its function syscall, by instructions of its own, of a library that is loaded
/// late and of code made at run time; has the loader, threads and the allocator make theirs; becomes another
/// program, and ends. A subscriber looks, at each start whether everything is still as before, and at each end
/// whether the change is done. The table shows both for each, and what the call costs more than unwatched, in
/// nanoseconds: the difference of two medians.
///
/// Below it stands what this machine has of what this project uses, and what to do about what it has not.
/// docs/doctor.md says more.
#[derive(Debug, clap::Args)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub struct Doctor {
    /// Write everything as JSON, to stdout.
    #[arg(long)]
    pub json: bool,

    /// Do not find out what calls cost.
    #[arg(long)]
    pub quick: bool,

    /// Colours in the output.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Color,

    /// Be the program that makes the calls.
    #[arg(long, hide = true, value_name = "WHAT")]
    pub patient: Option<crate::doctor::What>,
}

const REPLAY_EXAMPLES: &str = "\
EXAMPLES:
  mmun replay --list                           the golden traces
  mmun replay golden:eagain_two_refusers       one, on each kernel it is of
  mmun replay --as 7.2 golden:eagain_two_refusers--5.10
                                               what the pairing fix changed
  mmun replay --quiet golden:all               the model against every trace
  mmun replay mine.jsonl other.jsonl.gz        files of the same format
  mmun replay --color always mine.jsonl | less -RS
                                               nothing cut at the terminal's width

EXIT STATUS:
  0: every observation is as recorded.  1: one differs.
  2: a file cannot be read or is no trace (the error names line and field), or
  wrong usage.";

/// Replay a recorded trace of the kernel's notifiers, step by step.
///
/// A trace holds operations (a subscriber registers, a range is invalidated, and so on) and all that was seen
/// of them when real kernel code did them: results, callbacks, warnings, who waits, the state. A model of the
/// kernel does them again. Each step is one line; what differs from the recorded run follows it in colour.
/// The last line is every subscriber's balance of starts and ends. docs/replay.md says more.
#[derive(Debug, clap::Args)]
#[command(after_help = REPLAY_EXAMPLES)]
pub struct Replay {
    /// Traces to replay, also compressed by gzip.
    ///
    /// A - is stdin. golden:NAME is a golden trace (recorded from the kernel's own code, part of this program) on
    /// each kernel that it was recorded on, golden:NAME--KERNEL on that one; golden:all is all of them.
    #[arg(value_name = "FILE", required_unless_present = "list")]
    pub files: Vec<OsString>,

    /// Whose semantics to replay under; without it, those of the kernel that was recorded.
    #[arg(long = "as", value_name = "KERNEL", value_parser = kernels())]
    pub kernel: Option<Kernel>,

    /// Only what differs, one difference a line, and the result.
    #[arg(long, short)]
    pub quiet: bool,

    /// List the golden traces.
    #[arg(long, conflicts_with_all = ["files", "kernel", "quiet"])]
    pub list: bool,

    /// Colours in the output.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

/// Show an experiment.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// Which.
    #[command(subcommand)]
    pub experiment: Experiment,
}

/// The experiments.
#[derive(Debug, Subcommand)]
pub enum Experiment {
    Pairing(Pairing),
    IoUring(IoUring),
    Hole(Hole),
    Oom(Oom),
    #[command(hide = true)]
    OomProgram(OomProgram),
}

const PAIRING_EXAMPLES: &str = "\
EXAMPLES:
  mmun demo pairing                            as the fix describes it
  mmun demo pairing --refuse 1/1               nothing of the victim can be reaped
  mmun demo pairing --refuse 1/9               nobody has to refuse: all is well";

/// Every start has its end: an OOM kill before the pairing fix, after it, and here.
///
/// The OOM reaper takes a victim's memory away. It cannot wait, so its starts may be refused; then it leaves
/// that mapping alone, goes on, and tries everything again later, ten times at most. Two subscribers are told:
/// one counts starts minus ends, as KVM does (while the count is not 0, no guest page fault is served), and one
/// refuses every N-th start that may not wait, as a GPU driver does that is busy.
///
/// Linux up to 5.11 never sent the first its end for a start that the second had refused. The columns of the
/// kernels are replayed by the model of each kernel, the last one is this library itself.
#[derive(Debug, clap::Args)]
#[command(after_help = PAIRING_EXAMPLES)]
pub struct Pairing {
    /// Refuse every N-th start.
    #[arg(long, value_name = "1/N", default_value = "1/3", value_parser = parse_refuse)]
    pub refuse: u32,

    /// How many mappings the victim has.
    #[arg(long, value_name = "NUMBER", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub vmas: u32,

    /// How often the reaper tries before it gives up; in Linux 10 times.
    #[arg(long, value_name = "NUMBER", default_value = "10", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub attempts: u32,

    /// Colours in the output.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

const IO_URING_EXAMPLES: &str = "\
EXAMPLES:
  mmun demo io-uring                           the loss and the cure, beside each other
  mmun demo io-uring && echo cured             for scripts

EXIT STATUS:
  0: data was lost without mmu-notifier, and none with it.  1: not so.
  2: it cannot be shown here (no io_uring), or wrong usage.";

/// Fixed buffers of io_uring whose memory changes: silent loss without, right data with mmu-notifier.
///
/// A fixed buffer is registered with a ring and used again and again, which saves pinning its pages at each
/// operation. But the registration is of the pages, not of the address: after munmap and mmap, madvise or mremap
/// other pages are there, and what is read goes to the old ones. The kernel reports success.
///
/// On the left a buffer is registered once, as io_uring offers it. On the right it is registered through the
/// cache of this library, with the system calls of mmun itself intercepted as mmun run intercepts those of
/// programs; nothing else is different. What cannot be registered is read into by its address.
#[derive(Debug, clap::Args)]
#[command(after_help = IO_URING_EXAMPLES)]
pub struct IoUring {
    /// Colours in the output.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

const HOLE_EXAMPLES: &str = "\
EXAMPLES:
  mmun demo hole                               the race, and how it is closed
  mmun demo hole --color always | less -R      with colours in a pager

EXIT STATUS:
  0: the cache that is told once was stale, those of mmu-notifier were not.  1: not so.
  2: it cannot be shown here (no io_uring), or wrong usage.";

/// A thread registers memory between the event and the system call: a stale entry, and how that is closed.
///
/// Registration caches that are told of an unmap once, before the call - as those of UCX and libfabric are - have
/// a hole: when everybody has been told, and before the call is made, another thread can register the memory that
/// is about to go. That entry nobody takes out, and the next request for the same address gets it.
///
/// Here it happens step by step, with fixed buffers of io_uring; the columns are the two threads. First with a
/// cache that is told once, then with that of this library, which is told before and after: whoever comes in the
/// middle waits for the end, and whoever had begun before is refused and tries again.
#[derive(Debug, clap::Args)]
#[command(after_help = HOLE_EXAMPLES)]
pub struct Hole {
    /// Colours in the output.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

const OOM_EXAMPLES: &str = "\
EXAMPLES:
  sudo mmun demo oom                           the four ways, three times each, with both alarms
  sudo mmun demo oom --runs 20 --alarm threshold
                                               more often, with one of them

EXIT STATUS:
  0: each way ended as it should, each time.  1: not so.
  2: it cannot be shown here (no control groups, no io_uring), or wrong usage.";

/// A program that meets its memory limit: killed without the reaper, and alive with it.
///
/// A program in a control group of its own has caches: memory that a guest (as KVM has it), objects of a graphics
/// processor (as i915 had them) and fixed buffers of io_uring refer to. Then it allocates past the limit of the group.
///
/// Four ways: nobody does anything; the caches are discarded, and those who refer to them are not told, so that their
/// pages stay pinned; the reaper of this library takes the caches, telling everybody before and after; and it does so
/// while a quarter of the caches is in use, which is refused and stays as it is. What is left is checked byte by byte.
///
/// The alarm is a threshold of the group's memory, or the group's out-of-memory control with the killer stopped; in groups
/// of cgroup version 2, which have neither, the memory in use is read once a millisecond. The group is made by this
/// command, and removed.
#[derive(Debug, clap::Args)]
#[command(after_help = OOM_EXAMPLES)]
pub struct Oom {
    /// How often each way is gone.
    #[arg(long, value_name = "NUMBER", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,

    /// What says that memory runs short.
    #[arg(long, value_name = "WHICH", default_value = "all")]
    pub alarm: Alarms,

    /// Colours in the output.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

/// Which alarms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Alarms {
    /// A threshold of the memory in use.
    Threshold,
    /// The out-of-memory control, with the killer stopped.
    OomControl,
    /// The memory in use is read once a millisecond.
    Polling,
    /// One after the other; where there are others, not polling.
    All,
}

/// The program of `mmun demo oom`, which runs it.
#[derive(Debug, clap::Args)]
pub struct OomProgram {
    /// The directory of the control group to run in.
    pub group: PathBuf,

    /// Which way.
    pub way: Way,

    /// The alarm: not all.
    pub alarm: Alarms,
}

/// The ways of `mmun demo oom`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// Nobody does anything.
    Nobody,
    /// Discarded, and nobody is told.
    Untold,
    /// The reaper.
    Reaper,
    /// The reaper, and a quarter is in use.
    Busy,
}

/// When to catch what cannot be rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Strict {
    /// Where it is known to be needed.
    Auto,
    /// In every process.
    Always,
    /// Never: it is named in the report.
    Never,
}

impl From<Strict> for mmu_notifier_primary::Strict {
    fn from(strict: Strict) -> Self {
        match strict {
            Strict::Auto => Self::WhereNeeded,
            Strict::Always => Self::Always,
            Strict::Never => Self::Never,
        }
    }
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Whether this stream gets colours.
    pub fn on(self, stream: &impl IsTerminal) -> bool {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = || std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        match self {
            Color::Auto => stream.is_terminal() && !set("NO_COLOR") && !dumb(),
            Color::Always => true,
            Color::Never => false,
        }
    }
}

/// The kernels by name, with or without `linux-`.
fn kernels() -> impl TypedValueParser<Value = Kernel> {
    let value = |kernel: Kernel| {
        let value = PossibleValue::new(kernel.name);
        match kernel.name.strip_prefix("linux-") {
            Some(short) => value.alias(short),
            None => value,
        }
    };
    PossibleValuesParser::new(Kernel::ALL.map(value))
        .try_map(|name| Kernel::named(&name).ok_or("no such kernel"))
}

fn parse_refuse(text: &str) -> Result<u32, String> {
    const SHAPE: &str = "give it as 1/N: 1/3 refuses every third";
    let (one, n) = text.split_once('/').ok_or(SHAPE)?;
    if one.trim() != "1" {
        return Err(format!("one of N, not {} of N; {SHAPE}", one.trim()));
    }
    match n.trim().parse::<u32>() {
        Ok(0) => Err(format!("one of none cannot be refused; {SHAPE}")),
        Ok(n) => Ok(n),
        Err(_) => Err(format!("N is a number from 1 to {}; {SHAPE}", u32::MAX)),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    const SHAPE: &str = "give a number of bytes, or of k, m or g: 512k, 8m, 1g";
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(SHAPE.to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| SHAPE)?;
    let bytes = number.saturating_mul(1 << shift);
    if !(64 << 10..=4 << 30).contains(&bytes) {
        return Err("it must be between 64k and 4g".to_owned());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(line: &str) -> Run {
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn kernels_have_two_names() {
        let kernel = |name| match Cli::try_parse_from(["mmun", "replay", "f", "--as", name]).unwrap().command
        {
            Command::Replay(replay) => replay.kernel,
            other => panic!("{other:?}"),
        };
        for (name, expected) in [
            ("5.10", Kernel::LINUX_5_10),
            ("linux-5.10", Kernel::LINUX_5_10),
            ("6.1", Kernel::LINUX_6_1),
            ("6.12", Kernel::LINUX_6_12),
            ("7.2", Kernel::LINUX_7_2),
            ("repaired", Kernel::REPAIRED),
        ] {
            assert_eq!(kernel(name), Some(expected));
        }
        assert!(Cli::try_parse_from(["mmun", "replay", "f", "--as", "2.6"]).is_err());
    }

    #[test]
    fn is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_program_keeps_its_options() {
        let with = run("mmun run --quiet --refuse 1/2 -- ls --quiet -- x");
        assert_eq!(with.program, ["ls", "--quiet", "--", "x"]);
        assert!(with.quiet);
        let without = run("mmun run ls -l --json x");
        assert_eq!(without.program, ["ls", "-l", "--json", "x"]);
        assert_eq!((without.json, without.buffer), (None, 8 << 20));
        assert_eq!(run("mmun run --json - true").json, Some("-".into()));
        assert!(Cli::try_parse_from(["mmun", "run", "--jsn", "x", "ls"]).is_err());
        assert!(Cli::try_parse_from(["mmun", "run"]).is_err());
    }

    #[test]
    fn refuse() {
        assert_eq!(parse_refuse("1/3"), Ok(3));
        assert_eq!(parse_refuse("1/1"), Ok(1));
        assert_eq!(parse_refuse("1/4294967295"), Ok(u32::MAX));
        for wrong in ["", "3", "1/0", "2/3", "1/-3", "1/x", "1/4294967296", "0.5", "1/3/4"] {
            assert!(parse_refuse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("65536"), Ok(65536));
        assert_eq!(parse_size("64k"), Ok(65536));
        assert_eq!(parse_size("8M"), Ok(8 << 20));
        assert_eq!(parse_size("4g"), Ok(4 << 30));
        assert_eq!(parse_size("2MiB"), Ok(2 << 20));
        for wrong in
            ["", "k", "8t", "-8m", "8 m m", "63k", "5g", "1.5m", "99999999999999999999", "99999999999999g"]
        {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
