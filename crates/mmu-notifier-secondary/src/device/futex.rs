//! A queue of waiting threads without a lock: who wakes them may have interrupted one of them.

// UNSAFETY: two system calls.
#![cfg_attr(not(mmu_loom), expect(unsafe_code))]

use std::time::Duration;

use crate::sync::{AtomicU32, Ordering, fence};

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
        // SeqCst pairs with the fence in `wake_all`: either this is seen there, or the kernel sees the raised number.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        sleep(&self.wakes, ticket, at_most);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Wakes everybody. Never waits.
    pub(crate) fn wake_all(&self) {
        // Release pairs with the Acquire in `ticket`.
        self.wakes.fetch_add(1, Ordering::Release);
        // Pairs with the SeqCst in `wait`.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            wake(&self.wakes);
        }
    }

    /// How many are waiting.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }
}

#[cfg(not(mmu_loom))]
fn sleep(word: &AtomicU32, while_it_is: u32, at_most: Option<Duration>) {
    use std::ptr;
    let timeout = at_most.map(|duration| libc::timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: both pointers are good for the call, or null. Whatever it returns, the caller looks again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, while_it_is, timeout) };
}

#[cfg(not(mmu_loom))]
fn wake(word: &AtomicU32) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel uses the address as a name only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, i32::MAX) };
}

/// Under loom who waits looks again and again.
#[cfg(mmu_loom)]
fn sleep(_: &AtomicU32, _: u32, _: Option<Duration>) {
    loom::thread::yield_now();
}

#[cfg(mmu_loom)]
fn wake(_: &AtomicU32) {}
