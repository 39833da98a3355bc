//! The hook installed into this very process, while threads are in the calls that are being rewritten; and what it
//! must not do: allocate.
//!
//! One test, as a process has one primary MMU.

// UNSAFETY: a counting allocator, and memory system calls.
#![expect(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use mmu_notifier::{Change, Event, Subscriber};
use mmu_notifier_primary::{InstallError, Options, Primary};

/// The system's allocator, counting the calling thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Counts starts and ends, and what is open by range.
#[derive(Default)]
struct Watch {
    starts: AtomicU64,
    ends: AtomicU64,
    /// Where this thread wants to hear of an event.
    seen: Mutex<HashMap<(usize, Event), u64>>,
    remember: AtomicBool,
}

impl Subscriber for Watch {
    fn start(&self, change: &Change) {
        self.starts.fetch_add(1, SeqCst);
        if self.remember.load(SeqCst) {
            *self.seen.lock().unwrap().entry((change.range().start(), change.event())).or_default() += 1;
        }
    }

    fn end(&self, _: &Change) {
        self.ends.fetch_add(1, SeqCst);
    }
}

const PAGE: usize = 4096;

fn map(pages: usize) -> *mut u8 {
    let (read_write, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(null_mut(), pages * PAGE, read_write, private, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

fn unmap(at: *mut u8, pages: usize) {
    // SAFETY: mapped by `map`, and nobody has it.
    assert_eq!(unsafe { libc::munmap(at.cast(), pages * PAGE) }, 0);
}

#[test]
fn the_hook_is_installed_under_running_threads_and_never_allocates() {
    let stop = Arc::new(AtomicBool::new(false));
    let rounds: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut rounds = 0u64;
                while !stop.load(SeqCst) {
                    let at = map(4);
                    // SAFETY: mapped just now.
                    unsafe { at.write_volatile(1) };
                    // SAFETY: as above.
                    assert_eq!(unsafe { libc::madvise(at.cast(), 4 * PAGE, libc::MADV_DONTNEED) }, 0);
                    // SAFETY: as above.
                    assert_eq!(unsafe { at.read_volatile() }, 0);
                    // SAFETY: as above.
                    assert_eq!(unsafe { libc::mprotect(at.cast(), PAGE, libc::PROT_NONE) }, 0);
                    unmap(at, 4);
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    let primary = Primary::install(&Options::default()).expect("installed");
    assert_eq!(Primary::install(&Options::default()).unwrap_err(), InstallError::Twice);
    let watch = Arc::new(Watch::default());
    let subscription = primary.space().subscribe(watch.clone());
    std::thread::sleep(std::time::Duration::from_millis(300));
    stop.store(true, SeqCst);
    let rounds: u64 = rounds.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(rounds > 100, "{rounds}");
    let (starts, ends) = (watch.starts.load(SeqCst), watch.ends.load(SeqCst));
    assert_eq!(starts, ends);
    assert!(starts > 100, "{starts}");

    every_call_is_bracketed(&watch);
    nothing_is_allocated();

    let before = watch.starts.load(SeqCst);
    drop(subscription);
    unmap(map(1), 1);
    assert_eq!(watch.starts.load(SeqCst), before, "told after unsubscribing");
}

/// Each call once, and which range was announced as what.
fn every_call_is_bracketed(watch: &Watch) {
    watch.remember.store(true, SeqCst);
    let told =
        |at: *mut u8, event| watch.seen.lock().unwrap().get(&(at as usize, event)).copied().unwrap_or(0);

    let at = map(8);
    // SAFETY: here and below, memory that this function has mapped.
    unsafe { libc::madvise(at.cast(), PAGE, libc::MADV_FREE) };
    assert_eq!(told(at, Event::Clear), 1);
    // SAFETY: see above.
    unsafe { libc::mprotect(at.add(PAGE).cast(), PAGE, libc::PROT_READ) };
    assert_eq!(told(at.wrapping_add(PAGE), Event::ProtectionVma), 1);
    let over = at.wrapping_add(2 * PAGE);
    let fixed = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: see above.
    unsafe { libc::mmap(over.cast(), PAGE, libc::PROT_READ, fixed, -1, 0) };
    assert_eq!(told(over, Event::Unmap), 1);
    let (source, target) = (map(1), map(1));
    // SAFETY: see above.
    let moved =
        unsafe { libc::mremap(source.cast(), PAGE, PAGE, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, target) };
    assert_eq!(moved, target.cast());
    assert_eq!((told(source, Event::Unmap), told(target, Event::Unmap)), (1, 1));
    // SAFETY: see above.
    unsafe { libc::syscall(libc::SYS_munmap, at.add(7 * PAGE), PAGE) };
    assert_eq!(told(at.wrapping_add(7 * PAGE), Event::Unmap), 1, "by the function syscall");
    // A call that fails has an end as well: starts equal ends below.
    // SAFETY: refused by the kernel.
    assert_eq!(unsafe { libc::munmap(at.add(1).cast(), PAGE) }, -1);
    unmap(at, 7);
    assert_eq!(told(at, Event::Unmap), 1);
    watch.remember.store(false, SeqCst);
    assert_eq!(watch.starts.load(SeqCst), watch.ends.load(SeqCst));
}

/// The hook's own work: this thread's allocations while it makes calls of every kind.
fn nothing_is_allocated() {
    let file = {
        // SAFETY: a zero-ended name.
        let file = unsafe { libc::memfd_create(c"live".as_ptr(), 0) };
        assert!(file >= 0);
        file
    };
    let before = ALLOCATIONS.get();
    for _ in 0..200 {
        let at = map(4);
        // SAFETY: memory and a file of its own.
        unsafe {
            libc::madvise(at.cast(), PAGE, libc::MADV_DONTNEED);
            libc::mprotect(at.cast(), PAGE, libc::PROT_READ);
            libc::ftruncate(file, 4 * PAGE as i64);
            let read = libc::PROT_READ;
            let shared = libc::mmap(null_mut(), 4 * PAGE, read, libc::MAP_SHARED, file, 0);
            libc::fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, PAGE as i64);
            libc::ftruncate(file, 0);
            libc::munmap(shared, 4 * PAGE);
            let piece = libc::iovec { iov_base: at.cast(), iov_len: PAGE };
            libc::syscall(libc::SYS_process_madvise, -1, &piece, 1, libc::MADV_DONTNEED, 0);
        }
        unmap(at, 4);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    // SAFETY: opened above.
    unsafe { libc::close(file) };
}
