use std::sync::mpsc::channel;
use std::time::Duration;

use mmu_notifier::{AddressSpace, Blocking, Change, Event};

use crate::witness::{Log, PAGES, Witness, change, end_abandoned, space_with};

const UNMAP: Change = Change::new(PAGES, Event::Unmap, Blocking::Forbidden);

/// A space in which this thread has made a change: before, it goes the long way.
fn used_space() -> AddressSpace {
    let space = AddressSpace::new();
    assert!(space.start_unheard(&space.caller(), &UNMAP).is_none(), "a place that was never used");
    space.invalidate(PAGES, Event::Unmap, || ());
    space
}

#[test]
fn who_subscribes_waits_for_an_unheard_change() {
    let log = Log::default();
    let space = used_space();
    let caller = space.caller();
    assert!(!space.may_have_open(&caller));
    let open = space.start_unheard(&caller, &UNMAP).expect("nobody is subscribed");
    assert!(space.may_have_open(&caller));
    let (sender, subscribed) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| sender.send(space.subscribe(Witness::new("A", &log))).unwrap());
        assert!(subscribed.recv_timeout(Duration::from_millis(50)).is_err(), "did not wait");
        space.end_unheard(open);
        let subscription = subscribed.recv_timeout(Duration::from_secs(10)).expect("waits for ever");
        assert!(!space.may_have_open(&caller));
        change(&space, &log);
        assert_eq!(log.take(), "A+ * A-");
        drop(subscription);
    });
}

#[test]
fn a_change_that_somebody_must_hear_of_is_not_unheard() {
    let log = Log::default();
    let (space, subscriptions) = space_with(&log, &["A"]);
    let caller = space.caller();
    assert!(space.start_unheard(&caller, &UNMAP).is_none());
    drop(subscriptions);
    let outer = space.start_unheard(&caller, &UNMAP).expect("nobody is subscribed any more");
    assert!(space.start_unheard(&caller, &UNMAP).is_none(), "a nested one goes the long way");
    let inner = space.start(&caller, UNMAP).expect("nobody refuses");
    assert!(space.end(&caller, inner));
    space.end_unheard(outer);
    assert_eq!(end_abandoned(&space, &caller, |_| true).changes, 0);
}

#[test]
fn an_unheard_change_can_be_abandoned() {
    let space = used_space();
    let caller = space.caller();
    let _abandoned = space.start_unheard(&caller, &UNMAP).expect("nobody is subscribed");
    assert_eq!(end_abandoned(&space, &caller, |_| true).changes, 1);
    assert!(!space.may_have_open(&caller));
    let open = space.start_unheard(&caller, &UNMAP).expect("the place is free again");
    space.end_unheard(open);
}
