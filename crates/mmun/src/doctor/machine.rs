//! What this machine has of what this project uses, and what to do about what it has not.

// UNSAFETY: asks the kernel, by calls that only look.
#![expect(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde::Serialize;

use crate::audit::tracefs::Tracefs;

/// Something that a machine has or has not.
#[derive(Debug, Serialize)]
pub struct Item {
    /// What.
    pub name: &'static str,
    /// What needs it.
    pub used_for: &'static str,
    /// Whether it is there.
    pub there: bool,
    /// What was found.
    pub found: String,
    /// What to do if it is not there; a command where there is one.
    pub remedy: Option<String>,
}

fn there(name: &'static str, used_for: &'static str, found: impl Into<String>) -> Item {
    Item { name, used_for, there: true, found: found.into(), remedy: None }
}

fn lacking(
    name: &'static str,
    used_for: &'static str,
    found: impl Into<String>,
    remedy: impl Into<String>,
) -> Item {
    Item { name, used_for, there: false, found: found.into(), remedy: Some(remedy.into()) }
}

/// Looks at everything.
pub fn look() -> Vec<Item> {
    vec![
        writing_code(),
        dispatch(),
        userfaultfd(),
        io_uring(),
        memlock(),
        kvm(),
        tracepoint(),
        perf(),
        page_frames(),
        cgroup_v1(),
        cgroup_v2(),
        tools(),
    ]
}

/// The errors of a call that only looks.
fn result(ret: i64) -> io::Result<i64> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

fn is_root() -> bool {
    // SAFETY: cannot fail and touches nothing.
    unsafe { libc::geteuid() == 0 }
}

fn first_line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next().unwrap_or_default().trim().to_owned())
}

fn writing_code() -> Item {
    const NAME: &str = "/proc/self/mem";
    const FOR: &str = "rewriting call sites without a writable mapping of code";
    static CODE: [u8; 1] = [0x5a];
    let write = || {
        let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
        // The same byte: nothing changes.
        memory.write_all_at(&CODE, CODE.as_ptr() as u64)
    };
    match write() {
        Ok(()) => there(NAME, FOR, "read-only memory can be written to"),
        Err(error) => lacking(
            NAME,
            FOR,
            format!("cannot be written to ({error}); mprotect is used instead, which a sandbox may forbid"),
            "boot with proc_mem.force_override=always; mount /proc",
        ),
    }
}

/// Whether the kernel has Syscall User Dispatch.
pub fn has_dispatch() -> io::Result<()> {
    const SET_SYSCALL_USER_DISPATCH: i32 = 59;
    // SAFETY: switches off what is off.
    result(unsafe { libc::prctl(SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0) }.into()).map(drop)
}

fn dispatch() -> Item {
    const NAME: &str = "Syscall User Dispatch";
    const FOR: &str = "calls of code that cannot be rewritten (mmun run --strict)";
    match has_dispatch() {
        Ok(()) => there(NAME, FOR, "there"),
        Err(error) => {
            lacking(NAME, FOR, error.to_string(), "run Linux 5.11 or newer; a sandbox must allow prctl(59)")
        }
    }
}

fn userfaultfd() -> Item {
    const NAME: &str = "userfaultfd";
    const FOR: &str = "changes that are no system call of the program";
    const USER_MODE_ONLY: i32 = 1;
    const API: u64 = 0xc018_aa3f;
    const WP_ASYNC: u64 = 1 << 15;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    // SAFETY: makes a descriptor.
    let made = result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) });
    let descriptor = match made {
        Ok(descriptor) => descriptor as i32,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            return lacking(
                NAME,
                FOR,
                "forbidden",
                "sysctl vm.unprivileged_userfaultfd=1, or a sandbox must allow it",
            );
        }
        Err(error) => return lacking(NAME, FOR, error.to_string(), "run a kernel with CONFIG_USERFAULTFD=y"),
    };
    // SAFETY: a descriptor that nobody else has.
    let _owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // struct uffdio_api: which interface, wanted features, ioctls.
    let mut api = [0xaa_u64, 0, 0];
    // SAFETY: three words are what the kernel reads and writes.
    let asked = result(unsafe { libc::ioctl(descriptor, API, api.as_mut_ptr()) }.into());
    match asked {
        Ok(_) if api[1] & WP_ASYNC != 0 => there(NAME, FOR, "there, for every kind of mapping (WP_ASYNC)"),
        Ok(_) => lacking(NAME, FOR, "there, but not for mappings of files", "run Linux 6.7 or newer"),
        Err(error) => lacking(NAME, FOR, error.to_string(), "run Linux 6.7 or newer"),
    }
}

fn io_uring() -> Item {
    const NAME: &str = "io_uring";
    const FOR: &str = "fixed buffers";
    let mut parameters = [0u32; 30];
    // SAFETY: what io_uring_setup(2) fills in has 120 bytes.
    let ring = result(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) });
    match ring {
        Ok(ring) => {
            // SAFETY: a descriptor that nobody else has.
            drop(unsafe { OwnedFd::from_raw_fd(ring as i32) });
            there(NAME, FOR, "there")
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOSYS) => {
                lacking(NAME, FOR, "not in this kernel", "run a kernel with CONFIG_IO_URING=y")
            }
            _ => lacking(
                NAME,
                FOR,
                error.to_string(),
                "sysctl kernel.io_uring_disabled=0; a container's seccomp profile must allow io_uring_setup",
            ),
        },
    }
}

fn memlock() -> Item {
    const NAME: &str = "locked memory";
    const FOR: &str = "registering buffers";
    const ENOUGH: u64 = 64 << 20;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes `limit`.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    let found = match limit.rlim_cur {
        libc::RLIM_INFINITY => "unlimited".to_owned(),
        bytes => format!("at most {} KiB (ulimit -l)", bytes >> 10),
    };
    // Root may lock what it wants.
    if is_root() || limit.rlim_cur >= ENOUGH {
        there(NAME, FOR, found)
    } else {
        lacking(
            NAME,
            FOR,
            found,
            "ulimit -l unlimited, after a line `* - memlock unlimited` in /etc/security/limits.conf",
        )
    }
}

fn kvm() -> Item {
    const NAME: &str = "KVM";
    const FOR: &str = "the kernel as judge (mmun run --audit)";
    const CREATE_VM: u64 = 0xae01;
    let file = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return lacking(
                NAME,
                FOR,
                "no access to /dev/kvm",
                "usermod -aG kvm \"$USER\", and log in again",
            );
        }
        Err(error) => {
            return lacking(
                NAME,
                FOR,
                format!("/dev/kvm: {error}"),
                "modprobe kvm_intel || modprobe kvm_amd; in a virtual machine, its host must allow nested ones",
            );
        }
    };
    use std::os::fd::AsRawFd;
    // SAFETY: makes a virtual machine without memory.
    match result(unsafe { libc::ioctl(file.as_raw_fd(), CREATE_VM, 0) }.into()) {
        Ok(machine) => {
            // SAFETY: a descriptor that nobody else has.
            drop(unsafe { OwnedFd::from_raw_fd(machine as i32) });
            there(NAME, FOR, "a virtual machine can be made")
        }
        Err(error) => lacking(NAME, FOR, format!("KVM_CREATE_VM: {error}"), "dmesg | grep kvm says why"),
    }
}

fn tracepoint() -> Item {
    const NAME: &str = "tracepoints";
    const FOR: &str = "the kernel as judge (mmun run --audit)";
    let found = Tracefs::find().map(|tracefs| tracefs.tracepoint("kvm/kvm_unmap_hva_range").is_ok());
    match found {
        Ok(true) => there(NAME, FOR, "kvm:kvm_unmap_hva_range"),
        _ if !is_root() => lacking(NAME, FOR, "tracefs cannot be read", "run it as root"),
        Ok(false) => lacking(NAME, FOR, "kvm:kvm_unmap_hva_range is not there", "modprobe kvm"),
        Err(_) => lacking(
            NAME,
            FOR,
            "tracefs is not mounted, and cannot be for this process alone",
            "mount -t tracefs tracefs /sys/kernel/tracing",
        ),
    }
}

fn perf() -> Item {
    const NAME: &str = "perf events";
    const FOR: &str = "the kernel as judge (mmun run --audit)";
    let Some(paranoid) = first_line("/proc/sys/kernel/perf_event_paranoid") else {
        return lacking(NAME, FOR, "not in this kernel", "run a kernel with CONFIG_PERF_EVENTS=y");
    };
    let found = format!("perf_event_paranoid is {paranoid}");
    let allows = paranoid.parse::<i32>().is_ok_and(|level| level < 0) || is_root();
    match allows {
        true => there(NAME, FOR, found),
        false => lacking(NAME, FOR, found, "sysctl kernel.perf_event_paranoid=-1, or run it as root"),
    }
}

fn page_frames() -> Item {
    const NAME: &str = "page frames";
    const FOR: &str = "the self-check of the registration cache";
    let byte = Box::new(1u8);
    let mut entry = [0; 8];
    let at = std::ptr::from_ref(&*byte) as u64 / 4096 * 8;
    let read = File::open("/proc/self/pagemap").and_then(|map| map.read_exact_at(&mut entry, at));
    match read.map(|()| u64::from_le_bytes(entry) & ((1 << 55) - 1)) {
        Ok(1..) => there(NAME, FOR, "/proc/self/pagemap tells them"),
        Ok(0) => lacking(NAME, FOR, "/proc/self/pagemap keeps them back", "run it as root (CAP_SYS_ADMIN)"),
        Err(error) => lacking(NAME, FOR, error.to_string(), "run a kernel with CONFIG_PROC_PAGE_MONITOR=y"),
    }
}

fn mounted(kind: &str, option: &str) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let words: Vec<_> = line.split(' ').collect();
        let has = option.is_empty() || words.get(3)?.split(',').any(|word| word == option);
        (*words.get(2)? == kind && has).then(|| words.get(1).map(|&path| path.to_owned()))?
    })
}

fn cgroup_v1() -> Item {
    const NAME: &str = "memory cgroup, version 1";
    const FOR: &str = "memory pressure told at a threshold";
    match mounted("cgroup", "memory") {
        Some(path) => there(NAME, FOR, path),
        None => lacking(
            NAME,
            FOR,
            "not mounted",
            "mkdir -p /sys/fs/cgroup/memory && mount -t cgroup -o memory cgroup /sys/fs/cgroup/memory; if version 2 has \
             the controller, boot with systemd.unified_cgroup_hierarchy=0",
        ),
    }
}

fn cgroup_v2() -> Item {
    const NAME: &str = "memory cgroup, version 2";
    const FOR: &str = "memory pressure (memory.events, memory.pressure)";
    let Some(path) = mounted("cgroup2", "") else {
        return lacking(NAME, FOR, "not mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup");
    };
    let controllers = first_line(&format!("{path}/cgroup.controllers")).unwrap_or_default();
    match controllers.split(' ').any(|controller| controller == "memory") {
        true => there(NAME, FOR, path),
        false => lacking(
            NAME,
            FOR,
            format!("{path} is without the memory controller"),
            "boot with cgroup_no_v1=memory, or with cgroup_enable=memory if it is off",
        ),
    }
}

fn tools() -> Item {
    const NAME: &str = "tools";
    const FOR: &str = "the tests of this project";
    /// A program, and the package of Debian and Ubuntu that has it.
    const TOOLS: [(&str, &str); 5] = [
        ("gcc", "gcc"),
        ("strace", "strace"),
        ("stress-ng", "stress-ng"),
        ("sqlite3", "sqlite3"),
        ("python3", "python3-numpy"),
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |name: &str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    let missing: Vec<_> = TOOLS.iter().filter(|(program, _)| !has(program)).collect();
    let names = |which: &[&(&'static str, &'static str)]| {
        which.iter().map(|tool| tool.0).collect::<Vec<_>>().join(", ")
    };
    if missing.is_empty() {
        return there(NAME, FOR, names(&TOOLS.iter().collect::<Vec<_>>()));
    }
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    let remedy = match has("apt-get") {
        true => format!("apt-get install -y {}", packages.join(" ")),
        false => format!("install {}", packages.join(", ")),
    };
    lacking(NAME, FOR, format!("no {}", names(&missing)), remedy)
}

/// Has a child ended by a signal after some seconds.
pub fn alarm_before_exec(command: &mut Command, seconds: u32) {
    // SAFETY: `alarm` may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::alarm(seconds);
            Ok(())
        })
    };
}
