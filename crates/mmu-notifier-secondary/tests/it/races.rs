//! Misses beside changes and beside each other.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, mpsc};

use mmu_notifier::Event;
use mmu_notifier_secondary::cache::{Access, Options};

use crate::device::{Device, Rig, again_and_again, range};

#[test]
fn a_change_while_memory_is_being_registered_undoes_it() {
    let rig = Rig::new();
    let (space, count) = (rig.space.clone(), AtomicUsize::new(0));
    rig.device.on_register(move |range| {
        if count.fetch_add(1, SeqCst) < 3 {
            space.invalidate(range, Event::Unmap, || ());
        }
    });
    let handle = rig.get(0..4);
    assert_eq!(rig.device.ranges(), [range(0..4)]);
    let stats = rig.cache.stats();
    assert_eq!((stats.retries, stats.registered, stats.deregistered, stats.misses), (3, 4, 3, 1));
    assert_eq!(rig.get(0..4), handle);
}

#[test]
fn a_change_elsewhere_undoes_nothing() {
    let rig = Rig::new();
    let space = rig.space.clone();
    rig.device.on_register(move |_| space.invalidate(range(4..100), Event::Unmap, || ()));
    rig.get(0..4);
    assert_eq!(rig.cache.stats().retries, 0);
}

#[test]
fn a_miss_waits_for_changes_that_are_open() {
    let rig = Rig::new();
    let (begun, has_begun) = mpsc::channel();
    let (end, may_end) = mpsc::channel::<()>();
    let is_over = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (space, is_over) = (&rig.space, &is_over);
        scope.spawn(move || {
            space.invalidate(range(0..4), Event::Unmap, || {
                begun.send(()).unwrap();
                may_end.recv().unwrap();
                is_over.store(1, SeqCst);
            });
        });
        has_begun.recv().unwrap();
        rig.get(4..5);
        let miss = scope.spawn(|| {
            rig.get(3..5);
            assert_eq!(is_over.load(SeqCst), 1, "registered inside an open change");
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!miss.is_finished());
        end.send(()).unwrap();
        miss.join().unwrap();
    });
    assert_eq!(rig.cache.stats().retries, 0);
}

#[test]
fn requests_for_the_same_memory_register_once() {
    const THREADS: usize = 8;
    let rig = Rig::new();
    let (all_ask, asked) = mpsc::channel::<()>();
    let asked = Mutex::new(asked);
    rig.device.on_register(move |_| asked.lock().unwrap().recv().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| rig.get(0..8));
        while rig.cache.stats().misses == 0 {
            std::thread::yield_now();
        }
        for thread in 1..THREADS {
            let rig = &rig;
            scope.spawn(move || rig.get(thread..8));
        }
        while rig.cache.stats().joined < THREADS as u64 - 1 {
            std::thread::yield_now();
        }
        all_ask.send(()).unwrap();
    });
    assert_eq!(rig.device.registrations(), 1);
    let stats = rig.cache.stats();
    assert_eq!(stats.hits + stats.misses, THREADS as u64);
}

#[test]
fn requests_for_other_memory_register_at_the_same_time() {
    let rig = Rig::new();
    let together = Arc::new(Barrier::new(2));
    rig.device.on_register(move |_| _ = together.wait());
    std::thread::scope(|scope| {
        scope.spawn(|| rig.get(0..2));
        scope.spawn(|| rig.get(1..3));
    });
    assert_eq!(rig.device.registrations(), 2);
}

#[test]
fn a_request_that_waited_for_one_that_failed_tries_itself() {
    let rig = Rig::new();
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    rig.device.on_register(move |_| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(seen.fetch_add(1, SeqCst) >= 3, "not yet");
    });
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| drop(rig.cache.get(range(0..1), Access::Read)));
        }
    });
    assert_eq!((rig.device.registrations(), rig.cache.stats().panics), (1, 3));
}

#[test]
fn more_misses_at_a_time_than_there_is_room_for_wait() {
    const THREADS: usize = 100;
    let rig = Rig::new();
    rig.device.on_register(|_| std::thread::sleep(std::time::Duration::from_millis(1)));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let rig = &rig;
            scope.spawn(move || (0..4).for_each(|at| _ = rig.get(thread * 4 + at..thread * 4 + at + 1)));
        }
    });
    assert_eq!(rig.device.registrations(), THREADS * 4);
}

/// Everything at once. The device checks that nothing is deregistered twice, and each thread that what it gets is
/// registered.
#[test]
fn threads_that_get_change_and_evict() {
    again_and_again(|round| [false, true].into_iter().for_each(|waits| get_change_and_evict(waits, round)));
}

fn get_change_and_evict(waits: bool, round: usize) {
    let options = Options { entries: 40, bytes: 200 * 4096, ..Options::default() };
    let rig = Rig::with(Device { waits, ..Device::default() }, options);
    std::thread::scope(|scope| {
        for thread in 0..6_usize {
            let rig = &rig;
            scope.spawn(move || {
                let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_add((6 * round + thread) as u64);
                for _ in 0..3000 {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let (start, len) = ((random >> 33) as usize % 100, 1 + (random >> 50) as usize % 9);
                    let pages = start..start + len;
                    match random >> 60 {
                        0 => rig.unmap(pages),
                        1 => drop(rig.try_unmap(pages)),
                        2 => rig.cache.flush(),
                        _ => {
                            let access = if random >> 59 & 1 == 0 { Access::Read } else { Access::Write };
                            let Ok(got) = rig.cache.get(range(pages.clone()), access) else { continue };
                            assert!(rig.device.is_registered(*got.handle()));
                            assert!(got.range().contains(&range(pages)) && got.access().includes(access));
                        }
                    }
                }
            });
        }
    });
    let stats = rig.cache.stats();
    assert_eq!(stats.panics, 0);
    rig.cache.clear();
    assert_eq!(rig.device.ranges(), []);
    let stats = rig.cache.stats();
    assert_eq!((stats.entries, stats.bytes, stats.unreleased), (0, 0, 0));
    assert_eq!(stats.registered, stats.deregistered);
}
