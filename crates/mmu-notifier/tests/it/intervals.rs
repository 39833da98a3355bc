use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use mmu_notifier::{AddressSpace, Blocking, Change, Event, IntervalSubscription, Range, WouldBlock};

use crate::witness::{
    Busy, Elsewhere, Log, Mirror, PAGES, Task, Witness, blocking, change, forked, meeting, range, try_change,
};

/// Makes a blocking change of these bytes; what was told.
fn told(space: &AddressSpace, log: &Log, start: usize, end: usize) -> String {
    space.invalidate(range(start, end), Event::Unmap, || ());
    log.take()
}

fn insert(space: &AddressSpace, log: &Log, name: &'static str, range: Range) -> IntervalSubscription {
    space.insert(range, Mirror::new(name, log)).unwrap()
}

#[test]
fn only_who_overlaps_is_told_to_the_byte() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _interval = insert(&space, &log, "I", range(0x1000, 0x3000));
    for (start, end, hit) in [
        (0, 0x1000, false),
        (0, 0x1001, true),
        (0xfff, 0x1001, true),
        (0x1000, 0x1001, true),
        (0x2fff, 0x3000, true),
        (0x2fff, 0x9000, true),
        (0x3000, 0x3001, false),
        (0x1800, 0x1801, true),
        (0, usize::MAX, true),
        (0x3000, usize::MAX, false),
    ] {
        assert_eq!(told(&space, &log, start, end), if hit { "I+" } else { "" }, "{start:#x}..{end:#x}");
    }
}

#[test]
fn they_are_told_by_ascending_first_address_and_then_by_age() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _kept: Vec<_> =
        [("C", 0x3000, 0x4000), ("B", 0x2000, 0x9000), ("D", 0x3000, 0x3001), ("A", 0x1000, 0x9000)]
            .map(|(name, start, end)| insert(&space, &log, name, range(start, end)))
            .into();
    let _last = insert(&space, &log, "E", range(0x3000, 0x4000));
    assert_eq!(told(&space, &log, 0, 0x10000), "A+ B+ C+ D+ E+");
    assert_eq!(told(&space, &log, 0x3800, 0x3801), "A+ B+ C+ E+");
}

#[test]
fn one_range_may_be_inserted_many_times() {
    let log = Log::default();
    let space = AddressSpace::new();
    let mut kept: Vec<_> = (0..40).map(|_| insert(&space, &log, "I", PAGES)).collect();
    assert_eq!(told(&space, &log, 0x1000, 0x2000).matches("I+").count(), 40);
    drop(kept.drain(..39));
    log.take();
    assert_eq!(told(&space, &log, 0x1000, 0x2000), "I+");
}

#[test]
fn the_whole_address_space_can_be_an_interval_and_so_can_its_last_byte_but_one() {
    let log = Log::default();
    let space = AddressSpace::new();
    let all = insert(&space, &log, "A", Range::EVERYTHING);
    let last = insert(&space, &log, "L", range(usize::MAX - 1, usize::MAX));
    assert_eq!((all.range(), last.range()), (Range::EVERYTHING, range(usize::MAX - 1, usize::MAX)));
    assert_eq!(told(&space, &log, 0, 1), "A+");
    assert_eq!(told(&space, &log, 0, usize::MAX), "A+ L+");
    assert_eq!(told(&space, &log, 0, usize::MAX - 1), "A+");
}

#[test]
fn intervals_come_before_subscribers_and_have_no_end() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _a = space.subscribe(Witness::new("A", &log));
    let _i = insert(&space, &log, "I", PAGES);
    change(&space, &log);
    assert_eq!(log.take(), "I+ A+ * A-");
    assert_eq!(try_change(&space, &log), Ok(()));
    assert_eq!(log.take(), "I? A+ * A-");
}

#[test]
fn a_space_with_intervals_only_has_subscribers() {
    let space = AddressSpace::new();
    assert!(!space.has_subscribers());
    let interval = insert(&space, &Log::default(), "I", PAGES);
    assert!(space.has_subscribers());
    drop(interval);
    assert!(!space.has_subscribers());
}

/// `I`, `N` and `J` in this order, of which N refuses.
fn refusing(space: &AddressSpace, log: &Log) -> (Arc<AtomicBool>, [IntervalSubscription; 3]) {
    let refuses = Arc::new(AtomicBool::new(true));
    let one = insert(space, log, "I", range(0x1000, 0x3000));
    let two = space.insert(range(0x1001, 0x3000), Mirror::new("N", log).refusing(&refuses)).unwrap();
    let three = insert(space, log, "J", range(0x1002, 0x3000));
    (refuses, [one, two, three])
}

#[test]
fn behind_an_interval_that_refuses_nobody_is_asked_and_nothing_remains() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (refuses, intervals) = refusing(&space, &log);
    let _a = space.subscribe(Witness::new("A", &log));
    let tickets = intervals.each_ref().map(IntervalSubscription::read);
    assert_eq!(try_change(&space, &log), Err(WouldBlock));
    assert_eq!(log.take(), "I? N!");
    let stale: Vec<_> = intervals.iter().zip(&tickets).map(|(one, ticket)| one.is_stale(ticket)).collect();
    assert!(stale[0] && !stale[2], "who was told must look again, who was not asked need not: {stale:?}");
    // No reader waits, and no change is open.
    Task::new(move || intervals.iter().for_each(|interval| assert!(!interval.is_stale(&interval.read()))))
        .finish();
    log.take();
    refuses.store(false, Ordering::SeqCst);
    assert_eq!(try_change(&space, &log), Ok(()));
    assert_eq!(log.take(), "A+ * A-");
}

#[test]
fn an_interval_is_asked_to_wait_where_it_may() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _kept = refusing(&space, &log);
    change(&space, &log);
    assert_eq!(log.take(), "I+ N+ J+ *");
}

#[test]
fn an_intervals_refusal_inside_an_open_change_undoes_only_itself() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (_refuses, intervals) = refusing(&space, &log);
    let open = Elsewhere::open(&space, blocking(0x1000, 0x2000));
    assert_eq!(log.take(), "I+ N+ J+");
    assert_eq!(try_change(&space, &log), Err(WouldBlock));
    let reader = Task::new(move || intervals.each_ref().map(|interval| _ = interval.read()));
    assert!(reader.waits(), "the other one is open");
    open.close();
    reader.finish();
}

#[test]
fn when_a_subscriber_refuses_what_intervals_agreed_to_nothing_remains() {
    let log = Log::default();
    let space = AddressSpace::new();
    let hit = insert(&space, &log, "I", PAGES);
    let missed = insert(&space, &log, "J", range(0x10000, 0x20000));
    let _a = space.subscribe(Witness::new("A", &log));
    let _n = space.subscribe_refuser(Busy::new("N", &log, 1));
    assert_eq!(try_change(&space, &log), Err(WouldBlock));
    assert_eq!(log.take(), "I? N! A+ A-");
    let quick = Task::new(move || {
        for interval in [&hit, &missed] {
            assert!(!interval.is_stale(&interval.read()));
        }
        drop((hit, missed));
        drop(insert(&space, &log, "K", PAGES));
        log.take()
    });
    assert_eq!(quick.finish(), "Ix Jx Kx", "no reader, remover or newcomer waits");
}

#[test]
fn an_interval_comes_and_goes_while_changes_are_open() {
    let log = Log::default();
    let space = AddressSpace::new();
    let there = insert(&space, &log, "I", PAGES);
    let open = Elsewhere::open(&space, blocking(0x1000, 0x2000));
    let (other, other_log) = (space.clone(), log.clone());
    let task = Task::new(move || {
        drop(there);
        let new = insert(&other, &other_log, "J", PAGES);
        change(&other, &other_log);
        drop(new);
    });
    task.finish();
    assert_eq!(log.take(), "I+ Ix J+ * Jx");
    open.close();
    assert_eq!(log.take(), "", "and neither hears of its end");
}

/// An interval that another thread's change has stopped in.
fn stopped(space: &AddressSpace, log: &Log) -> (IntervalSubscription, crate::witness::Gate, Task<()>) {
    let (meeting, gate) = meeting();
    let mirror = Mirror::new("I", log).on_start(move |_| meeting.stop());
    let interval = space.insert(PAGES, mirror).unwrap();
    let changing = space.clone();
    let task = Task::new(move || changing.invalidate(PAGES, Event::Unmap, || ()));
    gate.await_other();
    (interval, gate, task)
}

#[test]
fn who_removes_an_interval_waits_for_its_running_callback_and_may_then_free_everything() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (interval, gate, task) = stopped(&space, &log);
    let dropped = log.clone();
    let removing = Task::new(move || {
        drop(interval);
        dropped.add("removed");
    });
    assert!(removing.waits());
    change(&space, &log);
    assert_eq!(log.take(), "I+ *", "nobody calls it any more");
    gate.let_go();
    removing.finish();
    task.finish();
    assert_eq!(log.take(), "Ix removed");
}

#[test]
fn who_removes_an_interval_does_not_wait_for_callbacks_of_disjoint_changes() {
    let log = Log::default();
    let space = AddressSpace::new();
    let elsewhere = insert(&space, &log, "J", range(0x10000, 0x20000));
    let (_interval, gate, task) = stopped(&space, &log);
    Task::new(move || drop(elsewhere)).finish();
    gate.let_go();
    task.finish();
}

/// What is done in a callback with the space, by an interval that can reach everything.
type Kept = Arc<Mutex<Vec<IntervalSubscription>>>;

#[test]
fn an_interval_removed_inside_its_own_callback_is_told_no_more_and_dropped_later() {
    for in_finish in [false, true] {
        let log = Log::default();
        let space = AddressSpace::new();
        let own = Kept::default();
        let (take, says) = (own.clone(), log.clone());
        let leave = move |_: &Change| {
            drop(take.lock().unwrap().pop());
            says.add("left");
        };
        let mirror = Mirror::new("I", &log);
        let mirror = if in_finish { mirror.on_finish(leave) } else { mirror.two_pass().on_start(leave) };
        own.lock().unwrap().push(space.insert(PAGES, mirror).unwrap());
        change(&space, &log);
        assert_eq!(log.take(), if in_finish { "I+ I: left *" } else { "I+ left *" }, "and not dropped in it");
        change(&space, &log);
        assert_eq!(log.take(), "*");
        assert!(space.synchronize());
        assert_eq!(log.take(), "Ix");
    }
}

#[test]
fn an_interval_removed_inside_the_callback_of_another_is_not_asked_any_more() {
    let log = Log::default();
    let space = AddressSpace::new();
    let others = Kept::default();
    let leave = others.clone();
    let mirror = Mirror::new("B", &log).on_start(move |_| leave.lock().unwrap().clear());
    let _i = space.insert(range(0x1001, 0x3000), mirror).unwrap();
    // One that has been told already, one that comes next, and one that is not concerned.
    others
        .lock()
        .unwrap()
        .push(space.insert(range(0x1000, 0x3000), Mirror::new("A", &log).two_pass()).unwrap());
    others.lock().unwrap().push(insert(&space, &log, "C", range(0x1002, 0x3000)));
    others.lock().unwrap().push(insert(&space, &log, "D", range(0x10000, 0x20000)));
    change(&space, &log);
    assert_eq!(log.take(), "A+ B+ *", "neither a second pass nor a first one");
    assert!(space.synchronize());
    let mut dropped: Vec<_> = log.take().split(' ').map(str::to_owned).collect();
    dropped.sort();
    assert_eq!(dropped, ["Ax", "Cx", "Dx"]);
}

#[test]
fn an_interval_removed_inside_a_subscribers_callback_is_dropped_later() {
    let log = Log::default();
    let space = AddressSpace::new();
    let others = Kept::default();
    let leave = others.clone();
    let _a = space.subscribe(Witness::new("A", &log).on_end(move |_| leave.lock().unwrap().clear()));
    others.lock().unwrap().push(insert(&space, &log, "I", PAGES));
    change(&space, &log);
    change(&space, &log);
    if cfg!(miri) {
        // Miri's tree frees at once what nobody walks, and nobody walks it behind the starts.
        assert_eq!(log.take(), "I+ A+ * A- Ix A+ * A-");
    } else {
        assert_eq!(log.take(), "I+ A+ * A- A+ * A-");
        assert!(space.synchronize());
        assert_eq!(log.take(), "Ix");
    }
}

#[test]
fn an_interval_inserted_inside_a_callback_is_told_of_the_next_change() {
    let log = Log::default();
    let space = AddressSpace::new();
    let new = Kept::default();
    let (inner, inner_log, keep) = (space.clone(), log.clone(), new.clone());
    let insert_one = move |_: &Change| {
        let mut keep = keep.lock().unwrap();
        if keep.is_empty() {
            // Behind, before, and elsewhere.
            keep.push(insert(&inner, &inner_log, "K", range(0x1001, 0x3000)));
            keep.push(insert(&inner, &inner_log, "A", range(0, 0x3000)));
            keep.push(insert(&inner, &inner_log, "Z", range(0x10000, 0x20000)));
        }
    };
    let _i = space.insert(PAGES, Mirror::new("I", &log).on_start(insert_one)).unwrap();
    change(&space, &log);
    assert_eq!(log.take(), "I+ *");
    change(&space, &log);
    assert_eq!(log.take(), "A+ I+ K+ *");
}

#[test]
fn many_may_come_and_go_inside_one_callback() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (inner, silent) = (space.clone(), Log::default());
    let churn = move |_: &Change| {
        let kept: Vec<_> =
            (0..200).map(|n| insert(&inner, &silent, "K", range(0x1000 + n, 0x3000))).collect();
        inner.invalidate(PAGES, Event::Clear, || ());
        drop(kept);
    };
    let _i = space.insert(PAGES, Mirror::new("I", &log).on_start(churn)).unwrap();
    let _j = insert(&space, &log, "J", range(0x2000, 0x3000));
    change(&space, &log);
    assert_eq!(log.take(), "I+ J+ J+ *", "the inner change is not told to I");
    change(&space, &log);
    assert_eq!(log.take(), "I+ J+ J+ *");
}

#[test]
fn changes_made_inside_a_callback_are_told_to_everybody_else_but_make_everybodys_tickets_stale() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (inner, inner_log) = (space.clone(), log.clone());
    let mirror = Mirror::new("I", &log).on_start(move |_| change(&inner, &inner_log));
    let own = space.insert(PAGES, mirror).unwrap();
    let other = insert(&space, &log, "J", PAGES);
    let tickets = (own.read(), other.read());
    space.invalidate(PAGES, Event::Unmap, || log.add("outer"));
    assert_eq!(log.take(), "I+ J+ * J+ outer");
    assert!(own.is_stale(&tickets.0) && other.is_stale(&tickets.1));
}

#[test]
fn first_passes_come_before_second_passes_and_those_before_subscribers() {
    let log = Log::default();
    let space = AddressSpace::new();
    let two_pass =
        |name, start| space.insert(range(start, 0x3000), Mirror::new(name, &log).two_pass()).unwrap();
    let _kept =
        (two_pass("A", 0x1000), insert(&space, &log, "B", range(0x1001, 0x3000)), two_pass("C", 0x1002));
    let _w = space.subscribe(Witness::new("W", &log));
    change(&space, &log);
    assert_eq!(log.take(), "A+ B+ C+ A: C: W+ * W-");
    assert_eq!(try_change(&space, &log), Ok(()));
    assert_eq!(log.take(), "A? B? C? A: C: W+ * W-");
}

#[test]
fn second_passes_run_after_a_refusal_too() {
    let log = Log::default();
    let space = AddressSpace::new();
    let refuses = Arc::new(AtomicBool::new(true));
    let _a = space.insert(range(0x1000, 0x3000), Mirror::new("A", &log).two_pass()).unwrap();
    let _b = space.insert(range(0x1001, 0x3000), Mirror::new("B", &log).two_pass()).unwrap();
    let _n =
        space.insert(range(0x1002, 0x3000), Mirror::new("N", &log).two_pass().refusing(&refuses)).unwrap();
    let _w = space.subscribe(Witness::new("W", &log));
    assert_eq!(try_change(&space, &log), Err(WouldBlock));
    assert_eq!(log.take(), "A? B? N! A: B:", "who refused has no second pass");
}

#[test]
fn more_than_sixteen_second_passes_run_in_between() {
    let log = Log::default();
    let space = AddressSpace::new();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r"];
    let insert =
        |(n, name)| space.insert(range(0x1000 + n, 0x3000), Mirror::new(name, &log).two_pass()).unwrap();
    let _kept: Vec<_> = names.into_iter().enumerate().map(insert).collect();
    change(&space, &log);
    let firsts = |names: &[&str]| names.iter().map(|name| format!("{name}+")).collect::<Vec<_>>().join(" ");
    let seconds = |names: &[&str]| firsts(names).replace('+', ":");
    let (before, behind) = names.split_at(16);
    let expected = format!("{} {} {} {} {} *", firsts(before), "q+", seconds(before), "r+", seconds(behind));
    assert_eq!(log.take(), expected);
}

#[test]
fn a_panic_in_a_first_pass_calls_the_change_off_after_the_second_passes() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _w = space.subscribe(Witness::new("W", &log));
    let _a = space.insert(range(0x1000, 0x3000), Mirror::new("A", &log).two_pass()).unwrap();
    let bad = space.insert(range(0x1001, 0x3000), Mirror::new("B", &log).on_start(|_| panic!("no"))).unwrap();
    let later = insert(&space, &log, "C", range(0x1002, 0x3000));
    let ticket = later.read();
    for _ in 0..1100 {
        assert!(catch_unwind(AssertUnwindSafe(|| change(&space, &log))).is_err());
        assert_eq!(log.take(), "A+ B+ A:", "and the change was not made");
    }
    assert!(!later.is_stale(&ticket));
    drop(bad);
    change(&space, &log);
    assert_eq!(log.take(), "Bx A+ C+ A: W+ * W-");
}

#[test]
fn a_panic_in_a_second_pass_or_in_ignores_leaves_nothing_open() {
    let log = Log::default();
    let space = AddressSpace::new();
    let second = space.insert(PAGES, Mirror::new("A", &log).on_finish(|_| panic!("no"))).unwrap();
    let _b = space.insert(PAGES, Mirror::new("B", &log).two_pass()).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| change(&space, &log))).is_err());
    assert_eq!(log.take(), "A+ B+ A: B:", "the other second pass runs");
    drop(second);
    let bad = space.insert(range(0x1001, 0x3000), Mirror::new("C", &log).ignoring(|_| panic!("no"))).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| _ = try_change(&space, &log))).is_err());
    assert_eq!(log.take(), "Ax B? B:");
    drop(bad);
    let new = insert(&space, &log, "D", PAGES);
    Task::new(move || assert!(!new.is_stale(&new.read()))).finish();
}

#[test]
fn two_spaces_have_nothing_to_do_with_each_other() {
    let log = Log::default();
    let (one, two) = (AddressSpace::new(), AddressSpace::new());
    let interval = insert(&one, &log, "I", PAGES);
    let _a = one.subscribe(Witness::new("A", &log));
    let open = Elsewhere::open(&two, blocking(0x1000, 0x2000));
    let reader = Task::new(move || !interval.is_stale(&interval.read()));
    assert!(reader.finish());
    open.close();
    change(&two, &log);
    assert_eq!(log.take(), "Ix *");
}

#[test]
fn in_a_forked_child_there_are_none_and_the_parents_can_be_dropped() {
    let log = Log::default();
    let space = AddressSpace::new();
    let parents = insert(&space, &log, "P", PAGES);
    forked(&space);
    change(&space, &log);
    let own = insert(&space, &log, "C", PAGES);
    drop(parents);
    change(&space, &log);
    assert_eq!(log.take(), "* Px C+ *");
    assert!(!own.is_stale(&own.read()));
}

#[test]
fn in_a_forked_child_the_parents_tickets_are_stale() {
    let space = AddressSpace::new();
    let interval = insert(&space, &Log::default(), "P", PAGES);
    let before = interval.read();
    assert!(!interval.is_stale(&before));
    forked(&space);
    assert!(interval.is_stale(&before), "nobody will say when it is");
    assert!(interval.is_stale(&interval.read()));
}

#[test]
fn in_a_forked_child_that_has_none_the_parents_can_be_dropped() {
    let log = Log::default();
    let space = AddressSpace::new();
    let parents = ["P", "Q"].map(|name| insert(&space, &log, name, PAGES));
    forked(&space);
    drop(parents);
    assert_eq!(log.take(), "Px Qx");
    change(&space, &log);
    assert_eq!(log.take(), "*");
    let _own = insert(&space, &log, "C", PAGES);
    change(&space, &log);
    assert_eq!(log.take(), "C+ *");
}

#[test]
fn storms_of_intervals_and_changes_miss_nobody() {
    let space = AddressSpace::new();
    let rounds = if cfg!(miri) { 10 } else { 2000 };
    std::thread::scope(|scope| {
        for thread in 0..3_usize {
            let space = &space;
            scope.spawn(move || {
                let log = Log::default();
                let at = |n: usize| range(0x1000 * (n % 50), 0x1000 * (n % 50) + 0x3000);
                for round in 0..rounds {
                    let first = insert(space, &log, "I", at(round * 7 + thread));
                    let second = insert(space, &log, "J", at(round * 3));
                    log.take();
                    let mine = Change::new(first.range(), Event::Migrate, Blocking::Allowed);
                    space.begin(mine).unwrap().end();
                    assert!(log.take().contains("I+"), "its own change overlaps it");
                    drop(second);
                    drop(first);
                    log.take();
                    space.invalidate(at(round), Event::Unmap, || ());
                    assert_eq!(log.take(), "", "both are gone");
                }
            });
        }
    });
}
