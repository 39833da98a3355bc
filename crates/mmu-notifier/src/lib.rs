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
//! # Kinds of subscriber
//!
//! A change may come at a moment when nobody can wait ([`Blocking::Forbidden`]).
//!
//! | | start may refuse then | end | |
//! | --- | --- | --- | --- |
//! | [`Subscriber`] | no | yes | KVM, GRU |
//! | [`Refuser`] | yes | no | i915, Nouveau |
//! | [`Ticketed`] | yes | yes: it consumes what its own start returned | nobody in Linux |
//! | [`IntervalSubscriber`] | yes | no: a [`Ticket`] goes stale | told only of what overlaps its range |
//!
//! In Linux who both refuses and has an end is found out at run time; here it does not compile. [`Aging`] and
//! [`SecondaryTlb`] are asked and told beside changes.
//!
//! # What is promised
//!
//! 1. Every start that returned gets exactly one end, whatever happens: refusal, failure, panic, abandonment.
//! 2. After a refusal nothing remains: everybody who started has been ended, and no interval waits.
//! 3. Starts return before the change begins, ends run after it is done.
//! 4. A subscriber sees both start and end of a change, or neither.
//! 5. After a [`Subscription`] is dropped no callback of it runs.
//! 6. A non-blocking change never waits, and allocates nothing.
//! 7. What an interval's reader installs under a ticket that is not stale is never live inside an open overlapping change.
//! 8. Readers and removers of intervals wait only for overlapping changes (readers of the first one also for changes that
//!    began before it was there).
//! 9. Nobody waits in silence: see [`Options::on_stall`].
//! 10. A change costs two atomic instructions on a cache line that no other thread writes, and two calls a subscriber.

mod aging;
mod caller;
mod error;
mod event;
mod held;
mod interval;
mod invalidation;
mod list;
mod open;
mod range;
mod shared;
mod slot;
mod space;
mod stall;
mod stats;
mod subscriber;
mod sync;
mod ticketed;
mod tlb;
mod tree;
mod unheard;

pub use aging::Aging;
pub use caller::Caller;
pub use error::WouldBlock;
pub use event::{Blocking, Change, Event};
pub use held::OpenChange;
pub use interval::{IntervalSubscriber, IntervalSubscription, Pass, Released, Ticket};
pub use invalidation::{Abandoned, Invalidation};
pub use range::{PAGE_SIZE, Range, RangeError};
pub use shared::Shared;
pub use space::{AddressSpace, Options, Subscription};
pub use stall::{Doing, Holder, Stall, Waiting};
pub use stats::{Longest, Stats};
pub use subscriber::{Refuser, Subscriber};
pub use ticketed::Ticketed;
pub use tlb::SecondaryTlb;
