//! The result, side by side.

use std::io;

use super::Course;
use crate::cli::Pairing;
use crate::page::Page;
use crate::report::bar::bar;
use crate::report::fit::folded;
use crate::report::paint::Tone;
use crate::report::units::{count, counted};

/// The widest table; also where nobody knows the width.
const WIDEST: usize = 80;
const LABEL: usize = 11;
/// The longest word in a column, and a space on both sides.
const WORD: usize = " ELEVATED ".len();

/// Writes all of it.
pub(super) fn write(page: &mut Page, options: &Pairing, courses: &[Course; 3]) -> io::Result<()> {
    let width = page.width.unwrap_or(WIDEST).min(WIDEST);
    let most = courses.iter().map(|course| course.last().starts).max().unwrap_or(0);
    let number = 3 + signed(most.cast_signed()).len();
    let column = ((width - width.min(LABEL)) / courses.len()).max(number + WORD);
    let mut table = Table { page, column };
    table.sentences(width, Tone::Plain, &question(options))?;

    table.page.line("")?;
    table.row("attempt", Tone::Faint, courses, |course| (Tone::Strong, course.name.to_owned()))?;
    let most = courses.iter().flat_map(|course| &course.attempts).map(|counts| counts.in_progress()).max();
    let most = most.unwrap_or(0).max(0).unsigned_abs();
    let room = (column - number - 2) as u64;
    let attempts = courses.iter().map(|course| course.attempts.len()).max().unwrap_or(0);
    for attempt in 0..attempts {
        let label = format!("{:>7}", attempt + 1);
        table.row(&label, Tone::Faint, courses, |course| match course.attempts.get(attempt) {
            None => (Tone::Plain, String::new()),
            Some(counts) => {
                let raised = counts.in_progress();
                let bar = bar(raised.max(0).unsigned_abs(), most, room);
                (tone(raised), format!("{:>number$} {bar}", signed(raised)))
            }
        })?;
    }

    table.page.line("")?;
    let plain = |of: u64| (Tone::Plain, format!("{:>number$}", count(of)));
    table.row("starts", Tone::Faint, courses, |course| plain(course.last().starts))?;
    table.row("refused", Tone::Faint, courses, |course| plain(course.refused))?;
    table.row("ends", Tone::Faint, courses, |course| plain(course.last().ends))?;
    table.row("count", Tone::Faint, courses, |course| {
        let raised = course.last().in_progress();
        let word = if raised == 0 { "balanced" } else { "ELEVATED" };
        (tone(raised), format!("{:>number$} {word}", signed(raised)))
    })?;

    table.page.line("")?;
    table.sentences(width, Tone::Plain, &ending(courses))?;
    let (balanced, elevated): (Vec<_>, Vec<_>) =
        courses.iter().partition(|course| course.last().in_progress() == 0);
    for course in elevated {
        table.sentences(width, Tone::Bad, &verdict(course))?;
    }
    let names: Vec<_> = balanced.iter().map(|course| course.name).collect();
    match names.len() {
        0 => Ok(()),
        _ => table.sentences(width, Tone::Good, &format!("{}: every start has its end.", names.join(", "))),
    }
}

fn question(options: &Pairing) -> String {
    format!(
        "An OOM kill: the reaper takes {} from the victim, without waiting, and tries {} at most. KVM counts \
         starts minus ends; while the count is not 0 it serves no page fault of the guest. A driver refuses {}. \
         KVM's count after each attempt:",
        counted(options.vmas.into(), "mapping", "mappings"),
        if options.attempts == 1 { "once".to_owned() } else { format!("{} times", options.attempts) },
        match options.refuse {
            1 => "every start".to_owned(),
            n => format!("one start in {}", count(n.into())),
        },
    )
}

/// The reaper does the same everywhere: the same starts are refused.
fn ending(courses: &[Course; 3]) -> String {
    let attempts = counted(courses[0].attempts.len() as u64, "attempt", "attempts");
    match (courses[0].success, courses[0].refused) {
        (true, 0) => format!("The reaper was done after {attempts}: nobody refused."),
        (true, _) => format!("The reaper was done after {attempts}."),
        (false, _) => format!("The reaper gave up after {attempts}."),
    }
}

fn verdict(course: &Course) -> String {
    format!(
        "{}: {} without an end, for ever. KVM's count never comes back to 0, and every page fault of the \
         guest is tried again without end.",
        course.name,
        counted(course.last().in_progress().unsigned_abs(), "start is", "starts are"),
    )
}

fn tone(raised: i64) -> Tone {
    if raised == 0 { Tone::Good } else { Tone::Bad }
}

fn signed(number: i64) -> String {
    let size = count(number.unsigned_abs());
    match number {
        0 => size,
        1.. => format!("+{size}"),
        _ => format!("-{size}"),
    }
}

struct Table<'a> {
    page: &'a mut Page,
    column: usize,
}

impl Table<'_> {
    fn row(
        &mut self,
        label: &str,
        label_tone: Tone,
        courses: &[Course; 3],
        cell: impl Fn(&Course) -> (Tone, String),
    ) -> io::Result<()> {
        let paint = self.page.paint;
        let mut line = paint.tone(label_tone, &format!("{label:<LABEL$}"));
        let cells: Vec<_> = courses.iter().map(cell).collect();
        let last = cells.iter().rposition(|(_, text)| !text.trim_end().is_empty());
        for (at, (tone, text)) in cells.iter().enumerate().take(last.map_or(0, |last| last + 1)) {
            let text = text.trim_end();
            line += &paint.tone(*tone, text);
            if Some(at) != last {
                line += &" ".repeat(self.column.saturating_sub(text.chars().count()));
            }
        }
        self.page.line(&line)
    }

    fn sentences(&mut self, width: usize, tone: Tone, text: &str) -> io::Result<()> {
        folded(text, width).iter().try_for_each(|line| self.page.line(&self.page.paint.tone(tone, line)))
    }
}
