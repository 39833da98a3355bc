//! A registration cache that cannot return a stale entry.

mod error;
mod registrar;

pub use error::{GetError, Rights};
pub use registrar::{Access, RegisterError, Registrar, Wait};
