//! A file that one thread maps while another changes it: each of the two calls is held in a callback until the other is made.
//! One test, as a process has one primary MMU.

// UNSAFETY: maps a file of ours, punches holes into it, and jumps nowhere.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mmu_notifier::{Change, IntervalSubscriber, PAGE_SIZE, Pass, Range, Subscriber, WouldBlock};
use mmu_notifier_primary::{Options, Primary};

/// What happened, in order, and a change to be held.
#[derive(Default)]
struct Told {
    events: Mutex<Vec<(bool, Range)>>,
    /// The start of a change that hits this address says so, and waits until it may go on.
    held: Mutex<Option<(usize, Sender<()>, Receiver<()>)>>,
}

impl Subscriber for Told {
    fn start(&self, change: &Change) {
        self.events.lock().unwrap().push((true, change.range()));
        let held = self.held.lock().unwrap().take_if(|(address, ..)| contains(change.range(), *address));
        if let Some((_, reached, go_on)) = held {
            reached.send(()).unwrap();
            go_on.recv().unwrap();
        }
    }

    fn end(&self, change: &Change) {
        self.events.lock().unwrap().push((false, change.range()));
    }
}

fn contains(range: Range, address: usize) -> bool {
    (range.start()..range.end()).contains(&address)
}

impl Told {
    /// Makes `first` in another thread; while it is held at its start at `address`, `second`. What was told of everything
    /// meanwhile and until both were done.
    fn inside<R>(&self, address: usize, first: impl FnOnce() + Send, second: impl FnOnce() -> R) -> R {
        let ((reached, is_reached), (go_on, may_go_on)) = (channel(), channel());
        *self.held.lock().unwrap() = Some((address, reached, may_go_on));
        std::thread::scope(|scope| {
            scope.spawn(first);
            is_reached.recv().unwrap();
            let result = second();
            go_on.send(()).unwrap();
            result
        })
    }

    fn take(&self) -> Vec<(bool, Range)> {
        std::mem::take(&mut self.events.lock().unwrap())
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
            assert_eq!(events.last(), Some(&EVERYTHING[1]), "its end is behind that of the change");
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

/// One thread maps, one changes the file, one looks at the page.
fn storm(primary: &Primary) {
    let (file, place) = (new_file(), anonymous());
    let range = Range::with_len(place, PAGE_SIZE).unwrap();
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
    let (over, kept) = (AtomicBool::new(false), Arc::new(Kept::default()));
    let interval = primary.space().insert(range, kept.clone()).unwrap();
    let (mut used, mut stale) = (0u64, 0u64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                map(&file, place);
                std::thread::yield_now();
                move_to(anonymous(), place);
            }
        });
        scope.spawn(|| {
            while !over.load(SeqCst) {
                punch(&file);
                std::thread::yield_now();
            }
        });
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until {
            let ticket = interval.read();
            touch();
            let found = frame();
            let mut now = kept.0.lock().unwrap();
            if !interval.is_stale(&ticket) {
                *now = found;
            }
            drop(now);
            for _ in 0..20 {
                std::thread::yield_now();
                let now = kept.0.lock().unwrap();
                if let Some(found) = *now {
                    used += 1;
                    stale += u64::from(frame() != Some(found));
                }
            }
        }
        over.store(true, SeqCst);
    });
    assert!(used > 0);
    assert_eq!(stale, 0, "of {used} times that a frame was used");
}
