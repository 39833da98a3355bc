//! What a call has open: one change or several, told or not; and how they are counted.

use core::sync::atomic::Ordering;

use mmu_notifier::{Blocking, Caller, Change, Event, OpenChange, Range, WouldBlock};

use crate::Syscall;
use crate::decode::Changes;
use crate::hot;
use crate::primary::Primary;
use crate::refused::{Attempts, Refusals};
use crate::session::Shard;

/// A change that was started, and where.
#[derive(Debug)]
pub(crate) enum Opened {
    /// Everybody was told.
    Told(OpenChange),
    /// Nobody was told, as the hook is switched off.
    Quiet(OpenChange),
    /// Nobody was told, as somebody has refused, and it takes nothing away: it will be.
    Later(Range),
}

/// The open changes of a call that may make several.
#[derive(Debug)]
pub(crate) struct Bracket {
    open: [Option<Opened>; Changes::MAX],
    pub(crate) refusals: Refusals,
}

impl Bracket {
    /// Nothing is open.
    pub(crate) const NONE: Bracket =
        Bracket { open: [const { None }; Changes::MAX], refusals: Refusals { refused: 0, again: 0 } };

    /// Starts all, behind [`Primary::end_abandoned`]. If one is refused, none is, and all are tried again a few times.
    #[inline(never)]
    pub(crate) fn start(
        &mut self,
        primary: &Primary,
        caller: &Caller,
        changes: &Changes,
        blocking: Blocking,
    ) -> Result<(), WouldBlock> {
        let mut attempts = Attempts::new(blocking);
        while self.start_once(primary, caller, changes, blocking).is_err() {
            self.refusals.refused += 1;
            self.end(primary, caller);
            if !attempts.again(primary) {
                return Err(WouldBlock);
            }
            self.refusals.again += 1;
        }
        Ok(())
    }

    fn start_once(
        &mut self,
        primary: &Primary,
        caller: &Caller,
        changes: &Changes,
        blocking: Blocking,
    ) -> Result<(), WouldBlock> {
        for (open, &(range, event)) in self.open.iter_mut().zip(changes.as_slice()) {
            *open = Some(start(primary, caller, range, event, blocking)?);
        }
        Ok(())
    }

    #[inline(never)]
    pub(crate) fn end(&mut self, primary: &Primary, caller: &Caller) {
        for opened in self.open.iter_mut().rev().filter_map(Option::take) {
            end(primary, caller, opened);
        }
    }
}

/// Starts one change.
#[inline(always)]
pub(crate) fn start(
    primary: &Primary,
    caller: &Caller,
    range: Range,
    event: Event,
    blocking: Blocking,
) -> Result<Opened, WouldBlock> {
    let change = Change::new(range, event, blocking);
    if primary.mode.is_special()
        && primary.mode.is_off()
        && let Some(open) = primary.start_quietly(caller, change)
    {
        hot::before(primary, range, event);
        return Ok(Opened::Quiet(open));
    }
    let open = primary.space.start(caller, change)?;
    hot::before(primary, range, event);
    Ok(Opened::Told(open))
}

/// Ends it.
#[inline(always)]
pub(crate) fn end(primary: &Primary, caller: &Caller, opened: Opened) {
    match opened {
        Opened::Told(open) => {
            primary.space.end(caller, open);
        }
        Opened::Quiet(open) => primary.end_quietly(caller, open),
        Opened::Later(range) => {
            hot::recorded();
            primary.tell_later(range);
        }
    }
}

/// Counts a call.
pub(crate) fn count(shard: &Shard, call: Syscall, failed: bool, bracketed: bool) {
    let counts = &shard.calls[call as usize];
    counts.count.fetch_add(1, Ordering::Relaxed);
    if failed {
        counts.failed.fetch_add(1, Ordering::Relaxed);
    }
    if bracketed {
        counts.bracketed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts what a call announced.
pub(crate) fn count_changes(shard: &Shard, changes: &[(Range, Event)], refusals: Refusals) {
    for (range, event) in changes {
        let counts = &shard.events[*event as usize];
        counts.changes.fetch_add(1, Ordering::Relaxed);
        if range.end() != usize::MAX {
            counts.bytes.fetch_add(range.len() as u64, Ordering::Relaxed);
        }
    }
    if refusals.refused > 0 {
        shard.refused.fetch_add(refusals.refused, Ordering::Relaxed);
        shard.announced_again.fetch_add(refusals.again, Ordering::Relaxed);
    }
}
