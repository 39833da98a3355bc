//! Which copy of this library is at work in this process. There may be several: the object that `mmun run` preloads, a C
//! library's, a plugin's, a program's own. Only one can rewrite the call sites: the one that is installed first. Every later
//! one is *fed* by it (`fed.rs`).
//!
//! They find each other by a page at an address that all know, the *board*, so whatever loader or namespace of a loader has
//! brought them here. Who maps it first does so for all, as the kernel lets only one have an address; who installs takes the
//! word in there, and puts his [`First`] there for the others.

// UNSAFETY: maps a page at a fixed address, and reads what another copy has put there.
#![expect(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::{from_ref, null};
use core::sync::atomic::{AtomicUsize, Ordering};

use mmu_notifier::PAGE_SIZE;

use crate::Syscall;
use crate::feed::{FIRST, First};
use crate::gate::{self, safe};
use crate::maps;
use crate::primary::InstallError;

/// Where nobody else maps anything: half a terabyte below where the kernel begins, and where sanitizers have no shadow.
const BOARD: usize = 0x7e80_6d6d_0000;
/// What the page begins with: the version of [`First`] and of what it takes.
const NAME: [u8; 16] = *b"mmu-notifier 1\0\0";
/// In [`Board::first`]: somebody is installing.
const BUSY: usize = 1;

#[repr(C)]
struct Board {
    name: [u8; 16],
    /// 0, [`BUSY`], or the address of a [`First`].
    first: AtomicUsize,
}

/// What this copy is to be.
pub(crate) enum Place {
    /// The one at work, if it comes so far; `None`: the board cannot be had, and copies do not find each other.
    First(Option<Claim>),
    /// Fed by that one.
    Fed(&'static First),
}

/// Finds out. Waits for another copy that is being installed.
pub(crate) fn place() -> Result<Place, InstallError> {
    let why = |why| Err(InstallError::Copy { why });
    let Some(board) = board() else { return Ok(Place::First(None)) };
    if board.name != NAME {
        return why("it is of another version");
    }
    for _ in 0..10_000 {
        // Acquire pairs with the Release in `Claim`: the other copy is installed, or is not and has left nothing.
        match board.first.compare_exchange(0, BUSY, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => return Ok(Place::First(Some(Claim { board }))),
            Err(BUSY) => safe::sleep(1_000_000),
            Err(first) if first == from_ref(&FIRST).addr() => return Err(InstallError::Twice),
            // SAFETY: by the name, put there by a copy with the same `First`; a static of an object that stays.
            Err(first) => return Ok(Place::Fed(unsafe { &*(first as *const First) })),
        }
    }
    why("it has been installing for ten seconds")
}

/// The place of the first, taken. Dropped, it is free again.
pub(crate) struct Claim {
    board: &'static Board,
}

impl Claim {
    /// This copy is installed: the others may come.
    pub(crate) fn keep(self) {
        self.put(from_ref(&FIRST).addr());
        core::mem::forget(self);
    }

    fn put(&self, first: usize) {
        // Release pairs with the Acquire in `place`.
        self.board.first.store(first, Ordering::Release);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.put(0);
    }
}

/// The page, made by whoever comes first; `None`: it cannot be made, or somebody else is there.
fn board() -> Option<&'static Board> {
    // Who cannot make one, as a sandbox forbids it, may find one: it may have been made before.
    let found = make() == BOARD as isize || is_there();
    // SAFETY: a page that begins with a `Board`, whatever its version; never unmapped.
    found.then(|| unsafe { &*(BOARD as *const Board) })
}

/// Maps the page, which has its name from the first moment on: that of a file in memory. Each process has its own, as a
/// forked one is to have the board of its parent.
fn make() -> isize {
    const MEMFD_CREATE: usize = 319;
    const CLOEXEC: usize = 1;
    const READ_WRITE: usize = 3;
    const PRIVATE_FIXED_NOREPLACE: usize = 0x2 | 0x10_0000;
    // SAFETY: the kernel reads the name.
    let file = unsafe { gate::call(MEMFD_CREATE, &[FILE.as_ptr() as usize, CLOEXEC, 0, 0, 0, 0]) };
    if file < 0 {
        return file;
    }
    let file = safe::File::adopt(file as usize);
    if file.write(&NAME).is_err() {
        return -1;
    }
    let args = [BOARD, PAGE_SIZE, READ_WRITE, PRIVATE_FIXED_NOREPLACE, file.descriptor(), 0];
    // SAFETY: takes the place of nothing.
    let at = unsafe { gate::call(Syscall::Mmap.number(), &args) };
    if at > 0 && at != BOARD as isize {
        // A kernel that takes the flag for a hint (before 4.17), and the place is taken.
        // SAFETY: mapped just now.
        unsafe { gate::call(Syscall::Munmap.number(), &[at as usize, PAGE_SIZE, 0, 0, 0, 0]) };
    }
    at
}

const FILE: &CStr = c"mmu-notifier";

/// Whether what is mapped there is the page.
fn is_there() -> bool {
    let mut found = false;
    // If it cannot be read, nothing can be installed in any case.
    let _ = maps::for_each(|mapping| {
        found |= mapping.range.start() == BOARD
            && mapping.readable
            && mapping.path.strip_prefix(b"/memfd:").is_some_and(|name| name.starts_with(FILE.to_bytes()));
    });
    found
}

/// `Dl_info`.
#[repr(C)]
struct Info {
    file: *const c_char,
    base: *const c_void,
    symbol: *const c_char,
    address: *const c_void,
}

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlclose(handle: *mut c_void) -> c_int;
    fn dladdr(address: *const c_void, info: *mut Info) -> c_int;
}

/// Keeps the library that this copy is a part of: closing it does not unload it any more, as rewritten code jumps into it, or
/// another copy calls it. Only where there is a loader.
pub(crate) fn stay() {
    const RTLD_NOW: c_int = 2;
    const RTLD_NOLOAD: c_int = 4;
    const RTLD_NODELETE: c_int = 0x1000;
    let mut info = Info { file: null(), base: null(), symbol: null(), address: null() };
    // SAFETY: an address in this object; `Info` is what the C library fills in.
    if unsafe { dladdr(from_ref(&FIRST).cast(), &raw mut info) } == 0 || info.file.is_null() {
        return;
    }
    // SAFETY: the name is the loader's, zero-ended. Null: the program itself, which stays.
    let handle = unsafe { dlopen(info.file, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE) };
    if !handle.is_null() {
        // SAFETY: a handle that is open.
        unsafe { dlclose(handle) };
    }
}
