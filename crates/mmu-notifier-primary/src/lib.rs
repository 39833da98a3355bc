//! This Linux process as the primary MMU: every memory system call is announced before and after.
//!
//! [`Primary::install`] finds the system-call instructions of everything that is mapped - libc, the loader,
//! the program, libraries that come later - and rewrites those that make memory calls. From then on each call
//! is decoded into the changes it makes ([`decode`]), which are announced to the process's
//! [`AddressSpace`](mmu_notifier::AddressSpace), made, and announced as done. Nobody has to cooperate: not
//! the program, not its allocator, not its garbage collector.
//!
//! Nothing here knows a subscriber by name.
//!
//! ```no_run
//! use mmu_notifier::{Change, Subscriber};
//! use mmu_notifier_primary::{Options, Primary};
//!
//! struct Print;
//! impl Subscriber for Print {
//!     fn start(&self, change: &Change) { /* drop what you hold of change.range() */ }
//!     fn end(&self, _: &Change) {}
//! }
//!
//! let primary = Primary::install(&Options::default())?;
//! let subscription = primary.space().subscribe(Print);
//! # Ok::<(), mmu_notifier_primary::InstallError>(())
//! ```
//!
//! # Rooms
//!
//! | file | what |
//! | --- | --- |
//! | `call`, `decode`, `facts` | which calls there are, what they change, what their arguments do not say |
//! | `search`, `flow`, `sites` | finding call sites in files |
//! | `patch`, `batch`, `entry`, `gate` | rewriting them; many at a time; the way into Rust and back; the one `syscall` instruction |
//! | `hook`, `light`, `children`, `thread` | what happens around a call; where nobody is told; fork, exec and exit; who is calling |
//! | `session`, `log` | what is counted and recorded, in memory that a watcher shares |
//! | `oracle` | a virtual machine that makes the kernel itself tell of this process's changes, for an audit |
//! | `maps`, `pages`, `primary` | the process's mappings, memory of our own, and how all comes together |

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("mmu-notifier-primary knows Linux on x86-64 only");

mod batch;
mod call;
mod children;
pub mod decode;
mod entry;
mod facts;
mod flow;
mod gate;
mod hook;
mod light;
mod log;
mod maps;
mod oracle;
pub mod pages;
mod patch;
mod primary;
mod search;
pub mod session;
mod sites;
mod thread;

pub use call::Syscall;
pub use primary::{InstallError, Options, Primary, own_program};
