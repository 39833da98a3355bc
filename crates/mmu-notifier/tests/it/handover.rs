//! A change that one thread starts and another ends.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use mmu_notifier::{AddressSpace, Blocking, Change, Event, Subscriber, Subscription};

use crate::witness::{Log, PAGES, Witness, change, space_with};

const CHANGE: Change = Change::new(PAGES, Event::Unmap, Blocking::Allowed);

/// Starts a change here and ends it in another thread.
fn hand_over(space: &AddressSpace) {
    let bracket = space.begin(CHANGE).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(bracket));
    });
}

#[test]
fn whoever_ends_is_in_the_callback() {
    let log = Log::default();
    let (space, _subscriptions) = space_with(&log, &["B"]);
    let (inner, inner_log) = (space.clone(), log.clone());
    let witness = Witness::new("A", &log).on_end(move |_| change(&inner, &inner_log));
    let _subscription = space.subscribe(witness);
    hand_over(&space);
    assert_eq!(log.take(), "A+ B+ A- B+ * B- B-", "A is not told of what is changed in its own callback");
    change(&space, &log);
    assert_eq!(log.take(), "A+ B+ * A- B+ * B- B-", "nor of that, and of everything else as ever");
}

/// Leaves in its own end, and looks whether it is there afterwards.
struct Leaving {
    own: Arc<Mutex<Option<Subscription>>>,
    is_inside: AtomicBool,
    dropped_inside: Arc<AtomicUsize>,
}

impl Subscriber for Leaving {
    fn start(&self, _: &Change) {}

    fn end(&self, _: &Change) {
        self.is_inside.store(true, Relaxed);
        drop(self.own.lock().unwrap().take());
        self.is_inside.store(false, Relaxed);
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.dropped_inside.fetch_add(self.is_inside.load(Relaxed).into(), Relaxed);
    }
}

#[test]
fn a_subscription_may_be_dropped_inside_its_own_callback_whoever_ends() {
    let space = AddressSpace::new();
    let own: Arc<Mutex<Option<Subscription>>> = Arc::default();
    let dropped_inside = Arc::new(AtomicUsize::new(0));
    let leaving = Leaving {
        own: own.clone(),
        is_inside: AtomicBool::new(false),
        dropped_inside: dropped_inside.clone(),
    };
    *own.lock().unwrap() = Some(space.subscribe(leaving));
    hand_over(&space);
    assert_eq!(dropped_inside.load(Relaxed), 0, "dropped while it runs");
}
