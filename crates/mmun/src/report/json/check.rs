//! What `--check` found, for scripts.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::report::check as words;
use crate::summary::{self, Registered, Verdict};

#[derive(Serialize)]
pub(crate) struct Check<'a> {
    registered: BTreeMap<&'static str, Registrations>,
    changes: u64,
    pages_compared: u64,
    stale: usize,
    untracked: u64,
    missed: u64,
    lost: u64,
    processes_unchecked: u64,
    processes_blind: u64,
    findings: Vec<Finding<'a>>,
}

#[derive(Serialize)]
struct Registrations {
    count: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Finding<'a> {
    verdict: &'static str,
    severity: &'static str,
    kind: &'static str,
    times: u64,
    registrations: u64,
    descriptor: Option<i32>,
    index: u64,
    start: String,
    bytes: u64,
    changed_start: String,
    changed_bytes: u64,
    pages: Pages,
    inherited: bool,
    taken_back: bool,
    pid: u32,
    registered: At<'a>,
    changed: At<'a>,
    means: &'static str,
    advice: &'static str,
}

#[derive(Serialize)]
struct Pages {
    changed: u64,
    other: u64,
    empty: u64,
    unmapped: u64,
}

#[derive(Serialize)]
struct At<'a> {
    call: &'a str,
    tid: u32,
    time_ns: u64,
    stack: Vec<Frame<'a>>,
}

#[derive(Serialize)]
struct Frame<'a> {
    symbol: &'a str,
    file: &'a str,
}

fn kind(kind: Registered) -> &'static str {
    match kind {
        Registered::Buffer => "io_uring_buffer",
        Registered::BufferRing => "io_uring_buffer_ring",
        Registered::Memslot => "kvm_memslot",
        Registered::Vfio => "vfio",
        Registered::Iommufd => "iommufd",
        Registered::Rdma => "rdma",
        Registered::Lock => "mlock",
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Stale => "stale",
        Verdict::Unmapped => "unmapped",
        Verdict::Exposed => "exposed",
        Verdict::Dangling => "dangling",
        Verdict::Unlocked => "unlocked",
    }
}

impl<'a> From<&'a summary::Check> for Check<'a> {
    fn from(check: &'a summary::Check) -> Check<'a> {
        let registered =
            |&(of, count, bytes): &(Registered, u64, u64)| (kind(of), Registrations { count, bytes });
        Check {
            registered: check.registered.iter().map(registered).collect(),
            changes: check.changes,
            pages_compared: check.compared,
            stale: check.stale(),
            untracked: check.untracked,
            missed: check.missed,
            lost: check.lost,
            processes_unchecked: check.unchecked,
            processes_blind: check.blind,
            findings: check.findings.iter().map(Finding::from).collect(),
        }
    }
}

impl<'a> From<&'a summary::Finding> for Finding<'a> {
    fn from(finding: &'a summary::Finding) -> Finding<'a> {
        Finding {
            verdict: verdict(finding.verdict),
            severity: words::severity(finding).name(),
            kind: kind(finding.kind),
            times: finding.times,
            registrations: finding.registrations,
            descriptor: finding.descriptor,
            index: finding.index,
            start: format!("{:#x}", finding.start),
            bytes: finding.len,
            changed_start: format!("{:#x}", finding.from),
            changed_bytes: finding.changed,
            pages: Pages {
                changed: finding.pages,
                other: finding.other,
                empty: finding.empty,
                unmapped: finding.unmapped,
            },
            inherited: finding.inherited,
            taken_back: finding.taken_back,
            pid: finding.pid,
            registered: (&finding.registered).into(),
            changed: (&finding.changed_by).into(),
            means: words::meaning(finding),
            advice: words::advice(finding),
        }
    }
}

impl<'a> From<&'a summary::At> for At<'a> {
    fn from(at: &'a summary::At) -> At<'a> {
        let frame = |frame: &'a summary::Caller| Frame { symbol: &frame.symbol, file: &frame.file };
        At { call: &at.call, tid: at.tid, time_ns: at.time_ns, stack: at.stack.iter().map(frame).collect() }
    }
}
