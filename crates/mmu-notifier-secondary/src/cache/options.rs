//! How a cache is made.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mmu_notifier::{Change, Range};

/// How much a cache may hold, and what it does when something takes too long.
#[derive(Clone)]
pub struct Options {
    /// Registrations at a time, those in use and those not yet released included: the size of the table, of 64 bytes
    /// an entry at least and not touched before it is used. At most 2^31.
    pub entries: usize,
    /// Bytes registered at a time, those in use and those not yet released included.
    pub bytes: usize,
    /// Bytes that may be out of the cache and not yet deregistered, because changes that must not wait have taken them
    /// out: more, and such a change is refused, so that it is made again when there is time to wait.
    pub unreleased: usize,
    /// How often memory is registered before a request that changes keep coming into gives up.
    pub attempts: u32,
    /// How long a change waits for registrations in use before that is reported
    /// ([`Wait::UntilUnused`](super::Wait::UntilUnused)).
    pub patience: Duration,
    /// What becomes then of the change.
    pub when_overdue: WhenOverdue,
    /// What is done with the report. Runs inside the change, so it must not allocate where the change comes from an
    /// allocator. The default writes a line to stderr.
    pub on_overdue: Arc<dyn Fn(&Overdue) + Send + Sync>,
    /// Whether to compare, at each hit, the page frames that are mapped with those that were registered: a stale entry
    /// is reported on stderr and counted ([`Stats::stale`](super::Stats::stale)). To find changes that nobody announces. Needs
    /// `CAP_SYS_ADMIN`, and a registrar that pins pages. Slow: microseconds a hit.
    pub self_check: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            entries: 1 << 16,
            bytes: usize::MAX,
            unreleased: 256 << 20,
            attempts: 16,
            patience: Duration::from_secs(1),
            when_overdue: WhenOverdue::Wait,
            on_overdue: Arc::new(|overdue| eprintln!("mmu-notifier: {overdue}")),
            self_check: false,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("entries", &self.entries)
            .field("bytes", &self.bytes)
            .field("unreleased", &self.unreleased)
            .field("attempts", &self.attempts)
            .field("patience", &self.patience)
            .field("when_overdue", &self.when_overdue)
            .field("self_check", &self.self_check)
            .finish_non_exhaustive()
    }
}

/// What becomes of a change that has waited too long for a registration in use. It is reported first, in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenOverdue {
    /// It waits on, and reports again after each such time.
    Wait,
    /// It goes on, if there are not more than [`Options::unreleased`] bytes in this state already; else it waits. The
    /// registration stays, and with it the pages, out of everybody's reach, until nobody uses it any more
    /// ([`Stats::unreleased`](super::Stats::unreleased)). For registrations that keep their pages.
    Quarantine,
    /// It goes on, as with [`Wait::ForNothing`](super::Wait::ForNothing), and that it was reported is all.
    Report,
    /// The process ends by `abort`: better no data than data in the wrong place.
    Abort,
}

/// A change has waited too long.
#[derive(Debug)]
#[non_exhaustive]
pub struct Overdue {
    /// The change.
    pub change: Change,
    /// The registration that is in use.
    pub registered: Range,
    /// By how many at the moment.
    pub users: u64,
    /// How long it has waited.
    pub waited: Duration,
    /// What becomes of the change.
    pub then: WhenOverdue,
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overdue { change, registered, users, waited, then } = self;
        let (event, range) = (change.event(), change.range());
        let then = match then {
            WhenOverdue::Wait => "waiting on",
            WhenOverdue::Quarantine => "going on; its pages stay with it",
            WhenOverdue::Report => "going on",
            WhenOverdue::Abort => "aborting",
        };
        write!(
            f,
            "a change ({event}) of {range} has waited {waited:.1?} for {users} users of the registration of {registered}: {then}"
        )
    }
}
