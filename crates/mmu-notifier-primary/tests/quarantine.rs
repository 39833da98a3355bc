//! Calls that must not wait, and what becomes of them if somebody refuses.
//!
//! One test, as a process has one primary MMU.

// UNSAFETY: memory system calls, signals and forks.
#![expect(unsafe_code)]

use std::cell::Cell;
use std::io::Error;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use mmu_notifier::{Blocking, Change, Range, Refuser, Subscriber, WouldBlock};
use mmu_notifier_primary::{Options, Primary};

const PAGE: usize = 4096;

/// Refuses what must not wait, and lets what may wait do so until the door is open.
#[derive(Default)]
struct Door {
    open: AtomicBool,
    changed: Condvar,
    lock: Mutex<()>,
    refused: AtomicU64,
    waited: AtomicU64,
    inside: AtomicU64,
    /// How many must have waited until another thread opens it; 0: it does not.
    open_after: AtomicU64,
}

impl Door {
    /// The other thread. There before the door is closed, as to make one is a call that would be refused.
    fn mind(&self) {
        loop {
            let after = self.open_after.load(SeqCst);
            if after != 0 && self.waited.load(SeqCst) >= after {
                self.open_after.store(0, SeqCst);
                self.open(true);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn open(&self, open: bool) {
        let _guard = self.lock.lock().unwrap();
        self.open.store(open, SeqCst);
        self.changed.notify_all();
    }
}

/// Opens it in the end, also of a test that fails: who waits would keep it from ending.
struct Opened(Arc<Door>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.open(true);
    }
}

impl Refuser for Door {
    fn start(&self, _: &Change) {
        // Allocates and frees: who calls this may wait for the allocator.
        let mut guard = self.lock.lock().unwrap();
        drop(vec![0u8; 1 << 10]);
        self.inside.fetch_add(1, SeqCst);
        self.waited.fetch_add(1, SeqCst);
        while !self.open.load(SeqCst) {
            guard = self.changed.wait(guard).unwrap();
        }
        self.inside.fetch_sub(1, SeqCst);
    }

    fn try_start(&self, _: &Change) -> Result<(), WouldBlock> {
        if self.open.load(SeqCst) {
            return Ok(());
        }
        self.refused.fetch_add(1, SeqCst);
        Err(WouldBlock)
    }
}

/// Notes what the thread's last change was announced as, and makes one of its own when told to.
#[derive(Default)]
struct Contexts {
    nested: AtomicUsize,
    /// Whether the callback's own was announced to this one as blocking.
    own: Mutex<Option<Blocking>>,
    own_at: AtomicUsize,
}

thread_local! {
    static LAST: Cell<Option<Blocking>> = const { Cell::new(None) };
}

impl Subscriber for Contexts {
    fn start(&self, change: &Change) {
        LAST.set(Some(change.blocking()));
        if change.range().start() == self.own_at.load(SeqCst) {
            *self.own.lock().unwrap() = Some(change.blocking());
        }
        let page = self.nested.swap(0, SeqCst);
        if page != 0 {
            unmap(page as *mut u8, 1);
        }
    }

    fn end(&self, _: &Change) {}
}

fn map(pages: usize) -> *mut u8 {
    let (read_write, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(null_mut(), pages * PAGE, read_write, private, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: mapped just now.
    unsafe { at.write_bytes(7, pages * PAGE) };
    at.cast()
}

fn range(at: *mut u8, pages: usize) -> Range {
    Range::with_len(at as usize, pages * PAGE).unwrap()
}

fn unmap(at: *mut u8, pages: usize) {
    // SAFETY: mapped by `map`, and nobody has it.
    assert_eq!(unsafe { libc::munmap(at.cast(), pages * PAGE) }, 0);
}

/// How many of the pages from `at` are mapped.
fn mapped(at: *mut u8, pages: usize) -> usize {
    let mut there = vec![0u8; 1];
    (0..pages)
        // SAFETY: only asks; room for one page.
        .filter(|page| unsafe { libc::mincore(at.add(page * PAGE).cast(), PAGE, there.as_mut_ptr()) } == 0)
        .count()
}

fn errno() -> i32 {
    Error::last_os_error().raw_os_error().unwrap()
}

/// Runs `work` in a signal handler, where nobody may wait.
fn in_a_handler<R>(mut work: impl FnMut() -> R) -> R {
    thread_local! {
        static WORK: Cell<*mut dyn FnMut()> = const { Cell::new(null_mut::<fn()>() as *mut dyn FnMut()) };
    }
    extern "C" fn handler(_: libc::c_int) {
        // SAFETY: set below by the same thread, which is in `raise`.
        unsafe { (*WORK.get())() };
    }
    let mut result = None;
    {
        let mut run = || result = Some(work());
        let run: &mut dyn FnMut() = &mut run;
        // SAFETY: only a lifetime is changed, and nobody calls it after this function.
        WORK.set(unsafe {
            std::mem::transmute::<*mut (dyn FnMut() + '_), *mut (dyn FnMut() + 'static)>(run)
        });
        // SAFETY: a handler for a signal that only comes from here, at once and in this thread.
        unsafe {
            libc::signal(libc::SIGURG, handler as extern "C" fn(libc::c_int) as libc::sighandler_t);
            libc::raise(libc::SIGURG);
        }
    }
    result.unwrap()
}

/// Waits until it is so; a test that never sees it fails by the time limit of whoever runs it.
fn until(so: impl Fn() -> bool) {
    while !so() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn who_must_not_wait_is_told_and_what_is_refused_is_put_off() {
    let primary = Primary::install(&Options::default()).expect("installed");
    contexts(primary);
    let door = Arc::new(Door::default());
    std::thread::spawn({
        let door = door.clone();
        move || door.mind()
    });
    // It has begun, and makes no call any more.
    std::thread::sleep(Duration::from_millis(100));
    let subscription = primary.space().subscribe_refuser(door.clone());
    let opened = Opened(door.clone());
    put_off(primary, &door);
    touched(primary, &door);
    not_hidden(primary, &door);
    bounded(primary, &door);
    reserved(primary, &door);
    children(primary, &door);
    the_allocator_gives_back(primary, &door);
    drop((opened, subscription));
    switched_off_and_on(primary);
}

/// Who switches it on again waits for what began while it was off.
fn switched_off_and_on(primary: &Primary) {
    const PAGES: usize = 32 << 10;
    let contexts = Arc::new(Contexts::default());
    let _subscription = primary.space().subscribe(contexts.clone());
    let at = map(PAGES);
    // SAFETY: here and below, memory of this test's. Pages of 4 KiB, so that it takes long.
    unsafe { libc::madvise(at.cast(), PAGES * PAGE, libc::MADV_NOHUGEPAGE) };
    contexts.own_at.store(at as usize, SeqCst);
    let mut judged = 0;
    while judged < 5 {
        // SAFETY: see above.
        unsafe { at.write_bytes(7, PAGES * PAGE) };
        *contexts.own.lock().unwrap() = None;
        assert!(primary.uninstall() && !primary.uninstall());
        let begun = Arc::new(AtomicBool::new(false));
        let dropping = std::thread::spawn({
            let (begun, at) = (begun.clone(), at as usize);
            move || {
                begun.store(true, SeqCst);
                // SAFETY: see above.
                assert_eq!(unsafe { libc::madvise(at as *mut _, PAGES * PAGE, libc::MADV_DONTNEED) }, 0);
            }
        });
        until(|| begun.load(SeqCst));
        assert!(Primary::install(&Options::default()).is_ok());
        // SAFETY: see above. The kernel goes from the first page to the last one.
        let last = unsafe { at.add((PAGES - 1) * PAGE).read_volatile() };
        dropping.join().unwrap();
        // If it was announced, it began afterwards.
        if contexts.own.lock().unwrap().is_none() {
            assert_eq!(last, 0, "it was under way, and nobody had been told");
            judged += 1;
        }
    }
    contexts.own_at.store(0, SeqCst);
    unmap(at, PAGES);
}

fn contexts(primary: &Primary) {
    let contexts = Arc::new(Contexts::default());
    let subscription = primary.space().subscribe(contexts.clone());
    let told = |work: &dyn Fn()| {
        LAST.set(None);
        work();
        LAST.get()
    };
    let direct = || unmap(map(1), 1);
    assert_eq!(told(&direct), Some(Blocking::Allowed), "by the program");
    // SAFETY: allocated and freed; so large that it is a mapping of its own.
    let freed = || unsafe { libc::free(std::hint::black_box(libc::malloc(1 << 20))) };
    assert_eq!(told(&freed), Some(Blocking::Forbidden), "by the allocator");
    // Of a callback's own change only the others are told.
    let other = Arc::new(Contexts::default());
    let second = primary.space().subscribe(other.clone());
    let page = map(1) as usize;
    other.own_at.store(page, SeqCst);
    contexts.nested.store(page, SeqCst);
    direct();
    assert_eq!(*other.own.lock().unwrap(), Some(Blocking::Forbidden), "in a callback");
    drop(second);
    // Last on this stack: what it leaves there looks like a handler to who comes deep enough.
    assert_eq!(told(&|| in_a_handler(direct)), Some(Blocking::Forbidden), "in a signal handler");
    assert_eq!(told(&direct), Some(Blocking::Allowed), "after it");
    let in_thread = std::thread::spawn(move || {
        LAST.set(None);
        unmap(map(1), 1);
        let shallow = LAST.get();
        deep(&|| unmap(map(1), 1));
        let deep = LAST.get();
        on_another_stack(&|| unmap(map(1), 1));
        (shallow, deep, LAST.get())
    });
    let (shallow, deep, elsewhere) = in_thread.join().unwrap();
    assert_eq!(shallow, Some(Blocking::Allowed), "in a thread");
    assert_eq!(deep, Some(Blocking::Forbidden), "deep on a stack");
    assert_eq!(elsewhere, Some(Blocking::Forbidden), "on a signal stack");
    // SAFETY: the child only exits.
    let fork = || unsafe {
        match libc::fork() {
            0 => libc::_exit(0),
            child => assert_eq!(libc::waitpid(child, null_mut(), 0), child),
        }
    };
    assert_eq!(told(&fork), Some(Blocking::Forbidden), "fork");
    drop(subscription);
}

#[inline(never)]
fn deep(work: &dyn Fn()) {
    let room = [1u8; 64 << 10];
    std::hint::black_box(&room);
    work();
    std::hint::black_box(&room);
}

/// A handler that runs on a stack of its own.
fn on_another_stack(work: &dyn Fn()) {
    thread_local! {
        static WORK: Cell<Option<&'static dyn Fn()>> = const { Cell::new(None) };
    }
    extern "C" fn handler(_: libc::c_int) {
        WORK.get().unwrap()();
    }
    // SAFETY: only a lifetime is changed, and nobody calls it after this function.
    WORK.set(Some(unsafe { std::mem::transmute::<&dyn Fn(), &'static dyn Fn()>(work) }));
    let size = 64 << 10;
    let stack = map(size / PAGE);
    let wanted = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: size };
    // SAFETY: zero is a value of it.
    let mut before: libc::stack_t = unsafe { std::mem::zeroed() };
    // SAFETY: a stack and a handler of this thread's, for a signal that only comes from here.
    unsafe {
        libc::sigaltstack(&wanted, &mut before);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigaction(libc::SIGWINCH, &action, null_mut());
        libc::raise(libc::SIGWINCH);
        libc::sigaltstack(&before, null_mut());
    }
}

/// Threads of the library's own: by name, and by what they block.
fn workers() -> usize {
    let statuses = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let statuses = statuses.flat_map(|task| std::fs::read_to_string(task.path().join("status")));
    let is_worker = |status: &String| {
        let line = |key| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("").trim();
        // All but SIGKILL and SIGSTOP, and those that the C library keeps for itself.
        let blocked = u64::from_str_radix(line("SigBlk:"), 16).unwrap_or(0);
        line("Name:") == "mmu-notifier" && !blocked & !(1 << 8 | 1 << 18 | 3 << 31) == 0
    };
    statuses.filter(is_worker).count()
}

/// Told that it is done, and made later by the worker.
fn put_off(primary: &Primary, door: &Door) {
    door.open(false);
    let at = map(4);
    let waited = door.waited.load(SeqCst);
    in_a_handler(|| unmap(at, 4));
    assert_eq!(primary.quarantined(), (1, 4 * PAGE));
    assert_eq!(mapped(at, 4), 4, "the pages stay");
    // The worker is told to wait: in `start`, with the lock.
    until(|| door.waited.load(SeqCst) > waited);
    assert_eq!(mapped(at, 4), 4);
    assert_eq!(workers(), 1, "a thread that blocks all signals");
    door.open(true);
    until(|| primary.quarantined() == (0, 0) && door.inside.load(SeqCst) == 0);
    assert_eq!(mapped(at, 4), 0);
    let counts = &primary.process().unwrap().put_off;
    assert_eq!((counts.ranges.load(SeqCst), counts.bytes.load(SeqCst)), (1, 4 * PAGE as u64));
    assert_eq!((counts.by_worker.load(SeqCst), counts.by_calls.load(SeqCst)), (1, 0));
    // Nothing is mapped there but by the kernel's choice: with a hole it is not put off.
    let holed = map(3);
    unmap(holed.wrapping_add(PAGE), 1);
    door.open(false);
    // SAFETY: mapped above.
    let failed = in_a_handler(|| unsafe { (libc::munmap(holed.cast(), 3 * PAGE), errno()) });
    assert_eq!(failed, (-1, libc::ENOMEM));
    door.open(true);
    unmap(holed, 3);
}

/// Later calls that touch what was put off.
fn touched(primary: &Primary, door: &Door) {
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: here and below, memory of this test's.
    let place = |at: *mut u8, flags| unsafe {
        libc::mmap(at.cast(), 2 * PAGE, libc::PROT_READ, private | flags, -1, 0)
    };
    for flags in [0, libc::MAP_FIXED_NOREPLACE, libc::MAP_FIXED] {
        door.open(false);
        let at = map(2);
        let waited = door.waited.load(SeqCst);
        in_a_handler(|| unmap(at, 2));
        assert_eq!(primary.quarantined().0, 1);
        until(|| door.waited.load(SeqCst) == waited + 1);
        // Nobody may wait: refused again.
        let elsewhere = in_a_handler(|| place(at, flags));
        match flags {
            0 => assert!(elsewhere != libc::MAP_FAILED && elsewhere.cast() != at, "only a wish"),
            _ => assert_eq!(elsewhere, libc::MAP_FAILED),
        }
        // SAFETY: not mapped for the program.
        let advised =
            in_a_handler(|| unsafe { (libc::madvise(at.cast(), PAGE, libc::MADV_DONTNEED), errno()) });
        assert_eq!(advised, (-1, libc::ENOMEM), "as where nothing is mapped");
        assert_eq!(mapped(at, 2), 2);
        // Who may wait does.
        door.open_after.store(waited + 2, SeqCst);
        let got = place(at, flags);
        assert_eq!(got.cast(), at, "flags {flags:x}");
        until(|| primary.quarantined() == (0, 0) && door.inside.load(SeqCst) == 0);
        // SAFETY: mapped anew.
        assert_eq!(unsafe { at.read_volatile() }, 0, "what was put off came first, and not again");
        assert_eq!(mapped(at, 2), 2);
        unmap(at, 2);
        if elsewhere != libc::MAP_FAILED {
            unmap(elsewhere.cast(), 2);
        }
    }
}

/// Calls whose effect would be missed fail with an error of theirs.
fn not_hidden(primary: &Primary, door: &Door) {
    let at = map(4);
    door.open(false);
    let declined = &primary.process().unwrap().put_off.declined;
    let before = declined.load(SeqCst);
    // SAFETY: memory of this test's.
    let advise = |advice| in_a_handler(|| unsafe { (libc::madvise(at.cast(), PAGE, advice), errno()) });
    assert_eq!(advise(libc::MADV_DONTNEED), (-1, libc::EINVAL));
    assert_eq!(advise(libc::MADV_FREE).0, 0, "need not do anything");
    // SAFETY: as above.
    let protect = in_a_handler(|| unsafe { (libc::mprotect(at.cast(), PAGE, libc::PROT_NONE), errno()) });
    assert_eq!(protect, (-1, libc::ENOMEM));
    // SAFETY: as above.
    let moved = in_a_handler(|| unsafe {
        (libc::mremap(at.cast(), 4 * PAGE, 8 * PAGE, libc::MREMAP_MAYMOVE), errno())
    });
    assert_eq!(moved, (libc::MAP_FAILED, libc::ENOMEM));
    let fixed = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: as above.
    let over =
        in_a_handler(|| unsafe { (libc::mmap(at.cast(), PAGE, libc::PROT_NONE, fixed, -1, 0), errno()) });
    assert_eq!(over, (libc::MAP_FAILED, libc::ENOMEM));
    // SAFETY: only moves the break back and forth, if at all.
    let shrunk = in_a_handler(|| unsafe {
        let old = libc::sbrk(0);
        (libc::sbrk(PAGE as isize).addr() as isize, libc::sbrk(0) == old)
    });
    assert_eq!(shrunk, (-1, true));
    // SAFETY: refused.
    let child = unsafe { (libc::fork(), errno()) };
    assert_eq!(child, (-1, libc::EAGAIN));
    assert_eq!(declined.load(SeqCst) - before, 6);
    // Nobody loses anything by more rights: these are given at once, and told later.
    // SAFETY: as above.
    let given =
        in_a_handler(|| unsafe { libc::mprotect(at.cast(), PAGE, libc::PROT_READ | libc::PROT_WRITE) });
    assert_eq!(given, 0);
    assert_eq!(primary.quarantined(), (1, 0));
    // SAFETY: as it was: nothing of all that has happened.
    assert_eq!(unsafe { std::slice::from_raw_parts(at, 4 * PAGE) }, [7; 4 * PAGE]);
    door.open(true);
    until(|| primary.quarantined() == (0, 0) && door.inside.load(SeqCst) == 0);
    unmap(at, 4);
}

/// More than there is room for.
fn bounded(primary: &Primary, door: &Door) {
    const MANY: usize = 1040;
    let pages: Vec<_> = (0..MANY).map(|_| map(1)).collect();
    let announced = Arc::new(Announced(Mutex::new(Vec::with_capacity(8 * MANY))));
    let subscription = primary.space().subscribe(announced.clone());
    door.open(false);
    let mut failed = Vec::new();
    in_a_handler(|| {
        for (index, &page) in pages.iter().enumerate() {
            // SAFETY: mapped above.
            if unsafe { libc::munmap(page.cast(), PAGE) } != 0 {
                assert_eq!(errno(), libc::ENOMEM);
                failed.push(index);
            }
        }
    });
    let (ranges, bytes) = primary.quarantined();
    assert_eq!((ranges, bytes), (1024, 1024 * PAGE));
    assert_eq!(failed, (1024..MANY).collect::<Vec<_>>());
    door.open(true);
    // There is room again, and the oldest goes first.
    for index in failed {
        unmap(pages[index], 1);
    }
    until(|| primary.quarantined() == (0, 0) && door.inside.load(SeqCst) == 0);
    assert_eq!(pages.iter().map(|&page| mapped(page, 1)).sum::<usize>(), 0);
    drop(subscription);
    // One by one, or many at once.
    let announced = announced.0.lock().unwrap();
    let around = |page: &&*mut u8| announced.iter().any(|told| told.overlaps(&range(**page, 1)));
    assert_eq!(pages.iter().filter(around).count(), MANY);
}

/// What was announced to who may wait.
struct Announced(Mutex<Vec<Range>>);

impl Subscriber for Announced {
    fn start(&self, change: &Change) {
        if change.blocking() == Blocking::Allowed {
            self.0.lock().unwrap().push(change.range());
        }
    }

    fn end(&self, _: &Change) {}
}

/// Addresses without memory are not bounded: allocators reserve many.
fn reserved(primary: &Primary, door: &Door) {
    const SIZE: usize = 64 << 20;
    let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new mappings.
    let reserve = |_| unsafe { libc::mmap(null_mut(), SIZE, rights, flags | libc::MAP_NORESERVE, -1, 0) };
    let places: Vec<_> = (0..40).map(reserve).collect();
    assert!(!places.contains(&libc::MAP_FAILED));
    door.open(false);
    in_a_handler(|| places.iter().for_each(|&at| unmap(at.cast(), SIZE / PAGE)));
    assert_eq!(primary.quarantined(), (40, 40 * SIZE));
    door.open(true);
    until(|| primary.quarantined() == (0, 0) && door.inside.load(SeqCst) == 0);
}

/// A child has nothing to wait for.
fn children(primary: &Primary, door: &Door) {
    let at = map(2);
    door.open(false);
    in_a_handler(|| unmap(at, 2));
    // The fork alone is let through.
    door.open.store(true, SeqCst);
    // SAFETY: the child makes system calls only.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let gone = primary.quarantined() == (0, 0) && mapped(at, 2) == 0;
        // SAFETY: at once.
        unsafe { libc::_exit(if gone { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child has what its parent put off");
    door.open(true);
    until(|| primary.quarantined() == (0, 0) && door.inside.load(SeqCst) == 0);
}

/// What the allocator frees while somebody refuses goes back to the kernel afterwards.
fn the_allocator_gives_back(primary: &Primary, door: &Door) {
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * PAGE
    };
    const EACH: usize = 1 << 20;
    // Each block is a mapping of its own, also after the first was freed.
    // SAFETY: sets a number.
    assert_eq!(unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10) }, 1);
    let round = |open: bool| {
        let blocks: Vec<_> = (0..64)
            .map(|_| {
                // SAFETY: allocated, written, and freed below.
                let block = unsafe { libc::malloc(EACH) }.cast::<u8>();
                // SAFETY: of that size.
                unsafe { block.write_bytes(1, EACH) };
                block
            })
            .collect();
        door.open(open);
        for block in blocks {
            // SAFETY: allocated above.
            unsafe { libc::free(block.cast()) };
        }
    };
    round(true);
    let before = resident();
    round(false);
    assert!(resident() > before + 32 * EACH, "{} after {before}", resident());
    assert!(primary.quarantined().1 > 32 * EACH, "{:?}", primary.quarantined());
    door.open(true);
    until(|| primary.quarantined() == (0, 0) && door.inside.load(SeqCst) == 0);
    assert!(resident() < before + 8 * EACH, "{} after {before}", resident());
}
