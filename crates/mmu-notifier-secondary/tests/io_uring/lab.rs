//! A ring, a file to read from and a file to write to.

// UNSAFETY: submits operations on memory of the test's own, and registers it by hand.
#![expect(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use io_uring::opcode::{Read, ReadFixed, Write, WriteFixed};
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, squeue};

use crate::memory::{LEN, Memory, byte_of, memfd};

/// What the file to read from is full of.
pub(crate) const FILE: u8 = b'B';

/// A ring with what it works on.
pub(crate) struct Lab {
    pub(crate) ring: IoUring,
    source: File,
    sink: File,
    /// The `user_data` of completions that were not waited for: of releases.
    pub(crate) others: Vec<u64>,
}

/// A ring, if this kernel gives us one; else says so.
pub(crate) fn ring(test: &str) -> Option<IoUring> {
    match IoUring::new(64) {
        Ok(ring) => Some(ring),
        Err(error) => {
            assert!(
                matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)),
                "io_uring_setup: {error}"
            );
            eprintln!("SKIPPED: {test}: io_uring is not available here: {error}");
            None
        }
    }
}

impl Lab {
    /// The `user_data` of what is waited for.
    pub(crate) const MINE: u64 = 77;

    /// `None`: skipped, and said so.
    pub(crate) fn new(test: &str) -> Option<Lab> {
        let ring = ring(test)?;
        let (source, sink) = (memfd(), memfd());
        source.write_all_at(&[FILE; LEN], 0).expect("a memfd takes bytes");
        Some(Lab { ring, source, sink, others: Vec::new() })
    }

    /// Submits and waits; the result as the kernel gives it: bytes, or a negative error number.
    pub(crate) fn run(&mut self, operation: squeue::Entry) -> i32 {
        // SAFETY: who calls has memory that lives until this returns, or no memory: then the kernel says so.
        unsafe { self.ring.submission().push(&operation.user_data(Lab::MINE)) }.expect("the queue has room");
        loop {
            self.ring.submit_and_wait(1).expect("io_uring_enter");
            let mut result = None;
            for done in self.ring.completion() {
                match done.user_data() {
                    Lab::MINE => result = Some(done.result()),
                    other => self.others.push(other),
                }
            }
            if let Some(result) = result {
                return result;
            }
        }
    }

    /// Submits and does not wait.
    pub(crate) fn submit(&mut self, operation: &squeue::Entry) {
        // SAFETY: who calls has memory that lives until the completion.
        unsafe { self.ring.submission().push(operation) }.expect("the queue has room");
        self.ring.submit().expect("io_uring_enter");
    }

    /// Waits for this many completions, and gives what they say.
    pub(crate) fn wait(&mut self, completions: usize) -> Vec<(u64, i32)> {
        self.ring.submit_and_wait(completions).expect("io_uring_enter");
        self.completions().iter().map(|done| (done.user_data(), done.result())).collect()
    }

    pub(crate) fn completions(&mut self) -> Vec<cqueue::Entry> {
        self.ring.completion().collect()
    }

    /// `READ_FIXED` of the file into the memory.
    pub(crate) fn read_fixed(&mut self, slot: u16, memory: &Memory) -> i32 {
        let file = Fd(self.source.as_raw_fd());
        self.run(ReadFixed::new(file, memory.pointer(), LEN as u32, slot).build())
    }

    /// The same, in a forked child.
    pub(crate) fn read_fixed_in_child(&mut self, slot: u16, memory: &Memory) -> i32 {
        let file = Fd(self.source.as_raw_fd());
        let operation = ReadFixed::new(file, memory.pointer(), LEN as u32, slot).build();
        // SAFETY: the memory lives until the completion.
        if unsafe { self.ring.submission().push(&operation) }.is_err() {
            return -1;
        }
        match self.ring.submit_and_wait(1) {
            Ok(_) => self.ring.completion().next().map_or(-2, |done| done.result()),
            Err(_) => -3,
        }
    }

    /// `READ`.
    pub(crate) fn read(&mut self, memory: &Memory) -> i32 {
        self.run(Read::new(Fd(self.source.as_raw_fd()), memory.pointer(), LEN as u32).build())
    }

    /// `WRITE_FIXED` of the memory.
    pub(crate) fn write_fixed(&mut self, slot: u16, memory: &Memory) -> i32 {
        let file = Fd(self.sink.as_raw_fd());
        self.run(WriteFixed::new(file, memory.pointer(), LEN as u32, slot).build())
    }

    /// `WRITE`.
    pub(crate) fn write(&mut self, memory: &Memory) -> i32 {
        self.run(Write::new(Fd(self.sink.as_raw_fd()), memory.pointer(), LEN as u32).build())
    }

    /// The byte that was written.
    pub(crate) fn written(&self) -> u8 {
        let mut bytes = [0; LEN];
        self.sink.read_exact_at(&mut bytes, 0).expect("it was written");
        byte_of(&bytes)
    }

    /// Registers the memory as users do without a cache: once, in slot 0.
    pub(crate) fn register_by_hand(&self, memory: &Memory) {
        let buffer = libc::iovec { iov_base: memory.pointer().cast(), iov_len: LEN };
        // SAFETY: that the memory goes away is what is to be seen; the kernel keeps the pages.
        unsafe { self.ring.submitter().register_buffers(&[buffer]) }.expect("registered");
    }
}
