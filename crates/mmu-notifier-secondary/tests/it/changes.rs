//! What changes is gone before the change begins.

use mmu_notifier::{Blocking, Change, Event, Range};
use mmu_notifier_secondary::cache::{Access, Options};

use crate::device::{Device, Rig, range};
use std::sync::atomic::Ordering::SeqCst;

#[test]
fn a_change_ends_what_it_overlaps_and_nothing_else() {
    let rig = Rig::new();
    let handles: Vec<_> = [0..4, 2..6, 5..9, 8..12, 12..13].map(|pages| rig.get(pages)).into();
    rig.space.invalidate(range(5..8), Event::Unmap, || {
        let left: Vec<_> = handles.iter().map(|&handle| rig.device.is_registered(handle)).collect();
        assert_eq!(left, [true, false, false, true, true], "before the change begins");
    });
    assert_eq!(rig.get(0..4), handles[0]);
    assert_eq!(rig.get(8..12), handles[3]);
    assert_ne!(rig.get(5..9), handles[2]);
}

#[test]
fn one_byte_is_enough() {
    let rig = Rig::new();
    let (start, end) = (range(4..5).start(), range(4..5).end());
    for (changed, hits) in [
        ((start - 1, start), false),
        ((end, end + 1), false),
        ((start, start + 1), true),
        ((end - 1, end), true),
    ] {
        let handle = rig.get(4..5);
        rig.space.invalidate(Range::new(changed.0, changed.1).unwrap(), Event::Clear, || ());
        assert_eq!(!rig.device.is_registered(handle), hits, "{changed:x?}");
    }
}

#[test]
fn every_event_ends_a_registration_but_those_that_it_survives() {
    for survived in Event::ALL {
        let rig = Rig::with(Device { survives: Some(survived), ..Device::default() }, Options::default());
        for event in Event::ALL {
            let handle = rig.get(0..1);
            rig.space.invalidate(range(0..1), event, || ());
            assert_eq!(
                rig.device.is_registered(handle),
                event == survived,
                "{event} when {survived} is survived"
            );
        }
        assert_eq!(rig.cache.stats().invalidated_by(survived), 0);
        assert_eq!(rig.cache.stats().invalidated.iter().sum::<u64>(), 7);
    }
}

#[test]
fn inside_a_change_of_its_own_a_thread_is_told_so() {
    let rig = Rig::new();
    rig.space.invalidate(range(0..4), Event::Unmap, || {
        let error = rig.cache.get(range(3..6), Access::Read).unwrap_err().to_string();
        assert!(error.ends_with("the calling thread is in the middle of changing it"), "{error}");
        rig.get(4..6);
    });
    rig.get(3..6);
}

#[test]
fn a_change_that_may_wait_deregisters_first() {
    let rig = Rig::new();
    let handle = rig.get(0..1);
    rig.space.invalidate(range(0..1), Event::Unmap, || assert!(!rig.device.is_registered(handle)));
    assert_eq!(rig.cache.stats().unreleased, 0);
}

#[test]
fn a_change_that_must_not_wait_leaves_deregistering_for_later() {
    let rig = Rig::new();
    let handle = rig.get(0..1);
    assert!(rig.try_unmap(0..1));
    assert!(rig.device.is_registered(handle), "the registrar would have to wait");
    let stats = rig.cache.stats();
    assert_eq!((stats.unreleased, stats.most_unreleased, stats.entries), (4096, 4096, 1));
    assert_ne!(rig.get(0..1), handle, "but nobody gets it any more");
    assert!(!rig.device.is_registered(handle), "and who misses buries it");

    let handle = rig.get(0..1);
    assert!(rig.try_unmap(0..1));
    rig.cache.flush();
    assert!(!rig.device.is_registered(handle));

    let handle = rig.get(0..1);
    assert!(rig.try_unmap(0..1));
    rig.unmap(100..101);
    assert!(!rig.device.is_registered(handle), "so does a change elsewhere that may wait");
}

#[test]
fn a_registrar_that_need_not_wait_deregisters_at_once() {
    let rig = Rig::new();
    rig.device.is_quick.store(true, SeqCst);
    let handle = rig.get(0..1);
    assert!(rig.try_unmap(0..1));
    assert!(!rig.device.is_registered(handle));
}

#[test]
fn too_much_that_is_not_deregistered_makes_changes_wait() {
    let rig = Rig::with(Device::default(), Options { unreleased: 8 * 4096, ..Options::default() });
    for page in 0..20 {
        rig.get(page..page + 1);
    }
    let refused = (0..20).position(|page| !rig.try_unmap(page..page + 1));
    assert_eq!(refused, Some(8));
    assert_eq!(rig.cache.stats().refused, 1);
    rig.unmap(8..9);
    assert_eq!(rig.cache.stats().unreleased, 0);
    assert!(rig.try_unmap(9..10));
}

#[test]
fn what_is_held_is_deregistered_when_it_is_let_go_of() {
    let rig = Rig::new();
    let held = rig.cache.get(range(0..2), Access::Read).unwrap();
    let also_held = rig.cache.get(range(1..2), Access::Read).unwrap();
    let handle = *held.handle();
    rig.unmap(0..1);
    assert!(rig.device.is_registered(handle));
    assert!(!held.is_current() && !also_held.is_current());
    assert_eq!((*held.handle(), held.range(), held.access()), (handle, range(0..2), Access::Read));
    let anew = rig.get(0..2);
    assert_ne!(anew, handle);
    drop(held);
    assert!(rig.device.is_registered(handle));
    drop(also_held);
    assert!(!rig.device.is_registered(handle));
    assert!(rig.device.is_registered(anew));
}

#[test]
fn a_refused_change_leaves_a_cache_that_works() {
    struct Never;
    impl mmu_notifier::Refuser for Never {
        fn start(&self, _: &Change) {}
        fn try_start(&self, _: &Change) -> Result<(), mmu_notifier::WouldBlock> {
            Err(mmu_notifier::WouldBlock)
        }
    }
    let rig = Rig::new();
    let subscription = rig.space.subscribe_refuser(Never);
    let handle = rig.get(0..1);
    assert!(!rig.try_unmap(0..1));
    assert_ne!(rig.get(0..1), handle, "it was told, and cannot know that the change did not take place");
    assert_eq!(rig.get(0..1), rig.get(0..1));
    drop(subscription);
}

/// A registrar frees memory when it deregisters: a change inside a callback of the cache.
#[test]
fn changes_made_while_deregistering_are_heard() {
    let rig = Rig::new();
    let (handle, other) = (rig.get(0..1), rig.get(50..51));
    let space = rig.space.clone();
    rig.device.on_deregister(move |which| {
        if which == range(0..1) {
            space.invalidate(range(50..51), Event::Unmap, || ());
        }
    });
    rig.unmap(0..1);
    assert!(!rig.device.is_registered(handle));
    assert_ne!(rig.get(50..51), other);
}

#[test]
fn a_released_address_space_has_nothing_registered_and_registers_nothing() {
    let rig = Rig::new();
    let handle = rig.get(0..1);
    rig.space.release();
    assert!(!rig.device.is_registered(handle));
    let error = rig.cache.get(range(0..1), Access::Read).unwrap_err().to_string();
    assert!(error.ends_with("the address space has been released"), "{error}");
}

#[test]
fn clearing_ends_everything() {
    let rig = Rig::new();
    let held = rig.cache.get(range(3..5), Access::Read).unwrap();
    let handle = rig.get(0..1);
    rig.cache.clear();
    assert!(!rig.device.is_registered(handle) && !held.is_current());
    assert_eq!(rig.device.ranges(), [range(3..5)]);
    drop(held);
    assert_eq!(rig.device.ranges(), []);
}

#[test]
fn changes_of_everything_and_of_the_last_page_are_changes() {
    let rig = Rig::new();
    let last = Range::new(usize::MAX & !0xfff, usize::MAX).unwrap();
    let error = rig.cache.get(last, Access::Read).unwrap_err().to_string();
    assert!(error.contains("nothing is mapped"), "{error}");
    rig.space.invalidate(last, Event::Unmap, || ());
    let handle = rig.get(0..1);
    let change = Change::new(Range::EVERYTHING, Event::ProtectionPage, Blocking::Allowed);
    drop(rig.space.begin(change).unwrap());
    assert!(!rig.device.is_registered(handle));
}
