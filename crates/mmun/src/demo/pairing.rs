//! Every start has its end: an OOM kill while one subscriber counts and another refuses.
//!
//! It is the experiment of the 2021 pairing fix. Before it, a start that was refused left everybody who had
//! started without an end.

mod kernel;
mod library;
mod table;

use mmu_notifier_model::Kernel as Version;

use crate::cli::Pairing;
use crate::page::{self, Page};
use kernel::Kernel;
use library::Library;

/// An address space with the two subscribers: one that counts, one that refuses.
trait World {
    /// Takes a mapping of the victim away without waiting, unless somebody refuses.
    fn reap(&mut self, mapping: u32) -> Reaped;

    /// What the counting subscriber was told so far.
    fn counts(&self) -> Counts;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaped {
    Done,
    Refused,
}

/// What a subscriber was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    starts: u64,
    ends: u64,
}

impl Counts {
    /// The invalidations in progress, as KVM has them.
    fn in_progress(self) -> i64 {
        self.starts.cast_signed() - self.ends.cast_signed()
    }
}

/// Where the mappings of the victim lie: sixteen pages each, and a gap.
fn range(mapping: u32) -> (u64, u64) {
    let start = (1 + u64::from(mapping)) << 20;
    (start, start + (16 << 12))
}

/// How the OOM kill went in one world.
#[derive(Clone, Debug)]
struct Course {
    name: &'static str,
    /// What the counting subscriber was told by the end of each attempt.
    attempts: Vec<Counts>,
    refused: u64,
    /// The last attempt reaped everything.
    success: bool,
}

impl Course {
    /// The reaper: tries every mapping, goes on past those that are refused, and tries everything again later
    /// until nothing was refused or it has tried often enough.
    fn of(name: &'static str, world: &mut dyn World, options: &Pairing) -> Course {
        let mut course = Course { name, attempts: Vec::new(), refused: 0, success: false };
        while !course.success && course.attempts.len() < options.attempts as usize {
            let refused = (0..options.vmas).filter(|&mapping| world.reap(mapping) == Reaped::Refused).count();
            course.attempts.push(world.counts());
            course.refused += refused as u64;
            course.success = refused == 0;
        }
        course
    }

    fn last(&self) -> Counts {
        self.attempts.last().copied().unwrap_or_default()
    }
}

fn courses(options: &Pairing) -> [Course; 3] {
    let kernel =
        |version: Version| Course::of(version.name, &mut Kernel::new(version, options.refuse), options);
    [
        kernel(Version::LINUX_5_10),
        kernel(Version::LINUX_7_2),
        Course::of("this library", &mut Library::new(options.refuse), options),
    ]
}

/// Runs the experiment and shows it; gives the exit status.
pub fn show(options: &Pairing) -> i32 {
    let mut page = Page::on_stdout(options.color);
    let written = table::write(&mut page, options, &courses(options));
    page::status(written.and_then(|()| page.flush()).map(|()| 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Color;

    fn options(refuse: u32, vmas: u32, attempts: u32) -> Pairing {
        Pairing { refuse, vmas, attempts, color: Color::Never }
    }

    /// Attempts made, starts and refusals that are due, whether it ends well.
    fn expected(options: &Pairing) -> (u64, u64, u64, bool) {
        let (mut starts, mut refused) = (0, 0);
        for attempt in 1..=u64::from(options.attempts) {
            let before = refused;
            starts += u64::from(options.vmas);
            refused = starts / u64::from(options.refuse);
            if refused == before {
                return (attempt, starts, refused, true);
            }
        }
        (options.attempts.into(), starts, refused, false)
    }

    #[test]
    fn only_before_the_fix_the_count_stays_elevated() {
        for (refuse, vmas, attempts) in [
            (3, 4, 10),
            (1, 1, 1),
            (1, 4, 10),
            (2, 1, 10),
            (3, 2, 10),
            (7, 2, 10),
            (5, 12, 3),
            (1000, 1000, 2),
        ] {
            let options = options(refuse, vmas, attempts);
            let (made, starts, refused, success) = expected(&options);
            let [before, after, here] = courses(&options);
            for course in [&before, &after, &here] {
                assert_eq!(course.attempts.len() as u64, made, "{course:?}");
                assert_eq!((course.refused, course.success), (refused, success), "{course:?}");
                assert_eq!(course.last().starts, starts, "{course:?}");
            }
            assert_eq!(before.last().in_progress(), refused.cast_signed(), "{before:?}");
            for course in [&after, &here] {
                assert!(course.attempts.iter().all(|counts| counts.in_progress() == 0), "{course:?}");
            }
        }
    }

    #[test]
    fn the_default_is_worth_looking_at() {
        let [before, ..] = courses(&options(3, 4, 10));
        let raised: Vec<i64> = before.attempts.iter().map(|counts| counts.in_progress()).collect();
        assert_eq!(raised, [1, 2, 4, 5, 6, 8, 9, 10, 12, 13]);
    }
}
