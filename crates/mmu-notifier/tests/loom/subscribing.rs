//! Who comes and who goes, against a change.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::*};
use loom::thread;
use mmu_notifier::Event;

use crate::{CHANGE, PAGES, Told, Watched, Witness, explore, space};

/// G4: a change that is open when `subscribe` has returned is known to the subscriber.
#[test]
fn no_unknown_change_is_open_after_subscribing() {
    explore(|| {
        let space = space();
        let in_change = Arc::new(AtomicUsize::new(0));
        let changing = {
            let (space, in_change) = (space.clone(), in_change.clone());
            thread::spawn(move || {
                space.invalidate(PAGES, Event::Unmap, || {
                    in_change.store(1, Release);
                    in_change.store(0, Release);
                });
            })
        };
        let witness = Witness::new();
        let subscription = space.subscribe(Told(witness.clone()));
        if in_change.load(Acquire) == 1 {
            assert_eq!(witness.told().0, 1, "the pages change and nobody has told us");
        }
        changing.join().unwrap();
        let (starts, ends) = witness.told();
        assert_eq!(starts, ends);
        drop(subscription);
    });
}

/// The same for a change that nobody hears of: it is over then, and what it did has happened.
#[test]
fn no_unheard_change_is_open_after_subscribing() {
    explore(|| {
        let space = space();
        let pages = Arc::new(Watched::default());
        let changing = {
            let (space, pages) = (space.clone(), pages.clone());
            thread::spawn(move || {
                if let Some(open) = space.start_unheard(&space.caller(), &CHANGE) {
                    pages.take_away();
                    space.end_unheard(open);
                }
            })
        };
        let subscription = space.subscribe(Told(Witness::new()));
        pages.take_away();
        changing.join().unwrap();
        drop(subscription);
    });
}

/// G5: when the drop of a subscription has returned, no callback runs or will run.
#[test]
fn no_callback_after_unsubscribing() {
    explore(|| {
        let space = space();
        let witness = Witness::new();
        let subscription = space.subscribe(Told(witness.clone()));
        let changing = {
            let space = space.clone();
            thread::spawn(move || space.invalidate(PAGES, Event::Unmap, || ()))
        };
        drop(subscription);
        // A callback that still runs, or comes later, is found by loom as a concurrent access.
        witness.state.take_away();
        changing.join().unwrap();
        let (starts, ends) = witness.told();
        assert!(starts >= ends);
        assert_eq!(witness.releases.load(Relaxed), 1);
    });
}

/// The same when the change is open already: its end is the race.
#[test]
fn no_end_after_unsubscribing() {
    explore(|| {
        let space = space();
        let witness = Witness::new();
        let subscription = space.subscribe(Told(witness.clone()));
        let caller = space.caller();
        let open = space.start(&caller, CHANGE).expect("blocking");
        let leaving = thread::spawn(move || {
            drop(subscription);
            witness.state.take_away();
        });
        assert!(space.end(&caller, open));
        leaving.join().unwrap();
    });
}

/// The same when the change is made in one frame.
#[test]
fn no_end_in_one_frame_after_unsubscribing() {
    explore(|| {
        let space = space();
        let witness = Witness::new();
        let subscription = space.subscribe(Told(witness.clone()));
        let mut leaving = None;
        space.invalidate(PAGES, Event::Unmap, || {
            let witness = witness.clone();
            leaving = Some(thread::spawn(move || {
                drop(subscription);
                witness.state.take_away();
            }));
        });
        leaving.unwrap().join().unwrap();
    });
}

/// The same when another thread ends it than has started it.
#[test]
fn no_end_by_another_thread_after_unsubscribing() {
    explore(|| {
        let space = space();
        let witness = Witness::new();
        let subscription = space.subscribe(Told(witness.clone()));
        let open = space.start(&space.caller(), CHANGE).expect("blocking");
        let ending = {
            let space = space.clone();
            thread::spawn(move || assert!(space.end(&space.caller(), open)))
        };
        drop(subscription);
        witness.state.take_away();
        ending.join().unwrap();
    });
}

/// Two who subscribe at the same time are both on the list.
#[test]
fn nobody_is_lost_when_two_subscribe() {
    explore(|| {
        let space = space();
        let witnesses = [Witness::new(), Witness::new()];
        let other = {
            let (space, witness) = (space.clone(), witnesses[0].clone());
            thread::spawn(move || space.subscribe(Told(witness)))
        };
        let one = space.subscribe(Told(witnesses[1].clone()));
        let other = other.join().unwrap();
        space.invalidate(PAGES, Event::Unmap, || ());
        for witness in &witnesses {
            assert_eq!(witness.told(), (1, 1));
        }
        drop((one, other));
    });
}

/// A list that is walked is not freed by one who replaces it.
#[test]
fn a_walked_list_is_not_freed() {
    explore(|| {
        let space = space();
        let witnesses = [Witness::new(), Witness::new()];
        let stays = space.subscribe(Told(witnesses[0].clone()));
        let leaves = space.subscribe(Told(witnesses[1].clone()));
        let changing = {
            let space = space.clone();
            thread::spawn(move || space.invalidate(PAGES, Event::Unmap, || ()))
        };
        drop(leaves);
        changing.join().unwrap();
        assert_eq!(witnesses[0].told(), (1, 1));
        drop(stays);
    });
}
