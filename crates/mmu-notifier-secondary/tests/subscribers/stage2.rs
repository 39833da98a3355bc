//! `stage2`: the retry rule, memslots, the dirty log, aging.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use mmu_notifier::{Blocking, Change, Event, Invalidation, PAGE_SIZE, Range};
use mmu_notifier_secondary::device::Access;
use mmu_notifier_secondary::stage2::{Fault, Memslot, MemslotError, NoVcpu, Stage2, Vcpu};

use crate::memory::{Memory, Random, Sets, address, range};

/// Guest page 0 is page 0.
fn rig(pages: usize) -> (Arc<Memory>, Stage2) {
    let memory = Memory::new(0..pages);
    let stage2 = Stage2::with_patience(&memory.space, memory.clone(), Duration::from_millis(30));
    stage2.add(0, slot(0, 0..pages)).unwrap();
    (memory, stage2)
}

fn slot(guest: usize, pages: std::ops::Range<usize>) -> Memslot {
    Memslot { guest: guest * PAGE_SIZE, memory: range(pages), access: Access::ReadWrite }
}

fn read(vcpu: &mut Vcpu<'_>, page: usize) -> Result<usize, Fault> {
    vcpu.access(page * PAGE_SIZE, Access::Read, |pointer| pointer)
}

fn write(vcpu: &mut Vcpu<'_>, page: usize) -> Result<usize, Fault> {
    vcpu.access(page * PAGE_SIZE, Access::Write, |pointer| pointer)
}

fn open(memory: &Memory, pages: std::ops::Range<usize>) -> Invalidation<'_> {
    memory.space.begin(Change::new(range(pages), Event::Clear, Blocking::Allowed)).unwrap()
}

#[test]
fn a_guest_finds_the_frames_of_its_memory() {
    let (memory, stage2) = rig(8);
    stage2.add(7, slot(100, 4..6)).unwrap();
    let mut vcpu = stage2.vcpu().unwrap();
    assert_eq!(read(&mut vcpu, 3).ok(), memory.frame_of(3));
    assert_eq!(read(&mut vcpu, 101).ok(), memory.frame_of(5));
    assert_eq!(vcpu.access(3 * PAGE_SIZE + 9, Access::Read, |at| at % PAGE_SIZE), Ok(9));
    assert_eq!(read(&mut vcpu, 102), Err(Fault::NoMemslot { guest: 102 * PAGE_SIZE }));
    assert_eq!((stage2.stats().faults, memory.look_ups.load(SeqCst)), (2, 2));
}

#[test]
fn a_start_zaps_what_it_hits_in_every_memslot() {
    let (memory, stage2) = rig(8);
    stage2.add(7, slot(100, 4..6)).unwrap();
    let mut vcpu = stage2.vcpu().unwrap();
    (0..8).chain(100..102).for_each(|page| _ = read(&mut vcpu, page).unwrap());
    memory.space.invalidate(range(5..7), Event::Unmap, || {
        assert_eq!(stage2.stats().zapped, 3);
        memory.drop_pages(5..7, true);
    });
    let before = stage2.stats().faults;
    (0..5).chain([7, 100]).for_each(|page| _ = read(&mut vcpu, page).unwrap());
    assert_eq!(stage2.stats().faults, before);
    let host = address(5);
    let missing = Fault::NotMapped { guest: 101 * PAGE_SIZE, host, access: Access::Read };
    assert_eq!(read(&mut vcpu, 101), Err(missing));
}

/// K3.
#[test]
fn a_change_of_no_memslot_is_active_and_nothing_else() {
    let (memory, stage2) = rig(4);
    memory.space.invalidate(range(4..9), Event::Unmap, || {
        let stats = stage2.stats();
        assert_eq!((stats.active, stats.in_progress, stats.sequence), (1, 0, 0));
    });
    memory.discard(3..9);
    let stats = stage2.stats();
    assert_eq!((stats.active, stats.in_progress, stats.sequence, stats.starts), (0, 0, 1, 2));
}

/// K1.
#[test]
fn during_a_change_only_its_range_has_to_wait() {
    let (memory, stage2) = rig(8);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        memory.space.invalidate(range(2..4), Event::Clear, || {
            let mut vcpu = stage2.vcpu().unwrap();
            read(&mut vcpu, 1).unwrap();
            read(&mut vcpu, 4).unwrap();
            assert_eq!(stage2.stats().retries, 0);
            assert_eq!(read(&mut vcpu, 2), Err(Fault::Changing { guest: 2 * PAGE_SIZE }));
            assert_eq!(stage2.stats().retries, 1);
            scope.spawn(|| {
                read(&mut stage2.vcpu().unwrap(), 3).unwrap();
                assert!(is_over.load(SeqCst), "installed inside an open change");
            });
            while stage2.stats().retries < 2 {
                std::thread::yield_now();
            }
            is_over.store(true, SeqCst);
        });
    });
}

/// K2.
#[test]
fn a_change_within_a_fault_begins_it_anew() {
    let (memory, stage2) = rig(8);
    let (weak, count) = (Arc::downgrade(&memory), AtomicUsize::new(0));
    memory.on_look_up(move |page| {
        if count.fetch_add(1, SeqCst) < 3 {
            weak.upgrade().unwrap().discard(page..page + 1);
        }
    });
    let frame = read(&mut stage2.vcpu().unwrap(), 2).unwrap();
    memory.use_frame(frame, 2, |_| ());
    assert_eq!((stage2.stats().retries, stage2.stats().sequence), (3, 3));
}

/// K4.
#[test]
fn the_union_has_the_hole_between_two_ranges_until_both_are_over() {
    let (memory, stage2) = rig(16);
    let mut vcpu = stage2.vcpu().unwrap();
    let (first, second) = (open(&memory, 2..3), open(&memory, 10..11));
    assert_eq!(stage2.stats().in_progress, 2);
    let in_the_hole = Err(Fault::Changing { guest: 6 * PAGE_SIZE });
    assert_eq!(read(&mut vcpu, 6), in_the_hole);
    first.end();
    assert_eq!(read(&mut vcpu, 6), in_the_hole, "it only grows");
    read(&mut vcpu, 11).unwrap();
    second.end();
    read(&mut vcpu, 6).unwrap();
    let (higher, lower) = (open(&memory, 10..11), open(&memory, 2..3));
    let in_the_hole = Err(Fault::Changing { guest: 5 * PAGE_SIZE });
    assert_eq!(read(&mut vcpu, 5), in_the_hole, "in whatever order they begin");
    higher.end();
    lower.end();
    let third = open(&memory, 12..13);
    read(&mut vcpu, 7).unwrap();
    third.end();
    assert_eq!((stage2.stats().in_progress, stage2.stats().sequence), (0, 5));
}

#[test]
fn a_page_that_is_being_replaced_is_not_missing() {
    use mmu_notifier_secondary::device::PageTable;
    let memory = Memory::new(0..1);
    let (inner, count) = (memory.clone(), AtomicUsize::new(0));
    let table = move |address: usize, access: Access| {
        if count.fetch_add(1, SeqCst) == 0 {
            inner.discard(0..1);
            return None;
        }
        inner.look_up(address, access)
    };
    let stage2 = Stage2::new(&memory.space, table);
    stage2.add(0, slot(0, 0..1)).unwrap();
    read(&mut stage2.vcpu().unwrap(), 0).unwrap();
}

#[test]
fn starts_are_never_refused_and_wait_for_accesses_under_way() {
    let (memory, stage2) = rig(4);
    let (inside, is_inside) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let has_left = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (memory, stage2, has_left) = (&memory, &stage2, &has_left);
        scope.spawn(move || {
            let operation = |_| {
                inside.send(()).unwrap();
                may_leave.recv().unwrap();
                has_left.store(true, SeqCst);
            };
            stage2.vcpu().unwrap().access(0, Access::Write, operation).unwrap();
        });
        is_inside.recv().unwrap();
        let change = || {
            let change = || assert!(has_left.load(SeqCst));
            memory.space.try_invalidate(range(0..1), Event::Unmap, change).unwrap();
        };
        scope.spawn(change);
        scope.spawn(change);
        while stage2.stats().starts < 2 || stage2.stats().zapped < 1 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(10));
        leave.send(()).unwrap();
    });
    assert_eq!(stage2.stats().zapped, 1);
}

#[test]
fn a_page_is_made_writable_by_the_first_write() {
    let (memory, stage2) = rig(2);
    memory.protect(0..1, false);
    let mut vcpu = stage2.vcpu().unwrap();
    read(&mut vcpu, 0).unwrap();
    assert!(matches!(write(&mut vcpu, 0), Err(Fault::NotMapped { access: Access::Write, .. })));
    memory.protect(0..1, true);
    read(&mut vcpu, 0).unwrap();
    write(&mut vcpu, 0).unwrap();
    stage2.add(1, Memslot { access: Access::Read, ..slot(50, 0..2) }).unwrap();
    read(&mut vcpu, 50).unwrap();
    assert_eq!(write(&mut vcpu, 50), Err(Fault::ReadOnly { guest: 50 * PAGE_SIZE }));
}

#[test]
fn bad_memslots_are_refused_and_change_nothing() {
    let (_memory, stage2) = rig(8);
    let good = slot(100, 0..4);
    let refused = |id, memslot| stage2.add(id, memslot).unwrap_err();
    assert_eq!(refused(512, good), MemslotError::BadId { id: 512 });
    assert_eq!(refused(0, good), MemslotError::Exists { id: 0 });
    let odd = Memslot { guest: 100, ..good };
    assert_eq!(refused(1, odd), MemslotError::Unaligned { id: 1, guest: 100, memory: good.memory });
    let memory = Range::with_len(address(0), 100).unwrap();
    assert!(matches!(refused(1, Memslot { memory, ..good }), MemslotError::Unaligned { .. }));
    for guest in [Stage2::GUEST_SIZE - PAGE_SIZE, usize::MAX - PAGE_SIZE + 1] {
        let high = MemslotError::TooHigh { id: 1, guest, len: 4 * PAGE_SIZE };
        assert_eq!(refused(1, Memslot { guest, ..good }), high);
    }
    for guest in [0, 7] {
        assert_eq!(refused(1, slot(guest, 0..4)), MemslotError::Overlaps { id: 1, other: 0 });
    }
    assert_eq!(stage2.delete(1), Err(MemslotError::NoSuch { id: 1 }));
    assert_eq!(stage2.relocate(1, 0), Err(MemslotError::NoSuch { id: 1 }));
    stage2.add(1, slot(8, 0..4)).unwrap();
    assert_eq!(stage2.relocate(1, 4 * PAGE_SIZE), Err(MemslotError::Overlaps { id: 1, other: 0 }));
    stage2.add(2, slot(Stage2::GUEST_SIZE / PAGE_SIZE - 4, 0..4)).unwrap();
    let mut vcpu = stage2.vcpu().unwrap();
    read(&mut vcpu, Stage2::GUEST_SIZE / PAGE_SIZE - 1).unwrap();
    read(&mut vcpu, 8).unwrap();
    assert_eq!(MemslotError::Overlaps { id: 1, other: 0 }.to_string(), "memslot 1 overlaps memslot 0");
}

#[test]
fn a_memslot_that_was_deleted_or_moved_is_not_there_any_more() {
    let (memory, stage2) = rig(4);
    let mut vcpu = stage2.vcpu().unwrap();
    read(&mut vcpu, 3).unwrap();
    stage2.relocate(0, 2 * PAGE_SIZE).unwrap();
    assert_eq!(read(&mut vcpu, 1), Err(Fault::NoMemslot { guest: PAGE_SIZE }));
    assert_eq!(read(&mut vcpu, 3).ok(), memory.frame_of(1));
    stage2.delete(0).unwrap();
    assert_eq!(read(&mut vcpu, 3), Err(Fault::NoMemslot { guest: 3 * PAGE_SIZE }));
    stage2.add(0, slot(0, 0..4)).unwrap();
    read(&mut vcpu, 3).unwrap();
}

#[test]
fn deleting_waits_for_accesses_under_way_and_so_does_a_change_meanwhile() {
    let (memory, stage2) = rig(4);
    let (inside, is_inside) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let has_left = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (memory, stage2, has_left) = (&memory, &stage2, &has_left);
        scope.spawn(move || {
            let operation = |_| {
                inside.send(()).unwrap();
                may_leave.recv().unwrap();
                has_left.store(true, SeqCst);
            };
            stage2.vcpu().unwrap().access(0, Access::Write, operation).unwrap();
        });
        is_inside.recv().unwrap();
        scope.spawn(|| {
            stage2.delete(0).unwrap();
            assert!(has_left.load(SeqCst), "deleted while it was used");
        });
        let mut vcpu = stage2.vcpu().unwrap();
        while vcpu.access(0, Access::Read, |_| ()).is_ok() {
            std::thread::yield_now();
        }
        // It hits no memslot any more.
        scope.spawn(|| {
            let change = || assert!(has_left.load(SeqCst), "changed while it was used");
            memory.space.invalidate(range(0..1), Event::Unmap, change);
        });
        while stage2.stats().starts == 0 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(10));
        leave.send(()).unwrap();
    });
}

/// K5.
#[test]
fn memslots_wait_for_changes_and_are_woken_by_the_last_end() {
    let memory = Memory::new(0..4);
    let hour = Duration::from_secs(3600);
    let stage2 = Stage2::with_patience(&memory.space, memory.clone(), hour);
    let is_over = AtomicBool::new(false);
    let (begun, has_begun) = mpsc::channel();
    std::thread::scope(|scope| {
        let (stage2, is_over) = (&stage2, &is_over);
        memory.space.invalidate(range(0..1), Event::Clear, || {
            scope.spawn(move || {
                begun.send(()).unwrap();
                stage2.add(0, slot(0, 0..4)).unwrap();
                assert!(is_over.load(SeqCst), "changed inside an open change");
            });
            has_begun.recv().unwrap();
            std::thread::sleep(Duration::from_millis(20));
            is_over.store(true, SeqCst);
        });
    });
}

#[test]
fn memslots_do_not_wait_for_ever() {
    let (memory, stage2) = rig(4);
    let unbalanced = open(&memory, 0..1);
    std::thread::scope(|scope| {
        scope.spawn(|| match stage2.delete(0) {
            Err(MemslotError::Stalled { open: 1, waited }) => assert!(waited >= Duration::from_millis(30)),
            other => panic!("{other:?}"),
        });
    });
    read(&mut stage2.vcpu().unwrap(), 3).unwrap();
    unbalanced.end();
    stage2.delete(0).unwrap();
}

#[test]
fn memslots_do_not_wait_for_their_own_thread() {
    let memory = Memory::new(0..4);
    let hour = Duration::from_secs(3600);
    let stage2 = Stage2::with_patience(&memory.space, memory.clone(), hour);
    stage2.add(0, slot(0, 0..4)).unwrap();
    memory.space.invalidate(range(0..1), Event::Clear, || {
        assert_eq!(stage2.add(1, slot(4, 0..4)), Err(MemslotError::Changing));
        assert_eq!(stage2.relocate(0, PAGE_SIZE), Err(MemslotError::Changing));
        assert_eq!(stage2.delete(0), Err(MemslotError::Changing));
        assert_eq!(stage2.delete(1), Err(MemslotError::NoSuch { id: 1 }), "what is wrong anyhow comes first");
    });
    stage2.delete(0).unwrap();
}

/// The change that was open when the guest came is not one of those that it was told of.
#[test]
fn memslots_wait_for_no_change_that_the_guest_was_not_told_of() {
    let memory = Memory::new(0..4);
    let unknown = open(&memory, 0..1);
    let stage2 = Stage2::with_patience(&memory.space, memory.clone(), Duration::from_secs(3600));
    stage2.add(0, slot(0, 0..4)).unwrap();
    unknown.end();
    assert_eq!(stage2.stats().unbalanced, 0);
}

#[test]
fn who_waits_for_changes_is_woken_by_a_release() {
    let memory = Memory::new(0..4);
    let stage2 = Stage2::with_patience(&memory.space, memory.clone(), Duration::from_secs(3600));
    let unbalanced = open(&memory, 0..1);
    let (begun, has_begun) = mpsc::channel();
    std::thread::scope(|scope| {
        let stage2 = &stage2;
        scope.spawn(move || {
            begun.send(()).unwrap();
            assert_eq!(stage2.add(0, slot(0, 0..4)), Err(MemslotError::Released));
        });
        has_begun.recv().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        memory.space.release();
    });
    unbalanced.end();
}

/// Whoever unsubscribes in the middle of a change takes nobody's end along.
#[test]
fn memslots_are_not_blocked_by_who_leaves() {
    let memory = Memory::new(0..4);
    let hour = Duration::from_secs(3600);
    let stays = Stage2::with_patience(&memory.space, memory.clone(), hour);
    let leaves = Stage2::with_patience(&memory.space, memory.clone(), hour);
    let open = open(&memory, 0..1);
    drop(leaves);
    let comes = Stage2::with_patience(&memory.space, memory.clone(), hour);
    assert_eq!((stays.stats().active, comes.stats().active), (1, 0));
    open.end();
    for stage2 in [&stays, &comes] {
        stage2.add(0, slot(0, 0..4)).unwrap();
        assert_eq!(stage2.stats().unbalanced, 0);
    }
}

/// K6.
#[test]
fn after_release_the_counts_are_zero_and_nothing_waits() {
    let (memory, stage2) = rig(4);
    let mut vcpu = stage2.vcpu().unwrap();
    read(&mut vcpu, 1).unwrap();
    let open = open(&memory, 0..1);
    memory.space.release();
    open.end();
    let stats = stage2.stats();
    assert_eq!((stats.active, stats.in_progress, stats.unbalanced, stats.zapped), (0, 0, 0, 1));
    assert_eq!(read(&mut vcpu, 1), Err(Fault::Released { guest: PAGE_SIZE }));
    assert_eq!(stage2.delete(0), Err(MemslotError::Released));
}

#[test]
fn unsubscribing_inside_a_change_is_no_trouble() {
    let (memory, stage2) = rig(1);
    memory.space.invalidate(range(0..1), Event::Clear, || drop(stage2));
    assert!(!memory.space.has_subscribers());
}

#[test]
fn the_dirty_log_has_what_was_written_since() {
    let (memory, stage2) = rig(70);
    let mut vcpu = stage2.vcpu().unwrap();
    assert_eq!(stage2.dirty_log(0), Err(MemslotError::NotLogged { id: 0 }));
    assert_eq!(stage2.dirty_log(9), Err(MemslotError::NoSuch { id: 9 }));
    write(&mut vcpu, 3).unwrap();
    stage2.log_dirty(0).unwrap();
    assert_eq!(stage2.dirty_log(0).unwrap(), [], "before logging began");
    for _ in 0..2 {
        [69, 3, 3].iter().for_each(|page| _ = write(&mut vcpu, *page).unwrap());
        read(&mut vcpu, 5).unwrap();
        assert_eq!(stage2.dirty_log(0).unwrap(), [3 * PAGE_SIZE, 69 * PAGE_SIZE]);
    }
    assert_eq!(stage2.dirty_log(0).unwrap(), []);
    write(&mut vcpu, 3).unwrap();
    memory.discard(3..4);
    assert_eq!(stage2.dirty_log(0).unwrap(), [3 * PAGE_SIZE], "also if it is gone since");
    write(&mut vcpu, 3).unwrap();
    assert_eq!(stage2.dirty_log(0).unwrap(), [3 * PAGE_SIZE]);
}

#[test]
fn pages_are_young_when_they_were_accessed() {
    let (memory, stage2) = rig(4);
    let (space, mut vcpu) = (&memory.space, stage2.vcpu().unwrap());
    read(&mut vcpu, 1).unwrap();
    assert!(space.test_young(address(1) + 7) && !space.test_young(address(2)));
    assert!(space.clear_young(range(0..4)));
    assert!(!space.test_young(address(1)) && !space.clear_flush_young(range(0..4)));
    [1, 3].iter().for_each(|page| _ = write(&mut vcpu, *page).unwrap());
    assert!(space.clear_flush_young(range(0..4)));
    assert!(!space.test_young(address(1)) && !space.test_young(address(3)), "all were made old");
    read(&mut vcpu, 1).unwrap();
    memory.discard(1..2);
    assert!(!space.test_young(address(1)));
}

#[test]
fn there_are_so_many_processors() {
    let (_memory, stage2) = rig(1);
    let vcpus: Vec<_> = (0..Stage2::VCPUS).map(|_| stage2.vcpu().unwrap()).collect();
    assert_eq!(stage2.vcpu().unwrap_err(), NoVcpu);
    drop(vcpus);
    stage2.vcpu().unwrap();
}

/// Guest page 32 or 64 of the second memslot is page 16. No access ever goes to a frame that is not, or no longer, that of its
/// page, nor to a memslot that has been deleted.
#[test]
fn processors_beside_changes_and_memslots() {
    let memory = Memory::new(0..24);
    let stage2 = Stage2::new(&memory.space, memory.clone());
    stage2.add(0, slot(0, 0..16)).unwrap();
    let (done, deleted) = (AtomicBool::new(false), AtomicBool::new(true));
    let updates = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (memory, stage2, done, deleted, updates) = (&memory, &stage2, &done, &deleted, &updates);
        for thread in 0..3 {
            scope.spawn(move || {
                let _done = Sets(done);
                let mut vcpu = stage2.vcpu().unwrap();
                let mut random = Random(thread);
                for _ in 0..150_000 {
                    let (guest, page) = match random.below(3) {
                        0 => (random.below(16), None),
                        1 => (32 + random.below(8), Some(16)),
                        _ => (64 + random.below(8), Some(16)),
                    };
                    let page = page.map_or(guest, |first| first + guest % 8);
                    let access = if random.below(2) == 0 { Access::Read } else { Access::Write };
                    _ = vcpu.access(guest * PAGE_SIZE, access, |frame| {
                        assert!(access == Access::Read || memory.is_writable(page));
                        memory.use_frame(frame, page, |word| word.fetch_add(1, SeqCst));
                        assert!(page < 16 || !deleted.load(SeqCst), "the memslot is gone");
                    });
                }
            });
        }
        scope.spawn(move || {
            let mut random = Random(100);
            while !done.load(SeqCst) {
                let start = random.below(23);
                match random.below(5) {
                    0 => memory.unmap(start..start + 2),
                    1 => _ = memory.try_discard(start..start + 1),
                    2 => memory.protect(start..start + 2, false),
                    3 => _ = memory.space.clear_young(range(0..24)),
                    _ => memory.protect(start..start + 2, true),
                }
                memory.map(start..start + 1);
                std::thread::yield_now();
            }
        });
        scope.spawn(move || {
            while !done.load(SeqCst) {
                deleted.store(false, SeqCst);
                stage2.add(1, slot(32, 16..24)).unwrap();
                stage2.log_dirty(1).unwrap();
                stage2.relocate(1, 64 * PAGE_SIZE).unwrap();
                stage2.dirty_log(1).unwrap();
                stage2.delete(1).unwrap();
                deleted.store(true, SeqCst);
                updates.fetch_add(1, SeqCst);
            }
        });
    });
    let stats = stage2.stats();
    assert_eq!((stats.active, stats.in_progress, stats.unbalanced), (0, 0, 0));
    assert!(updates.load(SeqCst) > 0 && stats.zapped > 0);
}
