//! The brackets of each thread: which ranges were announced as changing, from when to when.

use std::collections::{HashMap, VecDeque};

/// How far the two clocks may be apart, in nanoseconds: a reading of both is off by some 100.
///
/// No thread makes a second change of the same range so soon behind a first one that there would be something left to
/// invalidate.
pub const SLACK: u64 = 1000;
/// How many brackets of a thread are remembered that are over.
const REMEMBERED: usize = 64;

/// A change that was announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bracket {
    /// When all starts had returned.
    pub opened: u64,
    /// When the system call had returned; `None`: not yet.
    pub closed: Option<u64>,
    /// Where the hook was on the stack.
    pub stack: u64,
    /// The same for all changes of one call, and for no other at that place.
    pub ticks: u64,
    /// First address.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// The system call.
    pub call: &'static str,
}

/// The brackets of all threads, in the order in which they were opened and closed: what is asked is about now, more or
/// less.
#[derive(Debug, Default)]
pub struct Brackets {
    threads: HashMap<u32, Thread>,
}

#[derive(Debug, Default)]
struct Thread {
    open: Vec<Bracket>,
    over: VecDeque<Bracket>,
}

impl Brackets {
    /// A thread has announced a change.
    pub fn open(&mut self, tid: u32, bracket: Bracket) {
        let thread = self.threads.entry(tid).or_default();
        // What it left at the same place of its stack cannot be open any more.
        thread.close(bracket.opened, |older| older.stack == bracket.stack && older.ticks != bracket.ticks);
        thread.open.push(bracket);
    }

    /// The changes that a thread has announced at this place of its stack are over.
    pub fn close(&mut self, tid: u32, stack: u64, time: u64) {
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.close(time, |bracket| bracket.stack == stack);
        }
    }

    /// The thread has ended, or its address space.
    pub fn forget(&mut self, tid: u32) {
        self.threads.remove(&tid);
    }

    /// Whether every address of the range was in a bracket of the thread that was open at that time.
    pub fn cover(&self, tid: u32, time: u64, start: u64, end: u64) -> bool {
        let Some(thread) = self.threads.get(&tid) else { return false };
        let mut covered = start;
        // Each of them that begins before what is left, until none helps.
        loop {
            let helps = |b: &&Bracket| b.start <= covered && covered < b.end && b.was_open(time);
            match thread.all().filter(helps).map(|b| b.end).max() {
                _ if covered >= end => return true,
                Some(further) => covered = further,
                None => return false,
            }
        }
    }

    /// The thread's bracket that was open at that time, or else the last one before.
    pub fn nearest(&self, tid: u32, time: u64) -> Option<&Bracket> {
        let brackets = self.threads.get(&tid)?.all();
        brackets.filter(|b| b.opened <= time).max_by_key(|b| b.closed.unwrap_or(u64::MAX).min(time))
    }
}

impl Thread {
    fn close(&mut self, time: u64, which: impl Fn(&Bracket) -> bool) {
        let over = &mut self.over;
        self.open.retain(|bracket| {
            let closes = which(bracket);
            if closes {
                over.push_front(Bracket { closed: Some(time), ..*bracket });
            }
            !closes
        });
        over.truncate(REMEMBERED);
    }

    fn all(&self) -> impl Iterator<Item = &Bracket> {
        self.open.iter().chain(&self.over)
    }
}

impl Bracket {
    fn was_open(&self, time: u64) -> bool {
        self.opened <= time + SLACK && self.closed.is_none_or(|closed| time <= closed + SLACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bracket(opened: u64, stack: u64, start: u64, end: u64) -> Bracket {
        Bracket { opened, closed: None, stack, ticks: opened, start, end, call: "munmap" }
    }

    const MS: u64 = 1_000_000;

    #[test]
    fn only_an_open_bracket_of_the_thread_covers() {
        let mut brackets = Brackets::default();
        brackets.open(1, bracket(10 * MS, 500, 0x1000, 0x3000));
        assert!(brackets.cover(1, 11 * MS, 0x1000, 0x3000));
        assert!(!brackets.cover(2, 11 * MS, 0x1000, 0x3000), "another thread");
        assert!(!brackets.cover(1, 9 * MS, 0x1000, 0x3000), "before");
        assert!(!brackets.cover(1, 11 * MS, 0x1000, 0x3001), "beyond");
        assert!(!brackets.cover(1, 11 * MS, 0xfff, 0x3000), "below");
        brackets.close(1, 400, 12 * MS);
        assert!(brackets.cover(1, 13 * MS, 0x1000, 0x3000), "that was another place of the stack");
        brackets.close(1, 500, 12 * MS);
        assert!(brackets.cover(1, 11 * MS, 0x2000, 0x3000));
        assert!(!brackets.cover(1, 13 * MS, 0x1000, 0x3000), "behind");
    }

    #[test]
    fn several_changes_of_a_call_cover_together() {
        let mut brackets = Brackets::default();
        // Of one call, but read in two rounds, and so by two readings of the clocks.
        brackets.open(1, bracket(1, 500, 0x5000, 0x6000));
        brackets.open(1, Bracket { ticks: 1, ..bracket(3, 500, 0x3000, 0x5000) });
        assert!(brackets.cover(1, MS, 0x3000, 0x6000));
        assert!(!brackets.cover(1, MS, 0x2000, 0x6000));
        brackets.close(1, 500, 2 * MS);
        assert!(!brackets.cover(1, 3 * MS, 0x3000, 0x4000) && !brackets.cover(1, 3 * MS, 0x5000, 0x6000));
    }

    #[test]
    fn nested_brackets_are_told_apart_by_the_stack() {
        let mut brackets = Brackets::default();
        brackets.open(1, bracket(MS, 500, 0x1000, 0x2000));
        brackets.open(1, bracket(2 * MS, 300, 0x8000, 0x9000));
        brackets.close(1, 300, 3 * MS);
        assert!(
            brackets.cover(1, 4 * MS, 0x1000, 0x2000),
            "of a signal handler: the outer one is still open"
        );
        assert!(!brackets.cover(1, 4 * MS, 0x8000, 0x9000));
    }

    #[test]
    fn what_was_left_open_ends_with_the_next_at_its_place_or_with_the_thread() {
        let mut brackets = Brackets::default();
        brackets.open(1, bracket(MS, 500, 0x1000, 0x2000));
        brackets.open(1, bracket(5 * MS, 500, 0x8000, 0x9000));
        assert!(brackets.cover(1, 4 * MS, 0x1000, 0x2000));
        assert!(!brackets.cover(1, 6 * MS, 0x1000, 0x2000));
        brackets.forget(1);
        assert!(!brackets.cover(1, 6 * MS, 0x8000, 0x9000));
    }

    #[test]
    fn the_nearest_is_the_open_one_or_the_last() {
        let mut brackets = Brackets::default();
        brackets.open(1, bracket(MS, 500, 0x1000, 0x2000));
        brackets.close(1, 500, 2 * MS);
        brackets.open(1, bracket(3 * MS, 500, 0x3000, 0x4000));
        brackets.close(1, 500, 4 * MS);
        assert_eq!(brackets.nearest(1, 9 * MS).unwrap().start, 0x3000);
        assert_eq!(brackets.nearest(1, 2 * MS + 1).unwrap().start, 0x1000);
        assert_eq!(brackets.nearest(1, 0), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut brackets = Brackets::default();
        for n in 0..1000 {
            brackets.open(1, bracket(2 * n * MS, 500, 0x1000, 0x2000));
            brackets.close(1, 500, (2 * n + 1) * MS);
        }
        assert_eq!(brackets.threads[&1].all().count(), REMEMBERED);
        assert!(brackets.cover(1, 1990 * MS, 0x1000, 0x2000), "the younger ones are kept");
    }
}
