//! Forked children.

// UNSAFETY: forks. Children only do what may be done in the child of a process with threads: no allocation, no locks.
#![expect(unsafe_code)]

use std::io;

/// A forked child; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Child {
    id: libc::pid_t,
}

impl Child {
    /// A child that runs `work` and exits with what that gives. `work` must not allocate.
    pub(crate) fn that(work: impl FnOnce() -> u8) -> io::Result<Child> {
        // SAFETY: see the top.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let status = work();
                // SAFETY: nothing has to be cleaned up.
                unsafe { libc::_exit(status.into()) }
            }
            id => Ok(Child { id }),
        }
    }

    /// A child that does nothing until it is dropped.
    pub(crate) fn that_waits() -> io::Result<Child> {
        Child::that(|| {
            loop {
                // SAFETY: it only waits.
                unsafe { libc::pause() };
            }
        })
    }

    /// What it exited with.
    pub(crate) fn status(self) -> u8 {
        let status = wait(self.id);
        std::mem::forget(self);
        assert!(libc::WIFEXITED(status), "the child died: {status:#x}");
        libc::WEXITSTATUS(status) as u8
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: a child of ours that nobody has waited for.
        unsafe { libc::kill(self.id, libc::SIGKILL) };
        wait(self.id);
    }
}

fn wait(id: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: a child of ours.
    while unsafe { libc::waitpid(id, &raw mut status, 0) } != id {}
    status
}
