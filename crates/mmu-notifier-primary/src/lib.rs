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
//! | `files`, `file_calls` | calls that map files and calls that change them, so that neither misses the other |
//! | `search`, `flow`, `sites` | finding call sites in files |
//! | `rewrite`, `patch`, `code`, `batch` | rewriting them: when and which; how; machine code; many at a time |
//! | `entry`, `gate`, `tails` | the way into Rust and back; calls of our own; where all calls are made |
//! | `strict`, `masks` | catching what cannot be rewritten; the signal that this takes |
//! | `trapped`, `hot` | where that was; rewriting those places while they run |
//! | `hook`, `bracket`, `light`, `children`, `thread` | what happens around a call; what it has open; where nobody is told; fork, exec and exit; who is calling |
//! | `loadable`, `traced` | programs that load nothing; asking to be traced, so that something is put into them |
//! | `context`, `mode` | whether a call may wait; what makes it more than an ordinary one |
//! | `refused`, `quarantine`, `worker` | what becomes of a call that somebody has refused; memory that is unmapped later, and the thread that does it |
//! | [`userfault`] | changes that no system call of this process makes |
//! | `check` | registrations with the kernel, and changes that make them stale: on request |
//! | `session`, `log` | what is counted and recorded, in memory that a watcher shares |
//! | [`reaper`] | takes a process's own caches away under memory pressure, as the kernel's OOM reaper does |
//! | `written`, `health`, `deliver`, [`probe`] | what was rewritten; whether it still is; whether what somebody wants to be told of can be; making calls to see |
//! | `oracle` | a virtual machine that makes the kernel itself tell of this process's changes, for an audit |
//! | `copy`, `feed`, `fed` | which of several copies of this library is at work; what it does for others; what these do |
//! | `maps`, `pages`, `valgrind`, `primary` | the process's mappings, memory of our own, where none of this works, and how all comes together |

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("mmu-notifier-primary knows Linux on x86-64 only");

mod batch;
mod bracket;
mod call;
mod check;
mod children;
mod code;
mod context;
mod copy;
pub mod decode;
mod deliver;
mod entry;
mod facts;
mod fed;
mod feed;
mod file_calls;
mod files;
mod flow;
mod gate;
mod health;
mod hook;
mod hot;
mod light;
mod loadable;
mod log;
mod maps;
mod masks;
mod mode;
mod oracle;
pub mod pages;
mod patch;
mod primary;
pub mod probe;
mod quarantine;
pub mod reaper;
mod refused;
mod rewrite;
mod search;
pub mod session;
mod sites;
mod strict;
mod tails;
mod thread;
mod traced;
mod trapped;
pub mod userfault;
mod valgrind;
mod worker;
mod written;

pub use call::Syscall;
pub use deliver::{Undeliverable, Wanted};
pub use gate::call as system_call;
pub use health::{Check, CheckError, Fault, FaultKind, Finding, LeadsTo, Unseen};
pub use hot::Traps;
pub use primary::{InstallError, Options, Primary, own_program};
pub use strict::Strict;
