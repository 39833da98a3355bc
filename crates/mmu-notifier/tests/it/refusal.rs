use mmu_notifier::{AddressSpace, WouldBlock};

use crate::witness::{Busy, Log, Witness, change, try_change};

/// A space in which the refuser `N` stands at this place of the walk, among the paired `A` and `B`.
fn refuser_at(place: usize, log: &Log, every: u32) -> (AddressSpace, Vec<mmu_notifier::Subscription>) {
    let space = AddressSpace::new();
    let mut names = vec!["A", "B"];
    names.insert(place, "N");
    // The newest is walked first.
    let subscribe = |name: &'static str| match name {
        "N" => space.subscribe_refuser(Busy::new("N", log, every)),
        _ => space.subscribe(Witness::new(name, log)),
    };
    let subscriptions = names.into_iter().rev().map(subscribe).collect();
    (space, subscriptions)
}

#[test]
fn everybody_is_asked_and_who_started_is_ended() {
    for (place, told) in [(0, "N! A+ B+ A- B-"), (1, "A+ N! B+ A- B-"), (2, "A+ B+ N! A- B-")] {
        let log = Log::default();
        let (space, _subscriptions) = refuser_at(place, &log, 1);
        assert_eq!(try_change(&space, &log), Err(WouldBlock));
        assert_eq!(log.take(), told, "and the change is not made");
        change(&space, &log);
        assert_eq!(log.take(), told.replace('!', "+").replace(" A- B-", " * A- B-"), "nothing remains");
    }
}

#[test]
fn two_refusers_make_one_round_of_ends() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _a = space.subscribe(Witness::new("A", &log));
    let _n = space.subscribe_refuser(Busy::new("N", &log, 1));
    let _m = space.subscribe_refuser(Busy::new("M", &log, 1));
    assert_eq!(try_change(&space, &log), Err(WouldBlock));
    assert_eq!(log.take(), "M! N! A+ A-");
}

#[test]
fn who_refuses_every_third_is_told_of_the_others() {
    let log = Log::default();
    let (space, _subscriptions) = refuser_at(1, &log, 3);
    let results: Vec<_> = (0..6).map(|_| try_change(&space, &log).is_ok()).collect();
    assert_eq!(results, [true, true, false, true, true, false]);
    let told = log.take();
    assert_eq!(told.matches("A+").count(), told.matches("A-").count());
    assert_eq!((told.matches("A+").count(), told.matches('*').count()), (6, 4));
}

#[test]
fn a_blocking_change_cannot_be_refused() {
    let log = Log::default();
    let (space, _subscriptions) = refuser_at(0, &log, 1);
    change(&space, &log);
    assert_eq!(log.take(), "N+ A+ B+ * A- B-");
}

#[test]
fn a_refusal_inside_an_open_change_undoes_only_itself() {
    let log = Log::default();
    let (space, _subscriptions) = refuser_at(2, &log, 1);
    space.invalidate(crate::witness::PAGES, mmu_notifier::Event::Unmap, || {
        assert_eq!(try_change(&space, &log), Err(WouldBlock));
    });
    assert_eq!(log.take(), "A+ B+ N+ A+ B+ N! A- B- A- B-");
}
