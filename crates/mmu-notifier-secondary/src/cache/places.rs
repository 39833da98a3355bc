//! The short way into the index: which entries touch a piece of memory.
//!
//! A piece is a range of 2^k bytes that begins at a multiple of that. An entry of a length of up to 2^k, and of more than
//! half of that, is of order k; it touches one or two pieces of that order, and is written down at both, in a table in which
//! a piece has a fixed place. So for a request, or for a change of little memory, there is one cache line to look at for each
//! order that there is.
//!
//! A place has room for [`ROOM`] entries. If there are more, it says that some are missing, and the long way - the
//! tree - has to be taken. The table is read as the tree is, and written with it.

// UNSAFETY: promises that a place may consist of zeroes.
#![expect(unsafe_code)]

use mmu_notifier::Range;

use super::table::{Id, Table};
use crate::memory::{Zeroed, Zeroes};
use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// Entries at a place.
const ROOM: usize = if cfg!(mmu_loom) { 2 } else { 7 };

/// Places that are looked at before the long way is taken.
const LOOKS: usize = 4;

#[repr(C, align(64))]
struct Place {
    /// For each entry its number plus one, and a part of the hash of the piece; 0: none.
    entries: [AtomicU64; ROOM],
    /// How many more there would be.
    missing: AtomicU64,
}

// SAFETY: atomics that may be zero.
unsafe impl Zeroed for Place {
    fn zeroed() -> Place {
        Place { entries: std::array::from_fn(|_| AtomicU64::new(0)), missing: AtomicU64::new(0) }
    }
}

// Relaxed throughout: as in the tree.
impl Place {
    fn find(&self, word: u64) -> Option<&AtomicU64> {
        self.entries.iter().find(|entry| entry.load(Ordering::Relaxed) == word)
    }

    fn has_missing(&self) -> bool {
        self.missing.load(Ordering::Relaxed) != 0
    }

    /// Those of the piece, and perhaps of others. Which ones are decided before there is a branch: where a piece is in its
    /// place cannot be foreseen.
    #[inline(always)]
    fn of(&self, piece: Piece) -> impl Iterator<Item = Id> {
        let word = |at: usize| self.entries[at].load(Ordering::Relaxed);
        let mut left = (0..ROOM).fold(0, |left, at| left | u32::from(word(at) as u32 == piece.tag) << at);
        std::iter::from_fn(move || {
            let at = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            // It may have gone meanwhile: then this is an entry that there is not.
            Some(((word(at % ROOM) >> 32) as u32).wrapping_sub(1))
        })
    }
}

/// A piece of memory, by its hash.
#[derive(Clone, Copy)]
struct Piece {
    hash: u64,
    /// Not 0.
    tag: u32,
}

impl Piece {
    /// The piece of that order that has that number.
    #[inline(always)]
    fn new(number: usize, order: u32) -> Piece {
        // Fibonacci hashing (Knuth, volume 3, 6.4): the uppermost bits of the product spread neighbours, and pieces at
        // equal distances, more evenly than chance would.
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let hash = (number as u64 ^ u64::from(order) << 58).wrapping_mul(GOLDEN);
        Piece { hash, tag: (hash ^ number as u64) as u32 | 1 << 31 }
    }
}

impl Piece {
    /// What is written down at its place for an entry.
    fn word(self, id: Id) -> u64 {
        u64::from(id + 1) << 32 | u64::from(self.tag)
    }
}

/// 2^order is at least `len`, and half of it is less; or it is the highest one, of which there are two pieces.
#[inline(always)]
fn order_of(len: usize) -> u32 {
    (usize::BITS - (len - 1).leading_zeros()).min(usize::BITS - 1)
}

/// What the short way says.
pub(super) enum Short<T> {
    Found(T),
    /// There is none.
    Nothing,
    /// Ask the tree.
    Unknown,
}

pub(super) struct Places {
    places: Zeroes<Place>,
    /// Leaves of a hash the number of a place.
    shift: u32,
    /// A bit for each order that there are entries of.
    orders: AtomicU64,
    /// All entries lie between these.
    lowest: AtomicUsize,
    highest: AtomicUsize,
}

/// What only who writes has: entries by order.
pub(super) struct Orders([u32; 64]);

impl Default for Orders {
    fn default() -> Orders {
        Orders([0; 64])
    }
}

impl Places {
    /// For so many entries: four to a place.
    pub(super) fn new(entries: usize) -> Places {
        let count = (entries / 4).next_power_of_two().max(if cfg!(mmu_loom) { 2 } else { 64 });
        let shift = u64::BITS - count.trailing_zeros();
        let (lowest, highest) = (AtomicUsize::new(usize::MAX), AtomicUsize::new(0));
        Places { places: Zeroes::new(count), shift, orders: AtomicU64::new(0), lowest, highest }
    }

    /// What so many entries have touched of it at most, in bytes.
    pub(super) fn bytes(&self, entries: usize) -> usize {
        self.places.len().min(2 * entries) * size_of::<Place>()
    }

    /// Whether there is nothing in it.
    #[cfg(all(test, not(mmu_loom)))]
    pub(super) fn is_empty(&self) -> bool {
        let nothing = |place: &Place| {
            place.entries.iter().all(|entry| entry.load(Ordering::Relaxed) == 0) && !place.has_missing()
        };
        self.orders.load(Ordering::Relaxed) == 0 && self.places.iter().all(nothing)
    }

    /// Whether there is a place with more than it has room for.
    #[cfg(all(test, not(mmu_loom)))]
    pub(super) fn has_missing(&self) -> bool {
        self.places.iter().any(Place::has_missing)
    }

    #[inline(always)]
    fn place(&self, piece: Piece) -> &Place {
        &self.places[(piece.hash >> self.shift) as usize]
    }

    /// Gives entries that may contain `asked` to `is_it`, until one is it.
    #[inline(always)]
    pub(super) fn find<T>(&self, asked: Range, is_it: impl Fn(Id) -> Option<T>) -> Short<T> {
        let orders = self.orders.load(Ordering::Relaxed);
        // An entry of a lower order is shorter than what is asked for.
        let orders = orders & u64::MAX << order_of(asked.len());
        if orders == 0 {
            return Short::Nothing;
        }
        let order = orders.trailing_zeros();
        let piece = Piece::new(asked.start() >> order, order);
        let place = self.place(piece);
        if let Some(found) = place.of(piece).find_map(&is_it) {
            return Short::Found(found);
        }
        match orders & (orders - 1) {
            0 if place.has_missing() => Short::Unknown,
            0 => Short::Nothing,
            others => self.find_further(others, !place.has_missing(), asked, is_it),
        }
    }

    /// The same in pieces of higher orders.
    #[inline(never)]
    fn find_further<T>(
        &self,
        mut orders: u64,
        mut is_known: bool,
        asked: Range,
        is_it: impl Fn(Id) -> Option<T>,
    ) -> Short<T> {
        for _ in 1..LOOKS {
            let order = orders.trailing_zeros();
            let piece = Piece::new(asked.start() >> order, order);
            let place = self.place(piece);
            if let Some(found) = place.of(piece).find_map(&is_it) {
                return Short::Found(found);
            }
            is_known &= !place.has_missing();
            orders &= orders - 1;
            if orders == 0 {
                return if is_known { Short::Nothing } else { Short::Unknown };
            }
        }
        Short::Unknown
    }

    /// Gives every entry that overlaps `range` to `visit`, and perhaps others. Whether that were all; if not, they may have
    /// been none. To be asked by the writer, or between two looks at the sequence.
    #[inline(always)]
    pub(super) fn visit(&self, range: Range, mut visit: impl FnMut(Id)) -> bool {
        let (lowest, highest) = (self.lowest.load(Ordering::Relaxed), self.highest.load(Ordering::Relaxed));
        if range.end() <= lowest || highest <= range.start() {
            return true;
        }
        let mut orders = self.orders.load(Ordering::Relaxed);
        let mut looks = 0;
        while orders != 0 {
            let order = orders.trailing_zeros();
            orders &= orders - 1;
            let (first, last) = (range.start() >> order, (range.end() - 1) >> order);
            looks += last - first + 1;
            if looks > LOOKS {
                return false;
            }
            for number in first..=last {
                let piece = Piece::new(number, order);
                let place = self.place(piece);
                if place.has_missing() {
                    return false;
                }
                place.of(piece).for_each(&mut visit);
            }
        }
        true
    }

    /// Whether no entry overlaps `range`, for sure. To be asked by the writer.
    pub(super) fn is_free<H>(&self, table: &Table<H>, range: Range) -> bool {
        let mut is_free = true;
        let is_all = self.visit(range, |id| {
            let entry = table.entry(id);
            is_free &= entry.end() <= range.start() || range.end() <= entry.start();
        });
        is_all && is_free
    }

    /// By the writer.
    pub(super) fn insert(&self, orders: &mut Orders, range: Range, id: Id) {
        let order = order_of(range.len());
        for piece in pieces(range, order) {
            let place = self.place(piece);
            match place.find(0) {
                Some(room) => room.store(piece.word(id), Ordering::Relaxed),
                None => add(&place.missing, 1),
            }
        }
        self.lowest.store(self.lowest.load(Ordering::Relaxed).min(range.start()), Ordering::Relaxed);
        self.highest.store(self.highest.load(Ordering::Relaxed).max(range.end()), Ordering::Relaxed);
        orders.0[order as usize] += 1;
        self.orders.store(self.orders.load(Ordering::Relaxed) | 1 << order, Ordering::Relaxed);
    }

    /// By the writer: what was inserted.
    pub(super) fn remove(&self, orders: &mut Orders, range: Range, id: Id) {
        let order = order_of(range.len());
        for piece in pieces(range, order) {
            let place = self.place(piece);
            match place.find(piece.word(id)) {
                Some(entry) => entry.store(0, Ordering::Relaxed),
                None => add(&place.missing, u64::MAX),
            }
        }
        orders.0[order as usize] -= 1;
        if orders.0[order as usize] == 0 {
            let left = self.orders.load(Ordering::Relaxed) & !(1 << order);
            self.orders.store(left, Ordering::Relaxed);
            if left == 0 {
                self.lowest.store(usize::MAX, Ordering::Relaxed);
                self.highest.store(0, Ordering::Relaxed);
            }
        }
    }
}

/// The one or two pieces that an entry touches.
fn pieces(range: Range, order: u32) -> impl Iterator<Item = Piece> {
    (range.start() >> order..=(range.end() - 1) >> order).map(move |number| Piece::new(number, order))
}

fn add(count: &AtomicU64, what: u64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(what), Ordering::Relaxed);
}
