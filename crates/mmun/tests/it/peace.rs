//! Peace with the tools that programs are run under, and with programs that confine themselves. The libraries that
//! patch the C library are in the tests of `mmu-notifier-capi`; `docs/peace.md` has the table of both.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::command::{self, Mmun, Report, assert_same, run_plain};
use crate::program::{compile, compile_shared, compile_with, find, skipped, workshop};

/// Runs it without and with `mmun`; fails unless the two look the same and all brackets are whole.
fn assert_same_watched(dir: &Path, program: &[&str], last_line: &str) -> Report {
    let plain = run_plain(dir, program);
    plain.assert_success();
    assert_eq!(plain.stdout().lines().last(), Some(last_line), "without mmun: {plain:?}");
    let (watched, report) = Mmun::new(dir).run(program);
    assert_same(&plain, &watched);
    report.assert_balanced();
    report
}

fn assert_all_unmaps(report: &Report, what: &str) {
    assert!(report.bracketed("munmap") >= 800, "{what}: {} munmap", report.bracketed("munmap"));
}

/// Whether gcc has the run-time library of a sanitizer.
fn has_sanitizer(test: &str, dir: &Path, flag: &str) -> bool {
    fs::write(dir.join("empty.c"), "int main(void) { return 0; }\n").expect("a file");
    let built = Command::new("gcc").args([flag, "empty.c", "-o", "empty"]).current_dir(dir).output();
    let has = built.is_ok_and(|built| built.status.success());
    if !has {
        skipped(test, &format!("gcc has no {flag}"));
    }
    has
}

#[test]
fn sanitized_programs_are_watched() {
    let test = "sanitized_programs_are_watched";
    let dir = workshop(test);
    for flag in ["-fsanitize=address", "-fsanitize=thread", "-fsanitize=undefined", "-fsanitize=leak"] {
        if has_sanitizer(test, &dir, flag) {
            let program = compile_with(&dir, "allocate", "allocate", &[flag]).display().to_string();
            assert_all_unmaps(&assert_same_watched(&dir, &[&program], "allocate ok"), flag);
        }
    }
}

#[test]
fn a_sanitizer_still_finds_what_it_looks_for() {
    let test = "a_sanitizer_still_finds_what_it_looks_for";
    let dir = workshop(test);
    if has_sanitizer(test, &dir, "-fsanitize=address") {
        let bad = "#include <stdlib.h>\nint main(void) { volatile char *p = malloc(8); free((void *)p); return p[3]; }\n";
        fs::write(dir.join("bad.c"), bad).expect("a file");
        let flags = ["-g", "-O1", "-w", "-fsanitize=address", "bad.c", "-o", "bad"];
        let built = Command::new("gcc").args(flags).current_dir(&dir).status().expect("gcc");
        assert!(built.success());
        let (ended, _) = Mmun::new(&dir).run(&["./bad"]);
        assert!(!ended.status.success() && ended.stderr().contains("heap-use-after-free"), "{ended:?}");
    }
}

/// The object says to AddressSanitizer that it may come first, unless the program says something itself.
#[test]
fn a_program_with_options_for_its_sanitizer_has_to_add_one() {
    let test = "a_program_with_options_for_its_sanitizer_has_to_add_one";
    let dir = workshop(test);
    if !has_sanitizer(test, &dir, "-fsanitize=address") {
        return;
    }
    for (options, works) in [("abort_on_error=0", false), ("verify_asan_link_order=0", true)] {
        let code = format!(
            "const char *__asan_default_options(void) {{ return \"{options}\"; }}\nint main(void) {{ return 0; }}\n"
        );
        fs::write(dir.join("options.c"), code).expect("a file");
        let flags = ["-w", "-fsanitize=address", "options.c", "-o", "options"];
        let built = Command::new("gcc").args(flags).current_dir(&dir).status().expect("gcc");
        assert!(built.success());
        run_plain(&dir, &["./options"]).assert_success();
        let (ended, _) = Mmun::new(&dir).run(&["./options"]);
        assert_eq!(ended.status.success(), works, "{ended:?}");
        assert_eq!(ended.stderr().contains("ASan runtime does not come first"), !works, "{ended:?}");
    }
}

#[test]
fn under_valgrind_we_stand_down() {
    let test = "under_valgrind_we_stand_down";
    if find(test, "valgrind").is_some() {
        let dir = workshop(test);
        let program = compile(&dir, "allocate").display().to_string();
        let report = assert_same_watched(&dir, &["valgrind", "-q", &program], "allocate ok");
        assert_eq!(report.count("munmap"), 0, "only the starter of valgrind is watched");
    }
}

#[test]
fn under_gdb_and_strace_the_program_is_watched() {
    let test = "under_gdb_and_strace_the_program_is_watched";
    let dir = workshop(test);
    let program = compile(&dir, "allocate").display().to_string();
    let lines = [
        (
            "gdb",
            vec!["gdb", "-q", "-batch", "-nx", "-ex", "set startup-with-shell off", "-ex", "run", &program],
        ),
        ("strace", vec!["strace", "-f", "-o", "/dev/null", &program]),
    ];
    for (tool, words) in lines {
        if find(test, tool).is_some() {
            let (ended, report) = Mmun::new(&dir).run(&words);
            ended.assert_success();
            assert!(ended.stdout().contains("allocate ok"), "{tool}: {ended:?}");
            assert_all_unmaps(&report, tool);
        }
    }
}

#[test]
fn a_backtrace_goes_through_the_hook() {
    let test = "a_backtrace_goes_through_the_hook";
    if find(test, "gdb").is_some() {
        let dir = workshop(test);
        let program = compile_with(&dir, "allocate", "allocate", &["-g"]).display().to_string();
        let mut words = vec!["gdb", "-q", "-batch", "-nx", "-ex", "set startup-with-shell off"];
        words.extend(["-ex", "break main", "-ex", "run", "-ex", "catch syscall munmap", "-ex", "continue"]);
        words.extend(["-ex", "bt", "-ex", "kill", &program]);
        let (ended, _) = Mmun::new(&dir).run(&words);
        assert!(ended.stdout().contains(" work ("), "{ended:?}");
    }
}

#[test]
fn a_program_with_a_list_of_calls_is_watched() {
    let dir = workshop("a_program_with_a_list_of_calls_is_watched");
    let program = compile(&dir, "confined").display().to_string();
    let report = assert_same_watched(&dir, &[&program, "filter"], "confined ok");
    assert!(report.bracketed("munmap") >= 300, "{}", report.line());
}

/// A list on which is nothing that only the hook calls: what is not on it fails, or is answered by the program's handler, as in a
/// sandbox. What cannot be seen then is named; the program lives.
#[test]
fn a_program_whose_list_has_answers_is_watched() {
    let dir = workshop("a_program_whose_list_has_answers_is_watched");
    let program = compile(&dir, "confined").display().to_string();
    let fits = compile_shared(&dir, "by_itself").display().to_string();
    let flags = ["-shared", "-fPIC", "-DUNFIT"];
    let unfit = compile_with(&dir, "by_itself", "unfit.so", &flags).display().to_string();
    for mode in ["errno", "trap"] {
        for (library, strict, unmaps, unseen) in [
            ("", "auto", 300, 0),
            ("", "always", 300, 0),
            (&fits, "auto", 600, 0),
            (&fits, "always", 600, 0),
            (&unfit, "always", 600, 0),
            // It cannot be armed any more.
            (&unfit, "auto", 300, 1),
            (&unfit, "never", 300, 1),
        ] {
            let what = format!("{mode} {library} {strict}");
            let words: Vec<&str> =
                [&program, mode, library].into_iter().filter(|word| !word.is_empty()).collect();
            let plain = run_plain(&dir, &words);
            plain.assert_success();
            let mmun = Mmun::new(&dir);
            let mmun = if strict == "auto" { mmun } else { mmun.option(format!("--strict={strict}")) };
            let (watched, report) = mmun.run(&words);
            assert_same(&plain, &watched);
            report.assert_balanced();
            let seen = report.bracketed("munmap");
            assert!((unmaps..unmaps + 100).contains(&seen), "{what}: {seen} munmap");
            let named = report.value("unseen").as_array().map(Vec::len);
            assert_eq!(named, Some(unseen), "{what}: {}", report.line());
        }
    }
}

#[test]
fn a_program_whose_memory_must_not_become_executable_is_watched() {
    let test = "a_program_whose_memory_must_not_become_executable_is_watched";
    let dir = workshop(test);
    let program = compile(&dir, "confined").display().to_string();
    let plain = run_plain(&dir, &[&program, "mdwe"]);
    if plain.status.code() == Some(77) {
        return skipped(test, "this kernel has no PR_SET_MDWE");
    }
    let report = assert_same_watched(&dir, &[&program, "mdwe"], "confined ok");
    assert!(report.bracketed("munmap") >= 300, "{}", report.line());
    // Inherited by a program that is started so: it runs, watched or named.
    let allocate = compile(&dir, "allocate").display().to_string();
    assert_same_watched(&dir, &[&program, "mdwe", &allocate], "allocate ok");
}

#[test]
fn however_a_program_is_linked_it_is_watched() {
    let dir = workshop("however_a_program_is_linked_it_is_watched");
    let ways: [(&str, &[&str]); 5] = [
        ("pie", &["-pie", "-fPIE"]),
        ("no-pie", &["-no-pie", "-fno-pie"]),
        ("now", &["-Wl,-z,now"]),
        ("lazy", &["-Wl,-z,lazy"]),
        ("norelro", &["-Wl,-z,norelro"]),
    ];
    for (name, flags) in ways {
        let program = compile_with(&dir, "allocate", name, flags).display().to_string();
        assert_all_unmaps(&assert_same_watched(&dir, &[&program], "allocate ok"), name);
    }
    let program = dir.join("lazy").display().to_string();
    let (ended, report) = Mmun::new(&dir).env("LD_BIND_NOW", "1").run(&[&program]);
    ended.assert_success();
    assert_all_unmaps(&report, "LD_BIND_NOW");
    let program = compile_with(&dir, "allocate", "static-pie", &["-static-pie", "-fPIE"]);
    run_plain(&dir, &[&program]).assert_success();
    // Watched where injection works, and refused with a sentence where it does not.
    let mut command = Mmun::new(&dir).command::<&str>(&[], &[&program]);
    let ended = command::run(&mut command, &dir, "mmun");
    if ended.status.code() == Some(125) {
        ended.assert_refused(125);
    } else {
        ended.assert_success();
        assert_eq!(ended.stdout(), "allocate ok\n", "{ended:?}");
    }
}

/// Its copy is told by the preloaded one, and so the demonstration finds what it finds alone.
#[test]
fn a_program_that_brings_the_rust_crate_is_told_by_the_preloaded_copy() {
    let test = "a_program_that_brings_the_rust_crate_is_told_by_the_preloaded_copy";
    let dir = workshop(test);
    let program = [command::MMUN, "demo", "io-uring"];
    let plain = run_plain(&dir, &program);
    if !plain.status.success() {
        return skipped(test, "no io_uring");
    }
    let (ended, report) = Mmun::new(&dir).run(&program);
    assert_same(&plain, &ended);
    report.assert_balanced();
    assert!(report.count("mremap") > 0, "{report:?}");
}
