//! Bars made of block characters.

/// `number` on a scale of `steps`: 0 only for nothing, `steps` only for the most.
pub fn level(number: u64, most: u64, steps: u64) -> u64 {
    (u128::from(number) * u128::from(steps)).div_ceil(u128::from(most.max(1))) as u64
}

/// A bar in eighths of a column.
pub fn bar(number: u64, most: u64, width: u64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = level(number, most, width * 8);
    "█".repeat((eighths / 8) as usize) + EIGHTHS[(eighths % 8) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_and_levels_never_hide_something() {
        assert_eq!(bar(0, 100, 10), "");
        assert_eq!(bar(1, u64::MAX, 10), "▏");
        assert_eq!(bar(100, 100, 10), "██████████");
        assert_eq!((level(0, 9, 8), level(1, 1000, 8), level(1000, 1000, 8)), (0, 1, 8));
    }
}
