//! Linux's MMU notifiers for user space.

mod caller;
mod error;
mod event;
mod invalidation;
mod list;
mod open;
mod range;
mod space;
mod subscriber;
mod sync;

pub use caller::Caller;
pub use error::WouldBlock;
pub use event::{Blocking, Change, Event};
pub use open::OpenChange;
pub use range::{PAGE_SIZE, Range, RangeError};
pub use space::{AddressSpace, Subscription};
pub use subscriber::{Refuser, Subscriber};
