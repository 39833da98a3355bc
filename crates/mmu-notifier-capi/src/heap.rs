//! The allocator of this object: its own memory, its own lock, never the program's.
//!
//! Subscribing allocates. In a program's process that must not go through the program's allocator, whose
//! locks may be held (a `fork` is under way, the program is inside `malloc`), and it must not show in what the
//! program allocates.
//!
//! Large pieces are mappings of their own. They are tables of which hardly anything is used, in every process that is
//! watched: a fresh mapping is zeroed by the kernel where it is touched, and nowhere else.

// UNSAFETY: an allocator.
#![expect(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dlmalloc::{Allocator, Dlmalloc};
use mmu_notifier_primary::pages;

/// Where the heap gets its memory: large pieces, so that it asks once.
struct Pages;

/// What is asked for at least. Not more than what is needed once: it counts against the program's limits.
const PIECE: usize = 64 << 10;

/// What is as large as this is a mapping of its own, which its layout tells when it is given back.
const LARGE: usize = 32 << 10;

const PAGE: usize = 4096;

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE
}

/// Where the pieces begin and end, the oldest first. A process whose subscribers take more of them is past
/// caring about a leak after a fork.
static PIECES: [[AtomicUsize; 2]; 64] = [const { [const { AtomicUsize::new(0) }; 2] }; 64];
static PIECES_USED: AtomicUsize = AtomicUsize::new(0);
/// Pieces of a heap that was given up in a forked child.
static PIECES_LOST: AtomicUsize = AtomicUsize::new(0);

/// Whether memory is on a heap that was given up: then it stays there.
fn is_lost(pointer: *mut u8) -> bool {
    let lost = PIECES_LOST.load(Ordering::Relaxed);
    lost > PIECES.len()
        || PIECES[..lost].iter().any(|[start, end]| {
            (start.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)).contains(&(pointer as usize))
        })
}

// SAFETY: `alloc` returns fresh, exclusive memory or null; nothing is ever moved or given back in part.
unsafe impl Allocator for Pages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let size = size.next_multiple_of(PIECE);
        let at = pages::map(size);
        if at.is_null() {
            return (at, 0, 0);
        }
        // Relaxed, here and below: under the lock of the heap.
        if let Some(piece) = PIECES.get(PIECES_USED.fetch_add(1, Ordering::Relaxed)) {
            piece[0].store(at as usize, Ordering::Relaxed);
            piece[1].store(at as usize + size, Ordering::Relaxed);
        }
        (at, size, 0)
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
        PAGE
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
    /// state may be half changed. What is on it stays, also when it is given back; a new heap is begun.
    pub(crate) fn forked(&self) {
        if self.busy.load(Ordering::Relaxed) {
            PIECES_LOST.store(PIECES_USED.load(Ordering::Relaxed), Ordering::Relaxed);
            // SAFETY: there is no other thread, and this one is not inside `with` (it is inside `fork`).
            unsafe { self.heap.get().write(Dlmalloc::new_with_allocator(Pages)) };
            self.busy.store(false, Ordering::Relaxed);
        }
    }
}

// SAFETY: a correct allocator behind a lock, and the kernel's mappings.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return pages::map(layout.size().next_multiple_of(PAGE));
        }
        // SAFETY: layouts have a size that is not zero and an alignment that is a power of two.
        self.with(|heap| unsafe { heap.malloc(layout.size(), layout.align()) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        let memory = unsafe { self.alloc(layout) };
        if !memory.is_null() && !is_large(layout) {
            // SAFETY: allocated just now, of this size.
            unsafe { memory.write_bytes(0, layout.size()) };
        }
        memory
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if is_large(layout) {
            // SAFETY: by the caller's promise it came from `alloc` with this layout, and nobody uses it any more.
            unsafe { pages::unmap(pointer, layout.size().next_multiple_of(PAGE)) };
            return;
        }
        if is_lost(pointer) {
            return;
        }
        // SAFETY: by the caller's promise it came from `alloc` with this layout.
        self.with(|heap| unsafe { heap.free(pointer, layout.size(), layout.align()) });
    }
}
