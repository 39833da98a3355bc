use mmu_notifier::{AddressSpace, Blocking, Change, Event, IntervalSubscription};

use crate::witness::{Elsewhere, Log, Mirror, PAGES, Task, Witness};

/// An interval that leaves migrations of this owner alone.
fn ignoring(space: &AddressSpace, log: &Log, owner: usize) -> IntervalSubscription {
    let own = move |change: &Change| change.event() == Event::Migrate && change.owner() == owner;
    space.insert(PAGES, Mirror::new("I", log).ignoring(own).two_pass()).unwrap()
}

fn change_of(event: Event, owner: usize, blocking: Blocking) -> Change {
    Change::new(PAGES, event, blocking).with_owner(owner)
}

#[test]
fn a_subscriber_leaves_its_own_changes_alone_and_its_tickets_stay_good() {
    for blocking in [Blocking::Allowed, Blocking::Forbidden] {
        let log = Log::default();
        let space = AddressSpace::new();
        let interval = ignoring(&space, &log, 7);
        let ticket = interval.read();
        let open = space.begin(change_of(Event::Migrate, 7, blocking)).unwrap();
        assert!(!interval.is_stale(&ticket), "inside");
        open.end();
        assert!(!interval.is_stale(&ticket), "and after it");
        assert_eq!(log.take(), "");
    }
}

#[test]
fn changes_of_others_and_for_other_reasons_are_not_left_alone() {
    for change in [
        change_of(Event::Migrate, 8, Blocking::Allowed),
        change_of(Event::Migrate, 0, Blocking::Allowed),
        change_of(Event::Unmap, 7, Blocking::Allowed),
        Change::new(PAGES, Event::Migrate, Blocking::Allowed),
    ] {
        let log = Log::default();
        let space = AddressSpace::new();
        let interval = ignoring(&space, &log, 7);
        let ticket = interval.read();
        space.begin(change).unwrap().end();
        assert!(interval.is_stale(&ticket), "{change:?}");
        assert_eq!(log.take(), "I+ I:");
    }
}

#[test]
fn others_are_told_of_a_change_that_one_leaves_alone() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _own = ignoring(&space, &log, 7);
    let other = space.insert(PAGES, Mirror::new("J", &log)).unwrap();
    let _a = space.subscribe(Witness::new("A", &log));
    let ticket = other.read();
    space.begin(change_of(Event::Migrate, 7, Blocking::Allowed)).unwrap().end();
    assert!(other.is_stale(&ticket));
    assert_eq!(log.take(), "J+ A+ A-");
}

#[test]
fn readers_do_not_wait_for_what_their_subscriber_leaves_alone() {
    let space = AddressSpace::new();
    let own = ignoring(&space, &Log::default(), 7);
    let other = space.insert(PAGES, Mirror::new("J", &Log::default())).unwrap();
    let open = Elsewhere::open(&space, change_of(Event::Migrate, 7, Blocking::Allowed));
    let own = Task::new(move || (!own.is_stale(&own.read()), own));
    let waiting = Task::new(move || _ = other.read());
    let (is_good, own) = own.finish();
    assert!(is_good);
    assert!(waiting.waits(), "a stranger does");
    let foreign = Elsewhere::open(&space, change_of(Event::Migrate, 8, Blocking::Allowed));
    let own = Task::new(move || _ = own.read());
    assert!(own.waits(), "and for a stranger's");
    foreign.close();
    own.finish();
    open.close();
    waiting.finish();
}

#[test]
fn a_ticket_taken_inside_an_own_change_that_is_left_alone_is_good() {
    let space = AddressSpace::new();
    let own = ignoring(&space, &Log::default(), 7);
    let other = space.insert(PAGES, Mirror::new("J", &Log::default())).unwrap();
    let open = space.begin(change_of(Event::Migrate, 7, Blocking::Allowed)).unwrap();
    assert!(!own.is_stale(&own.read()));
    assert!(other.is_stale(&other.read()));
    let foreign = space.begin(change_of(Event::Migrate, 8, Blocking::Allowed)).unwrap();
    assert!(own.is_stale(&own.read()));
    foreign.end();
    open.end();
}

#[test]
fn start_and_end_carry_the_owner_also_in_places_used_before() {
    let log = Log::default();
    let space = AddressSpace::new();
    let say = |log: Log| move |change: &Change| log.add(&change.owner().to_string());
    let witness = Witness::new("A", &log).on_start(say(log.clone())).on_end(say(log.clone()));
    let _a = space.subscribe(witness);
    for owner in [0, 7, 0, usize::MAX, 3] {
        space.begin(change_of(Event::Exclusive, owner, Blocking::Allowed)).unwrap().end();
        assert_eq!(log.take(), format!("A+ {owner} A- {owner}"));
    }
}
