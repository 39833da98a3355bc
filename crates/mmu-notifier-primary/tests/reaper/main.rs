//! The reaper on real memory of this process, with pressure made by the tests, and beside the kernel's own.
//!
//! | file | what |
//! | --- | --- |
//! | `walk.rs` | one walk: order, refusals, what is held, what panics |
//! | `thread.rs` | the thread: alarms, attempts, marks; that it allocates nothing |
//! | `group.rs` | a control group with a limit |
//! | `kernel.rs` | `process_mrelease` takes the same memory in the same order |
//! | `memory.rs`, `own_process.rs` | what these work with |

mod group;
mod kernel;
mod memory;
mod own_process;
mod thread;
mod walk;
