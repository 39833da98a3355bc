use std::sync::Arc;
use std::sync::mpsc::channel;

use mmu_notifier::{AddressSpace, Blocking, Change, Event, OpenChange, Range, WouldBlock};

use crate::witness::{Log, PAGES, Witness, change, end_abandoned, space_with, try_change};

#[test]
fn all_are_told_before_and_after_newest_first() {
    let log = Log::default();
    let (space, _subscriptions) = space_with(&log, &["A", "B", "C"]);
    change(&space, &log);
    assert_eq!(log.take(), "C+ B+ A+ * C- B- A-");
    assert_eq!(try_change(&space, &log), Ok(()));
    assert_eq!(log.take(), "C+ B+ A+ * C- B- A-");
}

#[test]
fn nobody_need_be_there() {
    let log = Log::default();
    let space = AddressSpace::new();
    change(&space, &log);
    assert_eq!(try_change(&space, &log), Ok(()));
    assert_eq!(log.take(), "* *");
}

#[test]
fn start_and_end_carry_the_same_change() {
    let log = Log::default();
    let space = AddressSpace::new();
    let say = |log: Log| move |change: &Change| log.add(&format!("{change:?}"));
    let witness = Witness::new("A", &log).on_start(say(log.clone())).on_end(say(log.clone()));
    let _subscription = space.subscribe(witness);
    for event in Event::ALL {
        let _ = space.try_invalidate(PAGES, event, || ());
        let told = format!("{:?}", Change::new(PAGES, event, Blocking::Forbidden));
        assert_eq!(log.take(), format!("A+ {told} A- {told}"));
        space.invalidate(Range::EVERYTHING, event, || ());
        let told = format!("{:?}", Change::new(Range::EVERYTHING, event, Blocking::Allowed));
        assert_eq!(log.take(), format!("A+ {told} A- {told}"));
    }
}

#[test]
fn nested_and_overlapping_changes_are_pairs_of_their_own() {
    let log = Log::default();
    let (space, _subscriptions) = space_with(&log, &["A"]);
    space.invalidate(PAGES, Event::Unmap, || change(&space, &log));
    assert_eq!(log.take(), "A+ A+ * A- A-");

    let caller = space.caller();
    let start = || space.start(&caller, Change::new(PAGES, Event::Clear, Blocking::Allowed)).unwrap();
    let (one, two, three) = (start(), start(), start());
    assert!(space.end(&caller, two) && space.end(&caller, one) && space.end(&caller, three), "in any order");
    assert_eq!(log.take(), "A+ A+ A+ A- A- A-");
}

#[test]
fn a_change_is_ended_once() {
    for names in [&["A"][..], &[]] {
        let log = Log::default();
        let (space, _subscriptions) = space_with(&log, names);
        let caller = space.caller();
        let open = || space.start(&caller, Change::new(PAGES, Event::Clear, Blocking::Forbidden)).unwrap();
        let first = open();
        assert_eq!(end_abandoned(&space, &caller, |_| true).changes, 1);
        let again = open();
        assert!(!space.end(&caller, first), "the place is used again, the change is another");
        assert!(space.end(&caller, again));
        assert_eq!(log.take(), if names.is_empty() { "" } else { "A+ A- A+ A-" });
    }
}

#[test]
fn a_change_can_be_ended_by_another_thread() {
    let log = Log::default();
    let (space, _subscriptions) = space_with(&log, &["A"]);
    let open = space.start(&space.caller(), Change::new(PAGES, Event::Clear, Blocking::Allowed)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(space.end(&space.caller(), open)));
    });
    assert_eq!(log.take(), "A+ A-");
}

#[test]
fn a_callback_may_change_the_address_space_and_is_not_told_of_that_itself() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _other = space.subscribe(Witness::new("B", &log));
    let inner = (space.clone(), log.clone());
    let outer = (space.clone(), log.clone());
    let witness = Witness::new("A", &log)
        .on_start(move |_| change(&inner.0, &inner.1))
        .on_end(move |_| _ = try_change(&outer.0, &outer.1));
    let _subscription = space.subscribe(witness);
    change(&space, &log);
    assert_eq!(log.take(), "A+ B+ * B- B+ * A- B+ * B- B-");
}

#[test]
fn two_whose_callbacks_change_the_address_space_come_to_an_end() {
    let log = Log::default();
    let space = AddressSpace::new();
    let changing = |name| {
        let (space, log) = (space.clone(), log.clone());
        Witness::new(name, &log.clone()).on_start(move |_| change(&space, &log))
    };
    let _a = space.subscribe(changing("A"));
    let _b = space.subscribe(changing("B"));
    change(&space, &log);
    assert_eq!(log.take(), "B+ A+ * * A- A+ B+ * * B- * B- A-");
}

#[test]
fn a_full_record_refuses_who_must_not_wait_and_lets_others_wait() {
    let space = AddressSpace::new();
    let caller = space.caller();
    let start = |blocking| space.start(&caller, Change::new(PAGES, Event::Clear, blocking));
    let open: Vec<OpenChange> = std::iter::from_fn(|| start(Blocking::Forbidden).ok()).collect();
    assert_eq!(open.len(), if cfg!(miri) { 16 } else { 512 });
    assert_eq!(start(Blocking::Forbidden), Err(WouldBlock));
    let (done, waits) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            space.invalidate(PAGES, Event::Clear, || ());
            done.send(()).unwrap();
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(waits.try_recv().is_err(), "it cannot have had a place");
        for open in open {
            assert!(space.end(&caller, open));
        }
        waits.recv().unwrap();
    });
}

#[test]
fn threads_do_not_get_into_each_others_way() {
    let space = AddressSpace::new();
    let balance = Arc::new(std::sync::atomic::AtomicI64::new(0));
    let (plus, minus) = (balance.clone(), balance.clone());
    let log = Log::default();
    let count = Witness::new("", &log)
        .on_start(move |_| _ = plus.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
        .on_end(move |_| _ = minus.fetch_sub(1, std::sync::atomic::Ordering::SeqCst));
    let _subscription = space.subscribe(count);
    let rounds = if cfg!(miri) { 20 } else { 2000 };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..rounds).for_each(|_| space.invalidate(PAGES, Event::Clear, || ())));
        }
    });
    assert_eq!(balance.load(std::sync::atomic::Ordering::SeqCst), 0);
}
