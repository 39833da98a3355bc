//! Traces: one line of JSON for each operation, its inputs and all that was seen of it.
//!
//! Reading is strict. A field that is unknown, missing, of the wrong type or out of range is an error
//! that names the file, the line and the field, because a field that is read past is an observation
//! that is not compared. What the format means is written down in `docs/golden.md`.
//!
//! | file | what |
//! | --- | --- |
//! | `trace.rs` | the header, the file as a whole, errors |
//! | `fields.rs` | one JSON object, field by field |
//! | `inputs.rs` | an operation and its inputs |
//! | `observations.rs` | what was seen of it |
//! | `value.rs` | both again as JSON, to compare and to write |

mod fields;
mod inputs;
mod observations;
mod value;

use std::collections::BTreeSet;
use std::fmt;

use crate::kernel::Kernel;
use crate::observe::{CallKind, MmState, Observed, Ret};
use crate::op::{Blocking, Op, Passes};
use crate::state::{Impossible, Machine};
use fields::{Fault, Fields, Read, fault, word};

/// A recorded run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What the user calls the file.
    pub file: String,
    /// The first line.
    pub header: Header,
    /// The other lines.
    pub lines: Vec<Line>,
}

/// What a trace says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The kernel it was recorded on.
    pub kernel: Kernel,
    /// The scenario.
    pub name: String,
    /// What the scenario is about.
    pub note: Option<String>,
    /// A generated scenario: from which number, of which kind.
    pub random: Option<(u64, Profile)>,
    /// The scenario breaks a rule on purpose.
    pub misuse: bool,
    /// What kinds of thing happen in it.
    pub traits: BTreeSet<Trait>,
}

/// Which operations a generated scenario prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Profile {
    General,
    Oom,
    Interval,
    Lifecycle,
}

impl Profile {
    const ALL: [Profile; 4] = [Profile::General, Profile::Oom, Profile::Interval, Profile::Lifecycle];

    /// The trace format's name.
    pub const fn name(self) -> &'static str {
        match self {
            Profile::General => "general",
            Profile::Oom => "oom",
            Profile::Interval => "interval",
            Profile::Lifecycle => "lifecycle",
        }
    }
}

/// Something noteworthy that happens in a trace. They sort as the format wants them: by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trait {
    /// A subscriber failed a blockable start.
    BlockableFailure,
    /// Someone had to wait.
    Blocked,
    /// The kernel stopped with a BUG.
    Bug,
    /// A failure was asked for.
    Inject,
    /// An hlist subscriber refused after the interval side was entered.
    IntervalLeak,
    /// A pair was ended that is not open.
    Misuse,
    /// The harness wrote a field.
    Poke,
    /// A non-blocking start failed.
    Refused,
    /// A waiter never went on.
    Stuck,
    /// Two-pass intervals were used.
    TwoPass,
    /// The kernel warned.
    Warn,
}

impl Trait {
    const ALL: [Trait; 11] = [
        Trait::BlockableFailure,
        Trait::Blocked,
        Trait::Bug,
        Trait::Inject,
        Trait::IntervalLeak,
        Trait::Misuse,
        Trait::Poke,
        Trait::Refused,
        Trait::Stuck,
        Trait::TwoPass,
        Trait::Warn,
    ];

    /// The trace format's name.
    pub const fn name(self) -> &'static str {
        match self {
            Trait::BlockableFailure => "blockable_failure",
            Trait::Blocked => "blocked",
            Trait::Bug => "bug",
            Trait::Inject => "inject",
            Trait::IntervalLeak => "interval_leak",
            Trait::Misuse => "misuse",
            Trait::Poke => "poke",
            Trait::Refused => "refused",
            Trait::Stuck => "stuck",
            Trait::TwoPass => "two_pass",
            Trait::Warn => "warn",
        }
    }
}

/// One operation and what was seen of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its line in the file, counted from 1 for the header.
    pub number: usize,
    /// What was done.
    pub op: Op,
    /// What was seen.
    pub seen: Observed,
}

/// Why something is not a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceError {
    /// The name that the reader was given.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The field, as a path from the beginning of the line; empty if the whole line is wrong.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TraceError { file, line, field, problem } = self;
        match field.as_str() {
            "" => write!(f, "{file}:{line}: {problem}"),
            field => write!(f, "{file}:{line}: {field}: {problem}"),
        }
    }
}

impl std::error::Error for TraceError {}

impl Trace {
    /// Reads a trace; `file` is what errors call it.
    ///
    /// # Errors
    ///
    /// At the first thing that the format does not allow.
    ///
    /// # Examples
    ///
    /// ```
    /// use mmu_notifier_model::Trace;
    ///
    /// let error = Trace::read("mine.jsonl", "{\"format\":2}\n").unwrap_err();
    /// assert_eq!(error.to_string(), "mine.jsonl:1: format: 2 is not a format that is known; 1 is");
    /// ```
    pub fn read(file: &str, text: &str) -> Result<Trace, TraceError> {
        let at = |line: usize| {
            move |Fault { field, problem }| TraceError { file: file.to_owned(), line, field, problem }
        };
        let mut texts = text.lines().enumerate().map(|(before, text)| (before + 1, text));
        let Some((_, first)) = texts.next() else {
            return fault("", "the file is empty: a trace begins with a header").map_err(at(1));
        };
        let header = Header::read(first).map_err(at(1))?;
        let mut lines: Vec<Line> = Vec::new();
        for (number, text) in texts {
            if let Some(last) = lines.last()
                && (last.op == Op::Finish || last.seen.bug.is_some())
            {
                return fault("", "the trace goes on after its end").map_err(at(number));
            }
            let line = Line::read(number, text).map_err(at(number))?;
            lines.push(line);
        }
        match lines.last() {
            Some(last) if last.op == Op::Finish || last.seen.bug.is_some() => {
                Ok(Trace { file: file.to_owned(), header, lines })
            }
            _ => fault("", "the trace is truncated: it ends with a finish line or a bug")
                .map_err(at(lines.len() + 1)),
        }
    }

    /// Whether every operation can be done on the kernel that the trace says it was recorded on.
    ///
    /// What a recorded run refers to is there. A trace that puts a subscriber which nobody registered is
    /// nonsense, whatever was seen of it; [`read`](Trace::read), which looks at one line at a time, does not
    /// notice.
    ///
    /// # Errors
    ///
    /// At the first operation that is impossible.
    ///
    /// ```
    /// # use mmu_notifier_model::Trace;
    /// let text = concat!(
    ///     r#"{"format":1,"kernel":"6.12.117","variant":"post-fix-tlb-split","name":"nobody","traits":[]}"#, "\n",
    ///     r#"{"n":0,"op":"tlb","m":7,"start":0,"end":4096}"#, "\n",
    ///     r#"{"n":1,"op":"finish","stuck":[],"open":[],"mms":[]}"#, "\n",
    /// );
    /// let error = Trace::read("mine.jsonl", text)?.check().unwrap_err();
    /// assert_eq!(error.to_string(), "mine.jsonl:2: m: there is no address space 7");
    /// # Ok::<(), mmu_notifier_model::TraceError>(())
    /// ```
    pub fn check(&self) -> Result<(), TraceError> {
        let mut machine = Machine::new(self.header.kernel);
        for line in &self.lines {
            machine.apply(&line.op).map_err(|Impossible { field, why }| TraceError {
                file: self.file.clone(),
                line: line.number,
                field: field.to_owned(),
                problem: why,
            })?;
        }
        Ok(())
    }

    /// The traits that the recorded lines have. The header says the same, or is wrong.
    pub fn traits(&self) -> BTreeSet<Trait> {
        self.lines.iter().flat_map(Line::traits).collect()
    }

    /// The trace as text, one line for each operation.
    pub fn to_text(&self) -> String {
        let mut text = self.header.to_value().to_string();
        for line in &self.lines {
            text.push('\n');
            text.push_str(&line.to_value().to_string());
        }
        text.push('\n');
        text
    }
}

/// Cuts a concatenation of traces at their headers.
///
/// ```
/// let both = "{\"format\":1,\"a\":0}\n{\"n\":0}\n{\"format\":1,\"b\":0}\n";
/// assert_eq!(mmu_notifier_model::split(both), ["{\"format\":1,\"a\":0}\n{\"n\":0}\n", "{\"format\":1,\"b\":0}\n"]);
/// ```
pub fn split(text: &str) -> Vec<&str> {
    let mut cuts: Vec<usize> = text.match_indices("\n{\"format\":").map(|(at, _)| at + 1).collect();
    cuts.push(text.len());
    let mut begin = 0;
    let mut traces = Vec::new();
    for cut in cuts {
        traces.push(&text[begin..cut]);
        begin = cut;
    }
    traces
}

impl Header {
    fn read(text: &str) -> Read<Header> {
        let mut fields = Fields::of_line(text)?;
        if !fields.has("format") {
            return fields.fault("format", "the field is missing: a trace begins with a header");
        }
        match fields.unsigned("format")? {
            1 => {}
            other => return fields.fault("format", format!("{other} is not a format that is known; 1 is")),
        }
        let release = fields.text("kernel")?;
        let Some(kernel) = Kernel::of_release(&release) else {
            let known: Vec<_> = Kernel::ALL.iter().filter_map(|kernel| kernel.release).collect();
            return fields.fault("kernel", format!("{release:?} is none of {}", known.join(", ")));
        };
        let variant = fields.text("variant")?;
        if Some(variant.as_str()) != kernel.variant {
            return fields.fault("variant", format!("{variant:?} is not the variant of {release}"));
        }
        let name = fields.text("name")?;
        if name.is_empty() {
            return fields.fault("name", "the scenario has no name");
        }
        let note = if fields.has("note") { Some(fields.text("note")?) } else { None };
        let random = match fields.has("seed") || fields.has("profile") {
            true => Some((fields.unsigned("seed")?, fields.word("profile", &Profile::ALL, Profile::name)?)),
            false => None,
        };
        let misuse = fields.flag("misuse", true)?;
        let listed =
            fields.full_list("traits", |field, value| word(field, &value, &Trait::ALL, Trait::name))?;
        if !listed.is_sorted_by(|one, next| one < next) {
            return fields.fault("traits", "they are not sorted, or one is there twice");
        }
        fields.end()?;
        Ok(Header { kernel, name, note, random, misuse, traits: listed.into_iter().collect() })
    }
}

impl Line {
    fn read(number: usize, text: &str) -> Read<Line> {
        let mut fields = Fields::of_line(text)?;
        let expected = number as u64 - 2;
        match fields.unsigned("n")? {
            n if n == expected => {}
            n => return fields.fault("n", format!("the operation of this line is {expected}, not {n}")),
        }
        let op = inputs::read(&mut fields)?;
        let seen = observations::read(&mut fields, &op)?;
        fields.end()?;
        Ok(Line { number, op, seen })
    }

    fn traits(&self) -> Vec<Trait> {
        let seen = &self.seen;
        let mut traits = Vec::new();
        let mut has = |condition: bool, which| traits.extend(condition.then_some(which));
        has(seen.blocked.is_some(), Trait::Blocked);
        has(seen.bug.is_some(), Trait::Bug);
        has(seen.misuse, Trait::Misuse);
        has(
            !seen.warnings.is_empty() || seen.resumed.iter().any(|r| !r.seen.warnings.is_empty()),
            Trait::Warn,
        );
        has(seen.finish.as_ref().is_some_and(|finish| !finish.stuck.is_empty()), Trait::Stuck);
        has(matches!(self.op, Op::Inject { .. }), Trait::Inject);
        has(matches!(self.op, Op::PokeSeq { .. } | Op::PokeUsers { .. }), Trait::Poke);
        has(matches!(&self.op, Op::Iclass { class, .. } if class.passes != Passes::One), Trait::TwoPass);
        if let Op::Start { change, .. } = &self.op {
            let failed =
                seen.calls.iter().any(|call| call.kind == CallKind::Start && call.ret != Some(Ret::Code(0)));
            let refused = change.blocking == Blocking::Forbidden && seen.ret != Some(Ret::Code(0));
            let entered =
                matches!(&seen.state, Some(MmState::Live { subs: Some(subs), .. }) if subs.has_itree);
            has(change.blocking == Blocking::Allowed && failed, Trait::BlockableFailure);
            has(refused, Trait::Refused);
            has(refused && failed && entered, Trait::IntervalLeak);
        }
        traits
    }
}
