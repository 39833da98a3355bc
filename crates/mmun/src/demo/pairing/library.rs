//! The subscribers on this library.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mmu_notifier::{AddressSpace, Change, Event, Range, Refuser, Subscriber, Subscription, WouldBlock};

use super::{Counts, Reaped, World};

/// Counts starts and ends, as KVM does.
#[derive(Debug, Default)]
struct Kvm {
    // Relaxed everywhere: there is one thread.
    starts: AtomicU64,
    ends: AtomicU64,
}

impl Subscriber for Kvm {
    fn start(&self, _: &Change) {
        self.starts.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self, _: &Change) {
        self.ends.fetch_add(1, Ordering::Relaxed);
    }
}

/// A driver that is busy every so often.
#[derive(Debug)]
struct Driver {
    refuse: u64,
    asked: AtomicU64,
}

impl Refuser for Driver {
    fn start(&self, _: &Change) {}

    fn try_start(&self, _: &Change) -> Result<(), WouldBlock> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if asked.is_multiple_of(self.refuse) { Err(WouldBlock) } else { Ok(()) }
    }
}

/// An address space and its two subscribers.
#[derive(Debug)]
pub(super) struct Library {
    space: AddressSpace,
    kvm: Arc<Kvm>,
    _subscriptions: [Subscription; 2],
}

impl Library {
    /// With a driver that refuses every `refuse`-th start that may not wait.
    pub(super) fn new(refuse: u32) -> Library {
        let space = AddressSpace::new();
        let kvm = Arc::new(Kvm::default());
        let driver = Driver { refuse: refuse.into(), asked: AtomicU64::new(0) };
        let subscriptions = [space.subscribe(kvm.clone()), space.subscribe_refuser(driver)];
        Library { space, kvm, _subscriptions: subscriptions }
    }
}

impl World for Library {
    fn reap(&mut self, mapping: u32) -> Reaped {
        let (start, end) = super::range(mapping);
        let range = Range::new(start as usize, end as usize).expect("a mapping is not empty");
        match self.space.try_invalidate(range, Event::Clear, || ()) {
            Ok(()) => Reaped::Done,
            Err(WouldBlock) => Reaped::Refused,
        }
    }

    fn counts(&self) -> Counts {
        let Kvm { starts, ends } = &*self.kvm;
        Counts { starts: starts.load(Ordering::Relaxed), ends: ends.load(Ordering::Relaxed) }
    }
}
