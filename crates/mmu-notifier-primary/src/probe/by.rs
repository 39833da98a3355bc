//! Making a memory system call by the functions of the C library.

// UNSAFETY: calls functions of the C library that change memory.
#![expect(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};

use crate::Syscall;

/// Makes a system call: the number and its arguments; returns what the kernel returns, `-errno` on failure, or
/// [`NOT_OFFERED`]. As for the system call itself, it can change any memory of the process.
///
/// A child that comes out of it (of `fork` and `clone`) must have memory of its own.
pub type Make = unsafe extern "C" fn(number: usize, arguments: *const [usize; 6]) -> isize;

/// This way the call cannot be made: there is no function for it.
pub const NOT_OFFERED: isize = isize::MIN;

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        len: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
    fn mremap(at: *mut c_void, old: usize, new: usize, flags: c_int, to: *mut c_void) -> *mut c_void;
    fn brk(at: *mut c_void) -> c_int;
    fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int;
    fn mprotect(at: *mut c_void, len: usize, protection: c_int) -> c_int;
    fn pkey_mprotect(at: *mut c_void, len: usize, protection: c_int, key: c_int) -> c_int;
    fn shmat(id: c_int, at: *const c_void, flags: c_int) -> *mut c_void;
    fn shmdt(at: *const c_void) -> c_int;
    fn remap_file_pages(at: *mut c_void, len: usize, protection: c_int, page: usize, flags: c_int) -> c_int;
    fn ftruncate(file: c_int, len: i64) -> c_int;
    fn truncate(path: *const c_char, len: i64) -> c_int;
    fn fallocate(file: c_int, mode: c_int, offset: i64, len: i64) -> c_int;
    fn fork() -> c_int;
    fn execve(
        path: *const c_char,
        arguments: *const *const c_char,
        environment: *const *const c_char,
    ) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    safe fn __errno_location() -> *mut c_int;
}

fn errno() -> isize {
    // SAFETY: the C library keeps it for each thread.
    unsafe { *__errno_location() as isize }
}

/// What a function of the C library has returned, as the kernel says it.
fn kernel(result: isize) -> isize {
    if result == -1 { -errno() } else { result }
}

/// A function that not every C library has.
fn newer(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: RTLD_DEFAULT and a zero-ended name.
    let found = unsafe { dlsym(core::ptr::null_mut(), name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// By the function of that name of the C library. `clone`, `clone3`, `vfork`, `exit_group`: not offered.
///
/// # Safety
///
/// As for the system call; `arguments` can be read.
pub unsafe extern "C" fn by_libc(number: usize, arguments: *const [usize; 6]) -> isize {
    // SAFETY: by the caller's promise.
    let [a, b, c, d, e, f] = unsafe { *arguments };
    let pointer = |address: usize| address as *mut c_void;
    let int = |argument: usize| argument as c_int;
    // SAFETY: the caller answers for the call and its arguments.
    unsafe {
        match Syscall::from_number(number) {
            Some(Syscall::Mmap) => kernel(mmap(pointer(a), b, int(c), int(d), int(e), f as i64) as isize),
            Some(Syscall::Munmap) => kernel(munmap(pointer(a), b) as isize),
            Some(Syscall::Mremap) => kernel(mremap(pointer(a), b, c, int(d), pointer(e)) as isize),
            Some(Syscall::Brk) => match brk(pointer(a)) {
                0 => a.cast_signed(),
                _ => -errno(),
            },
            Some(Syscall::Madvise) => kernel(madvise(pointer(a), b, int(c)) as isize),
            Some(Syscall::ProcessMadvise) => {
                let Some(found) = newer(c"process_madvise") else { return NOT_OFFERED };
                type Function = unsafe extern "C" fn(c_int, usize, usize, c_int, c_uint) -> isize;
                let function = core::mem::transmute::<*mut c_void, Function>(found);
                kernel(function(int(a), b, c, int(d), e as c_uint))
            }
            Some(Syscall::Mprotect) => kernel(mprotect(pointer(a), b, int(c)) as isize),
            Some(Syscall::PkeyMprotect) => kernel(pkey_mprotect(pointer(a), b, int(c), int(d)) as isize),
            Some(Syscall::Shmat) => kernel(shmat(int(a), pointer(b), int(c)) as isize),
            Some(Syscall::Shmdt) => kernel(shmdt(pointer(a)) as isize),
            Some(Syscall::RemapFilePages) => {
                kernel(remap_file_pages(pointer(a), b, int(c), d, int(e)) as isize)
            }
            Some(Syscall::Ftruncate) => kernel(ftruncate(int(a), b as i64) as isize),
            Some(Syscall::Truncate) => kernel(truncate(a as *const c_char, b as i64) as isize),
            Some(Syscall::Fallocate) => kernel(fallocate(int(a), int(b), c as i64, d as i64) as isize),
            Some(Syscall::Fork) => kernel(fork() as isize),
            Some(Syscall::Execve) => {
                kernel(execve(a as *const c_char, b as *const _, c as *const _) as isize)
            }
            Some(Syscall::Execveat) => {
                let Some(found) = newer(c"execveat") else { return NOT_OFFERED };
                type Function = unsafe extern "C" fn(c_int, usize, usize, usize, c_int) -> c_int;
                let function = core::mem::transmute::<*mut c_void, Function>(found);
                kernel(function(int(a), b, c, d, int(e)) as isize)
            }
            _ => NOT_OFFERED,
        }
    }
}

/// By the function `syscall` of the C library. `vfork` and `exit_group`: not offered.
///
/// # Safety
///
/// As for the system call; `arguments` can be read.
pub unsafe extern "C" fn by_syscall(number: usize, arguments: *const [usize; 6]) -> isize {
    if matches!(Syscall::from_number(number), None | Some(Syscall::Vfork | Syscall::ExitGroup)) {
        return NOT_OFFERED;
    }
    // SAFETY: by the caller's promise.
    let [a, b, c, d, e, f] = unsafe { *arguments };
    // SAFETY: the caller answers for the call and its arguments.
    kernel(unsafe { syscall(number as c_long, a, b, c, d, e, f) } as isize)
}
