//! The thread that finishes what is in quarantine: where it waits, it holds no lock of the program's.
//!
//! It is made by the hook when the first change is put off, where nothing may be allocated and no function of the C
//! library be called. But it calls subscribers, who may allocate, lock, and use thread-local storage. So it needs storage
//! that only the C library can make: at installation a thread is made there, with a stack of ours, that notes where its
//! storage is and ends. As nobody joins it, the storage stays. It counts as ended: for `setuid`, and when the last thread
//! of the program ends. The thread that is made later by a plain `clone` moves in there.
//!
//! It blocks all signals, and never ends before the process.

// UNSAFETY: makes a thread by hand.
#![expect(unsafe_code)]

use core::arch::asm;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use mmu_notifier::Blocking;

use crate::gate::{self, safe};
use crate::hook;
use crate::pages;
use crate::primary::Primary;
use crate::refused::{Attempts, By};

/// Bytes of its stack, with its storage at the end.
const STACK: usize = 512 << 10;
/// What the thread that made the storage may still need of the stack above the place where it noted it.
const MARGIN: usize = 4096;

/// When so many ranges wait, they are announced as one.
const MANY: usize = 16;

const CLONE: usize = 56;
const SIGPROCMASK: usize = 14;
const PRCTL: usize = 157;
const FUTEX: usize = 202;
const RSEQ: usize = 334;

/// The thread, or where there will be one.
#[derive(Debug)]
pub(crate) struct Worker {
    /// [`NONE`], [`PREPARING`], [`READY`], [`RUNNING`].
    state: AtomicU32,
    /// Its storage: the base of its `fs` segment.
    storage: AtomicUsize,
    /// Where its stack begins to grow down.
    stack: AtomicUsize,
    /// Where the C library keeps its thread id.
    id_at: AtomicUsize,
    /// Where the kernel keeps which processor it runs on, from its storage (`__rseq_offset`), and how large that is.
    rseq: [AtomicUsize; 2],
    /// Changed whenever there is something to do; it waits for that.
    news: AtomicU32,
    /// It is at work.
    busy: AtomicBool,
}

/// There is no storage.
const NONE: u32 = 0;
const PREPARING: u32 = 1;
/// There is storage, and no thread.
const READY: u32 = 2;
const RUNNING: u32 = 3;

impl Worker {
    pub(crate) fn new() -> Worker {
        let word = || AtomicUsize::new(0);
        Worker {
            state: AtomicU32::new(NONE),
            storage: word(),
            stack: word(),
            id_at: word(),
            rseq: [word(), word()],
            news: AtomicU32::new(0),
            busy: AtomicBool::new(false),
        }
    }

    /// Lets the C library make storage for the thread, if there is none yet. Not in the hook. Without success nothing is
    /// finished in the background.
    pub(crate) fn prepare(&self) {
        // Relaxed, on failure: somebody else does it.
        if self.state.compare_exchange(NONE, PREPARING, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        let storage = with_signals_blocked(make_storage);
        if let Some(Storage { base, stack, id_at }) = storage {
            // Relaxed: published below.
            self.storage.store(base, Ordering::Relaxed);
            self.stack.store(stack, Ordering::Relaxed);
            self.id_at.store(id_at, Ordering::Relaxed);
            for (word, value) in self.rseq.iter().zip(rseq()) {
                word.store(value, Ordering::Relaxed);
            }
        }
        // Release pairs with the Acquire in `wake`.
        self.state.store(if storage.is_some() { READY } else { NONE }, Ordering::Release);
    }

    /// There is something to do.
    pub(crate) fn wake(&self, primary: &Primary) {
        // Release pairs with the Acquire in `run`: what there is to do is in the table.
        self.news.fetch_add(1, Ordering::Release);
        match self.state.load(Ordering::Acquire) {
            RUNNING => futex_wake(&self.news),
            // A vforked child ends, and its threads with it.
            READY if safe::getpid() == primary.pid() => self.start(primary),
            _ => {}
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        // Relaxed: if it is not seen yet, somebody helps.
        self.state.load(Ordering::Relaxed) == RUNNING
    }

    fn start(&self, primary: &Primary) {
        const VM: usize = 0x100;
        const FS: usize = 0x200;
        const FILES: usize = 0x400;
        const SIGHAND: usize = 0x800;
        const THREAD: usize = 0x10000;
        const SYSVSEM: usize = 0x40000;
        const SETTLS: usize = 0x80000;
        const PARENT_SETTID: usize = 0x100000;
        const FLAGS: usize = VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | SETTLS | PARENT_SETTID;
        if self.state.compare_exchange(READY, RUNNING, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        let [storage, stack, id_at] =
            [&self.storage, &self.stack, &self.id_at].map(|word| word.load(Ordering::Relaxed));
        primary.threads.born(storage, 0, 0);
        // The gate returns to the address on the stack: in the new thread, to its first function.
        let top = (stack & !15) as *mut usize;
        // SAFETY: the worker's stack, on which nobody is.
        unsafe { top.write(run as extern "C" fn() -> ! as usize) };
        let args = [FLAGS, top as usize, id_at, 0, storage, 0];
        // SAFETY: in this thread it returns once. The new one has a stack and storage of its own, and runs `run`.
        let made = with_signals_blocked(|| unsafe { gate::call(CLONE, &args) });
        if made <= 0 {
            // Next time.
            self.state.store(READY, Ordering::Release);
        }
    }

    /// In the only thread of a forked child: there is no worker here.
    pub(crate) fn forked(&self) {
        // Relaxed, all: there is only one thread.
        let state = match self.state.load(Ordering::Relaxed) {
            // In the middle of a callback: what that has left in its storage, nobody knows.
            RUNNING if self.busy.load(Ordering::Relaxed) => NONE,
            RUNNING => READY,
            PREPARING => NONE,
            state => state,
        };
        self.busy.store(false, Ordering::Relaxed);
        self.state.store(state, Ordering::Relaxed);
    }
}

/// The first and only function of the thread.
extern "C" fn run() -> ! {
    const PR_SET_NAME: usize = 15;
    let name = c"mmu-notifier".as_ptr() as usize;
    // SAFETY: the kernel reads a zero-ended string.
    unsafe { gate::call(PRCTL, &[PR_SET_NAME, name, 0, 0, 0, 0]) };
    // It is made by the hook, and so there is one.
    let primary = loop {
        if let Some(primary) = hook::primary() {
            break primary;
        }
    };
    let worker = &primary.worker;
    worker.register_rseq();
    let here = 0u8;
    let caller = primary.threads.caller((&raw const here).addr());
    loop {
        // Acquire pairs with the Release in `wake`.
        let news = worker.news.load(Ordering::Acquire);
        // Relaxed: read in forked children.
        worker.busy.store(true, Ordering::Relaxed);
        while let Some(waiting) = primary.quarantine.oldest() {
            if primary.quarantine.held().0 >= MANY && primary.make_all(&caller) {
                continue;
            }
            let _ = primary.make(&caller, &waiting, Attempts::new(Blocking::Allowed), By::Worker);
        }
        worker.busy.store(false, Ordering::Relaxed);
        futex_wait(&worker.news, news);
    }
}

impl Worker {
    /// What the thread that made the storage was for the kernel, this one is now.
    fn register_rseq(&self) {
        const SIGNATURE: usize = 0x5305_3053;
        let [offset, size] = self.rseq.each_ref().map(|word| word.load(Ordering::Relaxed));
        if size != 0 {
            let area = self.storage.load(Ordering::Relaxed).wrapping_add(offset);
            // SAFETY: where the C library has registered each of its threads.
            unsafe { gate::call(RSEQ, &[area, size, 0, SIGNATURE, 0, 0]) };
        }
    }
}

/// Where the C library registers its threads for restartable sequences: from the thread's storage, and the size; 0, 0: it
/// does not.
fn rseq() -> [usize; 2] {
    unsafe extern "C" {
        fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    /// As registered by the C library, whatever the kernel could do more.
    const REGISTERED: usize = 32;
    // SAFETY: RTLD_DEFAULT and zero-ended names.
    let find = |name: &CStr| unsafe { dlsym(core::ptr::null_mut(), name.as_ptr()) };
    let (offset, size) = (find(c"__rseq_offset"), find(c"__rseq_size"));
    // SAFETY: if they are there, `ptrdiff_t` and `unsigned int`, by rseq(2).
    let registered = !offset.is_null() && !size.is_null() && unsafe { *size.cast::<u32>() } != 0;
    // SAFETY: as above.
    if registered { [unsafe { *offset.cast::<usize>() }, REGISTERED] } else { [0, 0] }
}

#[derive(Clone, Copy, Debug)]
struct Storage {
    base: usize,
    stack: usize,
    id_at: usize,
}

/// Makes a thread in the C library that notes where its storage is, and ends.
fn make_storage() -> Option<Storage> {
    /// Larger than `pthread_attr_t` (56 bytes), and aligned.
    type Attributes = [u64; 16];
    unsafe extern "C" {
        fn pthread_attr_init(attributes: *mut Attributes) -> c_int;
        fn pthread_attr_setstack(attributes: *mut Attributes, stack: *mut c_void, size: usize) -> c_int;
        fn pthread_attr_destroy(attributes: *mut Attributes) -> c_int;
        fn pthread_create(
            thread: *mut usize,
            attributes: *const Attributes,
            start: extern "C" fn(*mut c_void) -> *mut c_void,
            argument: *mut c_void,
        ) -> c_int;
    }
    #[derive(Debug, Default)]
    struct Note {
        base: AtomicUsize,
        stack: AtomicUsize,
        id_at: AtomicUsize,
        done: AtomicU32,
    }
    extern "C" fn note(argument: *mut c_void) -> *mut c_void {
        const PR_GET_TID_ADDRESS: usize = 40;
        // SAFETY: the note below, which stays until `done` is seen.
        let note = unsafe { &*argument.cast::<Note>() };
        let base: usize;
        // SAFETY: x86-64 storage begins with its own address.
        unsafe { asm!("mov {}, fs:[0]", out(reg) base, options(nostack, readonly, preserves_flags)) };
        let here = 0u8;
        let mut id_at = 0usize;
        let place = (&raw mut id_at) as usize;
        // SAFETY: the kernel writes one word there.
        unsafe { gate::call(PRCTL, &[PR_GET_TID_ADDRESS, place, 0, 0, 0, 0]) };
        // Relaxed: published below.
        note.base.store(base, Ordering::Relaxed);
        note.stack.store((&raw const here).addr(), Ordering::Relaxed);
        // SAFETY: written by the kernel, if it can do this; 0 else.
        note.id_at.store(unsafe { (&raw const id_at).read_volatile() }, Ordering::Relaxed);
        // Release pairs with the Acquire below.
        note.done.store(1, Ordering::Release);
        core::ptr::null_mut()
    }
    let stack = pages::map(STACK);
    if stack.is_null() {
        return None;
    }
    let noted = Note::default();
    let mut attributes: Attributes = [0; 16];
    let mut thread = 0;
    // SAFETY: room for the attributes, which are initialised first; memory of ours as a stack; a note that outlives the
    // thread's use of it.
    let made = unsafe {
        let ready = pthread_attr_init(&raw mut attributes) == 0
            && pthread_attr_setstack(&raw mut attributes, stack.cast(), STACK) == 0;
        let argument = (&raw const noted).cast_mut().cast();
        let made = ready && pthread_create(&raw mut thread, &raw const attributes, note, argument) == 0;
        pthread_attr_destroy(&raw mut attributes);
        made
    };
    if !made {
        // SAFETY: mapped above, and there is no thread on it.
        unsafe { pages::unmap(stack, STACK) };
        return None;
    }
    // Acquire pairs with the Release above.
    while noted.done.load(Ordering::Acquire) == 0 {
        safe::yield_processor();
    }
    let [base, top, id_at] =
        [&noted.base, &noted.stack, &noted.id_at].map(|word| word.load(Ordering::Relaxed));
    if id_at == 0 {
        // The kernel does not say; then it is not known either when the thread has left the stack.
        return None;
    }
    // SAFETY: in the storage, which stays, as nobody joins the thread.
    let id = unsafe { AtomicU32::from_ptr(id_at as *mut u32) };
    loop {
        // The kernel clears it when the thread has left its stack (CLONE_CHILD_CLEARTID), and wakes.
        let alive = id.load(Ordering::Acquire);
        if alive == 0 {
            break;
        }
        // SAFETY: waits while the word is as it was seen.
        unsafe { gate::call(FUTEX, &[id_at, 0, alive as usize, 0, 0, 0]) };
    }
    Some(Storage { base, stack: top - MARGIN, id_at })
}

/// Runs `work` with all signals of the calling thread blocked: a thread that it makes has them blocked from the start.
fn with_signals_blocked<R>(work: impl FnOnce() -> R) -> R {
    const SIG_SETMASK: usize = 2;
    const SIZE: usize = 8;
    let (all, mut before) = (u64::MAX, 0u64);
    let args = [SIG_SETMASK, (&raw const all) as usize, (&raw mut before) as usize, SIZE, 0, 0];
    // SAFETY: two words for sets of 64 signals.
    unsafe { gate::call(SIGPROCMASK, &args) };
    let result = work();
    let args = [SIG_SETMASK, (&raw const before) as usize, 0, SIZE, 0, 0];
    // SAFETY: as above.
    unsafe { gate::call(SIGPROCMASK, &args) };
    result
}

fn futex_wake(word: &AtomicU32) {
    const WAKE_PRIVATE: usize = 1 | 128;
    // SAFETY: an address that is only looked up.
    unsafe { gate::call(FUTEX, &[word.as_ptr() as usize, WAKE_PRIVATE, 1, 0, 0, 0]) };
}

fn futex_wait(word: &AtomicU32, seen: u32) {
    const WAIT_PRIVATE: usize = 128;
    // SAFETY: waits while the word is as it was seen.
    unsafe { gate::call(FUTEX, &[word.as_ptr() as usize, WAIT_PRIVATE, seen as usize, 0, 0, 0]) };
}
