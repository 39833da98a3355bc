//! Every interleaving of a few steps, under loom's memory model: `ci/loom.sh`.
#![cfg(mmu_loom)]
// UNSAFETY: shares loom's cells between threads, which is their purpose.
#![expect(unsafe_code)]

mod handover;
mod intervals;
mod other_kinds;
mod releasing;
mod sharing;
mod subscribing;

use std::cell::Cell;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::*};
use mmu_notifier::{AddressSpace, Blocking, Caller, Change, Event, Range, Subscriber};

const PAGES: Range = match Range::new(0x1000, 0x2000) {
    Ok(pages) => pages,
    Err(_) => panic!("a range"),
};

const CHANGE: Change = Change::new(PAGES, Event::Unmap, Blocking::Allowed);

loom::thread_local! {
    static ME: Cell<u64> = Cell::new(0);
}

/// loom's threads share the thread-locals of the standard library.
fn caller() -> Caller {
    static THREADS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    ME.with(|me| {
        if me.get() == 0 {
            me.set(THREADS.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        }
        // SAFETY: a number that no other thread has.
        unsafe { Caller::new(me.get(), 0) }
    })
}

fn space() -> AddressSpace {
    AddressSpace::with_callers(caller)
}

/// Explores with at most this many preemptions: more find little that fewer do not, and take hours.
fn explore(run: impl Fn() + Sync + Send + 'static) {
    explore_with(2, run);
}

fn explore_with(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(run);
}

/// Explores for a minute what would take hours: both wait for each other, and each wait multiplies what can happen. The
/// model of the protocol (`models/exit.pml`) is explored to the end.
fn explore_for_a_minute(run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(1);
    model.max_duration = Some(std::time::Duration::from_secs(60));
    model.check(run);
}

/// Something that callbacks look at, and that is taken away when they must be over: loom reports who does one during
/// the other, or without an order between them.
#[derive(Default)]
struct Watched(UnsafeCell<()>);

// SAFETY: the cell is only ever asked who touches it, never dereferenced; loom reports two at once.
unsafe impl Sync for Watched {}
// SAFETY: as above.
unsafe impl Send for Watched {}

impl Watched {
    fn touch(&self) {
        self.0.with(|_| ());
    }

    fn take_away(&self) {
        self.0.with_mut(|_| ());
    }
}

/// A subscriber that counts, and whose callbacks must be over when somebody [takes it away](Watched::take_away).
#[derive(Default)]
struct Witness {
    state: Watched,
    starts: AtomicUsize,
    ends: AtomicUsize,
    releases: AtomicUsize,
}

impl Witness {
    fn new() -> Arc<Witness> {
        Arc::new(Witness::default())
    }

    /// Starts and ends so far.
    fn told(&self) -> (usize, usize) {
        (self.starts.load(Relaxed), self.ends.load(Relaxed))
    }
}

/// The subscriber itself: it goes when the notifier drops it, and then nobody may look at it any more.
struct Told(Arc<Witness>);

impl Subscriber for Told {
    fn start(&self, _: &Change) {
        self.0.state.touch();
        self.0.starts.fetch_add(1, Relaxed);
    }

    fn end(&self, _: &Change) {
        self.0.state.touch();
        self.0.ends.fetch_add(1, Relaxed);
    }

    fn release(&self) {
        self.0.state.touch();
        self.0.releases.fetch_add(1, Relaxed);
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.0.state.take_away();
    }
}
