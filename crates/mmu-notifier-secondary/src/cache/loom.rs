//! Every interleaving of a few steps of the cache, with the address space's own, under loom's memory model: `ci/loom.sh`.

// UNSAFETY: says to an address space who is calling, and shares loom's cells between threads, which is their purpose.
#![expect(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use loom::cell::UnsafeCell;
use mmu_notifier::{AddressSpace, Caller, Event, Range};

use super::homes::NUMBER;
use super::{Access, Cache, Options, RegisterError, Registrar, Wait};

const PAGES: Range = pages(0x1000);

/// Lies before them.
const BELOW: Range = pages(0);

const fn pages(start: usize) -> Range {
    match Range::with_len(start, 0x1000) {
        Ok(pages) => pages,
        Err(_) => panic!("a range"),
    }
}

fn caller() -> Caller {
    let number = NUMBER.with(std::cell::Cell::get);
    // SAFETY: each thread of a test has a number of its own.
    unsafe { Caller::new(number as u64 + 1, 0) }
}

/// Starts a thread with that number.
fn spawn(number: usize, run: impl FnOnce() + 'static) -> loom::thread::JoinHandle<()> {
    loom::thread::spawn(move || {
        NUMBER.with(|it| it.set(number));
        run();
    })
}

fn explore(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    // `LOOM_MAX_PREEMPTIONS` says otherwise.
    model.preemption_bound.get_or_insert(preemptions);
    model.max_branches = 20_000;
    model.check(run);
}

/// Memory of which loom says whether it is used while it is gone, or without an order between the two.
#[derive(Default)]
struct Memory(UnsafeCell<()>);

// SAFETY: the cell is only ever asked who touches it, never dereferenced; loom reports two at once.
unsafe impl Sync for Memory {}
// SAFETY: as above.
unsafe impl Send for Memory {}

impl Memory {
    /// The device goes to it.
    fn is_used(&self) {
        self.0.with(|_| ());
    }

    /// It is somebody else's now.
    fn changes(&self) {
        self.0.with_mut(|_| ());
    }
}

/// Pages that a device registers: those that are mapped.
struct Device {
    mapped: loom::sync::atomic::AtomicUsize,
    /// What pages are registered how often; two are as many as there are.
    registered: [AtomicUsize; 3],
    wait: Wait,
}

#[derive(Clone)]
struct Pages(Arc<Device>);

impl Registrar for Pages {
    type Handle = usize;

    fn register(&self, _: Range, _: Access) -> Result<usize, RegisterError> {
        let mapped = self.0.mapped.load(SeqCst);
        self.0.registered[mapped].fetch_add(1, SeqCst);
        Ok(mapped)
    }

    fn deregister(&self, _: Range, mapped: usize) {
        assert_ne!(self.0.registered[mapped].fetch_sub(1, SeqCst), 0, "deregistered twice");
    }

    fn wait(&self) -> Wait {
        self.0.wait
    }
}

struct Rig {
    space: AddressSpace,
    device: Arc<Device>,
    cache: Cache<Pages>,
}

fn rig(wait: Wait) -> Arc<Rig> {
    let space = AddressSpace::with_callers(caller);
    let mapped = loom::sync::atomic::AtomicUsize::new(0);
    let device = Arc::new(Device { mapped, registered: Default::default(), wait });
    let options = Options { entries: 4, ..Options::default() };
    let cache = Cache::new(&space, Pages(device.clone()), options);
    Arc::new(Rig { space, device, cache })
}

impl Rig {
    fn get(&self) -> super::Registration<'_, Pages> {
        self.cache.get(PAGES, Access::Read).unwrap()
    }

    fn registered(&self) -> [usize; 3] {
        self.device.registered.each_ref().map(|count| count.load(SeqCst))
    }
}

/// What a request gets while no change is open is what is mapped, whatever it overlapped before.
#[test]
fn a_hit_beside_a_change() {
    explore(2, || {
        let rig = rig(Wait::ForNothing);
        drop(rig.get());
        let other = rig.clone();
        let change = spawn(1, move || {
            other.space.invalidate(PAGES, Event::Unmap, || other.device.mapped.store(1, SeqCst));
            assert_eq!(*other.get().handle(), 1);
        });
        let got = rig.get();
        let handle = *got.handle();
        assert!(rig.registered()[handle] > 0, "used after it was deregistered");
        drop(got);
        change.join().unwrap();
        assert_eq!(*rig.get().handle(), 1);
        assert_eq!(rig.registered(), [0, 1, 0]);
    });
}

#[test]
fn a_miss_beside_a_change() {
    explore(2, || {
        let rig = rig(Wait::ForNothing);
        let other = rig.clone();
        let change = spawn(1, move || {
            other.space.invalidate(PAGES, Event::Unmap, || other.device.mapped.store(1, SeqCst));
        });
        drop(rig.get());
        change.join().unwrap();
        assert_eq!(*rig.get().handle(), 1, "stale");
        assert_eq!(rig.registered(), [0, 1, 0]);
    });
}

/// A change that must not wait takes effect though the books are locked.
#[test]
fn a_miss_beside_a_change_that_must_not_wait() {
    explore(2, || {
        let rig = rig(Wait::ForNothing);
        let other = rig.clone();
        let change = spawn(1, move || {
            let change = || other.device.mapped.store(1, SeqCst);
            other.space.try_invalidate(PAGES, Event::Unmap, change).unwrap();
        });
        drop(rig.get());
        change.join().unwrap();
        assert!(rig.cache.store.written.corpses.is_empty(), "left to nobody");
        assert_eq!(*rig.get().handle(), 1, "stale");
        rig.cache.flush();
        assert_eq!(rig.registered(), [0, 1, 0]);
    });
}

/// A change finds what it hits while others are moved to make room in the index.
#[test]
fn a_change_beside_a_miss_of_other_memory() {
    explore(2, || {
        let rig = rig(Wait::ForNothing);
        let token = rig.get().token();
        let other = rig.clone();
        let miss = spawn(1, move || drop(other.cache.get(BELOW, Access::Read).unwrap()));
        // Of so much that it takes the long way, through the tree.
        let range = Range::with_len(PAGES.start(), 8 * PAGES.len()).unwrap();
        rig.space.try_invalidate(range, Event::Unmap, || assert!(!token.is_valid(), "not found")).unwrap();
        miss.join().unwrap();
        assert!(rig.cache.store.written.corpses.is_empty(), "left to nobody");
    });
}

/// The memory of a device that is waited for is not used when it changes.
#[test]
fn a_change_that_waits_for_users() {
    explore(2, || {
        let rig = rig(Wait::UntilUnused);
        drop(rig.get());
        let memory = Arc::new(Memory::default());
        let (other, its_memory) = (rig.clone(), memory.clone());
        let change = spawn(1, move || {
            other.space.invalidate(PAGES, Event::Unmap, || {
                its_memory.changes();
                other.device.mapped.store(1, SeqCst);
            });
        });
        let got = rig.get();
        if *got.handle() == 0 {
            memory.is_used();
        }
        drop(got);
        change.join().unwrap();
    });
}

#[test]
fn two_users_let_go_beside_a_change() {
    explore(2, || {
        let rig = rig(Wait::ForNothing);
        let one = rig.clone();
        let user = spawn(1, move || drop(one.get()));
        drop(rig.get());
        rig.space.invalidate(PAGES, Event::Unmap, || rig.device.mapped.store(1, SeqCst));
        user.join().unwrap();
        rig.cache.flush();
        assert_eq!(rig.registered()[0], 0);
    });
}

#[test]
fn two_changes_at_the_same_time_bury_once() {
    explore(2, || {
        let rig = rig(Wait::ForNothing);
        drop(rig.get());
        let other = rig.clone();
        let change = spawn(1, move || other.space.invalidate(PAGES, Event::Unmap, || ()));
        rig.space.invalidate(PAGES, Event::Clear, || assert_eq!(rig.registered(), [0, 0, 0]));
        change.join().unwrap();
        assert_eq!(rig.registered(), [0, 0, 0]);
    });
}

#[test]
fn two_misses_of_the_same_memory() {
    explore(2, || {
        let rig = rig(Wait::ForNothing);
        let other = rig.clone();
        let miss = spawn(1, move || drop(other.get()));
        drop(rig.get());
        miss.join().unwrap();
        assert_eq!(rig.registered(), [1, 0, 0]);
        assert_eq!(rig.cache.stats().registered, 1);
    });
}
