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
const CELL: usize = 7;

pub fn write(page: &mut Page, diagnosis: &Diagnosis) -> io::Result<()> {
    for (mode, _) in &diagnosis.modes {
        calls(page, diagnosis, *mode)?;
        sources(page, diagnosis, *mode)?;
    }
    machine(page, diagnosis)?;
    verdict(page, diagnosis)
}

/// Whether a call was announced before, and after.
fn marks(paint: Paint, finding: Option<&Finding>, covered: bool, width: usize) -> String {
    let Some(finding) = finding else { return format!("{:<width$}", "") };
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

fn calls(page: &mut Page, diagnosis: &Diagnosis, mode: Mode) -> io::Result<()> {
    let paint = page.paint;
    page.line("Each call that takes memory away or changes it: announced before, and after?")?;
    page.line("")?;
    let heads: String = Origin::ALL.iter().map(|origin| format!("{:<CELL$}", origin.name())).collect();
    let costs =
        if diagnosis.times.is_empty() { String::new() } else { format!(" {:>7} {:>9}", "alone", "more") };
    let head = format!("  {:<LABEL$}{heads}{costs}", "call");
    page.line(&paint.tone(Tone::Strong, &head))?;
    let (mut quiet, mut starred) = (BTreeSet::new(), false);
    for shot in SHOTS {
        let found = Origin::ALL.map(|origin| (origin, diagnosis.find(mode, origin, shot.name)));
        let some = || found.iter().filter_map(|(_, finding)| *finding);
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
        let cells: String = found
            .iter()
            .map(|(origin, finding)| marks(paint, *finding, mode.covers(*origin), CELL))
            .collect();
        let refused = some().find_map(|finding| finding.errno);
        let note = refused.filter(|_| !shot.name.ends_with("failing")).map_or("", |_| "*");
        starred |= !note.is_empty();
        let cost = cost(diagnosis, mode, shot.name);
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
        diagnosis.modes.iter().filter(|(other, _)| *other == mode).flat_map(|(_, found)| &found.others)
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
            format!(" {:>7} {:>9}", duration(alone), format!("{sign}{}", duration(watched.abs_diff(alone))))
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
fn sources(page: &mut Page, diagnosis: &Diagnosis, mode: Mode) -> io::Result<()> {
    let paint = page.paint;
    page.line(&paint.tone(Tone::Strong, &format!("  {:<CELL$}{:<33}{}", "from", "", "seen by")))?;
    for origin in Origin::ALL {
        let findings =
            diagnosis.modes.iter().filter(|(other, _)| *other == mode).flat_map(|(_, found)| &found.calls);
        let changes = findings.filter(|finding| finding.origin == Some(origin) && finding.changes);
        let (mut files, mut unseen) = (BTreeSet::new(), 0);
        for finding in changes {
            match &finding.site {
                Some(site) => {
                    files.insert(name(&site.file));
                }
                None => unseen += usize::from(finding.starts == 0),
            }
        }
        let (tone, by) = match files.is_empty() {
            false => {
                let files: Vec<_> = files.into_iter().collect();
                (Tone::Good, format!("call sites rewritten in {}", files.join(", ")))
            }
            true if mode.covers(origin) || unseen == 0 => (Tone::Bad, "nobody".to_owned()),
            true => (Tone::Careful, "nobody: no file says where they are".to_owned()),
        };
        page.line(&format!(
            "  {:<CELL$}{:<33}{}",
            origin.name(),
            origin.is(),
            paint.tone(tone, &keep_back(&by, 60))
        ))?;
    }
    let seen = diagnosis.alone.iter().any(|(other, seen)| *other == mode && *seen);
    let (tone, by) = match seen {
        true => (Tone::Good, "the object inside of it"),
        false => (Tone::Careful, "nobody: nothing can be preloaded"),
    };
    page.line(&format!("  {:<CELL$}{:<33}{}", "static", "a program without a loader", paint.tone(tone, by)))?;
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
