//! The verdict of an audit, for people and for scripts.

use std::collections::BTreeMap;

use serde::Serialize;

use super::fit::{keep_back, printable};
use super::paint::Tone;
use super::units::{bytes, count, counted, duration};
use crate::summary::{Audit, Nearest, Unexplained};

/// Unexplained kinds to show; the rest is counted.
const SHOWN: usize = 6;

/// What there is to say, each a sentence and how it is meant.
pub(super) fn sentences(audit: &Audit) -> Vec<(Tone, String)> {
    let mut said = Vec::new();
    for kind in audit.kinds.iter().take(SHOWN) {
        said.push((Tone::Bad, unexplained(kind)));
    }
    if audit.kinds.len() > SHOWN {
        let more = (audit.kinds.len() - SHOWN) as u64;
        said.push((Tone::Bad, format!("and {}", counted(more, "more place", "more places"))));
    }
    for (number, what) in [
        (audit.samples_lost, "LOST by the kernel: its rings were full"),
        (audit.records_lost, "brackets LOST: the buffer was full; a larger --buffer helps"),
        (audit.unproven, "address spaces LOST: their oracle did not report what it must have seen"),
    ] {
        if number > 0 {
            said.push((Tone::Bad, format!("{} {what}", count(number))));
        }
    }
    for (reason, number) in &audit.without_oracle {
        let who = counted(*number, "process", "processes");
        said.push((Tone::Bad, format!("{who} LOST, without an oracle: {}", printable(reason))));
    }
    if !audit.causes.is_empty() {
        let causes: Vec<_> =
            audit.causes.iter().map(|(_, words, number)| format!("{words} {}", count(*number))).collect();
        said.push((Tone::Plain, format!("by cause: {}", causes.join(", "))));
    }
    let verdict = format!(
        "{}, {} covered, {} by kernel cause, {} unexplained, {} lost",
        counted(audit.invalidations, "kernel invalidation", "kernel invalidations"),
        count(audit.covered),
        count(audit.caused()),
        count(audit.unexplained),
        count(audit.lost()),
    );
    said.push((if audit.is_clean() { Tone::Good } else { Tone::Bad }, verdict));
    said
}

fn unexplained(kind: &Unexplained) -> String {
    let call = kind.call.as_deref().map_or("no system call".to_owned(), printable);
    let mut text = format!(
        "UNEXPLAINED {} of {} at {:#x}, {call} at {}",
        counted(kind.count, "invalidation", "invalidations"),
        bytes(kind.len),
        kind.start,
        printable(&kind.caller.symbol),
    );
    if !kind.caller.file.is_empty() {
        text += &format!(" in {}", keep_back(&printable(&kind.caller.file), 40));
    }
    text += &format!(", thread {} of process {}", kind.tid, kind.pid);
    if let Some(Nearest { call, start, len, before_ns }) = kind.nearest {
        text += &match before_ns {
            Some(before) => format!("; its last bracket, {call}, was over {} before", duration(before)),
            None => format!("; its open bracket, {call}, is of {} at {start:#x}", bytes(len)),
        };
    }
    text
}

/// The object for scripts.
#[derive(Serialize)]
pub(super) struct Json<'a> {
    invalidations: u64,
    covered: u64,
    by_cause: u64,
    causes: BTreeMap<&'a str, u64>,
    unexplained: u64,
    places: Vec<Place<'a>>,
    lost: Lost,
    address_spaces: u64,
    not_judged: &'a BTreeMap<String, u64>,
    elsewhere: u64,
}

#[derive(Serialize)]
struct Place<'a> {
    call: Option<&'a str>,
    symbol: &'a str,
    file: &'a str,
    invalidations: u64,
    pid: u32,
    tid: u32,
    start: String,
    bytes: u64,
    nearest: Option<Bracket<'a>>,
    kernel: &'a [String],
}

#[derive(Serialize)]
struct Bracket<'a> {
    call: &'a str,
    start: String,
    bytes: u64,
    over_ns: Option<u64>,
}

#[derive(Serialize)]
struct Lost {
    samples: u64,
    brackets: u64,
    processes: u64,
}

impl<'a> From<&'a Audit> for Json<'a> {
    fn from(audit: &'a Audit) -> Json<'a> {
        let place = |kind: &'a Unexplained| Place {
            call: kind.call.as_deref(),
            symbol: &kind.caller.symbol,
            file: &kind.caller.file,
            invalidations: kind.count,
            pid: kind.pid,
            tid: kind.tid,
            start: format!("{:#x}", kind.start),
            bytes: kind.len,
            nearest: kind.nearest.as_ref().map(|nearest| Bracket {
                call: nearest.call,
                start: format!("{:#x}", nearest.start),
                bytes: nearest.len,
                over_ns: nearest.before_ns,
            }),
            kernel: &kind.chain,
        };
        Json {
            invalidations: audit.invalidations,
            covered: audit.covered,
            by_cause: audit.caused(),
            causes: audit.causes.iter().map(|(name, _, number)| (*name, *number)).collect(),
            unexplained: audit.unexplained,
            places: audit.kinds.iter().map(place).collect(),
            lost: Lost {
                samples: audit.samples_lost,
                brackets: audit.records_lost,
                processes: audit.processes_lost(),
            },
            address_spaces: audit.judged,
            not_judged: &audit.without_oracle,
            elsewhere: audit.elsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_verdict_is_last_and_counts_everything() {
        let audit = sample::audit();
        let said = sentences(&audit);
        let (tone, verdict) = said.last().unwrap();
        assert_eq!(
            verdict,
            "1,000 kernel invalidations, 900 covered, 98 by kernel cause, 2 unexplained, 4 lost"
        );
        assert_eq!(*tone, Tone::Bad);
        let clean = Audit { invalidations: 1, covered: 1, ..Audit::default() };
        let said = sentences(&clean);
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(said[0].0, Tone::Good);
    }

    #[test]
    fn what_is_unexplained_is_shown_with_its_system_call() {
        let text =
            sentences(&sample::audit()).iter().map(|(_, line)| line.clone() + "\n").collect::<String>();
        for part in [
            "UNEXPLAINED 2 invalidations of 4.00 KiB at 0x7f3a12c00000, munmap at unmap_raw+0x12 in /home/me/bin/ingest",
            "its last bracket, mmap, was over 3.00 µs before",
            "1 process LOST, without an oracle: it could not open /dev/kvm",
            "by cause: first writes and copies on write 90, write-back 8",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }
}
