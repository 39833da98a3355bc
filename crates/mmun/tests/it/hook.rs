//! Programs that would notice a careless hook: each checks itself, and says `... ok`.

use std::path::Path;

use crate::command::{Mmun, Report, assert_same, run_plain};
use crate::program::{compile, compile_shared, find, workshop};
use crate::truth::{Ending, assert_counts_equal};

/// Runs it without and with `mmun`, and fails unless both say that all is well.
fn assert_well(dir: &Path, program: &[&str], last_line: &str) -> Report {
    let plain = run_plain(dir, program);
    plain.assert_success();
    assert_eq!(plain.stdout().lines().last(), Some(last_line), "without mmun: {plain:?}");
    let (watched, report) = Mmun::new(dir).run(program);
    assert_same(&plain, &watched);
    report.assert_balanced();
    report
}

/// And the same calls as `strace` sees, if there is one.
fn assert_well_counted(test: &str, dir: &Path, program: &[&str], last_line: &str) -> Report {
    let report = assert_well(dir, program, last_line);
    if find(test, "strace").is_some() {
        let (ended, straced) = assert_counts_equal(dir, Ending::Quiet, program);
        assert_eq!(ended.stdout().lines().last(), Some(last_line), "under strace: {ended:?}");
        straced.assert_balanced();
    }
    report
}

/// Fails unless `call` was counted at least so often.
fn assert_at_least(report: &Report, call: &str, times: u64) {
    let count = report.count(call);
    assert!(count >= times, "{call} was counted {count} times, not {times}: {}", report.line());
}

#[test]
fn registers_flags_and_red_zone_are_preserved() {
    let dir = workshop("registers_flags_and_red_zone_are_preserved");
    let program = compile(&dir, "registers").display().to_string();
    let report = assert_well(&dir, &[&program], "registers ok");
    // Two threads of 4000 rounds.
    for (call, count, failed) in [("mmap", 24000, 8000), ("munmap", 16000, 8000), ("madvise", 16000, 8000)] {
        assert_at_least(&report, call, count);
        assert!(report.failed(call) >= failed, "{call}: {} failed", report.failed(call));
    }
    assert!(report.bracketed("munmap") >= 8000, "{} munmap bracketed", report.bracketed("munmap"));
}

#[test]
fn signal_handlers_may_interrupt_and_jump() {
    let dir = workshop("signal_handlers_may_interrupt_and_jump");
    let program = compile(&dir, "signals").display().to_string();
    let report = assert_well(&dir, &[&program, "500"], "signals ok");
    assert_at_least(&report, "munmap", 1500);
}

#[test]
fn a_bracket_that_was_jumped_out_of_is_ended_at_the_exit() {
    let dir = workshop("a_bracket_that_was_jumped_out_of_is_ended_at_the_exit");
    let program = compile(&dir, "jumpexit").display().to_string();
    let report = assert_well(&dir, &[&program, "20"], "jumpexit ok");
    let abandoned = report.number("balance.abandoned");
    assert!(abandoned > 0, "20 signals have all come outside a call: {}", report.line());
}

#[test]
fn cancelled_threads_leave_no_open_bracket() {
    let dir = workshop("cancelled_threads_leave_no_open_bracket");
    let program = compile(&dir, "cancel").display().to_string();
    let report = assert_well(&dir, &[&program, "200"], "cancel ok");
    assert_at_least(&report, "munmap", 200);
}

#[test]
fn a_thread_may_be_cancelled_inside_a_callback() {
    let dir = workshop("a_thread_may_be_cancelled_inside_a_callback");
    let program = compile(&dir, "cancelcallback").display().to_string();
    assert_well(&dir, &[&program], "cancelcallback ok");
}

#[test]
fn programs_may_be_started_in_every_way_while_threads_run() {
    let dir = workshop("programs_may_be_started_in_every_way_while_threads_run");
    let program = compile(&dir, "vfork").display().to_string();
    let report = assert_well(&dir, &[&program, "100"], "vfork ok");
    assert_at_least(&report, "vfork", 300);
    // vfork + exec, a failing one, posix_spawn, system, popen.
    assert_at_least(&report, "execve", 500);
    assert!(report.failed("execve") >= 100, "{} execve failed", report.failed("execve"));
}

#[test]
fn clone_by_hand_works() {
    let test = "clone_by_hand_works";
    let dir = workshop(test);
    let program = compile(&dir, "rawclone").display().to_string();
    let report = assert_well_counted(test, &dir, &[&program], "rawclone ok");
    assert_at_least(&report, "clone", 250);
    assert_at_least(&report, "clone3", 200);
    assert_at_least(&report, "madvise", 450);
}

#[test]
fn exec_works_in_every_way() {
    let test = "exec_works_in_every_way";
    let dir = workshop(test);
    let program = compile(&dir, "exec").display().to_string();
    let report = assert_well_counted(test, &dir, &[&program], "exec ok");
    assert_at_least(&report, "execve", 9);
    assert_at_least(&report, "execveat", 3);
    // Eight programs of ten munmap each, some more often.
    assert_at_least(&report, "munmap", 80);
}

#[test]
fn the_program_break_is_the_same() {
    let test = "the_program_break_is_the_same";
    let dir = workshop(test);
    let program = compile(&dir, "brk").display().to_string();
    let last_line = "up and down: 0, Success, break at 0, kernel's at 0";
    let report = assert_well_counted(test, &dir, &[&program], last_line);
    assert_at_least(&report, "brk", 200);
    assert!(report.bracketed("brk") >= 100, "{} brk bracketed", report.bracketed("brk"));
}

#[test]
fn failing_calls_fail_in_the_same_way() {
    let test = "failing_calls_fail_in_the_same_way";
    let dir = workshop(test);
    let program = compile(&dir, "errno").display().to_string();
    let last_line = format!("{:<70} 0 Success", "munmap(page, 4096)");
    let report = assert_well_counted(test, &dir, &[&program], &last_line);
    for (call, failed) in [("mmap", 6), ("munmap", 4), ("mprotect", 3), ("process_madvise", 3), ("execve", 3)]
    {
        assert_eq!(report.failed(call), failed, "{call}");
    }
}

#[test]
fn objects_that_come_and_go_are_watched() {
    let test = "objects_that_come_and_go_are_watched";
    let dir = workshop(test);
    let program = compile(&dir, "late").display().to_string();
    let object = compile_shared(&dir, "late_object").display().to_string();
    let report = assert_well_counted(test, &dir, &[&program, &object, "50"], "late ok");
    // Four turns a round, and what ld.so does for each.
    for call in ["mmap", "mprotect", "munmap", "madvise"] {
        assert_at_least(&report, call, 200);
    }
    assert_at_least(&report, "munmap", 250);
}

#[test]
fn a_thread_without_thread_local_storage_is_left_in_peace() {
    let test = "a_thread_without_thread_local_storage_is_left_in_peace";
    let dir = workshop(test);
    let program = compile(&dir, "fs0").display().to_string();
    let report = assert_well_counted(test, &dir, &[&program], "fs0 ok");
    assert_at_least(&report, "madvise", 5000);
    assert_at_least(&report, "munmap", 5000);
}

#[test]
fn little_stack_is_enough() {
    let test = "little_stack_is_enough";
    let dir = workshop(test);
    let program = compile(&dir, "stack").display().to_string();
    let report = assert_well_counted(test, &dir, &[&program], "stack ok");
    assert_at_least(&report, "munmap", 2000);
}

#[test]
fn truncated_files_lose_their_pages() {
    let test = "truncated_files_lose_their_pages";
    let dir = workshop(test);
    let program = compile(&dir, "truncate").display().to_string();
    let file = dir.join("file").display().to_string();
    let report = assert_well_counted(test, &dir, &[&program, &file], "truncate ok");
    for (call, times) in [("ftruncate", 60), ("truncate", 20), ("fallocate", 40)] {
        assert_at_least(&report, call, times);
    }
    assert!(report.bracketed("ftruncate") >= 20, "{} ftruncate bracketed", report.bracketed("ftruncate"));
    assert!(report.bracketed("truncate") >= 20, "{} truncate bracketed", report.bracketed("truncate"));
}

#[test]
fn a_full_address_space_is_survived() {
    let test = "a_full_address_space_is_survived";
    let dir = workshop(test);
    let program = compile(&dir, "nomem").display().to_string();
    let report = assert_well_counted(test, &dir, &[&program], "nomem ok");
    assert!(report.failed("mmap") >= 20, "{} mmap failed", report.failed("mmap"));
}

#[test]
fn every_call_of_the_table_is_counted_to_the_last_one() {
    let test = "every_call_of_the_table_is_counted_to_the_last_one";
    let dir = workshop(test);
    let program = compile(&dir, "known").display().to_string();
    let (ended, report) = Mmun::new(&dir).run(&[&program]);
    ended.assert_success();
    report.assert_balanced();
    for line in ended.stdout().lines() {
        let [call, count, failed] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
        // The C library and the programs that are started make some of their own.
        assert_at_least(&report, call, count.parse().unwrap());
        assert!(report.failed(call) >= failed.parse().unwrap(), "{call}: {} failed", report.failed(call));
    }
    if find(test, "strace").is_some() {
        assert_counts_equal(&dir, Ending::Quiet, &[&program]);
    }
}
