//! What rust-vmm's software IOTLB is tested for (`vm-memory/src/iommu.rs`), of this cache.

use mmu_notifier_secondary::cache::Access;

use crate::device::{Rig, range};

/// Translations side by side serve requests across both only when something contains them both.
#[test]
fn iotlb_merge() {
    let rig = Rig::new();
    let (left, right) = (rig.get(0..2), rig.get(2..4));
    let all = rig.get(1..3);
    assert!(all != left && all != right);
    assert_eq!((rig.get(0..1), rig.get(3..4), rig.get(1..3)), (left, right, all));
}

#[test]
fn iotlb_perms() {
    let rig = Rig::new();
    let read = rig.get(0..1);
    let write = *rig.cache.get(range(0..1), Access::Write).unwrap().handle();
    assert_ne!(read, write);
    assert_eq!(*rig.cache.get(range(0..1), Access::ReadWrite).unwrap().handle(), write);
}

/// A hole in the middle: hit, miss, hit; then all miss.
#[test]
fn iotlb_invalidation() {
    let rig = Rig::new();
    let handles: Vec<_> = (0..3).map(|at| rig.get(at..at + 1)).collect();
    rig.unmap(1..2);
    let again: Vec<_> = (0..3).map(|at| rig.get(at..at + 1)).collect();
    assert!(again[0] == handles[0] && again[1] != handles[1] && again[2] == handles[2]);
    rig.unmap(0..3);
    let third: Vec<_> = (0..3).map(|at| rig.get(at..at + 1)).collect();
    assert!(third.iter().zip(&again).all(|(now, before)| now != before));
}

/// A translation in use cannot be taken away under its user.
#[test]
fn iommu_memory_live_mapped() {
    let rig = Rig::new();
    let held = rig.cache.get(range(0..4), Access::Read).unwrap();
    rig.unmap(0..4);
    assert!(rig.device.is_registered(*held.handle()));
}

/// Memory replaced at the same address has another translation, also for who held the old one.
#[test]
fn mem_replace() {
    let rig = Rig::new();
    let held = rig.cache.get(range(0..2), Access::Read).unwrap();
    rig.unmap(0..2);
    let replaced = rig.cache.get(range(0..2), Access::Read).unwrap();
    assert!(held.handle() != replaced.handle() && !held.is_current() && replaced.is_current());
}

/// OpenVMM's: what is removed is invalid for who has it already and for who asks later.
#[test]
fn remove_mapping_invalidates_both_eager_and_lazy() {
    let rig = Rig::new();
    let eager = rig.cache.get(range(0..2), Access::Read).unwrap();
    let lazy = rig.cache.get(range(5..6), Access::Read).unwrap().token();
    rig.unmap(0..6);
    assert!(!eager.is_current() && !lazy.is_valid());
    assert_ne!(rig.get(0..2), *eager.handle());
}
