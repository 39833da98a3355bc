//! A disk that reads into the caches: fixed buffers of io_uring, through the registration cache.

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

/// What is registered.
pub type Registrations = Cache<FixedBuffers>;

/// A ring, its registration cache, and a file.
pub struct Disk {
    ring: IoUring,
    pub registrations: Arc<Registrations>,
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
        Ok(Disk { ring, registrations: Arc::new(Cache::new(space, buffers, options)), file })
    }

    /// Makes sure that the memory is registered.
    pub fn register(&self, range: Range) -> anyhow::Result<()> {
        self.registrations.get(range, Access::ReadWrite).map(drop).context("cannot register memory")
    }

    /// Begins a read into the memory that waits until it is [finished](Disk::finish). `registrations` are those of this disk.
    pub fn park<'a>(
        &mut self,
        registrations: &'a Registrations,
        range: Range,
        number: u64,
    ) -> anyhow::Result<Parked<'a>> {
        let (read, write) = io::pipe().context("cannot make a pipe")?;
        let operation = Operation::new(registrations.get(range, Access::ReadWrite)?, number);
        self.submit(&operation, Fd(read.as_raw_fd()), u64::MAX)?;
        Ok(Parked { operation, _read: read, write })
    }

    /// Lets a read come to its end.
    pub fn finish(&mut self, mut parked: Parked<'_>) -> anyhow::Result<()> {
        parked.write.write_all(&[PIPE; LEN]).context("cannot write into a pipe")?;
        self.wait(parked.operation.user_data())
    }

    /// Reads the file into the beginning of the memory.
    pub fn read(&mut self, range: Range, number: u64) -> anyhow::Result<()> {
        let registrations = self.registrations.clone();
        let operation = Operation::new(registrations.get(range, Access::ReadWrite)?, number);
        self.submit(&operation, Fd(self.file.as_raw_fd()), 0)?;
        self.wait(number)
    }

    /// Reads the completions that say that a buffer was released.
    pub fn hear_of_releases(&mut self) {
        let buffers = self.registrations.registrar();
        // No operation of this disk is under way when this is called.
        self.ring.completion().for_each(|done| _ = buffers.released(done.user_data()));
    }

    fn submit(&mut self, operation: &Operation<'_>, from: Fd, offset: u64) -> anyhow::Result<()> {
        let to = operation.range().start() as *mut u8;
        let read = ReadFixed::new(from, to, LEN as u32, operation.slot()).offset(offset).build();
        let read = read.user_data(operation.user_data());
        // SAFETY: the memory stays mapped until the program's end, and the operation keeps its pages registered.
        unsafe { self.ring.submission().push(&read) }.context("the submission queue is full")?;
        let _submitting = self.registrations.registrar().submitting();
        self.ring.submit().context("io_uring_enter")?;
        Ok(())
    }

    fn wait(&mut self, number: u64) -> anyhow::Result<()> {
        loop {
            // The others say that a buffer was released.
            let is_read = |user_data| !self.registrations.registrar().released(user_data);
            if let Some(done) = self.ring.completion().find(|done| is_read(done.user_data())) {
                ensure!(done.user_data() == number, "the completion of another read");
                ensure!(done.result() == LEN as i32, "{} bytes of {LEN} read", done.result());
                return Ok(());
            }
            self.ring.submitter().submit_and_wait(1).context("io_uring_enter")?;
        }
    }
}
