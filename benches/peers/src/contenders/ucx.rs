//! UCX's `ucs_rcache`, as Debian ships it, in this process, without its hooks.
//!
//! Unmaps are *external events*: declared before the cache is made, and announced by `ucm_vm_munmap`, which walks
//! UCX's list of handlers as its hooks do. libucs would patch `munmap` and `mmap` all the same, in its constructor, for
//! everybody in the process; [`without_hooks`] keeps it from that. So nothing of it runs while others are measured, and
//! all are measured in turn in one process.

// UNSAFETY: calls a C library.
#![expect(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::{NonNull, null_mut};
use std::{env, io};

use super::Contender;
use crate::layout::Layout;

unsafe extern "C" {
    fn bench_ucx_new() -> *mut c_void;
    safe fn bench_ucx_registrations() -> u64;
    safe fn bench_ucx_version() -> u32;
    fn ucs_rcache_get(
        rcache: *mut c_void,
        address: *mut c_void,
        length: usize,
        protection: c_int,
        argument: *mut c_void,
        region: *mut *mut c_void,
    ) -> i8;
    fn ucs_rcache_region_put(rcache: *mut c_void, region: *mut c_void);
    fn ucs_rcache_destroy(rcache: *mut c_void);
    fn ucm_vm_munmap(address: *mut c_void, length: usize);
}

const VARIABLE: &str = "UCX_MEM_MMAP_HOOK_MODE";

/// Starts this program anew if UCX could have patched it: the variable is read before `main`.
pub(crate) fn without_hooks() -> io::Result<()> {
    if env::var_os(VARIABLE).is_some_and(|mode| mode == "none") {
        return Ok(());
    }
    Err(Command::new(env::current_exe()?).args(env::args_os().skip(1)).env(VARIABLE, "none").exec())
}

pub(crate) fn version() -> String {
    let version = bench_ucx_version();
    format!("{}.{}", version >> 24, version >> 16 & 0xff)
}

pub(crate) struct Ucx(NonNull<c_void>);

// SAFETY: "This data structure is thread safe", says its header.
unsafe impl Send for Ucx {}
// SAFETY: as above.
unsafe impl Sync for Ucx {}

impl Contender for Ucx {
    const NAME: &'static str = "ucx";

    fn filled(layout: &Layout) -> Ucx {
        // SAFETY: has no requirements; the one of before was destroyed when it was dropped.
        let rcache = NonNull::new(unsafe { bench_ucx_new() }).expect("ucs_rcache_create failed");
        let ucx = Ucx(rcache);
        layout.shuffled().for_each(|(start, end)| ucx.get(start, end));
        ucx
    }

    #[inline]
    fn get(&self, start: usize, end: usize) {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let mut region = null_mut();
        // SAFETY: the cache lives; addresses are only compared, as nothing is registered.
        let status = unsafe {
            let address = start as *mut c_void;
            ucs_rcache_get(self.0.as_ptr(), address, end - start, protection, null_mut(), &raw mut region)
        };
        assert!(status == 0, "ucs_rcache_get failed: {status}");
        // SAFETY: what get has given.
        unsafe { ucs_rcache_region_put(self.0.as_ptr(), region) };
    }

    #[inline]
    fn unmap(&self, start: usize, end: usize) {
        // SAFETY: tells the handlers, of which this cache's is the only one; nothing is unmapped.
        unsafe { ucm_vm_munmap(start as *mut c_void, end - start) };
    }

    fn registrations(&self) -> u64 {
        bench_ucx_registrations()
    }
}

impl Drop for Ucx {
    fn drop(&mut self) {
        // SAFETY: nobody has a region.
        unsafe { ucs_rcache_destroy(self.0.as_ptr()) };
    }
}
