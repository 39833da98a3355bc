//! Secondary MMUs: who keeps translations or registrations of memory, and drops them before the memory goes.
//!
//! [`cache`] is a registration cache that cannot return a stale entry. What it registers memory *with* - a device, a
//! ring of `io_uring`, another process - is an adapter's business: [`cache::Registrar`].

#[cfg(not(target_os = "linux"))]
compile_error!("mmu-notifier-secondary knows Linux only");

pub mod cache;

mod memory;
mod sync;
