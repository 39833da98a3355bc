//! `stage2` against the real KVM: a guest and its model with the same memory, which is changed in every way.
//!
//! | file | what |
//! | --- | --- |
//! | `guest.rs`, `events.rs` | the kernel: a guest, its pages in the second-stage table, and what its MMU notifier is told |
//! | `memory.rs`, `rig.rs` | memory that changes, announced; and both guests of it |
//! | `agree.rs` | after each change both have the same pages |
//! | `memslots.rs` | what is refused, and why; memslots that come and go; dirty logs |
//! | `beside.rs` | guests that run while their memory changes |
//!
//! Where there is no KVM, or no tracepoint, a test says `SKIPPED: ...` on standard error and passes.

mod agree;
mod beside;
mod events;
mod guest;
mod memory;
mod memslots;
mod rig;
