//! Waits that make no progress: nobody waits for ever in silence.
//!
//! Everything that waits here waits for a callback or a change of another thread, which may take any time. After a
//! settable while, and again after each such while, it is reported: who waits, what for, and what the one who is
//! waited for is doing. Linux waits in silence (`mmu_interval_read_begin`, `mmu_interval_notifier_remove` and
//! `synchronize_srcu` have neither a limit nor a report).

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::Change;
use crate::slot::{Phase, Slot};
use crate::space::Shared;
use crate::sync::{Backoff, Ordering};

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Waiting {
    /// To subscribe: for changes that are open and that the newcomer was not told of.
    ToSubscribe,
    /// To unsubscribe: for callbacks that are running.
    ToUnsubscribe,
    /// To read an interval's range: for overlapping changes that are open.
    ToRead,
    /// To remove an interval: for overlapping changes that are starting.
    ToRemove,
    /// For subscribers that were put and may still be called.
    ToSynchronize,
    /// To begin a change: every place in the record is taken.
    ForASlot,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Waiting::ToSubscribe => "to subscribe",
            Waiting::ToUnsubscribe => "to unsubscribe",
            Waiting::ToRead => "to read an interval's range",
            Waiting::ToRemove => "to remove an interval",
            Waiting::ToSynchronize => "for put subscribers to be freed",
            Waiting::ForASlot => "to begin a change, as too many are open",
        })
    }
}

/// What the one is doing who is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Doing {
    /// It calls the starts of a change.
    Starting,
    /// It makes the change.
    Changing,
    /// It calls the ends of a change.
    Ending,
    /// It calls something else: aging, a flush, a release.
    Calling,
}

/// Who is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Its [`Caller::thread`](crate::Caller::thread).
    pub thread: u64,
    /// What it does.
    pub doing: Doing,
    /// The change that it makes, if it makes one that is on record: one that began when nobody was to be told is not.
    pub change: Option<Change>,
    /// The type of the subscriber that it is calling, unless somebody else than who waits is taking it off.
    pub subscriber: Option<&'static str>,
}

/// A wait without progress.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stall {
    /// Who waits: its [`Caller::thread`](crate::Caller::thread).
    pub thread: u64,
    /// What for.
    pub waiting: Waiting,
    /// How long so far.
    pub waited: Duration,
    /// For whom, if it is one thread.
    pub holder: Option<Holder>,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} has waited {:.1?} {}", self.thread, self.waited, self.waiting)?;
        let Some(holder) = &self.holder else { return Ok(()) };
        write!(f, ": thread {} ", holder.thread)?;
        f.write_str(match holder.doing {
            Doing::Starting => "is in the starts",
            Doing::Changing => "is in the middle",
            Doing::Ending => "is in the ends",
            Doing::Calling => "is in a callback",
        })?;
        if let Some(change) = holder.change {
            write!(f, " of a change of {} ({})", change.range(), change.event())?;
        }
        match holder.subscriber {
            Some(subscriber) => write!(f, ", calling {subscriber}"),
            None => Ok(()),
        }
    }
}

/// Whom to tell of a [`Stall`], and after how long.
pub(crate) struct Reports {
    pub(crate) after: Duration,
    pub(crate) report: Box<dyn Fn(&Stall) + Send + Sync>,
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reports").field("after", &self.after).finish_non_exhaustive()
    }
}

/// Somebody who waits.
pub(crate) struct Patience<'a> {
    shared: &'a Shared,
    thread: u64,
    waiting: Waiting,
    /// The address and the type of the subscriber that who waits is taking off: it is on no list any more.
    own: Option<(usize, &'static str)>,
    backoff: Backoff,
    /// Since when, and when to report next; not asked for before the wait is a long one.
    since: Option<(Instant, Duration)>,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(shared: &'a Shared, thread: u64, waiting: Waiting) -> Patience<'a> {
        Patience { shared, thread, waiting, own: None, backoff: Backoff::default(), since: None }
    }

    /// Of who takes the subscriber of that type at that address off.
    pub(crate) fn of(self, address: usize, name: &'static str) -> Patience<'a> {
        Patience { own: Some((address, name)), ..self }
    }

    /// Waits a little for who holds `slot`.
    pub(crate) fn wait(&mut self, phase: Phase, slot: &Slot) {
        let own = self.own;
        self.wait_for(|shared| {
            let doing = match phase {
                Phase::Starting => Doing::Starting,
                Phase::Changing | Phase::Taken => Doing::Changing,
                Phase::Ending => Doing::Ending,
                Phase::Free | Phase::Calling | Phase::Editing => Doing::Calling,
            };
            Some(Holder {
                // Relaxed: a report is a picture of a moment.
                thread: slot.thread.load(Ordering::Relaxed),
                doing,
                change: (doing != Doing::Calling && slot.list().is_some()).then(|| slot.change()),
                subscriber: slot.calling(phase).and_then(|address| match own {
                    Some((own, name)) if own == address => Some(name),
                    _ => shared.name_of(address),
                }),
            })
        });
    }

    /// Waits a little, for whomever.
    pub(crate) fn wait_for_anybody(&mut self) {
        self.wait_for(|_| None);
    }

    fn wait_for(&mut self, holder: impl FnOnce(&Shared) -> Option<Holder>) {
        self.backoff.wait();
        if cfg!(any(mmu_loom, mmu_shuttle)) || !self.backoff.is_long() {
            return;
        }
        let reports = &self.shared.reports;
        let (since, next) = self.since.get_or_insert_with(|| (Instant::now(), reports.after));
        let waited = since.elapsed();
        if waited >= *next {
            *next = waited + reports.after;
            let holder = holder(self.shared);
            let stall = Stall { thread: self.thread, waiting: self.waiting, waited, holder };
            // A report that panics is none; whoever waits has more to do than to unwind.
            drop(catch_unwind(AssertUnwindSafe(|| (reports.report)(&stall))));
        }
    }

    /// There was progress.
    pub(crate) fn renew(&mut self) {
        self.backoff = Backoff::default();
        self.since = None;
    }
}
