//! The kernel's own reaper, asked to take the memory of a victim that cannot come to its end: a frozen one that has been sent
//! `SIGKILL`. A virtual machine of the victim's makes the kernel report each change that it announces.
//!
//! What is compared: which mappings are announced, in which order. The victim and this process have the same mappings in the
//! same order.

// UNSAFETY: mounts, system calls that have no wrapper, and mappings.
#![expect(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use mmu_notifier::{AddressSpace, PAGE_SIZE, Range};
use mmu_notifier_primary::reaper::Reaper;

use crate::memory::{Memory, Told, by_hand, until};
use crate::own_process;

const VICTIM: &str = "MMU_TEST_VICTIM";
const KVM_CREATE_VM: libc::c_ulong = 0xae01;
const TRACING: &str = "/sys/kernel/tracing";

/// Mappings of each kind, one page longer than the one before, so that the length says which it is.
fn mappings() -> Vec<(&'static str, Memory)> {
    let mut mappings: Vec<(&str, Memory)> = Vec::new();
    let mut add = |name, memory| mappings.push((name, memory));
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    add("private", Memory::of(2, private));
    add("shared", Memory::of(3, shared));
    add("locked", Memory::of(4, private));
    add("private", Memory::of(5, private));
    add("file, private", Memory::of_file(6, libc::MAP_PRIVATE));
    add("file, shared", Memory::of_file(7, libc::MAP_SHARED));
    add("private", Memory::of(8, private));
    for (name, memory) in &mappings {
        memory.fill(7);
        if *name == "locked" {
            memory.lock();
        }
    }
    // Wherever the kernel has put them.
    mappings.sort_by_key(|(_, memory)| memory.range().start());
    mappings
}

/// What is announced of them, in order, by name and length.
fn names(mappings: &[(String, Range)], announced: &[(usize, usize)]) -> Vec<(String, usize)> {
    let of = |&(start, end): &(usize, usize)| {
        let range = Range::new(start, end).ok()?;
        let (name, range) = mappings.iter().find(|(_, mapping)| *mapping == range)?;
        Some((name.clone(), range.len() / PAGE_SIZE))
    };
    announced.iter().filter_map(of).collect()
}

/// A victim's whole life.
fn be_the_victim() -> ! {
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm").unwrap();
    // SAFETY: makes a machine, without memory.
    let machine = unsafe { libc::ioctl(device.as_raw_fd(), KVM_CREATE_VM, 0) };
    assert!(machine >= 0, "{}", io::Error::last_os_error());
    let mappings = mappings();
    let mut out = io::stdout().lock();
    for (name, memory) in &mappings {
        writeln!(out, "MAPPING {:x} {:x} {name}", memory.range().start(), memory.range().end()).unwrap();
    }
    writeln!(out, "READY").unwrap();
    out.flush().unwrap();
    loop {
        std::thread::park();
    }
}

/// The victim, and what the tests have made for it; all of it goes when this is dropped.
struct Victim {
    child: Child,
    mappings: Vec<(String, Range)>,
    freezer: PathBuf,
}

impl Victim {
    fn new(freezer: &Path) -> Victim {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", TEST, "--nocapture"]).env(VICTIM, "1");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let freezer = freezer.join(format!("mmu-notifier-reaper-{}", std::process::id()));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut mappings = Vec::new();
        for line in lines {
            // The test harness has written something before the first one.
            let Some((_, line)) = line.split_once("MAPPING ") else {
                if line == "READY" {
                    break;
                }
                continue;
            };
            let mut words = line.splitn(3, ' ');
            let mut hex = || usize::from_str_radix(words.next().unwrap(), 16).unwrap();
            let range = Range::new(hex(), hex()).unwrap();
            mappings.push((words.next().unwrap().to_owned(), range));
        }
        let victim = Victim { child, mappings, freezer };
        fs::create_dir(&victim.freezer).unwrap();
        let write = |file: &str, text: &str| fs::write(victim.freezer.join(file), text).unwrap();
        write("cgroup.procs", &victim.child.id().to_string());
        write("freezer.state", "FROZEN");
        let state = victim.freezer.join("freezer.state");
        until("it is frozen", || fs::read_to_string(&state).unwrap().trim() == "FROZEN");
        victim
    }

    /// Kills it, and has its memory taken while it cannot come to its end.
    fn reap(&mut self) -> io::Result<()> {
        // SAFETY: opens a descriptor.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.child.id(), 0) };
        assert!(pidfd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: just opened, and nobody else's.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as i32) };
        self.child.kill().unwrap();
        // SAFETY: takes the memory of a process that is dying.
        match unsafe { libc::syscall(libc::SYS_process_mrelease, pidfd.as_raw_fd(), 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = fs::write(self.freezer.join("freezer.state"), "THAWED");
        let _ = self.child.kill();
        let _ = self.child.wait();
        for _ in 0..1000 {
            if fs::remove_dir(&self.freezer).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// A buffer of its own for the tracepoint; removed when it is dropped.
struct Trace(PathBuf);

impl Trace {
    /// What this thread does is traced.
    fn new() -> io::Result<Trace> {
        let path = Path::new(TRACING).join(format!("instances/mmu-notifier-{}", std::process::id()));
        fs::create_dir(&path)?;
        let trace = Trace(path);
        // SAFETY: only asks.
        let thread = unsafe { libc::gettid() };
        fs::write(trace.0.join("set_event_pid"), thread.to_string())?;
        fs::write(trace.0.join("events/kvm/kvm_unmap_hva_range/enable"), "1")?;
        Ok(trace)
    }

    /// The ranges, in order.
    fn ranges(&self) -> Vec<(usize, usize)> {
        let text = fs::read_to_string(self.0.join("trace")).unwrap();
        let hex = |text: &str| usize::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
        let range = |line: &str| {
            let (_, range) = line.split_once("unmap range: ")?;
            let (start, end) = range.split_once(" -- ")?;
            Some((hex(start)?, hex(end)?))
        };
        text.lines().filter_map(range).collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("events/enable"), "0");
        let _ = fs::remove_dir(&self.0);
    }
}

/// In a process of its own, with mounts of its own: shows it the tracepoints.
fn show_the_tracepoints() -> io::Result<()> {
    let check = |result: i32| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: mounts of this process's own from here on.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let (root, none, flags) = (c"/".as_ptr(), std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
    // SAFETY: the names are strings.
    check(unsafe { libc::mount(none, root, none, flags, none.cast()) })?;
    let (source, target) = (c"none".as_ptr(), c"/sys/kernel/tracing".as_ptr());
    // SAFETY: the names are strings.
    check(unsafe { libc::mount(source, target, c"tracefs".as_ptr(), 0, none.cast()) })
}

/// Where control groups of the first version freeze.
fn freezer() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup ") && line.ends_with("freezer"))?;
    line.split_whitespace().nth(4).map(PathBuf::from)
}

const TEST: &str = "kernel::the_kernel_takes_the_same_in_the_same_order";

#[test]
fn the_kernel_takes_the_same_in_the_same_order() {
    if std::env::var_os(VICTIM).is_some() {
        be_the_victim();
    }
    let missing = |what: &str| eprintln!("SKIPPED: {TEST}: {what}");
    // SAFETY: only asks.
    if unsafe { libc::geteuid() } != 0 {
        return missing("needs root");
    }
    if File::open("/dev/kvm").is_err() {
        return missing("no /dev/kvm");
    }
    let Some(freezer) = freezer() else { return missing("no freezer of cgroup version 1") };
    let prepare = |command: &mut Command| {
        // SAFETY: makes system calls only.
        unsafe { command.pre_exec(|| show_the_tracepoints().or(Ok(()))) };
    };
    own_process::run(TEST, prepare, || {
        let Ok(trace) = Trace::new() else { return missing("no tracepoint kvm:kvm_unmap_hva_range") };
        let mut victim = Victim::new(&freezer);
        victim.reap().unwrap();
        let kernels = names(&victim.mappings, &trace.ranges());
        drop(victim);

        let space = AddressSpace::new();
        let told = Arc::new(Told::default());
        let _told = space.subscribe(told.clone());
        let reaper = Reaper::start(&space, by_hand()).unwrap();
        let mappings = mappings();
        let _evictable: Vec<_> =
            mappings.iter().filter_map(|(_, memory)| memory.add_to(&reaper).ok()).collect();
        reaper.reap().unwrap();
        let own: Vec<_> =
            mappings.iter().map(|(name, memory)| ((*name).to_owned(), memory.range())).collect();
        let end = |start| own.iter().find(|(_, range)| range.start() == start).map(|(_, range)| range.end());
        let ours: Vec<_> = told.starts().into_iter().filter_map(|start| Some((start, end(start)?))).collect();
        let ours = names(&own, &ours);
        eprintln!("the kernel announces {kernels:?}");
        assert_eq!(ours.len(), 5, "all that is private: {ours:?}");
        assert_eq!(ours, kernels);
    });
}
