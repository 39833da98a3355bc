use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mmu_notifier::{AddressSpace, Change, Event, Shared, Subscriber, Subscription};

use crate::witness::{Log, Meeting, Mirror, PAGES, Task, Witness, change, meeting, try_change};

/// A subscriber that says when it is dropped, `Sx`; the number tells two of them apart.
struct Gru {
    log: Log,
    on_drop: Box<dyn Fn() + Send + Sync>,
}

impl Gru {
    fn new(log: &Log) -> Gru {
        Gru::dropping(log, || {})
    }

    /// Does this when it is dropped.
    fn dropping(log: &Log, on_drop: impl Fn() + Send + Sync + 'static) -> Gru {
        Gru { log: log.clone(), on_drop: Box::new(on_drop) }
    }
}

impl Subscriber for Gru {
    fn start(&self, _: &Change) {
        self.log.add("S+");
    }
    fn end(&self, _: &Change) {
        self.log.add("S-");
    }
    fn release(&self) {
        self.log.add("S~");
    }
}

impl Drop for Gru {
    fn drop(&mut self) {
        (self.on_drop)();
        self.log.add("Sx");
    }
}

fn get(space: &AddressSpace, log: &Log) -> Shared<Gru> {
    space.get(|| Ok::<_, Infallible>(Gru::new(log))).unwrap()
}

#[test]
fn who_gets_a_second_time_gets_the_same_and_the_last_put_ends_it() {
    let log = Log::default();
    let space = AddressSpace::new();
    let one = get(&space, &log);
    let two = space.get::<Gru, Infallible>(|| unreachable!()).unwrap();
    let three = two.clone();
    assert!(std::ptr::eq(&*one, &*two) && std::ptr::eq(&*two, &*three));
    change(&space, &log);
    assert_eq!(log.take(), "S+ * S-", "subscribed once");
    drop((one, two));
    change(&space, &log);
    assert_eq!(log.take(), "S+ * S-");
    drop(three);
    change(&space, &log);
    assert!(space.synchronize());
    assert_eq!(log.take(), "* Sx", "without a release, once");
}

#[test]
fn who_gets_after_the_last_put_makes_a_new_one_though_the_old_one_is_in_use() {
    let log = Log::default();
    let space = AddressSpace::new();
    let old = get(&space, &log);
    space.invalidate(PAGES, Event::Unmap, || {
        drop(old);
        let mut made = false;
        let new = space.get(|| {
            made = true;
            Ok::<_, Infallible>(Gru::new(&log))
        });
        assert!(made);
        drop(new);
    });
    assert!(space.synchronize());
    assert_eq!(log.take(), "S+ Sx Sx", "the last put came inside the change: no end");
}

#[test]
fn each_type_and_each_space_has_its_own_and_plain_subscribers_are_not_shared() {
    struct Other(Log);
    impl Subscriber for Other {
        fn start(&self, _: &Change) {
            self.0.add("O+");
        }
        fn end(&self, _: &Change) {
            self.0.add("O-");
        }
    }
    let log = Log::default();
    let (space, elsewhere) = (AddressSpace::new(), AddressSpace::new());
    let _plain = space.subscribe(Gru::new(&log));
    let one = get(&space, &log);
    let two = get(&elsewhere, &log);
    let _other = space.get(|| Ok::<_, Infallible>(Other(log.clone()))).unwrap();
    assert!(!std::ptr::eq(&*one, &*two));
    change(&space, &log);
    assert_eq!(log.take(), "O+ S+ S+ * O- S- S-");
}

#[test]
fn what_cannot_be_made_is_an_error_and_changes_nothing() {
    let log = Log::default();
    let space = AddressSpace::new();
    assert_eq!(space.get(|| Err::<Gru, _>("no memory")).map(drop), Err("no memory"));
    assert!(catch_unwind(AssertUnwindSafe(|| _ = space.get::<Gru, ()>(|| panic!("neither")))).is_err());
    assert!(!space.has_subscribers());
    drop(get(&space, &log));
    assert!(space.synchronize());
    assert_eq!(log.take(), "Sx");
}

#[test]
fn one_that_is_got_while_another_is_being_made_is_the_one() {
    let log = Log::default();
    let space = AddressSpace::new();
    let mut inner = None;
    let outer = space
        .get(|| {
            inner = Some(get(&space, &log));
            Ok::<_, Infallible>(Gru::new(&log))
        })
        .unwrap();
    assert!(std::ptr::eq(&*outer, &*inner.unwrap()));
    assert_eq!(log.take(), "Sx", "the one made for nothing");
}

#[test]
fn getting_comes_to_an_end_though_the_one_found_goes_again() {
    let log = Log::default();
    let space = AddressSpace::new();
    // What is made inside of `make` is put when the outer one, for which there is no room, is dropped.
    let inner: Arc<Mutex<Option<Shared<Gru>>>> = Arc::default();
    let (put, keep, log_of_task) = (inner.clone(), inner.clone(), log.clone());
    let got = Task::new(move || {
        let make = || {
            *keep.lock().unwrap() = Some(get(&space, &log_of_task));
            Ok::<_, Infallible>(Gru::dropping(&log_of_task, move || drop(put.lock().unwrap().take())))
        };
        let got = space.get(make).unwrap();
        change(&space, &log_of_task);
        drop(got);
    });
    got.finish();
    assert!(log.take().contains("S+ * S-"), "it is subscribed");
}

#[test]
fn put_inside_a_callback_of_its_own_and_inside_a_release() {
    /// Puts itself.
    struct Putting(Arc<Mutex<Option<Shared<Putting>>>>, Log, bool);
    impl Putting {
        fn put(&self) {
            drop(self.0.lock().unwrap().take());
            self.1.add("put");
        }
    }
    impl Subscriber for Putting {
        fn start(&self, _: &Change) {
            if !self.2 {
                self.put();
            }
        }
        fn end(&self, _: &Change) {
            self.1.add("end");
        }
        fn release(&self) {
            self.put();
        }
    }
    impl Drop for Putting {
        fn drop(&mut self) {
            self.1.add("dropped");
        }
    }
    for in_release in [false, true] {
        let log = Log::default();
        let space = AddressSpace::new();
        let own = Arc::new(Mutex::new(None));
        let make = || Ok::<_, Infallible>(Putting(own.clone(), log.clone(), in_release));
        *own.lock().unwrap() = Some(space.get(make).unwrap());
        if in_release {
            space.release()
        } else {
            change(&space, &log)
        }
        assert!(space.synchronize());
        assert_eq!(log.take(), if in_release { "put dropped" } else { "put * dropped" });
    }
}

#[test]
fn the_last_put_does_not_wait_for_a_running_callback_and_the_subscriber_outlives_it() {
    let log = Log::default();
    let space = AddressSpace::new();
    struct Slow(Meeting, Log);
    impl Subscriber for Slow {
        fn start(&self, _: &Change) {
            self.0.stop();
            self.1.add("started");
        }
        fn end(&self, _: &Change) {}
    }
    impl Drop for Slow {
        fn drop(&mut self) {
            self.1.add("dropped");
        }
    }
    let (meeting, gate) = meeting();
    let share = space.get(|| Ok::<_, Infallible>(Slow(meeting, log.clone()))).unwrap();
    let changing = space.clone();
    let changing = Task::new(move || changing.invalidate(PAGES, Event::Unmap, || ()));
    gate.await_other();
    Task::new(move || drop(share)).finish();
    let waiting = space.clone();
    let synchronizing = Task::new(move || waiting.synchronize());
    assert!(synchronizing.waits());
    gate.let_go();
    assert!(synchronizing.finish());
    changing.finish();
    assert_eq!(log.take(), "started dropped");
}

#[test]
fn synchronize_inside_a_callback_says_that_something_is_left() {
    let log = Log::default();
    let space = AddressSpace::new();
    let own = Arc::new(Mutex::new(None::<Subscription>));
    let (take, inner, inner_log) = (own.clone(), space.clone(), log.clone());
    let witness = Witness::new("A", &log).on_start(move |_| {
        drop(take.lock().unwrap().take());
        inner_log.add(if inner.synchronize() { "all" } else { "left" });
    });
    *own.lock().unwrap() = Some(space.subscribe(witness));
    change(&space, &log);
    assert_eq!(log.take(), "A+ A~ left *");
    assert!(space.synchronize());
    assert!(space.synchronize(), "nothing to do");
}

#[test]
fn synchronize_inside_an_own_change_does_not_wait() {
    let log = Log::default();
    let space = AddressSpace::new();
    space.invalidate(PAGES, Event::Unmap, || assert!(space.synchronize(), "nothing is left"));
    let share = get(&space, &log);
    space.invalidate(PAGES, Event::Unmap, || {
        drop(share);
        assert!(!space.synchronize(), "this change may still walk it");
    });
    assert!(space.synchronize());
    assert_eq!(log.take(), "S+ Sx");
}

#[test]
fn synchronize_does_not_wait_for_changes_that_hold_nothing() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _a = space.subscribe(Witness::new("A", &log));
    let (meeting, gate) = meeting();
    drop(get(&space, &log));
    let changing = space.clone();
    let changing = Task::new(move || changing.invalidate(PAGES, Event::Unmap, || meeting.stop()));
    gate.await_other();
    let other = space.clone();
    assert!(Task::new(move || other.synchronize()).finish());
    gate.let_go();
    changing.finish();
}

#[test]
fn synchronize_does_not_wait_for_a_start_that_walks_no_intervals() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (inside, gate) = meeting();
    let _a = space.subscribe(Witness::new("A", &log).on_start(move |change| {
        if change.event() == Event::Migrate {
            inside.stop();
        }
    }));
    // If something fails, it goes before the subscription, which waits for the callback.
    let gate = gate;
    // Its place in the record has been one of an editor.
    let (edited, has_edited) = meeting();
    let (changing, changing_log) = (space.clone(), log.clone());
    let changing = Task::new(move || {
        drop(changing.insert(PAGES, Mirror::new("I", &changing_log)));
        edited.stop();
        changing.invalidate(PAGES, Event::Migrate, || ());
    });
    has_edited.await_other();
    // The last interval, which the callback that removes it leaves to who synchronizes.
    let own = Arc::new(Mutex::new(None));
    let take = own.clone();
    let mirror = Mirror::new("J", &log).on_start(move |_| drop(take.lock().unwrap().take()));
    *own.lock().unwrap() = Some(space.insert(PAGES, mirror).unwrap());
    change(&space, &log);
    assert_eq!(log.take(), "Ix J+ A+ * A-");
    has_edited.let_go();
    gate.await_other();
    let other = space.clone();
    assert!(Task::new(move || other.synchronize()).finish());
    assert_eq!(log.take(), "A+ Jx");
    gate.let_go();
    changing.finish();
}

#[test]
fn synchronize_waits_for_what_another_thread_is_dropping() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (meeting, gate) = meeting();
    let make = || Ok::<_, Infallible>(Gru::dropping(&log, move || meeting.stop()));
    let share = space.get(make).unwrap();
    // Put inside a change, so that it is left to whoever comes next.
    space.invalidate(PAGES, Event::Unmap, || drop(share));
    log.take();
    let coming = space.clone();
    let coming = Task::new(move || drop(coming.subscribe(Witness::new("A", &Log::default()))));
    gate.await_other();
    let waiting = space.clone();
    let synchronizing = Task::new(move || waiting.synchronize());
    assert!(synchronizing.waits(), "it is being dropped");
    gate.let_go();
    assert!(synchronizing.finish());
    assert_eq!(log.take(), "Sx");
    coming.finish();
}

#[test]
fn synchronize_inside_the_drop_of_a_subscriber_does_not_wait_for_itself() {
    let log = Log::default();
    let space = AddressSpace::new();
    let inner = space.clone();
    let make = || Ok::<_, Infallible>(Gru::dropping(&log, move || assert!(!inner.synchronize())));
    let share = space.get(make).unwrap();
    space.invalidate(PAGES, Event::Unmap, || drop(share));
    let outer = space.clone();
    assert!(Task::new(move || outer.synchronize()).finish());
}

#[test]
fn synchronize_comes_to_an_end_while_others_come_and_go() {
    let space = AddressSpace::new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut all = true;
    std::thread::scope(|scope| {
        let (space, stop) = (&space, &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                space.invalidate(PAGES, Event::Unmap, || ());
            }
        });
        scope.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                drop(space.subscribe(Witness::new("A", &Log::default())));
            }
        });
        for _ in 0..if cfg!(miri) { 5 } else { 200 } {
            let log = Log::default();
            drop(get(space, &log));
            all &= space.synchronize() && log.take().ends_with("Sx");
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(all, "each has been dropped");
}

#[test]
#[cfg_attr(
    miri,
    ignore = "Miri's tree frees at once, so that one drop panics in the callback, and another in the unwinding"
)]
fn a_drop_that_panics_loses_nothing_else() {
    struct Numbered<const N: u32>(Log);
    impl<const N: u32> Subscriber for Numbered<N> {
        fn start(&self, _: &Change) {}
        fn end(&self, _: &Change) {}
    }
    impl<const N: u32> Drop for Numbered<N> {
        fn drop(&mut self) {
            self.0.add(&format!("{N}x"));
            assert_ne!(N, 2, "no drop");
        }
    }
    fn share<const N: u32>(space: &AddressSpace, log: &Log) -> Shared<Numbered<N>> {
        space.get(|| Ok::<_, Infallible>(Numbered(log.clone()))).unwrap()
    }
    let log = Log::default();
    let space = AddressSpace::new();
    let intervals: Arc<Mutex<Vec<_>>> = Arc::default();
    for n in 0..3 {
        let mirror = Mirror::new("I", &log);
        let mirror = if n == 1 { mirror.on_drop(|| panic!("no drop")) } else { mirror };
        intervals.lock().unwrap().push(space.insert(PAGES, mirror).unwrap());
    }
    let take = intervals.clone();
    let _w =
        space.subscribe(Witness::new("W", &Log::default()).on_start(move |_| take.lock().unwrap().clear()));
    let shares = (share::<1>(&space, &log), share::<2>(&space, &log), share::<3>(&space, &log));
    space.invalidate(PAGES, Event::Unmap, || drop(shares));
    assert_eq!(log.take(), "I+ I+ I+", "all are still held");
    while catch_unwind(AssertUnwindSafe(|| space.synchronize())).is_err() {}
    let told = log.take();
    assert_eq!(told.matches("Ix").count(), 3, "{told}");
    assert!(["1x", "2x", "3x"].iter().all(|one| told.contains(one)), "{told}");
    assert_eq!(try_change(&space, &log), Ok(()));
}

#[test]
fn storms_of_getting_and_putting_drop_each_one_once() {
    static ALIVE: AtomicUsize = AtomicUsize::new(0);
    struct Counted;
    impl Counted {
        fn new() -> Counted {
            ALIVE.fetch_add(1, Ordering::SeqCst);
            Counted
        }
    }
    impl Subscriber for Counted {
        fn start(&self, _: &Change) {}
        fn end(&self, _: &Change) {}
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            ALIVE.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let space = AddressSpace::new();
    let rounds = if cfg!(miri) { 10 } else { 2000 };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for round in 0..rounds {
                    let share = space.get(|| Ok::<_, Infallible>(Counted::new())).unwrap();
                    let again = (round % 3 == 0).then(|| share.clone());
                    space.invalidate(PAGES, Event::Clear, || drop(share));
                    drop(again);
                }
            });
        }
    });
    assert!(space.synchronize());
    assert_eq!(ALIVE.load(Ordering::SeqCst), 0);
}
