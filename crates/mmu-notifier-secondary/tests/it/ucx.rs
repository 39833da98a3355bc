//! Behaviours that the tests of UCX's registration cache ask for (`test/gtest/ucs/test_rcache.cc`), under their names
//! there; and where this cache promises something else, that.

use std::sync::atomic::Ordering::SeqCst;

use mmu_notifier::Event;
use mmu_notifier_secondary::cache::{Access, Options};

use crate::device::{Device, Rig, range};

/// Most of the tests there run in so many threads.
fn in_threads(run: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let run = &run;
            scope.spawn(move || run(thread));
        }
    });
}

#[test]
fn create_fail() {
    let space = mmu_notifier::AddressSpace::new();
    space.release();
    let make =
        || drop(mmu_notifier_secondary::cache::Cache::new(&space, Device::default(), Options::default()));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(make)).unwrap_err();
    assert!(!space.has_subscribers());
}

#[test]
fn basic() {
    let rig = Rig::new();
    in_threads(|thread| {
        for _ in 0..100 {
            let region = rig.cache.get(range(thread * 2..thread * 2 + 1), Access::ReadWrite).unwrap();
            assert!(rig.device.is_registered(*region.handle()));
        }
    });
    assert_eq!(rig.device.registrations(), 6);
}

/// Memory that was freed and allocated again at the same address has a new registration.
#[test]
fn get_unmapped() {
    let rig = Rig::new();
    in_threads(|thread| {
        let pages = thread * 10..thread * 10 + 4;
        for _ in 0..50 {
            let before = rig.get(pages.clone());
            rig.unmap(pages.clone());
            assert_ne!(rig.get(pages.clone()), before);
        }
    });
}

/// The end of a registration that is invalidated while in use is told once, after the last one has let go.
#[test]
fn put_and_invalidate() {
    let rig = Rig::new();
    let first = rig.cache.get(range(0..1), Access::Read).unwrap();
    let second = rig.cache.get(range(0..1), Access::Read).unwrap();
    let handle = *first.handle();
    rig.unmap(0..1);
    drop(first);
    assert!(rig.device.is_registered(handle));
    drop(second);
    assert!(!rig.device.is_registered(handle));
    assert_eq!(rig.cache.stats().deregistered, 1);
}

/// Regions that touch or overlap: here each request that none of them contains gets one of its own, and the largest one
/// serves them all.
#[test]
fn merge() {
    let rig = Rig::new();
    in_threads(|thread| {
        let first = thread * 100;
        let (left, right) = (rig.get(first..first + 5), rig.get(first + 4..first + 9));
        let both = rig.get(first..first + 9);
        assert!(both != left && both != right);
        assert_eq!((rig.get(first..first + 5), rig.get(first + 4..first + 9)), (both, both));
    });
    assert_eq!(rig.device.ranges().len(), 6);
}

#[test]
fn merge_aligned() {
    let rig = Rig::with(Device { alignment: Some(4 * 4096), ..Device::default() }, Options::default());
    let small = rig.get(5..6);
    assert_eq!(rig.get(4..8), small, "widened to the alignment, it contains its neighbours");
    let large = rig.cache.get(range(3..9), Access::Read).unwrap();
    assert_eq!(large.range(), range(0..12));
    assert_eq!(rig.get(5..6), *large.handle());
}

/// One of two regions is invalidated, then both together are asked for.
#[test]
fn merge_inv() {
    let rig = Rig::new();
    let held = rig.cache.get(range(0..5), Access::Read).unwrap();
    rig.get(5..10);
    rig.unmap(0..1);
    let both = rig.get(0..10);
    assert_ne!(both, *held.handle());
    rig.unmap(9..10);
    assert_ne!(rig.get(0..10), both);
    drop(held);
    assert_eq!(rig.device.ranges(), [range(0..10)]);
}

/// Memory freed while it is held: what is held stays what it was.
#[test]
fn release_inuse() {
    let rig = Rig::new();
    in_threads(|thread| {
        let pages = thread * 10..thread * 10 + 3;
        let held = rig.cache.get(range(pages.clone()), Access::ReadWrite).unwrap();
        let handle = *held.handle();
        rig.unmap(pages.clone());
        assert!(rig.device.is_registered(handle));
        assert_eq!((*held.handle(), held.range(), held.access()), (handle, range(pages), Access::ReadWrite));
        drop(held);
        assert!(!rig.device.is_registered(handle));
    });
}

#[test]
fn merge_with_unwritable() {
    let rig = Rig::new();
    rig.device.read_only_from.store(range(5..6).start(), SeqCst);
    let writable = rig.cache.get(range(0..5), Access::Write).unwrap();
    let readable = rig.cache.get(range(5..10), Access::Read).unwrap();
    rig.cache.get(range(3..8), Access::Write).unwrap_err();
    let across = rig.cache.get(range(3..8), Access::Read).unwrap();
    assert!(writable.is_current() && readable.is_current() && across.is_current());
}

#[test]
fn merge_merge_unwritable() {
    let rig = Rig::new();
    rig.device.read_only_from.store(range(8..9).start(), SeqCst);
    let first = rig.cache.get(range(0..4), Access::Write).unwrap();
    let second = rig.cache.get(range(3..8), Access::Write).unwrap();
    let third = rig.cache.get(range(7..12), Access::Read).unwrap();
    assert!(first.is_current() && second.is_current() && third.is_current());
    assert_eq!(rig.cache.get(range(4..7), Access::Write).unwrap().handle(), second.handle());
}

#[test]
fn merge_expand_prot() {
    let rig = Rig::new();
    in_threads(|thread| {
        let pages = thread * 10..thread * 10 + 4;
        let read = rig.cache.get(range(pages.clone()), Access::Read).unwrap();
        let write = rig.cache.get(range(pages.clone()), Access::Write).unwrap();
        assert_eq!(write.access(), Access::ReadWrite);
        assert_ne!(read.handle(), write.handle());
        assert_eq!(rig.get(pages), *write.handle());
    });
}

/// Rights that the memory does not have, asked for over what is registered: an error, and what was there stays.
#[test]
fn merge_invalid_prot() {
    let rig = Rig::new();
    rig.device.read_only_from.store(1, SeqCst);
    let read = rig.cache.get(range(0..4), Access::Read).unwrap();
    for _ in 0..3 {
        rig.cache.get(range(0..4), Access::Write).unwrap_err();
        rig.cache.get(range(2..9), Access::Write).unwrap_err();
    }
    assert!(read.is_current());
    assert_eq!(rig.get(0..4), *read.handle());
}

#[test]
fn shared_region() {
    let rig = Rig::new();
    in_threads(|_| {
        for _ in 0..200 {
            let region = rig.cache.get(range(0..8), Access::ReadWrite).unwrap();
            assert!(rig.device.is_registered(*region.handle()));
        }
    });
    assert_eq!(rig.device.registrations(), 1);
}

#[test]
fn register_failure() {
    let rig = Rig::new();
    rig.device.read_only_from.store(1, SeqCst);
    in_threads(|thread| {
        rig.cache.get(range(thread..thread + 1), Access::Write).unwrap_err();
        drop(rig.cache.get(range(thread..thread + 1), Access::Read).unwrap());
    });
    rig.device.read_only_from.store(0, SeqCst);
    in_threads(|thread| drop(rig.cache.get(range(thread..thread + 1), Access::Write).unwrap()));
}

#[test]
fn by_count() {
    let rig = Rig::with(Device::default(), Options { entries: 2, ..Options::default() });
    let first = rig.get(0..1);
    rig.get(1..2);
    rig.get(2..3);
    assert_eq!(rig.device.ranges().len(), 2);
    assert_ne!(rig.get(0..1), first);
}

#[test]
fn by_size() {
    let rig = Rig::with(Device::default(), Options { bytes: 2 * 4096, ..Options::default() });
    rig.get(0..1);
    rig.get(1..2);
    rig.get(2..4);
    assert_eq!(rig.device.ranges(), [range(2..4)]);
}

/// What is in use is never evicted. (There the limit is passed over then; here it is a limit.)
#[test]
fn by_size_inuse() {
    let rig = Rig::with(Device::default(), Options { bytes: 2 * 4096, ..Options::default() });
    let held = rig.cache.get(range(0..2), Access::Read).unwrap();
    rig.cache.get(range(2..3), Access::Read).unwrap_err();
    assert!(held.is_current() && rig.device.is_registered(*held.handle()));
}

#[test]
fn unmap_dereg() {
    let rig = Rig::new();
    rig.get(0..1);
    rig.unmap(0..1);
    let stats = rig.cache.stats();
    assert_eq!((stats.deregistered, stats.entries, stats.invalidated_by(Event::Unmap)), (1, 0, 1));
}

/// An event that comes while the books are locked is not lost, and works at once.
#[test]
fn unmap_dereg_with_lock() {
    let rig = Rig::new();
    let handle = rig.get(0..1);
    std::thread::scope(|scope| {
        // Somebody inserts and removes all the time.
        let busy = scope.spawn(|| {
            for at in 0..20_000 {
                rig.get(100 + at % 50..101 + at % 50);
                if at % 50 == 49 {
                    rig.try_unmap(100..150);
                }
            }
        });
        while !busy.is_finished() {
            let before = rig.get(0..1);
            assert!(rig.try_unmap(0..1));
            assert_ne!(rig.get(0..1), before);
        }
    });
    assert!(!rig.device.is_registered(handle));
}

/// A hit that is found only under the lock is a hit.
#[test]
fn hits_slow() {
    let rig = Rig::new();
    rig.get(0..1);
    std::thread::scope(|scope| {
        // The first request of a thread has no home yet.
        scope.spawn(|| rig.get(0..1));
    });
    let stats = rig.cache.stats();
    assert_eq!((stats.hits, stats.misses), (1, 1));
}

/// 40,000 unmaps and no request: nothing piles up. (There a queue of ranges did, until it was merged.)
#[test]
fn inv_q_bounded_with_interval_tree() {
    let rig = Rig::new();
    for page in 0..100 {
        rig.get(page..page + 1);
    }
    let before = rig.cache.stats();
    for at in 0..40_000 {
        assert!(rig.try_unmap(at % 300..at % 300 + 1));
    }
    let stats = rig.cache.stats();
    assert!(stats.memory <= before.memory && stats.memory < 512 << 10, "{stats}");
    assert_eq!((stats.entries, stats.most_unreleased), (100, 100 * 4096), "the dead of before, once each");
    rig.get(0..1);
    let stats = rig.cache.stats();
    assert_eq!((stats.unreleased, stats.entries), (0, 1), "one request drains it");
}
