//! Why there is no registration.

use std::fmt;

use mmu_notifier::Range;

use super::{Access, RegisterError};

/// [`Cache::get`](super::Cache::get) has no registration to give. Nothing is left half registered, and the next request
/// begins anew.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// Part of the range is not mapped.
    #[error("{range} cannot be registered: nothing is mapped at {hole:#x}")]
    NotMapped {
        /// What was to be registered.
        range: Range,
        /// The first address of it at which there is no mapping.
        hole: usize,
    },
    /// A mapping does not give the rights.
    #[error(
        "{range} cannot be registered for {access}: the mapping {mapping} is {rights}, and that takes {needed}"
    )]
    Forbidden {
        /// What was to be registered.
        range: Range,
        /// What for.
        access: Access,
        /// The first mapping of it that lacks a right.
        mapping: Range,
        /// The rights that it has.
        rights: Rights,
        /// Those that it takes.
        needed: Rights,
    },
    /// It is longer than the registrar takes.
    #[error("{range} cannot be registered: {} bytes are more than the {max} that one registration takes", range.len())]
    TooLong {
        /// What was to be registered.
        range: Range,
        /// [`Registrar::max_len`](super::Registrar::max_len), in bytes.
        max: usize,
    },
    /// The registrar failed, and the mappings do not say why.
    #[error("{range} could not be registered for {access}: {error}")]
    Register {
        /// What was to be registered.
        range: Range,
        /// What for.
        access: Access,
        /// What the registrar said.
        error: RegisterError,
    },
    /// The registrar panicked.
    #[error("{range} could not be registered: the registrar panicked: {message}")]
    Panicked {
        /// What was to be registered.
        range: Range,
        /// The panic's message.
        message: String,
    },
    /// The table is full, and all that is in it is in use.
    #[error(
        "{range} cannot be registered: all {entries} entries of the cache are in use (drop registrations, or make the cache with more entries)"
    )]
    Full {
        /// What was to be registered.
        range: Range,
        /// [`Options::entries`](super::Options::entries).
        entries: usize,
    },
    /// As many bytes are registered as may be, and what could be evicted would not make room.
    #[error(
        "{range} cannot be registered: {in_use} bytes are in use or not yet released of the {limit} that may be registered (drop registrations, or make the cache with more bytes)"
    )]
    TooMuch {
        /// What was to be registered.
        range: Range,
        /// Bytes that cannot be evicted.
        in_use: usize,
        /// [`Options::bytes`](super::Options::bytes).
        limit: usize,
    },
    /// Changes overlapped every attempt.
    #[error("{range} could not be registered: it changed during each of {attempts} attempts")]
    Unsettled {
        /// What was to be registered.
        range: Range,
        /// [`Options::attempts`](super::Options::attempts).
        attempts: u32,
    },
    /// The calling thread itself is in a change of the range: to wait for its end would be for ever.
    #[error("{range} cannot be registered: the calling thread is in the middle of changing it")]
    Changing {
        /// What was to be registered.
        range: Range,
    },
    /// The address space has been [released](mmu_notifier::AddressSpace::release).
    #[error("{range} cannot be registered: the address space has been released")]
    Released {
        /// What was to be registered.
        range: Range,
    },
}

/// Rights of a mapping, as `/proc/self/maps` spells them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// It can be read.
    pub read: bool,
    /// It can be written.
    pub write: bool,
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.read, self.write) {
            (false, false) => "---",
            (true, false) => "r--",
            (false, true) => "-w-",
            (true, true) => "rw-",
        })
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
