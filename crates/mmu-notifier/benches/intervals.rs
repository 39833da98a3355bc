//! Interval subscribers: the start of a change among many of them, insert and remove, reading, bytes.
//!
//! The peer for the start is what one would write instead: a `BTreeMap` of disjoint ranges under a `RwLock`, which can
//! hold no overlapping ones. `cargo bench -p mmu-notifier --bench intervals`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use mmu_notifier::{
    AddressSpace, Change, Event, IntervalSubscriber, IntervalSubscription, PAGE_SIZE, Pass, Range, WouldBlock,
};

// UNSAFETY: counts what the allocator gives.
#[expect(unsafe_code)]
mod counting {
    use super::*;

    pub(super) static BYTES: AtomicUsize = AtomicUsize::new(0);

    pub(super) struct Counting;

    // SAFETY: the system's allocator, with a count beside it.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            BYTES.fetch_add(layout.size(), Relaxed);
            // SAFETY: by the caller's promise.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            BYTES.fetch_sub(layout.size(), Relaxed);
            // SAFETY: by the caller's promise.
            unsafe { System.dealloc(pointer, layout) }
        }
    }
}

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

struct Empty;

impl IntervalSubscriber for Empty {
    #[inline(never)]
    fn invalidate(&self, change: &Change) -> Pass {
        black_box(change);
        Pass::Done
    }

    fn try_invalidate(&self, change: &Change) -> Result<Pass, WouldBlock> {
        Ok(self.invalidate(change))
    }
}

/// Interval number `at`: two pages, and two pages free behind.
fn place(at: usize) -> Range {
    Range::with_len((at + 1) * 4 * PAGE_SIZE, 2 * PAGE_SIZE).unwrap()
}

/// A walk through `0..count` that never comes to the same cache lines soon.
struct Random(u64);

impl Random {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % count
    }
}

fn filled(count: usize) -> (AddressSpace, Vec<IntervalSubscription>) {
    let space = AddressSpace::new();
    // In random order, as in a program that has run for a while.
    let mut order: Vec<_> = (0..count).collect();
    let mut random = Random(1);
    for at in (1..count).rev() {
        order.swap(at, random.below(at + 1));
    }
    let mut intervals: Vec<_> = order.iter().map(|&at| space.insert(place(at), Empty).unwrap()).collect();
    intervals.sort_by_key(|interval| interval.range().start());
    (space, intervals)
}

/// A range that hits `hits` intervals from number `at` on.
fn hitting(at: usize, hits: usize) -> Range {
    match hits {
        0 => Range::with_len(place(at).end(), PAGE_SIZE).unwrap(),
        _ => Range::new(place(at).start(), place(at + hits - 1).end()).unwrap(),
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(1200))
        .configure_from_args();

    for count in [1, 1_000, 100_000, 1_000_000] {
        let before = counting::BYTES.load(Relaxed);
        let (space, mut intervals) = filled(count);
        assert!(space.synchronize());
        let bytes =
            counting::BYTES.load(Relaxed) - before - intervals.capacity() * size_of::<IntervalSubscription>();
        println!("intervals/bytes-each/{count}: {:.1}", (bytes - AddressSpace::BYTES) as f64 / count as f64);

        let mut group = criterion.benchmark_group(format!("intervals-{count}"));
        for hits in [0, 1, 16] {
            if hits > count {
                continue;
            }
            let mut random = Random(7);
            group.bench_function(BenchmarkId::new("start-end", format!("{hits}-hits")), |bencher| {
                bencher.iter(|| {
                    let range = hitting(random.below(count - hits.max(1) + 1), hits);
                    space.invalidate(range, Event::Unmap, || ());
                });
            });
        }
        let mut random = Random(9);
        group.bench_function("insert-remove", |bencher| {
            bencher.iter(|| drop(space.insert(place(random.below(count)), Empty)));
        });
        let mut random = Random(11);
        group.bench_function("read-is-stale", |bencher| {
            bencher.iter(|| {
                let interval = &intervals[random.below(count)];
                let ticket = interval.read();
                interval.is_stale(&ticket)
            });
        });

        let map: BTreeMap<usize, (usize, Arc<Empty>)> =
            (0..count).map(|at| (place(at).start(), (place(at).end(), Arc::new(Empty)))).collect();
        let map = RwLock::new(map);
        for hits in [0, 1, 16] {
            if hits > count {
                continue;
            }
            let mut random = Random(7);
            group.bench_function(BenchmarkId::new("rwlock-btreemap", format!("{hits}-hits")), |bencher| {
                bencher.iter(|| {
                    let range = hitting(random.below(count - hits.max(1) + 1), hits);
                    let change = Change::new(range, Event::Unmap, mmu_notifier::Blocking::Allowed);
                    let map = map.read().unwrap();
                    let first = map
                        .range(..=range.start())
                        .next_back()
                        .filter(|(_, (end, _))| *end > range.start())
                        .map_or(range.start(), |(start, _)| *start);
                    for (_, (_, subscriber)) in map.range(first..range.end()) {
                        black_box(subscriber.invalidate(&change));
                    }
                });
            });
        }
        let mut random = Random(9);
        group.bench_function("rwlock-btreemap-insert-remove", |bencher| {
            bencher.iter(|| {
                // Between two of those that are there.
                let start = place(random.below(count)).end();
                map.write().unwrap().insert(start, (start + PAGE_SIZE, Arc::new(Empty)));
                map.write().unwrap().remove(&start)
            });
        });
        group.finish();
        intervals.clear();
    }
    criterion.final_summary();
}
