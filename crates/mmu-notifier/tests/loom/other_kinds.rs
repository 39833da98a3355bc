//! Tickets, aging and flushes against who unsubscribes.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::*};
use loom::thread;
use mmu_notifier::{Aging, Change, Event, Range, SecondaryTlb, Ticketed, WouldBlock};

use crate::{CHANGE, PAGES, Watched, explore, space};

/// Gives tickets and takes them back.
#[derive(Default)]
struct Counter {
    state: Watched,
    given: AtomicUsize,
    taken: AtomicUsize,
    /// Tickets that are gone, wherever they went.
    gone: AtomicUsize,
}

struct Giver(Arc<Counter>);

struct Slip(Arc<Counter>);

impl Drop for Slip {
    fn drop(&mut self) {
        self.0.gone.fetch_add(1, Relaxed);
    }
}

impl Ticketed for Giver {
    type Ticket = Slip;

    fn start(&self, _: &Change) -> Slip {
        self.0.state.touch();
        self.0.given.fetch_add(1, Relaxed);
        Slip(self.0.clone())
    }

    fn try_start(&self, change: &Change) -> Result<Slip, WouldBlock> {
        Ok(self.start(change))
    }

    fn end(&self, _: &Change, slip: Slip) {
        self.0.state.touch();
        self.0.taken.fetch_add(1, Relaxed);
        drop(slip);
    }
}

/// Every ticket goes: to the end of its change, or with the subscriber. loom watches the places they lie in.
#[test]
fn tickets_are_taken_or_dropped_when_their_subscriber_leaves() {
    explore(|| {
        let space = space();
        let counter = Arc::new(Counter::default());
        let subscription = space.subscribe_ticketed(Giver(counter.clone()));
        let changing = {
            let space = space.clone();
            thread::spawn(move || space.invalidate(PAGES, Event::Unmap, || ()))
        };
        drop(subscription);
        counter.state.take_away();
        changing.join().unwrap();
        assert_eq!(counter.given.load(Relaxed), counter.gone.load(Relaxed));
        assert!(counter.taken.load(Relaxed) <= counter.given.load(Relaxed));
    });
}

/// A slot that is used again has no ticket of its last use.
#[test]
fn two_changes_do_not_mix_up_their_tickets() {
    explore(|| {
        let space = space();
        let counter = Arc::new(Counter::default());
        let subscription = space.subscribe_ticketed(Giver(counter.clone()));
        let changing = {
            let space = space.clone();
            thread::spawn(move || space.invalidate(PAGES, Event::Unmap, || ()))
        };
        space.invalidate(PAGES, Event::Clear, || ());
        changing.join().unwrap();
        assert_eq!((counter.given.load(Relaxed), counter.taken.load(Relaxed)), (2, 2));
        drop(subscription);
    });
}

struct Touched(Arc<Watched>);

impl Aging for Touched {
    fn clear_flush_young(&self, _: Range) -> bool {
        self.0.touch();
        true
    }

    fn clear_young(&self, _: Range) -> bool {
        self.0.touch();
        true
    }

    fn test_young(&self, _: usize) -> bool {
        self.0.touch();
        true
    }
}

impl SecondaryTlb for Touched {
    fn flush(&self, _: Range) {
        self.0.touch();
    }
}

impl Drop for Touched {
    fn drop(&mut self) {
        self.0.take_away();
    }
}

/// G5 for who is asked about age.
#[test]
fn nobody_is_asked_about_age_after_unsubscribing() {
    explore(|| {
        let space = space();
        let state = Arc::new(Watched::default());
        let subscription = space.subscribe_aging(Touched(state.clone()));
        let asking = {
            let space = space.clone();
            thread::spawn(move || space.clear_young(PAGES))
        };
        drop(subscription);
        state.take_away();
        asking.join().unwrap();
    });
}

/// G5 for who is told to flush.
#[test]
fn nobody_is_told_to_flush_after_unsubscribing() {
    explore(|| {
        let space = space();
        let state = Arc::new(Watched::default());
        let subscription = space.subscribe_tlb(Touched(state.clone()));
        let flushing = {
            let space = space.clone();
            thread::spawn(move || space.flush(PAGES))
        };
        drop(subscription);
        state.take_away();
        flushing.join().unwrap();
    });
}

/// A list that is walked is not freed by who comes, who waits for nobody.
#[test]
fn a_list_that_is_asked_about_age_is_not_freed_by_who_comes() {
    explore(|| {
        let space = space();
        let states = [Arc::new(Watched::default()), Arc::new(Watched::default())];
        let stays = space.subscribe_aging(Touched(states[0].clone()));
        let asking = {
            let space = space.clone();
            thread::spawn(move || space.clear_young(PAGES))
        };
        let comes = space.subscribe_aging(Touched(states[1].clone()));
        asking.join().unwrap();
        drop((stays, comes));
    });
}

/// A ticket is found by whoever ends the change, also while its subscriber leaves.
#[test]
fn a_ticket_is_handed_over_with_its_change() {
    explore(|| {
        let space = space();
        let counter = Arc::new(Counter::default());
        let subscription = space.subscribe_ticketed(Giver(counter.clone()));
        let open = space.start(&space.caller(), CHANGE).unwrap();
        let other = {
            let space = space.clone();
            thread::spawn(move || space.end(&space.caller(), open))
        };
        drop(subscription);
        counter.state.take_away();
        assert!(other.join().unwrap());
        assert_eq!((counter.given.load(Relaxed), counter.gone.load(Relaxed)), (1, 1));
    });
}
