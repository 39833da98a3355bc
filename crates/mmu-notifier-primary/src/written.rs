//! What was written where: each rewritten site, so that one can look later whether it is still there.
//!
//! Written by whoever rewrites code, one thread at a time; read by anybody at any time, also inside the hook. A site whose
//! file is unmapped stays in the table: whether it is there is looked at, not remembered.

// UNSAFETY: the table lies in memory that is mapped piece by piece.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use mmu_notifier::Range;

use crate::pages;

/// More than there is room for stubs.
const SITES: usize = 8192;
/// Places of code that a site has at most.
const PLACES: usize = 3;

/// Sites in a piece of the table.
const PIECE: usize = 64;

/// There is one primary MMU in a process. Mapped as it is needed: programs have limits on their memory, and most have a
/// few dozen sites.
static TABLE: Table = Table {
    used: AtomicUsize::new(0),
    pieces: [const { AtomicPtr::new(core::ptr::null_mut()) }; SITES / PIECE],
};

struct Table {
    used: AtomicUsize,
    pieces: [AtomicPtr<[Entry; PIECE]>; SITES / PIECE],
}

// Zeroes are valid and mean nothing: what the kernel gives.

struct Entry {
    /// Of the `syscall` instruction, written last; 0: forgotten, or not written yet.
    address: AtomicUsize,
    base: AtomicUsize,
    code: [Piece; 2],
    number: AtomicUsize,
    places: [Place; PLACES],
}

struct Piece {
    address: AtomicUsize,
    len: AtomicUsize,
    hash: AtomicU64,
}

struct Place {
    address: AtomicUsize,
    was: AtomicU64,
    is: AtomicU64,
}

/// A rewritten site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// Of the `syscall` instruction.
    pub(crate) address: usize,
    /// Where the first byte of its file is mapped, or would be.
    pub(crate) base: usize,
    /// Its stub, and its tails.
    pub(crate) code: [Code; 2],
    /// The system call number, if it is always the same.
    pub(crate) number: Option<usize>,
    edits: [Edit; PLACES],
}

/// Code of ours that belongs to a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    pub(crate) address: usize,
    pub(crate) len: usize,
    /// As [`hash`] says.
    pub(crate) hash: u64,
}

/// A few bytes of code that were replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    pub(crate) address: usize,
    /// What was there, and what was written: the bytes from the lowest one on, and how many in the highest one.
    was: u64,
    is: u64,
}

impl Edit {
    /// At most 7 bytes, as many of both.
    pub(crate) fn new(address: usize, was: &[u8], is: &[u8]) -> Edit {
        Edit { address, was: pack(was), is: pack(is) }
    }

    pub(crate) fn len(&self) -> usize {
        (self.is >> 56) as usize
    }

    /// What was there before.
    pub(crate) fn was(&self) -> [u8; 8] {
        self.was.to_le_bytes()
    }

    /// What was written.
    pub(crate) fn is(&self) -> [u8; 8] {
        self.is.to_le_bytes()
    }
}

fn pack(bytes: &[u8]) -> u64 {
    let word = bytes.iter().take(7).rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    word | (bytes.len().min(7) as u64) << 56
}

impl Site {
    /// A site with its stub and its tails: where they are, and what. More than three edits are not kept.
    pub(crate) fn new(
        address: usize,
        base: usize,
        number: Option<usize>,
        code: [(usize, &[u8]); 2],
        edits: impl Iterator<Item = Edit>,
    ) -> Site {
        let mut kept = [Edit::default(); PLACES];
        for (to, from) in kept.iter_mut().zip(edits) {
            *to = from;
        }
        let code = code.map(|(address, code)| Code { address, len: code.len(), hash: hash(code) });
        Site { address, base, code, number, edits: kept }
    }

    /// What was replaced.
    pub(crate) fn edits(&self) -> impl Iterator<Item = &Edit> {
        self.edits.iter().filter(|edit| edit.address != 0)
    }
}

/// FNV-1a.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Remembers a site. By one thread at a time. How many memory system calls that took.
pub(crate) fn add(site: &Site) -> u64 {
    let index = TABLE.used.load(Ordering::Relaxed);
    let Some(place) = TABLE.pieces.get(index / PIECE) else { return 0 };
    let mut calls = 0;
    if place.load(Ordering::Relaxed).is_null() {
        // Null, if there is no memory: then it is not remembered. Release pairs with the Acquire in `entry`.
        place.store(pages::map(BYTES).cast(), Ordering::Release);
        calls = 1;
    }
    let Some(entry) = entry(index) else { return calls };
    entry.base.store(site.base, Ordering::Relaxed);
    for (piece, code) in entry.code.iter().zip(&site.code) {
        piece.address.store(code.address, Ordering::Relaxed);
        piece.len.store(code.len, Ordering::Relaxed);
        piece.hash.store(code.hash, Ordering::Relaxed);
    }
    entry.number.store(site.number.unwrap_or(usize::MAX), Ordering::Relaxed);
    for (place, edit) in entry.places.iter().zip(&site.edits) {
        place.address.store(edit.address, Ordering::Relaxed);
        place.was.store(edit.was, Ordering::Relaxed);
        place.is.store(edit.is, Ordering::Relaxed);
    }
    entry.address.store(site.address, Ordering::Relaxed);
    // Release pairs with the Acquire in `entries`: the entry is complete.
    TABLE.used.store(index + 1, Ordering::Release);
    calls
}

/// Of a piece, in whole pages.
const BYTES: usize = (PIECE * size_of::<Entry>()).next_multiple_of(mmu_notifier::PAGE_SIZE);

fn entry(index: usize) -> Option<&'static Entry> {
    let piece = TABLE.pieces.get(index / PIECE)?.load(Ordering::Acquire);
    // SAFETY: null, or mapped by `add`, zeroed, large enough and never unmapped; all that is in there are atomics.
    unsafe { piece.as_ref() }?.get(index % PIECE)
}

/// Forgets the sites in `range`: another file is mapped there, or they were not rewritten after all. By who adds.
pub(crate) fn forget(range: &Range) {
    for entry in entries() {
        let address = entry.address.load(Ordering::Relaxed);
        if (range.start()..range.end()).contains(&address) {
            entry.address.store(0, Ordering::Relaxed);
        }
    }
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    // Acquire pairs with the Release in `add`.
    (0..TABLE.used.load(Ordering::Acquire)).map_while(entry)
}

/// Memory that the table takes, in bytes.
pub(crate) fn bytes() -> usize {
    TABLE.used.load(Ordering::Relaxed).div_ceil(PIECE) * BYTES
}

/// Every site that is remembered.
pub(crate) fn all() -> impl Iterator<Item = Site> {
    entries().filter_map(Entry::read)
}

/// The site whose `syscall` instruction ends at `back`. For the hook: no allocation, no lock.
pub(crate) fn ending_at(back: usize) -> Option<Site> {
    let address = back.wrapping_sub(2);
    let entry = entries().find(|entry| entry.address.load(Ordering::Relaxed) == address);
    entry.and_then(Entry::read)
}

impl Entry {
    fn read(&self) -> Option<Site> {
        let load = |word: &AtomicUsize| word.load(Ordering::Relaxed);
        let address = load(&self.address);
        let site = Site {
            address,
            base: load(&self.base),
            code: self.code.each_ref().map(|piece| Code {
                address: load(&piece.address),
                len: load(&piece.len),
                hash: piece.hash.load(Ordering::Relaxed),
            }),
            number: Some(load(&self.number)).filter(|&number| number != usize::MAX),
            edits: self.places.each_ref().map(|place| Edit {
                address: load(&place.address),
                was: place.was.load(Ordering::Relaxed),
                is: place.is.load(Ordering::Relaxed),
            }),
        };
        (address != 0).then_some(site)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_found_until_they_are_forgotten() {
        let edits =
            [Edit::new(0x5000, &[1, 2, 3, 4, 5], &[0xe9, 0, 0, 0, 1]), Edit::new(0x5010, &[6, 7], &[8, 9])];
        let site = Site::new(0x5005, 0x4000, Some(11), [(0x9000, &[1, 2, 3]), (0, &[])], edits.into_iter());
        add(&site);
        let other = Site::new(0x7005, 0x4000, None, [(0x9100, &[1, 2, 4]), (0, &[])], core::iter::empty());
        add(&other);
        assert_eq!(ending_at(0x5007), Some(site));
        assert_eq!(ending_at(0x7007).and_then(|site| site.number), None);
        assert_eq!(ending_at(0x5006), None);
        let kept: Vec<_> =
            site.edits().map(|edit| (edit.address, edit.len(), edit.was()[0], edit.is()[0])).collect();
        assert_eq!(kept, [(0x5000, 5, 1, 0xe9), (0x5010, 2, 6, 8)]);
        assert_ne!(site.code[0].hash, other.code[0].hash);
        forget(&Range::new(0x5005, 0x5006).unwrap());
        assert_eq!((ending_at(0x5007), ending_at(0x7007)), (None, Some(other)));
        assert!(all().any(|found| found == other) && !all().any(|found| found == site));
    }
}
