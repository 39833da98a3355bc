//! The diagnosis for scripts: `docs/doctor.md` has the schema.

use std::io;

use mmu_notifier_primary::probe::SHOTS;
use serde_json::{Value, json};

use super::Diagnosis;
use super::findings::{Finding, Mode};
use crate::page::Page;

/// Of the shape of what is written.
const VERSION: u32 = 1;

pub fn write(page: &mut Page, diagnosis: &Diagnosis) -> io::Result<()> {
    page.line(&serde_json::to_string_pretty(&value(diagnosis))?)
}

fn value(diagnosis: &Diagnosis) -> Value {
    let wrong = diagnosis.wrong();
    let modes: Vec<Value> = diagnosis.modes.iter().map(|(mode, findings)| {
        let costs = SHOTS.iter().filter_map(|shot| {
            let (alone_ns, watched_ns) = (diagnosis.alone(shot.name)?, diagnosis.watched(*mode, shot.name)?);
            Some(json!({ "event": shot.name, "alone_ns": alone_ns, "watched_ns": watched_ns }))
        });
        json!({
            "mode": mode,
            "calls": findings.calls.iter().chain(&findings.others).map(|finding| call(*mode, finding)).collect::<Vec<_>>(),
            "costs": costs.collect::<Vec<_>>(),
            "notes": findings.notes,
        })
    }).collect();
    json!({
        "version": VERSION,
        "good": wrong.is_empty(),
        "wrong": wrong,
        "modes": modes,
        "static_program": {
            "run": diagnosis.alone.run == Some(Ok(true)),
            "refused": diagnosis.alone.run.as_ref().and_then(|run| run.as_ref().err()),
            "started": diagnosis.alone.started,
        },
        "machine": diagnosis.machine,
    })
}

fn call(mode: Mode, finding: &Finding) -> Value {
    let expected = finding.changes && finding.origin.is_none_or(|origin| mode.covers(origin));
    json!({
        "event": finding.event,
        "call": finding.call,
        "origin": finding.origin,
        "changes": finding.changes,
        "expected": expected,
        "before": finding.before,
        "after": finding.after,
        "starts": finding.starts,
        "ends": finding.ends,
        "site": finding.site,
        "errno": finding.errno,
    })
}
