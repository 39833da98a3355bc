//! Where system calls are made: one stretch of code that holds every `syscall` instruction of ours.
//!
//! ```text
//! section mmu_notifier_calls
//! +------+-------+-----------------------+---------------------------+
//! | gate | entry | tails of the stubs    | stubs of what was trapped |
//! +------+-------+-----------------------+---------------------------+
//! ```
//!
//! Whoever lets system calls through by their address - [`crate::strict`] does - needs to know no other place. So the calls
//! that the hook does not make itself are not made in the stubs, which have to be near their sites, but here, in *tails*:
//!
//! ```text
//! plain:   syscall
//!          jmp  [back]
//! thread:  syscall
//!          mov  rcx, rax
//!          jrcxz child               ; the child touches nothing: its stack may be somebody else's
//!          jmp  after
//! child:   mov  r11, back
//!          jmp  arm                  ; crate::strict
//! fork:    syscall
//! after:   mov  rcx, site
//!          jmp  after_entry          ; crate::entry
//! ```
//!
//! A site of which is known that it makes no new thread or process has the first one only. In those of code whose stacks
//! are too small for the hook, `after` is a jump back.

// UNSAFETY: the section is assembler.
#![expect(unsafe_code)]

use core::arch::global_asm;

use crate::Syscall;
use crate::code::Code;
use crate::entry;

/// Bytes of all tails.
const TAILS: usize = 128 << 10;
/// Bytes of the stubs of what was trapped.
const TRAPS: usize = 64 << 10;
/// Most bytes of one site's tails.
pub(crate) const LONGEST: usize = 64;

global_asm!(
    ".pushsection mmu_notifier_calls, \"ax\", @progbits",
    // On pages of their own: the rest is never written.
    ".p2align 12",
    // The linker makes these two: of another copy of this code in the process there are others.
    ".hidden __start_mmu_notifier_calls",
    ".hidden __stop_mmu_notifier_calls",
    ".hidden mmu_notifier_tails",
    ".globl mmu_notifier_tails",
    "mmu_notifier_tails:",
    ".skip {size}, 0xcc",
    ".p2align 12, 0xcc",
    ".popsection",
    size = const TAILS + TRAPS,
);

unsafe extern "C" {
    static mmu_notifier_tails: u8;
    static __start_mmu_notifier_calls: u8;
    static __stop_mmu_notifier_calls: u8;
    fn mmu_notifier_arm();
}

/// Every `syscall` instruction of ours lies in there, the byte behind it too.
pub(crate) fn calls() -> core::ops::Range<usize> {
    &raw const __start_mmu_notifier_calls as usize..&raw const __stop_mmu_notifier_calls as usize
}

/// The part of it that is written at run time.
pub(crate) fn stubs() -> core::ops::Range<usize> {
    let start = &raw const mmu_notifier_tails as usize;
    start..start + TAILS + TRAPS
}

/// Where the stubs of what was trapped are: [`TRAPS`] bytes.
pub(crate) fn traps() -> core::ops::Range<usize> {
    let start = &raw const mmu_notifier_tails as usize + TAILS;
    start..start + TRAPS
}

/// The tails of stubs, one behind the other. Protected by whoever owns it.
#[derive(Debug, Default)]
pub(crate) struct Tails {
    used: usize,
}

/// The tails of one site.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) code: Code<LONGEST>,
    /// See [`Site`](crate::entry::Site).
    pub(crate) plain: usize,
    pub(crate) thread: usize,
    pub(crate) fork: usize,
}

impl Tails {
    /// Where the next tails will be; `None`: there is no room left.
    pub(crate) fn next(&self) -> Option<usize> {
        (self.used + LONGEST <= TAILS).then(|| &raw const mmu_notifier_tails as usize + self.used)
    }

    /// `made` is there to stay.
    pub(crate) fn keep(&mut self, made: &Made) {
        self.used += made.code.bytes().len().next_multiple_of(16);
    }
}

/// What comes of children that a site makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Children {
    /// There are none.
    None,
    /// The hook hears of them, behind the call.
    Told,
    /// They are armed, nothing else.
    Armed,
}

impl Children {
    /// Of a site that makes this call, if it is always the same.
    pub(crate) fn of(number: Option<usize>) -> Children {
        match number.map(Syscall::from_number) {
            None | Some(Some(Syscall::Fork | Syscall::Vfork | Syscall::Clone | Syscall::Clone3)) => {
                Children::Told
            }
            Some(_) => Children::None,
        }
    }
}

/// Tails at `at` that lead to `back`, of the site whose [`Site`](crate::entry::Site) is at `site`.
pub(crate) fn make(at: usize, back: usize, site: usize, children: Children) -> Made {
    let mut code = Code::at(at);
    code.put(&[0x0f, 0x05]); // syscall
    code.put_far_jump(back);
    if children == Children::None {
        return Made { code, plain: at, thread: at, fork: at };
    }
    let arm: unsafe extern "C" fn() = mmu_notifier_arm;
    let thread = code.here();
    code.put(&[0x0f, 0x05, 0x48, 0x89, 0xc1]); // syscall; mov rcx, rax
    code.put(&[0xe3, 2, 0xeb, 10 + 5 + 2]); // jrcxz child; jmp after
    code.put(&[0x49, 0xbb]); // child: mov r11, back
    code.put_word(back);
    code.put_relative(&[0xe9], arm as usize); // jmp arm
    let fork = code.here();
    code.put(&[0x0f, 0x05]); // syscall
    if children == Children::Told {
        code.put(&[0x48, 0xb9]); // after: mov rcx, site
        code.put_word(site);
        code.put_relative(&[0xe9], entry::enter_after());
    } else {
        code.put_far_jump(back);
    }
    Made { code, plain: at, thread, fork }
}

/// The way into the hook of a site whose [`Site`](crate::entry::Site) is at `site`: for those that are in reach of nothing.
pub(crate) fn put_way_in<const MAX: usize>(code: &mut Code<MAX>, site: usize) {
    code.put(&[0x48, 0xb9]); // mov rcx, site
    code.put_word(site);
    code.put_relative(&[0xe9], entry::enter()); // jmp enter
}
