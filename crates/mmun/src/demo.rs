//! `mmun demo`: experiments to watch. Each is run when it is asked for; nothing that is shown is written down
//! anywhere.
//!
//! | file | what |
//! | --- | --- |
//! | `pairing.rs` | every start has its end: the experiment and what it comes to |
//! | `pairing/kernel.rs` | the subscribers on a kernel, as the model has it |
//! | `pairing/library.rs` | the subscribers on this library |
//! | `pairing/table.rs` | the result, side by side |
//! | `io_uring.rs` | fixed buffers whose memory changes: the loss, and the cure |
//! | `hole.rs` | a thread that registers memory between the event and the system call |
//! | `hole/timeline.rs` | what two threads do, in order |
//! | `hole/told_once.rs` | a cache with the hole |
//! | `hole/watched.rs` | what the cache without it registers with, so that one sees what it does |
//! | `fixed.rs` | what these two work on |
//! | `oom.rs` | a program that meets its memory limit, four ways |
//! | `oom/group.rs` | its control group |
//! | `oom/program.rs` | the program |
//! | `oom/disk.rs` | fixed buffers of io_uring that refer to its caches |
//! | `oom/memory.rs` | memory that is filled and looked at |
//! | `oom/table.rs` | the result |

mod fixed;
pub mod hole;
pub mod io_uring;
pub mod oom;
pub mod pairing;
