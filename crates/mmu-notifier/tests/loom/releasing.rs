//! The end of an address space, against those who come and go.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::*};
use loom::thread;
use mmu_notifier::{Aging, Change, Event, IntervalSubscriber, Pass, Range, Subscriber, WouldBlock};

use crate::{PAGES, Told, Watched, Witness, explore_for_a_minute, explore_with, space};

/// An interval that comes meanwhile is refused, or told.
#[test]
fn who_inserts_meanwhile_is_refused_or_told() {
    struct Alone(Arc<AtomicUsize>);
    impl IntervalSubscriber for Alone {
        fn invalidate(&self, change: &Change) -> Pass {
            assert_eq!(change.event(), Event::Release);
            self.0.fetch_add(1, Relaxed);
            Pass::Done
        }

        fn try_invalidate(&self, change: &Change) -> Result<Pass, WouldBlock> {
            Ok(self.invalidate(change))
        }
    }
    explore_with(1, || {
        let space = space();
        let told = Arc::new(AtomicUsize::new(0));
        let inserting = {
            let (space, told) = (space.clone(), told.clone());
            thread::spawn(move || space.insert(PAGES, Alone(told)))
        };
        space.release();
        let inserted = inserting.join().unwrap();
        assert!(inserted.is_err() || told.load(Relaxed) == 1);
        drop(inserted);
    });
}

/// Who comes too late panics; in thousands of interleavings that is not worth a line each.
fn expect_refusals() {
    std::panic::set_hook(Box::new(|panic| {
        if !panic.to_string().contains("that has been released") {
            eprintln!("{panic}");
        }
    }));
}

/// A subscriber that comes meanwhile is refused and released, or just released.
#[test]
fn who_subscribes_meanwhile_is_released() {
    expect_refusals();
    explore_with(1, || {
        let space = space();
        let witness = Witness::new();
        let subscribing = {
            let (space, told) = (space.clone(), Told(witness.clone()));
            thread::spawn(move || {
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| space.subscribe(told))).ok()
            })
        };
        space.release();
        let subscription = subscribing.join().unwrap();
        space.invalidate(PAGES, Event::Unmap, || ());
        assert_eq!(witness.told(), (0, 0), "nobody is on a list any more");
        assert!(subscription.is_none() || witness.releases.load(Relaxed) == 1);
        drop(subscription);
    });
}

/// Touches its state when it is released.
struct Old(Arc<Watched>);

impl Aging for Old {
    fn clear_flush_young(&self, _: Range) -> bool {
        false
    }

    fn clear_young(&self, _: Range) -> bool {
        false
    }

    fn test_young(&self, _: usize) -> bool {
        false
    }

    fn release(&self) {
        self.0.touch();
    }
}

impl Drop for Old {
    fn drop(&mut self) {
        self.0.take_away();
    }
}

/// The second and third list are walked as safely as the first: loom watches the lists.
#[test]
fn lists_that_are_released_are_not_freed_by_who_comes() {
    expect_refusals();
    explore_for_a_minute(|| {
        let space = space();
        let states = [Arc::new(Watched::default()), Arc::new(Watched::default())];
        let stays = space.subscribe_aging(Old(states[0].clone()));
        let coming = {
            let (space, old) = (space.clone(), Old(states[1].clone()));
            thread::spawn(move || {
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| space.subscribe_aging(old))).ok()
            })
        };
        space.release_now();
        drop(coming.join().unwrap());
        drop(stays);
    });
}

/// `release` is called once, by the one or the other, and is over when either has returned.
#[test]
fn who_unsubscribes_meanwhile_is_released_once() {
    explore_for_a_minute(|| {
        let space = space();
        let witness = Witness::new();
        let subscription = space.subscribe(Told(witness.clone()));
        let leaving = {
            let witness = witness.clone();
            thread::spawn(move || {
                drop(subscription);
                assert_eq!(witness.releases.load(Relaxed), 1);
                witness.state.touch();
            })
        };
        space.release();
        assert_eq!(witness.releases.load(Relaxed), 1, "released, whoever did it");
        leaving.join().unwrap();
        assert_eq!(witness.releases.load(Relaxed), 1, "and once");
    });
}

/// What a `release` has done happened before the end of the one that waited for it.
#[test]
fn what_who_unsubscribes_meanwhile_did_has_happened() {
    struct Does(Arc<Watched>);
    impl Subscriber for Does {
        fn start(&self, _: &Change) {}

        fn end(&self, _: &Change) {}

        fn release(&self) {
            self.0.take_away();
        }
    }
    explore_for_a_minute(|| {
        let space = space();
        let state = Arc::new(Watched::default());
        let subscription = space.subscribe(Does(state.clone()));
        // There and not here: then one preemption fewer finds what goes wrong.
        let releasing = {
            let space = space.clone();
            thread::spawn(move || {
                space.release();
                state.take_away();
            })
        };
        drop(subscription);
        releasing.join().unwrap();
    });
}

/// The same for two who release.
#[test]
fn two_release_and_both_return_when_it_is_done() {
    explore_for_a_minute(|| {
        let space = space();
        let witness = Witness::new();
        let subscription = space.subscribe(Told(witness.clone()));
        let other = {
            let (space, witness) = (space.clone(), witness.clone());
            thread::spawn(move || {
                space.release();
                assert_eq!(witness.releases.load(Relaxed), 1);
            })
        };
        space.release();
        assert_eq!(witness.releases.load(Relaxed), 1);
        other.join().unwrap();
        drop(subscription);
        assert_eq!(witness.releases.load(Relaxed), 1);
    });
}
