//! The TLB of one context. Its context loads and uses it; starts take out of it, from any thread.

use mmu_notifier::{PAGE_SIZE, Range};

use crate::device::{Access, Page};
use crate::sync::{AtomicUsize, Ordering};

const ENTRIES: usize = if cfg!(mmu_loom) { 1 } else { 64 };

/// States of an entry, in the low bits of its page's address.
const VALID: usize = 1;
const LOADING: usize = 2;
const KILLED: usize = 3;
const STATE: usize = PAGE_SIZE - 1;

/// Beside the frame.
const WRITABLE: usize = 1;

/// The range of the page there. The last page of the address space lacks a byte.
pub(super) fn page_at(address: usize) -> Range {
    Range::new(address, address.saturating_add(PAGE_SIZE)).expect("a page has bytes")
}

pub(super) struct Tlb([Entry; ENTRIES]);

#[derive(Default)]
pub(super) struct Entry {
    /// The page and the state; 0: empty.
    tag: AtomicUsize,
    /// Good if the state is valid. Written by the context only, while it is loading.
    frame: AtomicUsize,
}

/// How much a flush took out.
#[derive(Default)]
pub(super) struct Flushed {
    pub(super) valid: u64,
    pub(super) loading: u64,
}

impl Tlb {
    pub(super) fn new() -> Tlb {
        Tlb(std::array::from_fn(|_| Entry::default()))
    }

    /// The only entry in which `page` may be.
    pub(super) fn entry_of(&self, page: usize) -> &Entry {
        &self.0[page / PAGE_SIZE % ENTRIES]
    }

    /// Takes everything of `range`, which is of whole pages, out.
    pub(super) fn flush(&self, range: Range) -> Flushed {
        let mut flushed = Flushed::default();
        for entry in &self.0 {
            match entry.take_out(range) {
                VALID => flushed.valid += 1,
                LOADING => flushed.loading += 1,
                _ => {}
            }
        }
        flushed
    }

    /// For the next context.
    pub(super) fn clear(&self) {
        for entry in &self.0 {
            entry.tag.store(0, Ordering::Relaxed);
        }
    }
}

impl Entry {
    /// What is loaded for `page`, if it allows that.
    pub(super) fn get(&self, page: usize, access: Access) -> Option<Page> {
        // Relaxed: who loaded it is the same context.
        if self.tag.load(Ordering::Relaxed) != page | VALID {
            return None;
        }
        let frame = self.frame.load(Ordering::Relaxed);
        let is_writable = frame & WRITABLE != 0;
        let page = if is_writable { Page::writable(frame & !STATE) } else { Page::read_only(frame) };
        page.allows(access).then_some(page)
    }

    /// Makes it the entry of `page`, to be [installed](Loading::install).
    pub(super) fn load(&self, page: usize) -> Loading<'_> {
        // Relaxed: the context's fence follows.
        self.tag.store(page | LOADING, Ordering::Relaxed);
        Loading { entry: self, page }
    }

    /// The state in which it was taken out, 0 if it is none of `range`.
    fn take_out(&self, range: Range) -> usize {
        let mut tag = self.tag.load(Ordering::Relaxed);
        loop {
            let (page, state) = (tag & !STATE, tag & STATE);
            let to = match state {
                VALID => 0,
                LOADING => page | KILLED,
                _ => return 0,
            };
            if !range.contains(&page_at(page)) {
                return 0;
            }
            // Relaxed: the fences around, in `start` and in `InFlight::wait`, order it.
            match self.tag.compare_exchange(tag, to, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return state,
                Err(now) => tag = now,
            }
        }
    }
}

/// An entry that is being loaded. Dropped: it is empty, unless something was installed.
pub(super) struct Loading<'a> {
    entry: &'a Entry,
    page: usize,
}

impl Loading<'_> {
    /// Whether a start has come.
    pub(super) fn is_killed(&self) -> bool {
        self.entry.tag.load(Ordering::Relaxed) != self.page | LOADING
    }

    /// Makes it valid, unless a start has come; whether it is.
    pub(super) fn install(&self, page: Page) -> bool {
        let writable = if page.is_writable() { WRITABLE } else { 0 };
        self.entry.frame.store(page.frame() | writable, Ordering::Relaxed);
        let (from, to) = (self.page | LOADING, self.page | VALID);
        // Relaxed: nobody but the context uses what is installed.
        self.entry.tag.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        // Nobody else makes it valid.
        if self.entry.tag.load(Ordering::Relaxed) & STATE != VALID {
            self.entry.tag.store(0, Ordering::Relaxed);
        }
    }
}
