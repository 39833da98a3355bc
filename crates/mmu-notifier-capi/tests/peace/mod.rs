//! Peace with what else is in a process: `docs/peace.md` has the table.

mod copies;
mod crates;
mod fed;
mod peers;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The shared object under test.
pub(crate) fn object() -> PathBuf {
    super::object().join("libmmu_notifier_capi.so")
}

/// Compiles `tests/peace/NAME.c` to OUTPUT, without linking the object; `None`, and said so, without a compiler.
pub(crate) fn compile(name: &str, output: &str, flags: &[&str]) -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peace");
    std::fs::create_dir_all(&folder).expect("a folder");
    let program = folder.join(output);
    let mut compiler = Command::new("gcc");
    compiler.args(["-O2", "-Wall", "-Werror", "-pthread", "-I"]).arg(here.join("include"));
    compiler.arg(here.join("tests/peace").join(name).with_extension("c")).arg("-o").arg(&program);
    match compiler.args(flags).arg("-ldl").output() {
        Err(error) => {
            skipped(name, &format!("gcc cannot be run: {error}"));
            None
        }
        Ok(output) => {
            assert!(output.status.success(), "{name}.c: {}", String::from_utf8_lossy(&output.stderr));
            Some(program)
        }
    }
}

/// Says loudly that something was not tested: not through `eprintln!`, which the harness keeps to itself.
pub(crate) fn skipped(test: &str, why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

/// What a command says, which must succeed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", all(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn all(output: &Output) -> String {
    let [said, complaint] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{:?}\n{said}{complaint}", output.status)
}
