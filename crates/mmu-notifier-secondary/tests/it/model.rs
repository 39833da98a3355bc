//! The cache beside a list: the same requests and changes, in any order.

use mmu_notifier_secondary::cache::{Access, Options};
use proptest::prelude::*;

use crate::device::{Device, Rig, range};

#[derive(Clone, Debug)]
enum Op {
    Get(std::ops::Range<usize>, Access),
    /// As above, and held from then on.
    Hold(std::ops::Range<usize>, Access),
    /// Lets go of one of those that are held.
    LetGo(usize),
    Unmap(std::ops::Range<usize>),
    TryUnmap(std::ops::Range<usize>),
    Flush,
}

fn pages() -> impl Strategy<Value = std::ops::Range<usize>> {
    (0..60_usize, prop_oneof![1..4_usize, 1..40_usize]).prop_map(|(start, len)| start..start + len)
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::ReadWrite)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (pages(), access()).prop_map(|(pages, access)| Op::Get(pages, access)),
        2 => (pages(), access()).prop_map(|(pages, access)| Op::Hold(pages, access)),
        2 => any::<usize>().prop_map(Op::LetGo),
        2 => pages().prop_map(Op::Unmap),
        2 => pages().prop_map(Op::TryUnmap),
        1 => Just(Op::Flush),
    ]
}

/// What is in the cache, as a list.
#[derive(Default)]
struct List(Vec<Held>);

type Held = (std::ops::Range<usize>, Access, u64);

impl List {
    fn containing(&self, pages: &std::ops::Range<usize>) -> impl Iterator<Item = &Held> {
        self.0.iter().filter(|(it, _, _)| it.start <= pages.start && pages.end <= it.end)
    }

    /// Whether the handle is a good answer: of something that is there, or, if the last of those that contain the request
    /// does not do, a new one.
    fn is_answer(&self, pages: &std::ops::Range<usize>, access: Access, handle: u64) -> bool {
        let last = self.containing(pages).max_by_key(|(it, _, _)| it.start);
        let is_known = self.0.iter().any(|(_, _, it)| *it == handle);
        match is_known {
            true => self.containing(pages).any(|(_, has, it)| *it == handle && has.includes(access)),
            false => last.is_none_or(|(_, has, _)| !has.includes(access)),
        }
    }

    fn insert(&mut self, pages: std::ops::Range<usize>, access: Access, handle: u64) {
        let contains =
            |a: &std::ops::Range<usize>, b: &std::ops::Range<usize>| a.start <= b.start && b.end <= a.end;
        self.0.retain(|(it, _, _)| !contains(it, &pages) && !contains(&pages, it));
        self.0.push((pages, access, handle));
    }

    fn unmap(&mut self, pages: &std::ops::Range<usize>) {
        self.0.retain(|(it, _, _)| it.end <= pages.start || pages.end <= it.start);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_cache_holds_what_a_list_holds(ops in proptest::collection::vec(op(), 1..120)) {
        let rig = Rig::with(Device::default(), Options { entries: 256, ..Options::default() });
        let mut list = List::default();
        let mut held = Vec::new();
        for op in ops {
            match op {
                Op::Get(ref pages, access) | Op::Hold(ref pages, access) => {
                    let got = rig.cache.get(range(pages.clone()), access).unwrap();
                    let handle = *got.handle();
                    prop_assert!(list.is_answer(pages, access, handle), "{op:?} among {:?}: {got:?}", list.0);
                    prop_assert!(got.access().includes(access) && got.range().contains(&range(pages.clone())));
                    if list.0.iter().all(|(_, _, it)| *it != handle) {
                        list.insert(numbers(&got), got.access(), handle);
                    }
                    if matches!(op, Op::Hold(..)) {
                        held.push(got);
                    }
                }
                Op::LetGo(which) if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                Op::LetGo(_) => {}
                Op::Unmap(pages) => {
                    rig.unmap(pages.clone());
                    list.unmap(&pages);
                }
                Op::TryUnmap(pages) => {
                    prop_assert!(rig.try_unmap(pages.clone()));
                    list.unmap(&pages);
                }
                Op::Flush => rig.cache.flush(),
            }
            prop_assert!(list.0.iter().all(|(_, _, handle)| rig.device.is_registered(*handle)));
            prop_assert!(held.iter().all(|registration| rig.device.is_registered(*registration.handle())));
        }
        rig.cache.flush();
        // Nothing is registered but what is in the cache or held.
        let known = |handle| list.0.iter().any(|(_, _, it)| *it == handle) || held.iter().any(|it| *it.handle() == handle);
        let count = (1..=rig.device.registrations() as u64).filter(|handle| rig.device.is_registered(*handle)).filter(|handle| known(*handle)).count();
        prop_assert_eq!(count, rig.device.ranges().len());
        drop(held);
        drop(rig.cache);
        prop_assert!(rig.device.ranges().is_empty());
    }
}

fn numbers<R: mmu_notifier_secondary::cache::Registrar>(
    registration: &mmu_notifier_secondary::cache::Registration<'_, R>,
) -> std::ops::Range<usize> {
    let (first, range) = (range(0..1).start(), registration.range());
    (range.start() - first) / 4096..(range.end() - first) / 4096
}
