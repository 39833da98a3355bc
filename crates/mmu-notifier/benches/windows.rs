//! The same as `chain`, for machines on which other work runs: all contenders in turn in short windows, many times, and
//! of each the lower quartile, which a disturbance seldom reaches. (Of two threads the median: where other work leaves
//! them one processor, the lower quartile is that of windows in which they did not run at the same time.) Prints
//! nanoseconds a pair, ratios, and what a second thread costs. `cargo bench -p mmu-notifier --bench windows`, about a minute.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use chains::contenders;

mod chains;

/// Pairs of a window: some ten microseconds.
const PAIRS: u64 = 500;
const WINDOWS: usize = 2000;
const SUBSCRIBERS: [usize; 4] = [0, 1, 4, 16];

/// Nanoseconds a pair of each contender.
fn measure(threads: usize, subscribers: usize) -> Vec<(&'static str, f64)> {
    let contenders = contenders(subscribers);
    // Two threads need longer windows, as they do not begin at quite the same time.
    let (windows, pairs) = if threads == 1 { (WINDOWS, PAIRS) } else { (WINDOWS / 10, 20 * PAIRS) };
    let (meeting, met) = (Barrier::new(threads), AtomicUsize::new(0));
    let work = || {
        let mut times = vec![Vec::with_capacity(windows); contenders.len()];
        let mut meetings = 0;
        for _ in 0..windows {
            for (times, (_, chain)) in times.iter_mut().zip(&contenders) {
                // Asleep, and then awake, as threads do not wake up at the same time.
                meeting.wait();
                meetings += threads;
                met.fetch_add(1, Ordering::SeqCst);
                while met.load(Ordering::SeqCst) < meetings {
                    std::thread::yield_now();
                }
                let began = Instant::now();
                (0..pairs).for_each(|_| chain.pair());
                times.push(began.elapsed().as_nanos() as f64 / pairs as f64);
            }
        }
        times
    };
    // The same threads for all windows: what a new one costs is not looked at.
    let times = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        others.into_iter().fold(work(), |times, other| slower(times, other.join().unwrap()))
    });
    let typical = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[if threads == 1 { times.len() / 4 } else { times.len() / 2 }]
    };
    contenders.iter().map(|(name, _)| *name).zip(times.into_iter().map(typical)).collect()
}

/// Of each window of each contender the slower thread.
fn slower(one: Vec<Vec<f64>>, other: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let windows = |(one, other): (Vec<f64>, Vec<f64>)| {
        one.into_iter().zip(other).map(|(one, other)| one.max(other)).collect()
    };
    one.into_iter().zip(other).map(windows).collect()
}

fn main() {
    for subscribers in SUBSCRIBERS {
        let one = measure(1, subscribers);
        let two = measure(2, subscribers);
        for (threads, row) in [(1, &one), (2, &two)] {
            print!("{threads} threads, {subscribers:2} subscribers:");
            row.iter().for_each(|(name, time)| print!("  {name} {time:.1}"));
            println!(" ns");
            let ours = row[1].1;
            for (name, time) in row {
                let cell = format!("{threads}-threads/{subscribers}-subscribers");
                println!("ratio windows/{cell}/ours-to-{name} {:.2}", ours / time);
            }
        }
        for ((name, one), (_, two)) in one.iter().zip(&two) {
            println!("ratio windows/{subscribers}-subscribers/{name}/2-threads-to-1 {:.2}", two / one);
        }
    }
}
