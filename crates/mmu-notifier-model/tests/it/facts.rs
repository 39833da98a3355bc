//! Each fact in which the kernels differ is needed, and shows when a trace is replayed as another one.

use mmu_notifier_model::{Kernel, Replay, replay};

use crate::golden;

/// A fact by its name, and what turns it into its opposite.
type Fact = (&'static str, fn(&mut Kernel));

const FACTS: [Fact; 11] = [
    ("refused_start_is_ended", |k| k.refused_start_is_ended ^= true),
    ("tlb_runs_at_end", |k| k.tlb_runs_at_end ^= true),
    ("tlb_excludes_ranges", |k| k.tlb_excludes_ranges ^= true),
    ("has_end_only", |k| k.has_end_only ^= true),
    ("has_change_pte", |k| k.has_change_pte ^= true),
    ("has_read_only_check", |k| k.has_read_only_check ^= true),
    ("has_exclusive", |k| k.has_exclusive ^= true),
    ("has_two_pass", |k| k.has_two_pass ^= true),
    ("aging_answers_are_truth_values", |k| k.aging_answers_are_truth_values ^= true),
    ("refused_start_leaves_intervals", |k| k.refused_start_leaves_intervals ^= true),
    ("failed_blockable_start_is_ended_once", |k| k.failed_blockable_start_is_ended_once ^= true),
];

#[test]
fn no_fact_can_be_turned_round_unnoticed() {
    for (name, turn) in FACTS {
        let differs = golden::traces().iter().any(|trace| {
            let mut kernel = trace.header.kernel;
            turn(&mut kernel);
            !replay(trace, kernel).mismatches.is_empty()
        });
        assert!(differs, "no golden trace needs {name}");
    }
}

/// The experiment of the pairing fix: one subscriber counts, another refuses.
#[test]
fn before_the_fix_the_counting_subscriber_stays_raised() {
    for scenario in ["eagain_refuser_walked_first", "eagain_refuser_walked_last", "eagain_refuser_in_middle"]
    {
        for (recorded, replayed, raised) in [
            ("5.10.13", Kernel::LINUX_5_10, true),
            ("5.10.13", Kernel::LINUX_6_1, false),
            ("6.1.192", Kernel::LINUX_5_10, true),
            ("6.1.192", Kernel::LINUX_6_1, false),
            ("7.2.13", Kernel::REPAIRED, false),
        ] {
            let trace = golden::trace(scenario, recorded);
            let report = replay(trace, replayed);
            assert_eq!(
                report.balances.iter().any(|balance| balance.is_paired && balance.open() > 0),
                raised,
                "{scenario} of {recorded} as {replayed}"
            );
            assert!(report.balances.iter().all(|balance| balance.open() >= 0 || !balance.is_paired));
            let as_recorded = trace.header.kernel.refused_start_is_ended == replayed.refused_start_is_ended;
            assert_eq!(report.mismatches.is_empty(), as_recorded, "{scenario} of {recorded} as {replayed}");
        }
    }
}

/// Whatever the kernel, a replay gets to the end, and differs first where the kernels do.
#[test]
fn every_trace_can_be_replayed_as_every_kernel() {
    for trace in golden::traces() {
        for kernel in Kernel::ALL {
            let steps = Replay::new(trace, kernel).count();
            assert_eq!(steps, trace.lines.len(), "{} as {kernel}", trace.file);
        }
    }
}

#[test]
fn what_a_kernel_lacks_is_named() {
    for (scenario, recorded, kernel, expected) in [
        (
            "two_pass_basic",
            "7.2.13",
            Kernel::LINUX_6_12,
            "two_pass: expected two-pass intervals, got linux-6.12 has none",
        ),
        ("change_pte", "6.1.192", Kernel::LINUX_7_2, "cbs: expected change_pte, got linux-7.2 has none"),
        ("tlb_callback", "5.10.13", Kernel::LINUX_6_12, "op: expected end_only, got linux-6.12 has none"),
        ("update_to_read_only", "6.1.192", Kernel::REPAIRED, "op: expected ro_check, got repaired has none"),
        (
            "owner_filter_exclusive",
            "6.1.192",
            Kernel::LINUX_5_10,
            "ignore: expected EXCLUSIVE, got linux-5.10 has none",
        ),
        ("every_event", "6.1.192", Kernel::LINUX_5_10, "event: expected EXCLUSIVE, got linux-5.10 has none"),
    ] {
        let report = replay(golden::trace(scenario, recorded), kernel);
        assert!(
            report.mismatches.iter().any(|mismatch| mismatch.to_string().ends_with(expected)),
            "{scenario} of {recorded} as {kernel}: {:?}",
            report.mismatches
        );
    }
}

/// A line that a person reads.
#[test]
fn a_step_reads_as_one_line() {
    let trace = golden::trace("eagain_refuser_walked_first", "6.1.192");
    let steps: Vec<String> = Replay::new(trace, Kernel::LINUX_6_1).map(|step| step.to_string()).collect();
    assert!(steps.iter().all(|step| step.lines().count() == 1));
    assert_eq!(steps[2], "class c1 start, 1/1 of the non-blocking starts fail -11");
    let refused = steps.iter().find(|step| step.contains(" = -11")).expect("a start is refused");
    assert_eq!(
        refused,
        "start r0 mm0 UNMAP [0x1000, 0x3000) non-blocking = -11: start s1 failed -11, start s0, end s0"
    );
}
