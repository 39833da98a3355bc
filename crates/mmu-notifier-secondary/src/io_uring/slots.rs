//! Which slots of the table are free: a bit each. Nothing is allocated after the beginning and nobody waits.

use std::sync::atomic::{AtomicU64, Ordering};

/// One bit a slot, set while it is taken.
#[derive(Debug)]
pub(super) struct Slots {
    words: Box<[AtomicU64]>,
}

impl Slots {
    /// Free slots `0..count`.
    pub(super) fn new(count: u16) -> Slots {
        let bits = |word: u16| match count - word * 64 {
            used @ ..64 => u64::MAX << used,
            _ => 0,
        };
        // The bits behind the last slot are taken for ever.
        Slots { words: (0..count.div_ceil(64)).map(|word| AtomicU64::new(bits(word))).collect() }
    }

    /// Takes the lowest free slot.
    pub(super) fn take(&self) -> Option<u16> {
        self.words.iter().enumerate().find_map(|(at, word)| {
            // Acquire pairs with the Release in `give_back`: the slot has been cleared.
            let take = |bits: u64| (bits != u64::MAX).then(|| bits | (bits + 1));
            let bits = word.fetch_update(Ordering::Acquire, Ordering::Relaxed, take).ok()?;
            Some(at as u16 * 64 + bits.trailing_ones() as u16)
        })
    }

    /// A slot that was taken is free again.
    pub(super) fn give_back(&self, slot: u16) {
        // Release pairs with the Acquire in `take`.
        self.words[usize::from(slot / 64)].fetch_and(!(1 << (slot % 64)), Ordering::Release);
    }

    /// How many are taken.
    pub(super) fn taken(&self, count: u16) -> usize {
        // Relaxed: only a number.
        let set: u32 = self.words.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum();
        set as usize - (self.words.len() * 64 - usize::from(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_is_taken_once() {
        for count in [1, 2, 63, 64, 65, 128, 1000, 1 << 14] {
            let slots = Slots::new(count);
            assert_eq!(slots.taken(count), 0);
            for slot in 0..count {
                assert_eq!(slots.take(), Some(slot), "of {count}");
            }
            assert_eq!((slots.take(), slots.taken(count)), (None, count.into()));
            slots.give_back(count - 1);
            slots.give_back(count / 2);
            assert_eq!(slots.take(), Some(count / 2));
        }
    }

    #[test]
    fn threads_never_have_the_same() {
        let slots = Slots::new(5);
        let held: [AtomicU64; 5] = Default::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let Some(slot) = slots.take() else { continue };
                        let holders = &held[usize::from(slot)];
                        assert_eq!(holders.fetch_add(1, Ordering::Relaxed), 0);
                        holders.fetch_sub(1, Ordering::Relaxed);
                        slots.give_back(slot);
                    }
                });
            }
        });
        assert_eq!(slots.taken(5), 0);
    }
}
