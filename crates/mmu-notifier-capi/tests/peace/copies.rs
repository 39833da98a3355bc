//! Several copies of the object in a process, and libraries that come and go.

use std::path::Path;
use std::process::Command;

use super::{compile, object, run};

fn assert_ok(case: &str) {
    let Some(program) = compile("copies", &format!("copies-{case}"), &["-Wno-unused-parameter"]) else {
        return;
    };
    let plugin =
        compile("plugin", &format!("plugin-{case}.so"), &["-shared", "-fPIC"]).expect("gcc was there");
    let [first, second] = ["first", "second"].map(|name| {
        let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("peace/{name}-{case}.so"));
        let _ = std::fs::remove_file(&copy);
        std::fs::copy(object(), &copy).expect("a copy");
        copy
    });
    assert_eq!(run(Command::new(program).arg(case).args([first, second, plugin])), "ok\n");
}

#[test]
fn a_second_copy_uses_the_first_one() {
    assert_ok("hidden");
}

#[test]
fn the_copy_that_was_loaded_first_does_the_work() {
    assert_ok("reversed");
}

#[test]
fn closing_the_object_leaves_it_at_work() {
    assert_ok("closed");
}

#[test]
fn closing_a_library_that_has_subscribed_leaves_it_there() {
    assert_ok("plugin");
}

#[test]
fn what_is_jumped_out_of_in_a_second_copy_is_ended_in_both() {
    assert_ok("jumped");
}
