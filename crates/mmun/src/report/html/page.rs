//! The page itself: the template, and the data that its script draws.
//!
//! Names come from the watched program and must stay names. The data are JSON inside a `script` element,
//! with every character escaped that could end it; the script puts text into the page only as text; and
//! the page forbids itself, by a content security policy, to load anything or to talk to anybody.

use std::io::{self, Write};

use serde::Serialize;

use super::bins::Bins;
use super::{Html, SITES, STRIP, THREADS};
use crate::report::fit;
use crate::report::words::{self, Balance};
use crate::report::{json, text};
use crate::summary::{Caller, Summary};

const TEMPLATE: &str = include_str!("../../../assets/template.html");
const STYLE: &str = include_str!("../../../assets/report.css");
const SCRIPT: &str = include_str!("../../../assets/report.js");
const UPLOT: &str = include_str!("../../../assets/uplot/uPlot.iife.min.js");
const UPLOT_STYLE: &str = include_str!("../../../assets/uplot/uPlot.min.css");
const UPLOT_LICENCE: &str = include_str!("../../../assets/uplot/LICENSE");

/// Names are cut to this many characters, lists to this many entries: a page must stay a page.
const NAME: usize = 240;
const LIST: usize = 200;

pub(super) fn write(
    html: &Html,
    out: &mut impl Write,
    summary: &Summary,
    callers: &[Caller],
) -> io::Result<()> {
    let summary = &cut(summary);
    let mut plain = Vec::new();
    text::write(summary, &mut plain, false)?;
    let title = escaped(&fit::keep_front(&words::command(summary), NAME));
    let plain = escaped(&String::from_utf8_lossy(&plain));
    let data = inert(&serde_json::to_string(&Data::new(html, summary, callers))?);
    let mut rest = TEMPLATE;
    while let Some((before, marked)) = rest.split_once("@@") {
        let (name, after) = marked.split_once("@@").expect("markers of the template come in pairs");
        out.write_all(before.as_bytes())?;
        let part = match name {
            "title" => &title,
            "style" => STYLE,
            "uplot style" => UPLOT_STYLE,
            "uplot licence" => UPLOT_LICENCE.trim_end(),
            "uplot" => UPLOT,
            "script" => SCRIPT,
            "text" => &plain,
            "data" => &data,
            _ => unreachable!("the template has an unknown marker: {name}"),
        };
        out.write_all(part.as_bytes())?;
        rest = after;
    }
    out.write_all(rest.as_bytes())
}

#[derive(Serialize)]
struct Data<'a> {
    run: json::Run<'a>,
    command: String,
    ending: String,
    /// `equal`, `cut short`, `elevated` or `surplus`.
    balance: &'static str,
    /// By how much it is not balanced.
    unbalanced: u64,
    bin_ns: u64,
    bins: usize,
    kinds: Vec<Kind<'a>>,
    longest: Vec<u64>,
    sites: Vec<Site<'a>>,
    sites_known: usize,
    sites_complete: bool,
    strip_bin_ns: u64,
    strip_bins: usize,
    threads: Vec<Thread>,
    threads_known: usize,
    threads_complete: bool,
    slowest: Vec<Slow<'a>>,
}

#[derive(Serialize)]
struct Kind<'a> {
    /// None: calls that announced nothing.
    name: Option<&'a str>,
    timeline: Vec<u64>,
    /// Changes by size: entry `n` has those of `2^(n-1)` to `2^n - 1` bytes.
    sizes: &'a [u64],
}

#[derive(Serialize)]
struct Place {
    symbol: String,
    file: String,
}

#[derive(Serialize)]
struct Site<'a> {
    #[serde(flatten)]
    place: Place,
    call: &'a str,
    count: u64,
    missed: u64,
    failed: u64,
    bytes: u64,
    total_ns: u64,
}

#[derive(Serialize)]
struct Thread {
    pid: u32,
    tid: u32,
    count: u64,
    missed: u64,
    busy_ns: u64,
    strip: Vec<u64>,
}

#[derive(Serialize)]
struct Slow<'a> {
    #[serde(flatten)]
    place: Place,
    time_ns: u64,
    pid: u32,
    tid: u32,
    call: &'a str,
    event: Option<&'a str>,
    failed: bool,
    refused: bool,
    start: String,
    bytes: u64,
    took_ns: u64,
    starts_ns: u64,
    change_ns: u64,
    ends_ns: u64,
}

impl<'a> Data<'a> {
    fn new(html: &'a Html, summary: &'a Summary, callers: &[Caller]) -> Data<'a> {
        let wall_ns = u64::try_from(summary.wall.as_nanos()).unwrap_or(u64::MAX);
        let last_ns = wall_ns.saturating_sub(1).max(html.last_ns);
        let shift = html.longest.shift_for(last_ns);
        let strip_shift = Bins::sums(STRIP).shift_for(last_ns);
        let widened = |bins: &Bins, shift| {
            let mut bins = bins.clone();
            bins.widen_to(shift);
            bins.values().to_vec()
        };
        let (sites_known, sites_complete) = html.sites.known();
        let (threads_known, threads_complete) = html.threads.known();
        let (balance, unbalanced) = match Balance::of(summary) {
            Balance::Equal => ("equal", 0),
            Balance::CutShort => ("cut short", 0),
            Balance::Elevated(by) => ("elevated", by),
            Balance::Surplus(by) => ("surplus", by),
        };
        let mut threads: Vec<_> = html
            .threads
            .ranked()
            .into_iter()
            .take(THREADS)
            .map(|((pid, tid), entry)| Thread {
                pid,
                tid,
                count: entry.count,
                missed: entry.missed,
                busy_ns: entry.value.busy_ns,
                strip: widened(&entry.value.strip, strip_shift),
            })
            .collect();
        threads.sort_by_key(|thread| (thread.pid, thread.tid));
        let mut slowest: Vec<_> = html.slowest.iter().map(|entry| &entry.0).collect();
        slowest.sort_by_key(|slow| (std::cmp::Reverse(slow.took_ns), slow.record.time_ns));
        Data {
            run: summary.into(),
            command: words::command(summary),
            ending: words::ending(summary.outcome),
            balance,
            unbalanced,
            bin_ns: 1 << shift,
            bins: (last_ns >> shift) as usize + 1,
            kinds: html
                .kinds
                .iter()
                .map(|kind| Kind {
                    name: kind.name,
                    timeline: widened(&kind.timeline, shift),
                    sizes: &kind.sizes,
                })
                .collect(),
            longest: widened(&html.longest, shift),
            sites: html
                .sites
                .ranked()
                .into_iter()
                .take(SITES)
                .map(|((caller, call), entry)| Site {
                    place: Place::of(callers.get(caller as usize)),
                    call,
                    count: entry.count,
                    missed: entry.missed,
                    failed: entry.value.failed,
                    bytes: entry.value.bytes,
                    total_ns: entry.value.total_ns,
                })
                .collect(),
            sites_known,
            sites_complete,
            strip_bin_ns: 1 << strip_shift,
            strip_bins: (last_ns >> strip_shift) as usize + 1,
            threads,
            threads_known,
            threads_complete,
            slowest: slowest
                .into_iter()
                .map(|slow| {
                    let record = &slow.record;
                    Slow {
                        place: Place::of(callers.get(record.caller as usize)),
                        time_ns: record.time_ns,
                        pid: record.pid,
                        tid: record.tid,
                        call: record.call,
                        event: record.event,
                        failed: record.failed,
                        refused: record.refused,
                        start: format!("{:#x}", record.start),
                        bytes: record.len,
                        took_ns: slow.took_ns,
                        starts_ns: record.starts_ns,
                        change_ns: record.change_ns,
                        ends_ns: record.ends_ns,
                    }
                })
                .collect(),
        }
    }
}

impl Place {
    fn of(caller: Option<&Caller>) -> Place {
        let known = |text: &str| fit::printable(&fit::keep_front(text, NAME));
        Place {
            symbol: caller.map_or_else(|| "not known".to_owned(), |caller| known(&caller.symbol)),
            file: caller
                .map_or_else(String::new, |caller| fit::printable(&fit::keep_back(&caller.file, NAME))),
        }
    }
}

/// The summary with its lists and names cut to what a page can hold.
fn cut(summary: &Summary) -> Summary {
    let mut summary = summary.clone();
    if summary.command.len() > LIST {
        summary.command.truncate(LIST);
        summary.command.push("…".to_owned());
    }
    summary.command.iter_mut().for_each(|word| *word = fit::keep_front(word, NAME));
    summary.unseen_more += summary.unseen.len().saturating_sub(LIST) as u64;
    summary.unseen.truncate(LIST);
    for entry in &mut summary.unseen {
        entry.file = fit::printable(&fit::keep_back(&entry.file, NAME));
    }
    let programs = std::mem::take(&mut summary.programs_unseen);
    let more: u64 = programs.values().skip(LIST).sum();
    for (program, times) in programs.into_iter().take(LIST) {
        *summary.programs_unseen.entry(fit::printable(&fit::keep_back(&program, NAME))).or_default() += times;
    }
    if let Some(check) = &mut summary.check {
        check.lost += check.findings.len().saturating_sub(LIST) as u64;
        check.findings.truncate(LIST);
        let stacks =
            check.findings.iter_mut().flat_map(|f| [&mut f.registered.stack, &mut f.changed_by.stack]);
        for frame in stacks.flatten() {
            frame.symbol = fit::printable(&fit::keep_front(&frame.symbol, NAME));
            frame.file = fit::printable(&fit::keep_back(&frame.file, NAME));
        }
    }
    if more > 0 {
        summary.programs_unseen.insert("(more programs)".to_owned(), more);
    }
    summary
}

/// Text as HTML, for element content.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// JSON that neither ends the element it is in nor begins another: such characters occur in strings only.
fn inert(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => out.push(c),
        }
    }
    out
}
