use std::panic::{AssertUnwindSafe, catch_unwind};

use mmu_notifier::{AddressSpace, Event, Options};

use crate::witness::{Busy, Log, PAGES, Witness, change, try_change};

/// The message of the panic that `run` ends with.
fn message(run: impl FnOnce()) -> &'static str {
    let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("it panics");
    panic.downcast_ref::<&'static str>().copied().unwrap()
}

fn three(log: &Log, middle: Witness) -> (AddressSpace, Vec<mmu_notifier::Subscription>) {
    let space = AddressSpace::new();
    let subscriptions = vec![
        space.subscribe(Witness::new("C", log)),
        space.subscribe(middle),
        space.subscribe(Witness::new("A", log)),
    ];
    (space, subscriptions)
}

#[test]
fn a_panic_in_a_start_ends_those_who_started_and_reaches_the_caller() {
    let log = Log::default();
    let (space, _subscriptions) = three(&log, Witness::new("B", &log).on_start(|_| panic!("no start")));
    assert_eq!(message(|| change(&space, &log)), "no start");
    assert_eq!(log.take(), "A+ B+ A-");
    assert_eq!(message(|| _ = try_change(&space, &log)), "no start");
    assert_eq!(log.take(), "A+ B+ A-");
}

#[test]
fn a_panic_in_an_end_keeps_no_end_from_the_others() {
    let log = Log::default();
    let (space, _subscriptions) = three(&log, Witness::new("B", &log).on_end(|_| panic!("no end")));
    assert_eq!(message(|| change(&space, &log)), "no end");
    assert_eq!(log.take(), "A+ B+ C+ * A- B- C-");
}

#[test]
fn of_two_panics_the_first_is_reported() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _third = space.subscribe(Witness::new("C", &log));
    let _second = space.subscribe(Witness::new("B", &log).on_end(|_| panic!("second")));
    let _first = space.subscribe(Witness::new("A", &log).on_end(|_| panic!("first")));
    assert_eq!(message(|| change(&space, &log)), "first");
    assert_eq!(log.take(), "A+ B+ C+ * A- B- C-");
}

#[test]
fn a_panic_in_the_change_is_followed_by_the_ends() {
    let log = Log::default();
    let (space, _subscriptions) = three(&log, Witness::new("B", &log));
    assert_eq!(message(|| space.invalidate(PAGES, Event::Unmap, || panic!("no change"))), "no change");
    assert_eq!(log.take(), "A+ B+ C+ A- B- C-");
    assert_eq!(message(|| _ = space.try_invalidate(PAGES, Event::Unmap, || panic!("nor this"))), "nor this");
    assert_eq!(log.take(), "A+ B+ C+ A- B- C-");
}

#[test]
fn a_panic_and_a_refusal_together_leave_nothing_open() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _b = space.subscribe(Witness::new("B", &log).on_start(|_| panic!("no start")));
    let _n = space.subscribe_refuser(Busy::new("N", &log, 1));
    let _a = space.subscribe(Witness::new("A", &log));
    assert_eq!(message(|| _ = try_change(&space, &log)), "no start");
    assert_eq!(log.take(), "A+ N! B+ A-");
}

#[test]
fn after_a_panic_the_space_works_on() {
    let log = Log::default();
    let (space, subscriptions) = three(&log, Witness::new("B", &log).on_start(|_| panic!("no start")));
    for _ in 0..if cfg!(miri) { 50 } else { 3000 } {
        assert_eq!(
            message(|| change(&space, &log)),
            "no start",
            "a place on record that is not given back runs out"
        );
    }
    log.take();
    drop(subscriptions);
    assert_eq!(log.take(), "C~ B~ A~");
}

#[test]
fn after_a_start_was_cut_short_the_next_change_is_whole() {
    let log = Log::default();
    // Each change the long way, which looks how many have started.
    let space = AddressSpace::with(Options { time_every: 1, ..Options::default() });
    let _b = space.subscribe(Witness::new("B", &log));
    let panics = space.subscribe(Witness::new("P", &log).on_start(|_| panic!("no start")));
    let _a = space.subscribe(Witness::new("A", &log));
    assert_eq!(message(|| change(&space, &log)), "no start");
    assert_eq!(log.take(), "A+ P+ A-");
    drop(panics);
    log.take();
    change(&space, &log);
    assert_eq!(log.take(), "A+ B+ * A- B-");
}

#[test]
fn a_panic_in_an_end_after_a_panic_in_a_start_keeps_no_end_from_those_who_started() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _d = space.subscribe(Witness::new("D", &log));
    let _c = space.subscribe(Witness::new("C", &log).on_start(|_| panic!("no start")));
    let _b = space.subscribe(Witness::new("B", &log));
    let _a = space.subscribe(Witness::new("A", &log).on_end(|_| panic!("no end")));
    assert_eq!(message(|| change(&space, &log)), "no start");
    assert_eq!(log.take(), "A+ B+ C+ A- B-");
}
