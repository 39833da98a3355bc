//! Fixed buffers against the real kernel.
//!
//! | file | what |
//! | --- | --- |
//! | `adapter.rs`, `memlock.rs`, `allocations.rs` | the adapter by itself; what is used up, refused, released, allocated |
//! | `rows.rs` | what may happen to registered memory |
//! | `harm.rs` | each row with the registration kept: the harm is there, on this kernel |
//! | `cure.rs` | each row through the cache: the data is right |
//! | `by_hand.rs`, `intercepted.rs` | the cure with changes in brackets, and with plain system calls of an intercepted process |
//! | `storm.rs`, `pins.rs` | the same under load; and with nothing but registrations in use to keep changes away |
//! | `waiting.rs`, `faults.rs` | changes that wait for operations under way; and those that must not wait |
//!
//! Where there is no io_uring, or the kernel does not know a call, a test says `SKIPPED: ...` on standard error and passes.

mod adapter;
mod allocations;
mod by_hand;
mod child;
mod cure;
mod faults;
mod harm;
mod intercepted;
mod lab;
mod memlock;
mod memory;
mod own_process;
mod pins;
mod rows;
mod storm;
mod waiting;
mod world;
