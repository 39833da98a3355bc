//! The interval side: who overlaps, the sequence, and the tree that must not change under a walk.
//!
//! The sequence is even while the tree may change. The first invalidation that overlaps an interval
//! makes it odd, and it stays odd until *all* invalidations of the address space have ended, related
//! or not. While it is odd, inserts and removes go to the deferred list, which the last end applies.
//! An interval that was hit stores the odd sequence, so "stored = current" means "hit in the phase that
//! is running": its readers wait. Later, "stored ≠ what read_begin returned" means "hit since": they
//! try again.
//!
//! | active | sequence | | tree |
//! | --- | --- | --- | --- |
//! | 0 | even | idle | may change |
//! | > 0 | even | running, nobody was hit | may change; an insert makes it odd |
//! | > 0 | odd | someone was hit | frozen |

use super::bracket::EAGAIN;
use super::lifecycle::{EINVAL, EOVERFLOW, Failure};
use super::waiters::{Task, Waiter};
use super::{Impossible, Interval, Machine, Outcome, Subscriptions, impossible};
use crate::observe::{Context, Observed, Ret, Wait, Warning};
use crate::op::{Blocking, Change, Passes};

impl Machine {
    /// `mn_itree_invalidate`: the interval side of a start.
    pub(super) fn start_intervals(&mut self, m: u64, change: Change) -> i64 {
        let (hit, seq) = self.enter_intervals(m, change.start, change.end);
        let mut finishes = Vec::new();
        let mut refused = false;
        for i in hit {
            let answer = self.call_interval(i, change, seq, Context::INTERVAL);
            finishes.extend(answer.finish.then_some(i));
            if answer.agreed {
                continue;
            }
            if change.blocking == Blocking::Allowed {
                self.warn(Warning::IntervalRefusedBlockable);
                continue;
            }
            refused = true;
            break;
        }
        // What was begun in the first pass is finished, refusal or not.
        self.call_finishes(&finishes, Context::INTERVAL);
        if !refused {
            return 0;
        }
        // As if the range had been started and ended at once.
        self.leave_intervals(m);
        EAGAIN
    }

    /// `mn_itree_inv_start_range`: counts the invalidation, freezes the tree if anyone overlaps.
    /// Returns who does, in walk order, and the sequence to tell them.
    pub(super) fn enter_intervals(&mut self, m: u64, start: u64, end: u64) -> (Vec<u64>, u64) {
        // Unsigned arithmetic as in the kernel: an end of 0 includes the last byte of all, and an
        // empty range hits an interval that it lies strictly inside of.
        let last = end.wrapping_sub(1);
        let hit: Vec<u64> = {
            let overlaps = |i: &u64| self.intervals[i].start <= last && start <= self.intervals[i].last;
            self.subs(m).tree.iter().copied().filter(overlaps).collect()
        };
        let subs = self.subs_mut(m);
        subs.active = subs.active.wrapping_add(1);
        if !hit.is_empty() {
            subs.seq |= 1;
        }
        (hit, subs.seq)
    }

    /// `mn_itree_inv_end`: the last invalidation to leave makes the sequence even and applies what was
    /// deferred, newest request first. Waiters go on when the operation is over.
    pub(super) fn leave_intervals(&mut self, m: u64) {
        let subs = self.subs_mut(m);
        // Wraps below 0 when a caller ends what it must not.
        subs.active = subs.active.wrapping_sub(1);
        if subs.active != 0 || subs.seq & 1 == 0 {
            return;
        }
        subs.seq = subs.seq.wrapping_add(1);
        while let Some(i) = self.subs_mut(m).deferred.pop_front() {
            if self.subs(m).tree.contains(&i) {
                self.subs_mut(m).tree.retain(|&other| other != i);
                self.interval_mut(i).present = false;
            } else {
                self.enter_tree(m, i);
            }
        }
    }

    /// `mmu_interval_notifier_insert` and `…_insert_locked`, up to where they want `mmap_lock`: the
    /// first to switch intervals on for this address space, the second always.
    #[expect(clippy::too_many_arguments, reason = "the inputs of the operation, each under its name")]
    pub(super) fn insert(
        &mut self,
        task: u64,
        op: &'static str,
        i: u64,
        c: u64,
        m: u64,
        start: u64,
        length: u64,
    ) -> Result<Outcome, Impossible> {
        self.live_mm(m)?;
        if !self.interval_classes.contains_key(&c) {
            return impossible("c", format!("there is no interval class {c}"));
        }
        if self.intervals.get(&i).is_some_and(|old| old.present) || self.is_inserting(i) {
            return impossible("i", format!("interval {i} is inserted already"));
        }
        // Kept over a removal: how often the object was called.
        let (qualifying, passed) = self.intervals.get(&i).map_or((0, 0), |old| (old.qualifying, old.passed));
        let new = Interval { class: c, mm: m, start, last: 0, seq: 0, present: false, qualifying, passed };
        self.intervals.insert(i, new);

        let lacks_finish = matches!(self.interval_class_of(i).passes, Passes::Two { has_finish: false, .. });
        if lacks_finish && !self.warned_two_pass {
            self.warned_two_pass = true;
            self.warn(Warning::TwoPassWithoutFinish);
        }

        let switches_on = !self.mm(m).subs.as_ref().is_some_and(|subs| subs.has_itree);
        let waits = self.mm(m).open > 0 && (switches_on || op == "insert_locked");
        if waits {
            self.waiters.push(Waiter { task, mm: m, what: Task::Insert { i, length, op } });
            return Ok(Outcome::of(
                Observed { blocked: Some((Wait::MmapLock, task)), ..Observed::default() },
                m,
            ));
        }
        Ok(Outcome::of(self.insert_locked(i, length, switches_on), m))
    }

    /// The rest of an insert; `switches_on` if it found no interval side when it began.
    pub(super) fn insert_locked(&mut self, i: u64, length: u64, switches_on: bool) -> Observed {
        let m = self.intervals[&i].mm;
        let failed = |code| Observed { ret: Some(Ret::Code(code)), ..Observed::default() };
        if switches_on {
            match self.link(m, None) {
                Ok(()) => {}
                Err(Failure::Code(code)) => return failed(code),
                Err(Failure::Bug(bug)) => return self.stop(bug),
            }
        }
        match self.insert_switched_on(i, length) {
            Ok(()) => failed(0),
            Err(code) => failed(code),
        }
    }

    /// `__mmu_interval_notifier_insert`.
    fn insert_switched_on(&mut self, i: u64, length: u64) -> Result<(), i64> {
        let Interval { mm: m, start, .. } = self.intervals[&i];
        let last = length.checked_sub(1).and_then(|rest| start.checked_add(rest)).ok_or(EOVERFLOW)?;
        if self.mm(m).users == 0 {
            self.warn(Warning::InsertDeadMm);
            return Err(EINVAL);
        }
        self.mm_mut(m).count += 1;

        let &Subscriptions { seq, active, .. } = self.subs(m);
        let stored = if active == 0 {
            if seq & 1 == 1 {
                self.warn(Warning::InsertIdleButOdd);
            }
            // Odd, and a value that the core will not come by for a long time: nobody waits for it.
            self.place(i, last);
            self.enter_tree(m, i);
            seq.wrapping_sub(1)
        } else if seq & 1 == 1 {
            // The tree is frozen. Some open range may overlap: its readers wait like those that were hit.
            self.place(i, last);
            self.subs_mut(m).deferred.push_front(i);
            seq
        } else {
            // Nobody was hit so far, but this one might have been; so it makes the phase odd.
            self.place(i, last);
            self.subs_mut(m).seq = seq | 1;
            self.enter_tree(m, i);
            seq | 1
        };
        self.interval_mut(i).seq = stored;
        Ok(())
    }

    fn place(&mut self, i: u64, last: u64) {
        let interval = self.interval_mut(i);
        interval.last = last;
        interval.present = true;
    }

    /// `mmu_interval_notifier_remove`, up to where it waits for the tree to thaw.
    pub(super) fn remove(&mut self, task: u64, i: u64) -> Result<Outcome, Impossible> {
        let m = self.present_interval(i)?.mm;
        if self.is_removing(i) {
            return impossible("i", format!("interval {i} is being removed already"));
        }
        let subs = self.subs(m);
        let (seq, in_tree) = (subs.seq, subs.tree.contains(&i));
        if seq & 1 == 1 && in_tree {
            self.subs_mut(m).deferred.push_front(i);
            self.waiters.push(Waiter { task, mm: m, what: Task::Remove { i, seq } });
            let blocked = Some((Wait::Invalidation, task));
            return Ok(Outcome::of(Observed { blocked, ..Observed::default() }, m));
        }
        if seq & 1 == 1 {
            // Its insert is still deferred: never mind.
            self.subs_mut(m).deferred.retain(|&other| other != i);
        } else {
            if !in_tree {
                self.warn(Warning::RemoveNotInTree);
            }
            self.subs_mut(m).tree.retain(|&other| other != i);
        }
        self.interval_mut(i).present = false;
        self.drop_reference(m);
        Ok(Outcome::quiet(m))
    }

    /// `mmu_interval_read_begin`: waits if this interval was hit in the phase that is running.
    pub(super) fn read_begin(&mut self, task: u64, i: u64) -> Result<Outcome, Impossible> {
        let &Interval { mm: m, seq, .. } = self.present_interval(i)?;
        if self.subs(m).seq == seq {
            self.waiters.push(Waiter { task, mm: m, what: Task::ReadBegin { i, seq } });
            let blocked = Some((Wait::Invalidation, task));
            return Ok(Outcome::of(Observed { blocked, ..Observed::default() }, m));
        }
        Ok(Outcome::of(Observed { seq: Some(seq), ..Observed::default() }, m))
    }

    /// `mmu_interval_read_retry`, and `mmu_interval_check_retry`, which differs in locking only.
    pub(super) fn read_retry(&mut self, i: u64, seq: u64) -> Result<Outcome, Impossible> {
        let stored = self.present_interval(i)?.seq;
        Ok(Outcome::answer(Ret::Truth(stored != seq)))
    }

    fn enter_tree(&mut self, m: u64, i: u64) {
        let start = self.intervals[&i].start;
        let at = self.subs(m).tree.partition_point(|other| self.intervals[other].start <= start);
        self.subs_mut(m).tree.insert(at, i);
    }

    pub(super) fn subs(&self, m: u64) -> &Subscriptions {
        self.mm(m).subs.as_ref().expect("intervals are used, so there is a structure")
    }

    pub(super) fn subs_mut(&mut self, m: u64) -> &mut Subscriptions {
        self.mm_mut(m).subs.as_mut().expect("intervals are used, so there is a structure")
    }
}
