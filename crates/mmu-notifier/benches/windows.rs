//! The same as `chain`, for machines on which other work runs: all contenders in turn in short windows, many times, and
//! of each the lower quartile, which a disturbance seldom reaches; of two threads the median of the windows in which both
//! ran at the same time. Prints nanoseconds a pair, ratios, and what a second thread costs. `ci/bench-core.sh`, or
//! `cargo bench -p mmu-notifier --bench windows`, about a minute.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
                    (0..1000).for_each(|_| std::hint::spin_loop());
                    std::thread::yield_now();
                }
                let began = Instant::now();
                (0..pairs).for_each(|_| chain.pair());
                times.push((began, began.elapsed()));
            }
        }
        times
    };
    // The same threads for all windows: what a new one costs is not looked at.
    let times: Vec<Vec<Vec<Window>>> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        std::iter::once(work()).chain(others.into_iter().map(|other| other.join().unwrap())).collect()
    });
    let typical = |at: usize| {
        let together = |window| slowest(times.iter().map(|thread: &Vec<Vec<Window>>| thread[at][window]));
        let mut times: Vec<_> = (0..windows).filter_map(together).collect();
        times.sort_by_key(|time| *time);
        let at = if threads == 1 { times.len() / 4 } else { times.len() / 2 };
        times.get(at).map_or(f64::NAN, |time| time.as_nanos() as f64 / pairs as f64)
    };
    contenders.iter().enumerate().map(|(at, (name, _))| (*name, typical(at))).collect()
}

/// When a thread began with a window, and how long it took.
type Window = (Instant, Duration);

/// The time of the slowest thread; `None` if they have not run at the same time, as other work left them one processor.
fn slowest(threads: impl Iterator<Item = Window> + Clone) -> Option<Duration> {
    let longest = threads.clone().map(|(_, time)| time).max()?;
    let last_began = threads.clone().map(|(began, _)| began).max()?;
    let first_ended = threads.map(|(began, time)| began + time).min()?;
    (first_ended.saturating_duration_since(last_began) * 10 >= longest * 8).then_some(longest)
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
