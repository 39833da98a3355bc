//! The second-stage table: an entry a page of a memslot, each one word.

use mmu_notifier::PAGE_SIZE;

use crate::device::{Access, Page};
use crate::sync::{AtomicUsize, Ordering};

// Beside the frame.
const PRESENT: usize = 1;
const WRITABLE: usize = 2;
const ACCESSED: usize = 4;
const DIRTY: usize = 8;
/// Some fault owns it. Alone, or with `KILLED`.
const LOADING: usize = 16;
/// A start has come since.
const KILLED: usize = 32;

#[derive(Default)]
pub(super) struct Entry(AtomicUsize);

/// What an access has found.
pub(super) struct Found {
    pub(super) frame: usize,
    /// It is a write, and the first one since the entry was [cleaned](Entry::clean).
    pub(super) is_first_write: bool,
}

impl Entry {
    /// The frame for an access, if it is present and allows that. Notes that it was accessed.
    pub(super) fn find(&self, access: Access) -> Option<Found> {
        let writes = access.includes(Access::Write);
        let (needed, noted) =
            if writes { (PRESENT | WRITABLE, ACCESSED | DIRTY) } else { (PRESENT, ACCESSED) };
        // Acquire pairs with the Release in `install`: the frame is as the fault has seen it.
        let mut entry = self.0.load(Ordering::Acquire);
        loop {
            if entry & needed != needed {
                return None;
            }
            let to = entry | noted;
            let found =
                Found { frame: entry & !(PAGE_SIZE - 1), is_first_write: writes && entry & DIRTY == 0 };
            if to == entry {
                return Some(found);
            }
            match self.0.compare_exchange(entry, to, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(found),
                Err(now) => entry = now,
            }
        }
    }

    /// Makes it the calling fault's; none if it is another one's.
    pub(super) fn load(&self) -> Option<Loading<'_>> {
        let claim = |entry| (entry & LOADING == 0).then_some(LOADING);
        // Relaxed: the fault's fence follows.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim).ok()?;
        Some(Loading { entry: self, is_installed: false })
    }

    /// Takes the page out; whether there was one.
    pub(super) fn zap(&self) -> bool {
        let zap = |entry: usize| match entry {
            0 => None,
            entry if entry & LOADING != 0 => Some(LOADING | KILLED),
            _ => Some(0),
        };
        // Relaxed: the fences around, in `start` and in `InFlight::wait`, order it.
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, zap);
        before.is_ok_and(|entry| entry & PRESENT != 0)
    }

    /// Whether there is a page.
    pub(super) fn is_present(&self) -> bool {
        self.0.load(Ordering::Relaxed) & PRESENT != 0
    }

    /// Forgets that it was written.
    pub(super) fn clean(&self) {
        self.0.fetch_and(!DIRTY, Ordering::Relaxed);
    }

    /// Forgets that it was accessed; whether it was.
    pub(super) fn make_old(&self) -> bool {
        self.0.fetch_and(!ACCESSED, Ordering::Relaxed) & ACCESSED != 0
    }

    pub(super) fn is_young(&self) -> bool {
        self.0.load(Ordering::Relaxed) & ACCESSED != 0
    }
}

/// An entry that a fault owns. Dropped: it is empty, unless something was installed.
pub(super) struct Loading<'a> {
    entry: &'a Entry,
    is_installed: bool,
}

impl Loading<'_> {
    /// Makes it present, unless a start has come; whether it is.
    pub(super) fn install(mut self, page: Page, is_writable: bool) -> bool {
        let to = page.frame() | PRESENT | if is_writable { WRITABLE } else { 0 };
        // Release pairs with the Acquire in `find`.
        let installed = self.entry.0.compare_exchange(LOADING, to, Ordering::Release, Ordering::Relaxed);
        self.is_installed = installed.is_ok();
        self.is_installed
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        if !self.is_installed {
            // By an exchange, as loom takes a store to be possibly older than a mark that it overwrites.
            self.entry.0.swap(0, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(mmu_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_zapped_while_it_is_loaded_is_not_installed() {
        let entry = Entry::default();
        let loading = entry.load().unwrap();
        assert!(entry.load().is_none(), "it has an owner");
        assert!(!entry.zap(), "nothing was there");
        assert!(entry.load().is_none(), "still");
        assert!(!loading.install(Page::writable(0x1000), true));
        assert!(entry.find(Access::Read).is_none());
        assert!(entry.load().unwrap().install(Page::writable(0x1000), false));
        assert!(entry.find(Access::Write).is_none());
        assert_eq!(entry.find(Access::Read).unwrap().frame, 0x1000);
        assert!(entry.zap() && !entry.zap());
    }
}
