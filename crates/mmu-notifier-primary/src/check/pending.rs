//! Registrations whose memory is not mapped any more, and of which it is not yet known what that means.
//!
//! Many programs free a buffer and then close the ring that has it: nothing comes of that. It is a mistake if something
//! else is mapped there meanwhile, or if the registration is never taken back. So the finding waits, with the stack of the
//! call that has unmapped, for what comes first.

// UNSAFETY: the table is memory full of zeroes, which is not always a valid `Found`.
#![expect(unsafe_code)]

use core::mem::MaybeUninit;

use super::frames::Compared;
use super::judge::Found;
use super::stack::Snapshot;
use super::table::Table;
use crate::entry::{Frame, Site};
use crate::gate::safe;
use crate::log::ticks;

/// Calls that have unmapped registered memory, at one time.
pub(crate) const MOST: usize = 1024;

/// Who has changed memory.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Changer {
    pub(crate) call: usize,
    pub(crate) args: [usize; 6],
    pub(crate) thread: u32,
    pub(crate) time: u64,
}

impl Changer {
    /// This thread, by a call that has just been made.
    pub(crate) fn this(call: usize, frame: &Frame) -> Changer {
        Changer { call, args: frame.args(), thread: safe::gettid(), time: ticks() }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Outcome {
    /// Not yet.
    Open = 0,
    /// Something else was mapped there, or it was never taken back.
    Mistake = 1,
    /// It was taken back, and nothing else was there.
    TakenBack = 2,
    /// It was told.
    Told = 3,
}

/// One such call, and the registrations of one call that it has met.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Pending {
    /// Registrations that still refer to it; 0, and nothing to be told: this place is free.
    left: u32,
    outcome: Outcome,
    /// Its place among the stacks.
    stack: u32,
    changer: Changer,
    /// Whether the next one was written.
    is_found: bool,
    found: MaybeUninit<Found>,
}

impl Pending {
    fn found(&self) -> Option<&Found> {
        // SAFETY: `is_found` says that it was written.
        self.is_found.then(|| unsafe { self.found.assume_init_ref() })
    }

    fn is_free(&self) -> bool {
        self.left == 0 && matches!(self.outcome, Outcome::Open | Outcome::Told)
    }
}

impl Table {
    /// A place for a finding that waits, for [`Table::wait`]; `None`: there is none.
    pub(crate) fn new_pending(&mut self) -> Option<u32> {
        let place = self.pendings.iter().position(Pending::is_free)?;
        let pending = &mut self.pendings[place];
        (pending.left, pending.outcome, pending.is_found) = (0, Outcome::Open, false);
        Some(place as u32)
    }

    /// One more registration for which that finding waits.
    pub(crate) fn wait(&mut self, place: usize, pending: u32) {
        self.set_pending(place, Some(pending));
        if let Some(pending) = self.pendings.get_mut(pending as usize) {
            pending.left += 1;
        }
    }

    /// What was found, and by whose call.
    pub(crate) fn found(
        &mut self,
        pending: u32,
        found: &Found,
        changer: &Changer,
        frame: &Frame,
        site: &Site,
    ) {
        let (stack, room) = self.new_stack();
        if let Some(room) = room {
            Snapshot::take(room, frame, site);
            self.share(stack);
        }
        let Some(pending) = self.pendings.get_mut(pending as usize) else { return };
        (pending.changer, pending.stack, pending.is_found) = (*changer, stack, true);
        pending.found.write(*found);
    }

    /// More of the same registration is unmapped.
    pub(crate) fn grow(&mut self, pending: u32, bytes: u64, compared: &Compared) {
        if let Some(pending) = self.pendings.get_mut(pending as usize)
            && pending.is_found
        {
            // SAFETY: `is_found` says that it was written.
            let found = unsafe { pending.found.assume_init_mut() };
            found.bytes += bytes;
            found.compared.add(compared);
        }
    }

    /// A registration does not wait any more; what it means is known if it was the last one, or if it is a mistake.
    pub(crate) fn settle(&mut self, place: usize, outcome: Outcome) {
        let Some(pending) = self.pending(place) else { return };
        self.set_pending(place, None);
        let Some(pending) = self.pendings.get_mut(pending as usize) else { return };
        pending.left = pending.left.saturating_sub(1);
        if pending.outcome == Outcome::Open && (outcome == Outcome::Mistake || pending.left == 0) {
            pending.outcome = outcome;
            self.to_tell += 1;
        }
    }

    /// In a forked child: these are findings of the parent's.
    pub(crate) fn forget_pending(&mut self) {
        for place in self.places() {
            self.set_pending(place, None);
        }
        for place in 0..MOST {
            let pending = &mut self.pendings[place];
            if !pending.is_free() {
                (pending.left, pending.outcome) = (0, Outcome::Told);
                let stack = pending.stack;
                self.unshare(stack);
            }
        }
        self.to_tell = 0;
    }

    /// Calls `tell` with each finding whose meaning is known by now.
    pub(crate) fn tell_pending(
        &mut self,
        mut tell: impl FnMut(&Table, &Found, &Changer, Option<&Snapshot>, bool),
    ) {
        for place in 0..MOST {
            if self.to_tell == 0 {
                return;
            }
            let pending = self.pendings[place];
            let taken_back = pending.outcome == Outcome::TakenBack;
            if !(taken_back || pending.outcome == Outcome::Mistake) {
                continue;
            }
            self.to_tell -= 1;
            if let Some(found) = pending.found() {
                tell(self, found, &pending.changer, self.stack_at(pending.stack), taken_back);
            }
            self.pendings[place].outcome = Outcome::Told;
            self.unshare(pending.stack);
        }
    }
}
