//! A control group of memory, made for the experiment and removed with it.

use std::fs;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, bail};
use mmu_notifier_primary::reaper::memory_group;

/// Which kind of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// The group of this process.
fn own() -> anyhow::Result<(PathBuf, Version)> {
    let Some(own) = memory_group() else {
        bail!(
            "there are no control groups of memory here; as root: \
             mkdir -p /sys/fs/cgroup/memory && mount -t cgroup -o memory none /sys/fs/cgroup/memory, \
             or mount -t cgroup2 none /sys/fs/cgroup"
        );
    };
    let version = if own.join("memory.limit_in_bytes").exists() { Version::V1 } else { Version::V2 };
    Ok((own, version))
}

/// Which kind there is here.
pub fn version() -> anyhow::Result<Version> {
    own().map(|(_, version)| version)
}

/// A group with a hard limit. Removed when it is dropped, which waits for its last process to be gone.
pub struct Group {
    path: PathBuf,
    version: Version,
}

impl Group {
    /// A group with a limit of so many bytes: below that of this process, or, in version 2, below the next one that may have
    /// groups with a memory controller below it.
    pub fn new(name: &str, limit: u64) -> anyhow::Result<Group> {
        let (own, version) = own()?;
        let above = match version {
            Version::V1 => own,
            Version::V2 => has_groups_below(&own)?,
        };
        let path = above.join(format!("{name}-{}", std::process::id()));
        match fs::create_dir(&path) {
            Err(error)
                if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
            {
                bail!(
                    "cannot make the control group {}: {error}; run this as root: sudo mmun demo oom",
                    path.display()
                );
            }
            made => made.with_context(|| format!("cannot make the control group {}", path.display()))?,
        }
        // From here on it is removed.
        let group = Group { path, version };
        let limit = limit.to_string();
        // Nothing goes to swap: where there is none, these files may be missing.
        match version {
            Version::V1 => {
                group.write("memory.limit_in_bytes", &limit)?;
                let _ = group.write("memory.swappiness", "0");
                let _ = group.write("memory.memsw.limit_in_bytes", &limit);
            }
            Version::V2 => {
                group.write("memory.max", &limit)?;
                let _ = group.write("memory.swap.max", "0");
            }
        }
        Ok(group)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// How many processes the kernel has killed in it.
    pub fn kills(&self) -> anyhow::Result<u64> {
        let path = self.path.join(match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        });
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        kills.with_context(|| format!("{} does not say how many were killed", path.display()))
    }
}

/// The next group, from this one upwards, that gives its memory controller to those below it.
fn has_groups_below(own: &Path) -> anyhow::Result<PathBuf> {
    let control = |group: &Path| fs::read_to_string(group.join("cgroup.subtree_control"));
    let groups = own.ancestors().take_while(|group| control(group).is_ok());
    let has_memory = |group: &&Path| {
        control(group).is_ok_and(|names| names.split_whitespace().any(|name| name == "memory"))
    };
    match groups.clone().find(has_memory) {
        Some(group) => Ok(group.to_path_buf()),
        None => {
            let root = groups.last().unwrap_or(own).join("cgroup.subtree_control");
            bail!(
                "no control group here has a memory controller for those below it; as root: echo +memory > {}",
                root.display()
            )
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Who has just been waited for is still in it for a moment.
        for _ in 0..1000 {
            match fs::remove_dir(&self.path) {
                Err(Error { .. }) if self.path.exists() => sleep(Duration::from_millis(5)),
                _ => return,
            }
        }
        crate::complain(&anyhow::anyhow!("cannot remove the control group {}", self.path.display()));
    }
}
