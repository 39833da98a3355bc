//! Who does the work: caches that are asked for a range and register it where they have none.

use crate::layout::Layout;

pub(crate) mod floor;
pub(crate) mod maps;
pub(crate) mod ours;
#[cfg(ucx)]
pub(crate) mod ucx;

/// A cache of registrations that cost nothing, so that what is measured is the cache alone.
///
/// The measured loops are compiled for each contender: at a few nanoseconds a call through a table would be seen.
pub(crate) trait Contender: Send + Sync + Sized + 'static {
    const NAME: &'static str;

    /// Can only be asked for what it was filled with.
    const READ_ONLY: bool = false;

    /// With every entry of the layout, registered in random order, as in a program that has run for a while.
    fn filled(layout: &Layout) -> Self;

    /// Uses the registration that covers `[start, end)` and lets go of it; registers the range if there is none.
    ///
    /// In between, an invalidation waits for whoever uses it, or at least does not free it.
    fn get(&self, start: usize, end: usize);

    /// Does what an announced unmap of `[start, end)` costs: nothing in it may be found afterwards.
    fn unmap(&self, start: usize, end: usize);

    /// How many times a range had to be registered. Tells whether what is called a hit was one.
    fn registrations(&self) -> u64;
}

/// What a registration gives: whatever can be made without a counter that is shared.
fn handle(start: usize) -> u32 {
    (start >> 12) as u32
}
