//! A device with memory of its own, and with pages for itself.

use std::sync::atomic::Ordering::SeqCst;

use mmu_notifier_secondary::device::Access;
use mmu_notifier_secondary::mirror::Fault;

use crate::buffer::{add, load, store};
use crate::device_memory::{Memory, PAGES};
use crate::world::World;

/// The device counts by reading and writing, as it knows no atomic operations; the processor counts by atomic ones. None is
/// lost, as the processor gets to the page between two of them only.
pub(crate) fn exclusive(world: &World) {
    const TIMES: u64 = 400;
    let (memory, mirror) = Memory::new(world);
    let processor = || {
        for time in 0..TIMES {
            add(memory.address(time as usize % 2));
            if time % 8 == 0 {
                std::thread::yield_now();
            }
        }
    };
    std::thread::scope(|scope| {
        let processor = scope.spawn(processor);
        let mut engine = mirror.engine().unwrap();
        for time in 0..TIMES {
            let address = memory.address(time as usize % 2);
            let count = |pointer| {
                let value = load(pointer);
                std::thread::yield_now();
                store(pointer, value + 1);
            };
            engine.access_alone(address, count).unwrap();
        }
        processor.join().unwrap();
    });
    assert_eq!([0, 1].map(|page| load(memory.address(page))), [TIMES; 2]);
    // At least what is read here was taken from the device.
    mirror.make_exclusive(memory.range(0..PAGES)).unwrap();
    let before = memory.given_back.load(SeqCst);
    assert!((0..PAGES).all(|page| memory.is_taken(page)));
    assert_eq!(load(memory.address(5)), 0);
    assert!(!memory.is_taken(5) && memory.is_taken(6) && memory.given_back.load(SeqCst) > before);
}

/// What the program may not write any more, the device may not either, though it had it for itself.
pub(crate) fn exclusive_mprotect(world: &World) {
    let (memory, mirror) = Memory::new(world);
    let mut engine = mirror.engine().unwrap();
    engine.access_alone(memory.address(1), |pointer| store(pointer, 7)).unwrap();
    memory.make_read_only();
    let address = memory.address(1);
    assert_eq!(engine.access_alone(address, |_| ()), Err(Fault::NotTaken { address }));
    let denied = Err(Fault::NotMapped { address, access: Access::Write });
    assert_eq!(engine.access(address, Access::Write, |_| ()), denied);
    assert_eq!((engine.access(address, Access::Read, load), load(address)), (Ok(7), 7));
}

/// There, where the device writes, and back again, with what is in it.
pub(crate) fn migrate(world: &World) {
    let (memory, mirror) = Memory::new(world);
    (0..PAGES).for_each(|page| store(memory.address(page), 10 + page as u64));
    mirror.fault(memory.range(0..PAGES), Access::Write).unwrap();
    mirror.migrate(memory.range(2..6), || memory.move_to_device(2..6)).unwrap();
    let mut engine = mirror.engine().unwrap();
    let mut frames = Vec::new();
    for page in 0..PAGES {
        let visit = |pointer| {
            frames.push(pointer);
            add(pointer)
        };
        assert_eq!(engine.access(memory.address(page), Access::ReadWrite, visit), Ok(10 + page as u64));
        assert_eq!(memory.is_moved(page), (2..6).contains(&page));
    }
    // Those that were moved are in another memory.
    let far = |a: usize, b: usize| frames[a].abs_diff(frames[b]) > PAGES * 4096;
    assert!(far(0, 2) && far(5, 6) && !far(2, 5) && !far(0, 7));
    mirror.migrate(memory.range(0..PAGES), || memory.move_back(0..PAGES)).unwrap();
    assert!((0..PAGES).all(|page| !memory.is_moved(page) && load(memory.address(page)) == 11 + page as u64));
    assert_eq!(memory.given_back.load(SeqCst), 0);
}

/// Who wants to have a page that is at the device gets it back, with what the device has written.
pub(crate) fn migrate_fault(world: &World) {
    let (memory, mirror) = Memory::new(world);
    let mut engine = mirror.engine().unwrap();
    for round in 0..10 {
        mirror.migrate(memory.range(0..PAGES), || memory.move_to_device(0..PAGES)).unwrap();
        for page in 0..PAGES {
            engine.access(memory.address(page), Access::Write, |pointer| store(pointer, round)).unwrap();
        }
        let zapped = mirror.stats().zapped;
        for page in 0..PAGES {
            assert_eq!(load(memory.address(page)), round);
            assert!(!memory.is_moved(page));
        }
        assert!(mirror.stats().zapped >= zapped + PAGES as u64);
        assert_eq!(engine.access(memory.address(1), Access::Read, load), Ok(round));
    }
    assert_eq!(memory.given_back.load(SeqCst), 10 * PAGES);
}

/// Back and forth beside accesses of the device and of the processor: none is lost.
pub(crate) fn migrate_multiple(world: &World) {
    const TIMES: u64 = 500;
    let (memory, mirror) = Memory::new(world);
    std::thread::scope(|scope| {
        let (memory, mirror) = (&memory, &mirror);
        scope.spawn(move || {
            for round in 0..100 {
                let first = round % (PAGES - 2);
                let pages = first..first + 2;
                let to_device = || memory.move_to_device(pages.clone());
                mirror.migrate(memory.range(pages.clone()), to_device).unwrap();
            }
        });
        scope.spawn(move || {
            for time in 0..TIMES {
                add(memory.address(time as usize % PAGES));
            }
        });
        let mut engine = mirror.engine().unwrap();
        for time in 0..TIMES {
            engine.access(memory.address(time as usize % PAGES), Access::ReadWrite, add).unwrap();
        }
    });
    let counted: u64 = (0..PAGES).map(|page| load(memory.address(page))).sum();
    assert_eq!(counted, 2 * TIMES);
}

/// The address space goes while pages are at the device: the device gets to nothing any more.
pub(crate) fn migrate_release(world: &World) {
    let (memory, mirror) = Memory::new(world);
    mirror.migrate(memory.range(0..2), || memory.move_to_device(0..2)).unwrap();
    mirror.fault(memory.range(0..PAGES), Access::Read).unwrap();
    memory.space().release();
    let mut engine = mirror.engine().unwrap();
    assert_eq!(engine.access(memory.address(0), Access::Read, load), Err(Fault::Released));
    assert_eq!(mirror.stats().zapped, PAGES as u64);
}
