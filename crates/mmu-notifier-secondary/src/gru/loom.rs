//! Every interleaving of a context beside a change, with the address space's own, under loom's memory model: `ci/loom.sh`.

use std::sync::Arc;

use super::Gru;
use crate::device::Access;
use crate::device::loom::{Memory, PAGE, beside};

fn rig() -> (Arc<Memory>, Arc<Gru>) {
    let memory = Memory::new();
    let gru = Gru::new(&memory.space, memory.clone());
    (memory, Arc::new(gru))
}

fn accesses_beside_a_change(times: usize) {
    beside(move || {
        let (memory, gru) = rig();
        let (its_memory, kept) = (memory.clone(), gru.clone());
        let device = move || {
            let mut context = gru.context().unwrap();
            for _ in 0..times {
                context.access(PAGE, Access::Write, |pointer| memory.is_used(pointer)).unwrap();
            }
        };
        (device, move || its_memory.change(), kept)
    });
}

/// What is loaded beside a change is not of before it.
#[test]
fn a_fault_beside_a_change() {
    accesses_beside_a_change(1);
}

/// What was loaded before is not used any more.
#[test]
fn an_access_beside_a_change() {
    accesses_beside_a_change(2);
}
