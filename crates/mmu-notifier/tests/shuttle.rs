//! More threads than loom can do, in random schedules and in those that PCT picks: `ci/shuttle.sh`. Sequentially
//! consistent: what needs a fence is loom's.
#![cfg(mmu_shuttle)]
// UNSAFETY: says which of shuttle's threads is calling.
#![expect(unsafe_code)]

use std::cell::Cell;
use std::convert::Infallible;

use mmu_notifier::{
    AddressSpace, Aging, Blocking, Caller, Change, Event, IntervalSubscriber, IntervalSubscription, Pass,
    Range, Subscriber, WouldBlock,
};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use shuttle::sync::{Arc, Mutex};
use shuttle::thread;

const PAGES: usize = 4;

shuttle::thread_local! {
    static ME: Cell<u64> = const { Cell::new(0) };
}

/// shuttle's threads share the thread-locals of the standard library.
fn caller() -> Caller {
    static THREADS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    ME.with(|me| {
        if me.get() == 0 {
            me.set(THREADS.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        }
        // SAFETY: a number that no other thread has. Some share a home, as threads of a large program do.
        unsafe { Caller::new(me.get(), me.get() as usize % 3) }
    })
}

/// Random schedules, and those with few preemptions at the worst places.
fn explore(run: impl Fn() + Send + Sync + 'static) {
    let rounds = std::env::var("MMU_SHUTTLE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    let run = std::sync::Arc::new(run);
    let again = run.clone();
    shuttle::check_random(move || again(), rounds);
    shuttle::check_pct(move || run(), rounds, 3);
}

fn pages_of(range: &Range) -> std::ops::Range<usize> {
    range.start()..range.end().min(PAGES)
}

/// What a page table says, and who mirrors it.
struct World {
    space: AddressSpace,
    table: [AtomicU64; PAGES],
    live: [AtomicI64; PAGES],
}

impl World {
    fn new() -> Arc<World> {
        Arc::new(World {
            space: AddressSpace::with_callers(caller),
            table: std::array::from_fn(|_| AtomicU64::new(0)),
            live: std::array::from_fn(|_| AtomicI64::new(0)),
        })
    }

    fn some_range() -> Range {
        let first = thread_rng().gen_range(0..PAGES);
        Range::new(first, thread_rng().gen_range(first + 1..=PAGES)).unwrap()
    }

    fn middle(&self, range: &Range) {
        for page in pages_of(range) {
            self.table[page].fetch_add(1, SeqCst);
            assert_eq!(self.live[page].load(SeqCst), 0, "live inside an open change");
        }
    }

    /// A change of one of three kinds.
    fn change(&self) {
        let range = World::some_range();
        match thread_rng().gen_range(0..3) {
            0 => drop(self.space.try_invalidate(range, Event::Clear, || self.middle(&range))),
            _ => self.space.invalidate(range, Event::Unmap, || self.middle(&range)),
        }
    }
}

struct Mirror {
    world: Arc<World>,
    range: Range,
    copy: Mutex<Option<Vec<u64>>>,
    gone: AtomicBool,
}

impl Mirror {
    fn zap(&self, copy: &mut Option<Vec<u64>>) {
        assert!(!self.gone.load(SeqCst), "called after it was removed");
        if copy.take().is_some() {
            pages_of(&self.range).for_each(|page| _ = self.world.live[page].fetch_sub(1, SeqCst));
        }
    }

    fn insert(world: &Arc<World>) -> (Arc<Mirror>, IntervalSubscription) {
        let range = World::some_range();
        let (copy, gone) = (Mutex::new(None), AtomicBool::new(false));
        let mirror = Arc::new(Mirror { world: world.clone(), range, copy, gone });
        let interval = world.space.insert(range, Told(mirror.clone())).unwrap();
        (mirror, interval)
    }

    fn read(&self, interval: &IntervalSubscription) {
        let ticket = interval.read();
        let pages = pages_of(&self.range);
        let seen: Vec<_> = pages.clone().map(|page| self.world.table[page].load(SeqCst)).collect();
        let mut copy = self.copy.lock().unwrap();
        if interval.is_stale(&ticket) {
            return;
        }
        if copy.is_none() {
            pages.clone().for_each(|page| _ = self.world.live[page].fetch_add(1, SeqCst));
        }
        for (page, seen) in pages.zip(&seen) {
            assert_eq!(self.world.table[page].load(SeqCst), *seen, "what was installed is out of date");
        }
        *copy = Some(seen);
    }

    fn remove(&self, interval: IntervalSubscription) {
        self.zap(&mut self.copy.lock().unwrap());
        drop(interval);
        self.gone.store(true, SeqCst);
    }
}

/// The traits are implemented for the standard library's `Arc` only.
struct Told<T>(Arc<T>);

impl IntervalSubscriber for Told<Mirror> {
    fn invalidate(&self, _: &Change) -> Pass {
        self.0.zap(&mut self.0.copy.lock().unwrap());
        Pass::Done
    }

    fn try_invalidate(&self, _: &Change) -> Result<Pass, WouldBlock> {
        self.0.zap(&mut *self.0.copy.try_lock().map_err(|_| WouldBlock)?);
        Ok(Pass::Done)
    }
}

/// Counts, and must not be called after it left.
#[derive(Default)]
struct Balance {
    open: AtomicI64,
    gone: AtomicBool,
    released: AtomicU64,
}

impl Balance {
    fn check(&self) {
        assert!(!self.gone.load(SeqCst), "called after it left");
    }
}

impl Subscriber for Told<Balance> {
    fn start(&self, _: &Change) {
        self.0.check();
        self.0.open.fetch_add(1, SeqCst);
    }

    fn end(&self, _: &Change) {
        self.0.check();
        assert!(self.0.open.fetch_sub(1, SeqCst) > 0, "an end without its start");
    }

    fn release(&self) {
        self.0.check();
        self.0.released.fetch_add(1, SeqCst);
    }
}

impl Aging for Told<Balance> {
    fn clear_flush_young(&self, _: Range) -> bool {
        self.0.check();
        true
    }

    fn clear_young(&self, _: Range) -> bool {
        self.0.check();
        true
    }

    fn test_young(&self, _: usize) -> bool {
        self.0.check();
        true
    }

    fn release(&self) {
        self.0.released.fetch_add(1, SeqCst);
    }
}

fn spawn(world: &Arc<World>, run: impl FnOnce(&Arc<World>) + Send + 'static) -> thread::JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || run(&world))
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// G7 with two changes at a time and three readers who come and go.
#[test]
fn readers_against_changes() {
    explore(|| {
        let world = World::new();
        let changes = [0; 2].map(|_| spawn(&world, |world| (0..2).for_each(|_| world.change())));
        let readers = [0; 3].map(|_| {
            spawn(&world, |world| {
                let (mirror, interval) = Mirror::insert(world);
                (0..2).for_each(|_| mirror.read(&interval));
                mirror.remove(interval);
            })
        });
        join(changes);
        join(readers);
        assert!(!world.space.has_subscribers());
        assert!(world.space.synchronize());
    });
}

/// G1, G4 and G5 with three changes at a time and three who come and go.
#[test]
fn comers_and_goers_against_changes() {
    explore(|| {
        let world = World::new();
        let stays = Arc::new(Balance::default());
        let subscription = world.space.subscribe(Told(stays.clone()));
        let changes = [0; 3].map(|_| spawn(&world, |world| (0..2).for_each(|_| world.change())));
        let comers = [0; 3].map(|_| {
            spawn(&world, |world| {
                let balance = Arc::new(Balance::default());
                let changes = world.space.subscribe(Told(balance.clone()));
                let aging = world.space.subscribe_aging(Told(balance.clone()));
                world.space.clear_young(Range::EVERYTHING);
                drop((changes, aging));
                balance.gone.store(true, SeqCst);
                assert_eq!(balance.released.load(SeqCst), 2);
            })
        });
        join(changes);
        join(comers);
        assert_eq!(stays.open.load(SeqCst), 0);
        drop(subscription);
        assert_eq!(stays.released.load(SeqCst), 1);
    });
}

/// Changes that are ended by another thread than started them, while others come and go.
#[test]
fn handed_over_changes() {
    explore(|| {
        let world = World::new();
        let stays = Arc::new(Balance::default());
        let subscription = world.space.subscribe(Told(stays.clone()));
        let starters = [0; 2].map(|_| {
            spawn(&world, |world| {
                let change = Change::new(World::some_range(), Event::Migrate, Blocking::Allowed);
                let open = world.space.start(&world.space.caller(), change).unwrap();
                let ends = spawn(world, move |world| {
                    world.middle(&change.range());
                    assert!(world.space.end(&world.space.caller(), open));
                });
                let balance = Arc::new(Balance::default());
                drop(world.space.subscribe(Told(balance.clone())));
                balance.gone.store(true, SeqCst);
                world.change();
                join([ends]);
            })
        });
        let (mirror, interval) = Mirror::insert(&world);
        mirror.read(&interval);
        mirror.remove(interval);
        join(starters);
        assert_eq!(stays.open.load(SeqCst), 0);
        drop(subscription);
    });
}

/// Get, put and synchronize by four threads.
#[test]
fn sharers() {
    struct One(Arc<Balance>);
    impl Subscriber for One {
        fn start(&self, _: &Change) {
            self.0.check();
        }
        fn end(&self, _: &Change) {
            self.0.check();
        }
    }
    impl Drop for One {
        fn drop(&mut self) {
            self.0.gone.store(true, SeqCst);
        }
    }
    explore(|| {
        let world = World::new();
        let changing = spawn(&world, |world| world.change());
        let sharers = [0; 3].map(|_| {
            spawn(&world, |world| {
                let make = || Ok::<_, Infallible>(One(Arc::default()));
                let share = world.space.get(make).unwrap();
                let mine = share.0.clone();
                assert!(!mine.gone.load(SeqCst));
                drop(share);
                assert!(world.space.synchronize());
            })
        });
        join(sharers);
        join([changing]);
        assert!(!world.space.has_subscribers());
    });
}

/// The end of the address space, against three who leave.
#[test]
fn release_against_goers() {
    explore(|| {
        let world = World::new();
        let balances = [0; 3].map(|_| Arc::new(Balance::default()));
        let goers: Vec<_> = balances
            .iter()
            .map(|balance| {
                let subscription = world.space.subscribe(Told(balance.clone()));
                let balance = balance.clone();
                thread::spawn(move || {
                    drop(subscription);
                    assert_eq!(balance.released.load(SeqCst), 1);
                })
            })
            .collect();
        let changing = spawn(&world, |world| world.change());
        world.space.release();
        balances.iter().for_each(|balance| assert_eq!(balance.released.load(SeqCst), 1));
        join(goers);
        join([changing]);
    });
}
