//! The core through its public interface: one behaviour a test.

mod abandoned;
mod bracket;
mod own_changes;
mod panics;
mod refusal;
mod subscribing;
mod witness;
