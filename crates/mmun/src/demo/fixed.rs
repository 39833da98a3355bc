//! A ring, a file to read and a buffer at an address that stays: what the experiments with fixed buffers work on.

// UNSAFETY: submits reads into memory of this module's own, and makes the system calls that change it. Nobody has a
// reference to that memory: it is looked at through a copy.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;

use anyhow::{Context, bail};
use io_uring::IoUring;
use io_uring::opcode::{Read, ReadFixed};
use io_uring::types::Fd;
use mmu_notifier::Range;
use mmu_notifier_secondary::io_uring::FixedBuffers;

/// Bytes of the buffer, and of a read.
pub const LEN: usize = 16 << 10;
/// What the file is full of.
pub const FILE: u8 = b'B';
/// What the buffer is full of at first.
pub const OLD: u8 = b'A';
/// What the program writes into memory that it has mapped anew.
pub const NEW: u8 = b'N';

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// What says that a completion is the read's.
const READ: u64 = 1;

/// A ring and a file that is full of [`FILE`].
pub struct Desk {
    pub ring: IoUring,
    file: File,
}

impl Desk {
    pub fn new() -> anyhow::Result<Desk> {
        let ring = IoUring::new(8).context(
            "io_uring is not available here (an old kernel, the sysctl kernel.io_uring_disabled, or a container that forbids it)",
        )?;
        // SAFETY: the name is a string.
        let file = unsafe { libc::memfd_create(c"file".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error()).context("cannot make a file in memory");
        }
        // SAFETY: a descriptor that nobody else has.
        let file = unsafe { File::from_raw_fd(file) };
        file.write_all_at(&[FILE; LEN], 0).context("cannot write a file in memory")?;
        Ok(Desk { ring, file })
    }

    /// Reads the file into the buffer in that slot; what the kernel says: bytes, or an error.
    pub fn read_fixed(&mut self, slot: u16, buffer: &Buffer) -> anyhow::Result<io::Result<usize>> {
        let file = Fd(self.file.as_raw_fd());
        self.submit(&ReadFixed::new(file, buffer.at, LEN as u32, slot).build().user_data(READ))
    }

    /// The same by the buffer's address.
    pub fn read(&mut self, buffer: &Buffer) -> anyhow::Result<io::Result<usize>> {
        let file = Fd(self.file.as_raw_fd());
        self.submit(&Read::new(file, buffer.at, LEN as u32).build().user_data(READ))
    }

    fn submit(&mut self, read: &io_uring::squeue::Entry) -> anyhow::Result<io::Result<usize>> {
        // SAFETY: the buffer lives until the completion, as this waits for it; if it is not mapped, the kernel says so.
        unsafe { self.ring.submission().push(read) }.context("the submission queue is full")?;
        loop {
            self.ring.submit_and_wait(1).context("io_uring_enter")?;
            // The others say that a buffer was released.
            if let Some(done) = self.ring.completion().find(|done| done.user_data() == READ) {
                let result = done.result();
                return Ok(usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)));
            }
        }
    }

    /// Registers the buffer once and for all, in slot 0.
    pub fn register(&self, buffer: &Buffer) -> anyhow::Result<()> {
        let buffer = libc::iovec { iov_base: buffer.at.cast(), iov_len: LEN };
        // SAFETY: the kernel pins the pages; that they stay when the memory goes is what is to be shown.
        unsafe { self.ring.submitter().register_buffers(&[buffer]) }.context("cannot register a buffer")
    }

    /// A table of fixed buffers for a cache.
    pub fn fixed_buffers(&self) -> anyhow::Result<FixedBuffers> {
        FixedBuffers::new(&self.ring, 16).context("cannot make fixed buffers")
    }
}

/// Memory of [`LEN`] bytes.
pub struct Buffer {
    at: *mut u8,
    moved: Option<*mut u8>,
}

// SAFETY: an address. The memory is only reached by system calls, and by the copy in `byte`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Full of [`OLD`].
    pub fn new() -> anyhow::Result<Buffer> {
        let buffer = Buffer { at: map(null_mut(), 0)?, moved: None };
        buffer.fill(OLD);
        Ok(buffer)
    }

    pub fn range(&self) -> Range {
        Range::with_len(self.at as usize, LEN).expect("it has bytes")
    }

    fn fill(&self, byte: u8) {
        // SAFETY: mapped and writable; only raw pointers lead there.
        unsafe { self.at.write_bytes(byte, LEN) };
    }

    /// The byte that all of it consists of.
    pub fn byte(&self) -> anyhow::Result<u8> {
        let mut bytes = vec![0; LEN];
        // SAFETY: mapped and readable, and nothing is being read into it now.
        unsafe { self.at.copy_to_nonoverlapping(bytes.as_mut_ptr(), LEN) };
        match bytes.iter().all(|&byte| byte == bytes[0]) {
            true => Ok(bytes[0]),
            false => bail!("the buffer is a mixture"),
        }
    }

    /// `munmap`, and new memory at the same address.
    pub fn map_anew(&self) -> anyhow::Result<()> {
        // SAFETY: a mapping of ours.
        check(unsafe { libc::munmap(self.at.cast(), LEN) }).context("munmap")?;
        map(self.at, libc::MAP_FIXED_NOREPLACE)?;
        self.fill(NEW);
        Ok(())
    }

    /// `madvise(MADV_DONTNEED)`.
    pub fn discard(&self) -> anyhow::Result<()> {
        // SAFETY: a mapping of ours.
        check(unsafe { libc::madvise(self.at.cast(), LEN, libc::MADV_DONTNEED) }).context("MADV_DONTNEED")
    }

    /// `mremap` to elsewhere, and new memory at the same address.
    pub fn move_away(&mut self) -> anyhow::Result<()> {
        let elsewhere = map(null_mut(), 0)?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: two mappings of ours.
        let moved = unsafe { libc::mremap(self.at.cast(), LEN, LEN, flags, elsewhere) };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mremap");
        }
        self.moved = Some(moved.cast());
        map(self.at, libc::MAP_FIXED_NOREPLACE)?;
        self.fill(NEW);
        Ok(())
    }

    /// `mprotect`: read-only, or as before.
    pub fn protect(&self, rights: Rights) -> anyhow::Result<()> {
        let rights = match rights {
            Rights::ReadOnly => libc::PROT_READ,
            Rights::ReadWrite => READ_WRITE,
        };
        // SAFETY: a mapping of ours.
        check(unsafe { libc::mprotect(self.at.cast(), LEN, rights) }).context("mprotect")
    }
}

/// What may be done with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    ReadOnly,
    ReadWrite,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        for at in [Some(self.at), self.moved].into_iter().flatten() {
            // SAFETY: mappings of ours.
            unsafe { libc::munmap(at.cast(), LEN) };
        }
    }
}

fn map(at: *mut u8, flags: i32) -> anyhow::Result<*mut u8> {
    // SAFETY: a new mapping, over no other.
    let mapped = unsafe { libc::mmap(at.cast(), LEN, READ_WRITE, ANONYMOUS | flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error()).context("mmap");
    }
    Ok(mapped.cast())
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A forked child that does nothing until it is dropped.
pub struct Child {
    id: libc::pid_t,
}

impl Child {
    pub fn new() -> anyhow::Result<Child> {
        // SAFETY: the child only waits for its end.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()).context("fork"),
            0 => loop {
                // SAFETY: it only waits.
                unsafe { libc::pause() };
            },
            id => Ok(Child { id }),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: a child of ours that nobody has waited for.
        unsafe { libc::kill(self.id, libc::SIGKILL) };
        // SAFETY: as above; nobody wants the status.
        unsafe { libc::waitpid(self.id, null_mut(), 0) };
    }
}
