//! Changes that an interval's subscriber makes itself and ignores.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use mmu_notifier::{AddressSpace, Blocking, Change, Event, IntervalSubscriber, Pass, Range, WouldBlock};

use crate::witness::{Log, Witness};

/// Moves pages to its device itself, under this name.
const DEVICE: usize = 7;

struct Mirror;

impl IntervalSubscriber for Mirror {
    fn ignores(&self, change: &Change) -> bool {
        change.event() == Event::Migrate && change.owner() == DEVICE
    }

    fn invalidate(&self, _: &Change) -> Pass {
        Pass::Done
    }

    fn try_invalidate(&self, _: &Change) -> Result<Pass, WouldBlock> {
        Ok(Pass::Done)
    }
}

fn migration() -> Change {
    let pages = Range::new(0x1000, 0x3000).unwrap();
    Change::new(pages, Event::Migrate, Blocking::Allowed).with_owner(DEVICE)
}

#[test]
fn a_reader_waits_for_no_change_that_its_subscriber_ignores() {
    let space = AddressSpace::new();
    let interval = space.insert(migration().range(), Mirror).unwrap();
    let own = space.begin(migration()).unwrap();
    thread::scope(|scope| {
        let (sender, receiver) = channel();
        let interval = &interval;
        scope.spawn(move || sender.send(interval.is_stale(&interval.read())).unwrap());
        let read = receiver.recv_timeout(Duration::from_secs(20));
        own.end();
        assert_eq!(read, Ok(false), "the read is over while the change is open, and good");
    });
}

#[test]
fn a_reader_waits_for_the_same_change_of_another_owner() {
    let space = AddressSpace::new();
    let interval = space.insert(migration().range(), Mirror).unwrap();
    let foreign = space.begin(migration().with_owner(DEVICE + 1)).unwrap();
    thread::scope(|scope| {
        let (sender, receiver) = channel();
        let interval = &interval;
        scope.spawn(move || sender.send(interval.is_stale(&interval.read())).unwrap());
        assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err(), "it waits");
        foreign.end();
        assert_eq!(receiver.recv(), Ok(false));
    });
}

#[test]
fn a_ticket_taken_inside_an_ignored_change_of_the_same_thread_is_good() {
    let space = AddressSpace::new();
    let interval = space.insert(migration().range(), Mirror).unwrap();
    let own = space.begin(migration()).unwrap();
    assert!(!interval.is_stale(&interval.read()), "the subscriber knows of it");
    own.end();
    let foreign = space.begin(migration().with_owner(DEVICE + 1)).unwrap();
    assert!(interval.is_stale(&interval.read()), "this one cannot be waited for");
    foreign.end();
}

#[test]
fn a_ticket_taken_inside_a_change_that_was_made_for_nobody_is_stale() {
    let space = AddressSpace::new();
    let elsewhere = Range::new(0x9000, 0xa000).unwrap();
    let before = space.insert(elsewhere, Mirror).unwrap();
    space.invalidate(elsewhere, Event::Clear, || ());
    drop(before);
    // Nobody is there, so that its range is not put on record; what is there is that of the change before.
    let foreign = space.begin(migration().with_owner(DEVICE + 1)).unwrap();
    let interval = space.insert(migration().range(), Mirror).unwrap();
    assert!(interval.is_stale(&interval.read()), "the change that is open overlaps");
    foreign.end();
    assert!(!interval.is_stale(&interval.read()));
}

#[test]
fn a_thread_knows_whether_it_is_changing_anything() {
    let (space, log) = (AddressSpace::new(), Log::default());
    let inner = space.clone();
    let is_told_so = move |_: &Change| assert!(inner.is_changing(), "in the end of a change");
    let _a = space.subscribe(Witness::new("A", &log).on_end(is_told_so));
    assert!(!space.is_changing());
    let outer = space.begin(migration()).unwrap();
    space.invalidate(Range::new(0x8000, 0x9000).unwrap(), Event::Unmap, || assert!(space.is_changing()));
    assert!(space.is_changing(), "one of two is open");
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(!space.is_changing(), "another thread does not");
            outer.end();
            assert!(!space.is_changing());
        });
    });
    assert!(!space.is_changing(), "another thread has ended it");
    assert_eq!(log.take(), "A+ A+ A- A-");
}
