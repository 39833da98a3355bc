//! The state machine: every address space, subscriber, interval, open pair and waiter in plain tables,
//! changed by one operation at a time.
//!
//! Nothing here is clever. There is one thread, so what the kernel's locks order is ordered by being
//! written down; what is left of the locks is *who has to wait*. A kernel function that sleeps is split
//! at the place where it does: the first half leaves a [`Waiter`] behind, and the operation that makes
//! its condition true runs the second half and reports it under `resumed`.
//!
//! | file | what of the kernel |
//! | --- | --- |
//! | `state.rs` | the structures, one operation from beginning to end, what an operation may refer to |
//! | `lifecycle.rs` | register, unregister, get, put, grace periods, exit, references |
//! | `bracket.rs` | start and end: the hlist side, refusal, pairing |
//! | `interval.rs` | the interval side: sequence, tree, deferred list, insert, remove, readers |
//! | `aging.rs` | young bits, secondary TLB, `change_pte` |
//! | `callbacks.rs` | the bodies of the callbacks, as the classes program them |
//! | `waiters.rs` | who waits, who goes on |
//! | `view.rs` | the state as a trace shows it |

mod aging;
mod bracket;
mod callbacks;
mod interval;
mod lifecycle;
mod view;
mod waiters;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use crate::kernel::Kernel;
use crate::observe::{Absent, Bug, Call, Log, Observed, Ret, Warning};
use crate::op::{Callback, Change, Class, Event, Injection, IntervalClass, Op, Passes, Vma};
use waiters::Waiter;

/// Linux's MMU notifiers with the semantics of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    kernel: Kernel,
    classes: BTreeMap<u64, Class>,
    interval_classes: BTreeMap<u64, IntervalClass>,
    mms: BTreeMap<u64, Mm>,
    subscribers: BTreeMap<u64, Subscriber>,
    intervals: BTreeMap<u64, Interval>,
    pairs: BTreeMap<u64, Pair>,
    /// Subscribers whose free waits for a grace period, oldest first. One queue for all address
    /// spaces, as the kernel has one SRCU domain.
    pending_frees: VecDeque<u64>,
    /// In the order in which they began to wait.
    waiters: Vec<Waiter>,
    /// Failures that were asked for and did not happen yet.
    fail_next_allocation: bool,
    fail_next_locking: bool,
    /// Warnings that the kernel gives once.
    warned_mixed: bool,
    warned_two_pass: bool,
    /// Operations so far that were not definitions: the label of the next one.
    tasks: u64,
    stopped: Option<Bug>,
    /// What the operation under way did.
    record: Record,
}

/// What callbacks and warnings an operation (or the second half of one) produced so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Record {
    calls: Vec<Call>,
    warnings: Vec<Warning>,
    bug: Option<Bug>,
    log: Vec<Log>,
}

/// `mm_struct`, as far as notifiers look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mm {
    /// `mm_users`: 1, or 0 after exit.
    users: u64,
    /// `mm_count`.
    count: u64,
    /// The reference it was born with was dropped.
    born_reference_dropped: bool,
    freed: bool,
    /// Pairs started and not ended. Their callers hold `mmap_lock` or reverse-map locks, so nobody gets
    /// all the locks of this address space.
    open: u64,
    subs: Option<Subscriptions>,
}

/// `mmu_notifier_subscriptions`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Subscriptions {
    seq: u64,
    active: u64,
    has_itree: bool,
    /// Newest first.
    list: Vec<u64>,
    /// By start, equal starts in the order in which they came in.
    tree: Vec<u64>,
    /// Newest request first, which is also the order of application.
    deferred: VecDeque<u64>,
}

/// `mmu_notifier` in the object of its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Subscriber {
    class: u64,
    mm: u64,
    users: u32,
    freed: bool,
    started: u64,
    failed: u64,
    ended: u64,
    /// Starts that qualify for the programmed failure.
    qualifying: u64,
    /// How many answers were given, for each aging callback.
    answered: [usize; 3],
}

/// `mmu_interval_notifier` in the object of its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interval {
    class: u64,
    mm: u64,
    start: u64,
    /// The last byte that belongs to it.
    last: u64,
    seq: u64,
    /// Inserted, perhaps only deferred, and not completely removed.
    present: bool,
    /// Calls that qualify for the programmed failure.
    qualifying: u64,
    /// Calls that came as far as to ask for a second pass or not.
    passed: u64,
}

/// `mmu_notifier_range` in the hands of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    mm: u64,
    change: Change,
    open: bool,
}

/// An operation that cannot be done, whatever the kernel: it refers to something that is not there, or
/// makes something that already is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impossible {
    /// The input that is wrong.
    pub field: &'static str,
    /// Why.
    pub why: String,
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

impl std::error::Error for Impossible {}

fn impossible<T>(field: &'static str, why: impl Into<String>) -> Result<T, Impossible> {
    Err(Impossible { field, why: why.into() })
}

/// What the first half of an operation came to.
#[derive(Default)]
struct Outcome {
    observed: Observed,
    /// The address space to show.
    show: Option<u64>,
}

impl Outcome {
    fn of(observed: Observed, show: u64) -> Outcome {
        Outcome { observed, show: Some(show) }
    }

    fn code(code: i64, show: u64) -> Outcome {
        Outcome::of(Observed { ret: Some(Ret::Code(code)), ..Observed::default() }, show)
    }

    fn quiet(show: u64) -> Outcome {
        Outcome::of(Observed::default(), show)
    }

    /// An answer that comes without a look at the state.
    fn answer(ret: Ret) -> Outcome {
        Outcome { observed: Observed { ret: Some(ret), ..Observed::default() }, show: None }
    }
}

impl Machine {
    /// A machine with nothing in it.
    pub fn new(kernel: Kernel) -> Machine {
        Machine {
            kernel,
            classes: BTreeMap::new(),
            interval_classes: BTreeMap::new(),
            mms: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            intervals: BTreeMap::new(),
            pairs: BTreeMap::new(),
            pending_frees: VecDeque::new(),
            waiters: Vec::new(),
            fail_next_allocation: false,
            fail_next_locking: false,
            warned_mixed: false,
            warned_two_pass: false,
            tasks: 0,
            stopped: None,
            record: Record::default(),
        }
    }

    /// Whose semantics these are.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Does one operation, and then lets everyone go on whom it woke.
    ///
    /// # Errors
    ///
    /// If the operation makes no sense here. The machine is then as it was, and can go on.
    pub fn apply(&mut self, op: &Op) -> Result<Observed, Impossible> {
        if let Some(bug) = self.stopped
            && *op != Op::Finish
        {
            return impossible("op", format!("the kernel has stopped with {}", bug.name()));
        }
        let absent = self.absent(op);
        let task = self.tasks;
        let Outcome { mut observed, show } = self.dispatch(op, task)?;
        if !op.is_definition() {
            self.tasks += 1;
        }
        observed.absent = absent;
        self.record.take_into(&mut observed);
        observed.resumed = self.resume(&mut observed.bug);
        self.stopped = self.stopped.or(observed.bug);
        observed.state =
            show.map(|m| self.state(m).expect("an operation shows an address space that is there"));
        Ok(observed)
    }

    fn dispatch(&mut self, op: &Op, task: u64) -> Result<Outcome, Impossible> {
        match *op {
            Op::Mm { m } => self.new_mm(m),
            Op::Class { c, ref class } => self.new_class(c, class),
            Op::Iclass { c, ref class } => self.new_interval_class(c, class),
            Op::Inject { kind: Injection::Enomem } => {
                self.fail_next_allocation = true;
                Ok(Outcome::default())
            }
            Op::Inject { kind: Injection::Eintr } => {
                self.fail_next_locking = true;
                Ok(Outcome::default())
            }
            Op::Register { s, c, m } => self.register(task, s, c, m),
            Op::Unregister { s } => self.unregister(s),
            Op::Get { c, m, new } => self.get(task, c, m, new),
            Op::Put { s } => self.put(s),
            Op::Synchronize | Op::Gp => self.grace_period(),
            Op::Exit { m } => self.exit(m),
            Op::Mmdrop { m } => self.drop_born_reference(m),
            Op::Start { r, m, change } => self.start(r, m, change),
            Op::End { r } => self.end(r, self.kernel.tlb_runs_at_end),
            Op::EndOnly { r } => self.end(r, false),
            Op::Insert { i, c, m, start, length } => self.insert(task, "insert", i, c, m, start, length),
            Op::InsertLocked { i, c, m, start, length } => {
                self.insert(task, "insert_locked", i, c, m, start, length)
            }
            Op::Remove { i } => self.remove(task, i),
            Op::ReadBegin { i } => self.read_begin(task, i),
            Op::ReadRetry { i, seq } | Op::CheckRetry { i, seq } => self.read_retry(i, seq),
            Op::ClearFlushYoung { m, start, end } => {
                self.clear_young(m, start, end, Callback::ClearFlushYoung)
            }
            Op::ClearYoung { m, start, end } => self.clear_young(m, start, end, Callback::ClearYoung),
            Op::TestYoung { m, address } => self.test_young(m, address),
            Op::Tlb { m, start, end } => self.flush_secondary_tlb(m, start, end),
            Op::ChangePte { m, address } => self.change_pte(m, address),
            Op::HasNotifiers { m } => {
                let truth = self.live_mm(m)?.subs.is_some();
                Ok(Outcome::answer(Ret::Truth(truth)))
            }
            Op::RoCheck { event, vma } => {
                // The whole helper: only a change of the VMA's rights can leave it readable.
                let truth = event == Event::ProtectionVma && vma == Vma::Read;
                Ok(Outcome::answer(Ret::Truth(truth)))
            }
            Op::PokeSeq { m, v } => match &mut self.live_mm_mut(m)?.subs {
                Some(subs) => {
                    subs.seq = v;
                    Ok(Outcome::quiet(m))
                }
                None => impossible("m", format!("address space {m} has no sequence yet")),
            },
            Op::PokeUsers { s, v } => {
                let Ok(users) = u32::try_from(v) else {
                    return impossible("v", "a reference count has 32 bits");
                };
                let m = self.live_subscriber(s)?.mm;
                self.subscriber_mut(s).users = users;
                Ok(Outcome::quiet(m))
            }
            Op::Peek { m } => {
                self.known_mm(m)?;
                Ok(Outcome::quiet(m))
            }
            Op::Finish => {
                let finish = Some(self.finish());
                Ok(Outcome { observed: Observed { finish, ..Observed::default() }, show: None })
            }
        }
    }

    /// What the operation asks for that this kernel does not have. It is then done as well as this
    /// kernel can: a trace replayed as another kernel should go on past the difference.
    fn absent(&self, op: &Op) -> Vec<Absent> {
        let kernel = &self.kernel;
        let mut absent = Vec::new();
        let mut lacks = |has: bool, field, what| {
            if !has {
                absent.push(Absent { field, what });
            }
        };
        match op {
            Op::Iclass { class: IntervalClass { passes, ignore, .. }, .. } => {
                lacks(kernel.has_two_pass || *passes == Passes::One, "two_pass", "two-pass intervals");
                let exclusive = ignore.is_some_and(|ignored| ignored.event == Event::Exclusive);
                lacks(kernel.has_exclusive || !exclusive, "ignore", "EXCLUSIVE");
            }
            Op::Class { class, .. } => {
                lacks(kernel.has_change_pte || !class.has(Callback::ChangePte), "cbs", "change_pte");
            }
            Op::Start { change, .. } => {
                lacks(kernel.has_exclusive || change.event != Event::Exclusive, "event", "EXCLUSIVE");
            }
            Op::EndOnly { .. } => lacks(kernel.has_end_only, "op", "end_only"),
            Op::ChangePte { .. } => lacks(kernel.has_change_pte, "op", "change_pte"),
            Op::RoCheck { .. } => lacks(kernel.has_read_only_check, "op", "ro_check"),
            _ => {}
        }
        absent
    }

    fn new_mm(&mut self, m: u64) -> Result<Outcome, Impossible> {
        if self.mms.contains_key(&m) {
            return impossible("m", format!("address space {m} is there already"));
        }
        let mm = Mm { users: 1, count: 1, born_reference_dropped: false, freed: false, open: 0, subs: None };
        self.mms.insert(m, mm);
        Ok(Outcome::default())
    }

    fn new_class(&mut self, c: u64, class: &Class) -> Result<Outcome, Impossible> {
        if self.classes.contains_key(&c) {
            return impossible("c", format!("class {c} is there already"));
        }
        self.classes.insert(c, class.clone());
        Ok(Outcome::default())
    }

    fn new_interval_class(&mut self, c: u64, class: &IntervalClass) -> Result<Outcome, Impossible> {
        if self.interval_classes.contains_key(&c) {
            return impossible("c", format!("interval class {c} is there already"));
        }
        let mut class = class.clone();
        if !self.kernel.has_two_pass {
            class.passes = Passes::One;
        }
        self.interval_classes.insert(c, class);
        Ok(Outcome::default())
    }

    fn known_mm(&self, m: u64) -> Result<&Mm, Impossible> {
        match self.mms.get(&m) {
            Some(mm) => Ok(mm),
            None => impossible("m", format!("there is no address space {m}")),
        }
    }

    fn live_mm(&self, m: u64) -> Result<&Mm, Impossible> {
        match self.known_mm(m)? {
            mm if mm.freed => impossible("m", format!("address space {m} was freed")),
            mm => Ok(mm),
        }
    }

    fn live_mm_mut(&mut self, m: u64) -> Result<&mut Mm, Impossible> {
        self.live_mm(m)?;
        Ok(self.mm_mut(m))
    }

    fn live_subscriber(&self, s: u64) -> Result<&Subscriber, Impossible> {
        match self.subscribers.get(&s) {
            None => impossible("s", format!("there is no subscriber {s}")),
            Some(subscriber) if subscriber.freed => impossible("s", format!("subscriber {s} was freed")),
            Some(subscriber) => Ok(subscriber),
        }
    }

    fn present_interval(&self, i: u64) -> Result<&Interval, Impossible> {
        match self.intervals.get(&i) {
            // Whoever dropped more references than he had may have lost the address space already.
            Some(interval) if interval.present && !self.mm(interval.mm).freed => Ok(interval),
            _ => impossible("i", format!("interval {i} is not inserted")),
        }
    }

    // Whatever an operation refers to was looked up by the functions above before it did anything, and
    // nothing is ever taken out of these tables.

    fn mm(&self, m: u64) -> &Mm {
        &self.mms[&m]
    }

    fn mm_mut(&mut self, m: u64) -> &mut Mm {
        self.mms.get_mut(&m).expect("looked up before")
    }

    fn subscriber_mut(&mut self, s: u64) -> &mut Subscriber {
        self.subscribers.get_mut(&s).expect("looked up before")
    }

    fn interval_mut(&mut self, i: u64) -> &mut Interval {
        self.intervals.get_mut(&i).expect("looked up before")
    }

    fn class_of(&self, s: u64) -> &Class {
        &self.classes[&self.subscribers[&s].class]
    }

    fn interval_class_of(&self, i: u64) -> &IntervalClass {
        &self.interval_classes[&self.intervals[&i].class]
    }

    /// The hlist subscribers of an address space that implement `callback`, in walk order.
    fn list_with(&self, m: u64, callback: Callback) -> Vec<u64> {
        let list = self.mm(m).subs.as_ref().map_or(&[][..], |subs| &subs.list);
        list.iter().copied().filter(|&s| self.class_of(s).has(callback)).collect()
    }

    fn is_linked(&self, s: u64) -> bool {
        let subs = self.mm(self.subscribers[&s].mm).subs.as_ref();
        subs.is_some_and(|subs| subs.list.contains(&s))
    }

    fn warn(&mut self, warning: Warning) {
        self.record.warnings.push(warning);
    }
}

impl Record {
    fn take_into(&mut self, observed: &mut Observed) {
        let record = std::mem::take(self);
        observed.calls = record.calls;
        observed.warnings = record.warnings;
        observed.bug = record.bug;
        observed.log = record.log;
    }
}
