//! A program without a dynamic loader: it maps and unmaps a page a few times, and ends.

#![no_std]
#![no_main]

mod inline;

/// How often; `mmun` knows.
const ROUNDS: usize = 16;

core::arch::global_asm!(
    ".globl _start",
    "_start:",
    // No frame before this one.
    "xor ebp, ebp",
    "and rsp, -16",
    "call {start}",
    start = sym start,
);

extern "C" fn start() -> ! {
    for _ in 0..ROUNDS {
        // SAFETY: a page of its own.
        unsafe {
            let at = inline::make(9, &[0, 4096, 3, 0x22, usize::MAX, 0]);
            inline::make(11, &[at as usize, 4096, 0, 0, 0, 0]);
        }
    }
    // SAFETY: ends the process.
    unsafe { inline::make(231, &[0; 6]) };
    loop {}
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
