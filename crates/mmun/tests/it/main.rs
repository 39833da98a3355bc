//! `mmun run` from outside: what the program sees, and what whoever started mmun sees.

mod launch;
mod signals;

use std::process::{Command, Output};

/// `mmun run --quiet -- sh -c SCRIPT`.
fn mmun_sh(script: &str) -> Command {
    let mut command = mmun(&["run", "--quiet", "--", "sh", "-c"]);
    command.arg(script);
    command
}

fn mmun(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmun"));
    command.args(arguments);
    command
}

/// A script of `sh`, in which `$MMUN` is `mmun run --quiet --`.
fn sh(script: &str) -> Output {
    let mmun = format!("{} run --quiet --", env!("CARGO_BIN_EXE_mmun"));
    Command::new("sh").args(["-c", script]).env("MMUN", mmun).output().expect("there is sh")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
