//! The adapter by itself, as the cache calls it.

use std::error::Error;
use std::io::{self, PipeReader, PipeWriter, Write, pipe};
use std::os::fd::AsRawFd;

use io_uring::IoUring;
use io_uring::opcode::ReadFixed;
use io_uring::types::Fd;
use mmu_notifier::Range;
use mmu_notifier_secondary::cache::{Access, RegisterError, Registrar, Wait};
use mmu_notifier_secondary::io_uring::{FixedBuffers, MAX_SLOTS, Options, Releases, SetupError, Slot};

use crate::child::Child;
use crate::lab::{FILE, Lab, ring};
use crate::memory::{Backing, FileMapping, LEN, Memory};
use crate::rows::OLD;

fn anonymous() -> Memory {
    Memory::new(Backing::Anonymous, OLD)
}

fn register(buffers: &FixedBuffers, memory: &Memory) -> Slot {
    buffers.register(memory.range(), Access::ReadWrite).expect("registered")
}

/// What the error says, with what it says of why.
fn text(error: &dyn Error) -> String {
    error.to_string()
}

/// A read of a pipe that nobody has written to yet.
struct Parked {
    _reader: PipeReader,
    writer: PipeWriter,
}

impl Parked {
    fn new(lab: &mut Lab, slot: &Slot, memory: &Memory, user_data: u64) -> Parked {
        let (reader, writer) = pipe().expect("a pipe");
        let file = Fd(reader.as_raw_fd());
        let read = ReadFixed::new(file, memory.pointer(), 16, slot.index()).offset(u64::MAX);
        lab.submit(&read.build().user_data(user_data));
        Parked { _reader: reader, writer }
    }
}

#[test]
fn a_slot_is_used_and_given_back() {
    let Some(mut lab) = Lab::new("a_slot_is_used_and_given_back") else { return };
    let buffers = FixedBuffers::new(&lab.ring, 2).unwrap();
    let memory = anonymous();
    let slot = register(&buffers, &memory);
    assert_eq!((buffers.in_use(), buffers.pinned()), (1, LEN as u64));
    assert_eq!(lab.read_fixed(slot.index(), &memory), LEN as i32);
    assert_eq!(memory.byte(), FILE);
    let index = slot.index();
    buffers.deregister(memory.range(), slot);
    assert_eq!(buffers.in_use(), 0);
    assert_eq!(lab.read_fixed(index, &memory), -libc::EFAULT, "nothing is in the slot");
}

#[test]
fn a_full_table_is_exhausted_and_says_so() {
    let Some(ring) = ring("a_full_table_is_exhausted_and_says_so") else { return };
    let buffers = FixedBuffers::new(&ring, 1).unwrap();
    let (one, two) = (anonymous(), anonymous());
    let slot = register(&buffers, &one);
    let full = buffers.register(two.range(), Access::Read).unwrap_err();
    assert!(matches!(full, RegisterError::Exhausted(_)), "{full:?}");
    assert!(text(&full).contains("all 1 slots"), "{full}");
    buffers.deregister(one.range(), slot);
    register(&buffers, &two);
}

#[test]
fn the_release_is_told_when_the_last_operation_is_done() {
    let Some(mut lab) = Lab::new("the_release_is_told_when_the_last_operation_is_done") else { return };
    let buffers = FixedBuffers::new(&lab.ring, 8).unwrap();
    let memory = anonymous();

    // Nobody uses it: at once.
    let slot = register(&buffers, &memory);
    assert!(lab.completions().is_empty());
    buffers.deregister(memory.range(), slot);
    let told = lab.wait(1);
    assert!(matches!(told[..], [(tag, 0)] if buffers.released(tag)), "{told:?}");
    assert_eq!(buffers.pinned(), 0);

    // An operation uses it: after that.
    let slot = register(&buffers, &memory);
    let parked = Parked::new(&mut lab, &slot, &memory, 5);
    let index = slot.index();
    buffers.deregister(memory.range(), slot);
    assert_eq!((buffers.in_use(), buffers.pinned()), (0, LEN as u64), "the slot is free, the pages are not");
    assert_eq!(buffers.unreleased(), LEN as u64);
    assert!(lab.completions().is_empty());
    // The slot is used again meanwhile.
    let slot = register(&buffers, &memory);
    assert_eq!(slot.index(), index);
    (&parked.writer).write_all(&[FILE; 16]).unwrap();
    let told = lab.wait(2);
    assert!(matches!(told[..], [(5, 16), (tag, 0)] if buffers.released(tag)), "{told:?}");
    assert!(!buffers.released(5), "an operation's");
    assert_eq!(memory.first(), FILE);
    assert_eq!(
        (buffers.pinned(), buffers.unreleased()),
        (LEN as u64, 0),
        "what is in the table is not released, nor to be"
    );
}

#[test]
fn releases_need_not_be_told() {
    let Some(mut lab) = Lab::new("releases_need_not_be_told") else { return };
    let options = Options { releases: Releases::Untold, ..Options::default() };
    let buffers = FixedBuffers::with(&lab.ring, options).unwrap();
    let memory = anonymous();
    let slot = register(&buffers, &memory);
    assert_eq!(buffers.pinned(), LEN as u64);
    buffers.deregister(memory.range(), slot);
    assert_eq!((buffers.pinned(), buffers.unreleased()), (0, 0));
    assert_eq!(lab.read(&memory), LEN as i32);
    assert!(lab.completions().is_empty());
}

#[test]
fn a_change_that_must_not_wait_leaves_the_table_to_those_who_submit() {
    let test = "a_change_that_must_not_wait_leaves_the_table_to_those_who_submit";
    let Some(ring) = ring(test) else { return };
    let buffers = FixedBuffers::new(&ring, 8).unwrap();
    let memory = anonymous();
    let slot = register(&buffers, &memory);
    let submitting = (buffers.submitting(), buffers.submitting());
    let slot = buffers.try_deregister(memory.range(), slot).expect_err("somebody submits");
    drop(submitting.0);
    let slot = buffers.try_deregister(memory.range(), slot).expect_err("once more");
    // Who may wait, and who registers, is not kept out, also not by himself.
    buffers.deregister(memory.range(), register(&buffers, &memory));
    drop(submitting.1);
    buffers.try_deregister(memory.range(), slot).expect("nobody submits");
    assert_eq!(buffers.in_use(), 0);
}

#[test]
fn the_table_of_a_ring_with_a_thread_is_never_changed_without_waiting() {
    let test = "the_table_of_a_ring_with_a_thread_is_never_changed_without_waiting";
    if ring(test).is_none() {
        return;
    }
    let ring: IoUring = match IoUring::builder().setup_sqpoll(10).build(8) {
        Ok(ring) => ring,
        Err(error) => return eprintln!("SKIPPED: {test}: IORING_SETUP_SQPOLL: {error}"),
    };
    let buffers = FixedBuffers::new(&ring, 8).unwrap();
    let memory = anonymous();
    let slot = register(&buffers, &memory);
    let slot = buffers.try_deregister(memory.range(), slot).expect_err("the thread may be submitting");
    buffers.deregister(memory.range(), slot);
    assert_eq!(buffers.in_use(), 0);
}

/// In the kernel such tables belong to a thread: a change on another one could not take a buffer out.
#[test]
fn rings_of_one_thread_are_refused_with_what_to_do() {
    let Some(_ring) = ring("rings_of_one_thread_are_refused_with_what_to_do") else { return };
    let single: io::Result<IoUring> = IoUring::builder().setup_single_issuer().build(8);
    let deferred = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8);
    for ring in [single, deferred] {
        let ring = match ring {
            Ok(ring) => ring,
            Err(error) => return eprintln!("SKIPPED: rings of one thread: {error}"),
        };
        let refused = FixedBuffers::new(&ring, 8).unwrap_err();
        assert!(matches!(refused, SetupError::SingleIssuer));
        for word in ["IORING_SETUP_SINGLE_ISSUER", "IORING_SETUP_DEFER_TASKRUN"] {
            assert!(text(&refused).contains(word), "{refused}");
        }
        // Why it is so.
        ring.submitter().register_buffers_sparse(1).unwrap();
        let elsewhere = std::thread::scope(|scope| {
            scope.spawn(|| ring.submitter().unregister_buffers()).join().expect("no panic")
        });
        assert_eq!(elsewhere.unwrap_err().raw_os_error(), Some(libc::EEXIST));
    }
}

#[test]
fn a_ring_has_one_table_of_so_many_slots() {
    let Some(ring) = ring("a_ring_has_one_table_of_so_many_slots") else { return };
    for slots in [0, MAX_SLOTS + 1, u16::MAX] {
        let refused = FixedBuffers::new(&ring, slots).unwrap_err();
        assert!(matches!(refused, SetupError::Slots { slots: of } if of == slots), "{refused}");
    }
    let buffers = FixedBuffers::new(&ring, MAX_SLOTS).unwrap();
    let second = FixedBuffers::new(&ring, 1).unwrap_err();
    assert!(matches!(second, SetupError::TableExists), "{second:?}");
    drop(buffers);
    FixedBuffers::new(&ring, 1).expect("the first one is gone, and its table");
}

#[test]
fn what_cannot_be_pinned_is_refused_with_why() {
    let Some(ring) = ring("what_cannot_be_pinned_is_refused_with_why") else { return };
    let buffers = FixedBuffers::new(&ring, 8).unwrap();
    let mut memory = anonymous();
    let refused = |range: Range| match buffers.register(range, Access::Read) {
        Err(RegisterError::Failed(error)) => text(&error),
        other => panic!("{other:?}"),
    };
    memory.protect(libc::PROT_READ);
    assert!(refused(memory.range()).contains("not all of [0x"), "{}", refused(memory.range()));
    let range = memory.range();
    memory.unmap();
    assert!(refused(range).contains("mapped, writable and such"));
    assert_eq!(buffers.in_use(), 0);
    memory.map_over();
    register(&buffers, &memory);
}

/// Who writes to it gets copies of the pages, which can be pinned.
#[test]
fn private_mappings_of_files_are_registered() {
    let Some(ring) = ring("private_mappings_of_files_are_registered") else { return };
    let buffers = FixedBuffers::new(&ring, 8).unwrap();
    let mapping = FileMapping::private(&std::env::current_exe().expect("a path"));
    let slot = buffers.register(mapping.range(), Access::Write).expect("a private mapping");
    buffers.deregister(mapping.range(), slot);
}

/// Disk file systems track who writes to a shared mapping, which a pin would go past.
#[test]
fn shared_mappings_of_files_on_a_disk_are_refused() {
    let test = "shared_mappings_of_files_on_a_disk_are_refused";
    let Some(ring) = ring(test) else { return };
    let buffers = FixedBuffers::new(&ring, 8).unwrap();
    let path = std::env::current_exe().expect("a path").with_extension("shared");
    std::fs::write(&path, [OLD; LEN]).expect("the build directory can be written");
    let mapping = FileMapping::shared(&path);
    let refused = buffers.register(mapping.range(), Access::Write);
    std::fs::remove_file(&path).expect("it is there");
    match refused {
        Ok(_) => eprintln!("SKIPPED: {test}: the build directory is on a file system in memory"),
        Err(error) => assert!(text(&error).contains("cannot be pinned"), "{error}"),
    }
}

#[test]
fn a_forked_child_is_refused_and_leaves_the_table_alone() {
    let Some(mut lab) = Lab::new("a_forked_child_is_refused_and_leaves_the_table_alone") else { return };
    let buffers = FixedBuffers::new(&lab.ring, 8).unwrap();
    let memory = anonymous();
    let slot = register(&buffers, &memory);
    let (mut held, buffers) = (Some(slot), std::mem::ManuallyDrop::new(buffers));
    let child = Child::that(|| {
        let refused = matches!(buffers.register(memory.range(), Access::Read), Err(RegisterError::Failed(_)));
        let slot = held.take().expect("a copy");
        let index = slot.index();
        buffers.deregister(memory.range(), slot);
        // Drops what is the child's: a copy of the handle, and of the descriptor.
        drop(std::mem::ManuallyDrop::into_inner(buffers));
        u8::from(refused) + index as u8 * 2
    });
    let slot = held.expect("still here");
    assert_eq!(u16::from(child.expect("fork").status()), 1 + slot.index() * 2);
    assert_eq!(lab.read_fixed(slot.index(), &memory), LEN as i32, "the parent's is as it was");
    assert_eq!(memory.byte(), FILE);
}

#[test]
fn the_message_in_a_child_says_what_to_do() {
    let Some(ring) = ring("the_message_in_a_child_says_what_to_do") else { return };
    let buffers = FixedBuffers::new(&ring, 8).unwrap();
    let memory = anonymous();
    let child = Child::that(|| {
        let refused = buffers.register(memory.range(), Access::Read).expect_err("a child");
        refused.to_string().contains("make a ring after the fork").into()
    });
    assert_eq!(child.expect("fork").status(), 1);
}

#[test]
fn the_ring_lives_as_long_as_its_buffers() {
    let Some(lab) = Lab::new("the_ring_lives_as_long_as_its_buffers") else { return };
    let buffers = FixedBuffers::new(&lab.ring, 8).unwrap();
    let memory = anonymous();
    drop(lab);
    let slot = register(&buffers, &memory);
    buffers.deregister(memory.range(), slot);
    assert_eq!(buffers.in_use(), 0);
}

#[test]
fn what_is_asked_once() {
    let Some(ring) = ring("what_is_asked_once") else { return };
    let options = Options { wait: Wait::UntilUnused, ..Options::default() };
    let buffers = FixedBuffers::with(&ring, options).unwrap();
    assert_eq!(buffers.wait(), Wait::UntilUnused);
    assert_eq!(buffers.max_len(), 1 << 30);
    let survived = mmu_notifier::Event::ALL.map(|event| buffers.survives(event));
    assert_eq!(survived, [false, false, false, true, true, false, false, false]);
    assert!(format!("{buffers:?}").contains("in_use: 0"));
}
