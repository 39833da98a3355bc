//! Memslots: what KVM refuses `stage2` refuses, and for the same reason; what it does it does.

use mmu_notifier::{AddressSpace, PAGE_SIZE, Range};
use mmu_notifier_secondary::device::{Access, Page};
use mmu_notifier_secondary::stage2::{Memslot, MemslotError, Stage2};

use crate::guest::{DATA, Guest};
use crate::memory::Way;
use crate::rig::{Rig, SLOT, guest_address};

/// What KVM says where `stage2` says this.
fn error_number(error: MemslotError) -> i32 {
    match error {
        MemslotError::BadId { .. }
        | MemslotError::Exists { .. }
        | MemslotError::NoSuch { .. }
        | MemslotError::Unaligned { .. }
        | MemslotError::TooHigh { .. } => libc::EINVAL,
        MemslotError::Overlaps { .. } => libc::EEXIST,
        MemslotError::NotLogged { .. } => libc::ENOENT,
        other => panic!("KVM would wait: {other}"),
    }
}

/// A memslot with that number, guest address, memory and length.
#[test]
fn what_kvm_refuses_is_refused_for_the_same_reason() {
    let Some(guest) = Guest::new("what_kvm_refuses_is_refused_for_the_same_reason") else { return };
    let own = |address: usize, _: Access| Some(Page::writable(address));
    let stage2 = Stage2::new(&AddressSpace::new(), own);
    // Memory that need not be there.
    let memory = 0x5000_0000_0000;
    let add = |id: usize, at: usize, memory: usize, len: usize| {
        let theirs = guest.set_memory_raw(id as u32, at, memory, len, 0);
        let range = Range::with_len(memory, len).expect("bytes");
        let ours = stage2.add(id, Memslot { guest: at, memory: range, access: Access::ReadWrite });
        assert_eq!(ours.map_err(error_number), theirs, "{id} {at:#x} {memory:#x} {len:#x}: {ours:?}");
        ours
    };
    let (page, last) = (PAGE_SIZE, usize::MAX - (PAGE_SIZE - 1));
    // Numbers are limited, elsewhere higher.
    assert!(matches!(add(0xffff, DATA, memory, page), Err(MemslotError::BadId { .. })));
    for (at, memory, len) in [(DATA + 1, memory, page), (DATA, memory + 8, page), (DATA, memory, page + 1)] {
        assert!(matches!(add(1, at, memory, len), Err(MemslotError::Unaligned { .. })));
    }
    assert!(matches!(add(1, last, memory, 2 * page), Err(MemslotError::TooHigh { .. })));
    add(1, DATA, memory, 4 * page).unwrap();
    // Overlapping by a page, at both ends, within, around, and exactly.
    for (at, pages) in [(DATA - page, 2), (DATA + 3 * page, 2), (DATA + page, 1), (DATA - page, 6), (DATA, 4)]
    {
        let overlaps = MemslotError::Overlaps { id: 2, other: 1 };
        assert_eq!(add(2, at, memory, pages * page), Err(overlaps));
    }
    // Neighbours, with the same memory.
    add(2, DATA + 4 * page, memory, page).unwrap();
    add(3, DATA - page, memory, page).unwrap();
    // Neither longer nor elsewhere in the process.
    assert_eq!(add(1, DATA, memory, 5 * page), Err(MemslotError::Exists { id: 1 }));
    assert_eq!(add(1, DATA, memory + page, 4 * page), Err(MemslotError::Exists { id: 1 }));

    let delete = |id: usize| {
        let theirs = guest.set_memory_raw(id as u32, 0, 0, 0, 0);
        let ours = stage2.delete(id);
        assert_eq!(ours.map_err(error_number), theirs, "deleting {id}: {ours:?}");
        ours
    };
    let relocate = |id: usize, at: usize, pages: usize| {
        let theirs = guest.set_memory_raw(id as u32, at, memory, pages * page, 0);
        let ours = stage2.relocate(id, at);
        assert_eq!(ours.map_err(error_number), theirs, "moving {id} to {at:#x}: {ours:?}");
        ours
    };
    assert_eq!(delete(4), Err(MemslotError::NoSuch { id: 4 }));
    assert_eq!(relocate(3, DATA, 1), Err(MemslotError::Overlaps { id: 3, other: 1 }));
    assert!(matches!(relocate(3, DATA + 17, 1), Err(MemslotError::Unaligned { .. })));
    relocate(1, DATA + page, 4).unwrap_err();
    delete(2).unwrap();
    relocate(1, DATA + page, 4).unwrap();
    relocate(1, DATA, 4).unwrap();
    delete(1).unwrap();
    assert_eq!(delete(1), Err(MemslotError::NoSuch { id: 1 }));
    relocate(3, DATA, 1).unwrap();
    delete(3).unwrap();

    let mut log = [0_u64; 1];
    let theirs = guest.dirty_log(3, &mut log);
    assert_eq!(stage2.dirty_log(3).map(drop).map_err(|_| libc::ENOENT), theirs, "of no memslot");
    add(3, DATA, memory, page).unwrap();
    let theirs = guest.dirty_log(3, &mut log);
    assert_eq!(stage2.dirty_log(3).map(drop).map_err(error_number), theirs, "not logged");
}

/// KVM takes everything away when a memslot goes; `stage2` what is in it. Then both fill their tables again.
#[test]
fn memory_that_is_taken_away_and_given_back_is_found_again() {
    const PAGES: usize = 16;
    let test = "memory_that_is_taken_away_and_given_back_is_found_again";
    let Some(mut rig) = Rig::new(test, PAGES) else { return };
    rig.access(0..PAGES, true);
    for round in 0..4 {
        rig.guest.set_memory_raw(SLOT, 0, 0, 0, 0).unwrap();
        rig.stage2.delete(SLOT as usize).unwrap();
        assert_eq!(rig.stage2.pages(), 0);
        // Changes of what is nobody's memory.
        let memory = rig.memory.range();
        assert!(rig.change_unseen(if round % 2 == 0 { Way::MoveIn } else { Way::Discard }, 0..PAGES));
        assert_eq!(rig.stage2.stats().in_progress, 0);
        rig.guest.set_memory(SLOT, guest_address(0), memory, 0).unwrap();
        let slot = Memslot { guest: guest_address(0), memory, access: Access::ReadWrite };
        rig.stage2.add(SLOT as usize, slot).unwrap();
        // Its code and the like as well.
        rig.find_all_again();
        rig.access(0..PAGES, true);
        assert!(rig.change(Way::MoveIn, 3..7));
        rig.access(0..PAGES, false);
    }
}

/// What the guests write is in the logs, page by page; a change of the memory takes nothing out of them.
#[test]
fn both_logs_have_what_was_written() {
    const PAGES: usize = 16;
    let Some(mut rig) = Rig::new("both_logs_have_what_was_written", PAGES) else { return };
    rig.access(0..PAGES, true);
    let memory = rig.memory.range();
    const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1;
    rig.guest.set_memory(SLOT, guest_address(0), memory, KVM_MEM_LOG_DIRTY_PAGES).unwrap();
    rig.stage2.log_dirty(SLOT as usize).unwrap();
    let take = |rig: &mut Rig| -> Vec<usize> {
        let mut log = [0];
        rig.guest.dirty_log(SLOT, &mut log).unwrap();
        let theirs: Vec<usize> =
            (0..PAGES).filter(|page| log[0] >> page & 1 == 1).map(guest_address).collect();
        assert_eq!(rig.stage2.dirty_log(SLOT as usize).unwrap(), theirs);
        theirs
    };
    take(&mut rig);
    for pages in [0..3, 5..6, 0..PAGES, 7..7] {
        rig.write_both(pages.clone());
        assert_eq!(take(&mut rig), pages.map(guest_address).collect::<Vec<_>>());
    }
    rig.write_both(4..9);
    assert!(rig.change_unseen(Way::Discard, 6..12));
    rig.write_both(11..13);
    assert_eq!(take(&mut rig), [4, 5, 6, 7, 8, 11, 12].map(guest_address));
}
