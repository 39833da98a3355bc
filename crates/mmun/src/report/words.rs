//! What all reports for people say in the same words: how a run ended, whether it is balanced.

use super::fit::printable;
use crate::summary::{Outcome, Summary};

/// How the starts and ends of a run relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Balance {
    /// Every start has its end.
    Equal,
    /// Ends are missing, no more than brackets were cut short by `exec` or a kill, or are still open.
    CutShort,
    /// So many starts have no end and nothing that explains it.
    Elevated(u64),
    /// So many ends had no start.
    Surplus(u64),
}

impl Balance {
    pub(super) fn of(summary: &Summary) -> Balance {
        let (starts, ends) = (summary.balance_starts, summary.balance_ends);
        if ends > starts {
            return Balance::Surplus(ends - starts);
        }
        match (
            starts - ends,
            (starts - ends).saturating_sub(summary.cut_short.saturating_add(summary.still_open)),
        ) {
            (0, _) => Balance::Equal,
            (_, 0) => Balance::CutShort,
            (_, unexplained) => Balance::Elevated(unexplained),
        }
    }
}

/// How the program ended, as the rest of a sentence that begins with its name.
pub(super) fn ending(outcome: Outcome) -> String {
    match outcome {
        Outcome::Running => "is running".to_owned(),
        Outcome::Exited(status) => format!("exited with {status}"),
        Outcome::Killed(signal) => match signal_name(signal) {
            Some(name) => format!("was killed by {name}"),
            None => format!("was killed by signal {signal}"),
        },
    }
}

/// The command as one would type it, roughly, with nothing in it that a terminal acts on.
pub(super) fn command(summary: &Summary) -> String {
    let words = summary.command.iter().map(|word| {
        let plain =
            !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || "'\"$&;|<>()".contains(c));
        if plain { printable(word) } else { format!("'{}'", printable(word)) }
    });
    let line = words.collect::<Vec<_>>().join(" ");
    if line.is_empty() { "the program".to_owned() } else { line }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: [&str; 31] = [
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    NAMES.get(usize::try_from(signal).ok()?.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_ends_are_told_from_cut_ones() {
        let balance = |balance_starts, balance_ends, cut_short| {
            Balance::of(&Summary { balance_starts, balance_ends, cut_short, ..Summary::default() })
        };
        assert_eq!(balance(10, 10, 0), Balance::Equal);
        assert_eq!(balance(10, 9, 1), Balance::CutShort);
        assert_eq!(balance(10, 7, 1), Balance::Elevated(2));
        assert_eq!(balance(9, 10, 0), Balance::Surplus(1));
    }

    #[test]
    fn endings_name_the_signal() {
        assert_eq!(ending(Outcome::Exited(3)), "exited with 3");
        assert_eq!(ending(Outcome::Killed(11)), "was killed by SIGSEGV");
        assert_eq!(ending(Outcome::Killed(1)), "was killed by SIGHUP");
        assert_eq!(ending(Outcome::Killed(64)), "was killed by signal 64");
        assert_eq!(ending(Outcome::Killed(0)), "was killed by signal 0");
    }

    #[test]
    fn commands_are_as_typed() {
        let summary = Summary { command: vec!["a b".into(), "-x".into()], ..Summary::default() };
        assert_eq!(command(&summary), "'a b' -x");
    }
}
