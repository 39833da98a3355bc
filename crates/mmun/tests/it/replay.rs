//! `mmun replay`: golden traces, changed ones, and what is no trace.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use mmu_notifier_model::{GOLDEN, split};

use crate::command::{self, Ended, MMUN, run};
use crate::program::{find, workshop};

fn replay(dir: &Path, words: &[&str]) -> Ended {
    run(Command::new(MMUN).arg("replay").args(words).current_dir(dir), dir, "replay")
}

/// The text of a golden trace.
fn golden(name: &str, release: &str) -> String {
    let mut all = String::new();
    GzDecoder::new(GOLDEN).read_to_string(&mut all).expect("the archive is whole");
    let [name, kernel] = [format!(r#""name":"{name}""#), format!(r#""kernel":"{release}""#)];
    let is_it = |text: &&str| {
        let header = text.lines().next().unwrap_or_default();
        header.contains(&name) && header.contains(&kernel)
    };
    split(&all).into_iter().find(is_it).unwrap_or_else(|| panic!("{name} {kernel}")).to_owned()
}

fn packed(text: &str) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(text.as_bytes()).expect("memory takes it");
    packed.finish().expect("memory takes it")
}

#[test]
fn every_golden_trace_matches() {
    let dir = workshop("every_golden_trace_matches");
    let ended = replay(&dir, &["--quiet", "golden:all"]);
    assert_eq!(ended.assert_success().stdout(), "654 traces, 20,955 steps: every observation as recorded\n");
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn each_step_is_one_line_and_the_last_is_the_balance() {
    let dir = workshop("each_step_is_one_line_and_the_last_is_the_balance");
    let ended = replay(&dir, &["golden:eagain_refuser_walked_first--5.10"]);
    let expected = "\
eagain_refuser_walked_first
refuser registered last (walked first); the counting subscriber must be balanced only after the fix
recorded on linux-5.10 (5.10.13)

      2  mm mm0
      3  class c0 release start end clear_flush_young clear_young test_young
      4  class c1 start, 1/1 of the non-blocking starts fail -11
      5  register s0 c0 mm0 = 0
      6  register s1 c1 mm0 = 0
      7  start r0 mm0 UNMAP [0x1000, 0x3000) non-blocking = -11: start s1 failed -11, start s0
      8  finish: 0 waiting, 0 open

7 steps, every observation as recorded on linux-5.10
balance  s0 1 start, 0 ends, ELEVATED by 1; s1 0 starts, 1 refused, not paired
";
    assert_eq!(ended.assert_success().stdout(), expected);
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn another_kernel_differs_in_colour() {
    let dir = workshop("another_kernel_differs_in_colour");
    let words = ["golden:eagain_refuser_walked_first--5.10", "--as", "7.2", "--color"];
    let plain = replay(&dir, &[&words[..], &["auto"]].concat());
    assert_eq!(plain.status.code(), Some(1), "{plain:?}");
    let text = plain.stdout();
    for line in [
        "recorded on linux-5.10 (5.10.13), replayed as linux-7.2",
        "≠     7  start r0 mm0 UNMAP [0x1000, 0x3000) non-blocking = -11: start s1 failed -11, start s0, end s0",
        "           st.sub[0][5]: expected 0, got 1",
        "7 steps, 2 not as recorded on linux-5.10: 3 observations differ",
        "balance  s0 1 start, 1 end, balanced; s1 0 starts, 1 refused, not paired",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is missing in\n{text}");
    }
    assert!(!text.contains('\x1b'), "no terminal, no colours: {text:?}");

    let colored = replay(&dir, &[&words[..], &["always"]].concat()).stdout();
    for line in colored.lines().filter(|line| line.contains("expected")) {
        assert!(line.contains("\x1b[33m"), "{line:?}");
    }
    let step = colored.lines().find(|line| line.starts_with("\x1b[1;31m≠")).expect("a step differs");
    assert!(step.ends_with("start s0\x1b[1;31m, end s0\x1b[0m"), "the end that was missing is red: {step:?}");
    assert!(colored.lines().last().is_some_and(|line| line.contains("\x1b[32ms0")), "{colored}");

    for (kernel, status) in [("linux-5.10", 0), ("6.1", 1), ("6.12", 1), ("linux-7.2", 1), ("repaired", 1)] {
        let ended = replay(&dir, &["-q", "golden:eagain_refuser_walked_first--5.10", "--as", kernel]);
        assert_eq!(ended.status.code(), Some(status), "{kernel}: {ended:?}");
    }
}

/// One observation of each kind.
#[test]
fn a_changed_observation_is_named() {
    let dir = workshop("a_changed_observation_is_named");
    for (name, release, from, to, expected) in [
        ("pair_single", "5.10.13", r#""ret":0"#, r#""ret":-12"#, "4: ret: expected -12, got 0"),
        (
            "eagain_two_refusers",
            "7.2.13",
            r#"{"c":"start","s":2"#,
            r#"{"c":"start","s":7"#,
            "8: cb[0].s: expected 7, got 2",
        ),
        ("pair_single", "6.1.192", r#""users":1"#, r#""users":2"#, "4: st.users: expected 2, got 1"),
        (
            "failing_start_has_end",
            "6.12.117",
            r#""warn":["failing_start_has_end"]"#,
            r#""warn":["release_refused"]"#,
            r#"7: warn[0]: expected "release_refused", got "failing_start_has_end""#,
        ),
        (
            "many_waiters",
            "6.1.192",
            r#""blocked":"invalidation""#,
            r#""blocked":"mmap_lock""#,
            r#"7: blocked: expected "mmap_lock", got "invalidation""#,
        ),
        (
            "nonblock_all_succeed",
            "7.2.13",
            r#""traits":[]"#,
            r#""traits":["warn"]"#,
            r#"1: traits: expected ["warn"], got []"#,
        ),
    ] {
        let text = golden(name, release);
        assert!(text.contains(from), "{from} in {text}");
        fs::write(dir.join("t.jsonl"), text.replacen(from, to, 1)).expect("the directory is ours");
        let ended = replay(&dir, &["--quiet", "t.jsonl"]);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let said = ended.stdout();
        assert_eq!(said.lines().next(), Some(format!("t.jsonl:{expected}").as_str()), "{said}");
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(said.ends_with("steps: 1 trace not as recorded\n"), "{said}");
    }
}

#[test]
fn what_is_no_trace_is_refused() {
    let dir = workshop("what_is_no_trace_is_refused");
    let trace = golden("pair_single", "7.2.13");
    let with = |from: &str, to: &str| {
        assert!(trace.contains(from), "{from} in {trace}");
        trace.replacen(from, to, 1).into_bytes()
    };
    let register = r#""op":"register","s":0,"c":0,"m":0"#;
    let packed = packed(&trace);
    let files: [(&[u8], &str); 15] = [
        (b"", "t:1: the file is empty: a trace begins with a header"),
        (b"\n", "t:1: the line is truncated: EOF while parsing a value in column 0"),
        (b"\x7fELF\x02\x01\x01\0", "t:1: the line is not JSON: expected value in column 1"),
        (b"\xff\xfe", "t:1: byte 1 of the line is not UTF-8"),
        (b"\x1f\x8b\x08\0", "t: the compressed data are damaged or cut off: "),
        (&packed[..packed.len() / 2], "t: the compressed data are damaged or cut off: "),
        (b"{\"n\":0}", "t:1: format: the field is missing: a trace begins with a header"),
        (&trace.as_bytes()[..trace.len() - 30], "t:7: the line is truncated: EOF while parsing "),
        (&trace.as_bytes()[..trace.find('\n').unwrap()], "t:1: the trace is truncated: "),
        (
            &with(register, r#""op":"register","s":0,"c":0,"m":0,"colour":1"#),
            "t:4: colour: the field is unknown here",
        ),
        (&with(register, r#""op":"register","s":0,"c":0"#), "t:4: m: the field is missing"),
        (&with(register, r#""op":"register","s":-1,"c":0,"m":0"#), "t:4: s: -1 is negative"),
        (&with(register, r#""op":"register","s":0,"c":9,"m":0"#), "t:4: c: there is no class 9"),
        (&with(r#""kernel":"7.2.13""#, r#""kernel":"7.2.14""#), "t:1: kernel: \"7.2.14\" is none of "),
        (&with(register, "\"op\":\"\\u001b[31m\""), "t:4: op: \"\\u{1b}[31m\" is not an operation"),
    ];
    for (bytes, expected) in files {
        fs::write(dir.join("t"), bytes).expect("the directory is ours");
        let ended = replay(&dir, &["t"]);
        ended.assert_refused(2);
        assert!(ended.stderr().starts_with(&format!("mmun: {expected}")), "{expected:?}: {ended:?}");
    }
}

#[test]
fn what_cannot_be_read_is_refused() {
    let dir = workshop("what_cannot_be_read_is_refused");
    for (name, expected) in [
        ("missing", "missing: there is no such file; golden:NAME is a golden trace"),
        (".", ".: it is a directory; give the traces in it"),
        ("/dev/null", "/dev/null:1: the file is empty: a trace begins with a header"),
        ("/dev/zero", "/dev/zero: more than 64 MiB are too much for a trace"),
        ("golden:change", "golden:change: there is no such golden trace; there is change_pte"),
        ("golden:change_pte--7.2", "golden:change_pte--7.2: change_pte was recorded on 5.10, 6.1 only"),
    ] {
        let ended = replay(&dir, &[name]);
        ended.assert_refused(2);
        assert_eq!(ended.stderr(), format!("mmun: {expected}\n"));
    }
    // A small file that unpacks to a large one.
    let bomb = [b'x'; 1 << 16].repeat(1025);
    let mut file = GzEncoder::new(File::create(dir.join("bomb")).unwrap(), Compression::best());
    file.write_all(&bomb).and_then(|()| file.finish().map(drop)).expect("the directory is ours");
    let ended = replay(&dir, &["bomb"]);
    ended.assert_refused(2);
    assert_eq!(ended.stderr(), "mmun: bomb: more than 64 MiB are too much for a trace\n");

    for words in [&[][..], &["--as", "2.6", "x"], &["--list", "x"], &["--quite", "x"]] {
        let ended = replay(&dir, words);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    }
}

#[test]
fn several_traces_in_a_file_and_several_files() {
    let dir = workshop("several_traces_in_a_file_and_several_files");
    let good = golden("pair_single", "7.2.13");
    let changed = good.replacen(r#""ret":0"#, r#""ret":-12"#, 1);
    fs::write(dir.join("both"), good.clone() + &changed).unwrap();
    let ended = replay(&dir, &["-q", "both"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let line = "both:11: ret: expected -12, got 0\n2 traces, 12 steps: 1 trace not as recorded\n";
    assert_eq!(ended.stdout(), line, "the line of the file, not of the trace");

    fs::write(dir.join("broken"), good.clone() + &good[..good.len() - 9] + "\n" + &good).unwrap();
    let ended = replay(&dir, &["-q", "broken", "missing", "both"]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    let errors = ended.stderr();
    assert!(errors.starts_with("mmun: broken:14: the line is truncated"), "{errors}");
    assert!(errors.lines().nth(1).is_some_and(|line| line.starts_with("mmun: missing: ")), "{errors}");
    let last = "4 traces, 24 steps: 1 trace not as recorded; 2 more could not be read\n";
    assert!(ended.stdout().ends_with(last), "{ended:?}");

    // Two traces, one after the other, each with its balance, and a sum.
    fs::write(dir.join("good.gz"), packed(&good)).unwrap();
    let text = replay(&dir, &["good.gz", "golden:pair_single--5.10"]).assert_success().stdout();
    assert_eq!(
        text.lines().filter(|line| line.starts_with("balance  s0 1 start, 1 end, balanced")).count(),
        2
    );
    assert!(text.ends_with("\n2 traces, 12 steps: every observation as recorded\n"), "{text}");
}

#[test]
fn a_trace_comes_from_stdin_too() {
    let dir = workshop("a_trace_comes_from_stdin_too");
    let text = golden("pair_single", "7.2.13");
    for (label, bytes) in [("plain", text.clone().into_bytes()), ("packed", packed(&text))] {
        fs::write(dir.join("input"), bytes).unwrap();
        let mut mmun = Command::new(MMUN);
        mmun.args(["replay", "-q", "-"]).stdin(File::open(dir.join("input")).unwrap());
        let ended = command::start(&mut mmun, &dir, label).wait();
        let expected = "1 trace, 6 steps: every observation as recorded\n";
        assert_eq!(ended.assert_success().stdout(), expected, "{label}");
    }
    let ended = replay(&dir, &["-"]);
    ended.assert_refused(2);
    assert_eq!(ended.stderr(), "mmun: stdin:1: the file is empty: a trace begins with a header\n");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let dir = workshop("a_reader_that_goes_away_is_no_panic");
    let script =
        "\"$0\" replay golden:all | head -n 1; \"$0\" replay --list | head -n 1; \"$0\" demo pairing | true";
    let ended = run(Command::new("sh").args(["-c", script, MMUN]), &dir, "pipe");
    assert!(ended.assert_success().stderr.is_empty(), "{ended:?}");
    assert_eq!(ended.stdout().lines().count(), 2, "{ended:?}");

    let script = "\"$0\" replay -q golden:pair_single > /dev/full";
    let ended = run(Command::new("sh").args(["-c", script, MMUN]), &dir, "full");
    ended.assert_refused(2);
}

#[test]
fn the_list_has_every_scenario() {
    let dir = workshop("the_list_has_every_scenario");
    let text = replay(&dir, &["--list"]).assert_success().stdout();
    assert_eq!(text.lines().count(), 194, "{text}");
    let line = text.lines().find(|line| line.starts_with("change_pte ")).expect("it is there");
    let words: Vec<_> = line.split_whitespace().take(4).collect();
    assert_eq!(words, ["change_pte", "5.10", "6.1", "change_pte"]);
    // What is listed can be replayed.
    for line in text.lines().step_by(20) {
        let name = line.split_whitespace().next().expect("a name");
        replay(&dir, &["-q", &format!("golden:{name}")]).assert_success();
    }
}

#[test]
fn names_do_nothing_to_the_terminal() {
    let dir = workshop("names_do_nothing_to_the_terminal");
    let text = golden("pair_single", "7.2.13").replacen("pair_single", "\\u001b]0;title\\u0007", 1);
    let name = OsStr::from_bytes(b"\x1b[31m\xff\n");
    fs::write(dir.join(name), text).unwrap();
    let ended = run(Command::new(MMUN).arg("replay").arg(dir.join(name)), &dir, "hostile");
    assert!(!ended.assert_success().stdout().contains(['\x1b', '\x07']), "{ended:?}");
    fs::write(dir.join(name), "").unwrap();
    let ended = run(Command::new(MMUN).arg("replay").arg(dir.join(name)), &dir, "hostile");
    ended.assert_refused(2);
    assert!(!ended.stderr().contains('\x1b'), "{ended:?}");
}

#[test]
fn steps_fit_the_terminal() {
    let test = "steps_fit_the_terminal";
    let Some(script) = find(test, "script") else { return };
    let dir = workshop(test);
    let inside = format!(
        "stty rows 20 cols 50; {MMUN} replay --as 7.2 golden:eagain_two_refusers--5.10; {MMUN} replay --list"
    );
    let ended =
        run(Command::new(script).args(["-qc", &inside, "/dev/null"]).env("TERM", "dumb"), &dir, "script");
    let text = ended.stdout();
    assert!(text.contains('…') && text.lines().count() > 190, "{text}");
    for line in text.lines() {
        assert!(line.trim_end().chars().count() <= 50, "{line:?}");
    }
    // Cut are the steps, not what differs.
    let joined: String = text.lines().map(str::trim).collect();
    assert!(
        joined.contains(
            r#"cb[3]: expected nothing, got {"a":[4096,12288,"UNMAP",0,0],"c":"end","f":"sl","s":1}"#
        )
    );
}
