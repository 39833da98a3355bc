//! Places that are trapped again and again are rewritten while they run, and no code that the program can see is other than
//! it has made it.
//!
//! The tests take turns: a process has one primary MMU, and what is trapped is counted for all of it.

// UNSAFETY: makes code, runs and changes it, and makes memory system calls.
#![expect(unsafe_code)]

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use mmu_notifier::{Change, Event, Subscriber};
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

static STARTS: AtomicU64 = AtomicU64::new(0);
static ENDS: AtomicU64 = AtomicU64::new(0);
/// A function to call in each start of a change that begins there.
static IN_START: AtomicUsize = AtomicUsize::new(0);
static IN_START_OF: AtomicUsize = AtomicUsize::new(0);

struct Count;

impl Subscriber for Count {
    fn start(&self, change: &Change) {
        let range = change.range();
        STARTS.fetch_add(u64::from(change.event() == Event::Unmap && range.start() == NOWHERE), SeqCst);
        if range.start() == IN_START_OF.load(SeqCst) {
            let place = Place(IN_START.load(SeqCst));
            // Not told of: the change is made in this callback.
            place.call_many(4 * HOT);
        }
    }

    fn end(&self, change: &Change) {
        let is_it = change.event() == Event::Unmap && change.range().start() == NOWHERE;
        ENDS.fetch_add(u64::from(is_it), SeqCst);
    }
}

/// One test at a time; `None`: there is no strict mode here.
fn turn() -> Option<(MutexGuard<'static, ()>, &'static Primary)> {
    static TURN: Mutex<()> = Mutex::new(());
    static PRIMARY: OnceLock<Option<&'static Primary>> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let primary = *PRIMARY.get_or_init(|| {
        match Primary::install(&Options { strict: Strict::Always, ..Options::default() }) {
            Ok(primary) => {
                core::mem::forget(primary.space().subscribe(Count));
                Some(primary)
            }
            Err(error @ InstallError::NoDispatch { .. }) => {
                println!("SKIPPED: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    });
    Some((turn, primary?))
}

/// What has come since.
struct Since {
    traps: Traps,
    ends: u64,
}

impl Since {
    fn now(primary: &Primary) -> Since {
        assert_eq!(STARTS.load(SeqCst), ENDS.load(SeqCst));
        Since { traps: primary.traps(), ends: ENDS.load(SeqCst) }
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
        assert_eq!(STARTS.load(SeqCst), ENDS.load(SeqCst));
        ENDS.load(SeqCst) - self.ends
    }
}

fn map(at: usize, len: usize, protection: i32, flags: i32) -> usize {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: new memory, or over memory that is the test's.
    let got = unsafe { libc::mmap(at as *mut libc::c_void, len, protection, flags, -1, 0) };
    assert_ne!(got, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    got as usize
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
        let page = map(0, PAGE, READ_WRITE, 0);
        let place = Place::write(page + offset, behind);
        protect(page, READ_EXECUTE);
        place
    }

    fn address(self) -> usize {
        self.0 + Place::FRONT
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

#[test]
fn a_hot_place_is_rewritten_and_nothing_is_missed() {
    let Some((_turn, primary)) = turn() else { return };
    let place = Place::made(100, &RETURN);
    let since = Since::now(primary);
    place.call_many(HOT - 1);
    assert!(!place.is_rewritten());
    place.call_many(1);
    if !place.is_rewritten() {
        let t = place.target();
        for l in std::fs::read_to_string("/proc/self/maps").unwrap().lines() {
            let r = l.split(' ').next().unwrap();
            let (a, b) = r.split_once('-').unwrap();
            let a = usize::from_str_radix(a, 16).unwrap_or(0);
            let b = usize::from_str_radix(b, 16).unwrap_or(0);
            if a < t + (1 << 26) && t < b + (1 << 26) {
                eprintln!("NEAR {l}");
            }
        }
        eprintln!(
            "{:x} {:x} {}",
            place.address(),
            place.target(),
            std::fs::read_to_string("/proc/self/maps").unwrap()
        );
    }
    assert!(place.is_rewritten());
    assert_eq!(place.bytes()[2..], RETURN);
    place.call_many(100_000 - HOT);
    assert_eq!((since.traps(primary), since.told()), (HOT, 100_000));
    assert_eq!((since.rewritten(primary), since.kept(primary)), (1, 0));
    // Calls that are none of memory, and that fail.
    assert_eq!(place.call(0, 0, libc::SYS_getpid), std::process::id() as isize);
    assert_eq!(place.call(1, PAGE, libc::SYS_munmap), -(libc::EINVAL as isize));
    assert_eq!(since.traps(primary), HOT);
    unmap(place.address() & !(PAGE - 1), PAGE);
}

#[test]
fn eight_threads_call_a_place_while_it_is_rewritten() {
    const THREADS: u64 = 8;
    const EACH: u64 = 20_000;
    let Some((_turn, primary)) = turn() else { return };
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
        let traps = since.traps(primary);
        assert!((HOT..THREADS * EACH / 4).contains(&traps), "{traps} traps");
        assert_eq!(since.told(), THREADS * EACH);
        unmap(place.address() & !(PAGE - 1), PAGE);
    }
}
