//! The recorded traces of the newest kernel, replayed on the core.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::OnceLock;

use mmu_notifier_model::{Kernel, Trace, split};

use crate::faults::Fault;
use crate::leftout::LeftOut;
use crate::oracle::Oracle;
use crate::refine::{Refinement, Tally};

/// The traces of the newest kernel.
pub(crate) fn traces() -> &'static [Trace] {
    static TRACES: OnceLock<Vec<Trace>> = OnceLock::new();
    TRACES.get_or_init(|| {
        let packed = &include_bytes!("../../../mmu-notifier-model/golden/traces.jsonl.gz")[..];
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("the archive is whole");
        let read = |text: &str| Trace::read("golden", text).unwrap_or_else(|error| panic!("{error}"));
        split(&text).into_iter().map(read).filter(|trace| trace.header.kernel == Kernel::LINUX_7_2).collect()
    })
}

/// What became of a trace.
#[derive(Debug, Default)]
struct Replayed {
    compared: usize,
    left_out: BTreeMap<LeftOut, usize>,
    met: Tally,
    /// Whether the model saw to the end what was recorded.
    is_the_recorded: bool,
}

fn replay(trace: &Trace, fault: Fault) -> Result<Replayed, String> {
    let mut oracle = Oracle::new(fault);
    let mut is_the_recorded = true;
    let name = &trace.header.name;
    for line in &trace.lines {
        let seen = oracle.step(&line.op).map_err(|what| format!("{name}, line {}: {what}", line.number))?;
        is_the_recorded &= seen.as_ref() == Some(&line.seen);
    }
    oracle.quiesce().map_err(|what| format!("{name}, at the end: {what}"))?;
    let Oracle { compared, left_out, met, .. } = oracle;
    Ok(Replayed { compared, left_out, met, is_the_recorded })
}

/// How many traces, and how many operations in them, are left out for a reason.
const LEFT_OUT: &[(LeftOut, usize, usize)] = &[
    (LeftOut::EmptyRange, 29, 37),
    (LeftOut::LastByte, 2, 2),
    (LeftOut::EndWithoutChange, 3, 3),
    (LeftOut::Gone, 35, 132),
    (LeftOut::NotYetThere, 1, 1),
    (LeftOut::RemoveUnderReader, 19, 33),
    (LeftOut::MixedTlb, 2, 3),
    (LeftOut::SharedRefuser, 26, 61),
    (LeftOut::GetFindsPlain, 30, 79),
    (LeftOut::Poke, 2, 2),
    (LeftOut::InjectedFailure, 16, 20),
    (LeftOut::InjectedUnderWaiter, 30, 94),
    (LeftOut::RefusedByRemoved, 4, 5),
    (LeftOut::OrderOfAging, 1, 1),
    (LeftOut::UnknownTicket, 4, 11),
    (LeftOut::Consequence, 28, 34),
];

/// How often each difference was met.
const MET: &[(Refinement, usize)] = &[
    (Refinement::InsertDoesNotWait, 285),
    (Refinement::CalledEarlier, 513),
    (Refinement::RemoveDoesNotWait, 120),
    (Refinement::NotCalledAfterRemoval, 107),
    (Refinement::ReadDoesNotWait, 83),
    (Refinement::ReadWaits, 4),
    (Refinement::ReadWaitsForUnseen, 7),
    (Refinement::StaleMore, 12),
    (Refinement::GetDoesNotWait, 8),
    (Refinement::SideDoesNotWait, 14),
    (Refinement::NewcomerIsTold, 1084),
    (Refinement::RefusedHasNoEnd, 4),
    (Refinement::OneCode, 3),
    (Refinement::BlockingCannotFail, 4),
    (Refinement::BlockingCannotRefuse, 2),
    (Refinement::PutIsUnsubscribe, 17),
    (Refinement::MissingSecondPass, 1),
    (Refinement::NobodyIsNobody, 4),
    (Refinement::SynchronizeWaits, 20),
];

#[test]
fn every_trace_agrees_on_the_contract() {
    let mut failures = Vec::new();
    let (mut full, mut recorded, mut compared) = (0, 0, 0);
    let mut left_out: BTreeMap<LeftOut, (usize, usize)> = BTreeMap::new();
    let mut met = Tally::new();
    for trace in traces() {
        match replay(trace, Fault::None) {
            Ok(replayed) => {
                full += usize::from(replayed.left_out.is_empty());
                recorded += usize::from(replayed.is_the_recorded);
                compared += replayed.compared;
                for (reason, count) in replayed.left_out {
                    let (traces, steps) = left_out.entry(reason).or_default();
                    (*traces, *steps) = (*traces + 1, *steps + count);
                }
                for (refinement, count) in replayed.met {
                    *met.entry(refinement).or_insert(0) += count;
                }
            }
            Err(what) => failures.push(what),
        }
    }
    assert!(failures.is_empty(), "{} traces differ:\n{}", failures.len(), failures.join("\n"));
    let left_out: Vec<_> =
        left_out.into_iter().map(|(reason, (traces, steps))| (reason, traces, steps)).collect();
    assert_eq!(left_out, LEFT_OUT);
    assert_eq!(met.into_iter().collect::<Vec<_>>(), MET);
    // Of the others, some operations are left out, as listed above; what follows is compared all the same.
    assert_eq!((traces().len(), full), (192, 110), "traces, and those of which every operation was compared");
    // That is those without a defect of the kernel, and without an operation left out of the model.
    assert_eq!(recorded, 113, "traces in which the model saw what was recorded, to the end");
    assert_eq!(compared, 6778, "operations that were compared");
}

/// Whether the traces notice a wrong driver, and by what.
#[test]
fn wrong_drivers_are_noticed() {
    let faults = [
        (Fault::NothingIsStale, "stale: false, but"),
        (Fault::ForgetsOwner, "callbacks that did not come"),
        (Fault::DeniesRefusals, "the model says = -11"),
        (Fault::NeverEnds, "callbacks that did not come"),
        (Fault::StaysSubscribed, "callbacks that did not come: [Release"),
        (Fault::SubscribesTwice, "callbacks that did not come: []; that should not have come"),
        (Fault::IgnoresNothing, "answer: Ignored"),
    ];
    for (fault, how) in faults {
        let scenarios = traces().iter().filter(|trace| trace.header.random.is_none());
        let noticed: Vec<String> = scenarios.filter_map(|trace| replay(trace, fault).err()).collect();
        assert!(noticed.iter().any(|what| what.contains(how)), "{fault:?} is noticed by {noticed:#?}");
    }
}
