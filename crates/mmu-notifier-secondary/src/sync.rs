//! The synchronisation primitives, from the standard library or, under `--cfg mmu_loom`, from loom.

#[cfg(not(mmu_loom))]
pub(crate) use std::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};

#[cfg(mmu_loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};

/// A cell whose accesses loom checks.
#[cfg(mmu_loom)]
pub(crate) use loom::cell::UnsafeCell;

/// A cell in the shape of loom's.
#[cfg(not(mmu_loom))]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(mmu_loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    #[inline(always)]
    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// A full fence directly behind a read-modify-write of the calling thread: on x86-64 that is one by itself (AMD64
/// manual, volume 2, 7.4.2), so only the compiler has to be held back.
#[inline(always)]
pub(crate) fn fence_after_rmw() {
    #[cfg(all(target_arch = "x86_64", not(mmu_loom), not(miri)))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(mmu_loom), not(miri))))]
    fence(Ordering::SeqCst);
}

/// Waits a little longer each time: first busily, then letting others run, then asleep for up to 1 ms. Takes no lock.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    step: u32,
}

impl Backoff {
    pub(crate) fn wait(&mut self) {
        #[cfg(mmu_loom)]
        loom::thread::yield_now();
        #[cfg(not(mmu_loom))]
        match self.step {
            0..6 => (0..1 << self.step).for_each(|_| std::hint::spin_loop()),
            6..40 => std::thread::yield_now(),
            step => std::thread::sleep(std::time::Duration::from_micros(u64::from(step - 39).min(20) * 50)),
        }
        self.step += 1;
    }
}
