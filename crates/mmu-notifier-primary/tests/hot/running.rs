//! Whatever runs a place while it is rewritten finds the call, once, and nothing else changed.

// UNSAFETY: signals, forks, and calls code of the tests'.
#![expect(unsafe_code)]

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use mmu_notifier_primary::Primary;

use crate::COUNTS;
use crate::place::{ALL, HOT, NOWHERE, PAGE, Place, READ_EXECUTE, READ_WRITE, RETURN, Since, protect, unmap};

pub(crate) fn a_hot_place_is_rewritten_and_nothing_is_missed(primary: &'static Primary) {
    let place = Place::made(100, &RETURN);
    let since = Since::now(primary);
    place.call_many(HOT - 1);
    assert!(!place.is_rewritten());
    place.call_many(1);
    assert!(place.is_rewritten());
    assert_eq!(place.bytes()[2..], RETURN);
    place.call_many(100_000 - HOT);
    assert_eq!((since.traps(primary), since.told()), (HOT, 100_000));
    assert_eq!((since.rewritten(primary), since.kept(primary)), (1, 0));
    // Calls that are none of memory, and that fail.
    assert_eq!(place.call(0, 0, libc::SYS_getpid), std::process::id() as isize);
    assert_eq!(place.call(1, PAGE, libc::SYS_munmap), -(libc::EINVAL as isize));
    assert_eq!(since.traps(primary), HOT);
    unmap(place.page(), PAGE);
}

pub(crate) fn eight_threads_call_a_place_while_it_is_rewritten(primary: &'static Primary) {
    const THREADS: u64 = 8;
    const EACH: u64 = 4_000;
    static GO: AtomicBool = AtomicBool::new(false);
    // Over the end of a cache line, too.
    for offset in [60, 61, 63, 64, 127, 4000] {
        let place = Place::made(offset, &RETURN);
        let since = Since::now(primary);
        GO.store(false, SeqCst);
        let thread = move || {
            while !GO.load(SeqCst) {
                std::hint::spin_loop();
            }
            place.call_many(EACH);
        };
        let threads: Vec<_> = (0..THREADS).map(|_| std::thread::spawn(thread)).collect();
        GO.store(true, SeqCst);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(place.is_rewritten(), "{place:?} {:x?} {:?}", place.target(), primary.traps());
        assert!(since.traps(primary) >= HOT);
        assert_eq!(since.told(), THREADS * EACH);
        let since = Since::now(primary);
        place.call_many(100);
        assert_eq!(since.traps(primary), 0);
        unmap(place.page(), PAGE);
    }
}

pub(crate) fn whoever_comes_behind_the_call_finds_what_was_there(primary: &'static Primary) {
    // mov %edi, %eax; ret: with the byte that follows, 1 GiB down.
    let place = Place::made(500, &[0x89, 0xf8, 0xc3]);
    for _ in 0..HOT {
        assert_eq!(place.call(NOWHERE, PAGE, libc::SYS_munmap), NOWHERE as isize);
    }
    assert!(place.is_rewritten());
    let since = Since::now(primary);
    let behind = Place(place.address() + 2);
    assert_eq!(behind.call(1234, 0, 0), 1234);
    assert_eq!((since.traps(primary), since.told()), (0, 0));
    // And who comes to the call itself.
    assert_eq!(place.call(NOWHERE, PAGE, libc::SYS_munmap), NOWHERE as isize);
    assert_eq!((since.traps(primary), since.told()), (0, 1));
    unmap(place.page(), PAGE);
}

pub(crate) fn signals_in_the_middle_change_nothing(primary: &'static Primary) {
    const CALLS: u64 = 30_000;
    static PLACE: AtomicUsize = AtomicUsize::new(0);
    static CAME: AtomicU64 = AtomicU64::new(0);
    // Of these calls: what each subscriber has heard, and those that none has.
    static HEARD: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    static MISSED: AtomicU64 = AtomicU64::new(0);
    extern "C" fn handler(_: i32) {
        let heard = || COUNTS.each_ref().map(|count| [count.starts.load(SeqCst), count.ends.load(SeqCst)]);
        let before = heard();
        Place(PLACE.load(SeqCst)).call_many(1);
        let after = heard();
        let mut missed = true;
        for ((heard, before), after) in HEARD.iter().zip(before).zip(after) {
            // It may have interrupted the callback that counts, or one that is not told of it.
            let now = after[0] - before[0];
            missed &= (now, after[1] - before[1]) != (1, 1);
            heard.fetch_add(now, SeqCst);
        }
        MISSED.fetch_add(u64::from(missed), SeqCst);
        CAME.fetch_add(1, SeqCst);
    }
    let place = Place::made(600, &RETURN);
    PLACE.store(place.0, SeqCst);
    let since = Since::now(primary);
    // SAFETY: a handler that makes calls of the test's.
    unsafe { libc::signal(libc::SIGUSR1, handler as *const () as usize) };
    // SAFETY: the calling thread.
    let target = unsafe { libc::pthread_self() } as usize;
    let done = AtomicBool::new(false);
    let mut rewritten = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                // SAFETY: a thread that waits for this one.
                unsafe { libc::pthread_kill(target as libc::pthread_t, libc::SIGUSR1) };
                std::thread::yield_now();
            }
        });
        // Each time as if it had never been trapped.
        for _ in 0..CALLS / 100 {
            place.call_many(100);
            // Nearly always: not while handlers have made it hot when it was writable.
            rewritten += u64::from(place.is_rewritten());
            // It stays executable, as the handler runs it.
            protect(place.page(), ALL);
            protect(place.page(), READ_EXECUTE);
        }
        done.store(true, SeqCst);
    });
    assert!(CAME.load(SeqCst) > 0 && rewritten > 0);
    assert_eq!(MISSED.load(SeqCst), 0);
    assert_eq!(since.each_told(), HEARD.each_ref().map(|heard| CALLS + heard.load(SeqCst)));
    unmap(place.page(), PAGE);
}

pub(crate) fn what_handlers_return_by_stays_what_debuggers_know(_: &'static Primary) {
    extern "C" fn handler(_: i32) {}
    // SAFETY: a handler that does nothing.
    unsafe { libc::signal(libc::SIGUSR1, handler as *const () as usize) };
    for _ in 0..4 * HOT {
        // SAFETY: it has a handler.
        assert_eq!(unsafe { libc::raise(libc::SIGUSR1) }, 0);
    }
    // As the kernel has it: handler, flags, restorer, mask.
    let mut action = [0usize; 4];
    let (number, signal, none) = (libc::SYS_rt_sigaction, libc::SIGUSR1, std::ptr::null::<usize>());
    // SAFETY: room for the kernel's structure.
    assert_eq!(unsafe { libc::syscall(number, signal, none, action.as_mut_ptr(), 8usize) }, 0);
    // SAFETY: code of the C library: mov $15, %rax; syscall.
    let code = unsafe { (action[2] as *const [u8; 9]).read_volatile() };
    assert_eq!(code, [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05]);
}

pub(crate) fn a_call_that_waits_is_started_again_by_the_jump(_: &'static Primary) {
    extern "C" fn handler(_: i32) {}
    let place = Place::made(700, &RETURN);
    place.heat();
    // SAFETY: all zeroes are an action; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut());
    }
    let mut pipe = [0; 2];
    // SAFETY: room for two numbers.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    let waiting = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: the calling thread.
            waiting.store(unsafe { libc::pthread_self() } as usize, SeqCst);
            // read(fd, .., 1), whose third argument is the number: 0.
            assert_eq!(place.call(pipe[0] as usize, 0, libc::SYS_read), 0);
            let mut byte = 0u8;
            // SAFETY: room for a byte.
            assert_eq!(unsafe { libc::read(pipe[0], (&raw mut byte).cast(), 1) }, 1);
        });
        while waiting.load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        for _ in 0..100 {
            // SAFETY: a thread that this one waits for.
            unsafe { libc::pthread_kill(waiting.load(SeqCst) as libc::pthread_t, libc::SIGUSR2) };
            std::thread::yield_now();
        }
        // SAFETY: a byte.
        assert_eq!(unsafe { libc::write(pipe[1], [1u8].as_ptr().cast(), 1) }, 1);
    });
    unmap(place.page(), PAGE);
}

pub(crate) fn a_forked_child_has_a_copy_of_its_own(primary: &'static Primary) {
    let (old, new) = (Place::made(800, &RETURN), Place::made(900, &RETURN));
    old.heat();
    for _ in 0..20 {
        // SAFETY: the child makes calls of the test's, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let since = primary.traps().calls;
            // Rewritten already; put back here; another one.
            old.call_many(100);
            let quiet = primary.traps().calls == since;
            protect(old.page(), READ_WRITE);
            let back = !old.is_rewritten();
            protect(old.page(), READ_EXECUTE);
            new.call_many(100);
            let few = primary.traps().calls - since <= HOT + 1;
            let ok = quiet && back && few && new.is_rewritten();
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!ok)) };
        }
        let mut status = 0;
        // SAFETY: the child of this process.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        assert!(old.is_rewritten() && !new.is_rewritten());
    }
    let since = Since::now(primary);
    old.call_many(10);
    assert_eq!((since.traps(primary), since.told()), (0, 10));
    unmap(old.page(), PAGE);
    unmap(new.page(), PAGE);
}

pub(crate) fn code_that_threads_run_and_change_by_turns_is_never_mixed_up(primary: &'static Primary) {
    const ROUNDS: u64 = 100;
    let place = Place::made(1200, &RETURN);
    let own = place.bytes();
    let since = Since::now(primary);
    static RUN: AtomicBool = AtomicBool::new(true);
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let threads: Vec<_> = (0..3)
        .map(|_| {
            std::thread::spawn(move || {
                while RUN.load(SeqCst) {
                    place.call_many(10);
                    CALLS.fetch_add(10, SeqCst);
                }
            })
        })
        .collect();
    for _ in 0..ROUNDS {
        // It stays executable, as others run it.
        protect(place.page(), ALL);
        assert_eq!(place.bytes(), own);
        std::thread::yield_now();
        assert_eq!(place.bytes(), own);
        protect(place.page(), READ_EXECUTE);
        std::thread::yield_now();
    }
    RUN.store(false, SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(since.told(), CALLS.load(SeqCst));
    unmap(place.page(), PAGE);
}
