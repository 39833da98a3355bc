//! A change that one thread starts and another ends.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::*};
use loom::thread;
use mmu_notifier::{AddressSpace, Caller, Event, OpenChange};

use crate::{CHANGE, PAGES, Told, Witness, explore, space};

/// Ends a change of the calling thread in another one.
fn hand_over(space: &AddressSpace, open: OpenChange) -> thread::JoinHandle<bool> {
    let space = space.clone();
    thread::spawn(move || space.end(&space.caller(), open))
}

/// An end by another thread and one by its own, which takes it for abandoned: one of them.
#[test]
fn a_change_is_ended_once() {
    explore(|| {
        let space = space();
        let witness = Witness::new();
        let subscription = space.subscribe(Told(witness.clone()));
        let open = space.start(&space.caller(), CHANGE).expect("blocking");
        let other = hand_over(&space, open);
        // SAFETY: nothing of this thread goes on in the change.
        let found = unsafe { space.end_abandoned(&space.caller(), |_| true) }.changes;
        assert_eq!(found + usize::from(other.join().unwrap()), 1);
        assert_eq!(witness.told(), (1, 1));
        drop(subscription);
    });
}

/// What was done before the end is seen by who is told of it, whoever ends.
#[test]
fn the_change_happened_before_its_end() {
    explore(|| {
        let space = space();
        let witness = Witness::new();
        let subscription = space.subscribe(Told(witness.clone()));
        let open = space.start(&space.caller(), CHANGE).expect("blocking");
        let pages = Arc::new(AtomicUsize::new(0));
        pages.store(1, Relaxed);
        let newcomer = {
            let (space, pages) = (space.clone(), pages.clone());
            // Not this thread's change: it is waited for.
            thread::spawn(move || {
                let late = Witness::new();
                let subscription = space.subscribe(Told(late.clone()));
                assert_eq!(pages.load(Relaxed), 1);
                drop(subscription);
            })
        };
        let caller = space.caller();
        // SAFETY: the number of nobody else; as such it only ends this change.
        let other = unsafe { Caller::new(caller.thread() + 1000, caller.home()) };
        assert!(space.end(&other, open));
        newcomer.join().unwrap();
        assert_eq!(witness.told(), (1, 1));
        drop(subscription);
    });
}

/// G5: who started the change unsubscribes while another thread is in the end.
#[test]
fn who_started_unsubscribes_while_another_ends() {
    explore(|| {
        let space = space();
        let witness = Witness::new();
        let subscription = space.subscribe(Told(witness.clone()));
        let open = space.start(&space.caller(), CHANGE).expect("blocking");
        let other = hand_over(&space, open);
        drop(subscription);
        witness.state.take_away();
        assert!(other.join().unwrap());
    });
}

/// A change of who started another one is told to everybody, also while another thread ends the first.
#[test]
fn who_started_makes_another_change_while_another_thread_ends() {
    explore(|| {
        let space = space();
        let witness = Witness::new();
        let subscription = space.subscribe(Told(witness.clone()));
        let open = space.start(&space.caller(), CHANGE).expect("blocking");
        let other = hand_over(&space, open);
        space.invalidate(PAGES, Event::Clear, || ());
        assert!(other.join().unwrap());
        assert_eq!(witness.told(), (2, 2), "both are pairs");
        drop(subscription);
    });
}
