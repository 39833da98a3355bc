//! mmu-notifier
mod event;
mod range;

pub use event::{Blocking, Change, Event};
pub use range::{PAGE_SIZE, Range, RangeError};
