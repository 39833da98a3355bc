//! Bad requests get an error that names the range, and leave nothing behind.

use std::io;
use std::sync::atomic::Ordering::SeqCst;

use mmu_notifier::{AddressSpace, Range};
use mmu_notifier_secondary::cache::{
    Access, Cache, GetError, Options, RegisterError, Registrar, Unregistered,
};

use crate::device::{Device, Rig, range};

/// Nothing is registered, in use or being registered.
fn assert_is_clean(rig: &Rig) {
    let stats = rig.cache.stats();
    assert_eq!((stats.entries, stats.bytes, stats.unreleased), (0, 0, 0));
    assert_eq!(rig.device.ranges(), []);
}

#[test]
fn empty_and_overflowing_ranges_cannot_be_asked_for() {
    assert_eq!(Range::with_len(0x1000, 0).unwrap_err().to_string(), "range at 0x1000 has no bytes");
    let text = Range::with_len(0x1000, usize::MAX).unwrap_err().to_string();
    assert_eq!(text, "range of 0xffffffffffffffff bytes at 0x1000 leaves the address space");
}

#[test]
fn a_range_that_cannot_be_widened_is_not_mapped() {
    let rig = Rig::new();
    let end = Range::new(usize::MAX - 10, usize::MAX - 1).unwrap();
    let error = rig.cache.get(end, Access::Read).unwrap_err();
    assert!(matches!(error, GetError::NotMapped { range, .. } if range == end), "{error}");
    assert_is_clean(&rig);
}

#[test]
fn a_range_longer_than_the_registrar_takes() {
    let rig = Rig::with(Device { max_len: Some(4 * 4096), ..Device::default() }, Options::default());
    rig.get(0..4);
    let error = rig.cache.get(range(10..15), Access::Read).unwrap_err();
    assert_eq!(
        error.to_string(),
        "[0x100000a000, 0x100000f000) cannot be registered: 20480 bytes are more than the 16384 that one registration takes"
    );
    let stats = rig.cache.stats();
    assert_eq!((stats.entries, stats.misses, stats.failed), (1, 1, 0));
}

#[test]
fn a_registrar_that_panics_poisons_nothing() {
    let rig = Rig::new();
    rig.device.on_register(|_| panic!("the cable is loose"));
    let error = rig.cache.get(range(0..1), Access::Read).unwrap_err();
    assert_eq!(
        error.to_string(),
        "[0x1000000000, 0x1000001000) could not be registered: the registrar panicked: the cable is loose"
    );
    assert_is_clean(&rig);
    rig.device.do_nothing_else();
    let handle = rig.get(0..1);
    rig.device.on_deregister(|_| panic!("and now it is gone"));
    rig.unmap(0..1);
    rig.device.do_nothing_else();
    assert_ne!(rig.get(0..1), handle);
    assert_eq!(rig.cache.stats().panics, 2);
}

#[test]
fn nor_does_one_that_panics_where_nobody_may_wait() {
    let rig = Rig::new();
    rig.device.is_quick.store(true, SeqCst);
    let handle = rig.get(0..1);
    rig.device.on_deregister(|_| panic!("gone already"));
    assert!(rig.try_unmap(0..1));
    rig.device.do_nothing_else();
    assert_eq!((rig.cache.stats().panics, rig.cache.stats().unreleased), (1, 0));
    assert_ne!(rig.get(0..1), handle);
}

#[test]
fn a_registrar_that_fails_poisons_nothing() {
    let rig = Rig::new();
    rig.device.read_only_from.store(1, SeqCst);
    for _ in 0..3 {
        let error = rig.cache.get(range(0..1), Access::Write).unwrap_err();
        // Nothing is mapped there, and that is the better explanation.
        assert_eq!(
            error.to_string(),
            "[0x1000000000, 0x1000001000) cannot be registered: nothing is mapped at 0x1000000000"
        );
        assert_is_clean(&rig);
    }
    assert_eq!(rig.cache.stats().failed, 3);
    rig.device.read_only_from.store(0, SeqCst);
    drop(rig.cache.get(range(0..1), Access::Write).unwrap());
}

#[test]
fn what_the_mappings_do_not_explain_is_said_as_the_registrar_says_it() {
    struct Moody;
    impl Registrar for Moody {
        type Handle = ();
        fn register(&self, _: Range, _: Access) -> Result<(), RegisterError> {
            Err(RegisterError::Failed(io::Error::other("not in the mood")))
        }
        fn deregister(&self, _: Range, (): ()) {}
    }
    let cache = Cache::new(&AddressSpace::new(), Moody, Options::default());
    let mapped = Range::with_len(std::ptr::from_ref(&cache) as usize, 1).unwrap();
    let error = cache.get(mapped, Access::ReadWrite).unwrap_err().to_string();
    assert!(error.ends_with("could not be registered for reading and writing: not in the mood"), "{error}");
}

#[test]
fn a_full_table_in_use_says_so() {
    let rig = Rig::with(Device::default(), Options { entries: 3, ..Options::default() });
    let held: Vec<_> = (0..3).map(|at| rig.cache.get(range(at..at + 1), Access::Read).unwrap()).collect();
    let error = rig.cache.get(range(7..8), Access::Read).unwrap_err();
    assert_eq!(
        error.to_string(),
        "[0x1000007000, 0x1000008000) cannot be registered: all 3 entries of the cache are in use (drop registrations, or make the cache with more entries)"
    );
    drop(held);
    rig.get(7..8);
}

#[test]
fn too_many_bytes_in_use_say_so() {
    let rig = Rig::with(Device::default(), Options { bytes: 8 * 4096, ..Options::default() });
    let held = rig.cache.get(range(0..6), Access::Read).unwrap();
    let error = rig.cache.get(range(10..13), Access::Read).unwrap_err();
    assert_eq!(
        error.to_string(),
        "[0x100000a000, 0x100000d000) cannot be registered: 24576 bytes are in use or not yet released of the 32768 that may be registered (drop registrations, or make the cache with more bytes)"
    );
    rig.get(10..12);
    drop(held);
    rig.get(10..13);
    let error = rig.cache.get(range(20..29), Access::Read).unwrap_err();
    assert!(matches!(error, GetError::TooMuch { limit: 32768, .. }), "more than there can ever be: {error}");
    assert_eq!(rig.cache.stats().entries, 1, "and for that nothing was evicted");
}

#[test]
fn memory_that_never_settles_says_so() {
    let rig = Rig::with(Device::default(), Options { attempts: 5, ..Options::default() });
    let space = rig.space.clone();
    rig.device.on_register(move |range| space.invalidate(range, mmu_notifier::Event::Clear, || ()));
    let error = rig.cache.get(range(0..1), Access::Read).unwrap_err();
    assert_eq!(
        error.to_string(),
        "[0x1000000000, 0x1000001000) could not be registered: it changed during each of 5 attempts"
    );
    assert_is_clean(&rig);
    let stats = rig.cache.stats();
    assert_eq!((stats.registered, stats.deregistered, stats.retries), (5, 5, 4));
    rig.device.do_nothing_else();
    rig.get(0..1);
}

#[test]
#[should_panic(expected = "the alignment of a registrar is a power of two, not 12")]
fn an_alignment_that_is_no_power_of_two_is_a_bug() {
    Rig::with(Device { alignment: Some(12), ..Device::default() }, Options::default());
}

#[test]
fn a_failed_request_does_not_end_what_others_hold() {
    let rig = Rig::new();
    let held = rig.cache.get(range(0..4), Access::Read).unwrap();
    rig.device.read_only_from.store(1, SeqCst);
    rig.cache.get(range(1..2), Access::Write).unwrap_err();
    assert!(held.is_current());
    assert_eq!(rig.get(1..2), *held.handle());
}

#[test]
fn statistics_read_well() {
    let cache = Cache::new(&AddressSpace::new(), Unregistered, Options::default());
    assert_eq!(cache.stats().to_string().lines().next(), Some("registered    0 B in 0 entries"));
    let rig = Rig::new();
    for _ in 0..9 {
        rig.get(0..600);
    }
    rig.unmap(0..1);
    rig.get(4..5);
    let text = rig.cache.stats().to_string();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "registered    4.0 KiB in 1 entries");
    assert_eq!(lines[1], "unreleased    0 B now, 2.3 MiB at most");
    assert_eq!(lines[2], "requests      10: 8 hits (80.0 %), 2 misses");
    assert_eq!(lines[3], "ended by      unmap 1");
    assert!(lines[4].starts_with("memory "), "{text}");
}
