//! What is registered: a table in memory of our own, made once and never grown.
//!
//! Each registration has a word for each of its pages ([`super::frames`]), in blocks of an arena, and shares with
//! those of the same call the stack that it was made on. Most of the table is never touched, and so no memory.
//!
//! A child that is forked while another thread writes here has a copy that may be half-written: numbers that lead
//! to other places are looked at before they are followed.

// UNSAFETY: maps the table.
#![expect(unsafe_code)]

use mmu_notifier::{PAGE_SIZE, Range};

use super::calls::New;
use super::pending::{self, Outcome, Pending};
use super::stack::Snapshot;
use crate::Syscall;
use crate::gate;
use crate::session::check::Registered;

/// Registrations at one time.
const ENTRIES: usize = 1 << 16;
/// Stacks that are kept, of calls that have registered or unmapped.
const STACKS: usize = 4096;
/// Pages that are registered: 64 GiB.
const PAGES: usize = 16 << 20;
/// Pages of a block of the arena.
const BLOCK: usize = 64;
/// No block, no stack.
const NONE: u32 = u32::MAX;

/// One registration.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Entry {
    /// A [`Registered`]; 0: this place is free.
    kind: u32,
    /// The descriptor; -1: a registered ring, or none.
    pub(crate) descriptor: i32,
    /// What tells the owner from others that have had its descriptor.
    pub(crate) owner: u64,
    pub(crate) index: u64,
    pub(crate) space: u32,
    /// The kernel writes there.
    pub(crate) writes: bool,
    /// Made before this process was forked: it holds pages of the parent.
    pub(crate) inherited: bool,
    pub(crate) start: usize,
    pub(crate) len: usize,
    block: u32,
    stack: u32,
    pub(crate) thread: u32,
    pub(crate) registering: u32,
    pub(crate) time: u64,
    /// A finding that waits for what becomes of this, plus 1; 0: none.
    pending: u32,
}

impl Entry {
    /// What holds the memory; `None`: the place is free.
    pub(crate) fn kind(&self) -> Option<Registered> {
        Registered::from_u32(self.kind)
    }

    /// The pages that it touches.
    pub(crate) fn pages(&self) -> Option<Range> {
        Range::with_len(self.start, self.len).ok().map(|range| range.to_pages())
    }

    /// Whether it holds the pages that were there when it was made, whatever the program does to its memory.
    pub(crate) fn pins(&self) -> bool {
        !matches!(self.kind(), None | Some(Registered::Memslot | Registered::Lock))
    }

    /// Made by the same call.
    pub(crate) fn is_sibling(&self, other: &Entry) -> bool {
        self.kind == other.kind
            && self.time == other.time
            && self.thread == other.thread
            && self.owner == other.owner
    }
}

/// Who makes a registration, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maker {
    pub(crate) descriptor: i32,
    pub(crate) owner: u64,
    pub(crate) thread: u32,
    pub(crate) registering: u32,
    pub(crate) time: u64,
    pub(crate) stack: u32,
}

/// All of them. Zeroes are an empty table.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Table {
    /// Entries in use lie below.
    used: usize,
    /// Entries below are all in use.
    full: usize,
    /// What the entries lie between, and have lain since there were none.
    hull: (usize, usize),
    /// Findings that waited, and can be told.
    pub(super) to_tell: usize,
    /// Where to look for free blocks.
    hint: usize,
    /// A bit for each block that is taken.
    taken: [u64; PAGES / BLOCK / 64],
    entries: [Entry; ENTRIES],
    /// Registrations that share a stack; 0: free.
    shares: [u32; STACKS],
    stacks: [Snapshot; STACKS],
    pub(super) pendings: [Pending; pending::MOST],
    words: [u64; PAGES],
}

impl Table {
    /// A new table; `None` if there is no memory for it.
    pub(crate) fn new() -> Option<&'static mut Table> {
        const READ_WRITE: usize = 3;
        const PRIVATE_ANONYMOUS_NORESERVE: usize = 0x2 | 0x20 | 0x4000;
        let bytes = size_of::<Table>();
        let args = [0, bytes, READ_WRITE, PRIVATE_ANONYMOUS_NORESERVE, usize::MAX, 0];
        // SAFETY: a new mapping.
        let at = unsafe { gate::call(Syscall::Mmap.number(), &args) };
        // SAFETY: mapped just now, for ever, for us alone, full of zeroes, which are valid.
        (!(-4095..0).contains(&at)).then(|| unsafe { &mut *(at as *mut Table) })
    }

    /// The places that may be in use.
    pub(crate) fn places(&self) -> core::ops::Range<usize> {
        0..self.used
    }

    pub(crate) fn entry(&self, place: usize) -> &Entry {
        &self.entries[place]
    }

    /// What the registrations lie between, or a little more; (0, 0): there are none.
    pub(crate) fn hull(&self) -> (usize, usize) {
        self.hull
    }

    /// The words of those pages of a registration that lie in `range`, and the first of these pages.
    pub(crate) fn words(&mut self, place: usize, range: &Range) -> Option<(usize, &mut [u64])> {
        let entry = &self.entries[place];
        let pages = entry.pages()?;
        let part = pages.intersection(range)?.to_pages();
        if entry.block == NONE {
            return None;
        }
        let first = entry.block as usize * BLOCK + (part.start() - pages.start()) / PAGE_SIZE;
        let words = self.words.get_mut(first..first + part.len() / PAGE_SIZE)?;
        Some((part.start(), words))
    }

    /// The stack that a registration was made on, if it was kept.
    pub(crate) fn stack(&self, entry: &Entry) -> Option<&Snapshot> {
        self.stack_at(entry.stack)
    }

    /// A stack by its place.
    pub(crate) fn stack_at(&self, stack: u32) -> Option<&Snapshot> {
        self.stacks.get(stack as usize)
    }

    /// One more needs a stack.
    pub(crate) fn share(&mut self, stack: u32) {
        if let Some(shares) = self.shares.get_mut(stack as usize) {
            *shares += 1;
        }
    }

    /// One less.
    pub(crate) fn unshare(&mut self, stack: u32) {
        if let Some(shares) = self.shares.get_mut(stack as usize) {
            *shares = shares.saturating_sub(1);
        }
    }

    /// The finding that waits for a registration.
    pub(crate) fn pending(&self, place: usize) -> Option<u32> {
        self.entries[place].pending.checked_sub(1)
    }

    pub(super) fn set_pending(&mut self, place: usize, pending: Option<u32>) {
        self.entries[place].pending = pending.map_or(0, |pending| pending + 1);
    }

    /// Room for a stack, for [`Maker::stack`]. Without one, registrations are told without it.
    pub(crate) fn new_stack(&mut self) -> (u32, Option<&mut Snapshot>) {
        match self.shares.iter().position(|&shares| shares == 0) {
            Some(place) => (place as u32, self.stacks.get_mut(place)),
            None => (NONE, None),
        }
    }

    /// Adds a registration; its place, or `None` if there is none left.
    pub(crate) fn add(&mut self, new: &New, maker: &Maker) -> Option<usize> {
        let from = self.full.min(self.used);
        let free = self.entries[from..self.used].iter().position(|entry| entry.kind == 0);
        let place = free.map_or(self.used, |nth| from + nth);
        if place == ENTRIES {
            return None;
        }
        let mut entry = Entry {
            kind: new.kind as u32,
            descriptor: maker.descriptor,
            owner: maker.owner,
            index: new.index,
            space: new.space,
            writes: new.writes,
            inherited: false,
            start: new.start,
            len: new.len,
            block: NONE,
            stack: maker.stack,
            thread: maker.thread,
            registering: maker.registering,
            time: maker.time,
            pending: 0,
        };
        if entry.pins() {
            let pages = entry.pages()?.len() / PAGE_SIZE;
            entry.block = self.take(pages.div_ceil(BLOCK))?;
        }
        self.entries[place] = entry;
        if let Some(pages) = entry.pages() {
            let (low, high) = if self.used == 0 { (usize::MAX, 0) } else { self.hull };
            self.hull = (low.min(pages.start()), high.max(pages.end()));
        }
        (self.full, self.used) = (place + 1, self.used.max(place + 1));
        self.share(maker.stack);
        Some(place)
    }

    /// Adds another that is like the one at `place`, with other numbers; its pages are the same.
    pub(crate) fn add_like(
        &mut self,
        place: usize,
        index: u64,
        descriptor: i32,
        owner: u64,
    ) -> Option<usize> {
        let old = self.entries[place];
        let new = New {
            kind: old.kind()?,
            index,
            space: old.space,
            start: old.start,
            len: old.len,
            writes: old.writes,
        };
        let Entry { thread, registering, time, stack, .. } = old;
        let copy = self.add(&new, &Maker { descriptor, owner, thread, registering, time, stack })?;
        if old.block != NONE {
            let pages = old.pages()?.len() / PAGE_SIZE;
            let (from, to) = (old.block as usize * BLOCK, self.entries[copy].block as usize * BLOCK);
            if from.max(to) + pages <= PAGES {
                self.words.copy_within(from..from + pages, to);
            }
        }
        Some(copy)
    }

    /// Forgets a registration.
    pub(crate) fn remove(&mut self, place: usize) {
        self.settle(place, Outcome::TakenBack);
        let entry = self.entries[place];
        self.entries[place].kind = 0;
        self.full = self.full.min(place);
        if let (true, Some(pages)) = (entry.block != NONE, entry.pages()) {
            let first = entry.block as usize;
            for block in first..first + (pages.len() / PAGE_SIZE).div_ceil(BLOCK) {
                if let Some(taken) = self.taken.get_mut(block / 64) {
                    *taken &= !(1 << (block % 64));
                }
            }
        }
        self.unshare(entry.stack);
        while self.used > 0 && self.entries[self.used - 1].kind == 0 {
            self.used -= 1;
        }
        if self.used == 0 {
            self.hull = (0, 0);
        }
    }

    /// What a registration covers from now on; for those that keep no frames.
    pub(crate) fn shrink(&mut self, place: usize, start: usize, len: usize) {
        let entry = &mut self.entries[place];
        (entry.start, entry.len) = (start, len);
    }

    /// In a forked child: a registration is the parent's.
    pub(crate) fn inherit(&mut self, place: usize) {
        self.entries[place].inherited = true;
    }

    /// So many free blocks in a row.
    fn take(&mut self, blocks: usize) -> Option<u32> {
        const ALL: usize = PAGES / BLOCK;
        for (from, to) in [(self.hint, ALL), (0, ALL)] {
            let mut run = 0;
            for block in from..to {
                run = if self.taken[block / 64] >> (block % 64) & 1 == 0 { run + 1 } else { 0 };
                if run == blocks {
                    let first = block + 1 - blocks;
                    for block in first..=block {
                        self.taken[block / 64] |= 1 << (block % 64);
                    }
                    self.hint = (block + 1) % ALL;
                    return Some(first as u32);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
