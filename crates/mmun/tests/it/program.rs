//! Programs to run: where tests keep them, how they are built, which ones this machine has.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the sources of the test programs are.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

/// A fresh directory for one test; it stays until the next run.
pub(crate) fn workshop(test: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("a directory for the test");
    dir
}

/// Builds `tests/programs/<name>.c` into `dir`.
pub(crate) fn compile(dir: &Path, name: &str) -> PathBuf {
    compile_with(dir, name, name, &[])
}

/// Builds `tests/programs/<name>.c` into `dir` as a shared object.
pub(crate) fn compile_shared(dir: &Path, name: &str) -> PathBuf {
    compile_with(dir, name, &format!("{name}.so"), &["-shared", "-fPIC"])
}

/// Builds `tests/programs/<name>.c` into `dir/<output>` with more flags.
pub(crate) fn compile_with(dir: &Path, name: &str, output: &str, flags: &[&str]) -> PathBuf {
    let program = dir.join(output);
    let built = Command::new("gcc")
        .args(["-O2", "-Wall", "-pthread", "-o"])
        .arg(&program)
        .arg(source(&format!("{name}.c")))
        .args(flags)
        .arg("-ldl")
        .output()
        .expect("gcc runs");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "gcc refused {name}.c:\n{said}");
    assert!(said.is_empty(), "gcc warned about {name}.c:\n{said}");
    program
}

/// The program of that name on `PATH` (or at that path), or a loud note that `test` is skipped.
pub(crate) fn find(test: &str, name: &str) -> Option<PathBuf> {
    let found = if name.contains('/') {
        Some(PathBuf::from(name)).filter(|path| is_executable(path))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| is_executable(path))
    };
    if found.is_none() {
        skipped(test, &format!("no {name} on this machine"));
    }
    found
}

/// Says loudly that a test did not test anything. Not through `eprintln!`, which the harness captures.
pub(crate) fn skipped(test: &str, why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
