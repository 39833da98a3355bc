//! A library that is loaded while the program runs, and makes its own system calls.

#![no_std]

mod inline;

/// See [`inline::make`].
///
/// # Safety
///
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmun_doctor_late(number: usize, arguments: *const [usize; 6]) -> isize {
    // SAFETY: the caller's promise.
    unsafe { inline::make(number, arguments) }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
