//! Who is calling, without thread-local storage.
//!
//! The hook may run before thread-local storage is set up, on a thread that has none, and where touching it
//! would allocate. The *address* of a thread's storage, the base of the `fs` segment, is its identity
//! instead: reading it (`rdfsbase`) needs no memory. A table maps it to the thread id, which costs a system
//! call only once.
//!
//! A new thread may get the storage, and so the identity, of one that has ended: whoever makes a thread says
//! [`Threads::born`] first. Threads that share a base (a raw `clone` without `CLONE_SETTLS`) make the base useless as an
//! identity: after [`Threads::share_base`] everybody is asked for its thread id, every time.

// UNSAFETY: reading the segment base is an instruction that only assembler has; asks for zeroed memory.
#![expect(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use mmu_notifier::{Caller, PAGE_SIZE};

use crate::Syscall;
use crate::gate::safe::gettid;
use crate::maps;

/// Threads that are known at one time; more are served, but each call asks for its id again.
const THREADS: usize = 1024;
/// Bits of a system call number.
const NUMBER_BITS: u32 = 10;
/// Places where a thread is looked for.
const PROBES: usize = 16;

#[derive(Debug)]
// Two in a cache line.
#[repr(C, align(32))]
struct Thread {
    /// Base of the segment; 0: free.
    base: AtomicU64,
    /// Thread id; 0: to be asked for.
    id: AtomicU32,
    /// Small number.
    home: AtomicU32,
    /// The call that the thread is in that returns twice: ticks before its starts; ticks that they took, and its
    /// number in the lowest bits.
    clone: [AtomicU64; 2],
}

/// A call that returns twice, between its two hooks.
#[derive(Debug)]
pub(crate) struct Clone {
    pub(crate) call: Syscall,
    /// Ticks before and after its starts.
    pub(crate) time: u64,
    pub(crate) started: u64,
}

#[derive(Debug)]
#[repr(C)]
struct Table {
    threads: [Thread; THREADS],
    /// Their stacks ([`Stack::pack`]). Looked at only if it matters; so not beside the rest.
    stacks: [AtomicUsize; THREADS],
}

/// The threads of this process.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Threads {
    table: Box<Table>,
    by_base: AtomicBool,
    homes: AtomicU32,
}

/// The base of the `fs` segment.
#[inline(always)]
fn base() -> u64 {
    let base: u64;
    // SAFETY: reads a register; the kernel lets user space do it (checked in `Threads::new`).
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

/// Storage of threads lies at the end of their stacks: its address, and how much is mapped before it. (For the first thread
/// it is somewhere else, and so nobody's stack is found.)
#[cold]
#[inline(never)]
fn below_storage(base: usize) -> Stack {
    let mut size = 0;
    // If the list cannot be read, there is no stack.
    let _ = maps::for_each(|mapping| {
        if (mapping.range.start()..mapping.range.end()).contains(&(base - 1)) && mapping.readable {
            size = base - mapping.range.start();
        }
    });
    Stack { end: base, size }
}

/// Where a stack begins to grow down, and what is mapped below, as far as anybody looks.
#[derive(Clone, Copy)]
struct Stack {
    end: usize,
    size: usize,
}

impl Stack {
    /// In one word, so that nobody sees half of it: whole pages, at most 15; the end is one of 16 bytes.
    const PAGES: usize = 15;

    fn pack(self) -> usize {
        self.end & !Stack::PAGES | (self.size / PAGE_SIZE).min(Stack::PAGES)
    }

    fn unpack(word: usize) -> Stack {
        Stack { end: word & !Stack::PAGES, size: (word & Stack::PAGES) * PAGE_SIZE }
    }
}

/// Where the thread with this base is looked for first.
#[inline(always)]
fn place(base: u64) -> usize {
    // Storage of threads lies whole pages apart, plus some; multiplying spreads both.
    const { assert!(THREADS == 1 << 10) };
    ((base >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize
}

impl Threads {
    pub(crate) fn new(rdfsbase_works: bool) -> Threads {
        Threads {
            // Asked for as zeroes, not written: hardly any of it is touched, in every process that is watched.
            // SAFETY: a thread consists of atomic integers, of which zero is a value.
            table: unsafe { Box::new_zeroed().assume_init() },
            homes: AtomicU32::new(0),
            by_base: AtomicBool::new(rdfsbase_works),
        }
    }

    /// Memory that the table takes.
    pub(crate) const fn bytes() -> usize {
        size_of::<Table>()
    }

    /// The calling thread, if it is where it is looked for first.
    #[inline(always)]
    pub(crate) fn known_caller(&self, stack: usize) -> Option<Caller> {
        // Relaxed, in this file: each thread uses what it wrote itself; `born` comes before the new thread.
        if !self.by_base.load(Ordering::Relaxed) {
            return None;
        }
        let base = base();
        let thread = &self.table.threads[place(base)];
        let id = thread.id.load(Ordering::Relaxed);
        let known = thread.base.load(Ordering::Relaxed) == base && id != 0;
        let home = thread.home.load(Ordering::Relaxed) as usize;
        // SAFETY: the kernel's name of the calling thread, found by its segment base, which is no other living thread's.
        known.then(|| unsafe { Caller::new(id.into(), home) }.with_stack(stack))
    }

    /// The calling thread.
    #[inline(never)]
    pub(crate) fn caller(&self, stack: usize) -> Caller {
        if self.by_base.load(Ordering::Relaxed) {
            let base = base();
            if base != 0
                && let Some(thread) = self.find(base, true)
            {
                let mut id = thread.id.load(Ordering::Relaxed);
                if id == 0 {
                    id = gettid();
                    thread.home.store(self.homes.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
                    thread.id.store(id, Ordering::Relaxed);
                }
                let home = thread.home.load(Ordering::Relaxed) as usize;
                // SAFETY: as above.
                return unsafe { Caller::new(id.into(), home) }.with_stack(stack);
            }
        }
        let id = gettid();
        // SAFETY: the kernel's name of the calling thread.
        unsafe { Caller::new(id.into(), id as usize) }.with_stack(stack)
    }

    fn find(&self, base: u64, or_add: bool) -> Option<&Thread> {
        for probe in 0..PROBES {
            let thread = &self.table.threads[(place(base) + probe) % THREADS];
            let found = thread.base.load(Ordering::Relaxed);
            if found == base {
                return Some(thread);
            }
            if found == 0 {
                if !or_add {
                    return None;
                }
                match thread.base.compare_exchange(0, base, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return Some(thread),
                    Err(now) if now == base => return Some(thread),
                    Err(_) => {}
                }
            }
        }
        None
    }

    /// Notes the calling thread's `fork` or `clone`: what will be known of it behind the call.
    pub(crate) fn set_clone(&self, clone: &Clone) {
        if self.by_base.load(Ordering::Relaxed)
            && let Some(thread) = self.find(base(), false)
        {
            let took = clone.started.saturating_sub(clone.time) << NUMBER_BITS;
            let values = [clone.time, took | clone.call.number() as u64];
            for (place, value) in thread.clone.iter().zip(values) {
                place.store(value, Ordering::Relaxed);
            }
        }
    }

    /// What [`set_clone`](Threads::set_clone) has noted, if it could.
    pub(crate) fn clone_of_caller(&self) -> Option<Clone> {
        let thread = self.by_base.load(Ordering::Relaxed).then(|| self.find(base(), false)).flatten()?;
        let [time, rest] = thread.clone.each_ref().map(|value| value.load(Ordering::Relaxed));
        let call = Syscall::from_number(rest as usize & ((1 << NUMBER_BITS) - 1))?;
        Some(Clone { call, time, started: time + (rest >> NUMBER_BITS) })
    }

    /// A new thread is about to get the storage at `base`, and a stack of `size` bytes that ends at `end` (0, both: not
    /// known).
    pub(crate) fn born(&self, base: usize, end: usize, size: usize) {
        // If the place of its stack is not known, nothing has to be remembered of it yet.
        if base != 0
            && let Some(thread) = self.find(base as u64, end != 0)
        {
            thread.id.store(0, Ordering::Relaxed);
            self.table.stacks[self.index_of(thread)].store(Stack { end, size }.pack(), Ordering::Relaxed);
        }
    }

    /// The end of the calling thread's stack if it is known, and `stack` is on it; else 0. Of the first thread it is not known
    /// here; whether this is it, the caller says.
    pub(crate) fn stack_around(&self, stack: usize, is_first: bool) -> usize {
        /// Where storage is further away than this, it is not known to be behind the stack.
        const NEAR: usize = 64 << 10;
        // Where bases are shared, so would be the stacks.
        if !self.by_base.load(Ordering::Relaxed) {
            return 0;
        }
        let base = base();
        let Some(thread) = self.find(base, false) else { return 0 };
        let place = &self.table.stacks[self.index_of(thread)];
        let mut known = place.load(Ordering::Relaxed);
        let storage = base as usize;
        if known == 0 && !is_first && stack < storage && storage - stack < NEAR {
            // Of a thread that was there before us, or that was made by a call that does not say. To look takes some stack.
            known = below_storage(storage).pack();
            place.store(known, Ordering::Relaxed);
        }
        let Stack { end, size } = Stack::unpack(known);
        if stack < end && end - stack <= size { end } else { 0 }
    }

    fn index_of(&self, thread: &Thread) -> usize {
        (core::ptr::from_ref(thread) as usize - self.table.threads.as_ptr() as usize) / size_of::<Thread>()
    }

    /// A thread is about to run with the storage of another one.
    pub(crate) fn share_base(&self) {
        self.by_base.store(false, Ordering::Relaxed);
    }

    /// In the only thread of a forked child: it has a new id, the others do not exist.
    pub(crate) fn forked(&self) {
        for thread in self.table.threads.iter() {
            thread.id.store(0, Ordering::Relaxed);
        }
    }
}
