use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use mmu_notifier::{
    AddressSpace, Blocking, Change, Event, IntervalSubscriber, IntervalSubscription, Pass, WouldBlock,
};

use crate::witness::{
    Elsewhere, Log, Mirror, PAGES, Task, Witness, blocking, change, meeting, range, try_change,
};

fn one() -> (AddressSpace, Arc<IntervalSubscription>) {
    let space = AddressSpace::new();
    let interval = space.insert(PAGES, Mirror::new("I", &Log::default())).unwrap();
    (space, Arc::new(interval))
}

/// Reads in another thread; whether the ticket is good.
fn read_elsewhere(interval: &Arc<IntervalSubscription>) -> Task<bool> {
    let interval = interval.clone();
    Task::new(move || !interval.is_stale(&interval.read()))
}

#[test]
fn a_ticket_is_good_until_something_overlapping_changes_and_stale_ever_after() {
    let (space, interval) = one();
    let ticket = interval.read();
    assert!(!interval.is_stale(&ticket));
    space.invalidate(range(0x3000, 0x9000), Event::Unmap, || assert!(!interval.is_stale(&ticket)));
    assert!(!interval.is_stale(&ticket));
    let other = interval.read();
    assert_eq!(ticket, other);
    space.invalidate(range(0x2fff, 0x9000), Event::Unmap, || assert!(interval.is_stale(&ticket)));
    assert!(interval.is_stale(&ticket) && interval.is_stale(&other));
    assert!(!interval.is_stale(&interval.read()));
}

#[test]
fn a_refused_change_makes_tickets_stale_but_nobody_wait() {
    let space = AddressSpace::new();
    let refuses = Arc::new(AtomicBool::new(true));
    let mirror = Mirror::new("I", &Log::default()).refusing(&refuses);
    let interval = Arc::new(space.insert(PAGES, mirror).unwrap());
    assert_eq!(try_change(&space, &Log::default()), Err(WouldBlock));
    assert!(read_elsewhere(&interval).finish());
}

#[test]
fn a_reader_waits_for_overlapping_changes_of_others() {
    let (space, interval) = one();
    let open = Elsewhere::open(&space, blocking(0x2fff, 0x9000));
    let reader = read_elsewhere(&interval);
    assert!(reader.waits());
    open.close();
    assert!(reader.finish(), "and then its ticket is good, unless another change came");
}

#[test]
fn a_reader_waits_for_the_last_of_several() {
    let (space, interval) = one();
    let first = Elsewhere::open(&space, blocking(0x1000, 0x2000));
    let second = Elsewhere::open(&space, blocking(0x2000, 0x3000));
    let reader = read_elsewhere(&interval);
    first.close();
    assert!(reader.waits());
    second.close();
    assert!(reader.finish());
}

#[test]
fn a_reader_does_not_wait_for_disjoint_changes_even_if_others_are_hit() {
    let (space, interval) = one();
    let neighbour = Arc::new(space.insert(range(0x3000, 0x5000), Mirror::new("J", &Log::default())).unwrap());
    let open = Elsewhere::open(&space, blocking(0x3000, 0x9000));
    assert!(read_elsewhere(&interval).finish());
    let waiting = read_elsewhere(&neighbour);
    assert!(waiting.waits());
    open.close();
    assert!(waiting.finish());
}

#[test]
fn a_reader_does_not_wait_for_a_foreign_change_after_an_overlapping_one_has_ended() {
    let (space, interval) = one();
    let foreign = Elsewhere::open(&space, blocking(0x10000, 0x20000));
    let overlapping = Elsewhere::open(&space, blocking(0x1000, 0x2000));
    let reader = read_elsewhere(&interval);
    assert!(reader.waits());
    overlapping.close();
    assert!(reader.finish());
    foreign.close();
}

#[test]
fn a_reader_waits_while_the_starts_of_an_overlapping_change_run_and_not_while_its_ends_do() {
    let (space, interval) = one();
    let ((in_start, start), (in_end, end)) = (meeting(), meeting());
    let stops =
        Witness::new("A", &Log::default()).on_start(move |_| in_start.stop()).on_end(move |_| in_end.stop());
    let _a = space.subscribe(stops);
    let changing = space.clone();
    let task = Task::new(move || changing.invalidate(PAGES, Event::Unmap, || ()));
    start.await_other();
    let reader = read_elsewhere(&interval);
    assert!(reader.waits());
    start.let_go();
    end.await_other();
    assert!(reader.finish(), "the change is done");
    assert!(read_elsewhere(&interval).finish());
    end.let_go();
    task.finish();
}

#[test]
fn who_reads_an_interval_that_came_in_the_middle_of_a_change_waits_for_it() {
    for is_first in [false, true] {
        let space = AddressSpace::new();
        let _other = (!is_first).then(|| space.insert(PAGES, Mirror::new("O", &Log::default())).unwrap());
        let open = Elsewhere::open(&space, blocking(0x1000, 0x2000));
        let interval = Arc::new(space.insert(PAGES, Mirror::new("I", &Log::default())).unwrap());
        let reader = read_elsewhere(&interval);
        assert!(reader.waits());
        open.close();
        assert!(reader.finish());
    }
}

#[test]
fn a_new_interval_elsewhere_is_read_while_a_change_is_open() {
    let (space, _interval) = one();
    let open = Elsewhere::open(&space, blocking(0x1000, 0x2000));
    let other = Arc::new(space.insert(range(0x10000, 0x20000), Mirror::new("J", &Log::default())).unwrap());
    assert!(read_elsewhere(&other).finish());
    open.close();
}

#[test]
fn a_ticket_taken_inside_an_own_overlapping_change_is_stale_from_the_beginning() {
    let (space, interval) = one();
    let elsewhere = space.insert(range(0x10000, 0x20000), Mirror::new("J", &Log::default())).unwrap();
    space.invalidate(range(0x2000, 0x9000), Event::Unmap, || {
        assert!(interval.is_stale(&interval.read()));
        assert!(!elsewhere.is_stale(&elsewhere.read()), "another range");
        space.invalidate(range(0x50000, 0x51000), Event::Unmap, || {
            assert!(interval.is_stale(&interval.read()))
        });
    });
    assert!(!interval.is_stale(&interval.read()));
}

#[test]
fn a_ticket_is_stale_too_inside_an_own_change_that_began_when_nobody_was_there() {
    let space = AddressSpace::new();
    // Leaves another range behind in the record.
    let other = space.insert(range(0x10000, 0x20000), Mirror::new("J", &Log::default()));
    space.invalidate(range(0x70000, 0x80000), Event::Unmap, || ());
    drop(other);
    space.invalidate(range(0x1000, 0x9000), Event::Unmap, || {
        let interval = space.insert(PAGES, Mirror::new("I", &Log::default())).unwrap();
        assert!(interval.is_stale(&interval.read()), "what is read here must not be installed");
    });
}

#[test]
fn a_ticket_taken_inside_a_callback_of_an_own_overlapping_change_is_stale_too() {
    let (space, interval) = one();
    let log = Log::default();
    let (in_start, in_end) = ((interval.clone(), log.clone()), (interval.clone(), log.clone()));
    let say = |(interval, log): &(Arc<IntervalSubscription>, Log)| {
        log.add(if interval.is_stale(&interval.read()) { "stale" } else { "good" });
    };
    let witness = Witness::new("A", &log).on_start(move |_| say(&in_start)).on_end(move |_| say(&in_end));
    let _a = space.subscribe(witness);
    change(&space, &log);
    assert_eq!(log.take(), "A+ stale * A- good", "at the end the change is done");
}

#[test]
fn no_mirror_entry_is_live_inside_an_open_overlapping_change() {
    /// A mirror of one word of "memory", which is only written inside of changes.
    struct OneWord {
        entry: Mutex<Option<u64>>,
        memory: Arc<[AtomicU64; 4]>,
        at: usize,
    }
    impl OneWord {
        fn drop_entry(&self) {
            *self.entry.lock().unwrap() = None;
        }
    }
    impl IntervalSubscriber for OneWord {
        fn invalidate(&self, _: &Change) -> Pass {
            self.drop_entry();
            Pass::Done
        }
        fn try_invalidate(&self, _: &Change) -> Result<Pass, WouldBlock> {
            self.entry.try_lock().map_err(|_| WouldBlock)?.take();
            Ok(Pass::Done)
        }
    }
    let space = AddressSpace::new();
    let memory: Arc<[AtomicU64; 4]> = Arc::default();
    let page = |at: usize| range(at * 0x1000, at * 0x1000 + 0x1000);
    let mirrors: Vec<_> = (0..4)
        .map(|at| {
            let mirror = Arc::new(OneWord { entry: Mutex::default(), memory: memory.clone(), at });
            (space.insert(page(at), mirror.clone()).unwrap(), mirror)
        })
        .collect();
    let stop = AtomicBool::new(false);
    let rounds = if cfg!(miri) { 20 } else { 4000 };
    std::thread::scope(|scope| {
        let (space, mirrors, memory, stop) = (&space, &mirrors, &memory, &stop);
        for thread in 0..2 {
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    for (interval, mirror) in mirrors.iter().skip(thread) {
                        let ticket = interval.read();
                        let seen = memory[mirror.at].load(Ordering::SeqCst);
                        let mut entry = mirror.entry.lock().unwrap();
                        if !interval.is_stale(&ticket) {
                            *entry = Some(seen);
                        }
                    }
                }
            });
        }
        let changers: Vec<_> = (0..2_usize)
            .map(|thread| {
                scope.spawn(move || {
                    for round in 0..rounds {
                        let at = (round + thread) % 4;
                        let length = 1 + round % (4 - at);
                        let pages = range(at * 0x1000, (at + length) * 0x1000);
                        let write = || {
                            for one in &mirrors[at..at + length] {
                                assert_eq!(*one.1.entry.lock().unwrap(), None, "live inside a change");
                                one.1.memory[one.1.at].fetch_add(1, Ordering::SeqCst);
                                assert_eq!(*one.1.entry.lock().unwrap(), None, "live inside a change");
                            }
                        };
                        if round % 3 == 0 {
                            let _ = space.try_invalidate(pages, Event::Clear, write);
                        } else {
                            space.invalidate(pages, Event::Unmap, write);
                        }
                    }
                })
            })
            .collect();
        changers.into_iter().for_each(|thread| thread.join().unwrap());
        stop.store(true, Ordering::SeqCst);
    });
    for (_, mirror) in mirrors {
        let entry = *mirror.entry.lock().unwrap();
        assert!(entry.is_none_or(|seen| seen == memory[mirror.at].load(Ordering::SeqCst)), "an old value");
    }
}

#[test]
fn a_change_handed_to_another_thread_is_waited_for_until_that_one_ends_it() {
    let (space, interval) = one();
    let open = space.start(&space.caller(), Change::new(PAGES, Event::Migrate, Blocking::Allowed)).unwrap();
    let reader = read_elsewhere(&interval);
    assert!(reader.waits());
    let ending = space.clone();
    assert!(Task::new(move || ending.end(&ending.caller(), open)).finish());
    assert!(reader.finish());
    assert!(!interval.is_stale(&interval.read()));
}
