//! The OOM reaper for a process's own caches: memory is taken away before the kernel kills for it.
//!
//! Linux's OOM reaper takes the memory of a victim that does not get to its end. It must not wait, so it announces each mapping
//! as a change that must not wait either; who refuses keeps his, and is asked again, ten times. Here a live process does that
//! to its own caches: what can be made anew is [added](Reaper::add), and when memory runs short ([`Source`]), each range is
//! announced to all subscribers, discarded, and announced as done.
//!
//! ```
//! use mmu_notifier::{AddressSpace, Range};
//! use mmu_notifier_primary::reaper::{Options, Reaper, Trigger};
//!
//! let space = AddressSpace::new(); // or that of the running process: `Primary::space`
//! let options = Options { trigger: Trigger::Hand, ..Options::default() };
//! let reaper = Reaper::start(&space, options)?;
//!
//! # let memory = mmu_notifier_primary::pages::map(1 << 20);
//! # /*
//! let memory = mmap(1 << 20); // a cache of what can be computed again
//! # */
//! // SAFETY: a mapping of 1 MiB, which nobody else has.
//! unsafe { memory.write_bytes(7, 1 << 20) };
//! // SAFETY: its user knows that it may be zeroes from one moment to the next.
//! let evictable = unsafe { reaper.add(Range::with_len(memory as usize, 1 << 20)?)? };
//!
//! let reaped = reaper.reap().expect("no other thread is at it");
//! assert_eq!((reaped.discarded, reaped.refused), (1 << 20, 0));
//! // SAFETY: still mapped.
//! assert_eq!(unsafe { memory.read_volatile() }, 0);
//! drop(evictable); // from now on the memory is only its user's
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is promised
//!
//! * Ranges are taken in the order in which the kernel takes mappings (since 7.x: the highest address first), one change each
//!   ([`Event::Clear`](mmu_notifier::Event::Clear)), and only of what the kernel would take: [`Reaper::add`] refuses the rest.
//! * Who refuses keeps its memory as it is. It is asked again after [`Options::retry_after`], [`ATTEMPTS`] times in all; then
//!   it is marked (the kernel's `MMF_OOM_SKIP`) and left alone until the next alarm, or until its owner says that it is
//!   [worth trying](Evictable::retry).
//! * The reaper waits for no lock, no subscriber and no memory: nothing is allocated, its tables, its stack and its code are
//!   present and locked. What subscribers do is their affair; they are told that they must not wait.
//! * Memory that a secondary still holds does not count as freed ([`Options::unreleased`]), and is tried again.
//!
//! # What is different from the kernel
//!
//! The kernel walks everything again in each attempt, as the victim dies anyhow. Here the owner lives, and pages that are
//! not present are passed over. The kernel marks the victim, here the range is marked. The kernel gives up if it does not get
//! `mmap_lock` at once; `madvise` waits for it.
//!
//! # Rooms
//!
//! | file | what |
//! | --- | --- |
//! | `table`, `locked` | the ranges, and whose turn it is; memory that stays |
//! | `walk` | one walk over them |
//! | `mapping` | what the kernel would pass over |
//! | `source`, `group` | where pressure is heard of; control groups |
//! | `watch` | the thread that waits for it |

mod group;
mod locked;
mod mapping;
mod source;
mod table;
mod walk;
mod watch;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use mmu_notifier::{AddressSpace, Range};

use crate::gate::safe::{self, File};
pub use group::memory_group;
use locked::Locked;
pub use source::{Armed, Source, Trigger};
use table::{Place, Table};
use walk::Walk;
use watch::Watch;

/// How often in a row a range is tried before it is marked: the kernel's `MAX_OOM_REAP_RETRIES`.
pub const ATTEMPTS: u32 = 10;

/// How a reaper is made.
pub struct Options {
    /// What says that memory runs short.
    pub trigger: Trigger,
    /// The directory of the control group whose memory counts; `None`: that of this process, or the one above it with the
    /// lowest limit.
    pub group: Option<PathBuf>,
    /// From how much of its limit on there is pressure, in percent: 1 to 99.
    pub level: u8,
    /// How many ranges there may be at a time. Each takes 56 bytes of locked memory.
    pub ranges: usize,
    /// How long after a refusal it is tried again, and how often it is looked whether the pressure is over.
    pub retry_after: Duration,
    /// How many bytes secondaries hold now of memory that they have been told to let go of: pages that are pinned until an
    /// operation ends. What it grows by while a range is discarded is not free. Called between the changes; must neither
    /// wait nor allocate. The default is none.
    pub unreleased: Box<dyn Fn() -> u64 + Send + Sync>,
    /// What is done when a range is marked. Must neither wait nor allocate. The default is nothing.
    pub on_mark: Box<dyn Fn(Range) + Send + Sync>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            trigger: Trigger::Best,
            group: None,
            level: 80,
            ranges: 1024,
            retry_after: Duration::from_millis(100),
            unreleased: Box::new(|| 0),
            on_mark: Box::new(|_| ()),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("trigger", &self.trigger)
            .field("group", &self.group)
            .field("level", &self.level)
            .field("ranges", &self.ranges)
            .field("retry_after", &self.retry_after)
            .finish_non_exhaustive()
    }
}

/// There is no reaper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// [`Options::level`] is no percentage of a limit.
    #[error("a level of {level} percent: give 1 to 99")]
    Level {
        /// What was given.
        level: u8,
    },
    /// There is no memory for its tables.
    #[error("no {bytes} bytes of memory for the reaper")]
    Memory {
        /// How much was wanted.
        bytes: usize,
    },
    /// Its memory cannot be locked.
    #[error(
        "cannot lock {bytes} bytes for the reaper: error {errno}; raise RLIMIT_MEMLOCK, or want fewer ranges"
    )]
    Lock {
        /// How much was to be locked.
        bytes: usize,
        /// The error number.
        errno: i32,
    },
    /// The source that was asked for is not there.
    #[error("no {wanted}: {why}")]
    Source {
        /// Which.
        wanted: Source,
        /// Why it cannot be used.
        why: String,
    },
    /// No source is there.
    #[error("nothing here says that memory runs short: {}", reasons(passed_over))]
    NoSource {
        /// Each, and why it cannot be used.
        passed_over: Vec<(Source, String)>,
    },
    /// There is no thread for it.
    #[error("no thread for the reaper: {0}")]
    Thread(io::Error),
}

fn reasons(passed_over: &[(Source, String)]) -> String {
    passed_over.iter().map(|(source, why)| format!("{source}: {why}")).collect::<Vec<_>>().join("; ")
}

/// A range was not added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvictError {
    /// It is not of whole pages.
    #[error("{range} is not of whole pages")]
    Unaligned {
        /// What was to be added.
        range: Range,
    },
    /// Something of it is not mapped.
    #[error("nothing is mapped at {address:#x}")]
    NotMapped {
        /// The first such address.
        address: usize,
    },
    /// Shared memory stays when a mapping of it is discarded.
    #[error("{range} is shared: its memory would stay")]
    Shared {
        /// Which part.
        range: Range,
    },
    /// The kernel's reaper leaves huge pages of hugetlbfs alone: they are not what runs short.
    #[error("{range} consists of huge pages of hugetlbfs, which do not run short with other memory")]
    HugeTlb {
        /// Which part.
        range: Range,
    },
    /// The memory of a device, or of the kernel.
    #[error("{range} is no memory that could be freed: a device's, or the kernel's")]
    NoPages {
        /// Which part.
        range: Range,
    },
    /// Some of it is to be reaped already.
    #[error("{range} overlaps {other}, which was added before")]
    Overlaps {
        /// What was to be added.
        range: Range,
        /// What it overlaps.
        other: Range,
    },
    /// There are as many ranges as there is room for.
    #[error("the reaper has room for {max} ranges: see Options::ranges")]
    Full {
        /// So many.
        max: usize,
    },
    /// What is mapped cannot be found out.
    #[error("cannot read /proc/self/smaps: {0}")]
    Maps(io::Error),
}

/// What one walk has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reaped {
    /// Ranges that were announced: all that were not marked, and had pages that nobody else has.
    pub announced: usize,
    /// Those of them that a subscriber refused.
    pub refused: usize,
    /// Those whose discarding the kernel refused: their mapping is another one now.
    pub failed: usize,
    /// Those in which a subscriber panicked.
    pub panicked: usize,
    /// Those that were discarded, and whose pages somebody still holds.
    pub held: usize,
    /// Those that are to be tried again.
    pub left: usize,
    /// Those that were tried for the last time, and are marked.
    pub marked: usize,
    /// Bytes that were discarded.
    pub discarded: u64,
}

/// What a reaper has done, and what it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// How often its source has told of pressure.
    pub alarms: u64,
    /// Walks over the ranges.
    pub walks: u64,
    /// Changes that were announced.
    pub announced: u64,
    /// Those of them that somebody refused.
    pub refused: u64,
    /// Those whose discarding the kernel refused.
    pub failed: u64,
    /// Those in which a subscriber panicked.
    pub panicked: u64,
    /// Times that a range was marked.
    pub marked: u64,
    /// Times that nothing more could be reaped and the killer of the group was switched on again
    /// ([`Source::OomControl`]).
    pub given_up: u64,
    /// Bytes that were discarded.
    pub discarded: u64,
    /// Bytes of memory that was discarded and that somebody still holds, now.
    pub unreleased: u64,
    /// Ranges that are marked, now.
    pub marked_now: usize,
    /// Ranges that there are.
    pub ranges: usize,
}

impl Stats {
    /// Bytes that were discarded and that nobody holds any more: at least so many are free.
    pub fn freed(&self) -> u64 {
        self.discarded.saturating_sub(self.unreleased)
    }
}

#[derive(Debug, Default)]
struct Counters {
    alarms: AtomicU64,
    walks: AtomicU64,
    announced: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    marked: AtomicU64,
    given_up: AtomicU64,
    discarded: AtomicU64,
}

impl Counters {
    // Relaxed, in this file: numbers.
    fn add(&self, reaped: &Reaped) {
        self.walks.fetch_add(1, Ordering::Relaxed);
        self.announced.fetch_add(reaped.announced as u64, Ordering::Relaxed);
        self.refused.fetch_add(reaped.refused as u64, Ordering::Relaxed);
        self.failed.fetch_add(reaped.failed as u64, Ordering::Relaxed);
        self.panicked.fetch_add(reaped.panicked as u64, Ordering::Relaxed);
        self.marked.fetch_add(reaped.marked as u64, Ordering::Relaxed);
        self.discarded.fetch_add(reaped.discarded, Ordering::Relaxed);
    }
}

struct Shared {
    space: AddressSpace,
    table: Table,
    /// Where a walk puts what it has found. Held by who walks; nobody waits for it.
    places: Mutex<Locked<Place>>,
    /// Held by who adds.
    adding: Mutex<()>,
    watch: Watch,
    counters: Counters,
    retry_after: Duration,
    unreleased: Box<dyn Fn() -> u64 + Send + Sync>,
    on_mark: Box<dyn Fn(Range) + Send + Sync>,
    /// `/proc/self/pagemap`, if it can be read.
    pagemap: Option<File>,
    /// Wakes the thread.
    wake: File,
    stop: AtomicBool,
    /// The process that it is for: a forked child has the thread not.
    pid: u32,
}

impl Shared {
    fn is_of_the_parent(&self) -> bool {
        safe::getpid() != self.pid
    }
}

/// Takes memory away when it runs short: see the [module documentation](self).
///
/// Has a thread, which ends when this is dropped. In a forked child there is none, and nothing is reaped.
#[doc(alias = "oom_reaper")]
pub struct Reaper {
    shared: Arc<Shared>,
    armed: Armed,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    /// Starts a reaper for memory of `space`. Allocates, and starts a thread, which runs at nice -20 if it may. Locks about
    /// 256 KiB for tables and stack, and, as far as `RLIMIT_MEMLOCK` allows, the code that the reaper is part of, which stays
    /// locked.
    ///
    /// If there is pressure already, the first walk begins at once.
    ///
    /// # Errors
    ///
    /// [`StartError`] says what is missing.
    pub fn start(space: &AddressSpace, options: Options) -> Result<Reaper, StartError> {
        let Options { trigger, group, level, ranges, retry_after, unreleased, on_mark } = options;
        if !(1..=99).contains(&level) {
            return Err(StartError::Level { level });
        }
        let (armed, watch) = source::arm(trigger, group.as_deref(), level)?;
        let wake =
            File::counter().map_err(|errno| StartError::Thread(io::Error::from_raw_os_error(errno.0)))?;
        let shared = Arc::new(Shared {
            space: space.clone(),
            table: Table::new(ranges)?,
            places: Mutex::new(Locked::new(ranges)?),
            adding: Mutex::new(()),
            watch,
            counters: Counters::default(),
            retry_after,
            unreleased,
            on_mark,
            pagemap: File::open(c"/proc/self/pagemap", 0).ok(),
            wake,
            stop: AtomicBool::new(false),
            pid: safe::getpid(),
        });
        locked::lock(Range::with_len(Arc::as_ptr(&shared) as usize, size_of::<Shared>()).ok())?;
        let mut reaper = Reaper { shared: shared.clone(), armed, thread: None };
        let (ready, is_ready) = mpsc::sync_channel(1);
        let work = move || {
            let _ = safe::block_signals();
            safe::come_first();
            let locked = watch::lock_own_memory();
            // Whoever has to find out who is calling does so now.
            let _ = shared.space.caller();
            let stack = locked.as_ref().ok().copied();
            let _ = ready.send(locked.map(drop));
            drop(ready);
            if let Some(stack) = stack {
                watch::watch(&shared);
                // The C library keeps stacks for the next thread.
                stack.into_iter().for_each(safe::unlock_memory);
            }
        };
        let builder = std::thread::Builder::new().name("reaper".into()).stack_size(watch::STACK);
        reaper.thread = Some(builder.spawn(work).map_err(StartError::Thread)?);
        let gone = || StartError::Thread(io::Error::other("it has ended"));
        is_ready.recv().map_err(|_| gone())??;
        Ok(reaper)
    }

    /// Which source it listens to, and why.
    pub fn armed(&self) -> &Armed {
        &self.armed
    }

    /// Lets `range` be discarded from now on, at any time, until what this returns is dropped. A huge page goes as a whole or
    /// not at all, so ranges that have some begin and end at multiples of 2 MiB. Reads `/proc/self/smaps`, which
    /// takes a millisecond or so a gigabyte of memory below the range; allocates.
    ///
    /// # Errors
    ///
    /// [`EvictError`] if the range is not of whole pages, if the kernel's reaper would pass over some of it, or if there is no
    /// room.
    ///
    /// # Safety
    ///
    /// Until it is dropped, the range stays mapped, and nobody relies on its contents: they may become zeroes (or what the
    /// file has, of a private mapping) from one moment to the next. So nothing of it is borrowed but as memory that others
    /// write to: raw pointers, volatile accesses, atomics.
    #[expect(unsafe_code, reason = "declares what the caller must promise")]
    pub unsafe fn add(&self, range: Range) -> Result<Evictable, EvictError> {
        mapping::check(range)?;
        let shared = &self.shared;
        let _adding = shared.adding.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(other) = shared.table.ranges().find(|other| other.overlaps(&range)) {
            return Err(EvictError::Overlaps { range, other });
        }
        let number = shared.table.add(range).ok_or(EvictError::Full { max: shared.table.len() })?;
        Ok(Evictable { shared: shared.clone(), number, range })
    }

    /// Takes away now what can be taken away, also what is marked, whether memory runs short or not. `None` if another thread
    /// is at it.
    ///
    /// Waits for nobody, allocates nothing.
    pub fn reap(&self) -> Option<Reaped> {
        self.shared.walk(Walk::Anew)
    }

    /// What it has done, and what it has. The numbers are taken one by one.
    pub fn stats(&self) -> Stats {
        let Shared { counters, table, unreleased, .. } = &*self.shared;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            alarms: get(&counters.alarms),
            walks: get(&counters.walks),
            announced: get(&counters.announced),
            refused: get(&counters.refused),
            failed: get(&counters.failed),
            panicked: get(&counters.panicked),
            marked: get(&counters.marked),
            given_up: get(&counters.given_up),
            discarded: get(&counters.discarded),
            unreleased: table.held().min(unreleased()),
            marked_now: table.marked(),
            ranges: table.ranges().count(),
        }
    }
}

/// Ends the thread, after the walk that it is in. If it has stopped the killer of the group, that goes on.
impl Drop for Reaper {
    fn drop(&mut self) {
        let shared = &self.shared;
        if shared.is_of_the_parent() {
            // There is nobody to wait for, and the group is the parent's.
            std::mem::forget(self.thread.take());
            return;
        }
        // Release pairs with the Acquire of the thread.
        shared.stop.store(true, Ordering::Release);
        shared.wake.count_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        shared.watch.let_the_killer_go();
    }
}

impl fmt::Debug for Reaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reaper")
            .field("armed", &self.armed)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Memory that may be discarded, until this is dropped. The drop waits while it is being reaped; so it must not happen inside
/// a subscriber's callback.
#[must_use = "the memory may be discarded as long as this is there"]
pub struct Evictable {
    shared: Arc<Shared>,
    number: usize,
    range: Range,
}

impl Evictable {
    /// The memory.
    pub fn range(&self) -> Range {
        self.range
    }

    /// Whether it was refused so often that it is left alone. The next alarm ends that.
    #[doc(alias = "MMF_OOM_SKIP")]
    pub fn is_marked(&self) -> bool {
        self.shared.table.is_marked(self.number)
    }

    /// Whoever has refused need not any more. It is not marked any more; if memory runs short, it is tried at once. Never
    /// waits.
    pub fn retry(&self) {
        self.shared.table.retry(self.number);
        self.shared.wake.count_one();
    }
}

impl Drop for Evictable {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.table.remove(self.number, || shared.is_of_the_parent());
    }
}

impl fmt::Debug for Evictable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evictable").field("range", &self.range).field("is_marked", &self.is_marked()).finish()
    }
}
