//! The control group whose memory runs out: where it is, and where its limit lies.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Which kind of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// A group with a hard limit of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) path: PathBuf,
    pub(super) version: Version,
    /// Bytes.
    pub(super) limit: u64,
}

impl Group {
    /// The group in that directory, if it has a limit.
    pub(super) fn at(path: &Path) -> Option<Group> {
        // "No limit" of the first version is the largest multiple of a page.
        const NONE: u64 = i64::MAX as u64 - 4095;
        if let Some(limit) = number(&path.join("memory.limit_in_bytes")) {
            return (limit < NONE).then(|| Group { path: path.into(), version: Version::V1, limit });
        }
        let limit = number(&path.join("memory.max"))?;
        Some(Group { path: path.into(), version: Version::V2, limit })
    }

    /// The file of the memory that is in use.
    pub(super) fn usage(&self) -> PathBuf {
        self.path.join(match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        })
    }

    /// That of this process, or the one above it with the lowest limit.
    pub(super) fn of_this_process() -> Option<Group> {
        let limited = own_directories().into_iter().flat_map(|(mount, own)| {
            let above = own.ancestors().map(Path::to_path_buf).collect::<Vec<_>>();
            above.into_iter().take_while(move |path| path.starts_with(&mount)).filter_map(|it| Group::at(&it))
        });
        limited.min_by_key(|group| group.limit)
    }
}

/// The directory of this process's control group of memory, whether it has a limit or not. `None`: there are none here, or
/// they cannot be seen. Where there are both versions, it is that which has the controller.
///
/// ```
/// if let Some(group) = mmu_notifier_primary::reaper::memory_group() {
///     assert!(group.is_dir());
/// }
/// ```
pub fn memory_group() -> Option<PathBuf> {
    let has_memory = |own: &PathBuf| {
        let controllers = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
        own.join("memory.limit_in_bytes").exists()
            || controllers.split_whitespace().any(|name| name == "memory")
    };
    own_directories().into_iter().map(|(_, own)| own).find(has_memory)
}

fn own_directories() -> Vec<(PathBuf, PathBuf)> {
    let read = |path| fs::read(path).unwrap_or_default();
    directories(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
}

/// A number in a file; `None` if there is none, as in "max".
pub(super) fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// For each hierarchy that may have a memory controller, where it is mounted and where this process is in it: from the
/// contents of `/proc/self/mountinfo` and of `/proc/self/cgroup`.
fn directories(mounts: &[u8], groups: &[u8]) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for line in lines(mounts) {
        // id, parent, device, root, mount point, options, any number of fields, "-", type, source, options of the type.
        let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let Some(dash) = words.iter().position(|&word| word == b"-") else { continue };
        let (Some(&root), Some(&mount), Some(&kind)) = (words.get(3), words.get(4), words.get(dash + 1))
        else {
            continue;
        };
        let options = words.get(dash + 3).copied().unwrap_or_default();
        let has_memory = options.split(|&byte| byte == b',').any(|option| option == b"memory");
        let is_v2 = kind == b"cgroup2";
        let is_v1 = kind == b"cgroup" && has_memory;
        if !is_v1 && !is_v2 {
            continue;
        }
        // number:controllers:path
        let own = lines(groups).find_map(|line| {
            let mut fields = line.splitn(3, |&byte| byte == b':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let is_this = match is_v2 {
                true => number == b"0" && controllers.is_empty(),
                false => controllers.split(|&byte| byte == b',').any(|controller| controller == b"memory"),
            };
            is_this.then_some(path)
        });
        let (mount, root) = (to_path(mount), to_path(root));
        let Some(own) = own.map(to_path) else { continue };
        // In a container the mount may show only a part of the hierarchy, and the path may lie outside.
        let inside =
            own.strip_prefix(&root).map(|inside| mount.join(inside)).unwrap_or_else(|_| mount.clone());
        found.push((mount, inside));
    }
    found
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n')
}

/// A path in which blanks are written as octal numbers.
fn to_path(escaped: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((&byte, after)) = rest.split_first() {
        let octal =
            after.get(..3).and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(value) if byte == b'\\' => {
                path.push(value);
                rest = &after[3..];
            }
            _ => {
                path.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
41 31 0:38 /docker/a\\040b /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn directories_are_found_through_mounts_and_roots() {
        let groups = b"4:memory:/jobs/7\n2:devices:/x\n0::/docker/a b/inner\n";
        let found = directories(MOUNTS, groups);
        let expected = [
            ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/jobs/7"),
            ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/inner"),
        ];
        assert_eq!(found, expected.map(|(mount, own)| (mount.into(), own.into())));
        let outside = directories(MOUNTS, b"0::/elsewhere\n");
        assert_eq!(outside, [("/sys/fs/cgroup/unified".into(), "/sys/fs/cgroup/unified".into())]);
        assert!(directories(b"", b"").is_empty());
    }

    #[test]
    fn limits_are_read_in_both_versions() {
        let dir = std::env::temp_dir().join(format!("mmu-notifier-group-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(Group::at(&dir), None, "no controller");
        let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
        write("memory.max", "max\n");
        assert_eq!(Group::at(&dir), None, "no limit");
        write("memory.max", "1048576\n");
        assert_eq!(
            Group::at(&dir).unwrap(),
            Group { path: dir.clone(), version: Version::V2, limit: 1 << 20 }
        );
        write("memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(Group::at(&dir), None, "no limit in the first version");
        write("memory.limit_in_bytes", "2097152\n");
        assert_eq!(Group::at(&dir).map(|it| (it.version, it.limit)), Some((Version::V1, 2 << 20)));
        fs::remove_dir_all(&dir).unwrap();
    }
}
