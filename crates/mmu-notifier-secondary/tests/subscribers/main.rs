//! The kernel's own secondary MMUs, seen from outside.

mod gru;
mod memory;
mod mirror;
mod real;
mod stage2;
mod userptr;
