//! Under AddressSanitizer.
//!
//! Its run-time library insists on being the first one that is loaded, since what is loaded before might define `malloc`
//! and the like. A preloaded object is before it, and this one defines nothing of the kind: so it says, in the way that the
//! library offers for defaults, that this need not be checked. A program that has defaults of its own (it defines the
//! function too) is asked instead of this object, and must then say so itself.

// UNSAFETY: defines a symbol that another library calls.
#![expect(unsafe_code)]

use core::ffi::{CStr, c_char};

/// Called by `libasan` before anything is initialised: returns a constant.
#[unsafe(no_mangle)]
extern "C" fn __asan_default_options() -> *const c_char {
    const OPTIONS: &CStr = c"verify_asan_link_order=0";
    OPTIONS.as_ptr()
}
