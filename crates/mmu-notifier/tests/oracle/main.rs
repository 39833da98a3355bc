//! The core against the model of the repaired kernel, on what FORMAT calls the contract: results, callbacks with their
//! arguments, order where it is promised, who waits for what, which reader must begin anew.
//!
//! | file | what |
//! | --- | --- |
//! | `golden.rs` | the recorded traces of the newest kernel |
//! | `generated.rs` | generated operations |
//! | `oracle.rs` | one operation on both, compared |
//! | `refine.rs` | where the two may and must differ, each difference by name |
//! | `leftout.rs` | what cannot be done here, or could not be compared |
//! | `books.rs` | what is subscribed and open in the core |
//! | `driver.rs` | the core, driven by the model's operations |
//! | `guests.rs` | subscribers that behave as a class of the model says |
//! | `threads.rs` | operations that wait |
//! | `faults.rs` | wrong drivers, which must be noticed |
//! | `seen.rs`, `convert.rs` | the words in which the two are compared |

#![cfg(not(mmu_loom))]
// UNSAFETY: gives threads the names that the operations of a trace have.
#![expect(unsafe_code)]

mod books;
mod convert;
mod driver;
mod faults;
mod generated;
mod golden;
mod guests;
mod leftout;
mod oracle;
mod refine;
mod seen;
mod threads;
