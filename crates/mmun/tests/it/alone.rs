//! Programs that nothing can be preloaded into: static ones, those of musl, and Go.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Mmun, Report, assert_same, run_plain};
use crate::program::{compile_with, find, skipped, source, workshop};

/// Runs it without and with `mmun`, and fails unless the two look the same.
fn assert_unnoticed(dir: &Path, options: &[&str], program: &[&str]) -> Report {
    let plain = run_plain(dir, program);
    plain.assert_success();
    let mmun = options.iter().fold(Mmun::new(dir), |mmun, option| mmun.option(*option));
    let (watched, report) = mmun.run(program);
    assert_same(&plain, &watched);
    report.assert_balanced();
    report
}

/// Builds it with musl, if there is a compiler for that.
fn compile_musl(dir: &Path, compiler: &Path, name: &str, flags: &[&str]) -> PathBuf {
    let program = dir.join(format!("{name}-musl"));
    let mut build = Command::new(compiler);
    build.args(["-O2", "-Wall", "-o"]).arg(&program).args(flags).arg(source(&format!("{name}.c")));
    let built = build.output().expect("the compiler runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}

#[test]
fn static_programs_are_seen_from_their_first_instruction() {
    let dir = workshop("static_programs_are_seen_from_their_first_instruction");
    for flags in [["-static"], ["-static-pie"]] {
        let build = |name: &str| compile_with(&dir, name, name, &flags).display().to_string();
        let churn = assert_unnoticed(&dir, &[], &[&build("churn"), "500"]);
        assert!(churn.is_complete() && churn.count("mprotect") >= 500, "{churn:?}");
        // The break is moved before `main`, when what is preloaded would not be there yet.
        assert!(churn.count("brk") >= 2, "{churn:?}");
        for (name, arguments) in [
            ("registers", &[][..]),
            ("signals", &["100"]),
            ("rawclone", &[]),
            ("fs0", &[]),
            ("stack", &[]),
            ("detached", &["100"]),
        ] {
            let program = build(name);
            let words: Vec<&str> = [&program[..]].into_iter().chain(arguments.iter().copied()).collect();
            let report = assert_unnoticed(&dir, &[], &words);
            assert!(report.is_complete(), "{name}: {report:?}");
        }
        let jit = build("jit");
        for what in ["unmap", "threads", "fork", "vfork"] {
            let report = assert_unnoticed(&dir, &["--strict"], &[&jit, what, "100"]);
            assert!(report.is_complete() && report.count("munmap") >= 100, "{what}: {report:?}");
        }
    }
}

#[test]
fn what_a_static_program_starts_is_followed_if_it_can_be() {
    let dir = workshop("what_a_static_program_starts_is_followed_if_it_can_be");
    let leave = compile_with(&dir, "leave", "leave", &["-static"]).display().to_string();
    let churn = compile_with(&dir, "churn", "churn", &[]).display().to_string();
    let report = assert_unnoticed(&dir, &[], &[&leave, "environment", "/", &churn, "500"]);
    assert!(report.count("mprotect") >= 500, "{report:?}");
}

#[test]
fn programs_of_musl_are_watched() {
    let test = "programs_of_musl_are_watched";
    let Some(compiler) = find(test, "musl-gcc") else { return };
    let dir = workshop(test);
    for flags in [&[][..], &["-static"]] {
        let build = |name: &str| compile_musl(&dir, &compiler, name, flags).display().to_string();
        let churn = assert_unnoticed(&dir, &[], &[&build("churn"), "500"]);
        assert!(churn.is_complete() && churn.count("mprotect") >= 500, "{churn:?}");
        // A thread of its own and its own stack: two each.
        let detached = build("detached");
        for options in [&["--strict=never"][..], &["--strict=auto"], &["--strict"]] {
            let report = assert_unnoticed(&dir, options, &[&detached, "100"]);
            assert!(report.count("munmap") >= 100, "{options:?}: {report:?}");
            assert!(report.is_complete() || options[0].ends_with("never"), "{options:?}: {report:?}");
            assert!(!report.is_complete() || report.count("munmap") >= 200, "{options:?}: {report:?}");
        }
        let registers = assert_unnoticed(&dir, &[], &[&build("registers")]);
        assert!(registers.is_complete(), "{registers:?}");
    }
}

#[test]
fn go_is_seen_on_its_small_stacks() {
    let test = "go_is_seen_on_its_small_stacks";
    let Some(go) = find(test, "go") else { return };
    let dir = workshop(test);
    for (name, cgo, flags, files) in [
        ("static", "0", "", &["goroutines.go"][..]),
        ("stripped", "0", "-s -w", &["goroutines.go"]),
        ("cgo", "1", "", &["goroutines.go", "cgo.go"]),
    ] {
        let program = dir.join(name);
        let mut build = Command::new(&go);
        build
            .args(["build", "-ldflags", flags, "-o"])
            .arg(&program)
            .args(files.iter().map(|file| source(file)));
        build.env("CGO_ENABLED", cgo).env("GO111MODULE", "off").env("GOCACHE", dir.join("../go-cache"));
        let built = build.output().expect("go runs");
        if !built.status.success() {
            return skipped(test, &String::from_utf8_lossy(&built.stderr));
        }
        let program = program.display().to_string();
        let named = assert_unnoticed(&dir, &["--strict=never"], &[&program]);
        assert!(!named.is_complete() && named.count("munmap") < 1600, "{name}: {named:?}");
        for option in ["--strict=auto", "--strict"] {
            let report = assert_unnoticed(&dir, &[option], &[&program]);
            assert!(report.is_complete(), "{name}: {report:?}");
            // Eight goroutines of two hundred rounds.
            for call in ["mmap", "munmap", "madvise"] {
                assert!(report.count(call) >= 1600, "{name}, {call}: {report:?}");
            }
        }
    }
}
