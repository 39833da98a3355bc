//! Memory that is filled and looked at while others may take it away.

// UNSAFETY: maps memory, and reads and writes it through pointers. Nobody has a reference to it: the kernel, the devices and
// the reaper change it, too.
#![expect(unsafe_code)]

use std::io;
use std::ptr::null_mut;

use anyhow::{Context, bail};
use mmu_notifier::{PAGE_SIZE, Range};
use mmu_notifier_primary::reaper::{Evictable, Reaper};

/// A mapping of its own.
pub struct Memory {
    at: *mut u8,
    len: usize,
}

impl Memory {
    /// So many bytes, of whole pages. Nothing of it is there yet.
    pub fn new(len: usize) -> anyhow::Result<Memory> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(null_mut(), len, protection, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mmap");
        }
        Ok(Memory { at: at.cast(), len })
    }

    pub fn range(&self) -> Range {
        Range::with_len(self.at as usize, self.len).expect("it has bytes")
    }

    /// Part of it: its pointer.
    fn part(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset + len <= self.len);
        self.at.wrapping_add(offset)
    }

    pub fn fill(&self, offset: usize, len: usize, byte: u8) {
        // SAFETY: mapped and writable; only raw pointers lead there.
        unsafe { self.part(offset, len).write_bytes(byte, len) };
    }

    /// The byte that this part of it consists of; none if it is a mixture.
    pub fn byte(&self, offset: usize, len: usize) -> Option<u8> {
        let mut page = [0; PAGE_SIZE];
        let mut first = None;
        for at in (offset..offset + len).step_by(PAGE_SIZE) {
            let len = PAGE_SIZE.min(offset + len - at);
            // SAFETY: mapped and readable, and the copy is ours.
            unsafe { self.part(at, len).copy_to_nonoverlapping(page.as_mut_ptr(), len) };
            let first = *first.get_or_insert(page[0]);
            if page[..len] != [first; PAGE_SIZE][..len] {
                return None;
            }
        }
        first
    }

    /// Lets a part of it be discarded until the result is dropped.
    pub fn add_to(&self, reaper: &Reaper, offset: usize, len: usize) -> anyhow::Result<Evictable> {
        let range = Range::with_len(self.part(offset, len) as usize, len)?;
        // SAFETY: it stays mapped, as the program keeps `self` longer than the result; it is reached through raw pointers
        // only, by people who check what they find.
        Ok(unsafe { reaper.add(range)? })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: a mapping of ours.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// What a device does with the byte at a pointer that it has by a page table: exchanges it.
///
/// The pointer must be one that a device of [`program`](super::program) has found valid: its page is there until the device's
/// access is over.
pub fn exchange(pointer: usize, byte: u8) -> u8 {
    // SAFETY: those devices find frames by the identity, for memory of this module that stays mapped while they exist.
    unsafe { (pointer as *mut u8).replace(byte) }
}

/// For the calling process: only small pages, so that what is charged is what is used; and it ends with who has started it.
pub fn set_up_process() -> anyhow::Result<()> {
    for (option, value) in [(libc::PR_SET_THP_DISABLE, 1), (libc::PR_SET_PDEATHSIG, libc::SIGKILL)] {
        // SAFETY: settings of the process.
        if unsafe { libc::prctl(option, value, 0, 0, 0) } != 0 {
            bail!("prctl({option}): {}", io::Error::last_os_error());
        }
    }
    Ok(())
}
