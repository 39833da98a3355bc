//! What the address space tells and asks. Takes no lock that anybody holds for long; neither allocates nor frees.

use std::sync::Arc;

use mmu_notifier::{Aging, Change, Range, Subscriber};

use super::Shared;
use super::memslots::{Slot, Slots};
use super::table::Entry;
use crate::sync::{Ordering, fence};

pub(super) struct Told(pub(super) Arc<Shared>);

/// The entries of `range` of the host.
fn entries<'a>(slots: &'a Slots, range: &'a Range) -> impl Iterator<Item = &'a Entry> {
    let of = |slot: &'a Arc<Slot>| slot.pages_in(range).map(|pages| &slot.entries[pages]);
    slots.iter().filter_map(of).flatten()
}

/// The first and the last guest page that `range` of the host hits.
fn hit(slots: &Slots, range: &Range) -> Option<(usize, usize)> {
    let hits = || {
        let of = |slot: &Arc<Slot>| slot.pages_in(range).map(|pages| (slot.first, pages));
        slots.iter().filter_map(of)
    };
    let first = hits().map(|(first, pages)| first + pages.start).min()?;
    let last = hits().map(|(first, pages)| first + pages.end - 1).max()?;
    Some((first, last))
}

impl Shared {
    fn zap(&self, slots: &Slots, range: &Range) {
        let zapped = entries(slots, range).filter(|entry| entry.zap()).count();
        self.counters.zapped.fetch_add(zapped as u64, Ordering::Relaxed);
    }
}

impl Subscriber for Told {
    fn start(&self, change: &Change) {
        let (shared, range) = (&*self.0, change.range());
        shared.counters.starts.fetch_add(1, Ordering::Relaxed);
        let (slots, is_draining) = shared.memslots.enter();
        let hit = hit(&slots, &range);
        if let Some((first, last)) = hit {
            shared.retry.begin(first, last);
            // Pairs with the fence of the fault: see the module documentation.
            fence(Ordering::SeqCst);
            shared.zap(&slots, &range);
        }
        drop(slots);
        // Also if nothing was zapped: another start may have, and be waiting. And an access through a memslot that was just
        // deleted, which hits nothing any more, may be under way.
        if hit.is_some() || is_draining {
            shared.wait_for_accesses();
        }
    }

    fn end(&self, change: &Change) {
        let shared = &*self.0;
        if shared.memslots.active() > 0 && hit(&shared.memslots.current(), &change.range()).is_some() {
            shared.retry.end();
        }
        if !shared.memslots.leave() && !shared.released.load(Ordering::Relaxed) {
            shared.counters.unbalanced.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn release(&self) {
        let shared = &*self.0;
        shared.released.store(true, Ordering::Relaxed);
        // As in `start`.
        fence(Ordering::SeqCst);
        shared.zap(&shared.memslots.current(), &Range::EVERYTHING);
        shared.wait_for_accesses();
        // What is open has no end any more.
        shared.retry.reset();
        shared.memslots.reset();
    }
}

impl Aging for Told {
    fn clear_flush_young(&self, range: Range) -> bool {
        // Nothing is cached beside the table.
        self.clear_young(range)
    }

    fn clear_young(&self, range: Range) -> bool {
        entries(&self.0.memslots.current(), &range).filter(|entry| entry.make_old()).count() > 0
    }

    fn test_young(&self, address: usize) -> bool {
        let byte = Range::with_len(address, 1);
        byte.is_ok_and(|byte| entries(&self.0.memslots.current(), &byte).any(Entry::is_young))
    }
}

#[cfg(all(test, not(mmu_loom)))]
mod tests {
    use mmu_notifier::{AddressSpace, Blocking, Event};

    use super::*;
    use crate::device::{Access, Page};
    use crate::stage2::Stage2;

    /// The address space makes no such mistake.
    #[test]
    fn an_end_without_a_start_is_noted_and_has_no_effect() {
        let own = |address: usize, _: Access| Some(Page::writable(address));
        let stage2 = Stage2::new(&AddressSpace::new(), own);
        let change = Change::new(Range::EVERYTHING, Event::Unmap, Blocking::Allowed);
        let told = Told(stage2.shared.clone());
        Subscriber::end(&told, &change);
        told.start(&change);
        assert_eq!(stage2.stats().active, 1);
        Subscriber::end(&told, &change);
        let stats = stage2.stats();
        assert_eq!((stats.active, stats.in_progress, stats.unbalanced), (0, 0, 1));
    }
}
