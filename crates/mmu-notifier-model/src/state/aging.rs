//! Callbacks outside start and end: accessed bits, the secondary TLB, `change_pte`.
//!
//! None of them touches sequence or counts, and interval subscribers have none of them.

use super::{Impossible, Machine, Outcome};
use crate::observe::{Args, Call, CallKind, Context, Ret, Who};
use crate::op::Callback;

impl Machine {
    /// `__mmu_notifier_clear_flush_young` and `__mmu_notifier_clear_young`: everybody is asked.
    pub(super) fn clear_young(
        &mut self,
        m: u64,
        start: u64,
        end: u64,
        callback: Callback,
    ) -> Result<Outcome, Impossible> {
        self.live_mm(m)?;
        let mut young = 0;
        for s in self.list_with(m, callback) {
            young |= self.call_aging(s, callback, Args::Bounds(start, end));
        }
        Ok(self.young(young))
    }

    /// `__mmu_notifier_test_young`: the first yes is enough.
    pub(super) fn test_young(&mut self, m: u64, address: u64) -> Result<Outcome, Impossible> {
        self.live_mm(m)?;
        for s in self.list_with(m, Callback::TestYoung) {
            let young = self.call_aging(s, Callback::TestYoung, Args::Address(address));
            if young != 0 {
                return Ok(self.young(young));
            }
        }
        Ok(self.young(0))
    }

    fn young(&self, answers: u64) -> Outcome {
        let value = match self.kernel.aging_answers_are_truth_values {
            true => i64::from(answers != 0),
            false => answers.cast_signed(),
        };
        Outcome::answer(Ret::Code(value))
    }

    /// `__mmu_notifier_invalidate_range`, later `__mmu_notifier_arch_invalidate_secondary_tlbs`.
    pub(super) fn flush_secondary_tlb(
        &mut self,
        m: u64,
        start: u64,
        end: u64,
    ) -> Result<Outcome, Impossible> {
        self.live_mm(m)?;
        self.tell(m, Callback::Tlb, CallKind::Tlb, Args::Bounds(start, end));
        Ok(Outcome::default())
    }

    /// `__mmu_notifier_change_pte`.
    pub(super) fn change_pte(&mut self, m: u64, address: u64) -> Result<Outcome, Impossible> {
        self.live_mm(m)?;
        if self.kernel.has_change_pte {
            self.tell(m, Callback::ChangePte, CallKind::ChangePte, Args::Address(address));
        }
        Ok(Outcome::default())
    }

    fn tell(&mut self, m: u64, callback: Callback, kind: CallKind, args: Args) {
        for s in self.list_with(m, callback) {
            let call = Call::new(kind, Who::Subscriber(Some(s)), Some(Context::SRCU));
            self.record.calls.push(Call { args: Some(args), ..call });
        }
    }
}
