//! `gru`: the count, the wait queue, the flush.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};

use mmu_notifier::{AddressSpace, Blocking, Change, Event, Range, Subscriber};
use mmu_notifier_secondary::device::{Access, PageTable};
use mmu_notifier_secondary::gru::{Context, Fault, Gru, NoContext};

use crate::memory::{Memory, Random, Sets, address, range};

fn rig(pages: usize) -> (Arc<Memory>, Gru) {
    let memory = Memory::new(0..pages);
    let gru = Gru::new(&memory.space, memory.clone());
    (memory, gru)
}

/// The frame that the context finds.
fn read(context: &mut Context<'_>, page: usize) -> Result<usize, Fault> {
    context.access(address(page), Access::Read, |pointer| pointer)
}

#[test]
fn the_second_access_to_a_page_hits() {
    let (memory, gru) = rig(4);
    let mut context = gru.context().unwrap();
    let first = read(&mut context, 1).unwrap();
    assert_eq!(Some(first), memory.frame_of(1));
    assert_eq!(context.access(address(1) + 24, Access::Write, |pointer| pointer), Ok(first + 24));
    let stats = gru.stats();
    assert_eq!((stats.faults, stats.hits), (1, 1));
    assert_eq!(memory.look_ups.load(SeqCst), 1);
}

#[test]
fn a_start_flushes_its_range_in_all_contexts_and_nothing_else() {
    let (memory, gru) = rig(8);
    let mut contexts = [gru.context().unwrap(), gru.context().unwrap()];
    for context in &mut contexts {
        (0..8).for_each(|page| _ = read(context, page).unwrap());
    }
    memory.space.invalidate(range(2..4), Event::Unmap, || {
        assert_eq!(gru.stats().flushed, 4);
        memory.drop_pages(2..4, true);
    });
    let before = gru.stats();
    for context in &mut contexts {
        for page in 0..8 {
            match read(context, page) {
                Ok(frame) => assert_eq!(memory.frame_of(page), Some(frame)),
                Err(error) => {
                    assert!((2..4).contains(&page));
                    assert_eq!(error, Fault::NotMapped { address: address(page), access: Access::Read });
                }
            }
        }
    }
    let after = gru.stats();
    assert_eq!((after.hits - before.hits, after.faults - before.faults), (12, 4));
}

#[test]
fn a_change_of_part_of_a_page_flushes_the_page() {
    let (memory, gru) = rig(2);
    let mut context = gru.context().unwrap();
    read(&mut context, 1).unwrap();
    memory.space.invalidate(Range::with_len(address(1) + 100, 1).unwrap(), Event::Clear, || ());
    assert_eq!(gru.stats().flushed, 1);
}

#[test]
fn a_page_that_cannot_be_written_faults_on_a_write_only() {
    let (memory, gru) = rig(1);
    memory.protect(0..1, false);
    let mut context = gru.context().unwrap();
    read(&mut context, 0).unwrap();
    let denied = context.access(address(0), Access::Write, |_| unreachable!("it is read-only"));
    assert_eq!(denied, Err(Fault::NotMapped { address: address(0), access: Access::Write }));
    memory.protect(0..1, true);
    context.access(address(0), Access::Write, |_| ()).unwrap();
}

#[test]
fn two_pages_that_share_an_entry_take_turns() {
    let (memory, gru) = rig(65);
    let mut context = gru.context().unwrap();
    for _ in 0..3 {
        for page in [0, 64] {
            assert_eq!(read(&mut context, page).ok(), memory.frame_of(page));
        }
    }
    assert_eq!(gru.stats().faults, 6);
}

#[test]
fn a_start_is_never_refused() {
    let (memory, gru) = rig(1);
    let mut context = gru.context().unwrap();
    read(&mut context, 0).unwrap();
    assert_eq!(memory.try_discard(0..1), Ok(()));
    assert_eq!((gru.stats().starts, gru.stats().flushed, gru.stats().active), (1, 1, 0));
}

#[test]
fn the_count_is_that_of_open_changes() {
    let (memory, gru) = rig(4);
    let open =
        |pages| memory.space.begin(Change::new(range(pages), Event::Clear, Blocking::Allowed)).unwrap();
    let (first, second) = (open(0..1), open(0..4));
    assert_eq!(gru.stats().active, 2);
    first.end();
    assert_eq!(gru.stats().active, 1);
    second.end();
    assert_eq!(gru.stats().active, 0);
}

/// The only thing that a fault that comes during a change relies on is the count.
#[test]
fn a_fault_waits_until_no_change_is_open() {
    let (memory, gru) = rig(4);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        memory.space.invalidate(range(0..1), Event::Clear, || {
            // Another page: the count knows no ranges.
            scope.spawn(|| {
                gru.context()
                    .unwrap()
                    .access(address(3), Access::Read, |_| assert!(is_over.load(SeqCst)))
                    .unwrap();
            });
            while gru.stats().waits == 0 {
                std::thread::yield_now();
            }
            assert_eq!(memory.look_ups.load(SeqCst), 0);
            is_over.store(true, SeqCst);
        });
    });
    assert_eq!(gru.stats().active, 0);
}

/// Holds changes up at their end, until somebody waits for that in the queue.
struct Holding(Arc<Gru>);

impl Subscriber for Holding {
    fn start(&self, _: &Change) {}
    fn end(&self, _: &Change) {
        while self.0.stats().waiting == 0 {
            std::thread::yield_now();
        }
    }
}

#[test]
fn the_last_end_wakes_who_waits() {
    let memory = Memory::new(0..4);
    let gru = Arc::new(Gru::new(&memory.space, memory.clone()));
    let _told_first = memory.space.subscribe(Holding(gru.clone()));
    std::thread::scope(|scope| {
        memory.space.invalidate(range(0..1), Event::Clear, || {
            scope.spawn(|| read(&mut gru.context().unwrap(), 3).unwrap());
            while gru.stats().waits == 0 {
                std::thread::yield_now();
            }
        });
    });
    assert_eq!((gru.stats().active, gru.stats().waiting), (0, 0));
}

#[test]
fn a_change_while_a_page_is_looked_up_kills_the_fault() {
    let (memory, gru) = rig(4);
    let count = AtomicUsize::new(0);
    let weak = Arc::downgrade(&memory);
    memory.on_look_up(move |page| {
        if count.fetch_add(1, SeqCst) < 3 {
            weak.upgrade().unwrap().discard(page..page + 1);
        }
    });
    let mut context = gru.context().unwrap();
    let frame = read(&mut context, 2).unwrap();
    memory.use_frame(frame, 2, |_| ());
    let stats = gru.stats();
    assert_eq!((stats.killed, stats.retries, stats.faults), (3, 3, 1));
}

#[test]
fn a_change_elsewhere_while_a_page_is_looked_up_kills_nothing() {
    let (memory, gru) = rig(4);
    let weak = Arc::downgrade(&memory);
    memory.on_look_up(move |_| weak.upgrade().unwrap().discard(3..4));
    read(&mut gru.context().unwrap(), 2).unwrap();
    assert_eq!((gru.stats().killed, gru.stats().retries), (0, 0));
}

/// The change begins behind the look at the count, and ends in the middle of the fault.
#[test]
fn a_change_that_is_still_open_when_the_look_up_returns_is_not_missed() {
    let (memory, gru) = rig(4);
    let (seen, has_seen) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = std::sync::Mutex::new(may_go);
    let first = AtomicBool::new(true);
    memory.on_look_up(move |_| {
        if first.swap(false, SeqCst) {
            seen.send(()).unwrap();
            may_go.lock().unwrap().recv().unwrap();
        }
    });
    std::thread::scope(|scope| {
        let fault = scope.spawn(|| read(&mut gru.context().unwrap(), 0).unwrap());
        has_seen.recv().unwrap();
        memory.space.invalidate(range(0..1), Event::Clear, || {
            go.send(()).unwrap();
            while gru.stats().retries == 0 {
                std::thread::yield_now();
            }
            memory.drop_pages(0..1, false);
        });
        memory.use_frame(fault.join().unwrap(), 0, |_| ());
    });
    assert_eq!(gru.stats().killed, 1);
}

#[test]
fn a_page_that_is_being_replaced_is_not_missing() {
    let (memory, gru) = rig(1);
    let (weak, first) = (Arc::downgrade(&memory), AtomicBool::new(true));
    let missing = Arc::new(AtomicBool::new(true));
    let table = {
        let (memory, missing) = (memory.clone(), missing.clone());
        move |address: usize, access: Access| {
            let found = memory.look_up(address, access);
            if missing.load(SeqCst) { None } else { found }
        }
    };
    drop(gru);
    let gru = Gru::new(&memory.space, table);
    memory.on_look_up(move |_| {
        if first.swap(false, SeqCst) {
            weak.upgrade().unwrap().discard(0..1);
        } else {
            missing.store(false, SeqCst);
        }
    });
    assert!(read(&mut gru.context().unwrap(), 0).is_ok());
}

#[test]
fn a_start_waits_for_the_access_under_way_also_if_another_start_has_flushed_the_entry() {
    let (memory, gru) = rig(2);
    let (inside, is_inside) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let has_left = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (memory, gru, has_left) = (&memory, &gru, &has_left);
        scope.spawn(move || {
            let mut context = gru.context().unwrap();
            let operation = |_| {
                inside.send(()).unwrap();
                may_leave.recv().unwrap();
                has_left.store(true, SeqCst);
            };
            context.access(address(1), Access::Write, operation).unwrap();
        });
        is_inside.recv().unwrap();
        let change = || {
            memory.space.invalidate(range(1..2), Event::Unmap, || assert!(has_left.load(SeqCst)));
        };
        let (first, second) = (scope.spawn(change), scope.spawn(change));
        while gru.stats().starts < 2 {
            std::thread::yield_now();
        }
        // An access to another page is nobody's business.
        memory.discard(0..1);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!first.is_finished() && !second.is_finished());
        leave.send(()).unwrap();
    });
    assert_eq!(gru.stats().flushed, 1);
}

#[test]
fn a_thread_that_changes_the_page_it_is_accessing_does_not_wait_for_itself() {
    let (memory, gru) = rig(1);
    let mut context = gru.context().unwrap();
    context.access(address(0), Access::Read, |_| memory.discard(0..1)).unwrap();
    assert_eq!(gru.stats().flushed, 1);
}

#[test]
fn a_fault_inside_a_change_of_the_same_thread_is_an_error() {
    let (memory, gru) = rig(4);
    let mut context = gru.context().unwrap();
    memory.space.invalidate(range(0..1), Event::Clear, || {
        assert_eq!(read(&mut context, 3), Err(Fault::Changing { address: address(3) }));
    });
    read(&mut context, 3).unwrap();
}

#[test]
fn after_release_nothing_is_loaded_and_who_waits_is_woken() {
    let memory = Memory::new(0..4);
    let gru = Arc::new(Gru::new(&memory.space, memory.clone()));
    let mut context = gru.context().unwrap();
    read(&mut context, 1).unwrap();
    let open = memory.space.begin(Change::new(range(0..1), Event::Clear, Blocking::Allowed)).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| read(&mut gru.context().unwrap(), 3));
        while gru.stats().waits == 0 {
            std::thread::yield_now();
        }
        // The open change gets no end any more: the count stays.
        memory.space.release();
        open.end();
        assert_eq!(waiter.join().unwrap(), Err(Fault::Released { address: address(3) }));
    });
    assert_eq!(gru.stats().active, 1);
    assert_eq!(read(&mut context, 1), Err(Fault::Released { address: address(1) }));
}

/// With no change open, only the release itself says so.
#[test]
fn after_release_nothing_is_loaded() {
    let (memory, gru) = rig(2);
    memory.space.release();
    let mut context = gru.context().unwrap();
    assert_eq!(read(&mut context, 1), Err(Fault::Released { address: address(1) }));
}

/// Releases the address space at the end of a change, when somebody waits for that in the queue.
struct Releasing(Arc<Gru>, AddressSpace);

impl Subscriber for Releasing {
    fn start(&self, _: &Change) {}
    fn end(&self, _: &Change) {
        while self.0.stats().waiting == 0 {
            std::thread::yield_now();
        }
        self.1.release();
    }
}

#[test]
fn release_wakes_who_waits_for_an_end_that_does_not_come() {
    let memory = Memory::new(0..4);
    let gru = Arc::new(Gru::new(&memory.space, memory.clone()));
    let _told_first = memory.space.subscribe(Releasing(gru.clone(), memory.space.clone()));
    std::thread::scope(|scope| {
        let waiter = memory.space.invalidate(range(0..1), Event::Clear, || {
            let waiter = scope.spawn(|| read(&mut gru.context().unwrap(), 3));
            while gru.stats().waits == 0 {
                std::thread::yield_now();
            }
            waiter
        });
        assert_eq!(waiter.join().unwrap(), Err(Fault::Released { address: address(3) }));
    });
}

#[test]
fn there_are_so_many_contexts_and_one_that_is_reused_is_empty() {
    let (memory, gru) = rig(4);
    let mut contexts: Vec<_> = (0..Gru::CONTEXTS).map(|_| gru.context().unwrap()).collect();
    assert_eq!(gru.context().unwrap_err(), NoContext);
    assert_eq!(NoContext.to_string(), "all 16 contexts of the device are in use");
    read(&mut contexts[5], 1).unwrap();
    contexts.remove(5);
    read(&mut gru.context().unwrap(), 1).unwrap();
    assert_eq!((gru.stats().hits, memory.look_ups.load(SeqCst)), (0, 2));
}

#[test]
fn a_panic_in_the_page_table_leaves_nothing_behind() {
    let (memory, gru) = rig(1);
    memory.on_look_up(|_| panic!("on purpose"));
    let mut context = gru.context().unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&mut context, 0)));
    assert!(panicked.is_err());
    memory.do_nothing_else();
    read(&mut context, 0).unwrap();
}

#[test]
fn unsubscribing_inside_a_change_is_no_trouble() {
    let (memory, gru) = rig(1);
    memory.space.invalidate(range(0..1), Event::Clear, || drop(gru));
    assert!(!memory.space.has_subscribers());
}

#[test]
fn errors_say_where() {
    let fault = Fault::NotMapped { address: 0x1008, access: Access::Write };
    assert_eq!(fault.to_string(), "nothing at 0x1008 allows access for writing");
}

/// No access ever goes to a frame that is not, or no longer, that of its page.
#[test]
fn contexts_beside_changes() {
    let (memory, gru) = rig(24);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (memory, gru, done) = (&memory, &gru, &done);
        for thread in 0..3 {
            scope.spawn(move || {
                let _done = Sets(done);
                let mut context = gru.context().unwrap();
                let mut random = Random(thread);
                for _ in 0..60_000 {
                    let page = random.below(24);
                    let access = if random.below(2) == 0 { Access::Read } else { Access::Write };
                    _ = context.access(address(page), access, |frame| {
                        assert!(access == Access::Read || memory.is_writable(page));
                        memory.use_frame(frame, page, |word| word.fetch_add(1, SeqCst));
                    });
                }
            });
        }
        for thread in 0..2 {
            scope.spawn(move || {
                let mut random = Random(100 + thread);
                while !done.load(SeqCst) {
                    let start = random.below(22);
                    match random.below(4) {
                        0 => memory.unmap(start..start + 2),
                        1 => _ = memory.try_discard(start..start + 1),
                        2 => memory.protect(start..start + 2, false),
                        _ => memory.protect(start..start + 2, true),
                    }
                    memory.map(start..start + 2);
                }
            });
        }
    });
    let stats = gru.stats();
    assert_eq!((stats.active, stats.waiting), (0, 0));
    assert!(stats.flushed > 0 && stats.faults > 0);
}
