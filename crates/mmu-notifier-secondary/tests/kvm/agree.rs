//! Each way to change memory, one by one and at random: what KVM has left is what `stage2` has left.

use std::ops::Range;

use crate::memory::{HUGE, Way};
use crate::rig::Rig;

/// How many random changes each of the seeds makes.
pub(crate) fn steps() -> usize {
    let wanted = std::env::var("MMU_KVM_STEPS").ok();
    wanted.map_or(1000, |text| text.parse().expect("MMU_KVM_STEPS is a number of changes"))
}

const PAGES: usize = 64;
const SOME: Range<usize> = 16..32;

/// What is done before, and then to some pages in the middle; how many pages are left in the tables.
const ROWS: [(&[Way], Way, usize); 22] = [
    (&[], Way::Unmap, 48),
    (&[], Way::MapOver, 48),
    (&[], Way::MapFile, 48),
    (&[], Way::MoveIn, 48),
    (&[], Way::MoveAway, 48),
    (&[], Way::MovePagesAway, 48),
    (&[], Way::Discard, 48),
    (&[], Way::Free, 48),
    (&[], Way::Guard, 48),
    (&[Way::Guard], Way::Unguard, 48),
    (&[], Way::Forbid, 48),
    (&[Way::Forbid], Way::Allow, 48),
    (&[], Way::ForbidToWrite, 48),
    (&[Way::ForbidToWrite], Way::Allow, 48),
    (&[], Way::Fork, 0),
    (&[Way::MapFile], Way::Discard, 48),
    (&[Way::MapFile], Way::PunchHole, 48),
    (&[Way::MapFile], Way::Remove, 48),
    (&[Way::MapFile], Way::MoveAway, 48),
    (&[Way::MapFile], Way::Fork, 16),
    (&[Way::Unmap], Way::MapOver, 48),
    (&[Way::Unmap], Way::Unmap, 48),
];

#[test]
fn each_way_leaves_the_same_pages() {
    for is_written in [true, false] {
        for (before, way, left) in ROWS {
            let Some(mut rig) = Rig::new("each_way_leaves_the_same_pages", PAGES) else { return };
            if is_guard(&way) && !rig.memory.has_guards() {
                eprintln!("SKIPPED: {way:?}: this kernel has no guard regions");
                continue;
            }
            if is_written {
                rig.access(0..PAGES, true);
            }
            for way in before {
                assert!(rig.change(*way, SOME), "{way:?}");
                rig.access(0..PAGES, is_written);
            }
            let pages = if way == Way::Fork { 0..PAGES } else { SOME };
            assert!(rig.change(way, pages), "{way:?} after {before:?}");
            // Where nothing was written a fork copies nothing, and both were filled again.
            if is_written && way != Way::Fork {
                assert_eq!(rig.stage2.pages(), left, "{way:?} after {before:?}");
            }
            rig.access(0..PAGES, false);
            rig.access(0..PAGES, true);
            rig.access(0..PAGES, false);
            assert_balanced(&rig);
        }
    }
}

#[test]
fn random_changes_leave_the_same_pages() {
    let mut made = [0; Way::ALL.len()];
    for seed in 1..=6 {
        let Some(mut rig) = Rig::new("random_changes_leave_the_same_pages", PAGES) else { return };
        let mut random = Random(seed);
        let has_guards = rig.memory.has_guards();
        for _ in 0..steps() {
            let kind = random.below(Way::ALL.len());
            let (way, first) = (Way::ALL[kind], random.below(PAGES));
            if is_guard(&way) && !has_guards {
                continue;
            }
            let most = match way {
                // Of one mapping only.
                Way::MoveAway | Way::MovePagesAway => 1,
                _ => 1 + random.below(2) * random.below(8),
            };
            let pages = first..(first + most).min(PAGES);
            made[kind] += usize::from(rig.change(way, pages.clone()));
            // Beside it, too.
            let near = pages.start.saturating_sub(2)..(pages.end + 2).min(PAGES);
            let some: Vec<usize> = near.filter(|_| random.below(3) > 0).collect();
            rig.access(some, random.below(2) == 0);
        }
        for page in 0..PAGES {
            let in_file = rig.memory.expected_in_file(page);
            assert!(
                in_file.is_none_or(|word| word == rig.memory.word_in_file(page)),
                "page {page} of the file"
            );
        }
        rig.access(0..PAGES, false);
        rig.access(0..PAGES, true);
        assert_balanced(&rig);
        eprintln!("seed {seed}: {}", rig.summary());
    }
    for (way, made) in Way::ALL.iter().zip(made) {
        assert!(made > 0 || steps() < 1000 || is_guard(way), "{way:?} was never made");
    }
}

fn is_guard(way: &Way) -> bool {
    matches!(way, Way::Guard | Way::Unguard)
}

/// The kernel takes away all of the 2 MiB around a cut, and we what was changed; then both have the same again.
#[test]
fn a_huge_pages_worth_is_taken_away_as_a_whole_by_the_kernel_only() {
    let pages = HUGE / mmu_notifier::PAGE_SIZE;
    let Some(mut rig) = Rig::new("a_huge_pages_worth", pages) else { return };
    rig.access(0..pages, true);
    for way in [Way::ForbidToWrite, Way::Allow, Way::Unmap, Way::MapOver] {
        assert!(rig.change(way, SOME));
        rig.access(0..pages, true);
        rig.access(0..pages, false);
    }
    assert_balanced(&rig);
    eprintln!("{}", rig.summary());
    if !rig.causes.contains_key("a huge page's mapping was split") {
        eprintln!("this kernel splits nothing");
    }
}

fn assert_balanced(rig: &Rig) {
    let stats = rig.stage2.stats();
    assert_eq!((stats.active, stats.in_progress, stats.unbalanced), (0, 0, 0));
}

/// Numbers that look random.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}
