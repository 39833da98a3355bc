//! `mmun demo`, by the numbers that it shows.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::command::{DEADLINE, Ended, MMUN, run, start};
use crate::program::workshop;

fn pairing(test: &str, options: &[&str]) -> Ended {
    run(Command::new(MMUN).args(["demo", "pairing"]).args(options), &workshop(test), "pairing")
}

/// An experiment with io_uring; `None` where there is none, which it must say.
fn with_io_uring(test: &str, experiment: &str, options: &[&str]) -> Option<String> {
    let ended = run(Command::new(MMUN).args(["demo", experiment]).args(options), &workshop(test), experiment);
    if ended.status.code() == Some(2) {
        ended.assert_refused(2);
        assert!(ended.stderr().contains("io_uring is not available here"), "{ended:?}");
        eprintln!("SKIPPED: {test}: {}", ended.stderr().trim_end());
        return None;
    }
    assert!(ended.assert_success().stderr.is_empty(), "{ended:?}");
    Some(ended.stdout())
}

#[test]
fn data_is_lost_without_an_error_and_is_not_through_the_cache() {
    let test = "data_is_lost_without_an_error_and_is_not_through_the_cache";
    let Some(text) = with_io_uring(test, "io-uring", &[]) else { return };
    for (change, once, through) in [
        ("nothing", "B right", "B right"),
        ("munmap, mmap", "N LOST", "B right"),
        ("madvise(MADV_DONTNEED)", "0 LOST", "B right"),
        ("mremap elsewhere, mmap", "N LOST", "B right"),
        ("mprotect(PROT_READ)", "B THROUGH PROTECTION", "EFAULT right"),
        ("fork", "B right", "B right"),
    ] {
        let line = text.lines().find(|line| line.starts_with(change)).expect(change);
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words, format!("{change} {once} {through}"));
    }
    assert!(text.contains("4 of 6 reads went wrong"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let text = with_io_uring(test, "io-uring", &["--color", "always"]).expect("as before");
    assert!(text.contains("\x1b[1;31mN  LOST") && text.contains("\x1b[32mB  right"), "{text}");
}

/// The order of the steps is the same each time: the threads wait for each other.
#[test]
fn the_hole_is_there_if_one_is_told_once_and_closed_if_twice() {
    let test = "the_hole_is_there_if_one_is_told_once_and_closed_if_twice";
    let Some(text) = with_io_uring(test, "hole", &[]) else { return };
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    // What is said of thread B is indented further than anything of thread A's begins.
    let steps: Vec<(char, &str)> = text
        .lines()
        .filter(|line| line.starts_with("  ") && !line.contains("thread"))
        .map(|line| (if line.starts_with(&" ".repeat(20)) { 'B' } else { 'A' }, line.trim()))
        .collect();
    let expected = [
        // Told once.
        ('A', "wants the buffer: registers it, #1"),
        ('A', "is about to munmap: tells everybody"),
        ('A', "is told: drops #1"),
        ('B', "wants the buffer: registers it, #2"),
        ('A', "munmap, mmap: other memory, full of N"),
        ('A', "wants the buffer: #2 is in the cache"),
        ('A', "reads the file: 16,384 bytes read"),
        ('A', "the buffer is full of N: STALE"),
        // Who comes in the middle.
        ('A', "wants the buffer: registers it, #1"),
        ('A', "is about to munmap: tells everybody"),
        ('A', "is told: drops #1"),
        ('B', "wants the buffer: it is changing, waits"),
        ('A', "munmap, mmap: other memory, full of N"),
        ('B', "wants the buffer: registers it, #2"),
        ('A', "wants the buffer: #2 is in the cache"),
        ('A', "reads the file: 16,384 bytes read"),
        ('A', "the buffer is full of B: right"),
        // Who had begun.
        ('B', "wants the buffer: registers it, #1"),
        ('A', "is about to munmap: tells everybody"),
        ('A', "munmap, mmap: other memory, full of N"),
        ('B', "it has changed: drops #1, once more"),
        ('B', "wants the buffer: registers it, #2"),
        ('A', "wants the buffer: #2 is in the cache"),
        ('A', "reads the file: 16,384 bytes read"),
        ('A', "the buffer is full of B: right"),
    ];
    assert_eq!(steps, expected, "{text}");
    for _ in 0..20 {
        assert_eq!(with_io_uring(test, "hole", &[]).as_deref(), Some(&*text), "another time");
    }
}

/// `None` where there are no control groups that it can make, or no io_uring: which it must say.
fn oom(test: &str, options: &[&str]) -> Option<Ended> {
    let ended = run(Command::new(MMUN).args(["demo", "oom"]).args(options), &workshop(test), "oom");
    if ended.status.code() == Some(2) {
        let said = ended.stderr();
        let why = ["control group", "io_uring is not available here"];
        assert!(why.iter().any(|why| said.contains(why)) && ended.stdout.is_empty(), "{ended:?}");
        eprintln!("SKIPPED: {test}: {}", said.trim_end());
        return None;
    }
    Some(ended)
}

/// All four ways with one alarm.
fn at_its_limit(test: &str, alarm: &str, title: &str) {
    let options = ["--runs", "4", "--alarm", alarm, "--color", "always"];
    let Some(ended) = oom(test, &options) else { return };
    let text = ended.assert_success().stdout();
    assert!(ended.stderr.is_empty() && text.contains(&format!("alarm: {title} ")), "{ended:?}");
    for (way, expected) in [
        ("\x1b[33mno reaper ", "· 4 of 4 · · ·"),
        ("\x1b[33mdiscarded, nobody told ", "· 4 of 4 · · ·"),
        ("\x1b[32mreaper ", "4 of 4 · 120 MiB 0 none"),
        ("\x1b[32mreaper, a quarter in use ", "4 of 4 · 90.0 MiB"),
    ] {
        let row = text.lines().find_map(|line| line.strip_prefix(way));
        let row = row.unwrap_or_else(|| panic!("there is no row {way:?}:\n{text}"));
        let row = row.replace("\x1b[0m", "").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(row.starts_with(expected), "{way}: {expected}\n{text}");
        assert_eq!(row.ends_with("untouched"), way.contains("quarter"), "{text}");
    }
}

#[test]
fn at_a_threshold_the_reaper_saves_who_is_killed_without_it() {
    at_its_limit("at_a_threshold_the_reaper_saves_who_is_killed_without_it", "threshold", "usage threshold");
}

#[test]
fn with_the_killer_stopped_the_reaper_saves_who_is_killed_without_it() {
    at_its_limit(
        "with_the_killer_stopped_the_reaper_saves_who_is_killed_without_it",
        "oom-control",
        "oom control",
    );
}

#[test]
fn who_is_interrupted_removes_the_control_group() {
    let test = "who_is_interrupted_removes_the_control_group";
    let dir = workshop(test);
    let Some(text) = oom(test, &["--runs", "1", "--alarm", "threshold"]).map(|ended| ended.stdout()) else {
        return;
    };
    assert!(text.lines().all(|line| line.chars().count() <= 80) && !text.contains('\x1b'), "{text}");
    let mut command = Command::new(MMUN);
    command.args(["demo", "oom", "--runs", "1000"]).stdin(Stdio::null());
    let started = start(&mut command, &dir, "interrupted");
    let group = mmu_notifier_primary::reaper::memory_group().expect("it was there before");
    let group = group.join(format!("mmun-oom-{}", started.id()));
    let began = Instant::now();
    while !group.exists() {
        assert!(began.elapsed() < DEADLINE, "there is no {}", group.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    started.signal_group("INT");
    let ended = started.wait();
    assert_eq!(ended.status.signal(), Some(2), "{ended:?}");
    assert!(!group.exists() && ended.stdout.is_empty() && ended.stderr.is_empty(), "{ended:?}");
}

/// Nobody but root may make a control group; what to do is said.
#[test]
fn who_may_not_make_a_control_group_is_told_what_to_do() {
    let test = "who_may_not_make_a_control_group_is_told_what_to_do";
    let dir = workshop(test);
    // As nobody, which needs the command where nobody can read it.
    let copy = std::env::temp_dir().join(format!("mmun-{}", std::process::id()));
    std::fs::copy(MMUN, &copy).expect("a copy");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).args(["demo", "oom"]);
    let tried = std::panic::catch_unwind(|| {
        run(Command::new("setpriv").args(["--reuid=65534", "true"]), &dir, "setpriv")
    });
    if !tried.is_ok_and(|ended| ended.status.success()) {
        eprintln!("SKIPPED: {test}: cannot become nobody (needs root and setpriv)");
    } else {
        let ended = run(&mut command, &dir, "nobody");
        ended.assert_refused(2);
        let said = ended.stderr();
        assert!(said.contains("control group") && said.contains("as root"), "{said}");
    }
    std::fs::remove_file(copy).expect("it is removed");
}

/// The three numbers of the line that begins with `label`; what is beside them is a bar or a word.
fn numbers(text: &str, label: &str) -> [i64; 3] {
    // The last one: a sentence may begin with the same word.
    let line = text.lines().rfind(|line| line.split_whitespace().next() == Some(label));
    let line = line.unwrap_or_else(|| panic!("there is no line {label}:\n{text}"));
    let words = line.split_whitespace().skip(1).map(|word| word.replace(',', ""));
    let numbers: Vec<i64> = words.filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().unwrap_or_else(|numbers| panic!("{numbers:?} in {line:?}"))
}

#[test]
fn only_before_the_fix_the_count_stays_elevated() {
    let test = "only_before_the_fix_the_count_stays_elevated";
    for (options, attempts, starts, refused) in [
        (&[][..], 10, 40, 13),
        (&["--refuse", "1/1"], 10, 40, 40),
        (&["--refuse", "1/4"], 10, 40, 10),
        (&["--refuse", "1/5"], 1, 4, 0),
        (&["--vmas", "1", "--refuse", "1/1", "--attempts", "1"], 1, 1, 1),
        (&["--vmas", "7", "--attempts", "3"], 3, 21, 7),
        (&["--vmas", "1000", "--attempts", "100"], 100, 100_000, 33_333),
    ] {
        let ended = pairing(test, options);
        let text = ended.assert_success().stdout();
        assert!(ended.stderr.is_empty() && !text.contains('\x1b'), "{ended:?}");
        assert_eq!(numbers(&text, "starts"), [starts; 3], "{text}");
        assert_eq!(numbers(&text, "refused"), [refused; 3], "{text}");
        assert_eq!(numbers(&text, "ends"), [starts - refused, starts, starts], "{text}");
        assert_eq!(numbers(&text, "count"), [refused, 0, 0], "{text}");
        assert_eq!(numbers(&text, &attempts.to_string()), [refused, 0, 0], "after the last attempt\n{text}");
        assert_eq!(text.contains("ELEVATED"), refused > 0, "{text}");
        assert_eq!(text.contains("gave up"), refused > 0, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}

#[test]
fn the_count_is_red_and_the_balance_green() {
    let ended = pairing("the_count_is_red_and_the_balance_green", &["--color", "always"]);
    let text = ended.assert_success().stdout();
    let line = text.lines().find(|line| line.contains("ELEVATED")).expect("a count");
    assert!(line.contains("\x1b[1;31m") && line.contains("\x1b[32m"), "{line:?}");
}

#[test]
fn wrong_numbers_are_refused() {
    let test = "wrong_numbers_are_refused";
    for options in
        [["--refuse", "1/0"], ["--refuse", "3"], ["--vmas", "0"], ["--vmas", "1001"], ["--attempts", "x"]]
    {
        let ended = pairing(test, &options);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr().contains(options[0]), "{ended:?}");
    }
    let ended = run(Command::new(MMUN).arg("demo"), &workshop(test), "none");
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr().contains("pairing"), "{ended:?}");
}
