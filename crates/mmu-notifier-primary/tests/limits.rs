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
    copied_on_write(&told);
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

/// An `ioctl` of userfaultfd takes the right to write away.
fn protected_by_userfaultfd(told: &Told) {
    const WRITE_PROTECTED: u64 = 1 << 57;
    const USER_MODE_ONLY: libc::c_int = 1;
    let page = map(None);
    put(page, 7);
    // SAFETY: a new descriptor.
    let made = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
    if made < 0 {
        eprintln!("SKIPPED: protected_by_userfaultfd: {}", std::io::Error::last_os_error());
        return;
    }
    // SAFETY: it is ours.
    let faults = unsafe { OwnedFd::from_raw_fd(made as i32) };
    let ask = |request: u64, argument: &mut [u64]| {
        // SAFETY: structures of that many words, for memory of ours.
        let answer = unsafe { libc::ioctl(faults.as_raw_fd(), request, argument.as_mut_ptr()) };
        assert_eq!(answer, 0, "{request:#x}: {}", std::io::Error::last_os_error());
    };
    let (start, len) = (page.start() as u64, PAGE_SIZE as u64);
    let protect = || {
        // UFFDIO_API; UFFDIO_REGISTER for write protection; UFFDIO_WRITEPROTECT.
        ask(0xc018_aa3f, &mut [0xaa, 0, 0]);
        ask(0xc020_aa00, &mut [start, len, 2, 0]);
        ask(0xc018_aa06, &mut [start, len, 1]);
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
