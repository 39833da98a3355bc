//! Memory of our own, straight from the kernel: for an allocator that must not be the program's.

// UNSAFETY: maps and unmaps memory.
#![expect(unsafe_code)]

use crate::Syscall;
use crate::gate;

/// Maps `bytes` (a multiple of the page size) of zeroed, private memory; null if there is none.
///
/// The call is not announced: it changes nothing that was there.
pub fn map(bytes: usize) -> *mut u8 {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    let args = [0, bytes, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0];
    // SAFETY: a new mapping.
    let at = unsafe { gate::call(Syscall::Mmap.number(), &args) };
    if (-4095..0).contains(&at) { core::ptr::null_mut() } else { at as *mut u8 }
}

/// Gives back what [`map`] has returned, without telling anybody. False if the kernel refuses.
///
/// # Safety
///
/// The memory came from [`map`] and nobody uses it any more, the subscribers included.
pub unsafe fn unmap(at: *mut u8, bytes: usize) -> bool {
    // SAFETY: by the caller's promise.
    unsafe { gate::call(Syscall::Munmap.number(), &[at as usize, bytes, 0, 0, 0, 0]) == 0 }
}
