//! The device's page table: an entry a page of the range, each one word.

use mmu_notifier::PAGE_SIZE;

use crate::device::{Access, Page};
use crate::sync::{AtomicUsize, Ordering};

// Beside the frame.
const PRESENT: usize = 1;
const WRITABLE: usize = 2;
/// The processor does not get there.
const EXCLUSIVE: usize = 4;
/// Some fault owns it. Alone, or with `KILLED`.
const LOADING: usize = 8;
/// A change has come since.
const KILLED: usize = 16;

/// What an access needs of an entry, or an installation gives it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Shared(Access),
    Exclusive,
}

impl Need {
    fn bits(self) -> usize {
        match self {
            Need::Shared(access) if access.includes(Access::Write) => PRESENT | WRITABLE,
            Need::Shared(_) => PRESENT,
            Need::Exclusive => PRESENT | WRITABLE | EXCLUSIVE,
        }
    }
}

#[derive(Default)]
pub(super) struct Entry(AtomicUsize);

impl Entry {
    /// The frame, if what is there is enough.
    pub(super) fn find(&self, need: Need) -> Option<usize> {
        // Acquire pairs with the Release in `install`: the frame is as the fault has seen it.
        let entry = self.0.load(Ordering::Acquire);
        (entry & need.bits() == need.bits()).then_some(entry & !(PAGE_SIZE - 1))
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
        // Relaxed: the fences around, in `Shared::zap` and in `InFlight`, order it.
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, zap);
        before.is_ok_and(|entry| entry & PRESENT != 0)
    }
}

/// An entry that a fault owns. Dropped: it is empty, unless something was installed.
pub(super) struct Loading<'a> {
    entry: &'a Entry,
    is_installed: bool,
}

impl Loading<'_> {
    /// Makes it present, unless a change has come; whether it is.
    pub(super) fn install(mut self, page: Page, need: Need) -> bool {
        let writable = if page.is_writable() { WRITABLE } else { 0 };
        let exclusive = if need == Need::Exclusive { EXCLUSIVE } else { 0 };
        let to = page.frame() | PRESENT | writable | exclusive;
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
        let (entry, read) = (Entry::default(), Need::Shared(Access::Read));
        let loading = entry.load().unwrap();
        assert!(entry.load().is_none(), "it has an owner");
        assert!(!entry.zap(), "nothing was there");
        assert!(entry.load().is_none(), "still");
        assert!(!loading.install(Page::writable(0x1000), read));
        assert_eq!(entry.find(read), None);
        assert!(entry.load().unwrap().install(Page::writable(0x1000), read));
        assert_eq!(entry.find(read), Some(0x1000));
        assert!(entry.zap() && !entry.zap());
        assert_eq!(entry.find(read), None);
    }

    #[test]
    fn each_need_has_its_rights() {
        let needs =
            [Need::Shared(Access::Read), Need::Shared(Access::Write), Need::Shared(Access::ReadWrite)];
        let granted = |page, need| {
            let entry = Entry::default();
            assert!(entry.load().unwrap().install(page, need));
            [needs[0], needs[1], needs[2], Need::Exclusive].map(|need| entry.find(need).is_some())
        };
        assert_eq!(granted(Page::read_only(0x1000), needs[0]), [true, false, false, false]);
        assert_eq!(granted(Page::writable(0x1000), needs[0]), [true, true, true, false]);
        assert_eq!(granted(Page::writable(0x1000), Need::Exclusive), [true; 4]);
    }
}
