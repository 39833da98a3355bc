//! Memory that is there and stays there: zeroes in a mapping of our own, made present and locked.

// UNSAFETY: zeroes become values of a type, and a mapping becomes a slice.
#![expect(unsafe_code)]

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use mmu_notifier::{PAGE_SIZE, Range};

use super::StartError;
use super::table::{Place, Slot};
use crate::gate::safe;
use crate::pages;

/// Types of which a value may consist of zeroes.
///
/// # Safety
///
/// All bytes zero is a valid value, and a value needs no drop.
pub(super) unsafe trait Zeroed {}

// SAFETY: atomic integers only.
unsafe impl Zeroed for Slot {}
// SAFETY: integers only.
unsafe impl Zeroed for Place {}

/// So many values, each zero at first.
#[derive(Debug)]
pub(super) struct Locked<T: Zeroed> {
    start: NonNull<T>,
    count: usize,
}

impl<T: Zeroed> Locked<T> {
    pub(super) fn new(count: usize) -> Result<Locked<T>, StartError> {
        const { assert!(align_of::<T>() <= PAGE_SIZE) };
        let bytes = Locked::<T>::bytes(count);
        let start = NonNull::new(pages::map(bytes)).ok_or(StartError::Memory { bytes })?;
        // Unmapped again if it cannot be locked.
        let locked = Locked { start: start.cast(), count };
        lock(Range::with_len(start.as_ptr() as usize, bytes).ok())?;
        Ok(locked)
    }

    fn bytes(count: usize) -> usize {
        (count * size_of::<T>()).next_multiple_of(PAGE_SIZE).max(PAGE_SIZE)
    }
}

/// Makes memory present, and keeps it.
pub(super) fn lock(range: Option<Range>) -> Result<(), StartError> {
    let Some(range) = range else { return Ok(()) };
    safe::lock_memory(range).map_err(|errno| StartError::Lock { bytes: range.len(), errno: errno.0 })
}

impl<T: Zeroed> Deref for Locked<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: mapped, aligned to a page and all zeroes at first, which are values by the promise of the trait; nobody
        // else has it, and it stays until `self` is dropped.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: Zeroed> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; `self` is borrowed by nobody else.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.count) }
    }
}

impl<T: Zeroed> Drop for Locked<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody borrows it any more. Its values need no drop.
        unsafe { pages::unmap(self.start.as_ptr().cast(), Locked::<T>::bytes(self.count)) };
    }
}

// SAFETY: it owns its values, as a box does.
unsafe impl<T: Zeroed + Send> Send for Locked<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroed + Sync> Sync for Locked<T> {}
