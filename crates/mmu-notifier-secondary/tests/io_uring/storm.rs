//! Threads that read and write with fixed buffers while others change the memory: every byte is checked.
//!
//! A buffer is used and changed under its lock, so what must be in it is always known. The cache knows nothing of these locks:
//! its entries come and go beside each other, requests without a lock race with every change, registrations are
//! held over changes, and a stale one would be found by the next who uses the buffer.
//!
//! `MMU_STORM_CHANGES` is how many changes it takes (`ci/uring-storm.sh`).

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use io_uring::opcode::{ReadFixed, WriteFixed};
use io_uring::types::Fd;
use mmu_notifier::{Event, Range};
use mmu_notifier_secondary::cache::{Access, Cache};
use mmu_notifier_secondary::io_uring::FixedBuffers;

use crate::cure::cache_of;
use crate::lab::Lab;
use crate::memory::{Backing, LEN, Memory, memfd};
use crate::world::World;

const BUFFERS: usize = 24;
const BLOCKS: usize = 16;
/// Registrations that a thread holds on to.
const HELD: usize = 3;

/// One that tells threads and rounds apart; not a good one.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Bytes that are not the same anywhere.
pub(crate) fn block(number: usize) -> Vec<u8> {
    let words = (0..LEN as u64 / 8)
        .map(|word| ((number as u64 + 1) << 32 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

struct Arena {
    buffers: Vec<Mutex<Memory>>,
    ranges: Vec<Range>,
    changes_left: AtomicU64,
    is_over: AtomicBool,
    changes: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    races: AtomicU64,
}

impl Arena {
    fn lock(&self, random: &mut Random) -> (Range, MutexGuard<'_, Memory>) {
        let at = random.below(BUFFERS);
        (self.ranges[at], self.buffers[at].lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Ends the storm also if its thread panics.
pub(crate) struct OverAtDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for OverAtDrop<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Relaxed);
        }
    }
}

/// How many changes a storm takes.
pub(crate) fn changes_wanted() -> u64 {
    let wanted = std::env::var("MMU_STORM_CHANGES").ok();
    wanted.map_or(20_000, |text| text.parse().expect("MMU_STORM_CHANGES is a number of changes"))
}

pub(crate) fn storm(name: &str, world: &World) {
    let changes = changes_wanted();
    let labs: Vec<Lab> = (0..2).map_while(|_| Lab::new("storm")).collect();
    if labs.len() < 2 {
        return;
    }
    let backing = |at: usize| if at.is_multiple_of(3) { Backing::Shared } else { Backing::Anonymous };
    let buffers: Vec<Memory> = (0..BUFFERS).map(|at| Memory::new(backing(at), 0)).collect();
    let arena = Arena {
        ranges: buffers.iter().map(Memory::range).collect(),
        buffers: buffers.into_iter().map(Mutex::new).collect(),
        changes_left: AtomicU64::new(changes),
        is_over: AtomicBool::new(false),
        changes: AtomicU64::new(0),
        reads: AtomicU64::new(0),
        writes: AtomicU64::new(0),
        races: AtomicU64::new(0),
    };
    let blocks: Vec<Vec<u8>> = (0..BLOCKS).map(block).collect();
    let caches: Vec<Cache<FixedBuffers>> = labs.iter().map(|lab| cache_of(world, &lab.ring)).collect();
    let mut labs = labs;

    std::thread::scope(|scope| {
        let (arena, blocks) = (&arena, &blocks[..]);
        for (seed, (lab, cache)) in labs.iter_mut().zip(&caches).enumerate() {
            scope.spawn(move || use_buffers(arena, cache, lab, blocks, Random(seed as u64 + 11)));
            scope.spawn(move || race(arena, cache, Random(seed as u64 + 23)));
            scope.spawn(move || change(arena, world, Random(seed as u64 + 37)));
        }
    });

    for (mut lab, cache) in labs.into_iter().zip(caches) {
        eprintln!("{}", cache.stats());
        // Everything is given back, and the kernel says so.
        for range in &arena.ranges {
            world.space().invalidate(*range, Event::Unmap, || ());
        }
        cache.flush();
        assert_eq!(cache.registrar().in_use(), 0);
        lab.ring.submit_and_wait(0).expect("io_uring_enter");
        let told: Vec<u64> = lab.ring.completion().map(|done| done.user_data()).collect();
        assert!(lab.others.drain(..).chain(told).all(|told| cache.registrar().released(told)));
        assert_eq!(cache.registrar().pinned(), 0);
    }
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    assert!(count(&arena.changes) >= changes);
    eprintln!(
        "storm, {name}: {} changes, {} reads and {} writes of {LEN} bytes, each byte checked, {} requests beside them",
        count(&arena.changes),
        count(&arena.reads),
        count(&arena.writes),
        count(&arena.races),
    );
}

/// Reads and writes, and looks at every byte.
fn use_buffers(
    arena: &Arena,
    cache: &Cache<FixedBuffers>,
    lab: &mut Lab,
    blocks: &[Vec<u8>],
    mut random: Random,
) {
    let _over = OverAtDrop(&arena.is_over);
    let (source, sink) = (memfd(), memfd());
    source.write_all_at(&blocks.concat(), 0).expect("a memfd takes bytes");
    let mut sent = vec![0; LEN];
    let mut held = VecDeque::new();
    while !arena.is_over.load(Relaxed) {
        let (range, mut memory) = arena.lock(&mut random);
        let number = random.below(blocks.len());
        let registration = cache.get(range, Access::ReadWrite).expect("it is mapped and can be written");
        let slot = registration.handle().index();
        if random.below(2) == 0 {
            let read = ReadFixed::new(Fd(source.as_raw_fd()), memory.pointer(), LEN as u32, slot);
            let result = lab.run(read.offset((number * LEN) as u64).build());
            assert_eq!(result, LEN as i32);
            assert!(memory.bytes() == &blocks[number][..], "what was read is not in {range}");
            arena.reads.fetch_add(1, Relaxed);
        } else {
            memory.bytes().copy_from_slice(&blocks[number]);
            let write = WriteFixed::new(Fd(sink.as_raw_fd()), memory.pointer(), LEN as u32, slot);
            assert_eq!(lab.run(write.build()), LEN as i32);
            sink.read_exact_at(&mut sent, 0).expect("it was written");
            assert!(sent == blocks[number], "what was written is not what is in {range}");
            arena.writes.fetch_add(1, Relaxed);
        }
        drop(memory);
        for told in lab.others.drain(..) {
            assert!(cache.registrar().released(told), "{told:#x}");
        }
        held.push_back(registration);
        if held.len() > random.below(HELD + 1) {
            held.pop_front();
        }
    }
}

/// Asks for registrations whatever becomes of the memory.
fn race(arena: &Arena, cache: &Cache<FixedBuffers>, mut random: Random) {
    let _over = OverAtDrop(&arena.is_over);
    let mut held = VecDeque::new();
    while !arena.is_over.load(Relaxed) {
        // What is not mapped at the moment cannot be registered.
        held.extend(cache.get(arena.ranges[random.below(BUFFERS)], Access::Write));
        if held.len() > random.below(HELD + 1) {
            held.pop_front();
        }
        arena.races.fetch_add(1, Relaxed);
    }
}

/// Changes the memory in every way.
fn change(arena: &Arena, world: &World, mut random: Random) {
    let _over = OverAtDrop(&arena.is_over);
    while !arena.is_over.load(Relaxed) {
        let (range, mut memory) = arena.lock(&mut random);
        let memory = &mut *memory;
        let made = match random.below(7) {
            0 => {
                world.change(range, Event::Unmap, || memory.unmap());
                world.change(range, Event::Unmap, || memory.map_over());
                2
            }
            1 => {
                world.change(range, Event::Unmap, || memory.map_over());
                1
            }
            2 => {
                world.change(range, Event::Clear, || memory.advise(libc::MADV_DONTNEED)).expect("madvise");
                1
            }
            3 => {
                world.change(range, Event::Unmap, || memory.move_away(0));
                // Something else is there for a moment, or nothing is.
                if random.below(2) == 0 {
                    world.change(range, Event::Unmap, || memory.map_over());
                    memory.fill(0x55);
                }
                world.change(range, Event::Unmap, || memory.move_back());
                2
            }
            4 => {
                world.change(range, Event::ProtectionVma, || memory.protect(libc::PROT_NONE));
                let rights = libc::PROT_READ | libc::PROT_WRITE;
                world.change(range, Event::ProtectionVma, || memory.protect(rights));
                2
            }
            // Only where the file has not been mapped over does it change the memory.
            5 if memory.has_file() => {
                world.change(range, Event::Clear, || memory.punch_hole());
                1
            }
            _ => {
                world.change(range, Event::Clear, || memory.advise(libc::MADV_DONTNEED)).expect("madvise");
                memory.fill(0xaa);
                1
            }
        };
        arena.changes.fetch_add(made, Relaxed);
        let left = arena.changes_left.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(made)));
        if left.is_ok_and(|left| left <= made) {
            arena.is_over.store(true, Relaxed);
        }
    }
}
