//! Replaying a trace: every line is applied to a machine, and everything seen is compared.
//!
//! A mismatch stops nothing. The machine goes on from *its* state, so that a trace of one kernel can be
//! replayed under the semantics of another, and each step says what differs.

mod difference;

use std::fmt;
use std::slice;

use serde_json::Value;

use crate::kernel::Kernel;
use crate::observe::Observed;
use crate::state::{Impossible, Machine};
use crate::trace::{Line, Trace, Trait};

/// Something that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// What the trace was called when it was read.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// Where in the line: `st.seq`, `cb[1].a[0]`.
    pub field: String,
    /// What the trace has there, as JSON, or `nothing`.
    pub expected: String,
    /// What the machine did.
    pub got: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { file, line, field, expected, got } = self;
        write!(f, "{file}:{line}: {field}: expected {expected}, got {got}")
    }
}

/// One line of a trace, replayed.
#[derive(Clone, Debug)]
pub struct Step<'trace> {
    /// The operation and what was recorded of it.
    pub line: &'trace Line,
    /// What the machine did.
    pub got: Result<Observed, Impossible>,
    /// What differs; empty if all is as recorded.
    pub mismatches: Vec<Mismatch>,
}

/// The step in one line: what was done, what it returned, whom it called, who waits and goes on.
impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.line.op)?;
        match &self.got {
            Ok(observed) => write!(f, "{observed}"),
            Err(impossible) => write!(f, ": impossible: {impossible}"),
        }
    }
}

/// Starts and ends that an hlist subscriber saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Which subscriber.
    pub s: u64,
    /// Of which address space.
    pub m: u64,
    /// It has both start and end; if not, they need not balance.
    pub is_paired: bool,
    /// Starts that succeeded.
    pub started: u64,
    /// Starts that failed.
    pub failed: u64,
    /// Ends.
    pub ended: u64,
    /// The object was freed.
    pub freed: bool,
}

impl Balance {
    /// Starts that wait for an end: what KVM counts as invalidations in progress. Below 0, ends came
    /// that no start asked for.
    pub fn open(&self) -> i128 {
        i128::from(self.started) - i128::from(self.ended)
    }
}

/// `s0: 3 starts, 1 refused, 2 ends: +1`
impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}: {} starts, {} refused, {} ends", self.s, self.started, self.failed, self.ended)?;
        if self.is_paired { write!(f, ": {:+}", self.open()) } else { f.write_str(": not paired") }
    }
}

/// A replay under way: an iterator over its steps.
///
/// # Examples
///
/// ```
/// use mmu_notifier_model::{Kernel, Replay, Trace};
///
/// let text = concat!(
///     r#"{"format":1,"kernel":"6.12.117","variant":"post-fix-tlb-split","name":"nobody","traits":[]}"#, "\n",
///     r#"{"n":0,"op":"mm","m":0}"#, "\n",
///     r#"{"n":1,"op":"has_notifiers","m":0,"ret":true}"#, "\n",
///     r#"{"n":2,"op":"finish","stuck":[],"open":[],"mms":[{"m":0,"users":1,"count":1,"subs":null}]}"#, "\n",
/// );
/// let trace = Trace::read("nobody.jsonl", text)?;
/// let differs: Vec<_> = Replay::new(&trace, Kernel::LINUX_7_2).flat_map(|step| step.mismatches).collect();
/// assert_eq!(differs.len(), 1);
/// assert_eq!(differs[0].to_string(), "nobody.jsonl:3: ret: expected true, got false");
/// # Ok::<(), mmu_notifier_model::TraceError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Replay<'trace> {
    trace: &'trace Trace,
    lines: slice::Iter<'trace, Line>,
    machine: Machine,
}

impl<'trace> Replay<'trace> {
    /// Begins a replay under the semantics of `kernel`, which need not be the one recorded.
    pub fn new(trace: &'trace Trace, kernel: Kernel) -> Replay<'trace> {
        Replay { trace, lines: trace.lines.iter(), machine: Machine::new(kernel) }
    }

    /// What is wrong with the header: traits that the recorded lines do not have, or have beside it. It
    /// does not depend on the kernel.
    pub fn header(&self) -> Option<Mismatch> {
        let traits = self.trace.traits();
        (traits != self.trace.header.traits).then(|| Mismatch {
            file: self.trace.file.clone(),
            line: 1,
            field: "traits".to_owned(),
            expected: Trait::list(&self.trace.header.traits).to_string(),
            got: Trait::list(&traits).to_string(),
        })
    }

    /// The machine as the steps so far left it.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    fn compare(&self, line: &Line, got: &Result<Observed, Impossible>) -> Vec<Mismatch> {
        let mismatch = |field: String, expected: String, got: String| Mismatch {
            file: self.trace.file.clone(),
            line: line.number,
            field,
            expected,
            got,
        };
        let observed = match got {
            Ok(observed) => observed,
            Err(Impossible { field, why }) => {
                let possible = "an operation that is possible".to_owned();
                return vec![mismatch((*field).to_owned(), possible, why.clone())];
            }
        };
        let kernel = self.machine.kernel();
        let mut mismatches: Vec<Mismatch> = observed
            .absent
            .iter()
            .map(|absent| {
                mismatch(absent.field.to_owned(), absent.what.to_owned(), format!("{kernel} has none"))
            })
            .collect();
        let recorded = Value::Object(line.seen.fields());
        let replayed = Value::Object(observed.fields());
        difference::each(&recorded, &replayed, &mut |field, expected, got| {
            mismatches.push(mismatch(field, expected, got));
        });
        mismatches
    }
}

impl<'trace> Iterator for Replay<'trace> {
    type Item = Step<'trace>;

    fn next(&mut self) -> Option<Step<'trace>> {
        let line = self.lines.next()?;
        let got = self.machine.apply(&line.op);
        let mismatches = self.compare(line, &got);
        Some(Step { line, got, mismatches })
    }
}

/// What a whole replay came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Everything that differs, in the order of the lines.
    pub mismatches: Vec<Mismatch>,
    /// How the subscribers stand at the end.
    pub balances: Vec<Balance>,
}

/// Replays a trace from beginning to end.
pub fn replay(trace: &Trace, kernel: Kernel) -> Report {
    let mut replay = Replay::new(trace, kernel);
    let mut mismatches: Vec<Mismatch> = replay.header().into_iter().collect();
    for step in replay.by_ref() {
        mismatches.extend(step.mismatches);
    }
    Report { mismatches, balances: replay.machine().balances() }
}
