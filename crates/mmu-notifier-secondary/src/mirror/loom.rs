//! Every interleaving of an engine beside a change, with the address space's own, under loom's memory model: `ci/loom.sh`.

use mmu_notifier::Event;

use super::Mirror;
use crate::device::Access;
use crate::device::loom::{Memory, PAGE, beside};

/// An access beside a change, which does not find the page in the table, or does.
fn an_access_beside(change: impl Fn(&Mirror, &Memory) + Sync + Send + Copy + 'static) {
    for is_there in [false, true] {
        beside(move || {
            let memory = Memory::new();
            let mirror = Mirror::new(&memory.space, memory.page(), memory.clone()).unwrap();
            if is_there {
                mirror.fault(memory.page(), Access::Write).unwrap();
            }
            let mirror = std::sync::Arc::new(mirror);
            let (its_mirror, its_memory, kept) = (mirror.clone(), memory.clone(), mirror.clone());
            let device = move || {
                let mut engine = mirror.engine().unwrap();
                engine.access(PAGE, Access::Write, |pointer| memory.is_used(pointer)).unwrap();
            };
            (device, move || change(&its_mirror, &its_memory), kept)
        });
    }
}

/// What is installed beside it is not of before it, and what was installed before is not used any more.
#[test]
fn an_access_beside_a_change() {
    an_access_beside(|_, memory| memory.change());
}

/// It is refused, or finds nobody there.
#[test]
fn an_access_beside_a_change_that_must_not_wait() {
    an_access_beside(|_, memory| {
        _ = memory.space.try_invalidate(memory.page(), Event::Clear, || memory.replace());
    });
}

/// Of which no ticket tells.
#[test]
fn an_access_beside_an_own_migration() {
    an_access_beside(|mirror, memory| mirror.migrate(memory.page(), || memory.replace()).unwrap());
}
