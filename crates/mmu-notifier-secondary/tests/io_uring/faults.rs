//! A submitter that sits in a page fault, with the ring's lock held: a change that must not wait does not wait for it.
//!
//! The page fault lasts as long as the test wants, by `userfaultfd`. If the change did wait, the test would hang.

// UNSAFETY: the system calls of userfaultfd.
#![expect(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};

use io_uring::opcode;
use io_uring::types::Fd;
use mmu_notifier::{AddressSpace, Event};
use mmu_notifier_secondary::cache::Access;

use crate::cure::cache_of;
use crate::lab::Lab;
use crate::memory::{Backing, LEN, Memory};
use crate::rows::OLD;
use crate::world::World;

/// Memory whose page faults wait until [`resolve`](Faults::resolve).
struct Faults {
    descriptor: File,
    start: u64,
}

impl Faults {
    fn of(memory: &mut Memory) -> io::Result<Faults> {
        const API: libc::c_ulong = 0xc018_aa3f;
        const REGISTER: libc::c_ulong = 0xc020_aa00;
        const MISSING: u64 = 1;
        // SAFETY: makes a descriptor.
        let descriptor = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that nobody else has.
        let descriptor = unsafe { File::from_raw_fd(descriptor as i32) };
        let faults = Faults { descriptor, start: memory.range().start() as u64 };
        faults.call(API, &mut [0xaa, 0, 0])?;
        memory.advise(libc::MADV_DONTNEED)?;
        faults.call(REGISTER, &mut [faults.start, LEN as u64, MISSING, 0])?;
        Ok(faults)
    }

    fn call<const N: usize>(&self, request: libc::c_ulong, arguments: &mut [u64; N]) -> io::Result<()> {
        // SAFETY: the size of the arguments is that which the request has in it.
        match unsafe { libc::ioctl(self.descriptor.as_raw_fd(), request, arguments.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits until somebody is in a page fault.
    fn wait(&self) {
        let mut message = [0; 32];
        (&self.descriptor).read_exact(&mut message).expect("a message");
        assert_eq!(message[0], 0x12, "a page fault");
    }

    fn resolve(&self) {
        const ZEROPAGE: libc::c_ulong = 0xc020_aa04;
        self.call(ZEROPAGE, &mut [self.start, LEN as u64, 0, 0]).expect("pages of zeroes");
    }
}

#[test]
fn a_change_that_must_not_wait_does_not_wait_for_a_submitter_in_a_page_fault() {
    let test = "a_change_that_must_not_wait_does_not_wait_for_a_submitter_in_a_page_fault";
    let Some(mut lab) = Lab::new(test) else { return };
    let mut slow = Memory::new(Backing::Anonymous, OLD);
    let faults = match Faults::of(&mut slow) {
        Ok(faults) => faults,
        Err(error) => return eprintln!("SKIPPED: {test}: userfaultfd: {error}"),
    };
    let world = World::ByHand(AddressSpace::new());
    let cache = cache_of(&world, &lab.ring);
    let memory = Memory::new(Backing::Anonymous, OLD);
    drop(cache.get(memory.range(), Access::ReadWrite).expect("registered"));

    let zeroes = File::open("/dev/zero").expect("there is one");
    let destination = slow.pointer() as usize;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let read = opcode::Read::new(Fd(zeroes.as_raw_fd()), destination as *mut u8, LEN as u32);
            let _submitting = cache.registrar().submitting();
            lab.submit(&read.build().user_data(Lab::MINE));
        });
        faults.wait();
        world.space().try_invalidate(memory.range(), Event::Clear, || ()).expect("nobody refuses");
        assert_eq!(cache.registrar().in_use(), 1, "it is out of the cache, but not out of the table");
        assert_eq!(cache.stats().entries, 1);
        faults.resolve();
    });
    // It may have been interrupted after the first page.
    let read = lab.wait(1);
    assert!(matches!(read[..], [(Lab::MINE, 1..)]), "{read:?}");
    cache.flush();
    assert_eq!(cache.registrar().in_use(), 0);
}
