//! The core through its public interface: one behaviour a test.

// UNSAFETY: tells a space what it cannot check: that a frame is gone, that a process was forked.
#![expect(unsafe_code)]

mod abandoned;
mod aging;
mod bracket;
mod getting;
mod handing_over;
mod handover;
mod intervals;
mod own_changes;
mod owner;
mod panics;
mod reading;
mod refusal;
mod relaying;
mod releasing;
mod sharing;
mod stalls;
mod statistics;
mod subscribing;
mod tickets;
mod tlb;
mod tree;
mod unheard;
mod witness;
