//! Numbers as people read them: `1,234`, `12.3 MiB`, `4.56 µs`.
//!
//! Three significant digits are enough to compare and few enough to take in; scripts get the exact
//! numbers from [`json`](super::json).

/// With thousands separators.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number with its noun: `1 thread`, `1,234 threads`.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A size in binary units.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value >= 1023.5 && units.len() > 0 {
        value /= 1024.0;
        unit = units.next();
    }
    format!("{} {}", three_digits(value), unit.unwrap_or(&""))
}

/// A duration, given in nanoseconds.
pub fn duration(nanoseconds: u64) -> String {
    if nanoseconds < 1000 {
        return format!("{nanoseconds} ns");
    }
    let mut value = nanoseconds as f64 / 1e3;
    for unit in ["µs", "ms"] {
        if value < 999.5 {
            return format!("{} {unit}", three_digits(value));
        }
        value /= 1e3;
    }
    let seconds = value.round() as u64;
    match seconds {
        0..120 => format!("{} s", three_digits(value)),
        120..7200 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// How much of `whole` is `part`; a dash if there is no whole.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let share = part as f64 / whole as f64 * 100.0;
    match share {
        0.0 => "0%".to_owned(),
        ..0.01 => "<0.01%".to_owned(),
        ..9.995 => format!("{share:.2}%"),
        ..99.95 => format!("{share:.1}%"),
        _ => format!("{share:.0}%"),
    }
}

fn three_digits(value: f64) -> String {
    let decimals = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_separators() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (123_456, "123,456"),
            (1_234_567, "1,234,567"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(count(number), text);
        }
        assert_eq!(counted(1, "thread", "threads"), "1 thread");
        assert_eq!(counted(2000, "thread", "threads"), "2,000 threads");
    }

    #[test]
    fn bytes_have_three_digits() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (4096, "4.00 KiB"),
            (12_595, "12.3 KiB"),
            (1024 * 1024 - 1, "1.00 MiB"),
            (1 << 30, "1.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn durations_have_three_digits() {
        for (nanoseconds, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1000, "1.00 µs"),
            (9_994, "9.99 µs"),
            (9_996, "10.0 µs"),
            (99_960, "100 µs"),
            (999_499, "999 µs"),
            (999_500, "1.00 ms"),
            (12_345_678, "12.3 ms"),
            (1_500_000_000, "1.50 s"),
            (119_400_000_000, "119 s"),
            (119_600_000_000, "2 min 0 s"),
            (3_725_000_000_000, "62 min 5 s"),
            (u64::MAX, "5124095 h 34 min"),
        ] {
            assert_eq!(duration(nanoseconds), text);
        }
    }

    #[test]
    fn shares_are_never_rounded_to_nothing() {
        for (part, whole, text) in [
            (0, 0, "-"),
            (0, 10, "0%"),
            (1, 1_000_000, "<0.01%"),
            (1, 80, "1.25%"),
            (1, 8, "12.5%"),
            (3, 1, "300%"),
        ] {
            assert_eq!(percent(part, whole), text);
        }
    }
}
