//! One change: start of everybody, end of everybody. Ours beside what one would write instead.
//!
//! Each peer is given its most favourable form: it takes its list once and keeps it from start to end, so that who comes
//! or goes waits for whole system calls. `rwlock-twice` lets go in between, as the hooks of the field do. *Plain* is the
//! limit: the calls alone, of a list that nobody can change. `cargo bench -p mmu-notifier --bench chain`; ratios with `ci/bench-core.sh`.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use chains::{Chain, contenders};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, measurement::WallTime};

mod chains;

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
            for (name, chain) in contenders(subscribers) {
                cell(&mut group, name, threads, subscribers, &*chain);
            }
        }
        group.finish();
    }
    criterion.final_summary();
}
