//! Memory that is mapped, moved, discarded and protected, and what the kernel's page table says of it.

// UNSAFETY: the calls that change memory, in a part of the address space that is nobody else's, and to which nothing refers.
#![expect(unsafe_code)]

use std::error::Error;
use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use mmu_notifier::{PAGE_SIZE, Range};
use mmu_notifier_secondary::device::{Access, Page, PageTable};

use super::Random;
use super::counts::{Counts, add};

/// Pages that become anything.
pub(crate) const PAGES: usize = 64;
/// Pages behind them that stay mapped, and may be discarded at any time.
pub(crate) const EVICTABLE: usize = 32;

/// Far from where the kernel puts what others map: nobody else gets into a hole.
const BASE: usize = 0x40_0000_0000;
/// Where pages are moved to, and come from; some for each thread.
const PARKING: usize = BASE + (1 << 30);
const PARKED: usize = 8;

const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;
const OWN: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

pub(crate) struct Memory {
    pagemap: File,
    /// Whether page frames are told: to root.
    has_frames: bool,
    /// What is mapped in places.
    file: File,
    parkings: AtomicUsize,
    counts: Arc<Counts>,
}

/// The answer of the kernel's page table.
#[derive(Clone, Copy, Debug)]
struct Present(u64);

fn map(at: usize, pages: usize, rights: c_int, flags: c_int, file: c_int, offset: usize) -> io::Result<()> {
    // SAFETY: in the part that is ours, or over nothing.
    match unsafe { libc::mmap(at as *mut _, pages * PAGE_SIZE, rights, flags, file, offset as libc::off_t) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn remap(from: usize, pages: usize, to: usize, extra: c_int) -> io::Result<()> {
    let (len, flags) = (pages * PAGE_SIZE, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | extra);
    // SAFETY: both in the part that is ours.
    match unsafe { libc::mremap(from as *mut _, len, len, flags, to) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn advise(at: usize, pages: usize, advice: c_int) -> io::Result<()> {
    // SAFETY: in the part that is ours.
    check(unsafe { libc::madvise(at as *mut _, pages * PAGE_SIZE, advice) })
}

fn protect(at: usize, pages: usize, rights: c_int) -> io::Result<()> {
    // SAFETY: in the part that is ours, and accessed through page tables only.
    check(unsafe { libc::mprotect(at as *mut _, pages * PAGE_SIZE, rights) })
}

impl Memory {
    /// Mapped, with nothing in it.
    pub(crate) fn new(counts: Arc<Counts>) -> Result<Memory, Box<dyn Error>> {
        map(BASE, PAGES + EVICTABLE, READ_WRITE, OWN | libc::MAP_FIXED_NOREPLACE, -1, 0)?;
        // Huge pages come and go without a call.
        _ = advise(BASE, PAGES + EVICTABLE, libc::MADV_NOHUGEPAGE);
        // SAFETY: the name is a string.
        let file = unsafe { libc::memfd_create(c"together".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: a descriptor that nobody has.
        let file = unsafe { File::from_raw_fd(file) };
        file.set_len((PAGES * PAGE_SIZE) as u64)?;
        let pagemap = File::open("/proc/self/pagemap")?;
        let mut memory = Memory { pagemap, has_frames: false, file, parkings: AtomicUsize::new(0), counts };
        advise(BASE, 1, libc::MADV_POPULATE_WRITE)?;
        memory.has_frames = memory.present(BASE).is_some_and(|present| present.0 != 0);
        Ok(memory)
    }

    pub(crate) fn has_frames(&self) -> bool {
        self.has_frames
    }

    /// Where a page is; the evictable ones come last.
    pub(crate) fn address(&self, page: usize) -> usize {
        assert!(page < PAGES + EVICTABLE);
        BASE + page * PAGE_SIZE
    }

    pub(crate) fn range(&self, pages: std::ops::Range<usize>) -> Range {
        Range::with_len(self.address(pages.start), pages.len() * PAGE_SIZE).expect("pages")
    }

    /// The frame that is mapped there, if one is.
    fn present(&self, address: usize) -> Option<Present> {
        const PRESENT: u64 = 1 << 63;
        const FRAME: u64 = (1 << 55) - 1;
        let mut word = [0; 8];
        self.pagemap.read_exact_at(&mut word, (address / PAGE_SIZE * 8) as u64).ok()?;
        let word = u64::from_ne_bytes(word);
        (word & PRESENT != 0).then_some(Present(word & FRAME))
    }

    /// Whether the page there is that which was found.
    pub(crate) fn is(&self, address: usize, found: usize) -> bool {
        self.present(address)
            .is_some_and(|present| self.frame(address, present) == found / PAGE_SIZE * PAGE_SIZE)
    }

    /// What a device does at a page: fails if another one is there than that which it has found.
    #[track_caller]
    pub(crate) fn check(&self, address: usize, found: usize) {
        assert!(
            self.is(address, found),
            "a device has found {found:#x} at {address:#x}, where now frame {:x?} is",
            self.present(address),
        );
    }

    /// Where devices find a page: its frame, or its address where frames are not told.
    fn frame(&self, address: usize, present: Present) -> usize {
        if self.has_frames { present.0 as usize * PAGE_SIZE } else { address / PAGE_SIZE * PAGE_SIZE }
    }

    /// One change, of some pages, in some way.
    pub(crate) fn change(&self, random: &mut Random) {
        let parking = PARKING + self.parkings.fetch_add(1, SeqCst) % 64 * PARKED * PAGE_SIZE;
        let (page, pages) = (random.below(PAGES), 1 + random.below(PARKED));
        let pages = pages.min(PAGES - page);
        let at = self.address(page);
        let result = match random.below(14) {
            // SAFETY: in the part that is ours.
            0 => check(unsafe { libc::munmap(at as *mut _, pages * PAGE_SIZE) }),
            1..=3 => map(at, pages, READ_WRITE, OWN | libc::MAP_FIXED, -1, 0),
            4 => {
                let shared = libc::MAP_SHARED | libc::MAP_FIXED;
                map(at, pages, READ_WRITE, shared, self.file.as_raw_fd(), page * PAGE_SIZE)
            }
            5 => map(parking, pages, READ_WRITE, OWN | libc::MAP_FIXED, -1, 0)
                .and_then(|()| advise(parking, pages, libc::MADV_POPULATE_WRITE))
                .and_then(|()| remap(parking, pages, at, 0)),
            6 => remap(at, 1, parking, 0),
            7 => remap(at, 1, parking, libc::MREMAP_DONTUNMAP),
            8 => advise(at, pages, libc::MADV_DONTNEED),
            9 => protect(at, pages, libc::PROT_READ),
            10 => protect(at, pages, libc::PROT_NONE),
            11 => protect(at, pages, READ_WRITE),
            12 => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let (offset, len) = ((page * PAGE_SIZE) as libc::off_t, (pages * PAGE_SIZE) as libc::off_t);
                // SAFETY: a file of ours.
                check(unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) })
            }
            _ => advise(self.address(PAGES + random.below(EVICTABLE - PARKED)), PARKED, libc::MADV_DONTNEED),
        };
        add(if result.is_ok() { &self.counts.changes } else { &self.counts.failed });
        // Who waits until nothing changes gets his turn.
        std::thread::sleep(Duration::from_micros(random.below(100) as u64));
    }

    /// Discards an evictable page inside what `inside` makes of it.
    pub(crate) fn discard(&self, inside: impl FnOnce(Range, &mut dyn FnMut()), random: &mut Random) {
        let page = PAGES + random.below(EVICTABLE);
        inside(self.range(page..page + 1), &mut || {
            _ = advise(self.address(page), 1, libc::MADV_DONTNEED);
        });
    }

    /// Copies what is there, if it can be read. Whatever becomes of it meanwhile.
    pub(crate) fn copy(&self, range: Range, to: &mut [u8]) -> bool {
        let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
        let remote = libc::iovec { iov_base: range.start() as *mut _, iov_len: to.len() };
        // SAFETY: the kernel writes to `to`, and reads what it finds.
        let copied = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        copied == to.len() as isize
    }
}

impl PageTable for Memory {
    /// Makes the page present for writing if that is allowed, so that the first write of anybody gives it no other frame.
    fn look_up(&self, address: usize, access: Access) -> Option<Page> {
        let is_writable = advise(address, 1, libc::MADV_POPULATE_WRITE).is_ok();
        if !is_writable {
            if access.includes(Access::Write) {
                return None;
            }
            advise(address, 1, libc::MADV_POPULATE_READ).ok()?;
        }
        // It may be gone already: then a change has come, and whoever asks begins anew.
        let frame = self.frame(address, self.present(address)?);
        Some(if is_writable { Page::writable(frame) } else { Page::read_only(frame) })
    }

    /// For a device alone: it is as good as any other page, as no processor uses it.
    fn take(&self, address: usize) -> Option<Page> {
        self.look_up(address, Access::Write)
    }
}
