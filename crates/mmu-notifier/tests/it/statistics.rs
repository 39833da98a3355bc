use std::time::Duration;

use mmu_notifier::{AddressSpace, Blocking, Change, Event, Longest, Options};

use crate::witness::{Busy, Log, Mirror, PAGES, Witness, end_abandoned, try_change};

#[test]
fn changes_are_counted_by_their_event_over_all_threads() {
    let space = AddressSpace::new();
    let log = Log::default();
    let _i = space.insert(PAGES, Mirror::new("I", &log)).unwrap();
    let rounds = if cfg!(miri) { 10 } else { 1000 };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let space = &space;
            scope.spawn(move || {
                for round in 0..rounds {
                    let event = Event::ALL[(thread + round) % 8];
                    space.invalidate(PAGES, event, || _ = space.try_invalidate(PAGES, Event::Migrate, || ()));
                }
            });
        }
    });
    let stats = space.stats();
    assert_eq!(stats.changes.iter().sum::<u64>(), 2 * 4 * rounds as u64);
    let others: Vec<_> = Event::ALL.into_iter().filter(|&event| event != Event::Migrate).collect();
    let expected = |event: Event| {
        let of_thread = |thread| (0..rounds).filter(|round| (thread + round) % 8 == event as usize).count();
        (0..4).map(of_thread).sum::<usize>() as u64
    };
    for event in others {
        assert_eq!(stats.of(event), expected(event), "{event}");
    }
    assert_eq!((stats.refused, stats.abandoned), (0, 0));
}

#[test]
fn refused_changes_are_counted_as_changes_and_as_refused_once() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _n = space.subscribe_refuser(Busy::new("N", &log, 3));
    let _m = space.subscribe_refuser(Busy::new("M", &log, 1_000_000));
    for _ in 0..9 {
        let _ = try_change(&space, &log);
    }
    let stats = space.stats();
    assert_eq!((stats.of(Event::Clear), stats.refused), (9, 3));
    let refuses = std::sync::Arc::new(true.into());
    let _i = space.insert(PAGES, Mirror::new("I", &log).refusing(&refuses)).unwrap();
    let _ = try_change(&space, &log);
    assert_eq!(space.stats().refused, 4);
}

#[test]
fn what_is_no_change_is_not_counted() {
    let log = Log::default();
    let space = AddressSpace::new();
    drop(space.subscribe(Witness::new("A", &log)));
    let interval = space.insert(PAGES, Mirror::new("I", &log)).unwrap();
    let _ = interval.read();
    drop(interval);
    space.flush(PAGES);
    space.clear_young(PAGES);
    assert_eq!(space.stats(), AddressSpace::new().stats());
    space.release();
    assert_eq!(space.stats().of(Event::Release), 1, "a release is one");
}

#[test]
fn abandoned_changes_are_counted() {
    let space = AddressSpace::new();
    let caller = space.caller().with_stack(0x1000);
    for _ in 0..3 {
        let _ = space.start(&caller, Change::new(PAGES, Event::Unmap, Blocking::Allowed)).unwrap();
    }
    assert_eq!(end_abandoned(&space, &caller, |_| true).changes, 3);
    let stats = space.stats();
    assert_eq!((stats.abandoned, stats.of(Event::Unmap)), (3, 3));
}

#[test]
fn the_longest_start_and_end_of_each_subscriber_are_remembered() {
    let space = AddressSpace::with(Options { time_every: 1, ..Options::default() });
    let log = Log::default();
    let sleep = |millis| std::thread::sleep(Duration::from_millis(millis));
    let quick = space.subscribe(Witness::new("Q", &log));
    let slow =
        space.subscribe(Witness::new("S", &log).on_start(move |_| sleep(20)).on_end(move |_| sleep(5)));
    assert_eq!(slow.longest(), Longest::default());
    space.invalidate(PAGES, Event::Unmap, || sleep(60));
    let (of_slow, of_quick) = (slow.longest(), quick.longest());
    assert!(
        of_slow.start >= Duration::from_millis(20) && of_slow.end >= Duration::from_millis(5),
        "{of_slow:?}"
    );
    assert!(of_quick.start < of_slow.start, "the change itself and the others are not timed");
    assert!(of_quick.start > Duration::ZERO);
    space.invalidate(PAGES, Event::Unmap, || ());
    let later = slow.longest();
    assert!(later.start >= of_slow.start && later.end >= of_slow.end);
}

#[test]
fn who_asks_for_it_has_few_changes_timed() {
    let space = AddressSpace::with(Options { time_every: u64::MAX, ..Options::default() });
    let subscription = space.subscribe(Witness::new("A", &Log::default()));
    (0..100).for_each(|_| space.invalidate(PAGES, Event::Unmap, || ()));
    assert_eq!(subscription.longest(), Longest::default());
}
