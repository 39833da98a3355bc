//! The ways to tell a list of subscribers of a change, ours among them.

// UNSAFETY: crossbeam-epoch hands out a raw pointer, and so does what stands for the least one can do.
#![expect(unsafe_code)]

use std::cell::Cell;
use std::hint::black_box;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};

use crossbeam_epoch as epoch;
use mmu_notifier::{AddressSpace, Blocking, Change, Event, Range, Subscriber, Subscription};

/// The range of the change: in registers, and not known to the compiler.
#[inline]
fn range() -> Range {
    Range::with_len(black_box(0x1000), 0x1000).unwrap_or(Range::EVERYTHING)
}

/// Does nothing, and cannot be optimised away.
struct Empty(usize);

impl Subscriber for Empty {
    fn start(&self, change: &Change) {
        black_box((change, self.0));
    }

    fn end(&self, change: &Change) {
        black_box((change, self.0));
    }
}

type List = Vec<Arc<dyn Subscriber>>;

fn list(count: usize) -> List {
    (0..count).map(|at| Arc::new(Empty(at)) as Arc<dyn Subscriber>).collect()
}

fn walk(list: &List) {
    let change = Change::new(range(), Event::Unmap, Blocking::Allowed);
    for subscriber in list {
        subscriber.start(&change);
    }
    for subscriber in list {
        subscriber.end(&change);
    }
}

/// Somebody who tells a list of a change.
pub(crate) trait Chain: Sync {
    fn pair(&self);
}

struct Plain(List);

impl Chain for Plain {
    fn pair(&self) {
        walk(black_box(&self.0));
    }
}

struct Lock(RwLock<List>);

impl Chain for Lock {
    fn pair(&self) {
        walk(&self.0.read().unwrap());
    }
}

struct Twice(RwLock<List>);

impl Chain for Twice {
    fn pair(&self) {
        let change = Change::new(range(), Event::Unmap, Blocking::Allowed);
        self.0.read().unwrap().iter().for_each(|subscriber| subscriber.start(&change));
        self.0.read().unwrap().iter().for_each(|subscriber| subscriber.end(&change));
    }
}

struct Swap(arc_swap::ArcSwap<List>);

impl Chain for Swap {
    fn pair(&self) {
        walk(&self.0.load());
    }
}

struct Epoch(epoch::Atomic<List>);

impl Chain for Epoch {
    fn pair(&self) {
        let guard = epoch::pin();
        // SAFETY: the list is never replaced.
        walk(unsafe { self.0.load(Ordering::Acquire, &guard).deref() });
    }
}

/// The least that anybody must do who keeps our promises, and nothing that makes it usable: nobody can subscribe, a slot is
/// never looked for, nothing is counted or timed, no callback may refuse or panic, no interval is asked. It is lower than what
/// is known to be possible, so that where it is behind a peer, everybody who keeps these promises is:
///
/// * G4, both or neither: who subscribes must find the changes that do not know him, and wait for no others. So a change
///   puts the list that it walks on record, fences, and looks whether that is the list still. Nor may it be freed before.
/// * G5, no callback afterwards, and whoever leaves waits for callbacks and not for changes: so the phase is on record, *is
///   being called* apart from *is in its middle*; and behind the second beginning there is a second full fence.
/// * Who leaves inside his own callback hears no end: so each one is looked at before each call.
/// * G7, readers wait for what overlaps and for nothing else: so the range is on record.
/// * G1, exactly one end, also after a panic or a jump out of a callback: so before each call it is written down whose
///   callback runs, and whether it is a start or an end.
///
/// A peer that holds a lock or an epoch from start to end makes who comes or goes wait for whole system calls, for ever if
/// he does so in a callback; it needs none of this. Without the two fences one would need a system call on the other side
/// that makes all threads fence (`membarrier`).
struct Floor {
    slots: Box<[Place]>,
    list: AtomicPtr<Vec<Row>>,
}

/// Of one thread alone. Its name stands there for good.
#[derive(Default)]
#[repr(align(256))]
struct Place {
    phase: AtomicU64,
    list: AtomicPtr<Vec<Row>>,
    start: AtomicUsize,
    end: AtomicUsize,
    what: AtomicU32,
    calling: AtomicUsize,
}

/// One subscriber: null once it has left.
struct Row {
    subscriber: AtomicPtr<Empty>,
    start: fn(&Empty, &Change),
    end: fn(&Empty, &Change),
}

impl Floor {
    fn new(count: usize) -> Floor {
        let row = |at| Row {
            subscriber: AtomicPtr::new(Box::into_raw(Box::new(Empty(at)))),
            start: <Empty as Subscriber>::start,
            end: <Empty as Subscriber>::end,
        };
        Floor {
            slots: (0..128).map(|_| Place::default()).collect(),
            list: AtomicPtr::new(Box::into_raw(Box::new((0..count).map(row).collect()))),
        }
    }

    /// Who comes meanwhile waits for this change whatever it changes, so that it need not be written down.
    fn tell_nobody(place: &Place) {
        place.phase.swap(2, Ordering::SeqCst);
        place.phase.store(0, Ordering::Release);
    }

    #[inline(always)]
    fn walk(
        &self,
        place: &Place,
        list: &[Row],
        change: &Change,
        which: usize,
        call: impl Fn(&Row, &Empty, &Change),
    ) {
        for row in list {
            place.calling.store(std::ptr::from_ref(row) as usize + which, Ordering::Relaxed);
            // SAFETY: never freed.
            if let Some(subscriber) = unsafe { row.subscriber.load(Ordering::Relaxed).as_ref() } {
                call(row, subscriber, change);
            }
        }
    }
}

impl Chain for Floor {
    fn pair(&self) {
        let change = Change::new(range(), Event::Unmap, Blocking::Allowed);
        let place = &self.slots[THREAD.get() % 128];
        // SAFETY: never freed.
        if unsafe { &*self.list.load(Ordering::Acquire) }.is_empty() {
            return Self::tell_nobody(place);
        }
        place.start.store(change.range().start(), Ordering::Relaxed);
        place.end.store(change.range().end(), Ordering::Relaxed);
        place.what.store(change.event() as u32, Ordering::Relaxed);
        let mut list = self.list.load(Ordering::Acquire);
        loop {
            place.list.store(list, Ordering::Relaxed);
            place.phase.swap(1, Ordering::SeqCst);
            let now = self.list.load(Ordering::Acquire);
            if now == list {
                break;
            }
            list = now;
        }
        // SAFETY: never freed.
        let rows = unsafe { &*list };
        self.walk(place, rows, &change, 0, |row, subscriber, change| (row.start)(subscriber, change));
        place.phase.store(2, Ordering::Release);
        place.phase.swap(3, Ordering::SeqCst);
        self.walk(place, rows, &change, 1, |row, subscriber, change| (row.end)(subscriber, change));
        place.phase.store(0, Ordering::Release);
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        let list = unsafe { Box::from_raw(self.list.load(Ordering::Relaxed)) };
        for row in &*list {
            let subscriber = row.subscriber.swap(null_mut(), Ordering::Relaxed);
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(subscriber) });
        }
    }
}

/// Numbers threads, for [`Floor`].
static THREADS: AtomicUsize = AtomicUsize::new(0);

std::thread_local! {
    static THREAD: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed));
}

struct Ours(AddressSpace, #[expect(dead_code, reason = "keeps them subscribed")] Vec<Subscription>);

impl Ours {
    fn new(count: usize) -> Ours {
        let space = AddressSpace::new();
        let subscriptions = (0..count).map(|at| space.subscribe(Empty(at))).collect();
        Ours(space, subscriptions)
    }
}

impl Chain for Ours {
    fn pair(&self) {
        self.0.invalidate(range(), Event::Unmap, || ());
    }
}

/// The contenders with `count` subscribers each, the limit first and ours second.
pub(crate) fn contenders(count: usize) -> Vec<(&'static str, Box<dyn Chain>)> {
    vec![
        ("plain", Box::new(Plain(list(count)))),
        ("ours", Box::new(Ours::new(count))),
        ("floor", Box::new(Floor::new(count))),
        ("rwlock", Box::new(Lock(RwLock::new(list(count))))),
        ("rwlock-twice", Box::new(Twice(RwLock::new(list(count))))),
        ("arc-swap", Box::new(Swap(arc_swap::ArcSwap::from_pointee(list(count))))),
        ("epoch", Box::new(Epoch(epoch::Atomic::new(list(count))))),
    ]
}
