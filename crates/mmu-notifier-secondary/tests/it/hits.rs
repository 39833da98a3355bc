//! What is registered is found.

use mmu_notifier::Range;
use mmu_notifier_secondary::cache::{Access, Options};

use crate::device::{Device, Rig, range};

#[test]
fn the_same_request_registers_once() {
    let rig = Rig::new();
    let first = rig.get(0..4);
    for _ in 0..10 {
        assert_eq!(rig.get(0..4), first);
    }
    assert_eq!(rig.device.registrations(), 1);
    let stats = rig.cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.registered), (10, 1, 1));
}

#[test]
fn a_part_of_what_is_registered_hits() {
    let rig = Rig::new();
    let all = rig.get(10..20);
    for part in [10..11, 19..20, 10..20, 13..17] {
        assert_eq!(rig.get(part), all);
    }
    let bytes = Range::with_len(range(10..11).start() + 17, 3).unwrap();
    assert_eq!(*rig.cache.get(bytes, Access::Read).unwrap().handle(), all);
    assert_eq!(rig.device.registrations(), 1);
}

#[test]
fn what_is_not_wholly_registered_does_not_hit() {
    let rig = Rig::new();
    rig.get(10..20);
    for other in [9..10, 9..11, 19..21, 20..22, 0..100] {
        rig.get(other);
    }
    assert_eq!(rig.device.registrations(), 6);
}

#[test]
fn regions_may_overlap_and_one_that_contains_a_request_is_found() {
    let rig = Rig::new();
    let handles: Vec<_> = [0..10, 5..15, 9..30, 12..31].map(|pages| (pages.clone(), rig.get(pages))).into();
    for (pages, handle) in &handles {
        assert_eq!(rig.get(pages.clone()), *handle, "{pages:?}");
    }
    assert_eq!(rig.get(3..4), handles[0].1);
    assert!([handles[2].1, handles[3].1].contains(&rig.get(20..30)), "two contain it");
    assert_eq!(rig.device.registrations(), 4);
}

#[test]
fn a_larger_region_takes_the_place_of_those_that_it_contains() {
    let rig = Rig::new();
    let small: Vec<_> = (0..40).map(|at| rig.get(at * 2..at * 2 + 1)).collect();
    let held = rig.cache.get(range(4..5), Access::Read).unwrap();
    let all = rig.get(0..80);
    assert!((0..80).all(|page| rig.get(page..page + 1) == all));
    assert_eq!(rig.device.ranges().len(), 2, "only the one that is held is still registered besides");
    assert!(rig.device.is_registered(small[2]));
    drop(held);
    assert_eq!(rig.device.ranges(), [range(0..80)]);
    assert_eq!(rig.cache.stats().superseded, 40);
}

#[test]
fn requests_are_widened_to_the_alignment() {
    let rig = Rig::with(Device { alignment: Some(1 << 16), ..Device::default() }, Default::default());
    let bytes = Range::new(0x5_1234, 0x6_0001).unwrap();
    let registration = rig.cache.get(bytes, Access::Write).unwrap();
    assert_eq!(registration.range(), Range::new(0x5_0000, 0x7_0000).unwrap());
    assert_eq!(rig.device.registered(), [(registration.range(), Access::Write)]);
}

#[test]
fn an_alignment_of_one_registers_just_the_bytes() {
    let rig = Rig::with(Device { alignment: Some(1), ..Device::default() }, Default::default());
    let bytes = Range::new(0x5_1234, 0x5_1236).unwrap();
    assert_eq!(rig.cache.get(bytes, Access::Write).unwrap().range(), bytes);
}

#[test]
fn missing_rights_widen_all_that_is_registered() {
    let rig = Rig::new();
    rig.get(0..8);
    let both = rig.cache.get(range(2..3), Access::Write).unwrap();
    assert_eq!((both.range(), both.access()), (range(0..8), Access::ReadWrite));
    assert_eq!(rig.get(5..6), *both.handle());
    assert_eq!(rig.device.registered(), [(range(0..8), Access::ReadWrite)]);
}

#[test]
fn what_is_good_for_any_access_is_registered_once() {
    let rig = Rig::with(Device { grants_all: true, ..Device::default() }, Options::default());
    let read = rig.get(0..8);
    let both = rig.cache.get(range(2..3), Access::ReadWrite).unwrap();
    assert_eq!((*both.handle(), both.access(), rig.device.registrations()), (read, Access::ReadWrite, 1));
}

#[test]
fn rights_that_cannot_be_widened_everywhere_are_had_where_they_can() {
    let rig = Rig::new();
    rig.get(0..8);
    let limit = range(4..5).start();
    rig.device.read_only_from.store(limit, std::sync::atomic::Ordering::SeqCst);
    let part = rig.cache.get(range(2..3), Access::Write).unwrap();
    assert_eq!((part.range(), part.access()), (range(2..3), Access::Write));
    assert_eq!(rig.device.ranges(), [range(2..3)], "no entry contains another one");
    rig.cache.get(range(6..7), Access::Write).unwrap_err();
    assert_eq!(rig.cache.get(range(6..7), Access::Read).unwrap().access(), Access::Read);
}

#[test]
fn more_pins_than_a_thread_has_room_for_are_counted() {
    let rig = Rig::new();
    let first = rig.get(0..1);
    let held: Vec<_> = (0..100).map(|_| rig.cache.get(range(0..1), Access::Read).unwrap()).collect();
    assert!(held.iter().all(|registration| *registration.handle() == first));
    assert_eq!(rig.cache.stats().hits, 100);
    rig.unmap(0..1);
    assert!(rig.device.is_registered(first));
    assert!(held.iter().all(|registration| !registration.is_current()));
    let mut held = held;
    while held.len() > 1 {
        drop(held.swap_remove(held.len() / 2));
        assert!(rig.device.is_registered(first));
    }
    held.clear();
    assert!(!rig.device.is_registered(first), "with the last one");
}

#[test]
fn registrations_can_be_dropped_by_another_thread() {
    let rig = Rig::new();
    let first = rig.get(0..1);
    let held: Vec<_> = (0..20).map(|_| rig.cache.get(range(0..1), Access::Read).unwrap()).collect();
    rig.unmap(0..1);
    std::thread::scope(|scope| {
        for registration in held {
            scope.spawn(move || drop(registration));
        }
    });
    assert!(!rig.device.is_registered(first));
    assert_eq!(rig.cache.stats().unreleased, 0);
}

#[test]
fn a_dropped_cache_leaves_nothing_registered() {
    let rig = Rig::new();
    for at in 0..100 {
        rig.get(at..at + 1);
    }
    std::mem::forget(rig.cache.get(range(7..8), Access::Read).unwrap());
    rig.unmap(7..9);
    let Rig { space, device, cache } = rig;
    drop(cache);
    assert_eq!(device.ranges(), []);
    assert!(!space.has_subscribers());
}

#[test]
fn the_index_holds_many() {
    const COUNT: usize = 20_000;
    let rig = Rig::with(Device::default(), Options { entries: COUNT, ..Options::default() });
    // In an order that is neither rising nor falling.
    let handles: Vec<_> =
        (0..COUNT).map(|at| at * 7919 % COUNT).map(|at| (at, rig.get(2 * at..2 * at + 1))).collect();
    assert!(handles.iter().all(|&(at, handle)| rig.get(2 * at..2 * at + 1) == handle));
    let stats = rig.cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.entries), (COUNT as u64, COUNT as u64, COUNT));
    assert!(stats.memory / COUNT <= 128, "{} bytes an entry", stats.memory / COUNT);
    rig.unmap(0..COUNT);
    assert_eq!(rig.cache.stats().entries, COUNT / 2);
    assert!(handles.iter().all(|&(at, handle)| rig.device.is_registered(handle) == (2 * at >= COUNT)));
    rig.unmap(0..2 * COUNT);
    assert_eq!(rig.device.ranges(), []);
}
