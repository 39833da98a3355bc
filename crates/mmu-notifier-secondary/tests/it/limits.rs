//! Bounded in entries and bytes; what was not used for long goes first, what is in use never.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, mpsc};

use mmu_notifier_secondary::cache::{Access, GetError, Options, RegisterError};

use crate::device::{Device, Rig, range};

fn limited(entries: usize, pages: usize) -> Rig {
    Rig::with(Device::default(), Options { entries, bytes: pages * 4096, ..Options::default() })
}

#[test]
fn the_table_never_grows_over_its_limit() {
    let rig = limited(10, usize::MAX / 4096);
    for at in 0..1000 {
        rig.get(at..at + 1);
        assert!(rig.device.ranges().len() <= 10);
    }
    let stats = rig.cache.stats();
    assert_eq!((stats.entries, stats.evicted, stats.registered), (10, 990, 1000));
}

#[test]
fn bytes_never_grow_over_their_limit() {
    let rig = limited(1000, 64);
    for at in 0..300 {
        let pages = 1 + at % 9;
        rig.get(at * 10..at * 10 + pages);
        let bytes: usize = rig.device.ranges().iter().map(|range| range.len()).sum();
        assert!(bytes <= 64 * 4096, "{bytes}");
        assert_eq!(bytes, rig.cache.stats().bytes);
    }
    assert!(rig.cache.stats().bytes > 50 * 4096, "and are used");
}

#[test]
fn what_is_used_again_and_again_stays() {
    let rig = limited(10, 1 << 20);
    let favourite = rig.get(5000..5001);
    for at in 0..500 {
        rig.get(at..at + 1);
        assert_eq!(rig.get(5000..5001), favourite, "after {at} others");
    }
}

#[test]
fn what_is_held_is_never_evicted() {
    let rig = limited(10, 1 << 20);
    let held: Vec<_> = (0..9).map(|at| rig.cache.get(range(at..at + 1), Access::Read).unwrap()).collect();
    for at in 100..300 {
        rig.get(at..at + 1);
    }
    assert!(held.iter().all(|registration| registration.is_current()));
    assert_eq!(rig.cache.stats().evicted, 199);
}

#[test]
fn what_is_held_after_a_hit_is_never_evicted_either() {
    let rig = limited(4, 1 << 20);
    rig.get(0..1);
    let held = rig.cache.get(range(0..1), Access::Read).unwrap();
    for at in 100..200 {
        rig.get(at..at + 1);
    }
    assert!(held.is_current());
}

#[test]
fn something_used_up_elsewhere_evicts_and_tries_again() {
    let rig = Rig::new();
    rig.device.capacity.store(16 * 4096, SeqCst);
    for at in 0..100 {
        rig.get(at * 4..at * 4 + 3);
    }
    let stats = rig.cache.stats();
    assert!(stats.evicted > 90 && stats.failed > 90, "{stats}");
    assert!(stats.bytes <= 16 * 4096);
}

#[test]
fn something_used_up_with_nothing_to_evict_is_an_error() {
    let rig = Rig::new();
    rig.device.capacity.store(4 * 4096, SeqCst);
    let held = rig.cache.get(range(0..3), Access::Read).unwrap();
    // Memory that is mapped, so that nothing but the registrar's word explains it.
    let page = vec![0_u8; 3 * 4096];
    let mapped = mmu_notifier::Range::with_len(page.as_ptr() as usize, page.len()).unwrap();
    let error = rig.cache.get(mapped, Access::Read).unwrap_err();
    let is_used_up = matches!(&error, GetError::Register { error: RegisterError::Exhausted(_), .. });
    assert!(is_used_up && error.to_string().contains("nothing more can be registered"), "{error}");
    drop(held);
    drop(rig.cache.get(mapped, Access::Read).unwrap());
}

#[test]
fn unreleased_memory_counts_until_it_is_released() {
    let rig = limited(100, 8);
    let held = rig.cache.get(range(0..6), Access::Read).unwrap();
    rig.unmap(0..6);
    assert!(matches!(rig.cache.get(range(0..6), Access::Read), Err(GetError::TooMuch { .. })));
    drop(held);
    rig.get(0..6);
}

#[test]
fn what_is_being_deregistered_is_waited_for_before_there_is_no_room() {
    let rig = limited(1, 100);
    rig.get(0..1);
    let (entered, is_in) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let may_leave = Mutex::new(may_leave);
    rig.device.on_deregister(move |_| {
        _ = entered.send(());
        // Until there is nobody who could let it.
        _ = may_leave.lock().unwrap().recv();
    });
    std::thread::scope(|scope| {
        let leave = leave;
        scope.spawn(|| rig.unmap(0..1));
        is_in.recv().unwrap();
        let request = scope.spawn(|| drop(rig.cache.get(range(5..6), Access::Read).unwrap()));
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(leave);
        request.join().unwrap();
    });
}
