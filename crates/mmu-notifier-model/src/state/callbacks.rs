//! The bodies of the callbacks: what a driver would do, reduced to what its class programs.
//!
//! Each one records that it was called, with what and from where.

use super::Machine;
use crate::observe::{Args, Call, CallKind, Context, Ret, Who};
use crate::op::{Callback, Change, Failing, Passes};

/// What an interval subscriber answered.
pub(super) struct Answer {
    pub(super) agreed: bool,
    /// It wants its second pass.
    pub(super) finish: bool,
}

impl Machine {
    /// `invalidate_range_start`.
    pub(super) fn call_start(&mut self, s: u64, change: Change, context: Context) -> i64 {
        let fail = self.class_of(s).start_fail;
        let subscriber = self.subscriber_mut(s);
        let code = match fail {
            Some(fail) if due(fail, change, &mut subscriber.qualifying) => fail.code,
            _ => 0,
        };
        match code {
            0 => subscriber.started += 1,
            _ => subscriber.failed += 1,
        }
        let call = Call::new(CallKind::Start, Who::Subscriber(Some(s)), Some(context));
        let call = Call { ret: Some(Ret::Code(code)), args: Some(Args::Change(change)), ..call };
        self.record.calls.push(call);
        code
    }

    /// `invalidate_range_end`.
    pub(super) fn call_end(&mut self, s: u64, change: Change, context: Context) {
        self.subscriber_mut(s).ended += 1;
        let call = Call::new(CallKind::End, Who::Subscriber(Some(s)), Some(context));
        self.record.calls.push(Call { args: Some(Args::Change(change)), ..call });
    }

    /// `release`, if there is one.
    pub(super) fn call_release(&mut self, s: u64) {
        if !self.class_of(s).has(Callback::Release) {
            return;
        }
        self.record.calls.push(Call::new(CallKind::Release, Who::Subscriber(Some(s)), Some(Context::SRCU)));
        if self.class_of(s).release_puts {
            self.put_reference(s);
        }
    }

    /// `free_notifier`, which is given the object and nothing else.
    pub(super) fn call_free(&mut self, s: u64) {
        self.record.calls.push(Call::new(CallKind::Free, Who::Subscriber(Some(s)), Some(Context::BARE)));
        self.subscriber_mut(s).freed = true;
    }

    /// `clear_flush_young`, `clear_young`, `test_young`.
    pub(super) fn call_aging(&mut self, s: u64, callback: Callback, args: Args) -> u64 {
        let answers = &self.class_of(s).answers;
        let (kind, which, list) = match callback {
            Callback::ClearFlushYoung => (CallKind::ClearFlushYoung, 0, &answers.clear_flush_young),
            Callback::ClearYoung => (CallKind::ClearYoung, 1, &answers.clear_young),
            _ => (CallKind::TestYoung, 2, &answers.test_young),
        };
        let answered = self.subscribers[&s].answered[which];
        let young = list.get(answered.checked_rem(list.len()).unwrap_or(0)).copied().unwrap_or(0);
        self.subscriber_mut(s).answered[which] += 1;
        let call = Call::new(kind, Who::Subscriber(Some(s)), Some(Context::SRCU));
        let call = Call { ret: Some(Ret::Code(young.cast_signed())), args: Some(args), ..call };
        self.record.calls.push(call);
        young
    }

    /// `invalidate`, or the first pass `invalidate_start`.
    pub(super) fn call_interval(&mut self, i: u64, change: Change, seq: u64, context: Context) -> Answer {
        let class = self.interval_class_of(i).clone();
        let interval = self.interval_mut(i);
        let ignored = class.ignore.is_some_and(|own| own.event == change.event && own.owner == change.owner);
        let refuses = !ignored && class.fail.is_some_and(|fail| due(fail, change, &mut interval.qualifying));
        let set = !ignored && !refuses && class.set_seq;
        if set {
            // `mmu_interval_set_seq`
            interval.seq = seq;
        }
        let mut finish = false;
        if let Passes::Two { finish_every, .. } = class.passes
            && !ignored
            && !refuses
        {
            interval.passed += 1;
            finish = finish_every != 0 && interval.passed.is_multiple_of(finish_every);
        }

        let (kind, shown_finish) = match class.passes {
            Passes::One => (CallKind::Invalidate, None),
            Passes::Two { .. } => (CallKind::InvalidateStart, Some(finish)),
        };
        self.record.calls.push(Call {
            ret: Some(Ret::Truth(!refuses)),
            seq: Some(seq),
            set: Some(set),
            finish: shown_finish,
            args: Some(Args::Change(change)),
            ..Call::new(kind, Who::Interval(i), Some(context))
        });
        Answer { agreed: !refuses, finish }
    }

    /// `invalidate_finish` of everyone who asked for it, in the order of the first pass.
    pub(super) fn call_finishes(&mut self, finishes: &[u64], context: Context) {
        for &i in finishes {
            self.record.calls.push(Call::new(CallKind::InvalidateFinish, Who::Interval(i), Some(context)));
        }
    }
}

/// Counts a call and says whether it is one that fails.
fn due(fail: Failing, change: Change, qualifying: &mut u64) -> bool {
    if !fail.when.counts(change.blocking) {
        return false;
    }
    *qualifying += 1;
    qualifying.is_multiple_of(fail.every)
}
