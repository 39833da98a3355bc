//! Twelve ways in which memory goes; peers that patch the C library's functions miss most of them.
//! Each is made once, at an address that the program tells, and must be in the trace as one bracket.

use std::fs;

use serde_json::Value;

use crate::command::Mmun;
use crate::program::{compile, compile_shared, skipped, workshop};

/// A slice of the trace that is a bracket.
#[derive(Debug, PartialEq, Eq)]
struct Slice {
    start: u64,
    bytes: u64,
    event: String,
}

/// All brackets of a Chrome trace, which is an array or an object with one.
fn slices(trace: &Value) -> Vec<Slice> {
    let events = trace.as_array().or_else(|| trace["traceEvents"].as_array()).expect("an array of events");
    events.iter().filter(|event| event["ph"] == "X").filter_map(|event| slice(&event["args"])).collect()
}

/// Slices without a range or an event are of calls that change nothing.
fn slice(args: &Value) -> Option<Slice> {
    let start = args["start"].as_str()?.strip_prefix("0x")?;
    Some(Slice {
        start: u64::from_str_radix(start, 16).ok()?,
        bytes: args["bytes"].as_u64()?,
        event: args["event"].as_str()?.to_owned(),
    })
}

fn assert_seen(test: &str, row: &str) {
    let dir = workshop(test);
    let program = compile(&dir, "row").display().to_string();
    let object = compile_shared(&dir, "late_object").display().to_string();
    let trace = dir.join("trace.json");
    let command = [program.as_str(), row, &object];
    let mmun = Mmun::new(&dir).option("--trace").option(trace.display().to_string());
    let (ended, report) = mmun.run(&command);
    ended.assert_success();
    report.assert_balanced();
    assert_eq!(report.number("records.dropped"), 0);
    let said = ended.stdout();
    let [start, bytes, event] = said.split_whitespace().collect::<Vec<_>>()[..] else {
        return skipped(test, said.trim());
    };
    if start == "unsupported" {
        return skipped(test, said.trim());
    }
    let wanted = Slice {
        start: u64::from_str_radix(start.trim_start_matches("0x"), 16).unwrap(),
        bytes: bytes.parse().unwrap(),
        event: event.to_owned(),
    };
    let text = fs::read_to_string(&trace).expect("a trace");
    let slices = slices(&serde_json::from_str(&text).expect("the trace is JSON"));
    // Half pages may be told as they were asked for.
    let found = slices.iter().any(|slice| {
        let whole = Slice { bytes: slice.bytes.next_multiple_of(4096), event: slice.event.clone(), ..*slice };
        whole == wanted
    });
    let near: Vec<_> = slices.iter().filter(|slice| slice.start.abs_diff(wanted.start) < 1 << 24).collect();
    assert!(
        found,
        "{row} is not in {}: {:#x}, {} bytes, {}; near it: {near:#x?}",
        trace.display(),
        wanted.start,
        wanted.bytes,
        wanted.event
    );
}

#[test]
fn a_trace_may_be_an_array_or_an_object() {
    let text = r#"[{"ph":"M","args":{"name":"x"}},
        {"ph":"X","name":"munmap","args":{"start":"0x7f00","bytes":4096,"event":"unmap","caller":"f"}},
        {"ph":"X","name":"mmap","args":{"start":"0x0","bytes":0}}]"#;
    let array: Value = serde_json::from_str(text).unwrap();
    let wanted = [Slice { start: 0x7f00, bytes: 4096, event: "unmap".into() }];
    assert_eq!(slices(&array), wanted);
    assert_eq!(slices(&serde_json::json!({ "traceEvents": array })), wanted);
}

#[test]
fn munmap_is_seen() {
    assert_seen("munmap_is_seen", "munmap");
}

#[test]
fn madvise_dontneed_is_seen() {
    assert_seen("madvise_dontneed_is_seen", "madvise");
}

#[test]
fn a_mapping_over_another_is_seen() {
    assert_seen("a_mapping_over_another_is_seen", "mmap_fixed");
}

#[test]
fn a_shrinking_heap_is_seen() {
    assert_seen("a_shrinking_heap_is_seen", "sbrk");
}

#[test]
fn shmdt_is_seen() {
    assert_seen("shmdt_is_seen", "shmdt");
}

#[test]
fn free_of_a_large_block_is_seen() {
    assert_seen("free_of_a_large_block_is_seen", "free");
}

#[test]
fn where_mremap_moves_from_is_seen() {
    assert_seen("where_mremap_moves_from_is_seen", "mremap_source");
}

#[test]
fn where_mremap_moves_to_is_seen() {
    assert_seen("where_mremap_moves_to_is_seen", "mremap_destination");
}

#[test]
fn munmap_by_number_is_seen() {
    assert_seen("munmap_by_number_is_seen", "syscall");
}

#[test]
fn dlclose_is_seen() {
    assert_seen("dlclose_is_seen", "dlclose");
}

#[test]
fn mprotect_is_seen() {
    assert_seen("mprotect_is_seen", "mprotect");
}

#[test]
fn truncation_of_a_mapped_file_is_seen() {
    assert_seen("truncation_of_a_mapped_file_is_seen", "ftruncate");
}

#[test]
fn a_hole_in_a_mapped_file_is_seen() {
    assert_seen("a_hole_in_a_mapped_file_is_seen", "punch_hole");
}

#[test]
fn process_madvise_of_oneself_is_seen() {
    assert_seen("process_madvise_of_oneself_is_seen", "process_madvise");
}

#[test]
fn madvise_pageout_is_seen() {
    assert_seen("madvise_pageout_is_seen", "pageout");
}

#[test]
fn madvise_dontneed_locked_is_seen() {
    assert_seen("madvise_dontneed_locked_is_seen", "dontneed_locked");
}
