//! The oracle: a virtual machine that makes the kernel itself tell of this process's changes.
//!
//! A process with a virtual machine has a subscriber of the kernel's own MMU notifier, KVM, and a tracepoint there
//! (`kvm:kvm_unmap_hva_range`) reports each change of the address space that the kernel announces to it. The machine
//! needs no guest and no memory: to exist is enough. It belongs to the address space in which it was made, whoever holds
//! its descriptor. So it is sent to who audits, and closed here: the program's table of descriptors is as it was, and
//! nothing that the program does to it can end the audit. A forked child and an `exec`ed program make their own.

// UNSAFETY: makes system calls on memory of its own.
#![expect(unsafe_code)]

use core::sync::atomic::Ordering;

use mmu_notifier::PAGE_SIZE;

use crate::Syscall;
use crate::entry;
use crate::gate;
use crate::gate::safe::{Errno, File, send_descriptor, sleep};
use crate::log::{Log, ticks};
use crate::session::{Oracle, Process, audit_socket};

/// The kernel comes back behind the instruction.
const SYSCALL_BYTES: usize = 2;

/// Makes this process's oracle, if an audit is wanted, and has the kernel tell of a first change.
///
/// Allocates nothing and takes no lock: it is called in forked children. Waits for who audits to take it.
pub(crate) fn set_up(log: &Log) {
    let key = log.header().audit.load(Ordering::Relaxed);
    let (true, Some(process), Some(index)) = (key != 0, log.process(), log.index()) else { return };
    process.gate.store((gate::address() + SYSCALL_BYTES) as u64, Ordering::Relaxed);
    process.entry.store((entry::address() + SYSCALL_BYTES) as u64, Ordering::Relaxed);
    let page = map_page();
    process.probe.store(page.unwrap_or(0) as u64, Ordering::Relaxed);
    let oracle = match make_and_send(key, index) {
        Ok(()) => {
            wait_until_taken(log, process);
            Oracle::InPlace as u64
        }
        Err((oracle, Errno(errno))) => oracle as u64 | (errno as u64) << 8,
    };
    if let Some(page) = page {
        // SAFETY: mapped above; nobody else has it.
        unsafe { gate::call(Syscall::Munmap.number(), &[page, PAGE_SIZE, 0, 0, 0, 0]) };
    }
    process.own_calls.fetch_add(2, Ordering::Relaxed);
    // Release: who reads this may look at the rest.
    process.oracle.store(oracle, Ordering::Release);
}

/// Waits until who audits has looked at this process as it begins: what it shares with its parent must be known before
/// it ends. Not for ever: who audits may be gone.
fn wait_until_taken(log: &Log, process: &Process) {
    const TIMES: u32 = 10_000;
    const NANOSECONDS: u64 = 500_000;
    for _ in 0..TIMES {
        // Relaxed: nothing is read that was written before.
        if process.oracle_taken.load(Ordering::Relaxed) != 0
            || log.header().closed.load(Ordering::Relaxed) != 0
        {
            return;
        }
        sleep(NANOSECONDS);
    }
}

fn map_page() -> Option<usize> {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    let args = [0, PAGE_SIZE, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0];
    // SAFETY: a new mapping.
    let page = unsafe { gate::call(Syscall::Mmap.number(), &args) };
    (page > 0).then_some(page as usize)
}

fn make_and_send(key: u64, index: usize) -> Result<(), (Oracle, Errno)> {
    const O_RDWR: usize = 2;
    const KVM_CREATE_VM: usize = 0xae01;
    // Before there is a machine: the kernel reports nothing of an earlier time.
    let time = ticks();
    let device = File::open(c"/dev/kvm", O_RDWR).map_err(|errno| (Oracle::NoDevice, errno))?;
    let machine = device.make(KVM_CREATE_VM).map_err(|errno| (Oracle::NotMade, errno))?;
    let mut message = [0; 16];
    message[..8].copy_from_slice(&(index as u64).to_ne_bytes());
    message[8..].copy_from_slice(&time.to_ne_bytes());
    send_descriptor(&audit_socket(key), &machine, &message).map_err(|errno| (Oracle::NotSent, errno))
}
