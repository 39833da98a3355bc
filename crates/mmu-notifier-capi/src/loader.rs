//! What the dynamic loader knows: where callbacks lie.

// UNSAFETY: calls the loader.
#![expect(unsafe_code)]

use core::ffi::{c_char, c_int, c_void};
use core::ptr::null;

/// `Dl_info`.
#[repr(C)]
struct Info {
    file: *const c_char,
    base: *const c_void,
    symbol: *const c_char,
    address: *const c_void,
}

const RTLD_NOW: c_int = 2;
const RTLD_NOLOAD: c_int = 4;
const RTLD_NODELETE: c_int = 0x1000;

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlclose(handle: *mut c_void) -> c_int;
    fn dladdr(address: *const c_void, info: *mut Info) -> c_int;
}

/// Keeps the library that a callback lies in: closing it does not unload it any more. Without that, the next change
/// would call into nothing; and it cannot be let go when the subscription ends, as who ends it may be its own code.
pub(crate) fn keep(callback: *const c_void) {
    let mut info = Info { file: null(), base: null(), symbol: null(), address: null() };
    // SAFETY: any address will do; `Info` is what the C library fills in.
    if unsafe { dladdr(callback, &raw mut info) } == 0 {
        return;
    }
    // SAFETY: the name is the loader's, zero-ended, and stays as long as the object does. Null: the program itself.
    let handle = unsafe { dlopen(info.file, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE) };
    if !handle.is_null() {
        // SAFETY: a handle that is open.
        unsafe { dlclose(handle) };
    }
}
