//! What a request gets: a registration that stays as long as it is held, and tokens that outlive it.

// UNSAFETY: lends the handle of an entry to who has pinned it.
#![expect(unsafe_code)]

use std::fmt;

use mmu_notifier::Range;

use super::homes::Pin;
use super::registrar::{Access, Registrar};
use super::store::Store;
use super::table::{Id, State};

/// Memory that is registered, and stays so until this is dropped: a pin.
///
/// A change of the memory takes it out of the cache, so that no later request gets it; it is deregistered when the last
/// one that has it drops it. Can be sent to another thread. To forget it ([`std::mem::forget`]) keeps the memory registered
/// as long as the cache lives.
#[must_use = "the memory is registered as long as this is held"]
pub struct Registration<'c, R: Registrar> {
    store: &'c Store<R>,
    id: Id,
    /// [None](super::homes::Homes::no_pin) if this is counted in the entry.
    pin: &'c Pin,
}

impl<'c, R: Registrar> Registration<'c, R> {
    /// The caller has pinned the entry, or counts as one of its users.
    #[inline(always)]
    pub(super) fn new(store: &'c Store<R>, id: Id, pin: &'c Pin) -> Registration<'c, R> {
        Registration { store, id, pin }
    }

    /// What the registrar gave for it.
    #[inline]
    pub fn handle(&self) -> &R::Handle {
        // SAFETY: `self` is a user.
        unsafe { self.store.table.entry(self.id).handle() }
    }

    /// All that is registered: at least what was asked for.
    #[inline]
    pub fn range(&self) -> Range {
        let range = self.store.table.entry(self.id).range();
        range.expect("an entry that is in use has a range")
    }

    /// The self-check, if it was asked for.
    pub(super) fn check(&self) {
        let range = self.range();
        if let Some(frames) = &self.store.frames
            && let Some(page) = frames.first_other(self.id, range)
            && self.is_current()
        {
            self.store.counters().stale.add_one();
            eprintln!("mmu-notifier: the registration of {range} is stale: {page} has other page frames now");
        }
    }

    /// What it is registered for: at least what was asked for.
    pub fn access(&self) -> Access {
        self.store.table.entry(self.id).state().access()
    }

    /// Whether no change has come. False is for ever. As soon as this returns, another thread may begin one.
    pub fn is_current(&self) -> bool {
        self.store.table.entry(self.id).state().is_live()
    }

    /// Something to ask later whether this memory still is what it is now; for caches that are not ours. It pins nothing.
    ///
    /// ```
    /// # use mmu_notifier::{AddressSpace, Event, Range};
    /// # use mmu_notifier_secondary::cache::{Access, Cache, Options, Unregistered};
    /// let space = AddressSpace::new();
    /// let cache = Cache::new(&space, Unregistered, Options::default());
    /// let pages = Range::new(0x10000, 0x20000)?;
    /// let token = cache.get(pages, Access::Read)?.token();
    /// assert!(token.is_valid());
    /// space.invalidate(Range::new(0x11000, 0x12000)?, Event::Unmap, || assert!(!token.is_valid()));
    /// assert!(!token.is_valid());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn token(&self) -> Token<'c> {
        let entry = self.store.table.entry(self.id);
        Token { word: entry.word(), state: entry.state() }
    }
}

impl<R: Registrar> Drop for Registration<'_, R> {
    #[inline]
    fn drop(&mut self) {
        if std::ptr::eq(self.pin, self.store.homes.no_pin()) {
            self.store.let_go(self.id);
        } else if let Some(id) = self.pin.unpin() {
            self.store.let_go(id);
        }
    }
}

impl<R: Registrar> Store<R> {
    /// One of those who count in the entry goes. The last one buries it, if it is dead.
    #[cold]
    pub(super) fn let_go(&self, id: Id) {
        // In a forked child it is the parent's, whose device the child must leave alone.
        if !self.homes.is_of_the_parent() && self.remove_user(id) {
            self.bury();
        }
    }
}

impl<R: Registrar> fmt::Debug for Registration<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("range", &self.range())
            .field("access", &self.access())
            .finish_non_exhaustive()
    }
}

/// Whether memory still is what it was: see [`Registration::token`].
#[derive(Clone, Copy)]
pub struct Token<'c> {
    word: &'c crate::sync::AtomicU64,
    state: State,
}

impl Token<'_> {
    /// Whether no change of the memory has begun, and the registration has not been ended otherwise either. One load.
    #[inline]
    pub fn is_valid(&self) -> bool {
        // Acquire pairs with the Release of who ends it.
        State::load(self.word).is_still(self.state) && self.state.is_live()
    }
}

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("is_valid", &self.is_valid()).finish()
    }
}
