//! From a system call to the changes it makes: a pure function.
//!
//! [`decode`] looks at a call *before* it is made and says which ranges of the address space it is
//! about to change, and why. It errs towards more: what cannot be known before the call is taken to
//! change. It reads no memory and makes no system call; what it must know beside the arguments is
//! handed to it as [`Facts`].

use mmu_notifier::{Event, Range};

use crate::Syscall;

/// What the arguments of a call do not say, found out by the hook before it decodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// `brk`: where the heap ends now (the kernel's answer to `brk(0)`).
    pub program_break: usize,
    /// `shmat` with `SHM_REMAP`, `shmdt`: the segment's size in bytes, if it could be found out.
    pub segment: Option<usize>,
    /// `process_madvise`: the ranges named by its vector, or the one range that covers them all.
    /// `ftruncate`, `truncate`, `fallocate`: the mapped pieces of the file that the call can touch.
    /// Empty: there are none. `None`: could not be found out, so everything.
    pub ranges: Option<&'a [Range]>,
}

/// The changes of one call, in the order in which they are announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changes {
    len: usize,
    items: [(Range, Event); Changes::MAX],
}

impl Changes {
    /// A call makes no more changes than this; more pieces are announced as one range around them.
    pub const MAX: usize = 4;

    const NONE: Changes = Changes { len: 0, items: [(Range::EVERYTHING, Event::Unmap); Changes::MAX] };

    /// The changes as a slice; empty if the call changes nothing that was there.
    pub fn as_slice(&self) -> &[(Range, Event)] {
        &self.items[..self.len]
    }
}

/// Says what `call` with `args` is about to change.
pub fn decode(call: Syscall, args: &[usize; 6], facts: &Facts<'_>) -> Changes {
    let _ = (call, args, facts);
    Changes::NONE
}
