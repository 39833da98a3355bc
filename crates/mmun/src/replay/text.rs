//! A replay as a person reads it: each step in one line, below it what differs from the recorded run.

use std::io;

use mmu_notifier_model::{Balance, Kernel, Mismatch, Step, Trace};

use super::golden;
use crate::page::Page;
use crate::report::fit::{folded, keep_front, printable};
use crate::report::paint::Tone;
use crate::report::units::{count, counted};

/// Where a step begins, behind its line number.
const INDENT: usize = 9;

/// What a replay came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub(super) steps: u64,
    /// Steps with something that differs.
    pub(super) differing: u64,
    /// Single observations that differ, also in the header.
    pub(super) observations: u64,
}

/// What several replays came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Total {
    pub(super) traces: u64,
    pub(super) differing: u64,
    pub(super) steps: u64,
    pub(super) unreadable: u64,
}

impl Total {
    pub(super) fn add(&mut self, count: Count) {
        self.traces += 1;
        self.differing += u64::from(count.observations > 0);
        self.steps += count.steps;
    }
}

/// What is replayed, and as what.
pub(super) fn headline(page: &mut Page, trace: &Trace, kernel: Kernel) -> io::Result<()> {
    let header = &trace.header;
    page.line(&page.paint.tone(Tone::Strong, &printable(&header.name)))?;
    if let Some(note) = &header.note {
        folds(page, Tone::Faint, &printable(note))?;
    }
    let recorded = header.kernel;
    let (tone, replayed) = match kernel == recorded {
        true => (Tone::Faint, String::new()),
        false => (Tone::Careful, format!(", replayed as {kernel}")),
    };
    folds(
        page,
        tone,
        &format!("recorded on {recorded} ({}){replayed}", recorded.release.unwrap_or("no release")),
    )?;
    page.line("")
}

/// A sentence, folded on a terminal.
fn folds(page: &mut Page, tone: Tone, sentence: &str) -> io::Result<()> {
    let lines = folded(sentence, page.width.unwrap_or(usize::MAX));
    lines.iter().try_for_each(|line| page.line(&page.paint.tone(tone, line)))
}

/// One step: what it did in one line, and below it all that differs.
pub(super) fn step(page: &mut Page, line: usize, step: &Step<'_>) -> io::Result<()> {
    let did = step.to_string();
    let recorded = format!("{}{}", step.line.op, step.line.seen);
    one_line(page, line, &did, &recorded, &step.mismatches)
}

/// The first line of the trace, if it is not as it should be.
pub(super) fn header(page: &mut Page, mismatch: &Mismatch) -> io::Result<()> {
    one_line(page, mismatch.line, "the header", "the header", std::slice::from_ref(mismatch))
}

fn one_line(
    page: &mut Page,
    line: usize,
    did: &str,
    recorded: &str,
    mismatches: &[Mismatch],
) -> io::Result<()> {
    let room = page.width.unwrap_or(usize::MAX).saturating_sub(INDENT).max(1);
    let paint = page.paint;
    let did = keep_front(&printable(did), room);
    if mismatches.is_empty() {
        return page.line(&format!("{}{did}", paint.tone(Tone::Faint, &format!("{line:>7}  "))));
    }
    let mark = paint.tone(Tone::Bad, &format!("≠{line:>6}  "));
    let (same, differs, same_again) = compared(&did, recorded);
    let differs = if differs.is_empty() { String::new() } else { paint.tone(Tone::Bad, differs) };
    page.line(&format!("{mark}{same}{differs}{same_again}"))?;
    for Mismatch { field, expected, got, .. } in mismatches {
        let difference = printable(&format!("{field}: expected {expected}, got {got}"));
        for line in wrapped(&difference, room.saturating_sub(2).max(1)) {
            page.line(&format!("{:INDENT$}  {}", "", paint.tone(Tone::Careful, &line)))?;
        }
    }
    Ok(())
}

/// Cuts `text` into what begins as `other` does, what differs, and what ends as `other` does.
fn compared<'a>(text: &'a str, other: &str) -> (&'a str, &'a str, &'a str) {
    let (parts, others) = (parts(text), parts(other));
    let shorter = parts.len().min(others.len());
    let before = parts.iter().zip(&others).take_while(|(part, other)| part == other).count();
    let ends = parts.iter().rev().zip(others.iter().rev());
    let after = ends.take(shorter - before).take_while(|(part, other)| part == other).count();
    let length = |parts: &[&str]| parts.iter().map(|part| part.len()).sum::<usize>();
    let (begin, end) = (length(&parts[..before]), length(&parts[..parts.len() - after]));
    (&text[..begin], &text[begin..end], &text[end..])
}

/// What a step did, one thing after the other: each begins with what separates it from the one before.
fn parts(text: &str) -> Vec<&str> {
    const SEPARATORS: [&str; 4] = [": ", ", ", "; ", " = "];
    let mut cuts: Vec<usize> =
        SEPARATORS.iter().flat_map(|separator| text.match_indices(separator)).map(|(at, _)| at).collect();
    cuts.sort_unstable();
    cuts.push(text.len());
    let mut begin = 0;
    let part = |end| &text[std::mem::replace(&mut begin, end)..end];
    cuts.into_iter().map(part).collect()
}

/// What differs, without the steps: for scripts.
pub(super) fn mismatches(page: &mut Page, mismatches: &[Mismatch]) -> io::Result<()> {
    mismatches.iter().try_for_each(|mismatch| {
        let line = printable(&mismatch.to_string());
        page.line(&page.paint.tone(Tone::Careful, &line))
    })
}

/// Whether all is as recorded.
pub(super) fn result(page: &mut Page, kernel: Kernel, of: Count) -> io::Result<()> {
    let steps = counted(of.steps, "step", "steps");
    page.line("")?;
    match of.observations {
        0 => folds(page, Tone::Good, &format!("{steps}, every observation as recorded on {kernel}")),
        observations => {
            let differ = counted(observations, "observation differs", "observations differ");
            let steps = format!("{steps}, {} not as recorded on {kernel}: {differ}", count(of.differing));
            folds(page, Tone::Bad, &steps)
        }
    }
}

/// How every subscriber stands: one line, folded on a terminal.
pub(super) fn balance(page: &mut Page, balances: &[Balance]) -> io::Result<()> {
    const LABEL: &str = "balance ";
    let width = page.width.unwrap_or(usize::MAX);
    let mut line = LABEL.to_owned();
    let mut column = line.len();
    if balances.is_empty() {
        return page.line(&(line + " nobody subscribed"));
    }
    for (at, balance) in balances.iter().enumerate() {
        let (tone, mut text) = stand(balance);
        if at + 1 < balances.len() {
            text.push(';');
        }
        if at > 0 && column + 1 + text.len() > width {
            page.line(&line)?;
            line = " ".repeat(LABEL.len());
            column = LABEL.len();
        }
        column += 1 + text.len();
        line += " ";
        line += &page.paint.tone(tone, &text);
    }
    page.line(&line)
}

/// How one stands, and how good that is.
fn stand(balance: &Balance) -> (Tone, String) {
    let Balance { s, started, failed, ended, .. } = *balance;
    let refused = if failed > 0 { format!(", {} refused", count(failed)) } else { String::new() };
    if !balance.is_paired {
        let ends = if ended > 0 { format!(", {}", counted(ended, "end", "ends")) } else { String::new() };
        return (
            Tone::Faint,
            format!("s{s} {}{refused}{ends}, not paired", counted(started, "start", "starts")),
        );
    }
    let counts =
        format!("s{s} {}{refused}, {}", counted(started, "start", "starts"), counted(ended, "end", "ends"));
    match balance.open() {
        0 => (Tone::Good, format!("{counts}, balanced")),
        open @ 1.. => (Tone::Bad, format!("{counts}, ELEVATED by {open}")),
        open => (Tone::Bad, format!("{counts}, {} too many", -open)),
    }
}

/// What all the traces came to.
pub(super) fn total(page: &mut Page, total: Total) -> io::Result<()> {
    let Total { traces, differing, steps, unreadable } = total;
    let mut line = format!("{}, {}: ", counted(traces, "trace", "traces"), counted(steps, "step", "steps"));
    line += &match differing {
        0 => "every observation as recorded".to_owned(),
        _ => format!("{} not as recorded", counted(differing, "trace", "traces")),
    };
    if unreadable > 0 {
        line += &format!("; {} could not be read", counted(unreadable, "more", "more"));
    }
    let tone = if differing + unreadable == 0 { Tone::Good } else { Tone::Bad };
    page.line(&page.paint.tone(tone, &line))
}

/// The golden traces, one scenario a line: name, kernels, what it is about.
pub(super) fn list(page: &mut Page, traces: &[Trace]) -> io::Result<()> {
    let mut traces: Vec<&Trace> = traces.iter().collect();
    traces.sort_by_key(|trace| (trace.header.random.is_some(), trace.header.name.as_str()));
    for scenario in traces.chunk_by(|one, next| one.header.name == next.header.name) {
        let header = &scenario[0].header;
        let mut kernels = String::new();
        for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.release.is_some()) {
            let is_there = scenario.iter().any(|trace| trace.header.kernel == kernel);
            kernels += &format!("{:<5}", if is_there { golden::short(kernel) } else { "" });
        }
        let about = match (&header.note, &header.random) {
            (Some(note), _) => printable(note),
            (None, Some((_, profile))) => format!("random operations, {}", profile.name()),
            (None, None) => String::new(),
        };
        let line = format!("{:<36} {kernels} {about}", header.name);
        page.line(keep_front(&line, page.width.unwrap_or(usize::MAX)).trim_end())?;
    }
    Ok(())
}

/// Lines of at most `width` characters, broken anywhere: nothing is left out.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(width.max(1)).map(|line| line.iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(is_paired: bool, started: u64, failed: u64, ended: u64) -> String {
        stand(&Balance { s: 3, m: 0, is_paired, started, failed, ended, freed: false }).1
    }

    #[test]
    fn standings() {
        assert_eq!(standing(true, 2, 0, 2), "s3 2 starts, 2 ends, balanced");
        assert_eq!(standing(true, 1, 1, 0), "s3 1 start, 1 refused, 0 ends, ELEVATED by 1");
        assert_eq!(standing(true, 0, 0, 2), "s3 0 starts, 2 ends, 2 too many");
        assert_eq!(standing(false, 2, 1, 0), "s3 2 starts, 1 refused, not paired");
        assert_eq!(standing(false, 0, 0, 1), "s3 0 starts, 1 end, not paired");
    }

    #[test]
    fn wrapping_keeps_everything() {
        assert_eq!(wrapped("abcdef", 4), ["abcd", "ef"]);
        assert_eq!(wrapped("äöü", 2), ["äö", "ü"]);
        assert_eq!(wrapped("ab", 0), ["a", "b"]);
    }

    #[test]
    fn what_differs_is_cut_out() {
        assert_eq!(compared("a = 0: b, c", "a = 0: b, c"), ("a = 0: b, c", "", ""));
        assert_eq!(compared("a = 0: b, c", "a = -11: b, c"), ("a", " = 0", ": b, c"));
        assert_eq!(compared("a: b, c", "a: b"), ("a: b", ", c", ""));
        assert_eq!(compared("a: b, c, c", "a: b, c"), ("a: b, c", ", c", ""));
        assert_eq!(compared("a: b", "a: b, c; d"), ("a: b", "", ""));
        assert_eq!(compared("", "a"), ("", "", ""));
    }
}
