//! `mmun doctor`: what it says of a machine that is well, and of a process in which somebody has taken `munmap`.

use std::collections::BTreeSet;
use std::process::Command;

use mmu_notifier_primary::Syscall;
use mmu_notifier_primary::probe::SHOTS;
use serde_json::Value;

use crate::command::{Ended, MMUN, run};
use crate::program::{compile_shared, skipped, workshop};

fn doctor(test: &str, options: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(MMUN);
    command.arg("doctor").args(options).envs(variables.iter().copied());
    run(&mut command, &workshop(test), "doctor")
}

fn json(ended: &Ended) -> Value {
    serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

fn list<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    value[name].as_array().unwrap_or_else(|| panic!("no list {name} in {value}"))
}

fn calls(diagnosis: &Value) -> &Vec<Value> {
    list(&list(diagnosis, "modes")[0], "calls")
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

#[test]
fn everything_is_announced_before_and_after() {
    let ended = doctor("everything_is_announced_before_and_after", &["--json"], &[]);
    let diagnosis = json(ended.assert_success());
    assert_eq!(
        (&diagnosis["good"], list(&diagnosis, "wrong").len()),
        (&Value::Bool(true), 0),
        "{diagnosis:#}"
    );
    let calls = calls(&diagnosis);
    for origin in ["libc", "syscall", "own", "late", "made"] {
        let here: Vec<_> = calls.iter().filter(|call| text(call, "origin") == origin).collect();
        for shot in SHOTS {
            let offered = !matches!(
                (origin, shot.call),
                ("libc", Syscall::Clone | Syscall::Clone3) | ("syscall" | "made", Syscall::Vfork)
            );
            let found: Vec<_> = here.iter().filter(|call| text(call, "event") == shot.name).collect();
            assert_eq!(found.len(), usize::from(offered), "{} by {origin}", shot.name);
        }
        for call in here {
            let is = |name: &str| call[name] == Value::Bool(true);
            assert_eq!(call["starts"], call["ends"], "{call:#}");
            if origin == "made" || !is("changes") {
                assert!(!is("expected") && call["starts"] == 0 && call["site"].is_null(), "{call:#}");
                continue;
            }
            assert!(is("expected") && is("before") && is("after"), "{call:#}");
            let file = text(&call["site"], "file");
            let own = match origin {
                "own" => file.ends_with("mmun"),
                "late" => file.contains("late"),
                _ => file.contains("libc.so"),
            };
            assert!(own, "{call:#}");
        }
    }
    // In strict mode, whatever code makes them.
    for mode in list(&diagnosis, "modes").iter().filter(|mode| text(mode, "mode") == "strict") {
        for call in list(mode, "calls").iter().filter(|call| call["changes"] == true) {
            let right = call["expected"] == true && call["before"] == true && call["after"] != false;
            assert!(right && call["starts"] != 0, "{call:#}");
            assert!(text(call, "origin") != "made" || text(&call["site"], "file").is_empty(), "{call:#}");
        }
        assert!(list(mode, "calls").len() == calls.len() && !list(mode, "costs").is_empty());
    }
    // What userfaultfd tells: of unmapping late, of discarding about when it happens, of protecting nothing.
    for mode in list(&diagnosis, "modes").iter().filter(|mode| text(mode, "mode") == "net") {
        let told = |event| {
            let call = list(mode, "calls").iter().find(|call| call["event"] == event).expect("it was made");
            assert!(call["expected"] == false && call["starts"] == call["ends"], "{call:#}");
            (call["before"] == true, call["starts"] != 0)
        };
        assert_eq!(told("munmap"), (false, true));
        assert!(told("madvise DONTNEED").1);
        assert_eq!(told("mprotect"), (false, false));
    }
    // Every call that changes anything has been seen to; exit_group among the rest.
    let seen: BTreeSet<_> = calls.iter().map(|call| text(call, "call")).collect();
    assert_eq!(seen, Syscall::ALL.map(Syscall::name).into_iter().collect());
    let others: Vec<_> = calls.iter().filter(|call| call["origin"].is_null()).collect();
    assert_eq!(others.len(), 6);
    for other in others {
        assert!(other["before"] == true && other["after"] != false, "{other:#}");
        let file = text(&other["site"], "file");
        let loader = text(other, "event").starts_with("dl");
        assert!(file.is_empty() || file.contains(if loader { "ld-linux" } else { "libc.so" }), "{other:#}");
    }
    let mode = &list(&diagnosis, "modes")[0];
    assert_eq!(text(mode, "mode"), "plain");
    let alone = &diagnosis["static_program"];
    assert!(alone["run"] == true && alone["refused"].is_null() && alone["started"] == false, "{alone:#}");
    let costs = list(mode, "costs");
    assert!(costs.len() == SHOTS.len(), "{costs:?}");
    assert!(
        costs.iter().all(|cost| cost["alone_ns"].as_u64() > Some(0) && cost["watched_ns"].as_u64() > Some(0))
    );
    for item in list(&diagnosis, "machine") {
        assert_eq!(item["there"] == true, item["remedy"].is_null(), "{item:#}");
        assert!(!text(item, "found").is_empty() && !text(item, "used_for").is_empty(), "{item:#}");
    }
}

#[test]
fn people_get_a_table() {
    let test = "people_get_a_table";
    let said = doctor(test, &[], &[]).assert_success().stdout();
    assert!(said.ends_with("Everything that should be announced here is, before and after.\n"), "{said}");
    let line = |begin: &str| said.lines().find(|line| line.trim_start().starts_with(begin)).expect(begin);
    let words: Vec<_> = line("munmap").split_whitespace().collect();
    assert_eq!(words[..6], ["munmap", "✓✓", "✓✓", "✓✓", "✓✓", "✗✗"], "{said}");
    if said.contains("mmun run --strict") {
        assert_eq!(words[6], "✓✓", "{said}");
        assert!(line("trap").contains("the kernel traps them, +"), "{said}");
    }
    assert!(line("static").ends_with("the object inside of it"), "{said}");
    assert!(line("one that a program starts").ends_with("nobody: nothing can be preloaded"), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    let colours = doctor(test, &["--quick", "--color", "always"], &[]).assert_success().stdout();
    assert!(
        !colours.contains("alone") && colours.contains("\x1b[32m✓✓") && colours.contains("\x1b[33m✗✗"),
        "{colours}"
    );
}

/// An allocator that does not give memory back is no fault.
#[test]
fn other_allocators_are_well() {
    let test = "other_allocators_are_well";
    for name in ["libjemalloc.so.2", "libmimalloc.so.2", "libtcmalloc_minimal.so.4"] {
        let path = format!("/usr/lib/x86_64-linux-gnu/{name}");
        let Some(path) = find_file(test, &path) else { continue };
        doctor(test, &["--quick"], &[("LD_PRELOAD", &path)]).assert_success();
    }
}

/// A file, or a loud note that it is not there.
fn find_file(test: &str, path: &str) -> Option<String> {
    let there = std::path::Path::new(path).exists();
    if !there {
        skipped(test, &format!("no {path} on this machine"));
    }
    there.then(|| path.to_owned())
}

#[test]
fn who_takes_munmap_for_himself_is_found() {
    let test = "who_takes_munmap_for_himself_is_found";
    let library = compile_shared(&workshop(test), "overwrite");
    let library = library.to_str().expect("a path");
    for (how, late) in [("made", false), ("made", true), ("syscall", false), ("syscall", true)] {
        let diagnosis = |options: &[&str]| {
            let mut command = Command::new(MMUN);
            command
                .args(["doctor", "--quick"])
                .args(options)
                .env("LD_PRELOAD", library)
                .env("OVERWRITE", how);
            command.envs(late.then_some(("OVERWRITE_LATE", "")));
            command.output().expect("mmun runs")
        };
        let missed = how == "made";
        let output = diagnosis(&["--json"]);
        assert_eq!(output.status.code(), Some(i32::from(missed)), "{how} {late}");
        let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let wrong: Vec<_> = list(&found, "wrong").iter().filter_map(Value::as_str).collect();
        // What the allocator and threads unmap goes the same way.
        assert_eq!(wrong.len(), if missed { 3 } else { 0 }, "{wrong:?}");
        assert_eq!(
            wrong.contains(&"munmap by functions of the C library is not announced"),
            missed,
            "{wrong:?}"
        );
        let munmap = |origin| {
            let mut calls = calls(&found).iter();
            calls
                .find(|call| text(call, "origin") == origin && call["event"] == "munmap")
                .expect("it was made")
        };
        assert_eq!(
            (&munmap("libc")["before"], &munmap("syscall")["before"]),
            (&(!missed).into(), &true.into())
        );
        assert_eq!(
            munmap("libc")["site"] == munmap("syscall")["site"],
            !missed,
            "by way of the function syscall"
        );
        // What was overwritten before the object came, it has not written.
        let notes = list(&list(&found, "modes")[0], "notes");
        let overwritten = |note: &Value| note.as_str().is_some_and(|note| note.starts_with("munmap at /"));
        assert_eq!(notes.iter().filter(|note| overwritten(note)).count(), usize::from(late), "{notes:?}");
        let output = diagnosis(&[]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(i32::from(missed)), "{said}");
        assert_eq!(said.contains("\nNot as it should be: 3 things."), missed, "{said}");
        let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words.contains("somebody has written over the jump"), late, "{said}");
    }
}

#[test]
fn a_process_that_cannot_be_watched_is_an_error() {
    // The loader ignores what is not there, with a complaint; the object is not found then, which is said.
    let ended = doctor("a_process_that_cannot_be_watched_is_an_error", &["--patient", "no"], &[]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
}
