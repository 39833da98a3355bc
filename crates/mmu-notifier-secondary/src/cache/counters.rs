//! Numbers, always on.

use std::fmt;

use mmu_notifier::Event;

use crate::sync::{AtomicU64, Ordering};

/// Counted where it is slow anyway. (Hits are counted beside the pins.)
#[derive(Default)]
pub(super) struct Counters {
    /// Hits that are counted in the entry, as the home of the thread was full.
    pub(super) found: Counter,
    pub(super) joined: Counter,
    pub(super) retries: Counter,
    pub(super) evicted: Counter,
    pub(super) superseded: Counter,
    pub(super) failed: Counter,
    pub(super) panics: Counter,
    pub(super) refused: Counter,
    pub(super) waited: Counter,
    pub(super) overdue: Counter,
    pub(super) stale: Counter,
    pub(super) invalidated: [Counter; Event::ALL.len()],
    pub(super) most_unreleased: Counter,
}

#[derive(Default)]
pub(super) struct Counter(AtomicU64);

// Relaxed: numbers order nothing.
impl Counter {
    pub(super) fn add_one(&self) {
        self.add(1);
    }

    pub(super) fn add(&self, count: u32) {
        self.0.fetch_add(u64::from(count), Ordering::Relaxed);
    }

    pub(super) fn raise_to(&self, value: usize) {
        if value as u64 > self.get() {
            self.0.fetch_max(value as u64, Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a cache has done since it was made, and what it has now. See [`Cache::stats`](super::Cache::stats).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests that found a registration.
    pub hits: u64,
    /// Requests that had to register.
    pub misses: u64,
    /// Times that a request waited for another one that was registering the same memory.
    pub joined: u64,
    /// Registrations that a change came into, so that they were undone and made again.
    pub retries: u64,
    /// Registrations made.
    pub registered: u64,
    /// Registrations ended.
    pub deregistered: u64,
    /// Registrations ended by changes, by [event](Event): see [`invalidated_by`](Stats::invalidated_by).
    pub invalidated: [u64; Event::ALL.len()],
    /// Registrations ended to make room.
    pub evicted: u64,
    /// Registrations replaced by one of more memory or more rights.
    pub superseded: u64,
    /// Registrations that the registrar refused.
    pub failed: u64,
    /// Calls of the registrar that panicked.
    pub panics: u64,
    /// Changes refused, as they must not wait.
    pub refused: u64,
    /// Changes that waited for registrations in use.
    pub waited: u64,
    /// Those of them that took longer than [`Options::patience`](super::Options::patience).
    pub overdue: u64,
    /// Stale registrations that the self-check found.
    pub stale: u64,
    /// Registrations now.
    pub entries: usize,
    /// Bytes of these.
    pub bytes: usize,
    /// Bytes that are out of the cache and still registered, now.
    pub unreleased: usize,
    /// The most that they ever were.
    pub most_unreleased: usize,
    /// Bytes of memory that the cache itself takes, now: its table and its index.
    pub memory: usize,
}

impl Stats {
    /// Registrations ended by changes because of `event`.
    pub fn invalidated_by(&self, event: Event) -> u64 {
        self.invalidated[event as usize]
    }
}

/// Several lines for a person: what there is, what was asked, what became of it.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = self.hits + self.misses;
        let share = if asked == 0 { 0.0 } else { self.hits as f64 * 100.0 / asked as f64 };
        writeln!(f, "registered    {} in {} entries", Bytes(self.bytes), self.entries)?;
        if self.unreleased > 0 || self.most_unreleased > 0 {
            let (now, most) = (Bytes(self.unreleased), Bytes(self.most_unreleased));
            writeln!(f, "unreleased    {now} now, {most} at most")?;
        }
        writeln!(f, "requests      {asked}: {} hits ({share:.1} %), {} misses", self.hits, self.misses)?;
        let names = Event::ALL.iter().map(|event| (event.name(), self.invalidated_by(*event)));
        let ended = [("evicted", self.evicted), ("superseded", self.superseded)];
        line(f, "ended by", names.chain(ended))?;
        let trouble = [
            ("joined another one's", self.joined),
            ("registered anew, as a change came between", self.retries),
            ("refused by the registrar", self.failed),
            ("panics of the registrar", self.panics),
            ("changes refused", self.refused),
            ("changes that waited", self.waited),
            ("waited too long", self.overdue),
            ("STALE", self.stale),
        ];
        line(f, "besides", trouble)?;
        write!(f, "memory        {}", Bytes(self.memory))
    }
}

/// Those that are not 0, in one line.
fn line<'a>(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    numbers: impl IntoIterator<Item = (&'a str, u64)>,
) -> fmt::Result {
    let mut is_first = true;
    for (what, number) in numbers.into_iter().filter(|(_, number)| *number > 0) {
        match is_first {
            true => write!(f, "{name:<14}{what} {number}")?,
            false => write!(f, ", {what} {number}")?,
        }
        is_first = false;
    }
    if is_first { Ok(()) } else { writeln!(f) }
}

/// A number of bytes as people write it.
struct Bytes(usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = usize::from(value < 10.0);
        write!(f, "{value:.digits$} {}", UNITS[unit])
    }
}
