//! Generated operations: the invariants of the subsystem hold in the repaired kernel, and are violated
//! by the others.
//!
//! A bystander keeps its own books of what was registered, inserted and opened, and holds the machine
//! against them after every operation:
//!
//! 1. for every subscriber with start and end: successful starts minus ends = pairs open;
//! 2. a refused start changes nothing but the sequence, and the counts of who was asked;
//! 3. active = open pairs; an odd sequence has something active; idle is even with nothing deferred;
//! 4. the tree changes while the sequence is even, or in the step that makes it so;
//! 5. stored sequences are odd, and equal the core's for whoever was hit or inserted in this phase;
//! 6. nobody waits for a phase that is over, or for a lock that is free;
//! 7. references: one of its own, one for each subscriber and each interval;
//! 8. no callback after unregister, remove or free returned, no free before the last put.
//!
//! That no callback runs with the core's lock held says nothing here: there is no lock.

use mmu_notifier_model::{Blocking, Event, Kernel};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use crate::bystander::{Action, Bystander, Checked};
use crate::random;

fn action() -> impl Strategy<Value = Action> {
    let blocking = prop_oneof![Just(Blocking::Allowed), Just(Blocking::Forbidden)];
    let event = prop_oneof![Just(Event::Unmap), Just(Event::Clear), Just(Event::Migrate)];
    let which = any::<usize>;
    prop_oneof![
        3 => (0..4_u64, 0..4_u64, 0..2_u64).prop_map(|(s, c, m)| Action::Register { s, c, m }),
        2 => which().prop_map(Action::Unregister),
        2 => (0..4_u64, 0..2_u64).prop_map(|(c, m)| Action::Get { c, m }),
        2 => which().prop_map(Action::Put),
        1 => Just(Action::GracePeriod),
        1 => (0..20_u64).prop_map(Action::Exit),
        1 => (0..20_u64).prop_map(Action::Mmdrop),
        8 => (0..2_u64, 0..8_u64, 0..4_u64, event, blocking, 0..2_u64).prop_map(
            |(m, page, pages, event, blocking, owner)| Action::Start { m, page, pages, event, blocking, owner }
        ),
        7 => which().prop_map(Action::End),
        4 => (0..5_u64, 0..4_u64, 0..2_u64, 0..8_u64, 1..4_u64, any::<bool>()).prop_map(
            |(i, c, m, page, pages, locked)| Action::Insert { i, c, m, page, pages, locked }
        ),
        3 => which().prop_map(Action::Remove),
        3 => which().prop_map(Action::Read),
    ]
}

fn check(kernel: Kernel, actions: &[Action]) -> Checked {
    let mut bystander = Bystander::new(kernel);
    actions.iter().try_for_each(|action| bystander.step(action))
}

#[test]
fn the_repaired_kernel_keeps_the_invariants() {
    let config = Config { cases: 1500, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(action(), 1..80), |actions| {
            check(Kernel::REPAIRED, &actions).map_err(TestCaseError::fail)
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// The operations as a fuzzer makes them (`fuzz/`), rules or no rules.
#[test]
fn any_operations_can_be_written_down_and_replayed() {
    let config = Config { cases: 100, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(any::<u8>(), 0..600), |bytes| {
            random::any_operations(&bytes).map_err(TestCaseError::fail)?;
            random::lawful_operations(&bytes).map_err(TestCaseError::fail)
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// What the books find in sequences that are the same every time.
fn defect_of(kernel: Kernel) -> String {
    let config = Config { cases: 500, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let found = TestRunner::new_with_rng(config, rng)
        .run(&prop::collection::vec(action(), 1..80), |actions| {
            check(kernel, &actions).map_err(TestCaseError::fail)
        });
    match found {
        Err(TestError::Fail(reason, _)) => reason.message().to_owned(),
        other => panic!("{kernel} has no defect: {other:?}"),
    }
}

#[test]
fn every_recorded_kernel_violates_them() {
    for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.release.is_some()) {
        defect_of(kernel);
    }
}

/// Without one of the repairs the same books find that defect.
#[test]
fn each_repair_is_needed() {
    let leak = defect_of(Kernel { refused_start_leaves_intervals: false, ..Kernel::REPAIRED });
    assert!(leak.contains("something is left"), "{leak}");
    let twice = defect_of(Kernel { failed_blockable_start_is_ended_once: false, ..Kernel::REPAIRED });
    let (raised, open) = raised_and_open(&twice).expect(&twice);
    assert!(raised < open, "{twice}");
    let never = defect_of(Kernel { refused_start_is_ended: false, ..Kernel::REPAIRED });
    let (raised, open) = raised_and_open(&never).expect(&never);
    assert!(raised > open, "{never}");
}

/// Out of a violation of invariant 1.
fn raised_and_open(found: &str) -> Option<(i64, i64)> {
    let (before, open) = found.strip_suffix(" open")?.rsplit_once(" with ")?;
    let (_, raised) = before.rsplit_once(' ')?;
    Some((raised.parse().ok()?, open.parse().ok()?))
}
