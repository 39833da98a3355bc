//! Changes of memory that an operation is using: they wait for it, or do not, as was asked for.

use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use io_uring::opcode::ReadFixed;
use io_uring::types::Fd;
use mmu_notifier::{AddressSpace, Event, WouldBlock};
use mmu_notifier_secondary::cache::{Access, Cache, Options as CacheOptions, Wait};
use mmu_notifier_secondary::io_uring::{FixedBuffers, Operation, Options};

use crate::lab::{FILE, Lab};
use crate::memory::{Backing, Memory};
use crate::rows::OLD;

const BYTES: usize = 16;

/// A cache whose changes wait for what.
fn cache(space: &AddressSpace, lab: &Lab, wait: Wait) -> Cache<FixedBuffers> {
    let options = Options { slots: 8, wait, ..Options::default() };
    let buffers = FixedBuffers::with(&lab.ring, options).expect("a ring of our own");
    Cache::new(space, buffers, CacheOptions { entries: 8, ..CacheOptions::default() })
}

/// Submits a read of an empty pipe into the memory.
fn park<'c>(
    lab: &mut Lab,
    cache: &'c Cache<FixedBuffers>,
    memory: &Memory,
    user_data: u64,
) -> (Operation<'c>, PipeReader, PipeWriter) {
    let (reader, writer) = pipe().expect("a pipe");
    let registration = cache.get(memory.range(), Access::Write).expect("registered");
    let operation = Operation::new(registration, user_data);
    let read = ReadFixed::new(Fd(reader.as_raw_fd()), memory.pointer(), BYTES as u32, operation.slot());
    lab.submit(&read.offset(u64::MAX).build().user_data(operation.user_data()));
    (operation, reader, writer)
}

/// The completions of so many operations.
fn completions<const N: usize>(lab: &mut Lab, cache: &Cache<FixedBuffers>) -> [(u64, i32); N] {
    let mut done = Vec::new();
    while done.len() < N {
        done.extend(lab.wait(1));
        done.retain(|(user_data, _)| !cache.registrar().released(*user_data));
    }
    done.sort_unstable();
    done.try_into().expect("so many were submitted")
}

#[test]
fn a_change_that_waits_cancels_what_is_parked() {
    let Some(mut lab) = Lab::new("a_change_that_waits_cancels_what_is_parked") else { return };
    let space = AddressSpace::new();
    let cache = cache(&space, &lab, Wait::UntilUnused);
    let mut memory = Memory::new(Backing::Anonymous, OLD);
    let (range, changed) = (memory.range(), AtomicBool::new(false));
    let (one, _one_reader, _one_writer) = park(&mut lab, &cache, &memory, 7);
    let (two, _two_reader, _two_writer) = park(&mut lab, &cache, &memory, 8);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            space.invalidate(range, Event::Unmap, || {
                memory.map_over();
                changed.store(true, Ordering::Relaxed);
            });
        });
        assert_eq!(completions(&mut lab, &cache), [(7, -libc::ECANCELED), (8, -libc::ECANCELED)]);
        drop(one);
        assert!(!changed.load(Ordering::Relaxed), "the other one is in use");
        drop(two);
    });
    assert!(changed.load(Ordering::Relaxed));
    assert_eq!((cache.stats().waited, cache.registrar().in_use()), (1, 0));
}

/// What has come to the end meanwhile is not cancelled any more.
#[test]
fn a_change_that_waits_lets_what_is_done_be_done() {
    let Some(mut lab) = Lab::new("a_change_that_waits_lets_what_is_done_be_done") else { return };
    let space = AddressSpace::new();
    let cache = cache(&space, &lab, Wait::UntilUnused);
    let mut memory = Memory::new(Backing::Anonymous, OLD);
    let range = memory.range();
    let (operation, _reader, mut writer) = park(&mut lab, &cache, &memory, 7);
    writer.write_all(&[FILE; BYTES]).expect("a pipe has room");
    std::thread::scope(|scope| {
        let changed = scope.spawn(|| {
            space.invalidate(range, Event::Unmap, || {
                let first = memory.first();
                memory.map_over();
                first
            })
        });
        // Done or cancelled, whoever was first; but one of them, and the change sees which.
        let [(_, result)] = completions(&mut lab, &cache);
        drop(operation);
        let first = changed.join().expect("no panic");
        match result {
            16 => assert_eq!(first, FILE),
            result => assert_eq!((result, first), (-libc::ECANCELED, OLD)),
        }
    });
}

#[test]
fn a_change_that_must_not_wait_is_refused_meanwhile() {
    let Some(mut lab) = Lab::new("a_change_that_must_not_wait_is_refused_meanwhile") else { return };
    let space = AddressSpace::new();
    let cache = cache(&space, &lab, Wait::UntilUnused);
    let memory = Memory::new(Backing::Anonymous, OLD);
    let (operation, _reader, mut writer) = park(&mut lab, &cache, &memory, 7);
    let refused = space.try_invalidate(memory.range(), Event::Clear, || ());
    assert_eq!(refused, Err(WouldBlock));
    writer.write_all(&[FILE; BYTES]).expect("a pipe has room");
    assert_eq!(completions(&mut lab, &cache), [(7, BYTES as i32)], "it is not cancelled");
    drop(operation);
    assert_eq!(space.try_invalidate(memory.range(), Event::Clear, || ()), Ok(()));
    assert_eq!(cache.registrar().in_use(), 0);
}

/// The default: the operation ends in the pages that it began with, which nobody sees any more.
#[test]
fn a_change_that_waits_for_nothing_leaves_the_operation_its_pages() {
    let test = "a_change_that_waits_for_nothing_leaves_the_operation_its_pages";
    let Some(mut lab) = Lab::new(test) else { return };
    let space = AddressSpace::new();
    let cache = cache(&space, &lab, Wait::ForNothing);
    let mut memory = Memory::new(Backing::Shared, OLD);
    let (operation, _reader, mut writer) = park(&mut lab, &cache, &memory, 7);
    let slot = operation.slot();
    let range = memory.range();
    space.try_invalidate(range, Event::Unmap, || memory.map_over()).expect("nobody refuses");
    // The next one is another one.
    let next = cache.get(memory.range(), Access::Write).expect("registered");
    assert_ne!(next.handle().index(), slot);
    assert_eq!(lab.read_fixed(next.handle().index(), &memory), crate::memory::LEN as i32);
    assert_eq!(memory.byte(), FILE);
    writer.write_all(&[b'P'; BYTES]).expect("a pipe has room");
    assert_eq!(completions(&mut lab, &cache), [(7, BYTES as i32)]);
    assert_eq!(memory.byte(), FILE, "not there");
    assert_eq!(memory.alias_first(), Some(b'P'), "but in the file");
    drop(operation);
    assert_eq!(cache.registrar().in_use(), 1);
}

/// A registration that is let go of too early: the kernel says when it is really released.
#[test]
fn what_is_let_go_of_too_early_is_still_pinned() {
    let Some(mut lab) = Lab::new("what_is_let_go_of_too_early_is_still_pinned") else { return };
    let space = AddressSpace::new();
    let cache = cache(&space, &lab, Wait::ForNothing);
    let memory = Memory::new(Backing::Anonymous, OLD);
    let (operation, _reader, mut writer) = park(&mut lab, &cache, &memory, 7);
    drop(operation);
    space.invalidate(memory.range(), Event::Clear, || ());
    assert_eq!(cache.registrar().in_use(), 0);
    assert_ne!(cache.registrar().pinned(), 0);
    writer.write_all(&[FILE; BYTES]).expect("a pipe has room");
    let told = lab.wait(2);
    assert!(told.iter().any(|(user_data, _)| cache.registrar().released(*user_data)), "{told:?}");
    assert_eq!(cache.registrar().pinned(), 0);
}
