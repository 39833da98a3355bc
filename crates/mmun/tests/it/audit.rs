//! The kernel as judge: nothing that a program changes escapes, and what does is found.

use std::path::Path;

use serde_json::Value;

use crate::command::{self, Ended, Mmun, Report};
use crate::program::{compile, compile_shared, find, skipped, source, workshop};

/// The status of a run whose program was well and whose audit was not.
const FAILED: i32 = 123;

/// Whether this machine can audit; says loudly what it lacks.
fn can_audit(test: &str, dir: &Path) -> bool {
    let mut command = Mmun::new(dir).label("can").option("--audit").command::<&str>(&[], &["true"]);
    let ended = command::run(&mut command, dir, "can");
    if ended.status.code() == Some(125) {
        skipped(test, ended.stderr().trim());
        return false;
    }
    true
}

fn audit(dir: &Path, program: &[&str]) -> (Ended, Report) {
    Mmun::new(dir).option("--audit").run(program)
}

/// Runs the program and fails unless everything that the kernel reports is explained; returns how much was covered.
fn assert_clean(test: &str, program: impl FnOnce(&Path) -> Vec<String>) {
    let dir = workshop(test);
    if !can_audit(test, &dir) {
        return;
    }
    let program = program(&dir);
    let (ended, report) = audit(&dir, &program.iter().map(String::as_str).collect::<Vec<_>>());
    ended.assert_success();
    let number = |path: &str| report.number(&format!("audit.{path}"));
    let explained = number("covered") + number("by_cause");
    assert_eq!(number("unexplained"), 0, "{:#}", report.value("audit"));
    assert_eq!(number("invalidations"), explained, "{:#}", report.value("audit"));
    for lost in ["samples", "brackets", "processes"] {
        assert_eq!(number(&format!("lost.{lost}")), 0, "{:#}", report.value("audit"));
    }
    assert!(number("covered") > 0, "nothing was judged: {:#}", report.value("audit"));
    assert!(number("address_spaces") >= report.number("processes"), "{:#}", report.value("audit"));
}

fn compiled(dir: &Path, name: &str, arguments: &[&str]) -> Vec<String> {
    let program = compile(dir, name).display().to_string();
    [&[program.as_str()], arguments].concat().into_iter().map(str::to_owned).collect()
}

fn script(interpreter: &str, name: &str) -> Vec<String> {
    vec![interpreter.to_owned(), source(name).display().to_string()]
}

#[test]
fn what_no_rewriting_reaches_is_found_to_the_last() {
    let test = "what_no_rewriting_reaches_is_found_to_the_last";
    let dir = workshop(test);
    if !can_audit(test, &dir) {
        return;
    }
    let program = compile(&dir, "escape").display().to_string();
    let (ended, report) = audit(&dir, &[&program, "7"]);
    assert_eq!(ended.status.code(), Some(FAILED), "{ended:?}");
    assert_eq!(ended.stdout(), "42 escaped\n");
    assert!(ended.stderr().contains("42 kernel invalidations unexplained, 0 lost"), "{ended:?}");
    assert_eq!(report.number("audit.unexplained"), 42, "{:#}", report.value("audit"));
    let Value::Array(places) = report.value("audit.places") else { panic!("no places") };
    // The same three in the child, whose code lies at the same place.
    let found: Vec<_> = places
        .iter()
        .map(|place| (place["call"].as_str().unwrap_or(""), place["invalidations"].as_u64().unwrap_or(0)))
        .collect();
    assert_eq!(found, [("munmap", 14), ("madvise", 14), ("mprotect", 14)]);
    for place in places {
        assert_eq!(place["bytes"], 4096, "{place:#}");
        assert_eq!(place["nearest"]["call"], "mprotect", "the last call that was announced: {place:#}");
        assert_eq!(place["file"], "anonymous code", "{place:#}");
    }
}

#[test]
fn the_status_of_the_program_comes_first() {
    let test = "the_status_of_the_program_comes_first";
    let dir = workshop(test);
    if !can_audit(test, &dir) {
        return;
    }
    let program = compile(&dir, "escape").display().to_string();
    let (ended, report) = audit(&dir, &["sh", "-c", &format!("{program} 1; exit 7")]);
    assert_eq!(ended.status.code(), Some(7), "{ended:?}");
    assert_eq!(report.number("audit.unexplained"), 6, "in a child that was started by another: {ended:?}");
}

#[test]
fn a_process_that_cannot_be_judged_is_lost() {
    let test = "a_process_that_cannot_be_judged_is_lost";
    let dir = workshop(test);
    if !can_audit(test, &dir) || find(test, "sh").is_none() {
        return;
    }
    // No descriptor is left for the machine.
    let (ended, report) = audit(&dir, &["sh", "-c", "ulimit -n 3; (:); exit 0"]);
    assert!(report.number("audit.lost.processes") > 0, "{:#} {ended:?}", report.value("audit"));
    assert_eq!(ended.status.code(), Some(FAILED), "{ended:?}");
}

#[test]
fn without_an_audit_there_is_no_verdict() {
    let dir = workshop("without_an_audit_there_is_no_verdict");
    let (_, report) = Mmun::new(&dir).run(&["true"]);
    assert_eq!(*report.value("audit"), Value::Null);
}

#[test]
fn descriptors_that_a_program_closes_are_not_the_audits() {
    assert_clean("descriptors_that_a_program_closes_are_not_the_audits", |_| {
        let close = "import os, mmap\nos.closerange(3, 4096)\n\
                     for i in range(50):\n    m = mmap.mmap(-1, 8192); m[0] = 1; m.close()\n\
                     pid = os.fork()\n\
                     if pid == 0:\n    os.closerange(0, 4096); m = mmap.mmap(-1, 8192); m.close(); os._exit(0)\n\
                     assert os.waitpid(pid, 0)[1] == 0\n";
        ["/usr/bin/python3", "-c", close].map(str::to_owned).to_vec()
    });
}

#[test]
fn nothing_escapes_a_shell_and_its_children() {
    assert_clean("nothing_escapes_a_shell_and_its_children", |_| script("bash", "processes.sh"));
}

#[test]
fn nothing_escapes_python() {
    assert_clean("nothing_escapes_python", |_| script("/usr/bin/python3", "dictionaries.py"));
}

#[test]
fn nothing_escapes_sqlite() {
    let test = "nothing_escapes_sqlite";
    if find(test, "sqlite3").is_some() {
        assert_clean(test, |_| {
            let run = format!("rm -f test.db && sqlite3 test.db < {}", source("bulk.sql").display());
            ["sh", "-c", &run].map(str::to_owned).to_vec()
        });
    }
}

#[test]
fn nothing_escapes_a_torture() {
    assert_clean("nothing_escapes_a_torture", |dir| compiled(dir, "torture", &["8", "120"]));
}

#[test]
fn nothing_escapes_random_changes() {
    assert_clean("nothing_escapes_random_changes", |dir| compiled(dir, "random", &["2", "12000"]));
}

#[test]
fn nothing_escapes_new_programs_and_threads() {
    assert_clean("nothing_escapes_new_programs_and_threads", |dir| compiled(dir, "vfork", &["20"]));
}

#[test]
fn nothing_escapes_threads_that_leave_brackets() {
    assert_clean("nothing_escapes_threads_that_leave_brackets", |dir| compiled(dir, "cancel", &["100"]));
    assert_clean("nothing_escapes_handlers_that_jump", |dir| compiled(dir, "signals", &["200"]));
    assert_clean("nothing_escapes_jumps_at_the_end", |dir| compiled(dir, "jumpexit", &["10"]));
}

#[test]
fn nothing_escapes_raw_clones() {
    assert_clean("nothing_escapes_raw_clones", |dir| compiled(dir, "rawclone", &[]));
}

#[test]
fn nothing_escapes_a_late_library() {
    assert_clean("nothing_escapes_a_late_library", |dir| {
        let object = compile_shared(dir, "late_object").display().to_string();
        compiled(dir, "late", &[&object])
    });
}
