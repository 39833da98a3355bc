//! The functions of `include/mmu_notifier.h` that ask about the hook itself.

// UNSAFETY: calls back through a pointer of the program's.
#![expect(unsafe_code)]

use core::ffi::{c_char, c_int, c_void};
use core::ptr::null;
use std::ffi::CString;

use mmu_notifier_primary::Primary;

const EACCES: c_int = 13;
const ENODEV: c_int = 19;

type Problem = unsafe extern "C" fn(*const c_char, *const c_void, *mut c_void);

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn mmu_notifier_call_site() -> *const c_void {
    Primary::get().and_then(Primary::call_site).map_or(null(), |site| site as *const c_void)
}

/// See the header.
///
/// # Safety
///
/// `problem` is null or a function that may be called with `context`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmu_notifier_check(problem: Option<Problem>, context: *mut c_void) -> c_int {
    let Some(primary) = Primary::get() else { return -ENODEV };
    let Ok(check) = primary.check() else { return -EACCES };
    let faults = check.faults.iter().map(|fault| (fault.to_string(), fault.address));
    let missed = check.calls.iter().filter(|call| !call.is_right()).map(|call| (call.to_string(), 0));
    let elsewhere = check.elsewhere.iter().map(|finding| (finding.text.clone(), finding.address));
    let mut count = 0;
    for (text, address) in faults.chain(missed).chain(elsewhere) {
        count += 1;
        // A path may hold anything but a zero.
        if let (Some(problem), Ok(text)) = (problem, CString::new(text)) {
            // SAFETY: by the caller's promise.
            unsafe { problem(text.as_ptr(), address as *const c_void, context) };
        }
    }
    count
}
