use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mmu_notifier::{AddressSpace, Doing, Event, Holder, Options, Stall, Waiting};

use crate::witness::{Elsewhere, Gate, Log, Mirror, PAGES, Task, Witness, blocking, meeting};

type Stalls = Arc<Mutex<Vec<Stall>>>;

/// A space in which a wait is reported after this many milliseconds, and the reports.
fn impatient(after: u64) -> (AddressSpace, Stalls) {
    let stalls = Stalls::default();
    let keep = stalls.clone();
    let options = Options {
        stall_after: Duration::from_millis(after),
        on_stall: Box::new(move |stall| keep.lock().unwrap().push(stall.clone())),
        ..Options::default()
    };
    (AddressSpace::with(options), stalls)
}

/// Waits until there are so many reports.
fn await_reports(stalls: &Stalls, count: usize) -> Vec<Stall> {
    loop {
        let reports = stalls.lock().unwrap().clone();
        if reports.len() >= count {
            return reports;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A witness that another thread's change has stopped in its start.
fn stopped_in_a_start(space: &AddressSpace) -> (mmu_notifier::Subscription, Gate, Task<u64>) {
    let (meeting, gate) = meeting();
    let subscription = space.subscribe(Witness::new("A", &Log::default()).on_start(move |_| meeting.stop()));
    let changing = space.clone();
    let task = Task::new(move || {
        changing.invalidate(PAGES, Event::Migrate, || ());
        changing.caller().thread()
    });
    gate.await_other();
    (subscription, gate, task)
}

#[test]
fn who_unsubscribes_learns_which_callback_of_whom_it_waits_for() {
    let (space, stalls) = impatient(5);
    let (subscription, gate, task) = stopped_in_a_start(&space);
    let caller = space.clone();
    let dropping = Task::new(move || {
        drop(subscription);
        caller.caller().thread()
    });
    let report = await_reports(&stalls, 1).remove(0);
    gate.let_go();
    let (waiter, holder) = (dropping.finish(), task.finish());
    assert_eq!((report.thread, report.waiting), (waiter, Waiting::ToUnsubscribe));
    assert!(report.waited >= Duration::from_millis(5));
    let told = report.holder.clone().unwrap();
    assert_eq!((told.thread, told.doing), (holder, Doing::Starting));
    assert_eq!(told.change.map(|change| (change.range(), change.event())), Some((PAGES, Event::Migrate)));
    assert!(told.subscriber.is_some_and(|name| name.ends_with("Witness")), "{report}");
    let line = report.to_string();
    assert!(line.starts_with(&format!("thread {waiter} has waited ")), "{line}");
    assert!(line.contains("to unsubscribe") && line.contains("[0x1000, 0x3000) (migrate)"), "{line}");
}

#[test]
fn who_leaves_while_another_ones_callback_runs_learns_whose() {
    let (space, stalls) = impatient(5);
    let bystander = space.subscribe(Witness::new("B", &Log::default()));
    let (_subscription, gate, task) = stopped_in_a_start(&space);
    let dropping = Task::new(move || drop(bystander));
    let holder = await_reports(&stalls, 1).remove(0).holder.unwrap();
    gate.let_go();
    dropping.finish();
    task.finish();
    assert!(holder.subscriber.is_some_and(|name| name.ends_with("Witness")), "{holder:?}");
}

#[test]
fn who_removes_an_interval_or_leaves_learns_that_an_intervals_callback_runs() {
    for own in [false, true] {
        let (space, stalls) = impatient(5);
        let (meeting, gate) = meeting();
        let bystander = space.subscribe(Witness::new("A", &Log::default()));
        let mirror = Mirror::new("I", &Log::default()).on_start(move |_| meeting.stop());
        let interval = space.insert(PAGES, mirror).unwrap();
        let changing = space.clone();
        let task = Task::new(move || changing.invalidate(PAGES, Event::Clear, || ()));
        gate.await_other();
        let mut kept = Some(interval);
        let dropping = match own {
            true => {
                let interval = kept.take();
                Task::new(move || drop(interval))
            }
            false => Task::new(move || drop(bystander)),
        };
        let report = await_reports(&stalls, 1).remove(0);
        gate.let_go();
        dropping.finish();
        task.finish();
        let waiting = if own { Waiting::ToRemove } else { Waiting::ToUnsubscribe };
        assert_eq!(report.waiting, waiting);
        assert!(report.holder.unwrap().subscriber.is_some_and(|name| name.ends_with("Mirror")));
    }
}

#[test]
fn a_reader_and_a_newcomer_learn_which_change_they_wait_for() {
    let (space, stalls) = impatient(5);
    let interval = Arc::new(space.insert(PAGES, Mirror::new("I", &Log::default())).unwrap());
    let open = Elsewhere::open(&space, blocking(0x2000, 0x9000));
    let reader = {
        let interval = interval.clone();
        Task::new(move || _ = interval.read())
    };
    let report = await_reports(&stalls, 1).remove(0);
    assert_eq!(report.waiting, Waiting::ToRead);
    let Some(Holder { doing, change, subscriber, .. }) = report.holder else { panic!("somebody holds it") };
    assert_eq!((doing, change, subscriber), (Doing::Changing, Some(blocking(0x2000, 0x9000)), None));
    let subscribing = space.clone();
    let newcomer = Task::new(move || drop(subscribing.subscribe(Witness::new("A", &Log::default()))));
    while !stalls.lock().unwrap().iter().any(|stall| stall.waiting == Waiting::ToSubscribe) {
        std::thread::sleep(Duration::from_millis(1));
    }
    open.close();
    reader.finish();
    newcomer.finish();
}

#[test]
fn a_change_that_began_when_nobody_was_to_be_told_is_not_reported_as_another_one() {
    let (space, stalls) = impatient(5);
    // Leaves something else on record.
    let _ = space.insert(PAGES, Mirror::new("I", &Log::default()));
    let open = Elsewhere::open(&space, blocking(0x2000, 0x9000));
    let subscribing = space.clone();
    let newcomer = Task::new(move || drop(subscribing.subscribe(Witness::new("A", &Log::default()))));
    let holder = await_reports(&stalls, 1).remove(0).holder.unwrap();
    open.close();
    newcomer.finish();
    assert_eq!((holder.doing, holder.change), (Doing::Changing, None));
}

#[test]
fn a_wait_that_goes_on_is_reported_again_and_a_short_one_never() {
    let (space, stalls) = impatient(5);
    let (subscription, gate, task) = stopped_in_a_start(&space);
    let dropping = Task::new(move || drop(subscription));
    let reports = await_reports(&stalls, 3);
    gate.let_go();
    dropping.finish();
    task.finish();
    assert!(
        reports.windows(2).all(|two| two[0].waited + Duration::from_millis(5) <= two[1].waited),
        "{reports:?}"
    );

    let (space, stalls) = impatient(60_000);
    let (subscription, gate, task) = stopped_in_a_start(&space);
    let dropping = Task::new(move || drop(subscription));
    assert!(dropping.waits());
    gate.let_go();
    dropping.finish();
    task.finish();
    assert!(stalls.lock().unwrap().is_empty());
}

#[test]
fn a_full_record_is_reported_by_who_may_wait() {
    let (space, stalls) = impatient(5);
    let caller = space.caller();
    let open: Vec<_> = std::iter::from_fn(|| {
        space
            .start(&caller, mmu_notifier::Change::new(PAGES, Event::Clear, mmu_notifier::Blocking::Forbidden))
            .ok()
    })
    .collect();
    let changing = space.clone();
    let task = Task::new(move || changing.invalidate(PAGES, Event::Clear, || ()));
    let report = await_reports(&stalls, 1).remove(0);
    assert_eq!((report.waiting, report.holder), (Waiting::ForASlot, None));
    open.into_iter().for_each(|open| assert!(space.end(&caller, open)));
    task.finish();
}

#[test]
fn a_report_that_panics_hurts_nobody() {
    let (is_reported, reported) = channel();
    let is_reported = Mutex::new(is_reported);
    let options = Options {
        stall_after: Duration::from_millis(1),
        on_stall: Box::new(move |_| {
            is_reported.lock().unwrap().send(()).unwrap();
            panic!("nobody reads it");
        }),
        ..Options::default()
    };
    let space = AddressSpace::with(options);
    let log = Log::default();
    let (subscription, gate, task) = stopped_in_a_start(&space);
    let dropping = Task::new(move || drop(subscription));
    reported.recv().unwrap();
    gate.let_go();
    dropping.finish();
    task.finish();

    while reported.try_recv().is_ok() {}
    let open = Elsewhere::open(&space, blocking(0x1000, 0x2000));
    let (subscribing, newcomer) = (space.clone(), Witness::new("B", &log));
    let subscribing = Task::new(move || subscribing.subscribe(newcomer));
    reported.recv().unwrap();
    open.close();
    drop(subscribing.finish());
    space.invalidate(PAGES, Event::Clear, || ());
    assert_eq!(log.take(), "B~", "subscribed, and unsubscribed");
    space.release();
}
