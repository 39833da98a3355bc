//! The ways to tell a list of subscribers of a change, ours among them.

// UNSAFETY: crossbeam-epoch hands out a raw pointer.
#![expect(unsafe_code)]

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier, RwLock};
use std::time::{Duration, Instant};

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

/// `count` pairs on each of `threads` threads: the time of a thread.
pub(crate) fn run(chain: &dyn Chain, threads: usize, count: u64) -> Duration {
    if threads == 1 {
        let began = Instant::now();
        (0..count).for_each(|_| chain.pair());
        return began.elapsed();
    }
    let barrier = Barrier::new(threads);
    let work = || {
        barrier.wait();
        let began = Instant::now();
        (0..count).for_each(|_| chain.pair());
        began.elapsed()
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        others.into_iter().map(|other| other.join().unwrap()).fold(mine, Duration::max)
    })
}

/// The contenders with `count` subscribers each, the limit first and ours second.
pub(crate) fn contenders(count: usize) -> Vec<(&'static str, Box<dyn Chain>)> {
    vec![
        ("plain", Box::new(Plain(list(count)))),
        ("ours", Box::new(Ours::new(count))),
        ("rwlock", Box::new(Lock(RwLock::new(list(count))))),
        ("rwlock-twice", Box::new(Twice(RwLock::new(list(count))))),
        ("arc-swap", Box::new(Swap(arc_swap::ArcSwap::from_pointee(list(count))))),
        ("epoch", Box::new(Epoch(epoch::Atomic::new(list(count))))),
    ]
}
