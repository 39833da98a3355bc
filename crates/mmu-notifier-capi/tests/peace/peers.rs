//! UCX, Open MPI and libfabric patch the C library's functions; this library rewrites the system calls in them.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::{all, compile, object, skipped};

/// What `peers.c` changes, in pages, in its order; then come those of the loader, which are the machine's.
const CHANGED: [usize; 12] = [3, 5, 7, 9, 13, 13, 16385, 19, 19, 23, 29, 31];
const PAGE: usize = 4096;

/// The adapter that is not there, for libfabric; `None`, and said so, without the headers of libibverbs.
pub(crate) fn adapter(test: &str) -> Option<PathBuf> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    if !Path::new("/usr/include/infiniband/efadv.h").exists() {
        skipped(test, "no infiniband/efadv.h on this machine");
        return None;
    }
    BUILT.get_or_init(|| compile("adapter", "adapter.so", &["-shared", "-fPIC"])).clone()
}

/// What libfabric looks up of its adapter below `/sys`.
pub(crate) fn pretended_sys() -> &'static Path {
    static SYS: OnceLock<PathBuf> = OnceLock::new();
    SYS.get_or_init(|| {
        let sys = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peace/sys");
        let _ = std::fs::remove_dir_all(&sys);
        let [uverbs, driver, slot] =
            ["class/infiniband_verbs/uverbs0", "bus/pci/drivers/efa", "devices/pci0000:00/0000:00:06.0"]
                .map(|folder| sys.join(folder));
        for folder in [&uverbs, &driver, &slot] {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        std::fs::write(sys.join("class/infiniband_verbs/abi_version"), "6\n").expect("a file");
        symlink(&slot, uverbs.join("device")).expect("a link");
        symlink(&driver, slot.join("driver")).expect("a link");
        sys
    })
}

/// The lines of a run with these steps, of which some may be of these peers; `None` if one is not installed.
fn steps(test: &str, program: &Path, steps: &[&str]) -> Option<Vec<String>> {
    let mut command = Command::new(program);
    if steps.contains(&"ofi") {
        command.env("LD_PRELOAD", adapter(test)?).env("SYSFS_PATH", pretended_sys());
        command.env("FI_MR_CACHE_MONITOR", "memhooks");
    }
    let output = command.arg(object()).args(steps).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.code() == Some(1) && text.starts_with("no ") {
        skipped(test, text.trim());
        return None;
    }
    assert!(output.status.success(), "{command:?}: {}", all(&output));
    Some(text.lines().map(str::to_owned).collect())
}

fn of<'a>(who: &str, lines: &'a [String]) -> Vec<&'a str> {
    lines.iter().map(String::as_str).filter(|line| line.split(' ').next() == Some(who)).collect()
}

/// With `us` at every place among the peers, they see what they see without it, and it sees what it sees without them.
fn live_together(test: &str, peers: &[&str]) {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(program) = BUILT.get_or_init(|| compile("peers", "peers", &[])) else { return };
    let Some(alone) = steps(test, program, &["us"]) else { return };
    let Some(without) = steps(test, program, peers) else { return };
    let expected: Vec<_> = CHANGED
        .iter()
        .flat_map(|pages| ["start", "end"].map(|side| format!("us {side} {}", pages * PAGE)))
        .collect();
    assert_eq!(of("us", &alone)[..expected.len()], expected, "{alone:#?}");
    // The last to patch is told everything; what others see then is their affair, and must be the same as without us.
    let last = peers[peers.len() - 1];
    assert!(!of(last, &without).is_empty(), "{last} is told nothing at all: {without:#?}");
    for place in 0..=peers.len() {
        let mut order = peers.to_vec();
        order.insert(place, "us");
        let together = steps(test, program, &order).expect("they were there a moment ago");
        assert_eq!(of("us", &together), of("us", &alone), "{order:?}");
        for peer in peers {
            assert_eq!(of(peer, &together), of(peer, &without), "{peer} in {order:?}");
        }
    }
}

#[test]
fn ucx_before_and_after_us() {
    live_together("ucx_before_and_after_us", &["ucx"]);
}

#[test]
fn open_mpis_patcher_before_and_after_us() {
    live_together("open_mpis_patcher_before_and_after_us", &["ompi"]);
}

#[test]
fn ucx_and_open_mpi_around_us() {
    live_together("ucx_and_open_mpi_around_us", &["ucx", "ompi"]);
    live_together("ucx_and_open_mpi_around_us", &["ompi", "ucx"]);
}

#[test]
fn libfabrics_memhooks_before_and_after_us() {
    live_together("libfabrics_memhooks_before_and_after_us", &["ofi"]);
}

// Not Open MPI before libfabric: libfabric finds the functions patched and refuses, with and without us.
#[test]
fn libfabric_and_the_others_around_us() {
    let test = "libfabric_and_the_others_around_us";
    for peers in [["ucx", "ofi"], ["ofi", "ucx"], ["ofi", "ompi"]] {
        live_together(test, &peers);
    }
}
