//! primary
mod call;
pub mod decode;
pub mod session;

pub use call::Syscall;
