//! What the core allocates: nothing for a change, and for intervals no more than there are.

// UNSAFETY: an allocator that counts is an allocator.
#![expect(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use mmu_notifier::{
    AddressSpace, Aging, Blocking, Change, Event, IntervalSubscriber, Pass, Range, Refuser, SecondaryTlb,
    Subscriber, Ticketed, WouldBlock,
};

struct Counting;

/// Bytes in use.
static IN_USE: AtomicI64 = AtomicI64::new(0);

thread_local! {
    /// Allocations and frees of this thread.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    IN_USE.fetch_add(bytes, Ordering::SeqCst);
    CALLS.with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: everything is the system's allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The tests count what the process has: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// How often `run` allocates or frees.
fn allocations(run: impl FnOnce()) -> u64 {
    let before = CALLS.with(Cell::get);
    run();
    CALLS.with(Cell::get) - before
}

/// Every kind of subscriber; refuses what must not wait on request.
struct Everything {
    refuses: &'static AtomicBool,
    pass: Pass,
}

impl Everything {
    fn answer<T>(&self, agreed: T) -> Result<T, WouldBlock> {
        if self.refuses.load(Ordering::SeqCst) { Err(WouldBlock) } else { Ok(agreed) }
    }
}

impl Subscriber for Everything {
    fn start(&self, _: &Change) {}
    fn end(&self, _: &Change) {}
}

impl Refuser for Everything {
    fn start(&self, _: &Change) {}
    fn try_start(&self, _: &Change) -> Result<(), WouldBlock> {
        self.answer(())
    }
}

impl Ticketed for Everything {
    type Ticket = [u64; 4];
    fn start(&self, _: &Change) -> [u64; 4] {
        [1, 2, 3, 4]
    }
    fn try_start(&self, _: &Change) -> Result<[u64; 4], WouldBlock> {
        self.answer([1, 2, 3, 4])
    }
    fn end(&self, _: &Change, ticket: [u64; 4]) {
        assert_eq!(ticket, [1, 2, 3, 4]);
    }
}

impl IntervalSubscriber for Everything {
    fn invalidate(&self, _: &Change) -> Pass {
        self.pass
    }
    fn try_invalidate(&self, _: &Change) -> Result<Pass, WouldBlock> {
        self.answer(self.pass)
    }
}

impl Aging for Everything {
    fn clear_flush_young(&self, _: Range) -> bool {
        true
    }
    fn clear_young(&self, _: Range) -> bool {
        false
    }
    fn test_young(&self, _: usize) -> bool {
        false
    }
}

impl SecondaryTlb for Everything {
    fn flush(&self, _: Range) {}
}

fn pages(from: usize, count: usize) -> Range {
    Range::with_len(from * 0x1000, count * 0x1000).unwrap()
}

#[test]
fn no_change_allocates_whatever_becomes_of_it() {
    static LIST: AtomicBool = AtomicBool::new(false);
    static TREE: AtomicBool = AtomicBool::new(false);
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let space = AddressSpace::new();
    let on_list = || Everything { refuses: &LIST, pass: Pass::Done };
    let in_tree = |n: usize| Everything {
        refuses: &TREE,
        pass: if n.is_multiple_of(3) { Pass::Done } else { Pass::Unfinished },
    };
    let changes = |space: &AddressSpace| {
        let mut made = [0_u32; 2];
        for event in Event::ALL {
            let change = |blocking| Change::new(pages(0, 40), event, blocking).with_owner(7);
            space.invalidate(pages(3, 1), event, || {
                // Inside another one, in a place of another home, too.
                for _ in 0..6 {
                    made[usize::from(space.try_invalidate(pages(0, 1000), event, || ()).is_ok())] += 1;
                }
            });
            let open: [_; 6] = std::array::from_fn(|_| space.begin(change(Blocking::Allowed)).unwrap());
            open.into_iter().for_each(|open| open.end());
            made[usize::from(space.begin(change(Blocking::Forbidden)).is_ok())] += 1;
        }
        made
    };
    let mut made = [0; 2];
    assert_eq!(allocations(|| made = changes(&space)), 0, "with nobody there");
    let _subscriptions = (
        space.subscribe(on_list()),
        space.subscribe_ticketed(on_list()),
        space.subscribe_refuser(on_list()),
        space.subscribe(on_list()),
        space.subscribe_aging(on_list()),
        space.subscribe_tlb(on_list()),
    );
    // Sixty that overlap, forty of which have a second pass.
    let intervals: Vec<_> = (0..60).map(|n| space.insert(pages(n / 2, 40), in_tree(n)).unwrap()).collect();
    for (list, tree) in [(false, false), (true, false), (false, true)] {
        LIST.store(list, Ordering::SeqCst);
        TREE.store(tree, Ordering::SeqCst);
        assert_eq!(allocations(|| made = changes(&space)), 0, "refused: {list} {tree}");
        assert_eq!(made, if list || tree { [56, 0] } else { [0, 56] });
    }
    let beside = || {
        let _ = (space.clear_flush_young(pages(0, 1)), space.clear_young(pages(0, 1)), space.test_young(0));
        space.flush(pages(0, 1));
        for interval in &intervals {
            assert!(!interval.is_stale(&interval.read()));
        }
        let caller = space.caller();
        let _ = space.start(&caller, Change::new(pages(0, 9), Event::Clear, Blocking::Allowed));
        // SAFETY: nothing goes on in the change.
        let abandoned = unsafe { space.end_abandoned(&caller, |_| true) };
        assert_eq!(abandoned.changes, 1);
        let _ = space.stats();
    };
    LIST.store(false, Ordering::SeqCst);
    TREE.store(false, Ordering::SeqCst);
    assert_eq!(allocations(beside), 0, "aging, flushing, reading, and ending what was abandoned");
}

#[test]
fn a_full_record_refuses_without_allocating() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let space = AddressSpace::new();
    let caller = space.caller();
    let change = Change::new(pages(0, 1), Event::Clear, Blocking::Forbidden);
    let mut open = Vec::with_capacity(2000);
    let fill = || {
        while let Ok(one) = space.start(&caller, change) {
            open.push(one);
        }
    };
    assert_eq!(allocations(fill), 0);
    assert_eq!(open.len(), 512);
    assert_eq!(allocations(|| assert!(space.start(&caller, change).is_err())), 0);
    assert_eq!(allocations(|| open.drain(..).for_each(|one| assert!(space.end(&caller, one)))), 0);
}

/// The most bytes in use while `rounds` times one interval goes and another comes, of this many.
fn churn(space: &AddressSpace, rounds: usize, many: usize) -> i64 {
    static NEVER: AtomicBool = AtomicBool::new(false);
    let new = |n: usize| {
        let range = pages(n.wrapping_mul(7919) % (4 * many), 1 + n % 3);
        space.insert(range, Everything { refuses: &NEVER, pass: Pass::Done }).unwrap()
    };
    let mut there: Vec<_> = (0..many).map(new).collect();
    let before = IN_USE.load(Ordering::SeqCst);
    let mut most = 0;
    for n in 0..rounds {
        there[n % many] = new(many + n);
        most = most.max(IN_USE.load(Ordering::SeqCst) - before);
    }
    most
}

#[test]
fn what_intervals_leave_behind_does_not_pile_up() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let rounds = 100_000;
    let space = AddressSpace::new();
    let alone = churn(&space, rounds, 1000);
    let stop = AtomicBool::new(false);
    let beside = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    space.invalidate(pages(n % 4000, 40), Event::Unmap, || ());
                    let _ = space.try_invalidate(pages(n * 13 % 4000, 3), Event::Clear, || ());
                }
            });
        }
        let most = churn(&space, rounds, 1000);
        stop.store(true, Ordering::SeqCst);
        most
    });
    println!("{rounds} rounds of 1000 intervals: {alone} bytes more than at first; beside changes {beside}");
    assert!(alone < 1 << 20, "{alone} bytes");
    // A thread that is not scheduled in its walk keeps what is replaced until it is: if all were kept, half a gigabyte.
    assert!(beside < 64 << 20, "{beside} bytes");
}

/// Its callback waits until it may go on.
struct Slow(Mutex<Sender<()>>, Mutex<Receiver<()>>);

impl IntervalSubscriber for Slow {
    fn invalidate(&self, _: &Change) -> Pass {
        self.0.lock().unwrap().send(()).unwrap();
        self.1.lock().unwrap().recv().unwrap();
        Pass::Done
    }
    fn try_invalidate(&self, _: &Change) -> Result<Pass, WouldBlock> {
        Err(WouldBlock)
    }
}

#[test]
fn nor_does_it_while_a_callback_takes_long() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let space = AddressSpace::new();
    let ((entered, is_inside), (leave, may_leave)) = (channel(), channel());
    let slow = Slow(Mutex::new(entered), Mutex::new(may_leave));
    let _slow = space.insert(pages(100_000, 1), slow).unwrap();
    let most = std::thread::scope(|scope| {
        scope.spawn(|| space.invalidate(pages(100_000, 1), Event::Unmap, || ()));
        is_inside.recv().unwrap();
        let most = churn(&space, 20_000, 1000);
        leave.send(()).unwrap();
        most
    });
    println!("while a callback runs: {most} bytes");
    assert!(most < 1 << 20, "{most} bytes");
}

#[test]
fn an_interval_takes_little() {
    static NEVER: AtomicBool = AtomicBool::new(false);
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let space = AddressSpace::new();
    let mut there = Vec::with_capacity(10_000);
    let before = IN_USE.load(Ordering::SeqCst);
    for n in 0..10_000 {
        let interval = Everything { refuses: &NEVER, pass: Pass::Done };
        there.push(space.insert(pages(n, 1), interval).unwrap());
    }
    space.synchronize();
    let each = (IN_USE.load(Ordering::SeqCst) - before) / 10_000;
    println!("{each} bytes an interval");
    assert!(each < 400, "{each} bytes");
    there.clear();
    space.synchronize();
    let left = IN_USE.load(Ordering::SeqCst) - before;
    // The test program's own threads allocate, too.
    assert!(left < 64 << 10, "{left} bytes are left");
}

#[test]
fn what_subscribers_leave_behind_does_not_pile_up_while_a_change_is_open() {
    static NEVER: AtomicBool = AtomicBool::new(false);
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for is_first in [false, true] {
        let space = AddressSpace::new();
        let one = || space.subscribe(Everything { refuses: &NEVER, pass: Pass::Done });
        // One that knows somebody, and one that began when nobody was there.
        let _kept = (!is_first).then(one);
        space.invalidate(pages(0, 1), Event::Unmap, || {
            drop(one());
            let before = IN_USE.load(Ordering::SeqCst);
            (0..1000).for_each(|_| drop(one()));
            let left = IN_USE.load(Ordering::SeqCst) - before;
            assert!(left < 32 << 10, "{left} bytes are left");
        });
    }
}
