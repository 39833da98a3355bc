//! The allocator of this object: its own memory, its own lock, never the program's.
//!
//! Subscribing allocates. In a program's process that must not go through the program's allocator, whose
//! locks may be held (a `fork` is under way, the program is inside `malloc`), and it must not show in what the
//! program allocates.

// UNSAFETY: an allocator.
#![expect(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use dlmalloc::{Allocator, Dlmalloc};
use mmu_notifier_primary::pages;

/// Where the heap gets its memory: large pieces, so that it asks once.
struct Pages;

/// What is asked for at least. Not more than what is needed once: it counts against the program's limits.
const PIECE: usize = 256 << 10;

// SAFETY: `alloc` returns fresh, exclusive memory or null; nothing is ever moved or given back in part.
unsafe impl Allocator for Pages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let size = size.next_multiple_of(PIECE);
        let at = pages::map(size);
        if at.is_null() { (at, 0, 0) } else { (at, size, 0) }
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        core::ptr::null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        4096
    }
}

/// The heap, used by one thread at a time.
pub(crate) struct Heap {
    busy: AtomicBool,
    heap: UnsafeCell<Dlmalloc<Pages>>,
}

// SAFETY: `heap` is reached only through `with`, by one thread at a time.
unsafe impl Sync for Heap {}

#[global_allocator]
pub(crate) static HEAP: Heap =
    Heap { busy: AtomicBool::new(false), heap: UnsafeCell::new(Dlmalloc::new_with_allocator(Pages)) };

impl Heap {
    fn with<R>(&self, work: impl FnOnce(&mut Dlmalloc<Pages>) -> R) -> R {
        // Acquire pairs with the Release below.
        while self.busy.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        // SAFETY: `busy` keeps everybody else out until the store below.
        let result = work(unsafe { &mut *self.heap.get() });
        self.busy.store(false, Ordering::Release);
        result
    }

    /// In the only thread of a forked child: if a thread that does not exist here was at the heap, its
    /// state may be half changed. What is on it stays; a new heap is begun.
    pub(crate) fn forked(&self) {
        if self.busy.load(Ordering::Relaxed) {
            // SAFETY: there is no other thread, and this one is not inside `with` (it is inside `fork`).
            unsafe { self.heap.get().write(Dlmalloc::new_with_allocator(Pages)) };
            self.busy.store(false, Ordering::Relaxed);
        }
    }
}

// SAFETY: a correct allocator behind a lock.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: layouts have a size that is not zero and an alignment that is a power of two.
        self.with(|heap| unsafe { heap.malloc(layout.size(), layout.align()) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: by the caller's promise it came from `alloc` with this layout.
        self.with(|heap| unsafe { heap.free(pointer, layout.size(), layout.align()) });
    }
}
