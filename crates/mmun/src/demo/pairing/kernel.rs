//! The subscribers on a kernel, as the model has it.

use mmu_notifier_model::{
    Blocking, Callback, Change, Class, Event, Failing, Kernel as Version, Machine, Observed, Op, Qualifying,
    Ret,
};

use super::{Counts, Reaped, World};

const KVM: u64 = 0;
const DRIVER: u64 = 1;
const EAGAIN: i64 = -11;

/// A kernel and its two subscribers.
#[derive(Debug)]
pub(super) struct Kernel {
    machine: Machine,
    pairs: u64,
}

impl Kernel {
    /// With a driver that refuses every `refuse`-th start that may not wait.
    pub(super) fn new(version: Version, refuse: u32) -> Kernel {
        let kvm = Class { callbacks: vec![Callback::Start, Callback::End], ..Class::default() };
        let busy = Failing { every: refuse.into(), code: EAGAIN, when: Qualifying::Nonblock };
        let driver = Class { callbacks: vec![Callback::Start], start_fail: Some(busy), ..Class::default() };
        let mut kernel = Kernel { machine: Machine::new(version), pairs: 0 };
        kernel.apply(&Op::Mm { m: 0 });
        for (number, class) in [(KVM, kvm), (DRIVER, driver)] {
            kernel.apply(&Op::Class { c: number, class });
            kernel.apply(&Op::Register { s: number, c: number, m: 0 });
        }
        kernel
    }

    fn apply(&mut self, op: &Op) -> Observed {
        self.machine.apply(op).expect("the experiment does nothing impossible")
    }
}

impl World for Kernel {
    fn reap(&mut self, mapping: u32) -> Reaped {
        let r = self.pairs;
        self.pairs += 1;
        let (start, end) = super::range(mapping);
        let (event, blocking) = (Event::Clear, Blocking::Forbidden);
        let change = Change { start, end, event, blocking, owner: 0 };
        let seen = self.apply(&Op::Start { r, m: 0, change });
        if seen.ret != Some(Ret::Code(0)) {
            // Who was refused must not end.
            return Reaped::Refused;
        }
        self.apply(&Op::End { r });
        Reaped::Done
    }

    fn counts(&self) -> Counts {
        let balances = self.machine.balances();
        let kvm = balances.iter().find(|balance| balance.s == KVM).expect("it is registered");
        Counts { starts: kvm.started, ends: kvm.ended }
    }
}
