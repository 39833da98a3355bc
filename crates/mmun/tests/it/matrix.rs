//! Programs as people run them: unchanged by `mmun`, and counted as `strace` counts them.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use crate::command::{self, Mmun, assert_same, run_plain};
use crate::program::{compile, find, skipped, source, workshop};
use crate::truth::{Ending, assert_counts_equal};

/// Runs it without `mmun`, with it, and with it under `strace`.
fn assert_watched(test: &str, dir: &Path, ending: Ending, program: &[&str]) {
    let plain = run_plain(dir, program);
    plain.assert_success();
    assert!(!plain.stdout.is_empty(), "a program that says nothing shows nothing: {plain:?}");
    let trace = dir.join("trace.json").display().to_string();
    let (watched, report) = Mmun::new(dir).option("--trace").option(trace).run(program);
    assert_same(&plain, &watched);
    report.assert_balanced();
    let _ = writeln!(std::io::stderr(), "{test}: {}", report.line());
    if find(test, "strace").is_some() {
        let (straced, report) = assert_counts_equal(dir, ending, program);
        assert_same(&plain, &straced);
        report.assert_balanced();
    }
}

/// The path of a source that is handed to an interpreter.
fn script(name: &str) -> String {
    source(name).display().to_string()
}

#[test]
fn bash_with_coreutils() {
    let test = "bash_with_coreutils";
    if find(test, "bash").is_some() {
        let dir = workshop(test);
        assert_watched(test, &dir, Ending::Quiet, &["bash", &script("processes.sh")]);
    }
}

#[test]
fn python_dictionaries() {
    let test = "python_dictionaries";
    if find(test, "/usr/bin/python3").is_some() {
        let dir = workshop(test);
        assert_watched(test, &dir, Ending::Quiet, &["/usr/bin/python3", &script("dictionaries.py")]);
    }
}

#[test]
fn python_numpy() {
    let test = "python_numpy";
    let Some(python) = find(test, "/usr/bin/python3") else { return };
    let numpy = Command::new(python).args(["-c", "import numpy"]).output().expect("python3 runs");
    if !numpy.status.success() {
        return skipped(test, "no numpy for /usr/bin/python3");
    }
    let dir = workshop(test);
    assert_watched(test, &dir, Ending::Quiet, &["/usr/bin/python3", &script("arrays.py")]);
}

#[test]
fn node_with_a_worker() {
    let test = "node_with_a_worker";
    if find(test, "node").is_some() {
        let dir = workshop(test);
        // Its helper threads may still be collecting garbage when it ends.
        assert_watched(test, &dir, Ending::CutsThreads, &["node", &script("worker.js")]);
    }
}

#[test]
fn gcc_with_several_files() {
    let test = "gcc_with_several_files";
    let dir = workshop(test);
    for number in 0..4 {
        let code = format!(
            "#include <stdio.h>\n#include <stdlib.h>\nint part{number}(int x);\n\
             int part{number}(int x) {{ char t[32]; snprintf(t, sizeof t, \"%d\", x * {number}); return atoi(t); }}\n"
        );
        fs::write(dir.join(format!("part{number}.c")), code).unwrap();
    }
    let main = "#include <stdio.h>\nint part0(int), part1(int), part2(int), part3(int);\n\
                int main(void) { printf(\"%d\\n\", part0(5) + part1(6) + part2(7) + part3(8)); return 0; }\n";
    fs::write(dir.join("main.c"), main).unwrap();
    let build = "for f in main part0 part1 part2 part3; do gcc -O2 -c $f.c -o $f.o || exit 1; done; \
                 gcc -flto -O2 -o all main.o part0.o part1.o part2.o part3.o && ./all && cksum < part1.o";
    assert_watched(test, &dir, Ending::Quiet, &["sh", "-c", build]);
}

#[test]
fn sqlite_bulk_insert() {
    let test = "sqlite_bulk_insert";
    if find(test, "sqlite3").is_some() {
        let dir = workshop(test);
        let run = format!("rm -f test.db && sqlite3 test.db < {}", script("bulk.sql"));
        assert_watched(test, &dir, Ending::Quiet, &["sh", "-c", &run]);
    }
}

#[test]
fn sixteen_threads_of_c() {
    let test = "sixteen_threads_of_c";
    let dir = workshop(test);
    let torture = compile(&dir, "torture").display().to_string();
    assert_watched(test, &dir, Ending::Quiet, &[&torture, "16", "250"]);
}

#[test]
fn java_with_threads() {
    let test = "java_with_threads";
    if find(test, "javac").is_none() || find(test, "java").is_none() {
        return;
    }
    let dir = workshop(test);
    let mut javac = Command::new("javac");
    javac.arg("-d").arg(&dir).arg(source("Threads.java")).current_dir(&dir);
    command::run(&mut javac, &dir, "javac").assert_success();
    // Threads of the virtual machine live until the end and beyond.
    assert_watched(test, &dir, Ending::CutsThreads, &["java", "-Xmx256m", "-cp", ".", "Threads"]);
}

#[test]
fn stress_ng_memory_calls() {
    let test = "stress_ng_memory_calls";
    if find(test, "stress-ng").is_none() {
        return;
    }
    for (stressor, bounds) in [
        ("mmap", "--mmap-ops 2 --mmap-bytes 256K"),
        ("munmap", "--munmap-ops 2"),
        ("madvise", "--madvise-ops 2"),
        ("mprotect", "--mprotect-ops 200"),
        ("brk", "--brk-ops 2000"),
        ("mremap", "--mremap-ops 10 --mremap-bytes 256K"),
    ] {
        let dir = workshop(&format!("{test}_{stressor}"));
        // Its own report has times in it, so what is compared is that it succeeds.
        let run = format!(
            "stress-ng --quiet --temp-path . --{stressor} 1 {bounds} > stress.log 2>&1; echo \"exit $?\""
        );
        // The parent kills its workers, wherever they are.
        assert_watched(test, &dir, Ending::CutsThreads, &["sh", "-c", &run]);
    }
}

#[test]
fn rust_with_threads() {
    let test = "rust_with_threads";
    if find(test, "rustc").is_none() {
        return;
    }
    let dir = workshop(test);
    let program = dir.join("threads");
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "-O", "-o"]).arg(&program).arg(source("threads.rs")).current_dir(&dir);
    command::run(&mut rustc, &dir, "rustc").assert_success();
    assert_watched(test, &dir, Ending::Quiet, &[program.to_str().unwrap()]);
}
