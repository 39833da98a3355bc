//! The core through its public interface: one behaviour a test.

mod abandoned;
mod aging;
mod bracket;
mod handing_over;
mod intervals;
mod own_changes;
mod owner;
mod panics;
mod reading;
mod refusal;
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
