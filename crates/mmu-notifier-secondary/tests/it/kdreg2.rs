//! What the kernel module kdreg2 is tested for (`tests/test_basic.c`, `test_fork`, `test_threads`), of tokens.

use mmu_notifier::{AddressSpace, Event};
use mmu_notifier_secondary::cache::{Access, Cache, Options, Token, Unregistered};

use crate::device::range;

fn cache(space: &AddressSpace) -> Cache<Unregistered> {
    Cache::new(space, Unregistered, Options::default())
}

#[test]
fn counters_start_at_zero() {
    let stats = cache(&AddressSpace::new()).stats();
    let numbers = [stats.hits, stats.misses, stats.registered, stats.retries, stats.evicted, stats.refused];
    assert_eq!((numbers, stats.entries, stats.bytes, stats.unreleased), ([0; 6], 0, 0, 0));
}

/// One unmapping in the middle of several overlapping registrations changes exactly those that it touches.
#[test]
fn one_munmap_yields_the_right_set() {
    let space = AddressSpace::new();
    let cache = cache(&space);
    let monitored = [0..10, 2..12, 4..14, 11..20, 13..22, 30..31];
    let tokens: Vec<_> = monitored
        .iter()
        .map(|pages| cache.get(range(pages.clone()), Access::Read).unwrap().token())
        .collect();
    space.invalidate(range(12..13), Event::Unmap, || ());
    let changed: Vec<_> = tokens.iter().map(|token| !token.is_valid()).collect();
    assert_eq!(changed, [false, false, true, true, false, false]);
}

/// The same asked for twice is one registration (there it is refused).
#[test]
fn duplicates() {
    let space = AddressSpace::new();
    let cache = cache(&space);
    let (one, other) =
        (cache.get(range(0..3), Access::Read).unwrap(), cache.get(range(0..3), Access::Read).unwrap());
    assert_eq!((cache.stats().registered, one.range()), (1, other.range()));
}

/// After a storm of registrations and unmappings no change has gone unseen.
#[test]
fn a_random_storm_leaves_nothing_unseen() {
    let space = AddressSpace::new();
    let cache = cache(&space);
    let mut random = 88172645463325252_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize % below
    };
    let mut tokens: Vec<(std::ops::Range<usize>, Token<'_>, bool)> = Vec::new();
    for _ in 0..2000 {
        let start = next(1000);
        let pages = start..start + 1 + next(20);
        if next(3) == 0 {
            space.try_invalidate(range(pages.clone()), Event::Unmap, || ()).unwrap();
            for (monitored, _, is_changed) in &mut tokens {
                *is_changed |= monitored.start < pages.end && pages.start < monitored.end;
            }
        } else {
            let token = cache.get(range(pages.clone()), Access::Read).unwrap().token();
            tokens.push((pages, token, false));
        }
        // An entry may also go because a larger one takes its place: invalid though unchanged is allowed, never the reverse.
        assert!(tokens.iter().all(|(_, token, is_changed)| !is_changed || !token.is_valid()));
    }
    assert!(tokens.iter().any(|(_, token, _)| token.is_valid()));
}

#[test]
fn threads_see_their_own_changes() {
    let space = AddressSpace::new();
    let cache = cache(&space);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (space, cache) = (&space, &cache);
            scope.spawn(move || {
                for _ in 0..200 {
                    let pages = thread * 10..thread * 10 + 5;
                    let token = cache.get(range(pages.clone()), Access::Read).unwrap().token();
                    assert!(token.is_valid());
                    space.invalidate(range(pages), Event::Unmap, || assert!(!token.is_valid()));
                }
            });
        }
    });
}

/// Two monitors of one address space see the same changes, and neither the other's registrations.
#[test]
fn multi_open() {
    let space = AddressSpace::new();
    let (one, other) = (cache(&space), cache(&space));
    let tokens = [&one, &other].map(|cache| cache.get(range(0..3), Access::Read).unwrap().token());
    assert_eq!((one.stats().registered, other.stats().registered), (1, 1));
    space.invalidate(range(1..2), Event::Unmap, || assert!(tokens.iter().all(|token| !token.is_valid())));
    drop(one.get(range(0..3), Access::Read).unwrap());
    assert_eq!((one.stats().entries, other.stats().entries), (1, 0));
}

/// Monitors of different sizes hold as much as they were made for.
#[test]
fn resize() {
    let space = AddressSpace::new();
    for entries in [1, 2, 3, 100, 5000] {
        let cache = Cache::new(&space, Unregistered, Options { entries, ..Options::default() });
        for page in 0..2 * entries {
            drop(cache.get(range(2 * page..2 * page + 1), Access::Read).unwrap());
        }
        let stats = cache.stats();
        assert_eq!((stats.entries, stats.evicted), (entries, entries as u64));
    }
}
