//! The same changes, with the registration from a cache that is told of them.

use mmu_notifier::Event;
use mmu_notifier_secondary::cache::{Access, Cache, Options};
use mmu_notifier_secondary::io_uring::FixedBuffers;

use io_uring::IoUring;

use crate::child::Child;
use crate::lab::{FILE, Lab, ring};
use crate::memory::{Backing, LEN, Memory};
use crate::rows::{OLD, ROWS, Row};
use crate::world::World;

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

pub(crate) fn cache_of(world: &World, ring: &IoUring) -> Cache<FixedBuffers> {
    let buffers = FixedBuffers::new(ring, 64).expect("a ring of our own");
    Cache::new(world.space(), buffers, Options { entries: 32, ..Options::default() })
}

/// Uses the memory, changes it, and operates: once with the first registration let go of, once with it still held.
fn cached(row: &Row, world: &World, operate: impl Fn(&mut Lab, &Cache<FixedBuffers>, &mut Memory)) {
    for held in [false, true] {
        let Some(mut lab) = Lab::new(row.name) else { return };
        let mut memory = Memory::new(row.backing, OLD);
        let cache = cache_of(world, &lab.ring);
        let first = cache.get(memory.range(), Access::ReadWrite).expect("registered");
        assert_eq!(lab.write_fixed(first.handle().index(), &memory), LEN as i32);
        let first = held.then_some(first);
        let changed = match row.event {
            Some(event) => world.change(memory.range(), event, || (row.change)(&mut memory)),
            None => (row.change)(&mut memory),
        };
        match changed {
            Err(error) => return eprintln!("SKIPPED: {}: {error}", row.name),
            Ok(_child) => operate(&mut lab, &cache, &mut memory),
        }
        if row.rights == READ_WRITE {
            // It was registered anew if there was something to be told of, and only then.
            let survives = matches!(row.event, None | Some(Event::ProtectionPage));
            assert_eq!(cache.stats().misses, if survives { 1 } else { 2 }, "{}", row.name);
        }
        drop(first);
        cache.flush();
        assert!(cache.registrar().in_use() <= 1, "{}: {:?}", row.name, cache.registrar());
    }
}

/// By a fixed buffer if the memory can be one, else by its address: as a program would.
fn read(lab: &mut Lab, cache: &Cache<FixedBuffers>, memory: &Memory) -> (bool, i32) {
    match cache.get(memory.range(), Access::Write) {
        Ok(registration) => (true, lab.read_fixed(registration.handle().index(), memory)),
        Err(_) => (false, lab.read(memory)),
    }
}

fn write(lab: &mut Lab, cache: &Cache<FixedBuffers>, memory: &Memory) -> (bool, i32) {
    match cache.get(memory.range(), Access::Read) {
        Ok(registration) => (true, lab.write_fixed(registration.handle().index(), memory)),
        Err(_) => (false, lab.write(memory)),
    }
}

pub(crate) fn what_is_read_is_there(world: &World) {
    if ring("what_is_read_is_there").is_none() {
        return;
    }
    for row in ROWS {
        let name = row.name;
        cached(row, world, |lab, cache, memory| {
            let read = read(lab, cache, memory);
            if row.rights == READ_WRITE {
                assert_eq!(read, (true, LEN as i32), "{name}");
                assert_eq!(memory.byte(), FILE, "{name}");
            } else {
                assert_eq!(read, (false, -libc::EFAULT), "{name}: it obeys the protection");
                memory.protect(READ_WRITE);
                assert_eq!(memory.byte(), OLD, "{name}");
            }
        });
    }
}

pub(crate) fn what_is_written_is_what_is_there(world: &World) {
    if ring("what_is_written_is_what_is_there").is_none() {
        return;
    }
    for row in ROWS {
        let name = row.name;
        cached(row, world, |lab, cache, memory| {
            let write = write(lab, cache, memory);
            match row.rights {
                libc::PROT_NONE => {
                    assert_eq!(write, (false, -libc::EFAULT), "{name}: it obeys the protection");
                }
                rights => {
                    assert_eq!(write, (rights == READ_WRITE, LEN as i32), "{name}");
                    assert_eq!(lab.written(), memory.byte(), "{name}");
                }
            }
        });
    }
}

/// It gets no registration of the parent's, and with a ring of its own it reads into its own memory.
pub(crate) fn a_child_has_no_part_in_the_cache(world: &World) {
    let Some(mut lab) = Lab::new("a_child_has_no_part_in_the_cache") else { return };
    let memory = Memory::new(Backing::Anonymous, OLD);
    let cache = cache_of(world, &lab.ring);
    let first = cache.get(memory.range(), Access::ReadWrite).expect("registered");
    let child = Child::that(|| {
        if cache.get(memory.range(), Access::Write).is_ok() {
            return 1;
        }
        let Some(mut own) = Lab::new("in the child") else { return 2 };
        let cache = cache_of(world, &own.ring);
        let Ok(registration) = cache.get(memory.range(), Access::Write) else { return 3 };
        match own.read_fixed(registration.handle().index(), &memory) {
            result if result == LEN as i32 => memory.first(),
            _ => 4,
        }
    });
    assert_eq!(child.expect("fork").status(), FILE, "what the child sees");
    assert_eq!(memory.byte(), OLD, "what the parent sees");
    drop(first);
    assert_eq!(read(&mut lab, &cache, &memory), (true, LEN as i32));
    assert_eq!(memory.byte(), FILE);
    assert_eq!(cache.stats().misses, 1, "it is still registered");
}
