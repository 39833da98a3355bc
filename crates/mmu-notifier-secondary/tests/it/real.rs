//! Real memory: locked pages, and the self-check that compares page frames.

// UNSAFETY: maps memory of its own, to which nothing refers, and changes it by system calls.
#![expect(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use mmu_notifier::{AddressSpace, Event, Range};
use mmu_notifier_secondary::cache::{Access, Cache, GetError, Options, RegisterError, Registrar};

/// Anonymous pages of this process.
pub(crate) struct Pages(Range);

impl Pages {
    /// Far from where the kernel puts what others map: nobody else gets into a hole. (And where sanitizers allow it.)
    pub(crate) fn map(count: usize) -> Pages {
        static NEXT: AtomicUsize = AtomicUsize::new(0x40_0000_0000);
        let start = NEXT.fetch_add((count + 16) * 4096, SeqCst);
        map_at(start, count * 4096, libc::MAP_FIXED_NOREPLACE);
        Pages(Range::with_len(start, count * 4096).unwrap())
    }

    pub(crate) fn range(&self) -> Range {
        self.0
    }

    pub(crate) fn part(&self, pages: std::ops::Range<usize>) -> Range {
        Range::with_len(self.0.start() + pages.start * 4096, pages.len() * 4096).unwrap()
    }

    pub(crate) fn unmap(&self) {
        unmap(self.0);
    }

    pub(crate) fn map_again(&self) {
        map_at(self.0.start(), self.0.len(), libc::MAP_FIXED);
    }

    /// Also while a registrar has it locked, which plain `MADV_DONTNEED` refuses.
    pub(crate) fn discard(&self) {
        const DONTNEED_LOCKED: i32 = 24;
        // SAFETY: pages of this mapping, to which nothing refers.
        let rc = unsafe { libc::madvise(self.0.start() as *mut _, self.0.len(), DONTNEED_LOCKED) };
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    }

    pub(crate) fn protect(&self, protection: i32) {
        protect(self.0, protection);
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.unmap();
    }
}

fn map_at(start: usize, len: usize, flags: i32) -> usize {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, or one in place of pages of a `Pages`, to which nothing refers.
    let mapped = unsafe { libc::mmap(start as *mut _, len, protection, flags, -1, 0) };
    assert_ne!(mapped, libc::MAP_FAILED);
    mapped as usize
}

fn unmap(range: Range) {
    // SAFETY: pages of a `Pages`, to which nothing refers.
    assert_eq!(unsafe { libc::munmap(range.start() as *mut _, range.len()) }, 0);
}

fn protect(range: Range, protection: i32) {
    // SAFETY: pages of a `Pages`, to which nothing refers.
    assert_eq!(unsafe { libc::mprotect(range.start() as *mut _, range.len(), protection) }, 0);
}

/// Makes pages present with the rights that are asked for, and locks them.
struct Populated;

impl Registrar for Populated {
    type Handle = ();

    fn register(&self, range: Range, access: Access) -> Result<(), RegisterError> {
        const POPULATE_READ: i32 = 22;
        const POPULATE_WRITE: i32 = 23;
        let advice = if access.includes(Access::Write) { POPULATE_WRITE } else { POPULATE_READ };
        // SAFETY: makes pages present, whatever they are.
        let populated = unsafe { libc::madvise(range.start() as *mut _, range.len(), advice) };
        if populated != 0 {
            return Err(RegisterError::Failed(std::io::Error::last_os_error()));
        }
        // SAFETY: locks pages, which changes nothing that Rust knows of.
        if unsafe { libc::mlock(range.start() as *const _, range.len()) } != 0 {
            return Err(RegisterError::Failed(std::io::Error::last_os_error()));
        }
        Ok(())
    }

    fn deregister(&self, range: Range, (): ()) {
        // SAFETY: as `mlock`.
        unsafe { libc::munlock(range.start() as *const _, range.len()) };
    }
}

#[test]
fn unmapped_memory_is_named() {
    let space = AddressSpace::new();
    let cache = Cache::new(&space, Populated, Options::default());
    let pages = Pages::map(8);
    let hole = pages.part(5..6);
    unmap(hole);
    let error = cache.get(pages.range(), Access::Read).unwrap_err();
    assert!(matches!(error, GetError::NotMapped { hole: at, .. } if at == hole.start()), "{error}");
    drop(cache.get(pages.part(0..5), Access::ReadWrite).unwrap());
    map_at(hole.start(), hole.len(), libc::MAP_FIXED);
    drop(cache.get(pages.range(), Access::Read).unwrap());
}

#[test]
fn missing_rights_are_named() {
    let space = AddressSpace::new();
    let cache = Cache::new(&space, Populated, Options::default());
    let pages = Pages::map(8);
    protect(pages.part(3..5), libc::PROT_READ);
    protect(pages.part(6..7), libc::PROT_NONE);
    let error = cache.get(pages.part(0..6), Access::Write).unwrap_err().to_string();
    assert!(error.contains("is r--, and that takes -w-"), "{error}");
    let error = cache.get(pages.part(6..7), Access::Read).unwrap_err().to_string();
    assert!(error.contains("is ---, and that takes r--"), "{error}");
    drop(cache.get(pages.part(0..6), Access::Read).unwrap());
    drop(cache.get(pages.part(0..3), Access::Write).unwrap());
}

fn checked(space: &AddressSpace) -> Option<Cache<Populated>> {
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIPPED: only root can see page frames");
        return None;
    }
    Some(Cache::new(space, Populated, Options { self_check: true, ..Options::default() }))
}

/// Puts another page at a page of a [`Pages`], without a word to any address space: one that there is at the same time, so
/// that it has another frame.
fn replace_unannounced(page: Range) {
    let other = Pages::map(1);
    let (from, to) = (other.range().start() as *mut libc::c_void, page.start() as *mut libc::c_void);
    // SAFETY: mapped, writable, and nobody else's.
    unsafe { from.cast::<u8>().write(1) };
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: both are pages of this test, to which nothing refers.
    assert_eq!(unsafe { libc::mremap(from, page.len(), page.len(), flags, to) }, to);
}

#[test]
fn the_self_check_finds_a_change_that_nobody_announced() {
    let space = AddressSpace::new();
    let Some(cache) = checked(&space) else { return };
    let pages = Pages::map(8);
    drop(cache.get(pages.range(), Access::Write).unwrap());
    drop(cache.get(pages.range(), Access::Write).unwrap());
    assert_eq!(cache.stats().stale, 0);
    replace_unannounced(pages.part(2..3));
    drop(cache.get(pages.range(), Access::Write).unwrap());
    assert_eq!(cache.stats().stale, 1);
}

/// UCX's `enum_pfn`: the frames of all pages of a region are known, not only of the first one.
#[test]
fn enum_pfn() {
    let space = AddressSpace::new();
    let Some(cache) = checked(&space) else { return };
    let pages = Pages::map(4);
    for page in 0..4 {
        drop(cache.get(pages.range(), Access::Write).unwrap());
        let part = pages.part(page..page + 1);
        replace_unannounced(part);
        drop(cache.get(pages.range(), Access::Write).unwrap());
        assert_eq!(cache.stats().stale, page as u64 + 1);
        // Announced at last: registered anew, with the frames of now.
        space.invalidate(part, Event::Unmap, || ());
    }
}

/// One thread less is running when this is dropped, also by a panic.
struct Over<'a>(&'a AtomicUsize);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Threads that use memory beside threads that unmap, remap and discard it, all of it announced: not one stale hit.
#[test]
fn under_load_the_self_check_finds_nothing() {
    crate::device::again_and_again(|_| load());
}

fn load() {
    let space = AddressSpace::new();
    let Some(cache) = checked(&space) else { return };
    const BUFFERS: usize = 8;
    let buffers: Vec<Pages> = (0..BUFFERS).map(|_| Pages::map(4)).collect();
    let running = AtomicUsize::new(2);
    // Something is there to be hit, whoever comes first.
    buffers.iter().for_each(|pages| drop(cache.get(pages.range(), Access::Write).unwrap()));
    std::thread::scope(|scope| {
        for thread in 0..2_usize {
            let (space, buffers, running) = (&space, &buffers, &running);
            scope.spawn(move || {
                let _over = Over(running);
                for round in 0..1500_usize {
                    // Each thread has buffers of its own, so that no two map the same at the same time.
                    let pages = &buffers[(round * 2 + thread) % BUFFERS];
                    match round % 3 {
                        0 => space.invalidate(pages.range(), Event::Unmap, || pages.map_again()),
                        1 => space.invalidate(pages.range(), Event::Clear, || pages.discard()),
                        _ => space
                            .try_invalidate(pages.range(), Event::Unmap, || pages.map_again())
                            .expect("nobody refuses"),
                    }
                }
            });
        }
        for thread in 0..2 {
            let (cache, buffers, running) = (&cache, &buffers, &running);
            scope.spawn(move || {
                let mut at = thread;
                while running.load(SeqCst) > 0 || at < 1000 {
                    at += 1;
                    match cache.get(buffers[at % BUFFERS].range(), Access::Write) {
                        Ok(_) | Err(GetError::Unsettled { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    let stats = cache.stats();
    assert!(stats.hits > 0 && stats.retries + stats.invalidated.iter().sum::<u64>() > 0, "{stats}");
    assert_eq!(stats.stale, 0, "{stats}");
}
