//! Generated operations: what no scenario has thought of.
//!
//! `MMU_ORACLE_CASES` says how many sequences; `ci/oracle.sh` runs many.

use std::cell::RefCell;
use std::collections::BTreeMap;

use mmu_notifier_model::{
    AnswerLists, Blocking, Callback, Change, Class, Event, Failing, Ignored, IntervalClass, Op, Passes,
    Qualifying,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::faults::Fault;
use crate::leftout::LeftOut;
use crate::oracle::{Checked, Oracle};
use crate::refine::{Refinement, Tally};

/// An operation, but for what it is about: that is one of those that are there when its turn comes.
#[derive(Clone, Debug)]
enum Action {
    Register { s: u64, c: u64, m: u64 },
    Unregister(usize),
    Get { c: u64, m: u64 },
    Put(usize),
    Synchronize,
    Exit(u64),
    Start { m: u64, page: u64, pages: u64, event: Event, blocking: Blocking, owner: u64 },
    End(usize),
    Insert { i: u64, c: u64, m: u64, page: u64, pages: u64, locked: bool },
    Remove(usize),
    Read(usize),
    Retry(usize),
    Young { m: u64, page: u64, which: Callback },
    Flush { m: u64, page: u64 },
    HasNotifiers(u64),
}

const PAGE: u64 = 4096;
/// Classes up to this one are registered plainly, the others are got.
const PLAIN: u64 = 7;

fn classes() -> Vec<Class> {
    use Callback::{ClearFlushYoung, ClearYoung, End, Release, Start, TestYoung, Tlb};
    let class = |callbacks: &[Callback]| Class { callbacks: callbacks.to_vec(), ..Class::default() };
    let fails = |every, when| Some(Failing { every, code: -11, when });
    let answers =
        AnswerLists { clear_flush_young: vec![0, 1], clear_young: vec![1, 0, 0], test_young: vec![0, 0, 2] };
    let aging = [Start, End, Release, ClearFlushYoung, ClearYoung, TestYoung];
    vec![
        class(&[Start, End, Release]),
        Class { start_fail: fails(2, Qualifying::Nonblock), ..class(&[Start]) },
        Class { start_fail: fails(3, Qualifying::Nonblock), ..class(&[Start, End, Release]) },
        Class { answers: answers.clone(), ..class(&aging) },
        class(&[Tlb, Release]),
        Class { start_fail: fails(3, Qualifying::Always), ..class(&[Start, End]) },
        class(&[End, Release]),
        class(&[Start, End, Release]),
        Class { answers, ..class(&aging) },
        Class { release_puts: true, ..class(&[Start, End, Release]) },
    ]
}

fn interval_classes() -> Vec<IntervalClass> {
    let plain = IntervalClass { fail: None, set_seq: true, ignore: None, passes: Passes::One };
    let fails = |every, when| Some(Failing { every, code: 0, when });
    let two = |finish_every| Passes::Two { has_finish: true, finish_every };
    vec![
        plain.clone(),
        IntervalClass { fail: fails(3, Qualifying::Nonblock), ..plain.clone() },
        IntervalClass { ignore: Some(Ignored { event: Event::Migrate, owner: 1 }), ..plain.clone() },
        IntervalClass { passes: two(2), ..plain.clone() },
        IntervalClass { set_seq: false, ..plain.clone() },
        IntervalClass { fail: fails(2, Qualifying::Always), passes: two(1), ..plain },
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let blocking = prop_oneof![Just(Blocking::Allowed), Just(Blocking::Forbidden)];
    let event = prop_oneof![Just(Event::Unmap), Just(Event::Migrate)];
    let aging = [Callback::ClearFlushYoung, Callback::ClearYoung, Callback::TestYoung];
    let which = any::<usize>;
    prop_oneof![
        4 => (0..6_u64, 0..PLAIN, 0..2_u64).prop_map(|(s, c, m)| Action::Register { s, c, m }),
        3 => which().prop_map(Action::Unregister),
        2 => (PLAIN..10, 0..2_u64).prop_map(|(c, m)| Action::Get { c, m }),
        2 => which().prop_map(Action::Put),
        1 => Just(Action::Synchronize),
        1 => (0..16_u64).prop_map(Action::Exit),
        9 => (0..2_u64, 0..8_u64, 1..5_u64, event, blocking, 0..2_u64).prop_map(
            |(m, page, pages, event, blocking, owner)| Action::Start { m, page, pages, event, blocking, owner }
        ),
        8 => which().prop_map(Action::End),
        7 => (0..6_u64, 0..6_u64, 0..2_u64, 0..8_u64, 1..5_u64, any::<bool>()).prop_map(
            |(i, c, m, page, pages, locked)| Action::Insert { i, c, m, page, pages, locked }
        ),
        3 => which().prop_map(Action::Remove),
        7 => which().prop_map(Action::Read),
        4 => which().prop_map(Action::Retry),
        2 => (0..2_u64, 0..8_u64, prop::sample::select(aging.to_vec()))
            .prop_map(|(m, page, which)| Action::Young { m, page, which }),
        1 => (0..2_u64, 0..8_u64).prop_map(|(m, page)| Action::Flush { m, page }),
        1 => (0..2_u64).prop_map(Action::HasNotifiers),
    ]
}

/// One of those that are there.
fn pick<T>(all: impl IntoIterator<Item = T>, which: usize) -> Option<T> {
    let mut all: Vec<T> = all.into_iter().collect();
    if all.is_empty() { None } else { Some(all.swap_remove(which % all.len())) }
}

/// The operation, if there is something that it can be about. `fresh`: a number that nothing has.
fn resolve(action: &Action, oracle: &Oracle, fresh: u64) -> Option<Op> {
    let books = &oracle.books;
    Some(match *action {
        Action::Register { s, c, m } => Op::Register { s, c, m },
        Action::Unregister(which) => {
            let plain = books.listed.iter().filter(|(_, listed)| listed.shares == 0);
            Op::Unregister { s: pick(plain.map(|(s, _)| *s), which)? }
        }
        Action::Get { c, m } => Op::Get { c, m, new: fresh },
        Action::Put(which) => Op::Put { s: pick(books.listed.keys().copied(), which)? },
        Action::Synchronize => Op::Synchronize,
        Action::Exit(m) if m < 2 => Op::Exit { m },
        Action::Exit(_) => return None,
        Action::Start { m, page, pages, event, blocking, owner } => {
            let change = Change { start: page * PAGE, end: (page + pages) * PAGE, event, blocking, owner };
            Op::Start { r: fresh, m, change }
        }
        Action::End(which) => Op::End { r: pick(books.open.keys().copied(), which)? },
        Action::Insert { i, c, m, page, pages, locked } => {
            let (start, length) = (page * PAGE, pages * PAGE);
            if books.intervals.contains_key(&i) {
                return None;
            }
            match locked {
                true => Op::InsertLocked { i, c, m, start, length },
                false => Op::Insert { i, c, m, start, length },
            }
        }
        Action::Remove(which) => Op::Remove { i: pick(books.intervals.keys().copied(), which)? },
        Action::Read(which) => Op::ReadBegin { i: pick(books.intervals.keys().copied(), which)? },
        Action::Retry(which) => {
            let got = books.tickets.iter().flat_map(|(i, got)| got.iter().map(|got| (*i, got.seq)));
            let known = got.filter_map(|(i, seq)| Some((i, seq?)));
            let (i, seq) = pick(known, which)?;
            Op::ReadRetry { i, seq }
        }
        Action::Young { m, page, which } => {
            let (start, end) = (page * PAGE, (page + 1) * PAGE);
            match which {
                Callback::ClearFlushYoung => Op::ClearFlushYoung { m, start, end },
                Callback::ClearYoung => Op::ClearYoung { m, start, end },
                _ => Op::TestYoung { m, address: start },
            }
        }
        Action::Flush { m, page } => Op::Tlb { m, start: page * PAGE, end: (page + 1) * PAGE },
        Action::HasNotifiers(m) => Op::HasNotifiers { m },
    })
}

/// What all sequences together have shown.
#[derive(Debug, Default)]
struct Totals {
    compared: usize,
    left_out: BTreeMap<LeftOut, usize>,
    met: Tally,
}

/// Sequences, and how many intervals there are before: a tree of one node, or of several.
fn sequence() -> impl Strategy<Value = (u64, Vec<Action>)> {
    let crowd = prop_oneof![4 => Just(0_u64), 1 => 20..50_u64];
    (crowd, prop::collection::vec(action(), 1..70))
}

fn check(fault: Fault, crowd: u64, actions: &[Action], totals: &RefCell<Totals>) -> Checked {
    let mut oracle = Oracle::new(fault);
    let mut done = Vec::new();
    let mut step = |oracle: &mut Oracle, op: Op| {
        done.push(op.to_string());
        oracle.step(&op).map(drop).map_err(|what| format!("{what}\nafter:\n{}", done.join("\n")))
    };
    for m in 0..2 {
        step(&mut oracle, Op::Mm { m })?;
    }
    for (c, class) in (0..).zip(classes()) {
        step(&mut oracle, Op::Class { c, class })?;
    }
    for (c, class) in (0..).zip(interval_classes()) {
        step(&mut oracle, Op::Iclass { c, class })?;
    }
    for k in 0..crowd {
        let (start, length) = (k * 7 % 31 * PAGE, (1 + k % 3) * PAGE);
        step(&mut oracle, Op::Insert { i: 1000 + k, c: 0, m: 0, start, length })?;
    }
    for (fresh, action) in (100..).zip(actions) {
        if let Some(op) = resolve(action, &oracle, fresh) {
            step(&mut oracle, op)?;
        }
    }
    oracle.quiesce().map_err(|what| format!("{what}\nafter:\n{}", done.join("\n")))?;
    let mut totals = totals.borrow_mut();
    totals.compared += oracle.compared;
    for (reason, count) in &oracle.left_out {
        *totals.left_out.entry(*reason).or_insert(0) += count;
    }
    for (refinement, count) in &oracle.met {
        *totals.met.entry(*refinement).or_insert(0) += count;
    }
    Ok(())
}

#[test]
fn the_core_agrees_with_the_repaired_kernel() {
    let cases = std::env::var("MMU_ORACLE_CASES").map_or(300, |cases| cases.parse().expect("a number"));
    let config = Config { cases, failure_persistence: None, max_shrink_time: 20_000, ..Config::default() };
    let totals = RefCell::new(Totals::default());
    TestRunner::new(config)
        .run(&sequence(), |(crowd, actions)| {
            check(Fault::None, crowd, &actions, &totals).map_err(TestCaseError::fail)
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let totals = totals.into_inner();
    println!("{cases} sequences: {totals:#?}");
    // It is a comparison, and of what matters.
    let left_out: usize = totals.left_out.values().sum();
    assert!(left_out * 4 < totals.compared, "{totals:#?}");
    for refinement in [
        Refinement::CalledEarlier,
        Refinement::NotCalledAfterRemoval,
        Refinement::ReadDoesNotWait,
        Refinement::StaleMore,
        Refinement::NewcomerIsTold,
        Refinement::RefusedHasNoEnd,
    ] {
        assert!(totals.met.contains_key(&refinement), "{refinement:?} was never met: {totals:#?}");
    }
}

/// Sequences that are the same every time notice every wrong driver.
#[test]
fn wrong_drivers_are_noticed() {
    for fault in [
        Fault::NothingIsStale,
        Fault::ForgetsOwner,
        Fault::DeniesRefusals,
        Fault::NeverEnds,
        Fault::StaysSubscribed,
        Fault::SubscribesTwice,
        Fault::IgnoresNothing,
    ] {
        let config =
            Config { cases: 200, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let totals = RefCell::new(Totals::default());
        let found = TestRunner::new_with_rng(config, rng).run(&sequence(), |(crowd, actions)| {
            check(fault, crowd, &actions, &totals).map_err(TestCaseError::fail)
        });
        assert!(found.is_err(), "{fault:?} is not noticed");
    }
}
