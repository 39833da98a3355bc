//! Strict mode: system calls of code that is not rewritten are seen, and no program notices.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use crate::command::{Mmun, Report, assert_same, run_plain};
use crate::program::{compile, compile_shared, find, skipped, workshop};
use crate::truth::{Ending, assert_counts_equal_with};

/// Runs it without `mmun` and with `--strict=when`, and fails unless the two look the same.
fn assert_unnoticed(dir: &Path, when: &str, program: &[&str]) -> Report {
    let plain = run_plain(dir, program);
    plain.assert_success();
    let (watched, report) = Mmun::new(dir).option(format!("--strict={when}")).run(program);
    assert_same(&plain, &watched);
    report.assert_balanced();
    report
}

/// The same, and nothing of it was missed: the same calls as `strace` sees, if there is one.
fn assert_seen(test: &str, dir: &Path, program: &[&str]) -> Report {
    let report = assert_unnoticed(dir, "always", program);
    assert!(report.is_complete(), "{report:?}");
    if find(test, "strace").is_some() {
        let mmun = Mmun::new(dir).option("--strict");
        let (_, straced) = assert_counts_equal_with(mmun, dir, Ending::Quiet, program);
        straced.assert_balanced();
    }
    report
}

#[test]
fn code_made_at_run_time_is_seen_whatever_it_does() {
    let test = "code_made_at_run_time_is_seen_whatever_it_does";
    let dir = workshop(test);
    let jit = compile(&dir, "jit").display().to_string();
    for (what, munmaps) in [
        ("unmap", 100),
        ("threads", 800),
        ("fork", 100),
        ("libc-fork", 100),
        ("vfork", 100),
        ("clone", 100),
        ("clone3-cleared", 100),
        ("exec", 100),
        ("failed-exec", 100),
    ] {
        let report = assert_seen(test, &dir, &[&jit, what, "100"]);
        assert!(report.count("munmap") >= munmaps, "{what}: {report:?}");
        // Each of them is mapped by such code, too.
        assert!(report.number("strict.trapped") >= 2 * munmaps, "{what}: {report:?}");
    }
}

#[test]
fn without_strict_mode_such_code_is_named() {
    let dir = workshop("without_strict_mode_such_code_is_named");
    let jit = compile(&dir, "jit").display().to_string();
    for when in ["never", "auto"] {
        let report = assert_unnoticed(&dir, when, &[&jit, "unmap", "100"]);
        assert!(!report.is_complete() && report.count("munmap") < 100, "{report:?}");
        assert_eq!(report.number("strict.trapped"), 0, "{report:?}");
    }
}

#[test]
fn registers_are_preserved_where_calls_are_trapped() {
    let dir = workshop("registers_are_preserved_where_calls_are_trapped");
    let registers = compile(&dir, "registers").display().to_string();
    let report = assert_unnoticed(&dir, "always", &[&registers, "made"]);
    // Two threads of 4000 rounds of 13 calls.
    assert!(report.number("strict.trapped") >= 104_000, "{report:?}");
    assert!(report.bracketed("munmap") >= 8000, "{report:?}");
}

#[test]
fn the_programs_own_use_of_the_signal_goes_on() {
    let dir = workshop("the_programs_own_use_of_the_signal_goes_on");
    let sigsys = compile(&dir, "sigsys").display().to_string();
    for when in ["never", "always"] {
        assert_unnoticed(&dir, when, &[&sigsys]);
    }
}

#[test]
fn a_site_that_cannot_be_rewritten_is_trapped() {
    let dir = workshop("a_site_that_cannot_be_rewritten_is_trapped");
    let unfit = compile(&dir, "unfit").display().to_string();
    let named = assert_unnoticed(&dir, "never", &[&unfit, "500"]);
    assert!(!named.is_complete() && named.count("munmap") < 1000, "{named:?}");
    let trapped = assert_unnoticed(&dir, "auto", &[&unfit, "500"]);
    assert!(trapped.is_complete() && trapped.count("munmap") >= 1000, "{trapped:?}");
    assert_eq!(trapped.number("strict.needed"), 1, "{trapped:?}");
    // Until it is hot, and for the time that rewriting takes. And no others: what can be rewritten is.
    assert!((16..1100).contains(&trapped.number("strict.trapped")), "{trapped:?}");
    assert_eq!((trapped.number("strict.rewritten"), trapped.number("strict.kept")), (1, 0), "{trapped:?}");
}

#[test]
fn a_late_object_that_cannot_be_rewritten_arms_the_process() {
    let dir = workshop("a_late_object_that_cannot_be_rewritten_arms_the_process");
    let late = compile(&dir, "late_unfit").display().to_string();
    let object = compile_shared(&dir, "unfit").display().to_string();
    let report = assert_unnoticed(&dir, "auto", &[&late, &object, "200"]);
    assert!(report.is_complete() && report.count("munmap") >= 600, "{report:?}");
    assert_eq!(report.number("strict.needed"), 1, "{report:?}");
}

#[test]
fn more_places_than_there_is_room_for_are_named() {
    let dir = workshop("more_places_than_there_is_room_for_are_named");
    let jit = compile(&dir, "jit").display().to_string();
    let few = assert_unnoticed(&dir, "always", &[&jit, "places", "300"]);
    assert!(few.is_complete() && few.number("strict.trapped") > 300, "{few:?}");
    let many = assert_unnoticed(&dir, "always", &[&jit, "places", "2000"]);
    assert!(!many.is_complete(), "{many:?}");
}

/// `int $0x80`: without strict mode nobody sees it; with it, it is made, and named.
#[test]
fn system_calls_of_32_bits_are_made_and_named() {
    let test = "system_calls_of_32_bits_are_made_and_named";
    let dir = workshop(test);
    let program = [&compile(&dir, "dispatch").display().to_string()[..], "compat"];
    let plain = run_plain(&dir, &program);
    if plain.status.signal() == Some(libc::SIGSEGV) {
        return skipped(test, "this kernel has no system calls of 32 bits");
    }
    assert_eq!(plain.stdout(), "compat: right\n");
    let unseen = assert_unnoticed(&dir, "auto", &program);
    assert!(unseen.is_complete(), "{unseen:?}");
    let named = assert_unnoticed(&dir, "always", &program);
    assert!(named.value("unseen").to_string().contains("int $0x80"), "{named:?}");
    for report in [unseen, named] {
        assert_eq!(report.count("munmap"), 0, "{report:?}");
    }
}

/// What `docs/limits.md` says of strict mode, shown: each program without it, and with it.
#[test]
fn what_strict_mode_has_for_itself_a_program_notices() {
    let dir = workshop("what_strict_mode_has_for_itself_a_program_notices");
    let dispatch = compile(&dir, "dispatch").display().to_string();
    let waits = compile(&dir, "waits").display().to_string();
    let object = compile_shared(&dir, "unfit").display().to_string();
    for (program, option, without, with) in [
        (&[&dispatch[..], "own"][..], "always", "dispatch: own\n", "dispatch: Invalid argument\n"),
        (&[&dispatch, "mask"], "always", "SIGSYS: blocked\n", "SIGSYS: not blocked\n"),
        (&[&dispatch, "stack"], "always", "stack: enough\n", ""),
        (&[&waits, &object], "auto", "waited: in time\n", "waited: Interrupted system call\n"),
    ] {
        let plain = run_plain(&dir, program);
        plain.assert_success();
        let (watched, report) = Mmun::new(&dir).option(format!("--strict={option}")).run(program);
        assert_eq!((plain.stdout(), watched.stdout()), (without.into(), with.into()), "{program:?}");
        assert_eq!(report.number("strict.refused"), 0, "{report:?}");
        match with {
            "" => assert_eq!(watched.status.signal(), Some(libc::SIGSEGV), "{watched:?}"),
            _ => _ = watched.assert_success(),
        }
    }
}

#[test]
fn programs_that_check_themselves_find_nothing() {
    let dir = workshop("programs_that_check_themselves_find_nothing");
    let file = dir.join("file").display().to_string();
    let object = compile_shared(&dir, "late_object").display().to_string();
    for (name, arguments) in [
        ("signals", &["200"][..]),
        ("jumpexit", &["10"]),
        ("cancel", &["100"]),
        ("cancelcallback", &[]),
        ("vfork", &["30"]),
        ("rawclone", &[]),
        ("exec", &[]),
        ("brk", &[]),
        ("errno", &[]),
        ("late", &[&object, "20"]),
        ("fs0", &[]),
        ("stack", &[]),
        ("truncate", &[&file]),
        ("nomem", &[]),
    ] {
        let program = compile(&dir, name).display().to_string();
        let words: Vec<&str> = [&program[..]].into_iter().chain(arguments.iter().copied()).collect();
        assert_unnoticed(&dir, "always", &words);
    }
}

#[test]
fn programs_of_all_kinds_run() {
    let test = "programs_of_all_kinds_run";
    let dir = workshop(test);
    let bash =
        "for i in 1 2 3; do ls / | sort | head -2; (echo sub); done; trap 'echo t' USR1; kill -USR1 $$";
    let python = "import subprocess, threading, ctypes\n\
                  callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda x: x + 1)\n\
                  threads = [threading.Thread(target=lambda: sum(range(100000))) for _ in range(4)]\n\
                  [t.start() for t in threads]; [t.join() for t in threads]\n\
                  print(callback(4), subprocess.run(['echo', 'x'], capture_output=True).stdout)";
    let node = "const w = require('worker_threads'); if (w.isMainThread) new w.Worker(\
                'let a = []; for (let i = 0; i < 1e5; i++) a.push({i})', {eval: true})\
                .on('exit', () => console.log('done'))";
    let stress = ["stress-ng", "--quiet", "--sigsuspend", "1", "--sigsuspend-ops", "200", "--signest", "1"];
    let stress: Vec<&str> = stress.into_iter().chain(["--signest-ops", "50"]).collect();
    for program in [
        &["bash", "-c", bash][..],
        &["/usr/bin/python3", "-c", python],
        &["node", "-e", node],
        &["java", "-version"],
        &stress,
    ] {
        if find(test, program[0]).is_some() {
            let report = assert_unnoticed(&dir, "always", program);
            assert!(report.is_complete(), "{program:?}: {report:?}");
        }
    }
}
