//! The shared object: the hook of a process, for `mmun` to preload and for C programs to link.

pub mod alone;
pub mod check;
mod heap;
mod loader;
mod preload;
mod sanitizer;
pub mod subscribe;
#[cfg(panic = "abort")]
mod unwind;
