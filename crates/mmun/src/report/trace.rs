//! A trace in the Chrome format, for Perfetto and `chrome://tracing`: a track for each thread, a slice
//! for each call.
//!
//! Everything is written at once and nothing kept but the ids of the processes and threads seen. The
//! file is a JSON array of events; tools accept one without its end, so the trace of a run that was
//! never finished can still be opened. Times are microseconds with three decimals: exact nanoseconds.
//!
//! | category | slices |
//! | --- | --- |
//! | `bracket` | a call with a bracket, from its first start to its last end |
//! | `phase` | inside it: `start`, `system call`, `end` |
//! | `call` | a call that announced nothing |

use std::collections::HashSet;
use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use super::words::{command, ending};
use crate::summary::{Caller, Record, Summary};

/// A trace that is being written.
#[derive(Debug)]
pub struct Trace<W> {
    file: W,
    first: bool,
    processes: HashSet<u32>,
    threads: HashSet<(u32, u32)>,
}

impl<W: Write> Trace<W> {
    /// Begins a trace. The writer should be buffered.
    pub fn create(mut file: W) -> io::Result<Trace<W>> {
        file.write_all(b"[")?;
        Ok(Trace { file, first: true, processes: HashSet::new(), threads: HashSet::new() })
    }

    /// Adds one call.
    pub fn record(&mut self, record: &Record, caller: &Caller) -> io::Result<()> {
        let &Record { pid, tid, time_ns, .. } = record;
        self.name_track(pid, tid)?;
        let details = Details {
            start: format!("{:#x}", record.start),
            bytes: record.len,
            event: record.event,
            failed: record.failed,
            refused: record.refused,
            caller: &caller.symbol,
            file: &caller.file,
        };
        let took = [record.starts_ns, record.change_ns, record.ends_ns];
        let whole = took.iter().fold(0, |sum: u64, &part| sum.saturating_add(part));
        let category = if record.event.is_some() { "bracket" } else { "call" };
        self.slice(record.call, category, pid, tid, time_ns, whole)?;
        self.file.write_all(b",\"args\":")?;
        serde_json::to_writer(&mut self.file, &details)?;
        self.file.write_all(b"}")?;
        if record.event.is_some() {
            let mut begin = time_ns;
            for (name, took) in ["start", "system call", "end"].into_iter().zip(took) {
                // A release has no system call that returns and no end.
                if took > 0 {
                    self.slice(name, "phase", pid, tid, begin, took)?;
                    self.file.write_all(b"}")?;
                }
                begin = begin.saturating_add(took);
            }
        }
        Ok(())
    }

    /// Writes what is known of the whole run and ends the trace.
    pub fn finish(mut self, summary: &Summary) -> io::Result<()> {
        let wall = summary.wall.as_nanos().try_into().unwrap_or(u64::MAX);
        let run = Run {
            command: &summary.command,
            outcome: format!("{} {}", command(summary), ending(summary.outcome)),
            records: summary.records,
            records_dropped: summary.records_dropped,
            processes_lost: summary.processes_lost,
            starts: summary.balance_starts,
            ends: summary.balance_ends,
        };
        self.next()?;
        write!(
            self.file,
            "{{\"name\":\"end of the run\",\"cat\":\"run\",\"ph\":\"i\",\"s\":\"g\",\"pid\":0,\"tid\":0,\"ts\":{},\
             \"args\":",
            Microseconds(wall)
        )?;
        serde_json::to_writer(&mut self.file, &run)?;
        self.file.write_all(b"}\n]\n")?;
        self.file.flush()
    }

    /// Everything of a slice but its arguments and its closing brace.
    fn slice(&mut self, name: &str, category: &str, pid: u32, tid: u32, ts: u64, dur: u64) -> io::Result<()> {
        self.next()?;
        // The names are those of system calls and phases: nothing to escape.
        write!(
            self.file,
            "{{\"name\":\"{name}\",\"cat\":\"{category}\",\"ph\":\"X\",\"pid\":{pid},\"tid\":{tid},\
             \"ts\":{},\"dur\":{}",
            Microseconds(ts),
            Microseconds(dur)
        )
    }

    fn name_track(&mut self, pid: u32, tid: u32) -> io::Result<()> {
        if self.processes.insert(pid) {
            self.metadata("process_name", pid, pid, "process")?;
        }
        if self.threads.insert((pid, tid)) {
            self.metadata("thread_name", pid, tid, if tid == pid { "main thread" } else { "thread" })?;
        }
        Ok(())
    }

    fn metadata(&mut self, what: &str, pid: u32, tid: u32, name: &str) -> io::Result<()> {
        self.next()?;
        write!(
            self.file,
            "{{\"name\":\"{what}\",\"ph\":\"M\",\"pid\":{pid},\"tid\":{tid},\"args\":{{\"name\":\"{name}\"}}}}"
        )
    }

    fn next(&mut self) -> io::Result<()> {
        self.file.write_all(if std::mem::take(&mut self.first) { b"\n" } else { b",\n" })
    }
}

#[derive(Serialize)]
struct Details<'a> {
    start: String,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
    failed: bool,
    refused: bool,
    caller: &'a str,
    file: &'a str,
}

#[derive(Serialize)]
struct Run<'a> {
    command: &'a [String],
    outcome: String,
    records: u64,
    records_dropped: u64,
    processes_lost: u64,
    starts: u64,
    ends: u64,
}

struct Microseconds(u64);

impl fmt::Display for Microseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;
    use crate::report::sample;

    fn traced(records: impl Iterator<Item = Record>) -> String {
        let callers = sample::callers();
        let mut out = Vec::new();
        let mut trace = Trace::create(&mut out).unwrap();
        for record in records {
            trace.record(&record, &callers[record.caller as usize]).unwrap();
        }
        trace.finish(&sample::summary()).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Nanoseconds of a field, from its exact text.
    fn ns(event: &Value, field: &str) -> u64 {
        (event[field].as_f64().unwrap() * 1000.0).round() as u64
    }

    #[test]
    fn slices_nest_and_threads_do_not_overlap() {
        let records: Vec<_> = sample::records(3000).collect();
        let text = traced(records.iter().copied());
        std::fs::write(sample::directory().join("mmun-trace.json"), &text).unwrap();
        let events: Vec<Value> = serde_json::from_str(&text).unwrap();
        let mut brackets = BTreeMap::<u64, Vec<(u64, u64)>>::new();
        let mut inside = (0, 0);
        let (mut calls, mut phases) = (0, 0);
        for event in events.iter().filter(|event| event["ph"] == "X") {
            let (begin, end) = (ns(event, "ts"), ns(event, "ts") + ns(event, "dur"));
            if event["cat"] == "phase" {
                phases += 1;
                assert!(inside.0 <= begin && end <= inside.1, "{event} lies outside {inside:?}");
                inside.0 = end;
                continue;
            }
            let record = records[calls];
            calls += 1;
            assert_eq!(
                (begin, end - begin),
                (record.time_ns, record.starts_ns + record.change_ns + record.ends_ns)
            );
            assert_eq!(event["cat"], if record.event.is_some() { "bracket" } else { "call" });
            assert_eq!(event["args"].get("event").and_then(Value::as_str), record.event);
            assert_eq!(event["args"]["start"], format!("{:#x}", record.start));
            inside = (begin, end);
            brackets.entry(event["tid"].as_u64().unwrap()).or_default().push((begin, end));
        }
        assert_eq!(calls, records.len());
        assert_eq!(phases, 3 * records.iter().filter(|record| record.event.is_some()).count());
        for (tid, mut slices) in brackets {
            slices.sort_unstable();
            assert!(slices.windows(2).all(|pair| pair[0].1 <= pair[1].0), "thread {tid} overlaps itself");
        }
    }

    #[test]
    fn every_track_is_named_once_and_first() {
        let text = traced(sample::records(500));
        let events: Vec<Value> = serde_json::from_str(&text).unwrap();
        let mut named = HashSet::new();
        for event in &events {
            let id = (event["pid"].as_u64(), event["tid"].as_u64());
            match event["name"].as_str() {
                Some("thread_name") => assert!(named.insert(id), "{event}"),
                _ if event["ph"] == "X" => assert!(named.contains(&id), "{event}"),
                _ => {}
            }
        }
        assert_eq!(events.last().unwrap()["name"], "end of the run");
    }

    #[test]
    fn an_unfinished_trace_lacks_only_its_end() {
        let mut out = Vec::new();
        let mut trace = Trace::create(&mut out).unwrap();
        let caller = Caller { symbol: "f\"\\\n\u{1}".into(), file: "</script>".into() };
        for record in sample::records(3) {
            trace.record(&record, &caller).unwrap();
        }
        drop(trace);
        let text = String::from_utf8(out).unwrap() + "]";
        let events: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert!(events.iter().any(|event| event["args"]["caller"] == caller.symbol.as_str()));
    }

    #[test]
    fn an_empty_trace_is_valid() {
        let events: Vec<Value> = serde_json::from_str(&traced(std::iter::empty())).unwrap();
        assert_eq!(events.len(), 1);
    }

    #[test]
    fn a_bracket_without_an_end_has_no_empty_slices() {
        let record =
            Record { event: Some("release"), change_ns: 0, ends_ns: 0, ..sample::records(1).next().unwrap() };
        let text = traced([record].into_iter());
        assert!(!text.contains("\"system call\""));
    }

    #[test]
    fn broken_times_do_not_overflow() {
        let record = Record { time_ns: u64::MAX, change_ns: u64::MAX, ..sample::records(1).next().unwrap() };
        serde_json::from_str::<Vec<Value>>(&traced([record].into_iter())).unwrap();
    }
}
