//! Ways to make a system call.

// UNSAFETY: makes system calls, maps code, and calls into a library that it has loaded.
#![expect(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_void};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use mmu_notifier_primary::Syscall;
use mmu_notifier_primary::probe::{Make, NOT_OFFERED, by_libc, by_syscall};

use super::findings::Origin;

#[path = "../../doctor/inline.rs"]
#[expect(unreachable_pub, reason = "it is also a part of a library")]
mod inline;

const LATE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/late"));
const ALONE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/alone"));

/// How often the static program unmaps a page, at least: as it says itself.
pub const ALONE_ROUNDS: u64 = 16;

/// How a call of that origin is made.
pub fn make(origin: Origin) -> Make {
    match origin {
        Origin::Libc => libc_or_vfork,
        Origin::Syscall => by_syscall,
        Origin::Own => inline::make,
        Origin::Late => late,
        Origin::Made => made,
    }
}

/// The functions of the C library, and `vfork`, whose child must not return.
unsafe extern "C" fn libc_or_vfork(number: usize, arguments: *const [usize; 6]) -> isize {
    unsafe extern "C" {
        fn vfork() -> c_int;
    }
    if number != Syscall::Vfork.number() {
        // SAFETY: the caller's promise.
        return unsafe { by_libc(number, arguments) };
    }
    let result: isize;
    // SAFETY: the child does nothing but end (`exit`), on the stack that is its parent's.
    unsafe {
        std::arch::asm!(
            "call {vfork}",
            "test eax, eax",
            "jnz 2f",
            "xor edi, edi",
            "mov eax, 60",
            "syscall",
            "2:",
            "cdqe",
            vfork = sym vfork,
            out("rax") result,
            clobber_abi("C"),
        );
    }
    result
}

static LATE_CALL: AtomicUsize = AtomicUsize::new(0);
static MADE_CALL: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn late(number: usize, arguments: *const [usize; 6]) -> isize {
    // SAFETY: the caller's promise.
    unsafe { by(&LATE_CALL, number, arguments) }
}

unsafe extern "C" fn made(number: usize, arguments: *const [usize; 6]) -> isize {
    // A vforked child would return on its parent's stack.
    if number == Syscall::Vfork.number() {
        return NOT_OFFERED;
    }
    // SAFETY: the caller's promise.
    unsafe { by(&MADE_CALL, number, arguments) }
}

unsafe fn by(function: &AtomicUsize, number: usize, arguments: *const [usize; 6]) -> isize {
    match function.load(Ordering::Relaxed) {
        0 => NOT_OFFERED,
        // SAFETY: a function of that type, stored by `Library::open` or `make_code`, and the caller's promise.
        function => unsafe { std::mem::transmute::<usize, Make>(function)(number, arguments) },
    }
}

/// Makes code that makes system calls, where no file says so.
pub fn make_code() -> Result<()> {
    const CODE: &[u8] = &[
        0x48, 0x89, 0xf8, // mov rax, rdi
        0x48, 0x8b, 0x3e, // mov rdi, [rsi]
        0x48, 0x8b, 0x56, 0x10, // mov rdx, [rsi + 16]
        0x4c, 0x8b, 0x56, 0x18, // mov r10, [rsi + 24]
        0x4c, 0x8b, 0x46, 0x20, // mov r8, [rsi + 32]
        0x4c, 0x8b, 0x4e, 0x28, // mov r9, [rsi + 40]
        0x48, 0x8b, 0x76, 0x08, // mov rsi, [rsi + 8]
        0x0f, 0x05, // syscall
        0xc3, // ret
    ];
    let (read_write, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(null_mut(), 4096, read_write, private, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context("mmap");
    }
    // SAFETY: mapped just now.
    unsafe { at.cast::<u8>().copy_from_nonoverlapping(CODE.as_ptr(), CODE.len()) };
    // SAFETY: as above.
    if unsafe { libc::mprotect(at, 4096, libc::PROT_READ | libc::PROT_EXEC) } != 0 {
        return Err(std::io::Error::last_os_error()).context("memory cannot be made executable (mprotect)");
    }
    MADE_CALL.store(at as usize, Ordering::Relaxed);
    Ok(())
}

/// A file in memory with this content, and the path by which this process has it.
fn file(name: &CStr, content: &[u8]) -> Result<(File, CString)> {
    // SAFETY: a zero-ended name.
    let file = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if file < 0 {
        return Err(std::io::Error::last_os_error()).context("memfd_create");
    }
    // SAFETY: a descriptor that nobody else has.
    let mut file = unsafe { File::from_raw_fd(file) };
    file.write_all(content).context("cannot write a file in memory")?;
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok((file, path))
}

/// The static program: its file, and the path to run it by.
pub fn alone() -> Result<(File, CString)> {
    file(c"alone", ALONE)
}

/// Writes the static program to a file that can be run.
pub fn write_alone(path: &Path) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o700);
    let written = options.open(path).and_then(|mut file| file.write_all(ALONE));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// The library that makes its own system calls.
#[derive(Debug)]
pub struct Library {
    handle: NonNull<c_void>,
    _file: File,
}

impl Library {
    /// Loads it.
    pub fn open() -> Result<Library> {
        let (file, path) = file(c"late", LATE)?;
        // SAFETY: it has no initialisers.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        let Some(handle) = NonNull::new(handle) else {
            // SAFETY: after a failure, a zero-ended text.
            let why = unsafe { CStr::from_ptr(libc::dlerror()) };
            bail!("dlopen: {}", why.to_string_lossy());
        };
        // SAFETY: the library is loaded.
        let function = unsafe { libc::dlsym(handle.as_ptr(), c"mmun_doctor_late".as_ptr()) };
        LATE_CALL.store(function as usize, Ordering::Relaxed);
        Ok(Library { handle, _file: file })
    }

    /// An address in it.
    pub fn address(&self) -> usize {
        LATE_CALL.load(Ordering::Relaxed)
    }

    /// Unloads it.
    pub fn close(self) {
        LATE_CALL.store(0, Ordering::Relaxed);
        // SAFETY: nobody calls it any more.
        unsafe { libc::dlclose(self.handle.as_ptr()) };
    }
}
