//! Operations that have to wait, and their second halves.
//!
//! Two things are waited for. Who wants `mmap_lock` for writing waits until no pair is open in the
//! address space. Readers and removers of an interval wait until the sequence is no longer the one
//! they saw; the kernel has them sleep on the `wq` of the subscription structure.

use super::Machine;
use crate::observe::{Bug, Observed, Resumed, Wait};

/// The first half of an operation is done; the second waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) task: u64,
    pub(super) mm: u64,
    pub(super) what: Task,
}

/// What is left to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Register { s: u64 },
    Get { c: u64, new: u64 },
    Insert { i: u64, length: u64, op: &'static str },
    Remove { i: u64, seq: u64 },
    ReadBegin { i: u64, seq: u64 },
}

impl Waiter {
    pub(super) fn waits_for(&self) -> Wait {
        match self.what {
            Task::Register { .. } | Task::Get { .. } | Task::Insert { .. } => Wait::MmapLock,
            Task::Remove { .. } | Task::ReadBegin { .. } => Wait::Invalidation,
        }
    }

    pub(super) fn op(&self) -> &'static str {
        match self.what {
            Task::Register { .. } => "register",
            Task::Get { .. } => "get",
            Task::Insert { op, .. } => op,
            Task::Remove { .. } => "remove",
            Task::ReadBegin { .. } => "read_begin",
        }
    }

    fn id(&self) -> (char, u64) {
        match self.what {
            Task::Register { s } => ('s', s),
            Task::Get { c, .. } => ('c', c),
            Task::Insert { i, .. } | Task::Remove { i, .. } | Task::ReadBegin { i, .. } => ('i', i),
        }
    }
}

impl Machine {
    /// Runs the second half of every waiter that can go on, in the order in which they were woken: those
    /// that an end woke before those that got `mmap_lock` when the end was over, and each kind in the
    /// order in which it began to wait. A bug ends it.
    pub(super) fn resume(&mut self, bug: &mut Option<Bug>) -> Vec<Resumed> {
        let mut resumed = Vec::new();
        for wait in Wait::ALL {
            while bug.is_none()
                && let Some(at) = self.waiters.iter().position(|w| w.waits_for() == wait && self.may_go_on(w))
            {
                let waiter = self.waiters.remove(at);
                let mut seen = self.go_on(&waiter);
                self.record.take_into(&mut seen);
                *bug = seen.bug.take();
                resumed.push(Resumed { task: waiter.task, op: waiter.op(), id: waiter.id(), seen });
            }
        }
        resumed
    }

    fn may_go_on(&self, waiter: &Waiter) -> bool {
        match waiter.what {
            Task::Register { .. } | Task::Get { .. } | Task::Insert { .. } => self.mm(waiter.mm).open == 0,
            Task::Remove { seq, .. } | Task::ReadBegin { seq, .. } => {
                self.mm(waiter.mm).subs.as_ref().is_none_or(|subs| subs.seq != seq)
            }
        }
    }

    fn go_on(&mut self, waiter: &Waiter) -> Observed {
        match waiter.what {
            Task::Register { s } => self.register_locked(s),
            Task::Get { c, new } => self.get_locked(c, waiter.mm, new),
            Task::Insert { i, length, op } => {
                // `mmu_interval_notifier_insert` decided before it waited that it has to switch intervals
                // on; its sister looks only now that it holds the lock.
                let has_itree = self.mm(waiter.mm).subs.as_ref().is_some_and(|subs| subs.has_itree);
                self.insert_locked(i, length, op == "insert" || !has_itree)
            }
            Task::Remove { .. } => {
                self.drop_reference(waiter.mm);
                Observed::default()
            }
            Task::ReadBegin { seq, .. } => Observed { seq: Some(seq), ..Observed::default() },
        }
    }

    pub(super) fn is_registering(&self, s: u64) -> bool {
        self.waiters.iter().any(|w| matches!(w.what, Task::Register { s: other } if other == s))
    }

    /// Whether a waiting get will use this number if it has to make an instance.
    pub(super) fn is_promised(&self, s: u64) -> bool {
        self.waiters.iter().any(|w| matches!(w.what, Task::Get { new, .. } if new == s))
    }

    pub(super) fn is_inserting(&self, i: u64) -> bool {
        self.waiters.iter().any(|w| matches!(w.what, Task::Insert { i: other, .. } if other == i))
    }

    pub(super) fn is_removing(&self, i: u64) -> bool {
        self.waiters.iter().any(|w| matches!(w.what, Task::Remove { i: other, .. } if other == i))
    }
}
