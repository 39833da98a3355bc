//! Every interleaving of a processor beside a change, with the address space's own, under loom's memory model: `ci/loom.sh`.

use std::sync::Arc;

use super::{Memslot, Stage2};
use crate::device::Access;
use crate::device::loom::{Memory, beside};

fn rig() -> (Arc<Memory>, Arc<Stage2>) {
    let memory = Memory::new();
    let stage2 = Stage2::new(&memory.space, memory.clone());
    let memslot = Memslot { guest: 0, memory: memory.page(), access: Access::ReadWrite };
    stage2.add(0, memslot).unwrap();
    (memory, Arc::new(stage2))
}

fn accesses_beside_a_change(is_there: bool) {
    beside(move || {
        let (memory, stage2) = rig();
        if is_there {
            stage2.vcpu().unwrap().access(0, Access::Write, |_| ()).unwrap();
        }
        let (its_memory, kept) = (memory.clone(), stage2.clone());
        let device = move || {
            let mut vcpu = stage2.vcpu().unwrap();
            vcpu.access(0, Access::Write, |pointer| memory.is_used(pointer)).unwrap();
        };
        (device, move || its_memory.change(), kept)
    });
}

/// What is installed beside a change is not of before it.
#[test]
fn a_fault_beside_a_change() {
    accesses_beside_a_change(false);
}

/// What was installed before is not used any more.
#[test]
fn an_access_beside_a_change() {
    accesses_beside_a_change(true);
}
