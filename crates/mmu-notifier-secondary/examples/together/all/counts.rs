//! What has happened.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use mmu_notifier::Stats;
use mmu_notifier_primary::reaper;

/// Relaxed would do; but here nothing is to be wrong that can be right.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) starts: AtomicU64,
    pub(crate) ends: AtomicU64,
    /// Calls that have changed the memory, and those that the kernel has refused.
    pub(crate) changes: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Pages that a device has used, and that were compared meanwhile.
    pub(crate) gru: AtomicU64,
    pub(crate) stage2: AtomicU64,
    pub(crate) listed: AtomicU64,
    pub(crate) tracked: AtomicU64,
    pub(crate) mirror: AtomicU64,
    pub(crate) interval: AtomicU64,
    /// Reads into fixed buffers, and those of them whose memory was still the same behind it: then the data was there.
    pub(crate) reads: AtomicU64,
    pub(crate) compared: AtomicU64,
    /// Updates of memslots, and those that gave up.
    pub(crate) memslots: AtomicU64,
    pub(crate) stalled: AtomicU64,
    /// Devices that came and went.
    pub(crate) visits: AtomicU64,
}

impl Counts {
    /// Pages that each kind of device has used.
    fn devices(&self) -> [(&'static str, &AtomicU64); 6] {
        [
            ("gru", &self.gru),
            ("stage2", &self.stage2),
            ("userptr (listed)", &self.listed),
            ("userptr (tracked)", &self.tracked),
            ("mirror", &self.mirror),
            ("an interval", &self.interval),
        ]
    }

    /// Who has done nothing at all.
    pub(crate) fn idle(&self) -> Vec<&'static str> {
        let others = [("changes", &self.changes), ("memslots", &self.memslots), ("visits", &self.visits)];
        let is_idle =
            |(name, counter): (&'static str, &AtomicU64)| (counter.load(SeqCst) == 0).then_some(name);
        self.devices().into_iter().chain(others).filter_map(is_idle).collect()
    }
}

pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, SeqCst);
}

/// How it was.
pub(crate) struct Report {
    pub(crate) counts: Arc<Counts>,
    pub(crate) stats: Stats,
    pub(crate) reaped: reaper::Stats,
    /// Whether frames could be compared, or only whether there is a page.
    pub(crate) has_frames: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &*self.counts;
        let get = |counter: &AtomicU64| counter.load(SeqCst);
        let (changes, failed) = (get(&counts.changes), get(&counts.failed));
        writeln!(f, "{changes} changes of the memory, {failed} refused by the kernel")?;
        let (starts, refused) = (get(&counts.starts), self.stats.refused);
        writeln!(f, "{starts} starts, as many ends; {refused} refused, and announced again")?;
        let what =
            if self.has_frames { "their frames compared" } else { "only looked at, as frames take root" };
        for (name, pages) in counts.devices() {
            writeln!(f, "{:>10} pages used by {name}, {what}", get(pages))?;
        }
        let (reads, compared) = (get(&counts.reads), get(&counts.compared));
        writeln!(
            f,
            "{reads:>10} reads into fixed buffers; {compared} were undisturbed, and every byte is right"
        )?;
        let reaper::Stats { announced, refused, walks, .. } = self.reaped;
        writeln!(
            f,
            "{announced:>10} ranges announced by the reaper in {walks} walks; {refused} were refused, and left alone"
        )?;
        let (memslots, stalled) = (get(&counts.memslots), get(&counts.stalled));
        writeln!(f, "{memslots:>10} updates of memslots, {stalled} that found changes open for too long")?;
        writeln!(f, "{:>10} devices came and went", get(&counts.visits))?;
        write!(f, "nothing stale was used, and nothing is left open")
    }
}
