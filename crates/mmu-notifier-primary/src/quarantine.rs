//! Quarantine: memory that the program has given up, and that is unmapped later.
//!
//! If somebody refuses an `munmap` that must not wait, the program is told that it is done, and the pages stay. The
//! kernel keeps the addresses for the range, so nobody else gets them; [a thread of ours](crate::worker) announces the
//! change as blocking and makes it. A call that touches such a range meanwhile makes it first.
//!
//! # The life of a place
//!
//! ```text
//!        insert                     take (CAS)                 drop
//! Free ----------> Waiting (range) -----------> Taken (munmap) ------> Free
//! ```
//!
//! Who finishes a range *announces first and takes then*: nobody waits while he has the place, so whoever finds it taken
//! waits for one system call at most. If two announce the same range, one of them takes it, and the other just ends his change.
//!
//! Beside these there are *notices*: of changes that took nothing away, that somebody has refused to hear of at the time,
//! and that are announced later. There is nothing to unmap, and nobody touches them.
//!
//! There is no lock, as a thread may be cancelled, or interrupted for ever, anywhere. What it leaves taken stays mapped.

// UNSAFETY: lies in memory of its own.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use mmu_notifier::{Event, Range};

use crate::pages;

/// Ranges that are put off at one time.
pub(crate) const PLACES: usize = 1024;

/// Bytes of memory that are put off at one time, unless it is one range.
pub(crate) const BYTES: usize = 1 << 30;

/// In the lowest bits of a place's state; the rest is the number of the use.
const FREE: u64 = 0;
const WRITING: u64 = 1;
const WAITING: u64 = 2;
const TAKEN: u64 = 3;
const PHASE: u64 = 3;
const USE: u64 = 4;

#[derive(Debug)]
struct Place {
    state: AtomicU64,
    /// When it came, in the order of all, times 2; and whether it is a notice.
    order: AtomicU64,
    start: AtomicUsize,
    len: AtomicUsize,
    /// Bytes that count against [`BYTES`].
    charge: AtomicUsize,
}

/// A range that waits, for who has looked: it may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    place: usize,
    state: u64,
    order: u64,
    pub(crate) range: Range,
}

impl Waiting {
    /// Whether there is nothing to unmap.
    pub(crate) fn is_notice(&self) -> bool {
        self.order & 1 != 0
    }

    /// What to announce.
    pub(crate) fn event(&self) -> Event {
        if self.is_notice() { Event::ProtectionVma } else { Event::Unmap }
    }
}

/// A range that the caller has to unmap now.
#[derive(Debug)]
#[must_use = "what was taken stays taken until it is dropped from the table"]
pub(crate) struct Taken {
    place: usize,
    state: u64,
    len: usize,
    charge: usize,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Quarantine {
    /// In memory of its own; none, if there was no memory for it.
    places: &'static [Place],
    /// Places in use, or about to be.
    used: AtomicUsize,
    bytes: AtomicUsize,
    charged: AtomicUsize,
    orders: AtomicU64,
}

impl Quarantine {
    /// Memory that the table takes.
    pub(crate) const BYTES: usize = size_of::<[Place; PLACES]>();

    pub(crate) fn new() -> Quarantine {
        let places = pages::map(Quarantine::BYTES);
        // SAFETY: mapped just now, of this size, and never unmapped; zero is a value of atomic integers.
        let places: Option<&'static [Place; PLACES]> = unsafe { places.cast::<[Place; PLACES]>().as_ref() };
        Quarantine {
            places: places.map_or(&[], |places| places),
            used: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            charged: AtomicUsize::new(0),
            orders: AtomicU64::new(0),
        }
    }

    /// Ranges and bytes that wait now.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.used.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Whether nothing is put off, and nobody is about to put anything off.
    pub(crate) fn is_empty(&self) -> bool {
        // SeqCst, here and where it is written: see `Primary::note_quarantine`.
        self.used.load(Ordering::SeqCst) == 0
    }

    /// Puts the unmapping of a range off that has `charge` bytes of memory. False: there is no room.
    ///
    /// Not what it has of addresses: an allocator may reserve 64 MiB for what it uses 80 KiB of.
    pub(crate) fn insert(&self, range: Range, charge: usize) -> bool {
        self.insert_either(range, charge, false)
    }

    /// Notes that something in a range has changed. False: there is no room.
    pub(crate) fn insert_notice(&self, range: Range) -> bool {
        self.insert_either(range, 0, true)
    }

    fn insert_either(&self, range: Range, charge: usize, is_notice: bool) -> bool {
        let len = if is_notice { 0 } else { range.len() };
        self.bytes.fetch_add(len, Ordering::Relaxed);
        let charged = self.charged.fetch_add(charge, Ordering::Relaxed);
        // Before there is anything to be seen: who sees the last one go sees that this one comes.
        self.used.fetch_add(1, Ordering::SeqCst);
        if charged == 0 || charged.saturating_add(charge) <= BYTES {
            for place in self.places {
                let state = place.state.load(Ordering::Relaxed);
                // Acquire pairs with the Release in `drop`: the last use is over.
                let claimed = state & PHASE == FREE
                    && place
                        .state
                        .compare_exchange(state, state | WRITING, Ordering::Acquire, Ordering::Relaxed)
                        .is_ok();
                if claimed {
                    // Pairs with the fence in `look`: who reads what is written here sees the claim as well.
                    fence(Ordering::Release);
                    // Relaxed: published below.
                    let order = self.orders.fetch_add(2, Ordering::Relaxed);
                    place.order.store(order + u64::from(is_notice), Ordering::Relaxed);
                    place.start.store(range.start(), Ordering::Relaxed);
                    place.len.store(range.len(), Ordering::Relaxed);
                    place.charge.store(charge, Ordering::Relaxed);
                    // Release pairs with the Acquire in `look`.
                    place.state.store(state | WAITING, Ordering::Release);
                    return true;
                }
            }
        }
        self.used.fetch_sub(1, Ordering::SeqCst);
        self.bytes.fetch_sub(len, Ordering::Relaxed);
        self.charged.fetch_sub(charge, Ordering::Relaxed);
        false
    }

    /// What waits in a place.
    fn look(&self, index: usize) -> Option<Waiting> {
        let place = &self.places[index];
        // Acquire pairs with the Release in `insert`: the range is written.
        let state = place.state.load(Ordering::Acquire);
        if state & PHASE != WAITING {
            return None;
        }
        let [start, len] = [&place.start, &place.len].map(|word| word.load(Ordering::Relaxed));
        let order = place.order.load(Ordering::Relaxed);
        // Pairs with the fence in `insert`: if it is the same use still, what was read is of this use.
        fence(Ordering::Acquire);
        let same = place.state.load(Ordering::Relaxed) == state;
        let range = Range::with_len(start, len).ok()?;
        same.then_some(Waiting { place: index, state, order, range })
    }

    /// The one that waits longest.
    pub(crate) fn oldest(&self) -> Option<Waiting> {
        self.waiting().min_by_key(|waiting| waiting.order)
    }

    /// One that is to be unmapped and overlaps `range`.
    pub(crate) fn overlapping(&self, range: &Range) -> Option<Waiting> {
        self.waiting().find(|waiting| !waiting.is_notice() && waiting.range.overlaps(range))
    }

    /// The smallest range around all that is to be unmapped.
    pub(crate) fn around(&self) -> Option<Range> {
        let unmaps = self.waiting().filter(|waiting| !waiting.is_notice());
        let around = unmaps.map(|waiting| (waiting.range.start(), waiting.range.end()));
        let (start, end) = around.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))?;
        Range::new(start, end).ok()
    }

    /// Those that are to be unmapped and lie in `range`: one look at each place.
    pub(crate) fn inside(&self, range: Range) -> impl Iterator<Item = Waiting> {
        self.waiting().filter(move |waiting| {
            !waiting.is_notice() && range.intersection(&waiting.range) == Some(waiting.range)
        })
    }

    fn waiting(&self) -> impl Iterator<Item = Waiting> {
        (0..self.places.len()).filter_map(|index| self.look(index))
    }

    /// Whether somebody is unmapping something in `range` right now.
    pub(crate) fn is_being_unmapped(&self, range: &Range) -> bool {
        self.places.iter().any(|place| {
            // Acquire: as in `look`.
            let taken = place.state.load(Ordering::Acquire) & PHASE == TAKEN;
            let [start, len] = [&place.start, &place.len].map(|word| word.load(Ordering::Relaxed));
            taken && Range::with_len(start, len).is_ok_and(|taken| taken.overlaps(range))
        })
    }

    /// Takes what waits, to unmap it; `None`: somebody was faster.
    pub(crate) fn take(&self, waiting: &Waiting) -> Option<Taken> {
        let taken = waiting.state - WAITING + TAKEN;
        self.places[waiting.place]
            .state
            // Acquire: what the kernel is asked to do comes behind this.
            .compare_exchange(waiting.state, taken, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        let len = if waiting.is_notice() { 0 } else { waiting.range.len() };
        // Relaxed: written before what was taken was there to take.
        let charge = self.places[waiting.place].charge.load(Ordering::Relaxed);
        Some(Taken { place: waiting.place, state: taken, len, charge })
    }

    /// It is unmapped. Whether it was the last one.
    pub(crate) fn drop(&self, taken: Taken) -> bool {
        // Release pairs with the Acquire in `insert`.
        self.places[taken.place].state.store(taken.state - TAKEN + USE + FREE, Ordering::Release);
        self.bytes.fetch_sub(taken.len, Ordering::Relaxed);
        self.charged.fetch_sub(taken.charge, Ordering::Relaxed);
        self.used.fetch_sub(1, Ordering::SeqCst) == 1
    }

    /// In the only thread of a forked child: `unmap` what waits, and forget the rest. Of what another thread was unmapping
    /// it is not known whether it did; the addresses may be used for something else by now, so these stay as they are.
    pub(crate) fn forked(&self, mut unmap: impl FnMut(Range)) {
        for (index, place) in self.places.iter().enumerate() {
            if let Some(waiting) = self.look(index).filter(|waiting| !waiting.is_notice()) {
                unmap(waiting.range);
            }
            let state = place.state.load(Ordering::Relaxed);
            // What is free already is not written: it would be copied.
            if state & PHASE != FREE {
                place.state.store((state & !PHASE) + USE, Ordering::Relaxed);
            }
        }
        self.used.store(0, Ordering::SeqCst);
        self.bytes.store(0, Ordering::Relaxed);
        self.charged.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(page: usize, pages: usize) -> Range {
        Range::with_len(page << 12, pages << 12).unwrap()
    }

    /// All of it is memory.
    fn put(quarantine: &Quarantine, range: Range) -> bool {
        quarantine.insert(range, range.len())
    }

    #[test]
    fn what_is_put_off_is_found_until_it_is_dropped() {
        let quarantine = Quarantine::new();
        assert!(quarantine.is_empty() && quarantine.oldest().is_none());
        assert!(put(&quarantine, range(10, 2)) && put(&quarantine, range(1, 1)));
        assert_eq!(quarantine.held(), (2, 3 << 12));
        let oldest = quarantine.oldest().unwrap();
        assert_eq!(oldest.range, range(10, 2), "the first, not the lowest");
        assert_eq!(quarantine.overlapping(&range(11, 5)), Some(oldest));
        assert_eq!(quarantine.overlapping(&range(12, 5)), None);
        let taken = quarantine.take(&oldest).unwrap();
        assert!(quarantine.take(&oldest).is_none(), "twice");
        assert!(quarantine.is_being_unmapped(&range(10, 1)) && !quarantine.is_being_unmapped(&range(1, 1)));
        assert_eq!(quarantine.overlapping(&range(10, 1)), None);
        assert!(!quarantine.drop(taken));
        assert!(!quarantine.is_being_unmapped(&range(10, 1)));
        // The same place again: what was seen before is something else.
        assert!(put(&quarantine, range(10, 2)));
        assert!(quarantine.take(&oldest).is_none());
        let last = quarantine.take(&quarantine.oldest().unwrap()).unwrap();
        assert!(!quarantine.drop(last));
        let last = quarantine.take(&quarantine.oldest().unwrap()).unwrap();
        assert!(quarantine.drop(last) && quarantine.is_empty());
        assert_eq!(quarantine.held(), (0, 0));
    }

    #[test]
    fn a_notice_is_in_nobodys_way() {
        let quarantine = Quarantine::new();
        assert!(quarantine.insert_notice(range(10, 2)) && put(&quarantine, range(20, 1)));
        assert_eq!(quarantine.held(), (2, 1 << 12));
        assert_eq!(quarantine.overlapping(&range(10, 2)), None);
        let notice = quarantine.oldest().unwrap();
        assert_eq!((notice.range, notice.event()), (range(10, 2), Event::ProtectionVma));
        let taken = quarantine.take(&notice).unwrap();
        quarantine.drop(taken);
        assert_eq!(quarantine.oldest().unwrap().event(), Event::Unmap);
        assert!(quarantine.insert_notice(range(1, 1)));
        quarantine.forked(|unmapped| assert_eq!(unmapped, range(20, 1)));
    }

    #[test]
    fn it_is_bounded() {
        let quarantine = Quarantine::new();
        for place in 0..PLACES {
            assert!(put(&quarantine, range(place + 1, 1)));
        }
        assert!(!put(&quarantine, range(PLACES + 1, 1)));
        assert_eq!(quarantine.held(), (PLACES, PLACES << 12));
        let oldest = quarantine.take(&quarantine.oldest().unwrap()).unwrap();
        quarantine.drop(oldest);
        assert!(put(&quarantine, range(PLACES + 1, 1)));

        let large = Quarantine::new();
        assert!(put(&large, range(1, BYTES >> 11)), "one, whatever its size");
        assert!(!put(&large, range(BYTES, 1)), "but no second one");

        let reserved = Quarantine::new();
        for place in 0..PLACES {
            assert!(
                reserved.insert(range(1 + (place << 20), BYTES >> 12), BYTES / PLACES),
                "what has little memory"
            );
        }
        assert_eq!(reserved.held(), (PLACES, PLACES * BYTES));
        let oldest = reserved.take(&reserved.oldest().unwrap()).unwrap();
        reserved.drop(oldest);
        assert!(!reserved.insert(range(1, 1), BYTES / PLACES + 1), "it is full again");
        assert!(reserved.insert(range(1, 1), BYTES / PLACES));
    }

    #[test]
    fn all_that_is_to_be_unmapped_has_a_range_around_it() {
        let quarantine = Quarantine::new();
        assert!(quarantine.insert_notice(range(1, 1)));
        assert_eq!(quarantine.around(), None, "nothing is to be unmapped");
        assert!(put(&quarantine, range(20, 2)) && put(&quarantine, range(10, 1)));
        let around = quarantine.around().unwrap();
        assert_eq!(around, range(10, 12));
        assert!(put(&quarantine, range(21, 9)));
        let mut inside = Vec::new();
        for waiting in quarantine.inside(around) {
            inside.push(waiting.range);
            quarantine.drop(quarantine.take(&waiting).unwrap());
        }
        assert_eq!(inside, [range(20, 2), range(10, 1)], "what reaches beyond it was not announced");
        assert_eq!(quarantine.held().0, 2);
    }

    #[test]
    fn a_child_begins_with_nothing() {
        let quarantine = Quarantine::new();
        for place in 1..4 {
            assert!(put(&quarantine, range(place, 1)));
        }
        let _left = quarantine.take(&quarantine.oldest().unwrap()).unwrap();
        let mut unmapped = Vec::new();
        quarantine.forked(|range| unmapped.push(range));
        assert_eq!(unmapped, [range(2, 1), range(3, 1)]);
        assert!(quarantine.is_empty() && quarantine.oldest().is_none());
        assert!(!quarantine.is_being_unmapped(&range(1, 1)));
    }

    #[test]
    fn each_is_taken_once() {
        let quarantine = Quarantine::new();
        let taken = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (quarantine, taken) = (&quarantine, &taken);
                scope.spawn(move || {
                    for round in 0..2000 {
                        assert!(put(quarantine, range(1 + thread * 2000 + round, 1)));
                        while let Some(waiting) = quarantine.oldest() {
                            if let Some(mine) = quarantine.take(&waiting) {
                                taken.fetch_add(waiting.range.len() >> 12, Ordering::Relaxed);
                                quarantine.drop(mine);
                            }
                        }
                    }
                });
            }
        });
        assert_eq!((taken.into_inner(), quarantine.held()), (8000, (0, 0)));
    }
}
