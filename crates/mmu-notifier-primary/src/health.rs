//! Whether what happens to this process's memory is still announced: looked at, and tried.
//!
//! [`Primary::check`] looks at every rewritten call site - is the jump still there, does it still lead to our code? - and
//! then makes memory calls on memory of its own, by way of the C library, and sees whether they are announced before and
//! after. Other libraries that want to know of memory calls overwrite the same functions (UCX, Open MPI), at any time.
//!
//! | file | what |
//! | --- | --- |
//! | `health/sites.rs` | the code, byte by byte |
//! | `health/fault.rs` | what can be wrong with it, in words |
//! | [`probe`](crate::probe) | making calls, and being told of them |

mod fault;
mod sites;

use core::sync::atomic::Ordering;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mmu_notifier::Change;

pub use fault::{Fault, FaultKind, LeadsTo};

use crate::Syscall;
use crate::fed::Fed;
use crate::primary::Primary;
use crate::probe::{self, Outcome, Scope, Watch};
use crate::session::{self, UNSEEN, UnseenReason};

/// What [`Primary::check`] has found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Check {
    /// Rewritten call sites that are as they were written.
    pub intact: usize,
    /// Rewritten call sites whose file is not mapped any more: nobody calls them.
    pub gone: usize,
    /// Rewritten call sites that are not as they were written.
    pub faults: Vec<Fault>,
    /// Memory calls that were made by way of the C library, and whether they were announced.
    pub calls: Vec<Outcome>,
    /// What could not be watched from the beginning, by name, up to 32.
    pub unseen: Vec<Unseen>,
    /// How much that is altogether.
    pub unseen_total: u64,
    /// If another copy of this library is at work, and tells this one: what it finds wrong with itself. (Then there are no sites
    /// here.)
    pub elsewhere: Vec<Finding>,
}

/// Something that another copy of this library has found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What is wrong, in a sentence.
    pub text: String,
    /// Where; 0: at no place.
    pub address: usize,
}

/// Something that could not be watched from the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unseen {
    /// Why.
    pub reason: UnseenReason,
    /// The system call that is made there, if it is known.
    pub call: Option<Syscall>,
    /// Where.
    pub address: usize,
    /// In which file; empty: in none.
    pub file: PathBuf,
}

impl Check {
    /// Whether everything is as it was installed: no fault, and each call that was tried was announced.
    ///
    /// A fault does not have to mean that calls are missed: UCX overwrites `munmap` of the C library, and makes the
    /// system call by the function `syscall`, which is announced. [`calls`](Check::calls) says so.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty() && self.elsewhere.is_empty() && self.calls.iter().all(Outcome::is_right)
    }
}

/// Why [`Primary::check`] could not look.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The mappings of the process cannot be read.
    #[error("cannot read /proc/self/maps: error {errno}; is /proc mounted?")]
    Maps {
        /// The error number.
        errno: i32,
    },
}

impl Primary {
    /// Looks whether the call sites that were rewritten still are, and tries whether memory calls are announced.
    ///
    /// May be repeated at any time. Reads files, allocates, maps and unmaps a few pages, waits for other threads that
    /// check: so not in a callback and not in a signal handler. Subscribers are told of what it does to its own pages.
    ///
    /// # Errors
    ///
    /// [`CheckError`].
    ///
    /// ```
    /// use mmu_notifier_primary::{Options, Primary};
    ///
    /// let primary = Primary::install(&Options::default())?;
    /// let check = primary.check()?;
    /// assert!(check.is_sound(), "{check:#?}");
    /// assert!(check.intact > 10, "the C library has dozens of sites");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn check(&self) -> Result<Check, CheckError> {
        // The probes of two threads would see each other's calls.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let elsewhere = self.fed.as_ref().map_or(Ok(Vec::new()), Fed::check)?;
        Ok(Check { calls: self.try_calls(), elsewhere, ..self.check_code()? })
    }

    /// The first half of [`check`](Primary::check): only looks, makes no call for the sake of it, and so can be done where
    /// the code is in pieces.
    ///
    /// # Errors
    ///
    /// [`CheckError`].
    pub fn check_code(&self) -> Result<Check, CheckError> {
        let looked = sites::look(self).map_err(|errno| CheckError::Maps { errno: errno.0 })?;
        let (unseen, unseen_total) = self.unseen();
        Ok(Check {
            intact: looked.intact,
            gone: looked.gone,
            faults: looked.faults,
            calls: Vec::new(),
            unseen,
            unseen_total,
            elsewhere: Vec::new(),
        })
    }

    /// Memory calls on memory of our own, by the functions of the C library.
    fn try_calls(&self) -> Vec<Outcome> {
        struct Told(Watch);
        impl mmu_notifier::Subscriber for Told {
            fn start(&self, change: &Change) {
                self.0.start(&change.range(), site);
            }
            fn end(&self, change: &Change) {
                self.0.end(&change.range());
            }
        }
        fn site() -> usize {
            Primary::get().and_then(Primary::call_site).unwrap_or(0)
        }
        let told = Arc::new(Told(Watch::new()));
        let subscription = self.space.subscribe(told.clone());
        let shots = probe::SHOTS.iter().filter(|shot| shot.scope == Scope::Memory);
        let outcomes = shots.filter_map(|shot| {
            // Another thread may map something where something has just gone, before it is looked at.
            let mut outcomes = (0..3).map_while(|_| probe::fire(shot, probe::by_libc, &told.0));
            let first = outcomes.next()?;
            if first.is_right() { Some(first) } else { outcomes.find(Outcome::is_right).or(Some(first)) }
        });
        let outcomes = outcomes.collect();
        drop(subscription);
        outcomes
    }

    /// What the search for call sites has noted.
    pub(crate) fn unseen(&self) -> (Vec<Unseen>, u64) {
        let Some(process) = self.log.process() else { return (Vec::new(), 0) };
        let total = process.unseen.load(Ordering::Relaxed);
        // Acquire pairs with the Release of who notes: the entry is complete.
        let reason = |unseen: &session::Unseen| UnseenReason::from_u32(unseen.reason.load(Ordering::Acquire));
        let listed = process.unseen_list.iter().take((total as usize).min(UNSEEN));
        let listed = listed.filter(|unseen| reason(unseen) != UnseenReason::None).map(|unseen| Unseen {
            reason: reason(unseen),
            call: Syscall::from_number(unseen.number.load(Ordering::Relaxed) as usize),
            address: unseen.address.load(Ordering::Relaxed) as usize,
            file: path(&unseen.file),
        });
        (listed.collect(), total)
    }
}

fn path(path: &session::Path) -> PathBuf {
    let len = path.len.load(Ordering::Acquire) as usize;
    let bytes = path.bytes.iter().take(len).map(|byte| byte.load(Ordering::Relaxed)).collect();
    OsString::from_vec(bytes).into()
}
