//! Tests that take a process of their own: this program again, with one test.

use std::process::Command;

const INSIDE: &str = "MMU_TEST_INSIDE";

/// Runs `inside` in a process of its own, made by a command that `prepare` may change. `test` is the name of the test that
/// calls this.
pub(crate) fn run(test: &str, prepare: impl FnOnce(&mut Command), inside: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    prepare(&mut command);
    let ended = command.output().expect("it runs");
    let text = [ended.stdout, ended.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(ended.status.success(), "{}\n{text}", ended.status);
    assert!(text.contains("1 passed"), "there is no test {test}:\n{text}");
    eprint!("{text}");
}
