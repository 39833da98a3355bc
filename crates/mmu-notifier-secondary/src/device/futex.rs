//! A queue of waiting threads without a lock: who wakes them may have interrupted one of them.

// UNSAFETY: two system calls.
#![expect(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;

/// Threads that wait until something else is so.
///
/// Who waits takes a [`ticket`](WaitQueue::ticket), looks whether he has to wait, and then does; who changes what is looked at
/// wakes all afterwards.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue {
    /// Raised by each wake.
    wakes: AtomicU32,
    waiting: AtomicU32,
}

impl WaitQueue {
    pub(crate) fn ticket(&self) -> u32 {
        // Acquire pairs with the Release in `wake_all`: what was changed before is seen.
        self.wakes.load(Ordering::Acquire)
    }

    /// Waits until somebody wakes all, if nobody has since the ticket was taken; at most that long, if given. May return
    /// without reason.
    pub(crate) fn wait(&self, ticket: u32, at_most: Option<Duration>) {
        let timeout = at_most.map(|duration| libc::timespec {
            tv_sec: duration.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: duration.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SeqCst pairs with the fence in `wake_all`: either this is seen there, or the kernel sees the raised number.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: both pointers are good for the call, or null. Whatever it returns, the caller looks again.
        unsafe { libc::syscall(libc::SYS_futex, self.wakes.as_ptr(), operation, ticket, timeout) };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Wakes everybody. Never waits.
    pub(crate) fn wake_all(&self) {
        // Release pairs with the Acquire in `ticket`.
        self.wakes.fetch_add(1, Ordering::Release);
        // Pairs with the SeqCst in `wait`.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
            // SAFETY: the kernel uses the address as a name only.
            unsafe { libc::syscall(libc::SYS_futex, self.wakes.as_ptr(), operation, i32::MAX) };
        }
    }

    /// How many are waiting.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }
}
