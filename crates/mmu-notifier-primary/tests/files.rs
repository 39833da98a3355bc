//! A file that one thread maps while another changes it: each of the two calls is held in a callback until the other is made.
//! One test, as a process has one primary MMU.

// UNSAFETY: maps a file of ours, punches holes into it, and jumps nowhere.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mmu_notifier::{Change, IntervalSubscriber, PAGE_SIZE, Pass, Range, Subscriber, WouldBlock};
use mmu_notifier_primary::{Options, Primary};

/// What happened, in order, and a change to be held. Its callbacks, which may be called inside the allocator, need no memory.
struct Told {
    events: Mutex<Vec<(bool, Range)>>,
    /// The start of a change that hits this address is held. 0: none.
    held: AtomicUsize,
    step: AtomicU8,
}

const REACHED: u8 = 1;
const MAY_GO_ON: u8 = 2;

impl Default for Told {
    fn default() -> Told {
        let events = Mutex::new(Told::no_events());
        Told { events, held: AtomicUsize::new(0), step: AtomicU8::new(0) }
    }
}

impl Subscriber for Told {
    fn start(&self, change: &Change) {
        self.note(true, change);
        let held = self.held.load(SeqCst);
        let is_hit = held != 0 && contains(change.range(), held);
        if is_hit && self.held.compare_exchange(held, 0, SeqCst, SeqCst).is_ok() {
            self.step.store(REACHED, SeqCst);
            self.wait_for(MAY_GO_ON);
        }
    }

    fn end(&self, change: &Change) {
        self.note(false, change);
    }
}

fn contains(range: Range, address: usize) -> bool {
    (range.start()..range.end()).contains(&address)
}

impl Told {
    fn no_events() -> Vec<(bool, Range)> {
        Vec::with_capacity(1000)
    }

    fn note(&self, is_start: bool, change: &Change) {
        let mut events = self.events.lock().unwrap();
        assert!(events.len() < events.capacity());
        events.push((is_start, change.range()));
    }

    fn wait_for(&self, step: u8) {
        while self.step.load(SeqCst) != step {
            std::thread::yield_now();
        }
    }

    /// Makes `first` in another thread; while it is held at its start at `address`, `second`. Back when both are done.
    fn inside<R>(&self, address: usize, first: impl FnOnce() + Send, second: impl FnOnce() -> R) -> R {
        /// Lets it go on, also after a panic.
        struct GoOn<'a>(&'a Told);
        impl Drop for GoOn<'_> {
            fn drop(&mut self) {
                self.0.step.store(MAY_GO_ON, SeqCst);
            }
        }
        self.step.store(0, SeqCst);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                self.held.store(address, SeqCst);
                first();
            });
            let go_on = GoOn(self);
            self.wait_for(REACHED);
            let result = second();
            drop(go_on);
            // Until the thread has really ended.
            first.join().unwrap();
            result
        })
    }

    fn take(&self) -> Vec<(bool, Range)> {
        let none = Told::no_events();
        std::mem::replace(&mut self.events.lock().unwrap(), none)
    }

    /// Whether that address is inside a change now.
    fn is_open_at(&self, address: usize) -> bool {
        let open = |open: i32, &(start, range): &(bool, Range)| match contains(range, address) {
            true => open + if start { 1 } else { -1 },
            false => open,
        };
        self.events.lock().unwrap().iter().fold(0, open) > 0
    }
}

fn new_file() -> File {
    // SAFETY: the name is a string.
    let file = unsafe { libc::memfd_create(c"files".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(file >= 0, "{}", io::Error::last_os_error());
    // SAFETY: a descriptor that nobody has.
    let file = unsafe { File::from_raw_fd(file) };
    file.set_len(PAGE_SIZE as u64).unwrap();
    file
}

/// Maps the page of the file: at that address, or anywhere.
fn map(file: &File, at: usize) -> usize {
    let flags = libc::MAP_SHARED | if at == 0 { 0 } else { libc::MAP_FIXED };
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: over a page of ours.
    let at = unsafe { libc::mmap(at as *mut _, PAGE_SIZE, rights, flags, file.as_raw_fd(), 0) };
    assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    at as usize
}

fn anonymous() -> usize {
    let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(null_mut(), PAGE_SIZE, rights, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    at as usize
}

fn move_to(from: usize, to: usize) {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: both are pages of ours.
    let at = unsafe { libc::mremap(from as *mut _, PAGE_SIZE, PAGE_SIZE, flags, to) };
    assert_eq!(at as usize, to, "{}", io::Error::last_os_error());
}

fn punch(file: &File) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: a file of ours.
    let punched = unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, PAGE_SIZE as i64) };
    assert_eq!(punched, 0, "{}", io::Error::last_os_error());
}

fn remove(page: usize) {
    // SAFETY: a page of ours.
    assert_eq!(unsafe { libc::madvise(page as *mut _, PAGE_SIZE, libc::MADV_REMOVE) }, 0);
}

fn discard(page: usize) {
    // SAFETY: a page of ours.
    assert_eq!(unsafe { libc::madvise(page as *mut _, PAGE_SIZE, libc::MADV_DONTNEED) }, 0);
}

const EVERYTHING: [(bool, Range); 2] = [(true, Range::EVERYTHING), (false, Range::EVERYTHING)];

#[test]
fn a_mapping_and_a_change_of_its_file_see_each_other() {
    let primary = Primary::install(&Options::default()).expect("installed");
    let told = Arc::new(Told::default());
    let subscription = primary.space().subscribe(told.clone());
    what_is_mapped_while_a_change_is_under_way(&told);
    what_is_changed_while_a_mapping_is_under_way(&told);
    others_do_not_concern_each_other(&told);
    a_child_has_none_of_it(&told);
    drop(subscription);
    storm(primary);
}

/// The new mapping is announced before it is there, until the change is done: by whoever maps.
fn what_is_mapped_while_a_change_is_under_way(told: &Told) {
    let (file, other) = (new_file(), anonymous());
    let page = map(&file, 0);
    // Mapped anywhere; over a page; moved to another page; and a change whose file nobody looks up.
    let maps: [&dyn Fn() -> usize; 3] = [&|| map(&file, 0), &|| map(&file, other), &|| {
        let (from, to) = (map(&new_file(), 0), anonymous());
        move_to(from, to);
        to
    }];
    let changes: [&(dyn Fn() + Sync); 2] = [&|| punch(&file), &|| remove(page)];
    for change in changes {
        for maps in maps {
            told.take();
            told.inside(page, change, || {
                let new = maps();
                assert!(told.is_open_at(new), "{:?}", told.events.lock().unwrap());
                // Once is enough.
                let before = told.events.lock().unwrap().len();
                map(&file, 0);
                assert_eq!(told.events.lock().unwrap().len(), before);
            });
            let events = told.take();
            assert_eq!(events.iter().filter(|event| **event == EVERYTHING[0]).count(), 1, "{events:?}");
            assert_eq!(events.iter().filter(|event| **event == EVERYTHING[1]).count(), 1, "{events:?}");
            // A thread that ends changes some memory of its own behind that.
            let last = events.iter().rfind(|(_, range)| contains(*range, page));
            assert_eq!(last, Some(&EVERYTHING[1]), "its end is behind that of the change");
        }
    }
}

/// The mapping may be there at any moment: whoever changes the file announces everything.
fn what_is_changed_while_a_mapping_is_under_way(told: &Told) {
    for is_mapped in [false, true] {
        let (file, new) = (new_file(), anonymous());
        if is_mapped {
            map(&file, 0);
        }
        told.inside(
            new,
            || _ = map(&file, new),
            || {
                told.take();
                punch(&file);
                assert_eq!(told.take(), EVERYTHING);
            },
        );
        told.take();
        punch(&file);
        assert!(!told.take().contains(&EVERYTHING[0]), "when it is there, it is found");
        // Moved, as well, if it is this file that may be.
        let moved = anonymous();
        told.inside(
            moved,
            || move_to(new, moved),
            || {
                told.take();
                punch(&new_file());
                assert_eq!(told.take(), [], "that file is mapped nowhere");
                punch(&file);
                assert_eq!(told.take(), EVERYTHING);
            },
        );
    }
}

/// Other files, other memory.
fn others_do_not_concern_each_other(told: &Told) {
    let (file, other, new) = (new_file(), new_file(), anonymous());
    let page = map(&file, 0);
    map(&other, 0);
    let narrow = |page| {
        [
            (true, Range::with_len(page, PAGE_SIZE).unwrap()),
            (false, Range::with_len(page, PAGE_SIZE).unwrap()),
        ]
    };
    told.inside(
        new,
        || _ = map(&other, new),
        || {
            told.take();
            punch(&file);
            assert_eq!(told.take(), narrow(page));
        },
    );
    told.inside(
        page,
        || punch(&file),
        || {
            told.take();
            map(&other, 0);
            discard(new);
            assert_eq!(told.take(), narrow(new));
        },
    );
}

fn a_child_has_none_of_it(told: &Told) {
    let (file, spare) = (new_file(), anonymous());
    let page = map(&file, 0);
    told.take();
    let status = told.inside(
        page,
        || punch(&file),
        || {
            // SAFETY: the child makes system calls only, and leaves.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: as above.
                unsafe { libc::alarm(60) };
                map(&file, spare);
                punch(&file);
                // Who subscribes waits for what is open.
                drop(Primary::get().unwrap().space().subscribe(Told::default()));
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            let mut status = 0;
            // SAFETY: our child.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            status
        },
    );
    assert_eq!(status, 0);
}

/// A page's frame, remembered as long as nothing changes.
#[derive(Default)]
struct Kept(Mutex<Option<u64>>);

impl IntervalSubscriber for Kept {
    fn invalidate(&self, _: &Change) -> Pass {
        *self.0.lock().unwrap() = None;
        Pass::Done
    }

    fn try_invalidate(&self, change: &Change) -> Result<Pass, WouldBlock> {
        // Whoever has the lock needs nothing.
        Ok(self.invalidate(change))
    }
}

/// Again and again one thread maps the file and looks at the page's frame, while another one punches a hole.
fn storm(primary: &Primary) {
    let file = new_file();
    // To be read behind the place, so that looking up mappings takes a while.
    for _ in 0..60 {
        // SAFETY: a page of ours.
        assert_eq!(unsafe { libc::mprotect(anonymous() as *mut _, PAGE_SIZE, libc::PROT_NONE) }, 0);
        anonymous();
    }
    let place = anonymous();
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let frame = || {
        let mut word = [0; 8];
        pagemap.read_exact_at(&mut word, (place / PAGE_SIZE * 8) as u64).unwrap();
        let word = u64::from_ne_bytes(word);
        (word >> 63 == 1).then_some(word & ((1 << 55) - 1))
    };
    // SAFETY: the page is ours, and stays mapped.
    let touch = || unsafe { (place as *mut u8).write_volatile(1) };
    touch();
    if frame() == Some(0) {
        return eprintln!("SKIPPED: storm: only root sees page frames");
    }
    let seconds = std::env::var("STORM").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let (round, punched, kept) = (AtomicUsize::new(0), AtomicUsize::new(0), Arc::new(Kept::default()));
    let interval = primary.space().insert(Range::with_len(place, PAGE_SIZE).unwrap(), kept.clone()).unwrap();
    let (mut used, mut dropped, mut stale) = (0u64, 0u64, 0u64);
    let took = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for next in 1.. {
                while round.load(SeqCst) < next {
                    std::thread::yield_now();
                }
                if round.load(SeqCst) == usize::MAX {
                    return;
                }
                let start = Instant::now();
                punch(&file);
                took.store(start.elapsed().as_nanos() as usize, SeqCst);
                punched.store(next, SeqCst);
            }
        });
        let until = Instant::now() + Duration::from_secs(seconds);
        for now in 1.. {
            if Instant::now() > until {
                break;
            }
            round.store(now, SeqCst);
            // At any time of the other.
            let start = Instant::now();
            let time = (took.load(SeqCst) * (now % 64) / 48).min(1_000_000);
            while start.elapsed().as_nanos() < time as u128 {
                std::hint::spin_loop();
            }
            map(&file, place);
            let ticket = interval.read();
            touch();
            let found = frame();
            {
                let mut kept = kept.0.lock().unwrap();
                if !interval.is_stale(&ticket) {
                    *kept = found;
                }
            }
            while punched.load(SeqCst) < now {
                std::thread::yield_now();
            }
            match *kept.0.lock().unwrap() {
                Some(found) => {
                    used += 1;
                    stale += u64::from(frame() != Some(found));
                }
                None => dropped += 1,
            }
            move_to(anonymous(), place);
        }
        round.store(usize::MAX, SeqCst);
    });
    eprintln!("storm: {used} times a frame was kept, {dropped} times dropped, {stale} times stale");
    assert!(used > 0 && dropped > 0);
    assert_eq!(stale, 0, "of {used} times that a frame was used");
}
