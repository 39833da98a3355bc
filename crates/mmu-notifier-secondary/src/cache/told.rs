//! The cache as a secondary MMU: what it does when it is told of a change.
//!
//! It is two subscribers, as a change that is made inside a callback is not announced to the subscriber whose callback it
//! is: the second one calls the registrar, which may free memory, and then the first one must hear of that.

use std::sync::Arc;

use mmu_notifier::{Change, Event, Range, Refuser, WouldBlock};

use super::registrar::Registrar;
use super::store::Store;

/// Takes what changes out of the cache. Calls nobody, so no change is made inside.
pub(super) struct Killer<R: Registrar>(pub(super) Arc<Store<R>>);

impl<R: Registrar> Killer<R> {
    #[inline]
    fn told(&self, change: &Change) {
        let store = &self.0;
        // A child that was forked where nobody noticed has the parent's subscribers, but not its registrations.
        if !store.homes.is_of_the_parent() && !store.registrar.survives(change.event()) {
            store.kill_in(change.range(), change.event());
        }
    }
}

impl<R: Registrar> Refuser for Killer<R> {
    fn start(&self, change: &Change) {
        self.told(change);
    }

    fn try_start(&self, change: &Change) -> Result<(), WouldBlock> {
        self.told(change);
        Ok(())
    }

    fn release(&self) {
        if !self.0.homes.is_of_the_parent() {
            self.0.kill_in(Range::EVERYTHING, Event::Release);
        }
    }
}

/// Sees to it that what has been taken out is deregistered, before the change if the registrar wants that.
pub(super) struct Undertaker<R: Registrar>(pub(super) Arc<Store<R>>);

impl<R: Registrar> Undertaker<R> {
    fn has_work(&self, change: &Change) -> bool {
        let store = &self.0;
        store.unreleased() > 0 && !store.homes.is_of_the_parent() && !store.registrar.survives(change.event())
    }
}

impl<R: Registrar> Refuser for Undertaker<R> {
    fn start(&self, change: &Change) {
        if self.has_work(change) {
            self.0.bury_before(change);
        }
    }

    fn try_start(&self, change: &Change) -> Result<(), WouldBlock> {
        if self.has_work(change) { self.0.try_bury_before(change) } else { Ok(()) }
    }

    fn release(&self) {
        if !self.0.homes.is_of_the_parent() && !self.0.is_interrupted() {
            self.0.with_books(|_| ());
            self.0.bury();
        }
    }
}
