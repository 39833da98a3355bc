//! The most frequent of many things, in bounded memory: the space-saving sketch, evicting in batches.
//!
//! Up to `2 * keep` things are counted exactly. When there are more, the `keep` most frequent stay and the
//! highest count that went becomes the *floor*: what a newcomer may have been counted before it was
//! forgotten. So a count is never too high, and too low by at most the thing's `missed`; and the floor
//! is at most 1/`keep` of all that was counted, so that whatever is more frequent than that is there.

use std::collections::HashMap;
use std::hash::Hash;

/// Counts of things, with something else known of each.
#[derive(Debug)]
pub(super) struct Top<K, V> {
    keep: usize,
    floor: u64,
    entries: HashMap<K, Entry<V>>,
}

/// What is known of a thing.
#[derive(Clone, Debug)]
pub(super) struct Entry<V> {
    /// How often it was counted since it is here.
    pub(super) count: u64,
    /// How often it may have been counted before.
    pub(super) missed: u64,
    /// What else is known since it is here.
    pub(super) value: V,
}

impl<V> Entry<V> {
    fn at_most(&self) -> u64 {
        self.count + self.missed
    }
}

impl<K: Copy + Eq + Hash + Ord, V> Top<K, V> {
    pub(super) fn new(keep: usize) -> Top<K, V> {
        Top { keep, floor: 0, entries: HashMap::new() }
    }

    /// Counts a thing once more.
    pub(super) fn count(&mut self, key: K, first: impl FnOnce() -> V) -> &mut V {
        if self.entries.len() > 2 * self.keep {
            self.evict();
        }
        let missed = self.floor;
        let entry = self.entries.entry(key).or_insert_with(|| Entry { count: 0, missed, value: first() });
        entry.count += 1;
        &mut entry.value
    }

    /// All that are known, the most frequent first.
    pub(super) fn ranked(&self) -> Vec<(K, &Entry<V>)> {
        let mut ranked: Vec<_> = self.entries.iter().map(|(key, entry)| (*key, entry)).collect();
        ranked.sort_unstable_by_key(|(key, entry)| (std::cmp::Reverse(entry.count), *key));
        ranked
    }

    /// How many are known, and whether that is all there were.
    pub(super) fn known(&self) -> (usize, bool) {
        (self.entries.len(), self.floor == 0)
    }

    fn evict(&mut self) {
        let mut counts: Vec<_> = self.entries.iter().map(|(key, entry)| (entry.at_most(), *key)).collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        for (at_most, key) in counts.drain(self.keep..) {
            self.floor = self.floor.max(at_most);
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_things_are_counted_exactly() {
        let mut top = Top::new(4);
        for n in 0..80_u32 {
            *top.count(n % 8, || 0) += n;
        }
        assert_eq!(top.known(), (8, true));
        for (key, entry) in top.ranked() {
            assert_eq!((entry.count, entry.missed), (10, 0));
            assert_eq!(entry.value, (0..80).filter(|n| n % 8 == key).sum::<u32>());
        }
    }

    #[test]
    fn what_is_frequent_survives_what_is_rare() {
        let (mut top, mut exact) = (Top::new(64), HashMap::<u64, u64>::new());
        let mut total = 0;
        for n in 0..100_000_u64 {
            // Ten that come often, among tens of thousands that come once or twice.
            let key = if n % 3 == 0 { n % 10 } else { n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48 };
            top.count(key, || ());
            *exact.entry(key).or_default() += 1;
            total += 1;
            assert!(top.known().0 <= 129);
        }
        assert!(top.floor <= total / 64, "{} is too much of {total}", top.floor);
        let ranked = top.ranked();
        for (key, entry) in &ranked {
            assert!(entry.count <= exact[key] && exact[key] <= entry.at_most(), "{key}");
        }
        let first: std::collections::BTreeSet<_> = ranked.iter().take(10).map(|(key, _)| *key).collect();
        assert_eq!(first, (0..10).collect());
        assert!(!top.known().1);
    }
}
