//! The line that tells how the run is going.
//!
//! It belongs on a terminal that nobody else uses at the moment: it shows up only after a second, only
//! while our process group is in the foreground, and only while the terminal is in line mode, which
//! full-screen programs and editors of command lines leave.

// UNSAFETY: asks the terminal about its state, by libc calls.
#![expect(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::totals::Progress;

const FIRST: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(250);

/// The live line on stderr.
#[derive(Debug)]
pub struct Live {
    last: Option<(Instant, u64)>,
    rate: u64,
    shown: bool,
}

impl Live {
    /// A live line, if stderr is a terminal that can show one.
    pub fn on_stderr() -> Option<Live> {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        (!dumb && std::io::stderr().is_terminal()).then_some(Live { last: None, rate: 0, shown: false })
    }

    /// Shows the line if it is time to.
    pub fn show(&mut self, elapsed: Duration, processes: u64, progress: impl FnOnce() -> Progress) {
        let now = Instant::now();
        let passed = self.last.map(|(last, _)| now.duration_since(last));
        if elapsed < FIRST || passed.is_some_and(|passed| passed < EVERY) {
            return;
        }
        let progress = progress();
        let (since, calls) =
            self.last.map_or((elapsed, 0), |(last, calls)| (now.duration_since(last), calls));
        self.rate = (progress.calls.saturating_sub(calls) as f64 / since.as_secs_f64()) as u64;
        self.last = Some((now, progress.calls));
        let Some(columns) = our_columns() else { return };
        let mut line = line(elapsed, processes, self.rate, progress);
        line.truncate(columns.saturating_sub(1)); // ASCII only
        // A terminal that went away is nothing to fail for.
        let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
        self.shown = true;
    }

    /// Takes the line away.
    pub fn clear(self) {
        if self.shown && our_columns().is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(elapsed: Duration, processes: u64, rate: u64, progress: Progress) -> String {
    let seconds = elapsed.as_secs();
    let time = match seconds {
        0..60 => format!("{:.1} s", elapsed.as_secs_f64()),
        60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!("{}:{:02}:{:02} h", seconds / 3600, seconds / 60 % 60, seconds % 60),
    };
    let plural = if processes == 1 { "" } else { "es" };
    let mut line = format!(
        "mmun: {time}, {processes} process{plural}, {} calls/s, {} changes, {}",
        short(rate, 1000.0, ["", "k", "M", "G", "T"]),
        short(progress.changes, 1000.0, ["", "k", "M", "G", "T"]),
        short(progress.bytes, 1024.0, [" B", " KiB", " MiB", " GiB", " TiB"]),
    );
    if progress.refused > 0 {
        line.push_str(&format!(", {} refused", short(progress.refused, 1000.0, ["", "k", "M", "G", "T"])));
    }
    line
}

/// A number with at most four digits and a unit.
fn short(number: u64, step: f64, units: [&str; 5]) -> String {
    let mut value = number as f64;
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$}{}", units[unit])
}

/// How wide the terminal is, if it is ours to write on at the moment.
fn our_columns() -> Option<usize> {
    // SAFETY: a question about a descriptor and one about ourselves.
    let in_foreground = unsafe { libc::tcgetpgrp(libc::STDERR_FILENO) == libc::getpgrp() };
    // SAFETY: a structure of integers, for which zeroes are valid.
    let mut state: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: writes to `state` only.
    let known = unsafe { libc::tcgetattr(libc::STDERR_FILENO, &mut state) } == 0;
    if !in_foreground || !known || state.c_lflag & libc::ICANON == 0 {
        return None;
    }
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: this request writes a `winsize` to where its argument points.
    let known = unsafe { libc::ioctl(libc::STDERR_FILENO, libc::TIOCGWINSZ, &mut size) } == 0;
    Some(if known && size.ws_col > 0 { size.ws_col.into() } else { 80 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let progress = Progress { calls: 10, changes: 12_345, bytes: 3 << 30, refused: 0 };
        assert_eq!(
            line(Duration::from_millis(1234), 1, 999, progress),
            "mmun: 1.2 s, 1 process, 999 calls/s, 12.3k changes, 3.0 GiB"
        );
        let progress = Progress { bytes: 100, refused: 7, ..progress };
        assert_eq!(
            line(Duration::from_secs(3725), 12, 1_500_000, progress),
            "mmun: 1:02:05 h, 12 processes, 1.5M calls/s, 12.3k changes, 100 B, 7 refused"
        );
    }
}
