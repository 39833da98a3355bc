//! Memory of this process, as the device sees it.

// UNSAFETY: mapping memory of our own, changing it, and reading and writing it through pointers.
#![expect(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use mmu_notifier::{Event, PAGE_SIZE, Range};
use mmu_notifier_secondary::device::{Access, Page, PageTable};

use crate::world::World;

pub(crate) const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;

/// What is behind a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    Anonymous,
    /// Shared with children.
    Shared,
    /// Shared, of a file.
    File,
    /// Anonymous, in huge pages if there are any.
    Huge,
    /// Of the pool of huge pages.
    HugeTlb,
}

/// Whole pages at an address at which the kernel puts nothing of its own accord.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) at: usize,
    pub(crate) pages: usize,
    flags: c_int,
    file: Option<File>,
}

/// A file without a name.
pub(crate) fn file(len: usize) -> File {
    // SAFETY: a name that is a string.
    let id = unsafe { libc::memfd_create(c"hmm".as_ptr(), libc::MFD_CLOEXEC) };
    assert_ne!(id, -1, "memfd_create: {}", io::Error::last_os_error());
    // SAFETY: it is ours.
    let file = unsafe { File::from_raw_fd(id) };
    file.set_len(len as u64).expect("it grows");
    file
}

/// An address for that many pages.
pub(crate) fn place(pages: usize) -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x2000_0000_0000);
    // A part of its own, that begins at a huge page.
    NEXT.fetch_add((pages * PAGE_SIZE).next_multiple_of(2 << 20) + (2 << 20), SeqCst)
}

impl Buffer {
    /// None if this machine has no such memory.
    pub(crate) fn of(backing: Backing, pages: usize) -> Option<Buffer> {
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let flags = match backing {
            Backing::Anonymous | Backing::Huge => private,
            Backing::Shared => libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            Backing::File => libc::MAP_SHARED,
            Backing::HugeTlb => private | libc::MAP_HUGETLB,
        };
        let file = (backing == Backing::File).then(|| file(pages * PAGE_SIZE));
        let buffer = Buffer { at: place(pages), pages, flags, file };
        buffer.map(0..pages).ok()?;
        if backing == Backing::Huge {
            let (pointer, len) = (buffer.at as *mut _, pages * PAGE_SIZE);
            // SAFETY: it changes nothing that anybody sees.
            unsafe { libc::madvise(pointer, len, libc::MADV_HUGEPAGE) };
        }
        Some(buffer)
    }

    pub(crate) fn new(pages: usize) -> Buffer {
        Buffer::of(Backing::Anonymous, pages).expect("memory")
    }

    pub(crate) fn address(&self, page: usize) -> usize {
        self.at + page * PAGE_SIZE
    }

    pub(crate) fn range(&self, pages: std::ops::Range<usize>) -> Range {
        Range::new(self.address(pages.start), self.address(pages.end)).expect("pages")
    }

    pub(crate) fn all(&self) -> Range {
        self.range(0..self.pages)
    }

    /// Maps these pages anew.
    pub(crate) fn map(&self, pages: std::ops::Range<usize>) -> io::Result<()> {
        let (at, len) = (self.address(pages.start), pages.len() * PAGE_SIZE);
        let file = self.file.as_ref().map_or(-1, |file| file.as_raw_fd());
        let offset = (pages.start * PAGE_SIZE) as libc::off_t;
        // SAFETY: a place of ours.
        let mapped =
            unsafe { libc::mmap(at as *mut _, len, READ_WRITE, self.flags | libc::MAP_FIXED, file, offset) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(crate) fn unmap(&self, world: &World, pages: std::ops::Range<usize>) {
        let (at, len) = (self.address(pages.start), pages.len() * PAGE_SIZE);
        // SAFETY: pages of our own; whoever uses them is what is tested.
        let unmap = || unsafe { libc::munmap(at as *mut _, len) };
        assert_eq!(world.change(self.range(pages), Event::Unmap, unmap), 0);
    }

    pub(crate) fn protect(&self, world: &World, pages: std::ops::Range<usize>, rights: c_int) {
        let (at, len) = (self.address(pages.start), pages.len() * PAGE_SIZE);
        // SAFETY: as in `unmap`.
        let protect = || unsafe { libc::mprotect(at as *mut _, len, rights) };
        assert_eq!(world.change(self.range(pages), Event::ProtectionVma, protect), 0);
    }

    pub(crate) fn discard(&self, world: &World, pages: std::ops::Range<usize>) {
        let (at, len) = (self.address(pages.start), pages.len() * PAGE_SIZE);
        // SAFETY: as in `unmap`.
        let discard = || unsafe { libc::madvise(at as *mut _, len, libc::MADV_DONTNEED) };
        assert_eq!(world.change(self.range(pages), Event::Clear, discard), 0);
    }

    /// Moves a page to the place of another one; where it was, nothing is.
    pub(crate) fn remap(&self, world: &World, from: usize, to: usize) {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let (old, new) = (self.address(from), self.address(to));
        // SAFETY: as in `unmap`.
        let remap = || unsafe {
            libc::mremap(old as *mut _, PAGE_SIZE, PAGE_SIZE, flags, new as *mut libc::c_void) as usize
        };
        let both = self.range(from.min(to)..from.max(to) + 1);
        assert_eq!(world.change(both, Event::Unmap, remap), new);
    }

    /// Maps again what of these pages is not mapped: that is nobody's, and no change.
    pub(crate) fn restore(&self, pages: std::ops::Range<usize>) {
        for page in pages {
            let at = self.address(page) as *mut _;
            let flags = self.flags | libc::MAP_FIXED_NOREPLACE;
            // SAFETY: nothing is replaced.
            unsafe { libc::mmap(at, PAGE_SIZE, READ_WRITE, flags, -1, 0) };
        }
    }

    /// What the processor finds in a page that it may read.
    pub(crate) fn read(&self, page: usize) -> u64 {
        load(self.address(page))
    }

    pub(crate) fn write(&self, page: usize, value: u64) {
        store(self.address(page), value);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: our own, or nothing.
        unsafe { libc::munmap(self.at as *mut _, self.pages * PAGE_SIZE) };
    }
}

fn word<'a>(pointer: usize) -> &'a AtomicU64 {
    // SAFETY: memory of our own, that is there while it is accessed: that is what is tested.
    unsafe { AtomicU64::from_ptr(pointer as *mut u64) }
}

pub(crate) fn load(pointer: usize) -> u64 {
    word(pointer).load(SeqCst)
}

pub(crate) fn store(pointer: usize, value: u64) {
    word(pointer).store(value, SeqCst);
}

pub(crate) fn add(pointer: usize) -> u64 {
    word(pointer).fetch_add(1, SeqCst)
}

/// The page table of this process: the device goes to each page at its address.
#[derive(Debug, Default)]
pub(crate) struct Own;

impl PageTable for Own {
    /// Has the kernel make the page present, as an access would.
    fn look_up(&self, address: usize, access: Access) -> Option<Page> {
        let writes = access.includes(Access::Write);
        let advice = if writes { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        // SAFETY: makes present what is there, or fails.
        let is_there = unsafe { libc::madvise(address as *mut _, PAGE_SIZE, advice) } == 0;
        is_there.then(|| if writes { Page::writable(address) } else { Page::read_only(address) })
    }

    fn peek(&self, address: usize) -> Option<Page> {
        let mut entry = [0; 8];
        let pagemap = File::open("/proc/self/pagemap").expect("it is there");
        let offset = (address / PAGE_SIZE * 8) as u64;
        pagemap.read_exact_at(&mut entry, offset).expect("an entry");
        let is_present = u64::from_ne_bytes(entry) >> 63 == 1;
        let maps = std::fs::read_to_string("/proc/self/maps").expect("it is there");
        let rights = maps.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let [start, end] =
                [start, end].map(|number| usize::from_str_radix(number, 16).expect("a number"));
            (start..end).contains(&address).then(|| rest[..2].to_owned())
        });
        match (is_present, rights.as_deref()) {
            (true, Some("rw")) => Some(Page::writable(address)),
            (true, Some("r-")) => Some(Page::read_only(address)),
            _ => None,
        }
    }
}
