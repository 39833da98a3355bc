//! The self-check: are the page frames that are mapped those that were registered?

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use mmu_notifier::{PAGE_SIZE, Range};

use super::table::Id;

/// Page frames by entry, as they were when it was registered.
pub(super) struct Frames {
    pagemap: File,
    noted: Mutex<HashMap<Id, Vec<u64>>>,
}

impl Frames {
    /// # Panics
    ///
    /// If `/proc/self/pagemap` cannot be read.
    pub(super) fn new() -> Frames {
        let pagemap = File::open("/proc/self/pagemap");
        let pagemap =
            pagemap.unwrap_or_else(|error| panic!("no self-check without /proc/self/pagemap: {error}"));
        Frames { pagemap, noted: Mutex::default() }
    }

    /// Notes the frames of what has just been registered.
    pub(super) fn note(&self, id: Id, range: Range) {
        let frames = self.frames(range);
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).insert(id, frames);
    }

    /// The first page of the entry's range that has another frame now.
    pub(super) fn first_other(&self, id: Id, range: Range) -> Option<Range> {
        let now = self.frames(range);
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let page = noted.get(&id)?.iter().zip(&now).position(|(then, now)| then != now)?;
        Range::with_len(range.to_pages().start() + page * PAGE_SIZE, PAGE_SIZE).ok()
    }

    /// Frame numbers of present pages, 0 of others: Documentation/admin-guide/mm/pagemap.rst.
    fn frames(&self, range: Range) -> Vec<u64> {
        const PRESENT: u64 = 1 << 63;
        const FRAME: u64 = (1 << 55) - 1;
        let pages = range.to_pages();
        let mut bytes = vec![0; pages.len() / PAGE_SIZE * 8];
        let read = self.pagemap.read_exact_at(&mut bytes, (pages.start() / PAGE_SIZE * 8) as u64);
        if read.is_err() {
            return Vec::new();
        }
        let words = bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")));
        words.map(|word| if word & PRESENT != 0 { word & FRAME } else { 0 }).collect()
    }
}
