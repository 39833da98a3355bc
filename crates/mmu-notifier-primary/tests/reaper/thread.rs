//! The thread: who wakes it, how often it tries, and what it must not do.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mmu_notifier::{AddressSpace, Change, Refuser, Subscriber, WouldBlock};
use mmu_notifier_primary::reaper::{ATTEMPTS, Options, Reaper, Source, Trigger};

use crate::memory::{Memory, Told, allocations, in_a_child, until};
use crate::own_process;
use crate::walk::Busy;

/// A reaper, and what makes it believe that memory runs short.
fn told_by_a_pipe(space: &AddressSpace, options: Options) -> (Reaper, impl Write) {
    let (read, write) = std::io::pipe().unwrap();
    let options = Options { trigger: Trigger::Descriptor(read.into()), ..options };
    (Reaper::start(space, options).unwrap(), write)
}

fn quick() -> Options {
    Options { retry_after: Duration::from_millis(1), ..Options::default() }
}

#[test]
fn it_reaps_when_it_is_told_and_not_before() {
    let space = AddressSpace::new();
    let told = Arc::new(Told::default());
    let _told = space.subscribe(told.clone());
    let (reaper, mut pressure) = told_by_a_pipe(&space, quick());
    assert_eq!(reaper.armed().to_string(), "told by the program");
    let memory = Memory::new(8);
    let evictable = memory.add_to(&reaper).unwrap();
    evictable.retry();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(memory.byte(), 7);
    pressure.write_all(b"!").unwrap();
    until("it is reaped", || reaper.stats().walks > 0);
    assert_eq!((memory.byte(), told.starts().len()), (0, 1));
    for round in 1..50 {
        memory.fill(round);
        pressure.write_all(b"!").unwrap();
        // Its end: behind its start it is about to be discarded, with whatever is filled in now.
        until("it is reaped again", || told.ends.load(SeqCst) > usize::from(round));
    }
    // Who closes it says nothing more, and the thread does not go round and round.
    drop(pressure);
    until("it has heard that", || reaper.stats().alarms >= 51);
    let walks = reaper.stats().walks;
    std::thread::sleep(Duration::from_millis(20));
    assert!(reaper.stats().walks <= walks + 1);
}

#[test]
fn a_busy_one_is_tried_ten_times_then_marked_then_tried_when_its_owner_says_so() {
    let space = AddressSpace::new();
    let memory = [Memory::new(4), Memory::new(4)];
    let busy = Busy::with(memory[0].range());
    let _busy = space.subscribe_refuser(busy.clone());
    let told = Arc::new(Told::default());
    let _told = space.subscribe(told.clone());
    let marked = Arc::new(Mutex::new(Vec::new()));
    let on_mark = marked.clone();
    let options = Options { on_mark: Box::new(move |range| on_mark.lock().unwrap().push(range)), ..quick() };
    let (reaper, mut pressure) = told_by_a_pipe(&space, options);
    let evictable = memory.each_ref().map(|memory| memory.add_to(&reaper).unwrap());
    pressure.write_all(b"!").unwrap();
    until("it is marked", || evictable[0].is_marked());
    std::thread::sleep(Duration::from_millis(20));
    let of_the_first = || told.starts().iter().filter(|&&start| start == memory[0].range().start()).count();
    assert_eq!(of_the_first(), ATTEMPTS as usize);
    assert_eq!(told.starts().len(), ATTEMPTS as usize + 1, "the other one is not taken again");
    assert_eq!(*marked.lock().unwrap(), [memory[0].range()]);
    assert_eq!(memory.each_ref().map(Memory::byte), [7, 0]);
    assert_eq!((reaper.stats().marked, reaper.stats().marked_now, reaper.stats().refused), (1, 1, 10));

    // The next alarm begins anew.
    pressure.write_all(b"!").unwrap();
    until("it is marked again", || reaper.stats().marked == 2 && evictable[0].is_marked());
    assert_eq!(of_the_first(), 2 * ATTEMPTS as usize);

    busy.is_busy.store(false, SeqCst);
    evictable[0].retry();
    assert!(!evictable[0].is_marked());
    until("it is reaped", || memory[0].is_gone());
}

#[test]
fn a_success_at_the_tenth_attempt_is_one() {
    /// Refuses nine times.
    struct NineTimes(AtomicUsize);
    impl Refuser for NineTimes {
        fn start(&self, _: &Change) {}
        fn try_start(&self, _: &Change) -> Result<(), WouldBlock> {
            if self.0.fetch_add(1, SeqCst) < 9 { Err(WouldBlock) } else { Ok(()) }
        }
    }
    let space = AddressSpace::new();
    let _refuser = space.subscribe_refuser(NineTimes(AtomicUsize::new(0)));
    let (reaper, mut pressure) = told_by_a_pipe(&space, quick());
    let memory = Memory::new(4);
    let evictable = memory.add_to(&reaper).unwrap();
    pressure.write_all(b"!").unwrap();
    until("it is reaped", || memory.is_gone());
    until("that is counted", || reaper.stats().walks == 10);
    assert!(!evictable.is_marked());
    assert_eq!(reaper.stats().marked, 0);
}

/// What the thread was seen to do, from the inside of its changes.
#[derive(Default)]
struct Inside {
    allocations: Mutex<Vec<usize>>,
    is_locked: AtomicBool,
    wants_to_know: AtomicBool,
}

impl Subscriber for Inside {
    fn start(&self, _: &Change) {
        if self.wants_to_know.swap(false, SeqCst) {
            let here = 0u8;
            self.is_locked.store(is_locked(&raw const here as usize), SeqCst);
            return;
        }
        let mut seen = self.allocations.lock().unwrap();
        if seen.len() < seen.capacity() {
            seen.push(allocations());
        }
    }

    fn end(&self, _: &Change) {}
}

/// Whether the mapping that has this address is locked.
fn is_locked(address: usize) -> bool {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_here = false;
    for line in maps.lines() {
        let range = line.split_whitespace().next().and_then(|word| word.split_once('-'));
        let hex = |text| usize::from_str_radix(text, 16).ok();
        if let Some((Some(start), Some(end))) = range.map(|(start, end)| (hex(start), hex(end))) {
            is_here = (start..end).contains(&address);
        } else if is_here && line.starts_with("VmFlags:") {
            return line.split_whitespace().any(|flag| flag == "lo");
        }
    }
    panic!("nothing is mapped at {address:#x}")
}

#[test]
fn it_allocates_nothing_and_its_stack_is_locked() {
    let space = AddressSpace::new();
    let inside = Arc::new(Inside { allocations: Mutex::new(Vec::with_capacity(2000)), ..Inside::default() });
    let _inside = space.subscribe(inside.clone());
    let memory: Vec<Memory> = (0..20).map(|_| Memory::new(4)).collect();
    let busy = Busy::with(memory[0].range());
    let _busy = space.subscribe_refuser(busy.clone());
    let (reaper, mut pressure) = told_by_a_pipe(&space, quick());
    let evictable: Vec<_> = memory.iter().map(|memory| memory.add_to(&reaper).unwrap()).collect();
    for round in 1..30 {
        memory.iter().for_each(|memory| memory.fill(round));
        pressure.write_all(b"!").unwrap();
        until("it is marked", || reaper.stats().marked == u64::from(round));
        evictable[0].retry();
    }
    let seen = inside.allocations.lock().unwrap().clone();
    assert!(seen.len() > 800, "{}", seen.len());
    assert!(seen.iter().all(|&count| count == seen[0]), "it allocates: {:?}", seen.iter().max());
    inside.wants_to_know.store(true, SeqCst);
    pressure.write_all(b"!").unwrap();
    until("it has looked", || !inside.wants_to_know.load(SeqCst));
    until("it has seen", || inside.is_locked.load(SeqCst));
}

#[test]
fn dropping_it_ends_the_thread_and_what_was_added_can_go_later() {
    let space = AddressSpace::new();
    let (reaper, mut pressure) = told_by_a_pipe(&space, quick());
    let memory = Memory::new(1);
    let evictable = memory.add_to(&reaper).unwrap();
    drop(reaper);
    assert!(pressure.write_all(b"!").is_ok(), "the descriptor goes with the last of them");
    drop(evictable);
    assert!(pressure.write_all(b"!").is_err());
    assert_eq!(memory.byte(), 7);
}

/// As a hint it is armed where it is there; that it comes in time is not to be expected.
#[test]
fn pressure_stall_information_is_armed_and_silent() {
    let options = Options { trigger: Trigger::Source(Source::Pressure), ..Options::default() };
    let reaper = match Reaper::start(&AddressSpace::new(), options) {
        Ok(reaper) => reaper,
        Err(error) => {
            assert!(error.to_string().contains("/proc/pressure/memory"), "{error}");
            eprintln!("SKIPPED: pressure_stall_information_is_armed_and_silent: {error}");
            return;
        }
    };
    std::thread::sleep(Duration::from_millis(50));
    assert!(reaper.stats().alarms <= 1, "the thread does not go round and round");
    assert_eq!(reaper.armed().to_string(), "pressure stall information");
}

/// The thread is not there, so nobody may wait for it; not even if it was in the middle of something.
#[test]
fn in_a_forked_child_all_of_it_can_be_dropped() {
    own_process::run(
        "thread::in_a_forked_child_all_of_it_can_be_dropped",
        |_| (),
        || {
            #[derive(Default)]
            struct Waits {
                is_inside: AtomicBool,
                may_go_on: AtomicBool,
            }
            impl Subscriber for Waits {
                fn start(&self, _: &Change) {
                    self.is_inside.store(true, SeqCst);
                    until("it may go on", || self.may_go_on.load(SeqCst));
                }
                fn end(&self, _: &Change) {}
            }
            let space = AddressSpace::new();
            let waits = Arc::new(Waits::default());
            let _waits = space.subscribe(waits.clone());
            let (reaper, mut pressure) = told_by_a_pipe(&space, quick());
            let memory = Memory::new(1);
            let evictable = memory.add_to(&reaper).unwrap();
            pressure.write_all(b"!").unwrap();
            until("it is inside", || waits.is_inside.load(SeqCst));
            let (reaper, evictable) = in_a_child((reaper, evictable), drop);
            waits.may_go_on.store(true, SeqCst);
            until("it is reaped", || memory.is_gone());
            drop((evictable, reaper));
        },
    );
}
