//! Errors.

use core::fmt;

/// A non-blocking change was refused: somebody would have had to wait.
///
/// The change must not take place. Everybody who was told of its start has been told of its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "EAGAIN")]
pub struct WouldBlock;

impl fmt::Display for WouldBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a subscriber would have to wait, and the change does not allow it")
    }
}

impl core::error::Error for WouldBlock {}
