//! A registration cache that cannot return a stale entry.
//!
//! Registering memory with a device - pinning its pages, telling the device where they are - takes microseconds to
//! milliseconds, so whoever does it keeps the registration for the next time. But the program, its allocator or its garbage
//! collector may unmap, move or discard the memory meanwhile; then the registration refers to pages that are nobody's
//! any more, and data goes there without an error. This cache hears of each change of the address space before it
//! begins ([`mmu_notifier`]), and drops what it hits.
//!
//! ```
//! use mmu_notifier::{AddressSpace, Event, Range};
//! use mmu_notifier_secondary::cache::{Access, Cache, Options, RegisterError, Registrar};
//!
//! /// A device that calls a registration by a number.
//! #[derive(Default)]
//! struct Device(std::sync::atomic::AtomicU32);
//!
//! impl Registrar for Device {
//!     type Handle = u32;
//!     fn register(&self, _: Range, _: Access) -> Result<u32, RegisterError> {
//!         Ok(self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
//!     }
//!     fn deregister(&self, _: Range, _: u32) {}
//! }
//!
//! let space = AddressSpace::new(); // or that of mmu-notifier-primary: the running process
//! let cache = Cache::new(&space, Device::default(), Options::default());
//! let buffer = Range::with_len(0x10000, 0x4000)?;
//!
//! let first = *cache.get(buffer, Access::Write)?.handle();
//! let part = Range::with_len(0x11000, 0x100)?;
//! assert_eq!(*cache.get(part, Access::Write)?.handle(), first, "inside what is registered");
//!
//! space.invalidate(part, Event::Unmap, || { /* munmap */ });
//! assert_ne!(*cache.get(buffer, Access::Write)?.handle(), first, "registered anew");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is promised
//!
//! * What [`get`](Cache::get) returns is registered for the pages that are mapped, until a change begins. (Of changes that
//!   the [`AddressSpace`] is told of.)
//! * When the start of a change returns, no request gets what it hits any more, and nothing that was being registered
//!   meanwhile gets into the cache.
//! * A registration that is held stays registered until it is dropped, also over changes. Whether a change waits for
//!   that is the registrar's choice: [`Wait`].
//! * A change that must not wait never does, and allocates nothing.
//! * A request that hits takes no lock, makes no system call, and writes nothing that another thread writes; neither
//!   other requests nor changes of other memory slow it.
//! * What fails leaves nothing behind.
//!
//! # Costs
//!
//! A hit: the thread's last entry or a walk through the index of O(log n), and two atomic instructions on a cache line of the
//! thread's own. A change that hits nothing: O(log n) reads. One that hits k entries: O(log n + k), one look at the pins of all
//! threads, and what the registrar takes. An entry takes 64 bytes (more if its handle has more than 24) and about 16 in
//! the index.
//!
//! # Rooms
//!
//! | file | what |
//! | --- | --- |
//! | `registrar`, `options`, `error`, `counters` | what an adapter writes, what a user sets, what he gets back |
//! | `table`, `homes`, `index`, `misses`, `books`, `lock` | the life of an entry; pins; which entry is where; what is being registered; what the lock guards |
//! | `get`, `registration` | a request, and what it gets |
//! | `told`, `kill`, `burial` | a change: who is told; taking entries out; deregistering, and waiting |
//! | `mappings`, `frames` | why memory could not be registered; the self-check |

mod books;
mod burial;
mod counters;
mod error;
mod frames;
mod get;
mod homes;
mod index;
mod kill;
mod lock;
#[cfg(all(test, mmu_loom))]
mod loom;
mod mappings;
mod misses;
mod options;
mod places;
mod registrar;
mod registration;
mod store;
mod table;
#[cfg(all(test, not(mmu_loom)))]
mod tests;
mod told;

use std::fmt;
use std::sync::{Arc, OnceLock};

use mmu_notifier::{AddressSpace, Event, Range, Subscription};

pub use counters::Stats;
pub use error::{GetError, Rights};
pub use options::{Options, Overdue, WhenOverdue};
pub use registrar::{Access, RegisterError, Registrar, Unregistered, Wait};
pub use registration::{Registration, Token};
use store::Store;
use told::{Killer, Undertaker};

/// Registrations of memory by range: see the [module documentation](self).
///
/// All methods may be called by any number of threads at the same time; not in signal handlers, and not by the registrar.
pub struct Cache<R: Registrar> {
    store: Arc<Store<R>>,
    /// In a forked child, where `store` is the parent's.
    child: OnceLock<Box<Cache<R>>>,
    /// The second one is told first.
    _told: [Subscription; 2],
}

impl<R: Registrar> Cache<R> {
    /// An empty cache of memory of `space`, which it subscribes to.
    ///
    /// # Panics
    ///
    /// If the registrar's alignment is not a power of two, if `space` has been released, if there is no memory, or if
    /// [`Options::self_check`] is set and `/proc/self/pagemap` cannot be read.
    pub fn new(space: &AddressSpace, registrar: R, options: Options) -> Cache<R> {
        Cache::of(space, Arc::new(registrar), options)
    }

    fn of(space: &AddressSpace, registrar: Arc<R>, options: Options) -> Cache<R> {
        let store = Arc::new(Store::new(space.clone(), registrar, options));
        let undertaker = space.subscribe_refuser(Undertaker(store.clone()));
        let killer = space.subscribe_refuser(Killer(store.clone()));
        Cache { store, child: OnceLock::new(), _told: [undertaker, killer] }
    }

    /// A registration of at least `range` for at least `access`: one that is there, or else a new one.
    ///
    /// A new one is of `range` widened to the registrar's [alignment](Registrar::alignment); or, where that much is
    /// registered already and only rights are missing, of all that is registered, with the rights of both.
    ///
    /// May wait: for changes of the range that other threads have begun, for other requests that are registering it, and for
    /// whatever the registrar waits for.
    ///
    /// # Errors
    ///
    /// [`GetError`] says which range could not be registered and why. Nothing is left of the attempt.
    ///
    /// # Panics
    ///
    /// In a signal handler that has interrupted this.
    // Always: out of line, the answer would be written to memory word by word and read with one wide load, which waits for
    // that; it takes twice as long.
    #[inline(always)]
    pub fn get(&self, range: Range, access: Access) -> Result<Registration<'_, R>, GetError> {
        let store = &*self.store;
        let hit = store.hit_again(range, access).or_else(|| store.hit(range, access));
        match hit {
            Some((pin, id)) => Ok(Registration::new(store, id, pin)),
            None => self.get_slowly(range, access),
        }
    }

    #[cold]
    fn get_slowly(&self, range: Range, access: Access) -> Result<Registration<'_, R>, GetError> {
        if self.store.homes.is_of_the_parent() {
            return self.of_the_child().get(range, access);
        }
        let registration = self.store.miss(range, access)?;
        registration.check();
        Ok(registration)
    }

    /// In a forked child: a cache of its own, empty. The parent's registrations stay the parent's.
    fn of_the_child(&self) -> &Cache<R> {
        let store = &self.store;
        let make = || Box::new(Cache::of(&store.space, store.registrar.clone(), store.options.clone()));
        self.child.get_or_init(make)
    }

    /// What memory is registered with.
    pub fn registrar(&self) -> &R {
        &self.store.registrar
    }

    /// How it was made.
    pub fn options(&self) -> &Options {
        &self.store.options
    }

    /// What it has done, and what it holds. Takes the lock for a moment.
    ///
    /// ```
    /// # use mmu_notifier::{AddressSpace, Range};
    /// # use mmu_notifier_secondary::cache::{Access, Cache, Options, Unregistered};
    /// let cache = Cache::new(&AddressSpace::new(), Unregistered, Options::default());
    /// let pages = Range::with_len(0x10000, 0x2000)?;
    /// for _ in 0..4 {
    ///     drop(cache.get(pages, Access::Read)?);
    /// }
    /// let stats = cache.stats();
    /// assert_eq!((stats.hits, stats.misses, stats.entries, stats.bytes), (3, 1, 1, 0x2000));
    /// assert!(stats.to_string().contains("4: 3 hits (75.0 %), 1 misses"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stats(&self) -> Stats {
        if self.store.homes.is_of_the_parent() {
            return self.of_the_child().stats();
        }
        self.store.stats()
    }

    /// Bytes that are out of the cache and still registered, now: [`Stats::unreleased`] alone, without the lock. For who frees
    /// memory and has to know whether it is free.
    ///
    /// ```
    /// # use mmu_notifier::{AddressSpace, Event, Range};
    /// # use mmu_notifier_secondary::cache::{Access, Cache, Options, Unregistered};
    /// let space = AddressSpace::new();
    /// let cache = Cache::new(&space, Unregistered, Options::default());
    /// let pages = Range::with_len(0x10000, 0x2000)?;
    /// let registration = cache.get(pages, Access::Read)?;
    /// space.invalidate(pages, Event::Clear, || { /* madvise */ });
    /// assert_eq!(cache.unreleased(), 0x2000, "it is in use");
    /// drop(registration);
    /// assert_eq!(cache.unreleased(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unreleased(&self) -> usize {
        match self.store.homes.is_of_the_parent() {
            true => 0,
            false => self.store.unreleased(),
        }
    }

    /// Deregisters whatever is out of the cache and not in use, which changes that must not wait have left. May wait.
    /// (So does every request that misses.)
    pub fn flush(&self) {
        if !self.store.homes.is_of_the_parent() {
            self.store.with_books(|_| ());
            self.store.bury();
        }
    }

    /// Ends every registration, as a change of everything would. What is in use is deregistered when it is let go of.
    pub fn clear(&self) {
        if !self.store.homes.is_of_the_parent() {
            self.store.kill_in(Range::EVERYTHING, Event::Release);
            self.flush();
        }
    }
}

/// Ends all registrations, also forgotten ones. May wait, as the registrar does.
impl<R: Registrar> Drop for Cache<R> {
    fn drop(&mut self) {
        if !self.store.homes.is_of_the_parent() {
            self.clear();
            self.store.bury_forgotten();
        }
    }
}

impl<R: Registrar> fmt::Debug for Cache<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("options", self.options()).finish_non_exhaustive()
    }
}
