use std::sync::{Arc, Mutex};

use mmu_notifier::{AddressSpace, Blocking, Caller, Change, Event, OpenChange, Subscription};

use crate::witness::{Log, PAGES, Task, Witness, change, end_abandoned};

const CHANGE: Change = Change::new(PAGES, Event::Unmap, Blocking::Allowed);

/// Starts a change here, and ends it in another thread.
fn hand_over(space: &AddressSpace) {
    let open = space.start(&space.caller(), CHANGE).unwrap();
    let ending = space.clone();
    assert!(Task::new(move || ending.end(&ending.caller(), open)).finish());
}

#[test]
fn an_invalidation_is_ended_by_the_thread_that_drops_it() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (here, inner) = (std::thread::current().id(), log.clone());
    let say = move |_: &Change| inner.add(if std::thread::current().id() == here { "here" } else { "there" });
    let _a = space.subscribe(Witness::new("A", &log).on_end(say));
    let bracket = space.begin(CHANGE).unwrap();
    std::thread::scope(|scope| _ = scope.spawn(|| drop(bracket)));
    assert_eq!(log.take(), "A+ A- there");
}

/// Says when it is dropped.
struct Captured(Log);

impl Drop for Captured {
    fn drop(&mut self) {
        self.0.add("freed");
    }
}

#[test]
fn who_ends_a_change_of_another_thread_may_unsubscribe_in_that_callback() {
    let log = Log::default();
    let space = AddressSpace::new();
    let own = Arc::new(Mutex::new(None::<Subscription>));
    let (take, inner, captured) = (own.clone(), log.clone(), Captured(log.clone()));
    let witness = Witness::new("A", &log).on_end(move |_| {
        let (inner, _in_use) = (inner.clone(), &captured);
        drop(take.lock().unwrap().take());
        inner.add("left");
    });
    *own.lock().unwrap() = Some(space.subscribe(witness));
    hand_over(&space);
    assert_eq!(log.take(), "A+ A- A~ left", "and what the callback has captured is still there");
    change(&space, &log);
    assert!(space.synchronize());
    assert_eq!(log.take(), "* freed");
}

#[test]
fn a_change_made_in_the_end_of_a_change_of_another_thread_is_not_told_to_that_subscriber() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (inner, inner_log) = (space.clone(), log.clone());
    let _b = space.subscribe(Witness::new("B", &log));
    let _a = space.subscribe(Witness::new("A", &log).on_end(move |_| change(&inner, &inner_log)));
    hand_over(&space);
    assert_eq!(log.take(), "A+ B+ A- B+ * B- B-");
}

#[test]
fn a_change_made_in_a_callback_can_be_handed_over_too() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (inner, left) = (space.clone(), Arc::new(Mutex::new(Vec::<OpenChange>::new())));
    let keep = left.clone();
    let _b = space.subscribe(Witness::new("B", &log));
    let witness = Witness::new("A", &log).on_start(move |_| {
        for _ in 0..6 {
            keep.lock().unwrap().push(inner.start(&inner.caller(), CHANGE).unwrap());
        }
    });
    let _a = space.subscribe(witness);
    change(&space, &log);
    assert_eq!(log.take(), "A+ B+ B+ B+ B+ B+ B+ B+ * A- B-");
    let end_all = {
        let space = space.clone();
        move || {
            let caller = space.caller();
            left.lock().unwrap().drain(..).for_each(|open| assert!(space.end(&caller, open)));
        }
    };
    Task::new(end_all.clone()).finish();
    assert_eq!(log.take(), "B- B- B- B- B- B-", "whom the start skipped the end skips");
    for _ in 0..3 {
        change(&space, &log);
        let told = log.take();
        assert_eq!(told.matches("B+").count(), 7, "{told}");
        end_all();
        log.take();
    }
}

#[test]
fn a_change_is_no_change_of_another_space() {
    for names in [&["A"][..], &[]] {
        let log = Log::default();
        let (one, _kept) = crate::witness::space_with(&log, names);
        let (two, _kept) = crate::witness::space_with(&log, names);
        let caller = one.caller();
        let (of_one, of_two) = (one.start(&caller, CHANGE).unwrap(), two.start(&caller, CHANGE).unwrap());
        assert_ne!(of_one, of_two);
        assert!(!two.end(&caller, of_one));
        assert!(two.end(&caller, of_two));
        assert_eq!(end_abandoned(&one, &caller, |_| true).changes, 1, "it is still open");
    }
}

/// Who was given a change has it open at the place of his stack that he was given it for, wherever his home is.
#[test]
#[expect(unsafe_code, reason = "a thread that nobody is")]
fn a_change_that_was_given_to_a_thread_is_one_of_its_own() {
    let log = Log::default();
    let (space, _kept) = crate::witness::space_with(&log, &["A"]);
    let here = space.caller();
    for home in 0..4 {
        // SAFETY: nobody else has that number, and nobody is in its name.
        let other = unsafe { Caller::new((1 << 40) + home as u64, here.home() + home) };
        for is_ended_here in [false, true] {
            let open = space.start(&here, CHANGE).unwrap();
            assert!(space.hand_to(&open, &other.with_stack(0x7000)));
            assert!(space.may_have_open(&other));
            assert_eq!(end_abandoned(&space, &here, |_| true).changes, 0, "it is not his any more");
            assert_eq!(end_abandoned(&space, &other, |stack| stack != 0x7000).changes, 0);
            assert_eq!(log.take(), "A+");
            if is_ended_here {
                assert!(space.end(&here, open));
            } else {
                assert_eq!(end_abandoned(&space, &other, |stack| stack == 0x7000).changes, 1);
                assert!(!space.hand_to(&open, &other), "it is over");
                assert!(!space.end(&here, open));
            }
            assert_eq!(log.take(), "A-");
            assert!(!space.may_have_open(&other) && !space.may_have_open(&here));
        }
    }
}
