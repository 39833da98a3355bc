//! Locked memory is used up: only for processes without `CAP_IPC_LOCK`, so this runs in one.

// UNSAFETY: gives up a capability between fork and exec, and lowers a limit.
#![expect(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use mmu_notifier::AddressSpace;
use mmu_notifier_secondary::cache::{Access, Cache, Options, RegisterError, Registrar};
use mmu_notifier_secondary::io_uring::FixedBuffers;

use crate::lab::ring;
use crate::memory::{Backing, LEN, Memory};
use crate::own_process;
use crate::rows::OLD;

const LIMIT: usize = 2 * LEN;

const CAP_IPC_LOCK: libc::c_ulong = 14;

/// Async-signal-safe.
fn give_up() -> io::Result<()> {
    // Out of the bounding set, exec cannot give it back, not even to root. Who may not do that has not got it anyway.
    // SAFETY: concerns this process, which is about to exec.
    unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) };
    // SAFETY: as above.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    Ok(())
}

fn lower_the_limit() {
    let limit = libc::rlimit { rlim_cur: LIMIT as u64, rlim_max: LIMIT as u64 };
    // SAFETY: reads the two numbers.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0);
}

/// Whether this process is not bound by the limit.
fn is_capable() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a line CapEff");
    let effective = u64::from_str_radix(line.trim(), 16).expect("a hexadecimal number");
    effective >> CAP_IPC_LOCK & 1 == 1
}

#[test]
fn the_limit_is_named_with_its_value() {
    let prepare = |command: &mut Command| {
        // SAFETY: async-signal-safe.
        unsafe { command.pre_exec(give_up) };
    };
    own_process::run("memlock::the_limit_is_named_with_its_value", prepare, inside);
}

fn inside() {
    let Some(ring) = ring("the_limit_is_named_with_its_value") else { return };
    if is_capable() {
        return eprintln!("SKIPPED: the_limit_is_named_with_its_value: CAP_IPC_LOCK cannot be given up here");
    }
    let buffers = FixedBuffers::new(&ring, 8).expect("a table takes little");
    // Not before: some kernels count the ring's own memory, and all count that of other processes of the user.
    lower_the_limit();
    let memory = [(); 3].map(|()| Memory::new(Backing::Anonymous, OLD));
    let mut slots = Vec::new();
    let exhausted = loop {
        match buffers.register(memory[slots.len()].range(), Access::Write) {
            Ok(slot) => slots.push(slot),
            Err(error) => break error,
        }
    };
    assert!(slots.len() <= 2, "{}", slots.len());
    assert!(matches!(exhausted, RegisterError::Exhausted(_)), "{exhausted:?}");
    let text = exhausted.to_string();
    for part in [
        "16384 bytes more cannot be locked".to_owned(),
        format!("{} are locked for this ring", slots.len() * LEN),
        format!("RLIMIT_MEMLOCK is {LIMIT} bytes"),
    ] {
        assert!(text.contains(&part), "{part:?} in {text:?}");
    }
    // What is deregistered makes room, and a cache sees to that.
    if slots.is_empty() {
        return;
    }
    while let Some(slot) = slots.pop() {
        buffers.deregister(memory[slots.len()].range(), slot);
    }
    let cache = Cache::new(&AddressSpace::new(), buffers, Options { entries: 8, ..Options::default() });
    for memory in &memory {
        drop(cache.get(memory.range(), Access::Write).expect("there is room again"));
    }
    assert!(cache.stats().evicted > 0, "{}", cache.stats());
    assert!(cache.registrar().in_use() <= 2, "{:?}", cache.registrar());
}
