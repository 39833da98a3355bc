//! Load with changes that wait for whoever uses the memory: a registration that is held keeps the memory where it is.
//!
//! Nobody but the cache keeps who changes a buffer away from who reads into it and looks at it. If a change did not wait, the
//! bytes would be others, or the process would die.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use io_uring::opcode::ReadFixed;
use io_uring::types::Fd;
use mmu_notifier::{Event, Range};
use mmu_notifier_secondary::cache::{Access, Cache, Options as CacheOptions, Wait};
use mmu_notifier_secondary::io_uring::{FixedBuffers, Operation, Options};

use crate::lab::Lab;
use crate::memory::{Backing, LEN, Memory, copy_of, memfd};
use crate::storm::{OverAtDrop, Random, block, changes_wanted};
use crate::world::World;

const BUFFERS: usize = 6;
const BLOCKS: usize = 8;
/// Changes for each request.
const AHEAD: u64 = 4;

struct Arena {
    /// One changes a buffer at a time.
    buffers: Vec<Mutex<Memory>>,
    /// One uses a buffer at a time; that is another lock.
    users: Vec<Mutex<()>>,
    places: Vec<(Range, usize)>,
    wanted: u64,
    is_over: AtomicBool,
    changes: AtomicU64,
    reads: AtomicU64,
    unmapped: AtomicU64,
}

pub(crate) fn storm(name: &str, world: &World) {
    let labs: Vec<Lab> = (0..2).map_while(|_| Lab::new("storm of pins")).collect();
    if labs.len() < 2 {
        return;
    }
    let buffers: Vec<Memory> = (0..BUFFERS).map(|_| Memory::new(Backing::Anonymous, 0)).collect();
    let arena = Arena {
        places: buffers.iter().map(|memory| (memory.range(), memory.pointer() as usize)).collect(),
        users: buffers.iter().map(|_| Mutex::new(())).collect(),
        buffers: buffers.into_iter().map(Mutex::new).collect(),
        wanted: changes_wanted() / 4,
        is_over: AtomicBool::new(false),
        changes: AtomicU64::new(0),
        reads: AtomicU64::new(0),
        unmapped: AtomicU64::new(0),
    };
    let blocks: Vec<Vec<u8>> = (0..BLOCKS).map(block).collect();
    let options = Options { slots: 32, wait: Wait::UntilUnused, ..Options::default() };
    let cache_of = |lab: &Lab| {
        let buffers = FixedBuffers::with(&lab.ring, options).expect("a ring of our own");
        Cache::new(world.space(), buffers, CacheOptions { entries: 16, ..CacheOptions::default() })
    };
    std::thread::scope(|scope| {
        let (arena, blocks) = (&arena, &blocks[..]);
        for (seed, lab) in labs.into_iter().enumerate() {
            let cache = cache_of(&lab);
            scope.spawn(move || read(arena, &cache, lab, blocks, Random(seed as u64 + 5)));
            scope.spawn(move || change(arena, world, Random(seed as u64 + 17)));
        }
    });
    eprintln!(
        "pins, {name}: {} changes, {} reads of {LEN} bytes, each byte checked, {} times nothing was there to register",
        arena.changes.load(Relaxed),
        arena.reads.load(Relaxed),
        arena.unmapped.load(Relaxed),
    );
    assert!(arena.changes.load(Relaxed) >= arena.wanted && arena.reads.load(Relaxed) > 0);
}

/// Reads into buffers and looks at them.
fn read(arena: &Arena, cache: &Cache<FixedBuffers>, mut lab: Lab, blocks: &[Vec<u8>], mut random: Random) {
    let _over = OverAtDrop(&arena.is_over);
    let source = memfd();
    source.write_all_at(&blocks.concat(), 0).expect("a memfd takes bytes");
    while !arena.is_over.load(Relaxed) {
        let at = random.below(BUFFERS);
        let (range, pointer) = arena.places[at];
        let _mine = arena.users[at].lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(registration) = cache.get(range, Access::ReadWrite) else {
            arena.unmapped.fetch_add(1, Relaxed);
            continue;
        };
        let operation = Operation::new(registration, Lab::MINE);
        let number = random.below(BLOCKS);
        let read = ReadFixed::new(Fd(source.as_raw_fd()), pointer as *mut u8, LEN as u32, operation.slot());
        match lab.run(read.offset((number * LEN) as u64).build()) {
            result if result == LEN as i32 => {
                assert!(copy_of(pointer as *const u8) == blocks[number], "what was read is not in {range}");
                arena.reads.fetch_add(1, Relaxed);
            }
            result => assert_eq!(result, -libc::ECANCELED, "a change was faster"),
        }
        drop(operation);
        for told in lab.others.drain(..) {
            assert!(cache.registrar().released(told), "{told:#x}");
        }
    }
}

/// Changes buffers, and never writes to them.
fn change(arena: &Arena, world: &World, mut random: Random) {
    let _over = OverAtDrop(&arena.is_over);
    while !arena.is_over.load(Relaxed) {
        // Not so far ahead that there is nobody to wait for.
        let asked = arena.reads.load(Relaxed) + arena.unmapped.load(Relaxed);
        if arena.changes.load(Relaxed) > AHEAD * (asked + 1) {
            std::thread::yield_now();
            continue;
        }
        let at = random.below(BUFFERS);
        let range = arena.places[at].0;
        let mut memory = arena.buffers[at].lock().unwrap_or_else(PoisonError::into_inner);
        let memory = &mut *memory;
        match random.below(5) {
            0 => {
                world.change(range, Event::Unmap, || memory.unmap());
                world.change(range, Event::Unmap, || memory.map_over());
            }
            1 => world.change(range, Event::Unmap, || memory.map_over()),
            2 => world.change(range, Event::Clear, || memory.advise(libc::MADV_DONTNEED)).expect("madvise"),
            3 => {
                world.change(range, Event::Unmap, || memory.move_away(0));
                world.change(range, Event::Unmap, || memory.move_back());
            }
            _ => {
                let rights = libc::PROT_READ | libc::PROT_WRITE;
                world.change(range, Event::ProtectionVma, || memory.protect(libc::PROT_READ));
                world.change(range, Event::ProtectionVma, || memory.protect(rights));
            }
        }
        if arena.changes.fetch_add(1, Relaxed) + 1 >= arena.wanted {
            arena.is_over.store(true, Relaxed);
        }
    }
}
