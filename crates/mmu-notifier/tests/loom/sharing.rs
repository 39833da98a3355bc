//! Get, put and synchronize.

use std::convert::Infallible;

use loom::sync::Arc;
use loom::thread;
use mmu_notifier::{AddressSpace, Aging, Event, Range, Shared};

use crate::{PAGES, Told, Witness, explore, explore_with, space};

fn get(space: &AddressSpace, witness: &Arc<Witness>) -> Shared<Told> {
    space.get(|| Ok::<_, Infallible>(Told(witness.clone()))).unwrap()
}

/// Two who get at the same time have the same one.
#[test]
fn two_get_one() {
    explore(|| {
        let space = space();
        let witnesses = [Witness::new(), Witness::new()];
        let other = {
            let (space, witness) = (space.clone(), witnesses[0].clone());
            thread::spawn(move || get(&space, &witness))
        };
        let one = get(&space, &witnesses[1]);
        let other = other.join().unwrap();
        assert!(std::ptr::eq(&*one, &*other));
        space.invalidate(PAGES, Event::Unmap, || ());
        assert_eq!(witnesses[0].told().0 + witnesses[1].told().0, 1);
        drop((one, other));
        assert!(space.synchronize());
        witnesses.iter().for_each(|witness| witness.state.take_away());
    });
}

/// Who gets while the last puts has the old one, still subscribed, or a new one.
#[test]
fn who_gets_while_the_last_puts_has_one_that_is_told() {
    explore(|| {
        let space = space();
        let witnesses = [Witness::new(), Witness::new()];
        let last = get(&space, &witnesses[0]);
        let putting = thread::spawn(move || drop(last));
        let mine = get(&space, &witnesses[1]);
        space.invalidate(PAGES, Event::Unmap, || ());
        assert_eq!(mine.0.told(), (1, 1));
        putting.join().unwrap();
        drop(mine);
        assert!(space.synchronize());
        witnesses.iter().for_each(|witness| witness.state.take_away());
    });
}

/// When `synchronize` returns, no callback of who was put runs, and the subscriber is gone.
#[test]
fn who_was_put_is_gone_after_synchronizing() {
    explore(|| {
        let space = space();
        let witness = Witness::new();
        let last = get(&space, &witness);
        let changing = {
            let space = space.clone();
            thread::spawn(move || space.invalidate(PAGES, Event::Unmap, || ()))
        };
        drop(last);
        assert!(space.synchronize());
        witness.state.take_away();
        assert_eq!(Arc::strong_count(&witness), 1, "dropped");
        changing.join().unwrap();
    });
}

struct Nobody;

impl Aging for Nobody {
    fn clear_flush_young(&self, _: Range) -> bool {
        false
    }

    fn clear_young(&self, _: Range) -> bool {
        false
    }

    fn test_young(&self, _: usize) -> bool {
        false
    }
}

/// Who gets while another makes one and puts it again comes to an end, with one of them.
#[test]
fn who_gets_while_another_gets_and_puts_has_one() {
    explore_with(1, || {
        let space = space();
        let witnesses = [Witness::new(), Witness::new()];
        let other = {
            let (space, witness) = (space.clone(), witnesses[0].clone());
            thread::spawn(move || drop(get(&space, &witness)))
        };
        let mine = get(&space, &witnesses[1]);
        other.join().unwrap();
        space.invalidate(PAGES, Event::Unmap, || ());
        assert_eq!(mine.0.told(), (1, 1));
        drop(mine);
    });
}

/// The same while another thread replaces the list, and has not retired the old one yet.
#[test]
fn who_was_put_is_gone_after_synchronizing_whoever_retires_it() {
    explore(|| {
        let space = space();
        let witnesses = [Witness::new(), Witness::new()];
        let last = get(&space, &witnesses[0]);
        let putting = {
            let (space, witness) = (space.clone(), witnesses[0].clone());
            thread::spawn(move || {
                drop(last);
                assert!(space.synchronize());
                witness.state.take_away();
                // This one, and the one of the test.
                assert_eq!(Arc::strong_count(&witness), 2, "dropped");
            })
        };
        // Here and not there: then one preemption fewer finds what goes wrong.
        let comes = space.subscribe(Told(witnesses[1].clone()));
        putting.join().unwrap();
        drop(comes);
    });
}

/// The same while another thread comes, and frees what it finds.
#[test]
fn who_was_put_is_gone_after_synchronizing_whoever_frees_it() {
    explore(|| {
        let space = space();
        let witness = Witness::new();
        let last = get(&space, &witness);
        let coming = {
            let space = space.clone();
            thread::spawn(move || space.subscribe_aging(Nobody))
        };
        drop(last);
        assert!(space.synchronize());
        witness.state.take_away();
        assert_eq!(Arc::strong_count(&witness), 1, "dropped");
        drop(coming.join().unwrap());
    });
}
