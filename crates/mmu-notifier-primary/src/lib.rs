//! primary
mod call;
mod children;
pub mod decode;
mod entry;
mod facts;
mod flow;
mod gate;
mod hook;
mod log;
mod maps;
pub mod pages;
mod patch;
mod primary;
pub mod search;
pub mod session;
mod sites;
mod thread;

pub use call::Syscall;
pub use primary::{InstallError, Options, Primary, own_program};
