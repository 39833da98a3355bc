//! One walk over the ranges.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use mmu_notifier::{AddressSpace, Blocking, Change, PAGE_SIZE, Range, Refuser, Subscriber, WouldBlock};
use mmu_notifier_primary::reaper::{ATTEMPTS, EvictError, Options, Reaper, StartError};

use crate::memory::{Memory, Told, by_hand};

/// Refuses what overlaps its range, as long as it is busy.
pub(crate) struct Busy {
    pub(crate) range: Range,
    pub(crate) is_busy: AtomicBool,
}

impl Busy {
    pub(crate) fn with(range: Range) -> Arc<Busy> {
        Arc::new(Busy { range, is_busy: AtomicBool::new(true) })
    }
}

impl Refuser for Busy {
    fn start(&self, _: &Change) {
        panic!("the reaper must not wait");
    }

    fn try_start(&self, change: &Change) -> Result<(), WouldBlock> {
        assert_eq!(change.blocking(), Blocking::Forbidden);
        let refuses = self.is_busy.load(SeqCst) && change.range().overlaps(&self.range);
        if refuses { Err(WouldBlock) } else { Ok(()) }
    }
}

#[test]
fn each_range_is_one_change_and_the_highest_comes_first() {
    let space = AddressSpace::new();
    let told = Arc::new(Told::default());
    let _told = space.subscribe(told.clone());
    let reaper = Reaper::start(&space, by_hand()).unwrap();
    let memory: Vec<Memory> = (1..9).map(Memory::new).collect();
    let evictable: Vec<_> = memory.iter().map(|memory| memory.add_to(&reaper).unwrap()).collect();
    let reaped = reaper.reap().unwrap();
    assert_eq!((reaped.announced, reaped.discarded), (8, 36 * PAGE_SIZE as u64));
    let starts = told.starts();
    assert!(starts.is_sorted_by(|a, b| a > b), "{starts:x?}");
    assert!(memory.iter().all(|memory| memory.byte() == 0));
    assert_eq!(reaper.stats().freed(), 36 * PAGE_SIZE as u64);

    memory[3].fill(8);
    let reaped = reaper.reap().unwrap();
    assert_eq!(reaped.announced, 1, "what is not present is passed over");
    assert_eq!(told.starts().last(), Some(&memory[3].range().start()));

    memory.iter().for_each(|memory| memory.fill(9));
    drop(evictable);
    assert_eq!(reaper.reap().unwrap().announced, 0);
    assert!(memory.iter().all(|memory| memory.byte() == 9), "their owner's again");
}

#[test]
fn who_refuses_keeps_it_and_the_rest_goes() {
    let space = AddressSpace::new();
    let memory = [Memory::new(4), Memory::new(4), Memory::new(4)];
    let busy = Busy::with(memory[1].range());
    let _busy = space.subscribe_refuser(busy.clone());
    let told = Arc::new(Told::default());
    let _told = space.subscribe(told.clone());
    let reaper = Reaper::start(&space, by_hand()).unwrap();
    let _evictable = memory.each_ref().map(|memory| memory.add_to(&reaper).unwrap());
    let reaped = reaper.reap().unwrap();
    assert_eq!((reaped.announced, reaped.refused, reaped.left), (3, 1, 1));
    assert_eq!(memory.each_ref().map(Memory::byte), [0, 7, 0]);
    assert_eq!(told.starts().len(), 3, "who was told of the refused one got its end");
    busy.is_busy.store(false, SeqCst);
    let reaped = reaper.reap().unwrap();
    assert_eq!((reaped.announced, reaped.refused, reaped.left), (1, 0, 0));
    assert_eq!(memory[1].byte(), 0);
}

/// As `oom_reaper_gives_up` of the traces of the kernel: three mappings, somebody who always refuses, ten attempts.
#[test]
fn all_that_is_refused_is_announced_again_in_the_same_order() {
    let space = AddressSpace::new();
    let told = Arc::new(Told::default());
    let _told = space.subscribe(told.clone());
    let _busy = space.subscribe_refuser(Busy::with(Range::EVERYTHING));
    let reaper = Reaper::start(&space, by_hand()).unwrap();
    let mut memory = [Memory::new(4), Memory::new(4), Memory::new(4)];
    let _evictable = memory.each_ref().map(|memory| memory.add_to(&reaper).unwrap());
    for _ in 0..ATTEMPTS {
        reaper.reap().unwrap();
    }
    memory.sort_by_key(|memory| std::cmp::Reverse(memory.range().start()));
    let once = memory.each_ref().map(|memory| memory.range().start());
    assert_eq!(told.starts(), once.repeat(ATTEMPTS as usize));
    assert_eq!(reaper.stats().marked, 3);
    assert_eq!(memory.each_ref().map(Memory::byte), [7; 3]);
}

#[test]
fn what_is_still_held_is_not_free_and_is_tried_again() {
    let held = Arc::new(AtomicU64::new(0));
    /// Pins pages: lets go of them late.
    struct Pins(Arc<AtomicU64>);
    impl Subscriber for Pins {
        fn start(&self, change: &Change) {
            self.0.store(change.range().len() as u64, SeqCst);
        }
        fn end(&self, _: &Change) {}
    }
    let space = AddressSpace::new();
    let pins = space.subscribe(Pins(held.clone()));
    let unreleased = held.clone();
    let options = Options { unreleased: Box::new(move || unreleased.load(SeqCst)), ..by_hand() };
    let reaper = Reaper::start(&space, options).unwrap();
    let memory = Memory::new(16);
    let _evictable = memory.add_to(&reaper).unwrap();
    let reaped = reaper.reap().unwrap();
    assert_eq!((reaped.discarded, reaped.held, reaped.left), (16 * PAGE_SIZE as u64, 1, 1));
    assert_eq!(reaper.stats().freed(), 0);
    let reaped = reaper.reap().unwrap();
    assert_eq!((reaped.announced, reaped.discarded, reaped.left), (1, 0, 1), "announced, to be let go of");
    drop(pins);
    held.store(0, SeqCst);
    assert_eq!(reaper.reap().unwrap().left, 0);
    assert_eq!(reaper.stats().freed(), 16 * PAGE_SIZE as u64);
}

#[test]
fn a_subscriber_that_panics_has_refused() {
    struct Panics;
    impl Subscriber for Panics {
        fn start(&self, change: &Change) {
            std::panic::resume_unwind(Box::new(change.range()));
        }
        fn end(&self, _: &Change) {}
    }
    let space = AddressSpace::new();
    let panics = space.subscribe(Panics);
    let reaper = Reaper::start(&space, by_hand()).unwrap();
    let memory = Memory::new(1);
    let evictable = memory.add_to(&reaper).unwrap();
    let reaped = reaper.reap().unwrap();
    assert_eq!((reaped.panicked, reaped.left, memory.byte()), (1, 1, 7));
    drop(panics);
    assert_eq!(reaper.reap().unwrap().discarded, PAGE_SIZE as u64);
    drop(evictable);
}

#[test]
fn what_the_kernel_would_pass_over_is_not_added() {
    let reaper = Reaper::start(&AddressSpace::new(), Options { ranges: 2, ..by_hand() }).unwrap();
    let shared = Memory::of(1, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    assert!(matches!(shared.add_to(&reaper), Err(EvictError::Shared { .. })));
    let memory = [Memory::new(2), Memory::new(2), Memory::new(2)];
    memory[0].lock();
    let first = memory[0].add_to(&reaper).unwrap();
    let error = memory[0].add_to(&reaper).unwrap_err();
    assert_eq!(error.to_string(), format!("{0} overlaps {0}, which was added before", memory[0].range()));
    let _second = memory[1].add_to(&reaper).unwrap();
    assert!(matches!(memory[2].add_to(&reaper), Err(EvictError::Full { max: 2 })));
    assert_eq!(reaper.reap().unwrap().discarded, 4 * PAGE_SIZE as u64, "locked memory, too");
    drop(first);
    assert!(memory[2].add_to(&reaper).is_ok());
    let error = Reaper::start(&AddressSpace::new(), Options { level: 100, ..by_hand() }).unwrap_err();
    assert!(matches!(error, StartError::Level { level: 100 }));
}

#[test]
fn only_one_walks_at_a_time_and_the_other_does_not_wait() {
    let space = AddressSpace::new();
    let (inside, go_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    struct Waits([Arc<AtomicBool>; 2]);
    impl Subscriber for Waits {
        fn start(&self, _: &Change) {
            self.0[0].store(true, SeqCst);
            crate::memory::until("it may go on", || self.0[1].load(SeqCst));
        }
        fn end(&self, _: &Change) {}
    }
    let _waits = space.subscribe(Waits([inside.clone(), go_on.clone()]));
    let reaper = Reaper::start(&space, by_hand()).unwrap();
    let memory = Memory::new(1);
    let evictable = memory.add_to(&reaper).unwrap();
    std::thread::scope(|scope| {
        let walk = scope.spawn(|| reaper.reap());
        crate::memory::until("it is inside", || inside.load(SeqCst));
        assert_eq!(reaper.reap(), None);
        // Who takes the memory back gets it when the walk is done with it.
        let removal = scope.spawn(|| drop(evictable));
        std::thread::sleep(std::time::Duration::from_millis(10));
        assert!(!removal.is_finished());
        go_on.store(true, SeqCst);
        assert_eq!(walk.join().unwrap().unwrap().announced, 1);
    });
    assert_eq!(memory.byte(), 0);
}
