//! Strict mode in this very process, installed while its threads make system calls by code that no file knows.
//!
//! One test, as a process has one primary MMU.

// UNSAFETY: makes code, and memory system calls.
#![expect(unsafe_code)]

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use mmu_notifier::{Change, Event, Subscriber};
use mmu_notifier_primary::{Options, Primary, Strict};

const PAGE: usize = 4096;

/// `munmap(at, len)`: `mov $11,%eax; syscall; ret`.
const CODE: [u8; 8] = [0xb8, 11, 0, 0, 0, 0x0f, 0x05, 0xc3];

type Unmap = unsafe extern "C" fn(*mut libc::c_void, usize) -> isize;

/// Counts the ends of unmaps of a page.
struct Ends(&'static AtomicU64);

impl Subscriber for Ends {
    fn start(&self, _: &Change) {}

    fn end(&self, change: &Change) {
        if change.event() == Event::Unmap && change.range().len() == PAGE {
            self.0.fetch_add(1, SeqCst);
        }
    }
}

fn map(protection: i32) -> *mut libc::c_void {
    // SAFETY: a new mapping.
    let at =
        unsafe { libc::mmap(null_mut(), PAGE, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at
}

fn make_code() -> Unmap {
    let at = map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    // SAFETY: a page that was mapped just now.
    unsafe { at.cast::<[u8; CODE.len()]>().write(CODE) };
    // SAFETY: the code is a function of that kind.
    unsafe { std::mem::transmute::<*mut libc::c_void, Unmap>(at) }
}

#[test]
fn threads_that_run_already_are_armed() {
    static ENDS: AtomicU64 = AtomicU64::new(0);
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    static STOP: AtomicBool = AtomicBool::new(false);
    let code = make_code();
    let unmap_one = move || {
        let at = map(libc::PROT_READ);
        // SAFETY: mapped just now, and nobody has it.
        assert_eq!(unsafe { code(at, PAGE) }, 0);
    };
    let thread = move || {
        // Not in a call when it is armed.
        let mut told = 0;
        while !STOP.load(SeqCst) {
            let counts = INSTALLED.load(SeqCst);
            unmap_one();
            told += u64::from(counts);
        }
        told
    };
    let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(thread)).collect();
    // A thread that blocks everything, and hears of it when it does so no more.
    let deaf = std::thread::spawn(move || {
        // SAFETY: a set of signals, which is filled.
        let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: writes to `all`.
        unsafe { libc::sigfillset(&mut all) };
        // SAFETY: reads `all`.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &all, null_mut()) };
        while !INSTALLED.load(SeqCst) {
            std::thread::yield_now();
        }
        // SAFETY: reads `all`.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &all, null_mut()) };
        thread()
    });
    let options = Options { strict: Strict::Always, ..Options::default() };
    let primary = match Primary::install(&options) {
        Ok(primary) => primary,
        Err(error) => {
            println!("SKIPPED: {error}");
            STOP.store(true, SeqCst);
            return;
        }
    };
    let subscription = primary.space().subscribe(Ends(&ENDS));
    INSTALLED.store(true, SeqCst);
    // Threads that come later, too.
    let later: Vec<_> = (0..4).map(|_| std::thread::spawn(thread)).collect();
    let mut own = 0;
    while own < 20_000 {
        unmap_one();
        own += 1;
    }
    STOP.store(true, SeqCst);
    let all = threads.into_iter().chain(later).chain([deaf]);
    let told: u64 = all.map(|thread| thread.join().unwrap()).sum();
    assert!(told > 0);
    let ends = ENDS.load(SeqCst);
    assert!(ends >= own + told, "{ends} ends of {own} + {told} calls");
    drop(subscription);
}
