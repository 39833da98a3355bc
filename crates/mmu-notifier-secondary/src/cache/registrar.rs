//! What memory is registered with: the one trait that an adapter writes.

use std::io;
use std::sync::Arc;

use mmu_notifier::{Event, PAGE_SIZE, Range};

/// What the device does with the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Access {
    /// It reads: the memory is sent, written to a file.
    Read = 1,
    /// It writes: the memory is received into, read into from a file.
    Write = 2,
    /// Both.
    ReadWrite = 3,
}

impl Access {
    /// Whether who may do this may do `other`, too.
    ///
    /// ```
    /// use mmu_notifier_secondary::cache::Access;
    /// assert!(Access::ReadWrite.includes(Access::Read));
    /// assert!(!Access::Write.includes(Access::Read));
    /// ```
    pub const fn includes(self, other: Access) -> bool {
        self as u8 & other as u8 == other as u8
    }

    /// Both this and `other`.
    ///
    /// ```
    /// use mmu_notifier_secondary::cache::Access;
    /// assert_eq!(Access::Read.with(Access::Write), Access::ReadWrite);
    /// ```
    pub const fn with(self, other: Access) -> Access {
        Access::from_bits(self as u64 | other as u64)
    }

    pub(super) const fn from_bits(bits: u64) -> Access {
        match bits & 3 {
            1 => Access::Read,
            2 => Access::Write,
            _ => Access::ReadWrite,
        }
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Access::Read => "reading",
            Access::Write => "writing",
            Access::ReadWrite => "reading and writing",
        })
    }
}

/// What a change of memory that is in use must wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// For nothing: a registration keeps its pages, so who still uses it does no harm to others. It is deregistered
    /// when the last one lets go of it.
    ForNothing,
    /// Until nobody uses the registration any more and it is deregistered: for devices that would write to pages that
    /// are somebody else's by then. A change that must not wait is refused.
    UntilUnused,
}

/// Registers memory with a device, or with whatever looks at memory behind the back of the page tables.
///
/// No lock of the cache is held around any of these calls. They run on whatever thread asks for memory, changes it, or
/// lets go of it: [`deregister`](Registrar::deregister) and [`try_deregister`](Registrar::try_deregister) also inside
/// the change itself, which may come from inside an allocator. A call that panics is reported
/// ([`GetError::Panicked`](super::GetError::Panicked), [`Stats::panics`](super::Stats)); the cache stays as good as it was.
///
/// ```
/// use mmu_notifier::Range;
/// use mmu_notifier_secondary::cache::{Access, RegisterError, Registrar};
///
/// /// Locks memory, so that a device without page faults can reach it.
/// struct Locked;
///
/// impl Registrar for Locked {
///     type Handle = ();
///
///     fn register(&self, range: Range, _: Access) -> Result<(), RegisterError> {
///         // SAFETY: locking memory changes nothing that Rust knows of.
///         match unsafe { libc::mlock(range.start() as *const _, range.len()) } {
///             0 => Ok(()),
///             _ => Err(std::io::Error::last_os_error().into()),
///         }
///     }
///
///     fn deregister(&self, range: Range, (): ()) {
///         // SAFETY: as above.
///         unsafe { libc::munlock(range.start() as *const _, range.len()) };
///     }
/// }
/// # Locked.register(Range::new(0x1000, 0x2000)?, Access::Read).unwrap_err();
/// # Ok::<(), mmu_notifier::RangeError>(())
/// ```
pub trait Registrar: Send + Sync + 'static {
    /// What names a registration to the device: a key, a slot of a table.
    type Handle: Send + Sync + 'static;

    /// Registers `range`, which is aligned to [`alignment`](Registrar::alignment) at both ends and not longer than
    /// [`max_len`](Registrar::max_len). May wait and allocate.
    ///
    /// # Errors
    ///
    /// [`RegisterError::Exhausted`] makes the cache evict something and try again.
    fn register(&self, range: Range, access: Access) -> Result<Self::Handle, RegisterError>;

    /// Ends a registration that nobody uses any more. May wait.
    ///
    /// Inside a blocking change, so it should not allocate or free: the allocator may be in the middle of that change.
    fn deregister(&self, range: Range, handle: Self::Handle);

    /// The same at a moment that must not wait, not for a lock and not for memory.
    ///
    /// # Errors
    ///
    /// The handle, if it would have to: then it is deregistered later. The default always says so.
    fn try_deregister(&self, range: Range, handle: Self::Handle) -> Result<(), Self::Handle> {
        let _ = range;
        Err(handle)
    }

    /// What a change must wait for if the memory is in use. Asked once, when the cache is made.
    fn wait(&self) -> Wait {
        Wait::ForNothing
    }

    /// A change waits for those who use this registration, and does again after each [patience](super::Options::patience):
    /// work that can be called off should be. Should not wait for long.
    ///
    /// The change may come from inside an allocator: whoever uses the registration must come to its end without it.
    fn hurry(&self, range: Range, handle: &Self::Handle) {
        let _ = (range, handle);
    }

    /// Whether registrations stay good over a change because of `event`. The default says no, of every event.
    ///
    /// Who pins pages for long (`FOLL_LONGTERM`) may say yes to [`Event::ProtectionPage`]: what `fork` does to the
    /// parent leaves pinned pages where they are.
    fn survives(&self, event: Event) -> bool {
        let _ = event;
        false
    }

    /// What a registration for `access` is good for: at least that. The default says just that; who registers for
    /// writing in any case says so, and nothing is registered twice for more rights.
    fn grants(&self, access: Access) -> Access {
        access
    }

    /// What both ends of a registration are multiples of, in bytes: a power of two, at least 1. Requests are
    /// widened to it. Asked once, when the cache is made.
    fn alignment(&self) -> usize {
        PAGE_SIZE
    }

    /// The longest registration, in bytes. Asked once, when the cache is made.
    fn max_len(&self) -> usize {
        usize::MAX
    }
}

impl<R: Registrar> Registrar for Arc<R> {
    type Handle = R::Handle;

    fn register(&self, range: Range, access: Access) -> Result<R::Handle, RegisterError> {
        (**self).register(range, access)
    }

    fn deregister(&self, range: Range, handle: R::Handle) {
        (**self).deregister(range, handle);
    }

    fn try_deregister(&self, range: Range, handle: R::Handle) -> Result<(), R::Handle> {
        (**self).try_deregister(range, handle)
    }

    fn wait(&self) -> Wait {
        (**self).wait()
    }

    fn hurry(&self, range: Range, handle: &R::Handle) {
        (**self).hurry(range, handle);
    }

    fn survives(&self, event: Event) -> bool {
        (**self).survives(event)
    }

    fn grants(&self, access: Access) -> Access {
        (**self).grants(access)
    }

    fn alignment(&self) -> usize {
        (**self).alignment()
    }

    fn max_len(&self) -> usize {
        (**self).max_len()
    }
}

/// Registers memory with nothing: for who wants to know by a [token](super::Registration::token) whether memory has changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unregistered;

impl Registrar for Unregistered {
    type Handle = ();

    fn register(&self, _: Range, _: Access) -> Result<(), RegisterError> {
        Ok(())
    }

    fn deregister(&self, _: Range, (): ()) {}

    fn try_deregister(&self, _: Range, (): ()) -> Result<(), ()> {
        Ok(())
    }
}

/// Memory was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Something that other registrations take up is used up: locked memory, slots of a table.
    #[error("nothing more can be registered: {0}")]
    Exhausted(io::Error),
    /// Anything else.
    #[error("{0}")]
    Failed(io::Error),
}

impl From<io::Error> for RegisterError {
    /// `ENOMEM` is [`Exhausted`](RegisterError::Exhausted): so the kernel says that `RLIMIT_MEMLOCK` is reached.
    fn from(error: io::Error) -> RegisterError {
        match error.raw_os_error() {
            Some(libc::ENOMEM) => RegisterError::Exhausted(error),
            _ => RegisterError::Failed(error),
        }
    }
}
