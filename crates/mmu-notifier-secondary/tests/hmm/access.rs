//! A device at the program's memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use mmu_notifier::{AddressSpace, Event, Range};
use mmu_notifier_secondary::device::Access;
use mmu_notifier_secondary::mirror::{Engine, Fault, Mirror};

use crate::buffer::{Backing, Buffer, Own, READ_WRITE, load, store};
use crate::child::Child;
use crate::world::World;

const PAGES: usize = 16;

pub(crate) fn mirror(space: &AddressSpace, range: Range) -> Mirror {
    Mirror::new(space, range, Own).expect("pages")
}

pub(crate) fn read(engine: &mut Engine<'_>, buffer: &Buffer, page: usize) -> Result<u64, Fault> {
    engine.access(buffer.address(page), Access::Read, load)
}

pub(crate) fn write(engine: &mut Engine<'_>, buffer: &Buffer, page: usize, value: u64) -> Result<(), Fault> {
    engine.access(buffer.address(page), Access::Write, |pointer| store(pointer, value))
}

fn not_mapped<T>(buffer: &Buffer, page: usize, access: Access) -> Result<T, Fault> {
    Err(Fault::NotMapped { address: buffer.address(page), access })
}

/// The device reads what the processor has written.
fn is_read(world: &World, buffer: &Buffer) {
    (0..buffer.pages).for_each(|page| buffer.write(page, 100 + page as u64));
    let mirror = mirror(world.space(), buffer.all());
    mirror.fault(buffer.all(), Access::Read).unwrap();
    let mut engine = mirror.engine().unwrap();
    for page in 0..buffer.pages {
        assert_eq!(read(&mut engine, buffer, page), Ok(100 + page as u64));
    }
    assert_eq!(mirror.stats().misses, 0);
}

/// The processor reads what the device has written.
fn is_written(world: &World, buffer: &Buffer) {
    let mirror = mirror(world.space(), buffer.all());
    mirror.fault(buffer.all(), Access::Write).unwrap();
    let mut engine = mirror.engine().unwrap();
    for page in 0..buffer.pages {
        write(&mut engine, buffer, page, 200 + page as u64).unwrap();
        assert_eq!(buffer.read(page), 200 + page as u64);
    }
    assert_eq!(mirror.stats().misses, 0);
}

pub(crate) fn anon_read(world: &World) {
    let buffer = Buffer::new(PAGES);
    is_read(world, &buffer);
    // And zeroes where nobody has written.
    let fresh = Buffer::new(1);
    let mirror = mirror(world.space(), fresh.all());
    assert_eq!(read(&mut mirror.engine().unwrap(), &fresh, 0), Ok(0));
}

/// Where the processor must not read, the device does not; and where it may again, the device finds what was there.
pub(crate) fn anon_read_prot(world: &World) {
    let buffer = Buffer::new(PAGES);
    is_read(world, &buffer);
    let mirror = mirror(world.space(), buffer.all());
    mirror.fault(buffer.all(), Access::Read).unwrap();
    let mut engine = mirror.engine().unwrap();
    buffer.protect(world, 0..PAGES / 2, libc::PROT_NONE);
    for page in 0..PAGES / 2 {
        assert_eq!(read(&mut engine, &buffer, page), not_mapped(&buffer, page, Access::Read));
    }
    assert_eq!(read(&mut engine, &buffer, PAGES / 2), Ok(100 + PAGES as u64 / 2));
    buffer.protect(world, 0..PAGES / 2, libc::PROT_READ);
    assert_eq!(read(&mut engine, &buffer, 0), Ok(100));
}

/// The same memory again and again, replaced between.
pub(crate) fn anon_read_multiple(world: &World) {
    let buffer = Buffer::new(PAGES);
    let mirror = mirror(world.space(), buffer.all());
    let mut engine = mirror.engine().unwrap();
    for round in 0..10 {
        (0..PAGES).for_each(|page| buffer.write(page, round));
        for page in 0..PAGES {
            assert_eq!(read(&mut engine, &buffer, page), Ok(round));
        }
        buffer.unmap(world, 0..PAGES);
        assert_eq!(read(&mut engine, &buffer, 3), not_mapped(&buffer, 3, Access::Read));
        buffer.map(0..PAGES).unwrap();
    }
}

pub(crate) fn anon_write(world: &World) {
    is_written(world, &Buffer::new(PAGES));
}

/// Where the processor must not write, the device does not, and what is there stays.
pub(crate) fn anon_write_prot(world: &World) {
    let buffer = Buffer::new(PAGES);
    is_written(world, &buffer);
    let mirror = mirror(world.space(), buffer.all());
    mirror.fault(buffer.all(), Access::Write).unwrap();
    let mut engine = mirror.engine().unwrap();
    buffer.protect(world, 0..PAGES, libc::PROT_READ);
    for page in 0..PAGES {
        assert_eq!(write(&mut engine, &buffer, page, 1), not_mapped(&buffer, page, Access::Write));
        assert_eq!(read(&mut engine, &buffer, page), Ok(200 + page as u64));
        assert_eq!(buffer.read(page), 200 + page as u64);
    }
    buffer.protect(world, 0..PAGES, READ_WRITE);
    write(&mut engine, &buffer, 0, 1).unwrap();
    assert_eq!(buffer.read(0), 1);
}

/// What parent and child find in each other's memory behind the writes of both devices.
fn child_writes(world: &World, buffer: &Buffer, is_shared: bool) {
    (0..PAGES).for_each(|page| buffer.write(page, 300));
    let mirror = mirror(world.space(), buffer.all());
    mirror.fault(buffer.all(), Access::Write).unwrap();
    let fork = || {
        Child::that(|| {
            // A mirror of its own: the parent's hears of nothing here.
            let space = match world {
                World::ByHand(_) => AddressSpace::new(),
                World::Intercepted(space) => space.clone(),
            };
            let parents = mirror.fault(buffer.all(), Access::Read);
            let mirror = Mirror::new(&space, buffer.all(), Own).expect("pages");
            let mut engine = mirror.engine().expect("one");
            let good = (0..PAGES).all(|page| {
                read(&mut engine, buffer, page) == Ok(300)
                    && write(&mut engine, buffer, page, 400).is_ok()
                    && buffer.read(page) == 400
            });
            // By hand nobody has said that there was a fork.
            let is_right = parents.is_err() || matches!(world, World::ByHand(_));
            u8::from(!(good && is_right))
        })
        .expect("a child")
    };
    let child = world.change(buffer.all(), Event::ProtectionPage, fork);
    assert_eq!(child.status(), 0, "what the child saw");
    assert!(mirror.stats().zapped >= PAGES as u64, "a fork makes pages read-only");
    let expected = if is_shared { 400 } else { 300 };
    let mut engine = mirror.engine().unwrap();
    for page in 0..PAGES {
        assert_eq!(buffer.read(page), expected);
        assert_eq!(read(&mut engine, buffer, page), Ok(expected));
        write(&mut engine, buffer, page, 500).unwrap();
        assert_eq!(buffer.read(page), 500);
    }
}

pub(crate) fn anon_write_child(world: &World) {
    child_writes(world, &Buffer::new(PAGES), false);
}

pub(crate) fn anon_write_child_shared(world: &World) {
    child_writes(world, &Buffer::of(Backing::Shared, PAGES).expect("memory"), true);
}

pub(crate) fn anon_write_huge(world: &World) {
    let buffer = Buffer::of(Backing::Huge, 1024).expect("memory");
    is_written(world, &buffer);
    is_read(world, &buffer);
    // Part of a huge page.
    let mirror = mirror(world.space(), buffer.all());
    mirror.fault(buffer.all(), Access::Read).unwrap();
    buffer.discard(world, 3..4);
    let mut engine = mirror.engine().unwrap();
    assert_eq!([2, 3, 4].map(|page| read(&mut engine, &buffer, page)), [Ok(102), Ok(0), Ok(104)]);
    assert_eq!(mirror.stats().misses, 1);
}

pub(crate) fn anon_write_hugetlbfs(world: &World) {
    let Some(buffer) = Buffer::of(Backing::HugeTlb, 512) else {
        eprintln!("SKIPPED: no pool of huge pages (/proc/sys/vm/nr_hugepages)");
        return;
    };
    is_written(world, &buffer);
    is_read(world, &buffer);
}

pub(crate) fn file_read(world: &World) {
    is_read(world, &Buffer::of(Backing::File, PAGES).expect("memory"));
}

pub(crate) fn file_write(world: &World) {
    is_written(world, &Buffer::of(Backing::File, PAGES).expect("memory"));
}

/// Memory is unmapped and mapped again while devices read it; none ever finds what was there before.
pub(crate) fn anon_teardown(world: &World) {
    const ROUNDS: u64 = 300;
    let buffer = Buffer::new(PAGES);
    let mirror = mirror(world.space(), buffer.all());
    // Which round has begun to write, and which is written.
    let (begun, written, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (buffer, mirror, begun, written, done) = (&buffer, &mirror, &begun, &written, &done);
            scope.spawn(move || {
                let mut engine = mirror.engine().unwrap();
                let mut page = thread;
                while !done.load(SeqCst) {
                    page = (page + 7) % PAGES;
                    let oldest = written.load(SeqCst);
                    match read(&mut engine, buffer, page) {
                        // Nobody has written yet.
                        Ok(0) | Err(Fault::NotMapped { .. } | Fault::Unsettled { .. }) => {}
                        Ok(value) => assert!((oldest..=begun.load(SeqCst)).contains(&value)),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for round in 1.. {
            // As long as it takes to meet accesses.
            if round >= ROUNDS && mirror.stats().zapped > 0 {
                break;
            }
            begun.store(round, SeqCst);
            buffer.unmap(world, 0..PAGES);
            buffer.map(0..PAGES).unwrap();
            (0..PAGES).for_each(|page| buffer.write(page, round));
            written.store(round, SeqCst);
        }
        done.store(true, SeqCst);
    });
}

pub(crate) fn snapshot(world: &World) {
    let buffer = Buffer::new(6);
    // Read, written, nothing, unmapped, no rights, read-only.
    let mirror = mirror(world.space(), buffer.all());
    [0, 1, 3, 4, 5].iter().for_each(|page| buffer.write(*page, 1));
    buffer.unmap(world, 3..4);
    buffer.protect(world, 4..5, libc::PROT_NONE);
    buffer.protect(world, 5..6, libc::PROT_READ);
    let seen = mirror.snapshot(buffer.all()).unwrap();
    let rights: Vec<_> = seen.iter().map(|page| page.map(|page| page.is_writable())).collect();
    assert_eq!(rights, [Some(true), Some(true), None, None, None, Some(false)]);
    // It has made nothing present, and brought nothing in.
    assert_eq!(mirror.snapshot(buffer.range(2..3)).unwrap(), [None]);
    buffer.unmap(world, 0..1);
    assert_eq!((mirror.snapshot(buffer.range(0..1)).unwrap(), mirror.stats().zapped), (vec![None], 0));
}

/// Two devices mirror the same memory.
pub(crate) fn double_map(world: &World) {
    let buffer = Buffer::new(PAGES);
    let [one, two] = [(), ()].map(|()| mirror(world.space(), buffer.all()));
    let mut engines = [one.engine().unwrap(), two.engine().unwrap()];
    for page in 0..PAGES {
        write(&mut engines[0], &buffer, page, page as u64).unwrap();
        assert_eq!(read(&mut engines[1], &buffer, page), Ok(page as u64));
    }
    buffer.discard(world, 0..PAGES / 2);
    assert!(one.stats().zapped == PAGES as u64 / 2 && two.stats().zapped == PAGES as u64 / 2);
    for engine in &mut engines {
        assert_eq!(read(engine, &buffer, 0), Ok(0));
        assert_eq!(read(engine, &buffer, PAGES - 1), Ok(PAGES as u64 - 1));
    }
}
