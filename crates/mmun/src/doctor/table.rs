//! The diagnosis for people.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use mmu_notifier_primary::probe::SHOTS;

use super::Diagnosis;
use super::findings::{Finding, Mode, Origin};
use crate::page::Page;
use crate::report::fit::{folded, keep_back, printable};
use crate::report::paint::{Paint, Tone};
use crate::report::units::{counted, duration};

const WIDTH: usize = 80;
const LABEL: usize = 25;
const CELL: usize = 5;
/// What stands in front of a source.
const FROM: usize = 8;

/// From where a call is made, and how that is watched.
#[derive(Clone, Copy)]
struct Column {
    head: &'static str,
    is: &'static str,
    origin: Origin,
    mode: Mode,
}

fn columns(diagnosis: &Diagnosis) -> Vec<Column> {
    let plain =
        Origin::ALL.map(|origin| Column { head: origin.name(), is: origin.is(), origin, mode: Mode::Plain });
    // What is rewritten in one mode is in the other: only what is not can be different.
    let made = |head, is, mode| Column { head, is, origin: Origin::Made, mode };
    let strict = made("trap", "the same, by mmun run --strict", Mode::Strict);
    let net = made("net", "the same, in a net (userfaultfd)", Mode::Net);
    let there = |column: &Column| diagnosis.modes.iter().any(|(mode, _)| *mode == column.mode);
    plain.into_iter().chain([strict, net].into_iter().filter(there)).collect()
}

pub fn write(page: &mut Page, diagnosis: &Diagnosis) -> io::Result<()> {
    let columns = columns(diagnosis);
    calls(page, diagnosis, &columns)?;
    sources(page, diagnosis, &columns)?;
    alone(page, diagnosis)?;
    machine(page, diagnosis)?;
    verdict(page, diagnosis)
}

/// Whether a call was announced before, and after.
fn marks(paint: Paint, finding: Option<&Finding>, covered: bool, width: usize) -> String {
    let Some(finding) = finding else { return format!("{:<width$}", "") };
    if !finding.changes && finding.starts == 0 {
        return paint.tone(Tone::Faint, &format!("{:<width$}", "··"));
    }
    let mark = |told: bool| if told { '✓' } else { '✗' };
    let text: String = match finding.after {
        Some(after) => [mark(finding.before), mark(after)].iter().collect(),
        None => [mark(finding.before), '–'].iter().collect(),
    };
    let tone = match (finding.is_delivered(), covered) {
        (true, _) => Tone::Good,
        (false, true) => Tone::Bad,
        (false, false) => Tone::Careful,
    };
    paint.tone(tone, &format!("{text:<width$}"))
}

fn calls(page: &mut Page, diagnosis: &Diagnosis, columns: &[Column]) -> io::Result<()> {
    let paint = page.paint;
    page.line("Each call that takes memory away or changes it: announced before, and after?")?;
    page.line("")?;
    let heads: String = columns.iter().map(|column| format!("{:<CELL$}", column.head)).collect();
    let costs =
        if diagnosis.times.is_empty() { String::new() } else { format!(" {:>7} {:>8}", "alone", "more") };
    let head = format!("  {:<LABEL$}{heads}{costs}", "call");
    page.line(&paint.tone(Tone::Strong, &head))?;
    let (mut quiet, mut starred) = (BTreeSet::new(), false);
    for shot in SHOTS {
        let find = |column: &Column| diagnosis.find(column.mode, column.origin, shot.name);
        let some = || columns.iter().filter_map(find);
        if some().next().is_none() {
            page.line(
                &paint.tone(Tone::Careful, &format!("  {:<LABEL$}cannot be made on this machine", shot.name)),
            )?;
            continue;
        }
        if some().all(|finding| !finding.changes && finding.starts == 0) {
            quiet.insert(shot.name);
            continue;
        }
        let cells = columns.iter().map(|column| {
            let covered = column.mode.covers(column.origin);
            marks(paint, find(column), covered, CELL)
        });
        let cells: String = cells.collect();
        let mut watched = columns.iter().filter(|column| column.mode != Mode::Net).filter_map(find);
        let refused = watched.find_map(|finding| finding.errno);
        let note = refused.filter(|_| !shot.name.ends_with("failing")).map_or("", |_| "*");
        starred |= !note.is_empty();
        let cost = cost(diagnosis, Mode::Plain, shot.name);
        let line = format!("  {:<LABEL$}{cells}{cost}", format!("{}{note}", shot.name));
        page.line(line.trim_end())?;
    }
    if starred {
        let text = "  * refused by this kernel, and announced all the same";
        page.line(&paint.tone(Tone::Faint, text))?;
    }
    if !diagnosis.times.is_empty() {
        let text = "  alone: unwatched; more: watched; both medians, and a minus is noise";
        page.line(&paint.tone(Tone::Faint, text))?;
    }
    page.line("")?;
    let text = format!(
        "  {} not announced, as they take nothing away",
        counted(quiet.len() as u64, "call is", "calls are")
    );
    page.line(&text)?;
    page.line("")?;
    let head = format!("  {:<LABEL$}{:<CELL$}{}", "done for the program", "", "by");
    page.line(&paint.tone(Tone::Strong, &head))?;
    for finding in
        diagnosis.modes.iter().filter(|(mode, _)| *mode == Mode::Plain).flat_map(|(_, found)| &found.others)
    {
        let by = finding.site.as_ref().map_or(String::new(), |site| name(&site.file));
        page.line(&format!("  {:<LABEL$}{}{by}", finding.event, marks(paint, Some(finding), true, CELL)))?;
    }
    page.line("")
}

/// What a call takes without anybody watching, and how much more with.
fn cost(diagnosis: &Diagnosis, mode: Mode, event: &str) -> String {
    match (diagnosis.watched(mode, event), diagnosis.alone(event)) {
        (Some(watched), Some(alone)) => {
            let sign = if watched < alone { '-' } else { '+' };
            format!(" {:>7} {:>8}", duration(alone), format!("{sign}{}", duration(watched.abs_diff(alone))))
        }
        _ => String::new(),
    }
}

/// The last part of a path.
fn name(file: &str) -> String {
    let file = file.strip_prefix("/memfd:").and_then(|file| file.split(' ').next()).unwrap_or(file);
    let name = Path::new(file).file_name().map_or(file.into(), |name| name.to_string_lossy());
    printable(&name)
}

/// By which rewritten instructions, for each origin.
fn sources(page: &mut Page, diagnosis: &Diagnosis, columns: &[Column]) -> io::Result<()> {
    let paint = page.paint;
    page.line(&paint.tone(Tone::Strong, &format!("  {:<FROM$}{:<33}{}", "from", "", "seen by")))?;
    for column in columns {
        let findings = diagnosis.modes.iter().filter(|(mode, _)| *mode == column.mode);
        let findings = findings.flat_map(|(_, found)| &found.calls);
        let changes: Vec<_> =
            findings.filter(|finding| finding.origin == Some(column.origin) && finding.changes).collect();
        let files: BTreeSet<_> =
            changes.iter().filter_map(|finding| finding.site.as_ref().map(|site| name(&site.file))).collect();
        let covered = column.mode.covers(column.origin);
        let (tone, by) = if column.mode == Mode::Net {
            (Tone::Careful, "the kernel, of some, mostly late".to_owned())
        } else if files.is_empty() {
            match covered {
                true => (Tone::Bad, "nobody".to_owned()),
                false => (Tone::Careful, "nobody: no file says where they are".to_owned()),
            }
        } else if files.iter().all(String::is_empty) {
            (Tone::Good, format!("the kernel traps them{}", trap_cost(diagnosis)))
        } else {
            let files: Vec<_> = files.into_iter().collect();
            (Tone::Good, format!("call sites rewritten in {}", files.join(", ")))
        };
        let by = paint.tone(tone, &keep_back(&by, WIDTH - FROM - 35));
        page.line(&format!("  {:<FROM$}{:<33}{by}", column.head, column.is))?;
    }
    Ok(())
}

/// What an `munmap` costs more if it is trapped.
fn trap_cost(diagnosis: &Diagnosis) -> String {
    match (diagnosis.watched(Mode::Strict, "munmap"), diagnosis.alone("munmap")) {
        (Some(trapped), Some(alone)) => format!(", +{} each", duration(trapped.saturating_sub(alone))),
        _ => String::new(),
    }
}

/// What becomes of a program without a dynamic loader.
fn alone(page: &mut Page, diagnosis: &Diagnosis) -> io::Result<()> {
    let paint = page.paint;
    let (tone, by) = match &diagnosis.alone.run {
        Some(Ok(true)) => (Tone::Good, "the object inside of it"),
        Some(Err(_)) => (Tone::Careful, "nobody: mmun run refuses it"),
        _ => (Tone::Bad, "nobody"),
    };
    page.line(&format!("  {:<FROM$}{:<33}{}", "static", "a program without a loader", paint.tone(tone, by)))?;
    let (tone, by) = match diagnosis.alone.started {
        true => (Tone::Good, "the object inside of it"),
        false => (Tone::Careful, "nobody: nothing can be preloaded"),
    };
    page.line(&format!("  {:<FROM$}{:<33}{}", "", "one that a program starts", paint.tone(tone, by)))?;
    page.line("")
}

fn machine(page: &mut Page, diagnosis: &Diagnosis) -> io::Result<()> {
    let paint = page.paint;
    page.line(&paint.tone(Tone::Strong, "  this machine"))?;
    for item in &diagnosis.machine {
        let mark = if item.there { paint.tone(Tone::Good, "✓") } else { paint.tone(Tone::Careful, "✗") };
        let found = folded(&printable(&item.found), WIDTH - LABEL - 4);
        page.line(&format!("  {mark} {:<LABEL$}{}", item.name, found[0]))?;
        for line in &found[1..] {
            page.line(&format!("    {:<LABEL$}{line}", ""))?;
        }
        let Some(remedy) = &item.remedy else { continue };
        let width = page.width.unwrap_or(WIDTH).min(WIDTH) - 6;
        page.line(&paint.tone(Tone::Faint, &format!("      for {}:", item.used_for)))?;
        for line in folded(remedy, width) {
            page.line(&format!("      {line}"))?;
        }
    }
    page.line("")
}

fn verdict(page: &mut Page, diagnosis: &Diagnosis) -> io::Result<()> {
    let paint = page.paint;
    for (_, findings) in &diagnosis.modes {
        for note in &findings.notes {
            for line in folded(&printable(note), page.width.unwrap_or(WIDTH).min(WIDTH)) {
                page.line(&paint.tone(Tone::Careful, &line))?;
            }
        }
    }
    let wrong = diagnosis.wrong();
    for sentence in &wrong {
        for line in folded(&printable(sentence), page.width.unwrap_or(WIDTH).min(WIDTH)) {
            page.line(&paint.tone(Tone::Bad, &line))?;
        }
    }
    match wrong.len() {
        0 => page
            .line(&paint.tone(Tone::Good, "Everything that should be announced here is, before and after.")),
        some => {
            page.line(&paint.tone(
                Tone::Bad,
                &format!("Not as it should be: {}.", counted(some as u64, "thing", "things")),
            ))
        }
    }
}
