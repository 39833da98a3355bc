//! A page with pictures: one self-contained file that needs no network, described in `docs/report.md`.
//!
//! The collector sees every record of the run and keeps a bounded amount, however many there are: counts
//! by time ([`bins`]), by size, by call site and by thread ([`top`]), and the slowest brackets. What is
//! kept goes into the page as one block of JSON ([`page`]), and the page's own script draws it.

mod bins;
mod page;
mod top;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Write};

use bins::Bins;
use top::Top;

use crate::summary::{Caller, Record, Summary};

/// Bins of the timeline, and of a thread's strip.
const TIMELINE: usize = 512;
const STRIP: usize = 256;
/// Rows of the tables.
const SITES: usize = 50;
const THREADS: usize = 64;
const SLOWEST: usize = 50;
/// More kinds of events than the kernel has; beyond it they are counted together.
const KINDS: usize = 15;

/// What the page will show, gathered record by record.
#[derive(Debug)]
pub struct Html {
    kinds: Vec<Kind>,
    longest: Bins,
    sites: Top<(u32, &'static str), Site>,
    threads: Top<(u32, u32), Thread>,
    /// The slowest brackets; the fastest of them is on top.
    slowest: BinaryHeap<Reverse<Slow>>,
    last_ns: u64,
}

/// What is known of one event, or of all calls that announced none.
#[derive(Debug)]
struct Kind {
    name: Option<&'static str>,
    timeline: Bins,
    /// By the number of significant bits.
    sizes: [u64; 65],
}

#[derive(Debug, Default)]
struct Site {
    failed: u64,
    bytes: u64,
    total_ns: u64,
}

#[derive(Debug)]
struct Thread {
    busy_ns: u64,
    strip: Bins,
}

#[derive(Debug)]
struct Slow {
    took_ns: u64,
    record: Record,
}

impl Html {
    /// Nothing gathered yet.
    pub fn new() -> Html {
        Html {
            kinds: Vec::new(),
            longest: Bins::maxima(TIMELINE),
            sites: Top::new(1024),
            threads: Top::new(2 * THREADS),
            slowest: BinaryHeap::with_capacity(SLOWEST + 1),
            last_ns: 0,
        }
    }

    /// Adds one call.
    pub fn record(&mut self, record: &Record) {
        let took_ns = took(record);
        let bracketed = record.event.is_some();
        self.last_ns = self.last_ns.max(record.time_ns);

        let kind = self.kind(record.event);
        kind.timeline.put(record.time_ns, 1);
        if bracketed && record.len > 0 {
            kind.sizes[(u64::BITS - record.len.leading_zeros()) as usize] += 1;
        }

        let site = self.sites.count((record.caller, record.call), Site::default);
        site.failed += u64::from(record.failed);
        site.total_ns = site.total_ns.saturating_add(took_ns);
        if bracketed {
            site.bytes = site.bytes.saturating_add(record.len);
        }

        let thread =
            self.threads.count((record.pid, record.tid), || Thread { busy_ns: 0, strip: Bins::sums(STRIP) });
        thread.busy_ns = thread.busy_ns.saturating_add(took_ns);
        thread.strip.put(record.time_ns, 1);

        if bracketed {
            self.longest.put(record.time_ns, took_ns);
            if self.slowest.len() < SLOWEST
                || self.slowest.peek().is_some_and(|Reverse(least)| took_ns > least.took_ns)
            {
                self.slowest.push(Reverse(Slow { took_ns, record: *record }));
                if self.slowest.len() > SLOWEST {
                    self.slowest.pop();
                }
            }
        }
    }

    /// Writes the page; `callers` is what the records' `caller` points into.
    pub fn write(&self, out: &mut impl Write, summary: &Summary, callers: &[Caller]) -> io::Result<()> {
        page::write(self, out, summary, callers)
    }

    fn kind(&mut self, name: Option<&'static str>) -> &mut Kind {
        let known = self.kinds.iter().position(|kind| kind.name == name);
        let at = known.unwrap_or_else(|| {
            if self.kinds.len() < KINDS {
                self.kinds.push(Kind { name, timeline: Bins::sums(TIMELINE), sizes: [0; 65] });
            }
            self.kinds.len() - 1
        });
        &mut self.kinds[at]
    }
}

impl Default for Html {
    fn default() -> Html {
        Html::new()
    }
}

/// From the first start to the last end.
fn took(record: &Record) -> u64 {
    record.starts_ns.saturating_add(record.change_ns).saturating_add(record.ends_ns)
}

impl PartialEq for Slow {
    fn eq(&self, other: &Slow) -> bool {
        self.took_ns == other.took_ns
    }
}

impl Eq for Slow {}

impl PartialOrd for Slow {
    fn partial_cmp(&self, other: &Slow) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Slow {
    fn cmp(&self, other: &Slow) -> std::cmp::Ordering {
        self.took_ns.cmp(&other.took_ns)
    }
}

#[cfg(test)]
mod tests;
