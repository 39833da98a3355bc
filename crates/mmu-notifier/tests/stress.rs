//! Everything at once, for as long as `MMU_STRESS_SECONDS` says (`ci/stress.sh`), with subscribers that check the
//! promises themselves: nothing in a mirror is live inside an open change of it, every start has its end, nobody is
//! called after he left, and what was retired is freed.
#![cfg(not(any(mmu_loom, mmu_shuttle)))]
// UNSAFETY: plants a race, on request.
#![expect(unsafe_code)]

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mmu_notifier::{
    AddressSpace, Aging, Blocking, Change, Event, IntervalSubscriber, IntervalSubscription, Invalidation,
    Options, Pass, Range, Refuser, SecondaryTlb, Subscriber, Ticketed, WouldBlock,
};

const PAGE: usize = 0x1000;
const PAGES: usize = 64;

/// The address space as the test knows it.
struct World {
    space: AddressSpace,
    /// What the page table says of each page: raised in the middle of a change.
    table: [AtomicU64; PAGES],
    /// How many mirrors reach each page now.
    live: [AtomicI64; PAGES],
    stop: AtomicBool,
    /// What was done.
    changes: AtomicU64,
    refused: AtomicU64,
    installed: AtomicU64,
    stale: AtomicU64,
    /// Subscribers of intervals that are not dropped yet, and the most there were.
    mirrors: AtomicI64,
    most_mirrors: AtomicI64,
}

fn pages_of(range: &Range) -> std::ops::Range<usize> {
    range.start() / PAGE..(range.end() / PAGE).min(PAGES)
}

fn range(pages: std::ops::Range<usize>) -> Range {
    Range::new(pages.start * PAGE, pages.end * PAGE).unwrap()
}

/// Small numbers that differ.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    fn range(&mut self) -> Range {
        let first = self.below(PAGES);
        range(first..(first + 1 + self.below(8)).min(PAGES))
    }
}

impl World {
    fn runs(&self) -> bool {
        !self.stop.load(Relaxed)
    }

    /// The middle of a change: nothing reaches the pages, from the first instruction to the last.
    fn middle(&self, range: &Range) {
        for page in pages_of(range) {
            assert_eq!(self.live[page].load(Relaxed), 0, "live inside an open change");
            self.table[page].fetch_add(1, Relaxed);
        }
        std::thread::yield_now();
        for page in pages_of(range) {
            assert_eq!(self.live[page].load(Relaxed), 0, "live inside an open change");
        }
        self.changes.fetch_add(1, Relaxed);
    }
}

/// Copies of some translations.
struct Mirror {
    world: Arc<World>,
    range: Range,
    copy: Mutex<Option<Vec<u64>>>,
    two_passes: bool,
    gone: AtomicBool,
}

impl Mirror {
    fn zap(&self, copy: &mut Option<Vec<u64>>) {
        assert!(!self.gone.load(Relaxed), "called after it was removed");
        if copy.take().is_some() {
            pages_of(&self.range).for_each(|page| _ = self.world.live[page].fetch_sub(1, Relaxed));
        }
    }
}

impl IntervalSubscriber for Mirror {
    fn invalidate(&self, change: &Change) -> Pass {
        assert!(change.range().overlaps(&self.range), "told only of what concerns it");
        let mut copy = self.copy.lock().unwrap();
        if self.two_passes {
            return Pass::Unfinished;
        }
        self.zap(&mut copy);
        Pass::Done
    }

    fn try_invalidate(&self, _: &Change) -> Result<Pass, WouldBlock> {
        self.zap(&mut *self.copy.try_lock().map_err(|_| WouldBlock)?);
        Ok(Pass::Done)
    }

    fn finish(&self, _: &Change) {
        self.zap(&mut self.copy.lock().unwrap());
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.world.mirrors.fetch_sub(1, Relaxed);
    }
}

impl World {
    /// Reads a range under the protocol, once.
    fn read(&self, interval: &IntervalSubscription, mirror: &Mirror) {
        let ticket = interval.read();
        let pages = pages_of(&mirror.range);
        let seen: Vec<_> = pages.clone().map(|page| self.table[page].load(Relaxed)).collect();
        let mut copy = mirror.copy.lock().unwrap();
        if interval.is_stale(&ticket) {
            self.stale.fetch_add(1, Relaxed);
            return;
        }
        if copy.is_none() {
            pages.clone().for_each(|page| _ = self.live[page].fetch_add(1, Relaxed));
        }
        self.installed.fetch_add(1, Relaxed);
        // As long as the lock is held no change of these pages gets to its middle.
        for (page, seen) in pages.zip(&seen) {
            assert_eq!(self.table[page].load(Relaxed), *seen, "what was installed is out of date");
        }
        *copy = Some(seen);
    }
}

/// Readers: intervals come, are read, and go.
fn read_intervals(world: &Arc<World>, mut dice: Dice) {
    while world.runs() {
        let range = dice.range();
        let mirror = Arc::new(Mirror {
            world: world.clone(),
            range,
            copy: Mutex::default(),
            two_passes: dice.below(4) == 0,
            gone: AtomicBool::new(false),
        });
        let mirrors = world.mirrors.fetch_add(1, Relaxed) + 1;
        world.most_mirrors.fetch_max(mirrors, Relaxed);
        let interval = world.space.insert(range, mirror.clone()).unwrap();
        for _ in 0..dice.below(30) {
            world.read(&interval, &mirror);
        }
        // From the drop on nobody tells it any more.
        mirror.zap(&mut mirror.copy.lock().unwrap());
        drop(interval);
        mirror.gone.store(true, Relaxed);
    }
}

/// Changes that overlap each other's, some handed to `ender`, some that must not wait.
fn change<'a>(world: &'a World, mut dice: Dice, ender: SyncSender<(Invalidation<'a>, Range)>) {
    while world.runs() {
        let range = dice.range();
        match dice.below(4) {
            0 => {
                if world.space.try_invalidate(range, Event::Clear, || world.middle(&range)).is_err() {
                    world.refused.fetch_add(1, Relaxed);
                }
            }
            1 => {
                let change = Change::new(range, Event::Migrate, Blocking::Allowed).with_owner(7);
                let bracket = world.space.begin(change).unwrap();
                ender.send((bracket, range)).unwrap();
            }
            _ => world.space.invalidate(range, Event::Unmap, || world.middle(&range)),
        }
    }
}

/// Makes and ends the changes that others have begun.
fn end<'a>(world: &'a World, begun: Receiver<(Invalidation<'a>, Range)>) {
    for (bracket, range) in begun {
        world.middle(&range);
        bracket.end();
    }
}

/// Counts, and checks that whoever is told later than the intervals finds nothing live.
struct Balance {
    world: Arc<World>,
    open: AtomicI64,
    gone: AtomicBool,
    released: AtomicU64,
}

impl Balance {
    fn new(world: &Arc<World>) -> Arc<Balance> {
        Arc::new(Balance {
            world: world.clone(),
            open: AtomicI64::new(0),
            gone: AtomicBool::new(false),
            released: AtomicU64::new(0),
        })
    }

    fn leave(&self) {
        self.gone.store(true, Relaxed);
        assert_eq!(self.released.load(Relaxed), 1);
        assert!(self.open.load(Relaxed) >= 0, "an end without its start");
    }
}

impl Subscriber for Balance {
    fn start(&self, change: &Change) {
        assert!(!self.gone.load(Relaxed), "called after it left");
        self.open.fetch_add(1, Relaxed);
        for page in pages_of(&change.range()) {
            assert_eq!(self.world.live[page].load(Relaxed), 0, "live when its change is about to begin");
        }
    }

    fn end(&self, _: &Change) {
        assert!(!self.gone.load(Relaxed), "called after it left");
        self.open.fetch_sub(1, Relaxed);
    }

    fn release(&self) {
        self.released.fetch_add(1, Relaxed);
    }
}

/// Every ticket that was given is taken, or dropped with its subscriber.
struct Tickets(Arc<AtomicI64>);

struct Slip(Arc<AtomicI64>);

impl Drop for Slip {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Ticketed for Tickets {
    type Ticket = Slip;

    fn start(&self, _: &Change) -> Slip {
        self.0.fetch_add(1, Relaxed);
        Slip(self.0.clone())
    }

    fn try_start(&self, change: &Change) -> Result<Slip, WouldBlock> {
        if change.range().start().is_multiple_of(7 * PAGE) { Err(WouldBlock) } else { Ok(self.start(change)) }
    }

    fn end(&self, _: &Change, _: Slip) {}
}

/// Refuses some.
struct Busy;

impl Refuser for Busy {
    fn start(&self, _: &Change) {}

    fn try_start(&self, change: &Change) -> Result<(), WouldBlock> {
        if change.range().start().is_multiple_of(5 * PAGE) { Err(WouldBlock) } else { Ok(()) }
    }
}

/// Is asked about age and told to flush until it has left.
#[derive(Default)]
struct Other {
    gone: AtomicBool,
    called: AtomicU64,
}

impl Other {
    fn call(&self) -> bool {
        assert!(!self.gone.load(Relaxed), "called after it left");
        self.called.fetch_add(1, Relaxed).is_multiple_of(2)
    }
}

impl Aging for Other {
    fn clear_flush_young(&self, _: Range) -> bool {
        self.call()
    }

    fn clear_young(&self, _: Range) -> bool {
        self.call()
    }

    fn test_young(&self, _: usize) -> bool {
        self.call()
    }
}

impl SecondaryTlb for Other {
    fn flush(&self, _: Range) {
        self.call();
    }
}

/// One that is shared, and says when it is gone.
struct One(Arc<AtomicI64>);

impl Subscriber for One {
    fn start(&self, _: &Change) {}
    fn end(&self, _: &Change) {}
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Subscribers of every kind come and go.
fn come_and_go(world: &Arc<World>, mut dice: Dice) {
    let shared = Arc::new(AtomicI64::new(0));
    while world.runs() {
        match dice.below(5) {
            0 => {
                let tickets = Arc::new(AtomicI64::new(0));
                let subscription = world.space.subscribe_ticketed(Tickets(tickets.clone()));
                pause(&mut dice);
                drop(subscription);
                assert_eq!(tickets.load(Relaxed), 0, "a ticket is left");
            }
            1 => {
                let other = Arc::new(Other::default());
                let aging = world.space.subscribe_aging(other.clone());
                let tlb = world.space.subscribe_tlb(other.clone());
                pause(&mut dice);
                drop((aging, tlb));
                other.gone.store(true, Relaxed);
            }
            2 => {
                let refuser = world.space.subscribe_refuser(Busy);
                pause(&mut dice);
                drop(refuser);
            }
            3 => {
                let make = || {
                    shared.fetch_add(1, Relaxed);
                    Ok::<_, Infallible>(One(shared.clone()))
                };
                let share = world.space.get(make).unwrap();
                drop((share.clone(), share));
            }
            _ => {
                let balance = Balance::new(world);
                let subscription = world.space.subscribe(balance.clone());
                pause(&mut dice);
                drop(subscription);
                balance.leave();
            }
        }
    }
}

fn pause(dice: &mut Dice) {
    (0..dice.below(20)).for_each(|_| std::thread::yield_now());
}

/// Asks about age and flushes.
fn age(world: &World, mut dice: Dice) {
    while world.runs() {
        let range = dice.range();
        world.space.clear_young(range);
        world.space.test_young(range.start());
        world.space.clear_flush_young(range);
        world.space.flush(range);
        pause(&mut dice);
    }
}

/// Bytes of the process in memory, where that can be known.
fn resident() -> usize {
    let statm = if cfg!(miri) { None } else { std::fs::read_to_string("/proc/self/statm").ok() };
    statm.and_then(|line| line.split(' ').nth(1)?.parse::<usize>().ok()).unwrap_or(0) * PAGE
}

#[test]
fn everything_at_once() {
    let seconds = std::env::var("MMU_STRESS_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let time = seconds.map_or(Duration::from_millis(if cfg!(miri) { 30 } else { 1000 }), Duration::from_secs);
    let stalls = Arc::new(AtomicU64::new(0));
    let counted = stalls.clone();
    let on_stall = Box::new(move |stall: &mmu_notifier::Stall| {
        eprintln!("{stall}");
        counted.fetch_add(1, Relaxed);
    });
    let world = Arc::new(World {
        space: AddressSpace::with(Options {
            stall_after: Duration::from_secs(30),
            on_stall,
            ..Options::default()
        }),
        table: std::array::from_fn(|_| AtomicU64::new(0)),
        live: std::array::from_fn(|_| AtomicI64::new(0)),
        stop: AtomicBool::new(false),
        changes: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        installed: AtomicU64::new(0),
        stale: AtomicU64::new(0),
        mirrors: AtomicI64::new(0),
        most_mirrors: AtomicI64::new(0),
    });
    let stays = Balance::new(&world);
    let subscription = world.space.subscribe(stays.clone());
    let mut early = 0;
    std::thread::scope(|scope| {
        let world = &world;
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let mut roll = || Dice(dice.below(1 << 40) as u64 | 1);
        let (begin, begun) = sync_channel(2);
        scope.spawn(move || end(world, begun));
        for _ in 0..3 {
            let (dice, begin) = (roll(), begin.clone());
            scope.spawn(move || change(world, dice, begin));
        }
        drop(begin);
        for _ in 0..3 {
            let dice = roll();
            scope.spawn(move || read_intervals(world, dice));
        }
        for _ in 0..2 {
            let dice = roll();
            scope.spawn(move || come_and_go(world, dice));
        }
        let dice = roll();
        scope.spawn(move || age(world, dice));
        let began = Instant::now();
        while began.elapsed() < time && world.mirrors.load(Relaxed) < 100_000 {
            std::thread::sleep(Duration::from_millis(5));
            if early == 0 && began.elapsed() > time / 4 {
                early = resident();
            }
        }
        world.stop.store(true, Relaxed);
    });
    let late = resident();
    assert_eq!(stays.open.load(Relaxed), 0, "every start has its end");
    drop(subscription);
    stays.leave();
    assert!(world.space.synchronize());
    assert_eq!(world.mirrors.load(Relaxed), 0, "every interval's subscriber is dropped");
    assert!(world.live.iter().all(|live| live.load(Relaxed) == 0));
    assert!(!world.space.has_subscribers());
    assert_eq!(stalls.load(Relaxed), 0, "nobody waits for ever");
    let [changes, refused, installed, stale] =
        [&world.changes, &world.refused, &world.installed, &world.stale].map(|count| count.load(Relaxed));
    let most = world.most_mirrors.load(Relaxed);
    println!(
        "{changes} changes, {refused} refused; {installed} installed, {stale} stale; at most {most} intervals;"
    );
    println!("{} kB in memory after a quarter, {} kB at the end", early / 1024, late / 1024);
    assert!(changes > 0 && installed > 0, "something happened");
    assert!(most < 1000, "removed intervals pile up");
    assert!(late < early + (32 << 20) || early == 0, "memory grows");
}

/// A callback that is not over when the subscriber's memory is written: for `ci/tsan.sh`, which asks for it and must find
/// it.
#[test]
fn planted() {
    if std::env::var_os("MMU_PLANTED_RACE").is_none() {
        return;
    }
    struct Cell(std::cell::UnsafeCell<u64>);
    // SAFETY: none. This is the race.
    unsafe impl Sync for Cell {}
    struct Reads(Arc<Cell>);
    impl Subscriber for Reads {
        fn start(&self, _: &Change) {
            // SAFETY: none, as above.
            assert!(unsafe { *self.0.0.get() } < 1000);
        }
        fn end(&self, _: &Change) {}
    }
    let cell = Arc::new(Cell(std::cell::UnsafeCell::new(0)));
    let space = AddressSpace::new();
    let _subscription = space.subscribe(Reads(cell.clone()));
    std::thread::scope(|scope| {
        scope.spawn(|| (0..1000).for_each(|_| space.invalidate(range(0..1), Event::Clear, || ())));
        // SAFETY: none: it should have unsubscribed before.
        (0..1000).for_each(|number| unsafe { *cell.0.get() = number % 10 });
    });
}
