//! Rows of `docs/limits.md` that only a program under `mmun run` shows. A row that is closed one day fails here, and has
//! to leave that page.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use crate::command::{Mmun, run_plain};
use crate::program::{compile, compile_shared, find, skipped, workshop};

#[test]
fn code_that_is_rewritten_while_it_runs_is_other_than_it_was() {
    let dir = workshop("code_that_is_rewritten_while_it_runs_is_other_than_it_was");
    let limits = compile(&dir, "limits").display().to_string();
    for (what, without, with, signal) in [
        ("reads", "as written\n", "changed\n", None),
        ("copies", "copied\n", "", Some(libc::SIGSEGV)),
        ("takes", "free\n", "taken\n", None),
    ] {
        let plain = run_plain(&dir, &[&limits, what]);
        assert_eq!(plain.assert_success().stdout(), without, "{what}");
        let (watched, report) = Mmun::new(&dir).label(what).option("--strict").run(&[&limits, what]);
        assert_eq!((watched.stdout(), watched.status.signal()), (with.into(), signal), "{watched:?}");
        assert_eq!(report.number("strict.rewritten"), 1, "{what}: {report:?}");
    }
}

#[test]
fn a_mask_that_somebody_else_sets_kills_where_calls_are_trapped() {
    let dir = workshop("a_mask_that_somebody_else_sets_kills_where_calls_are_trapped");
    let limits = compile(&dir, "limits").display().to_string();
    let plain = run_plain(&dir, &[&limits, "masked"]);
    if plain.stderr().starts_with("ptrace:") {
        return skipped("a_mask_that_somebody_else_sets_kills_where_calls_are_trapped", &plain.stderr());
    }
    assert_eq!(plain.assert_success().stdout(), "masked\n");
    let (watched, _) = Mmun::new(&dir).option("--strict").run(&[&limits, "masked"]);
    assert_eq!(watched.status.signal(), Some(libc::SIGSYS), "{watched:?}");
}

#[test]
fn a_call_is_lost_whose_signal_somebody_else_has_sent() {
    let test = "a_call_is_lost_whose_signal_somebody_else_has_sent";
    let dir = workshop(test);
    let limits = compile(&dir, "limits").display().to_string();
    let (watched, _) = Mmun::new(&dir).option("--strict").run(&[&limits, "sent"]);
    match &watched.assert_success().stdout()[..] {
        "lost\n" => {}
        // A race: that it was not met says nothing.
        "none\n" => skipped(test, "no call was lost in 20 seconds"),
        other => panic!("{other}"),
    }
}

#[test]
fn a_thread_that_blocks_the_signal_is_unseen_and_named() {
    let dir = workshop("a_thread_that_blocks_the_signal_is_unseen_and_named");
    let limits = compile(&dir, "limits").display().to_string();
    let object = compile_shared(&dir, "unfit").display().to_string();
    let (watched, report) = Mmun::new(&dir).run(&[&limits, "deaf", &object]);
    assert_eq!(watched.assert_success().stdout(), "deaf\n");
    // Of a thousand.
    assert!(report.count("munmap") < 100, "{report:?}");
    assert_eq!(report.number("strict.needed"), 1, "{report:?}");
    assert!(report.value("unseen").to_string().contains("thread that blocked SIGSYS"), "{report:?}");
}

#[test]
fn the_loader_has_mapped_what_it_maps_before_counting_begins() {
    let test = "the_loader_has_mapped_what_it_maps_before_counting_begins";
    let Some(strace) = find(test, "strace") else { return };
    let dir = workshop(test);
    let limits = compile(&dir, "limits").display().to_string();
    let trace = dir.join("trace");
    let mut traced = Command::new(strace);
    traced.args(["-f", "-e", "trace=mmap", "-o"]).arg(&trace).args([&limits, "nothing"]);
    assert!(traced.status().expect("strace runs").success());
    let mapped = std::fs::read_to_string(&trace).expect("a trace").matches("mmap(").count();
    let (_, report) = Mmun::new(&dir).run(&[&limits, "nothing"]);
    assert!(mapped > 0 && report.count("mmap") < mapped as u64, "{mapped}: {report:?}");
}
