//! The page holds what was recorded, stays small, and is safe whatever the names in it.

use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::report::sample;
use crate::summary::{Outcome, Unseen};

fn collected(records: impl Iterator<Item = Record>) -> Html {
    let mut html = Html::new();
    records.for_each(|record| html.record(&record));
    html
}

/// The page, also left as a file to be looked at.
fn page(html: &Html, summary: &Summary, callers: &[Caller], file: &str) -> String {
    let mut out = Vec::new();
    html.write(&mut out, summary, callers).unwrap();
    std::fs::write(sample::directory().join(file), &out).unwrap();
    String::from_utf8(out).unwrap()
}

fn data(page: &str) -> Value {
    let (_, rest) = page.split_once(r#"<script type="application/json" id="data">"#).expect("the data");
    serde_json::from_str(rest.split_once("</script>").expect("their end").0).expect("valid JSON")
}

fn sum(list: &Value) -> u64 {
    list.as_array().unwrap().iter().map(|value| value.as_u64().unwrap()).sum()
}

#[test]
fn the_page_has_every_record_in_it() {
    let records = || sample::records(20_000);
    let page = page(&collected(records()), &sample::summary(), &sample::callers(), "mmun-report.html");
    let data = data(&page);
    let kinds = data["kinds"].as_array().unwrap();
    assert_eq!(kinds.iter().map(|kind| sum(&kind["timeline"])).sum::<u64>(), 20_000);
    let brackets = records().filter(|record| record.event.is_some() && record.len > 0).count() as u64;
    assert_eq!(kinds.iter().map(|kind| sum(&kind["sizes"])).sum::<u64>(), brackets);
    let sites = data["sites"].as_array().unwrap();
    assert_eq!(sites.iter().map(|site| site["count"].as_u64().unwrap()).sum::<u64>(), 20_000);
    assert!(sites.iter().any(|site| site["symbol"] == "sysmalloc+0x1a7" && site["call"] == "mmap"));
    let threads = data["threads"].as_array().unwrap();
    assert_eq!(threads.iter().map(|thread| sum(&thread["strip"])).sum::<u64>(), 20_000);
    assert!((TIMELINE as u64 / 2..=TIMELINE as u64).contains(&data["bins"].as_u64().unwrap()));
    let mut slowest: Vec<_> =
        records().filter(|record| record.event.is_some()).map(|record| took(&record)).collect();
    slowest.sort_unstable_by(|a, b| b.cmp(a));
    let shown = data["slowest"].as_array().unwrap().iter().map(|slow| slow["took_ns"].as_u64().unwrap());
    assert!(shown.eq(slowest[..SLOWEST].iter().copied()));
}

#[test]
fn what_went_wrong_is_in_the_page() {
    let html = collected(sample::records(20_000));
    let page = page(&html, &sample::troubled(), &sample::callers(), "mmun-report-troubled.html");
    let data = data(&page);
    assert_eq!((&data["balance"], &data["unbalanced"]), (&"elevated".into(), &4.into()));
    assert_eq!(data["run"]["programs_unseen"]["/bin/static"], 3);
    assert!(page.contains("NOT BALANCED"), "also without a script");
    assert_eq!(data["run"]["check"]["stale"], 3);
    assert_eq!(data["run"]["check"]["findings"][0]["changed"]["call"], "madvise(MADV_DONTNEED)");
}

#[test]
fn nothing_and_next_to_nothing_make_a_page() {
    let empty = page(&Html::new(), &Summary::default(), &[], "mmun-report-empty.html");
    assert_eq!(data(&empty)["bins"], 1);
    let one = sample::records(1).next().unwrap();
    let record = Record { event: Some("unmap"), caller: 7_000, ..one };
    let summary = sample::summary_of([record].into_iter());
    let page = page(&collected([record].into_iter()), &summary, &[], "mmun-report-one.html");
    assert_eq!(data(&page)["sites"][0]["symbol"], "not known");
}

#[test]
fn a_run_that_outlives_its_records_is_shown_to_its_end() {
    let html = collected(sample::records(100));
    let summary = Summary { wall: Duration::from_secs(60), ..sample::summary() };
    let data = data(&page(&html, &summary, &sample::callers(), "mmun-report-idle.html"));
    let (bins, bin_ns) = (data["bins"].as_u64().unwrap(), data["bin_ns"].as_u64().unwrap());
    assert!(
        bins <= TIMELINE as u64 && bins * bin_ns >= 60_000_000_000 && (bins - 1) * bin_ns < 60_000_000_000
    );
}

#[test]
fn five_million_records_stay_a_small_page() {
    let mut html = Html::new();
    let callers: Vec<_> = (0..5000)
        .map(|n| Caller { symbol: format!("f{n}<{}>", "T,".repeat(400)), file: format!("/lib/{n}.so") })
        .collect();
    let mut summary = sample::summary();
    let few: Vec<_> = sample::records(10_000).collect();
    for n in 0..5_000_000 {
        // A minute of time and, now and then, many more threads and call sites than have room.
        let mut record = Record { time_ns: n as u64 * 12_000, ..few[n % few.len()] };
        if n % 16 == 0 {
            record.tid += (n / 16 % 1000) as u32;
            record.caller = (n as u32).wrapping_mul(2_654_435_761) % 5000;
        }
        html.record(&record);
    }
    summary.wall = Duration::from_secs(60);
    assert!(html.kinds.iter().all(|kind| kind.timeline.values().len() <= TIMELINE));
    assert!(html.sites.known().0 <= 2049 && html.threads.known().0 <= 4 * THREADS + 1);
    assert!(html.slowest.len() == SLOWEST);
    let page = page(&html, &summary, &callers, "mmun-report-large.html");
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    let data = data(&page);
    assert_eq!(data["threads"].as_array().unwrap().len(), THREADS);
    assert_eq!(data["sites"].as_array().unwrap().len(), SITES);
}

#[test]
fn no_name_becomes_markup() {
    let evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&lt;@@data@@\u{2028}";
    let callers = [Caller { symbol: evil.to_owned(), file: evil.to_owned() }];
    let summary = Summary {
        command: vec![evil.to_owned()],
        outcome: Outcome::Exited(1),
        unseen: vec![Unseen {
            reason: "no reason",
            file: evil.to_owned(),
            call: Some(evil.to_owned()),
            address: 0,
            processes: 1,
        }],
        programs_unseen: [(evil.to_owned(), 1)].into(),
        ..sample::summary()
    };
    let html = collected(sample::records(100).map(|record| Record { caller: 0, ..record }));
    let page = page(&html, &summary, &callers, "mmun-report-evil.html");
    assert!(!page.contains("<script>alert") && !page.contains("<img src=x"));
    // One element each for the data, uPlot and the page's own script, as with a harmless name.
    assert_eq!(page.matches("<script").count(), 3);
    assert_eq!(page.matches("</script").count(), 3);
    assert_eq!(data(&page)["sites"][0]["symbol"].as_str().unwrap(), evil.replace('\u{2028}', "\\u{2028}"));
}

#[test]
fn the_page_asks_nobody_for_anything() {
    let page = page(&Html::new(), &sample::summary(), &[], "mmun-report-quiet.html");
    for asks in [" src=", " href=", "@import", "url(", "fetch(", "XMLHttpRequest", "WebSocket", "import("] {
        assert!(!page.contains(asks), "{asks}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn longer_lists_than_a_page_can_hold_are_counted() {
    let unseen =
        |n: u64| Unseen { reason: "why", file: "f".repeat(5000), call: None, address: n, processes: 1 };
    let summary = Summary {
        command: vec!["x".repeat(9999); 9999],
        unseen: (0..5000).map(unseen).collect(),
        programs_unseen: (0..5000).map(|n| (format!("/bin/{n:04}"), 2)).collect(),
        ..Summary::default()
    };
    let page = page(&Html::new(), &summary, &[], "mmun-report-lists.html");
    assert!(page.len() < 2_000_000);
    let run = &data(&page)["run"];
    assert_eq!(run["unseen"].as_array().unwrap().len() as u64 + run["unseen_more"].as_u64().unwrap(), 5000);
    let programs = run["programs_unseen"].as_object().unwrap();
    assert_eq!(programs.values().map(|times| times.as_u64().unwrap()).sum::<u64>(), 10_000);
}
