//! Tests.
mod golden;
