//! What becomes of data if a buffer is registered once and its memory changes. Every operation reports success.

// UNSAFETY: a system call for which the crate of io_uring has no function.
#![expect(unsafe_code)]

use std::os::fd::AsRawFd;

use mmu_notifier::{AddressSpace, Event};
use mmu_notifier_secondary::cache::Access;

use crate::child::Child;
use crate::cure::cache_of;
use crate::lab::{FILE, Lab, ring};
use crate::memory::{Backing, LEN, Memory, byte_at};
use crate::own_process;
use crate::rows::{Also, OLD, ROWS, Row};
use crate::world::World;

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Registers, changes, operates; `None` if this kernel does not know the change.
fn kept<R>(row: &Row, operate: impl FnOnce(&mut Lab, &mut Memory) -> R) -> Option<R> {
    let mut lab = Lab::new(row.name)?;
    let mut memory = Memory::new(row.backing, OLD);
    lab.register_by_hand(&memory);
    match (row.change)(&mut memory) {
        Ok(_child) => Some(operate(&mut lab, &mut memory)),
        Err(error) => {
            eprintln!("SKIPPED: {}: {error}", row.name);
            None
        }
    }
}

#[test]
fn what_is_read_is_lost() {
    if ring("what_is_read_is_lost").is_none() {
        return;
    }
    for row in ROWS {
        let name = row.name;
        kept(row, |lab, memory| {
            assert_eq!(lab.read_fixed(0, memory), LEN as i32, "{name}: it reports success");
            if row.rights != READ_WRITE {
                memory.protect(READ_WRITE);
            }
            assert_eq!(memory.byte(), row.shows, "{name}: at the address");
            match row.also {
                Also::Nowhere => {}
                Also::Moved => {
                    assert_eq!(byte_at(memory.moved.expect("moved")), FILE, "{name}: where it was moved")
                }
                Also::File => assert_eq!(memory.alias(), Some(FILE), "{name}: in the file"),
            }
            if row.backing == Backing::Shared && row.also == Also::Nowhere {
                assert_eq!(memory.alias(), Some(0), "{name}: in the file");
            }
        });
    }
}

#[test]
fn what_is_written_is_stale() {
    if ring("what_is_written_is_stale").is_none() {
        return;
    }
    for row in ROWS {
        let name = row.name;
        kept(row, |lab, memory| {
            assert_eq!(lab.write_fixed(0, memory), LEN as i32, "{name}: it reports success");
            assert_eq!(lab.written(), row.sends, "{name}: what is sent");
            if row.rights == READ_WRITE && row.shows != FILE {
                assert_ne!(memory.byte(), row.sends, "{name}: that is not what is at the address");
            }
        });
    }
}

/// Plain operations obey the protection that the two rows of `mprotect` go through.
#[test]
fn operations_by_address_obey_the_protection() {
    let Some(mut lab) = Lab::new("operations_by_address_obey_the_protection") else { return };
    let mut memory = Memory::new(Backing::Anonymous, OLD);
    memory.protect(libc::PROT_READ);
    assert_eq!(lab.read(&memory), -libc::EFAULT);
    assert_eq!(lab.write(&memory), LEN as i32);
    memory.protect(libc::PROT_NONE);
    assert_eq!(lab.write(&memory), -libc::EFAULT);
    memory.protect(READ_WRITE);
    assert_eq!(memory.byte(), OLD);
}

/// A child reads into its own memory, and the parent has the data.
#[test]
fn a_child_that_uses_the_ring_reads_into_its_parent() {
    let Some(mut lab) = Lab::new("a_child_that_uses_the_ring_reads_into_its_parent") else { return };
    let memory = Memory::new(Backing::Anonymous, OLD);
    lab.register_by_hand(&memory);
    let child = Child::that(|| {
        let result = lab.read_fixed_in_child(0, &memory);
        if result == LEN as i32 { memory.first() } else { 0 }
    });
    assert_eq!(child.expect("fork").status(), OLD, "what the child sees");
    assert_eq!(memory.byte(), FILE, "what the parent sees");
}

/// Memory that was unmapped is not free, as long as it is registered: kept, for ever.
#[test]
fn what_is_unmapped_is_not_freed() {
    // The process's number of pinned pages is to be this test's alone.
    own_process::run(
        "harm::what_is_unmapped_is_not_freed",
        |_| (),
        || {
            let Some(lab) = Lab::new("what_is_unmapped_is_not_freed") else { return };
            let before = pinned();
            let mut memory = Memory::new(Backing::Anonymous, OLD);
            lab.register_by_hand(&memory);
            memory.unmap();
            assert_eq!(pinned(), before + LEN, "kept");
            lab.ring.submitter().unregister_buffers().expect("they are registered");
            assert_eq!(pinned(), before);

            let space = AddressSpace::new();
            let cache = cache_of(&World::ByHand(space.clone()), &lab.ring);
            memory.map_over();
            drop(cache.get(memory.range(), Access::ReadWrite).expect("registered"));
            assert_eq!(pinned(), before + LEN);
            space.invalidate(memory.range(), Event::Unmap, || {
                assert_eq!(pinned(), before, "through the cache, already before the call");
                memory.unmap();
            });
        },
    );
}

/// What `docs/limits.md` says of tables that were copied to another ring (Linux 6.12).
#[test]
fn a_copied_table_holds_the_pages() {
    own_process::run(
        "harm::a_copied_table_holds_the_pages",
        |_| (),
        || {
            const TEST: &str = "a_copied_table_holds_the_pages";
            const IORING_REGISTER_CLONE_BUFFERS: u32 = 30;
            let (Some(lab), Some(other)) = (Lab::new(TEST), ring(TEST)) else { return };
            let before = pinned();
            let space = AddressSpace::new();
            let cache = cache_of(&World::ByHand(space.clone()), &lab.ring);
            let mut memory = Memory::new(Backing::Anonymous, OLD);
            drop(cache.get(memory.range(), Access::ReadWrite).expect("registered"));
            // `struct io_uring_clone_buffers`: whose; all of them.
            let copy: [u32; 8] = [lab.ring.as_raw_fd() as u32, 0, 0, 0, 0, 0, 0, 0];
            // SAFETY: a structure that the kernel reads.
            let copied = unsafe {
                let (ring, call) = (other.as_raw_fd(), libc::SYS_io_uring_register);
                libc::syscall(call, ring, IORING_REGISTER_CLONE_BUFFERS, copy.as_ptr(), 1)
            };
            if copied != 0 {
                return eprintln!("SKIPPED: {TEST}: {}", std::io::Error::last_os_error());
            }
            space.invalidate(memory.range(), Event::Unmap, || {
                assert_eq!(pinned(), before + LEN, "taken out, and held by the copy");
                memory.unmap();
            });
        },
    );
}

/// Bytes that are pinned for this process.
fn pinned() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).expect("a line VmPin");
    let kibibytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kibibytes << 10
}
