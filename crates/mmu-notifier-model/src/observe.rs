//! What can be seen of an operation: its result, the callbacks it made, warnings, who waits and who
//! goes on, and the state it leaves.
//!
//! The machine produces these and the trace reader reads them, in the same types, so that a comparison
//! has nothing to leave out.

use std::fmt;

use crate::op::{Blocking, Change};

/// What an operation returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// The function is void although its non-blocking sister is not: a blockable start.
    Nothing,
    /// A number: 0, a negative errno, or what aging answered.
    Code(i64),
    /// Yes or no.
    Truth(bool),
}

/// What a waiter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The end of the invalidations that overlap it or froze the tree (the `wq` of the core).
    Invalidation,
    /// Writing `mmap_lock`, which whoever is between start and end holds.
    MmapLock,
}

impl Wait {
    /// Both.
    pub const ALL: [Wait; 2] = [Wait::Invalidation, Wait::MmapLock];

    /// The trace format's name.
    pub const fn name(self) -> &'static str {
        match self {
            Wait::Invalidation => "invalidation",
            Wait::MmapLock => "mmap_lock",
        }
    }
}

/// A kernel warning, by what it complains of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "docs/golden.md has the table")]
pub enum Warning {
    BadStartFailure,
    FailingStartHasEnd,
    IntervalRefusedBlockable,
    ReleaseRefused,
    PutWithoutUsers,
    InsertDeadMm,
    InsertIdleButOdd,
    RemoveNotInTree,
    MixedTlbAndRangeOps,
    TwoPassWithoutFinish,
}

impl Warning {
    /// All of them.
    pub const ALL: [Warning; 10] = [
        Warning::BadStartFailure,
        Warning::FailingStartHasEnd,
        Warning::IntervalRefusedBlockable,
        Warning::ReleaseRefused,
        Warning::PutWithoutUsers,
        Warning::InsertDeadMm,
        Warning::InsertIdleButOdd,
        Warning::RemoveNotInTree,
        Warning::MixedTlbAndRangeOps,
        Warning::TwoPassWithoutFinish,
    ];

    /// The trace format's name.
    pub const fn name(self) -> &'static str {
        match self {
            Warning::BadStartFailure => "bad_start_failure",
            Warning::FailingStartHasEnd => "failing_start_has_end",
            Warning::IntervalRefusedBlockable => "interval_refused_blockable",
            Warning::ReleaseRefused => "release_refused",
            Warning::PutWithoutUsers => "put_without_users",
            Warning::InsertDeadMm => "insert_dead_mm",
            Warning::InsertIdleButOdd => "insert_idle_but_odd",
            Warning::RemoveNotInTree => "remove_not_in_tree",
            Warning::MixedTlbAndRangeOps => "mixed_tlb_and_range_ops",
            Warning::TwoPassWithoutFinish => "two_pass_without_finish",
        }
    }
}

/// A kernel BUG: nothing runs after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A registration with an address space that has no users.
    DeadMm,
    /// An address space went while subscribers were linked.
    DestroyWithSubscribers,
}

impl Bug {
    /// Both.
    pub const ALL: [Bug; 2] = [Bug::DeadMm, Bug::DestroyWithSubscribers];

    /// The trace format's name.
    pub const fn name(self) -> &'static str {
        match self {
            Bug::DeadMm => "dead_mm",
            Bug::DestroyWithSubscribers => "destroy_with_subscribers",
        }
    }
}

/// The kernel's log line about a start that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "what the line says")]
pub struct Log {
    pub ret: i64,
    pub blocking: Blocking,
}

/// What surrounds a callback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Inside a section in which sleeping is an error (`non_block_start`).
    pub nonblock: bool,
    /// Inside an SRCU read section.
    pub srcu: bool,
    /// The pseudo-lock is held that teaches lockdep about notifiers.
    pub lockdep: bool,
}

impl Context {
    /// Nothing at all.
    pub const BARE: Context = Context { nonblock: false, srcu: false, lockdep: false };
    /// The interval side of a start.
    pub const INTERVAL: Context = Context { nonblock: false, srcu: false, lockdep: true };
    /// The hlist side outside start and end.
    pub const SRCU: Context = Context { nonblock: false, srcu: true, lockdep: false };
    /// The hlist side of start and end, sleeping not forbidden.
    pub const HLIST: Context = Context { nonblock: false, srcu: true, lockdep: true };
    /// The hlist side of start and end of a range that may not block.
    pub const HLIST_NONBLOCK: Context = Context { nonblock: true, srcu: true, lockdep: true };
    /// Every context in which the kernel calls.
    pub const ALL: [Context; 5] =
        [Context::BARE, Context::INTERVAL, Context::SRCU, Context::HLIST, Context::HLIST_NONBLOCK];
}

/// The letters of the trace format: `n`, `s`, `l`.
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, present) in [('n', self.nonblock), ('s', self.srcu), ('l', self.lockdep)] {
            if present {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// Which callback, or event of the surrounding, a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the kernel's callbacks under the trace format's names")]
pub enum CallKind {
    Start,
    End,
    Invalidate,
    InvalidateStart,
    InvalidateFinish,
    ClearFlushYoung,
    ClearYoung,
    TestYoung,
    Tlb,
    ChangePte,
    Release,
    Alloc,
    Free,
    /// The last reference to an address space went.
    MmFree,
}

impl CallKind {
    /// All of them.
    pub const ALL: [CallKind; 14] = [
        CallKind::Start,
        CallKind::End,
        CallKind::Invalidate,
        CallKind::InvalidateStart,
        CallKind::InvalidateFinish,
        CallKind::ClearFlushYoung,
        CallKind::ClearYoung,
        CallKind::TestYoung,
        CallKind::Tlb,
        CallKind::ChangePte,
        CallKind::Release,
        CallKind::Alloc,
        CallKind::Free,
        CallKind::MmFree,
    ];

    /// The trace format's name.
    pub const fn name(self) -> &'static str {
        match self {
            CallKind::Start => "start",
            CallKind::End => "end",
            CallKind::Invalidate => "invalidate",
            CallKind::InvalidateStart => "invalidate_start",
            CallKind::InvalidateFinish => "invalidate_finish",
            CallKind::ClearFlushYoung => "clear_flush_young",
            CallKind::ClearYoung => "clear_young",
            CallKind::TestYoung => "test_young",
            CallKind::Tlb => "tlb",
            CallKind::ChangePte => "change_pte",
            CallKind::Release => "release",
            CallKind::Alloc => "alloc",
            CallKind::Free => "free",
            CallKind::MmFree => "mm_free",
        }
    }
}

/// Whom a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// An hlist subscriber; none if it could not be allocated.
    Subscriber(Option<u64>),
    /// An interval subscriber.
    Interval(u64),
    /// An address space.
    Mm(u64),
}

/// What a callback was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Args {
    /// A range with all that goes with it.
    Change(Change),
    /// Bounds only.
    Bounds(u64, u64),
    /// One address.
    Address(u64),
}

/// One callback. Which fields are there depends on `kind`; docs/golden.md has the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which callback.
    pub kind: CallKind,
    /// Whose.
    pub who: Who,
    /// In what surroundings.
    pub context: Option<Context>,
    /// What it answered.
    pub ret: Option<Ret>,
    /// The sequence it was given.
    pub seq: Option<u64>,
    /// Whether it stored that sequence.
    pub set: Option<bool>,
    /// Whether it asked for a second pass.
    pub finish: Option<bool>,
    /// What it was told.
    pub args: Option<Args>,
}

impl Call {
    /// A record with nothing but these three.
    pub(crate) const fn new(kind: CallKind, who: Who, context: Option<Context>) -> Call {
        Call { kind, who, context, ret: None, seq: None, set: None, finish: None, args: None }
    }
}

/// A subscriber's counts: reference count, linked, starts that returned 0, starts that failed, ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named in the line above")]
pub struct Count {
    pub s: u64,
    pub users: u64,
    pub linked: bool,
    pub started: u64,
    pub failed: u64,
    pub ended: u64,
}

/// What the deferred list will do once the tree thaws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deferral {
    /// Put this interval into the tree.
    Insert(u64),
    /// Take this interval out of it.
    Remove(u64),
}

/// The subscription structure of an address space (`mmu_notifier_subscriptions`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subs {
    /// Even: the tree may change. Odd: an overlapping invalidation runs, the tree is frozen.
    pub seq: u64,
    /// Invalidations entered on the interval side and not left.
    pub active: u64,
    /// Intervals were used at least once.
    pub has_itree: bool,
    /// hlist subscribers in walk order.
    pub list: Vec<u64>,
    /// Intervals in walk order.
    pub tree: Vec<u64>,
    /// What waits for the tree to thaw, in the order in which it will be done.
    pub deferred: Vec<Deferral>,
    /// Each present interval with the sequence it stored last.
    pub stored: Vec<(u64, u64)>,
    /// Each subscriber that was not freed, with its counts.
    pub counts: Vec<Count>,
    /// Frees that wait for a grace period, of all address spaces.
    pub pending_frees: u64,
}

/// An address space, seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MmState {
    /// The last reference went.
    Freed {
        /// Which.
        m: u64,
    },
    /// It is there.
    Live {
        /// Which.
        m: u64,
        /// `mm_users`.
        users: u64,
        /// `mm_count`.
        count: u64,
        /// The subscription structure, once there is one.
        subs: Option<Subs>,
    },
}

/// A waiter that went on, with what then happened in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// The label it got when it began to wait.
    pub task: u64,
    /// The name of its operation.
    pub op: &'static str,
    /// The letter and number of what the operation is about.
    pub id: (char, u64),
    /// What it observed.
    pub seen: Observed,
}

/// What is left over at the end of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finish {
    /// Waiters that never went on: label, operation, what they wait for.
    pub stuck: Vec<(u64, &'static str, Wait)>,
    /// Pairs still open.
    pub open: Vec<u64>,
    /// Every address space.
    pub mms: Vec<MmState>,
}

/// Something an operation asked for that the kernel in question does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absent {
    /// The input that asks for it.
    pub field: &'static str,
    /// What is asked for.
    pub what: &'static str,
}

/// All that can be seen of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// What it returned.
    pub ret: Option<Ret>,
    /// The subscriber that get returned.
    pub got: Option<u64>,
    /// The sequence that `read_begin` returned.
    pub seq: Option<u64>,
    /// The caller ended a pair that is not open.
    pub misuse: bool,
    /// It has to wait: for what, and the label of the waiter.
    pub blocked: Option<(Wait, u64)>,
    /// Callbacks, in order.
    pub calls: Vec<Call>,
    /// Warnings, in order.
    pub warnings: Vec<Warning>,
    /// The kernel stopped.
    pub bug: Option<Bug>,
    /// Log lines about failing starts.
    pub log: Vec<Log>,
    /// Waiters that went on because of it, in order.
    pub resumed: Vec<Resumed>,
    /// The address space concerned, afterwards.
    pub state: Option<MmState>,
    /// The balance at the end of the trace.
    pub finish: Option<Finish>,
    /// What this kernel lacks. Never part of a trace.
    pub absent: Vec<Absent>,
}

/// What was seen, behind the operation: ` = -11: start s1 failed -11, start s0, end s0`.
impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ret, self.seq) {
            (Some(Ret::Code(code)), _) => write!(f, " = {code}")?,
            (Some(Ret::Truth(truth)), _) => write!(f, " = {truth}")?,
            (_, Some(seq)) => write!(f, " = {seq}")?,
            _ => {}
        }
        if let Some(s) = self.got {
            write!(f, " s{s}")?;
        }
        if self.misuse {
            f.write_str(" (not open)")?;
        }
        if let Some((wait, task)) = self.blocked {
            write!(f, ": task {task} waits for {}", wait.name())?;
        }
        for (at, call) in self.calls.iter().enumerate() {
            write!(f, "{}{}", if at == 0 { ": " } else { ", " }, call.kind.name())?;
            match call.who {
                Who::Subscriber(Some(s)) => write!(f, " s{s}")?,
                Who::Subscriber(None) => {}
                Who::Interval(i) => write!(f, " i{i}")?,
                Who::Mm(m) => write!(f, " mm{m}")?,
            }
            match (call.kind, call.ret) {
                (_, Some(Ret::Truth(false))) => f.write_str(" refused")?,
                (CallKind::Start | CallKind::Alloc, Some(Ret::Code(code))) if code != 0 => {
                    write!(f, " failed {code}")?;
                }
                _ => {}
            }
        }
        for warning in &self.warnings {
            write!(f, "; warning {}", warning.name())?;
        }
        if let Some(bug) = self.bug {
            write!(f, "; BUG {}", bug.name())?;
        }
        for resumed in &self.resumed {
            let (letter, id) = resumed.id;
            write!(f, "; task {} goes on: {} {letter}{id}{}", resumed.task, resumed.op, resumed.seen)?;
        }
        if let Some(finish) = &self.finish {
            write!(f, ": {} waiting, {} open", finish.stuck.len(), finish.open.len())?;
        }
        Ok(())
    }
}
