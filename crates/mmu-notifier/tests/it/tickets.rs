use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mmu_notifier::{AddressSpace, Blocking, Change, Event, Subscription, Ticketed, WouldBlock};

use crate::witness::{Busy, Log, PAGES, Task, Witness, change, end_abandoned, try_change};

type Callback = Box<dyn Fn(&Change) + Send + Sync>;

/// Numbers its starts: `T+1` is the first, `T?1` the same without waiting, `T-1` its end, `Tx1` its ticket dropped.
struct Numbering {
    log: Log,
    count: AtomicUsize,
    refuses: Arc<AtomicBool>,
    on_start: Callback,
    on_end: Callback,
}

struct Number(usize, Log, bool);

impl Drop for Number {
    fn drop(&mut self) {
        if !self.2 {
            self.1.add(&format!("Tx{}", self.0));
        }
    }
}

impl Numbering {
    fn new(log: &Log) -> Numbering {
        let nothing = || Box::new(|_: &Change| {});
        let count = AtomicUsize::new(0);
        Numbering { log: log.clone(), count, refuses: Arc::default(), on_start: nothing(), on_end: nothing() }
    }

    fn number(&self, how: &str, change: &Change) -> Number {
        let number = 1 + self.count.fetch_add(1, Ordering::SeqCst);
        self.log.add(&format!("T{how}{number}"));
        (self.on_start)(change);
        Number(number, self.log.clone(), false)
    }
}

impl Ticketed for Numbering {
    type Ticket = Number;

    fn start(&self, change: &Change) -> Number {
        assert_eq!(change.blocking(), Blocking::Allowed);
        self.number("+", change)
    }

    fn try_start(&self, change: &Change) -> Result<Number, WouldBlock> {
        assert_eq!(change.blocking(), Blocking::Forbidden);
        if self.refuses.load(Ordering::SeqCst) {
            self.log.add("T!");
            return Err(WouldBlock);
        }
        Ok(self.number("?", change))
    }

    fn end(&self, change: &Change, mut ticket: Number) {
        ticket.2 = true;
        self.log.add(&format!("T-{}", ticket.0));
        (self.on_end)(change);
    }

    fn release(&self) {
        self.log.add("T~");
    }
}

const CHANGE: Change = Change::new(PAGES, Event::Unmap, Blocking::Allowed);

#[test]
fn each_end_gets_what_its_own_start_returned() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _t = space.subscribe_ticketed(Numbering::new(&log));
    space.invalidate(PAGES, Event::Unmap, || {
        assert_eq!(try_change(&space, &log), Ok(()));
        let caller = space.caller();
        let (three, four) = (space.start(&caller, CHANGE).unwrap(), space.start(&caller, CHANGE).unwrap());
        assert!(space.end(&caller, three) && space.end(&caller, four));
    });
    assert_eq!(log.take(), "T+1 T?2 * T-2 T+3 T+4 T-3 T-4 T-1");
}

#[test]
fn who_refused_has_no_end_and_everybody_else_has() {
    let log = Log::default();
    let space = AddressSpace::new();
    let ticketed = Numbering::new(&log);
    let refuses = ticketed.refuses.clone();
    let _b = space.subscribe(Witness::new("B", &log));
    let _t = space.subscribe_ticketed(ticketed);
    let _a = space.subscribe(Witness::new("A", &log));
    refuses.store(true, Ordering::SeqCst);
    assert_eq!(try_change(&space, &log), Err(WouldBlock));
    assert_eq!(log.take(), "A+ T! B+ A- B-");
    change(&space, &log);
    assert_eq!(log.take(), "A+ T+1 B+ * A- T-1 B-");
}

#[test]
fn who_agreed_gets_its_ticket_back_when_somebody_else_refuses() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _n = space.subscribe_refuser(Busy::new("N", &log, 1));
    let _t = space.subscribe_ticketed(Numbering::new(&log));
    assert_eq!(try_change(&space, &log), Err(WouldBlock));
    assert_eq!(log.take(), "T?1 N! T-1");
}

#[test]
fn a_ticket_follows_its_change_to_another_thread() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _t = space.subscribe_ticketed(Numbering::new(&log));
    let open = space.start(&space.caller(), CHANGE).unwrap();
    let ending = space.clone();
    assert!(Task::new(move || ending.end(&ending.caller(), open)).finish());
    assert_eq!(log.take(), "T+1 T-1");
}

#[test]
fn tickets_of_open_changes_are_dropped_with_a_subscriber_that_leaves() {
    let log = Log::default();
    let space = AddressSpace::new();
    let subscription = space.subscribe_ticketed(Numbering::new(&log));
    let caller = space.caller();
    let open = [space.start(&caller, CHANGE).unwrap(), space.start(&caller, CHANGE).unwrap()];
    drop(subscription);
    let told = log.take();
    assert!(told.starts_with("T+1 T+2 T~ Tx"), "{told}");
    assert!(told.contains("Tx1") && told.contains("Tx2"));
    open.into_iter().for_each(|open| assert!(space.end(&caller, open)));
    assert_eq!(log.take(), "", "and nobody is told of the ends");
}

#[test]
fn who_leaves_inside_its_own_callback_loses_its_tickets_later() {
    for in_end in [false, true] {
        let log = Log::default();
        let space = AddressSpace::new();
        let own = Arc::new(Mutex::new(None::<Subscription>));
        let take = own.clone();
        let leave: Callback = Box::new(move |_| drop(take.lock().unwrap().take()));
        let mut ticketed = Numbering::new(&log);
        *(if in_end { &mut ticketed.on_end } else { &mut ticketed.on_start }) = leave;
        *own.lock().unwrap() = Some(space.subscribe_ticketed(ticketed));
        change(&space, &log);
        assert_eq!(log.take(), if in_end { "T+1 * T-1 T~" } else { "T+1 T~ *" });
        assert!(space.synchronize());
        assert_eq!(log.take(), if in_end { "" } else { "Tx1" });
    }
}

#[test]
fn a_panic_in_a_ticketed_start_or_end_leaves_nothing_open() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _a = space.subscribe(Witness::new("A", &log));
    let (mut bad_start, mut bad_end) = (Numbering::new(&log), Numbering::new(&log));
    bad_start.on_start = Box::new(|_| panic!("no start"));
    bad_end.on_end = Box::new(|_| panic!("no end"));
    let subscription = space.subscribe_ticketed(bad_start);
    assert!(catch_unwind(AssertUnwindSafe(|| change(&space, &log))).is_err());
    assert_eq!(log.take(), "T+1", "it has not started, and the next one was not asked");
    drop(subscription);
    log.take();
    let _subscription = space.subscribe_ticketed(bad_end);
    assert!(catch_unwind(AssertUnwindSafe(|| change(&space, &log))).is_err());
    assert_eq!(log.take(), "T+1 A+ * T-1 A-");
}

#[test]
fn an_abandoned_changes_ticket_goes_to_its_end() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _t = space.subscribe_ticketed(Numbering::new(&log));
    let caller = space.caller().with_stack(0x1000);
    let _left = space.start(&caller, CHANGE).unwrap();
    assert_eq!(end_abandoned(&space, &caller, |stack| stack == 0x1000).changes, 1);
    assert_eq!(log.take(), "T+1 T-1");
}

#[test]
fn tickets_of_many_threads_do_not_mix() {
    /// Its ticket is the thread it was made on.
    struct Own;
    impl Ticketed for Own {
        type Ticket = std::thread::ThreadId;
        fn start(&self, _: &Change) -> std::thread::ThreadId {
            std::thread::current().id()
        }
        fn try_start(&self, change: &Change) -> Result<std::thread::ThreadId, WouldBlock> {
            Ok(self.start(change))
        }
        fn end(&self, _: &Change, ticket: std::thread::ThreadId) {
            assert_eq!(ticket, std::thread::current().id());
        }
    }
    let space = AddressSpace::new();
    let _t = space.subscribe_ticketed(Own);
    let rounds = if cfg!(miri) { 20 } else { 2000 };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..rounds {
                    space.invalidate(PAGES, Event::Clear, || {
                        _ = space.try_invalidate(PAGES, Event::Clear, || ())
                    });
                }
            });
        }
    });
}
