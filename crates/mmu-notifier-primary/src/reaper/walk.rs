//! One walk over the ranges: the kernel's `__oom_reap_task_mm`.

// UNSAFETY: discards memory.
#![expect(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::TryLockError;

use mmu_notifier::{Event, PAGE_SIZE, Range, WouldBlock};

use super::table::{Claim, Outcome, Then};
use super::{Reaped, Shared};
use crate::Syscall;
use crate::gate;
use crate::gate::safe::{Errno, File};

/// What a walk takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walk {
    /// Everything.
    Anew,
    /// Everything but what is marked.
    Again,
}

impl Shared {
    /// Takes away what can be taken away now. `None`: another thread is at it.
    ///
    /// Waits for nobody, and allocates nothing; if a subscriber panics, that does.
    pub(super) fn walk(&self, walk: Walk) -> Option<Reaped> {
        let mut places = match self.places.try_lock() {
            Ok(places) => places,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if walk == Walk::Anew {
            self.table.retry_all();
        }
        let mut reaped = Reaped::default();
        for &place in self.table.in_order(&mut places) {
            let Some(claim) = self.table.claim(place) else { continue };
            // A claim that is dropped by a panic is settled.
            let reap = AssertUnwindSafe(|| self.reap_one(claim, &mut reaped));
            if catch_unwind(reap).is_err() {
                reaped.panicked += 1;
                reaped.left += 1;
            }
        }
        self.counters.add(&reaped);
        Some(reaped)
    }

    fn reap_one(&self, claim: Claim<'_>, reaped: &mut Reaped) {
        let (range, was_left) = (claim.range(), claim.was_left);
        let present =
            self.pagemap.as_ref().and_then(|pagemap| present_in(range, pagemap)).unwrap_or(range.len());
        if present == 0 && !was_left {
            claim.settle(Outcome::Freed);
            return;
        }
        let before = (self.unreleased)();
        reaped.announced += 1;
        // SAFETY: who has added the range lets it be discarded at any time, and it is claimed, so it is still there.
        let discarded = self.space.try_invalidate(range, Event::Clear, || unsafe { discard(range) });
        let outcome = match discarded {
            Ok(Ok(())) => {
                reaped.discarded += present as u64;
                let is_held = claim.hold(before, (self.unreleased)()) > 0;
                reaped.held += usize::from(is_held);
                if is_held { Outcome::Left } else { Outcome::Freed }
            }
            Ok(Err(_)) => {
                reaped.failed += 1;
                Outcome::Left
            }
            Err(WouldBlock) => {
                reaped.refused += 1;
                Outcome::Left
            }
        };
        match claim.settle(outcome) {
            Then::Done => {}
            Then::Again => reaped.left += 1,
            Then::Marked => {
                reaped.marked += 1;
                (self.on_mark)(range);
            }
        }
    }
}

/// Discards memory, also if it is locked, without announcing that.
///
/// # Safety
///
/// Nobody relies on the contents of `range`.
unsafe fn discard(range: Range) -> Result<(), Errno> {
    const MADV_DONTNEED: usize = 4;
    /// The same for locked memory, since Linux 5.18.
    const MADV_DONTNEED_LOCKED: usize = 24;
    const EINVAL: isize = 22;
    let advise = |advice| {
        let args = [range.start(), range.len(), advice, 0, 0, 0];
        // SAFETY: by the caller's promise.
        unsafe { gate::call(Syscall::Madvise.number(), &args) }
    };
    let result = match advise(MADV_DONTNEED_LOCKED) {
        result if result == -EINVAL => advise(MADV_DONTNEED),
        result => result,
    };
    if result == 0 { Ok(()) } else { Err(Errno(-result as i32)) }
}

/// How many bytes of `range` are in memory that only this process has, and that goes when they are discarded: pages that are
/// present and are neither those of a file, nor shared with another process, nor the page of zeroes; from
/// `/proc/self/pagemap`.
fn present_in(range: Range, pagemap: &File) -> Option<usize> {
    const PRESENT: u64 = 1 << 63;
    const OF_A_FILE: u64 = 1 << 61;
    const EXCLUSIVE: u64 = 1 << 56;
    const AT_ONCE: usize = 512;
    let pages = range.to_pages();
    let (mut next, end) = (pages.start() / PAGE_SIZE, pages.end() / PAGE_SIZE);
    let mut count = 0;
    let mut entries = [0; AT_ONCE * 8];
    while next < end {
        let wanted = (end - next).min(AT_ONCE);
        let read = pagemap.read_at(&mut entries[..wanted * 8], next * 8).ok()?;
        if read != wanted * 8 {
            return None;
        }
        let words = entries[..read]
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()));
        let is_own = |word: &u64| word & (PRESENT | OF_A_FILE | EXCLUSIVE) == PRESENT | EXCLUSIVE;
        count += words.filter(is_own).count();
        next += wanted;
    }
    Some(count * PAGE_SIZE)
}
