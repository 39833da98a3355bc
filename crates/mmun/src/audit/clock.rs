//! Ticks of watched processes as nanoseconds of the kernel's samples.
//!
//! Both the time stamp counter and `CLOCK_MONOTONIC_RAW` run evenly, so two readings of both tell the rate, and the last
//! one is what moments shortly before it are measured from.

// UNSAFETY: an instruction of the processor and a system call that fills a structure.
#![expect(unsafe_code)]

/// Both clocks, compared at the beginning and just now.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    first: Reading,
    last: Reading,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    ticks: u64,
    ns: u64,
}

impl Clock {
    /// Reads both for the first time.
    pub fn start() -> Clock {
        let first = Reading::now();
        // A millisecond tells the rate to a few parts in ten thousand; it gets better with each reading.
        std::thread::sleep(std::time::Duration::from_millis(1));
        Clock { first, last: Reading::now() }
    }

    /// Reads both again; the nanoseconds.
    pub fn read(&mut self) -> u64 {
        self.last = Reading::now();
        self.last.ns
    }

    /// The moment `ticks` in nanoseconds.
    pub fn ns(&self, ticks: u64) -> u64 {
        let rate = (self.last.ns - self.first.ns) as f64
            / self.last.ticks.saturating_sub(self.first.ticks).max(1) as f64;
        let apart = self.last.ticks.wrapping_sub(ticks).cast_signed();
        self.last.ns.saturating_add_signed(-(apart as f64 * rate) as i64)
    }
}

impl Reading {
    /// The closest of a few pairs.
    fn now() -> Reading {
        let pair = || {
            let before = ticks();
            let ns = raw();
            let apart = ticks().saturating_sub(before);
            (apart, Reading { ticks: before + apart / 2, ns })
        };
        (0..8).map(|_| pair()).min_by_key(|pair| pair.0).expect("eight pairs").1
    }
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 has the instruction; it reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn raw() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes `time` only.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_lie_between_what_was_read_around_them() {
        let mut clock = Clock::start();
        for _ in 0..100 {
            let (before, at, after) = (raw(), ticks(), raw());
            clock.read();
            let ns = clock.ns(at);
            // What two readings may be off.
            assert!((before - 1000..after + 1000).contains(&ns), "{before} {ns} {after}");
        }
    }
}
