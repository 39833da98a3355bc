//! Every interleaving of a context beside a change, with the address space's own, under loom's memory model: `ci/loom.sh`.

use std::sync::Arc;

use super::Gru;
use crate::device::Access;
use crate::device::loom::{Memory, PAGE, explore, spawn};

fn rig() -> (Arc<Memory>, Arc<Gru>) {
    let memory = Memory::new();
    let gru = Gru::new(&memory.space, memory.clone());
    (memory, Arc::new(gru))
}

fn access(memory: &Memory, gru: &Gru) {
    let mut context = gru.context().unwrap();
    context.access(PAGE, Access::Write, |pointer| memory.is_used(pointer)).unwrap();
}

/// What is loaded beside a change is not of before it.
#[test]
fn a_fault_beside_a_change() {
    explore(|| {
        let (memory, gru) = rig();
        let its_memory = memory.clone();
        let change = spawn(2, move || its_memory.change());
        access(&memory, &gru);
        change.join().unwrap();
        assert_eq!(gru.stats().active, 0);
    });
}

/// What was loaded before is not used any more.
#[test]
fn an_access_beside_a_change() {
    explore(|| {
        let (memory, gru) = rig();
        let mut context = gru.context().unwrap();
        context.access(PAGE, Access::Write, |_| ()).unwrap();
        let its_memory = memory.clone();
        let change = spawn(2, move || its_memory.change());
        context.access(PAGE, Access::Write, |pointer| memory.is_used(pointer)).unwrap();
        drop(context);
        change.join().unwrap();
    });
}
