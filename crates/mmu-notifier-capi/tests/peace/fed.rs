//! The examples: caches of others that are told by this library need no patches of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::peers::{adapter, pretended_sys};
use super::{all, object, run, skipped};

/// Compiles an example; `None`, and said so, if what it needs is not installed.
fn example(name: &str, header: &str, libraries: &[&str]) -> Option<PathBuf> {
    if !Path::new("/usr/include").join(header).exists() {
        skipped(name, &format!("no {header} on this machine"));
        return None;
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = object().with_file_name("");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut compiler = Command::new("gcc");
    compiler.args(["-O2", "-Wall", "-Werror", "-I"]).arg(here.join("include"));
    compiler.arg(here.join("examples").join(name).with_extension("c")).arg("-o").arg(&program);
    compiler.arg("-L").arg(&folder).arg("-lmmu_notifier_capi").args(libraries);
    // Before what cargo puts into LD_LIBRARY_PATH, where an older build may lie.
    compiler.arg(format!("-Wl,--disable-new-dtags,-rpath,{}", folder.display()));
    match compiler.output() {
        Err(error) => {
            skipped(name, &format!("gcc cannot be run: {error}"));
            None
        }
        Ok(output) => {
            assert!(output.status.success(), "{}", all(&output));
            Some(program)
        }
    }
}

fn outcome(fresh: bool, library: &str) -> String {
    let found = if fresh { "registered anew" } else { "STALE" };
    format!("after munmap and mmap at the same place: {found}\n{library} has patched nothing\n")
}

#[test]
fn ucx_that_is_told_by_us_need_not_patch() {
    let Some(program) = example("feed_ucx", "ucm/api/ucm.h", &["-lucs", "-lucm"]) else { return };
    let mut fed = Command::new(&program);
    assert_eq!(run(fed.env("UCX_MEM_MMAP_HOOK_MODE", "none")), outcome(true, "UCX"));
    // It is we who told it.
    let mut unfed = Command::new(&program);
    assert_eq!(run(unfed.arg("unfed").env("UCX_MEM_MMAP_HOOK_MODE", "none")), outcome(false, "UCX"));
    // Without the variable it patches, which the example notices.
    let output = Command::new(&program).env_remove("UCX_MEM_MMAP_HOOK_MODE").output().expect("it runs");
    assert!(!output.status.success() && all(&output).contains("set UCX_MEM_MMAP_HOOK_MODE=none"));
}

#[test]
fn libfabric_that_is_told_by_us_need_not_patch() {
    let test = "libfabric_that_is_told_by_us_need_not_patch";
    let Some(adapter) = adapter(test) else { return };
    let Some(program) = example("feed_libfabric", "rdma/fi_ext.h", &["-lfabric"]) else { return };
    let on_adapter = |words: &[&str]| {
        let mut command = Command::new(&program);
        run(command.arg("efa").args(words).env("LD_PRELOAD", &adapter).env("SYSFS_PATH", pretended_sys()))
    };
    assert_eq!(on_adapter(&[]), outcome(true, "libfabric"));
    assert_eq!(on_adapter(&["unfed"]), outcome(false, "libfabric"));
}
