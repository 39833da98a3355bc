//! What one would write with a map from start to (end, registration), in its most favourable form: a hit uses the
//! registration under the read lock and counts no references; a miss looks no further for overlaps.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam_skiplist::SkipMap;
use rangemap::RangeMap;

use super::{Contender, handle};
use crate::layout::Layout;

/// Registers nothing, and counts how often.
#[derive(Default)]
struct NoDevice(AtomicU64);

impl NoDevice {
    fn register(&self, start: usize) -> u32 {
        self.0.fetch_add(1, Relaxed);
        handle(start)
    }

    fn deregister(&self, handle: u32) {
        black_box(handle);
    }

    fn registrations(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

struct Registration {
    end: usize,
    handle: u32,
}

/// `RwLock<BTreeMap>`.
#[derive(Default)]
pub(crate) struct Tree {
    map: RwLock<BTreeMap<usize, Registration>>,
    device: NoDevice,
}

fn covering(map: &BTreeMap<usize, Registration>, start: usize, end: usize) -> Option<&Registration> {
    let (_, registration) = map.range(..=start).next_back()?;
    (end <= registration.end).then_some(registration)
}

impl Contender for Tree {
    const NAME: &'static str = "btreemap";

    fn filled(layout: &Layout) -> Tree {
        let tree = Tree::default();
        layout.shuffled().for_each(|(start, end)| tree.get(start, end));
        tree
    }

    #[inline]
    fn get(&self, start: usize, end: usize) {
        if let Some(registration) = covering(&self.map.read().unwrap(), start, end) {
            black_box(registration.handle);
            return;
        }
        let mut map = self.map.write().unwrap();
        if covering(&map, start, end).is_none() {
            map.insert(start, Registration { end, handle: self.device.register(start) });
        }
    }

    #[inline]
    fn unmap(&self, start: usize, end: usize) {
        let last = |map: &BTreeMap<usize, Registration>| {
            map.range(..end).next_back().is_some_and(|(_, registration)| registration.end > start)
        };
        if !last(&self.map.read().unwrap()) {
            return;
        }
        let mut map = self.map.write().unwrap();
        let first = match map.range(..=start).next_back() {
            Some((&first, registration)) if registration.end > start => first,
            _ => start,
        };
        map.extract_if(first..end, |_, _| true).for_each(|(_, gone)| self.device.deregister(gone.handle));
    }

    fn registrations(&self) -> u64 {
        self.device.registrations()
    }
}

/// `RwLock<RangeMap>` of the rangemap crate.
#[derive(Default)]
pub(crate) struct Ranges {
    map: RwLock<RangeMap<usize, u32>>,
    device: NoDevice,
}

impl Contender for Ranges {
    const NAME: &'static str = "rangemap";

    fn filled(layout: &Layout) -> Ranges {
        let ranges = Ranges::default();
        layout.shuffled().for_each(|(start, end)| ranges.get(start, end));
        ranges
    }

    #[inline]
    fn get(&self, start: usize, end: usize) {
        let covering = |map: &RangeMap<usize, u32>| {
            map.get_key_value(&start)
                .filter(|(range, _)| end <= range.end)
                .map(|(_, &handle)| black_box(handle))
        };
        if covering(&self.map.read().unwrap()).is_some() {
            return;
        }
        let mut map = self.map.write().unwrap();
        if covering(&map).is_none() {
            map.insert(start..end, self.device.register(start));
        }
    }

    #[inline]
    fn unmap(&self, start: usize, end: usize) {
        if !self.map.read().unwrap().overlaps(&(start..end)) {
            return;
        }
        let mut map = self.map.write().unwrap();
        map.overlapping(start..end).for_each(|(_, &handle)| self.device.deregister(handle));
        map.remove(start..end);
    }

    fn registrations(&self) -> u64 {
        self.device.registrations()
    }
}

/// `SkipMap` of the crossbeam-skiplist crate, which needs no lock. Two that miss the same range may both register it.
#[derive(Default)]
pub(crate) struct Skip {
    map: SkipMap<usize, Registration>,
    device: NoDevice,
}

impl Contender for Skip {
    const NAME: &'static str = "skiplist";

    fn filled(layout: &Layout) -> Skip {
        let skip = Skip::default();
        layout.shuffled().for_each(|(start, end)| skip.get(start, end));
        skip
    }

    #[inline]
    fn get(&self, start: usize, end: usize) {
        if let Some(entry) = self.map.range(..=start).next_back()
            && end <= entry.value().end
        {
            black_box(entry.value().handle);
            return;
        }
        self.map.insert(start, Registration { end, handle: self.device.register(start) });
    }

    #[inline]
    fn unmap(&self, start: usize, end: usize) {
        while let Some(entry) = self.map.range(..end).next_back() {
            if entry.value().end <= start {
                return;
            }
            if entry.remove() {
                self.device.deregister(entry.value().handle);
            }
        }
    }

    fn registrations(&self) -> u64 {
        self.device.registrations()
    }
}
