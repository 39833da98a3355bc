//! Who announces changes.

use mmu_notifier::{AddressSpace, Event, Range};

/// An address space whose changes are announced.
pub(crate) enum World {
    /// By a bracket around each.
    ByHand(AddressSpace),
    /// By the hook in this process's system calls.
    Intercepted(AddressSpace),
}

impl World {
    pub(crate) fn space(&self) -> &AddressSpace {
        match self {
            World::ByHand(space) | World::Intercepted(space) => space,
        }
    }

    pub(crate) fn change<R>(&self, range: Range, event: Event, change: impl FnOnce() -> R) -> R {
        match self {
            World::ByHand(space) => space.invalidate(range, event, change),
            World::Intercepted(_) => change(),
        }
    }
}
