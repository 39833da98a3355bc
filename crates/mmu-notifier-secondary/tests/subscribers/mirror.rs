//! `mirror`: faults, refusal, snapshots, own changes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::time::Duration;

use mmu_notifier::{
    AddressSpace, Blocking, Change, Event, IntervalSubscriber, Invalidation, Pass, Range, WouldBlock,
};
use mmu_notifier_secondary::device::{Access, Page, PageTable};
use mmu_notifier_secondary::mirror::{Engine, Fault, Mirror, MirrorError, NoEngine};

use crate::memory::{Memory, Random, Sets, address, range};

fn rig(pages: usize) -> (Arc<Memory>, Mirror) {
    let memory = Memory::new(0..pages);
    let mirror = Mirror::new(&memory.space, range(0..pages), memory.clone()).unwrap();
    (memory, mirror)
}

/// The frame that the engine finds.
fn read(engine: &mut Engine<'_>, page: usize) -> Result<usize, Fault> {
    engine.access(address(page), Access::Read, |pointer| pointer)
}

/// The changes that another subscriber of all pages is told of.
#[derive(Default)]
struct Heard(Mutex<Vec<(Event, usize)>>);

impl IntervalSubscriber for Heard {
    fn invalidate(&self, change: &Change) -> Pass {
        self.0.lock().unwrap().push((change.event(), change.owner()));
        Pass::Done
    }

    fn try_invalidate(&self, change: &Change) -> Result<Pass, WouldBlock> {
        Ok(self.invalidate(change))
    }
}

fn open(memory: &Memory, pages: std::ops::Range<usize>, owner: usize) -> Invalidation<'_> {
    let change = Change::new(range(pages), Event::Migrate, Blocking::Allowed).with_owner(owner);
    memory.space.begin(change).unwrap()
}

#[test]
fn a_fault_brings_in_its_range_once() {
    let (memory, mirror) = rig(8);
    mirror.fault(range(2..5), Access::Read).unwrap();
    mirror.fault(range(1..5), Access::Read).unwrap();
    assert_eq!(memory.look_ups.load(SeqCst), 4);
    let mut engine = mirror.engine().unwrap();
    for page in 1..5 {
        assert_eq!(read(&mut engine, page).ok(), memory.frame_of(page));
    }
    assert_eq!(mirror.stats().misses, 0);
    assert_eq!(engine.access(address(7) + 24, Access::Read, |at| at % 4096), Ok(24));
    assert_eq!((mirror.stats().misses, memory.look_ups.load(SeqCst)), (1, 5));
}

#[test]
fn a_change_zaps_what_it_hits_and_nothing_else() {
    let (memory, mirror) = rig(8);
    mirror.fault(range(0..8), Access::Write).unwrap();
    memory.space.invalidate(Range::new(address(2) + 1, address(4)).unwrap(), Event::Unmap, || {
        assert_eq!(mirror.stats().zapped, 2);
        memory.drop_pages(2..4, true);
    });
    memory.discard(100..200);
    assert_eq!(mirror.stats().zapped, 2);
    let mut engine = mirror.engine().unwrap();
    for page in 0..8 {
        match read(&mut engine, page) {
            Ok(frame) => assert_eq!(memory.frame_of(page), Some(frame)),
            Err(error) => {
                assert!((2..4).contains(&page));
                assert_eq!(error, Fault::NotMapped { address: address(page), access: Access::Read });
            }
        }
    }
    assert_eq!(mirror.stats().misses, 2);
}

#[test]
fn a_page_that_cannot_be_written_faults_on_a_write_only() {
    let (memory, mirror) = rig(2);
    memory.protect(0..2, false);
    let mut engine = mirror.engine().unwrap();
    read(&mut engine, 0).unwrap();
    let denied = engine.access(address(0), Access::Write, |_| unreachable!("it is read-only"));
    assert_eq!(denied, Err(Fault::NotMapped { address: address(0), access: Access::Write }));
    memory.protect(0..1, true);
    engine.access(address(0), Access::ReadWrite, |_| ()).unwrap();
    assert_eq!(
        mirror.fault(range(0..2), Access::Write),
        Err(Fault::NotMapped { address: address(1), access: Access::Write })
    );
}

#[test]
fn an_idle_device_refuses_nothing_and_a_busy_one_only_where_it_is_busy() {
    let (memory, mirror) = rig(8);
    mirror.fault(range(0..8), Access::Write).unwrap();
    memory.try_discard(0..1).unwrap();
    let mut engine = mirror.engine().unwrap();
    let during = |_| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                memory.try_discard(4..8).unwrap();
                memory.try_discard(0..3).unwrap();
                let part = Range::with_len(address(3) + 100, 1).unwrap();
                memory.space.try_invalidate(part, Event::Clear, || unreachable!("refused")).unwrap_err();
                assert!(memory.try_discard(0..8).is_err());
            });
        });
    };
    engine.access(address(3) + 8, Access::Read, during).unwrap();
    memory.try_discard(0..8).unwrap();
    assert_eq!(mirror.stats().refused, 2);
}

/// A change waits for the access under way, also if another change has zapped the entry; and one that must not wait refuses
/// then.
#[test]
fn a_change_waits_for_the_access_under_way() {
    let (memory, mirror) = rig(4);
    let (inside, is_inside) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let has_left = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (memory, mirror, has_left) = (&memory, &mirror, &has_left);
        scope.spawn(move || {
            let work = |_| {
                inside.send(()).unwrap();
                may_leave.recv().unwrap();
                has_left.store(true, SeqCst);
            };
            mirror.engine().unwrap().access(address(1), Access::Write, work).unwrap();
        });
        is_inside.recv().unwrap();
        let change = || memory.space.invalidate(range(0..2), Event::Unmap, || assert!(has_left.load(SeqCst)));
        let first = scope.spawn(change);
        while mirror.stats().zapped == 0 {
            std::thread::yield_now();
        }
        let second = scope.spawn(change);
        let third = scope.spawn(|| mirror.migrate(range(1..2), || assert!(has_left.load(SeqCst))).unwrap());
        let refused = memory.try_discard(1..2).is_err();
        memory.try_discard(2..3).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let waiting = !first.is_finished() && !second.is_finished() && !third.is_finished();
        leave.send(()).unwrap();
        assert!(refused && waiting);
    });
}

#[test]
fn a_thread_that_changes_the_page_it_is_accessing_does_not_wait_for_itself() {
    let (memory, mirror) = rig(2);
    let mut engine = mirror.engine().unwrap();
    engine.access(address(0), Access::Read, |_| memory.discard(0..1)).unwrap();
    engine.access(address(0), Access::Read, |_| memory.try_discard(0..1).unwrap()).unwrap();
    engine.access(address(0), Access::Read, |_| mirror.migrate(range(0..1), || ()).unwrap()).unwrap();
    assert_eq!(mirror.stats().zapped, 3);
}

/// The race that tickets are for, with changes of both kinds.
#[test]
fn a_change_while_pages_are_looked_up_begins_the_fault_anew() {
    for blocking in [false, true] {
        let (memory, mirror) = rig(4);
        let times = AtomicUsize::new(0);
        let weak = Arc::downgrade(&memory);
        memory.on_look_up(move |page| {
            if page == 2 && times.fetch_add(1, SeqCst) < 3 {
                let memory = weak.upgrade().unwrap();
                // The first page, which has been looked up.
                if blocking {
                    memory.discard(1..2)
                } else {
                    memory.try_discard(1..2).unwrap()
                }
                // Somebody else's page gets the frame.
                memory.frame_of(3).unwrap();
                memory.unmap(3..4);
                memory.map(3..4);
            }
        });
        mirror.fault(range(1..3), Access::Write).unwrap();
        assert_eq!(mirror.stats().retries, 3);
        let mut engine = mirror.engine().unwrap();
        for page in 1..3 {
            engine
                .access(address(page), Access::Read, |frame| memory.use_frame(frame, page, |_| ()))
                .unwrap();
        }
        assert_eq!(mirror.stats().misses, 0);
    }
}

#[test]
fn a_change_elsewhere_in_the_mirror_only_costs_an_attempt_and_outside_nothing() {
    let memory = Memory::new(0..8);
    let mirror = Mirror::new(&memory.space, range(0..4), memory.clone()).unwrap();
    let (times, weak) = (AtomicUsize::new(0), Arc::downgrade(&memory));
    memory.on_look_up(move |_| match times.fetch_add(1, SeqCst) {
        0 => weak.upgrade().unwrap().discard(6..7),
        1 => weak.upgrade().unwrap().discard(3..4),
        _ => {}
    });
    mirror.fault(range(0..1), Access::Read).unwrap();
    assert_eq!(mirror.stats().retries, 0);
    mirror.fault(range(1..2), Access::Read).unwrap();
    assert_eq!(mirror.stats().retries, 1);
}

/// A ticket that is good before the look, and a change that is still open behind it.
#[test]
fn a_change_that_is_still_open_when_the_look_up_returns_is_not_missed() {
    let (memory, mirror) = rig(2);
    let (begun, has_begun) = mpsc::channel();
    let (finish, may_finish) = mpsc::channel::<()>();
    let may_finish = Mutex::new(may_finish);
    let (times, looked) = (AtomicUsize::new(0), Mutex::new(Some(finish)));
    std::thread::scope(|scope| {
        let (go, may_go) = mpsc::channel::<()>();
        let memory_ref = &memory;
        scope.spawn(move || {
            may_go.recv().unwrap();
            memory_ref.space.invalidate(range(0..1), Event::Clear, || {
                begun.send(()).unwrap();
                may_finish.lock().unwrap().recv().unwrap();
                memory_ref.drop_pages(0..1, false);
            });
        });
        let (has_begun, go) = (Mutex::new(has_begun), Mutex::new(go));
        memory.on_look_up(move |_| {
            if times.fetch_add(1, SeqCst) == 0 {
                go.lock().unwrap().send(()).unwrap();
                has_begun.lock().unwrap().recv().unwrap();
                let finish = looked.lock().unwrap().take().unwrap();
                // The change goes on while the fault does.
                finish.send(()).unwrap();
            }
        });
        let mut engine = mirror.engine().unwrap();
        engine.access(address(0), Access::Write, |frame| memory.use_frame(frame, 0, |_| ())).unwrap();
        assert!(mirror.stats().retries > 0);
    });
    memory.do_nothing_else();
}

#[test]
fn what_is_missing_in_the_middle_of_a_change_is_not_missing() {
    let (memory, mirror) = rig(2);
    let (times, weak) = (AtomicUsize::new(0), Arc::downgrade(&memory));
    memory.unmap(0..1);
    memory.on_look_up(move |_| {
        if times.fetch_add(1, SeqCst) == 0 {
            let memory = weak.upgrade().unwrap();
            memory.space.invalidate(range(0..1), Event::Unmap, || memory.map(0..1));
        }
    });
    mirror.fault(range(0..1), Access::Read).unwrap();
}

#[test]
fn a_fault_waits_for_open_changes() {
    let (memory, mirror) = rig(4);
    let (is_over, is_waiting) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        memory.space.invalidate(range(0..1), Event::Clear, || {
            scope.spawn(|| {
                is_waiting.store(true, SeqCst);
                let check = |_| assert!(is_over.load(SeqCst));
                mirror.engine().unwrap().access(address(0), Access::Read, check).unwrap();
            });
            while !is_waiting.load(SeqCst) {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(memory.look_ups.load(SeqCst), 0);
            is_over.store(true, SeqCst);
        });
    });
}

#[test]
fn a_fault_inside_a_change_of_the_same_thread_is_an_error() {
    let (memory, mirror) = rig(2);
    let changing = Err(Fault::Changing { range: range(0..1) });
    memory.space.invalidate(range(0..1), Event::Clear, || {
        assert_eq!(mirror.fault(range(0..1), Access::Read), changing);
    });
    // Also if it is the device's own, of which no ticket tells.
    mirror.migrate(range(0..1), || assert_eq!(mirror.fault(range(0..1), Access::Read), changing)).unwrap();
    mirror.fault(range(0..2), Access::Read).unwrap();
}

#[test]
fn changes_for_ever_are_an_error_in_the_end() {
    let memory = Memory::new(0..1);
    let patience = Duration::from_millis(20);
    let mirror = Mirror::with_patience(&memory.space, range(0..1), memory.clone(), patience).unwrap();
    let weak = Arc::downgrade(&memory);
    memory.on_look_up(move |_| weak.upgrade().unwrap().discard(0..1));
    match mirror.fault(range(0..1), Access::Read) {
        Err(Fault::Unsettled { range: it, waited }) => assert!(it == range(0..1) && waited >= patience),
        other => panic!("{other:?}"),
    }
    match mirror.snapshot(range(0..1)) {
        Err(Fault::Unsettled { .. }) => {}
        other => panic!("{other:?}"),
    }
    memory.do_nothing_else();
    mirror.fault(range(0..1), Access::Read).unwrap();
}

#[test]
fn a_panic_in_the_page_table_leaves_nothing_behind() {
    let (memory, mirror) = rig(2);
    memory.on_look_up(|page| assert_eq!(page, 0, "as intended"));
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mirror.fault(range(0..2), Access::Read)));
    assert!(panicked.is_err());
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mirror.make_exclusive(range(0..2))));
    assert!(panicked.is_err());
    memory.do_nothing_else();
    mirror.fault(range(0..2), Access::Read).unwrap();
    memory.try_discard(0..2).unwrap();
}

#[test]
fn a_panic_in_a_migration_leaves_nothing_behind() {
    let (memory, mirror) = rig(2);
    let migrate = || mirror.migrate(range(0..2), || panic!("as intended"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(migrate)).is_err());
    mirror.fault(range(0..2), Access::Read).unwrap();
    memory.try_discard(0..2).unwrap();
}

#[test]
fn after_release_nothing_is_brought_in() {
    let (memory, mirror) = rig(2);
    mirror.fault(range(0..1), Access::Read).unwrap();
    memory.space.release();
    assert_eq!(mirror.stats().zapped, 1);
    assert_eq!(mirror.fault(range(0..1), Access::Read), Err(Fault::Released));
    assert_eq!(mirror.snapshot(range(0..1)), Err(Fault::Released));
    assert_eq!(mirror.make_exclusive(range(0..1)), Err(Fault::Released));
    let late = Mirror::new(&memory.space, range(0..1), memory.clone());
    assert_eq!(late.unwrap_err(), MirrorError::Released);
}

#[test]
fn a_mirror_is_of_whole_pages_and_not_too_large() {
    let memory = Memory::new(0..1);
    let of = |range| Mirror::new(&memory.space, range, memory.clone()).map(|_| ());
    for (start, end) in [(1, 0x2000), (0x1000, 0x1001)] {
        let range = Range::new(start, end).unwrap();
        assert_eq!(of(range), Err(MirrorError::Unaligned { range }));
    }
    let range = Range::with_len(0x1000, Mirror::LARGEST + 0x1000).unwrap();
    assert_eq!(of(range), Err(MirrorError::TooLarge { range }));
    assert_eq!(of(Range::EVERYTHING), Err(MirrorError::Unaligned { range: Range::EVERYTHING }));
}

#[test]
fn nothing_lies_outside() {
    let memory = Memory::new(0..8);
    let mirror = Mirror::new(&memory.space, range(2..4), memory.clone()).unwrap();
    let outside = |page| Err(Fault::Outside { address: address(page) });
    assert_eq!(mirror.fault(range(1..3), Access::Read), outside(1));
    assert_eq!(mirror.fault(range(3..5), Access::Read), outside(4));
    assert_eq!(mirror.fault(range(6..7), Access::Read), outside(6));
    assert_eq!(mirror.snapshot(range(0..8)).map(|_| ()), outside(0));
    assert_eq!(mirror.migrate(range(3..5), || unreachable!("nothing is done")), outside(4));
    assert_eq!(mirror.make_exclusive(range(4..5)), outside(4));
    let mut engine = mirror.engine().unwrap();
    assert_eq!(read(&mut engine, 1), outside(1).map(|()| 0));
    assert_eq!(engine.access(usize::MAX, Access::Read, |at| at), Err(Fault::Outside { address: usize::MAX }));
    memory.try_discard(0..8).unwrap();
}

#[test]
fn there_are_so_many_engines() {
    let (_, mirror) = rig(1);
    let engines: Vec<_> = (0..Mirror::ENGINES).map(|_| mirror.engine().unwrap()).collect();
    assert_eq!(mirror.engine().unwrap_err(), NoEngine);
    drop(engines);
    mirror.engine().unwrap();
}

#[test]
fn errors_say_where() {
    let texts = [
        Fault::Outside { address: 0x5000 }.to_string(),
        Fault::NotMapped { address: 0x5000, access: Access::Write }.to_string(),
        Fault::NotTaken { address: 0x5000 }.to_string(),
        Fault::Changing { range: range(0..1) }.to_string(),
        NoEngine.to_string(),
    ];
    assert_eq!(
        texts,
        [
            "0x5000 lies outside of the mirror",
            "nothing at 0x5000 allows access for writing",
            "the page at 0x5000 cannot be taken from the processor",
            "[0x1000000000, 0x1000001000) cannot be read: the calling thread is in the middle of changing it",
            "all 16 engines of the device are in use",
        ]
    );
}

// Snapshots.

#[test]
fn a_snapshot_is_what_is_there_and_makes_nothing_present() {
    let (memory, mirror) = rig(6);
    let frames = [0, 1, 2, 4].map(|page| memory.frame_of(page).unwrap());
    memory.protect(1..2, false);
    memory.unmap(2..3);
    let expected = [Some(Page::writable(frames[0])), Some(Page::read_only(frames[1])), None, None];
    assert_eq!(mirror.snapshot(range(0..4)).unwrap(), expected);
    assert_eq!((memory.look_ups.load(SeqCst), mirror.stats().zapped), (0, 0));
    mirror.make_exclusive(range(4..5)).unwrap();
    assert_eq!(mirror.snapshot(range(4..5)).unwrap(), [None], "the processor does not get there");
    assert!(memory.is_taken(4));
}

/// Not of one page before the change, and of the other one after it.
#[test]
fn a_snapshot_is_of_one_moment() {
    let (memory, mirror) = rig(2);
    let before = [0, 1].map(|page| memory.frame_of(page).map(Page::writable));
    let (times, weak) = (AtomicUsize::new(0), Arc::downgrade(&memory));
    memory.on_look_up(move |_| {
        if times.fetch_add(1, SeqCst) == 0 {
            weak.upgrade().unwrap().discard(0..2);
        }
    });
    assert!(before.iter().all(Option::is_some));
    assert_eq!(mirror.snapshot(range(0..2)).unwrap(), [None, None]);
    assert_eq!(mirror.stats().retries, 1);
}

// The device's own changes.

/// Neither waits for nor begins anew for its own, but for another owner's, and for its own of another kind.
#[test]
fn the_owner_filter_is_by_owner_and_event() {
    let (memory, mirror) = rig(2);
    mirror.fault(range(0..1), Access::Read).unwrap();
    let owner = mirror.owner();
    assert_ne!(owner, 0);
    let open_by = |event, owner| {
        let change = Change::new(range(0..2), event, Blocking::Allowed).with_owner(owner);
        memory.space.begin(change).unwrap()
    };
    for event in [Event::Migrate, Event::Exclusive] {
        let open = open_by(event, owner);
        assert_eq!(mirror.stats().zapped, 0);
        // Another thread's fault does not wait for it, either.
        std::thread::scope(|scope| {
            scope.spawn(|| mirror.fault(range(1..2), Access::Read)).join().unwrap().unwrap();
        });
        open.end();
    }
    open_by(Event::Migrate, owner + 1).end();
    assert_eq!(mirror.stats().zapped, 2);
    for event in [Event::Clear, Event::Unmap] {
        mirror.fault(range(0..2), Access::Read).unwrap();
        let before = mirror.stats().zapped;
        open_by(event, owner).end();
        assert_eq!(mirror.stats().zapped, before + 2, "its own {event:?}");
    }
    mirror.fault(range(0..2), Access::Read).unwrap();
    let before = mirror.stats().zapped;
    open(&memory, 0..2, 0).end();
    assert_eq!(mirror.stats().zapped, before + 2, "nobody's");
}

#[test]
fn a_migration_zaps_before_anybody_is_told_and_tells_all_others_whose_it_is() {
    let (memory, mirror) = rig(4);
    let heard = Arc::new(Heard::default());
    let _heard = memory.space.insert(range(0..4), heard.clone()).unwrap();
    mirror.fault(range(0..4), Access::Write).unwrap();
    mirror
        .migrate(range(1..3), || {
            assert_eq!(mirror.stats().zapped, 2);
            (1..3).for_each(|page| memory.move_page(page));
        })
        .unwrap();
    assert_eq!(*heard.0.lock().unwrap(), [(Event::Migrate, mirror.owner())]);
    let mut engine = mirror.engine().unwrap();
    for page in 0..4 {
        engine.access(address(page), Access::Read, |frame| memory.use_frame(frame, page, |_| ())).unwrap();
    }
    assert_eq!((mirror.stats().misses, mirror.stats().migrations), (2, 1));
}

/// No ticket tells of it.
#[test]
fn a_migration_while_pages_are_looked_up_begins_the_fault_anew() {
    let memory = Memory::new(0..4);
    let mirror = Arc::new(Mirror::new(&memory.space, range(0..4), memory.clone()).unwrap());
    let (weak, there, times) = (Arc::downgrade(&memory), Arc::downgrade(&mirror), AtomicUsize::new(0));
    memory.on_look_up(move |page| {
        if times.fetch_add(1, SeqCst) < 2 {
            let (memory, mirror) = (weak.upgrade().unwrap(), there.upgrade().unwrap());
            mirror.migrate(range(page..page + 1), || memory.move_page(page)).unwrap();
        }
    });
    let mut engine = mirror.engine().unwrap();
    engine.access(address(1), Access::Read, |frame| memory.use_frame(frame, 1, |_| ())).unwrap();
    assert_eq!((mirror.stats().retries, mirror.stats().migrations), (2, 2));
    memory.do_nothing_else();
}

/// Between the look and the installation the migration is still open; afterwards the page is somewhere else.
#[test]
fn a_fault_during_a_migration_waits_until_it_is_over() {
    let (memory, mirror) = rig(4);
    memory.frame_of(1).unwrap();
    std::thread::scope(|scope| {
        let fault = mirror
            .migrate(range(1..2), || {
                let fault = scope.spawn(|| mirror.fault(range(1..2), Access::Write).unwrap());
                while mirror.stats().retries == 0 {
                    std::thread::yield_now();
                }
                // Another page is not concerned.
                scope.spawn(|| mirror.fault(range(2..3), Access::Write).unwrap()).join().unwrap();
                memory.move_page(1);
                fault
            })
            .unwrap();
        fault.join().unwrap();
    });
    let mut engine = mirror.engine().unwrap();
    engine.access(address(1), Access::Write, |frame| memory.use_frame(frame, 1, |_| ())).unwrap();
    assert_eq!(mirror.stats().misses, 0);
}

#[test]
fn what_is_taken_is_the_devices_until_the_processor_comes() {
    let (memory, mirror) = rig(4);
    let mut engine = mirror.engine().unwrap();
    let add = |frame| memory.use_frame(frame, 1, |word| word.fetch_add(1, SeqCst));
    for expected in 0..3 {
        assert_eq!(engine.access_alone(address(1), add), Ok(expected));
    }
    assert_eq!(mirror.stats().misses, 1);
    assert!(memory.is_taken(1));
    // For ordinary accesses it is good as well.
    engine.access(address(1), Access::ReadWrite, add).unwrap();
    memory.touch(1);
    assert_eq!(mirror.stats().zapped, 1);
    // A page that is there, but not taken, is not enough.
    engine.access(address(1), Access::Write, add).unwrap();
    assert_eq!(engine.access_alone(address(1), add), Ok(5));
    assert!(memory.is_taken(1));
    assert_eq!(mirror.stats().misses, 3);
}

#[test]
fn who_takes_a_page_takes_it_from_other_mirrors() {
    let memory = Memory::new(0..2);
    let [one, two] = [(), ()].map(|()| Mirror::new(&memory.space, range(0..2), memory.clone()).unwrap());
    one.fault(range(0..2), Access::Write).unwrap();
    two.make_exclusive(range(0..1)).unwrap();
    assert_eq!((one.stats().zapped, two.stats().zapped), (1, 0));
    // And gets it back by a fault like the processor's.
    one.fault(range(0..1), Access::Write).unwrap();
    assert_eq!(two.stats().zapped, 1);
    assert!(!memory.is_taken(0));
}

#[test]
fn what_cannot_be_taken_is_said() {
    let (memory, mirror) = rig(4);
    memory.protect(1..2, false);
    memory.unmap(2..3);
    for page in 1..3 {
        let not_taken = Err(Fault::NotTaken { address: address(page) });
        assert_eq!(mirror.make_exclusive(range(page..page + 1)), not_taken);
    }
    // By default nothing can.
    let own = |address: usize, _: Access| Some(Page::writable(address));
    let mirror = Mirror::new(&memory.space, range(0..4), own).unwrap();
    assert_eq!(mirror.make_exclusive(range(0..1)), Err(Fault::NotTaken { address: address(0) }));
}

/// A page table that gives less than it is asked for.
struct ReadOnly;

impl PageTable for ReadOnly {
    fn look_up(&self, address: usize, _: Access) -> Option<Page> {
        Some(Page::read_only(address))
    }

    fn take(&self, address: usize) -> Option<Page> {
        Some(Page::read_only(address))
    }
}

#[test]
fn what_does_not_allow_the_access_is_not_brought_in() {
    let mirror = Mirror::new(&AddressSpace::new(), range(0..2), ReadOnly).unwrap();
    mirror.fault(range(0..2), Access::Read).unwrap();
    let not_mapped = Fault::NotMapped { address: address(0), access: Access::Write };
    assert_eq!(mirror.fault(range(0..2), Access::Write), Err(not_mapped));
    assert_eq!(mirror.make_exclusive(range(1..2)), Err(Fault::NotTaken { address: address(1) }));
}

/// A page that the device has for itself, and a child's write: the child has the old page, the device goes to the new one.
#[test]
fn exclusive_cow() {
    let (memory, mirror) = rig(2);
    let mut engine = mirror.engine().unwrap();
    let add = |frame| memory.use_frame(frame, 0, |word| word.fetch_add(1, SeqCst));
    engine.access_alone(address(0), add).unwrap();
    // The fork.
    memory.space.invalidate(range(0..2), Event::ProtectionPage, || {
        assert_eq!(mirror.stats().zapped, 1);
    });
    memory.touch(0);
    // The first write behind it.
    memory.space.invalidate(range(0..1), Event::Clear, || memory.move_page(0));
    assert_eq!(engine.access_alone(address(0), add), Ok(1));
}

/// Pages at one device, at another one, and at home, as the second one reads them: what is at the first one comes back.
#[test]
fn migrate_mixed() {
    /// As another device sees it.
    struct Other {
        memory: Arc<Memory>,
        first: Arc<Mirror>,
        at_first: Arc<Mutex<Vec<usize>>>,
    }
    impl PageTable for Other {
        fn look_up(&self, address: usize, access: Access) -> Option<Page> {
            let page = crate::memory::number(address);
            let is_at_first = self.at_first.lock().unwrap().contains(&page);
            if is_at_first {
                let back = || {
                    self.memory.move_page(page);
                    self.at_first.lock().unwrap().retain(|it| *it != page);
                };
                self.first.migrate(range(page..page + 1), back).unwrap();
            }
            self.memory.look_up(address, access)
        }
    }
    let memory = Memory::new(0..6);
    let first = Arc::new(Mirror::new(&memory.space, range(0..6), memory.clone()).unwrap());
    let at_first = Arc::new(Mutex::new(Vec::new()));
    let other = Other { memory: memory.clone(), first: first.clone(), at_first: at_first.clone() };
    let second = Mirror::new(&memory.space, range(0..6), other).unwrap();
    first.fault(range(0..6), Access::Write).unwrap();
    first
        .migrate(range(1..3), || {
            (1..3).for_each(|page| memory.move_page(page));
            at_first.lock().unwrap().extend([1, 2]);
        })
        .unwrap();
    second.migrate(range(4..5), || memory.move_page(4)).unwrap();
    first.fault(range(0..6), Access::Write).unwrap();
    let mut engine = second.engine().unwrap();
    for page in 0..6 {
        engine.access(address(page), Access::Read, |frame| memory.use_frame(frame, page, |_| ())).unwrap();
    }
    assert_eq!(*at_first.lock().unwrap(), [0; 0]);
    // Two times its own, one time the other's, and then what has come back.
    assert_eq!((first.stats().zapped, first.stats().migrations, second.stats().migrations), (5, 3, 1));
    assert!(second.stats().retries >= 2, "the tickets of the second one went stale");
}

/// A change between the taking and the installation.
#[test]
fn a_page_that_is_given_back_while_it_is_taken_is_taken_again() {
    let (memory, mirror) = rig(2);
    let (times, weak) = (AtomicUsize::new(0), Arc::downgrade(&memory));
    memory.on_look_up(move |page| {
        if times.fetch_add(1, SeqCst) == 0 {
            let memory = weak.upgrade().unwrap();
            std::thread::spawn(move || memory.touch(page)).join().unwrap();
        }
    });
    mirror.make_exclusive(range(0..1)).unwrap();
    assert!(memory.is_taken(0));
    assert_eq!(mirror.stats().retries, 1);
}

// All together.

/// What a device sees that moves pages to its own memory inside its faults.
struct Moving {
    memory: Arc<Memory>,
    mirror: OnceLock<Weak<Mirror>>,
    random: Mutex<Random>,
}

impl PageTable for Moving {
    fn look_up(&self, address: usize, access: Access) -> Option<Page> {
        let page = crate::memory::number(address);
        if self.random.lock().unwrap().below(4) == 0 {
            let mirror = self.mirror.get().and_then(Weak::upgrade).expect("it is there");
            mirror.migrate(range(page..page + 1), || self.memory.move_page(page)).unwrap();
        }
        self.memory.look_up(address, access)
    }

    fn peek(&self, address: usize) -> Option<Page> {
        self.memory.peek(address)
    }

    fn take(&self, address: usize) -> Option<Page> {
        self.memory.take(address)
    }
}

/// No access ever goes to a frame that is not, or no longer, that of its page; none that is alone, to one that the processor
/// has.
#[test]
fn engines_beside_changes() {
    const PAGES: usize = 24;
    let memory = Memory::new(0..PAGES);
    let table =
        Arc::new(Moving { memory: memory.clone(), mirror: OnceLock::new(), random: Mutex::new(Random(7)) });
    let mirror = Arc::new(Mirror::new(&memory.space, range(0..PAGES), table.clone()).unwrap());
    table.mirror.set(Arc::downgrade(&mirror)).unwrap();
    let (done, refused, alone) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (memory, mirror, done, refused, alone) = (&memory, &mirror, &done, &refused, &alone);
        for thread in 0..3 {
            scope.spawn(move || {
                let _done = Sets(done);
                let mut engine = mirror.engine().unwrap();
                let mut random = Random(thread);
                for _ in 0..4_000 {
                    let page = random.below(PAGES);
                    let used = match random.below(8) {
                        0 => engine.access_alone(address(page), |frame| {
                            assert!(memory.is_taken(page), "the processor gets there");
                            memory.use_frame(frame, page, |word| word.fetch_add(1, SeqCst));
                            assert!(memory.is_taken(page), "the processor gets there");
                            alone.fetch_add(1, SeqCst);
                        }),
                        1 => mirror.fault(range(page..(page + 3).min(PAGES)), Access::Read),
                        2 => mirror.snapshot(range(page..page + 1)).map(drop),
                        number => {
                            let access = if number % 2 == 0 { Access::Read } else { Access::Write };
                            engine.access(address(page), access, |frame| {
                                assert!(access == Access::Read || memory.is_writable(page));
                                memory.use_frame(frame, page, |word| word.fetch_add(1, SeqCst));
                            })
                        }
                    };
                    match used {
                        Ok(())
                        | Err(Fault::NotMapped { .. } | Fault::NotTaken { .. } | Fault::Unsettled { .. }) => {
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for thread in 0..2 {
            scope.spawn(move || {
                let mut random = Random(100 + thread);
                while !done.load(SeqCst) {
                    let start = random.below(PAGES - 2);
                    match random.below(6) {
                        0 => memory.unmap(start..start + 2),
                        1 => {
                            _ = refused
                                .fetch_add(memory.try_discard(start..start + 1).is_err().into(), SeqCst)
                        }
                        2 => memory.protect(start..start + 2, false),
                        3 => memory.touch(start),
                        4 => mirror.migrate(range(start..start + 1), || memory.move_page(start)).unwrap(),
                        _ => memory.protect(start..start + 2, true),
                    }
                    memory.map(start..start + 2);
                }
            });
        }
    });
    let stats = mirror.stats();
    assert!(stats.zapped > 0 && stats.misses > 0 && stats.retries > 0 && alone.load(SeqCst) > 0);
    assert_eq!(stats.refused, refused.load(SeqCst) as u64);
    memory.try_discard(0..PAGES).unwrap();
}
