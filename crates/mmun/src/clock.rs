//! How long a tick of the time stamp counter is.
//!
//! Watched processes stamp with `rdtsc` because it costs nothing; here ticks become nanoseconds of
//! `CLOCK_MONOTONIC`, by comparing both clocks at the start of the run and again whenever it is asked.
//! The longer the run, the more exact: a pair of readings is off by some 50 ns.

// UNSAFETY: `rdtsc` is an intrinsic of the processor.
#![expect(unsafe_code)]

use std::time::{Duration, Instant};

/// Both clocks at the start of a run.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    ticks: u64,
    time: Instant,
}

/// The length of a tick, and when the run began.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    start: u64,
    ns_per_tick: f64,
}

impl Clock {
    /// Reads both clocks.
    pub fn start() -> Clock {
        let (ticks, time) = read_both();
        Clock { ticks, time }
    }

    /// The wall time since the start.
    pub fn elapsed(&self) -> Duration {
        self.time.elapsed()
    }

    /// Reads both again and compares. Waits until a millisecond has passed since the start.
    pub fn scale(&self) -> Scale {
        if let Some(rest) = Duration::from_millis(1).checked_sub(self.time.elapsed()) {
            std::thread::sleep(rest);
        }
        let (ticks, time) = read_both();
        let ns = time.duration_since(self.time).as_nanos() as f64;
        Scale { start: self.ticks, ns_per_tick: ns / ticks.saturating_sub(self.ticks).max(1) as f64 }
    }
}

impl Scale {
    /// A scale by numbers.
    #[cfg(test)]
    pub fn new(start: u64, ns_per_tick: f64) -> Scale {
        Scale { start, ns_per_tick }
    }

    /// A duration of `ticks` in nanoseconds.
    pub fn ns(&self, ticks: u64) -> u64 {
        (ticks as f64 * self.ns_per_tick) as u64
    }

    /// The moment `ticks` in nanoseconds since the start; what lies before it is at the start.
    pub fn since_start(&self, ticks: u64) -> u64 {
        self.ns(ticks.saturating_sub(self.start))
    }
}

/// The closest of a few pairs of readings.
fn read_both() -> (u64, Instant) {
    let pair = || {
        let before = ticks();
        let time = Instant::now();
        let apart = ticks().saturating_sub(before);
        (apart, before + apart / 2, time)
    };
    let (_, ticks, time) = (0..8).map(|_| pair()).min_by_key(|pair| pair.0).expect("eight pairs");
    (ticks, time)
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 has the instruction; it reads a counter and touches no memory. A process
    // that had it forbidden (`prctl(PR_SET_TSC)`) would get a signal, no undefined behaviour.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_time() {
        let clock = Clock::start();
        let first = ticks();
        std::thread::sleep(Duration::from_millis(20));
        let scale = clock.scale();
        let ns = scale.ns(ticks() - first);
        assert!((19_000_000..2_000_000_000).contains(&ns), "{ns} ns for a sleep of 20 ms");
        assert!(scale.since_start(first) < 10_000_000);
        assert_eq!(scale.since_start(0), 0, "before the start");
    }
}
