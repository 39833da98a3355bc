//! From a rewritten call site into Rust and back: the assembler part of the hook, and the system call itself.
//!
//! A stub ([`crate::patch`]) comes here by a jump with the address of its [`Site`] in `rcx`. A system call may
//! change `rax`, `rcx` and `r11` and nothing else, so these are free and everything else is put back:
//!
//! * the general registers and the flags (x86-64 inline assembler may rely on flags);
//! * all vector registers, whose callee-saved part is empty in the C calling convention: subscribers may use any
//!   of them. Which ones there are is found out once: `xmm`, `ymm`, or `zmm` with the mask registers;
//! * the 128 bytes below the stack pointer, which leaf functions use (red zone).
//!
//! ```text
//! general registers -> before --(nobody to tell)--> syscall -> after -------------------------------> back
//!                        |                             ^ |                                             ^
//!                        +-> vector registers -> announce +-(somebody was told)-> finish -> registers -+
//! ```
//!
//! # Two rules of speed
//!
//! * **The system call is made here, between two calls of Rust functions.** The kernel empties the processor's
//!   memory of return addresses: every return to a frame that was there before the call is mispredicted.
//! * **What was pushed as words is read as words.** A wide load of two stores that have just been made waits until
//!   both are in the cache.
//!
//! The way out is a jump to where the frame's last word says: behind the site, or to one of its tails
//! that make the system call with all registers as the program had them (a new thread or a `vfork`ed child
//! comes out of those with another stack or on a shared one).
//!
//! `.cfi` lines let debuggers and thread cancellation unwind from inside the hook to the program's frame:
//! the return address is that of the site, as if a signal had come there.

// UNSAFETY: entry and exit of the hook are assembler.
#![expect(unsafe_code)]

use core::arch::global_asm;
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::hook::{self, Underway};
use crate::light;

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
    /// The upper half: what `save_vectors` has saved.
    flags: usize,
    /// The site on the way in (a `*const Site`), where to jump on the way out.
    pub(crate) go: usize,
    /// For unwinders.
    back: usize,
}

impl Frame {
    /// How far below the program's stack pointer the word is that says where the site ends.
    pub(crate) const BACK_BELOW_STACK: usize = size_of::<Frame>() - core::mem::offset_of!(Frame, back) + 128;

    /// As if the entry code had pushed it: the arguments and the number of a call of `site`.
    pub(crate) fn new([rdi, rsi, rdx, r10, r8, r9]: [usize; 6], rax: usize, site: &Site) -> Frame {
        let go = core::ptr::from_ref(site) as usize;
        Frame { rbx: 0, rbp: 0, r9, r8, r10, rdx, rsi, rdi, rax, flags: 0, go, back: site.back }
    }

    /// The program's stack pointer at the site.
    pub(crate) fn stack(&self) -> usize {
        core::ptr::from_ref(self) as usize + size_of::<Frame>() + 128
    }

    /// One of the arguments of the system call.
    pub(crate) fn argument(&mut self, index: usize) -> &mut usize {
        match index {
            0 => &mut self.rdi,
            1 => &mut self.rsi,
            2 => &mut self.rdx,
            3 => &mut self.r10,
            4 => &mut self.r8,
            _ => &mut self.r9,
        }
    }

    /// The arguments of the system call.
    #[inline(always)]
    pub(crate) fn args(&self) -> [usize; 6] {
        let [a, b, c, d] = self.first_args();
        [a, b, c, d, self.r8, self.r9]
    }

    /// The first four.
    #[inline(always)]
    pub(crate) fn first_args(&self) -> [usize; 4] {
        // Word by word: they have just been pushed so, and no processor forwards two of them to one wide load.
        [&self.rdi, &self.rsi, &self.rdx, &self.r10].map(|register| {
            // SAFETY: a reference.
            unsafe { core::ptr::from_ref(register).read_volatile() }
        })
    }
}

/// Builds the [`Frame`] and, below it, room for an [`Underway`]: `rbp` and `rbx` point to them from here on.
macro_rules! prologue {
    () => {
        concat!(
            ".cfi_startproc\n",
            ".cfi_signal_frame\n",
            ".cfi_def_cfa rsp, 0\n",
            "lea rsp, [rsp - 128]\n",
            ".cfi_adjust_cfa_offset 128\n",
            "push qword ptr [rcx]\n",
            ".cfi_adjust_cfa_offset 8\n",
            ".cfi_offset rip, -136\n",
            "push rcx\n",
            ".cfi_adjust_cfa_offset 8\n",
            "pushfq\n",
            ".cfi_adjust_cfa_offset 8\n",
            ".irp register, rax,rdi,rsi,rdx,r10,r8,r9\n",
            "push \\register\n",
            ".cfi_adjust_cfa_offset 8\n",
            ".endr\n",
            "push rbp\n",
            ".cfi_adjust_cfa_offset 8\n",
            ".cfi_rel_offset rbp, 0\n",
            "push rbx\n",
            ".cfi_adjust_cfa_offset 8\n",
            ".cfi_rel_offset rbx, 0\n",
            "mov rbp, rsp\n",
            ".cfi_def_cfa_register rbp\n",
            "cld\n",
            "sub rsp, {room}\n",
            "and rsp, -64\n",
            "mov rbx, rsp\n",
        )
    };
}

/// Puts everything back and goes where the frame says.
macro_rules! epilogue {
    () => {
        concat!(
            ".cfi_remember_state\n",
            "mov rsp, rbp\n",
            ".cfi_def_cfa_register rsp\n",
            // The flags, without popfq, which takes longer than all the rest: the direction flag is set in no
            // sane program, the others come back by sahf and an addition that overflows.
            "mov eax, [rsp + 72]\n",
            "test ah, 4\n",
            "jz 2f\n",
            "std\n",
            "2:\n",
            "mov ecx, eax\n",
            "shr ecx, 11\n",
            "and ecx, 1\n",
            "mov ah, al\n",
            "mov al, cl\n",
            "add al, 0x7f\n",
            "sahf\n",
            "pop rbx\n",
            ".cfi_adjust_cfa_offset -8\n",
            ".cfi_restore rbx\n",
            "pop rbp\n",
            ".cfi_adjust_cfa_offset -8\n",
            ".cfi_restore rbp\n",
            ".irp register, r9,r8,r10,rdx,rsi,rdi,rax,rcx,rcx\n",
            "pop \\register\n",
            ".cfi_adjust_cfa_offset -8\n",
            ".endr\n",
            "lea rsp, [rsp + 136]\n",
            ".cfi_adjust_cfa_offset -136\n",
            ".cfi_register rip, rcx\n",
            "jmp rcx\n",
            ".cfi_restore_state\n",
        )
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

/// Saves the vector registers that are in use below the stack pointer, which is a multiple of 64, and says in the upper
/// half of the frame's flags which these are.
///
/// As at every call of a function, the upper halves are zero after this, which the processor keeps account of: where
/// they are not, code for `xmm` alone takes a hundred nanoseconds more. For the same reason they are not saved, nor
/// loaded, if the processor says that they are zero: the program's code is to be as fast as before.
macro_rules! save_vectors {
    () => {
        concat!(
            "cmp dword ptr [rip + {vectors}], 3\n",
            "ja 6f\n",
            "jb 5f\n",
            "mov ecx, 1\n",
            "xgetbv\n",
            "test al, 4\n",
            "jnz 7f\n",
            "mov dword ptr [rbp + 76], 1\n",
            "4:\n",
            "sub rsp, 256\n",
            sixteen!("movaps", "xmm", "16"),
            "jmp 8f\n",
            "5:\n",
            "mov dword ptr [rbp + 76], 0\n",
            "cmp dword ptr [rip + {vectors}], 1\n",
            "je 4b\n",
            "7:\n",
            "mov dword ptr [rbp + 76], 2\n",
            "sub rsp, 512\n",
            sixteen!("vmovdqa", "ymm", "32"),
            "vzeroupper\n",
            "jmp 8f\n",
            "6:\n",
            "mov dword ptr [rbp + 76], 3\n",
            "sub rsp, 2112\n",
            thirty_two!(save),
            "vzeroupper\n",
            "8:\n",
        )
    };
}

macro_rules! restore_vectors {
    () => {
        concat!(
            "cmp dword ptr [rbp + 76], 2\n",
            "ja 6f\n",
            "je 7f\n",
            "cmp dword ptr [rbp + 76], 0\n",
            "je 4f\n",
            "vzeroupper\n",
            "4:\n",
            sixteen!(back "movaps", "xmm", "16"),
            "jmp 8f\n",
            "7:\n",
            sixteen!(back "vmovdqa", "ymm", "32"),
            "jmp 8f\n",
            "6:\n",
            thirty_two!(restore),
            "8:\n",
        )
    };
}

global_asm!(
    // Where all system calls are made: `crate::tails`.
    ".pushsection mmu_notifier_calls, \"ax\", @progbits",
    ".p2align 6",
    ".hidden mmu_notifier_enter",
    ".globl mmu_notifier_enter",
    ".type mmu_notifier_enter, @function",
    "mmu_notifier_enter:",
    prologue!(),
    "mov rdi, rbp",
    "mov rsi, rbx",
    // Told, until somebody says otherwise.
    "mov dword ptr [rbx], 1",
    "cmp dword ptr [rip + {light}], 0",
    "je 12f",
    "call {before}",
    "cmp eax, 1",
    "ja 11f",
    "jb 16f",
    "10:",
    "mov rax, [rbp + 64]",
    "mov rdi, [rbp + 56]",
    "mov rsi, [rbp + 48]",
    "mov rdx, [rbp + 40]",
    "mov r10, [rbp + 32]",
    "mov r8, [rbp + 24]",
    // mov r9, [rbp + 16], in the long form: as in `crate::gate`.
    ".byte 0x4c, 0x8b, 0x8d, 16, 0, 0, 0",
    ".hidden mmu_notifier_enter_syscall",
    ".globl mmu_notifier_enter_syscall",
    "mmu_notifier_enter_syscall:",
    "syscall",
    // The kernel may have emptied the processor's memory of who called whom: from here on nothing returns to a
    // frame that was there before.
    "mov [rbp + 64], rax",
    "mov rdi, rbp",
    "mov rsi, rbx",
    "cmp dword ptr [rbx], 0",
    "jne 14f",
    "call {after}",
    "16:",
    epilogue!(),
    // Somebody has to be told.
    "11:",
    save_vectors!(),
    "mov rdi, rbp",
    "mov rsi, rbx",
    "call {announce}",
    "13:",
    "test eax, eax",
    "jnz 10b",
    "jmp 15f",
    "14:",
    "call {finish}",
    "15:",
    restore_vectors!(),
    "jmp 16b",
    // The light half is not as light as it should be, see `crate::light`.
    "12:",
    save_vectors!(),
    "mov rdi, rbp",
    "mov rsi, rbx",
    "call {heavy}",
    "jmp 13b",
    ".cfi_endproc",
    ".size mmu_notifier_enter, . - mmu_notifier_enter",
    ".popsection",
    room = const ROOM,
    vectors = sym VECTORS,
    light = sym LIGHT,
    before = sym hook::before,
    after = sym hook::after,
    heavy = sym hook::heavy,
    announce = sym hook::announce,
    finish = sym hook::finish,
);

global_asm!(
    ".pushsection .text.mmu_notifier_entry_after, \"ax\", @progbits",
    ".p2align 6",
    ".hidden mmu_notifier_enter_after",
    ".globl mmu_notifier_enter_after",
    ".type mmu_notifier_enter_after, @function",
    "mmu_notifier_enter_after:",
    prologue!(),
    save_vectors!(),
    "mov rdi, rbp",
    "call {after_clone}",
    restore_vectors!(),
    epilogue!(),
    ".cfi_endproc",
    ".size mmu_notifier_enter_after, . - mmu_notifier_enter_after",
    ".popsection",
    room = const 0,
    vectors = sym VECTORS,
    after_clone = sym hook::after_clone,
);

/// Room for an [`Underway`], in bytes.
const ROOM: usize = size_of::<Underway>();

/// Which vector registers there are to save: 1: `xmm`; 2: `ymm`; 3: `ymm`, and the processor says whether their upper
/// halves are in use; 4: `zmm` and the mask registers.
static VECTORS: AtomicU32 = AtomicU32::new(0);

/// Whether [`hook::before`] and [`hook::after`] leave the vector registers alone: not 0.
static LIGHT: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    fn mmu_notifier_enter();
    fn mmu_notifier_enter_after();
    static mmu_notifier_enter_syscall: u8;
}

/// The address of the `syscall` instruction that makes the program's calls.
pub(crate) fn address() -> usize {
    &raw const mmu_notifier_enter_syscall as usize
}

/// Whether `xgetbv` with 1 works (the XINUSE of the Intel manual).
fn says_what_is_in_use() -> bool {
    const XGETBV_1: u32 = 1 << 2;
    // Leaf 13 is there where AVX is.
    __cpuid_count(13, 1).eax & XGETBV_1 != 0
}

/// Where stubs jump to.
pub(crate) fn enter() -> usize {
    let enter: unsafe extern "C" fn() = mmu_notifier_enter;
    enter as usize
}

/// Where tails jump to behind a call that they made themselves.
pub(crate) fn enter_after() -> usize {
    let after: unsafe extern "C" fn() = mmu_notifier_enter_after;
    after as usize
}

/// Makes the entry code fit the vector registers that this machine has and the kernel keeps. `known` remembers which:
/// asking the processor (`cpuid`) takes long in a virtual machine.
pub(crate) fn prepare(known: &AtomicU32) {
    const IS_LIGHT: u32 = 1 << 8;
    // Relaxed, all: everybody finds the same; the entry code runs after this, by way of the code that leads to it.
    let mut vectors = known.load(Ordering::Relaxed);
    if vectors == 0 {
        vectors = if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw") {
            4
        } else if std::is_x86_feature_detected!("avx") {
            2 + u32::from(says_what_is_in_use())
        } else {
            1
        };
        if light::is_light() {
            vectors |= IS_LIGHT;
        }
        known.store(vectors, Ordering::Relaxed);
    }
    VECTORS.store(vectors & !IS_LIGHT, Ordering::Relaxed);
    LIGHT.store(vectors & IS_LIGHT, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_what_the_assembler_pushes() {
        assert_eq!(size_of::<Frame>(), 12 * 8);
        assert_eq!(core::mem::offset_of!(Frame, flags), 72, "the assembler reads the flags there");
        assert_eq!(core::mem::offset_of!(Frame, rax), 64, "the assembler reads the arguments from there on");
        assert_eq!(core::mem::offset_of!(Frame, r9), 16, "the assembler reads the arguments down to there");
        assert_eq!(hook::TOLD, 0, "the assembler looks there");
        assert_eq!(core::mem::offset_of!(Site, back), 0, "the assembler pushes [rcx] for unwinders");
    }
}
