//! Everything at once: no access of a device reaches a page after the start of its change has returned. One that did would
//! be a segmentation fault, a write through a protection, or a word in somebody else's page.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use mmu_notifier_secondary::device::Access;
use mmu_notifier_secondary::mirror::Fault;

use crate::access::mirror;
use crate::buffer::{Buffer, READ_WRITE, add, load};
use crate::world::World;

const PAGES: usize = 12;

/// Numbers that look random.
fn below(state: &mut u64, limit: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize % limit
}

pub(crate) fn under_load(world: &World) {
    let buffer = Buffer::new(PAGES);
    let mirror = mirror(world.space(), buffer.all());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (buffer, mirror, done) = (&buffer, &mirror, &done);
        let devices: Vec<_> = (0..2)
            .map(|thread| {
                scope.spawn(move || {
                    let (mut engine, mut random) = (mirror.engine().unwrap(), thread);
                    // As long as it takes to meet changes.
                    for time in 0.. {
                        if time >= 4_000 && mirror.stats().zapped >= 100 {
                            break;
                        }
                        let page = below(&mut random, PAGES);
                        let used = match below(&mut random, 3) {
                            0 => engine.access(buffer.address(page), Access::Read, load),
                            1 => engine.access(buffer.address(page), Access::ReadWrite, add),
                            _ => mirror.fault(buffer.range(page..PAGES), Access::Read).map(|()| 0),
                        };
                        match used {
                            Ok(_) | Err(Fault::NotMapped { .. } | Fault::Unsettled { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        // One thread owns each half: what one maps, another does not move away.
        for half in 0..2 {
            scope.spawn(move || {
                let (first, mut random) = (half * PAGES / 2, 100 + half as u64);
                while !done.load(SeqCst) {
                    let page = first + below(&mut random, PAGES / 2 - 1);
                    match below(&mut random, 6) {
                        0 => buffer.unmap(world, page..page + 1),
                        1 => buffer.protect(world, page..page + 1, libc::PROT_NONE),
                        2 => buffer.protect(world, page..page + 1, libc::PROT_READ),
                        3 => buffer.discard(world, page..page + 2),
                        4 => buffer.remap(world, page, page + 1),
                        _ => buffer.protect(world, page..page + 2, READ_WRITE),
                    }
                    // Whatever is missing is there again.
                    buffer.restore(first..first + PAGES / 2);
                }
            });
        }
        let results: Vec<_> = devices.into_iter().map(|device| device.join()).collect();
        done.store(true, SeqCst);
        assert!(results.iter().all(Result::is_ok));
    });
}
