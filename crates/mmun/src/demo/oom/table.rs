//! The result, way by way.

use std::collections::BTreeMap;
use std::io;

use super::Course;
use super::program::{CACHE, CACHES, Found, LIMIT, MORE};
use crate::cli::{Alarms, Way};
use crate::page::Page;
use crate::report::fit::folded;
use crate::report::paint::Tone;
use crate::report::units::{bytes, count};

const WIDTH: usize = 80;
const LABEL: usize = 28;
const COLUMN: usize = 10;

/// Writes all of it.
pub(super) fn write(page: &mut Page, courses: &[Course]) -> io::Result<()> {
    let question = format!(
        "A program in a control group of {} has {} of caches, which a guest, a graphics processor and io_uring refer to. \
         It allocates {} more.",
        bytes(LIMIT),
        bytes((CACHES * CACHE) as u64),
        bytes(MORE as u64),
    );
    sentences(page, Tone::Plain, &question)?;
    let mut alarm = None;
    for course in courses {
        if alarm.replace(course.alarm) != Some(course.alarm) {
            page.line("")?;
            let head = format!(
                "{:<LABEL$}{:>COLUMN$}{:>COLUMN$}{:>COLUMN$}{:>COLUMN$}{:>COLUMN$}",
                title(course.alarm),
                "survived",
                "killed",
                "freed",
                "refused",
                "in use",
            );
            page.line(&page.paint.tone(Tone::Strong, head.trim_end()))?;
        }
        row(page, course)?;
    }
    page.line("")?;
    verdict(page, courses)
}

fn title(alarm: Alarms) -> &'static str {
    match alarm {
        Alarms::OomControl => "alarm: oom control",
        Alarms::Threshold => "alarm: usage threshold",
        Alarms::Polling | Alarms::All => "alarm: polling",
    }
}

fn name(way: Way) -> &'static str {
    match way {
        Way::Nobody => "no reaper",
        Way::Untold => "discarded, nobody told",
        Way::Reaper => "reaper",
        Way::Busy => "reaper, a quarter in use",
    }
}

fn row(page: &mut Page, course: &Course) -> io::Result<()> {
    let runs = course.endings.len();
    let survivors: Vec<&Found> = course.survivors().collect();
    let of = |number: usize| if number == 0 { "·".to_owned() } else { format!("{number} of {runs}") };
    // The least that was freed, and what was refused at most.
    let freed = survivors.iter().map(|found| found.freed).min().map_or("·".to_owned(), bytes);
    let refused = survivors.iter().map(|found| found.refused).max().map_or("·".to_owned(), count);
    let untouched = survivors.iter().map(|found| found.untouched).min();
    let in_use = match untouched {
        None => "·",
        Some(0) => "none",
        Some(_) => "untouched",
    };
    let line = format!(
        "{:<LABEL$}{:>COLUMN$}{:>COLUMN$}{:>COLUMN$}{:>COLUMN$}{:>COLUMN$}",
        name(course.way),
        of(survivors.len()),
        of(course.killed()),
        freed,
        refused,
        in_use,
    );
    let tone = match (course.faults().is_empty(), survivors.is_empty()) {
        (false, _) => Tone::Bad,
        (true, true) => Tone::Careful,
        (true, false) => Tone::Good,
    };
    page.line(&page.paint.tone(tone, &line))
}

fn verdict(page: &mut Page, courses: &[Course]) -> io::Result<()> {
    let mut faults = BTreeMap::<String, usize>::new();
    for course in courses {
        for fault in course.faults() {
            *faults.entry(format!("{}, {}: {fault}", title(course.alarm), name(course.way))).or_default() +=
                1;
        }
    }
    if faults.is_empty() {
        let text = "Without the reaper it is killed, and also if the caches are discarded behind the back of those who refer \
                    to them: their pages stay pinned. With the reaper it survives; what was in use is untouched, every start \
                    has its end, and all data is right.";
        return sentences(page, Tone::Good, text);
    }
    sentences(page, Tone::Bad, "It did not go as it should.")?;
    faults.iter().try_for_each(|(fault, times)| sentences(page, Tone::Bad, &format!("{times}x {fault}.")))
}

fn sentences(page: &mut Page, tone: Tone, text: &str) -> io::Result<()> {
    let paint = page.paint;
    let width = page.width.unwrap_or(WIDTH).min(WIDTH);
    folded(text, width).iter().try_for_each(|line| page.line(&paint.tone(tone, line)))
}
