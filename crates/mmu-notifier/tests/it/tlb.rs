use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use mmu_notifier::{AddressSpace, Event, Range, SecondaryTlb, Subscription};

use crate::witness::{Log, Mirror, PAGES, Task, Witness, change, meeting, range};

struct Walker {
    name: &'static str,
    log: Log,
    flushed: Box<dyn Fn() + Send + Sync>,
}

impl Walker {
    fn new(name: &'static str, log: &Log) -> Walker {
        Walker { name, log: log.clone(), flushed: Box::new(|| {}) }
    }
}

impl SecondaryTlb for Walker {
    fn flush(&self, range: Range) {
        self.log.add(&format!("{}{range}", self.name));
        (self.flushed)();
    }

    fn release(&self) {
        self.log.add(&format!("{}~", self.name));
    }
}

#[test]
fn everybody_flushes_newest_first_and_no_change_flushes() {
    let log = Log::default();
    let space = AddressSpace::new();
    space.flush(PAGES);
    let _a = space.subscribe_tlb(Walker::new("A", &log));
    let b = space.subscribe_tlb(Walker::new("B", &log));
    space.flush(range(0x1000, 0x2000));
    assert_eq!(log.take(), "B[0x1000, 0x2000) A[0x1000, 0x2000)");
    change(&space, &log);
    assert_eq!(log.take(), "*");
    drop(b);
    space.flush(Range::EVERYTHING);
    assert_eq!(log.take(), format!("B~ A{}", Range::EVERYTHING));
}

#[test]
fn a_flush_is_no_change() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _t = space.subscribe_tlb(Walker::new("T", &log));
    let _w = space.subscribe(Witness::new("W", &log));
    let interval = space.insert(PAGES, Mirror::new("I", &log)).unwrap();
    let ticket = interval.read();
    space.flush(PAGES);
    assert!(!interval.is_stale(&ticket));
    space.invalidate(PAGES, Event::Unmap, || space.flush(PAGES));
    assert_eq!(log.take(), format!("T{PAGES} I+ W+ T{PAGES} W-"));
    assert_eq!(space.stats().changes.iter().sum::<u64>(), 1);
}

#[test]
fn who_leaves_waits_for_its_flush_and_may_leave_inside_of_it() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (meeting, gate) = meeting();
    let slow = Walker { flushed: Box::new(move || meeting.stop()), ..Walker::new("A", &log) };
    let subscription = space.subscribe_tlb(slow);
    let flushing = space.clone();
    let flushing = Task::new(move || flushing.flush(PAGES));
    gate.await_other();
    let leaving = Task::new(move || drop(subscription));
    assert!(leaving.waits());
    gate.let_go();
    leaving.finish();
    flushing.finish();
    assert_eq!(log.take(), format!("A{PAGES} A~"));

    let own = Arc::new(Mutex::new(None::<Subscription>));
    let take = own.clone();
    let leave = Box::new(move || drop(take.lock().unwrap().take()));
    *own.lock().unwrap() = Some(space.subscribe_tlb(Walker { flushed: leave, ..Walker::new("B", &log) }));
    space.flush(PAGES);
    space.flush(PAGES);
    assert_eq!(log.take(), format!("B{PAGES} B~"));
}

#[test]
fn a_panic_keeps_no_flush_from_the_others_and_leaves_nothing_open() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _a = space.subscribe_tlb(Walker::new("A", &log));
    let _b =
        space.subscribe_tlb(Walker { flushed: Box::new(|| panic!("no flush")), ..Walker::new("B", &log) });
    for _ in 0..1100 {
        assert!(catch_unwind(AssertUnwindSafe(|| space.flush(PAGES))).is_err());
        assert_eq!(log.take(), format!("B{PAGES} A{PAGES}"));
    }
}
