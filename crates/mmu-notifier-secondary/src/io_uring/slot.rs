//! A slot of the table, and which operations use it.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

/// Operations of one slot that can be cancelled at a time; further ones are waited for.
const PLACES: usize = 16;

/// A slot of the ring's table of fixed buffers, with the memory that was registered in it.
// The index comes first: it lies in the first cache line of the cache's entry, which a hit reads anyway.
#[derive(Debug)]
#[repr(C)]
pub struct Slot {
    index: u16,
    /// A bit for each place that somebody has.
    claimed: AtomicU16,
    /// A bit for each place in which `user_data` stands.
    written: AtomicU16,
    user_data: [AtomicU64; PLACES],
}

/// A place in a slot's list of operations.
#[derive(Debug)]
pub(super) struct Place(usize);

impl Slot {
    pub(super) fn new(index: u16) -> Slot {
        Slot {
            index,
            claimed: AtomicU16::new(0),
            written: AtomicU16::new(0),
            user_data: [const { AtomicU64::new(0) }; PLACES],
        }
    }

    /// The number that an operation names it by: the `buf_index` of `ReadFixed` and `WriteFixed`.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// An operation with this `user_data` uses the slot. `None`: there are too many to remember this one.
    pub(super) fn enter(&self, user_data: u64) -> Option<Place> {
        let claim = |bits: u16| (bits != u16::MAX).then(|| bits | (bits + 1));
        // Acquire pairs with the Release in `leave`: the bit in `written` is cleared before it is set again.
        let bits = self.claimed.fetch_update(Ordering::Acquire, Ordering::Relaxed, claim).ok()?;
        let place = bits.trailing_ones() as usize;
        self.user_data[place].store(user_data, Ordering::Relaxed);
        // Release pairs with the Acquire in `for_each_operation`.
        self.written.fetch_or(1 << place, Ordering::Release);
        Some(Place(place))
    }

    /// It is done.
    pub(super) fn leave(&self, Place(place): Place) {
        // Relaxed: who looks meanwhile may take it to be there.
        self.written.fetch_and(!(1 << place), Ordering::Relaxed);
        // Release pairs with the Acquire in `enter`.
        self.claimed.fetch_and(!(1 << place), Ordering::Release);
    }

    /// The `user_data` of those that use it now. One that has just left may be among them.
    pub(super) fn for_each_operation(&self, mut each: impl FnMut(u64)) {
        // Acquire pairs with the Release in `enter`.
        let mut places = self.written.load(Ordering::Acquire);
        while places != 0 {
            each(self.user_data[places.trailing_zeros() as usize].load(Ordering::Relaxed));
            places &= places - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations(slot: &Slot) -> Vec<u64> {
        let mut seen = Vec::new();
        slot.for_each_operation(|user_data| seen.push(user_data));
        seen
    }

    #[test]
    fn it_knows_who_uses_it() {
        let slot = Slot::new(7);
        assert_eq!(slot.index(), 7);
        let places: Vec<_> = (0..PLACES as u64).map(|n| slot.enter(n).expect("a place")).collect();
        assert!(slot.enter(99).is_none(), "one too many is not remembered");
        assert_eq!(operations(&slot), (0..PLACES as u64).collect::<Vec<_>>());
        for (n, place) in places.into_iter().enumerate() {
            if n % 2 == 0 {
                slot.leave(place);
            }
        }
        assert_eq!(operations(&slot), [1, 3, 5, 7, 9, 11, 13, 15]);
        assert!(slot.enter(100).is_some());
        assert_eq!(operations(&slot)[0], 100);
    }
}
