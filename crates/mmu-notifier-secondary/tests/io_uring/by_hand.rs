//! The cure, with each change in a bracket.

use mmu_notifier::AddressSpace;
use mmu_notifier_secondary::cache::{Access, Cache, Options};
use mmu_notifier_secondary::io_uring::FixedBuffers;

use crate::lab::{FILE, Lab};
use crate::memory::{Backing, LEN, Memory};
use crate::rows::OLD;
use crate::world::World;
use crate::{cure, pins, storm};

fn world() -> World {
    World::ByHand(AddressSpace::new())
}

#[test]
fn what_is_read_is_there() {
    cure::what_is_read_is_there(&world());
}

#[test]
fn what_is_written_is_what_is_there() {
    cure::what_is_written_is_what_is_there(&world());
}

#[test]
fn a_full_table_makes_room() {
    let Some(mut lab) = Lab::new("a_full_table_makes_room") else { return };
    let buffers = FixedBuffers::new(&lab.ring, 3).expect("a ring of our own");
    let cache = Cache::new(&AddressSpace::new(), buffers, Options { entries: 32, ..Options::default() });
    let memory: Vec<Memory> = (0..9).map(|_| Memory::new(Backing::Anonymous, OLD)).collect();
    for memory in &memory {
        let registration = cache.get(memory.range(), Access::ReadWrite).expect("there is room");
        assert_eq!(lab.read_fixed(registration.handle().index(), memory), LEN as i32);
        assert_eq!(memory.byte(), FILE);
    }
    assert_eq!((cache.stats().evicted, cache.registrar().in_use()), (6, 3));
    // Unless everything is in use.
    let all = [0, 1, 2].map(|at| cache.get(memory[at].range(), Access::ReadWrite).expect("there is room"));
    let full = cache.get(memory[3].range(), Access::ReadWrite).expect_err("there is none");
    assert!(full.to_string().contains("all 3 slots of the ring's table are in use"), "{full}");
    drop(all);
}

#[test]
fn a_child_has_no_part_in_the_cache() {
    cure::a_child_has_no_part_in_the_cache(&world());
}

#[test]
fn under_load_every_byte_is_right() {
    storm::storm("by hand", &world());
}

#[test]
fn under_load_what_is_held_stays() {
    pins::storm("by hand", &world());
}
