//! What may happen to memory while it is registered, and what becomes of the data then.

use std::ffi::c_int;
use std::io;

use mmu_notifier::Event;

use crate::child::Child;
use crate::lab::FILE;
use crate::memory::{Backing, Memory};

/// What the memory is full of first.
pub(crate) const OLD: u8 = b'A';
/// What it is full of after the change, where the program writes it again.
pub(crate) const NEW: u8 = b'N';

/// A change of memory.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) backing: Backing,
    /// As what it is announced, if by hand.
    pub(crate) event: Option<Event>,
    pub(crate) change: fn(&mut Memory) -> io::Result<Option<Child>>,
    /// What the program may do with the memory after it.
    pub(crate) rights: c_int,
    /// What `READ_FIXED` by a registration from before leaves at the address: [`FILE`] would be right.
    pub(crate) shows: u8,
    /// What `WRITE_FIXED` by that registration sends: what is at the address would be right.
    pub(crate) sends: u8,
    /// Where else the data of that `READ_FIXED` is to be seen.
    pub(crate) also: Also,
}

/// Where data went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Also {
    Nowhere,
    /// At the address that the memory was moved to.
    Moved,
    /// In the file behind the memory.
    File,
}

const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;

const NOTHING: Row = Row {
    name: "nothing",
    backing: Backing::Anonymous,
    event: None,
    change: |_| Ok(None),
    rights: READ_WRITE,
    shows: FILE,
    sends: OLD,
    also: Also::Nowhere,
};

/// Most change what the address means.
const UNMAP: Row = Row { event: Some(Event::Unmap), ..NOTHING };

fn renew(memory: &mut Memory) -> io::Result<Option<Child>> {
    memory.map_over();
    memory.fill(NEW);
    Ok(None)
}

/// All rows. Those in which the data is lost or stale come with what was seen on Linux 6.18.
pub(crate) const ROWS: &[Row] = &[
    NOTHING,
    Row {
        name: "munmap, mmap",
        change: |memory| {
            memory.unmap();
            renew(memory)
        },
        shows: NEW,
        ..UNMAP
    },
    Row { name: "mmap MAP_FIXED", change: renew, shows: NEW, ..UNMAP },
    Row {
        name: "MADV_DONTNEED, written again",
        event: Some(Event::Clear),
        change: |memory| {
            memory.advise(libc::MADV_DONTNEED)?;
            memory.fill(NEW);
            Ok(None)
        },
        shows: NEW,
        ..UNMAP
    },
    Row {
        name: "MADV_DONTNEED",
        event: Some(Event::Clear),
        change: |memory| memory.advise(libc::MADV_DONTNEED).map(|()| None),
        shows: 0,
        ..UNMAP
    },
    Row {
        name: "MADV_GUARD_INSTALL, MADV_GUARD_REMOVE",
        event: Some(Event::Clear),
        change: |memory| memory.guard().map(|()| None),
        shows: 0,
        ..UNMAP
    },
    Row {
        name: "mremap, mmap",
        change: |memory| {
            memory.move_away(0);
            renew(memory)
        },
        shows: NEW,
        also: Also::Moved,
        ..UNMAP
    },
    Row {
        name: "mremap MREMAP_DONTUNMAP",
        change: |memory| {
            memory.move_away(libc::MREMAP_DONTUNMAP);
            Ok(None)
        },
        shows: 0,
        also: Also::Moved,
        ..UNMAP
    },
    // Written through the protection.
    Row {
        name: "mprotect PROT_NONE",
        event: Some(Event::ProtectionVma),
        change: |memory| {
            memory.protect(libc::PROT_NONE);
            Ok(None)
        },
        rights: libc::PROT_NONE,
        ..UNMAP
    },
    Row {
        name: "mprotect PROT_READ",
        event: Some(Event::ProtectionVma),
        change: |memory| {
            memory.protect(libc::PROT_READ);
            Ok(None)
        },
        rights: libc::PROT_READ,
        ..UNMAP
    },
    // No harm: pinned pages are neither freed nor swapped out, and a child gets copies of them.
    Row {
        name: "MADV_FREE",
        event: Some(Event::Clear),
        change: |memory| memory.advise(libc::MADV_FREE).map(|()| None),
        ..UNMAP
    },
    Row {
        name: "MADV_PAGEOUT",
        event: Some(Event::Clear),
        change: |memory| memory.advise(libc::MADV_PAGEOUT).map(|()| None),
        ..UNMAP
    },
    Row {
        name: "fork",
        event: Some(Event::ProtectionPage),
        change: |_| Child::that_waits().map(Some),
        ..UNMAP
    },
    Row {
        name: "fork, written",
        event: Some(Event::ProtectionPage),
        change: |memory| {
            let child = Child::that_waits()?;
            memory.fill(NEW);
            Ok(Some(child))
        },
        sends: NEW,
        ..UNMAP
    },
    Row {
        name: "file: ftruncate to 0 and back",
        change: |memory| {
            memory.truncate();
            Ok(None)
        },
        shows: 0,
        ..SHARED
    },
    Row {
        name: "file: FALLOC_FL_PUNCH_HOLE",
        event: Some(Event::Clear),
        change: |memory| {
            memory.punch_hole();
            Ok(None)
        },
        shows: 0,
        ..SHARED
    },
    Row {
        name: "file: MADV_REMOVE",
        event: Some(Event::Clear),
        change: |memory| memory.advise(libc::MADV_REMOVE).map(|()| None),
        shows: 0,
        ..SHARED
    },
    // No harm: the page cache keeps the page.
    Row {
        name: "file: MADV_DONTNEED",
        event: Some(Event::Clear),
        change: |memory| memory.advise(libc::MADV_DONTNEED).map(|()| None),
        also: Also::File,
        ..SHARED
    },
    Row { name: "file: mmap MAP_FIXED", change: renew, shows: NEW, also: Also::File, ..SHARED },
    Row {
        name: "file: mremap, mmap",
        change: |memory| {
            memory.move_away(0);
            renew(memory)
        },
        shows: NEW,
        also: Also::File,
        ..SHARED
    },
];

const SHARED: Row = Row { backing: Backing::Shared, ..UNMAP };
