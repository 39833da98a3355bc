//! The summary on the terminal at the end of a run.
//!
//! About 25 lines and never wider than 80 columns, whatever the names in it; bad news is red and comes
//! in words, so that nothing depends on the colour.

use std::io::{self, Write};

use super::audit;
use super::bar::{bar, level};
use super::check;
use super::fit::{folded, keep_back, keep_front, printable};
use super::paint::{Paint, Tone};
use super::units::{bytes, count, counted, duration, percent};
use super::words::{Balance, command, ending};
use crate::summary::{PutOff, Summary, Times};

const WIDTH: usize = 80;
/// Where the sentences below the tables begin.
const INDENT: usize = 12;
/// Kinds of unseen things and of unseen programs to name; the rest is counted.
const NAMED: usize = 6;

/// Writes the summary; `color` adds ANSI colours.
pub fn write(summary: &Summary, out: &mut impl Write, color: bool) -> io::Result<()> {
    let mut text = Text { out, paint: Paint::new(color) };
    text.headline(summary)?;
    text.calls(summary)?;
    text.events(summary)?;
    text.times(summary)?;
    writeln!(text.out)?;
    text.balance(summary)?;
    text.refusals(summary)?;
    text.sites(summary)?;
    text.strict(summary)?;
    text.unseen(summary)?;
    text.records(summary)?;
    text.hook(summary)?;
    text.check(summary)?;
    text.audit(summary)
}

struct Text<'a, W> {
    out: &'a mut W,
    paint: Paint,
}

impl<W: Write> Text<'_, W> {
    fn headline(&mut self, summary: &Summary) -> io::Result<()> {
        let program = keep_front(&command(summary), WIDTH - 6);
        let mut rest = ending(summary.outcome);
        rest += &format!(
            " after {}: {}, {}",
            duration(nanoseconds(summary)),
            counted(summary.processes, "process", "processes"),
            counted(summary.threads, "thread", "threads"),
        );
        if summary.processes_left > 0 {
            rest += &format!(", {} left", count(summary.processes_left));
        }
        let name = self.paint.tone(Tone::Strong, &program);
        if 6 + program.chars().count() + 1 + rest.chars().count() <= WIDTH {
            writeln!(self.out, "mmun: {name} {rest}")
        } else {
            writeln!(self.out, "mmun: {name}\n      {rest}")
        }
    }

    fn calls(&mut self, summary: &Summary) -> io::Result<()> {
        let mut made: Vec<_> = summary.calls.iter().filter(|(_, calls)| calls.count > 0).collect();
        made.sort_by_key(|(name, calls)| (std::cmp::Reverse(calls.count), **name));
        self.head(&format!("{:<18}{:>13}{:>11}{:>13}", "calls", "count", "failed", "bracketed"))?;
        if made.is_empty() {
            return writeln!(self.out, "  none");
        }
        let most = made.iter().map(|(_, calls)| calls.count).max().unwrap_or(0);
        for (name, calls) in made {
            let line = format!(
                "  {name:<18}{:>13}{:>11}{:>13}  {}",
                count(calls.count),
                or_dot(calls.failed),
                or_dot(calls.bracketed),
                bar(calls.count, most, 18),
            );
            writeln!(self.out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn events(&mut self, summary: &Summary) -> io::Result<()> {
        if summary.events.is_empty() {
            return Ok(());
        }
        self.head(&format!("{:<18}{:>13}{:>11}", "changes", "count", "bytes"))?;
        let most = summary.events.iter().map(|(_, events)| events.changes).max().unwrap_or(0);
        for (name, events) in &summary.events {
            let size = if events.bytes == 0 { "·".to_owned() } else { bytes(events.bytes) };
            let bar = bar(events.changes, most, 18);
            writeln!(self.out, "  {name:<18}{:>13}{size:>11}{:>13}  {bar}", count(events.changes), "")?;
        }
        Ok(())
    }

    fn times(&mut self, summary: &Summary) -> io::Result<()> {
        let rows = [("starts", &summary.starts), ("system calls", &summary.changes), ("ends", &summary.ends)];
        if rows.iter().all(|(_, times)| times.count == 0) {
            return Ok(());
        }
        let axis = Axis::over(rows.map(|(_, times)| times));
        self.head(&format!(
            "{:<12}{:>9}{:>10}{:>10}{:>11}{:>8}",
            "time", "median", "p99", "max", "total", "of wall"
        ))?;
        for (name, times) in rows {
            let spark = axis.spark(times);
            let line = format!(
                "  {name:<12}{:>9}{:>10}{:>10}{:>11}{:>8}  {spark}",
                duration(times.quantile_ns(0.5)),
                duration(times.quantile_ns(0.99)),
                duration(times.max_ns),
                duration(times.total_ns),
                percent(times.total_ns, nanoseconds(summary)),
            );
            writeln!(self.out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn balance(&mut self, summary: &Summary) -> io::Result<()> {
        let (starts, ends) = (count(summary.balance_starts), count(summary.balance_ends));
        let (tone, verdict) = match Balance::of(summary) {
            Balance::Equal => (Tone::Good, format!("starts {starts} = ends {ends}, balanced")),
            Balance::CutShort => {
                let cut = count(summary.balance_starts - summary.balance_ends);
                (Tone::Good, format!("starts {starts} = ends {ends} + {cut} cut short, balanced"))
            }
            Balance::Elevated(open) => (
                Tone::Bad,
                format!("NOT BALANCED: starts {starts}, ends {ends}, elevated by {}", count(open)),
            ),
            Balance::Surplus(more) => {
                (Tone::Bad, format!("NOT BALANCED: starts {starts}, ends {ends}, {} too many", count(more)))
            }
        };
        self.say("balance", tone, &verdict)?;
        if summary.cut_short > 0 {
            let cut = counted(summary.cut_short, "bracket", "brackets");
            self.say("", Tone::Faint, &format!("{cut} cut short: exec or a kill took the process along"))?;
        }
        if summary.abandoned > 0 {
            let left = counted(summary.abandoned, "bracket", "brackets");
            self.say("", Tone::Careful, &format!("{left} abandoned by a thread, and ended for it"))?;
        }
        Ok(())
    }

    fn refusals(&mut self, summary: &Summary) -> io::Result<()> {
        if summary.refuse_every == 0 && summary.refused == 0 {
            return Ok(());
        }
        let changes: u64 = summary.events.iter().map(|(_, events)| events.changes).sum();
        let wanted = match summary.refuse_every {
            0 => String::new(),
            1 => " (all that may be, as asked)".to_owned(),
            every => format!(" (one in {}, as asked)", count(every.into())),
        };
        let line = format!(
            "{} in {}{wanted}: asked again {}, {} failed",
            count(summary.refused),
            counted(changes, "change", "changes"),
            count(summary.announced_again),
            counted(summary.put_off.declined, "call", "calls"),
        );
        self.say("refusals", Tone::Plain, &line)?;
        let PutOff { ranges, bytes: size, by_worker, by_calls, .. } = summary.put_off;
        if ranges > 0 {
            let left = ranges.saturating_sub(by_worker + by_calls);
            let line = format!(
                "{} put off, {}: by the worker {}, by calls {}{}",
                counted(ranges, "munmap", "munmaps"),
                bytes(size),
                count(by_worker),
                count(by_calls),
                if left > 0 { format!(", never {}", count(left)) } else { String::new() },
            );
            self.say("", Tone::Plain, &line)?;
        }
        Ok(())
    }

    fn sites(&mut self, summary: &Summary) -> io::Result<()> {
        let [t1, t2, t3] = summary.sites;
        let line = format!(
            "{} patched (T1 {}, T2 {}, T3 {}); {} searched in {}",
            counted(t1 + t2 + t3, "call site", "call sites"),
            count(t1),
            count(t2),
            count(t3),
            counted(summary.mappings_searched, "mapping", "mappings"),
            duration(summary.search.as_nanos().try_into().unwrap_or(u64::MAX)),
        );
        self.say("sites", Tone::Plain, &line)
    }

    fn strict(&mut self, summary: &Summary) -> io::Result<()> {
        let strict = &summary.strict;
        if strict.refused > 0 {
            let refused = counted(strict.refused, "process", "processes");
            let line = format!("the kernel refused Syscall User Dispatch in {refused}");
            self.say("strict", Tone::Careful, &line)?;
        }
        if strict.asked + strict.needed == 0 {
            return Ok(());
        }
        let why = if strict.needed > 0 { ", as call sites there could not be rewritten" } else { "" };
        let line = format!(
            "{} trapped in {}{why}",
            counted(strict.trapped, "system call", "system calls"),
            counted(strict.asked + strict.needed, "process", "processes"),
        );
        self.say("strict", Tone::Plain, &line)?;
        if strict.rewritten + strict.kept == 0 {
            return Ok(());
        }
        let line = format!(
            "{} rewritten while they ran, {} could not be",
            counted(strict.rewritten, "hot place", "hot places"),
            strict.kept,
        );
        self.say("", Tone::Plain, &line)
    }

    fn unseen(&mut self, summary: &Summary) -> io::Result<()> {
        let unseen = &summary.unseen;
        let programs = &summary.programs_unseen;
        if unseen.is_empty() && summary.unseen_more == 0 && programs.is_empty() && summary.processes_lost == 0
        {
            return self.say("not seen", Tone::Good, "nothing: everything was seen");
        }
        let mut label = "not seen";
        let mut say = |text: &mut Self, line: &str| text.say(std::mem::take(&mut label), Tone::Careful, line);
        for entry in unseen.iter().take(NAMED) {
            let call = entry.call.as_deref().map(|call| format!(", {}", printable(call))).unwrap_or_default();
            let processes = match entry.processes {
                0 | 1 => String::new(),
                many => format!(", in {} processes", count(many)),
            };
            // Without a name: a sandbox may keep it from the process.
            let file = if entry.file.is_empty() {
                format!("at {:#x}", entry.address)
            } else {
                keep_back(&printable(&entry.file), 40)
            };
            say(self, &format!("{file}{call}: {}{processes}", entry.reason))?;
        }
        let more = unseen.len().saturating_sub(NAMED) as u64 + summary.unseen_more;
        if more > 0 {
            say(self, &format!("and {}", counted(more, "more place", "more places")))?;
        }
        for (program, times) in programs.iter().take(NAMED) {
            let times = if *times == 1 { String::new() } else { format!(", {} times", count(*times)) };
            say(self, &format!("{}: ran unwatched{times}", keep_back(&printable(program), 40)))?;
        }
        if programs.len() > NAMED {
            say(self, &format!("and {} more programs", count((programs.len() - NAMED) as u64)))?;
        }
        if summary.processes_lost > 0 {
            let lost = counted(summary.processes_lost, "process", "processes");
            say(self, &format!("{lost} ran unwatched: the session had no room for more"))?;
        }
        Ok(())
    }

    fn records(&mut self, summary: &Summary) -> io::Result<()> {
        if summary.records_dropped > 0 {
            let line = format!(
                "{} DROPPED, {} read: the buffer of {} was full. The counts above are exact; \
                 pictures and traces have gaps",
                counted(summary.records_dropped, "record", "records"),
                count(summary.records),
                bytes(summary.record_buffer),
            );
            return self.say("records", Tone::Bad, &line);
        }
        if summary.record_buffer == 0 {
            return Ok(());
        }
        self.say("records", Tone::Plain, &format!("{} read, none dropped", count(summary.records)))
    }

    fn hook(&mut self, summary: &Summary) -> io::Result<()> {
        let calls = counted(summary.own_calls, "memory call", "memory calls");
        let line = format!("{calls} of its own, at most {} in a process", bytes(summary.own_bytes));
        self.say("hook", Tone::Plain, &line)
    }

    fn check(&mut self, summary: &Summary) -> io::Result<()> {
        let Some(check) = &summary.check else { return Ok(()) };
        let mut label = "check";
        for (tone, line) in check::lines(check) {
            self.say(std::mem::take(&mut label), tone, &line)?;
        }
        check::write(check, self.out, self.paint)
    }

    fn audit(&mut self, summary: &Summary) -> io::Result<()> {
        let mut label = "audit";
        for (tone, sentence) in summary.audit.iter().flat_map(audit::sentences) {
            self.say(std::mem::take(&mut label), tone, &sentence)?;
        }
        Ok(())
    }

    fn head(&mut self, columns: &str) -> io::Result<()> {
        let columns = self.paint.tone(Tone::Faint, columns);
        writeln!(self.out, "\n  {columns}")
    }

    /// A label and a sentence, folded at the width of the page.
    fn say(&mut self, label: &str, tone: Tone, sentence: &str) -> io::Result<()> {
        let mut label = self.paint.tone(Tone::Faint, &format!("{label:<0$}", INDENT - 2));
        for line in folded(sentence, WIDTH - INDENT) {
            writeln!(self.out, "  {label}{}", self.paint.tone(tone, &line))?;
            label = " ".repeat(INDENT - 2);
        }
        Ok(())
    }
}

/// The buckets that several distributions are drawn over, so that their pictures can be compared.
struct Axis {
    low: u32,
    step: u32,
}

impl Axis {
    const COLUMNS: u32 = 16;

    fn over(all: [&Times; 3]) -> Axis {
        let exponents = all.iter().flat_map(|times| &times.buckets).map(|&(bound, _)| bound.max(1).ilog2());
        let (low, high) = exponents.fold((u32::MAX, 0), |(low, high), at| (low.min(at), high.max(at)));
        let span = high.saturating_sub(low) + 1;
        Axis { low, step: span.div_ceil(Axis::COLUMNS) }
    }

    fn spark(&self, times: &Times) -> String {
        const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let mut columns = [0u64; Axis::COLUMNS as usize];
        for &(bound, count) in &times.buckets {
            columns[((bound.max(1).ilog2() - self.low) / self.step) as usize] += count;
        }
        let most = columns.iter().copied().max().unwrap_or(0).max(1);
        let line: String = columns.iter().map(|&n| LEVELS[level(n, most, 8) as usize]).collect();
        line.trim_end().to_owned()
    }
}

fn or_dot(number: u64) -> String {
    if number == 0 { "·".to_owned() } else { count(number) }
}

fn nanoseconds(summary: &Summary) -> u64 {
    summary.wall.as_nanos().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use crate::summary::{Outcome, Unseen};

    fn shown(summary: &Summary, color: bool) -> String {
        let mut out = Vec::new();
        write(summary, &mut out, color).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_usual_run_fits_a_screen() {
        let text = shown(&sample::summary(), false);
        println!("{text}");
        assert!(text.lines().count() <= 30, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(!text.contains('\x1b'));
        assert!(text.contains("balanced") && text.contains("everything was seen"));
        assert!(shown(&sample::summary(), true).contains("\x1b[32mstarts"));
    }

    #[test]
    fn nothing_to_tell_is_told() {
        let text = shown(&Summary::default(), false);
        assert!(text.contains("  none") && text.contains("starts 0 = ends 0, balanced"), "{text}");
    }

    #[test]
    fn bad_news_is_loud_and_fits() {
        let text = shown(&sample::troubled(), false);
        println!("{text}");
        for part in [
            "NOT BALANCED: starts 1,236, ends 1,231, elevated by 4",
            "1 bracket cut short",
            "7 records DROPPED",
            "libcuda.so.1, mmap: ",
            "and 12 more places",
            "/bin/static: ran unwatched, 3 times",
            "2 processes ran unwatched",
            "refusals  12 in 14,984 changes (one in 100, as asked): asked again 12, 2 calls",
            "3 munmaps put off, 48.0 KiB: by the worker 1, by calls 1, never 1",
            "was killed by SIGSEGV",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(!shown(&sample::troubled(), true).contains("\x1b[32m"), "green in\n{text}");
    }

    #[test]
    fn hostile_names_stay_inside_the_page() {
        let long = "x".repeat(500);
        let summary = Summary {
            command: vec!["\x1b]0;title\x07".to_owned() + &long],
            outcome: Outcome::Exited(0),
            unseen: vec![Unseen {
                reason: "no file",
                file: "/tmp/\x1b[2J\n".to_owned() + &long,
                call: None,
                address: 0,
                processes: 1,
            }],
            programs_unseen: [(long, 1)].into(),
            ..Summary::default()
        };
        let text = shown(&summary, false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(!text.contains(['\x1b', '\x07']));
    }
}
