//! Memory that begins as zeroes and is touched only where it is used.

// UNSAFETY: zeroes become values of a type, and a mapping becomes a slice.
#![expect(unsafe_code)]

use std::ops::Deref;

/// Types of which a value may consist of zeroes.
///
/// # Safety
///
/// All bytes zero is a valid value, and a value needs no drop.
pub(crate) unsafe trait Zeroed {
    /// A value like that, where memory is not made of zeroes.
    #[cfg_attr(not(mmu_loom), expect(dead_code, reason = "memory is made of zeroes"))]
    fn zeroed() -> Self;
}

// SAFETY: an atomic that may be zero.
unsafe impl Zeroed for crate::sync::AtomicU32 {
    fn zeroed() -> crate::sync::AtomicU32 {
        crate::sync::AtomicU32::new(0)
    }
}

/// Tables of so many bytes get huge pages where they are to be had.
#[cfg(not(any(mmu_loom, miri)))]
const HUGE: usize = 16 << 20;

/// So many values in a mapping of their own: a table of a million entries takes no time to make and no memory until it is used.
/// (An allocator writes zeroes into whatever has to be aligned to cache lines.)
#[cfg(not(any(mmu_loom, miri)))]
pub(crate) struct Zeroes<T: Zeroed> {
    start: std::ptr::NonNull<T>,
    count: usize,
}

#[cfg(not(any(mmu_loom, miri)))]
impl<T: Zeroed> Zeroes<T> {
    /// # Panics
    ///
    /// If there is no memory.
    pub(crate) fn new(count: usize) -> Zeroes<T> {
        const { assert!(align_of::<T>() <= mmu_notifier::PAGE_SIZE) };
        let bytes = count * size_of::<T>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping anywhere touches nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        let error = std::io::Error::last_os_error;
        if bytes >= HUGE {
            // Each miss of a large table would be one of the translation, too. It is only advice.
            // SAFETY: the mapping is ours, if there is one.
            unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
        }
        assert!(
            start != libc::MAP_FAILED,
            "no {bytes} bytes of memory for a registration cache: {}",
            error()
        );
        Zeroes { start: std::ptr::NonNull::new(start.cast()).expect("no mapping begins at 0"), count }
    }

    /// The same, and a forked child finds zeroes there, whatever the parent has.
    ///
    /// # Panics
    ///
    /// If there is no memory, or the kernel is older than 4.14.
    pub(crate) fn wiped_on_fork(count: usize) -> Zeroes<T> {
        let zeroes: Zeroes<T> = Zeroes::new(count);
        let bytes = count * size_of::<T>();
        // SAFETY: the mapping is ours.
        let advised = unsafe { libc::madvise(zeroes.start.as_ptr().cast(), bytes, libc::MADV_WIPEONFORK) };
        let error = std::io::Error::last_os_error;
        assert!(advised == 0, "a registration cache needs MADV_WIPEONFORK (Linux 4.14): {}", error());
        zeroes
    }
}

#[cfg(not(any(mmu_loom, miri)))]
impl<T: Zeroed> Deref for Zeroes<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: mapped, aligned to a page and all zeroes at first, which are values by the promise of the trait; nobody
        // else has it, and it stays until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

#[cfg(not(any(mmu_loom, miri)))]
impl<T: Zeroed> Drop for Zeroes<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody borrows it any more. Its values need no drop.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.count * size_of::<T>()) };
    }
}

#[cfg(not(any(mmu_loom, miri)))]
// SAFETY: it owns its values, as a box does.
unsafe impl<T: Zeroed + Send> Send for Zeroes<T> {}
#[cfg(not(any(mmu_loom, miri)))]
// SAFETY: as above.
unsafe impl<T: Zeroed + Sync> Sync for Zeroes<T> {}

/// Where nobody forks and nothing is mapped; under loom values cannot be made of zeroes either.
#[cfg(any(mmu_loom, miri))]
pub(crate) struct Zeroes<T>(Box<[T]>);

#[cfg(any(mmu_loom, miri))]
impl<T: Zeroed> Zeroes<T> {
    #[cfg(mmu_loom)]
    pub(crate) fn new(count: usize) -> Zeroes<T> {
        Zeroes((0..count).map(|_| T::zeroed()).collect())
    }

    #[cfg(not(mmu_loom))]
    pub(crate) fn new(count: usize) -> Zeroes<T> {
        // SAFETY: zeroes are a value, by the promise of the trait.
        Zeroes(unsafe { Box::new_zeroed_slice(count).assume_init() })
    }

    pub(crate) fn wiped_on_fork(count: usize) -> Zeroes<T> {
        Zeroes::new(count)
    }
}

#[cfg(any(mmu_loom, miri))]
impl<T> Deref for Zeroes<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}
