//! What the comparison keeps of its own: who is subscribed *in the core*, which changes are open, who waits where.
//!
//! Where the core is better than the kernel, the two are not in the same state; these books are the difference.

use std::collections::{BTreeMap, BTreeSet};

use mmu_notifier::Ticket;
use mmu_notifier_model::{Callback, Change, Class, IntervalClass, Machine, MmState, Observed, Op, Subs};

use crate::driver::{Sides, sides};
use crate::threads::Answer;

/// An hlist subscriber that is on the core's lists.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) m: u64,
    pub(crate) c: u64,
    pub(crate) class: Class,
    /// The operation that put it there.
    pub(crate) since: u64,
    /// Shares of it; none if it is subscribed plainly.
    pub(crate) shares: u64,
    /// When it began to be asked about age, if it was: a number of [`Books::ages`].
    pub(crate) ages: Option<u64>,
}

impl Listed {
    pub(crate) fn sides(&self) -> Sides {
        let sides = sides(&self.class);
        // A member is told of changes whatever its class.
        Sides { changes: sides.changes || self.shares > 0, ..sides }
    }
}

/// An interval that is inserted in the core.
#[derive(Clone, Debug)]
pub(crate) struct Here {
    pub(crate) m: u64,
    pub(crate) class: IntervalClass,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) since: u64,
    /// Its calls, but for those that it ignored: whether the model had it store the sequence.
    pub(crate) hits: Vec<bool>,
}

impl Here {
    pub(crate) fn overlaps(&self, change: &Change) -> bool {
        self.start < change.end && change.start < self.end
    }

    pub(crate) fn ignores(&self, change: &Change) -> bool {
        self.class.ignore.is_some_and(|own| own.event == change.event && own.owner == change.owner)
    }
}

/// A change that is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) m: u64,
    pub(crate) change: Change,
    pub(crate) since: u64,
    /// Nobody was there when it began.
    pub(crate) is_unseen: bool,
}

/// An operation that is not over in both.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) op: Op,
    /// What the model calls it, if it waits there.
    pub(crate) label: Option<u64>,
    /// What the model saw, once it is over there.
    pub(crate) model: Option<Observed>,
    /// The same of the core.
    pub(crate) core: Option<Answer>,
    /// The changes that the core has to wait for.
    pub(crate) must: BTreeSet<u64>,
}

/// What a reader got.
#[derive(Debug)]
pub(crate) struct Got {
    /// None before the core goes on.
    pub(crate) ticket: Option<Ticket>,
    /// The model's; none before it goes on there.
    pub(crate) seq: Option<u64>,
    /// The operation that it is of.
    pub(crate) task: u64,
    /// How many hits there were when the read began, and when the model's was over.
    pub(crate) begun: usize,
    pub(crate) over: usize,
}

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) mms: BTreeSet<u64>,
    pub(crate) classes: BTreeMap<u64, Class>,
    pub(crate) interval_classes: BTreeMap<u64, IntervalClass>,
    pub(crate) listed: BTreeMap<u64, Listed>,
    pub(crate) intervals: BTreeMap<u64, Here>,
    pub(crate) open: BTreeMap<u64, Pair>,
    pub(crate) waiters: BTreeMap<u64, Waiter>,
    /// By interval. Those of one that was removed are gone.
    pub(crate) tickets: BTreeMap<u64, Vec<Got>>,
    /// Counts those who begin to be asked about age.
    pub(crate) ages: u64,
    /// When somebody last came on the list of changes or left it, by address space.
    pub(crate) edited: BTreeMap<u64, u64>,
    /// Starts by address space and event, and refused ones.
    pub(crate) starts: BTreeMap<u64, ([u64; 8], u64)>,
    /// Failures that were asked for and did not happen yet: of memory, of locks.
    pub(crate) armed: [bool; 2],
    /// Pairs that neither side was told of.
    pub(crate) left_out: BTreeSet<u64>,
}

impl Books {
    /// Changes that whoever wants nobody to be between start and end has to wait for.
    pub(crate) fn open_in(&self, m: u64) -> BTreeSet<u64> {
        self.open.iter().filter(|(_, pair)| pair.m == m).map(|(r, _)| *r).collect()
    }

    /// Whether nobody is told of changes.
    pub(crate) fn is_nobody_there(&self, m: u64) -> bool {
        !self.listed.values().any(|listed| listed.m == m && listed.sides().changes)
            && !self.intervals.values().any(|here| here.m == m)
    }

    /// Changes that a reader of an interval has to wait for: those that overlap, but for its own. If `unseen`, also those
    /// that nobody was there to see.
    pub(crate) fn open_over(&self, i: u64, unseen: bool) -> BTreeSet<u64> {
        let here = &self.intervals[&i];
        let overlaps = |pair: &Pair| here.overlaps(&pair.change) && !here.ignores(&pair.change);
        let concerns = |pair: &Pair| pair.m == here.m && (overlaps(pair) || unseen && pair.is_unseen);
        self.open.iter().filter(|(_, pair)| concerns(pair)).map(|(r, _)| *r).collect()
    }

    pub(crate) fn has_shared(&self, c: u64, m: u64) -> bool {
        self.listed.values().any(|listed| listed.m == m && listed.c == c && listed.shares > 0)
    }

    /// Whether who makes the shared subscriber of this class still waits.
    pub(crate) fn is_being_made(&self, c: u64, m: u64) -> bool {
        let makes = |op: &Op| matches!(*op, Op::Get { c: made, m: at, .. } if (made, at) == (c, m));
        self.waiters.values().any(|waiter| waiter.core.is_none() && makes(&waiter.op))
    }

    /// The open changes that who made the shared subscriber of this class still waits for.
    pub(crate) fn waited_for_by_who_made(&self, c: u64, m: u64) -> BTreeSet<u64> {
        let makes = |op: &Op| matches!(*op, Op::Get { c: made, m: at, .. } if (made, at) == (c, m));
        let waiting = self.waiters.values().filter(|waiter| waiter.core.is_none() && makes(&waiter.op));
        waiting
            .flat_map(|waiter| waiter.must.intersection(&self.open_in(m)).copied().collect::<Vec<_>>())
            .collect()
    }

    /// Intervals of the core that overlap a change, in the order in which it asks them.
    pub(crate) fn asked(&self, m: u64, change: &Change) -> Vec<u64> {
        let mut asked: Vec<_> =
            self.intervals.iter().filter(|(_, here)| here.m == m && here.overlaps(change)).collect();
        asked.sort_by_key(|(_, here)| (here.start, here.since));
        asked.into_iter().map(|(i, _)| *i).collect()
    }

    /// Operations that the model has waiting.
    pub(crate) fn model_waits(&self) -> impl Iterator<Item = &Op> {
        self.waiters.values().filter(|waiter| waiter.model.is_none()).map(|waiter| &waiter.op)
    }

    pub(crate) fn core_waits(&self) -> impl Iterator<Item = &Op> {
        self.waiters.values().filter(|waiter| waiter.core.is_none()).map(|waiter| &waiter.op)
    }

    /// Who is asked whether a page is young, the first first.
    pub(crate) fn asked_young(&self, m: u64) -> Vec<u64> {
        let asked = |listed: &Listed| listed.m == m && listed.class.has(Callback::TestYoung);
        let mut asked: Vec<_> =
            self.listed.iter().filter(|(_, listed)| asked(listed) && listed.ages.is_some()).collect();
        asked.sort_by_key(|(_, listed)| std::cmp::Reverse(listed.ages));
        asked.into_iter().map(|(s, _)| *s).collect()
    }

    pub(crate) fn next_age(&mut self) -> Option<u64> {
        self.ages += 1;
        Some(self.ages)
    }

    /// Who leaves the lists.
    pub(crate) fn leaves(&mut self, s: u64, task: u64) {
        if let Some(listed) = self.listed.remove(&s)
            && listed.sides().changes
        {
            self.edited.insert(listed.m, task);
        }
    }
}

/// The subscription structure of the model, if there is one.
pub(crate) fn subs(machine: &Machine, m: u64) -> Option<Subs> {
    match machine.state(m)? {
        MmState::Live { subs, .. } => subs,
        MmState::Freed { .. } => None,
    }
}

/// The address space that an operation waits in.
pub(crate) fn waits_in(op: &Op) -> Option<u64> {
    match *op {
        Op::Register { m, .. } | Op::Get { m, .. } | Op::Insert { m, .. } | Op::InsertLocked { m, .. } => {
            Some(m)
        }
        _ => None,
    }
}
