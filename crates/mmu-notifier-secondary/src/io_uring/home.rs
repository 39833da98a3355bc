//! Whether this is the address space that made the ring, or a copy of it: a forked child.
//!
//! Its copy of the ring is the parent's ring, with the parent's pages. The process id would not say so: a child that
//! shares the memory (`vfork`) has another one. So a page is asked that the kernel wipes in copies, which costs a load.

// UNSAFETY: maps that page and reads it.
#![expect(unsafe_code)]

use std::io;
use std::ptr::{NonNull, null_mut};

use mmu_notifier::PAGE_SIZE;

/// A mark that is not in copies of this address space.
#[derive(Debug)]
pub(super) struct Home {
    page: NonNull<u8>,
}

// SAFETY: after `new` the page is only read, until it is dropped.
unsafe impl Send for Home {}
// SAFETY: as above.
unsafe impl Sync for Home {}

impl Home {
    pub(super) fn new() -> io::Result<Home> {
        let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping.
        let page = unsafe { libc::mmap(null_mut(), PAGE_SIZE, rights, kind, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let home = Home { page: NonNull::new(page.cast()).expect("nothing is mapped at 0") };
        // SAFETY: the mapping is ours.
        if unsafe { libc::madvise(page, PAGE_SIZE, libc::MADV_WIPEONFORK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: mapped, writable, and nobody else has it yet.
        unsafe { home.page.as_ptr().write(1) };
        Ok(home)
    }

    /// Whether this is where it was made.
    pub(super) fn is_here(&self) -> bool {
        // SAFETY: mapped until it is dropped. Volatile, as the kernel writes it.
        unsafe { self.page.as_ptr().read_volatile() == 1 }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody asks any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE_SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_not_here() {
        let home = Home::new().unwrap();
        assert!(home.is_here());
        // SAFETY: the child only reads and leaves.
        match unsafe { libc::fork() } {
            // SAFETY: nothing has to be cleaned up.
            0 => unsafe { libc::_exit(home.is_here().into()) },
            child => {
                assert!(child > 0);
                let mut status = -1;
                // SAFETY: a child of ours.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                assert_eq!(status, 0);
            }
        }
        assert!(home.is_here());
    }
}
