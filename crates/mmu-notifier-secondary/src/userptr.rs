//! i915's user pointers: memory of the program bound to objects of a graphics processor, in two versions.
//!
//! | | told | when the memory changes | may refuse |
//! | --- | --- | --- | --- |
//! | [`listed`] (Linux until 5.12) | of every change | the jobs are stopped, the pages dropped | while a job uses the object |
//! | [`tracked`] (today) | of its range | nothing: pages are pinned, and the next submission sees that they are stale | never |
//!
//! The first gives the memory up before the change begins, for which it has to stop jobs. The second lets jobs finish on the
//! old pages, for which it needs pages that can be pinned, so that they outlive their mapping.
//!
//! Neither has an end. Who may refuse can have none:
//!
//! ```compile_fail
//! use mmu_notifier::{Change, Refuser, WouldBlock};
//!
//! struct Userptr;
//! impl Refuser for Userptr {
//!     fn start(&self, _: &Change) {}
//!     fn try_start(&self, _: &Change) -> Result<(), WouldBlock> { Err(WouldBlock) }
//!     fn end(&self, _: &Change) {}
//! }
//! ```

pub mod listed;
pub mod tracked;

use mmu_notifier::{PAGE_SIZE, Range};

use crate::device::Access;

/// How often pages are looked up for one request before it gives up, when changes come each time.
pub const ATTEMPTS: u32 = 16;

/// No object was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The memory is not of whole pages.
    #[error("{range} is not of whole pages")]
    Unaligned {
        /// What was to be bound.
        range: Range,
    },
    /// There are as many objects as the device has room for.
    #[error("the device has room for {max} objects")]
    TooMany {
        /// So many.
        max: usize,
    },
    /// The address space has been [released](mmu_notifier::AddressSpace::release).
    #[error("the address space has been released")]
    Released,
}

/// An object has no pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// There is no page, or it does not allow that access.
    #[error("nothing at {address:#x} allows access for {access}")]
    NotMapped {
        /// The first such page.
        address: usize,
        /// What for.
        access: Access,
    },
    /// The calling thread itself is changing the memory: to wait for the end would be for ever.
    #[error("{range} cannot be bound: the calling thread is in the middle of changing it")]
    Changing {
        /// What was to be bound.
        range: Range,
    },
    /// Changes came during every attempt.
    #[error("{range} could not be bound: it changed during each of {ATTEMPTS} attempts")]
    Unsettled {
        /// What was to be bound.
        range: Range,
    },
    /// The address space has been [released](mmu_notifier::AddressSpace::release).
    #[error("the address space has been released")]
    Released,
}

/// The range, if it is of whole pages.
fn of_pages(range: Range) -> Result<Range, ObjectError> {
    let is_whole = range.start().is_multiple_of(PAGE_SIZE) && range.end().is_multiple_of(PAGE_SIZE);
    if is_whole { Ok(range) } else { Err(ObjectError::Unaligned { range }) }
}

/// The address of each page.
fn pages(range: Range) -> impl Iterator<Item = usize> {
    (range.start()..range.end()).step_by(PAGE_SIZE)
}
