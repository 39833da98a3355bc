//! Reads the records of single calls.
//!
//! # Protocol
//!
//! A writer takes the position `head` if the ring is not full, writes the record, and stores the
//! position plus one in `sequence` last. The reader takes records in order and gives the place back by
//! moving `tail`. A writer that was killed in between leaves a record that never gets its sequence: the
//! reader waits for it [`PATIENCE`] long and then passes by.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mmu_notifier::Event;
use mmu_notifier_primary::Syscall;
use mmu_notifier_primary::session;

use crate::session::Session;

/// How long a record may stay unfinished.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// A call was made.
    Call(Entry),
    /// A bracket was opened or closed.
    Mark(Mark),
}

impl Said {
    fn time(&self) -> u64 {
        match self {
            Said::Call(entry) => entry.time,
            Said::Mark(mark) => mark.time,
        }
    }
}

/// A bracket is opened or closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Ticks.
    pub time: u64,
    /// Thread id, in its pid namespace.
    pub tid: u32,
    /// Where the hook is on the stack.
    pub stack: u64,
    /// The call, and first address and bytes of the change; `None`: all that are open at this place are over.
    pub change: Option<(Syscall, u64, u64)>,
}

/// A record as it was written, with its words taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Ticks when the hook was entered.
    pub time: u64,
    /// Which system call.
    pub call: Syscall,
    /// The first change's event.
    pub event: Option<Event>,
    /// It returned an error.
    pub failed: bool,
    /// Its non-blocking start was refused once.
    pub refused: bool,
    /// Thread id.
    pub tid: u32,
    /// Index of the process entry.
    pub process: usize,
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Ticks of all starts.
    pub starts: u64,
    /// Ticks of the system call.
    pub change: u64,
    /// Ticks of all ends.
    pub ends: u64,
    /// Return address of the function that made the call; 0: not known.
    pub caller: u64,
}

/// What one round of reading found.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    /// How full the fullest ring was, from 0 to 1.
    pub fullest: f64,
    /// Nothing is in the way of what was there at the time of the call: all was read.
    pub complete: bool,
}

/// The reader of all rings of a session.
#[derive(Debug)]
pub struct Rings {
    rings: Vec<Place>,
    read: u64,
    dropped: u64,
    unfinished: u64,
}

#[derive(Clone, Debug, Default)]
struct Place {
    /// The position to read next. The shared `tail` is only written.
    tail: u64,
    stuck: Option<Stuck>,
}

/// An unfinished record is in the way.
#[derive(Clone, Copy, Debug)]
struct Stuck {
    since: Instant,
    /// Where the head was then: what is unfinished before it is as old.
    head: u64,
}

impl Rings {
    /// The reader of a session's rings; there is one.
    pub fn new(session: &Session) -> Rings {
        Rings { rings: vec![Place::default(); session.rings()], read: 0, dropped: 0, unfinished: 0 }
    }

    /// Appends to `batch` what was written since the last time, and sorts it by time. With `last`,
    /// nothing unfinished is waited for.
    pub fn drain(&mut self, session: &Session, now: Instant, last: bool, batch: &mut Vec<Said>) -> Drained {
        let mut fullest: f64 = 0.0;
        let mut complete = true;
        for index in 0..self.rings.len() {
            let (ring, records) = session.ring(index);
            // Pairs with the Release of the writers that moved it.
            let head = ring.head.load(Ordering::Acquire);
            let place = &mut self.rings[index];
            let waiting = head.wrapping_sub(place.tail);
            if waiting > records.len() as u64 {
                // No writer does that: the memory is broken. Start again where the head says.
                self.dropped += 1;
                *place = Place { tail: head, stuck: None };
                ring.tail.0.store(head, Ordering::Release);
                continue;
            }
            fullest = fullest.max(waiting as f64 / records.len() as f64);
            while place.tail != head {
                let record = &records[place.tail as usize & (records.len() - 1)];
                // Pairs with the Release of the writer: the other words were written before.
                let finished = record.sequence.load(Ordering::Acquire) == place.tail.wrapping_add(1);
                let said = if finished { decode(record) } else { None };
                if let Some(said) = said {
                    self.read += u64::from(matches!(said, Said::Call(_)));
                    batch.push(said);
                } else if finished || last || place.gives_up(head, now) {
                    self.dropped += 1;
                    self.unfinished += u64::from(!finished);
                } else {
                    complete = false;
                    break;
                }
                place.tail = place.tail.wrapping_add(1);
            }
            if place.stuck.is_some_and(|stuck| place.tail.wrapping_sub(stuck.head) as i64 >= 0) {
                place.stuck = None;
            }
            // Pairs with the Acquire of the writers that ask for room: our reads are done.
            ring.tail.0.store(place.tail, Ordering::Release);
        }
        batch.sort_by_key(Said::time);
        Drained { fullest, complete }
    }

    /// How many records of calls were read.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// How many of them were never finished: their writer was killed, cancelled or jumped away in the middle. If it was
    /// to say that a bracket opens, the system call has not been made; if it was to say that one closes, that one is
    /// found to be abandoned, and is open until then.
    pub fn unfinished(&self) -> u64 {
        self.unfinished
    }

    /// How many were lost: found no room, unfinished, or broken.
    pub fn dropped(&self, session: &Session) -> u64 {
        (0..session.rings()).fold(self.dropped, |sum, index| {
            sum.saturating_add(session.ring(index).0.dropped.load(Ordering::Relaxed))
        })
    }
}

impl Place {
    /// Whether the unfinished record at the tail has been waited for long enough.
    fn gives_up(&mut self, head: u64, now: Instant) -> bool {
        let fresh = Stuck { since: now, head };
        let stuck = self.stuck.get_or_insert(fresh);
        if self.tail.wrapping_sub(stuck.head) as i64 >= 0 {
            *stuck = fresh; // younger than the one that was waited for
        }
        now.saturating_duration_since(stuck.since) >= PATIENCE
    }
}

fn decode(record: &session::Record) -> Option<Said> {
    let [what, took, who] = [&record.what, &record.took, &record.who].map(|w| w.load(Ordering::Relaxed));
    let high = |word: u64| word >> 32;
    let low = |word: u64| word & 0xffff_ffff;
    let event = match (what >> 8) & 0xff {
        0xff => None,
        event => Some(*Event::ALL.get(event as usize)?),
    };
    let time = record.time.load(Ordering::Relaxed);
    let call = *Syscall::ALL.get((what & 0xff) as usize)?;
    if what & (session::OPENED | session::CLOSED) != 0 {
        let [start, len, stack] =
            [&record.start, &record.len, &record.caller].map(|word| word.load(Ordering::Relaxed));
        let change = (what & session::OPENED != 0).then_some((call, start, len));
        return Some(Said::Mark(Mark { time, tid: low(who) as u32, stack, change }));
    }
    Some(Said::Call(Entry {
        time,
        call,
        event,
        failed: what & (1 << 16) != 0,
        refused: what & (1 << 17) != 0,
        tid: low(who) as u32,
        process: (high(who) & 0xffff) as usize % session::PROCESSES,
        start: record.start.load(Ordering::Relaxed),
        len: record.len.load(Ordering::Relaxed),
        starts: high(what),
        change: low(took),
        ends: high(took),
        caller: record.caller.load(Ordering::Relaxed),
    }))
}

#[cfg(test)]
#[path = "rings_tests.rs"]
mod tests;
