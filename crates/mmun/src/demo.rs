//! `mmun demo`: experiments to watch. Each is run when it is asked for; nothing that is shown is written down
//! anywhere.
//!
//! | file | what |
//! | --- | --- |
//! | `pairing.rs` | every start has its end: the experiment and what it comes to |
//! | `pairing/kernel.rs` | the subscribers on a kernel, as the model has it |
//! | `pairing/library.rs` | the subscribers on this library |
//! | `pairing/table.rs` | the result, side by side |

pub mod pairing;
