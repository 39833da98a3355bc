//! Every interleaving of a few steps, under loom's memory model: `ci/loom.sh`.
#![cfg(mmu_loom)]
// UNSAFETY: shares loom's cell between threads, which is its purpose.
#![expect(unsafe_code)]

use std::cell::Cell;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::*};
use loom::thread;
use mmu_notifier::{AddressSpace, Caller, Change, Event, Range, Subscriber};

const PAGES: Range = match Range::new(0x1000, 0x2000) {
    Ok(pages) => pages,
    Err(_) => panic!("a range"),
};

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
        Caller { thread: me.get(), home: 0, stack: 0 }
    })
}

fn space() -> AddressSpace {
    AddressSpace::with_callers(caller)
}

/// Explores with at most this many preemptions: more finds nothing that fewer do not, and takes hours.
fn explore(run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(run);
}

/// A subscriber with state that must not be touched by two at once: loom reports it if it is.
#[derive(Default)]
struct Touch {
    state: loom::cell::UnsafeCell<u32>,
    starts: AtomicUsize,
    ends: AtomicUsize,
}

// SAFETY: the cell is only ever asked who touches it, never dereferenced; loom reports two at once.
unsafe impl Sync for Touch {}

struct Shared(Arc<Touch>);

impl Subscriber for Shared {
    fn start(&self, _: &Change) {
        self.0.state.with(|_| ());
        self.0.starts.fetch_add(1, Relaxed);
    }

    fn end(&self, _: &Change) {
        self.0.state.with(|_| ());
        self.0.ends.fetch_add(1, Relaxed);
    }
}

/// G4: a change that is open when `subscribe` has returned is known to the subscriber.
#[test]
fn no_unknown_change_is_open_after_subscribing() {
    explore(|| {
        let space = space();
        let in_change = Arc::new(AtomicUsize::new(0));
        let changing = {
            let (space, in_change) = (space.clone(), in_change.clone());
            thread::spawn(move || {
                space.invalidate(PAGES, Event::Unmap, || {
                    in_change.store(1, Release);
                    in_change.store(0, Release);
                });
            })
        };
        let touch = Arc::new(Touch::default());
        let subscription = space.subscribe(Shared(touch.clone()));
        if in_change.load(Acquire) == 1 {
            assert_eq!(touch.starts.load(Relaxed), 1, "the pages change and nobody has told us");
        }
        changing.join().unwrap();
        assert_eq!(touch.starts.load(Relaxed), touch.ends.load(Relaxed));
        drop(subscription);
    });
}

/// The same for a change that begins as if nobody were there.
#[test]
fn no_unheard_change_is_open_after_subscribing() {
    explore(|| {
        let space = space();
        let in_change = Arc::new(AtomicUsize::new(0));
        let changing = {
            let (space, in_change) = (space.clone(), in_change.clone());
            thread::spawn(move || {
                let change = Change::new(PAGES, Event::Unmap, mmu_notifier::Blocking::Forbidden);
                if let Some(open) = space.start_unheard(&space.caller(), &change) {
                    in_change.store(1, Release);
                    in_change.store(0, Release);
                    space.end_unheard(open);
                }
            })
        };
        let subscription = space.subscribe(Shared(Arc::new(Touch::default())));
        assert_eq!(in_change.load(Acquire), 0, "the pages change and nobody has told us");
        changing.join().unwrap();
        drop(subscription);
    });
}

/// G5: when the drop of a subscription has returned, no callback runs or will run.
#[test]
fn no_callback_after_unsubscribing() {
    explore(|| {
        let space = space();
        let touch = Arc::new(Touch::default());
        let subscription = space.subscribe(Shared(touch.clone()));
        let changing = {
            let space = space.clone();
            thread::spawn(move || space.invalidate(PAGES, Event::Unmap, || ()))
        };
        drop(subscription);
        // A callback that still runs, or comes later, is found by loom as a concurrent access.
        touch.state.with_mut(|_| ());
        changing.join().unwrap();
        assert!(touch.starts.load(Relaxed) >= touch.ends.load(Relaxed));
    });
}

/// The same when the change is open already: its end is the race.
#[test]
fn no_end_after_unsubscribing() {
    explore(|| {
        let space = space();
        let touch = Arc::new(Touch::default());
        let subscription = space.subscribe(Shared(touch.clone()));
        let caller = space.caller();
        let open = space
            .start(&caller, Change::new(PAGES, Event::Unmap, mmu_notifier::Blocking::Allowed))
            .expect("blocking");
        let leaving = thread::spawn(move || {
            drop(subscription);
            touch.state.with_mut(|_| ());
        });
        assert!(space.end(&caller, open));
        leaving.join().unwrap();
    });
}

/// Two who subscribe at the same time are both on the list.
#[test]
fn nobody_is_lost_when_two_subscribe() {
    explore(|| {
        let space = space();
        let touches = [Arc::new(Touch::default()), Arc::new(Touch::default())];
        let other = {
            let (space, touch) = (space.clone(), touches[0].clone());
            thread::spawn(move || space.subscribe(Shared(touch)))
        };
        let one = space.subscribe(Shared(touches[1].clone()));
        let other = other.join().unwrap();
        space.invalidate(PAGES, Event::Unmap, || ());
        for touch in &touches {
            assert_eq!((touch.starts.load(Relaxed), touch.ends.load(Relaxed)), (1, 1));
        }
        drop((one, other));
    });
}

/// A list that is walked is not freed by one who replaces it: loom's `Arc`s of the entries notice.
#[test]
fn a_walked_list_is_not_freed() {
    explore(|| {
        let space = space();
        let touches = [Arc::new(Touch::default()), Arc::new(Touch::default())];
        let stays = space.subscribe(Shared(touches[0].clone()));
        let leaves = space.subscribe(Shared(touches[1].clone()));
        let changing = {
            let space = space.clone();
            thread::spawn(move || space.invalidate(PAGES, Event::Unmap, || ()))
        };
        drop(leaves);
        changing.join().unwrap();
        assert_eq!((touches[0].starts.load(Relaxed), touches[0].ends.load(Relaxed)), (1, 1));
        drop(stays);
    });
}

/// An end by its thread and one by somebody else (who takes it for abandoned): one of them.
#[test]
fn a_change_is_ended_once() {
    explore(|| {
        let space = space();
        let touch = Arc::new(Touch::default());
        let subscription = space.subscribe(Shared(touch.clone()));
        let open = space
            .start(&space.caller(), Change::new(PAGES, Event::Unmap, mmu_notifier::Blocking::Allowed))
            .expect("blocking");
        let other = {
            let space = space.clone();
            thread::spawn(move || space.end(&space.caller(), open))
        };
        let one = space.end(&space.caller(), open);
        assert!(one ^ other.join().unwrap());
        assert_eq!(touch.ends.load(Relaxed), 1);
        drop(subscription);
    });
}
