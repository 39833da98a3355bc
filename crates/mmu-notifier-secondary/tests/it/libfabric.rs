//! What libfabric asks of a cache (`fabtests/unit/mr_cache_evict.c`, `prov/cxi/test/mr_cache.c`), with real memory: register,
//! register again - which must be a hit -, give the memory back, get memory at the same address - which must be a miss.

use mmu_notifier::Event;
use mmu_notifier_secondary::cache::{Access, Options};

use crate::device::{Device, Rig};
use crate::real::Pages;

fn evicts(rig: &Rig, pages: &Pages, event: Event, change: impl FnOnce()) {
    let range = pages.range();
    let first = *rig.cache.get(range, Access::ReadWrite).unwrap().handle();
    assert_eq!(*rig.cache.get(range, Access::ReadWrite).unwrap().handle(), first);
    rig.space.invalidate(range, event, change);
    let second = *rig.cache.get(range, Access::ReadWrite).unwrap().handle();
    assert_ne!(second, first);
    assert_eq!(*rig.cache.get(range, Access::ReadWrite).unwrap().handle(), second);
}

#[test]
fn mr_cache_evict_mmap() {
    let (rig, pages) = (Rig::new(), Pages::map(16));
    evicts(&rig, &pages, Event::Unmap, || {
        pages.unmap();
        pages.map_again();
    });
}

#[test]
fn mr_cache_evict_madvise() {
    let (rig, pages) = (Rig::new(), Pages::map(16));
    evicts(&rig, &pages, Event::Clear, || pages.discard());
}

#[test]
fn mr_cache_evict_protection() {
    let (rig, pages) = (Rig::new(), Pages::map(16));
    evicts(&rig, &pages, Event::ProtectionVma, || pages.protect(libc::PROT_READ));
}

/// A full cache serves on, and what is registered never exceeds it.
#[test]
fn cache_full() {
    let rig = Rig::with(Device::default(), Options { entries: 8, ..Options::default() });
    let pages = Pages::map(64);
    for round in 0..4 {
        for at in 0..64 {
            let part = mmu_notifier::Range::with_len(pages.range().start() + at * 4096, 4096).unwrap();
            drop(rig.cache.get(part, Access::Read).unwrap());
        }
        assert_eq!(rig.cache.stats().entries, 8, "round {round}");
    }
}
