//! Counts over time in a fixed number of bins, however long the run.
//!
//! Bins begin narrow; whenever a time lies behind the last one, neighbours are merged and every bin
//! becomes twice as wide. All widths are powers of two from the same origin, so several of these can be
//! brought to a common width at the end.

/// Bins begin 1 µs wide, or so.
const FIRST_SHIFT: u32 = 10;

/// Numbers by time.
#[derive(Clone, Debug)]
pub(super) struct Bins {
    /// A bin is `1 << shift` nanoseconds wide.
    shift: u32,
    limit: usize,
    merge: fn(u64, u64) -> u64,
    values: Vec<u64>,
}

impl Bins {
    /// At most `limit` bins of sums.
    pub(super) fn sums(limit: usize) -> Bins {
        Bins { shift: FIRST_SHIFT, limit, merge: u64::saturating_add, values: Vec::new() }
    }

    /// At most `limit` bins of maxima.
    pub(super) fn maxima(limit: usize) -> Bins {
        Bins { merge: u64::max, ..Bins::sums(limit) }
    }

    /// Adds to the sum, or raises the maximum, at a time.
    pub(super) fn put(&mut self, time_ns: u64, value: u64) {
        self.widen_to(self.shift_for(time_ns));
        let bin = (time_ns >> self.shift) as usize;
        if bin >= self.values.len() {
            self.values.resize(bin + 1, 0);
        }
        self.values[bin] = (self.merge)(self.values[bin], value);
    }

    /// The width, as a power of two, at which a time lies in the last bin or before it.
    pub(super) fn shift_for(&self, time_ns: u64) -> u32 {
        let mut shift = self.shift;
        while time_ns >> shift >= self.limit as u64 {
            shift += 1;
        }
        shift
    }

    /// Merges bins until they are `1 << shift` nanoseconds wide; wider ones stay as they are.
    pub(super) fn widen_to(&mut self, shift: u32) {
        while self.shift < shift {
            let merge = self.merge;
            self.values = self.values.chunks(2).map(|pair| pair.iter().copied().fold(0, merge)).collect();
            self.shift += 1;
        }
    }

    /// The values, up to the last one that was put.
    pub(super) fn values(&self) -> &[u64] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_keeps_sums_and_maxima() {
        let (mut sums, mut maxima) = (Bins::sums(8), Bins::maxima(8));
        let times = (0..1000_u64).map(|n| n * n * 977);
        for time in times.clone() {
            sums.put(time, 1);
            maxima.put(time, time);
            assert!(sums.values().len() <= 8);
        }
        assert_eq!(sums.values().iter().sum::<u64>(), 1000);
        let width = 1 << sums.shift;
        for (bin, (&sum, &maximum)) in sums.values().iter().zip(maxima.values()).enumerate() {
            let inside = |time: &u64| *time / width == bin as u64;
            assert_eq!(sum, times.clone().filter(inside).count() as u64, "bin {bin}");
            assert_eq!(maximum, times.clone().filter(inside).max().unwrap_or(0), "bin {bin}");
        }
    }

    #[test]
    fn order_does_not_matter() {
        let (mut forth, mut back) = (Bins::sums(16), Bins::sums(16));
        let times: Vec<u64> = (0..100).map(|n| n * 12_345).collect();
        times.iter().for_each(|&time| forth.put(time, 1));
        times.iter().rev().for_each(|&time| back.put(time, 1));
        assert_eq!(forth.values(), back.values());
    }

    #[test]
    fn any_time_has_a_bin() {
        let mut bins = Bins::sums(4);
        bins.put(u64::MAX, 1);
        bins.put(0, 1);
        assert_eq!(bins.values(), [1, 0, 0, 1]);
    }
}
