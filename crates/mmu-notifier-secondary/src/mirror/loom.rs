//! Every interleaving of an engine beside a change, with the address space's own, under loom's memory model: `ci/loom.sh`.

use std::sync::Arc;

use mmu_notifier::Event;

use super::Mirror;
use crate::device::Access;
use crate::device::loom::{Memory, PAGE, explore, spawn};

fn rig() -> (Arc<Memory>, Arc<Mirror>) {
    let memory = Memory::new();
    let mirror = Mirror::new(&memory.space, memory.page(), memory.clone()).unwrap();
    (memory, Arc::new(mirror))
}

fn access(memory: &Memory, mirror: &Mirror) {
    let mut engine = mirror.engine().unwrap();
    engine.access(PAGE, Access::Write, |pointer| memory.is_used(pointer)).unwrap();
}

/// What is installed beside a change is not of before it.
#[test]
fn a_fault_beside_a_change() {
    explore(|| {
        let (memory, mirror) = rig();
        let its_memory = memory.clone();
        let change = spawn(2, move || its_memory.change());
        access(&memory, &mirror);
        change.join().unwrap();
    });
}

/// What was installed before is not used any more.
#[test]
fn an_access_beside_a_change() {
    explore(|| {
        let (memory, mirror) = rig();
        mirror.fault(memory.page(), Access::Write).unwrap();
        let its_memory = memory.clone();
        let change = spawn(2, move || its_memory.change());
        access(&memory, &mirror);
        change.join().unwrap();
    });
}

/// One that must not wait is refused, or finds nobody there.
#[test]
fn an_access_beside_a_change_that_must_not_wait() {
    explore(|| {
        let (memory, mirror) = rig();
        mirror.fault(memory.page(), Access::Write).unwrap();
        let its_memory = memory.clone();
        let change = spawn(2, move || {
            _ = its_memory.space.try_invalidate(its_memory.page(), Event::Clear, || its_memory.replace());
        });
        access(&memory, &mirror);
        change.join().unwrap();
    });
}

/// Of a migration of its own no ticket tells.
#[test]
fn a_fault_beside_an_own_migration() {
    explore(|| {
        let (memory, mirror) = rig();
        let (its_memory, its_mirror) = (memory.clone(), mirror.clone());
        let change = spawn(2, move || {
            its_mirror.migrate(its_memory.page(), || its_memory.replace()).unwrap();
        });
        access(&memory, &mirror);
        change.join().unwrap();
    });
}

#[test]
fn an_access_beside_an_own_migration() {
    explore(|| {
        let (memory, mirror) = rig();
        mirror.fault(memory.page(), Access::Write).unwrap();
        let (its_memory, its_mirror) = (memory.clone(), mirror.clone());
        let change = spawn(2, move || {
            its_mirror.migrate(its_memory.page(), || its_memory.replace()).unwrap();
        });
        access(&memory, &mirror);
        change.join().unwrap();
    });
}
