//! Memory to be reaped, and who is told.

// UNSAFETY: maps memory, reads and writes it through pointers, and lets it be reaped.
#![expect(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use mmu_notifier::{Change, Event, PAGE_SIZE, Range, Subscriber};
use mmu_notifier_primary::reaper::{EvictError, Evictable, Options, Reaper, Trigger};

/// Counts what each thread allocates and frees.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Allocations and frees of the calling thread.
pub(crate) fn allocations() -> usize {
    ALLOCATIONS.get()
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

/// Some pages, with pages on both sides that belong to nobody.
pub(crate) struct Memory {
    all: *mut libc::c_void,
    at: *mut u8,
    pages: usize,
}

// SAFETY: an address; the memory is only reached by volatile accesses.
unsafe impl Sync for Memory {}

impl Memory {
    /// Private memory, full of sevens.
    pub(crate) fn new(pages: usize) -> Memory {
        let memory = Memory::of(pages, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        memory.fill(7);
        memory
    }

    /// A mapping with those flags.
    pub(crate) fn of(pages: usize, flags: i32) -> Memory {
        Memory::map(pages, flags, -1)
    }

    /// A mapping of a file in memory with those flags.
    pub(crate) fn of_file(pages: usize, flags: i32) -> Memory {
        // SAFETY: a zero-ended name.
        let file = unsafe { libc::memfd_create(c"reaper".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(file >= 0);
        // SAFETY: a file of ours.
        assert_eq!(unsafe { libc::ftruncate(file, (pages * PAGE_SIZE) as i64) }, 0);
        let memory = Memory::map(pages, flags, file);
        // SAFETY: the mapping keeps the file.
        unsafe { libc::close(file) };
        memory
    }

    fn map(pages: usize, flags: i32, file: i32) -> Memory {
        let (bytes, none) = ((pages + 2) * PAGE_SIZE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping.
        let all = unsafe { libc::mmap(null_mut(), bytes, libc::PROT_NONE, none, -1, 0) };
        assert_ne!(all, libc::MAP_FAILED);
        let at = all.wrapping_byte_add(PAGE_SIZE);
        let (bytes, protection) = (pages * PAGE_SIZE, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: over a part of that one.
        let mapped = unsafe { libc::mmap(at, bytes, protection, flags | libc::MAP_FIXED, file, 0) };
        assert_eq!(mapped, at);
        Memory { all, at: at.cast(), pages }
    }

    pub(crate) fn range(&self) -> Range {
        Range::with_len(self.at as usize, self.pages * PAGE_SIZE).unwrap()
    }

    pub(crate) fn fill(&self, byte: u8) {
        for page in 0..self.pages {
            // SAFETY: mapped and writable.
            unsafe { self.at.add(page * PAGE_SIZE).write_volatile(byte) };
        }
    }

    /// The byte that each page begins with; panics if they differ.
    pub(crate) fn byte(&self) -> u8 {
        // SAFETY: mapped and readable.
        let byte = |page| unsafe { self.at.add(page * PAGE_SIZE).read_volatile() };
        assert!((1..self.pages).all(|page| byte(page) == byte(0)), "a mixture");
        byte(0)
    }

    /// Whether all of it has been discarded, also while it is being so.
    pub(crate) fn is_gone(&self) -> bool {
        // SAFETY: mapped and readable.
        (0..self.pages).all(|page| unsafe { self.at.add(page * PAGE_SIZE).read_volatile() } == 0)
    }

    pub(crate) fn lock(&self) {
        // SAFETY: changes nothing.
        assert_eq!(unsafe { libc::mlock(self.at.cast(), self.pages * PAGE_SIZE) }, 0);
    }

    /// Lets it be reaped. It is only looked at by volatile accesses, so that it may be.
    pub(crate) fn add_to(&self, reaper: &Reaper) -> Result<Evictable, EvictError> {
        // SAFETY: see above; it stays mapped, as `self` outlives whatever tests do with the result.
        unsafe { reaper.add(self.range()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: a mapping of ours.
        unsafe { libc::munmap(self.all, (self.pages + 2) * PAGE_SIZE) };
    }
}

/// Remembers what it is told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) starts: Mutex<Vec<usize>>,
    pub(crate) ends: AtomicUsize,
}

impl Subscriber for Told {
    fn start(&self, change: &Change) {
        assert_eq!(change.event(), Event::Clear);
        self.starts.lock().unwrap().push(change.range().start());
    }

    fn end(&self, _: &Change) {
        self.ends.fetch_add(1, SeqCst);
    }
}

impl Told {
    /// The starts, if each has had its end.
    pub(crate) fn starts(&self) -> Vec<usize> {
        let starts = self.starts.lock().unwrap().clone();
        assert_eq!(starts.len(), self.ends.load(SeqCst), "each start has its end");
        starts
    }
}

pub(crate) fn by_hand() -> Options {
    Options { trigger: Trigger::Hand, ..Options::default() }
}

/// Waits for it.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Does that in a forked child with the child's copy of `it`, and waits for the child's end. `it` is this process's again.
pub(crate) fn in_a_child<T>(it: T, work: impl FnOnce(T)) -> T {
    // SAFETY: the child frees memory, for which the C library is prepared, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        work(it);
        // SAFETY: nothing has to be cleaned up.
        unsafe { libc::_exit(7) };
    }
    let (mut status, began) = (0, Instant::now());
    // SAFETY: a child of ours.
    while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } != child {
        if began.elapsed() > Duration::from_secs(60) {
            // SAFETY: as above.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7,
        "the child hung, or died: {status:#x}"
    );
    it
}
