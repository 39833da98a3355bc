//! The C interface, from C.

use std::path::{Path, PathBuf};
use std::process::Command;

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

#[test]
fn a_c_program_is_told_of_every_change() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("watch");
    let folder = object_folder();
    let mut compiler = Command::new("gcc");
    compiler.args(["-O2", "-Wall", "-Werror", "-pthread", "-I"]).arg(here.join("include"));
    compiler.arg(here.join("tests/watch.c")).arg("-o").arg(&program).arg("-L").arg(&folder);
    compiler.arg("-lmmu_notifier_capi").arg(format!("-Wl,-rpath,{}", folder.display()));
    match compiler.output() {
        Err(error) => {
            eprintln!("SKIPPED: gcc cannot be run: {error}");
            return;
        }
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
    let output = Command::new(&program).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said == "watch ok\n", "{:?}: {said}", output.status);
}

#[test]
fn the_header_is_understood_by_cpp() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/mmu_notifier.h");
    match Command::new("g++").args(["-fsyntax-only", "-Wall", "-Werror", "-x", "c++"]).arg(header).output() {
        Err(error) => eprintln!("SKIPPED: g++ cannot be run: {error}"),
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
}
