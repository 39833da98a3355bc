//! What `docs/limits.md` says is not seen, shown: memory changes, and nobody was told.
//!
//! A row that is seen one day fails here, and has to leave that page. One test, as a process has one primary MMU.

// UNSAFETY: maps files and memory, forks, and makes system calls that the C library has no function for.
#![expect(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};
use mmu_notifier::{Change, PAGE_SIZE, Range, Subscriber};
use mmu_notifier_primary::{Options, Primary};

/// Counts the starts that hit its page.
#[derive(Default)]
struct Told {
    page: AtomicUsize,
    starts: AtomicUsize,
}

impl Subscriber for Told {
    fn start(&self, change: &Change) {
        let range = change.range();
        if (range.start()..range.end()).contains(&self.page.load(SeqCst)) {
            self.starts.fetch_add(1, SeqCst);
        }
    }

    fn end(&self, _: &Change) {}
}

impl Told {
    /// How often it is told of this page while that is done.
    fn while_doing(&self, page: Range, work: impl FnOnce()) -> usize {
        self.page.store(page.start(), SeqCst);
        let before = self.starts.load(SeqCst);
        work();
        self.starts.load(SeqCst) - before
    }
}

fn map(file: Option<&File>) -> Range {
    let (kind, file) = file
        .map_or((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1), |file| (libc::MAP_SHARED, file.as_raw_fd()));
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(null_mut(), PAGE_SIZE, rights, kind, file, 0) };
    assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    Range::with_len(at as usize, PAGE_SIZE).expect("a page")
}

fn byte(page: Range) -> u8 {
    // SAFETY: a page of ours, that is there.
    unsafe { (page.start() as *const u8).read_volatile() }
}

fn put(page: Range, value: u8) {
    // SAFETY: as above.
    unsafe { (page.start() as *mut u8).write_volatile(value) };
}

/// The entry of `/proc/self/pagemap`.
fn entry(page: Range) -> u64 {
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap").expect("there is /proc");
    pagemap.read_exact_at(&mut entry, (page.start() / PAGE_SIZE * 8) as u64).expect("an entry");
    u64::from_ne_bytes(entry)
}

fn new_file(path: &Path) -> File {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.expect("a file");
    file.set_len(PAGE_SIZE as u64).expect("it grows");
    file
}

#[test]
fn what_is_not_seen_is_not_told() {
    let primary = Primary::install(&Options::default()).expect("installed");
    let told = Arc::new(Told::default());
    let _subscription = primary.space().subscribe(told.clone());
    let path = std::env::temp_dir().join(format!("mmu-notifier-limits-{}", std::process::id()));
    let page = map(None);
    put(page, 1);
    // SAFETY: discards a page of ours.
    let discard =
        || assert_eq!(unsafe { libc::madvise(page.start() as *mut _, PAGE_SIZE, libc::MADV_DONTNEED) }, 0);
    assert_eq!(told.while_doing(page, discard), 1, "what is seen is told");

    emptied_by_opening(&told, &path);
    truncated_by_another_process(&told, &path);
    protected_by_userfaultfd(&told);
    moved_by_userfaultfd(&told);
    copied_on_write(&told);
    made_by_io_uring(&told, &path);
    a_ring_that_is_destroyed(&told);
    asked_for_with_32_bits(&told);
    fs::remove_file(&path).expect("it is there");
}

/// `open` with `O_TRUNC`.
fn emptied_by_opening(told: &Told, path: &Path) {
    let file = new_file(path);
    let page = map(Some(&file));
    put(page, 7);
    let empty = || {
        let again = OpenOptions::new().write(true).truncate(true).open(path).expect("it is there");
        again.write_all_at(&[0], PAGE_SIZE as u64 - 1).expect("it grows");
    };
    assert_eq!((told.while_doing(page, empty), byte(page)), (0, 0));
}

/// Another process truncates the file.
fn truncated_by_another_process(told: &Told, path: &Path) {
    let file = new_file(path);
    let page = map(Some(&file));
    put(page, 7);
    let mut done = true;
    let truncate = || {
        for size in ["0", "4096"] {
            let ended = Command::new("truncate").args(["--size", size]).arg(path).status();
            done &= ended.is_ok_and(|ended| ended.success());
        }
    };
    let starts = told.while_doing(page, truncate);
    match done {
        true => assert_eq!((starts, byte(page)), (0, 0)),
        false => eprintln!("SKIPPED: truncated_by_another_process: there is no truncate(1)"),
    }
}

/// A `userfaultfd`, or a loud word.
struct Faults(OwnedFd);

impl Faults {
    const API: u64 = 0xc018_aa3f;
    const REGISTER: u64 = 0xc020_aa00;
    const WRITE_PROTECT: u64 = 0xc018_aa06;
    const MOVE: u64 = 0xc028_aa05;

    fn new(test: &str, features: u64) -> Option<Faults> {
        const USER_MODE_ONLY: libc::c_int = 1;
        // SAFETY: a new descriptor.
        let made = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
        // SAFETY: it is ours.
        let faults = (made >= 0).then(|| Faults(unsafe { OwnedFd::from_raw_fd(made as i32) }));
        let faults = faults.filter(|faults| faults.ask(Faults::API, &mut [0xaa, features, 0]).is_ok());
        if faults.is_none() {
            eprintln!("SKIPPED: {test}: {}", std::io::Error::last_os_error());
        }
        faults
    }

    fn ask(&self, request: u64, argument: &mut [u64]) -> std::io::Result<()> {
        // SAFETY: structures of that many words, for memory of ours.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

/// An `ioctl` of userfaultfd takes the right to write away.
fn protected_by_userfaultfd(told: &Told) {
    const WRITE_PROTECTED: u64 = 1 << 57;
    let page = map(None);
    put(page, 7);
    let Some(faults) = Faults::new("protected_by_userfaultfd", 0) else { return };
    let (start, len) = (page.start() as u64, PAGE_SIZE as u64);
    let protect = || {
        faults.ask(Faults::REGISTER, &mut [start, len, 2, 0]).expect("for write protection");
        faults.ask(Faults::WRITE_PROTECT, &mut [start, len, 1]).expect("it is registered");
    };
    assert_eq!(told.while_doing(page, protect), 0);
    assert_ne!(entry(page) & WRITE_PROTECTED, 0);
}

/// A write to a page that a child shares gets a copy: another frame.
fn copied_on_write(told: &Told) {
    const FRAME: u64 = (1 << 55) - 1;
    let page = map(None);
    put(page, 7);
    let before = entry(page) & FRAME;
    if before == 0 {
        eprintln!("SKIPPED: copied_on_write: only root sees page frames");
        return;
    }
    let (mut ours, theirs) = std::io::pipe().map(|(read, write)| (write, read)).expect("a pipe");
    // SAFETY: the child waits until the pipe is closed, and leaves.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut theirs = theirs;
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(theirs.read(&mut [0]).unwrap_or(0) != 1)) };
    }
    assert_eq!(told.while_doing(page, || put(page, 8)), 0);
    let after = entry(page) & FRAME;
    ours.write_all(&[1]).expect("somebody reads");
    let mut status = 0;
    // SAFETY: our child.
    assert_eq!((unsafe { libc::waitpid(child, &raw mut status, 0) }, status), (child, 0));
    assert_ne!(before, after);
}

/// An `ioctl` of userfaultfd moves a page to another address (Linux 6.8).
fn moved_by_userfaultfd(told: &Told) {
    const CAN_MOVE: u64 = 1 << 16;
    let Some(faults) = Faults::new("moved_by_userfaultfd", CAN_MOVE) else { return };
    let (from, to) = (map(None), map(None));
    put(from, 7);
    let (source, len) = (from.start() as u64, PAGE_SIZE as u64);
    let moves = || {
        faults.ask(Faults::REGISTER, &mut [to.start() as u64, len, 1, 0]).expect("for missing pages");
        faults.ask(Faults::MOVE, &mut [to.start() as u64, source, len, 0, 0]).expect("it is registered");
    };
    assert_eq!(told.while_doing(from, moves), 0);
    assert_eq!((byte(from), byte(to)), (0, 7));
}

/// The kernel's own threads, or this one inside `io_uring_enter`, discard a page, empty a file and punch a hole into it.
fn made_by_io_uring(told: &Told, path: &Path) {
    let mut ring = match IoUring::new(4) {
        Ok(ring) => ring,
        Err(error) => return eprintln!("SKIPPED: made_by_io_uring: {error}"),
    };
    let mut make = |operation: squeue::Entry| {
        // SAFETY: of memory and files of the test's, that stay.
        unsafe { ring.submission().push(&operation) }.expect("there is room");
        ring.submit_and_wait(1).expect("it runs");
        ring.completion().next().expect("it is done").result()
    };
    let page = map(None);
    put(page, 7);
    let discard = opcode::Madvise::new(page.start() as *const _, PAGE_SIZE as i64, libc::MADV_DONTNEED);
    let starts = told.while_doing(page, || assert_eq!(make(discard.build()), 0));
    assert_eq!((starts, byte(page)), (0, 0));
    let file = new_file(path);
    let page = map(Some(&file));
    put(page, 7);
    let punched = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let punch = opcode::Fallocate::new(Fd(file.as_raw_fd()), PAGE_SIZE as u64).mode(punched);
    let mut done = 0;
    let starts = told.while_doing(page, || done = make(punch.build()));
    match done {
        0 => assert_eq!((starts, byte(page)), (0, 0)),
        error => eprintln!("SKIPPED: made_by_io_uring: no hole in {}: error {error}", path.display()),
    }
    put(page, 7);
    let empty = opcode::Ftruncate::new(Fd(file.as_raw_fd()), 0).build();
    let starts = told.while_doing(page, || done = make(empty));
    match done {
        0 => assert_eq!((starts, file.metadata().expect("it is there").len()), (0, 0)),
        error => eprintln!("SKIPPED: made_by_io_uring: no such operation: error {error}"),
    }
}

/// `io_destroy` unmaps the ring of an asynchronous context: its id is the address.
fn a_ring_that_is_destroyed(told: &Told) {
    let mut context = 0usize;
    // SAFETY: room for the id.
    if unsafe { libc::syscall(libc::SYS_io_setup, 8, &raw mut context) } != 0 {
        return eprintln!("SKIPPED: a_ring_that_is_destroyed: {}", std::io::Error::last_os_error());
    }
    let page = Range::with_len(context, PAGE_SIZE).expect("a page");
    let is_mapped = || {
        let mut resident = 0u8;
        // SAFETY: room for the answer on one page.
        unsafe { libc::mincore(context as *mut _, PAGE_SIZE, &raw mut resident) == 0 }
    };
    assert!(is_mapped());
    // SAFETY: a context of ours.
    let destroy = || assert_eq!(unsafe { libc::syscall(libc::SYS_io_destroy, context) }, 0);
    assert_eq!(told.while_doing(page, destroy), 0);
    assert!(!is_mapped());
}

/// `int $0x80`: here a `munmap`, which has other numbers and arguments of 32 bits there.
fn asked_for_with_32_bits(told: &Told) {
    fn call(number: i32, first: usize, second: usize) -> i32 {
        let result: i32;
        // SAFETY: a system call, for memory below 4 GiB; the kernel may clear what is named here.
        unsafe {
            core::arch::asm!(
                "xchg rbx, {first}", "int 0x80", "xchg rbx, {first}",
                first = inout(reg) first => _, inlateout("eax") number => result, in("ecx") second,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        result
    }
    const GETPID: i32 = 20;
    const MUNMAP: i32 = 91;
    // SAFETY: the child makes a call, or dies of it.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let id = std::process::id() as i32;
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(call(GETPID, 0, 0) != id)) };
    }
    let mut status = 0;
    // SAFETY: our child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    if status != 0 {
        return eprintln!("SKIPPED: asked_for_with_32_bits: this kernel has no 32-bit system calls");
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(null_mut(), PAGE_SIZE, libc::PROT_READ, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    let page = Range::with_len(at as usize, PAGE_SIZE).expect("a page");
    let starts = told.while_doing(page, || assert_eq!(call(MUNMAP, at as usize, PAGE_SIZE), 0));
    assert_eq!(starts, 0);
}
