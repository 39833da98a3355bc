//! Memory whose address stays while what is there changes.

// UNSAFETY: the calls that change memory, all of it made here and looked at by nobody but the one test.
#![expect(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use mmu_notifier::Range;

/// Bytes of a piece of memory, and of an operation.
pub(crate) const LEN: usize = 16 << 10;

const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Since Linux 6.13.
const MADV_GUARD_INSTALL: c_int = 102;
const MADV_GUARD_REMOVE: c_int = 103;

/// A place for `LEN` bytes in a part of the address space in which the kernel puts nothing of its own accord: what is
/// unmapped there does not come to belong to another thread.
fn place() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x1000_0000_0000);
    NEXT.fetch_add(1 << 20, Ordering::Relaxed)
}

fn map(at: usize, flags: c_int, file: Option<&File>) -> *mut u8 {
    let file = file.map_or(-1, |file| file.as_raw_fd());
    // SAFETY: `at` is a place of ours.
    let mapped = unsafe { libc::mmap(at as *mut _, LEN, READ_WRITE, flags, file, 0) };
    assert_ne!(mapped, libc::MAP_FAILED, "mmap at {at:#x}: {}", io::Error::last_os_error());
    assert_eq!(mapped as usize, at);
    mapped.cast()
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What is behind the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    Anonymous,
    /// A shared mapping of a `memfd`.
    Shared,
}

/// `LEN` bytes.
#[derive(Debug)]
pub(crate) struct Memory {
    at: *mut u8,
    /// The `memfd`, and a second mapping of it.
    file: Option<(File, *mut u8)>,
    /// Where it is moved to.
    parking: usize,
    /// Where it was moved.
    pub(crate) moved: Option<*mut u8>,
}

// SAFETY: addresses of memory that is this value's own.
unsafe impl Send for Memory {}

impl Memory {
    /// Full of `byte`.
    pub(crate) fn new(backing: Backing, byte: u8) -> Memory {
        let file = match backing {
            Backing::Anonymous => None,
            Backing::Shared => {
                let file = memfd();
                file.set_len(LEN as u64).expect("a memfd has any length");
                let alias = map(place(), libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE, Some(&file));
                Some((file, alias))
            }
        };
        let flags = if file.is_some() { libc::MAP_SHARED } else { ANONYMOUS };
        let at = map(place(), flags | libc::MAP_FIXED_NOREPLACE, file.as_ref().map(|(file, _)| file));
        let mut memory = Memory { at, file, parking: place(), moved: None };
        memory.fill(byte);
        memory
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        self.at
    }

    pub(crate) fn range(&self) -> Range {
        Range::with_len(self.at as usize, LEN).expect("it has bytes")
    }

    /// The byte that all of it consists of.
    pub(crate) fn byte(&self) -> u8 {
        byte_at(self.at)
    }

    /// What is there; for who knows that nobody changes it meanwhile.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped and writable, or the test dies; and ours until the borrow ends.
        unsafe { std::slice::from_raw_parts_mut(self.at, LEN) }
    }

    /// The first byte; for a forked child, as it does not allocate.
    pub(crate) fn first(&self) -> u8 {
        // SAFETY: mapped and readable, or the child dies.
        unsafe { self.at.read_volatile() }
    }

    /// The first byte of the second mapping.
    pub(crate) fn alias_first(&self) -> Option<u8> {
        // SAFETY: mapped and readable. The kernel may write there, but not now.
        self.file.as_ref().map(|(_, alias)| unsafe { alias.read_volatile() })
    }

    /// Whether a file is behind it. (It may be mapped over.)
    pub(crate) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The same of the second mapping.
    pub(crate) fn alias(&self) -> Option<u8> {
        self.file.as_ref().map(|(_, alias)| byte_at(*alias))
    }

    pub(crate) fn fill(&mut self, byte: u8) {
        // SAFETY: mapped and writable, or the test dies.
        unsafe { self.at.write_bytes(byte, LEN) };
    }

    pub(crate) fn unmap(&mut self) {
        // SAFETY: a mapping of ours.
        check(unsafe { libc::munmap(self.at.cast(), LEN) }).expect("munmap");
    }

    /// New anonymous memory, over whatever is there.
    pub(crate) fn map_over(&mut self) {
        map(self.at as usize, ANONYMOUS | libc::MAP_FIXED, None);
    }

    pub(crate) fn advise(&mut self, advice: c_int) -> io::Result<()> {
        // SAFETY: a mapping of ours.
        check(unsafe { libc::madvise(self.at.cast(), LEN, advice) })
    }

    /// Makes it a guard region and takes that back.
    pub(crate) fn guard(&mut self) -> io::Result<()> {
        self.advise(MADV_GUARD_INSTALL)?;
        self.advise(MADV_GUARD_REMOVE)
    }

    pub(crate) fn protect(&mut self, rights: c_int) {
        // SAFETY: a mapping of ours; who reads or writes it without the right dies.
        check(unsafe { libc::mprotect(self.at.cast(), LEN, rights) }).expect("mprotect");
    }

    /// To another place; `extra` may be `MREMAP_DONTUNMAP`.
    pub(crate) fn move_away(&mut self, extra: c_int) {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | extra;
        let to = self.parking as *mut libc::c_void;
        // SAFETY: a mapping of ours, to a place of ours.
        let moved = unsafe { libc::mremap(self.at.cast(), LEN, LEN, flags, to) };
        assert_eq!(moved, to, "mremap: {}", io::Error::last_os_error());
        self.moved = Some(moved.cast());
    }

    /// And back to where it was, over whatever is there.
    pub(crate) fn move_back(&mut self) {
        let from = self.moved.take().expect("it has been moved");
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: a mapping of ours, to a place of ours.
        let moved = unsafe { libc::mremap(from.cast(), LEN, LEN, flags, self.at) };
        assert_eq!(moved, self.at.cast(), "mremap: {}", io::Error::last_os_error());
    }

    fn file(&self) -> &File {
        &self.file.as_ref().expect("there is a file behind it").0
    }

    /// The file's length becomes 0, and what it was.
    pub(crate) fn truncate(&mut self) {
        self.file().set_len(0).expect("ftruncate");
        self.file().set_len(LEN as u64).expect("ftruncate");
    }

    pub(crate) fn punch_hole(&mut self) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a file of ours.
        check(unsafe { libc::fallocate(self.file().as_raw_fd(), mode, 0, LEN as i64) }).expect("fallocate");
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let alias = self.file.as_ref().map(|(_, alias)| *alias);
        for at in [Some(self.at), alias, self.moved].into_iter().flatten() {
            // SAFETY: mappings of ours; the test is over.
            unsafe { libc::munmap(at.cast(), LEN) };
        }
    }
}

/// The byte that the `LEN` bytes there consist of.
pub(crate) fn byte_at(at: *const u8) -> u8 {
    byte_of(&copy_of(at))
}

/// The `LEN` bytes there.
pub(crate) fn copy_of(at: *const u8) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    // SAFETY: mapped and readable, or the test dies. The kernel may write there, but not now.
    unsafe { at.copy_to_nonoverlapping(bytes.as_mut_ptr(), LEN) };
    bytes
}

/// The byte that all of it consists of.
pub(crate) fn byte_of(bytes: &[u8]) -> u8 {
    let first = bytes[0];
    if let Some(at) = bytes.iter().position(|&byte| byte != first) {
        panic!("{first:#x} at first, and {:#x} at {at:#x}", bytes[at]);
    }
    first
}

/// A file in memory.
pub(crate) fn memfd() -> File {
    // SAFETY: the name is a string.
    let descriptor = unsafe { libc::memfd_create(c"buffer".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(descriptor >= 0, "memfd_create: {}", io::Error::last_os_error());
    // SAFETY: a descriptor that nobody has.
    unsafe { File::from_raw_fd(descriptor) }
}

/// A mapping of the first bytes of a file on a disk.
#[derive(Debug)]
pub(crate) struct FileMapping {
    at: usize,
}

impl FileMapping {
    pub(crate) fn private(path: &std::path::Path) -> FileMapping {
        FileMapping::of(&File::open(path).expect("it can be read"), libc::MAP_PRIVATE)
    }

    pub(crate) fn shared(path: &std::path::Path) -> FileMapping {
        let file = File::options().read(true).write(true).open(path).expect("it can be written");
        FileMapping::of(&file, libc::MAP_SHARED)
    }

    fn of(file: &File, kind: c_int) -> FileMapping {
        let at = place();
        map(at, kind | libc::MAP_FIXED_NOREPLACE, Some(file));
        FileMapping { at }
    }

    pub(crate) fn range(&self) -> Range {
        Range::with_len(self.at, LEN).expect("it has bytes")
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: a mapping of ours.
        unsafe { libc::munmap(self.at as *mut _, LEN) };
    }
}
