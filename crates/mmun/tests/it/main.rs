//! `mmun`, from the outside: real programs under `mmun run`, held against what `strace` saw; traces and
//! experiments (`replay.rs`, `demo.rs`).
//!
//! A test that needs a program this machine has not says `SKIPPED: ...` on standard error and passes.
//! What a failing test leaves behind is in a directory of its name under `target/tmp`.

mod alone;
mod audit;
mod behave;
mod check;
mod command;
mod demo;
mod doctor;
mod hook;
mod launch;
mod limits;
mod matrix;
mod peace;
mod program;
mod replay;
mod shell;
mod signals;
mod started;
mod strace;
mod strict;
mod truth;
mod twelve;
