//! Every interleaving of a processor beside a change, with the address space's own, under loom's memory model: `ci/loom.sh`.

use std::sync::Arc;

use super::{Memslot, Stage2};
use crate::device::Access;
use crate::device::loom::{Memory, explore, spawn};

fn rig() -> (Arc<Memory>, Arc<Stage2>) {
    let memory = Memory::new();
    let stage2 = Stage2::new(&memory.space, memory.clone());
    let memslot = Memslot { guest: 0, memory: memory.page(), access: Access::ReadWrite };
    stage2.add(0, memslot).unwrap();
    (memory, Arc::new(stage2))
}

/// What is installed beside a change is not of before it.
#[test]
fn a_fault_beside_a_change() {
    explore(|| {
        let (memory, stage2) = rig();
        let its_memory = memory.clone();
        let change = spawn(2, move || its_memory.change());
        let mut vcpu = stage2.vcpu().unwrap();
        vcpu.access(0, Access::Write, |pointer| memory.is_used(pointer)).unwrap();
        drop(vcpu);
        change.join().unwrap();
        assert_eq!((stage2.stats().active, stage2.stats().in_progress), (0, 0));
    });
}

/// What was installed before is not used any more.
#[test]
fn an_access_beside_a_change() {
    explore(|| {
        let (memory, stage2) = rig();
        let mut vcpu = stage2.vcpu().unwrap();
        vcpu.access(0, Access::Write, |_| ()).unwrap();
        let its_memory = memory.clone();
        let change = spawn(2, move || its_memory.change());
        vcpu.access(0, Access::Write, |pointer| memory.is_used(pointer)).unwrap();
        drop(vcpu);
        change.join().unwrap();
    });
}
