//! Which kernel is modelled: the facts in which the versions differ, by name.
//!
//! The state machine never asks for a version. It asks one of the questions below, so that what a
//! kernel does can be read in one place and a fact can be moved without touching the machine. The
//! two repairs at the end are facts of no kernel yet; see [`Kernel::REPAIRED`].

use std::fmt;

/// The behaviour of one kernel, as far as MMU notifiers are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// How a user names this setting: `linux-6.12`, `repaired`.
    pub name: &'static str,
    /// The release whose code was recorded, as the header of a trace spells it.
    pub release: Option<&'static str>,
    /// What the header of a trace calls the place of that release in the history.
    pub variant: Option<&'static str>,

    /// A start that a subscriber refused is followed, inside the start, by an end for everybody who has
    /// one. The pairing fix of 5.12; before it those who had started stayed raised for ever
    /// (`mn_hlist_invalidate_range_start`).
    pub refused_start_is_ended: bool,
    /// The secondary-TLB callback is `invalidate_range` and runs from every end as well, except from
    /// `mmu_notifier_invalidate_range_only_end`. Up to 6.5.
    pub tlb_runs_at_end: bool,
    /// A subscriber may have the secondary-TLB callback or start and end, not both
    /// (`__mmu_notifier_register`). Since 6.6, which gave the callback to hardware that walks the CPU's
    /// own page tables.
    pub tlb_excludes_ranges: bool,
    /// `mmu_notifier_invalidate_range_only_end` exists. Up to 6.5.
    pub has_end_only: bool,
    /// `mmu_notifier_change_pte` exists. Up to 6.9.
    pub has_change_pte: bool,
    /// `mmu_notifier_range_update_to_read_only` exists. Up to 6.2.
    pub has_read_only_check: bool,
    /// `MMU_NOTIFY_EXCLUSIVE` exists. Since 5.14.
    pub has_exclusive: bool,
    /// An interval subscriber may split its work: `invalidate_start` for all, then
    /// `invalidate_finish`. Since 7.1.
    pub has_two_pass: bool,
    /// The aging callbacks answer yes or no; before, their answers were integers that were OR-ed. 7.x.
    pub aging_answers_are_truth_values: bool,

    /// Repair: when an hlist subscriber refuses after the interval side was entered, the interval side is
    /// left again. No kernel does it; its active count stays raised for ever.
    pub refused_start_leaves_intervals: bool,
    /// Repair: a blockable start that a broken subscriber failed is not ended inside the start, because
    /// the caller never learns of the failure and ends it too. Since 5.12 every kernel ends it twice.
    pub failed_blockable_start_is_ended_once: bool,
}

impl Kernel {
    /// 5.10, before the pairing fix.
    pub const LINUX_5_10: Kernel = Kernel {
        name: "linux-5.10",
        release: Some("5.10.13"),
        variant: Some("pre-fix"),
        refused_start_is_ended: false,
        tlb_runs_at_end: true,
        tlb_excludes_ranges: false,
        has_end_only: true,
        has_change_pte: true,
        has_read_only_check: true,
        has_exclusive: false,
        has_two_pass: false,
        aging_answers_are_truth_values: false,
        refused_start_leaves_intervals: false,
        failed_blockable_start_is_ended_once: false,
    };

    /// 6.1, after the pairing fix.
    pub const LINUX_6_1: Kernel = Kernel {
        name: "linux-6.1",
        release: Some("6.1.192"),
        variant: Some("post-fix"),
        refused_start_is_ended: true,
        has_exclusive: true,
        ..Kernel::LINUX_5_10
    };

    /// 6.12, after the secondary-TLB callback was separated from start and end.
    pub const LINUX_6_12: Kernel = Kernel {
        name: "linux-6.12",
        release: Some("6.12.117"),
        variant: Some("post-fix-tlb-split"),
        tlb_runs_at_end: false,
        tlb_excludes_ranges: true,
        has_end_only: false,
        has_change_pte: false,
        has_read_only_check: false,
        ..Kernel::LINUX_6_1
    };

    /// 7.2, the newest one recorded.
    pub const LINUX_7_2: Kernel = Kernel {
        name: "linux-7.2",
        release: Some("7.2.13"),
        variant: Some("newest"),
        has_two_pass: true,
        aging_answers_are_truth_values: true,
        ..Kernel::LINUX_6_12
    };

    /// 7.2 with its two known defects repaired: what the `mmu-notifier` crate is held against.
    pub const REPAIRED: Kernel = Kernel {
        name: "repaired",
        release: None,
        variant: None,
        refused_start_leaves_intervals: true,
        failed_blockable_start_is_ended_once: true,
        ..Kernel::LINUX_7_2
    };

    /// Every setting, oldest first.
    pub const ALL: [Kernel; 5] =
        [Kernel::LINUX_5_10, Kernel::LINUX_6_1, Kernel::LINUX_6_12, Kernel::LINUX_7_2, Kernel::REPAIRED];

    /// The setting of this name, with or without the leading `linux-`.
    ///
    /// ```
    /// use mmu_notifier_model::Kernel;
    ///
    /// assert_eq!(Kernel::named("6.12"), Some(Kernel::LINUX_6_12));
    /// assert_eq!(Kernel::named("linux-6.12"), Some(Kernel::LINUX_6_12));
    /// assert_eq!(Kernel::named("linux-2.6"), None);
    /// ```
    pub fn named(name: &str) -> Option<Kernel> {
        Kernel::ALL
            .into_iter()
            .find(|kernel| kernel.name == name || kernel.name.strip_prefix("linux-") == Some(name))
    }

    /// The kernel whose trace says it was recorded on `release`.
    ///
    /// Only the releases that were recorded are known: the pairing fix went into stable releases too, so
    /// that a later 5.10 does not behave like 5.10.13.
    pub fn of_release(release: &str) -> Option<Kernel> {
        Kernel::ALL.into_iter().find(|kernel| kernel.release == Some(release))
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
