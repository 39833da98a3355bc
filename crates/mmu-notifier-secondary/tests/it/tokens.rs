//! Tokens: one load says whether memory still is what it was.

use mmu_notifier::{AddressSpace, Event};
use mmu_notifier_secondary::cache::{Access, Cache, Options, Unregistered};

use crate::device::{Rig, range};

#[test]
fn a_token_is_valid_until_a_change_of_its_memory() {
    let space = AddressSpace::new();
    let cache = Cache::new(&space, Unregistered, Options::default());
    let tokens: Vec<_> =
        (0..10).map(|at| cache.get(range(at..at + 1), Access::Read).unwrap().token()).collect();
    assert!(tokens.iter().all(|token| token.is_valid()));
    space.try_invalidate(range(3..5), Event::Clear, || ()).unwrap();
    let valid: Vec<_> = tokens.iter().map(|token| token.is_valid()).collect();
    assert_eq!(valid, [true, true, true, false, false, true, true, true, true, true]);
}

#[test]
fn a_token_stays_invalid_when_its_entry_lives_again() {
    let rig = Rig::new();
    let mut old = Vec::new();
    for _ in 0..50 {
        let registration = rig.cache.get(range(0..1), Access::Read).unwrap();
        let token = registration.token();
        drop(registration);
        assert!(token.is_valid());
        assert!(old.iter().all(|token: &mmu_notifier_secondary::cache::Token<'_>| !token.is_valid()));
        old.push(token);
        rig.unmap(0..1);
    }
}

#[test]
fn users_do_not_invalidate_a_token() {
    let rig = Rig::new();
    let token = rig.cache.get(range(0..1), Access::Read).unwrap().token();
    let held: Vec<_> = (0..30).map(|_| rig.cache.get(range(0..1), Access::Read).unwrap()).collect();
    assert!(token.is_valid());
    drop(held);
    assert!(token.is_valid());
}

#[test]
fn a_token_of_something_dead_is_never_valid() {
    let rig = Rig::new();
    let held = rig.cache.get(range(0..1), Access::Read).unwrap();
    rig.unmap(0..1);
    assert!(!held.token().is_valid());
}
