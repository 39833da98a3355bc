//! The synchronisation primitives, from the standard library or, under `--cfg mmu_loom`, from loom, or, under
//! `--cfg mmu_shuttle`, from shuttle.

#[cfg(not(any(mmu_loom, mmu_shuttle)))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};

#[cfg(mmu_loom)]
pub(crate) use loom::sync::{
    Arc,
    atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};

#[cfg(mmu_shuttle)]
pub(crate) use shuttle::sync::{
    Arc,
    atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
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

/// Part of what is freed when nobody can reach it any more. Under loom, who looks at it while it goes, or without an
/// order between the two, is found; elsewhere it is nothing.
#[derive(Default)]
pub(crate) struct Alive(#[cfg(mmu_loom)] UnsafeCell<()>);

impl Alive {
    /// What this is part of is read.
    #[inline(always)]
    pub(crate) fn look(&self) {
        #[cfg(mmu_loom)]
        self.0.with(|_| ());
    }
}

#[cfg(mmu_loom)]
impl Drop for Alive {
    fn drop(&mut self) {
        self.0.with_mut(|_| ());
    }
}

/// A full fence directly behind a read-modify-write of the calling thread.
///
/// On x86-64 a locked instruction is a full barrier by itself (AMD64 manual, volume 2, 7.4.2), so only
/// the compiler has to be held back; that saves 20 ns. Everywhere else, and where the memory model is
/// checked, it is `fence(SeqCst)`.
#[inline(always)]
pub(crate) fn fence_after_rmw() {
    #[cfg(all(target_arch = "x86_64", not(mmu_loom), not(miri)))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(mmu_loom), not(miri))))]
    fence(Ordering::SeqCst);
}

/// Waits a little longer each time: first busily, then letting others run, then asleep for up to 1 ms.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    step: u32,
}

impl Backoff {
    pub(crate) fn wait(&mut self) {
        #[cfg(mmu_loom)]
        loom::thread::yield_now();
        #[cfg(mmu_shuttle)]
        shuttle::thread::yield_now();
        #[cfg(not(any(mmu_loom, mmu_shuttle)))]
        match self.step {
            0..6 => (0..1 << self.step).for_each(|_| std::hint::spin_loop()),
            6..40 => std::thread::yield_now(),
            step => std::thread::sleep(std::time::Duration::from_micros(u64::from(step - 39).min(20) * 50)),
        }
        self.step += 1;
    }

    /// Whether this has slept already.
    pub(crate) fn is_long(&self) -> bool {
        self.step > 40
    }
}
