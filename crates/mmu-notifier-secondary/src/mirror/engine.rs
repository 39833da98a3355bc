//! An engine of the device: accesses, and the faults of those that find nothing.

use std::fmt;

use mmu_notifier::{PAGE_SIZE, Range};

use super::table::Need;
use super::{Fault, Mirror};
use crate::device::{Access, Inside, Seat};
use crate::sync::Ordering;

/// An engine of a [`Mirror`]'s device, which accesses memory one byte's page at a time, until it is dropped.
pub struct Engine<'a> {
    mirror: &'a Mirror,
    seat: Seat<'a>,
}

impl<'a> Engine<'a> {
    pub(super) fn new(mirror: &'a Mirror, seat: Seat<'a>) -> Engine<'a> {
        Engine { mirror, seat }
    }

    /// Accesses the byte at `address`: `operation` gets the pointer to it in the frame, and may use it and the rest of its page.
    ///
    /// A change of the page waits until `operation` returns, or is refused if it must not. So it should be short, and must not
    /// change the page itself: that change does not wait for it. On a miss this [faults](Mirror::fault).
    ///
    /// # Errors
    ///
    /// [`Fault`] says why there is no access; `operation` has not run.
    pub fn access<R>(
        &mut self,
        address: usize,
        access: Access,
        operation: impl FnOnce(usize) -> R,
    ) -> Result<R, Fault> {
        self.reach(address, Need::Shared(access), operation)
    }

    /// The same with the page for the device alone, as an atomic operation of a device needs it that the processor's do not
    /// heed: no access of the processor falls between. On a miss this [takes the page](Mirror::make_exclusive).
    ///
    /// # Errors
    ///
    /// As [`access`](Engine::access), and [`Fault::NotTaken`].
    pub fn access_alone<R>(
        &mut self,
        address: usize,
        operation: impl FnOnce(usize) -> R,
    ) -> Result<R, Fault> {
        self.reach(address, Need::Exclusive, operation)
    }

    fn reach<R>(
        &mut self,
        address: usize,
        need: Need,
        operation: impl FnOnce(usize) -> R,
    ) -> Result<R, Fault> {
        let byte = Range::with_len(address, 1).map_err(|_| Fault::Outside { address })?;
        let mirror = self.mirror;
        mirror.pages_of(byte)?;
        let mut has_faulted = false;
        loop {
            if let Some((inside, frame)) = self.find(address, need) {
                let result = operation(frame + address % PAGE_SIZE);
                drop(inside);
                return Ok(result);
            }
            if !std::mem::replace(&mut has_faulted, true) {
                mirror.shared.counters.misses.fetch_add(1, Ordering::Relaxed);
            }
            mirror.bring(byte, need)?;
        }
    }

    /// Where the table says it is, for as long as the first lives.
    fn find(&mut self, address: usize, need: Need) -> Option<(Inside<'_>, usize)> {
        let shared = &self.mirror.shared;
        // Before the table is looked at: who zaps it waits for this.
        let inside = self.seat.enter(shared.space.caller().thread(), address & !(PAGE_SIZE - 1));
        let frame = shared.entry(address).find(need)?;
        Some((inside, frame))
    }
}

impl fmt::Debug for Engine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("number", &self.seat.number()).finish_non_exhaustive()
    }
}
