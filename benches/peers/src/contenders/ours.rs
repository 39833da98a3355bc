//! This repository's cache, in an address space of its own in which whoever unmaps says so.

use std::hint::black_box;

use mmu_notifier::{AddressSpace, Event, Range};
use mmu_notifier_secondary::cache::{Access, Cache, Options, RegisterError, Registrar};

use super::{Contender, handle};
use crate::OURS;
use crate::layout::Layout;

struct NoDevice;

impl Registrar for NoDevice {
    type Handle = u32;

    fn register(&self, range: Range, _: Access) -> Result<u32, RegisterError> {
        Ok(handle(range.start()))
    }

    fn deregister(&self, _: Range, handle: u32) {
        black_box(handle);
    }

    fn try_deregister(&self, range: Range, handle: u32) -> Result<(), u32> {
        self.deregister(range, handle);
        Ok(())
    }
}

pub(crate) struct Ours {
    space: AddressSpace,
    cache: Cache<NoDevice>,
}

#[inline]
fn range(start: usize, end: usize) -> Range {
    Range::new(start, end).expect("no range is empty here")
}

impl Contender for Ours {
    const NAME: &'static str = OURS;

    fn filled(layout: &Layout) -> Ours {
        let space = AddressSpace::new();
        // Room for all of them at any count, so that nothing is ever evicted, as UCX is told too.
        let options = Options { entries: 1 << 20, ..Options::default() };
        let cache = Cache::new(&space, NoDevice, options);
        let ours = Ours { space, cache };
        layout.shuffled().for_each(|(start, end)| ours.get(start, end));
        ours
    }

    #[inline]
    fn get(&self, start: usize, end: usize) {
        // As a user would write it: an answer that is moved costs what it costs.
        let registration = self.cache.get(range(start, end), Access::ReadWrite).expect("nothing fails here");
        black_box(registration.handle());
    }

    #[inline]
    fn unmap(&self, start: usize, end: usize) {
        self.space.invalidate(range(start, end), Event::Unmap, || ());
    }

    fn registrations(&self) -> u64 {
        self.cache.stats().misses
    }
}
