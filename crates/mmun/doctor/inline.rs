//! Each memory system call by an instruction of its own, as programs have them that do not ask the C library.
//!
//! Part of `mmun` itself, and of the library that its doctor loads late.

use core::arch::asm;

/// This way the call cannot be made.
pub const NOT_OFFERED: isize = isize::MIN;

/// Makes one of the memory system calls; returns what the kernel returns.
///
/// # Safety
///
/// As for the system call; `arguments` can be read. A child must have memory of its own, but that of `vfork`, which ends
/// here.
pub unsafe extern "C" fn make(number: usize, arguments: *const [usize; 6]) -> isize {
    // SAFETY: by the caller's promise.
    let arguments = unsafe { &*arguments };
    macro_rules! calls {
        ($($number:literal)*) => {
            match number {
                // SAFETY: by the caller's promise.
                $($number => unsafe { call::<$number>(arguments) },)*
                // SAFETY: by the caller's promise.
                58 => unsafe { vfork() },
                _ => NOT_OFFERED,
            }
        };
    }
    // mmap mprotect munmap brk mremap madvise shmat clone fork execve shmdt truncate ftruncate remap_file_pages
    // exit_group fallocate execveat pkey_mprotect clone3 process_madvise
    calls!(9 10 11 12 25 28 30 56 57 59 67 76 77 216 231 285 322 329 435 440)
}

#[inline(never)]
unsafe fn call<const NUMBER: u32>(arguments: &[usize; 6]) -> isize {
    let [a, b, c, d, e, f] = *arguments;
    let result;
    // SAFETY: the caller answers for the call.
    unsafe {
        asm!(
            "mov eax, {number}",
            "syscall",
            number = const NUMBER,
            lateout("rax") result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// The child shares the stack, so it ends without touching it.
#[inline(never)]
unsafe fn vfork() -> isize {
    let result;
    // SAFETY: the child does nothing but end.
    unsafe {
        asm!(
            "mov eax, 58",
            "syscall",
            "test eax, eax",
            "jnz 2f",
            "xor edi, edi",
            "mov eax, 60",
            "syscall",
            "2:",
            lateout("rax") result,
            out("rdi") _, lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}
