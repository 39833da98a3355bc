//! A program must not notice that it is watched, and who runs it must not either.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command::{self, MMUN, Mmun, assert_same, run_plain};
use crate::program::{self, compile, compile_shared, compile_with, workshop};

fn sh(script: &str) -> [&str; 3] {
    ["sh", "-c", script]
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id runs");
    id.stdout == b"0\n"
}

/// Runs it with and without `mmun`, and fails unless the two look the same.
fn assert_unnoticed(dir: &Path, program: &[&str]) -> command::Report {
    let plain = run_plain(dir, program);
    let (watched, report) = Mmun::new(dir).run(program);
    assert_same(&plain, &watched);
    report.assert_balanced();
    report
}

#[test]
fn exit_status_is_the_programs() {
    let dir = workshop("exit_status_is_the_programs");
    for status in [0, 7, 255] {
        let (ended, report) = Mmun::new(&dir).run(&sh(&format!("exit {status}")));
        assert_eq!(ended.status.code(), Some(status), "{ended:?}");
        assert!(ended.stdout.is_empty() && ended.stderr.is_empty(), "{ended:?}");
        assert!(report.outcome().contains(&status.to_string()), "{}", report.outcome());
        report.assert_balanced();
    }
}

#[test]
fn death_by_a_signal_is_seen_by_the_parent() {
    let dir = workshop("death_by_a_signal_is_seen_by_the_parent");
    for (name, number) in [("KILL", 9), ("SEGV", 11), ("TERM", 15), ("USR1", 10)] {
        let (ended, report) = Mmun::new(&dir).run(&sh(&format!("ulimit -c 0; kill -{name} $$; sleep 10")));
        assert_eq!(ended.status.signal(), Some(number), "{ended:?}");
        assert!(report.outcome().contains(&number.to_string()), "{}", report.outcome());
        report.assert_balanced();
    }
}

#[test]
fn standard_streams_are_the_programs() {
    let dir = workshop("standard_streams_are_the_programs");
    fs::write(dir.join("input"), "from stdin\n\0binary\u{7f}\n").unwrap();
    let script = "cat; echo to stderr >&2; read more; echo \"$? $more\"; ls /proc/self/fd; cat < input";
    let mut plain = Command::new("sh");
    plain.args(["-c", script]).current_dir(&dir).stdin(fs::File::open(dir.join("input")).unwrap());
    let plain = command::start(&mut plain, &dir, "plain").wait();
    let mmun = Mmun::new(&dir);
    let mut watched = mmun.command::<&str>(&[], &sh(script));
    watched.stdin(fs::File::open(dir.join("input")).unwrap());
    let watched = command::start(&mut watched, &dir, "mmun").wait();
    assert_same(&plain, &watched);
    assert!(watched.stdout().starts_with("from stdin\n\0binary"), "{watched:?}");
}

#[test]
fn arguments_are_as_given() {
    let dir = workshop("arguments_are_as_given");
    let odd = ["cat", "/proc/self/cmdline", "--", "", "-", "--json", "a b\n", "%s$HOME\\"];
    let plain = run_plain(&dir, &odd);
    let (watched, _) = Mmun::new(&dir).run(&odd);
    assert_eq!(plain.stdout(), watched.stdout());
    assert!(watched.stdout().starts_with("cat\0/proc/self/cmdline\0--\0\0-\0--json\0a b\n\0"), "{watched:?}");
}

#[test]
fn the_environment_is_as_it_was() {
    let dir = workshop("the_environment_is_as_it_was");
    for program in [&["env"][..], &sh("env; sh -c env; env env"), &["env", "-i", "A=1", "B=2", "env"]] {
        let plain = run_plain(&dir, program);
        let (watched, _) = Mmun::new(&dir).run(program);
        assert_same(&plain, &watched);
        for hidden in ["LD_PRELOAD", "MMUN"] {
            assert!(!watched.stdout().contains(hidden), "{hidden} shows: {watched:?}");
        }
    }
}

#[test]
fn a_program_without_an_environment_is_followed() {
    let dir = workshop("a_program_without_an_environment_is_followed");
    let churn = compile(&dir, "churn").display().to_string();
    let report = assert_unnoticed(&dir, &["env", "-i", &churn, "1234"]);
    assert!(report.count("mprotect") >= 1234, "only {} mprotect", report.count("mprotect"));
}

#[test]
fn what_a_program_leaves_behind_does_not_end_the_watching() {
    let dir = workshop("what_a_program_leaves_behind_does_not_end_the_watching");
    let churn = compile(&dir, "churn").display().to_string();
    let leave = compile(&dir, "leave").display().to_string();
    for what in ["environment", "environment-pointer", "files", "all-files", "directory", "session"] {
        let report = assert_unnoticed(&dir, &[&leave, what, "/", &churn, "500"]);
        let seen = report.count("mprotect");
        assert!(seen >= 1500, "{what}: only {seen} of 1500 mprotect calls were seen");
    }
}

#[test]
fn a_new_root_or_fewer_rights_do_not_disturb_the_program() {
    let test = "a_new_root_or_fewer_rights_do_not_disturb_the_program";
    if !is_root() {
        return program::skipped(test, "not root");
    }
    let dir = workshop(test);
    let churn = compile(&dir, "churn").display().to_string();
    let leave = compile(&dir, "leave").display().to_string();
    let root = dir.join("root");
    fs::create_dir(&root).unwrap();
    let report = assert_unnoticed(&dir, &[&leave, "root", root.to_str().unwrap(), &churn]);
    assert!(report.count("mprotect") >= 1000, "only {} mprotect", report.count("mprotect"));
    // Everybody can reach a program in /tmp.
    let open = PathBuf::from(format!("/tmp/mmun-test-{}", std::process::id()));
    fs::copy(&churn, &open).unwrap();
    let plain = run_plain(&dir, &[&leave, "privileges", "/", open.to_str().unwrap(), "500"]);
    let (watched, report) = Mmun::new(&dir).run(&[&leave, "privileges", "/", open.to_str().unwrap(), "500"]);
    fs::remove_file(&open).unwrap();
    assert_same(&plain, &watched);
    assert!(report.count("mprotect") >= 1000, "only {} mprotect", report.count("mprotect"));
}

#[test]
fn the_users_own_preloaded_object_stays() {
    let dir = workshop("the_users_own_preloaded_object_stays");
    let object = compile_shared(&dir, "preloaded").display().to_string();
    let user = compile(&dir, "preload_user").display().to_string();
    let mut plain = Command::new(&user);
    plain.env("LD_PRELOAD", &object).current_dir(&dir);
    let plain = command::run(&mut plain, &dir, "plain");
    assert_eq!(plain.stdout(), format!("preloaded, LD_PRELOAD={object}\n").repeat(2));
    let (watched, _) = Mmun::new(&dir).env("LD_PRELOAD", &object).run(&[&user]);
    assert_same(&plain, &watched);
    // Set by a watched program for another one.
    let (watched, report) = Mmun::new(&dir).run(&["env", &format!("LD_PRELOAD={object}"), &user]);
    assert_same(&plain, &watched);
    assert!(report.count("execve") >= 2, "{}", report.line());
}

#[test]
fn a_script_is_followed_into_its_interpreter() {
    let dir = workshop("a_script_is_followed_into_its_interpreter");
    let churn = compile(&dir, "churn").display().to_string();
    let script = dir.join("script");
    fs::write(&script, format!("#!/bin/sh\n{churn} 700\nexit 4\n")).unwrap();
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let report = assert_unnoticed(&dir, &[script.to_str().unwrap()]);
    assert!(report.count("mprotect") >= 700, "{}", report.line());
}

#[test]
fn a_missing_program_is_127() {
    let dir = workshop("a_missing_program_is_127");
    for name in ["/nowhere/at/all", "no-such-program-anywhere", "./nothing"] {
        let mut command = Mmun::new(&dir).command::<&str>(&[], &[name]);
        command::run(&mut command, &dir, "mmun").assert_refused(127);
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_126() {
    let dir = workshop("a_program_that_cannot_be_executed_is_126");
    fs::write(dir.join("text"), "#!/bin/sh\n").unwrap();
    for name in ["./text", "/"] {
        let mut command = Mmun::new(&dir).command::<&str>(&[], &[name]);
        command::run(&mut command, &dir, "mmun").assert_refused(126);
    }
}

#[test]
fn a_static_program_that_a_watched_one_starts_just_runs() {
    let dir = workshop("a_static_program_that_a_watched_one_starts_just_runs");
    compile_with(&dir, "hello", "static", &["-static"]);
    assert_unnoticed(&dir, &sh("./static; ./static | cat; exit 3"));
}

#[test]
fn a_setuid_program_is_refused_before_it_runs() {
    let test = "a_setuid_program_is_refused_before_it_runs";
    let dir = workshop(test);
    let program = if is_root() {
        let hello = compile(&dir, "hello");
        let other = Command::new("chown").arg("65534").arg(&hello).status().expect("chown runs");
        assert!(other.success());
        fs::set_permissions(&hello, PermissionsExt::from_mode(0o4755)).unwrap();
        hello
    } else {
        match program::find(test, "su") {
            Some(su) => su,
            None => return,
        }
    };
    let mut command = Mmun::new(&dir).command::<&str>(&[], &[&program]);
    command::run(&mut command, &dir, "mmun").assert_refused(125);
}

#[test]
fn an_unwritable_report_is_refused_before_the_program_runs() {
    let dir = workshop("an_unwritable_report_is_refused_before_the_program_runs");
    for option in ["--json", "--trace", "--report"] {
        for place in ["/nowhere/at/all.html", "/proc/x.html", "."] {
            let mut command = Command::new(MMUN);
            command.args(["run", option, place, "--", "touch", "it-ran"]).current_dir(&dir);
            command::run(&mut command, &dir, "mmun").assert_refused(125);
            assert!(!dir.join("it-ran").exists(), "the program ran with {option} {place}");
        }
    }
}

#[test]
fn nonsense_options_are_usage_errors() {
    let dir = workshop("nonsense_options_are_usage_errors");
    let wrong: [&[&str]; 7] = [
        &["run", "--nonsense", "--", "touch", "it-ran"],
        &["run"],
        &["run", "--refuse", "x", "--", "touch", "it-ran"],
        &["run", "--refuse", "1/0", "--", "touch", "it-ran"],
        &["run", "--buffer", "lots", "--", "touch", "it-ran"],
        &["run", "--json"],
        &["nonsense"],
    ];
    for words in wrong {
        let mut command = Command::new(MMUN);
        command.args(words).current_dir(&dir);
        let ended = command::run(&mut command, &dir, "mmun");
        assert_eq!(ended.status.code(), Some(2), "{words:?}: {ended:?}");
        assert!(!ended.stderr.is_empty() && ended.stdout.is_empty(), "{words:?}: {ended:?}");
        assert!(!dir.join("it-ran").exists(), "the program ran with {words:?}");
    }
}

#[test]
fn an_interrupt_ends_the_program_and_is_reported() {
    let dir = workshop("an_interrupt_ends_the_program_and_is_reported");
    let mmun = Mmun::new(&dir);
    // `exec`, so that the program is what the signal ends.
    let mut command = mmun.command::<&str>(&[], &sh("echo begun; exec sleep 100"));
    command.stdin(Stdio::null());
    let mut started = command::start(&mut command, &dir, "mmun");
    started.wait_for("begun");
    started.signal_group("INT");
    let ended = started.wait();
    assert_eq!(ended.status.signal(), Some(2), "{ended:?}");
    let report = command::Report::read(&mmun.json(), &ended);
    assert!(report.count("execve") >= 1, "{}", report.line());
    report.assert_balanced();
}

#[test]
fn a_program_that_handles_the_interrupt_goes_on() {
    let dir = workshop("a_program_that_handles_the_interrupt_goes_on");
    let mmun = Mmun::new(&dir);
    let script = "trap 'echo caught; exit 9' INT; echo begun; while :; do sleep 0.05; done";
    let mut command = mmun.command::<&str>(&[], &sh(script));
    command.stdin(Stdio::null());
    let mut started = command::start(&mut command, &dir, "mmun");
    started.wait_for("begun");
    started.signal_group("INT");
    let ended = started.wait();
    assert_eq!(ended.status.code(), Some(9), "{ended:?}");
    assert!(ended.stdout().contains("caught"), "{ended:?}");
    command::Report::read(&mmun.json(), &ended).assert_balanced();
}

#[test]
fn closed_streams_do_not_matter() {
    let dir = workshop("closed_streams_do_not_matter");
    for close in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let mmun = Mmun::new(&dir);
        let real = mmun.command::<&str>(&[], &sh("/bin/true; echo ran > ran; exit 6"));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec \"$0\" \"$@\" {close}")]).arg(real.get_program());
        command.args(real.get_args()).current_dir(&dir);
        let ended = command::run(&mut command, &dir, "mmun");
        assert_eq!(ended.status.code(), Some(6), "{close}: {ended:?}");
        assert_eq!(fs::read_to_string(dir.join("ran")).expect("the program ran"), "ran\n", "{close}");
        fs::remove_file(dir.join("ran")).unwrap();
        command::Report::read(&mmun.json(), &ended).assert_balanced();
    }
}

#[test]
fn a_directory_that_cannot_be_written_will_do() {
    let dir = workshop("a_directory_that_cannot_be_written_will_do");
    let (ended, report) = Mmun::new(&dir).from(Path::new("/proc")).run(&sh("pwd; exit 3"));
    assert_eq!((ended.status.code(), ended.stdout()), (Some(3), "/proc\n".into()));
    report.assert_balanced();
}

#[test]
fn nothing_is_left_in_the_directory() {
    let dir = workshop("nothing_is_left_in_the_directory");
    let empty = dir.join("empty");
    fs::create_dir(&empty).unwrap();
    let mut command = Command::new(MMUN);
    command.args(["run", "--", "sh", "-c", "ls; true | true"]).current_dir(&empty);
    let ended = command::run(&mut command, &dir, "mmun");
    ended.assert_success();
    assert_eq!(ended.stdout(), "", "the summary goes to standard error");
    assert!(!ended.stderr.is_empty(), "there is a summary");
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
}

#[test]
fn all_reports_are_written_at_once() {
    let dir = workshop("all_reports_are_written_at_once");
    let churn = compile(&dir, "churn").display().to_string();
    let [trace, page] = ["trace.json", "page.html"].map(|name| dir.join(name).display().to_string());
    let mmun = Mmun::new(&dir).option("--trace").option(&trace).option("--report").option(&page);
    let (ended, report) = mmun.run(&[&churn, "100"]);
    ended.assert_success();
    assert!(report.number("records.read") + report.number("records.dropped") >= 100, "{}", report.line());
    serde_json::from_str::<serde_json::Value>(&fs::read_to_string(&trace).unwrap())
        .expect("the trace is JSON");
    let page = fs::read_to_string(&page).unwrap().to_lowercase();
    assert!(page.contains("<html") && page.contains("</html>"), "the page is whole");
}

#[test]
fn a_full_buffer_is_reported_and_changes_no_count() {
    let dir = workshop("a_full_buffer_is_reported_and_changes_no_count");
    let churn = compile(&dir, "churn").display().to_string();
    let trace = dir.join("trace.json").display().to_string();
    let mmun = Mmun::new(&dir).option("--trace").option(&trace).option("--buffer").option("64K");
    let (ended, report) = mmun.run(&[&churn, "200000"]);
    ended.assert_success();
    let seen = report.count("mprotect");
    assert!((200_000..200_100).contains(&seen), "{seen} mprotect of 200000");
    let (read, dropped) = (report.number("records.read"), report.number("records.dropped"));
    assert!(read + dropped >= 200_000, "{read} records read and {dropped} dropped of 200000 or more");
}

#[test]
fn a_program_with_little_address_space_runs() {
    let dir = workshop("a_program_with_little_address_space_runs");
    let churn = compile(&dir, "churn").display().to_string();
    for kilobytes in [20_000, 100_000, 1_000_000] {
        assert_unnoticed(&dir, &sh(&format!("ulimit -v {kilobytes}; exec {churn} 100")));
    }
}

#[test]
fn an_exec_with_too_large_an_environment_is_named() {
    let dir = workshop("an_exec_with_too_large_an_environment_is_named");
    for (variables, is_named) in [(500, false), (1500, true)] {
        let script = format!("for i in $(seq {variables}); do export V$i=; done; exec sh -c 'exit 7'");
        let (ended, report) = Mmun::new(&dir).run(&sh(&script));
        assert_eq!(ended.status.code(), Some(7), "{ended:?}");
        let unseen = report.value("unseen").to_string();
        assert_eq!(unseen.contains("environment that could not be prepared"), is_named, "{report:?}");
    }
}

/// What `docs/limits.md` says of `RLIMIT_DATA`.
#[test]
fn the_object_takes_up_to_a_mebibyte_of_data() {
    let dir = workshop("the_object_takes_up_to_a_mebibyte_of_data");
    let script = sh("grep VmData /proc/$$/status; exit 0");
    let kibibytes = |ended: &command::Ended| {
        let text = ended.stdout();
        text.split_whitespace().nth(1).and_then(|number| number.parse::<i64>().ok()).expect("VmData: .. kB")
    };
    let plain = kibibytes(&run_plain(&dir, &script));
    for option in ["--strict=auto", "--strict"] {
        let (watched, _) = Mmun::new(&dir).option(option).run(&script);
        let more = kibibytes(&watched) - plain;
        assert!((200..=1024).contains(&more), "{option}: {more} KiB");
    }
}

/// A process whose `/proc` is of another pid namespace does not find the session.
#[test]
fn where_proc_is_another_one_a_program_is_listed_as_unwatched() {
    let test = "where_proc_is_another_one_a_program_is_listed_as_unwatched";
    let Some(unshare) = program::find(test, "unshare") else { return };
    let program = [unshare.to_str().unwrap(), "--pid", "--fork", "--mount-proc", "sh", "-c", "exit 7"];
    let dir = workshop(test);
    if run_plain(&dir, &program).status.code() != Some(7) {
        return program::skipped(test, "cannot make a pid namespace");
    }
    let (ended, report) = Mmun::new(&dir).run(&program);
    assert_eq!(ended.status.code(), Some(7), "{ended:?}");
    assert!(report.value("programs_unseen").to_string().contains("/sh"), "{report:?}");
}

#[test]
fn a_program_with_few_files_runs() {
    let dir = workshop("a_program_with_few_files_runs");
    let churn = compile(&dir, "churn").display().to_string();
    assert_unnoticed(&dir, &sh(&format!("ulimit -n 4; {churn} 100; exec {churn} 100")));
}

#[test]
fn children_that_outlive_the_program_keep_nobody_waiting_for_their_status() {
    let dir = workshop("children_that_outlive_the_program_keep_nobody_waiting_for_their_status");
    let (ended, _) = Mmun::new(&dir).run(&sh("(sleep 0.3; true) > /dev/null 2>&1 & exit 3"));
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
}

#[test]
fn refused_starts_leave_a_program_as_it_was() {
    let dir = workshop("refused_starts_leave_a_program_as_it_was");
    let torture = compile(&dir, "torture").display().to_string();
    let plain = run_plain(&dir, &[&torture, "4", "200"]);
    let (watched, report) = Mmun::new(&dir).option("--refuse").option("1/3").run(&[&torture, "4", "200"]);
    assert_same(&plain, &watched);
    report.assert_balanced();
    assert!(report.bracketed("munmap") > 0, "{}", report.line());
}
