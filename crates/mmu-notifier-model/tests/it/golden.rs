//! The golden traces.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::OnceLock;

use mmu_notifier_model::{GOLDEN, Trace, replay, split};

/// Every golden trace, read.
pub(crate) fn traces() -> &'static [Trace] {
    static TRACES: OnceLock<Vec<Trace>> = OnceLock::new();
    TRACES.get_or_init(|| {
        let mut text = String::new();
        flate2::read::GzDecoder::new(GOLDEN).read_to_string(&mut text).expect("the archive is whole");
        let read = |text: &str| {
            let mut trace = Trace::read("golden", text).unwrap_or_else(|error| panic!("{error}\nin {text}"));
            let release = trace.header.kernel.release.expect("it was recorded");
            trace.file = format!("{}--{release}.jsonl", trace.header.name);
            assert_eq!(parsed(&trace.to_text()), parsed(text), "{}: something was read past", trace.file);
            trace
        };
        split(&text).into_iter().map(read).collect()
    })
}

fn parsed(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The golden trace of this scenario on this release.
pub(crate) fn trace(name: &str, release: &str) -> &'static Trace {
    let file = format!("{name}--{release}.jsonl");
    traces()
        .iter()
        .find(|trace| trace.file == file)
        .unwrap_or_else(|| panic!("there is no golden trace {file}"))
}

#[test]
fn every_observation_of_every_trace_matches() {
    let mismatches: Vec<String> = traces()
        .iter()
        .flat_map(|trace| replay(trace, trace.header.kernel).mismatches)
        .map(|mismatch| mismatch.to_string())
        .collect();
    assert!(mismatches.is_empty(), "{} mismatches:\n{}", mismatches.len(), mismatches.join("\n"));
}

#[test]
fn every_operation_of_every_trace_is_possible() {
    for trace in traces() {
        trace.check().unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn the_archive_is_complete() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for trace in traces() {
        *counts.entry(trace.header.kernel.name).or_default() += 1;
    }
    let expected = [("linux-5.10", 142), ("linux-6.1", 188), ("linux-6.12", 132), ("linux-7.2", 192)];
    assert_eq!(counts, BTreeMap::from(expected));
    // As many lines as `zcat golden/traces.jsonl.gz | wc -l` finds.
    assert_eq!(traces().iter().map(|trace| 1 + trace.lines.len()).sum::<usize>(), 21_609);
}

#[test]
fn every_trace_has_a_name_of_its_own() {
    let mut files: Vec<_> = traces().iter().map(|trace| &trace.file).collect();
    files.sort();
    files.dedup();
    assert_eq!(files.len(), traces().len());
}
