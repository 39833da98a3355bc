//! The net of userfaultfd: changes that no system call of this process makes are announced.
//!
//! Nothing is intercepted here, so every change is one that nobody else sees.

// UNSAFETY: memory system calls, and a ring whose operations change memory.
#![expect(unsafe_code)]

use std::collections::HashSet;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use io_uring::{IoUring, opcode};
use mmu_notifier::{AddressSpace, Change, Event, Range, Refuser, Subscriber, WouldBlock};
use mmu_notifier_primary::userfault::{Net, NetError};

const PAGE: usize = 4096;

fn map_at(at: *mut libc::c_void, pages: usize, flags: i32) -> *mut libc::c_void {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags);
    // SAFETY: a new mapping; fixed ones replace memory of the test.
    let at = unsafe { libc::mmap(at, pages * PAGE, protection, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at
}

fn map(pages: usize) -> *mut libc::c_void {
    map_at(null_mut(), pages, 0)
}

fn range(at: *mut libc::c_void, pages: usize) -> Range {
    Range::with_len(at as usize, pages * PAGE).unwrap()
}

/// A net, or a loud word.
fn net(test: &str, space: &AddressSpace) -> Option<Net> {
    match Net::new(space) {
        Ok(net) => Some(net),
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {error}");
            None
        }
    }
}

/// What was announced.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<HashSet<(Event, usize, usize)>>>);

impl Told {
    fn take(&self) -> Vec<(Event, usize, usize)> {
        let mut told: Vec<_> = self.0.lock().unwrap().drain().collect();
        told.sort_by_key(|(event, start, end)| (*start, *end, *event as usize));
        told
    }
}

impl Subscriber for Told {
    fn start(&self, change: &Change) {
        self.0.lock().unwrap().insert((change.event(), change.range().start(), change.range().end()));
    }

    fn end(&self, _: &Change) {}
}

#[test]
fn what_io_uring_discards_is_announced() {
    let test = "what_io_uring_discards_is_announced";
    let space = AddressSpace::new();
    let told = Told::default();
    let _subscription = space.subscribe(told.clone());
    let Some(net) = net(test, &space) else { return };
    let mut ring = match IoUring::new(4) {
        Ok(ring) => ring,
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: no io_uring: {error}");
            return;
        }
    };
    let at = map(4);
    let mut discard = |page: usize| {
        let page = at.cast::<u8>().wrapping_add(page * PAGE);
        // SAFETY: a page of the test.
        unsafe { page.write_volatile(7) };
        let madvise = opcode::Madvise::new(page.cast(), PAGE as i64, libc::MADV_DONTNEED).build();
        // SAFETY: the memory is the test's and stays mapped.
        unsafe { ring.submission().push(&madvise) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        assert_eq!(ring.completion().next().unwrap().result(), 0);
        // SAFETY: as above.
        assert_eq!(unsafe { page.read_volatile() }, 0, "it was discarded");
    };
    // Without registering it nobody hears of it: this is what the net is for.
    discard(1);
    net.settle();
    assert_eq!((told.take(), net.heard()), (vec![], 0));
    let registered = net.register(range(at, 4)).unwrap();
    discard(2);
    net.settle();
    let third = at as usize + 2 * PAGE;
    assert_eq!(told.take(), [(Event::Clear, third, third + PAGE)]);
    // Who asks again within a tenth of a second is told again. (It may have gone by before somebody looked.)
    let again = (0..20).any(|_| {
        discard(2);
        net.settle();
        told.take();
        net.settle();
        !told.take().is_empty()
    });
    assert!(again);
    drop(registered);
    let heard = net.heard();
    discard(3);
    assert_eq!(net.heard(), heard);
}

#[test]
fn what_is_unmapped_moved_or_replaced_is_announced() {
    let space = AddressSpace::new();
    let told = Told::default();
    let _subscription = space.subscribe(told.clone());
    let Some(net) = net("what_is_unmapped_moved_or_replaced_is_announced", &space) else { return };
    let at = map(8);
    let page = |number: usize| at.wrapping_byte_add(number * PAGE);
    let (event, start) = (Event::Unmap, at as usize);
    let _registered = net.register(range(at, 8)).unwrap();
    // SAFETY: memory of the test.
    assert_eq!(unsafe { libc::munmap(page(7), PAGE) }, 0);
    net.settle();
    assert_eq!(told.take(), [(event, start + 7 * PAGE, start + 8 * PAGE)]);
    map_at(page(6), 1, libc::MAP_FIXED);
    net.settle();
    assert_eq!(told.take(), [(event, start + 6 * PAGE, start + 7 * PAGE)]);
    // SAFETY: as above; what was there is nobody's any more.
    let moved = unsafe { libc::mremap(page(0), 2 * PAGE, 4 * PAGE, libc::MREMAP_MAYMOVE) };
    assert_ne!(moved, libc::MAP_FAILED);
    assert_ne!(moved, at, "there is no room to grow");
    net.settle();
    assert_eq!(told.take(), [(event, start, start + 2 * PAGE)]);
    // And where it moved it is registered still.
    // SAFETY: as above.
    assert_eq!(unsafe { libc::munmap(moved, PAGE) }, 0);
    net.settle();
    assert_eq!(told.take(), [(event, moved as usize, moved as usize + PAGE)]);
}

/// What else `docs/limits.md` says of it.
#[test]
fn of_the_rest_it_is_not_told() {
    let test = "of_the_rest_it_is_not_told";
    let space = AddressSpace::new();
    let told = Told::default();
    let _subscription = space.subscribe(told.clone());
    let Some(net) = net(test, &space) else { return };
    let at = map(2);
    let _registered = net.register(range(at, 2)).unwrap();
    // SAFETY: here and below, memory of the test.
    unsafe { at.cast::<u8>().write_volatile(7) };
    const MADV_GUARD_INSTALL: libc::c_int = 102;
    let guard = at.wrapping_byte_add(PAGE);
    // SAFETY: see above.
    unsafe {
        assert_eq!(libc::mprotect(at, PAGE, libc::PROT_READ), 0);
        assert_eq!(libc::madvise(at, PAGE, libc::MADV_PAGEOUT), 0);
        if libc::madvise(guard, PAGE, MADV_GUARD_INSTALL) != 0 {
            eprintln!("SKIPPED: {test}: no MADV_GUARD_INSTALL");
        }
    }
    net.settle();
    assert_eq!(told.take(), []);
    // Another process may give hints only. SAFETY: the child makes system calls only, and leaves.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            let parent = libc::syscall(libc::SYS_pidfd_open, libc::getppid(), 0);
            let page = libc::iovec { iov_base: at, iov_len: PAGE };
            let (call, advice) = (libc::SYS_process_madvise, libc::MADV_DONTNEED);
            let refused = libc::syscall(call, parent, &raw const page, 1, advice, 0) == -1;
            libc::_exit(i32::from(!(parent >= 0 && refused && *libc::__errno_location() == libc::EINVAL)));
        }
    }
    let mut status = 0;
    // SAFETY: the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    // SAFETY: see above.
    assert_eq!(unsafe { at.cast::<u8>().read_volatile() }, 7);
}

#[test]
fn what_cannot_be_registered_is_an_error_that_says_so() {
    let space = AddressSpace::new();
    let Some(net) = net("what_cannot_be_registered_is_an_error_that_says_so", &space) else { return };
    let at = map(1);
    let one = net.register(range(at, 1)).unwrap();
    let Some(other) = self::net("", &space) else { return };
    let busy = other.register(range(at, 1)).unwrap_err();
    assert_eq!(busy, NetError::NotRegistered { range: range(at, 1), errno: libc::EBUSY });
    assert!(busy.to_string().contains("cannot register"), "{busy}");
    drop(one);
    drop(other.register(range(at, 1)).unwrap());
    // Far from where the kernel puts what the other tests map meanwhile.
    let nowhere = std::ptr::without_provenance_mut(0x1234_5000_0000);
    assert!(net.register(range(nowhere, 1)).is_err(), "not mapped");
}

/// Between the end of a call and the next lookup lies `settle`: nothing stale is ever found.
#[test]
fn no_lookup_after_settling_is_stale() {
    /// A cache of one page: whether it is held.
    struct Cache(Arc<AtomicUsize>);
    impl Subscriber for Cache {
        fn start(&self, _: &Change) {
            self.0.store(0, SeqCst);
        }
        fn end(&self, _: &Change) {}
    }
    let space = AddressSpace::new();
    let cache = Arc::new(AtomicUsize::new(0));
    let _subscription = space.subscribe(Cache(cache.clone()));
    let Some(net) = net("no_lookup_after_settling_is_stale", &space) else { return };
    let at = map(1);
    for _ in 0..20_000 {
        let registered = net.register(range(at, 1)).unwrap();
        cache.store(at as usize, SeqCst);
        map_at(at, 1, libc::MAP_FIXED);
        net.settle();
        assert_eq!(cache.load(SeqCst), 0, "the page that was held is gone");
        core::mem::forget(registered);
    }
    assert_eq!(net.heard(), 20_000);
}

#[test]
fn who_refuses_is_asked_until_he_does_not() {
    struct Busy(Arc<AtomicU32>);
    impl Refuser for Busy {
        fn start(&self, _: &Change) {
            panic!("nobody may wait");
        }
        fn try_start(&self, _: &Change) -> Result<(), WouldBlock> {
            let left = self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
            if left.is_ok() { Err(WouldBlock) } else { Ok(()) }
        }
    }
    let space = AddressSpace::new();
    let left = Arc::new(AtomicU32::new(100));
    let _subscription = space.subscribe_refuser(Busy(left.clone()));
    let Some(net) = net("who_refuses_is_asked_until_he_does_not", &space) else { return };
    let at = map(64);
    let _registered = net.register(range(at, 64)).unwrap();
    // More than are remembered one by one; nobody is held up by those who refuse.
    for page in (0..64).step_by(2) {
        // SAFETY: memory of the test.
        assert_eq!(unsafe { libc::munmap(at.wrapping_byte_add(page * PAGE), PAGE) }, 0);
    }
    net.settle();
    assert_eq!(left.load(SeqCst), 0);
}

/// A callback that takes a lock, and a thread that holds it while its memory goes: as long as the callback does not
/// wait where it must not, everybody comes through.
#[test]
fn who_is_held_up_may_hold_any_lock() {
    struct Locking(Arc<Mutex<u64>>, Arc<AtomicU64>);
    impl Refuser for Locking {
        fn start(&self, _: &Change) {
            panic!("nobody may wait");
        }
        fn try_start(&self, _: &Change) -> Result<(), WouldBlock> {
            *self.0.try_lock().map_err(|_| WouldBlock)? += 1;
            self.1.fetch_add(1, SeqCst);
            Ok(())
        }
    }
    let space = AddressSpace::new();
    let (lock, told) = (Arc::new(Mutex::new(0)), Arc::new(AtomicU64::new(0)));
    let _subscription = space.subscribe_refuser(Locking(lock.clone(), told.clone()));
    let Some(net) = net("who_is_held_up_may_hold_any_lock", &space) else { return };
    let threads: Vec<_> = (0..4).map(|_| (lock.clone(), map(1) as usize)).collect();
    std::thread::scope(|scope| {
        for (lock, at) in &threads {
            let net = &net;
            scope.spawn(move || {
                let at = *at as *mut libc::c_void;
                for _ in 0..500 {
                    let registered = net.register(range(at, 1)).unwrap();
                    let mut held = lock.lock().unwrap();
                    map_at(at, 1, libc::MAP_FIXED);
                    *held += 1;
                    drop(held);
                    drop(registered);
                }
            });
        }
    });
    net.settle();
    assert!(told.load(SeqCst) > 0);
}

#[test]
fn a_forked_child_leaves_the_net_alone() {
    let space = AddressSpace::new();
    let told = Told::default();
    let _subscription = space.subscribe(told.clone());
    let Some(net) = net("a_forked_child_leaves_the_net_alone", &space) else { return };
    let (at, stay) = (map(2), Arc::new(AtomicBool::new(true)));
    let registered = net.register(range(at, 1)).unwrap();
    let other = net.register(range(at.wrapping_byte_add(PAGE), 1)).unwrap();
    core::mem::forget(other);
    // SAFETY: the child makes plain system calls and drops what it must not touch.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: memory of the child, of which nobody is told.
        let unmapped = unsafe { libc::munmap(at, PAGE) };
        drop(registered);
        drop(net);
        // Until it is killed: it holds the userfaultfd open.
        while stay.load(SeqCst) && unmapped == 0 {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
        // SAFETY: the child ends here.
        unsafe { libc::_exit(1) };
    }
    assert!(child > 0);
    // SAFETY: memory of the test.
    assert_eq!(unsafe { libc::munmap(at, PAGE) }, 0);
    net.settle();
    assert_eq!(told.take(), [(Event::Unmap, at as usize, at as usize + PAGE)]);
    drop(registered);
    // Nobody listens after this, the child has the descriptor, and one page was forgotten, and moved: still it can be
    // unmapped.
    let (page, far) = (at.wrapping_byte_add(PAGE), map(1 << 10));
    let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: both are memory of the test.
    assert_eq!(unsafe { libc::mremap(page, PAGE, PAGE, how, far) }, far);
    drop(net);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::munmap(far, PAGE) }, 0);
    // SAFETY: the child of this test.
    assert_eq!(unsafe { libc::kill(child, libc::SIGKILL) }, 0);
    let mut status = 0;
    // SAFETY: writes to `status`.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!((libc::WIFSIGNALED(status), libc::WTERMSIG(status)), (true, libc::SIGKILL));
}
