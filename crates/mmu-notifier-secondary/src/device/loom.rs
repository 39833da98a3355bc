//! What the models of the device models have in common: threads, memory and its page table, under loom's memory model.

// UNSAFETY: says to an address space who is calling, and shares loom's cells between threads, which is their purpose.
#![expect(unsafe_code)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use mmu_notifier::{AddressSpace, Caller, Event, PAGE_SIZE, Range};

use super::{Access, Page, PageTable};

/// The address of the page that everything is about.
pub(crate) const PAGE: usize = 0x1000;

loom::thread_local! {
    /// loom's threads share the thread-locals of the standard library; a model says which one it is.
    static NUMBER: std::cell::Cell<u64> = std::cell::Cell::new(1);
}

fn caller() -> Caller {
    let number = NUMBER.with(std::cell::Cell::get);
    // SAFETY: each thread of a model has a number of its own.
    unsafe { Caller::new(number, 0) }
}

/// Every interleaving of the device and the change, which `rig` makes, with what they both have. Each of them is the thread that
/// begins, once: who begins has been interrupted once less when the other one does.
pub(crate) fn beside<D: FnOnce() + 'static, C: FnOnce() + 'static, K>(
    rig: impl Fn() -> (D, C, K) + Sync + Send + Copy + 'static,
) {
    explore(move || {
        let (device, change, kept) = rig();
        in_two_threads(device, change);
        drop(kept);
    });
    explore(move || {
        let (device, change, kept) = rig();
        in_two_threads(change, device);
        drop(kept);
    });
}

fn explore(run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    // `LOOM_MAX_PREEMPTIONS` says otherwise.
    model.preemption_bound.get_or_insert(2);
    model.max_branches = 20_000;
    model.check(run);
}

fn in_two_threads(first: impl FnOnce(), second: impl FnOnce() + 'static) {
    let second = loom::thread::spawn(move || {
        NUMBER.with(|it| it.set(2));
        second();
    });
    first();
    second.join().expect("it has told what went wrong");
}

/// A page, which is in the first of two frames until a change. loom says whether a frame is used while it is gone, or without an
/// order between the two.
pub(crate) struct Memory {
    pub(crate) space: AddressSpace,
    /// The number of the frame. It orders nothing by itself.
    frame: AtomicUsize,
    frames: [UnsafeCell<()>; 2],
}

// SAFETY: the cells are only ever asked who touches them, never dereferenced; loom reports two at once.
unsafe impl Sync for Memory {}
// SAFETY: as above.
unsafe impl Send for Memory {}

impl Memory {
    pub(crate) fn new() -> Arc<Memory> {
        let space = AddressSpace::with_callers(caller);
        Arc::new(Memory { space, frame: AtomicUsize::new(0), frames: Default::default() })
    }

    pub(crate) fn page(&self) -> Range {
        Range::with_len(PAGE, PAGE_SIZE).expect("a range")
    }

    /// The change itself, which nobody is told of: the first frame is somebody else's now.
    pub(crate) fn replace(&self) {
        self.frames[0].with_mut(|_| ());
        self.frame.store(1, Relaxed);
    }

    pub(crate) fn change(&self) {
        self.space.invalidate(self.page(), Event::Clear, || self.replace());
    }

    /// An access of the device, to what it takes for the frame.
    pub(crate) fn is_used(&self, pointer: usize) {
        self.frames[pointer / PAGE_SIZE].with(|_| ());
    }
}

impl PageTable for Memory {
    fn look_up(&self, _: usize, _: Access) -> Option<Page> {
        Some(Page::writable(self.frame.load(Relaxed) * PAGE_SIZE))
    }
}
