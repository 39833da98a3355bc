//! The C interface, from C; `peace` has it beside other libraries.

mod peace;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The folder of the shared object, built as it is shipped: cargo builds no `cdylib` for the tests of its package.
fn object_folder() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("object");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--lib", "--profile", "preload", "--manifest-path"]);
    cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).arg("--target-dir").arg(&target);
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    assert!(cargo.status().expect("cargo").success());
    target.join("preload")
}

/// The object, built once.
fn object() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(object_folder)
}

/// Compiles `tests/NAME.c`; `None`, and said so, if there is no compiler.
fn compile(name: &str) -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Renamed when it is there: another test may be running the same program.
    static MADE: AtomicU32 = AtomicU32::new(0);
    let made = program.with_extension(MADE.fetch_add(1, Ordering::Relaxed).to_string());
    let mut compiler = Command::new("gcc");
    compiler.args(["-O2", "-Wall", "-Werror", "-pthread", "-I"]).arg(here.join("include"));
    compiler.arg(here.join("tests").join(name).with_extension("c")).arg("-o").arg(&made);
    compiler.arg("-L").arg(object()).arg("-lmmu_notifier_capi");
    // Before what cargo puts into LD_LIBRARY_PATH, where an older build may lie.
    compiler.arg(format!("-Wl,--disable-new-dtags,-rpath,{}", object().display()));
    match compiler.output() {
        Err(error) => {
            eprintln!("SKIPPED: gcc cannot be run: {error}");
            None
        }
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            std::fs::rename(&made, &program).expect("a program");
            Some(program)
        }
    }
}

/// Runs a command that must succeed and say `expected`.
fn says(command: &mut Command, expected: &str) {
    let output = command.output().expect("it runs");
    let (said, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success() && said == expected,
        "{command:?}: {:?}: {said}{complaint}",
        output.status
    );
}

#[test]
fn a_c_program_is_told_of_every_change() {
    if let Some(program) = compile("watch") {
        says(&mut Command::new(program), "watch ok\n");
    }
}

#[test]
fn a_c_program_is_told_what_others_did_to_the_hook() {
    if let Some(program) = compile("check") {
        says(&mut Command::new(program), "check ok\n");
    }
}

const CORNERS: [&str; 9] = [
    "nested",
    "jumped",
    "calls_in_callbacks",
    "cleaning",
    "both_leave",
    "signalled",
    "forked",
    "forks",
    "dlclosed",
];

/// Runs cases of `edges.c` with a copy of the object for each.
fn corners(name: &str, cases: &[&str], fed: Option<&str>) {
    let Some(program) = compile("edges") else { return };
    for case in cases {
        let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("copy-{name}.so"));
        let _ = std::fs::remove_file(&copy);
        std::fs::copy(object().join("libmmu_notifier_capi.so"), &copy).expect("a copy");
        says(Command::new(&program).arg(case).arg(copy).args(fed), "ok\n");
    }
}

#[test]
fn the_corners_hold() {
    corners("first", &CORNERS, None);
    corners("first", &["second_copy"], None);
}

#[test]
fn the_corners_hold_for_who_is_told_by_another_copy() {
    corners("fed", &CORNERS, Some("fed"));
}

#[test]
fn a_program_keeps_what_it_preloads_itself() {
    if let Some(program) = compile("edges") {
        let object = object().join("libmmu_notifier_capi.so");
        says(Command::new(program).arg("environment").env("LD_PRELOAD", object), "ok\n");
    }
}

#[test]
fn nothing_else_is_exported() {
    let object = object().join("libmmu_notifier_capi.so");
    let output =
        match Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(object).output() {
            Err(error) => return eprintln!("SKIPPED: nm cannot be run: {error}"),
            Ok(output) => output,
        };
    let symbols = String::from_utf8_lossy(&output.stdout);
    let names: Vec<_> = symbols.lines().filter_map(|line| line.split(' ').next()).collect();
    let header = include_str!("../include/mmu_notifier.h");
    // What `mmun` looks for where there is no C library, and what AddressSanitizer calls.
    let own = ["mmu_notifier_alone", "mmu_notifier_alone_start", "__asan_default_options"];
    for name in &names {
        assert!(own.contains(name) || header.contains(&format!("{name}(")), "{name} is not in the header");
    }
    for function in [
        "install",
        "uninstall",
        "subscribe",
        "subscribe_refuser",
        "unsubscribe",
        "quarantined",
        "invalidate",
        "call_site",
        "check",
    ] {
        assert!(names.contains(&format!("mmu_notifier_{function}").as_str()), "{function} is not exported");
    }
}

#[test]
fn the_header_is_understood_by_cpp() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/mmu_notifier.h");
    match Command::new("g++").args(["-fsyntax-only", "-Wall", "-Werror", "-x", "c++"]).arg(header).output() {
        Err(error) => eprintln!("SKIPPED: g++ cannot be run: {error}"),
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Runs a program that may hang if it is wrong, and checks that its last line begins with "ok".
fn ends_well(program: &Path, args: &[&str], preloaded: &str) {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "200"]).arg(program).args(args);
    if !preloaded.is_empty() {
        command.env("LD_PRELOAD", preloaded);
    }
    let output = command.output().expect("timeout, of coreutils");
    let (said, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let last = said.lines().last().unwrap_or_default();
    println!("{} {args:?} {preloaded}: {said}", program.display());
    assert!(
        output.status.success() && last.starts_with("ok"),
        "{args:?} under {preloaded:?}: {:?}: {said}{complaint}",
        output.status
    );
}

/// `ci/contexts.sh` does this for a minute each.
#[test]
fn a_subscriber_may_allocate_under_its_own_lock_with_any_allocator() {
    let Some(program) = compile("allocator") else { return };
    for allocator in ["", "libjemalloc.so.2", "libmimalloc.so.2", "libtcmalloc_minimal.so.4"] {
        let path = Path::new("/usr/lib/x86_64-linux-gnu").join(allocator);
        if !path.exists() {
            eprintln!("SKIPPED: {} is not installed", path.display());
            continue;
        }
        let preloaded = if allocator.is_empty() { "" } else { path.to_str().expect("text") };
        for what in ["locks", "half"] {
            ends_well(&program, &[what, "1", "16"], preloaded);
        }
    }
}

/// `ci/contexts.sh` does this 10,000 times.
#[test]
fn no_change_is_missed_between_install_and_uninstall() {
    if let Some(program) = compile("cycles") {
        ends_well(&program, &["200", "64"], "");
    }
}

/// `ci/contexts.sh` does this 10,000 times.
#[test]
fn every_form_of_fork_leaves_a_child_that_nobody_is_told_of() {
    if let Some(program) = compile("forms") {
        ends_well(&program, &["210", "8"], "");
    }
}
