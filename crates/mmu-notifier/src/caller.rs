//! Who is calling, as far as the core must know.

// UNSAFETY: who says that he is another thread can be called while he is not waited for; so to say it is unsafe.
#![expect(unsafe_code)]

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

/// The calling thread. Cannot be sent to another one.
///
/// An [`AddressSpace`](crate::AddressSpace) finds out by a thread-local of the standard library who
/// calls. Where thread-locals must not be touched - in the hook of a system call - the caller brings
/// its own: see [`AddressSpace::with_callers`](crate::AddressSpace::with_callers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The thread times [`Caller::HOMES`], and its home: two registers for all of it.
    who: u64,
    stack: usize,
    here: PhantomData<*const ()>,
}

impl Caller {
    const HOMES: u64 = 128;

    /// The calling thread. `home` is a small number, best different for threads that run at the same time: threads with
    /// the same number (modulo 128) write to the same cache lines.
    ///
    /// # Safety
    ///
    /// `thread` is less than 2^57, identifies the calling thread among all living threads of the process, and is not 0
    /// where it is given to an address space. For the same thread both numbers are always the same.
    #[inline]
    pub const unsafe fn new(thread: u64, home: usize) -> Caller {
        let who = (thread * Caller::HOMES) | (home as u64 % Caller::HOMES);
        Caller { who, stack: 0, here: PhantomData }
    }

    /// The same thread with its stack pointer, to find changes whose frame is gone; 0: nobody wants to know.
    #[inline]
    pub const fn with_stack(self, stack: usize) -> Caller {
        Caller { stack, ..self }
    }

    /// Identifies the thread among all living threads of the process.
    #[inline]
    pub const fn thread(&self) -> u64 {
        self.who / Caller::HOMES
    }

    /// See [`new`](Caller::new); less than 128.
    #[inline]
    pub const fn home(&self) -> usize {
        (self.who % Caller::HOMES) as usize
    }

    /// The thread's stack pointer, if somebody wants to know it.
    #[inline]
    pub const fn stack(&self) -> usize {
        self.stack
    }

    /// The calling thread, numbered in the order of first calls.
    #[inline]
    pub(crate) fn current() -> Caller {
        Caller::known().unwrap_or_else(Caller::first)
    }

    /// The same, if it has called before.
    #[inline(always)]
    pub(crate) fn known() -> Option<Caller> {
        let who = WHO.get();
        (who != 0).then_some(Caller { who, stack: 0, here: PhantomData })
    }

    #[cold]
    fn first() -> Caller {
        static THREADS: AtomicU64 = AtomicU64::new(1);
        // Relaxed: only has to be unique.
        let thread = THREADS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: nobody else gets this number, and it would take centuries to run out of them.
        let caller = unsafe { Caller::new(thread, thread as usize) };
        WHO.set(caller.who);
        caller
    }
}

std::thread_local! {
    /// [`Caller::who`] of the thread, 0 if it has not called yet.
    static WHO: Cell<u64> = const { Cell::new(0) };
}
