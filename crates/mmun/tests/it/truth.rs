//! `mmun`'s counts against `strace`'s, call by call.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::command::{self, Ended, Mmun, Report};
use crate::strace::{self, Log, Seen};

/// Whether a program ends while others of its threads are in the middle of memory calls. Nobody can
/// say then whether the last call of such a thread was made before the end or only about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// No thread is in a memory call: every number must be the same.
    Quiet,
    /// Each thread that is killed by the others' end may differ by one call.
    CutsThreads,
}

/// Runs a program under `strace` and `mmun` and fails, with a table, unless both counted the same.
/// The log and the report stay in `dir` as `strace.log` and `strace.json`.
pub(crate) fn assert_counts_equal(
    dir: &Path,
    ending: Ending,
    program: &[impl AsRef<OsStr>],
) -> (Ended, Report) {
    assert_counts_equal_with(Mmun::new(dir), dir, ending, program)
}

/// The same with options of `mmun run`.
pub(crate) fn assert_counts_equal_with(
    mmun: Mmun<'_>,
    dir: &Path,
    ending: Ending,
    program: &[impl AsRef<OsStr>],
) -> (Ended, Report) {
    let mmun = mmun.label("strace");
    let log = dir.join("strace.log");
    let mut tracer = vec!["strace".to_owned()];
    tracer.extend(strace::options());
    tracer.extend(["-o".to_owned(), log.display().to_string()]);
    let ended = command::run(&mut mmun.command(&tracer, program), dir, "strace");
    let report = Report::read(&mmun.json(), &ended);
    let text = String::from_utf8_lossy(&fs::read(&log).expect("strace wrote its log")).into_owned();
    let seen = strace::count(&text).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
    assert!(seen.markers > 0, "no program showed the marker call in {}\n{ended:?}", log.display());
    let counted = |call: &str| (report.count(call), report.failed(call));
    if let Err(table) = compare(&seen, counted, report.number("hook.own_calls"), ending) {
        let json = mmun.json();
        panic!("{table}\nstrace's log: {}\nmmun's report: {}\n{ended:?}", log.display(), json.display());
    }
    (ended, report)
}

/// Compares what `strace` saw with what `mmun` counted, `(calls, failed)` by name.
///
/// Memory calls of the hook itself are in `strace`'s numbers only; there is just one number for all of
/// them, so then the differences must add up to it.
///
/// # Errors
///
/// The table of all calls that differ.
fn compare(
    log: &Log,
    counted: impl Fn(&str) -> (u64, u64),
    own_calls: u64,
    ending: Ending,
) -> Result<(), String> {
    let slack = if ending == Ending::CutsThreads { log.threads_cut } else { 0 };
    let mut missed = 0;
    let mut invented = 0;
    let mut unreturned = 0;
    let mut failures_differ = false;
    let mut table = format!("{:<26}{:>10}{:>10}{:>12}\n", "call", "strace", "mmun", "difference");
    for (&call, seen) in &log.calls {
        let (count, failed) = counted(call);
        missed += seen.count.saturating_sub(count);
        invented += count.saturating_sub(seen.count);
        unreturned += seen.unreturned;
        if count != seen.count {
            let _ = writeln!(table, "{:<26}{}", call, row(seen.count, count));
        }
        let with_brk = seen.failed + if call == "brk" { log.brk_refused } else { 0 };
        if failed != seen.failed && failed != with_brk {
            failures_differ |= own_calls == 0 && failed.abs_diff(seen.failed) > slack;
            let _ = writeln!(table, "{:<26}{}", format!("{call} (failed)"), row(seen.failed, failed));
        }
    }
    let Log { threads_cut, markers, .. } = log;
    let _ = write!(
        table,
        "hook's own calls {own_calls}, calls that never returned {unreturned}, \
         threads cut {threads_cut}, markers {markers}, ending {ending:?}"
    );
    let explained =
        invented <= slack && missed + slack >= own_calls && missed <= own_calls + unreturned + slack;
    if explained && !failures_differ { Ok(()) } else { Err(table) }
}

fn row(strace: u64, mmun: u64) -> String {
    format!("{strace:>10}{mmun:>10}{:>+12}", mmun as i64 - strace as i64)
}

/// `Seen` of a call by name, for tests.
fn seen(log: &Log, call: &str) -> Seen {
    log.calls[call]
}

mod tests {
    use std::process::Command;

    use super::*;
    use crate::program;

    fn log(munmap: Seen, threads_cut: u64) -> Log {
        let mut log = strace::count("").unwrap();
        log.calls.insert("munmap", munmap);
        log.threads_cut = threads_cut;
        log
    }

    fn munmap(count: u64, failed: u64) -> impl Fn(&str) -> (u64, u64) {
        move |call| if call == "munmap" { (count, failed) } else { (0, 0) }
    }

    const SEEN: Seen = Seen { count: 7, failed: 2, unreturned: 0 };

    #[test]
    fn equal_numbers_pass() {
        assert_eq!(compare(&log(SEEN, 3), munmap(7, 2), 0, Ending::Quiet), Ok(()));
    }

    #[test]
    fn a_difference_is_shown_as_a_table() {
        let table = compare(&log(SEEN, 0), munmap(5, 2), 0, Ending::Quiet).unwrap_err();
        assert!(table.contains("call                          strace      mmun  difference"), "{table}");
        assert!(table.contains("munmap                             7         5          -2"), "{table}");
        assert!(!table.contains("mprotect"), "{table}");
        assert!(compare(&log(SEEN, 0), munmap(8, 2), 0, Ending::Quiet).is_err());
        let table = compare(&log(SEEN, 0), munmap(7, 3), 0, Ending::Quiet).unwrap_err();
        assert!(table.contains("munmap (failed)                    2         3          +1"), "{table}");
    }

    #[test]
    fn own_calls_explain_exactly_their_number() {
        assert_eq!(compare(&log(SEEN, 0), munmap(5, 2), 2, Ending::Quiet), Ok(()));
        assert!(compare(&log(SEEN, 0), munmap(5, 2), 1, Ending::Quiet).is_err());
        assert!(compare(&log(SEEN, 0), munmap(7, 2), 1, Ending::Quiet).is_err());
    }

    #[test]
    fn a_call_that_never_returned_may_be_counted_or_not() {
        let seen = Seen { unreturned: 1, ..SEEN };
        assert_eq!(compare(&log(seen, 1), munmap(7, 2), 0, Ending::Quiet), Ok(()));
        assert_eq!(compare(&log(seen, 1), munmap(6, 2), 0, Ending::Quiet), Ok(()));
        assert!(compare(&log(seen, 1), munmap(8, 2), 0, Ending::Quiet).is_err());
        assert!(compare(&log(seen, 1), munmap(5, 2), 0, Ending::Quiet).is_err());
    }

    #[test]
    fn cut_threads_explain_a_call_each_only_where_they_are_expected() {
        assert!(compare(&log(SEEN, 1), munmap(8, 2), 0, Ending::Quiet).is_err());
        assert_eq!(compare(&log(SEEN, 1), munmap(8, 2), 0, Ending::CutsThreads), Ok(()));
        assert_eq!(compare(&log(SEEN, 1), munmap(6, 2), 0, Ending::CutsThreads), Ok(()));
        assert!(compare(&log(SEEN, 1), munmap(9, 2), 0, Ending::CutsThreads).is_err());
    }

    /// The program shows the marker by itself and then makes calls that are known to the last one.
    #[test]
    fn strace_is_read_as_it_is_on_this_machine() {
        let test = "strace_is_read_as_it_is_on_this_machine";
        if program::find(test, "strace").is_none() {
            return;
        }
        let dir = program::workshop(test);
        let known = program::compile(&dir, "known");
        let file = dir.join("strace.log");
        let mut command = Command::new("strace");
        command.args(strace::options()).arg("-o").arg(&file).arg(&known).arg("marker").current_dir(&dir);
        let ended = command::run(&mut command, &dir, "known");
        ended.assert_success();
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
        let log = strace::count(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut compared = 0;
        for line in ended.stdout().lines() {
            let [call, count, failed] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line:?} is not `call count failed`")
            };
            let wanted =
                Seen { count: count.parse().unwrap(), failed: failed.parse().unwrap(), unreturned: 0 };
            assert_eq!(seen(&log, call), wanted, "{call} in {}", file.display());
            compared += 1;
        }
        assert_eq!(compared, strace::CALLS.len());
    }
}
