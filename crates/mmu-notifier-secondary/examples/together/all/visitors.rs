//! Devices that come while changes are under way, work for a while, and leave while others are.

use std::sync::Arc;

use mmu_notifier::AddressSpace;
use mmu_notifier_secondary::device::Access;
use mmu_notifier_secondary::gru::Gru;
use mmu_notifier_secondary::mirror::Mirror;
use mmu_notifier_secondary::stage2::{Memslot, MemslotError, Stage2};
use mmu_notifier_secondary::userptr::listed::Device;
use mmu_notifier_secondary::userptr::tracked::Object;

use super::counts::{Counts, add};
use super::devices::{
    Frames, Kept, OBJECT, one_page, use_gru, use_listed, use_mirror, use_stage2, use_tracked,
};
use super::memory::{EVICTABLE, Memory, PAGES};
use super::{Random, fixed};

/// How often a visitor is used.
const USES: usize = 20;

/// One of some kind.
pub(crate) fn visit(space: &AddressSpace, memory: &Arc<Memory>, counts: &Counts, random: &mut Random) {
    match random.below(7) {
        0 => {
            let gru = Gru::new(space, memory.clone());
            let mut context = gru.context().expect("a context");
            (0..USES).for_each(|_| use_gru(&mut context, memory, &counts.gru, random));
        }
        1 => {
            let stage2 = Stage2::new(space, memory.clone());
            let all = memory.range(0..PAGES + EVICTABLE);
            let first = Memslot { guest: all.start(), memory: all, access: Access::ReadWrite };
            match stage2.add(0, first) {
                Ok(()) => add(&counts.memslots),
                // So much has changed all the time.
                Err(MemslotError::Stalled { .. }) => return add(&counts.stalled),
                Err(other) => panic!("{other}"),
            }
            let mut vcpu = stage2.vcpu().expect("a processor");
            for _ in 0..USES {
                use_stage2(&mut vcpu, |page| memory.address(page), memory, &counts.stage2, random);
            }
        }
        2 => {
            let device = Device::new(space, memory.clone());
            (0..USES).for_each(|_| use_listed(&device, memory, &counts.listed, random));
        }
        3 => {
            let page = random.below(PAGES + EVICTABLE - OBJECT);
            let range = memory.range(page..page + OBJECT);
            let object = Object::new(space, Frames(memory.clone()), range, Access::Write).expect("an object");
            (0..USES).for_each(|_| use_tracked(&object, memory, &counts.tracked));
        }
        4 => {
            let kept = Arc::new(Kept::default());
            let interval = space.insert(one_page(memory, random), kept.clone()).expect("an interval");
            (0..USES).for_each(|_| kept.used(&interval, memory, &counts.interval));
        }
        5 => {
            let mirror = Mirror::new(space, memory.range(0..PAGES + EVICTABLE), memory.clone());
            let mirror = mirror.expect("a mirror");
            let mut engine = mirror.engine().expect("an engine");
            (0..USES).for_each(|_| use_mirror(&mut engine, memory, &counts.mirror, random));
        }
        _ => fixed::visit(space, memory, random),
    }
    add(&counts.visits);
}
