//! Linux's MMU notifiers for user space: told before pages go and after the change is done.
//!
//! Whoever keeps a copy of a translation or a registration of memory - a registration cache, a device's page
//! table, an emulator's software TLB - is a *secondary MMU*, and must hear of every change of the address space
//! it copies from: **before** it begins, to drop what it has, and **after** it is done, to take up again. Linux has
//! that for its own secondary MMUs (`mm/mmu_notifier.c`); this crate is that protocol as a library.
//!
//! ```
//! use std::sync::Mutex;
//! use std::sync::Arc;
//! use mmu_notifier::{AddressSpace, Change, Event, Range, Subscriber};
//!
//! /// A cache of one translation.
//! #[derive(Default)]
//! struct Tlb(Mutex<Option<(Range, &'static str)>>);
//!
//! impl Subscriber for Tlb {
//!     fn start(&self, change: &Change) {
//!         // The pages are about to go: nothing may be reached through us any more.
//!         self.0.lock().unwrap().take_if(|(range, _)| range.overlaps(&change.range()));
//!     }
//!     fn end(&self, _: &Change) {}
//! }
//!
//! let space = AddressSpace::new();
//! let tlb = Arc::new(Tlb::default());
//! let subscription = space.subscribe(tlb.clone());
//!
//! let page = Range::new(0x1000, 0x2000)?;
//! *tlb.0.lock().unwrap() = Some((page, "frame 7"));
//! space.invalidate(page, Event::Unmap, || {
//!     assert_eq!(*tlb.0.lock().unwrap(), None, "gone before the change begins");
//!     // munmap(...)
//! });
//! # Ok::<(), mmu_notifier::RangeError>(())
//! ```
//!
//! Where the changes come from is not this crate's business: a wrapper of your own calls
//! [`AddressSpace::invalidate`], or `mmu-notifier-primary` does it around every memory system call of the process.
//!
//! # Two kinds of subscriber
//!
//! A change may come at a moment when nobody can wait ([`Blocking::Forbidden`]). A [`Subscriber`] copes with
//! that, and in return is always told of the end. A [`Refuser`] may say [`WouldBlock`], and in return has no
//! end. In Linux who does both is found out at run time; here it does not compile.
//!
//! # What is promised
//!
//! 1. Every start that returned gets exactly one end, whatever happens: refusal, failure, panic, abandonment.
//! 2. After a refusal nothing remains: everybody who started has been ended.
//! 3. Starts return before the change begins, ends run after it is done.
//! 4. A subscriber sees both start and end of a change, or neither.
//! 5. After a [`Subscription`] is dropped no callback of it runs.
//! 6. A non-blocking change never waits, and allocates nothing.
//! 7. A change costs two atomic instructions on a cache line that no other thread writes, and two calls a subscriber.

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
pub use invalidation::Abandoned;
pub use open::OpenChange;
pub use range::{PAGE_SIZE, Range, RangeError};
pub use space::{AddressSpace, Subscription};
pub use subscriber::{Refuser, Subscriber};
