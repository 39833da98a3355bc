//! Windows of 0.4 ms, one or two threads, for machines on which other work runs.
//!
//! A window in which a thread was preempted is thrown away, and one in which nothing went on for long though the thread
//! did not sleep: the host had taken the processor. Around a window of two threads a cache line goes to and fro: how
//! long that takes says whether the host has put the two processors near each other, which for whatever both write
//! is the difference between 40 and 200 ns. Where both are seen they are reported apart.

// UNSAFETY: asks the system where a thread may run and how often it was preempted.
#![expect(unsafe_code)]

use std::mem::{MaybeUninit, zeroed};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_micros(400);
/// As much work as is done between two looks at the clock (30 ns).
const BATCH: Duration = Duration::from_micros(4);
const STALL: Duration = Duration::from_micros(100);

/// How far the two processors are from each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Distance {
    /// One thread.
    None,
    Near,
    Far,
}

/// What one thread did in a window.
pub(crate) struct Side {
    pub(crate) operations: u64,
    time: Duration,
    disturbed: bool,
}

impl Side {
    /// Nanoseconds of this thread for each operation.
    pub(crate) fn each(&self) -> f64 {
        self.time.as_nanos() as f64 / self.operations as f64
    }

    /// Nothing if somebody else had the processor.
    pub(crate) fn undisturbed(self) -> Option<Side> {
        (!self.disturbed).then_some(self)
    }
}

/// Preemptions, and sleeps, of this thread.
fn switches() -> (i64, i64) {
    // SAFETY: a struct of integers.
    let mut usage: libc::rusage = unsafe { zeroed() };
    // SAFETY: writes the struct.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    (usage.ru_nivcsw, usage.ru_nvcsw)
}

/// The processors that this process may use.
fn processors() -> Vec<usize> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: writes the set; all zeroes are an empty one.
    let set = unsafe {
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr());
        set.assume_init()
    };
    // SAFETY: in bounds.
    (0..libc::CPU_SETSIZE as usize).filter(|&number| unsafe { libc::CPU_ISSET(number, &set) }).collect()
}

/// This thread stays where it is put, if the system lets it.
fn pin(processor: usize) {
    // SAFETY: all zeroes are an empty set; the number is of one that was in a set.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// How many operations take about as long as [`BATCH`]. Runs them, so it also warms up.
pub(crate) fn batch(mut body: impl FnMut(u64)) -> u64 {
    let mut count = 1;
    loop {
        body(count);
        let began = Instant::now();
        body(count);
        if began.elapsed() >= BATCH {
            return count;
        }
        count *= 2;
    }
}

/// Batches of `body` for as long as a window, and at least one.
pub(crate) fn window(batch: u64, may_stall: bool, mut body: impl FnMut(u64)) -> Side {
    // What the contender before has pushed out of the nearest caches comes back first.
    body(batch);
    let (preempted, slept) = switches();
    let began = Instant::now();
    let (mut last, mut operations, mut stalled) = (began, 0, false);
    let time = loop {
        body(batch);
        operations += batch;
        let now = Instant::now();
        stalled |= now - last > STALL;
        last = now;
        if now - began >= WINDOW {
            break now - began;
        }
    };
    let after = switches();
    let disturbed = after.0 != preempted || stalled && !may_stall && after.1 == slept;
    Side { operations, time, disturbed }
}

/// One cache line that goes to and fro.
#[repr(align(128))]
struct Ball(AtomicU64);

const EXCHANGES: u64 = 100;

impl Ball {
    /// One way, in nanoseconds. Afterwards both threads are known to run.
    fn ping(&self) -> f64 {
        let began = Instant::now();
        for at in 0..EXCHANGES {
            self.0.store(2 * at + 1, Ordering::SeqCst);
            while self.0.load(Ordering::SeqCst) != 2 * at + 2 {}
        }
        began.elapsed().as_nanos() as f64 / (2 * EXCHANGES) as f64
    }

    fn pong(&self) {
        for at in 0..EXCHANGES {
            while self.0.load(Ordering::SeqCst) != 2 * at + 1 {}
            self.0.store(2 * at + 2, Ordering::SeqCst);
        }
    }
}

fn distance(one_way: f64) -> Option<Distance> {
    match one_way {
        ..80.0 => Some(Distance::Near),
        // Longer than any line takes: somebody was not running.
        120.0..600.0 => Some(Distance::Far),
        _ => None,
    }
}

type Job = Box<dyn FnOnce() -> Side + Send>;

/// The second thread. It sleeps while it has nothing to do.
pub(crate) struct Helper {
    ball: Arc<Ball>,
    stop: Arc<AtomicBool>,
    jobs: Sender<Job>,
    sides: Receiver<Side>,
}

impl Helper {
    /// Pins this thread and the helper. There is none if there is one processor.
    pub(crate) fn start() -> Option<Helper> {
        let processors = processors();
        let &[first, second, ..] = &*processors else {
            return None;
        };
        pin(first);
        let ball = Arc::new(Ball(AtomicU64::new(0)));
        let (jobs, todo) = channel::<Job>();
        let (done, sides) = channel();
        let same = ball.clone();
        thread::spawn(move || {
            pin(second);
            for job in todo {
                same.pong();
                same.pong();
                let side = job();
                same.pong();
                same.pong();
                if done.send(side).is_err() {
                    return;
                }
            }
        });
        Some(Helper { ball, stop: Arc::new(AtomicBool::new(false)), jobs, sides })
    }

    fn beside(
        &self,
        theirs: impl FnOnce() -> Side + Send + 'static,
        mine: impl FnOnce() -> Side,
    ) -> Option<(Distance, Side, Side)> {
        self.jobs.send(Box::new(theirs)).expect("the helper is gone");
        self.ball.ping();
        let before = distance(self.ball.ping());
        let mine = mine();
        self.stop.store(true, Ordering::Relaxed);
        // The first waits for who is not done yet.
        self.ball.ping();
        let after = distance(self.ball.ping());
        let theirs = self.sides.recv().expect("the helper is gone");
        self.stop.store(false, Ordering::Relaxed);
        let distance = before.filter(|_| before == after)?;
        (!mine.disturbed && !theirs.disturbed).then_some((distance, mine, theirs))
    }

    /// Both measure: the mean time of an operation, of a thread. Nothing if they were disturbed.
    pub(crate) fn both(
        &self,
        theirs: impl FnOnce() -> Side + Send + 'static,
        mine: impl FnOnce() -> Side,
    ) -> Option<(Distance, f64)> {
        let (distance, mine, theirs) = self.beside(theirs, mine)?;
        Some((distance, (mine.each() + theirs.each()) / 2.0))
    }

    /// This thread measures, the other one does `disturb` over and over until it is done, and `finally` in the end.
    pub(crate) fn one(
        &self,
        mut disturb: impl FnMut() + Send + 'static,
        finally: impl FnOnce() + Send + 'static,
        mine: impl FnOnce() -> Side,
    ) -> Option<(Distance, f64)> {
        let stop = self.stop.clone();
        let theirs = move || {
            let (preempted, _) = switches();
            let began = Instant::now();
            let mut operations = 0;
            while !stop.load(Ordering::Relaxed) {
                disturb();
                operations += 1;
            }
            let side = Side { operations, time: began.elapsed(), disturbed: switches().0 != preempted };
            finally();
            side
        };
        let (distance, mine, _) = self.beside(theirs, mine)?;
        Some((distance, mine.each()))
    }
}
