//! `mmun demo`, by the numbers that it shows.

use std::process::Command;

use crate::command::{Ended, MMUN, run};
use crate::program::workshop;

fn pairing(test: &str, options: &[&str]) -> Ended {
    run(Command::new(MMUN).args(["demo", "pairing"]).args(options), &workshop(test), "pairing")
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
