use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use mmu_notifier::{AddressSpace, Aging, Event, Range, Subscription};

use crate::witness::{Log, Mirror, PAGES, Task, Witness, change, meeting};

/// Says what it is asked, and answers always the same.
struct Old {
    name: &'static str,
    log: Log,
    young: bool,
    asked: Box<dyn Fn() + Send + Sync>,
}

impl Old {
    fn new(name: &'static str, log: &Log, young: bool) -> Old {
        Old { name, log: log.clone(), young, asked: Box::new(|| {}) }
    }

    fn asked(self, asked: impl Fn() + Send + Sync + 'static) -> Old {
        Old { asked: Box::new(asked), ..self }
    }

    fn answer(&self, what: &str) -> bool {
        self.log.add(&format!("{}:{what}", self.name));
        (self.asked)();
        self.young
    }
}

impl Aging for Old {
    fn clear_flush_young(&self, range: Range) -> bool {
        self.answer(&format!("flush{range}"))
    }

    fn clear_young(&self, range: Range) -> bool {
        self.answer(&format!("clear{range}"))
    }

    fn test_young(&self, address: usize) -> bool {
        self.answer(&format!("test{address:#x}"))
    }

    fn release(&self) {
        self.log.add(&format!("{}~", self.name));
    }
}

#[test]
fn clearing_asks_everybody_and_one_young_makes_all_young() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _a = space.subscribe_aging(Old::new("A", &log, false));
    assert!(!space.clear_young(PAGES) && !space.clear_flush_young(PAGES));
    log.take();
    let _b = space.subscribe_aging(Old::new("B", &log, true));
    let _c = space.subscribe_aging(Old::new("C", &log, false));
    assert!(space.clear_young(PAGES));
    assert_eq!(log.take(), format!("C:clear{PAGES} B:clear{PAGES} A:clear{PAGES}"));
    assert!(space.clear_flush_young(PAGES));
    assert_eq!(log.take(), format!("C:flush{PAGES} B:flush{PAGES} A:flush{PAGES}"));
}

#[test]
fn testing_stops_at_the_first_young_one() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _a = space.subscribe_aging(Old::new("A", &log, true));
    let _b = space.subscribe_aging(Old::new("B", &log, true));
    let last = space.subscribe_aging(Old::new("C", &log, false));
    assert!(space.test_young(0x1234));
    assert_eq!(log.take(), "C:test0x1234 B:test0x1234");
    drop(last);
    assert!(space.test_young(usize::MAX), "also of the last byte");
    assert_eq!(log.take(), "C~ B:test0xffffffffffffffff");
}

#[test]
fn where_nobody_ages_nothing_is_young() {
    let log = Log::default();
    let space = AddressSpace::new();
    let asks = || space.test_young(0x1000) || space.clear_young(PAGES) || space.clear_flush_young(PAGES);
    assert!(!asks());
    let _i = space.insert(PAGES, Mirror::new("I", &log)).unwrap();
    let _w = space.subscribe(Witness::new("W", &log));
    assert!(!asks());
    let old = space.subscribe_aging(Old::new("A", &log, true));
    assert!(asks());
    drop(old);
    log.take();
    assert!(!asks());
    assert_eq!(log.take(), "");
}

#[test]
fn changes_are_not_told_to_who_only_ages_and_aging_is_no_change() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _a = space.subscribe_aging(Old::new("A", &log, true));
    let interval = space.insert(PAGES, Mirror::new("I", &log)).unwrap();
    let _w = space.subscribe(Witness::new("W", &log));
    let ticket = interval.read();
    assert!(space.clear_flush_young(PAGES));
    assert_eq!(log.take(), format!("A:flush{PAGES}"));
    assert!(!interval.is_stale(&ticket));
    change(&space, &log);
    assert_eq!(log.take(), "I+ W+ * W-");
}

#[test]
fn aging_works_inside_a_change_and_a_change_inside_aging() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (inner, inner_log) = (space.clone(), log.clone());
    let old = Old::new("A", &log, true).asked(move || {
        change(&inner, &inner_log);
        assert!(!inner.test_young(0), "not asked inside its own callback");
    });
    let _a = space.subscribe_aging(old);
    let _w = space.subscribe(Witness::new("W", &log));
    space.invalidate(PAGES, Event::Unmap, || assert!(space.test_young(0x1000)));
    assert_eq!(log.take(), "W+ A:test0x1000 W+ * W- W-");
}

#[test]
fn who_leaves_waits_for_being_asked_and_is_not_asked_any_more() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (meeting, gate) = meeting();
    let subscription = space.subscribe_aging(Old::new("A", &log, true).asked(move || meeting.stop()));
    let asking = space.clone();
    let asking = Task::new(move || asking.test_young(0x1000));
    gate.await_other();
    let leaving = Task::new(move || drop(subscription));
    assert!(leaving.waits());
    gate.let_go();
    leaving.finish();
    assert!(asking.finish());
    assert_eq!(log.take(), "A:test0x1000 A~");
    assert!(!space.test_young(0x1000));
}

#[test]
fn who_ages_may_leave_while_it_is_asked() {
    let log = Log::default();
    let space = AddressSpace::new();
    let own = Arc::new(Mutex::new(None::<Subscription>));
    let take = own.clone();
    let old = Old::new("A", &log, true).asked(move || drop(take.lock().unwrap().take()));
    *own.lock().unwrap() = Some(space.subscribe_aging(old));
    assert!(space.clear_young(PAGES));
    assert!(!space.clear_young(PAGES));
    assert_eq!(log.take(), format!("A:clear{PAGES} A~"));
}

#[test]
fn a_panic_keeps_nobody_from_being_asked_and_leaves_nothing_open() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _a = space.subscribe_aging(Old::new("A", &log, false));
    let _b = space.subscribe_aging(Old::new("B", &log, false).asked(|| panic!("no answer")));
    for _ in 0..1100 {
        assert!(catch_unwind(AssertUnwindSafe(|| space.clear_young(PAGES))).is_err());
        assert_eq!(log.take(), format!("B:clear{PAGES} A:clear{PAGES}"));
    }
}

#[test]
fn who_is_unsubscribed_by_who_is_asked_before_is_not_asked() {
    let log = Log::default();
    let space = AddressSpace::new();
    let next: Arc<Mutex<Option<Subscription>>> = Arc::default();
    *next.lock().unwrap() = Some(space.subscribe_aging(Old::new("B", &log, false)));
    let _a =
        space.subscribe_aging(Old::new("A", &log, true).asked(move || drop(next.lock().unwrap().take())));
    assert!(space.clear_young(PAGES));
    assert_eq!(log.take(), format!("A:clear{PAGES} B~"));
}
