//! Fixed buffers of `io_uring`: memory that the kernel has pinned once and finds by a number.
//!
//! A fixed buffer saves the kernel from looking up and pinning pages at each operation, which is up to half of the
//! processor time of large direct I/O. But it keeps the *pages* it was made with. After `munmap` and `mmap`, after
//! `MADV_DONTNEED`, `mremap` or a truncation of the file behind it, other pages are at that address: `READ_FIXED` then
//! reports success and the data is gone, `WRITE_FIXED` sends what was there before. [`FixedBuffers`] registers through
//! a [`Cache`](crate::cache::Cache), which forgets a buffer before its memory changes.
//!
//! ```
//! use io_uring::{IoUring, opcode::ReadFixed, types::Fd};
//! use mmu_notifier::{AddressSpace, Range};
//! use mmu_notifier_secondary::cache::{Access, Cache, Options};
//! use mmu_notifier_secondary::io_uring::FixedBuffers;
//! use std::os::fd::AsRawFd;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let Ok(mut ring) = IoUring::new(8) else { return Ok(()) };
//! # /*
//! let mut ring = IoUring::new(8)?;
//! # */
//! // Of a live process: `mmu_notifier_primary::Primary::install(..)?.space()`.
//! let space = AddressSpace::new();
//! let cache = Cache::new(&space, FixedBuffers::new(&ring, 64)?, Options::default());
//!
//! let file = std::fs::File::open("/proc/self/exe")?;
//! let mut buffer = vec![0u8; 8192];
//! // The first time this registers; after that it is found, without a lock.
//! let registration = cache.get(Range::with_len(buffer.as_ptr() as usize, buffer.len())?, Access::ReadWrite)?;
//! let slot = registration.handle().index();
//! let read = ReadFixed::new(Fd(file.as_raw_fd()), buffer.as_mut_ptr(), 8192, slot).build().user_data(1);
//! // SAFETY: the buffer lives, and nobody looks at it, until the completion below.
//! unsafe { ring.submission().push(&read)? };
//! ring.submit_and_wait(1)?;
//! let done = ring.completion().find(|done| !cache.registrar().released(done.user_data()));
//! drop(registration); // not before the completion
//! assert_eq!(done.map(|done| done.result()), Some(8192));
//! assert_eq!(&buffer[1..4], b"ELF");
//! # Ok(())
//! # }
//! ```
//!
//! # Who owns what
//!
//! The ring stays its user's, with both of its queues. [`FixedBuffers`] has a file descriptor of its own for the ring, only
//! changes the ring's table of buffers, and does so on whatever thread changes memory. The ring lives until both are gone.
//!
//! *Completions of releases.* A buffer that is taken out of the table is unpinned when the last operation with it is
//! done. The kernel says when, by a completion of its own ([`Releases::Told`]): the loop that reads completions gives each
//! `user_data` to [`FixedBuffers::released`] and passes over those that it takes. They count for `submit_and_wait`.
//!
//! *Submitting.* The kernel holds the ring's lock while it starts operations, also over page faults, and a buffer is
//! taken out under that lock. Hold [`FixedBuffers::submitting`] while you submit, and a change that must not wait does
//! not: it leaves the buffer in the table, out of reach, and takes it out later. Without, such a change may wait for the page
//! faults of whoever submits.
//!
//! # Which memory
//!
//! Whatever can be written and pinned: anonymous memory, `memfd`s, `tmpfs`, huge pages, private mappings of files. The kernel
//! pins for writing whatever the buffer is used for, so read-only memory cannot be registered, not even to send it;
//! and what is registered is good for any access. Shared mappings of files on a disk cannot be pinned. What cannot be registered can be used by the operations that take an
//! address: `READ`, `WRITE`.
//!
//! | file | what |
//! | --- | --- |
//! | `slots.rs` | which slots of the table are free |
//! | `slot.rs` | a slot, and which operations use it |
//! | `operation.rs` | a registration that one operation uses |
//! | `tag.rs` | how a completion says that a buffer was released |
//! | `home.rs` | whether this is the process that made the ring |
//! | `error.rs` | why there are no fixed buffers, and why memory is not registered |

// UNSAFETY: makes a second handle to a ring, and hands addresses to the kernel.
#![expect(unsafe_code)]

mod error;
mod home;
mod operation;
mod slot;
mod slots;
mod tag;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, TryLockError};

use ::io_uring::types::{CancelBuilder, Timespec};
use ::io_uring::{IoUring, cqueue, squeue};
use mmu_notifier::{Event, Range};

use crate::cache::{Access, RegisterError, Registrar, Wait};
pub use error::SetupError;
use home::Home;
pub use operation::Operation;
pub use slot::Slot;
use slots::Slots;

/// The most slots that a ring's table has.
pub const MAX_SLOTS: u16 = 1 << 14;

/// The longest fixed buffer, in bytes: 1 GiB.
pub const MAX_LEN: usize = 1 << 30;

/// How fixed buffers are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Slots in the ring's table, 1 to [`MAX_SLOTS`]. A registration takes one until it is deregistered, so there
    /// should be a few more than the cache has entries: for those whose memory has changed and that are still in use.
    pub slots: u16,
    /// What a change must wait for if an operation is under way in its memory. The default is
    /// [`Wait::ForNothing`]: the operation ends in the pages that it began with, which are nobody else's.
    ///
    /// With [`Wait::UntilUnused`] those [operations](Operation) that wait for something (a pipe, a socket) are cancelled and
    /// the others waited for. As the change that waits may come from inside the allocator, whoever holds a registration
    /// must then come to its end without allocating or freeing.
    pub wait: Wait,
    /// Whether the kernel says when a buffer is released.
    pub releases: Releases,
}

impl Default for Options {
    fn default() -> Options {
        Options { slots: 1024, wait: Wait::ForNothing, releases: Releases::Told }
    }
}

/// Whether the kernel says when a buffer is released, which is after its last operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Releases {
    /// It posts a completion, for [`FixedBuffers::released`].
    Told,
    /// It does not: for rings whose completions are read by code that would not know what to do with them.
    Untold,
}

/// The table of fixed buffers of one ring: a [`Registrar`] that makes any memory a fixed buffer.
///
/// Nothing is allocated after it is made but messages of errors. Dropping it takes all buffers out of the table, and the
/// completions of their releases [come](FixedBuffers::is_release) after that.
///
/// A change of memory takes a buffer out by one system call, which unpins its pages. A registration is one system call, too,
/// which pins each page, and faults in those that have not been touched yet.
pub struct FixedBuffers {
    /// A handle of our own. Its queues are never touched.
    ring: IoUring,
    slots: Slots,
    options: Options,
    home: Home,
    /// Read: who may be in a call that holds the ring's lock for long. Written: who must not wait for that.
    submitting: RwLock<()>,
    /// Bytes in the table, and those that the kernel has not said yet to be released.
    pinned: AtomicU64,
    /// The latter alone.
    unreleased: AtomicU64,
}

impl FixedBuffers {
    /// Gives `ring` a table of `slots` empty slots.
    ///
    /// # Errors
    ///
    /// See [`SetupError`]. The ring is as before.
    pub fn new<S, C>(ring: &IoUring<S, C>, slots: u16) -> Result<FixedBuffers, SetupError>
    where
        S: squeue::EntryMarker,
        C: cqueue::EntryMarker,
    {
        FixedBuffers::with(ring, Options { slots, ..Options::default() })
    }

    /// The same, made to order.
    ///
    /// # Errors
    ///
    /// See [`SetupError`]. The ring is as before.
    ///
    /// ```
    /// use io_uring::IoUring;
    /// use mmu_notifier_secondary::io_uring::{FixedBuffers, SetupError};
    ///
    /// # let Ok(ring): Result<IoUring, _> = IoUring::builder().setup_single_issuer().build(8) else { return Ok(()) };
    /// # /*
    /// let ring: IoUring = IoUring::builder().setup_single_issuer().build(8)?;
    /// # */
    /// let refused = FixedBuffers::new(&ring, 64).unwrap_err();
    /// assert!(matches!(refused, SetupError::SingleIssuer));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn with<S, C>(ring: &IoUring<S, C>, options: Options) -> Result<FixedBuffers, SetupError>
    where
        S: squeue::EntryMarker,
        C: cqueue::EntryMarker,
    {
        let params = ring.params();
        if !(1..=MAX_SLOTS).contains(&options.slots) {
            return Err(SetupError::Slots { slots: options.slots });
        }
        if params.is_setup_single_issuer() {
            return Err(SetupError::SingleIssuer);
        }
        if !params.is_feature_resource_tagging() {
            return Err(SetupError::TooOld);
        }
        // SAFETY: the descriptor is open as long as `ring` is borrowed.
        let descriptor = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        let descriptor = descriptor.try_clone_to_owned().map_err(SetupError::Memory)?;
        // SAFETY: the descriptor is ours, and of a ring that the kernel has filled in these parameters for.
        let ring = unsafe { IoUring::from_fd(descriptor.into_raw_fd(), params.clone()) };
        let ring = ring.map_err(SetupError::Memory)?;
        ring.submitter().register_buffers_sparse(options.slots.into()).map_err(SetupError::of_table)?;
        Ok(FixedBuffers {
            ring,
            slots: Slots::new(options.slots),
            options,
            home: Home::new(),
            submitting: RwLock::new(()),
            pinned: AtomicU64::new(0),
            unreleased: AtomicU64::new(0),
        })
    }

    /// To be held while operations are submitted, but not while one waits for completions: until then, changes that must
    /// not wait leave the table alone.
    ///
    /// Several threads may hold it, one may hold it twice, and change memory meanwhile. What it cannot keep out is what the
    /// kernel does on its own: the thread of a ring with `IORING_SETUP_SQPOLL` (there such changes never touch the table), and
    /// operations that it starts again because a file has become ready.
    ///
    /// ```no_run
    /// # fn f(ring: &mut io_uring::IoUring, buffers: &mmu_notifier_secondary::io_uring::FixedBuffers) -> std::io::Result<()> {
    /// {
    ///     let _submitting = buffers.submitting();
    ///     ring.submit()?;
    /// }
    /// ring.submitter().submit_and_wait(1)?; // nothing to submit is left
    /// # Ok(()) }
    /// ```
    pub fn submitting(&self) -> Submitting<'_> {
        // Nobody waits to write it, so one may read it twice. There is no data that a panic could have left half done.
        Submitting { _shared: self.submitting.read().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Whether a completion with this `user_data` says that a buffer was released; then it is no operation's. To be asked
    /// once of each completion that the ring gives.
    ///
    /// Such `user_data` has `0x6d6d` in its upper 16 bits, in which no address and no small number has anything.
    pub fn released(&self, user_data: u64) -> bool {
        let Some(bytes) = tag::bytes(user_data) else { return false };
        // Relaxed: only numbers.
        self.pinned.fetch_sub(bytes, Ordering::Relaxed);
        self.unreleased.fetch_sub(bytes, Ordering::Relaxed);
        true
    }

    /// Whether such `user_data` says that a buffer was released, without counting it: for completions that still come when
    /// the table is gone.
    ///
    /// ```
    /// use mmu_notifier_secondary::io_uring::FixedBuffers;
    /// assert!(!FixedBuffers::is_release(42));
    /// ```
    pub fn is_release(user_data: u64) -> bool {
        tag::bytes(user_data).is_some()
    }

    /// Slots of the table that are in use.
    pub fn in_use(&self) -> usize {
        self.slots.taken(self.options.slots)
    }

    /// Bytes that are pinned for the table: those in it, and those that were taken out and that the kernel has not yet
    /// [said](FixedBuffers::released) to be released. With [`Releases::Untold`], those in it.
    pub fn pinned(&self) -> u64 {
        // Relaxed: only a number.
        self.pinned.load(Ordering::Relaxed)
    }

    /// Bytes that were taken out of the table, and that the kernel has not yet [said](FixedBuffers::released) to be released: an
    /// operation uses them, or the completion that says so has not been read. With [`Releases::Untold`], 0.
    ///
    /// For who frees memory and has to know whether it is free. (Older kernels - 6.1, not 6.18 - release buffers in order: one
    /// operation under way keeps all that are taken out after it began.)
    pub fn unreleased(&self) -> u64 {
        // Relaxed: only a number.
        self.unreleased.load(Ordering::Relaxed)
    }

    fn tag(&self, range: Range) -> u64 {
        match self.options.releases {
            Releases::Told => tag::of(range.len() as u64),
            Releases::Untold => 0,
        }
    }

    fn set(&self, index: u16, base: usize, len: usize, tag: u64) -> io::Result<()> {
        let buffer = libc::iovec { iov_base: base as *mut _, iov_len: len };
        // SAFETY: the kernel pins the pages, so that they stay whatever becomes of the mapping. Whose bytes they are is a
        // question for whoever submits an operation with them.
        unsafe { self.ring.submitter().register_buffers_update(index.into(), &[buffer], Some(&[tag])) }
    }

    /// Takes a buffer out of the table. The slot can be used again at once: operations under way hold the buffer itself.
    fn clear(&self, range: Range, slot: &Slot) {
        let bytes = range.len() as u64;
        // Before, as the kernel may say so at once. Relaxed, here and below: only numbers.
        let is_told = self.options.releases == Releases::Told;
        if is_told {
            self.unreleased.fetch_add(bytes, Ordering::Relaxed);
        }
        // The kernel has no reason to fail; if it finds one, nobody gets the slot again.
        if self.set(slot.index(), 0, 0, 0).is_ok() {
            if !is_told {
                self.pinned.fetch_sub(bytes, Ordering::Relaxed);
            }
            self.slots.give_back(slot.index());
        } else if is_told {
            self.unreleased.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Registrar for FixedBuffers {
    type Handle = Slot;

    fn register(&self, range: Range, _: Access) -> Result<Slot, RegisterError> {
        if !self.home.is_here() {
            return Err(error::forked());
        }
        let index = self.slots.take().ok_or_else(|| error::no_slot(self.options.slots))?;
        let tag = self.tag(range);
        // Pages may have to be faulted in, under the ring's lock.
        let _submitting = self.submitting();
        match self.set(index, range.start(), range.len(), tag) {
            Ok(()) => {
                // Relaxed: only a number.
                self.pinned.fetch_add(range.len() as u64, Ordering::Relaxed);
                Ok(Slot::new(index))
            }
            Err(error) => {
                self.slots.give_back(index);
                Err(error::of_register(range, self.pinned(), error))
            }
        }
    }

    fn deregister(&self, range: Range, slot: Slot) {
        // In a forked child the table is still the parent's.
        if self.home.is_here() {
            let _submitting = self.submitting();
            self.clear(range, &slot);
        }
    }

    fn try_deregister(&self, range: Range, slot: Slot) -> Result<(), Slot> {
        if !self.home.is_here() {
            return Ok(());
        }
        if self.ring.params().is_setup_sqpoll() {
            return Err(slot);
        }
        let _exclusive = match self.submitting.try_write() {
            Ok(exclusive) => exclusive,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(slot),
        };
        self.clear(range, &slot);
        Ok(())
    }

    fn wait(&self) -> Wait {
        self.options.wait
    }

    /// Cancels the slot's [operations](Operation), without waiting for them to end.
    fn hurry(&self, _: Range, slot: &Slot) {
        if self.home.is_here() {
            slot.for_each_operation(|user_data| {
                // Those that cannot be cancelled, or are done already, are waited for.
                let all = CancelBuilder::user_data(user_data).all();
                let _ = self.ring.submitter().register_sync_cancel(Some(Timespec::new()), all);
            });
        }
    }

    /// `fork` and a reset of write tracking leave pinned pages where they are.
    fn survives(&self, event: Event) -> bool {
        matches!(event, Event::ProtectionPage | Event::SoftDirty)
    }

    /// The kernel pins for writing in any case.
    fn grants(&self, _: Access) -> Access {
        Access::ReadWrite
    }

    fn max_len(&self) -> usize {
        MAX_LEN
    }
}

impl Drop for FixedBuffers {
    fn drop(&mut self) {
        if self.home.is_here() {
            // That there is a table is all that it depends on.
            let _ = self.ring.submitter().unregister_buffers();
        }
    }
}

impl std::fmt::Debug for FixedBuffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FixedBuffers")
            .field("ring", &self.ring.as_raw_fd())
            .field("options", &self.options)
            .field("in_use", &self.in_use())
            .field("pinned", &self.pinned())
            .finish_non_exhaustive()
    }
}

/// Operations are being submitted: see [`FixedBuffers::submitting`].
#[derive(Debug)]
#[must_use = "it says that operations are being submitted until it is dropped"]
pub struct Submitting<'a> {
    _shared: RwLockReadGuard<'a, ()>,
}
