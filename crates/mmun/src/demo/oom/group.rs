//! A control group of memory, made for the experiment and removed with it.

use std::fs;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, bail};
use mmu_notifier_primary::reaper::memory_group;

/// A group with a hard limit. Removed when it is dropped, which waits for its last process to be gone.
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// A group below that of this process, with a limit of so many bytes.
    pub fn new(name: &str, limit: u64) -> anyhow::Result<Group> {
        let Some(above) = memory_group() else {
            bail!(
                "there are no control groups of memory here (cgroup version 1); as root: \
                 mkdir -p /sys/fs/cgroup/memory && mount -t cgroup -o memory none /sys/fs/cgroup/memory"
            );
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
        let group = Group { path };
        if !group.path.join("memory.limit_in_bytes").exists() {
            bail!(
                "the control groups of memory here are of version 2, and this experiment needs version 1: boot with \
                 systemd.unified_cgroup_hierarchy=0 cgroup_no_v1=none, if the kernel still has it (CONFIG_MEMCG_V1)"
            );
        }
        let limit = limit.to_string();
        group.write("memory.limit_in_bytes", &limit)?;
        // Nothing goes to swap: where there is none, these files may be missing.
        let _ = group
            .write("memory.swappiness", "0")
            .and_then(|()| group.write("memory.memsw.limit_in_bytes", &limit));
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
        let path = self.path.join("memory.oom_control");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        kills.with_context(|| format!("{} does not say how many were killed", path.display()))
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
