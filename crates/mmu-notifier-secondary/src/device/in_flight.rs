//! Accesses that are under way: who takes a translation back waits until nobody is using it any more, as a processor that
//! shoots down the TLBs of others does.
//!
//! ```text
//! device                                   start
//! ------                                   -----
//! inside := odd                            take the translation out
//! full fence                               full fence
//! look for the translation; use it         wait while inside is what it was, if odd
//! inside := even
//! ```
//!
//! Either the device finds no translation, or the start finds the device inside.

use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Backoff, Ordering, fence};

/// Places for so many devices (engines, processors) that access memory at the same time.
#[derive(Debug)]
pub(crate) struct InFlight {
    places: Box<[Place]>,
}

/// The place of one device, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Place {
    taken: AtomicBool,
    /// Odd during an access.
    inside: AtomicU64,
    /// The thread that makes the access.
    thread: AtomicU64,
    /// Where the access goes.
    address: AtomicUsize,
}

impl InFlight {
    pub(crate) fn new(places: usize) -> InFlight {
        InFlight { places: (0..places).map(|_| Place::default()).collect() }
    }

    /// A place, if one is free, until it is dropped.
    pub(crate) fn take(&self) -> Option<Seat<'_>> {
        // Acquire pairs with the Release in the drop of a seat: what its holder has left there is seen.
        let take = |place: &Place| {
            place.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let number = self.places.iter().position(take)?;
        Some(Seat { place: &self.places[number], number })
    }

    /// Waits for the accesses under way to addresses that `concerns` says yes to. Not for those of `thread`, which is the
    /// calling one.
    ///
    /// What is to be used no more must have been taken out before.
    pub(crate) fn wait(&self, thread: u64, concerns: impl Fn(usize) -> bool) {
        // Pairs with the fence in `enter`: see the module documentation.
        fence(Ordering::SeqCst);
        for place in &self.places {
            let (inside, mut backoff) = (place.inside.load(Ordering::Acquire), Backoff::default());
            if !is_odd(inside) || !place.is_used(thread, &concerns) {
                continue;
            }
            // Acquire pairs with the Release in the drop of `Inside`: what the access did has happened.
            while place.inside.load(Ordering::Acquire) == inside {
                backoff.wait();
            }
        }
    }

    /// Whether [`wait`](InFlight::wait) would wait.
    pub(crate) fn is_used(&self, thread: u64, concerns: impl Fn(usize) -> bool) -> bool {
        // As in `wait`, both.
        fence(Ordering::SeqCst);
        self.places
            .iter()
            .any(|place| is_odd(place.inside.load(Ordering::Acquire)) && place.is_used(thread, &concerns))
    }
}

fn is_odd(inside: u64) -> bool {
    inside & 1 == 1
}

impl Place {
    /// Relaxed: written before `inside`, which was loaded with Acquire.
    fn is_used(&self, thread: u64, concerns: &impl Fn(usize) -> bool) -> bool {
        self.thread.load(Ordering::Relaxed) != thread && concerns(self.address.load(Ordering::Relaxed))
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(crate) struct Seat<'a> {
    place: &'a Place,
    number: usize,
}

impl Seat<'_> {
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// An access begins, by `thread`, the calling one. The translation is to be looked for afterwards.
    pub(crate) fn enter(&mut self, thread: u64, address: usize) -> Inside<'_> {
        let place = self.place;
        place.thread.store(thread, Ordering::Relaxed);
        place.address.store(address, Ordering::Relaxed);
        let inside = place.inside.load(Ordering::Relaxed) + 1;
        // Release pairs with the Acquire in `wait`: the two above are seen.
        place.inside.store(inside, Ordering::Release);
        // Pairs with the fence in `wait`: see the module documentation.
        fence(Ordering::SeqCst);
        Inside { place }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        // Release pairs with the Acquire in `take`.
        self.place.taken.store(false, Ordering::Release);
    }
}

/// An access, until it is dropped.
#[derive(Debug)]
pub(crate) struct Inside<'a> {
    place: &'a Place,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let inside = self.place.inside.load(Ordering::Relaxed) + 1;
        // Release pairs with the Acquire in `wait`: the access happened before the change.
        self.place.inside.store(inside, Ordering::Release);
    }
}
