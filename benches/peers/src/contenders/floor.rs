//! What a hit cannot be faster than on this machine: a table of pages of four levels, the line of the entry, and the least
//! that keeps the entry alive meanwhile. No design: it is filled once, and nothing can be removed.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Contender, handle};
use crate::layout::Layout;

const LEVELS: [u32; 4] = [39, 30, 21, 12];
const ENTRY: u32 = 1 << 31;

#[repr(align(64))]
struct Entry {
    start: usize,
    end: usize,
    handle: u32,
    pins: AtomicU64,
}

/// The walk alone. A slot is 0, the number of a table, or that of an entry with a bit on top.
struct Walk {
    tables: Vec<[u32; 512]>,
    entries: Vec<Entry>,
}

fn slot(address: usize, shift: u32) -> usize {
    (address >> shift) & 511
}

impl Walk {
    /// For entries of a length that is that of a slot, as they all are here.
    fn new(layout: &Layout) -> Walk {
        let mut walk = Walk { tables: vec![[0; 512]], entries: Vec::with_capacity(layout.count) };
        // By level and address: the compiler need not know that a slot and a new table are different.
        let mut known = HashMap::new();
        for (start, end) in layout.shuffled() {
            let mut table = 0;
            for shift in LEVELS {
                if 1 << shift == end - start {
                    walk.tables[table][slot(start, shift)] = walk.entries.len() as u32 | ENTRY;
                    break;
                }
                let next = *known.entry((shift, start >> shift)).or_insert_with(|| {
                    walk.tables.push([0; 512]);
                    walk.tables.len() - 1
                });
                walk.tables[table][slot(start, shift)] = next as u32;
                table = next;
            }
            walk.entries.push(Entry { start, end, handle: handle(start), pins: AtomicU64::new(0) });
        }
        walk
    }

    #[inline(always)]
    fn find(&self, start: usize, end: usize) -> &Entry {
        let mut at = 0;
        for shift in LEVELS {
            at = self.tables[at as usize][slot(start, shift)];
            if at & ENTRY != 0 {
                break;
            }
        }
        let entry = &self.entries[(at ^ ENTRY) as usize];
        assert!(entry.start <= start && end <= entry.end);
        entry
    }
}

/// Counts who uses an entry, in the entry: two locked instructions.
pub(crate) struct Count(Walk);

impl Contender for Count {
    const NAME: &'static str = "floor-count";
    const READ_ONLY: bool = true;

    fn filled(layout: &Layout) -> Count {
        Count(Walk::new(layout))
    }

    #[inline]
    fn get(&self, start: usize, end: usize) {
        let entry = self.0.find(start, end);
        entry.pins.fetch_add(1, Ordering::Acquire);
        black_box(entry.handle);
        entry.pins.fetch_sub(1, Ordering::Release);
    }

    fn unmap(&self, _: usize, _: usize) {
        unreachable!("read only");
    }

    fn registrations(&self) -> u64 {
        self.0.entries.len() as u64
    }
}

#[repr(align(128))]
struct Mine(AtomicU64);

thread_local! {
    static MINE: Mine = const { Mine(AtomicU64::new(0)) };
}

/// Says in a line of the thread's own that it reads: one locked instruction, and nothing that two threads write.
pub(crate) struct Fence(Walk);

impl Contender for Fence {
    const NAME: &'static str = "floor-fence";
    const READ_ONLY: bool = true;

    fn filled(layout: &Layout) -> Fence {
        Fence(Walk::new(layout))
    }

    #[inline]
    fn get(&self, start: usize, end: usize) {
        MINE.with(|mine| {
            mine.0.swap(1, Ordering::SeqCst);
            black_box(self.0.find(start, end).handle);
            mine.0.store(0, Ordering::Release);
        });
    }

    fn unmap(&self, _: usize, _: usize) {
        unreachable!("read only");
    }

    fn registrations(&self) -> u64 {
        self.0.entries.len() as u64
    }
}
