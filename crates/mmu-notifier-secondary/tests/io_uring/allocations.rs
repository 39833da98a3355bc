//! Inside a change nothing is allocated or freed: the change may come from the allocator.

// UNSAFETY: a counting allocator.
#![expect(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use mmu_notifier::{AddressSpace, Event};
use mmu_notifier_secondary::cache::Access;

use crate::cure::cache_of;
use crate::lab::ring;
use crate::memory::{Backing, Memory};
use crate::rows::OLD;
use crate::world::World;

/// The system's allocator, counting what the calling thread asks of it.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn nothing_is_allocated_in_a_change() {
    let Some(ring) = ring("nothing_is_allocated_in_a_change") else { return };
    let world = World::ByHand(AddressSpace::new());
    let cache = cache_of(&world, &ring);
    let memory = Memory::new(Backing::Anonymous, OLD);
    // What is made the first time is made.
    world.space().invalidate(memory.range(), Event::Clear, || ());
    for _ in 0..3 {
        for may_wait in [true, false] {
            drop(cache.get(memory.range(), Access::ReadWrite).expect("registered"));
            assert_eq!(cache.registrar().in_use(), 1);
            let before = CALLS.get();
            match may_wait {
                true => world.space().invalidate(memory.range(), Event::Clear, || ()),
                false => world.space().try_invalidate(memory.range(), Event::Clear, || ()).expect("done"),
            }
            assert_eq!((CALLS.get() - before, cache.registrar().in_use()), (0, 0));
        }
    }
}
