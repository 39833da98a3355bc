//! Whoever changes the memory of a rewritten place, or looks at it, finds what the program has made.

// UNSAFETY: changes memory of the tests'.
#![expect(unsafe_code)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use mmu_notifier::{Change, Refuser, WouldBlock};
use mmu_notifier_primary::{Options, Primary, Strict};

use crate::place::{
    ALL, HOT, NOWHERE, PAGE, Place, READ, READ_EXECUTE, READ_WRITE, RETURN, Since, map, protect, unmap,
};
use crate::{IN_START, IN_START_OF};

pub(crate) fn code_that_is_made_writable_is_the_programs_own_before(primary: &'static Primary) {
    let place = Place::made(200, &RETURN);
    let own = place.bytes();
    for round in 0..20 {
        let since = Since::now(primary);
        place.heat();
        place.call_many(100);
        assert_eq!((since.traps(primary), since.told()), (HOT, HOT + 100), "round {round}");
        // Other rights, whichever.
        protect(place.page(), [READ_WRITE, ALL, READ][round % 3]);
        assert_eq!(place.bytes(), own, "round {round}");
        if round % 3 != 2 {
            // Other code: the call's result and one more.
            let other = Place::write(place.address(), &[0x48, 0xff, 0xc0, 0xc3]);
            protect(place.page(), READ_EXECUTE);
            let before = Since::now(primary);
            for _ in 0..2 * HOT {
                assert_eq!(other.call(NOWHERE, PAGE, libc::SYS_munmap), 1);
            }
            assert_eq!(before.told(), 2 * HOT);
            protect(place.page(), READ_WRITE);
            assert_eq!(other.bytes()[2..], [0x48, 0xff, 0xc0]);
            Place::write(place.address(), &RETURN);
        }
        protect(place.page(), READ_EXECUTE);
    }
    assert_eq!(place.bytes(), own);
    unmap(place.page(), PAGE);
}

pub(crate) fn also_where_nobody_is_subscribed_code_is_the_programs_own(primary: &'static Primary) {
    let place = Place::made(1400, &RETURN);
    let own = place.bytes();
    for _ in 0..3 {
        let since = Since::now(primary);
        place.heat();
        place.call_many(100);
        assert_eq!(since.traps(primary), HOT);
        protect(place.page(), READ_WRITE);
        assert_eq!(place.bytes(), own);
        protect(place.page(), READ_EXECUTE);
    }
    unmap(place.page(), PAGE);
}

pub(crate) fn other_code_where_a_place_was_is_not_touched(primary: &'static Primary) {
    let place = Place::made(300, &RETURN);
    let page = place.page();
    for round in 0..20 {
        place.heat();
        // Replaced, or unmapped and mapped again, or moved away and back.
        match round % 3 {
            0 => assert_eq!(map(page, PAGE, READ_WRITE, libc::MAP_FIXED), page),
            1 => {
                unmap(page, PAGE);
                assert_eq!(map(page, PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE), page);
            }
            _ => {
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                let (from, to) = (page as *mut libc::c_void, (page + 2 * PAGE) as *mut libc::c_void);
                // SAFETY: memory of the test's.
                let moved = unsafe { libc::mremap(from, PAGE, PAGE, flags, to) };
                assert_eq!(moved, to);
                let moved = Place(place.0 + 2 * PAGE);
                assert!(!moved.is_rewritten(), "it has gone along");
                let since = Since::now(primary);
                moved.call_many(3 * HOT);
                assert_eq!(since.told(), 3 * HOT);
                unmap(to as usize, PAGE);
                assert_eq!(map(page, PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE), page);
            }
        }
        // Bytes that a jump of ours would have, and others: data.
        let data = if round % 2 == 0 { [0xe9, 5, 0xc3, 0xcc, 0xcc] } else { [1, 2, 3, 4, 5] };
        // SAFETY: writable memory of the test's.
        unsafe { (place.address() as *mut [u8; 5]).write(data) };
        protect(page, READ);
        assert_eq!(place.bytes(), data);
        protect(page, READ_WRITE);
        Place::write(place.address(), &RETURN);
        protect(page, READ_EXECUTE);
    }
    unmap(page, PAGE);
}

pub(crate) fn what_is_discarded_was_put_back_before(_: &'static Primary) {
    let place = Place::made(400, &RETURN);
    place.heat();
    // SAFETY: memory of the test's.
    let result = unsafe { libc::madvise(place.page() as *mut _, PAGE, libc::MADV_DONTNEED) };
    assert_eq!((result, place.bytes()), (0, [0; 5]));
    protect(place.page(), READ_WRITE);
    Place::write(place.address(), &RETURN);
    protect(place.page(), READ_EXECUTE);
    place.heat();
    unmap(place.page(), PAGE);
}

pub(crate) fn while_its_memory_is_changing_a_place_is_not_rewritten(primary: &'static Primary) {
    let place = Place::made(1100, &RETURN);
    let own = place.bytes();
    IN_START.store(place.0, SeqCst);
    IN_START_OF.store(place.page(), SeqCst);
    let since = primary.traps();
    // Becomes hot when a change of it has begun.
    protect(place.page(), READ_WRITE);
    IN_START_OF.store(0, SeqCst);
    assert_eq!(place.bytes(), own);
    let now = primary.traps();
    assert_eq!((now.calls - since.calls, now.rewritten - since.rewritten), (4 * HOT, 0));
    protect(place.page(), READ_EXECUTE);
    place.call_many(HOT);
    assert!(place.is_rewritten());
    unmap(place.page(), PAGE);
}

/// Refuses what changes there, if it can be refused.
struct Refuses(usize, AtomicU64);

impl Refuser for Refuses {
    fn start(&self, _: &Change) {}

    fn try_start(&self, change: &Change) -> Result<(), WouldBlock> {
        if change.range().start() != self.0 {
            return Ok(());
        }
        self.1.fetch_add(1, SeqCst);
        Err(WouldBlock)
    }
}

pub(crate) fn code_is_put_back_also_before_changes_that_are_refused(primary: &'static Primary) {
    static PAGE_OF_IT: AtomicUsize = AtomicUsize::new(0);
    // In a handler nobody may wait.
    extern "C" fn handler(_: i32) {
        protect(PAGE_OF_IT.load(SeqCst), READ_WRITE);
    }
    extern "C" fn gone(_: i32) {
        unmap(PAGE_OF_IT.load(SeqCst), PAGE);
    }
    let place = Place::made(1500, &RETURN);
    let own = place.bytes();
    PAGE_OF_IT.store(place.page(), SeqCst);
    place.heat();
    let refuses = Arc::new(Refuses(place.page(), AtomicU64::new(0)));
    let subscription = primary.space().subscribe_refuser(refuses.clone());
    // SAFETY: a handler that makes a call of the test's.
    unsafe { libc::signal(libc::SIGUSR1, handler as *const () as usize) };
    // SAFETY: it has a handler.
    assert_eq!(unsafe { libc::raise(libc::SIGUSR1) }, 0);
    // Made at once, as it takes nothing, and told later.
    assert!(refuses.1.load(SeqCst) > 0);
    assert_eq!(place.bytes(), own);
    protect(place.page(), READ_EXECUTE);
    // Made later.
    let intact = primary.check_code().expect("there is /proc").intact;
    place.heat();
    let before = refuses.1.load(SeqCst);
    // SAFETY: a handler that makes a call of the test's.
    unsafe { libc::signal(libc::SIGUSR1, gone as *const () as usize) };
    // SAFETY: it has a handler.
    assert_eq!(unsafe { libc::raise(libc::SIGUSR1) }, 0);
    assert!(refuses.1.load(SeqCst) > before);
    drop(subscription);
    while primary.quarantined() != (0, 0) {
        std::thread::yield_now();
    }
    let check = primary.check_code().expect("there is /proc");
    assert_eq!((check.intact, &check.faults[..]), (intact, &[][..]));
}

pub(crate) fn code_is_put_back_also_while_the_hook_is_switched_off(primary: &'static Primary) {
    let place = Place::made(1600, &RETURN);
    let own = place.bytes();
    place.heat();
    primary.uninstall();
    protect(place.page(), READ_WRITE);
    assert_eq!(place.bytes(), own);
    protect(place.page(), READ_EXECUTE);
    place.call_many(2 * HOT);
    unmap(place.page(), PAGE);
    let options = Options { strict: Strict::Always, ..Options::default() };
    Primary::install(&options).expect("it was installed");
}

pub(crate) fn a_check_knows_what_was_rewritten_and_sees_who_writes_over_it(primary: &'static Primary) {
    let place = Place::made(1300, &RETURN);
    let before = primary.check_code().expect("there is /proc");
    place.heat();
    let check = primary.check_code().expect("there is /proc");
    assert_eq!((check.intact, &check.faults[..]), (before.intact + 1, &[][..]));
    let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem").expect("there is /proc");
    let [jump, own] = [place.bytes(), [0x0f, 5, 0xc3, 0xcc, 0xcc]];
    let say = |bytes: &[u8], at: usize, was: &[u8]| {
        memory.write_all_at(bytes, at as u64).expect("code can be written");
        let check = primary.check_code().expect("there is /proc");
        memory.write_all_at(was, at as u64).expect("code can be written");
        assert_eq!(check.faults.len(), 1, "{check:#?}");
        assert_eq!(check.faults[0].address, place.address());
        check.faults[0].to_string()
    };
    let written = say(&[0xe9, 0, 0, 0, 0], place.address(), &jump);
    assert!(written.contains("written over the jump") && written.contains("without a file"), "{written}");
    let back = say(&own, place.address(), &jump);
    assert!(back.contains("own code back"), "{back}");
    // SAFETY: what was written there is readable.
    let landing = unsafe { *(place.target() as *const [u8; 8]) };
    let gone = say(&[0xcc; 8], place.target(), &landing);
    assert!(gone.contains("the next such call crashes"), "{gone}");
    // What the program changes is no fault.
    protect(place.page(), READ_WRITE);
    let check = primary.check_code().expect("there is /proc");
    assert_eq!((check.intact, &check.faults[..]), (before.intact, &[][..]));
    unmap(place.page(), PAGE);
}
