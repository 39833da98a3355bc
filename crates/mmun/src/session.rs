//! The session's memory: made, mapped and handed out as plain references.
//!
//! Everything in it is an atomic and every value of it is valid, so that references are sound whatever
//! the watched processes write; what the numbers *mean* is for the readers to distrust. Sizes are kept
//! here and never read back from the shared header.
//!
//! The memory is a sparse file: [`Session::entries`] asks the kernel which process entries were ever
//! touched instead of touching all.

// UNSAFETY: maps a memory file and makes references into it.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use mmu_notifier_primary::Strict;
use mmu_notifier_primary::session::{
    Header, MAGIC, PROCESSES, Process, ProcessState, Record, RingHead, SHARDS, Shard, VERSION, check,
    check_offset, checked_session_bytes, process_offset, ring_offset, session_bytes,
};

/// Fewer records than this in a ring and one burst fills it.
const RING_RECORDS_LEAST: usize = 1024;

/// What a session is to hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Refuse every n-th non-blocking start; 0: attach no refuser.
    pub refuse_every: u32,
    /// Catch what cannot be rewritten.
    pub strict: Strict,
    /// Bytes of records of single calls; `None`: only count.
    pub buffer: Option<u64>,
    /// Check registrations with the kernel.
    pub check: bool,
    /// Not 0: where processes are to send their oracles. Then the buffer holds brackets, too.
    pub audit: u64,
    /// Whether single calls are wanted.
    pub calls: bool,
}

/// A session that this process has made and reads.
#[derive(Debug)]
pub struct Session {
    memory: NonNull<u8>,
    bytes: usize,
    file: File,
    rings: usize,
    ring_records: usize,
}

// SAFETY: the mapping belongs to no thread, and all that is reachable through it are atomics.
unsafe impl Send for Session {}
// SAFETY: as above.
unsafe impl Sync for Session {}

impl Session {
    /// Makes a session and opens it for processes to come.
    pub fn create(wanted: Wanted, cpus: usize) -> Result<Session> {
        let (rings, ring_records) = ring_shape(wanted.buffer.unwrap_or(0), cpus);
        let bytes = match wanted.check {
            true => checked_session_bytes(rings, ring_records),
            false => session_bytes(rings, ring_records),
        };
        let file = memory_file().context("cannot make the memory file of the session (memfd_create)")?;
        grow(&file, bytes as u64).with_context(|| {
            format!("cannot give the session {bytes} bytes; is there a limit (ulimit -f)?")
        })?;

        // SAFETY: a new mapping at an address that the kernel chooses: it replaces nothing.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).with_context(|| {
                format!("cannot map the session of {bytes} bytes; is there a limit (ulimit -v)?")
            });
        }
        let memory = NonNull::new(memory.cast()).expect("mmap places nothing at address 0 unasked");
        let session = Session { memory, bytes, file, rings, ring_records };

        let header = session.header();
        header.version.store(VERSION, Ordering::Relaxed);
        header.refuse_every.store(wanted.refuse_every, Ordering::Relaxed);
        header.strict.store(wanted.strict.to_u32(), Ordering::Relaxed);
        header.rings.store(rings as u32, Ordering::Relaxed);
        header.ring_records.store(ring_records as u32, Ordering::Relaxed);
        header.check.store(wanted.check.into(), Ordering::Relaxed);
        header.records_wanted.store(wanted.calls.into(), Ordering::Relaxed);
        header.audit.store(wanted.audit, Ordering::Relaxed);
        // Pairs with the Acquire of who opens the session: the fields above are set before the magic is.
        header.magic.store(MAGIC, Ordering::Release);
        Ok(session)
    }

    /// Where other processes find it, as long as this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// The first page.
    pub fn header(&self) -> &Header {
        self.at(0)
    }

    /// Process entry `index`.
    pub fn process(&self, index: usize) -> &Process {
        assert!(index < PROCESSES);
        self.at(process_offset(index))
    }

    /// What was found of registrations, if they are checked.
    pub fn check(&self) -> Option<&check::Area> {
        let offset = check_offset(self.rings, self.ring_records);
        (offset + size_of::<check::Area>() <= self.bytes).then(|| self.at(offset))
    }

    /// How many rings there are.
    pub fn rings(&self) -> usize {
        self.rings
    }

    /// Bytes that all records take.
    pub fn record_bytes(&self) -> u64 {
        (self.rings * self.ring_records * size_of::<Record>()) as u64
    }

    /// Head and records of ring `index`; the number of records is a power of two.
    pub fn ring(&self, index: usize) -> (&RingHead, &[Record]) {
        assert!(index < self.rings);
        let offset = ring_offset(index, self.ring_records);
        let first: &Record = self.at(offset + size_of::<RingHead>());
        // SAFETY: `ring_records` records lie behind each ring's head, inside the mapping by the size
        // that it was made with; they are atomics and valid whatever they hold.
        let records = unsafe { std::slice::from_raw_parts(first, self.ring_records) };
        (self.at(offset), records)
    }

    /// The process entries that may be in use, ascending.
    pub fn entries(&self) -> Vec<usize> {
        let end = process_offset(PROCESSES);
        let mut entries = Vec::new();
        let mut offset = process_offset(0);
        while offset < end {
            // SAFETY: asks about a file that this session owns; no memory is involved.
            let data = unsafe { libc::lseek(self.file.as_raw_fd(), offset as i64, libc::SEEK_DATA) };
            let Ok(data) = usize::try_from(data) else { break };
            if data >= end {
                break;
            }
            let index = (data - process_offset(0)) / size_of::<Process>();
            entries.push(index);
            offset = process_offset(index + 1);
        }
        entries
    }

    /// The counters of process entry `index` that were ever touched. To read the others would make the kernel allocate
    /// them: a program of one thread has one set of eight.
    pub fn shards(&self, index: usize) -> impl Iterator<Item = &Shard> + Clone {
        let start = process_offset(index) + offset_of!(Process, shards);
        let end = start + size_of::<[Shard; SHARDS]>();
        // Where data begins at or behind an offset, or where it ends.
        let seek = |offset: usize, whence| {
            // SAFETY: as in `entries`.
            let found = unsafe { libc::lseek(self.file.as_raw_fd(), offset as i64, whence) };
            usize::try_from(found).unwrap_or(end)
        };
        let mut touched = [false; SHARDS];
        let mut data = seek(start, libc::SEEK_DATA);
        while data < end {
            let hole = seek(data, libc::SEEK_HOLE).max(data + 1);
            let shard = |offset: usize| (offset.min(end) - start) / size_of::<Shard>();
            touched[shard(data)..=shard(hole - 1).min(SHARDS - 1)].fill(true);
            data = seek(hole, libc::SEEK_DATA);
        }
        let shards = self.process(index).shards.iter();
        shards.zip(touched).filter(|(_, touched)| *touched).map(|(shard, _)| shard)
    }

    /// Zeroes process entry `index` and gives it back; the state goes to `Free` last, so that nobody can
    /// claim it before it is empty.
    pub fn free(&self, index: usize) {
        let offset = process_offset(index);
        let entry = self.process(index);
        // SAFETY: the entry is `size_of::<Process>()` bytes of atomics, page-aligned, and an atomic word
        // may be accessed as part of another split of the same bytes; `entry` keeps them borrowed.
        let words: &[AtomicU64] = unsafe {
            std::slice::from_raw_parts((&raw const *entry).cast(), size_of::<Process>() / size_of::<u64>())
        };
        // All but the first page goes back to the kernel, which is zeroing and saves memory.
        // SAFETY: concerns the file's bytes [offset + 4096, end of the entry), which no one claims to be
        // anything but numbers.
        let punched = unsafe {
            libc::fallocate(
                self.file.as_raw_fd(),
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                (offset + 4096) as i64,
                (size_of::<Process>() - 4096) as i64,
            )
        };
        let by_hand = if punched == 0 { 4096 / size_of::<u64>() } else { words.len() };
        for word in &words[1..by_hand] {
            word.store(0, Ordering::Relaxed);
        }
        entry.pid.store(0, Ordering::Relaxed);
        // Pairs with the Acquire of who claims the entry: it finds it empty.
        entry.state.store(ProcessState::Free as u32, Ordering::Release);
    }

    /// The `T` at `offset`.
    fn at<T>(&self, offset: usize) -> &T {
        assert!(offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= self.bytes);
        // SAFETY:
        // 1. in bounds and aligned by the assertion (the mapping itself is page-aligned);
        // 2. every `T` asked for in this module is a structure of atomics, for which all bytes are valid
        //    and others may write while we look;
        // 3. the mapping lives as long as `self`, which the reference borrows.
        unsafe { self.memory.add(offset).cast().as_ref() }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

/// Rings and records in each, for `bytes` of records: one ring for every CPU, unless they get too short.
fn ring_shape(bytes: u64, cpus: usize) -> (usize, usize) {
    let records = (bytes as usize / size_of::<Record>()).max(RING_RECORDS_LEAST);
    let rings = cpus.clamp(1, records / RING_RECORDS_LEAST);
    let each = records / rings;
    (rings, 1 << each.ilog2())
}

fn memory_file() -> io::Result<File> {
    // Kernels since 6.3 want to know that nobody will execute it; older ones do not know the flag.
    const MFD_NOEXEC_SEAL: u32 = 8;
    let create = |flags| {
        // SAFETY: the name is a terminated string.
        unsafe { libc::memfd_create(c"mmun-session".as_ptr(), flags) }
    };
    let mut fd = create(libc::MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if fd < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
        fd = create(libc::MFD_CLOEXEC);
    }
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Sets the file's size, also under a (soft) limit on file sizes, which is meant for other files than this.
/// Over the hard limit it is an error, because SIGXFSZ is ignored.
fn grow(file: &File, bytes: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to `limit` only.
    unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) };
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: reads `raised` only.
    unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raised) };
    let result = file.set_len(bytes);
    // SAFETY: reads `limit` only.
    unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) };
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        assert_eq!(ring_shape(0, 4), (1, 1024));
        assert_eq!(ring_shape(64 << 10, 64), (1, 1024));
        assert_eq!(ring_shape(8 << 20, 2), (2, 65536));
        assert_eq!(ring_shape(8 << 20, 3), (3, 32768), "rounded down to a power of two");
        assert_eq!(ring_shape(1 << 20, 64), (16, 1024));
    }

    #[test]
    fn entries_are_found_and_freed() {
        let session =
            Session::create(Wanted { refuse_every: 3, buffer: Some(1 << 20), ..Wanted::default() }, 2)
                .unwrap();
        assert_eq!(session.header().magic.load(Ordering::Acquire), MAGIC);
        assert_eq!(session.entries(), [0; 0]);
        for index in [0, 7, PROCESSES - 1] {
            session.process(index).state.store(ProcessState::Running as u32, Ordering::Relaxed);
            session.process(index).modules[9].start.store(5, Ordering::Relaxed);
        }
        assert_eq!(session.entries(), [0, 7, PROCESSES - 1]);
        session.free(7);
        assert_eq!(session.process(7).state.load(Ordering::Relaxed), 0);
        assert_eq!(session.process(7).modules[9].start.load(Ordering::Relaxed), 0);
        assert_eq!(session.process(0).modules[9].start.load(Ordering::Relaxed), 5);
        let (_, records) = session.ring(1);
        records.last().unwrap().time.store(1, Ordering::Relaxed);
    }

    #[test]
    fn only_touched_counters_are_read() {
        let session = Session::create(Wanted::default(), 1).unwrap();
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&session.file.metadata().unwrap());
        assert_eq!(session.shards(5).count(), 0);
        for touched in [&[0][..], &[7], &[3, 4], &[0, 7], &[0, 1, 2, 3, 4, 5, 6, 7]] {
            for &shard in touched {
                session.process(5).shards[shard].balance_starts.store(1, Ordering::Relaxed);
            }
            let before = blocks();
            let sum: u64 = session.shards(5).map(|shard| shard.balance_starts.load(Ordering::Relaxed)).sum();
            assert_eq!(sum, touched.len() as u64, "{touched:?}");
            assert_eq!(blocks(), before, "to look at them has allocated memory");
            session.free(5);
        }
    }

    #[test]
    fn others_can_open_it() {
        let session = Session::create(Wanted::default(), 1).unwrap();
        let seen = std::fs::metadata(session.path()).unwrap();
        assert_eq!(seen.len(), session.bytes as u64);
    }
}
