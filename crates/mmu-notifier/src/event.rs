//! What is about to change, and why.

use core::fmt;

use crate::Range;

/// Why a range is invalidated: the kernel's `enum mmu_notifier_event`.
///
/// Every subscriber may treat every event alike and drop what it holds of the range; the reason is
/// there for those who can do better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[doc(alias = "mmu_notifier_event")]
pub enum Event {
    /// The mapping goes away for good: `munmap`, a mapping placed over it, a shrinking heap.
    #[doc(alias = "MMU_NOTIFY_UNMAP")]
    Unmap = 0,
    /// The pages go or are replaced, the mapping stays: the range may be faulted in again.
    #[doc(alias = "MMU_NOTIFY_CLEAR")]
    Clear = 1,
    /// The access rights of the whole range change: `mprotect`.
    #[doc(alias = "MMU_NOTIFY_PROTECTION_VMA")]
    ProtectionVma = 2,
    /// The rights of single pages change: what `fork` does to the parent.
    #[doc(alias = "MMU_NOTIFY_PROTECTION_PAGE")]
    ProtectionPage = 3,
    /// Write tracking is reset; the same pages with the same rights.
    #[doc(alias = "MMU_NOTIFY_SOFT_DIRTY")]
    SoftDirty = 4,
    /// The address space itself goes away: `exec`, exit.
    #[doc(alias = "MMU_NOTIFY_RELEASE")]
    Release = 5,
    /// Pages move to or from a device that asked for it.
    #[doc(alias = "MMU_NOTIFY_MIGRATE")]
    Migrate = 6,
    /// A device takes pages for itself.
    #[doc(alias = "MMU_NOTIFY_EXCLUSIVE")]
    Exclusive = 7,
}

impl Event {
    /// All events, in the kernel's order: `ALL[event as usize] == event`.
    pub const ALL: [Event; 8] = [
        Event::Unmap,
        Event::Clear,
        Event::ProtectionVma,
        Event::ProtectionPage,
        Event::SoftDirty,
        Event::Release,
        Event::Migrate,
        Event::Exclusive,
    ];

    /// The event of that number, modulo 8. No table: that would be one more cache line in a hook.
    #[inline]
    pub(crate) const fn from_number(number: u32) -> Event {
        match number % 8 {
            0 => Event::Unmap,
            1 => Event::Clear,
            2 => Event::ProtectionVma,
            3 => Event::ProtectionPage,
            4 => Event::SoftDirty,
            5 => Event::Release,
            6 => Event::Migrate,
            _ => Event::Exclusive,
        }
    }

    /// The kernel's name without its prefix, in lower case, as reports and traces spell it.
    ///
    /// ```
    /// assert_eq!(mmu_notifier::Event::ProtectionVma.name(), "protection_vma");
    /// ```
    pub const fn name(self) -> &'static str {
        match self {
            Event::Unmap => "unmap",
            Event::Clear => "clear",
            Event::ProtectionVma => "protection_vma",
            Event::ProtectionPage => "protection_page",
            Event::SoftDirty => "soft_dirty",
            Event::Release => "release",
            Event::Migrate => "migrate",
            Event::Exclusive => "exclusive",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether those who are told of a change may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "mmu_notifier_range_blockable")]
pub enum Blocking {
    /// They may: for a lock, for a device, for memory. A start cannot be refused.
    Allowed,
    /// They must not. Who would have to wait refuses, and the change does not take place.
    Forbidden,
}

/// A change of the address space: which pages, why, whose, and whether there is time to wait.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[doc(alias = "mmu_notifier_range")]
pub struct Change {
    range: Range,
    owner: usize,
    what: What,
}

/// All of a change but the range and the owner, in one word, as that is written down for each: the event times 4, whether
/// there is an owner, and whether there is time to wait.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct What(pub(crate) u32);

impl What {
    const MAY_WAIT: u32 = 1;
    const OWNED: u32 = 2;
    const EVENT: u32 = 4;

    pub(crate) const fn is_owned(self) -> bool {
        self.0 & What::OWNED != 0
    }
}

impl Change {
    /// A change of `range` because of `event`, of no owner.
    #[doc(alias = "mmu_notifier_range_init")]
    pub const fn new(range: Range, event: Event, blocking: Blocking) -> Change {
        let may_wait = matches!(blocking, Blocking::Allowed) as u32 * What::MAY_WAIT;
        Change { range, owner: 0, what: What((event as u32 * What::EVENT) | may_wait) }
    }

    pub(crate) const fn from_parts(range: Range, what: What, owner: usize) -> Change {
        Change { range, owner, what }
    }

    pub(crate) const fn what(&self) -> What {
        self.what
    }

    /// The same change, made by or for `owner`: any number that tells owners apart, as the address of a device; 0 is
    /// nobody.
    ///
    /// A subscriber that makes a change itself knows it by this and can [leave it
    /// alone](crate::IntervalSubscriber::ignores).
    ///
    /// ```
    /// use mmu_notifier::{Blocking, Change, Event, Range};
    ///
    /// let change = Change::new(Range::new(0x1000, 0x2000)?, Event::Migrate, Blocking::Allowed);
    /// assert_eq!(change.owner(), 0);
    /// assert_eq!(change.with_owner(7).owner(), 7);
    /// # Ok::<(), mmu_notifier::RangeError>(())
    /// ```
    #[doc(alias = "mmu_notifier_range_init_owner")]
    pub const fn with_owner(self, owner: usize) -> Change {
        let owned = (owner != 0) as u32 * What::OWNED;
        Change { owner, what: What((self.what.0 & !What::OWNED) | owned), ..self }
    }

    /// The addresses that change.
    pub const fn range(&self) -> Range {
        self.range
    }

    /// Why they change.
    pub const fn event(&self) -> Event {
        Event::from_number(self.what.0 / What::EVENT)
    }

    /// Whether the subscriber may wait.
    pub const fn blocking(&self) -> Blocking {
        if self.what.0 & What::MAY_WAIT != 0 { Blocking::Allowed } else { Blocking::Forbidden }
    }

    /// Who makes the change, 0 if nobody says so.
    pub const fn owner(&self) -> usize {
        self.owner
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Change")
            .field("range", &self.range)
            .field("event", &self.event())
            .field("blocking", &self.blocking())
            .field("owner", &self.owner)
            .finish()
    }
}
