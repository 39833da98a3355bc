//! The golden traces.
use std::io::Read;
use std::sync::OnceLock;

use mmu_notifier_model::{Trace, replay, split};

/// Every golden trace: its file name and its text.
pub(crate) fn texts() -> &'static [(String, String)] {
    static TEXTS: OnceLock<Vec<(String, String)>> = OnceLock::new();
    TEXTS.get_or_init(|| {
        let packed = &include_bytes!("../../golden/traces.jsonl.gz")[..];
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("the archive is whole");
        let name = |text: &str| {
            let header = text.lines().next().expect("a trace has a header");
            let header: serde_json::Value = serde_json::from_str(header).expect("the header is JSON");
            format!("{}--{}.jsonl", header["name"].as_str().unwrap(), header["kernel"].as_str().unwrap())
        };
        split(&text).into_iter().map(|text| (name(text), text.to_owned())).collect()
    })
}

#[test]
fn every_observation_of_every_trace_matches() {
    let mut bad = 0;
    for (file, text) in texts() {
        let trace = match Trace::read(file, text) {
            Ok(t) => t,
            Err(e) => {
                println!("{e}");
                bad += 1;
                continue;
            }
        };
        let report = replay(&trace, trace.header.kernel);
        if let Some(m) = report.mismatches.first() {
            println!("{m} ({})", report.mismatches.len());
            bad += 1;
        }
    }
    assert_eq!(texts().len(), 654);
    assert_eq!(bad, 0);
}
