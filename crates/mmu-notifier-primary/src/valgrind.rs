//! Whether valgrind runs this process.
//!
//! Valgrind executes a translation of the program, and shares its address space. Code that is rewritten is its own as
//! well as the program's, and a thread's segment bases are simulated. So the hook is not installed there.

// UNSAFETY: assembler.
#![expect(unsafe_code)]

use core::arch::asm;

/// `VG_USERREQ__RUNNING_ON_VALGRIND` of `valgrind.h`.
const RUNNING_ON_VALGRIND: usize = 0x1001;

/// Asks as a client asks: by instructions that do nothing elsewhere, and that valgrind takes for a request.
pub(crate) fn is_here() -> bool {
    let request = [RUNNING_ON_VALGRIND, 0, 0, 0, 0, 0];
    let mut answer = 0usize;
    // SAFETY: turns a register by 128 bits in all and exchanges one with itself; valgrind reads the six words and
    // writes the answer.
    unsafe {
        asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            inout("rdx") answer,
            in("rax") request.as_ptr(),
            options(nostack),
        );
    }
    answer != 0
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_not_here() {
        // Under valgrind this fails, as it should.
        assert!(!super::is_here());
    }
}
