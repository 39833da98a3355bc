//! Code made at run time with a system call in it, and what has happened to it.

// UNSAFETY: makes code and runs it.
#![expect(unsafe_code)]

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use mmu_notifier_primary::{Primary, Traps};

use crate::{COUNTS, Count};

pub(crate) const PAGE: usize = 4096;
/// A place that is trapped so often is rewritten.
pub(crate) const HOT: u64 = 16;
/// Nobody maps anything there: what is unmapped there is counted.
pub(crate) const NOWHERE: usize = 0x10_0000;

pub(crate) const READ: i32 = libc::PROT_READ;
pub(crate) const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
pub(crate) const READ_EXECUTE: i32 = libc::PROT_READ | libc::PROT_EXEC;
pub(crate) const ALL: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;

/// What has come since.
pub(crate) struct Since {
    traps: Traps,
    told: [u64; 2],
}

impl Since {
    pub(crate) fn now(primary: &Primary) -> Since {
        Since { traps: primary.traps(), told: COUNTS.each_ref().map(Count::now) }
    }

    pub(crate) fn traps(&self, primary: &Primary) -> u64 {
        primary.traps().calls - self.traps.calls
    }

    pub(crate) fn rewritten(&self, primary: &Primary) -> u64 {
        primary.traps().rewritten - self.traps.rewritten
    }

    pub(crate) fn kept(&self, primary: &Primary) -> u64 {
        primary.traps().kept - self.traps.kept
    }

    pub(crate) fn told(&self) -> u64 {
        let [one, other] = self.each_told();
        assert_eq!(one, other);
        one
    }

    pub(crate) fn each_told(&self) -> [u64; 2] {
        core::array::from_fn(|index| COUNTS[index].now() - self.told[index])
    }
}

pub(crate) fn map(at: usize, len: usize, protection: i32, flags: i32) -> usize {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: new memory, or over memory that is the test's.
    let got = unsafe { libc::mmap(at as *mut libc::c_void, len, protection, flags, -1, 0) };
    assert_ne!(got, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    got as usize
}

/// Where nothing is mapped, in reach of a jump: the C library's allocator reserves much where it may choose itself.
pub(crate) fn new_page() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x2000_0000_0000);
    NEXT.fetch_add(1 << 20, SeqCst)
}

pub(crate) fn protect(at: usize, protection: i32) {
    let page = at & !(PAGE - 1);
    // SAFETY: memory of the test's.
    let result = unsafe { libc::mprotect(page as *mut libc::c_void, PAGE, protection) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

pub(crate) fn unmap(at: usize, len: usize) {
    // SAFETY: memory of the test's.
    assert_eq!(unsafe { libc::munmap(at as *mut libc::c_void, len) }, 0);
}

/// `call(a, b, number)`: its address is that of a function of code that was made here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(pub(crate) usize);

/// Behind the `syscall`: `ret`. With the two bytes that follow, a jump goes 819 MiB down.
pub(crate) const RETURN: [u8; 3] = [0xc3, 0xcc, 0xcc];

impl Place {
    /// Bytes of a place in front of its `syscall`.
    pub(crate) const FRONT: usize = 2;

    /// Writes a place, so that its `syscall` is at `address`.
    pub(crate) fn write(address: usize, behind: &[u8]) -> Place {
        let start = address - Place::FRONT;
        // mov %edx, %eax; syscall
        let code = [&[0x89, 0xd0, 0x0f, 0x05][..], behind].concat();
        // SAFETY: writable memory of the test's.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), start as *mut u8, code.len()) };
        Place(start)
    }

    /// A new one, `offset` bytes into a page of its own, that can be executed and not written.
    pub(crate) fn made(offset: usize, behind: &[u8]) -> Place {
        let page = map(new_page(), PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
        let place = Place::write(page + offset, behind);
        protect(page, READ_EXECUTE);
        place
    }

    pub(crate) fn address(self) -> usize {
        self.0 + Place::FRONT
    }

    pub(crate) fn page(self) -> usize {
        self.address() & !(PAGE - 1)
    }

    /// Called until it is rewritten, which must happen.
    pub(crate) fn heat(self) {
        self.call_many(HOT);
        assert!(self.is_rewritten());
    }

    pub(crate) fn call(self, a: usize, b: usize, number: i64) -> isize {
        // SAFETY: code of that kind.
        let code: unsafe extern "C" fn(usize, usize, i64) -> isize = unsafe { std::mem::transmute(self.0) };
        // SAFETY: the tests make calls that only ask, or change memory that is theirs.
        unsafe { code(a, b, number) }
    }

    /// Unmaps a page where there is none.
    pub(crate) fn call_many(self, times: u64) {
        for _ in 0..times {
            assert_eq!(self.call(NOWHERE, PAGE, libc::SYS_munmap), 0);
        }
    }

    pub(crate) fn bytes(self) -> [u8; 5] {
        // SAFETY: readable memory of the test's.
        unsafe { (self.address() as *const [u8; 5]).read_volatile() }
    }

    /// Where its jump leads, if it is rewritten, or would be.
    pub(crate) fn target(self) -> usize {
        let [_, five, a, b, c] = self.bytes();
        let distance = i32::from_le_bytes([five, a, b, c]);
        (self.address() + 5).wrapping_add_signed(distance as isize)
    }

    pub(crate) fn is_rewritten(self) -> bool {
        let [first, second, ..] = self.bytes();
        assert!(matches!(first, 0x0f | 0xe9) && second == 5, "{:x?}", self.bytes());
        first == 0xe9
    }
}

/// The end, or the beginning, of the mapping with that name.
pub(crate) fn edge(name: &str, end: bool) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("there is /proc");
    let line = maps.lines().find(|line| line.ends_with(name)).expect("every process has one");
    let edges = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
    usize::from_str_radix(if end { edges.1 } else { edges.0 }, 16).expect("a number")
}
