//! Strict mode: every system call that other code than ours makes is caught, whatever code that is.
//!
//! Syscall User Dispatch (Linux 5.11, `Documentation/admin-guide/syscall-user-dispatch.rst`) makes the kernel send SIGSYS
//! to a thread instead of making its system call, unless the `syscall` instruction lies in one stretch of code: that of
//! [`crate::tails`], where all of ours are. So a call of a site that could not be rewritten, or of code that the program has
//! made itself, comes to the handler here. It does not make the call: it makes a *stub* for the instruction, as if it had
//! been rewritten, and returns to that stub. From there on everything is as always: the hook runs on the program's stack
//! with its registers, and children, exec and returns from signal handlers are what they are. A call that is nothing to us
//! goes on at the stub's plain tail.
//!
//! A place that is trapped again and again is rewritten while it runs ([`crate::hot`]).
//!
//! The trap takes microseconds, and each call of an armed thread a tenth of one, as the kernel leaves its fast path. So
//! everything that can be rewritten is: not only sites that make memory calls.
//!
//! # Threads and children
//!
//! The kernel has this setting in each thread, and none inherits it. New threads and `vfork`ed children arm themselves
//! in their tail, before their first instruction ([`mmu_notifier_arm`]); forked ones in [`forked`]; a program that is
//! exec'ed when the object starts in there. Threads that run already when a process is armed are sent the signal with a
//! word that no other sender knows, and arm themselves in the handler.

// UNSAFETY: a signal handler, its frame, and code that a child runs before it has a stack of its own.
#![expect(unsafe_code)]

use core::arch::global_asm;
use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::Syscall;
use crate::children;
use crate::entry::{Frame, Site};
use crate::gate::safe::{Errno, File};
use crate::gate::{self, safe};
use crate::hook;
use crate::hot;
use crate::masks::{self, Action, MASK, PRCTL, RT_SIGACTION, RT_SIGPROCMASK, RT_SIGRETURN, SIGSYS};
use crate::primary::Primary;
use crate::session::UnseenReason;
use crate::tails;
use crate::trapped::{Place, is_small};

/// Whether to catch what cannot be rewritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strict {
    /// No: it is named in the session.
    Never,
    /// If a file has a call site that makes, or may make, a memory system call and cannot be rewritten. (Whether code
    /// made at run time makes any is not known before.)
    #[default]
    WhereNeeded,
    /// Always.
    Always,
}

impl Strict {
    /// As a session has it.
    pub const fn to_u32(self) -> u32 {
        match self {
            Strict::Never => 0,
            Strict::WhereNeeded => 1,
            Strict::Always => 2,
        }
    }

    /// What a number in a session stands for; anything unknown is `Never`.
    pub const fn from_u32(number: u32) -> Strict {
        match number {
            1 => Strict::WhereNeeded,
            2 => Strict::Always,
            _ => Strict::Never,
        }
    }
}

pub(crate) const SET_SYSCALL_USER_DISPATCH: usize = 59;
const OFF: usize = 0;
const ON: usize = 1;

/// Whether this kernel can do it.
pub(crate) fn is_possible() -> Result<(), Errno> {
    // SAFETY: off is what it is.
    match unsafe { gate::call(PRCTL, &[SET_SYSCALL_USER_DISPATCH, OFF, 0, 0, 0, 0]) } {
        0 => Ok(()),
        error => Err(Errno(-error as i32)),
    }
}

/// Whether this process is armed: what its new threads look at.
static ARMED: AtomicU32 = AtomicU32::new(0);
/// Length of the stretch of code where system calls are made.
static CALLS: AtomicUsize = AtomicUsize::new(0);
/// Threads that have armed themselves because they were told to.
static TOLD: AtomicU32 = AtomicU32::new(0);

/// System calls that were trapped in this process, or in those that it was forked from.
static TRAPS: AtomicU64 = AtomicU64::new(0);

/// What SIGSYS does.
static ACTION: Handler = Handler {
    handler: trapped,
    flags: AtomicUsize::new(FLAGS),
    restorer: mmu_notifier_trap_return,
    mask: AtomicUsize::new(!0),
};

const FLAGS: usize = {
    const SA_SIGINFO: usize = 4;
    const SA_RESTORER: usize = 0x0400_0000;
    // Where there is one: the program's own stack may be a small one.
    const SA_ONSTACK: usize = 0x0800_0000;
    const SA_RESTART: usize = 0x1000_0000;
    SA_SIGINFO | SA_RESTORER | SA_ONSTACK | SA_RESTART
};

/// An [`Action`] whose addresses the loader puts in.
#[repr(C)]
struct Handler {
    handler: unsafe extern "C" fn(usize, *mut Info, *mut Context),
    flags: AtomicUsize,
    restorer: unsafe extern "C" fn(),
    /// Everything: a handler of the program's on top of ours would be trapped in the middle of us. But see [`confined`].
    mask: AtomicUsize,
}

/// The program confines itself by a filter of seccomp. That may answer a call of our own in the handler of SIGSYS by SIGSYS,
/// which must not be blocked then: it would end the process. So a handler of the program's for it comes on top of ours,
/// and has an answer.
pub(crate) fn confined() {
    const SA_NODEFER: usize = 0x4000_0000;
    // Relaxed, both: read by the kernel, in the calls that set it; whoever sees the old one has asked for no filter.
    ACTION.flags.store(FLAGS | SA_NODEFER, Ordering::Relaxed);
    ACTION.mask.store(!(1 << (SIGSYS - 1)), Ordering::Relaxed);
    hot::confined();
    if is_armed() {
        set_action();
    }
}

fn set_action() {
    let action = &raw const ACTION as usize;
    // SAFETY: a handler that does what it should with every SIGSYS.
    unsafe { gate::call(RT_SIGACTION, &[SIGSYS, action, 0, MASK, 0, 0]) };
}

global_asm!(
    ".pushsection mmu_notifier_calls, \"ax\", @progbits",
    // These very instructions are how debuggers and unwinders know the frame of a signal handler.
    ".p2align 4",
    "nop",
    ".hidden mmu_notifier_trap_return",
    ".globl mmu_notifier_trap_return",
    ".type mmu_notifier_trap_return, @function",
    "mmu_notifier_trap_return:",
    ".byte 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0", // mov rax, 15
    "syscall",
    ".size mmu_notifier_trap_return, . - mmu_notifier_trap_return",
    // A new thread, or a child that shares the memory, on its way to the address in r11. Free are rcx, which has just
    // been lost in a system call, and rax, which is 0 and stays so. The flags are the program's.
    ".p2align 4",
    ".hidden mmu_notifier_arm",
    ".globl mmu_notifier_arm",
    ".type mmu_notifier_arm, @function",
    "mmu_notifier_arm:",
    "mov ecx, dword ptr [rip + {armed}]",
    "jrcxz 2f",
    "lea rsp, [rsp - 128]",
    ".irp register, r11,rdi,rsi,rdx,r10,r8",
    "push \\register",
    ".endr",
    // A child may have been made without signal handlers.
    "mov eax, {rt_sigaction}",
    "mov edi, {sigsys}",
    "lea rsi, [rip + {action}]",
    "mov edx, 0",
    "mov r10d, 8",
    "syscall",
    "mov eax, {prctl}",
    "mov edi, {dispatch}",
    "mov esi, {on}",
    "lea rdx, [rip + __start_mmu_notifier_calls]",
    "mov r10, qword ptr [rip + {calls}]",
    "mov r8d, 0",
    "syscall",
    ".irp register, r8,r10,rdx,rsi,rdi,rcx",
    "pop \\register",
    ".endr",
    "lea rsp, [rsp + 128]",
    "mov eax, 0",
    "jmp rcx",
    "2:",
    "jmp r11",
    ".size mmu_notifier_arm, . - mmu_notifier_arm",
    ".popsection",
    armed = sym ARMED,
    action = sym ACTION,
    calls = sym CALLS,
    rt_sigaction = const RT_SIGACTION,
    sigsys = const SIGSYS,
    prctl = const PRCTL,
    dispatch = const SET_SYSCALL_USER_DISPATCH,
    on = const ON,
);

unsafe extern "C" {
    fn mmu_notifier_trap_return();
}

/// The kernel's `siginfo_t`, as far as it matters.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Info {
    signal: i32,
    errno: i32,
    code: i32,
    /// Of a signal that was queued: who did it.
    sender: [u32; 3],
    /// And a word of his. Of a trap: the number, and 32 bits higher the kind of call.
    value: u64,
    rest: [u64; 12],
}

impl Info {
    /// Whether what was trapped is a call of 32 bits (`AUDIT_ARCH_I386`).
    fn is_compat(&self) -> bool {
        self.value >> 32 == 0x4000_0003
    }
}

/// The kernel's `struct ucontext`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Context {
    flags: u64,
    link: u64,
    stack: [u64; 3],
    r8_to_r15: [usize; 8],
    rdi: usize,
    rsi: usize,
    rbp: usize,
    rbx: usize,
    rdx: usize,
    rax: usize,
    rcx: usize,
    rsp: usize,
    rip: usize,
    eflags: usize,
    segments: u64,
    error: u64,
    trap: u64,
    old_mask: u64,
    cr2: u64,
    vectors: u64,
    reserved: [u64; 8],
    pub(crate) mask: usize,
}

/// Whether this process is armed.
#[inline(always)]
pub(crate) fn is_armed() -> bool {
    // Relaxed: whoever runs armed code was armed after this.
    ARMED.load(Ordering::Relaxed) != 0
}

/// System calls that were trapped so far.
pub(crate) fn traps() -> u64 {
    TRAPS.load(Ordering::Relaxed)
}

/// Arms all threads of this process, but those that block the signal: these when they do so no more. How many those are.
pub(crate) fn arm() -> Result<u32, Errno> {
    masks::take_over();
    // It may have been confined before it was armed. (Who may not ask, is.)
    const PR_GET_SECCOMP: usize = 21;
    // SAFETY: only asks.
    if unsafe { gate::call(PRCTL, &[PR_GET_SECCOMP, 0, 0, 0, 0, 0]) } != 0 {
        confined();
    } else {
        // For hot places: here nobody is trapped yet who would wait for it.
        let _ = safe::register_to_synchronize_code();
    }
    let calls = tails::calls();
    CALLS.store(calls.len(), Ordering::Relaxed);
    // Those that do not arm themselves, whatever happens: each is told once. A second signal could be on its way when the
    // first call of the armed thread is trapped, and the kernel keeps one SIGSYS of a thread: the call would be skipped.
    let mut known = Known::default();
    for_each_other_thread(|_, thread| known.add(thread));
    // From here on new threads arm themselves. Release: they have what is above; the partner is the system call that
    // makes them.
    ARMED.store(1, Ordering::Release);
    if let Err(error) = arm_thread() {
        ARMED.store(0, Ordering::Relaxed);
        return Err(error);
    }
    let before = TOLD.load(Ordering::Relaxed);
    // And those that were made between the look above and the store.
    let made = |pid, thread| !known.has(thread) && tell(pid, thread);
    let told = for_each_other_thread(made)
        + known.iter().filter(|&thread| tell(safe::getpid(), thread)).count() as u32;
    // Nobody is waited for very long.
    for _ in 0..10_000 {
        // Acquire pairs with the Release in `trapped`.
        if TOLD.load(Ordering::Acquire).wrapping_sub(before) >= told {
            return Ok(0);
        }
        safe::sched_yield();
    }
    // The others have not been running.
    Ok(for_each_other_thread(|_, thread| blocks(thread)))
}

/// Whether a thread blocks the signal.
fn blocks(thread: u32) -> bool {
    const LINE: &[u8] = b"\nSigBlk:\t";
    let mut digits = [b'0'; 10];
    let mut rest = thread;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let first = digits.iter().position(|&digit| digit != b'0').unwrap_or(0);
    let mut path = [0; 40];
    let parts = [&b"/proc/self/task/"[..], &digits[first..], b"/status"];
    let places = path.iter_mut().zip(parts.into_iter().flatten());
    places.for_each(|(place, &byte)| *place = byte);
    let Ok(path) = CStr::from_bytes_until_nul(&path) else { return false };
    let mut text = [0; 2048];
    let Ok(len) = File::open(path, 0).and_then(|file| file.read(&mut text)) else { return false };
    let Some(at) = text[..len].windows(LINE.len()).position(|window| window == LINE) else { return false };
    let mask = text[at + LINE.len()..len].iter().map_while(|&digit| (digit as char).to_digit(16));
    mask.fold(0u64, |mask, digit| mask << 4 | u64::from(digit)) >> (SIGSYS - 1) & 1 == 1
}

/// Threads that ran before a process was armed.
struct Known {
    threads: [u32; 512],
    len: usize,
}

impl Default for Known {
    fn default() -> Known {
        Known { threads: [0; 512], len: 0 }
    }
}

impl Known {
    /// Past the room there is, a thread is not known: it is told with those that were made meanwhile.
    fn add(&mut self, thread: u32) -> bool {
        let place = self.threads.get_mut(self.len);
        let has_room = place.map(|place| *place = thread).is_some();
        self.len += usize::from(has_room);
        has_room
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        self.threads[..self.len].iter().copied()
    }

    fn has(&self, thread: u32) -> bool {
        self.iter().any(|known| known == thread)
    }
}

/// Arms the calling thread.
fn arm_thread() -> Result<(), Errno> {
    set_action();
    let calls = tails::calls();
    // SAFETY: what is trapped by this comes to that handler.
    match unsafe { gate::call(PRCTL, &[SET_SYSCALL_USER_DISPATCH, ON, calls.start, calls.len(), 0, 0]) } {
        0 => Ok(()),
        error => Err(Errno(-error as i32)),
    }
}

/// Lets the calling thread make any system call.
pub(crate) fn disarm_thread() {
    // SAFETY: as the thread was before it was armed.
    unsafe { gate::call(PRCTL, &[SET_SYSCALL_USER_DISPATCH, OFF, 0, 0, 0, 0]) };
}

/// In a forked child, before it does anything else.
pub(crate) fn forked() {
    if is_armed() {
        // It worked in the parent.
        let _ = arm_thread();
    }
}

/// Calls `tell` with every other thread's id; how often it said that it did.
fn for_each_other_thread(mut tell: impl FnMut(u32, u32) -> bool) -> u32 {
    let (pid, own) = (safe::getpid(), safe::gettid());
    let mut told = 0;
    safe::for_each_number_in(c"/proc/self/task", |thread| {
        if thread != own && tell(pid, thread) {
            told += 1;
        }
    });
    told
}

/// Sends a thread the signal with the word that only this process knows.
fn tell(pid: u32, thread: u32) -> bool {
    const RT_TGSIGQUEUEINFO: usize = 297;
    const SI_QUEUE: i32 = -1;
    let info = Info {
        signal: SIGSYS as i32,
        errno: 0,
        code: SI_QUEUE,
        sender: [0, pid, 0],
        value: word(),
        rest: [0; 12],
    };
    let args = [pid as usize, thread as usize, SIGSYS, &raw const info as usize, 0, 0];
    // SAFETY: the kernel reads `info`; the thread comes to `trapped`.
    unsafe { gate::call(RT_TGSIGQUEUEINFO, &args) == 0 }
}

fn word() -> u64 {
    &raw const TOLD as u64
}

/// The handler of SIGSYS.
///
/// # Safety
///
/// Called by the kernel.
unsafe extern "C" fn trapped(_: usize, info: *mut Info, context: *mut Context) {
    const SYS_USER_DISPATCH: i32 = 2;
    // SAFETY: by the kernel, for the time of this handler.
    let (info, context) = unsafe { (&mut *info, &mut *context) };
    if info.code != SYS_USER_DISPATCH {
        return sent(info, context);
    }
    let Some(primary) = hook::primary() else { return };
    TRAPS.fetch_add(1, Ordering::Relaxed);
    if let Some(process) = primary.log.process() {
        process.trapped.fetch_add(1, Ordering::Relaxed);
    }
    if info.is_compat() {
        return trapped_compat(primary, context);
    }
    let address = hot::place_of(context.rip - 2);
    let place = Place::of(address);
    // What signal handlers return by stays: debuggers and unwinders know it by its bytes.
    if let Some(place) = place
        && context.rax != RT_SIGRETURN
        && place.count()
    {
        hot::rewrite(primary, address, place);
    }
    match place {
        Some(place) if hook::does_not_care(context.rax) => context.rip = place.plain(),
        Some(place) if is_small(address) => serve(primary, place.site(), context),
        Some(place) => context.rip = place.stub(),
        None => too_many(primary, context, address),
    }
}

/// There is no room for the place of what was trapped.
fn too_many(primary: &Primary, context: &mut Context, address: usize) {
    disarm_thread();
    primary.log.unseen(UnseenReason::ManyTraps, Some(context.rax), address, b"");
    // Once more, and not trapped.
    context.rip = address;
}

/// An `int $0x80`: is made, and named.
fn trapped_compat(primary: &Primary, context: &mut Context) {
    let address = context.rip - 2;
    let Some(place) = Place::of_compat(address) else { return too_many(primary, context, address) };
    context.rip = place.plain();
    place.count();
    if place.traps() == 1 {
        primary.log.unseen(UnseenReason::Compat, None, address, b"");
    }
}

/// A call of code whose stack is too small for the hook: made here, in the handler, which is on the signal stack. What
/// does not return as it went goes on at a tail.
fn serve(primary: &Primary, site: &Site, context: &mut Context) {
    if context.rax == RT_SIGRETURN {
        masks::unblock_in_frame(context.rsp);
        context.rip = site.plain;
        return;
    }
    let mut frame = Frame::new(
        [
            context.rdi,
            context.rsi,
            context.rdx,
            context.r8_to_r15[2],
            context.r8_to_r15[0],
            context.r8_to_r15[1],
        ],
        context.rax,
        site,
    );
    match Syscall::from_number(context.rax) {
        // A new program has the mask of who exec'ed it.
        Some(Syscall::Execve | Syscall::Execveat) => masks::set(context.mask),
        Some(call @ (Syscall::Fork | Syscall::Vfork | Syscall::Clone | Syscall::Clone3))
            if !children::shares_memory(primary, call, &frame.args()) =>
        {
            context.rip = site.fork;
            return;
        }
        // It waits with the program's mask, or changes that: not the one of this handler.
        None => masks::set(context.mask),
        _ => {}
    }
    hook::serve(&mut frame);
    if context.rax == RT_SIGPROCMASK {
        context.mask = masks::get();
    }
    context.rax = frame.rax;
    context.rip = frame.go;
}

/// A SIGSYS that somebody has sent: one of us, or it is the program's.
fn sent(info: &mut Info, context: &mut Context) {
    const SI_QUEUE: i32 = -1;
    if info.code == SI_QUEUE && info.value == word() {
        let _ = arm_thread();
        // Release pairs with the Acquire in `arm`.
        TOLD.fetch_add(1, Ordering::Release);
        return;
    }
    const DEFAULT: usize = 0;
    const IGNORE: usize = 1;
    const SYS_SECCOMP: i32 = 1;
    const SA_RESETHAND: usize = 0x8000_0000;
    let action = masks::programs_action();
    match action.handler {
        IGNORE if info.code != SYS_SECCOMP => {}
        DEFAULT | IGNORE => die(),
        handler => {
            if action.flags & SA_RESETHAND != 0 {
                masks::set_programs_action(&Action::default());
            }
            // As the kernel does, but for this signal.
            let mask = (context.mask | action.mask) & !(1 << (SIGSYS - 1));
            enter(handler, mask, info, context);
        }
    }
}

/// A frame of a signal, as the kernel makes it.
#[repr(C, align(16))]
struct Entered {
    unused: usize,
    /// A return address: the handler finds its stack as behind a call.
    back: unsafe extern "C" fn(),
    context: Context,
    info: Info,
}

/// Enters a handler of the program's when ours returns: with a frame of its own below ours, which it returns by. Its mask is set
/// by the return from ours, as a filter of seccomp may have no call left that sets one, and would send SIGSYS again
/// while it is blocked, which ends the process.
// Not inlined: the frame lies below all that our handler still does.
#[inline(never)]
fn enter(handler: usize, mask: usize, info: &Info, context: &mut Context) {
    // Direction, single step, and resume.
    const CLEARED: usize = 0x400 | 0x100 | 0x1_0000;
    let mut entered = Entered { unused: 0, back: mmu_notifier_trap_return, context: *context, info: *info };
    context.rip = handler;
    context.rdi = SIGSYS;
    context.rsi = (&raw mut entered.info).expose_provenance();
    context.rdx = (&raw mut entered.context).expose_provenance();
    context.rax = 0;
    context.rsp = (&raw mut entered.back).expose_provenance();
    context.eflags &= !CLEARED;
    context.mask = mask;
    // The state at the start of a process; what there was stays in our frame, where the handler's return finds it.
    context.vectors = 0;
    // SAFETY: says that the frame is read behind this, though not by whom. Until the return everything is blocked, the
    // handlers and their callers write nothing below their own frames, and then the stack begins at this frame.
    unsafe { core::arch::asm!("/* {} */", in(reg) &raw mut entered, options(nostack, preserves_flags)) };
}

/// What the kernel does with a SIGSYS that nobody handles.
fn die() {
    const TGKILL: usize = 234;
    let default = Action::default();
    let args = [SIGSYS, &raw const default as usize, 0, MASK, 0, 0];
    // SAFETY: the process ends by it.
    unsafe { gate::call(RT_SIGACTION, &args) };
    masks::unblock();
    let args = [safe::getpid() as usize, safe::gettid() as usize, SIGSYS, 0, 0, 0];
    // SAFETY: the process ends here.
    unsafe { gate::call(TGKILL, &args) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!(size_of::<Info>(), 128);
        assert_eq!(core::mem::offset_of!(Info, value), 24);
        assert_eq!(core::mem::offset_of!(Context, rax), 40 + 13 * 8);
        assert_eq!(core::mem::offset_of!(Context, rip), 40 + 16 * 8);
        assert_eq!(core::mem::offset_of!(Context, mask), 296);
        assert_eq!(size_of::<Handler>(), size_of::<Action>());
    }
}
