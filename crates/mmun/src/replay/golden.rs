//! The golden archive, which is part of the program: `golden:NAME--KERNEL`.

use std::collections::BTreeSet;
use std::io::Read;

use anyhow::{Result, bail};
use flate2::read::GzDecoder;
use mmu_notifier_model::{GOLDEN, Kernel, Trace, split};
use serde_json::Value;

/// How many names an error suggests.
const SUGGESTED: usize = 8;

fn text() -> String {
    let mut text = String::new();
    GzDecoder::new(GOLDEN).read_to_string(&mut text).expect("the archive is part of the program");
    text
}

fn read(text: &str) -> Trace {
    let mut trace = Trace::read("golden", text).expect("the archive is part of the program");
    trace.file = file(&trace);
    trace
}

/// What a trace of the archive is called here.
pub(super) fn file(trace: &Trace) -> String {
    format!("golden:{}--{}", trace.header.name, short(trace.header.kernel))
}

/// A kernel without its `linux-`.
pub(super) fn short(kernel: Kernel) -> &'static str {
    kernel.name.strip_prefix("linux-").unwrap_or(kernel.name)
}

/// Every trace of the archive.
pub(super) fn all() -> Vec<Trace> {
    split(&text()).into_iter().map(read).collect()
}

/// The traces of this name, `all` of them, or the one of `NAME--KERNEL`.
pub(super) fn named(name: &str) -> Result<Vec<(String, String)>> {
    let (scenario, kernel) = match name.split_once("--") {
        Some((scenario, kernel)) => match Kernel::named(kernel).or_else(|| Kernel::of_release(kernel)) {
            Some(kernel) => (scenario, Some(kernel)),
            None => bail!("golden:{name}: there is no kernel {kernel}; write it as 5.10, 6.1, 6.12 or 7.2"),
        },
        None => (name, None),
    };
    let text = text();
    let candidates =
        split(&text).into_iter().filter(|text| scenario == "all" || scenario_of(text) == scenario);
    let mut found = Vec::new();
    let mut recorded = Vec::new();
    for text in candidates {
        let trace = read(text);
        recorded.push(short(trace.header.kernel));
        if kernel.is_none_or(|kernel| kernel == trace.header.kernel) {
            found.push((trace.file, text.to_owned()));
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    if !recorded.is_empty() {
        bail!("golden:{name}: {scenario} was recorded on {} only", recorded.join(", "));
    }
    bail!("golden:{name}: there is no such golden trace; {}", suggestion(&text, scenario))
}

/// The name in the header alone: to read the rest takes a while, and most traces are not asked for.
fn scenario_of(text: &str) -> String {
    let header: Value =
        text.lines().next().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    header["name"].as_str().unwrap_or_default().to_owned()
}

fn suggestion(text: &str, scenario: &str) -> String {
    let names: BTreeSet<String> = split(text).into_iter().map(scenario_of).collect();
    let similar: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| !scenario.is_empty() && name.contains(scenario))
        .collect();
    match similar.len() {
        0 => "mmun replay --list shows what there is".to_owned(),
        1..=SUGGESTED => format!("there is {}", similar.join(", ")),
        many => format!("there is {}, and {} more", similar[..SUGGESTED].join(", "), many - SUGGESTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(name: &str) -> Vec<String> {
        named(name).unwrap().into_iter().map(|(file, _)| file).collect()
    }

    #[test]
    fn a_trace_has_a_name() {
        assert_eq!(files("change_pte"), ["golden:change_pte--5.10", "golden:change_pte--6.1"]);
        for name in ["change_pte--6.1", "change_pte--linux-6.1", "change_pte--6.1.192"] {
            assert_eq!(files(name), ["golden:change_pte--6.1"]);
        }
        let all = files("all");
        assert_eq!(all.len(), 654);
        assert!(all.iter().all(|file| !file.starts_with("golden:all--")), "a scenario is called all");
    }

    #[test]
    fn a_wrong_name_gets_an_answer() {
        for (name, answer) in [
            ("change_pte--7.2", "golden:change_pte--7.2: change_pte was recorded on 5.10, 6.1 only"),
            (
                "change_pte--7.9",
                "golden:change_pte--7.9: there is no kernel 7.9; write it as 5.10, 6.1, 6.12 or 7.2",
            ),
            ("change", "golden:change: there is no such golden trace; there is change_pte"),
            ("", "golden:: there is no such golden trace; mmun replay --list shows what there is"),
            ("spoon", "golden:spoon: there is no such golden trace; mmun replay --list shows what there is"),
        ] {
            assert_eq!(named(name).unwrap_err().to_string(), answer);
        }
        let many = named("e").unwrap_err().to_string();
        assert!(many.contains(" there is bad_error_code_nonblock, ") && many.ends_with(" more"), "{many}");
    }
}
