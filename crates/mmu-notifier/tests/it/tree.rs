//! The tree of intervals against a list that is searched from its beginning.

use std::sync::{Arc, Mutex};

use mmu_notifier::{
    AddressSpace, Change, Event, IntervalSubscriber, IntervalSubscription, Pass, Range, WouldBlock,
};
use proptest::prelude::*;

use crate::witness::range;

/// Writes its number down when it is told.
struct Numbered(u32, Arc<Mutex<Vec<u32>>>);

impl IntervalSubscriber for Numbered {
    fn invalidate(&self, _: &Change) -> Pass {
        self.1.lock().unwrap().push(self.0);
        Pass::Done
    }

    fn try_invalidate(&self, change: &Change) -> Result<Pass, WouldBlock> {
        Ok(self.invalidate(change))
    }
}

/// The tree and the list.
#[derive(Default)]
struct Both {
    space: AddressSpace,
    told: Arc<Mutex<Vec<u32>>>,
    /// By age: the range, a number that grows, and the subscription.
    list: Vec<(Range, u32, IntervalSubscription)>,
    inserted: u32,
}

impl Both {
    fn insert(&mut self, range: Range) {
        let numbered = Numbered(self.inserted, self.told.clone());
        let subscription = self.space.insert(range, numbered).unwrap();
        self.list.push((range, self.inserted, subscription));
        self.inserted += 1;
    }

    fn remove(&mut self, at: usize) {
        if !self.list.is_empty() {
            drop(self.list.swap_remove(at % self.list.len()));
        }
    }

    /// Makes a change; exactly those that overlap it are told, by first address and then by age.
    fn check(&self, range: Range) {
        self.space.invalidate(range, Event::Clear, || ());
        let mut expected: Vec<_> = self
            .list
            .iter()
            .filter(|(interval, ..)| interval.overlaps(&range))
            .map(|(interval, number, _)| (interval.start(), *number))
            .collect();
        expected.sort_unstable();
        let expected: Vec<_> = expected.into_iter().map(|(_, number)| number).collect();
        assert_eq!(std::mem::take(&mut *self.told.lock().unwrap()), expected, "{range}");
    }

    fn check_all_over(&self) {
        self.check(Range::EVERYTHING);
        for (interval, ..) in self.list.iter().step_by(1 + self.list.len() / 50) {
            self.check(*interval);
            // The bytes before and behind, and the first and the last.
            for at in
                [interval.start().saturating_sub(1), interval.start(), interval.end() - 1, interval.end()]
            {
                if at < usize::MAX {
                    self.check(range(at, at + 1));
                }
            }
        }
    }
}

/// Few starts, so that many are equal; lengths of one byte and of nearly everything.
fn ranges() -> impl Strategy<Value = Range> {
    let start = prop_oneof![
        4 => (0_usize..64).prop_map(|page| page * 0x1000),
        4 => 0_usize..0x40_0000,
        1 => any::<usize>(),
        1 => Just(0),
        1 => Just(usize::MAX - 1),
    ];
    let length = prop_oneof![
        3 => Just(1_usize),
        4 => 1_usize..0x4000,
        2 => (1_usize..64).prop_map(|pages| pages * 0x1000),
        1 => Just(usize::MAX),
    ];
    (start, length).prop_map(|(start, length)| {
        let start = start.min(usize::MAX - 1);
        range(start, start.saturating_add(length))
    })
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Range),
    /// The same range that many times.
    Repeat(Range, u8),
    /// One in the other, from large to small.
    Nest(usize, u8),
    Remove(usize),
    /// All but these first.
    RemoveMany(u8),
    Check(Range),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => ranges().prop_map(Step::Insert),
        1 => (ranges(), 1_u8..40).prop_map(|(range, count)| Step::Repeat(range, count)),
        1 => (0_usize..0x1000, 1_u8..40).prop_map(|(start, count)| Step::Nest(start, count)),
        6 => any::<usize>().prop_map(Step::Remove),
        1 => (0_u8..60).prop_map(Step::RemoveMany),
        6 => ranges().prop_map(Step::Check),
    ]
}

/// Under Miri there are no files, so nobody to remember what has failed.
fn config() -> ProptestConfig {
    let all = ProptestConfig::with_cases(60);
    if cfg!(miri) { ProptestConfig { cases: 2, failure_persistence: None, ..all } } else { all }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn exactly_who_overlaps_is_told_in_order(steps in prop::collection::vec(steps(), 1..400)) {
        let mut both = Both::default();
        for step in steps {
            match step {
                Step::Insert(range) => both.insert(range),
                Step::Repeat(range, count) => (0..count).for_each(|_| both.insert(range)),
                Step::Nest(start, count) => (0..usize::from(count))
                    .for_each(|n| both.insert(range(start + n, start + 0x10000 - n))),
                Step::Remove(at) => both.remove(at),
                Step::RemoveMany(left) => both.list.truncate(left.into()),
                Step::Check(range) => both.check(range),
            }
        }
        both.check_all_over();
        both.list.clear();
        both.check(Range::EVERYTHING);
        prop_assert!(!both.space.has_subscribers());
    }
}

/// A number that looks random.
fn next(seed: &mut u64) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed as usize
}

#[test]
fn tens_of_thousands_come_and_go_in_every_order() {
    let count = if cfg!(miri) { 200 } else { 20_000 };
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    for order in ["ascending", "descending", "random", "equal"] {
        let mut both = Both::default();
        for n in 0..count {
            let page = match order {
                "ascending" => n,
                "descending" => count - n,
                "random" => next(&mut seed) % count,
                _ => 7,
            };
            let length = match next(&mut seed) % 100 {
                0 => 0x100_0000,
                1..30 => 1,
                _ => 1 + next(&mut seed) % 0x3000,
            };
            both.insert(range(page * 0x1000, page * 0x1000 + length));
        }
        both.check_all_over();
        // Halves, and then piece by piece from the front, the back and the middle.
        while both.list.len() > count / 100 {
            for _ in 0..both.list.len() / 2 {
                let at = match order {
                    "ascending" => 0,
                    "descending" => both.list.len() - 1,
                    _ => next(&mut seed),
                };
                both.remove(at);
            }
            both.check(Range::EVERYTHING);
            both.check(range(0x1000 * (next(&mut seed) % count), usize::MAX));
        }
        both.check_all_over();
        both.list.clear();
        assert!(!both.space.has_subscribers(), "{order}");
    }
}
