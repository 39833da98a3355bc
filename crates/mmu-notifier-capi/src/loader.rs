//! What the dynamic loader knows: whether another copy of this object came first, and where callbacks lie.
//!
//! A process has one primary MMU, so it must have one copy of this object at work: the one that was loaded first. Every
//! later one (a program's own beside the preloaded one, one in a plugin) passes its calls on to it. The loader finds it
//! by the name that all copies carry (`build.rs`), also where its functions are visible to nobody (`RTLD_LOCAL`).

// UNSAFETY: calls the loader, and makes functions of what it finds.
#![expect(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::transmute;
use core::ptr::null;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::heap::HEAP;

type Subscribe = unsafe extern "C" fn(*const c_void, usize, *mut c_void, *mut c_void) -> c_int;
pub(crate) type Problem = unsafe extern "C" fn(*const c_char, *const c_void, *mut c_void);
type Change = unsafe extern "C" fn(*mut c_void) -> c_int;

/// The functions of the copy that came first.
pub(crate) struct First {
    pub(crate) install: extern "C" fn() -> c_int,
    pub(crate) uninstall: extern "C" fn() -> c_int,
    pub(crate) subscribe: Subscribe,
    pub(crate) subscribe_refuser: Subscribe,
    pub(crate) unsubscribe: unsafe extern "C" fn(*mut c_void),
    pub(crate) invalidate:
        unsafe extern "C" fn(usize, usize, c_int, c_int, Option<Change>, *mut c_void) -> c_int,
    pub(crate) quarantined: unsafe extern "C" fn(*mut usize) -> usize,
    pub(crate) call_site: extern "C" fn() -> *const c_void,
    pub(crate) check: unsafe extern "C" fn(Option<Problem>, *mut c_void) -> c_int,
}

static FIRST: AtomicPtr<First> = AtomicPtr::new(core::ptr::null_mut());

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
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *const c_void;
    fn dlclose(handle: *mut c_void) -> c_int;
    fn dladdr(address: *const c_void, info: *mut Info) -> c_int;
}

/// The object around an address.
fn object_of(address: *const c_void) -> Option<Info> {
    let mut info = Info { file: null(), base: null(), symbol: null(), address: null() };
    // SAFETY: any address will do; `Info` is what the C library fills in.
    let found = unsafe { dladdr(address, &raw mut info) } != 0;
    found.then_some(info)
}

/// The copy that calls are passed on to, if [`find_first`] has found one.
pub(crate) fn first() -> Option<&'static First> {
    // Acquire pairs with the Release in `find_first`.
    // SAFETY: null, or leaked there.
    unsafe { FIRST.load(Ordering::Acquire).as_ref() }
}

/// Looks for a copy that was loaded before this one. It stays for good then, as this one does.
pub(crate) fn find_first() -> Option<&'static First> {
    if let Some(first) = first() {
        return Some(first);
    }
    // SAFETY: zero-ended; loads nothing, but finds the first of the name that is there. Null: this copy has lost its name.
    let handle = unsafe { dlopen(c"libmmu_notifier_capi.so".as_ptr(), RTLD_NOW | RTLD_NOLOAD) };
    if handle.is_null() {
        return None;
    }
    let function = |name: &CStr| {
        // SAFETY: a handle that is open, and a zero-ended name.
        let function = unsafe { dlsym(handle, name.as_ptr()) };
        (!function.is_null()).then_some(function)
    };
    let first = || {
        let install = function(c"mmu_notifier_install")?;
        // An exported function of ours has the address of the first one of that name: ask for something private.
        if object_of(install)?.base == object_of((&raw const HEAP).cast())?.base {
            return None;
        }
        // SAFETY: functions of these names have these types: the header is stable.
        Some(unsafe {
            First {
                install: transmute::<*const c_void, extern "C" fn() -> c_int>(install),
                uninstall: transmute::<*const c_void, extern "C" fn() -> c_int>(function(
                    c"mmu_notifier_uninstall",
                )?),
                subscribe: transmute::<*const c_void, Subscribe>(function(c"mmu_notifier_subscribe")?),
                subscribe_refuser: transmute::<*const c_void, Subscribe>(function(
                    c"mmu_notifier_subscribe_refuser",
                )?),
                unsubscribe: transmute::<*const c_void, unsafe extern "C" fn(*mut c_void)>(function(
                    c"mmu_notifier_unsubscribe",
                )?),
                invalidate: transmute::<
                    *const c_void,
                    unsafe extern "C" fn(usize, usize, c_int, c_int, Option<Change>, *mut c_void) -> c_int,
                >(function(c"mmu_notifier_invalidate")?),
                quarantined: transmute::<*const c_void, unsafe extern "C" fn(*mut usize) -> usize>(function(
                    c"mmu_notifier_quarantined",
                )?),
                call_site: transmute::<*const c_void, extern "C" fn() -> *const c_void>(function(
                    c"mmu_notifier_call_site",
                )?),
                check: transmute::<*const c_void, unsafe extern "C" fn(Option<Problem>, *mut c_void) -> c_int>(
                    function(c"mmu_notifier_check")?,
                ),
            }
        })
    };
    match first() {
        Some(first) => {
            // Release pairs with the Acquire in `first`. Two threads at a time find the same.
            FIRST.store(Box::leak(Box::new(first)), Ordering::Release);
        }
        // SAFETY: the handle of this copy, which stays loaded in any case.
        None => drop(unsafe { dlclose(handle) }),
    }
    self::first()
}

/// Keeps the library that a callback lies in: closing it does not unload it any more. Without that, the next change
/// would call into nothing; and it cannot be let go when the subscription ends, as who ends it may be its own code.
pub(crate) fn keep(callback: *const c_void) {
    let Some(object) = object_of(callback) else { return };
    // SAFETY: the name is the loader's, zero-ended, and stays as long as the object does. Null: the program itself.
    let handle = unsafe { dlopen(object.file, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE) };
    if !handle.is_null() {
        // SAFETY: a handle that is open.
        unsafe { dlclose(handle) };
    }
}
