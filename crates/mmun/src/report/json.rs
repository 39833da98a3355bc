//! The summary for scripts: one JSON object, described in `docs/json.md`.
//!
//! The schema is stable: within `mmun-run/1` fields are added and never change their meaning or go.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::{Serialize, Serializer};

mod check;

use self::check::Check;
use super::audit;
use crate::summary::{Outcome, Summary, Times};

/// Writes the object, for people indented, and a line feed.
pub fn write(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, &Run::from(summary))?;
    writeln!(out)
}

#[derive(Serialize)]
pub(super) struct Run<'a> {
    schema: &'static str,
    command: &'a [String],
    outcome: Option<Ending>,
    wall_ns: u64,
    calls: BTreeMap<&'a str, Calls>,
    #[serde(serialize_with = "in_order")]
    events: Vec<(&'a str, Events)>,
    starts: Distribution<'a>,
    changes: Distribution<'a>,
    ends: Distribution<'a>,
    balance: Balance,
    refusals: Refusals,
    sites: Sites,
    strict: Strict,
    unseen: Vec<Unseen<'a>>,
    unseen_more: u64,
    programs_unseen: &'a BTreeMap<String, u64>,
    processes: u64,
    processes_lost: u64,
    processes_left: u64,
    threads: u64,
    records: Records,
    hook: Hook,
    check: Option<Check<'a>>,
    audit: Option<audit::Json<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Ending {
    Exited(i32),
    Killed(i32),
}

#[derive(Serialize)]
struct Calls {
    count: u64,
    failed: u64,
    bracketed: u64,
}

#[derive(Serialize)]
struct Events {
    changes: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Distribution<'a> {
    count: u64,
    total_ns: u64,
    max_ns: u64,
    p50_ns: u64,
    p99_ns: u64,
    buckets: &'a [(u64, u64)],
}

#[derive(Serialize)]
struct Balance {
    starts: u64,
    ends: u64,
    cut_short: u64,
    still_open: u64,
    abandoned: u64,
}

#[derive(Serialize)]
struct Refusals {
    every: u32,
    refused: u64,
    announced_again: u64,
    quarantined: u64,
    quarantined_bytes: u64,
    unmapped_by_worker: u64,
    unmapped_by_calls: u64,
    failed: u64,
}

#[derive(Serialize)]
struct Sites {
    t1: u64,
    t2: u64,
    t3: u64,
    mappings_searched: u64,
    search_ns: u64,
}

#[derive(Serialize)]
struct Strict {
    asked: u64,
    needed: u64,
    refused: u64,
    places: u64,
    trapped: u64,
    rewritten: u64,
    kept: u64,
}

#[derive(Serialize)]
struct Unseen<'a> {
    reason: &'a str,
    file: &'a str,
    call: Option<&'a str>,
    address: String,
    processes: u64,
}

#[derive(Serialize)]
struct Records {
    read: u64,
    dropped: u64,
    buffer_bytes: u64,
}

#[derive(Serialize)]
struct Hook {
    own_calls: u64,
    own_bytes: u64,
}

impl<'a> From<&'a Summary> for Run<'a> {
    fn from(summary: &'a Summary) -> Run<'a> {
        let nanoseconds = |time: std::time::Duration| time.as_nanos().try_into().unwrap_or(u64::MAX);
        let [t1, t2, t3] = summary.sites;
        Run {
            schema: "mmun-run/1",
            command: &summary.command,
            outcome: match summary.outcome {
                Outcome::Running => None,
                Outcome::Exited(status) => Some(Ending::Exited(status)),
                Outcome::Killed(signal) => Some(Ending::Killed(signal)),
            },
            wall_ns: nanoseconds(summary.wall),
            calls: summary
                .calls
                .iter()
                .map(|(&name, calls)| {
                    let (count, failed, bracketed) = (calls.count, calls.failed, calls.bracketed);
                    (name, Calls { count, failed, bracketed })
                })
                .collect(),
            events: summary
                .events
                .iter()
                .map(|(name, events)| (*name, Events { changes: events.changes, bytes: events.bytes }))
                .collect(),
            starts: (&summary.starts).into(),
            changes: (&summary.changes).into(),
            ends: (&summary.ends).into(),
            balance: Balance {
                starts: summary.balance_starts,
                ends: summary.balance_ends,
                cut_short: summary.cut_short,
                still_open: summary.still_open,
                abandoned: summary.abandoned,
            },
            refusals: Refusals {
                every: summary.refuse_every,
                refused: summary.refused,
                announced_again: summary.announced_again,
                quarantined: summary.put_off.ranges,
                quarantined_bytes: summary.put_off.bytes,
                unmapped_by_worker: summary.put_off.by_worker,
                unmapped_by_calls: summary.put_off.by_calls,
                failed: summary.put_off.declined,
            },
            sites: Sites {
                t1,
                t2,
                t3,
                mappings_searched: summary.mappings_searched,
                search_ns: nanoseconds(summary.search),
            },
            strict: Strict {
                asked: summary.strict.asked,
                needed: summary.strict.needed,
                refused: summary.strict.refused,
                places: summary.strict.places,
                trapped: summary.strict.trapped,
                rewritten: summary.strict.rewritten,
                kept: summary.strict.kept,
            },
            unseen: summary
                .unseen
                .iter()
                .map(|entry| Unseen {
                    reason: entry.reason,
                    file: &entry.file,
                    call: entry.call.as_deref(),
                    address: format!("{:#x}", entry.address),
                    processes: entry.processes,
                })
                .collect(),
            unseen_more: summary.unseen_more,
            programs_unseen: &summary.programs_unseen,
            processes: summary.processes,
            processes_lost: summary.processes_lost,
            processes_left: summary.processes_left,
            threads: summary.threads,
            records: Records {
                read: summary.records,
                dropped: summary.records_dropped,
                buffer_bytes: summary.record_buffer,
            },
            hook: Hook { own_calls: summary.own_calls, own_bytes: summary.own_bytes },
            check: summary.check.as_ref().map(Check::from),
            audit: summary.audit.as_ref().map(audit::Json::from),
        }
    }
}

impl<'a> From<&'a Times> for Distribution<'a> {
    fn from(times: &'a Times) -> Distribution<'a> {
        Distribution {
            count: times.count,
            total_ns: times.total_ns,
            max_ns: times.max_ns,
            p50_ns: times.quantile_ns(0.5),
            p99_ns: times.quantile_ns(0.99),
            buckets: &times.buckets,
        }
    }
}

/// A map that keeps the kernel's order of the events.
fn in_order<S: Serializer>(events: &[(&str, Events)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(events.iter().map(|(name, events)| (name, events)))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::report::sample;

    fn written(summary: &Summary) -> Value {
        let mut out = Vec::new();
        write(summary, &mut out).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    fn documented() -> Value {
        let page = include_str!("../../../../docs/json.md");
        let (_, rest) = page.split_once("```json\n").expect("an example");
        serde_json::from_str(rest.split_once("```").expect("its end").0).expect("an example that parses")
    }

    /// Both have the same keys, or the same kinds of elements, at every depth. Maps whose keys are
    /// names of the run (calls, events, programs) are compared by one of their values.
    fn same_shape(path: &str, ours: &Value, documented: &Value) {
        match (ours, documented) {
            (Value::Object(ours), Value::Object(documented)) => {
                let named = [
                    ".calls",
                    ".events",
                    ".programs_unseen",
                    ".check.registered",
                    ".audit.causes",
                    ".audit.not_judged",
                ]
                .contains(&path);
                if named {
                    let first = |map: &serde_json::Map<String, Value>| map.values().next().cloned();
                    let both = (first(ours), first(documented));
                    let (Some(ours), Some(documented)) = both else { panic!("{path}: an empty map") };
                    return same_shape(&format!("{path}.*"), &ours, &documented);
                }
                let keys = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
                assert_eq!(keys(ours), keys(documented), "keys of {path}");
                for (key, value) in ours {
                    same_shape(&format!("{path}.{key}"), value, &documented[key]);
                }
            }
            (Value::Array(ours), Value::Array(documented)) => {
                let (Some(ours), Some(documented)) = (ours.first(), documented.first()) else {
                    panic!("{path}: an empty list")
                };
                same_shape(&format!("{path}[]"), ours, documented);
            }
            (Value::Number(_), Value::Number(_))
            | (Value::String(_), Value::String(_))
            | (Value::Bool(_), Value::Bool(_)) => {}
            (ours, documented) => panic!("{path} is {ours} here and {documented} in the page"),
        }
    }

    #[test]
    fn the_page_shows_what_is_written() {
        let summary = Summary { outcome: Outcome::Exited(0), ..sample::troubled() };
        same_shape("", &written(&summary), &documented());
    }

    #[test]
    fn the_page_explains_every_field() {
        fn fields(value: &Value, page: &str) {
            match value {
                Value::Object(map) => map.iter().for_each(|(key, value)| {
                    let is_name =
                        key.contains('/') || value.get("count").is_some() && value.get("failed").is_some();
                    let is_event = value.get("changes").is_some_and(Value::is_u64);
                    assert!(
                        is_name || is_event || page.contains(&format!("`{key}`")),
                        "`{key}` is not explained"
                    );
                    fields(value, page);
                }),
                Value::Array(list) => list.iter().for_each(|value| fields(value, page)),
                _ => {}
            }
        }
        fields(&written(&sample::troubled()), include_str!("../../../../docs/json.md"));
    }

    #[test]
    fn every_call_is_there_with_its_counts() {
        let summary = sample::summary();
        let json = written(&summary);
        for (name, calls) in &summary.calls {
            assert_eq!(json["calls"][name]["count"], calls.count);
            assert_eq!(json["calls"][name]["failed"], calls.failed);
            assert_eq!(json["calls"][name]["bracketed"], calls.bracketed);
        }
        assert_eq!(json["calls"]["execve"]["count"], 0, "calls never made are there as well");
        assert_eq!(json["starts"]["p99_ns"], summary.starts.quantile_ns(0.99));
    }

    #[test]
    fn the_outcome_has_one_key() {
        let outcome = |outcome| written(&Summary { outcome, ..Summary::default() })["outcome"].clone();
        assert_eq!(outcome(Outcome::Exited(3)), serde_json::json!({ "exited": 3 }));
        assert_eq!(outcome(Outcome::Killed(9)), serde_json::json!({ "killed": 9 }));
        assert_eq!(outcome(Outcome::Running), Value::Null);
    }
}
