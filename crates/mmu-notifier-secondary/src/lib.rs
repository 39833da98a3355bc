//! Secondary MMUs: who keeps translations or registrations of memory, and drops them before the memory goes.
//!
//! [`cache`] is a registration cache that cannot return a stale entry. What it registers memory *with* - a device, a
//! ring of `io_uring`, another process - is an adapter's business: [`cache::Registrar`].
//!
//! [`gru`], [`userptr`], [`stage2`] and [`mirror`] are secondary MMUs of the kernel as working state machines, each a template for one of yours;
//! `docs/subscribers.md` compares them. What they look at memory with is a [`device::PageTable`].
//!
//! `io_uring` (behind the feature `io-uring`, which is on) makes memory fixed buffers of a ring.

#[cfg(not(target_os = "linux"))]
compile_error!("mmu-notifier-secondary knows Linux only");

pub mod cache;
pub mod device;
pub mod gru;
#[cfg(feature = "io-uring")]
pub mod io_uring;
pub mod mirror;
pub mod stage2;
pub mod userptr;

mod memory;
mod sync;
