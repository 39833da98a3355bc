//! Places that are trapped again and again are rewritten while they run, and no code that the program can see is other than
//! it has made it.
//!
//! The tests run one after the other in the first thread, and no harness around them: what is trapped is counted for all of a
//! process, and the threads of a harness make system calls of their own.

// UNSAFETY: makes code, runs and changes it, and makes memory system calls.
#![expect(unsafe_code)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use mmu_notifier::{Change, Event, Refuser, Subscriber, WouldBlock};
use mmu_notifier_primary::{InstallError, Options, Primary, Strict, Traps};

const PAGE: usize = 4096;
/// A place that is trapped so often is rewritten.
const HOT: u64 = 16;
/// Nobody maps anything there: what is unmapped there is counted.
const NOWHERE: usize = 0x10_0000;

const READ: i32 = libc::PROT_READ;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const READ_EXECUTE: i32 = libc::PROT_READ | libc::PROT_EXEC;
const ALL: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;

/// A place to call many times in each start of a change that begins at an address.
static IN_START: AtomicUsize = AtomicUsize::new(0);
static IN_START_OF: AtomicUsize = AtomicUsize::new(0);

/// Counts what is unmapped there, starts and ends. There are two: of a change that is made in a callback of the one, only
/// the other hears.
#[derive(Debug)]
struct Count {
    starts: AtomicU64,
    ends: AtomicU64,
}

static COUNTS: [Count; 2] = [const { Count { starts: AtomicU64::new(0), ends: AtomicU64::new(0) } }; 2];

impl Count {
    /// Changes so far: none is open.
    fn now(&self) -> u64 {
        assert_eq!(self.starts.load(SeqCst), self.ends.load(SeqCst));
        self.ends.load(SeqCst)
    }
}

struct Counts(&'static Count);

impl Subscriber for Counts {
    fn start(&self, change: &Change) {
        let range = change.range();
        let is_it = change.event() == Event::Unmap && range.start() == NOWHERE;
        self.0.starts.fetch_add(u64::from(is_it), SeqCst);
        // By one of the two.
        if core::ptr::eq(self.0, &COUNTS[0])
            && IN_START_OF.load(SeqCst) != 0
            && range.start() == IN_START_OF.load(SeqCst)
        {
            Place(IN_START.load(SeqCst)).call_many(4 * HOT);
        }
    }

    fn end(&self, change: &Change) {
        let is_it = change.event() == Event::Unmap && change.range().start() == NOWHERE;
        self.0.ends.fetch_add(u64::from(is_it), SeqCst);
    }
}

/// Runs those whose names contain the first argument: here, in the first thread.
fn main() -> ExitCode {
    let primary = match Primary::install(&Options { strict: Strict::Always, ..Options::default() }) {
        Ok(primary) => primary,
        Err(error @ InstallError::NoDispatch { .. }) => {
            println!("SKIPPED: {error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => panic!("{error}"),
    };
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let is_wanted = |(name, _): &&(&str, Test)| name.contains(&wanted);
    println!("running {} tests", ALONE.iter().chain(TESTS).filter(is_wanted).count());
    let failed = run(primary, ALONE.iter().filter(is_wanted));
    for count in &COUNTS {
        core::mem::forget(primary.space().subscribe(Counts(count)));
    }
    ExitCode::from(failed + run(primary, TESTS.iter().filter(is_wanted)))
}

type Test = fn(&'static Primary);

/// Runs them; how many have failed.
fn run<'a>(primary: &'static Primary, tests: impl Iterator<Item = &'a (&'a str, Test)>) -> u8 {
    let mut failed = 0;
    for (name, test) in tests {
        let result = catch_unwind(AssertUnwindSafe(|| test(primary)));
        IN_START_OF.store(0, SeqCst);
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        failed += u8::from(result.is_err());
    }
    failed
}

macro_rules! tests {
    ($($name:ident,)*) => { &[$((stringify!($name), $name as Test)),*] };
}

/// Those before anybody is subscribed.
const ALONE: &[(&str, Test)] = tests![also_where_nobody_is_subscribed_code_is_the_programs_own,];

const TESTS: &[(&str, Test)] = tests![
    a_hot_place_is_rewritten_and_nothing_is_missed,
    eight_threads_call_a_place_while_it_is_rewritten,
    code_that_is_made_writable_is_the_programs_own_before,
    other_code_where_a_place_was_is_not_touched,
    what_is_discarded_was_put_back_before,
    whoever_comes_behind_the_call_finds_what_was_there,
    signals_in_the_middle_change_nothing,
    what_handlers_return_by_stays_what_debuggers_know,
    a_call_that_waits_is_started_again_by_the_jump,
    a_forked_child_has_a_copy_of_its_own,
    who_confines_itself_has_its_own_code_and_no_call_but_its_own,
    where_nothing_can_be_mapped_a_place_stays_trapped,
    code_that_can_change_by_itself_stays_trapped,
    places_that_share_bytes_or_landings_are_not_rewritten_together,
    while_its_memory_is_changing_a_place_is_not_rewritten,
    code_is_put_back_also_before_changes_that_are_refused,
    code_is_put_back_also_while_the_hook_is_switched_off,
    code_that_threads_run_and_change_by_turns_is_never_mixed_up,
    a_check_knows_what_was_rewritten_and_sees_who_writes_over_it,
];

/// What has come since.
struct Since {
    traps: Traps,
    told: [u64; 2],
}

impl Since {
    fn now(primary: &Primary) -> Since {
        Since { traps: primary.traps(), told: COUNTS.each_ref().map(Count::now) }
    }

    fn traps(&self, primary: &Primary) -> u64 {
        primary.traps().calls - self.traps.calls
    }

    fn rewritten(&self, primary: &Primary) -> u64 {
        primary.traps().rewritten - self.traps.rewritten
    }

    fn kept(&self, primary: &Primary) -> u64 {
        primary.traps().kept - self.traps.kept
    }

    fn told(&self) -> u64 {
        let [one, other] = self.each_told();
        assert_eq!(one, other);
        one
    }

    fn each_told(&self) -> [u64; 2] {
        core::array::from_fn(|index| COUNTS[index].now() - self.told[index])
    }
}

fn map(at: usize, len: usize, protection: i32, flags: i32) -> usize {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: new memory, or over memory that is the test's.
    let got = unsafe { libc::mmap(at as *mut libc::c_void, len, protection, flags, -1, 0) };
    assert_ne!(got, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    got as usize
}

/// Where nothing is mapped, in reach of a jump: the C library's allocator reserves much where it may choose itself.
fn new_page() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x2000_0000_0000);
    NEXT.fetch_add(1 << 20, SeqCst)
}

fn protect(at: usize, protection: i32) {
    let page = at & !(PAGE - 1);
    // SAFETY: memory of the test's.
    let result = unsafe { libc::mprotect(page as *mut libc::c_void, PAGE, protection) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn unmap(at: usize, len: usize) {
    // SAFETY: memory of the test's.
    assert_eq!(unsafe { libc::munmap(at as *mut libc::c_void, len) }, 0);
}

/// `call(a, b, number)`: its address is that of a function of code that was made here.
#[derive(Clone, Copy, Debug)]
struct Place(usize);

/// Behind the `syscall`: `ret`. With the two bytes that follow, a jump goes 819 MiB down.
const RETURN: [u8; 3] = [0xc3, 0xcc, 0xcc];

impl Place {
    /// Bytes of a place in front of its `syscall`.
    const FRONT: usize = 2;

    /// Writes a place, so that its `syscall` is at `address`.
    fn write(address: usize, behind: &[u8]) -> Place {
        let start = address - Place::FRONT;
        // mov %edx, %eax; syscall
        let code = [&[0x89, 0xd0, 0x0f, 0x05][..], behind].concat();
        // SAFETY: writable memory of the test's.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), start as *mut u8, code.len()) };
        Place(start)
    }

    /// A new one, `offset` bytes into a page of its own, that can be executed and not written.
    fn made(offset: usize, behind: &[u8]) -> Place {
        let page = map(new_page(), PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
        let place = Place::write(page + offset, behind);
        protect(page, READ_EXECUTE);
        place
    }

    fn address(self) -> usize {
        self.0 + Place::FRONT
    }

    fn page(self) -> usize {
        self.address() & !(PAGE - 1)
    }

    /// Called until it is rewritten, which must happen.
    fn heat(self) {
        self.call_many(HOT);
        assert!(self.is_rewritten());
    }

    fn call(self, a: usize, b: usize, number: i64) -> isize {
        // SAFETY: code of that kind.
        let code: unsafe extern "C" fn(usize, usize, i64) -> isize = unsafe { std::mem::transmute(self.0) };
        // SAFETY: the tests make calls that only ask, or change memory that is theirs.
        unsafe { code(a, b, number) }
    }

    /// Unmaps a page where there is none.
    fn call_many(self, times: u64) {
        for _ in 0..times {
            assert_eq!(self.call(NOWHERE, PAGE, libc::SYS_munmap), 0);
        }
    }

    fn bytes(self) -> [u8; 5] {
        // SAFETY: readable memory of the test's.
        unsafe { (self.address() as *const [u8; 5]).read_volatile() }
    }

    /// Where its jump leads, if it is rewritten, or would be.
    fn target(self) -> usize {
        let [_, five, a, b, c] = self.bytes();
        let distance = i32::from_le_bytes([five, a, b, c]);
        (self.address() + 5).wrapping_add_signed(distance as isize)
    }

    fn is_rewritten(self) -> bool {
        let [first, second, ..] = self.bytes();
        assert!(matches!(first, 0x0f | 0xe9) && second == 5, "{:x?}", self.bytes());
        first == 0xe9
    }
}

fn a_hot_place_is_rewritten_and_nothing_is_missed(primary: &'static Primary) {
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

fn eight_threads_call_a_place_while_it_is_rewritten(primary: &'static Primary) {
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

fn code_that_is_made_writable_is_the_programs_own_before(primary: &'static Primary) {
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

fn also_where_nobody_is_subscribed_code_is_the_programs_own(primary: &'static Primary) {
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

fn other_code_where_a_place_was_is_not_touched(primary: &'static Primary) {
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

fn what_is_discarded_was_put_back_before(_: &'static Primary) {
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

fn whoever_comes_behind_the_call_finds_what_was_there(primary: &'static Primary) {
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

fn signals_in_the_middle_change_nothing(primary: &'static Primary) {
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

fn what_handlers_return_by_stays_what_debuggers_know(_: &'static Primary) {
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

fn a_call_that_waits_is_started_again_by_the_jump(_: &'static Primary) {
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

fn a_forked_child_has_a_copy_of_its_own(primary: &'static Primary) {
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

/// Confines the calling process to what the test calls, and the return from a trap: whoever calls anything else is killed.
fn confine() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // The last one is the hook's own, at the end of a process whose memory a child may share.
    let allowed = [
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_getpid,
    ];
    let step = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let [a, b, c, d, e] = allowed.map(|number| number as u32);
    // The number comes first in what the filter is given.
    let mut filter = [
        step(LOAD, 0, 0),
        step(IS, 5, a),
        step(IS, 4, b),
        step(IS, 3, c),
        step(IS, 2, d),
        step(IS, 1, e),
        step(RETURN, 0, libc::SECCOMP_RET_KILL_PROCESS),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: a filter of that length.
    let confined = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    assert!(confined);
}

fn who_confines_itself_has_its_own_code_and_no_call_but_its_own(_: &'static Primary) {
    let (old, new) = (Place::made(820, &RETURN), Place::made(920, &RETURN));
    old.heat();
    // The first trap of a place takes calls: its stub is written.
    new.call_many(1);
    // SAFETY: the child makes calls of the test's, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        confine();
        let back = !old.is_rewritten();
        old.call_many(4 * HOT);
        new.call_many(4 * HOT);
        protect(new.page(), READ_WRITE);
        let ok = back && !old.is_rewritten() && !new.is_rewritten();
        // Not by a place of the C library that has never been trapped.
        old.call(usize::from(!ok), 0, libc::SYS_exit_group);
    }
    let mut status = 0;
    // SAFETY: the child of this process.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "killed by {}, or wrong", status & 0x7f);
    assert!(old.is_rewritten());
    unmap(old.page(), PAGE);
    unmap(new.page(), PAGE);
}

/// The end, or the beginning, of the mapping with that name.
fn edge(name: &str, end: bool) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("there is /proc");
    let line = maps.lines().find(|line| line.ends_with(name)).expect("every process has one");
    let edges = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
    usize::from_str_radix(if end { edges.1 } else { edges.0 }, 16).expect("a number")
}

/// Stays trapped, and works.
fn assert_kept(primary: &Primary, place: Place) {
    let since = Since::now(primary);
    let own = place.bytes();
    place.call_many(10 * HOT);
    assert_eq!(place.bytes(), own);
    assert_eq!((since.traps(primary), since.told()), (10 * HOT, 10 * HOT));
    assert_eq!((since.rewritten(primary), since.kept(primary)), (0, 1));
}

fn where_nothing_can_be_mapped_a_place_stays_trapped(primary: &'static Primary) {
    let place = Place::made(1000, &RETURN);
    let window = place.target() & !(PAGE - 1);
    map(window, PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
    assert_kept(primary, place);
    // SAFETY: mapped above.
    assert_eq!(unsafe { *(window as *const [u8; PAGE]) }, [0; PAGE]);
    // And is rewritten once there is room.
    unmap(window, PAGE);
    place.call_many(20 * HOT);
    assert!(place.is_rewritten());
    // Then again, if somebody takes that.
    assert_eq!(map(window, PAGE, READ_WRITE, libc::MAP_FIXED), window);
    assert!(!place.is_rewritten());
    let since = Since::now(primary);
    place.call_many(3 * HOT);
    assert_eq!((since.traps(primary), since.told()), (3 * HOT, 3 * HOT));
    // SAFETY: mapped above.
    assert_eq!(unsafe { *(window as *const [u8; PAGE]) }, [0; PAGE]);
    unmap(window, PAGE);
    unmap(place.page(), PAGE);
    // Where the heap and the stack grow.
    for (name, up, behind) in [("[heap]", 64isize << 20, RETURN), ("[stack]", -32 << 20, [0xc3, 0, 1])] {
        let [b, c, d] = behind;
        let grown = edge(name, up > 0).wrapping_add_signed(up);
        let address = grown.wrapping_add_signed(-(i32::from_le_bytes([5, b, c, d]) as isize) - 5);
        let page = map(address & !(PAGE - 1), PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
        let place = Place::write(page + 100, &behind);
        protect(page, READ_EXECUTE);
        assert_kept(primary, place);
        unmap(page, PAGE);
    }
    // Where nobody may map anything, and below all addresses.
    let page = map(0x6fff_8000, PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
    let place = Place::write(page + 0xcf6, &[0xc3, 0, 0x90]);
    assert_eq!(place.target(), 0x5000);
    protect(page, READ_EXECUTE);
    assert_kept(primary, place);
    unmap(page, PAGE);
    let page = map(0x7000_0000, PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
    let place = Place::write(page + 100, &[0xc3, 0, 0x80]);
    protect(page, READ_EXECUTE);
    assert_kept(primary, place);
    unmap(page, PAGE);
}

fn code_that_can_change_by_itself_stays_trapped(primary: &'static Primary) {
    // Writable.
    let page = map(new_page(), PAGE, ALL, libc::MAP_FIXED_NOREPLACE);
    let place = Place::write(page + 100, &RETURN);
    assert_kept(primary, place);
    // And once it is not.
    protect(page, READ_EXECUTE);
    place.call_many(20 * HOT);
    assert!(place.is_rewritten());
    unmap(page, PAGE);
    // Shared: somebody may have it writable elsewhere.
    let page = new_page();
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: new memory.
    let got = unsafe { libc::mmap(page as *mut _, PAGE, READ_WRITE, flags, -1, 0) };
    assert_eq!(got as usize, page);
    let place = Place::write(page + 100, &RETURN);
    protect(page, READ_EXECUTE);
    assert_kept(primary, place);
    unmap(page, PAGE);
    // Over two pages.
    let page = map(new_page(), 2 * PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
    let place = Place::write(page + PAGE - 4, &RETURN);
    protect(page, READ_EXECUTE);
    protect(page + PAGE, READ_EXECUTE);
    assert_kept(primary, place);
    unmap(page, 2 * PAGE);
}

fn places_that_share_bytes_or_landings_are_not_rewritten_together(primary: &'static Primary) {
    let page = map(new_page(), PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
    // syscall; mov %esi, %eax; syscall; ret: the second one is what the first one's jump would consist of.
    let first = Place::write(page + 100, &[0x90, 0x0f, 0x05, 0xc3, 0xcc, 0xcc]);
    // And two whose jumps lead close to one another.
    let near = Place::write(page + 110, &RETURN);
    let nearer = Place::write(page + 120, &RETURN);
    let second = Place(page + 103 - Place::FRONT);
    protect(page, READ_EXECUTE);
    let since = Since::now(primary);
    for _ in 0..4 * HOT {
        // The second call is read(2), of no descriptor.
        assert!(first.call(NOWHERE, PAGE, libc::SYS_munmap) <= 0);
    }
    assert_eq!(since.told(), 4 * HOT);
    assert!(!(first.is_rewritten() && second.is_rewritten()));
    assert_eq!(second.bytes()[1..], [0x05, 0xc3, 0xcc, 0xcc]);
    near.call_many(4 * HOT);
    assert_eq!((near.is_rewritten(), since.told()), (true, 8 * HOT));
    nearer.call_many(4 * HOT);
    assert_eq!((nearer.is_rewritten(), since.told()), (false, 12 * HOT));
    near.call_many(1);
    assert_eq!(since.told(), 12 * HOT + 1);
    unmap(page, PAGE);
}

fn while_its_memory_is_changing_a_place_is_not_rewritten(primary: &'static Primary) {
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

fn code_is_put_back_also_before_changes_that_are_refused(primary: &'static Primary) {
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

fn code_is_put_back_also_while_the_hook_is_switched_off(primary: &'static Primary) {
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

fn code_that_threads_run_and_change_by_turns_is_never_mixed_up(primary: &'static Primary) {
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

fn a_check_knows_what_was_rewritten_and_sees_who_writes_over_it(primary: &'static Primary) {
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
