//! One change: start of everybody, end of everybody. Ours beside what one would write instead.
//!
//! Each peer is given its most favourable form: it takes its list once and keeps it from start to end, so that who comes
//! or goes waits for whole system calls. `rwlock-twice` lets go in between, as the hooks of the field do. *Plain* is the
//! limit: the calls alone, of a list that nobody can change. `cargo bench -p mmu-notifier --bench chain`; ratios with `ci/bench-core.sh`.

// UNSAFETY: crossbeam-epoch hands out a raw pointer.
#![expect(unsafe_code)]

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier, RwLock};
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, measurement::WallTime};
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
    #[inline(never)]
    fn start(&self, change: &Change) {
        black_box((change, self.0));
    }

    #[inline(never)]
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
trait Chain: Sync {
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
fn run(chain: &dyn Chain, threads: usize, count: u64) -> Duration {
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

fn cell(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    threads: usize,
    subscribers: usize,
    chain: &dyn Chain,
) {
    let id = BenchmarkId::new(name, format!("{subscribers}-subscribers"));
    group.bench_function(id, |bencher| bencher.iter_custom(|count| run(chain, threads, count)));
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(40)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(1200))
        .configure_from_args();
    for threads in [1, 2] {
        let mut group = criterion.benchmark_group(format!("chain-{threads}-threads"));
        for subscribers in [0, 1, 4, 16] {
            cell(&mut group, "plain", threads, subscribers, &Plain(list(subscribers)));
            cell(&mut group, "ours", threads, subscribers, &Ours::new(subscribers));
            cell(&mut group, "rwlock", threads, subscribers, &Lock(RwLock::new(list(subscribers))));
            cell(&mut group, "rwlock-twice", threads, subscribers, &Twice(RwLock::new(list(subscribers))));
            let swap = Swap(arc_swap::ArcSwap::from_pointee(list(subscribers)));
            cell(&mut group, "arc-swap", threads, subscribers, &swap);
            cell(&mut group, "epoch", threads, subscribers, &Epoch(epoch::Atomic::new(list(subscribers))));
        }
        group.finish();
    }
    criterion.final_summary();
}
