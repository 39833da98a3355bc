//! The retry rule: changes in progress, the union of their ranges, and a sequence. Pages are numbered by the device.

use std::ops::RangeInclusive;

use crate::sync::{AtomicU64, Ordering};

/// Bits of the number of a page.
const BITS: u32 = 27;
const NUMBER: u64 = (1 << BITS) - 1;
/// Above first and last page: how many are in progress. There are at most 512 changes at a time.
const COUNT: u32 = 2 * BITS;
const ONE: u64 = 1 << COUNT;

#[derive(Debug, Default)]
pub(crate) struct Retry {
    /// Count, last and first page, in one word, so that they belong together.
    open: AtomicU64,
    sequence: AtomicU64,
}

impl Retry {
    /// Numbers of pages are less than that.
    pub(crate) const PAGES: usize = 1 << BITS;

    /// A change of the pages from `first` to `last` begins. A full fence has to follow.
    #[doc(alias = "kvm_mmu_invalidate_range_add")]
    pub(crate) fn begin(&self, first: usize, last: usize) {
        let (first, last) = (first as u64, last as u64);
        let grow = |open: u64| {
            let (low, high) = match open >> COUNT {
                0 => (first, last),
                _ => (first.min(open & NUMBER), last.max(open >> BITS & NUMBER)),
            };
            Some(((open >> COUNT) + 1) << COUNT | high << BITS | low)
        };
        _ = self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow);
    }

    /// It is over.
    pub(crate) fn end(&self) {
        // Before the count: who sees that lowered sees this raised. Release pairs with the Acquire in `sequence`.
        self.sequence.fetch_add(1, Ordering::Release);
        // After a release there is nothing to end. Release pairs with the Acquire in `covers`.
        let less = |open: u64| open.checked_sub(ONE);
        _ = self.open.fetch_update(Ordering::Release, Ordering::Relaxed, less);
    }

    /// To be taken before the page table is looked at.
    pub(crate) fn sequence(&self) -> u64 {
        // Acquire pairs with the Release in `end`: the page table is that of after the change.
        self.sequence.load(Ordering::Acquire)
    }

    /// Whether a change is in progress that may have one of those pages.
    pub(crate) fn covers(&self, pages: RangeInclusive<usize>) -> bool {
        // Acquire pairs with the Release in `end`: the sequence is that of after the end.
        let open = self.open.load(Ordering::Acquire);
        let (low, high) = (open & NUMBER, open >> BITS & NUMBER);
        open >= ONE && low <= *pages.end() as u64 && *pages.start() as u64 <= high
    }

    /// Whether what was seen of those pages since the sequence was taken may be stale.
    #[doc(alias = "mmu_invalidate_retry_gfn")]
    pub(crate) fn must_retry(&self, sequence: u64, pages: RangeInclusive<usize>) -> bool {
        self.covers(pages) || self.sequence.load(Ordering::Relaxed) != sequence
    }

    pub(crate) fn in_progress(&self) -> u32 {
        (self.open.load(Ordering::Relaxed) >> COUNT) as u32
    }

    /// Nobody's end comes any more.
    pub(crate) fn reset(&self) {
        self.open.store(0, Ordering::Relaxed);
    }
}
