//! Fixed buffers of `io_uring`, through the registration cache: data is read into memory that changes.

// UNSAFETY: submits reads into memory that nothing refers to.
#![expect(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use io_uring::IoUring;
use io_uring::opcode::ReadFixed;
use io_uring::types::Fd;
use mmu_notifier::{AddressSpace, Event, PAGE_SIZE, Range};
use mmu_notifier_secondary::cache::{Access, Cache, Options};
use mmu_notifier_secondary::io_uring::FixedBuffers;

use super::counts::{Counts, add};
use super::memory::{EVICTABLE, Memory, PAGES};
use super::{Random, until};

/// Pages of a buffer.
const BUFFER: usize = 2;
const LEN: usize = BUFFER * PAGE_SIZE;
/// Different contents to read.
const BLOCKS: usize = 8;
/// No completion of a release looks like that.
const MINE: u64 = 7;

/// A ring with a cache, and a file to read from.
pub(crate) struct Ring {
    ring: IoUring,
    cache: Cache<FixedBuffers>,
    file: File,
}

impl Ring {
    /// None, and a line that says so, where there is no `io_uring`.
    pub(crate) fn new(space: &AddressSpace, memory: &Memory) -> Option<Ring> {
        let ring = match IoUring::new(8) {
            Ok(ring) => ring,
            Err(error) => {
                eprintln!("SKIPPED: fixed buffers: io_uring is not available here: {error}");
                return None;
            }
        };
        let options = Options { self_check: memory.has_frames(), ..Options::default() };
        let cache = Cache::new(space, FixedBuffers::new(&ring, 128).expect("a table of buffers"), options);
        // SAFETY: the name is a string.
        let file = unsafe { libc::memfd_create(c"blocks".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(file >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        // SAFETY: a descriptor that nobody has.
        let file = unsafe { File::from_raw_fd(file) };
        for number in 0..BLOCKS {
            file.write_all_at(&block(number), (number * LEN) as u64).expect("a memfd takes bytes");
        }
        Some(Ring { ring, cache, file })
    }

    pub(crate) fn work(&mut self, memory: &Memory, counts: &Counts, over: &AtomicBool) {
        let blocks: Vec<Vec<u8>> = (0..BLOCKS).map(block).collect();
        let mut copy = vec![0; LEN];
        until(over, |random| self.read(memory, counts, &blocks, &mut copy, random), 20);
    }

    /// Reads a block into some pages. If they were the same until it has been looked at, it is there.
    fn read(
        &mut self,
        memory: &Memory,
        counts: &Counts,
        blocks: &[Vec<u8>],
        copy: &mut [u8],
        random: &mut Random,
    ) {
        let Ring { ring, cache, file } = self;
        let (page, number) = (random.below((PAGES + EVICTABLE) / BUFFER) * BUFFER, random.below(BLOCKS));
        let range = memory.range(page..page + BUFFER);
        // What is not mapped, or may not be written, cannot be registered.
        let Ok(registration) = cache.get(range, Access::ReadWrite) else { return };
        let slot = registration.handle().index();
        let read = ReadFixed::new(Fd(file.as_raw_fd()), range.start() as *mut u8, LEN as u32, slot);
        let read = read.offset((number * LEN) as u64).build().user_data(MINE);
        // SAFETY: the pages are pinned until the completion, and nothing refers to them.
        unsafe { ring.submission().push(&read) }.expect("the queue has room");
        {
            let _submitting = cache.registrar().submitting();
            ring.submit().expect("io_uring_enter");
        }
        let mut result = None;
        while result.is_none() {
            ring.submit_and_wait(1).expect("io_uring_enter");
            for done in ring.completion() {
                if !cache.registrar().released(done.user_data()) {
                    result = Some(done.result());
                }
            }
        }
        assert_eq!(result, Some(LEN as i32), "a read into {range}");
        add(&counts.reads);
        if memory.copy(range, copy) && registration.is_current() {
            assert!(copy == blocks[number], "what was read is not in {range}");
            add(&counts.compared);
        }
    }

    /// All buffers are taken out, and the kernel says that it has let go of them.
    pub(crate) fn give_back(
        mut self,
        space: &AddressSpace,
        memory: &Memory,
        counts: &Counts,
    ) -> Result<(), String> {
        space.invalidate(memory.range(0..PAGES + EVICTABLE), Event::Clear, || ());
        self.cache.flush();
        // There may be more of them than the queue has room for.
        for _ in 0..1000 {
            self.ring.submit_and_wait(0).map_err(|error| error.to_string())?;
            for done in self.ring.completion() {
                assert!(self.cache.registrar().released(done.user_data()));
            }
            if self.cache.registrar().pinned() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let (stats, registrar) = (self.cache.stats(), self.cache.registrar());
        let left = (stats.stale, stats.entries, stats.unreleased, registrar.in_use(), registrar.pinned());
        if counts.reads.load(SeqCst) > 20 && counts.compared.load(SeqCst) == 0 {
            return Err("no read was undisturbed".to_owned());
        }
        if left == (0, 0, 0, 0, 0) { Ok(()) } else { Err(format!("fixed buffers: {left:?} left: {stats}")) }
    }
}

/// Bytes that are not the same anywhere.
fn block(number: usize) -> Vec<u8> {
    let words = (0..LEN as u64 / 8)
        .map(|word| ((number as u64 + 1) << 32 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Another ring, with another cache, for some registrations.
pub(crate) fn visit(space: &AddressSpace, memory: &Memory, random: &mut Random) {
    let Ok(ring) = IoUring::new(4) else { return };
    let buffers = FixedBuffers::new(&ring, 8).expect("a table of buffers");
    let cache = Cache::new(space, buffers, Options::default());
    for _ in 0..10 {
        let page = random.below(PAGES + EVICTABLE);
        let range: Range = memory.range(page..page + 1);
        let registration = cache.get(range, Access::ReadWrite);
        assert!(
            registration.is_err() || registration.is_ok_and(|registration| registration.range() == range)
        );
    }
}
