//! What can be delivered in this process, for who must not miss it.
//!
//! A subscriber is told of what the hook sees. [`Primary::subscribe_to`] also takes what he relies on, and if that cannot
//! be delivered here, says so instead of leaving him in good faith.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use mmu_notifier::{Event, Range, Subscriber, Subscription};

use crate::Syscall;
use crate::health::{CheckError, Fault, Unseen};
use crate::maps;
use crate::primary::Primary;
use crate::session::{UNSEEN, UnseenReason};
use crate::strict;

/// What a subscriber relies on being told of, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wanted {
    /// Every change of this kind, by whatever call of this process makes it.
    Event(Event),
    /// What this call changes, from every file that is mapped.
    Call(Syscall),
    /// Every change of what is mapped in this range now, whoever makes it.
    Memory(Range),
    /// Changes by code that the program has made at run time, and that makes system calls itself: in strict mode only.
    MadeCode,
}

/// Why something cannot be delivered in this process, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Undeliverable {
    /// The event is not made by system calls.
    #[error("{} cannot be delivered: no system call of this process makes it; {remedy}", .event.name())]
    Event {
        /// The event.
        event: Event,
        /// What to do.
        remedy: &'static str,
    },
    /// A place that makes the call, or may make it, could not be rewritten.
    #[error(
        "{} cannot be delivered from {}: the call at {:#x} was not rewritten ({}); {}",
        .call.name(), place(.unseen), .unseen.address, why(.unseen.reason), remedy(.unseen.reason)
    )]
    NotRewritten {
        /// The call that was wanted.
        call: Syscall,
        /// The place.
        unseen: Unseen,
    },
    /// There are more places that could not be rewritten than are listed: some may make the call.
    #[error(
        "{} may not be delivered: {total} places in this process could not be rewritten, too many to list", .call.name()
    )]
    TooMany {
        /// The call that was wanted.
        call: Syscall,
        /// How many places.
        total: u64,
    },
    /// A place that makes the call was rewritten, and has been changed since.
    #[error("{} cannot be delivered: {fault}", .call.name())]
    Fault {
        /// The call that was wanted.
        call: Syscall,
        /// What is wrong.
        fault: Box<Fault>,
    },
    /// The memory is that of a file, which other processes can truncate.
    #[error(
        "changes of {range} cannot be delivered: {} is mapped there, and another process that truncates it or punches \
         a hole takes pages away; use anonymous memory or a memfd", .file.display()
    )]
    File {
        /// Where the file is mapped.
        range: Range,
        /// The file.
        file: PathBuf,
    },
    /// The memory is that of a device, whose driver can take it away.
    #[error(
        "changes of {range} cannot be delivered: the driver of {} can take it away without a system call of this \
         process; ask the driver, or use anonymous memory", .device.display()
    )]
    Device {
        /// Where the device is mapped.
        range: Range,
        /// The device.
        device: PathBuf,
    },
    /// Nobody knows where code that is made at run time makes its calls.
    #[error(
        "calls of code that is made at run time cannot be delivered: no file says where they are; \
         have it call the C library, or install with `Strict::Always`"
    )]
    MadeCode,
    /// The announcements are switched off.
    #[error("nothing can be delivered: the hook was uninstalled; install it again first")]
    Uninstalled,
    /// Another copy of this library is at work, and says that it cannot.
    #[error("{text}")]
    Elsewhere {
        /// What it says.
        text: String,
    },
    /// It could not be looked at.
    #[error(transparent)]
    Check(#[from] CheckError),
}

fn place(unseen: &Unseen) -> String {
    match unseen.file.as_os_str().is_empty() {
        true => "memory without a file".to_owned(),
        false => unseen.file.display().to_string(),
    }
}

const fn why(reason: UnseenReason) -> &'static str {
    match reason {
        UnseenReason::Shape => "its instructions leave no room for a jump",
        UnseenReason::UnknownNumber => {
            "its number is not known, and its instructions leave no room for a jump"
        }
        UnseenReason::NoFunction => "it is in no function that the file names",
        UnseenReason::NoPool => "there is no free memory within a jump of it",
        UnseenReason::NotWritable => "the code cannot be written",
        UnseenReason::NoFile => "its file cannot be read",
        UnseenReason::TableFull => "a table was full",
        UnseenReason::ForeignPatch => "somebody else had written over it before",
        UnseenReason::SmallStacks => "the stacks of Go are too small for the hook",
        _ => "its reason is in the session",
    }
}

const fn remedy(reason: UnseenReason) -> &'static str {
    match reason {
        UnseenReason::NotWritable => "allow writing to /proc/self/mem, or mprotect(PROT_WRITE) of code",
        UnseenReason::NoFile => "keep the file where it was mapped from",
        UnseenReason::ForeignPatch => "install this library before whoever did",
        UnseenReason::NoFunction => "build it with unwind tables or symbols",
        _ => "have this code call the C library, or install with `Strict::Always`",
    }
}

impl Wanted {
    /// The calls that have to be seen for it.
    fn calls(self) -> &'static [Syscall] {
        use Syscall::*;
        match self {
            Wanted::Event(Event::Unmap) => &[Mmap, Munmap, Mremap, Brk, Shmat, Shmdt],
            Wanted::Event(Event::Clear) => {
                &[Madvise, ProcessMadvise, RemapFilePages, Ftruncate, Truncate, Fallocate]
            }
            Wanted::Event(Event::ProtectionVma) => &[Mprotect, PkeyMprotect],
            Wanted::Event(Event::ProtectionPage) => &[Fork, Clone, Clone3],
            Wanted::Event(Event::Release) => &[Execve, Execveat, ExitGroup],
            Wanted::Event(Event::SoftDirty | Event::Migrate | Event::Exclusive) => &[],
            Wanted::Call(call) => &Syscall::ALL.as_slice()[call as usize..=call as usize],
            Wanted::Memory(_) => &Syscall::ALL,
            Wanted::MadeCode => &[],
        }
    }
}

impl Primary {
    /// Whether all that is `wanted` is delivered in this process, as it is now. What is not can be told at once;
    /// what somebody breaks later, [`check`](Primary::check) finds.
    ///
    /// Reads files and allocates, as [`check_code`](Primary::check_code).
    ///
    /// # Errors
    ///
    /// The first thing that cannot be delivered.
    pub fn can_deliver(&self, wanted: &[Wanted]) -> Result<(), Undeliverable> {
        if self.is_off() {
            return Err(Undeliverable::Uninstalled);
        }
        if let Some(fed) = &self.fed {
            return wanted.iter().try_for_each(|&wanted| fed.can_deliver(wanted));
        }
        for wanted in wanted {
            match *wanted {
                Wanted::Event(event @ Event::SoftDirty) => {
                    let remedy = "whoever writes to /proc/self/clear_refs must announce it";
                    return Err(Undeliverable::Event { event, remedy });
                }
                Wanted::Event(event @ (Event::Migrate | Event::Exclusive)) => {
                    let remedy =
                        "pin the pages for the device, as this is told to drivers in the kernel only";
                    return Err(Undeliverable::Event { event, remedy });
                }
                Wanted::MadeCode if !strict::is_armed() => return Err(Undeliverable::MadeCode),
                Wanted::Memory(range) => only_ours(&range)?,
                Wanted::Event(_) | Wanted::Call(_) | Wanted::MadeCode => {}
            }
        }
        let check = self.check_code()?;
        for &call in wanted.iter().flat_map(|wanted| wanted.calls()) {
            let may_make = |unseen: &&Unseen| {
                let missed = match unseen.reason {
                    UnseenReason::ManyTraps | UnseenReason::Compat | UnseenReason::Deaf => true,
                    UnseenReason::Anonymous => false,
                    reason if !reason.is_about_code() => false,
                    // In strict mode it is trapped.
                    _ => !strict::is_armed(),
                };
                missed && unseen.call.is_none_or(|other| other == call)
            };
            if let Some(unseen) = check.unseen.iter().find(may_make) {
                return Err(Undeliverable::NotRewritten { call, unseen: unseen.clone() });
            }
            if check.unseen_total > UNSEEN as u64 && !strict::is_armed() {
                return Err(Undeliverable::TooMany { call, total: check.unseen_total });
            }
            if let Some(fault) = check.faults.iter().find(|fault| fault.may_make(call)) {
                return Err(Undeliverable::Fault { call, fault: Box::new(fault.clone()) });
            }
        }
        Ok(())
    }

    /// Subscribes who relies on being told of all that is `wanted`: to every change of this process, as
    /// [`subscribe`](mmu_notifier::AddressSpace::subscribe) does, or not at all.
    ///
    /// # Errors
    ///
    /// See [`can_deliver`](Primary::can_deliver); then nobody is subscribed.
    ///
    /// ```
    /// use mmu_notifier::{Change, Event, Subscriber};
    /// use mmu_notifier_primary::{Options, Primary, Syscall, Undeliverable, Wanted};
    ///
    /// struct Cache;
    /// impl Subscriber for Cache {
    ///     fn start(&self, _: &Change) {}
    ///     fn end(&self, _: &Change) {}
    /// }
    ///
    /// let primary = Primary::install(&Options::default())?;
    /// let wanted = [Wanted::Event(Event::Unmap), Wanted::Call(Syscall::Madvise)];
    /// let subscription = primary.subscribe_to(&wanted, Cache)?;
    ///
    /// let error = primary.subscribe_to(&[Wanted::Event(Event::Migrate)], Cache).unwrap_err();
    /// assert!(matches!(error, Undeliverable::Event { event: Event::Migrate, .. }), "{error}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn subscribe_to<S: Subscriber + 'static>(
        &self,
        wanted: &[Wanted],
        subscriber: S,
    ) -> Result<Subscription, Undeliverable> {
        // First subscribed: what is loaded meanwhile is seen by the hook or noted as not seen.
        let subscription = self.space().subscribe(subscriber);
        self.can_deliver(wanted)?;
        Ok(subscription)
    }
}

/// Whether nobody but this process can change what is mapped in `range`.
fn only_ours(range: &Range) -> Result<(), Undeliverable> {
    let mut found = None;
    let looked = maps::for_each(|mapping| {
        if found.is_some() || mapping.inode == 0 || !mapping.range.overlaps(range) {
            return;
        }
        let path = mapping.path;
        // Made by this process, or by who has handed it the descriptor.
        if [&b"/memfd:"[..], b"/SYSV", b"/dev/zero"].iter().any(|name| path.starts_with(name)) {
            return;
        }
        let file = PathBuf::from(OsStr::from_bytes(path));
        let is_device = path.starts_with(b"/dev/") && !path.starts_with(b"/dev/shm/");
        found = Some(if is_device || path.starts_with(b"anon_inode:") {
            Undeliverable::Device { range: mapping.range, device: file }
        } else {
            Undeliverable::File { range: mapping.range, file }
        });
    });
    looked.map_err(|errno| CheckError::Maps { errno: errno.0 })?;
    found.map_or(Ok(()), Err)
}
