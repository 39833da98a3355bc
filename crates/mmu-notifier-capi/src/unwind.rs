//! No unwinder: nothing unwinds in this object.
//!
//! It is built to abort, so the standard library asks an unwinder for the backtrace of a panic at most, and gets an empty
//! one. To link the compiler's unwinder for that would load its library into every process that is watched, which takes
//! longer than to load this object. The names are hidden: a program's own calls never get here.
//!
//! But a program's unwinder comes through here: when a thread is cancelled inside the hook, its frames are left one by one,
//! and for some of ours the standard library is asked what is to be cleaned up. It looks at a table that is asked for
//! below: there is none, so that nothing is cleaned up and the frame is left. (The frames of the hook have no destructors.)
//!
//! A build that unwinds (a test) has the real one.

// UNSAFETY: defines symbols that the standard library links to.
#![expect(unsafe_code)]

use core::arch::global_asm;

global_asm!(
    ".pushsection .text.mmu_notifier_unwind, \"ax\", @progbits",
    ".macro mmu_notifier_no_unwinder name",
    ".hidden \\name",
    ".globl \\name",
    ".type \\name, @function",
    "\\name:",
    ".endm",
    "mmu_notifier_no_unwinder _Unwind_Backtrace",
    "mov eax, 5", // _URC_END_OF_STACK
    "ret",
    // Of a frame that is being left: nothing is known.
    "mmu_notifier_no_unwinder _Unwind_GetLanguageSpecificData",
    "mmu_notifier_no_unwinder _Unwind_GetIP",
    "mmu_notifier_no_unwinder _Unwind_GetIPInfo",
    "mmu_notifier_no_unwinder _Unwind_GetRegionStart",
    "mmu_notifier_no_unwinder _Unwind_GetDataRelBase",
    "mmu_notifier_no_unwinder _Unwind_GetTextRelBase",
    "xor eax, eax",
    "ret",
    // Called by who has found something to clean up: nobody.
    "mmu_notifier_no_unwinder _Unwind_SetGR",
    "mmu_notifier_no_unwinder _Unwind_SetIP",
    "mmu_notifier_no_unwinder _Unwind_Resume",
    "ud2",
    ".purgem mmu_notifier_no_unwinder",
    ".popsection",
);
