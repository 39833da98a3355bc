//! All that a cache consists of. What is done with it is in the files beside this one, a file each.

use std::sync::Arc;

use mmu_notifier::AddressSpace;

use super::books::Books;
use super::counters::{Counters, Stats};
use super::frames::Frames;
use super::homes::Homes;
use super::index::Index;
use super::lock::Lock;
use super::misses::Misses;
use super::options::Options;
use super::registrar::{Registrar, Wait};
use super::table::{Chain, Id, Table};
use crate::sync::{AtomicUsize, Ordering, fence_after_rmw};

/// The parts of a cache.
#[repr(C)]
pub(super) struct Store<R: Registrar> {
    // What every hit reads comes first; none of it is written by hits or by changes that hit nothing.
    pub(super) table: Table<R::Handle>,
    pub(super) index: Index,
    pub(super) homes: Homes,
    pub(super) frames: Option<Frames>,
    pub(super) registrar: Arc<R>,
    pub(super) wait: Wait,
    pub(super) alignment: usize,
    pub(super) max_len: usize,
    pub(super) options: Options,
    pub(super) space: AddressSpace,
    pub(super) misses: Misses,
    pub(super) written: Written,
}

/// What is written when something is registered or ended.
#[repr(align(128))]
pub(super) struct Written {
    pub(super) books: Lock<Books>,
    /// Killed, but still in the index.
    pub(super) corpses: Chain,
    /// Out of the index and without users, still registered.
    pub(super) graves: Chain,
    /// Deregistered, but not yet free for the books.
    pub(super) buried: Chain,
    /// Bytes of everything that is dead and still registered.
    pub(super) unreleased: AtomicUsize,
    pub(super) counters: Counters,
}

impl<R: Registrar> Store<R> {
    pub(super) fn new(space: AddressSpace, registrar: Arc<R>, options: Options) -> Store<R> {
        // Miri goes through all of a table at each look at an entry.
        let entries = options.entries.clamp(1, if cfg!(miri) { 64 } else { 1 << 31 });
        let alignment = registrar.alignment();
        assert!(
            alignment.is_power_of_two(),
            "the alignment of a registrar is a power of two, not {alignment}"
        );
        let (index, writer) = Index::new(entries);
        Store {
            table: Table::new(entries),
            index,
            homes: Homes::new(),
            frames: options.self_check.then(Frames::new),
            wait: registrar.wait(),
            max_len: registrar.max_len(),
            alignment,
            registrar,
            options,
            space,
            misses: Misses::default(),
            written: Written {
                books: Lock::new(Books::new(writer)),
                corpses: Chain::default(),
                graves: Chain::default(),
                buried: Chain::default(),
                unreleased: AtomicUsize::new(0),
                counters: Counters::default(),
            },
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.written.counters
    }

    pub(super) fn thread(&self) -> u64 {
        self.space.caller().thread()
    }

    /// Bytes that are dead and still registered.
    pub(super) fn unreleased(&self) -> usize {
        // Acquire pairs with the Release in `lay_out`: who sees that there is something finds it.
        self.written.unreleased.load(Ordering::Acquire)
    }

    /// Whether the calling thread is in a signal handler that has interrupted itself while it held the lock. It goes on
    /// later than what it does now: what is dead is deregistered then.
    pub(super) fn is_interrupted(&self) -> bool {
        self.written.books.is_held_by(self.thread())
    }

    /// Does something with the books, in which everything that others have left behind has been entered.
    pub(super) fn with_books<T>(&self, with: impl FnOnce(&mut Books) -> T) -> T {
        let mut books = self.written.books.lock(self.thread());
        self.settle(&mut books);
        let value = with(&mut books);
        drop(books);
        self.try_settle();
        value
    }

    /// Enters what others have left behind, unless somebody has the lock, who then does it when he lets go.
    pub(super) fn try_settle(&self) {
        let written = &self.written;
        loop {
            // The push of a corpse, or the release of the lock, which are exchanges, before the look at the other one:
            // either who pushed gets the lock, or who had the lock sees the corpse.
            fence_after_rmw();
            if written.corpses.is_empty() {
                return;
            }
            let Some(mut books) = written.books.try_lock(self.thread()) else { return };
            self.settle(&mut books);
            drop(books);
        }
    }

    /// Takes the dead out of the index; those without users are ripe for burial. Frees the buried.
    pub(super) fn settle(&self, books: &mut Books) {
        let (table, written) = (&self.table, &self.written);
        for id in written.buried.take(table) {
            let entry = table.entry(id);
            books.deregistered += 1;
            books.remove_dying(table, id);
            books.give(table, id, entry.end() - entry.start());
        }
        for id in written.corpses.take(table) {
            if let Some(range) = table.entry(id).range() {
                self.index.remove(&mut books.writer, range, id);
            }
            books.add_dying(table, id);
            // Who killed it lets go.
            self.remove_user(id);
        }
    }

    /// One user of the entry less; the last one of a dead entry makes it ripe. Whether it was that one.
    pub(super) fn remove_user(&self, id: Id) -> bool {
        let is_ripe = self.table.entry(id).remove_user();
        if is_ripe {
            self.written.graves.push(&self.table, id);
        }
        is_ripe
    }

    pub(super) fn stats(&self) -> Stats {
        let (counters, written) = (self.counters(), &self.written);
        let stats = self.with_books(|books| {
            let used = self.table.ever_used().len();
            let table = used * self.table.entry_bytes();
            Stats {
                misses: books.misses,
                registered: books.registered,
                deregistered: books.deregistered,
                entries: books.entries,
                bytes: books.bytes,
                memory: table + self.index.bytes(&books.writer, used),
                ..Stats::default()
            }
        });
        let invalidated = std::array::from_fn(|event| counters.invalidated[event].get());
        Stats {
            hits: self.homes.hits() + counters.found.get(),
            joined: counters.joined.get(),
            retries: counters.retries.get(),
            invalidated,
            evicted: counters.evicted.get(),
            superseded: counters.superseded.get(),
            failed: counters.failed.get(),
            panics: counters.panics.get(),
            refused: counters.refused.get(),
            waited: counters.waited.get(),
            overdue: counters.overdue.get(),
            stale: counters.stale.get(),
            unreleased: written.unreleased.load(Ordering::Relaxed),
            most_unreleased: counters.most_unreleased.get() as usize,
            ..stats
        }
    }
}
