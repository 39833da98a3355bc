//! userfaultfd as a net: changes of memory that no system call of this process makes.
//!
//! A `madvise` that `io_uring` makes comes from a thread of the kernel, which no rewritten site and no [strict
//! mode](crate::Strict) sees. But the kernel tells whoever has [registered](Net::register) memory with userfaultfd
//! of everything that unmaps, moves or discards it, and holds up whoever does it until that has been *read*. Nothing is
//! protected for this, so no page fault takes longer.
//!
//! # Pending
//!
//! Held up until it is read, not until it is obeyed: a caller that returns may find memory of which nobody has been
//! told. So whoever looks something up after such a call says [`settle`](Net::settle) first:
//!
//! ```text
//! caller             munmap -------- (waits) --------------> returns   settle: waits ------> looks up
//! listener           poll:  pending = 1   read  -> announced: start, end   pending = 0
//! ```
//!
//! `pending` is set *before* reading. So when a call has returned, it is set, or its change has been announced.
//!
//! The listener announces without waiting, and asks again until nobody refuses; meanwhile it goes on reading, as everybody
//! waits for it. It allocates nothing and takes no lock: who is held up may hold any.
//!
//! # What a net does not catch
//!
//! * **It is told late.** Unmaps and moves are told of when they are done. What lies in between is not announced, but for
//!   system calls of this process that are bracketed: those are announced before, as always, and once more by the net.
//! * **It is told early.** Discarded pages (`MADV_DONTNEED`, `MADV_REMOVE`, `MADV_FREE`) go *after* the caller was let go. They are
//!   announced at once, at each [`settle`](Net::settle) within a tenth of a second, and once more after that. Who
//!   looks something up in between without settling may get pages that are about to go.
//! * **It is not told** of `mprotect`, `MADV_GUARD_INSTALL`, `MADV_PAGEOUT`, `shmdt`, holes in files and truncation of files, copy on
//!   write, fork and exec.
//! * What is mapped over registered memory is not registered. A forked child has no net.
//! * Memory can be in one net only: the kernel says `EBUSY` if another userfaultfd has it.

// UNSAFETY: system calls that fill structures.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::Arc;
use std::thread::JoinHandle;

use mmu_notifier::{AddressSpace, Event, Range};

use crate::gate::{self, safe, safe::File};
use crate::maps;
use crate::masks;

/// Catches changes of registered memory, whoever makes them.
///
/// ```
/// use mmu_notifier::{AddressSpace, Change, Event, Range, Subscriber};
/// use mmu_notifier_primary::userfault::Net;
/// use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
///
/// struct Gone(Arc<AtomicBool>);
/// impl Subscriber for Gone {
///     fn start(&self, change: &Change) {
///         self.0.fetch_or(change.event() == Event::Unmap, Ordering::Relaxed);
///     }
///     fn end(&self, _: &Change) {}
/// }
///
/// // Nothing is rewritten here: that memory goes, only the net sees.
/// let space = AddressSpace::new();
/// let gone = Arc::new(AtomicBool::new(false));
/// let subscription = space.subscribe(Gone(gone.clone()));
/// let net = match Net::new(&space) {
///     Ok(net) => net,
///     Err(error) => return Ok(println!("SKIPPED: {error}")),
/// };
/// let page = mmu_notifier_primary::pages::map(4096);
/// let registered = net.register(Range::with_len(page as usize, 4096)?)?;
/// unsafe { mmu_notifier_primary::pages::unmap(page, 4096) };
/// net.settle();
/// assert!(gone.load(Ordering::Relaxed));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Net {
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

/// Memory that is in a [`Net`]; dropped, it is no more.
///
/// To drop it takes time by the number of its pages that are mapped: 50 ms for a gigabyte of small ones.
#[derive(Debug)]
#[must_use = "dropped, the memory is not registered any more"]
pub struct Registered<'net> {
    shared: &'net Shared,
    range: Range,
}

/// Why there is no net.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The kernel gives no userfaultfd.
    #[error(
        "no userfaultfd: error {errno}; is it in this kernel (CONFIG_USERFAULTFD), and does the sandbox allow it?"
    )]
    NoUserfaultfd {
        /// The error number.
        errno: i32,
    },
    /// It cannot tell of unmapped, moved and discarded memory.
    #[error(
        "this kernel's userfaultfd does not tell of unmapped memory: error {errno}; that takes Linux 5.7"
    )]
    NoEvents {
        /// The error number.
        errno: i32,
    },
    /// It does not take this memory.
    #[error(
        "cannot register {range:?} with userfaultfd: error {errno}; is all of it mapped, in no other userfaultfd, and \
         (before Linux 6.7) anonymous?"
    )]
    NotRegistered {
        /// The memory.
        range: Range,
        /// The error number.
        errno: i32,
    },
    /// There is no thread to listen.
    #[error("cannot start the thread that listens to userfaultfd: error {errno}")]
    NoThread {
        /// The error number.
        errno: i32,
    },
}

#[derive(Debug)]
struct Shared {
    space: AddressSpace,
    userfaultfd: File,
    /// Made readable, the listener ends.
    stop: File,
    /// Whose memory it is about: a forked child has the descriptors, too.
    pid: u32,
    /// Something has been read, or is about to be, that was not announced yet.
    pending: AtomicU32,
    heard: AtomicU64,
    lately: Lately,
    /// Everything that was ever registered, and where it moved, lies between these.
    lowest: AtomicUsize,
    highest: AtomicUsize,
}

/// What was discarded lately lies in this range. Written by the listener only.
#[derive(Debug, Default)]
struct Lately {
    /// Odd while the others are being written.
    sequence: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
}

impl Lately {
    fn set(&self, range: Option<Range>) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence + 1, Ordering::Relaxed);
        // Pairs with the fence in `get`: who sees one of the words sees the odd number.
        fence(Ordering::Release);
        self.start.store(range.map_or(0, |range| range.start()), Ordering::Relaxed);
        self.end.store(range.map_or(0, |range| range.end()), Ordering::Relaxed);
        // Pairs with the Acquire in `get`.
        self.sequence.store(sequence + 2, Ordering::Release);
    }

    fn get(&self) -> Option<Range> {
        loop {
            let sequence = self.sequence.load(Ordering::Acquire);
            let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
            // Pairs with the fence in `set`.
            fence(Ordering::Acquire);
            if sequence.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == sequence {
                return Range::new(start, end).ok();
            }
            safe::sched_yield();
        }
    }

    fn add(&self, range: Range) {
        self.set(Some(self.get().map_or(range, |known| around(known, range))));
    }
}

fn around(one: Range, other: Range) -> Range {
    let (start, end) = (one.start().min(other.start()), one.end().max(other.end()));
    Range::new(start, end).unwrap_or(Range::EVERYTHING)
}

/// What was refused, to be announced again.
struct Refused {
    changes: [Option<(Range, Event)>; 16],
}

impl Refused {
    fn add(&mut self, range: Range, event: Event) {
        let free = self.changes.iter_mut().find(|change| change.is_none());
        match free {
            Some(free) => *free = Some((range, event)),
            // More than there is room for: one for all of them.
            None => {
                let all = self.changes.iter().flatten().fold(range, |all, change| around(all, change.0));
                self.changes = [None; 16];
                self.changes[0] = Some((all, Event::Unmap));
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.changes.iter().all(Option::is_none)
    }
}

const O_CLOEXEC: usize = 0o2000000;
const O_NONBLOCK: usize = 0o4000;
/// Milliseconds after which a discard that was read is done, or never will be.
const DONE: i32 = 100;
const IOCTL: usize = 16;

impl Net {
    /// A net that announces to `space`: that of a [`Primary`](crate::Primary), or any other of this process. Starts a
    /// thread.
    ///
    /// # Errors
    ///
    /// [`NetError`], but [`NotRegistered`](NetError::NotRegistered).
    pub fn new(space: &AddressSpace) -> Result<Net, NetError> {
        const EVENTFD2: usize = 290;
        let userfaultfd = userfaultfd()?;
        // SAFETY: touches no memory.
        let stop = unsafe { gate::call(EVENTFD2, &[0, O_CLOEXEC | O_NONBLOCK, 0, 0, 0, 0]) };
        if stop < 0 {
            return Err(NetError::NoThread { errno: -stop as i32 });
        }
        let shared = Arc::new(Shared {
            space: space.clone(),
            userfaultfd,
            stop: File::adopt(stop as usize),
            pid: safe::getpid(),
            pending: AtomicU32::new(0),
            heard: AtomicU64::new(0),
            lately: Lately::default(),
            lowest: AtomicUsize::new(usize::MAX),
            highest: AtomicUsize::new(0),
        });
        let listener = std::thread::Builder::new().name("mmu-notifier net".into());
        let for_listener = Arc::clone(&shared);
        let listener = listener.spawn(move || for_listener.listen());
        let listener =
            listener.map_err(|error| NetError::NoThread { errno: error.raw_os_error().unwrap_or(0) })?;
        Ok(Net { shared, listener: Some(listener) })
    }

    /// Catches from now on what happens to `range`, extended to whole pages. Memory that is registered stays so when it
    /// grows, shrinks or moves; what is mapped there anew is not.
    ///
    /// # Errors
    ///
    /// [`NetError::NotRegistered`]: some of it is not mapped, is in another userfaultfd (`EBUSY`), or is of a kind that this
    /// kernel does not take (`EINVAL`).
    pub fn register(&self, range: Range) -> Result<Registered<'_>, NetError> {
        const UFFDIO_REGISTER: usize = 0xc020_aa00;
        const MODE_WP: u64 = 1 << 1;
        let range = range.to_pages();
        // struct uffdio_register: a range, the mode, what the kernel offers.
        let mut argument = [range.start() as u64, range.len() as u64, MODE_WP, 0];
        let answer = ioctl(&self.shared.userfaultfd, UFFDIO_REGISTER, &mut argument);
        match answer {
            Ok(()) => {
                self.shared.was_at(range);
                Ok(Registered { shared: &self.shared, range })
            }
            Err(errno) => Err(NetError::NotRegistered { range, errno }),
        }
    }

    /// Waits until every change has been announced whose call has returned before, whoever made it.
    ///
    /// Waits for subscribers that refuse; never for system calls. Must not be called in a callback, nor in the hook.
    pub fn settle(&self) {
        let shared = &self.shared;
        // SeqCst, as all of `pending`; the partner is `listen`. Between the two lies the kernel, which lets the caller go after
        // it has been read.
        while shared.pending.load(Ordering::SeqCst) != 0 {
            safe::sched_yield();
        }
        // Whoever asks now may know that it is done.
        if let Some(range) = shared.lately.get() {
            shared.space.invalidate(range, Event::Clear, || {});
        }
    }

    /// How many events the kernel has told of.
    pub fn heard(&self) -> u64 {
        self.shared.heard.load(Ordering::Relaxed)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        if self.shared.is_of_this_process() {
            // Nobody listens any more, and a forked child may keep the userfaultfd open: who changes what is registered
            // still - moved, or forgotten - would be held up for ever.
            let _ = maps::for_each(|mapping| self.shared.unregister(mapping.range));
            // It is not full, and the listener does nothing but listen.
            let _ = self.shared.stop.write(&1u64.to_ne_bytes());
            let _ = listener.join();
        } else {
            // The thread is the parent's.
            core::mem::forget(listener);
        }
    }
}

impl Registered<'_> {
    /// The memory: whole pages.
    pub fn range(&self) -> Range {
        self.range
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if self.shared.is_of_this_process() {
            self.shared.unregister(self.range);
        }
    }
}

/// A userfaultfd that tells of changes.
fn userfaultfd() -> Result<File, NetError> {
    const USERFAULTFD: usize = 323;
    const USER_MODE_ONLY: usize = 1;
    const UFFDIO_API: usize = 0xc018_aa3f;
    const API: u64 = 0xaa;
    const EVENT_REMAP: u64 = 1 << 2;
    const EVENT_REMOVE: u64 = 1 << 3;
    const EVENT_UNMAP: u64 = 1 << 6;
    /// Takes memory of every kind.
    const WP_ASYNC: u64 = 1 << 15;
    let events = EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP;
    let mut errno = 0;
    for features in [events | WP_ASYNC, events] {
        let flags = O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY;
        // SAFETY: touches no memory.
        let descriptor = unsafe { gate::call(USERFAULTFD, &[flags, 0, 0, 0, 0, 0]) };
        if descriptor < 0 {
            return Err(NetError::NoUserfaultfd { errno: -descriptor as i32 });
        }
        let file = File::adopt(descriptor as usize);
        match ioctl(&file, UFFDIO_API, &mut [API, features, 0]) {
            Ok(()) => return Ok(file),
            Err(error) => errno = error,
        }
    }
    Err(NetError::NoEvents { errno })
}

/// An `ioctl` of userfaultfd whose argument is `WORDS` words, which it may change.
fn ioctl<const WORDS: usize>(file: &File, request: usize, argument: &mut [u64; WORDS]) -> Result<(), i32> {
    let args = [file.descriptor(), request, argument.as_mut_ptr() as usize, 0, 0, 0];
    // SAFETY: the kernel reads and writes as many words as the request says, which the callers have.
    match unsafe { gate::call(IOCTL, &args) } {
        0 => Ok(()),
        error => Err(-error as i32),
    }
}

/// The kernel's `struct uffd_msg`: the event in the lowest byte, then what it is about.
type Message = [u64; 4];

impl Shared {
    fn is_of_this_process(&self) -> bool {
        self.pid == safe::getpid()
    }

    fn was_at(&self, range: Range) {
        // Relaxed: read by who drops the net.
        self.lowest.fetch_min(range.start(), Ordering::Relaxed);
        self.highest.fetch_max(range.end(), Ordering::Relaxed);
    }

    /// Takes out what can be registered of a range.
    fn unregister(&self, range: Range) {
        const UFFDIO_UNREGISTER: usize = 0x8010_aa01;
        let start = range.start().max(self.lowest.load(Ordering::Relaxed));
        let end = range.end().min(self.highest.load(Ordering::Relaxed));
        if start < end {
            // Fails if nothing of it is mapped any more.
            let _ = ioctl(&self.userfaultfd, UFFDIO_UNREGISTER, &mut [start as u64, (end - start) as u64]);
        }
    }

    /// Reads and announces, until it is stopped.
    fn listen(&self) {
        // A handler of the program's on this thread might wait for this thread.
        masks::block_all_but_ours();
        let mut refused = Refused { changes: [None; 16] };
        let mut messages = [Message::default(); 16];
        loop {
            let timeout = match (refused.is_empty(), self.lately.get()) {
                (false, _) => 1,
                (true, Some(_)) => DONE,
                (true, None) => -1,
            };
            let [ready, stop] = poll([&self.userfaultfd, &self.stop], timeout);
            if stop {
                return;
            }
            // Before anything is read: with that the kernel lets go of who did it.
            self.pending.store(1, Ordering::SeqCst);
            if ready {
                self.read_all(&mut messages, &mut refused);
            }
            if !ready && refused.is_empty() {
                // Nothing for so long: what was discarded is gone by now.
                if let Some(range) = self.lately.get() {
                    self.announce(range, Event::Clear, &mut refused);
                    self.lately.set(None);
                }
            }
            for change in core::mem::take(&mut refused.changes).into_iter().flatten() {
                self.announce(change.0, change.1, &mut refused);
            }
            if refused.is_empty() {
                self.pending.store(0, Ordering::SeqCst);
            }
        }
    }

    fn read_all(&self, messages: &mut [Message; 16], refused: &mut Refused) {
        loop {
            // SAFETY: integers, as bytes.
            let (_, bytes, _) = unsafe { messages.as_flattened_mut().align_to_mut::<u8>() };
            let read = self.userfaultfd.read(bytes).unwrap_or(0) / size_of::<Message>();
            if read == 0 {
                return;
            }
            messages[..read].iter().for_each(|message| self.hear(message, refused));
        }
    }

    fn hear(&self, message: &Message, refused: &mut Refused) {
        const REMAP: u8 = 0x14;
        const REMOVE: u8 = 0x15;
        const UNMAP: u8 = 0x16;
        let [event, a, b, c] = message.map(|word| word as usize);
        let (range, event) = match event as u8 {
            REMAP => (Range::with_len(a, c), Event::Unmap),
            REMOVE => (Range::new(a, b), Event::Clear),
            UNMAP => (Range::new(a, b), Event::Unmap),
            _ => return,
        };
        let Ok(range) = range else { return };
        self.heard.fetch_add(1, Ordering::Relaxed);
        if message[0] as u8 == REMAP
            && let Ok(to) = Range::with_len(b, c)
        {
            self.was_at(to);
        }
        if event == Event::Clear {
            self.lately.add(range);
        }
        self.announce(range, event, refused);
    }

    fn announce(&self, range: Range, event: Event, refused: &mut Refused) {
        if self.space.try_invalidate(range, event, || {}).is_err() {
            refused.add(range, event);
        }
    }
}

/// Waits until one of the files can be read, `timeout` milliseconds at most (-1: for ever).
fn poll(files: [&File; 2], timeout: i32) -> [bool; 2] {
    const POLL: usize = 7;
    const POLLIN: u64 = 1;
    // struct pollfd: descriptor, events, what has come.
    let mut polled = files.map(|file| file.descriptor() as u64 | POLLIN << 32);
    // SAFETY: the kernel writes to `polled` only.
    let got = unsafe { gate::call(POLL, &[polled.as_mut_ptr() as usize, 2, timeout as usize, 0, 0, 0]) };
    polled.map(|polled| got > 0 && polled >> 48 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: usize, end: usize) -> Range {
        Range::new(start << 12, end << 12).unwrap()
    }

    #[test]
    fn what_was_discarded_lately_is_in_one_range() {
        let lately = Lately::default();
        assert_eq!(lately.get(), None);
        lately.add(range(5, 6));
        lately.add(range(1, 2));
        assert_eq!(lately.get(), Some(range(1, 6)));
        lately.set(None);
        assert_eq!(lately.get(), None);
    }

    #[test]
    fn nothing_that_was_refused_is_forgotten() {
        let mut refused = Refused { changes: [None; 16] };
        for page in 1..=16 {
            refused.add(range(page, page + 1), Event::Clear);
        }
        assert_eq!(refused.changes.iter().flatten().count(), 16);
        refused.add(range(100, 101), Event::Clear);
        let left: Vec<_> = refused.changes.iter().flatten().collect();
        assert_eq!(left, [&(range(1, 101), Event::Unmap)]);
    }
}
