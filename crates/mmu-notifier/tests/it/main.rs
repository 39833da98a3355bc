//! The core through its public interface: one behaviour a test.

mod abandoned;
mod bracket;
mod getting;
mod handover;
mod panics;
mod refusal;
mod subscribing;
mod witness;
