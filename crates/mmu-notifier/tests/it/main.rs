//! The core through its public interface: one behaviour a test.

mod abandoned;
mod bracket;
mod panics;
mod refusal;
mod subscribing;
mod unheard;
mod witness;
