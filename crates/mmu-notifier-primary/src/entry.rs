//! From a rewritten call site into Rust and back: the assembler part of the hook.
//!
//! A stub ([`crate::patch`]) comes here by a jump with the address of its [`Site`] in `rcx`. A system call may
//! change `rax`, `rcx` and `r11` and nothing else, so these are free and everything else is put back:
//!
//! * the general registers and the flags (x86-64 inline assembler may rely on flags);
//! * all vector registers, whose callee-saved part is empty in the C calling convention: the Rust code below
//!   and the subscribers may use any of them. Which ones there are is found out once: `xmm`, `ymm`, or
//!   `zmm` with the mask registers;
//! * the 128 bytes below the stack pointer, which leaf functions use (red zone).
//!
//! The way out is a jump to where the frame's last word says: behind the site, or to one of the stub's tails
//! that make the system call with all registers as the program had them (a new thread or a `vfork`ed child
//! comes out of those with another stack or on a shared one).
//!
//! `.cfi` lines let debuggers and thread cancellation unwind from inside the hook to the program's frame:
//! the return address is that of the site, as if a signal had come there.

// UNSAFETY: entry and exit of the hook are assembler.
#![expect(unsafe_code)]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

/// What a stub knows of its site; lies in the pool behind the stub.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Site {
    /// Behind the `syscall` instruction: where the program goes on.
    pub(crate) back: usize,
    /// Tail that makes the call and goes back, nothing else.
    pub(crate) plain: usize,
    /// Tail whose child shares the memory: the child goes back, the parent to the hook again.
    pub(crate) thread: usize,
    /// Tail whose child has its own memory: both go to the hook again.
    pub(crate) fork: usize,
    /// Where the return address of the function around the site is: this far above the stack pointer, in
    /// bytes; `usize::MAX` if not known.
    pub(crate) caller: usize,
    /// The system call number, if it is always the same; else `usize::MAX`.
    pub(crate) number: usize,
}

/// The registers of the program at its `syscall` instruction, as the entry code pushes them.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Frame {
    pub(crate) rbx: usize,
    pub(crate) rbp: usize,
    pub(crate) r9: usize,
    pub(crate) r8: usize,
    pub(crate) r10: usize,
    pub(crate) rdx: usize,
    pub(crate) rsi: usize,
    pub(crate) rdi: usize,
    /// The system call number on the way in, the result on the way out.
    pub(crate) rax: usize,
    flags: usize,
    /// The site on the way in (a `*const Site`), where to jump on the way out.
    pub(crate) go: usize,
    /// For unwinders.
    back: usize,
}

impl Frame {
    /// The program's stack pointer at the site.
    pub(crate) fn stack(&self) -> usize {
        core::ptr::from_ref(self) as usize + size_of::<Frame>() + 128
    }

    /// The arguments of the system call.
    pub(crate) fn args(&self) -> [usize; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }
}

macro_rules! entry {
    ($name:literal, $hook:literal, $room:literal, $save:expr, $restore:expr) => {
        global_asm!(
            concat!(".pushsection .text.", $name, ", \"ax\", @progbits"),
            ".p2align 4",
            concat!(".hidden ", $name),
            concat!(".globl ", $name),
            concat!(".type ", $name, ", @function"),
            concat!($name, ":"),
            ".cfi_startproc",
            ".cfi_signal_frame",
            ".cfi_def_cfa rsp, 0",
            "lea rsp, [rsp - 128]",
            ".cfi_adjust_cfa_offset 128",
            "push qword ptr [rcx]",
            ".cfi_adjust_cfa_offset 8",
            ".cfi_offset rip, -136",
            "push rcx",
            ".cfi_adjust_cfa_offset 8",
            "pushfq",
            ".cfi_adjust_cfa_offset 8",
            "push rax",
            ".cfi_adjust_cfa_offset 8",
            "push rdi",
            ".cfi_adjust_cfa_offset 8",
            "push rsi",
            ".cfi_adjust_cfa_offset 8",
            "push rdx",
            ".cfi_adjust_cfa_offset 8",
            "push r10",
            ".cfi_adjust_cfa_offset 8",
            "push r8",
            ".cfi_adjust_cfa_offset 8",
            "push r9",
            ".cfi_adjust_cfa_offset 8",
            "push rbp",
            ".cfi_adjust_cfa_offset 8",
            ".cfi_rel_offset rbp, 0",
            "push rbx",
            ".cfi_adjust_cfa_offset 8",
            ".cfi_rel_offset rbx, 0",
            "mov rbp, rsp",
            ".cfi_def_cfa_register rbp",
            "cld",
            concat!("sub rsp, ", $room),
            "and rsp, -64",
            $save,
            "mov rdi, rbp",
            concat!("call ", $hook),
            $restore,
            "mov rsp, rbp",
            ".cfi_def_cfa_register rsp",
            // The flags, without popfq, which takes longer than all the rest: the direction flag is set in no
            // sane program, the others come back by sahf and an addition that overflows.
            "mov eax, [rsp + 72]",
            "test ah, 4",
            "jz 2f",
            "std",
            "2:",
            "mov ecx, eax",
            "shr ecx, 11",
            "and ecx, 1",
            "mov ah, al",
            "mov al, cl",
            "add al, 0x7f",
            "sahf",
            "pop rbx",
            ".cfi_adjust_cfa_offset -8",
            ".cfi_restore rbx",
            "pop rbp",
            ".cfi_adjust_cfa_offset -8",
            ".cfi_restore rbp",
            "pop r9",
            ".cfi_adjust_cfa_offset -8",
            "pop r8",
            ".cfi_adjust_cfa_offset -8",
            "pop r10",
            ".cfi_adjust_cfa_offset -8",
            "pop rdx",
            ".cfi_adjust_cfa_offset -8",
            "pop rsi",
            ".cfi_adjust_cfa_offset -8",
            "pop rdi",
            ".cfi_adjust_cfa_offset -8",
            "pop rax",
            ".cfi_adjust_cfa_offset -8",
            "pop rcx",
            ".cfi_adjust_cfa_offset -8",
            "pop rcx",
            ".cfi_adjust_cfa_offset -8",
            "lea rsp, [rsp + 136]",
            ".cfi_adjust_cfa_offset -136",
            ".cfi_register rip, rcx",
            "jmp rcx",
            ".cfi_endproc",
            concat!(".size ", $name, ", . - ", $name),
            ".popsection",
        );
    };
}

macro_rules! sixteen {
    ($op:literal, $reg:literal, $size:literal) => {
        concat!(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n",
            $op,
            " [rsp + \\n * ",
            $size,
            "], ",
            $reg,
            "\\n\n",
            ".endr\n"
        )
    };
    (back $op:literal, $reg:literal, $size:literal) => {
        concat!(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n",
            $op,
            " ",
            $reg,
            "\\n, [rsp + \\n * ",
            $size,
            "]\n",
            ".endr\n"
        )
    };
}

macro_rules! thirty_two {
    (save) => {
        concat!(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n",
            "vmovdqa64 [rsp + \\n * 64], zmm\\n\n",
            ".endr\n",
            ".irp n, 0,1,2,3,4,5,6,7\n",
            "kmovq [rsp + 2048 + \\n * 8], k\\n\n",
            ".endr\n"
        )
    };
    (restore) => {
        concat!(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n",
            "vmovdqa64 zmm\\n, [rsp + \\n * 64]\n",
            ".endr\n",
            ".irp n, 0,1,2,3,4,5,6,7\n",
            "kmovq k\\n, [rsp + 2048 + \\n * 8]\n",
            ".endr\n"
        )
    };
}

macro_rules! entries {
    ($sse:literal, $avx:literal, $avx512:literal, $hook:literal) => {
        entry!($sse, $hook, "256", sixteen!("movaps", "xmm", "16"), sixteen!(back "movaps", "xmm", "16"));
        entry!($avx, $hook, "512", sixteen!("vmovdqa", "ymm", "32"), sixteen!(back "vmovdqa", "ymm", "32"));
        entry!($avx512, $hook, "2112", thirty_two!(save), thirty_two!(restore));
    };
}

entries!(
    "mmu_notifier_enter_sse",
    "mmu_notifier_enter_avx",
    "mmu_notifier_enter_avx512",
    "mmu_notifier_hook"
);
entries!(
    "mmu_notifier_after_sse",
    "mmu_notifier_after_avx",
    "mmu_notifier_after_avx512",
    "mmu_notifier_hook_after"
);

unsafe extern "C" {
    fn mmu_notifier_enter_sse();
    fn mmu_notifier_enter_avx();
    fn mmu_notifier_enter_avx512();
    fn mmu_notifier_after_sse();
    fn mmu_notifier_after_avx();
    fn mmu_notifier_after_avx512();
}

/// Where stubs jump to, before and after a call that the stub itself makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries {
    pub(crate) enter: usize,
    pub(crate) after: usize,
}

/// The entry code for the vector registers that this machine has and the kernel keeps. `known` remembers which:
/// asking the processor (`cpuid`) takes long in a virtual machine.
pub(crate) fn entries(known: &AtomicU32) -> Entries {
    // Relaxed: everybody finds the same.
    let mut vectors = known.load(Ordering::Relaxed);
    if vectors == 0 {
        vectors = if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw") {
            3
        } else if std::is_x86_feature_detected!("avx") {
            2
        } else {
            1
        };
        known.store(vectors, Ordering::Relaxed);
    }
    let (enter, after): (unsafe extern "C" fn(), unsafe extern "C" fn()) = match vectors {
        3 => (mmu_notifier_enter_avx512, mmu_notifier_after_avx512),
        2 => (mmu_notifier_enter_avx, mmu_notifier_after_avx),
        _ => (mmu_notifier_enter_sse, mmu_notifier_after_sse),
    };
    Entries { enter: enter as usize, after: after as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_what_the_assembler_pushes() {
        assert_eq!(size_of::<Frame>(), 12 * 8);
        assert_eq!(core::mem::offset_of!(Frame, flags), 72, "the assembler reads the flags there");
        assert_eq!(core::mem::offset_of!(Site, back), 0, "the assembler pushes [rcx] for unwinders");
    }
}
