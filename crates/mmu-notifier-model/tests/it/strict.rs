//! What is not a trace is refused, and the error says where and why.

use mmu_notifier_model::{Blocking, Change, Event, Kernel, Machine, Op, Trace, TraceError, replay};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::golden;
use crate::{Random, reading};

const HEADER: &str = r#"{"format":1,"kernel":"7.2.13","variant":"newest","name":"mine","traits":[]}"#;
const MM: &str = r#"{"n":0,"op":"mm","m":0}"#;
const FINISH: &str =
    r#"{"n":1,"op":"finish","stuck":[],"open":[],"mms":[{"m":0,"users":1,"count":1,"subs":null}]}"#;

fn read(lines: &[&str]) -> Result<Trace, TraceError> {
    Trace::read("mine.jsonl", &lines.join("\n"))
}

fn error(lines: &[&str]) -> String {
    read(lines).expect_err("not a trace").to_string()
}

/// The smallest trace, with `line` in the place of its first operation.
fn error_of(line: &str) -> String {
    error(&[HEADER, line, FINISH])
}

#[test]
fn the_smallest_trace_is_one() {
    let trace = read(&[HEADER, MM, FINISH]).expect("a trace");
    assert!(replay(&trace, Kernel::LINUX_7_2).mismatches.is_empty());
}

#[test]
fn a_file_that_is_no_trace() {
    assert_eq!(error(&[]), "mine.jsonl:1: the file is empty: a trace begins with a header");
    assert_eq!(error(&[MM]), "mine.jsonl:1: format: the field is missing: a trace begins with a header");
    assert_eq!(error(&["[]"]), "mine.jsonl:1: the line is not an object but a list");
    assert_eq!(error(&["\u{7f}ELF"]), "mine.jsonl:1: the line is not JSON: expected value in column 1");
    assert_eq!(error(&[HEADER]), "mine.jsonl:1: the trace is truncated: it ends with a finish line or a bug");
    assert_eq!(
        error(&[HEADER, MM]),
        "mine.jsonl:2: the trace is truncated: it ends with a finish line or a bug"
    );
    assert_eq!(error(&[HEADER, MM, FINISH, MM]), "mine.jsonl:4: the trace goes on after its end");
    assert_eq!(
        error(&[HEADER, MM, "", FINISH]),
        "mine.jsonl:3: the line is truncated: EOF while parsing a value in column 0"
    );
}

#[test]
fn a_header_that_is_none() {
    for (from, to, expected) in [
        ("1", "1.0", "format: 1.0 is not a whole number of 64 bits"),
        ("1", "\"1\"", "format: it should be a number and is a string"),
        ("7.2.13", "7.2.14", "kernel: \"7.2.14\" is none of 5.10.13, 6.1.192, 6.12.117, 7.2.13"),
        ("newest", "pre-fix", "variant: \"pre-fix\" is not the variant of 7.2.13"),
        ("mine", "", "name: the scenario has no name"),
        (r#""name":"mine","#, "", "name: the field is missing"),
        ("[]", r#"["warn","bug"]"#, "traits: they are not sorted, or one is there twice"),
        ("[]", r#"["bug","bug"]"#, "traits: they are not sorted, or one is there twice"),
        ("[]", r#"[],"seed":1"#, "profile: the field is missing"),
        ("[]", r#"[],"misuse":false"#, "misuse: it should be true or absent and is false"),
        ("[]", r#"[],"author":"me""#, "author: the field is unknown here"),
        ("[]", r#"[],"name":"twice""#, "name: the field is there twice"),
    ] {
        let header = HEADER.replacen(from, to, 1);
        assert_eq!(error(&[&header, MM, FINISH]), format!("mine.jsonl:1: {expected}"), "{header}");
    }
    let unknown = HEADER.replace("[]", r#"["spooky"]"#);
    assert!(error(&[&unknown, MM, FINISH]).starts_with("mine.jsonl:1: traits[0]: \"spooky\" is none of "));
}

#[test]
fn an_operation_that_is_none() {
    for (line, expected) in [
        (r#"{"n":0,"op":"mm","m":0"#, "the line is truncated: EOF while parsing an object in column 22"),
        (r#"{"n":0,"op":"mm","m":0}}"#, "the line is not JSON: trailing characters in column 24"),
        (r#"{"n":1,"op":"mm","m":0}"#, "n: the operation of this line is 0, not 1"),
        (r#"{"op":"mm","m":0}"#, "n: the field is missing"),
        (r#"{"n":0,"op":"mn","m":0}"#, "op: \"mn\" is not an operation"),
        (r#"{"n":0,"op":7,"m":0}"#, "op: it should be a string and is a number"),
        (r#"{"n":0,"op":"mm"}"#, "m: the field is missing"),
        (r#"{"n":0,"op":"mm","m":-1}"#, "m: -1 is negative"),
        (r#"{"n":0,"op":"mm","m":null}"#, "m: it should be a number and is null"),
        (r#"{"n":0,"op":"mm","m":[0]}"#, "m: it should be a number and is a list"),
        (r#"{"n":0,"op":"mm","m":0.5}"#, "m: 0.5 is not a whole number of 64 bits"),
        (r#"{"n":0,"op":"mm","m":99999999999999999999}"#, "m: 1e+20 is not a whole number of 64 bits"),
        (r#"{"n":0,"op":"mm","m":0,"colour":"red"}"#, "colour: the field is unknown here"),
        (r#"{"n":0,"op":"mm","m":0,"m":0}"#, "m: the field is there twice"),
        (r#"{"n":0,"op":"mm","m":0,"\u006d":1}"#, "m: the field is there twice"),
        (r#"{"n":0,"op":"mm","m":0,"":0}"#, "\"\": the field is unknown here"),
        (r#"{"n":0,"op":"mm","m":0,"":0,"":0}"#, "\"\": the field is there twice"),
        (r#"{"n":0,"op":"mm","m":0,"ret":0}"#, "ret: the field is unknown here"),
        (r#"{"n":0,"op":"mm","m":0,"st":null}"#, "st: the field is unknown here"),
        (r#"{"n":0,"op":"mm","m":0,"warn":[]}"#, "warn: an empty list is left out"),
        (r#"{"n":0,"op":"inject","kind":"panic"}"#, "kind: \"panic\" is none of enomem, eintr"),
        (r#"{"n":0,"op":"peek","m":0}"#, "st: the field is missing"),
        (
            r#"{"n":0,"op":"poke_users","s":0,"v":4294967296}"#,
            "v: 4294967296 does not fit into a reference count of 32 bits",
        ),
        (r#"{"n":0,"op":"class","c":0}"#, "cbs: the field is missing"),
        (r#"{"n":0,"op":"class","c":0,"cbs":["end","end"]}"#, "cbs: a callback is there twice"),
        (
            r#"{"n":0,"op":"class","c":0,"cbs":["start"],"start_fail":{"every":0,"code":-11,"when":"always"}}"#,
            "start_fail.every: every 0th call is none: leave the failure out",
        ),
        (
            r#"{"n":0,"op":"class","c":0,"cbs":["start"],"start_fail":{"every":1,"code":0,"when":"always"}}"#,
            "start_fail.code: 0 is not a failure",
        ),
        (
            r#"{"n":0,"op":"class","c":0,"cbs":["start"],"start_fail":{"every":1,"code":-3000000000,"when":"always"}}"#,
            "start_fail.code: -3000000000 is not a whole number of 32 bits",
        ),
        (
            r#"{"n":0,"op":"class","c":0,"cbs":[],"test_young_answers":[2147483648]}"#,
            "test_young_answers[0]: 2147483648 is not an answer of 31 bits",
        ),
        (
            r#"{"n":0,"op":"iclass","c":0,"fail":{"every":1,"when":"nonblock","code":-11}}"#,
            "fail.code: the field is unknown here",
        ),
        (
            r#"{"n":0,"op":"iclass","c":0,"set_seq":true}"#,
            "set_seq: it should be false or absent and is true",
        ),
        (r#"{"n":0,"op":"iclass","c":0,"has_finish":true}"#, "has_finish: the field is unknown here"),
        (
            r#"{"n":0,"op":"iclass","c":0,"two_pass":true,"has_finish":false,"finish_every":2}"#,
            "finish_every: a finish is asked for that is not there",
        ),
        (r#"{"n":0,"op":"read_begin","i":0}"#, "seq: the field is missing"),
        (
            r#"{"n":0,"op":"read_begin","i":0,"blocked":"lunch","task":0}"#,
            "blocked: \"lunch\" is none of invalidation, mmap_lock",
        ),
        (r#"{"n":0,"op":"read_begin","i":0,"blocked":"invalidation"}"#, "task: the field is missing"),
        (
            r#"{"n":0,"op":"put","s":0,"blocked":"invalidation","task":0,"st":{"m":0,"freed":true}}"#,
            "blocked: the field is unknown here",
        ),
        (
            r#"{"n":0,"op":"put","s":0,"st":{"m":0,"freed":true},"misuse":true}"#,
            "misuse: the field is unknown here",
        ),
    ] {
        assert_eq!(error_of(line), format!("mine.jsonl:2: {expected}"), "{line}");
    }
}

#[test]
fn observations_that_are_none() {
    let start = |rest: &str| {
        format!(
            r#"{{"n":0,"op":"start","r":0,"m":0,"event":"CLEAR","blockable":true,"owner":0,"start":0,"end":1,{rest}}}"#
        )
    };
    let call = |rest: &str| start(&format!(r#""ret":null,"cb":[{{{rest}}}]"#));
    for (line, expected) in [
        (start(r#""ret":0"#), "ret: it should be null and is a number"),
        (start(r#""ret":null,"log":[{"ret":-11}]"#), "log[0].blockable: the field is missing"),
        (start(r#""ret":null,"warn":["spooky"]"#), "warn[0]: \"spooky\" is none of bad_start_failure, "),
        (
            start(r#""ret":null,"resumed":[{"task":1,"op":"put"}]"#),
            "resumed[0].op: \"put\" is none of register, ",
        ),
        (
            start(r#""ret":null,"resumed":[{"task":1,"op":"remove","i":0,"ret":0}]"#),
            "resumed[0].ret: the field is unknown here",
        ),
        (
            start(r#""ret":null,"resumed":[{"task":1,"op":"register","s":0}]"#),
            "resumed[0]: its result is missing",
        ),
        (start(r#""ret":null,"st":{"m":0,"users":1}"#), "st.count: the field is missing"),
        (
            start(r#""ret":null,"st":{"m":0,"users":1,"count":1,"subs":[]}"#),
            "st.subs: it should be null or absent and is a list",
        ),
        (start(r#""ret":null,"st":{"m":0,"freed":true,"users":0}"#), "st.users: the field is unknown here"),
        (call(r#""c":"open""#), "cb[0].c: \"open\" is none of start, "),
        (call(r#""c":"end","s":0"#), "cb[0].f: the field is missing"),
        (call(r#""c":"end","s":0,"f":"!""#), "cb[0].f: \"!\" is not a context that the kernel calls in"),
        (call(r#""c":"end","s":0,"f":"ls""#), "cb[0].f: \"ls\" is not a context that the kernel calls in"),
        (call(r#""c":"end","s":0,"f":"sl","a":[1,2]"#), "cb[0].a: the list has 2 elements instead of 5"),
        (call(r#""c":"end","s":0,"f":"sl","a":[1,2,"CLEAR",2,0]"#), "cb[0].a[3]: 2 is neither 0 nor 1"),
        (
            call(r#""c":"end","s":0,"f":"sl","a":[1,2,"CLEAN",1,0]"#),
            "cb[0].a[2]: \"CLEAN\" is none of UNMAP, ",
        ),
        (
            call(r#""c":"end","s":0,"f":"sl","r":0,"a":[1,2,"CLEAR",1,0]"#),
            "cb[0].r: the field is unknown here",
        ),
        (call(r#""c":"free","s":null,"f":"""#), "cb[0].s: it should be a number and is null"),
    ] {
        let error = error_of(&line);
        assert!(error.starts_with(&format!("mine.jsonl:2: {expected}")), "{line}\n{error}");
    }
}

/// Line 9 is cut in the middle, wherever that is.
#[test]
fn a_file_cut_anywhere_is_no_trace() {
    let original = golden::trace("remove_waits", "7.2.13").to_text();
    for end in 0..original.len() - 1 {
        let cut = &original[..end];
        let error = Trace::read("cut", cut).expect_err("cut off");
        let last = cut.lines().count();
        assert!(error.line == last.max(1) || error.line == last + 1, "{end}: {error}");
    }
}

/// Some characters of a trace replaced, or put in, or cut out.
#[test]
fn a_damaged_trace_is_refused_or_is_another_trace() {
    let texts: Vec<String> = golden::traces().iter().map(Trace::to_text).filter(|t| t.len() < 4000).collect();
    let piece = "[ -~]{0,12}|\\PC{1,3}|\"m\":0,|-1|[0-9]{19,21}|\\n|\\{|\\]";
    let edit = (any::<prop::sample::Index>(), 0..12_usize, piece);
    let edits = (any::<prop::sample::Index>(), prop::collection::vec(edit, 1..4));
    let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&edits, |(which, edits)| {
            let mut text = which.get(&texts).clone();
            for (at, cut, piece) in edits {
                let mut at = at.index(text.len());
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                let end = text[at..].char_indices().nth(cut).map_or(text.len(), |(end, _)| at + end);
                text.replace_range(at..end, &piece);
            }
            reading::any_text(&text).map_err(TestCaseError::fail)
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Random bytes changed: never a panic, neither in the reader nor in a replay of what it let pass.
#[test]
fn nothing_that_is_read_makes_a_replay_panic() {
    let mut random = Random(7);
    let mut replayed = 0;
    for trace in golden::traces() {
        let mut text = trace.to_text().into_bytes();
        for _ in 0..3 {
            // Digits are inputs as often as not: numbers of things that are not there, or are twice.
            let digits: Vec<usize> = (0..text.len()).filter(|&at| text[at].is_ascii_digit()).collect();
            let at = *random.pick(&digits);
            text[at] = b'0' + (random.below(10) as u8);
        }
        let Ok(trace) = Trace::read("mutated", &String::from_utf8(text).expect("digits only")) else {
            continue;
        };
        for kernel in [trace.header.kernel, Kernel::REPAIRED] {
            replay(&trace, kernel);
        }
        replayed += 1;
    }
    assert!(replayed > 300, "only {replayed} of them could be read");
}

/// What cannot be done leaves the machine as it was.
#[test]
fn an_impossible_operation_changes_nothing() {
    const NOBODY: u64 = 1 << 40;
    let change = Change { start: 0, end: 1, event: Event::Clear, blocking: Blocking::Allowed, owner: 0 };
    let impossible = [
        Op::Mm { m: 0 },
        Op::Register { s: NOBODY, c: NOBODY, m: 0 },
        Op::Register { s: NOBODY, c: 0, m: NOBODY },
        Op::Unregister { s: NOBODY },
        Op::Get { c: NOBODY, m: 0, new: NOBODY },
        Op::Put { s: NOBODY },
        Op::Exit { m: NOBODY },
        Op::Mmdrop { m: NOBODY },
        Op::Start { r: NOBODY, m: NOBODY, change },
        Op::End { r: NOBODY },
        Op::EndOnly { r: NOBODY },
        Op::Insert { i: NOBODY, c: NOBODY, m: 0, start: 0, length: 1 },
        Op::Remove { i: NOBODY },
        Op::ReadBegin { i: NOBODY },
        Op::CheckRetry { i: NOBODY, seq: 1 },
        Op::TestYoung { m: NOBODY, address: 0 },
        Op::Tlb { m: NOBODY, start: 0, end: 1 },
        Op::PokeUsers { s: 0, v: NOBODY },
        Op::Peek { m: NOBODY },
    ];
    for trace in golden::traces().iter().filter(|trace| trace.header.random.is_none()) {
        let mut machine = Machine::new(trace.header.kernel);
        for line in &trace.lines {
            let observed = machine.apply(&line.op).expect("possible");
            assert_eq!(observed, line.seen, "{}:{}", trace.file, line.number);
            for op in &impossible {
                machine.apply(op).expect_err("impossible");
            }
        }
    }
}
