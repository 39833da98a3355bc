use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use mmu_notifier::{AddressSpace, Blocking, Change, Event, Options, Subscriber, Subscription};

use crate::witness::{Elsewhere, Log, PAGES, Task, Witness, blocking, change, forked, meeting, space_with};

const CHANGE: Change = Change::new(PAGES, Event::ProtectionPage, Blocking::Allowed);

#[test]
fn who_unsubscribes_is_released_once_and_told_nothing_more() {
    let log = Log::default();
    let (space, mut subscriptions) = space_with(&log, &["A", "B"]);
    drop(subscriptions.remove(0));
    assert_eq!(log.take(), "A~");
    change(&space, &log);
    assert_eq!(log.take(), "B+ * B-");
    space.release();
    assert_eq!(log.take(), "B~");
    change(&space, &log);
    drop(subscriptions);
    assert_eq!(log.take(), "*", "released already");
}

#[test]
fn who_leaves_in_the_middle_of_a_change_gets_no_end() {
    let log = Log::default();
    let (space, mut subscriptions) = space_with(&log, &["A", "B"]);
    space.invalidate(PAGES, Event::Unmap, || {
        drop(subscriptions.remove(1));
        log.add("*");
    });
    assert_eq!(log.take(), "B+ A+ B~ * A-");
}

#[test]
fn who_comes_in_the_middle_of_a_change_gets_no_end_either() {
    let log = Log::default();
    let (space, _subscriptions) = space_with(&log, &["A"]);
    let mut newcomer = None;
    space.invalidate(PAGES, Event::Unmap, || newcomer = Some(space.subscribe(Witness::new("B", &log))));
    assert_eq!(log.take(), "A+ A-", "both or neither");
    change(&space, &log);
    assert_eq!(log.take(), "B+ A+ * B- A-");
}

#[test]
fn subscribing_waits_for_changes_of_others_that_do_not_know_one() {
    let log = Log::default();
    let space = AddressSpace::new();
    let open = Elsewhere::open(&space, blocking(0x1000, 0x3000));
    let (other, other_log) = (space.clone(), log.clone());
    let subscribing = Task::new(move || other.subscribe(Witness::new("A", &other_log)));
    assert!(subscribing.waits(), "a change is still open");
    // New changes know the newcomer; nobody waits for them.
    change(&space, &log);
    assert_eq!(log.take(), "A+ * A-");
    open.close();
    drop(subscribing.finish());
    assert_eq!(log.take(), "A~", "and nothing of the first");
}

#[test]
fn unsubscribing_waits_for_a_running_callback_and_not_for_an_open_change() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (inside, callback) = meeting();
    let (finish, middle) = meeting();
    let subscription = space.subscribe(Witness::new("A", &log).on_start(move |_| inside.stop()));
    let changing = space.clone();
    let changing = Task::new(move || changing.invalidate(PAGES, Event::Unmap, || finish.stop()));
    callback.await_other();
    let dropping = log.clone();
    let dropping = Task::new(move || {
        drop(subscription);
        dropping.add("dropped");
    });
    assert!(dropping.waits(), "its callback is running");
    callback.let_go();
    // The change itself is still open, and stays so.
    middle.await_other();
    dropping.finish();
    middle.let_go();
    changing.finish();
    assert_eq!(log.take(), "A+ A~ dropped");
}

/// A subscriber whose value says when it is dropped.
struct Noisy(Log);

impl Subscriber for Noisy {
    fn start(&self, _: &Change) {}
    fn end(&self, _: &Change) {}
}

impl Drop for Noisy {
    fn drop(&mut self) {
        self.0.add("value dropped");
    }
}

#[test]
fn the_subscriber_itself_is_dropped_with_the_subscription_also_while_a_change_is_open() {
    let log = Log::default();
    let space = AddressSpace::new();
    let subscription = space.subscribe(Noisy(log.clone()));
    space.invalidate(PAGES, Event::Unmap, || {
        drop(subscription);
        log.add("*");
    });
    assert_eq!(log.take(), "value dropped *");
}

/// Says when the callback that holds it is dropped.
struct Canary(&'static AtomicUsize);

impl Drop for Canary {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[test]
fn a_subscription_may_be_dropped_inside_its_own_callback() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    for in_end in [false, true] {
        DROPPED.store(0, Relaxed);
        let canary = Canary(&DROPPED);
        let log = Log::default();
        let space = AddressSpace::new();
        let own: Arc<Mutex<Option<Subscription>>> = Arc::default();
        let take = own.clone();
        let leave = move |_: &Change| {
            let _held = &canary;
            drop(take.lock().unwrap().take());
            assert_eq!(DROPPED.load(Relaxed), 0, "dropped while it runs");
        };
        let witness = Witness::new("A", &log);
        let witness = if in_end { witness.on_end(leave) } else { witness.on_start(leave) };
        *own.lock().unwrap() = Some(space.subscribe(witness));
        change(&space, &log);
        assert_eq!(log.take(), if in_end { "A+ * A- A~" } else { "A+ A~ *" }, "no further callback");
        change(&space, &log);
        assert_eq!(log.take(), "*");
        drop(space.subscribe(Witness::new("B", &log)));
        assert_eq!(DROPPED.load(Relaxed), 1, "dropped later, by somebody else's coming and going");
    }
}

#[test]
fn a_subscription_may_be_dropped_inside_the_callback_of_another() {
    let log = Log::default();
    let space = AddressSpace::new();
    let other = Arc::new(Mutex::new(Some(space.subscribe(Noisy(log.clone())))));
    let witness = Witness::new("A", &log).on_start(move |_| drop(other.lock().unwrap().take()));
    let _subscription = space.subscribe(witness);
    change(&space, &log);
    assert_eq!(log.take(), "A+ value dropped * A-");
}

#[test]
fn one_may_subscribe_inside_a_callback() {
    let log = Log::default();
    let space = AddressSpace::new();
    let newcomers: Arc<Mutex<Vec<Subscription>>> = Arc::default();
    let (inner, keep, inner_log) = (space.clone(), newcomers.clone(), log.clone());
    let witness = Witness::new("A", &log).on_start(move |_| {
        let mut kept = keep.lock().unwrap();
        if kept.is_empty() {
            kept.push(inner.subscribe(Witness::new("B", &inner_log)));
        }
    });
    let _subscription = space.subscribe(witness);
    change(&space, &log);
    assert_eq!(log.take(), "A+ * A-");
    change(&space, &log);
    assert_eq!(log.take(), "B+ A+ * B- A-");
}

#[test]
fn a_forked_child_starts_empty() {
    let log = Log::default();
    let (space, subscriptions) = space_with(&log, &["A"]);
    let caller = space.caller();
    let open = space.start(&caller, CHANGE).unwrap();
    assert_eq!(log.take(), "A+");
    forked(&space);
    assert!(!space.end(&caller, open), "the change was the parent's");
    change(&space, &log);
    assert_eq!(log.take(), "*", "the subscribers are the parent's");
    let _own = space.subscribe(Witness::new("B", &log));
    change(&space, &log);
    assert_eq!(log.take(), "B+ * B-");
    std::mem::forget(subscriptions);
}

#[test]
fn what_the_parent_had_begun_is_not_ended_in_the_child() {
    let log = Log::default();
    let (space, _parents) = space_with(&log, &["A", "B"]);
    let _parents_change = space.start(&space.caller(), CHANGE).unwrap();
    forked(&space);
    log.take();
    let _own = [
        space.subscribe(Witness::new("C", &log)),
        space.subscribe(Witness::new("D", &log).on_start(|_| panic!("no"))),
    ];
    assert!(catch_unwind(AssertUnwindSafe(|| change(&space, &log))).is_err());
    assert_eq!(log.take(), "D+", "who panicked has not started, and who was not asked neither");
}

#[test]
fn what_the_parent_had_cut_short_is_whole_in_the_child() {
    let log = Log::default();
    let space = timed();
    let _parents_busy = space.subscribe(Witness::new("B", &log).on_start(|_| panic!("no")));
    let (child, inner) = (space.clone(), log.clone());
    let _parents = space.subscribe(Witness::new("A", &log).on_end(move |_| {
        // As if another thread were here while the process is forked.
        forked(&child);
        inner.take();
        let _own = [child.subscribe(Witness::new("C", &inner)), child.subscribe(Witness::new("D", &inner))];
        change(&child, &inner);
    }));
    assert!(catch_unwind(AssertUnwindSafe(|| change(&space, &log))).is_err());
    assert_eq!(log.take(), "D+ C+ * D- C- C~ D~");
}

/// A space in which every callback is timed.
fn timed() -> AddressSpace {
    AddressSpace::with(Options { time_every: 1, ..Options::default() })
}

#[test]
fn the_parents_subscriptions_can_be_dropped_in_the_child() {
    let log = Log::default();
    let (space, subscriptions) = space_with(&log, &["A", "B"]);
    forked(&space);
    drop(subscriptions);
    change(&space, &log);
    assert_eq!(log.take(), "*", "not even by release: they are the parent's");
}

#[test]
fn storms_of_coming_and_going_leave_every_balance_at_zero() {
    let space = AddressSpace::new();
    let stop = AtomicBool::new(false);
    let rounds = if cfg!(miri) { 10 } else { 3000 };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    space.invalidate(PAGES, Event::Unmap, || ());
                    let _ = space.try_invalidate(PAGES, Event::Clear, || ());
                }
            });
        }
        let going: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..rounds {
                        let once = Arc::new(Once::default());
                        drop(space.subscribe(once.clone()));
                        let balance = *once.0.lock().unwrap();
                        assert!((0..=2).contains(&balance), "{balance}: only open changes have no end");
                        once.0.lock().unwrap().clone_from(&i64::MIN);
                    }
                })
            })
            .collect();
        going.into_iter().for_each(|thread| thread.join().unwrap());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// Counts; after it is unsubscribed nobody may call it.
#[derive(Default)]
struct Once(Mutex<i64>);

impl Once {
    fn add(&self, change: i64) {
        let mut balance = self.0.lock().unwrap();
        assert!(*balance > i64::MIN / 2, "called after it was unsubscribed");
        *balance += change;
    }
}

impl Subscriber for Once {
    fn start(&self, _: &Change) {
        self.add(1);
    }

    fn end(&self, _: &Change) {
        self.add(-1);
    }
}

/// Dropped with the subscriber.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

impl Subscriber for Dropped {
    fn start(&self, _: &Change) {}
    fn end(&self, _: &Change) {}
}

/// Each of them looks at what is left, and takes it in hand for that.
#[test]
fn many_who_synchronize_do_not_hide_from_each_other_what_is_left() {
    for _ in 0..20 {
        let space = AddressSpace::new();
        let dropped = Arc::new(AtomicBool::new(false));
        let share = space.get(|| Ok::<_, std::convert::Infallible>(Dropped(dropped.clone()))).unwrap();
        let bracket = space.begin(Change::new(PAGES, Event::Clear, Blocking::Allowed)).unwrap();
        drop(share);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let all = space.synchronize();
                    assert!(!all || dropped.load(Relaxed), "it is not over");
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            bracket.end();
        });
        assert!(dropped.load(Relaxed));
    }
}

#[test]
fn a_change_in_which_the_process_was_forked_is_over_in_the_child() {
    for parents in [&["P"][..], &[]] {
        let log = Log::default();
        let (space, _parents) = space_with(&log, parents);
        space.invalidate(PAGES, Event::Clear, || ());
        log.take();
        let inner = space.clone();
        let (child, open) = space.invalidate(PAGES, Event::ProtectionPage, || {
            forked(&inner);
            let child = inner.subscribe(Witness::new("C", &log));
            let caller = inner.caller();
            (child, inner.start(&caller, Change::new(PAGES, Event::Clear, Blocking::Allowed)).unwrap())
        });
        assert!(space.end(&space.caller(), open), "it is another change");
        assert_eq!(log.take(), if parents.is_empty() { "C+ C-" } else { "P+ C+ C-" });
        drop(child);
    }
}
