//! Why there are no fixed buffers, and why memory is not registered.

// UNSAFETY: asks for a resource limit.
#![expect(unsafe_code)]

use std::io;

use mmu_notifier::Range;

use super::MAX_SLOTS;
use crate::cache::RegisterError;

/// A ring cannot be given fixed buffers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// Memory changes on any thread, and the kernel lets only one change this ring's table (`EEXIST`).
    #[error(
        "the ring's fixed buffers can be changed by one thread only, but memory changes on any: set the ring up without IORING_SETUP_SINGLE_ISSUER and IORING_SETUP_DEFER_TASKRUN (setup_single_issuer, setup_defer_taskrun)"
    )]
    SingleIssuer,
    /// A ring has one table.
    #[error("the ring has registered buffers already: unregister them first, or use another ring")]
    TableExists,
    /// No such number of slots.
    #[error("a ring has from 1 to {MAX_SLOTS} slots for fixed buffers, not {slots}")]
    Slots {
        /// What was asked for.
        slots: u16,
    },
    /// The kernel has no tables that can be changed while they are in use.
    #[error("fixed buffers that can be changed one by one need Linux 5.19 or newer")]
    TooOld,
    /// No memory, or no file descriptor.
    #[error("cannot make a second handle to the ring: {0}")]
    Memory(io::Error),
    /// The kernel refused to make the table.
    #[error("cannot make the ring's table of fixed buffers: {0}")]
    Table(io::Error),
}

impl SetupError {
    pub(super) fn of_table(error: io::Error) -> SetupError {
        match error.raw_os_error() {
            Some(libc::EBUSY) => SetupError::TableExists,
            Some(libc::EEXIST) => SetupError::SingleIssuer,
            // Before 5.19 there were no empty slots.
            Some(libc::EINVAL) => SetupError::TooOld,
            _ => SetupError::Table(error),
        }
    }
}

/// What the kernel's error means here. The kernel's own is not kept: it would say less.
#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("all {slots} slots of the ring's table are in use")]
    NoSlot { slots: u16 },
    #[error(
        "this process is a forked child, and the ring and its buffers are the parent's: make a ring after the fork"
    )]
    Forked,
    #[error(
        "{} bytes more cannot be locked: {pinned} are locked for this ring, and RLIMIT_MEMLOCK is {limit} for all rings of the user (raise it with ulimit -l, as LimitMEMLOCK= of a service, or give CAP_IPC_LOCK)",
        range.len()
    )]
    Memlock { range: Range, pinned: u64, limit: Limit },
    #[error(
        "not all of {range} is mapped, writable and such as can be pinned (io_uring pins for writing, also what is only sent; shared mappings of files on a disk cannot be pinned; nor can what there is no memory left for)"
    )]
    NotPinnable { range: Range },
    #[error(
        "the ring's table can be changed by one thread only, as it was set up with IORING_SETUP_SINGLE_ISSUER"
    )]
    SingleIssuer,
}

/// Bytes, if there is a limit.
#[derive(Debug)]
struct Limit(libc::rlim_t);

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            libc::RLIM_INFINITY => f.write_str("unlimited"),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

fn memlock() -> Limit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes the two numbers.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    Limit(limit.rlim_cur)
}

pub(super) fn no_slot(slots: u16) -> RegisterError {
    RegisterError::Exhausted(io::Error::other(Reason::NoSlot { slots }))
}

pub(super) fn forked() -> RegisterError {
    RegisterError::Failed(io::Error::other(Reason::Forked))
}

/// The kernel would not register `range`.
pub(super) fn of_register(range: Range, pinned: u64, error: io::Error) -> RegisterError {
    let failed = |kind, reason| RegisterError::Failed(io::Error::new(kind, reason));
    match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            let reason = Reason::Memlock { range, pinned, limit: memlock() };
            RegisterError::Exhausted(io::Error::new(io::ErrorKind::OutOfMemory, reason))
        }
        Some(libc::EFAULT | libc::EOPNOTSUPP) => {
            failed(io::ErrorKind::PermissionDenied, Reason::NotPinnable { range })
        }
        Some(libc::EEXIST) => failed(io::ErrorKind::PermissionDenied, Reason::SingleIssuer),
        _ => RegisterError::Failed(error),
    }
}
