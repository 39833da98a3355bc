//! Whether this is the address space that made the ring, or a copy of it: a forked child.
//!
//! Its copy of the ring is the parent's ring, with the parent's pages. The process id would not say so: a child that
//! shares the memory (`vfork`) has another one. So a page is asked that the kernel wipes in copies, which costs a load.

use std::fmt;

use crate::memory::Zeroes;
use crate::sync::{AtomicU32, Ordering};

/// A mark that is not in copies of this address space.
pub(super) struct Home(Zeroes<AtomicU32>);

impl Home {
    pub(super) fn new() -> Home {
        let mark: Zeroes<AtomicU32> = Zeroes::wiped_on_fork(1);
        // Relaxed, here and below: what is made with it is handed on with it.
        mark[0].store(1, Ordering::Relaxed);
        Home(mark)
    }

    /// Whether this is where it was made.
    pub(super) fn is_here(&self) -> bool {
        self.0[0].load(Ordering::Relaxed) == 1
    }
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Home").field(&self.is_here()).finish()
    }
}

#[cfg(test)]
mod tests {
    // UNSAFETY: forks.
    #![expect(unsafe_code)]

    use super::*;

    #[test]
    fn a_copy_is_not_here() {
        let home = Home::new();
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
