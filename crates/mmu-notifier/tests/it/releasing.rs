use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use mmu_notifier::{
    AddressSpace, Aging, Blocking, Change, Event, Range, Released, SecondaryTlb, Subscriber, Subscription,
    Ticketed, WouldBlock,
};

use crate::witness::{
    Busy, Elsewhere, Log, Mirror, PAGES, Task, Witness, blocking, change, forked, meeting, space_with,
    try_change,
};

/// Is released under a name.
struct Named(&'static str, Log);

impl Aging for Named {
    fn clear_flush_young(&self, _: Range) -> bool {
        true
    }
    fn clear_young(&self, _: Range) -> bool {
        true
    }
    fn test_young(&self, _: usize) -> bool {
        true
    }
    fn release(&self) {
        self.1.add(self.0);
    }
}

impl SecondaryTlb for Named {
    fn flush(&self, _: Range) {
        self.1.add("flush");
    }
    fn release(&self) {
        self.1.add(self.0);
    }
}

impl Ticketed for Named {
    type Ticket = ();
    fn start(&self, _: &Change) {
        self.1.add("start");
    }
    fn try_start(&self, _: &Change) -> Result<(), WouldBlock> {
        Ok(())
    }
    fn end(&self, _: &Change, (): ()) {
        self.1.add("end");
    }
    fn release(&self) {
        self.1.add(self.0);
    }
}

#[test]
fn every_kind_is_released_once_intervals_first_and_then_asked_nothing_more() {
    let log = Log::default();
    let space = AddressSpace::new();
    let named = |name| Named(name, log.clone());
    let all = (
        space.subscribe_tlb(named("tlb~")),
        space.subscribe_aging(named("aging~")),
        space.subscribe_ticketed(named("ticketed~")),
        space.subscribe_refuser(Busy::new("N", &log, 1)),
        space.subscribe(Witness::new("A", &log)),
        space.insert(PAGES, Mirror::new("I", &log)).unwrap(),
    );
    space.release();
    assert_eq!(log.take(), "I+ A~ N~ ticketed~ aging~ tlb~");
    assert!(space.is_released());
    assert!(!space.test_young(0x1000) && !space.clear_young(PAGES) && !space.clear_flush_young(PAGES));
    space.flush(PAGES);
    assert_eq!(try_change(&space, &log), Ok(()));
    assert_eq!(log.take(), "I? *");
    drop(all);
    assert_eq!(log.take(), "Ix", "released already");
}

#[test]
fn intervals_hear_of_the_release_as_a_change_of_everything_and_then_of_the_unmapping() {
    let log = Log::default();
    let space = AddressSpace::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let keep = told.clone();
    let mirror = Mirror::new("I", &log).on_start(move |change| keep.lock().unwrap().push(*change)).two_pass();
    let interval = space.insert(PAGES, mirror).unwrap();
    let ticket = interval.read();
    space.release();
    let everything = Change::new(Range::EVERYTHING, Event::Release, Blocking::Allowed);
    assert_eq!(told.lock().unwrap().drain(..).collect::<Vec<_>>(), [everything]);
    assert!(interval.is_stale(&ticket));
    let ticket = interval.read();
    assert!(!interval.is_stale(&ticket), "the release is over");
    change(&space, &log);
    assert_eq!(told.lock().unwrap().len(), 1);
    assert_eq!(log.take(), "I+ I: I+ I: *");
}

#[test]
fn a_release_cannot_be_refused() {
    let log = Log::default();
    let space = AddressSpace::new();
    let refuses = Arc::new(AtomicBool::new(true));
    let _one = space.insert(PAGES, Mirror::new("I", &log).refusing(&refuses)).unwrap();
    let _two = space.insert(PAGES, Mirror::new("J", &log)).unwrap();
    space.release();
    assert_eq!(log.take(), "I+ J+");
}

#[test]
fn a_change_that_is_open_when_the_space_is_released_has_no_end() {
    let log = Log::default();
    let (space, _subscriptions) = space_with(&log, &["A"]);
    space.invalidate(PAGES, Event::Unmap, || {
        space.release();
        log.add("*");
    });
    assert_eq!(log.take(), "A+ A~ *");
}

#[test]
fn the_release_of_intervals_does_not_end_somebody_elses_open_change() {
    let space = AddressSpace::new();
    let interval = space.insert(PAGES, Mirror::new("I", &Log::default())).unwrap();
    let open = Elsewhere::open(&space, blocking(0x1000, 0x2000));
    space.release();
    let reader = Task::new(move || {
        let ticket = interval.read();
        interval.is_stale(&ticket)
    });
    assert!(reader.waits(), "the change is still open");
    open.close();
    reader.finish();
}

#[test]
fn nothing_can_be_subscribed_or_inserted_afterwards() {
    let log = Log::default();
    let space = AddressSpace::new();
    space.release();
    assert_eq!(space.insert(PAGES, Mirror::new("I", &log)).map(drop), Err(Released));
    assert_eq!(log.take(), "Ix", "and what was to be is dropped");
    let panics = |run: &dyn Fn()| catch_unwind(AssertUnwindSafe(run)).is_err();
    assert!(panics(&|| drop(space.subscribe(Witness::new("A", &log)))));
    assert!(panics(&|| drop(space.subscribe_refuser(Busy::new("N", &log, 1)))));
    assert!(panics(&|| drop(space.subscribe_ticketed(Named("", log.clone())))));
    assert!(panics(&|| drop(space.subscribe_aging(Named("", log.clone())))));
    assert!(panics(&|| drop(space.subscribe_tlb(Named("", log.clone())))));
    assert!(panics(&|| _ = space.get(|| Ok::<_, ()>(Witness::new("A", &log)))));
    change(&space, &log);
    assert_eq!(log.take(), "*", "and is told nothing");
}

#[test]
fn a_forked_child_of_a_released_space_is_a_new_one() {
    let log = Log::default();
    let space = AddressSpace::new();
    space.release();
    forked(&space);
    assert!(!space.is_released());
    let _interval = space.insert(PAGES, Mirror::new("I", &log)).unwrap();
    let _subscription = space.subscribe(Witness::new("A", &log));
    change(&space, &log);
    assert_eq!(log.take(), "I+ A+ * A-");
}

#[test]
fn a_second_release_tells_intervals_again_and_subscribers_nothing() {
    let log = Log::default();
    let (space, _subscriptions) = space_with(&log, &["A"]);
    let _interval = space.insert(PAGES, Mirror::new("I", &log)).unwrap();
    space.release();
    space.release_now();
    assert_eq!(log.take(), "I+ A~ I+");
}

#[test]
fn a_subscription_may_be_dropped_inside_its_own_release() {
    let log = Log::default();
    let space = AddressSpace::new();
    struct Leaving(Arc<Mutex<Option<Subscription>>>, Log);
    impl Subscriber for Leaving {
        fn start(&self, _: &Change) {}
        fn end(&self, _: &Change) {}
        fn release(&self) {
            self.1.add("~");
            drop(self.0.lock().unwrap().take());
        }
    }
    impl Drop for Leaving {
        fn drop(&mut self) {
            self.1.add("x");
        }
    }
    let own = Arc::new(Mutex::new(None));
    *own.lock().unwrap() = Some(space.subscribe(Leaving(own.clone(), log.clone())));
    space.release();
    assert_eq!(log.take(), "~", "once, and the value is still in use");
    assert!(space.synchronize());
    assert_eq!(log.take(), "x");
}

#[test]
fn a_panic_in_a_release_keeps_it_from_nobody() {
    let log = Log::default();
    let space = AddressSpace::new();
    struct Bad(Log);
    impl Subscriber for Bad {
        fn start(&self, _: &Change) {}
        fn end(&self, _: &Change) {}
        fn release(&self) {
            self.0.add("bad");
            panic!("no release");
        }
    }
    let _a = space.subscribe(Witness::new("A", &log));
    let _bad = space.subscribe(Bad(log.clone()));
    let _i = space.insert(PAGES, Mirror::new("I", &log).on_start(|_| panic!("no interval"))).unwrap();
    let _j = space.insert(PAGES, Mirror::new("J", &log).two_pass()).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| space.release())).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"no interval"), "the first of two");
    assert_eq!(log.take(), "I+ J+ J: bad A~");
    space.release_now();
    assert_eq!(log.take(), "I+ J+ J:", "and no panic");
}

/// Its drop does something.
struct Dropping<F: FnMut() + Send + Sync>(F);

impl<F: FnMut() + Send + Sync> Subscriber for Dropping<F> {
    fn start(&self, _: &Change) {}
    fn end(&self, _: &Change) {}
}

impl<F: FnMut() + Send + Sync> Drop for Dropping<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn a_subscriber_whose_drop_panics_keeps_no_release_waiting() {
    let space = AddressSpace::new();
    let subscription = space.subscribe(Dropping(|| panic!("no drop")));
    assert!(catch_unwind(AssertUnwindSafe(|| drop(subscription))).is_err());
    let releasing = space.clone();
    Task::new(move || releasing.release()).finish();
}

#[test]
fn a_subscriber_whose_drop_releases_the_space_does_not_wait_for_itself() {
    let space = AddressSpace::new();
    let released = space.clone();
    let subscription = space.subscribe(Dropping(move || released.release()));
    Task::new(move || drop(subscription)).finish();
    assert!(space.is_released());
}

#[test]
fn a_release_waits_for_one_that_an_unsubscribe_has_begun() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (meeting, gate) = meeting();
    struct Slow(crate::witness::Meeting, Log);
    impl Subscriber for Slow {
        fn start(&self, _: &Change) {}
        fn end(&self, _: &Change) {}
        fn release(&self) {
            self.0.stop();
            self.1.add("released");
        }
    }
    let subscription = space.subscribe(Slow(meeting, log.clone()));
    let leaving = Task::new(move || drop(subscription));
    gate.await_other();
    let (releasing, releasing_log) = (space.clone(), log.clone());
    let releasing = Task::new(move || {
        releasing.release();
        releasing_log.add("over");
    });
    assert!(releasing.waits());
    space.release_now();
    gate.let_go();
    releasing.finish();
    leaving.finish();
    assert_eq!(log.take(), "released over");
}

#[test]
fn a_release_races_with_changes_and_with_coming_and_going() {
    let rounds = if cfg!(miri) { 3 } else { 300 };
    for _ in 0..rounds {
        let space = AddressSpace::new();
        let released = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (space, released) = (&space, &released);
            scope.spawn(|| {
                while !released.load(Ordering::SeqCst) {
                    space.invalidate(PAGES, Event::Unmap, || ());
                }
            });
            scope.spawn(|| {
                let log = Log::default();
                loop {
                    let came = catch_unwind(AssertUnwindSafe(|| space.subscribe(Witness::new("A", &log))));
                    let Ok(came) = came else { break };
                    let interval = space.insert(PAGES, Mirror::new("I", &log));
                    drop(came);
                    let told = log.take();
                    assert_eq!(told.matches('~').count(), 1, "{told}");
                    assert!(interval.is_ok() || space.is_released());
                }
                let told = log.take();
                assert!(told.matches('~').count() <= 1, "{told}");
            });
            scope.spawn(|| {
                std::thread::yield_now();
                space.release();
                released.store(true, Ordering::SeqCst);
            });
        });
    }
}
