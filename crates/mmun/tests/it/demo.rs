//! `mmun demo`, by the numbers that it shows.

use std::process::Command;

use crate::command::{Ended, MMUN, run};
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

/// The control groups that it might have left.
fn groups_of_oom() -> usize {
    let Some(group) = mmu_notifier_primary::reaper::memory_group() else { return 0 };
    let entries = std::fs::read_dir(group).expect("a group is a directory").flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("mmun-oom-")).count()
}

#[test]
fn at_its_limit_a_program_is_killed_without_the_reaper_and_lives_with_it() {
    let test = "at_its_limit_a_program_is_killed_without_the_reaper_and_lives_with_it";
    let before = groups_of_oom();
    let Some(ended) = oom(test, &["--runs", "5"]) else { return };
    let text = ended.assert_success().stdout();
    assert!(ended.stderr.is_empty() && text.lines().all(|line| line.chars().count() <= 80), "{ended:?}");
    let table = text.lines().skip_while(|line| !line.starts_with("alarm: ")).collect::<Vec<_>>().join("\n");
    assert_eq!(table.matches("alarm: usage threshold ").count(), 1, "{text}");
    assert_eq!(table.matches("alarm: oom control ").count(), 1, "{text}");
    for (way, expected, alike) in [
        ("no reaper", "· 5 of 5 · · ·", 2),
        ("discarded, nobody told", "· 5 of 5 · · ·", 2),
        ("reaper ", "5 of 5 · 120 MiB 0 none", 2),
        ("reaper, a quarter in use", "5 of 5 · 90.0 MiB", 2),
    ] {
        let rows = table.lines().filter_map(|line| line.strip_prefix(way));
        let rows =
            rows.filter(|row| row.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(expected));
        assert_eq!(rows.count(), alike, "{way}: {expected}\n{text}");
    }
    assert_eq!(table.matches("untouched").count(), 3, "in two rows and the verdict\n{text}");
    assert_eq!(groups_of_oom(), before, "it removes its control groups");
}

#[test]
fn an_alarm_is_chosen_and_an_exit_status_says_how_it_went() {
    let test = "an_alarm_is_chosen_and_an_exit_status_says_how_it_went";
    let options = ["--runs", "1", "--alarm", "oom-control", "--color", "always"];
    let Some(ended) = oom(test, &options) else { return };
    let text = ended.assert_success().stdout();
    assert!(text.contains("oom control") && !text.contains("usage threshold"), "{text}");
    assert!(text.contains("\x1b[32mreaper "), "{text}");
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
        assert!(
            said.contains("control group") && (said.contains("as root") || said.contains("boot with")),
            "{said}"
        );
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
