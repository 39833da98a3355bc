//! Who refers to the caches: fixed buffers of io_uring, through the registration cache.

// UNSAFETY: submits reads into memory that the caller keeps.
#![expect(unsafe_code)]

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, ensure};
use io_uring::IoUring;
use io_uring::opcode::ReadFixed;
use io_uring::types::Fd;
use mmu_notifier::{AddressSpace, PAGE_SIZE, Range};
use mmu_notifier_secondary::cache::{self, Access, Cache, Wait};
use mmu_notifier_secondary::io_uring::{FixedBuffers, Operation, Options};

/// What the file is full of, and what comes through a pipe.
pub const FILE: u8 = b'F';
pub const PIPE: u8 = b'P';

/// Bytes of a read.
pub const LEN: usize = PAGE_SIZE;

/// A ring, its registration cache, and a file.
pub struct Disk {
    ring: IoUring,
    pub cache: Arc<Cache<FixedBuffers>>,
    file: File,
}

/// A read that waits for its pipe.
pub struct Parked<'a> {
    operation: Operation<'a>,
    _read: PipeReader,
    write: PipeWriter,
}

impl Disk {
    pub fn new(space: &AddressSpace, slots: u16) -> anyhow::Result<Disk> {
        let ring = IoUring::new(64).context(
            "io_uring is not available here (an old kernel, the sysctl kernel.io_uring_disabled, or a container that forbids it)",
        )?;
        let options = Options { slots, wait: Wait::UntilUnused, ..Options::default() };
        let buffers = FixedBuffers::with(&ring, options).context("cannot make fixed buffers")?;
        let options = cache::Options { entries: slots.into(), ..cache::Options::default() };
        // SAFETY: the name is a string.
        let file = unsafe { libc::memfd_create(c"file".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error()).context("cannot make a file in memory");
        }
        // SAFETY: a descriptor that nobody else has.
        let file = unsafe { File::from_raw_fd(file) };
        file.write_all_at(&[FILE; LEN], 0).context("cannot write a file in memory")?;
        Ok(Disk { ring, cache: Arc::new(Cache::new(space, buffers, options)), file })
    }

    /// Makes sure that the memory is registered.
    pub fn register(&self, range: Range) -> anyhow::Result<()> {
        self.cache.get(range, Access::ReadWrite).map(drop).context("cannot register memory")
    }
}

/// Begins a read into the memory that waits until something is written.
pub fn park<'a>(
    ring: &mut IoUring,
    cache: &'a Cache<FixedBuffers>,
    range: Range,
    number: u64,
) -> anyhow::Result<Parked<'a>> {
    let (read, write) = io::pipe().context("cannot make a pipe")?;
    let operation = Operation::new(cache.get(range, Access::ReadWrite)?, number);
    submit(ring, cache, &operation, Fd(read.as_raw_fd()), u64::MAX)?;
    Ok(Parked { operation, _read: read, write })
}

impl Parked<'_> {
    /// Lets it come to its end.
    pub fn finish(mut self, ring: &mut IoUring, cache: &Cache<FixedBuffers>) -> anyhow::Result<()> {
        self.write.write_all(&[PIPE; LEN]).context("cannot write into a pipe")?;
        wait(ring, cache, self.operation.user_data())
    }
}

impl Disk {
    /// The two parts that a parked read needs, apart from each other.
    pub fn parts(&mut self) -> (&mut IoUring, &Cache<FixedBuffers>) {
        (&mut self.ring, &self.cache)
    }

    /// Reads the file into the beginning of the memory, as a fixed buffer.
    pub fn read(&mut self, range: Range, number: u64) -> anyhow::Result<()> {
        let (ring, cache) = (&mut self.ring, &*self.cache);
        let operation = Operation::new(cache.get(range, Access::ReadWrite)?, number);
        submit(ring, cache, &operation, Fd(self.file.as_raw_fd()), 0)?;
        wait(ring, cache, number)
    }
}

fn submit(
    ring: &mut IoUring,
    cache: &Cache<FixedBuffers>,
    operation: &Operation<'_>,
    from: Fd,
    offset: u64,
) -> anyhow::Result<()> {
    let to = operation.range().start() as *mut u8;
    let read = ReadFixed::new(from, to, LEN as u32, operation.slot()).offset(offset).build();
    // SAFETY: the memory stays mapped until the program's end, and the operation keeps its pages registered.
    unsafe { ring.submission().push(&read.user_data(operation.user_data())) }
        .context("the submission queue is full")?;
    let _submitting = cache.registrar().submitting();
    ring.submit().context("io_uring_enter")?;
    Ok(())
}

fn wait(ring: &mut IoUring, cache: &Cache<FixedBuffers>, number: u64) -> anyhow::Result<()> {
    loop {
        // The others say that a buffer was released.
        let done = ring.completion().find(|done| !cache.registrar().released(done.user_data()));
        if let Some(done) = done {
            ensure!(done.user_data() == number, "the completion of another read");
            ensure!(done.result() == LEN as i32, "{} bytes of {LEN} read", done.result());
            return Ok(());
        }
        ring.submitter().submit_and_wait(1).context("io_uring_enter")?;
    }
}
