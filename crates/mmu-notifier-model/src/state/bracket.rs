//! Start and end of a change, and what a refusal does in between.
//!
//! Start asks the interval side first. Whoever refuses there ends it: nobody else is asked, and the
//! interval side is left again. Then the hlist is walked, newest first, and *everybody* is asked even
//! after someone refused. Since 5.12 a second walk then calls every end there is, so that all who
//! started are balanced; the caller must not end a pair whose start was refused.
//!
//! What is missing, up to the newest kernel: a refusal on the hlist leaves the interval side entered.

use super::{Impossible, Machine, Outcome, Pair, impossible};
use crate::observe::{Args, Call, CallKind, Context, Log, Observed, Ret, Warning, Who};
use crate::op::{Blocking, Callback, Change};

pub(super) const EAGAIN: i64 = -11;

impl Machine {
    /// `mmu_notifier_invalidate_range_start` and `…_start_nonblock`.
    pub(super) fn start(&mut self, r: u64, m: u64, change: Change) -> Result<Outcome, Impossible> {
        self.live_mm(m)?;
        if self.pairs.contains_key(&r) {
            return impossible("r", format!("pair {r} is there already"));
        }
        let code = match self.mm(m).subs {
            Some(_) => self.start_subscribed(m, change),
            None => 0,
        };
        // The blocking wrapper is void: its caller goes on, and will end the pair.
        let (ret, open) = match change.blocking {
            Blocking::Allowed => (Ret::Nothing, true),
            Blocking::Forbidden => (Ret::Code(code), code == 0),
        };
        self.pairs.insert(r, Pair { mm: m, change, open });
        if open {
            self.mm_mut(m).open += 1;
        }
        Ok(Outcome::of(Observed { ret: Some(ret), ..Observed::default() }, m))
    }

    /// `__mmu_notifier_invalidate_range_start`.
    fn start_subscribed(&mut self, m: u64, change: Change) -> i64 {
        let has_itree = self.mm(m).subs.as_ref().is_some_and(|subs| subs.has_itree);
        if has_itree {
            let code = self.start_intervals(m, change);
            if code != 0 {
                return code;
            }
        }
        let code = self.start_list(m, change);
        let refused = code != 0 && change.blocking == Blocking::Forbidden;
        if refused && has_itree && self.kernel.refused_start_leaves_intervals {
            self.leave_intervals(m);
        }
        code
    }

    /// `mn_hlist_invalidate_range_start`.
    fn start_list(&mut self, m: u64, change: Change) -> i64 {
        let blockable = change.blocking == Blocking::Allowed;
        let context = if blockable { Context::HLIST } else { Context::HLIST_NONBLOCK };
        // With several failures the last one counts.
        let mut failure = 0;
        for s in self.list_with(m, Callback::Start) {
            let code = self.call_start(s, change, context);
            if code == 0 {
                continue;
            }
            self.record.log.push(Log { ret: code, blocking: change.blocking });
            if blockable || code != EAGAIN {
                self.warn(Warning::BadStartFailure);
            }
            if self.kernel.refused_start_is_ended && self.class_of(s).has(Callback::End) {
                self.warn(Warning::FailingStartHasEnd);
            }
            failure = code;
        }
        let ended_by_caller = blockable && self.kernel.failed_blockable_start_is_ended_once;
        if failure != 0 && self.kernel.refused_start_is_ended && !ended_by_caller {
            // Everybody who has an end, also those without a start and those that failed; and not in a
            // non-block section, although the range may be one that needs it.
            for s in self.list_with(m, Callback::End) {
                self.call_end(s, change, Context::HLIST);
            }
        }
        failure
    }

    /// `mmu_notifier_invalidate_range_end` and `…_only_end`, which differ in the secondary TLB.
    pub(super) fn end(&mut self, r: u64, flushes_tlb: bool) -> Result<Outcome, Impossible> {
        let Some(&Pair { mm: m, change, open }) = self.pairs.get(&r) else {
            return impossible("r", format!("pair {r} was never started"));
        };
        self.live_mm(m)?;
        if open {
            self.mm_mut(m).open -= 1;
            self.pairs.insert(r, Pair { mm: m, change, open: false });
        }
        if self.mm(m).subs.as_ref().is_some_and(|subs| subs.has_itree) {
            // Before the hlist: waiters are awake when the ends run.
            self.leave_intervals(m);
        }
        self.end_list(m, change, flushes_tlb);
        Ok(Outcome::of(Observed { misuse: !open, ..Observed::default() }, m))
    }

    /// `mn_hlist_invalidate_end`.
    fn end_list(&mut self, m: u64, change: Change, flushes_tlb: bool) {
        let context = match change.blocking {
            Blocking::Allowed => Context::HLIST,
            Blocking::Forbidden => Context::HLIST_NONBLOCK,
        };
        let list = self.mm(m).subs.as_ref().map_or(Vec::new(), |subs| subs.list.clone());
        for s in list {
            if flushes_tlb && self.class_of(s).has(Callback::Tlb) {
                let mut call = Call::new(CallKind::Tlb, Who::Subscriber(Some(s)), Some(Context::HLIST));
                call.args = Some(Args::Bounds(change.start, change.end));
                self.record.calls.push(call);
            }
            if self.class_of(s).has(Callback::End) {
                self.call_end(s, change, context);
            }
        }
    }
}
