//! Programs into which nothing can be preloaded, started by watched ones: in every way, and in every way that fails.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Mmun, Report, assert_same, run_plain};
use crate::program::{compile_with, find, skipped, source, workshop};

/// Ways to start a program in `starts.c`.
const WAYS: u64 = 14;
/// `munmap`s of a program `started.c`.
const EACH: u64 = 100;

/// Runs it without and with `mmun`, and fails unless the two look the same and everything was seen.
fn assert_followed(dir: &Path, options: &[&str], program: &[&str]) -> Report {
    let plain = run_plain(dir, program);
    let mmun = options.iter().fold(Mmun::new(dir), |mmun, option| mmun.option(*option));
    let (watched, report) = mmun.run(program);
    assert_same(&plain, &watched);
    assert!(watched.stdout().ends_with("starts ok\n"), "{watched:?}");
    report.assert_balanced();
    assert!(report.is_complete(), "{report:?}");
    report
}

fn build(dir: &Path, name: &str, output: &str, flags: &[&str]) -> String {
    compile_with(dir, name, output, flags).display().to_string()
}

fn with_musl(dir: &Path, compiler: &Path, name: &str) -> String {
    let program = dir.join(name);
    let built = Command::new(compiler).args(["-O2", "-o"]).arg(&program).arg(source("started.c")).output();
    let built = built.expect("the compiler runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program.display().to_string()
}

#[test]
fn programs_that_load_nothing_are_watched_however_they_are_started() {
    let test = "programs_that_load_nothing_are_watched_however_they_are_started";
    let dir = workshop(test);
    let starters =
        [build(&dir, "starts", "starts", &[]), build(&dir, "starts", "starts-static", &["-static"])];
    let mut programs = vec![
        build(&dir, "started", "static", &["-static"]),
        build(&dir, "started", "static-pie", &["-static-pie"]),
    ];
    programs.extend(find(test, "musl-gcc").map(|compiler| with_musl(&dir, &compiler, "musl")));
    let script = dir.join("script");
    fs::write(&script, format!("#! {}\n", programs[0])).unwrap();
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    for starter in &starters {
        for program in &programs {
            for options in [&[][..], &["--strict"], &["--check"]] {
                let report = assert_followed(&dir, options, &[starter, program, "7"]);
                assert!(report.count("munmap") >= WAYS * EACH, "{starter} {program}: {report:?}");
            }
        }
        assert_followed(&dir, &[], &[starter, &programs[0], "-9"]);
        // Its interpreter cannot open what is closed on exec: two ways less.
        let script = script.display().to_string();
        let report = assert_followed(&dir, &[], &[starter, &script]);
        assert!(report.count("munmap") >= (WAYS - 2) * EACH, "{report:?}");
    }
}

#[test]
fn what_cannot_be_started_fails_as_it_does() {
    let dir = workshop("what_cannot_be_started_fails_as_it_does");
    let program = build(&dir, "started", "static", &["-static"]);
    for (name, flags) in [("starts", &[][..]), ("starts-static", &["-static"])] {
        let starter = build(&dir, "starts", name, flags);
        // Each run finds what the one before has made: the same.
        run_plain(&dir, &[&starter, "fail", &program]);
        for options in [&[][..], &["--strict"]] {
            assert_followed(&dir, options, &[&starter, "fail", &program]);
        }
    }
}

#[test]
fn a_chain_of_both_kinds_is_followed_to_its_end() {
    let dir = workshop("a_chain_of_both_kinds_is_followed_to_its_end");
    let [dynamic, fixed] = [("dynamic", &[][..]), ("static", &["-static"])]
        .map(|(name, flags)| build(&dir, "started", name, flags));
    let chain = [&fixed[..], "0", &dynamic, "1", &fixed, "2", &fixed, "3", &dynamic, "4"];
    let plain = run_plain(&dir, &chain);
    assert_eq!(plain.status.code(), Some(4), "{plain:?}");
    let (watched, report) = Mmun::new(&dir).run(&chain);
    assert_same(&plain, &watched);
    assert!(report.is_complete() && report.count("munmap") >= 5 * EACH, "{report:?}");
    // The static program starts itself, also from a thread, by descriptor and without an environment.
    let exec = build(&dir, "exec", "exec", &["-static", "-Wno-nonnull"]);
    let plain = run_plain(&dir, &[&exec]);
    let (watched, report) = Mmun::new(&dir).run(&["sh", "-c", "exec \"$0\"", &exec]);
    let stages = |text: String| text.lines().filter(|line| line.starts_with("stage")).count();
    assert_eq!(stages(plain.stdout()), stages(watched.stdout()), "{watched:?}");
    assert!(watched.stdout().ends_with("exec ok\n") && report.is_complete(), "{watched:?} {report:?}");
}

#[test]
fn go_programs_that_go_programs_start_are_watched() {
    let test = "go_programs_that_go_programs_start_are_watched";
    let Some(go) = find(test, "go") else { return };
    let dir = workshop(test);
    let compile = |name: &str| -> Option<PathBuf> {
        let program = dir.join(name);
        let mut build = Command::new(&go);
        build.args(["build", "-o"]).arg(&program).arg(source(&format!("{name}.go")));
        build.env("CGO_ENABLED", "0").env("GO111MODULE", "off").env("GOCACHE", dir.join("../go-cache"));
        let built = build.output().expect("go runs");
        if !built.status.success() {
            skipped(test, &String::from_utf8_lossy(&built.stderr));
        }
        built.status.success().then_some(program)
    };
    let (Some(starts), Some(goroutines)) = (compile("starts"), compile("goroutines")) else { return };
    let program = [starts.to_str().unwrap(), goroutines.to_str().unwrap()];
    for options in [&[][..], &["--strict"]] {
        let report = assert_followed(&dir, options, &program);
        // Three children, and at last itself: eight goroutines of two hundred rounds each.
        assert!(report.count("munmap") >= 3 * 1600, "{report:?}");
    }
}

#[test]
fn who_is_traced_already_starts_programs_unwatched_and_they_are_named() {
    let test = "who_is_traced_already_starts_programs_unwatched_and_they_are_named";
    let Some(strace) = find(test, "strace") else { return };
    let dir = workshop(test);
    let mut programs = vec![build(&dir, "started", "static", &["-static"])];
    programs.extend(find(test, "musl-gcc").map(|compiler| with_musl(&dir, &compiler, "musl")));
    let strace = strace.display().to_string();
    for program in &programs {
        let command = [&strace[..], "-f", "-o", "/dev/null", "sh", "-c", "\"$0\" 7; exit $?", program];
        let (watched, report) = Mmun::new(&dir).run(&command);
        assert_eq!(watched.status.code(), Some(7), "{watched:?}");
        assert_unwatched(&report, program, "that mmun cannot trace");
    }
}

fn assert_unwatched(report: &Report, program: &str, why: &str) {
    let unseen = report.value("unseen").to_string();
    assert!(unseen.contains(why), "{unseen}");
    assert!(report.value("programs_unseen").to_string().contains(program), "{report:?}");
}

#[test]
fn an_id_of_another_namespace_is_taken_for_nobody_elses() {
    let test = "an_id_of_another_namespace_is_taken_for_nobody_elses";
    let Some(unshare) = find(test, "unshare") else { return };
    if !Command::new(&unshare)
        .args(["--pid", "--fork", "true"])
        .output()
        .is_ok_and(|made| made.status.success())
    {
        return skipped(test, "cannot make a pid namespace");
    }
    let dir = workshop(test);
    let program = build(&dir, "started", "static", &["-static"]);
    let unshare = unshare.display().to_string();
    let (watched, report) =
        Mmun::new(&dir).run(&[&unshare[..], "--pid", "--fork", "sh", "-c", "\"$0\" 7; exit $?", &program]);
    assert_eq!(watched.status.code(), Some(7), "{watched:?}");
    assert_unwatched(&report, &program, "that mmun cannot trace");
    // The id of somebody outside who has memory at the same addresses.
    const NEXT: &str = "/proc/sys/kernel/ns_last_pid";
    let Some(setarch) = find(test, "setarch") else { return };
    if !Path::new(NEXT).exists() {
        return skipped(test, &format!("no {NEXT} to choose an id with"));
    }
    let setarch = setarch.display().to_string();
    let mut other = Command::new(&setarch).args(["-R", "sleep", "1000"]).spawn().expect("it runs");
    let script = format!("echo $(($1 - 1)) >{NEXT}; \"$0\" 7; exit $?");
    let id = other.id().to_string();
    let (watched, report) = Mmun::new(&dir).label("taken").run(&[
        &setarch[..],
        "-R",
        &unshare,
        "--pid",
        "--fork",
        "sh",
        "-c",
        &script,
        &program,
        &id,
    ]);
    other.kill().expect("it is there");
    other.wait().expect("it ends");
    assert_eq!(watched.status.code(), Some(7), "{watched:?}");
    assert_unwatched(&report, &program, "that mmun cannot trace");
}

#[test]
fn a_program_that_gains_rights_gains_them_and_is_named() {
    let test = "a_program_that_gains_rights_gains_them_and_is_named";
    let id = Command::new("id").arg("-u").output().expect("id runs");
    if id.stdout != b"0\n" {
        return skipped(test, "not root");
    }
    let dir = workshop(test);
    let program = build(&dir, "started", "static", &["-static"]);
    let owned = Command::new("chown").arg("65534").arg(&program).status().expect("chown runs");
    assert!(owned.success());
    fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
    let (watched, report) = Mmun::new(&dir).run(&["sh", "-c", "\"$0\" 7; exit $?", &program]);
    assert_eq!(watched.status.code(), Some(7), "{watched:?}");
    assert_unwatched(&report, &program, "gains rights");
}

#[test]
fn a_program_without_room_runs_unwatched_and_is_named() {
    let dir = workshop("a_program_without_room_runs_unwatched_and_is_named");
    let program = build(&dir, "started", "static", &["-static"]);
    // The program has room in so much, and the object not.
    let script = "ulimit -v 1500; exec \"$0\" 7";
    let plain = run_plain(&dir, &["sh", "-c", script, &program]);
    if plain.status.code() != Some(7) {
        return skipped("a_program_without_room_runs_unwatched_and_is_named", "it needs more memory here");
    }
    let (watched, report) = Mmun::new(&dir).run(&["sh", "-c", script, &program]);
    assert_same(&plain, &watched);
    assert_unwatched(&report, &program, "no room");
}
