//! One subscriber of a kind, shared by all who want it: get or create, and put.
//!
//! Linux finds the one by the address of its callbacks (`mmu_notifier_get`); here it is found by its type.

use std::any::TypeId;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::list::Entry;
use crate::slot::Phase;
use crate::stall::{Patience, Waiting};
use crate::subscriber::Paired;
use crate::sync::{Arc as SyncArc, Ordering};
use crate::{AddressSpace, Subscriber};

/// A share of the one subscriber of type `S`: see [`AddressSpace::get`]. Dropping it is the kernel's put.
#[doc(alias = "mmu_notifier_put")]
pub struct Shared<S: Subscriber + 'static> {
    space: AddressSpace,
    entry: SyncArc<Entry>,
    subscriber: Arc<S>,
}

impl AddressSpace {
    /// A share of this address space's one subscriber of type `S`, which is `make`d and subscribed if there is none.
    ///
    /// When the last share is dropped it is unsubscribed, without waiting and without
    /// [`release`](Subscriber::release): its owner must have torn down what it mirrors. The subscriber itself is dropped
    /// when no callback of it can run any more, at the latest when [`synchronize`](AddressSpace::synchronize) returns.
    /// Who gets in between makes a new one. Subscribers of [`subscribe`](AddressSpace::subscribe) are not shared.
    ///
    /// `make` may run for nothing if two threads get at the same time: then one of the two made is dropped. Allocates;
    /// waits as `subscribe` does if it makes one, or finds one that was not there when an open change began.
    ///
    /// # Errors
    ///
    /// What `make` returns; nothing is subscribed then.
    ///
    /// # Panics
    ///
    /// As `subscribe`, and if there are 2^31 shares already.
    ///
    /// ```
    /// use std::convert::Infallible;
    /// use mmu_notifier::{AddressSpace, Change, Subscriber};
    ///
    /// struct Gru;
    /// impl Subscriber for Gru {
    ///     fn start(&self, _: &Change) {}
    ///     fn end(&self, _: &Change) {}
    /// }
    ///
    /// let space = AddressSpace::new();
    /// let one = space.get(|| Ok::<_, Infallible>(Gru))?;
    /// let two = space.get::<Gru, Infallible>(|| unreachable!("there is one"))?;
    /// assert!(std::ptr::eq(&*one, &*two));
    /// drop((one, two));
    /// assert!(space.synchronize(), "now it is dropped");
    /// # Ok::<(), Infallible>(())
    /// ```
    #[doc(alias = "mmu_notifier_get")]
    pub fn get<S: Subscriber + 'static, E>(
        &self,
        make: impl FnOnce() -> Result<S, E>,
    ) -> Result<Shared<S>, E> {
        if let Some(found) = self.find() {
            return Ok(found);
        }
        let subscriber = Arc::new(make()?);
        let key = TypeId::of::<S>();
        let mut entry = Entry::telling(Paired(subscriber.clone()), std::any::type_name::<S>());
        entry.shared = Some((key, subscriber.clone()));
        entry.users.store(1, Ordering::Relaxed);
        let entry = SyncArc::new(entry);
        loop {
            if self.publish(&entry, |other| is_alive(other, key)) {
                return Ok(Shared { space: self.clone(), entry, subscriber });
            }
            // Somebody else was first, and may have gone again.
            if let Some(found) = self.find() {
                return Ok(found);
            }
        }
    }

    /// A share of the subscriber of type `S`, if there is one.
    fn find<S: Subscriber + 'static>(&self) -> Option<Shared<S>> {
        let shared = &self.shared;
        let caller = self.caller();
        let held = shared.claim(&caller, Phase::Editing);
        let found: Option<Shared<S>> = shared.list.walk(held).iter().find_map(|entry| {
            let (key, subscriber) = entry.shared.as_ref()?;
            if *key != TypeId::of::<S>() || entry.has_left() {
                return None;
            }
            let subscriber = subscriber.clone().downcast::<S>().ok()?;
            share(entry).then(|| Shared { space: self.clone(), entry: entry.clone(), subscriber })
        });
        let list = held.list();
        shared.open.free(held);
        if let Some(found) = &found
            && !found.entry.is_settled()
        {
            // Who made it is waiting still for changes that do not know it.
            let mut patience = Patience::new(shared, caller.thread(), Waiting::ToSubscribe);
            if shared.open.may_have_open(&caller) {
                // For one of this thread's own, perhaps. A change that found it on another list than this one knows it,
                // and is waited for all the same.
                shared.open.wait_for_strangers(&caller, list, &mut patience);
            } else {
                while !found.entry.is_settled() {
                    patience.wait_for_anybody();
                }
            }
        }
        found
    }

    /// Waits until every subscriber that was unsubscribed so far has been dropped, also those whose last
    /// [share](Shared) was dropped or that were dropped inside a callback; whether they were.
    ///
    /// Code that is about to be unloaded has to call this behind its last drop of a share. Inside a callback, an open
    /// change, or the drop of a subscriber of the calling thread it does not wait, and returns false if something is
    /// left, or may be.
    #[doc(alias = "mmu_notifier_synchronize")]
    pub fn synchronize(&self) -> bool {
        let shared = &self.shared;
        let caller = self.caller();
        let is_inside = shared.open.may_have_open(&caller) && shared.open.of_thread(&caller).next().is_some();
        if is_inside || shared.is_collecting(&caller) {
            if shared.open.is_anybody_editing(&caller) {
                return false;
            }
            let left = shared.now();
            return shared.collect(&caller).is_some_and(|oldest| oldest.is_since(&left));
        }
        let mut patience = Patience::new(shared, caller.thread(), Waiting::ToSynchronize);
        // Who is replacing a list has the one that was in force before in his hands.
        shared.open.wait_for_editors(&caller, &mut patience);
        // Not before: an editor may have exchanged a list and not numbered it yet.
        let left = shared.now();
        // Somebody who has just begun is taken to hold anything, so one look may not be enough.
        while !shared.collect(&caller).is_some_and(|oldest| oldest.is_since(&left)) {
            patience.wait_for_anybody();
        }
        true
    }
}

fn is_alive(entry: &Entry, key: TypeId) -> bool {
    // Relaxed: a count that has reached 0 stays there.
    entry.shared.as_ref().is_some_and(|(of, _)| *of == key)
        && !entry.has_left()
        && entry.users.load(Ordering::Relaxed) > 0
}

/// One more who has it, unless the last has put it already.
fn share(entry: &Entry) -> bool {
    const MOST: u32 = 1 << 31;
    // Relaxed: the caller is on record, so the entry stays; AcqRel on the way down.
    let mut users = entry.users.load(Ordering::Relaxed);
    loop {
        assert!(users < MOST, "a subscriber has at most 2^31 shares");
        if users == 0 {
            return false;
        }
        match entry.users.compare_exchange_weak(users, users + 1, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => users = now,
        }
    }
}

impl<S: Subscriber + 'static> Clone for Shared<S> {
    fn clone(&self) -> Shared<S> {
        // `self` is one, so it is not 0.
        share(&self.entry);
        Shared { space: self.space.clone(), entry: self.entry.clone(), subscriber: self.subscriber.clone() }
    }
}

impl<S: Subscriber + 'static> Deref for Shared<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.subscriber
    }
}

impl<S: Subscriber + 'static> Drop for Shared<S> {
    fn drop(&mut self) {
        // AcqRel: what others did with their shares happened before the last one goes.
        if self.entry.users.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        self.entry.leave();
        self.entry.claim_release();
        let shared = &self.space.shared;
        let held = shared.claim(&self.space.caller(), Phase::Editing);
        shared.list.remove(&held, &self.entry);
        shared.open.free(held);
    }
}

impl<S: Subscriber + 'static> fmt::Debug for Shared<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("subscriber", &self.entry.name()).finish_non_exhaustive()
    }
}
