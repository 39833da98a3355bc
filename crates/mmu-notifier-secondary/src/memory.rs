//! Memory that begins as zeroes and is touched only where it is used.

// UNSAFETY: zeroes become values of a type, and a mapping becomes a slice.
#![expect(unsafe_code)]

/// Types of which a value may consist of zeroes.
///
/// # Safety
///
/// All bytes zero is a valid value.
pub(crate) unsafe trait Zeroed {
    /// A value like that, for loom, whose atomics cannot be made of zeroes.
    #[cfg_attr(not(mmu_loom), expect(dead_code, reason = "a table is made of zeroes"))]
    fn zeroed() -> Self;
}

/// So many zeroes. A table of a million entries takes no time to make and no memory until it is used.
#[cfg(not(mmu_loom))]
pub(crate) fn zeroed<T: Zeroed>(count: usize) -> Box<[T]> {
    // SAFETY: by the promise of the trait.
    unsafe { Box::new_zeroed_slice(count).assume_init() }
}

#[cfg(mmu_loom)]
pub(crate) fn zeroed<T: Zeroed>(count: usize) -> Box<[T]> {
    (0..count).map(|_| T::zeroed()).collect()
}

/// So many values that a forked child finds as zeroes, whatever they are in the parent.
#[cfg(not(any(mmu_loom, miri)))]
pub(crate) struct WipedOnFork<T: Zeroed> {
    start: std::ptr::NonNull<T>,
    count: usize,
}

#[cfg(not(any(mmu_loom, miri)))]
impl<T: Zeroed> WipedOnFork<T> {
    /// # Panics
    ///
    /// If there is no memory, or the kernel is older than 4.14.
    pub(crate) fn new(count: usize) -> WipedOnFork<T> {
        const { assert!(align_of::<T>() <= mmu_notifier::PAGE_SIZE) };
        let bytes = count * size_of::<T>();
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping anywhere touches nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        let error = std::io::Error::last_os_error;
        assert!(start != libc::MAP_FAILED, "no memory for a registration cache: {}", error());
        // SAFETY: the mapping is ours.
        let advised = unsafe { libc::madvise(start, bytes, libc::MADV_WIPEONFORK) };
        assert!(advised == 0, "a registration cache needs MADV_WIPEONFORK (Linux 4.14): {}", error());
        WipedOnFork { start: std::ptr::NonNull::new(start.cast()).expect("no mapping begins at 0"), count }
    }
}

#[cfg(not(any(mmu_loom, miri)))]
impl<T: Zeroed> std::ops::Deref for WipedOnFork<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: mapped, aligned to a page and all zeroes at first, which are values by the promise of the trait; nobody
        // else has it, and it stays until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

#[cfg(not(any(mmu_loom, miri)))]
impl<T: Zeroed> Drop for WipedOnFork<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.count * size_of::<T>()) };
    }
}

#[cfg(not(any(mmu_loom, miri)))]
// SAFETY: it owns its values, as a box does.
unsafe impl<T: Zeroed + Send> Send for WipedOnFork<T> {}
#[cfg(not(any(mmu_loom, miri)))]
// SAFETY: as above.
unsafe impl<T: Zeroed + Sync> Sync for WipedOnFork<T> {}

/// Where nobody forks.
#[cfg(any(mmu_loom, miri))]
pub(crate) struct WipedOnFork<T>(Box<[T]>);

#[cfg(any(mmu_loom, miri))]
impl<T: Zeroed> WipedOnFork<T> {
    pub(crate) fn new(count: usize) -> WipedOnFork<T> {
        WipedOnFork(zeroed(count))
    }
}

#[cfg(any(mmu_loom, miri))]
impl<T> std::ops::Deref for WipedOnFork<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}
