//! Findings about registrations, for people: what is wrong, who did what, what to do.

use std::io::{self, Write};

use super::fit::{folded, keep_back, keep_front, printable};
use super::paint::{Paint, Tone};
use super::units::{bytes, count, counted, duration};
use crate::summary::{At, Check, Finding, Registered, Verdict};

const WIDTH: usize = 80;
const INDENT: usize = 14;
/// Findings and frames that are shown; the rest is counted.
const FINDINGS: usize = 20;
const FRAMES: usize = 10;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    Error,
    Warning,
    Note,
}

impl Severity {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }

    const fn tone(self) -> Tone {
        match self {
            Severity::Error => Tone::Bad,
            Severity::Warning => Tone::Careful,
            Severity::Note => Tone::Plain,
        }
    }
}

/// How bad it is.
pub(super) fn severity(finding: &Finding) -> Severity {
    match finding.verdict {
        Verdict::Stale => Severity::Error,
        Verdict::Unmapped if finding.taken_back => Severity::Note,
        Verdict::Unmapped | Verdict::Exposed | Verdict::Dangling => Severity::Warning,
        Verdict::Unlocked => Severity::Note,
    }
}

/// What a verdict is called.
const fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Stale => "STALE",
        Verdict::Unmapped => "UNMAPPED",
        Verdict::Exposed => "EXPOSED",
        Verdict::Dangling => "DANGLING",
        Verdict::Unlocked => "UNLOCKED",
    }
}

/// What holds memory: one, several, and one by its number.
pub(super) fn kind(kind: Registered) -> (&'static str, &'static str) {
    match kind {
        Registered::Buffer => ("io_uring buffer", "io_uring buffers"),
        Registered::BufferRing => ("io_uring buffer ring", "io_uring buffer rings"),
        Registered::Memslot => ("KVM memslot", "KVM memslots"),
        Registered::Vfio => ("VFIO mapping", "VFIO mappings"),
        Registered::Iommufd => ("iommufd mapping", "iommufd mappings"),
        Registered::Rdma => ("RDMA region", "RDMA regions"),
        Registered::Lock => ("locked range", "locked ranges"),
    }
}

/// What was registered, by name.
pub(super) fn what(finding: &Finding) -> String {
    let number = match finding.kind {
        Registered::Lock => String::new(),
        Registered::Vfio | Registered::Iommufd => format!(" at {:#x}", finding.index),
        _ => format!(" {}", finding.index),
    };
    let of = match (finding.kind, finding.descriptor) {
        (Registered::Lock | Registered::Rdma, _) | (_, None) => String::new(),
        (_, Some(descriptor)) => format!(" of descriptor {descriptor}"),
    };
    let more = match finding.registrations {
        0 | 1 => String::new(),
        many => format!(" and {}", counted(many - 1, "more", "more")),
    };
    format!("{}{number}{of}{more}", kind(finding.kind).0)
}

/// What it means for the program.
pub(super) fn meaning(finding: &Finding) -> &'static str {
    match (finding.verdict, finding.kind, finding.inherited) {
        (Verdict::Stale, _, true) => {
            "a child uses a ring whose buffers its parent has registered: what is read goes to the parent's pages"
        }
        (Verdict::Stale, Registered::BufferRing, _) => {
            "the kernel takes buffers from pages that the program no longer sees: what it adds there never arrives"
        }
        (Verdict::Stale, ..) => {
            "data that are read go to the old pages, unseen; what is written comes from the old pages; nothing fails"
        }
        (Verdict::Unmapped, ..) if finding.taken_back => {
            "the old pages stayed in memory until this was unregistered; nothing else was mapped there before"
        }
        (Verdict::Unmapped, ..) => {
            "the old pages stay in memory, and in use, until this is unregistered; what is mapped there next is stale"
        }
        (Verdict::Exposed, ..) => "the program may not write there, the kernel or the device still does",
        (Verdict::Dangling, ..) => {
            "a guest that touches it gets an error from KVM_RUN: there is no memory to follow"
        }
        (Verdict::Unlocked, ..) => "the memory that stands there now can be swapped out",
    }
}

/// What to do about it.
pub(super) fn advice(finding: &Finding) -> &'static str {
    match (finding.verdict, finding.kind, finding.inherited) {
        (Verdict::Stale, _, true) => "give the child a ring and buffers of its own",
        (Verdict::Exposed, ..) => "unregister it before its protection changes, and register it again after",
        (Verdict::Unlocked, ..) => "lock it again, or map with MAP_LOCKED",
        (Verdict::Dangling, ..) => "delete the memslot first (memory_size 0), or map the memory anew at once",
        (_, Registered::Buffer, _) => {
            "take the buffer out of the table first (IORING_REGISTER_BUFFERS_UPDATE, or unregister) and put it in again after; \
             or register through mmu-notifier's cache"
        }
        (_, Registered::BufferRing, _) => "unregister the ring of buffers before its memory goes",
        _ => "unmap it from the device first, and map it again after",
    }
}

/// How the pages are now.
pub(super) fn pages(finding: &Finding) -> Option<String> {
    let gone = [(finding.other, "others"), (finding.empty, "empty"), (finding.unmapped, "not mapped")];
    let gone: Vec<_> =
        gone.iter().filter(|(n, _)| *n > 0).map(|(n, how)| format!("{} {how}", count(*n))).collect();
    match finding.verdict {
        Verdict::Stale | Verdict::Unmapped => Some(format!(
            "of {} changed, {} now",
            counted(finding.pages, "page", "pages"),
            if gone.is_empty() { "none other".to_owned() } else { gone.join(", ") }
        )),
        Verdict::Exposed => {
            Some(format!("{}, still the registered", counted(finding.pages, "page", "pages")))
        }
        Verdict::Dangling | Verdict::Unlocked => None,
    }
}

/// The line of the summary, and its continuation.
pub(super) fn lines(check: &Check) -> Vec<(Tone, String)> {
    let mut lines = Vec::new();
    let kinds: Vec<_> = check
        .registered
        .iter()
        .map(|(of, number, size)| {
            let (one, many) = kind(*of);
            format!("{} of {}", counted(*number, one, many), bytes(*size))
        })
        .collect();
    let registered = if kinds.is_empty() { "nothing was registered".to_owned() } else { kinds.join(", ") };
    let met = counted(check.changes, "change met them", "changes met them");
    lines.push((Tone::Plain, if kinds.is_empty() { registered } else { format!("{registered}; {met}") }));
    let of = |wanted| check.findings.iter().filter(|finding| severity(finding) == wanted).count() as u64;
    let found: Vec<_> = [
        (of(Severity::Error), "stale registration", "stale registrations"),
        (of(Severity::Warning), "warning", "warnings"),
        (of(Severity::Note), "note", "notes"),
    ]
    .into_iter()
    .filter(|(number, ..)| *number > 0)
    .map(|(number, one, many)| counted(number, one, many))
    .collect();
    let worst = check.findings.iter().map(severity).min();
    lines.push(match worst {
        None => (Tone::Good, "nothing wrong was found".to_owned()),
        Some(worst) => (worst.tone(), format!("{}: see below", found.join(", "))),
    });
    let mut careful = |number: u64, line: String| {
        if number > 0 {
            lines.push((Tone::Careful, line));
        }
    };
    careful(
        check.lost,
        format!("{} NOT TOLD: there were too many at a time", counted(check.lost, "finding", "findings")),
    );
    careful(
        check.untracked,
        format!(
            "{} NOT FOLLOWED: the table was full",
            counted(check.untracked, "registration", "registrations")
        ),
    );
    careful(
        check.missed,
        format!("{} NOT LOOKED AT: the table was in use", counted(check.missed, "call", "calls")),
    );
    careful(
        check.unchecked,
        format!("{} NOT CHECKED: no memory for a table", counted(check.unchecked, "process", "processes")),
    );
    careful(
        check.blind,
        format!(
            "{} may not see page frames: judged by the calls alone (run as root)",
            counted(check.blind, "process", "processes")
        ),
    );
    lines
}

/// Writes the findings below a summary.
pub(super) fn write(check: &Check, out: &mut impl Write, paint: Paint) -> io::Result<()> {
    for finding in check.findings.iter().take(FINDINGS) {
        one(finding, out, paint)?;
    }
    let more = check.findings.len().saturating_sub(FINDINGS) as u64;
    if more > 0 {
        writeln!(out, "\n  and {}: --json has all", counted(more, "more finding", "more findings"))?;
    }
    Ok(())
}

fn one(finding: &Finding, out: &mut impl Write, paint: Paint) -> io::Result<()> {
    let severity = severity(finding);
    let times = if finding.times == 1 { String::new() } else { format!(", {} times", count(finding.times)) };
    let head = format!(
        "{} ({}{times}): {}, {} at {:#x}",
        name(finding.verdict),
        severity.name(),
        what(finding),
        bytes(finding.len),
        finding.start
    );
    writeln!(out)?;
    for line in folded(&head, WIDTH) {
        writeln!(out, "{}", paint.tone(severity.tone(), &line))?;
    }
    let mut say = |label: &str, sentence: &str| -> io::Result<()> {
        let mut label = paint.tone(Tone::Faint, &format!("{label:<0$}", INDENT - 2));
        for line in folded(sentence, WIDTH - INDENT) {
            writeln!(out, "  {label}{line}")?;
            label = " ".repeat(INDENT - 2);
        }
        Ok(())
    };
    let at = |at: &At| {
        format!(
            "{}, process {}, thread {}, after {}",
            printable(&at.call),
            finding.pid,
            at.tid,
            duration(at.time_ns)
        )
    };
    say("registered", &format!("by {}", at(&finding.registered)))?;
    for line in frames(&finding.registered) {
        say("", &line)?;
    }
    let range = format!("; {} from {:#x} on", bytes(finding.changed), finding.from);
    let verb = if finding.inherited { "used" } else { "changed" };
    say(verb, &format!("by {}{range}", at(&finding.changed_by)))?;
    for line in frames(&finding.changed_by) {
        say("", &line)?;
    }
    if let Some(pages) = pages(finding) {
        say("pages", &pages)?;
    }
    say("means", meaning(finding))?;
    say("do", advice(finding))
}

/// A line for each frame.
fn frames(at: &At) -> Vec<String> {
    if at.stack.is_empty() {
        return vec!["(its call stack was not kept)".to_owned()];
    }
    let mut lines: Vec<_> = at
        .stack
        .iter()
        .take(FRAMES)
        .enumerate()
        .map(|(nth, frame)| {
            let file = frame.file.rsplit('/').next().unwrap_or_default();
            format!(
                "#{nth} {} ({})",
                keep_front(&printable(&frame.symbol), 36),
                keep_back(&printable(file), 24)
            )
        })
        .collect();
    let more = at.stack.len().saturating_sub(FRAMES);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use crate::summary::Caller;

    fn shown(check: &Check) -> String {
        let mut out = Vec::new();
        write(check, &mut out, Paint::new(false)).unwrap();
        let lines = lines(check).into_iter().map(|(_, line)| line + "\n").collect::<String>();
        lines + &String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_finding_says_what_who_and_what_to_do() {
        let text = shown(&sample::check());
        println!("{text}");
        for part in [
            "40 io_uring buffers of 40.0 MiB, 1 VFIO mapping of 1.00 GiB",
            "3 stale registrations, 3 warnings, 2 notes: see below",
            "3 findings NOT TOLD",
            "1 registration NOT FOLLOWED",
            "2 calls NOT LOOKED AT",
            "1 process NOT CHECKED",
            "1 process may not see page frames",
            "STALE (error, 3 times): io_uring buffer 3 of descriptor 7 and 3 more, 1.00 MiB at",
            "VFIO mapping at 0x100000000 of descriptor 7",
            "by madvise(MADV_DONTNEED), process 4217, thread 4219, after 7.00 s; 8.00 KiB from",
            "#1 ingest::pool::Pool::register",
            "and 4 more",
            "of 2 pages changed, 1 others, 1 empty now",
            "used        by io_uring_enter",
            "UNMAPPED (note",
            "UNLOCKED (note, 3 times): locked range and 3 more",
        ] {
            let folded = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let part = part.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(folded.contains(&part), "{part:?} is missing in\n{text}");
        }
        assert!(
            text.split("NOT CHECKED")
                .last()
                .unwrap()
                .lines()
                .skip(2)
                .all(|line| line.chars().count() <= WIDTH)
        );
    }

    #[test]
    fn nothing_found_is_good() {
        let check = Check { registered: vec![(Registered::Buffer, 1, 4096)], ..Check::default() };
        assert_eq!(
            shown(&check),
            "1 io_uring buffer of 4.00 KiB; 0 changes met them\nnothing wrong was found\n"
        );
        assert!(shown(&Check::default()).starts_with("nothing was registered\n"));
    }

    #[test]
    fn hostile_names_do_nothing_to_the_terminal() {
        let mut check = sample::check();
        let hostile = Caller { symbol: "\x1b[2J\n".repeat(100), file: "/tmp/\x07\n".repeat(100) };
        check.findings[0].registered.stack = vec![hostile];
        let text = shown(&check);
        assert!(!text.contains(['\x1b', '\x07']), "{text}");
    }

    #[test]
    fn many_findings_are_counted() {
        let mut check = sample::check();
        check.findings = vec![check.findings[0].clone(); FINDINGS + 5];
        assert!(shown(&check).ends_with("and 5 more findings: --json has all\n"));
    }
}
