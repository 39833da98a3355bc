//! Tracepoints: their numbers, and where in a sample their fields are.
//!
//! Both stand in tracefs. If that is not mounted, it is mounted for this process alone, at no path, and is gone with it.

// UNSAFETY: the system calls that make a mount without a place.
#![expect(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};

/// The tracing file system.
#[derive(Debug)]
pub struct Tracefs {
    root: PathBuf,
    /// A mount of our own, which lasts as long as this.
    _mount: Option<OwnedFd>,
}

/// A tracepoint, as this kernel has it.
#[derive(Debug)]
pub struct Tracepoint {
    /// The number that events are asked for by, and that samples begin with.
    pub id: u64,
    format: String,
}

/// Where a field is in a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    offset: usize,
    size: usize,
}

impl Tracefs {
    /// Finds or mounts it.
    pub fn find() -> Result<Tracefs> {
        for root in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
            if fs::exists(format!("{root}/events/raw_syscalls")).unwrap_or(false) {
                return Ok(Tracefs { root: root.into(), _mount: None });
            }
        }
        let mount = mount().context(
            "cannot read the kernel's tracepoints: /sys/kernel/tracing is not mounted and cannot be mounted here; as \
             root: mount -t tracefs nodev /sys/kernel/tracing",
        )?;
        let root = format!("/proc/self/fd/{}", mount.as_raw_fd()).into();
        Ok(Tracefs { root, _mount: Some(mount) })
    }

    /// The tracepoint `group/name`.
    pub fn tracepoint(&self, name: &str) -> Result<Tracepoint> {
        let read = |file: &str| {
            let path = self.root.join("events").join(name).join(file);
            fs::read_to_string(&path).with_context(|| {
                format!(
                    "this kernel has no tracepoint {name} that can be read; the audit needs root, and a kernel with \
                     CONFIG_FTRACE and, for kvm/, CONFIG_KVM (modprobe kvm)"
                )
            })
        };
        let id = read("id")?.trim().parse().with_context(|| format!("{name}: its id is no number"))?;
        Ok(Tracepoint { id, format: read("format")? })
    }
}

impl Tracepoint {
    /// The field of that name.
    pub fn field(&self, name: &str) -> Result<Field> {
        field(&self.format, name).ok_or_else(|| anyhow!("a tracepoint has no field {name} on this kernel"))
    }
}

impl Field {
    /// The number that stands there, if the sample is long enough.
    pub fn read(self, sample: &[u8]) -> Option<u64> {
        let bytes = sample.get(self.offset..self.offset + self.size)?;
        let mut word = [0; 8];
        word.get_mut(..self.size)?.copy_from_slice(bytes);
        Some(u64::from_ne_bytes(word))
    }
}

/// Reads a line like `field:unsigned long start; offset:8; size:8; signed:0;`.
fn field(format: &str, name: &str) -> Option<Field> {
    format.lines().find_map(|line| {
        let mut parts = line.trim().strip_prefix("field:")?.split(';').map(str::trim);
        let declared = parts.next()?.split_whitespace().last()?;
        let mut number = |key| parts.find_map(|part| part.strip_prefix(key)?.parse().ok());
        let field = Field { offset: number("offset:")?, size: number("size:")? };
        (declared == name).then_some(field)
    })
}

fn mount() -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: usize = 1;
    const FSCONFIG_CMD_CREATE: usize = 6;
    const FSMOUNT_CLOEXEC: usize = 1;
    let check = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: the name is a terminated string.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, c"tracefs".as_ptr(), FSOPEN_CLOEXEC) };
    // SAFETY: a new descriptor that nothing else owns.
    let context = unsafe { OwnedFd::from_raw_fd(check(context)? as i32) };
    let fd = context.as_raw_fd();
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, 0usize, 0usize, 0) })?;
    // SAFETY: as above.
    let mount = check(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0) })?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { File::from_raw_fd(mount as i32) }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: kvm_unmap_hva_range\nID: 27\nformat:\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:unsigned long start;\toffset:8;\tsize:8;\tsigned:0;\n\
        \tfield:unsigned long end;\toffset:16;\tsize:8;\tsigned:0;\n\nprint fmt: \"...\"\n";

    #[test]
    fn fields_are_found() {
        assert_eq!(field(FORMAT, "end"), Some(Field { offset: 16, size: 8 }));
        assert_eq!(field(FORMAT, "common_pid"), Some(Field { offset: 4, size: 4 }));
        assert_eq!(field(FORMAT, "art"), None);
    }

    #[test]
    fn short_samples_have_no_field() {
        let field = Field { offset: 4, size: 4 };
        assert_eq!(field.read(&[0, 0, 0, 0, 1, 2, 0, 0]), Some(0x201));
        assert_eq!(field.read(&[0; 7]), None);
        assert_eq!(Field { offset: 0, size: 16 }.read(&[0; 16]), None);
    }
}
