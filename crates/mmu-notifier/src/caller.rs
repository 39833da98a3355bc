//! Who is calling, as far as the core must know.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// The calling thread.
///
/// An [`AddressSpace`](crate::AddressSpace) finds out by a thread-local of the standard library who
/// calls. Where thread-locals must not be touched - in the hook of a system call - the caller brings
/// its own: see [`AddressSpace::with_callers`](crate::AddressSpace::with_callers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Identifies the thread among all living threads of the process; never 0.
    pub thread: u64,
    /// A small number, best different for threads that run at the same time: threads with the same
    /// number (modulo 256) write to the same cache lines. The same for as long as the thread has anything open.
    pub home: usize,
    /// The thread's stack pointer, to find changes whose frame is gone; 0 if nobody wants to know.
    pub stack: usize,
}

impl Caller {
    /// The calling thread, numbered in the order of first calls.
    pub(crate) fn current() -> Caller {
        static THREADS: AtomicU64 = AtomicU64::new(1);
        std::thread_local! {
            static NUMBER: Cell<u64> = const { Cell::new(0) };
        }
        let thread = NUMBER.with(|number| {
            if number.get() == 0 {
                // Relaxed: only has to be unique.
                number.set(THREADS.fetch_add(1, Ordering::Relaxed));
            }
            number.get()
        });
        Caller { thread, home: thread as usize, stack: 0 }
    }
}
