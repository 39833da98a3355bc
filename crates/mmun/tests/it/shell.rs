//! Scripts of `sh` that start mmun, for tests of what whoever started it sees.

use std::process::{Command, Output};

/// `mmun run --quiet -- sh -c SCRIPT`.
pub(crate) fn mmun_sh(script: &str) -> Command {
    let mut command = mmun(&["run", "--quiet", "--", "sh", "-c"]);
    command.arg(script);
    command
}

pub(crate) fn mmun(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmun"));
    command.args(arguments);
    command
}

/// A script of `sh`, in which `$MMUN` is `mmun run --quiet --`.
pub(crate) fn sh(script: &str) -> Output {
    let mmun = format!("{} run --quiet --", env!("CARGO_BIN_EXE_mmun"));
    Command::new("sh").args(["-c", script]).env("MMUN", mmun).output().expect("there is sh")
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
