//! The index beside what is simple: a map of ranges, and a list.

use std::ops::Range as Bounds;

use mmu_notifier::PAGE_SIZE;
use proptest::prelude::*;
use rangemap::RangeMap;

use super::super::Access;
use super::*;

const ENTRIES: usize = 700;
const BASE: usize = 0x10_0000_0000;
/// Pages from `BASE` on where most of it takes place.
const PAGES: usize = 3000;

/// An index and the entries that it is of.
struct Rig {
    table: Table<()>,
    index: Index,
    writer: Writer,
    free: Vec<Id>,
    is_there: Vec<bool>,
    /// The highest that the tree has been.
    height: usize,
}

impl Rig {
    fn new(entries: usize) -> Rig {
        let (index, writer) = Index::new(entries);
        let (free, is_there) = ((0..entries as Id).rev().collect(), vec![false; entries]);
        Rig { table: Table::new(entries), index, writer, free, is_there, height: 0 }
    }

    fn insert(&mut self, range: Range) -> Option<Id> {
        let id = self.free.pop()?;
        self.table.entry(id).fill(range, Access::Read, ());
        self.index.insert(&mut self.writer, range, id).expect("there are nodes for every entry");
        self.height = self.height.max(self.index.root().height);
        self.is_there[id as usize] = true;
        Some(id)
    }

    fn remove(&mut self, range: Range, id: Id) {
        assert!(self.index.remove(&mut self.writer, range, id), "{range} is there");
        assert!(!self.index.remove(&mut self.writer, range, id), "and then it is not");
        self.is_there[id as usize] = false;
        self.free.push(id);
    }

    fn range(&self, id: Id) -> Range {
        self.table.entry(id).range().unwrap()
    }

    fn is_there(&self, id: Id) -> bool {
        self.is_there[id as usize]
    }

    /// What it says of `asked` is what those say that are known to overlap it, and who begins last before it.
    fn check(&self, asked: Range, mut overlapping: Vec<Id>, last: Option<Id>) {
        assert_eq!(self.index.find(asked.start()), last, "the last one that begins up to {asked}");
        let found = self.index.find_map(asked, |id| {
            assert!(self.is_there(id), "one that is gone was found");
            self.range(id).contains(&asked).then_some(id)
        });
        let contains = overlapping.iter().any(|&id| self.range(id).contains(&asked));
        assert_eq!(found.is_some(), contains, "whether one contains {asked}");
        let is_free = self.index.is_free(&self.table, asked);
        assert!(!is_free || overlapping.is_empty(), "{asked} is not free");

        let mut visited = Vec::new();
        self.index.visit(&self.table, asked, |id| visited.push(id)).expect("nobody writes");
        assert!(visited.iter().all(|&id| self.is_there(id)), "one that is gone was visited");
        visited.retain(|&id| self.range(id).overlaps(&asked));
        visited.sort_unstable();
        visited.dedup();
        overlapping.sort_unstable();
        assert_eq!(visited, overlapping, "those that overlap {asked}");
    }

    /// As new, if nothing is in it.
    fn assert_is_empty(&self) {
        assert!(self.index.places.is_empty());
        let root = self.index.root();
        assert_eq!((root.height, self.index.node(root.node).len()), (0, 0));
        assert_eq!(self.writer.available, self.index.nodes.len() - 1, "every node but the root is free");
        self.check(Range::EVERYTHING, Vec::new(), None);
        assert!(self.index.is_free(&self.table, Range::EVERYTHING));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(Range),
    /// So many, one behind the other: from where, how far apart, how long, in which order.
    InsertRun(usize, usize, usize, usize, Order),
    Remove(usize),
    /// So many of those that are there, from the one on that has this number by address.
    RemoveRun(usize, usize),
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Up,
    Down,
    /// Down, but of each two the lower one first.
    Pairs,
    Scattered,
}

impl Order {
    fn of(self, at: usize, count: usize) -> usize {
        match self {
            Order::Up => at,
            Order::Down => count - 1 - at,
            Order::Pairs => (count - 1 - at) ^ 1,
            Order::Scattered => at * 7919 % count,
        }
    }
}

fn pages(bounds: Bounds<usize>) -> Range {
    Range::new(BASE + bounds.start * PAGE_SIZE, BASE + bounds.end * PAGE_SIZE).unwrap()
}

fn range() -> impl Strategy<Value = Range> {
    let page = 0..PAGES;
    prop_oneof![
        4 => page.clone().prop_map(|page| pages(page..page + 1)),
        2 => (page.clone(), 0..4096_usize, 1..30_000_usize).prop_map(|(page, byte, len)| {
            Range::with_len(BASE + page * PAGE_SIZE + byte, len).unwrap()
        }),
        2 => (page.clone(), 0..10_u32).prop_map(|(page, order)| pages(page..page + (1 << order))),
        2 => (page.clone(), 0..8_u32).prop_map(|(page, order)| {
            let page = page >> order << order;
            pages(page..page + (1 << order))
        }),
        1 => (page, 1..200_usize).prop_map(|(page, count)| pages(page..page + count)),
        1 => (1..100_usize, 30..47_u32, 1..1_usize << 20).prop_map(|(at, order, more)| {
            Range::with_len(at << 40, (1_usize << order) + more).unwrap()
        }),
        1 => (50..64_u32, any::<bool>()).prop_map(|(order, is_all)| {
            let start = 1_usize << order;
            Range::new(start, if is_all { usize::MAX } else { start + start / 2 }).unwrap()
        }),
    ]
}

fn asked() -> impl Strategy<Value = Range> {
    prop_oneof![
        8 => range(),
        1 => (0..usize::MAX, 1..usize::MAX).prop_map(|(start, len)| {
            Range::new(start, start.saturating_add(len)).unwrap()
        }),
        1 => Just(Range::EVERYTHING),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let order = prop_oneof![Just(Order::Up), Just(Order::Down), Just(Order::Pairs), Just(Order::Scattered)];
    let run = (0..PAGES, 0..3_usize, 1..9_usize, 1..300_usize, order);
    prop_oneof![
        6 => range().prop_map(Op::Insert),
        3 => run.prop_map(|(from, gap, len, count, order)| Op::InsertRun(from, gap + len, len, count, order)),
        4 => any::<usize>().prop_map(Op::Remove),
        3 => (any::<usize>(), 1..250_usize).prop_map(|(from, count)| Op::RemoveRun(from, count)),
    ]
}

fn ops() -> impl Strategy<Value = Vec<(Op, Range)>> {
    proptest::collection::vec((op(), asked()), 1..50)
}

/// The ranges that an operation inserts.
fn inserted(op: &Op) -> Vec<Range> {
    match *op {
        Op::Insert(range) => vec![range],
        Op::InsertRun(from, apart, len, count, order) => {
            let count = count.next_multiple_of(2) - usize::from(matches!(order, Order::Scattered));
            let starts = (0..count).map(|at| from + order.of(at, count) * apart);
            starts.map(|start| pages(start..start + len)).collect()
        }
        _ => Vec::new(),
    }
}

/// The numbers of those that an operation removes, of so many; one after the other, each of those that are left.
fn removed(op: &Op, len: usize) -> Vec<usize> {
    match *op {
        _ if len == 0 => Vec::new(),
        Op::Remove(which) => vec![which % len],
        Op::RemoveRun(from, count) => {
            let from = from % len;
            vec![from; count.min(len - from)]
        }
        _ => Vec::new(),
    }
}

/// What is asked where something was changed: there, and a byte before and behind it.
fn around(range: Range) -> impl Iterator<Item = Range> {
    let (start, end) = (range.start(), range.end());
    let around = [
        (start, end),
        (start.saturating_sub(1), start),
        (end, end.saturating_add(1)),
        (start, start + 1),
        (end - 1, end),
    ];
    around.into_iter().filter_map(|(start, end)| Range::new(start, end).ok())
}

/// Disjoint ranges.
#[derive(Default)]
struct Map(RangeMap<usize, Id>);

impl Map {
    fn admits(&self, range: Range) -> bool {
        !self.0.overlaps(&(range.start()..range.end()))
    }

    fn insert(&mut self, range: Range, id: Id) {
        self.0.insert(range.start()..range.end(), id);
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn remove(&mut self, which: usize) -> (Range, Id) {
        let (bounds, &id) = self.0.iter().nth(which).unwrap();
        let bounds = bounds.clone();
        self.0.remove(bounds.clone());
        (Range::new(bounds.start, bounds.end).unwrap(), id)
    }

    fn check(&self, rig: &Rig, asked: Range) {
        let overlapping = self.0.overlapping(asked.start()..asked.end()).map(|(_, &id)| id).collect();
        let last = self.0.overlapping(0..asked.start() + 1).next_back().map(|(_, &id)| id);
        rig.check(asked, overlapping, last);
    }
}

/// Ranges that may overlap, but none contains another one. By their starts.
#[derive(Default)]
struct List(Vec<(Range, Id)>);

impl List {
    fn admits(&self, range: Range) -> bool {
        self.0.iter().all(|(other, _)| !other.contains(&range) && !range.contains(other))
    }

    fn insert(&mut self, range: Range, id: Id) {
        let at = self.0.partition_point(|(other, _)| other.start() < range.start());
        self.0.insert(at, (range, id));
    }

    fn check(&self, rig: &Rig, asked: Range) {
        let overlapping = self.0.iter().filter(|(range, _)| range.overlaps(&asked)).map(|&(_, id)| id);
        let last = self.0.iter().rev().find(|(range, _)| range.start() <= asked.start());
        rig.check(asked, overlapping.collect(), last.map(|&(_, id)| id));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn disjoint_ranges_beside_a_map(ops in ops()) {
        let (mut rig, mut map) = (Rig::new(ENTRIES), Map::default());
        for (op, asked) in ops {
            for range in inserted(&op) {
                if map.admits(range) && let Some(id) = rig.insert(range) {
                    map.insert(range, id);
                }
                around(range).for_each(|asked| map.check(&rig, asked));
            }
            for which in removed(&op, map.len()) {
                let (range, id) = map.remove(which);
                rig.remove(range, id);
                around(range).for_each(|asked| map.check(&rig, asked));
            }
            map.check(&rig, asked);
        }
        while map.len() > 0 {
            let (range, id) = map.remove(map.len() / 2);
            rig.remove(range, id);
        }
        rig.assert_is_empty();
    }

    #[test]
    fn overlapping_ranges_beside_a_list(ops in ops()) {
        let (mut rig, mut list) = (Rig::new(ENTRIES), List::default());
        for (op, asked) in ops {
            for range in inserted(&op) {
                if list.admits(range) && let Some(id) = rig.insert(range) {
                    list.insert(range, id);
                }
                around(range).for_each(|asked| list.check(&rig, asked));
            }
            for which in removed(&op, list.0.len()) {
                let (range, id) = list.0.remove(which);
                rig.remove(range, id);
                around(range).for_each(|asked| list.check(&rig, asked));
            }
            list.check(&rig, asked);
        }
        while let Some((range, id)) = list.0.pop() {
            rig.remove(range, id);
        }
        rig.assert_is_empty();
    }
}

/// Ranges of the same order that overlap each other: more at a place than it has room for, and a tree of three levels.
#[test]
fn many_at_the_same_place_in_a_high_tree() {
    let (mut rig, mut list) = (Rig::new(ENTRIES), List::default());
    for at in 0..ENTRIES {
        let start = at * 7919 % ENTRIES;
        let range = pages(start..start + 50);
        let id = rig.insert(range).unwrap();
        list.insert(range, id);
        around(range).for_each(|asked| list.check(&rig, asked));
    }
    assert!(rig.height >= 2 && ENTRIES > FANOUT * FANOUT, "{}", rig.height);
    assert!(rig.index.places.has_missing());
    for at in 0..ENTRIES {
        let (range, id) = list.0.remove(at * 7907 % list.0.len());
        rig.remove(range, id);
        around(range).for_each(|asked| list.check(&rig, asked));
    }
    rig.assert_is_empty();
}

/// In whatever order entries come, there are nodes for as many as there may be.
#[test]
fn there_is_room_for_every_entry() {
    const MANY: usize = 20_000;
    for order in [Order::Up, Order::Down, Order::Pairs, Order::Scattered] {
        let mut rig = Rig::new(MANY + FANOUT);
        // Below them all, in a node with room for one more: behind it, and before what is there, comes what comes down.
        for at in 0..FANOUT - 1 {
            rig.insert(pages(at..at + 1)).unwrap();
        }
        for at in 0..MANY {
            let start = 2 * (FANOUT + order.of(at, MANY));
            rig.insert(pages(start..start + 1)).unwrap();
        }
        assert!(rig.height >= 3, "{order:?}: {}", rig.height);
    }
}

/// Nodes that are nearly empty are put together, and used again.
#[test]
fn few_entries_take_few_nodes() {
    const MANY: usize = 5000;
    let mut rig = Rig::new(MANY);
    for _ in 0..12 {
        let all: Vec<_> = (0..MANY).map(|at| pages(2 * at..2 * at + 1)).collect();
        let mut all: Vec<_> = all.into_iter().map(|range| (range, rig.insert(range).unwrap())).collect();
        let left = all.split_off(MANY - MANY / 10);
        let (gone, kept) = (0..MANY - MANY / 10).partition::<Vec<_>, _>(|at| at % 9 > 0);
        gone.iter().for_each(|&at| rig.remove(all[at].0, all[at].1));
        left.iter().for_each(|&(range, id)| rig.remove(range, id));
        let used = rig.index.nodes.len() - rig.writer.available;
        assert!(used <= kept.len() / 2, "{used} nodes for {} entries", kept.len());
        kept.iter().for_each(|&at| rig.remove(all[at].0, all[at].1));
        rig.assert_is_empty();
    }
}
