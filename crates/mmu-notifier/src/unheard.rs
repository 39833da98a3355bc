//! A change that nobody hears of, for code that has time for nothing else: the hook of a system call.

use crate::held::{Held, OpenChange};
use crate::slot::Phase;
use crate::{AddressSpace, Caller, Change, Event};

impl AddressSpace {
    /// Starts a change that nobody has to be told of: `None` if somebody is subscribed, if the calling thread is inside
    /// another change, or if its place is taken or was never used. Then [`start`](AddressSpace::start) does it.
    ///
    /// Calls nobody, so that all of it becomes a few dozen instructions of its caller.
    #[inline(always)]
    pub fn start_unheard(&self, caller: &Caller, change: &Change) -> Option<OpenChange> {
        if self.has_subscribers() {
            return None;
        }
        Some(self.claim_unheard(caller, change.event())?.open())
    }

    /// The same for who ends it in the same frame, by [`Held::leave_unheard`].
    #[inline(always)]
    pub(crate) fn claim_unheard(&self, caller: &Caller, event: Event) -> Option<Held<'_>> {
        let held = self.shared.open.claim_at_home(caller, Phase::Starting)?;
        // Behind the fence of the claim: who subscribes now sees the claim and waits.
        if self.has_subscribers() {
            held.leave_unheard();
            return None;
        }
        held.count(event);
        held.changing();
        Some(held)
    }

    /// Ends what [`start_unheard`](AddressSpace::start_unheard) has returned, in the same thread.
    #[inline(always)]
    pub fn end_unheard(&self, open: OpenChange) {
        self.shared.open.end_unheard(open);
    }

    /// Whether the calling thread may have a change open, whether it is inside of it or has abandoned it.
    #[inline(always)]
    pub fn may_have_open(&self, caller: &Caller) -> bool {
        self.shared.open.may_have_open(caller)
    }
}
