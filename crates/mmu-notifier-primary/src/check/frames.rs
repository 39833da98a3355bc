//! Which page frames stand where: `/proc/self/pagemap`, and what it does not tell.
//!
//! A word for each page is kept as the kernel gives it at registration, which is the frame that was pinned; the upper
//! bits then say what was found out about the page since. A page that no page table entry names may be one that was
//! dropped, or one of a file that only has to be looked up again: `mincore` tells which, and a page of the latter kind is
//! read, so that its frame can be compared.

// UNSAFETY: has pages looked up and read by the kernel.
#![expect(unsafe_code)]

use mmu_notifier::{PAGE_SIZE, Range};

use crate::gate::{self, safe};

/// Frame numbers are the lower bits of a word (`Documentation/admin-guide/mm/pagemap.rst`).
const FRAME: u64 = (1 << 55) - 1;
const PRESENT: u64 = 1 << 63;
/// Ours, where the kernel has flags that are not kept.
pub(crate) const STALE: u64 = 1 << 56;
pub(crate) const UNMAPPED: u64 = 1 << 57;
pub(crate) const EXPOSED: u64 = 1 << 58;
/// Pages that are asked for at once.
const AT_ONCE: usize = 64;

const MINCORE: usize = 27;
const MADVISE: usize = 28;
const MSYNC: usize = 26;
const PREAD: usize = 17;
const ENOMEM: isize = -12;

/// How the pages of a range are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// Looked at.
    pub(crate) pages: u64,
    /// Have another frame.
    pub(crate) other: u64,
    /// Are mapped, but there is nothing.
    pub(crate) empty: u64,
    /// Are not mapped.
    pub(crate) unmapped: u64,
}

impl Compared {
    pub(crate) fn add(&mut self, more: &Compared) {
        self.pages += more.pages;
        self.other += more.other;
        self.empty += more.empty;
        self.unmapped += more.unmapped;
    }
}

/// The open `pagemap` of this process.
struct Pagemap(safe::File);

impl Pagemap {
    fn open() -> Option<Pagemap> {
        safe::File::open(c"/proc/self/pagemap", 0).ok().map(Pagemap)
    }

    /// The words of pages from `address` on; what cannot be read is 0.
    fn read(&self, address: usize, words: &mut [u64]) {
        words.fill(0);
        let args = [
            self.0.descriptor(),
            words.as_mut_ptr() as usize,
            size_of_val(words),
            address / PAGE_SIZE * size_of::<u64>(),
            0,
            0,
        ];
        // SAFETY: the kernel writes into `words` only.
        unsafe { gate::call(PREAD, &args) };
    }
}

/// Whether this process may see frames.
pub(crate) fn visible() -> bool {
    let here = 0u64;
    let mut word = [0];
    if let Some(pagemap) = Pagemap::open() {
        pagemap.read(&raw const here as usize, &mut word);
    }
    word[0] & FRAME != 0
}

/// Keeps what frames stand at the pages from `start` on.
pub(crate) fn keep(start: usize, words: &mut [u64]) {
    match Pagemap::open() {
        Some(pagemap) => pagemap.read(start, words),
        None => words.fill(0),
    }
    for word in words {
        *word &= FRAME;
    }
}

/// Compares the pages from `start` on with what was kept, and notes in `words` what is found, so that it is found once.
/// `replaced`: where frames are not visible, what is there now counts as another page.
pub(crate) fn compare(start: usize, words: &mut [u64], replaced: bool) -> Compared {
    let mut compared = Compared::default();
    let Some(pagemap) = Pagemap::open() else { return compared };
    let mut now = [0; AT_ONCE];
    for (nth, kept) in words.chunks_mut(AT_ONCE).enumerate() {
        let at = start + nth * AT_ONCE * PAGE_SIZE;
        let now = &mut now[..kept.len()];
        pagemap.read(at, now);
        for (nth, (kept, now)) in kept.iter_mut().zip(now).enumerate() {
            compared.pages += 1;
            if *kept & STALE != 0 {
                continue;
            }
            let at = at + nth * PAGE_SIZE;
            if *now & PRESENT == 0 {
                match resident(at) {
                    Resident::NotMapped => {
                        if *kept & UNMAPPED == 0 {
                            *kept |= UNMAPPED;
                            compared.unmapped += 1;
                        }
                        continue;
                    }
                    Resident::No => {
                        *kept |= STALE;
                        compared.empty += 1;
                        continue;
                    }
                    Resident::InCache => pagemap.read(at, core::slice::from_mut(now)),
                }
                if *now & PRESENT == 0 {
                    // It may not be read: what it is cannot be found out.
                    continue;
                }
            }
            let frame = *kept & FRAME;
            let is_other = if frame == 0 { replaced } else { *now & FRAME != frame };
            if is_other {
                *kept |= STALE;
                compared.other += 1;
            }
        }
    }
    compared
}

/// Notes pages that the program may not write to any more, or again: how many of them are new.
pub(crate) fn expose(words: &mut [u64], exposed: bool) -> u64 {
    let mut new = 0;
    for word in words.iter_mut().filter(|word| **word & (STALE | UNMAPPED) == 0) {
        if exposed {
            new += u64::from(*word & EXPOSED == 0);
            *word |= EXPOSED;
        } else {
            *word &= !EXPOSED;
        }
    }
    new
}

enum Resident {
    NotMapped,
    No,
    /// It was, and its page table entry is there now.
    InCache,
}

/// A page that has no page table entry.
fn resident(page: usize) -> Resident {
    const POPULATE_READ: usize = 22;
    let mut there = 0u8;
    // SAFETY: the kernel writes one byte.
    let found = unsafe { gate::call(MINCORE, &[page, PAGE_SIZE, &raw mut there as usize, 0, 0, 0]) };
    if found == ENOMEM {
        return Resident::NotMapped;
    }
    if there & 1 == 0 {
        return Resident::No;
    }
    // SAFETY: the page is in memory; this only makes the page table say so.
    unsafe { gate::call(MADVISE, &[page, PAGE_SIZE, POPULATE_READ, 0, 0, 0]) };
    Resident::InCache
}

/// Whether some of `range` is not mapped.
pub(crate) fn has_holes(range: &Range) -> bool {
    const ASYNC: usize = 1;
    // SAFETY: of all that is mapped, nothing is changed.
    unsafe { gate::call(MSYNC, &[range.start(), range.len(), ASYNC, 0, 0, 0]) == ENOMEM }
}

#[cfg(test)]
mod tests;
