//! This object without a C library: `mmun` has put it into a program that has none to load it with (a static one), or
//! another one than it is made for (musl), before the program's first instruction.
//!
//! `mmun` links it: every name that it would get from the C library is looked up in [`mmu_notifier_alone`]. What the
//! standard library asks of the C library while calls are watched is to copy memory, and little else; a name that is not
//! there becomes the last entry, a function that fails.

// UNSAFETY: functions of the C library.
#![expect(unsafe_code)]

use core::arch::global_asm;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering};

use mmu_notifier_primary::system_call;

use crate::preload;

/// What the kernel has given the program: pairs of a kind and a value.
static AUXILIARY: AtomicPtr<usize> = AtomicPtr::new(null_mut());

/// Begins to watch. `stack` is the program's as the kernel has made it: the number of arguments, these, a null, the
/// environment, a null, and the auxiliary vector.
///
/// # Safety
///
/// Called once, by `mmun`, on the program's only thread; session and object are paths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmu_notifier_alone_start(
    stack: *mut usize,
    session: *const c_char,
    object: *const c_char,
) {
    // SAFETY: by the caller's promise.
    let mut at = unsafe { stack.add(*stack + 2) };
    // SAFETY: as above: to the null, and over it.
    while unsafe { *at } != 0 {
        // SAFETY: as above.
        at = unsafe { at.add(1) };
    }
    // SAFETY: as above.
    AUXILIARY.store(unsafe { at.add(1) }, Ordering::Relaxed);
    // SAFETY: by the caller's promise; they are copied where they have to stay.
    let (session, object) = unsafe { (CStr::from_ptr(session), CStr::from_ptr(object)) };
    preload::install(session, object);
}

// By the one instruction that copies: a loop would become a call of the function that it is.
global_asm!(
    ".pushsection .text.mmu_notifier_alone, \"ax\", @progbits",
    ".macro mmu_notifier_alone name",
    ".hidden mmu_notifier_alone_\\name",
    ".globl mmu_notifier_alone_\\name",
    ".type mmu_notifier_alone_\\name, @function",
    "mmu_notifier_alone_\\name:",
    ".endm",
    "mmu_notifier_alone memmove",
    "mov rax, rdi",
    "sub rax, rsi",
    "cmp rax, rdx",
    "jb 2f",
    "mmu_notifier_alone memcpy",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    // The end of what is copied from would be overwritten: from behind.
    "2:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "mmu_notifier_alone memset",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "mmu_notifier_alone bcmp",
    "mov rcx, rdx",
    "xor eax, eax",
    "cmp rax, rax",
    "repe cmpsb",
    "setne al",
    "ret",
    "mmu_notifier_alone strlen",
    "mov rsi, rdi",
    "xor eax, eax",
    "mov rcx, -1",
    "repne scasb",
    "mov rax, rdi",
    "sub rax, rsi",
    "dec rax",
    "ret",
    "mmu_notifier_alone abort",
    "ud2",
    "mmu_notifier_alone missing",
    "mov rax, -1",
    "ret",
    ".purgem mmu_notifier_alone",
    ".popsection",
);

unsafe extern "C" {
    fn mmu_notifier_alone_memmove();
    fn mmu_notifier_alone_memcpy();
    fn mmu_notifier_alone_memset();
    fn mmu_notifier_alone_bcmp();
    fn mmu_notifier_alone_strlen();
    fn mmu_notifier_alone_abort();
    fn mmu_notifier_alone_missing();
}

/// A name of the C library and what is there instead.
#[derive(Debug)]
#[repr(C)]
pub struct Name {
    name: *const c_char,
    instead: *const (),
}

// SAFETY: addresses of what is never changed.
unsafe impl Sync for Name {}

macro_rules! names {
    ($($name:literal => $instead:expr,)*) => {
        [$(Name { name: $name.as_ptr(), instead: $instead as *const () },)*
         Name { name: null(), instead: mmu_notifier_alone_missing as *const () }]
    };
}

/// For `mmun`: ends with one without a name, which stands for all the others.
#[unsafe(no_mangle)]
pub static mmu_notifier_alone: [Name; 19] = names! {
    c"memmove" => mmu_notifier_alone_memmove,
    c"memcpy" => mmu_notifier_alone_memcpy,
    c"memset" => mmu_notifier_alone_memset,
    c"bcmp" => mmu_notifier_alone_bcmp,
    c"strlen" => mmu_notifier_alone_strlen,
    c"abort" => mmu_notifier_alone_abort,
    c"getauxval" => getauxval,
    c"__errno_location" => errno,
    c"__tls_get_addr" => thread_storage,
    c"clock_gettime" => clock_gettime,
    c"clock_nanosleep" => clock_nanosleep,
    c"sched_yield" => sched_yield,
    c"syscall" => syscall,
    c"write" => write,
    c"dlsym" => dlsym,
    c"dlopen" => dlopen,
    c"__xpg_strerror_r" => strerror,
    c"environ" => &raw const ENVIRONMENT,
};

/// Nobody's: nothing of this object's is in it.
static ENVIRONMENT: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
static ERRNO: AtomicI32 = AtomicI32::new(0);
/// For all threads: what the standard library keeps for each is whether it panics, which here ends the process.
static THREAD_STORAGE: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];

extern "C" fn getauxval(kind: usize) -> usize {
    let mut at = AUXILIARY.load(Ordering::Relaxed);
    while !at.is_null() {
        // SAFETY: the vector is there as long as the process, and ends with a kind of 0.
        let [found, value] = unsafe { at.cast::<[usize; 2]>().read() };
        if found == kind {
            return value;
        }
        if found == 0 {
            break;
        }
        at = at.wrapping_add(2);
    }
    0
}

/// A call as the C library makes it.
fn call(number: usize, args: [usize; 6]) -> isize {
    // SAFETY: the standard library answers for its own calls; those that are here return, once.
    let answer = unsafe { system_call(number, &args) };
    if !(-4095..0).contains(&answer) {
        return answer;
    }
    ERRNO.store(-answer as c_int, Ordering::Relaxed);
    -1
}

// Waits have a clock, and may yield and sleep; queues of waiting threads are futexes.

extern "C" fn clock_gettime(clock: usize, time: usize) -> c_int {
    call(228, [clock, time, 0, 0, 0, 0]) as c_int
}

extern "C" fn clock_nanosleep(clock: usize, flags: usize, time: usize, left: usize) -> c_int {
    // This one returns its error.
    if call(230, [clock, flags, time, left, 0, 0]) == 0 { 0 } else { ERRNO.load(Ordering::Relaxed) }
}

/// There is nothing to look names up in.
extern "C" fn dlsym(_: *mut c_void, _: *const c_char) -> *mut c_void {
    null_mut()
}

/// Nor is anything loaded.
extern "C" fn dlopen(_: *const c_char, _: c_int) -> *mut c_void {
    null_mut()
}

extern "C" fn sched_yield() -> c_int {
    call(24, [0; 6]) as c_int
}

extern "C" fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
    call(number, [a, b, c, d, e, f])
}

// For what the standard library says when something goes wrong.

extern "C" fn write(descriptor: usize, bytes: usize, len: usize) -> isize {
    call(1, [descriptor, bytes, len, 0, 0, 0])
}

/// No words for an error: its number has to do.
extern "C" fn strerror(_: c_int, text: &mut u8, _: usize) -> c_int {
    *text = 0;
    0
}

extern "C" fn errno() -> *mut c_int {
    ERRNO.as_ptr()
}

/// The argument is a module's number, which there is one of, and an offset.
extern "C" fn thread_storage(place: &[usize; 2]) -> *mut c_void {
    THREAD_STORAGE.as_ptr().cast_mut().wrapping_byte_add(place[1]).cast()
}
