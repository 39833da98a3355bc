//! Whether another copy of this library watches this process already: the object that `mmun run` preloads, or a C
//! library's. Two cannot rewrite the same call sites, and who subscribes to the one that came late would be told of nothing.

// UNSAFETY: calls the loader, and makes functions of what it finds.
#![expect(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::transmute;
use core::ptr::{null, null_mut};
use std::path::PathBuf;

/// `struct mmu_notifier_ops`: start, end and release.
type Operations = [Option<unsafe extern "C" fn(*const c_void, *mut c_void)>; 3];
type Subscribe = unsafe extern "C" fn(*const Operations, usize, *mut c_void, *mut *mut c_void) -> c_int;
type Unsubscribe = unsafe extern "C" fn(*mut c_void);

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
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dladdr(address: *const c_void, info: *mut Info) -> c_int;
}

unsafe extern "C" fn nothing(_: *const c_void, _: *mut c_void) {}

/// The file of such a copy, if there is one that is installed.
pub(crate) fn at_work() -> Option<PathBuf> {
    const RTLD_NOW: c_int = 2;
    const RTLD_NOLOAD: c_int = 4;
    // SAFETY: zero-ended; loads nothing, but finds an object of that name. It stays loaded from now on.
    let handle = unsafe { dlopen(c"libmmu_notifier_capi.so".as_ptr(), RTLD_NOW | RTLD_NOLOAD) };
    if handle.is_null() {
        return None;
    }
    // SAFETY: a handle that is open, and zero-ended names.
    let find = |name: &CStr| Some(unsafe { dlsym(handle, name.as_ptr()) }).filter(|found| !found.is_null());
    let (subscribe, unsubscribe) = (find(c"mmu_notifier_subscribe")?, find(c"mmu_notifier_unsubscribe")?);
    let object = object_of(subscribe)?;
    if object.base == object_of(nothing as *const c_void)?.base {
        // This crate is a part of it.
        return None;
    }
    // SAFETY: functions of these names have these types: its header is stable.
    let (subscribe, unsubscribe) = unsafe {
        (transmute::<*mut c_void, Subscribe>(subscribe), transmute::<*mut c_void, Unsubscribe>(unsubscribe))
    };
    // Only who is installed takes a subscriber.
    let operations: Operations = [Some(nothing), Some(nothing), None];
    let mut subscription = null_mut();
    // SAFETY: operations that do nothing, and room for the answer.
    let answer = unsafe {
        subscribe(&raw const operations, size_of::<Operations>(), null_mut(), &raw mut subscription)
    };
    if answer != 0 {
        return None;
    }
    // SAFETY: what it has just returned, once.
    unsafe { unsubscribe(subscription) };
    // SAFETY: the loader's, zero-ended.
    let file = unsafe { CStr::from_ptr(object.file) };
    Some(PathBuf::from(file.to_string_lossy().into_owned()))
}

/// The object around an address.
fn object_of(address: *const c_void) -> Option<Info> {
    let mut info = Info { file: null(), base: null(), symbol: null(), address: null() };
    // SAFETY: any address will do; `Info` is what the C library fills in.
    let found = unsafe { dladdr(address, &raw mut info) } != 0;
    (found && !info.file.is_null()).then_some(info)
}
