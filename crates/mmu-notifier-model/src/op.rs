//! What can be done to the machine: the operations of a trace and the definitions they refer to.
//!
//! Everything is named by a number of the caller's choice: address spaces (`m`), ops tables (`c`),
//! hlist subscribers (`s`), interval subscribers (`i`), start/end pairs (`r`).

use std::fmt;

/// Why a range changes: the kernel's `enum mmu_notifier_event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the kernel's names; the core crate's `Event` explains each")]
pub enum Event {
    Unmap,
    Clear,
    ProtectionVma,
    ProtectionPage,
    SoftDirty,
    Release,
    Migrate,
    Exclusive,
}

impl Event {
    /// All events in the kernel's order.
    pub const ALL: [Event; 8] = [
        Event::Unmap,
        Event::Clear,
        Event::ProtectionVma,
        Event::ProtectionPage,
        Event::SoftDirty,
        Event::Release,
        Event::Migrate,
        Event::Exclusive,
    ];

    /// The kernel's name without its prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Event::Unmap => "UNMAP",
            Event::Clear => "CLEAR",
            Event::ProtectionVma => "PROTECTION_VMA",
            Event::ProtectionPage => "PROTECTION_PAGE",
            Event::SoftDirty => "SOFT_DIRTY",
            Event::Release => "RELEASE",
            Event::Migrate => "MIGRATE",
            Event::Exclusive => "EXCLUSIVE",
        }
    }
}

/// Whether those who are told of a change may sleep (`mmu_notifier_range_blockable`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blocking {
    /// They may.
    Allowed,
    /// They must not; who would have to refuses the start.
    Forbidden,
}

/// What a start, an end or an invalidation is told (`mmu_notifier_range`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// First byte.
    pub start: u64,
    /// Byte after the last one. Nobody in the kernel checks that it lies above `start`.
    pub end: u64,
    /// Why.
    pub event: Event,
    /// Whether there is time to sleep.
    pub blocking: Blocking,
    /// The cookie of whoever caused the change; 0 for nobody.
    pub owner: u64,
}

/// A callback of an hlist subscriber (`mmu_notifier_ops`); alloc and free are always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the kernel's callbacks under the trace format's names")]
pub enum Callback {
    Release,
    Start,
    End,
    ClearFlushYoung,
    ClearYoung,
    TestYoung,
    /// `invalidate_range`, later `arch_invalidate_secondary_tlbs`.
    Tlb,
    ChangePte,
}

impl Callback {
    /// All callbacks.
    pub const ALL: [Callback; 8] = [
        Callback::Release,
        Callback::Start,
        Callback::End,
        Callback::ClearFlushYoung,
        Callback::ClearYoung,
        Callback::TestYoung,
        Callback::Tlb,
        Callback::ChangePte,
    ];

    /// The trace format's name.
    pub const fn name(self) -> &'static str {
        match self {
            Callback::Release => "release",
            Callback::Start => "start",
            Callback::End => "end",
            Callback::ClearFlushYoung => "clear_flush_young",
            Callback::ClearYoung => "clear_young",
            Callback::TestYoung => "test_young",
            Callback::Tlb => "tlb",
            Callback::ChangePte => "change_pte",
        }
    }
}

/// Which calls a programmed failure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qualifying {
    /// Those for ranges that may not block.
    Nonblock,
    /// All.
    Always,
}

impl Qualifying {
    /// Whether a call for such a range counts.
    pub fn counts(self, blocking: Blocking) -> bool {
        self == Qualifying::Always || blocking == Blocking::Forbidden
    }
}

/// Every `every`-th qualifying call of a subscriber fails with `code` (intervals have no code: they
/// answer false).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// The period, at least 1.
    pub every: u64,
    /// What an hlist start returns.
    pub code: i64,
    /// Which calls count.
    pub when: Qualifying,
}

/// `1/3 of the non-blocking`, to be followed by what it is that fails.
impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.when {
            Qualifying::Nonblock => write!(f, "1/{} of the non-blocking", self.every),
            Qualifying::Always => write!(f, "1/{} of the", self.every),
        }
    }
}

/// The answers that a subscriber gives to successive aging calls, from the first again when used up.
/// An empty list answers 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "one list for each aging callback, under its name")]
pub struct AnswerLists {
    pub clear_flush_young: Vec<u64>,
    pub clear_young: Vec<u64>,
    pub test_young: Vec<u64>,
}

/// An ops table for hlist subscribers and how they behave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Class {
    /// The callbacks that are there.
    pub callbacks: Vec<Callback>,
    /// Which starts fail.
    pub start_fail: Option<Failing>,
    /// What aging answers.
    pub answers: AnswerLists,
    /// The release callback puts its own subscriber, as SGX does.
    pub release_puts: bool,
}

impl Class {
    /// Whether the ops have this callback.
    pub fn has(&self, callback: Callback) -> bool {
        self.callbacks.contains(&callback)
    }
}

/// Invalidations that an interval subscriber knows to be its own and lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "both have to match")]
pub struct Ignored {
    pub event: Event,
    pub owner: u64,
}

/// How an interval subscriber is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// `invalidate`.
    One,
    /// `invalidate_start`, and `invalidate_finish` where a call asked for it.
    Two {
        /// Whether the ops have the second callback.
        has_finish: bool,
        /// Every so many calls ask for a finish; 0 is never.
        finish_every: u64,
    },
}

/// An ops table for interval subscribers and how they behave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntervalClass {
    /// Which calls answer false; the code is unused.
    pub fail: Option<Failing>,
    /// Whether a call stores the sequence (`mmu_interval_set_seq`).
    pub set_seq: bool,
    /// Which calls are let pass without storing it.
    pub ignore: Option<Ignored>,
    /// One pass or two.
    pub passes: Passes,
}

/// What is made to fail once (`inject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// The next allocation.
    Enomem,
    /// The next `mm_take_all_locks`.
    Eintr,
}

/// What is known of a range's VMA when a read-only downgrade is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "no VMA, a readable one, one that is not")]
pub enum Vma {
    None,
    Read,
    Noread,
}

impl Vma {
    /// All three.
    pub const ALL: [Vma; 3] = [Vma::None, Vma::Read, Vma::Noread];

    /// The trace format's name.
    pub const fn name(self) -> &'static str {
        match self {
            Vma::None => "none",
            Vma::Read => "read",
            Vma::Noread => "noread",
        }
    }
}

/// One operation with its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each variant is the kernel function of its name; docs/golden.md has the table"
)]
pub enum Op {
    Mm {
        m: u64,
    },
    Class {
        c: u64,
        class: Class,
    },
    Iclass {
        c: u64,
        class: IntervalClass,
    },
    Inject {
        kind: Injection,
    },
    Register {
        s: u64,
        c: u64,
        m: u64,
    },
    Unregister {
        s: u64,
    },
    Get {
        c: u64,
        m: u64,
        new: u64,
    },
    Put {
        s: u64,
    },
    Synchronize,
    /// A grace period ends: every pending free runs.
    Gp,
    Exit {
        m: u64,
    },
    Mmdrop {
        m: u64,
    },
    Start {
        r: u64,
        m: u64,
        change: Change,
    },
    End {
        r: u64,
    },
    EndOnly {
        r: u64,
    },
    Insert {
        i: u64,
        c: u64,
        m: u64,
        start: u64,
        length: u64,
    },
    InsertLocked {
        i: u64,
        c: u64,
        m: u64,
        start: u64,
        length: u64,
    },
    Remove {
        i: u64,
    },
    ReadBegin {
        i: u64,
    },
    ReadRetry {
        i: u64,
        seq: u64,
    },
    CheckRetry {
        i: u64,
        seq: u64,
    },
    ClearFlushYoung {
        m: u64,
        start: u64,
        end: u64,
    },
    ClearYoung {
        m: u64,
        start: u64,
        end: u64,
    },
    TestYoung {
        m: u64,
        address: u64,
    },
    Tlb {
        m: u64,
        start: u64,
        end: u64,
    },
    ChangePte {
        m: u64,
        address: u64,
    },
    HasNotifiers {
        m: u64,
    },
    RoCheck {
        event: Event,
        vma: Vma,
    },
    /// The test harness writes the core's sequence.
    PokeSeq {
        m: u64,
        v: u64,
    },
    /// The test harness writes a subscriber's reference count.
    PokeUsers {
        s: u64,
        v: u64,
    },
    Peek {
        m: u64,
    },
    /// The end of the trace.
    Finish,
}

impl Op {
    /// The trace format's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Mm { .. } => "mm",
            Op::Class { .. } => "class",
            Op::Iclass { .. } => "iclass",
            Op::Inject { .. } => "inject",
            Op::Register { .. } => "register",
            Op::Unregister { .. } => "unregister",
            Op::Get { .. } => "get",
            Op::Put { .. } => "put",
            Op::Synchronize => "synchronize",
            Op::Gp => "gp",
            Op::Exit { .. } => "exit",
            Op::Mmdrop { .. } => "mmdrop",
            Op::Start { .. } => "start",
            Op::End { .. } => "end",
            Op::EndOnly { .. } => "end_only",
            Op::Insert { .. } => "insert",
            Op::InsertLocked { .. } => "insert_locked",
            Op::Remove { .. } => "remove",
            Op::ReadBegin { .. } => "read_begin",
            Op::ReadRetry { .. } => "read_retry",
            Op::CheckRetry { .. } => "check_retry",
            Op::ClearFlushYoung { .. } => "clear_flush_young",
            Op::ClearYoung { .. } => "clear_young",
            Op::TestYoung { .. } => "test_young",
            Op::Tlb { .. } => "tlb",
            Op::ChangePte { .. } => "change_pte",
            Op::HasNotifiers { .. } => "has_notifiers",
            Op::RoCheck { .. } => "ro_check",
            Op::PokeSeq { .. } => "poke_seq",
            Op::PokeUsers { .. } => "poke_users",
            Op::Peek { .. } => "peek",
            Op::Finish => "finish",
        }
    }

    /// Whether the operation defines or looks at something, and calls nothing of the kernel's. Task
    /// labels count the others.
    pub const fn is_definition(&self) -> bool {
        matches!(
            self,
            Op::Mm { .. }
                | Op::Class { .. }
                | Op::Iclass { .. }
                | Op::Inject { .. }
                | Op::PokeSeq { .. }
                | Op::PokeUsers { .. }
                | Op::Peek { .. }
        )
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{:#x}, {:#x})", self.event.name(), self.start, self.end)?;
        if self.blocking == Blocking::Forbidden {
            f.write_str(" non-blocking")?;
        }
        if self.owner != 0 {
            write!(f, " owner {}", self.owner)?;
        }
        Ok(())
    }
}

/// The operation in a few words, for a line that a person reads.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Op::Mm { m } | Op::Exit { m } | Op::Mmdrop { m } | Op::HasNotifiers { m } | Op::Peek { m } => {
                write!(f, " mm{m}")
            }
            Op::Class { c, class } => {
                write!(f, " c{c}")?;
                class.callbacks.iter().try_for_each(|callback| write!(f, " {}", callback.name()))?;
                if let Some(fail) = class.start_fail {
                    write!(f, ", {fail} starts fail {}", fail.code)?;
                }
                f.write_str(if class.release_puts { ", release puts" } else { "" })
            }
            Op::Iclass { c, class } => {
                write!(f, " c{c}")?;
                if let Passes::Two { has_finish, finish_every } = class.passes {
                    f.write_str(" two passes")?;
                    match (has_finish, finish_every) {
                        (false, _) => f.write_str(" without a finish")?,
                        (true, 0) => {}
                        (true, every) => write!(f, ", finish every {every}")?,
                    }
                }
                if let Some(fail) = class.fail {
                    write!(f, ", {fail} calls are refused")?;
                }
                if let Some(Ignored { event, owner }) = class.ignore {
                    write!(f, ", ignores {} of owner {owner}", event.name())?;
                }
                f.write_str(if class.set_seq { "" } else { ", stores no sequence" })
            }
            Op::Inject { kind: Injection::Enomem } => f.write_str(" -ENOMEM"),
            Op::Inject { kind: Injection::Eintr } => f.write_str(" -EINTR"),
            Op::Register { s, c, m } => write!(f, " s{s} c{c} mm{m}"),
            Op::Get { c, m, new } => write!(f, " c{c} mm{m} new s{new}"),
            Op::Unregister { s } | Op::Put { s } => write!(f, " s{s}"),
            Op::Start { r, m, change } => write!(f, " r{r} mm{m} {change}"),
            Op::End { r } | Op::EndOnly { r } => write!(f, " r{r}"),
            Op::Insert { i, c, m, start, length } | Op::InsertLocked { i, c, m, start, length } => {
                write!(f, " i{i} c{c} mm{m} {start:#x}+{length:#x}")
            }
            Op::Remove { i } | Op::ReadBegin { i } => write!(f, " i{i}"),
            Op::ReadRetry { i, seq } | Op::CheckRetry { i, seq } => write!(f, " i{i} seq {seq}"),
            Op::ClearFlushYoung { m, start, end }
            | Op::ClearYoung { m, start, end }
            | Op::Tlb { m, start, end } => {
                write!(f, " mm{m} [{start:#x}, {end:#x})")
            }
            Op::TestYoung { m, address } | Op::ChangePte { m, address } => write!(f, " mm{m} {address:#x}"),
            Op::RoCheck { event, vma } => write!(f, " {} vma {}", event.name(), vma.name()),
            Op::PokeSeq { m, v } => write!(f, " mm{m} {v}"),
            Op::PokeUsers { s, v } => write!(f, " s{s} {v}"),
            Op::Synchronize | Op::Gp | Op::Finish => Ok(()),
        }
    }
}
