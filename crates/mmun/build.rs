//! Builds the object that `mmun run` preloads into programs, for `main` to embed.
//!
//! The object is another crate's `cdylib` in another profile, which a dependency cannot express; so
//! this is a second `cargo build`, in a target directory of its own because the outer cargo holds the
//! lock of the usual one.
//!
//! And what `mmun doctor` takes along, which must not need a compiler where it runs: a library to be loaded late and a
//! static program, each one file for `rustc`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const OBJECT: &str = "libmmu_notifier_capi.so";

/// Whose change makes a new object.
const CRATES: [&str; 3] = ["mmu-notifier", "mmu-notifier-primary", "mmu-notifier-capi"];

fn main() {
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../..");
    let out = PathBuf::from(variable("OUT_DIR"));
    let target = variable("TARGET");
    assert_eq!(
        target, "x86_64-unknown-linux-gnu",
        "mmun runs on x86_64-unknown-linux-gnu only: build it for that target"
    );

    for name in CRATES {
        let folder = workspace.join("crates").join(name);
        rerun_if_changed(&folder.join("src"));
        rerun_if_changed(&folder.join("Cargo.toml"));
    }
    rerun_if_changed(&workspace.join("Cargo.toml"));
    rerun_if_changed(&workspace.join("Cargo.lock"));
    println!("cargo::rerun-if-changed=build.rs");

    rerun_if_changed(&workspace.join("crates/mmun/doctor"));
    let library = ["--crate-type", "cdylib", "-C", "link-arg=-nostdlib"];
    build_for_doctor("late", &target, &out, &library);
    let program = [
        "--crate-type",
        "bin",
        "-C",
        "relocation-model=static",
        "-C",
        "link-args=-nostartfiles -nostdlib -static",
    ];
    build_for_doctor("alone", &target, &out, &program);

    let target_dir = out.join("preload");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(&workspace)
        .args(["build", "--quiet", "--profile", "preload", "--package", "mmu-notifier-capi", "--lib"])
        // Named, so that a target chosen in a cargo configuration does not move the result.
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&target_dir);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_about_the_outer_build) {
            cargo.env_remove(&name);
        }
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("cannot run {cargo:?}: {error}"));
    assert!(status.success(), "building the preload object failed: {cargo:?}");

    let built = target_dir.join(&target).join("preload").join(OBJECT);
    std::fs::copy(&built, out.join(OBJECT))
        .unwrap_or_else(|error| panic!("cannot copy {}: {error}", built.display()));
    let object = std::fs::read(&built).unwrap_or_else(|error| panic!("{}: {error}", built.display()));
    let file = out.join("object-hash");
    std::fs::write(&file, format!("{:016x}", hash(&object)))
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
}

/// Builds one of the files in `doctor/`, which need nothing but the core library.
fn build_for_doctor(name: &str, target: &str, out: &Path, options: &[&str]) {
    let folder = Path::new(&variable("CARGO_MANIFEST_DIR")).join("doctor");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args([
        "--edition",
        "2024",
        "-C",
        "opt-level=2",
        "-C",
        "panic=abort",
        "-C",
        "strip=none",
        "--target",
        target,
    ]);
    rustc.args(options).arg("-o").arg(out.join(name)).arg(folder.join(name).with_extension("rs"));
    rustc.env_remove("RUSTC_WRAPPER");
    let status = rustc.status().unwrap_or_else(|error| panic!("cannot run {rustc:?}: {error}"));
    assert!(status.success(), "building {name} for `mmun doctor` failed: {rustc:?}");
}

/// FNV-1a: it tells versions apart; what is in a file of that name is compared anyway.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Whether a variable describes the outer build in a way that must not reach the object: flags and
/// `cfg`s (a sanitizer, loom), the outer target, the wrapper that makes a build a `clippy` run.
/// `RUSTC_WRAPPER` (a compiler cache), `CARGO_HOME`, `CARGO_NET_*` and the job server stay.
fn is_about_the_outer_build(name: &str) -> bool {
    const NAMES: [&str; 13] = [
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_BUILD_BUILD_DIR",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_INCREMENTAL",
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "CARGO_TARGET_DIR",
        "CLIPPY_ARGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
    ];
    const PREFIXES: [&str; 6] =
        ["CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PKG_", "CARGO_PROFILE_", "CARGO_TARGET_", "__CARGO_"];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("{name}: {error}; cargo sets it"))
}

fn rerun_if_changed(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}
