//! Rewriting call sites: stubs, the memory they lie in, and how code is written under running threads.
//!
//! # The stub of a site
//!
//! ```text
//! (what was replaced, and what lies between it and the syscall)
//! lea  rcx, [site]          ; rcx and r11 are free: a system call changes them
//! jmp  [enter]              ; crate::entry, which goes on to one of the site's tails, crate::tails
//! ```
//!
//! A site that makes a call which is nothing to us, of which one wants to know only where it is made ([`crate::strict`]),
//! has no [`Site`]: its stub jumps to its tail.
//!
//! # Writing
//!
//! Code that no thread can be running is written through `/proc/self/mem`, which needs no writable mapping, many sites
//! at a time (`crate::batch`). Code that is live is made writable for a moment; a jump that lies in one aligned word is
//! one store, any other goes in by way of a two-byte jump to itself, with every processor told in between
//! (`MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE`). Nobody can have stopped inside the replaced instruction but at its
//! start, as only one instruction is replaced.

// UNSAFETY: maps memory for stubs and writes code.
#![expect(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use mmu_notifier::{PAGE_SIZE, Range};

use crate::Syscall;
use crate::batch::Batch;
use crate::code::Code;
use crate::entry::{self, Site};
use crate::gate::{self, safe::File};
use crate::hook;
use crate::maps;
use crate::search::{Found, REPLAY, Shape};
use crate::session::UnseenReason;
use crate::tails::{self, Children, Tails};
use crate::written::{self, Edit};

/// Size of a pool of stubs, in bytes.
const POOL: usize = 8 * PAGE_SIZE;
/// Pools of a process: clusters of mappings further than a jump apart, each more than once if full.
const POOLS: usize = 16;
/// Room for the address of the entry code at the start of a pool.
const POOL_HEADER: usize = 16;
/// Most bytes of a stub.
const STUB: usize = REPLAY + 80;
const CACHE_LINE: usize = 64;
/// How far a near jump may go, with a margin for the length of a stub.
const REACH: usize = (1 << 31) - (1 << 20);

/// The stubs of a process. Protected by whoever owns it.
#[derive(Debug)]
pub(crate) struct Stubs {
    tails: Tails,
    pools: [Pool; POOLS],
    used: usize,
    /// What else is mapped; empty: it has to be looked up.
    mapped: Vec<Range>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pool {
    address: usize,
    used: usize,
}

/// When a site is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patched {
    /// It has been.
    Now,
    /// When the batch is written.
    InBatch,
}

/// Whether other threads may be running the code that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Live {
    Yes,
    No,
}

/// Writes into code.
#[derive(Debug)]
pub(crate) struct Writer {
    memory: Option<File>,
    live: Live,
    /// Memory system calls made.
    pub(crate) own_calls: u64,
}

impl Writer {
    pub(crate) fn new(live: Live) -> Writer {
        const O_RDWR: usize = 2;
        Writer { memory: File::open(c"/proc/self/mem", O_RDWR).ok(), live, own_calls: 0 }
    }

    /// Writes code that no thread runs.
    ///
    /// # Safety
    ///
    /// The bytes are the new code at `address`; no thread runs them.
    pub(crate) unsafe fn quiet(&mut self, address: usize, bytes: &[u8]) -> Result<(), UnseenReason> {
        if let Some(memory) = &self.memory
            && memory.write_at(bytes, address) == Ok(bytes.len())
        {
            return Ok(());
        }
        self.writable(address, bytes.len(), || {
            for (index, &byte) in bytes.iter().enumerate() {
                // SAFETY: the page is writable now, and the caller answers for what is written.
                unsafe { AtomicU8::from_ptr((address + index) as *mut u8) }.store(byte, Ordering::Relaxed);
            }
            true
        })
    }

    /// Replaces one byte of code, whether or not threads run it: they find the old one or the new one.
    ///
    /// # Safety
    ///
    /// Before and after, what is there is the code that is meant, whichever of its bytes a thread has fetched already.
    pub(crate) unsafe fn byte(&mut self, address: usize, byte: u8) -> Result<(), UnseenReason> {
        // SAFETY: of one byte there is no half; the caller answers for the rest.
        unsafe { self.quiet(address, &[byte]) }
    }

    /// Replaces the first bytes of an instruction by a jump, whether or not threads run it.
    ///
    /// # Safety
    ///
    /// `address` is the start of an instruction of at least `jump.len()` bytes that is never entered in its
    /// middle; `jump` is one instruction.
    unsafe fn jump(&mut self, address: usize, jump: &[u8]) -> Result<(), UnseenReason> {
        if self.live == Live::No {
            // SAFETY: nobody runs it.
            return unsafe { self.quiet(address, jump) };
        }
        let word = address & !7;
        let within = address - word;
        self.writable(address, jump.len(), || {
            if within + jump.len() <= 8 {
                // SAFETY: an aligned word of code that is writable now.
                let code = unsafe { AtomicU64::from_ptr(word as *mut u64) };
                let mut bytes = code.load(Ordering::Relaxed).to_ne_bytes();
                bytes[within..within + jump.len()].copy_from_slice(jump);
                code.store(u64::from_ne_bytes(bytes), Ordering::Release);
                return gate::safe::synchronize_code().is_ok();
            }
            if address % CACHE_LINE == CACHE_LINE - 1 {
                // The first two bytes lie on two cache lines: no store changes both at once.
                return false;
            }
            const SPIN: [u8; 2] = [0xeb, 0xfe];
            // SAFETY: mapped code of at least `jump.len()` bytes.
            let original = unsafe { [*(address as *const u8), *((address + 1) as *const u8)] };
            // SAFETY: two bytes of code on one cache line, writable now; every state of them is an instruction.
            unsafe { store_two(address, SPIN) };
            if gate::safe::synchronize_code().is_err() {
                // SAFETY: as above.
                unsafe { store_two(address, original) };
                return false;
            }
            for (index, &byte) in jump.iter().enumerate().skip(2) {
                // SAFETY: the page is writable, and every thread that comes here spins two bytes before.
                unsafe { AtomicU8::from_ptr((address + index) as *mut u8) }.store(byte, Ordering::Relaxed);
            }
            let synchronized = gate::safe::synchronize_code().is_ok();
            // SAFETY: as above.
            unsafe { store_two(address, [jump[0], jump[1]]) };
            synchronized && gate::safe::synchronize_code().is_ok()
        })
    }

    /// Runs `write` with the pages around some code writable.
    fn writable(
        &mut self,
        address: usize,
        len: usize,
        write: impl FnOnce() -> bool,
    ) -> Result<(), UnseenReason> {
        const READ_WRITE_EXECUTE: usize = 7;
        const READ_EXECUTE: usize = 5;
        let start = address & !(PAGE_SIZE - 1);
        let len = (address + len).next_multiple_of(PAGE_SIZE) - start;
        let protect = |protection| {
            let args = [start, len, protection, 0, 0, 0];
            // SAFETY: only adds a right for a while; the code stays what it is.
            unsafe { gate::call(Syscall::Mprotect.number(), &args) }
        };
        self.own_calls += 2;
        if protect(READ_WRITE_EXECUTE) != 0 {
            return Err(UnseenReason::NotWritable);
        }
        let written = write();
        protect(READ_EXECUTE);
        if written { Ok(()) } else { Err(UnseenReason::NotWritable) }
    }
}

/// Stores two bytes at once: an ordinary store of two bytes on one cache line is atomic on x86-64, also if it is not
/// aligned (Intel manual, volume 3, 10.1.1), which no atomic type of Rust may be.
///
/// # Safety
///
/// Both bytes are writable and on one cache line.
unsafe fn store_two(address: usize, bytes: [u8; 2]) {
    let bytes = u16::from_ne_bytes(bytes);
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("mov word ptr [{}], {:x}", in(reg) address, in(reg) bytes, options(nostack, preserves_flags))
    };
}

/// A stub and what belongs to it, before they are written.
struct Made {
    stub: Code<STUB>,
    tails: tails::Made,
}

impl Stubs {
    pub(crate) fn new() -> Stubs {
        Stubs { tails: Tails::default(), pools: [Pool::default(); POOLS], used: 0, mapped: Vec::new() }
    }

    /// What is mapped, ascending, for who has just read it anyway. Nothing: it is not known any more.
    pub(crate) fn mapped_are(&mut self, mapped: Vec<Range>) {
        self.mapped = mapped;
    }

    /// Most bytes that the pools grow by for one stub.
    pub(crate) const fn longest() -> usize {
        STUB.next_multiple_of(16)
    }

    /// Memory that the pools take, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.used * POOL
    }

    /// What stands at the start of each pool.
    pub(crate) fn header(&self) -> [u8; POOL_HEADER] {
        let mut header = [0; POOL_HEADER];
        header[..8].copy_from_slice(&entry::enter().to_ne_bytes());
        header
    }

    /// Whether `address` is in a stub.
    pub(crate) fn pool_around(&self, address: usize) -> bool {
        self.pools[..self.used].iter().any(|pool| (pool.address..pool.address + POOL).contains(&address))
    }

    /// Rewrites the site `found` of the file whose first byte is (or would be) mapped at `base`, or keeps it in `batch`,
    /// which has room for it and touches none of its [bytes](Found::bytes). `original` are the file's bytes from the
    /// first replaced one to behind the `syscall`.
    ///
    /// # Safety
    ///
    /// `base + found.offset` is a `syscall` instruction of the running program as `found` describes it.
    pub(crate) unsafe fn patch(
        &mut self,
        writer: &mut Writer,
        batch: &mut Batch,
        base: usize,
        found: &Found,
        shape: Shape,
        original: &[u8],
    ) -> Result<Patched, UnseenReason> {
        let syscall = base + found.offset;
        let from = base + found.from;
        let replay = &original[..found.offset - found.from];
        // SAFETY: by the caller's promise this is mapped code.
        let now = unsafe { core::slice::from_raw_parts(from as *const u8, original.len()) };
        if now != original {
            return Err(UnseenReason::ForeignPatch);
        }
        let batch = if writer.live == Live::No { Some(batch) } else { None };
        let pool = self.pool_near(writer, syscall)?;
        let stub = self.pools[pool].address + self.pools[pool].used;
        let tails_at = self.tails.next().ok_or(UnseenReason::TableFull)?;
        let made = stub_of(stub, tails_at, syscall, from, replay, found).ok_or(UnseenReason::Shape)?;
        let (code, tails) = (made.stub.bytes(), made.tails.code.bytes());
        let (near, cave, nop) = match shape {
            Shape::T1 | Shape::T2 => (0, from, 0),
            Shape::T3 { cave, nop } => {
                let cave = base + cave;
                // SAFETY: mapped code of the same file.
                let padding = unsafe { core::slice::from_raw_parts(cave as *const u8, 5) };
                if padding[0] == 0xe9 {
                    return Err(UnseenReason::Shape);
                }
                let Ok(near) = i8::try_from(cave as isize - (syscall + 2) as isize) else {
                    return Err(UnseenReason::Shape);
                };
                (near, cave, nop)
            }
        };
        let mut long = [0xe9, 0, 0, 0, 0];
        long[1..].copy_from_slice(&(stub.wrapping_sub(cave + 5) as i32).to_le_bytes());
        // In the order in which they can be made while somebody runs the code.
        let over = (cave.wrapping_sub(2), &[0xeb, nop.wrapping_sub(2)][..]);
        let long = (cave, &long[..]);
        let short = (syscall, &[0xeb, near as u8][..]);
        let places: &[_] = match shape {
            Shape::T1 | Shape::T2 => &[long],
            Shape::T3 { nop: 0, .. } => &[long, short],
            Shape::T3 { .. } => &[over, long, short],
        };
        let edits = places.iter().map(|&(address, bytes)| {
            // SAFETY: mapped code of the same file.
            let was = unsafe { core::slice::from_raw_parts(address as *const u8, bytes.len()) };
            Edit::new(address, was, bytes)
        });
        let site =
            written::Site::new(syscall, base, found.number.known(), [(stub, code), (tails_at, tails)], edits);
        let (first, end) = found.bytes(base);
        let one_page = first & !(PAGE_SIZE - 1) == (end - 1) & !(PAGE_SIZE - 1);
        if let Some(batch) = batch
            && (places.len() == 1 || one_page)
        {
            if !batch.tails(tails_at, tails) {
                // SAFETY: as of the stub.
                unsafe { writer.quiet(tails_at, tails)? };
            }
            if !batch.stub(stub, code) {
                // SAFETY: the pool is ours and nobody jumps to this part of it yet.
                unsafe { writer.quiet(stub, code)? };
            }
            self.tails.keep(&made.tails);
            self.pools[pool].used += code.len().next_multiple_of(16);
            batch.site(shape, found.number.known(), syscall, places);
            writer.own_calls += written::add(&site);
            return Ok(Patched::InBatch);
        }
        // SAFETY: these tails are nobody's yet.
        unsafe { writer.quiet(tails_at, tails)? };
        // SAFETY: the pool is ours and nobody jumps to this part of it yet.
        unsafe { writer.quiet(stub, code)? };
        self.tails.keep(&made.tails);
        self.pools[pool].used += code.len().next_multiple_of(16);
        for &(address, bytes) in places {
            if matches!(shape, Shape::T3 { .. }) && address == cave {
                // SAFETY: `search` found this to be padding that is never executed, or it is jumped over now.
                unsafe { writer.quiet(address, bytes)? };
            } else {
                // SAFETY: `search` found the first replaced instruction to have at least 5 bytes, the `nop` at least 7
                // and the `syscall` 2, and no branch into any of them.
                unsafe { writer.jump(address, bytes)? };
            }
        }
        writer.own_calls += written::add(&site);
        Ok(Patched::Now)
    }

    /// A pool within reach of `address` that has room for a stub.
    fn pool_near(&mut self, writer: &mut Writer, address: usize) -> Result<usize, UnseenReason> {
        let near = |pool: &Pool| pool.address.abs_diff(address) < REACH && pool.used + STUB <= POOL;
        if let Some(pool) = self.pools[..self.used].iter().position(near) {
            return Ok(pool);
        }
        if self.used == POOLS {
            return Err(UnseenReason::TableFull);
        }
        let at = self.map_near(writer, address).ok_or(UnseenReason::NoPool)?;
        // SAFETY: the pool has just been mapped; nobody knows it.
        unsafe { writer.quiet(at, &self.header())? };
        self.pools[self.used] = Pool { address: at, used: POOL_HEADER };
        self.used += 1;
        Ok(self.used - 1)
    }

    /// Maps executable memory for a pool within reach of `address`, aligned to its size.
    fn map_near(&self, writer: &mut Writer, address: usize) -> Option<usize> {
        const READ_EXECUTE: usize = 5;
        const PRIVATE_ANONYMOUS_NOREPLACE: usize = 0x02 | 0x20 | 0x10_0000;
        // A few tries: something may have taken the place between the look and the call.
        for attempt in 0..5 {
            let mut nearest = Nearest::to(address);
            if attempt == 0 && !self.mapped.is_empty() {
                let pools = self.pools[..self.used].iter();
                let pools = pools.filter_map(|pool| Range::with_len(pool.address, POOL).ok());
                nearest.among(self.mapped.iter().copied(), pools);
            } else {
                maps::for_each(|mapping| nearest.mapped(mapping.range)).ok()?;
            }
            let Some(at) = nearest.best else { continue };
            let args = [at, POOL, READ_EXECUTE, PRIVATE_ANONYMOUS_NOREPLACE, usize::MAX, 0];
            writer.own_calls += 1;
            // SAFETY: new memory, nothing is replaced.
            let got = unsafe { gate::call(Syscall::Mmap.number(), &args) };
            if got == at as isize {
                return Some(at);
            }
        }
        None
    }
}

/// The machine code of a stub at `at`, its `Site` included, and its tails at `tails_at`.
fn stub_of(
    at: usize,
    tails_at: usize,
    syscall: usize,
    from: usize,
    replay: &[u8],
    found: &Found,
) -> Option<Made> {
    let mut code = Code::at(at);
    code.put(replay);
    for (place, end) in found.relative.operands {
        let (place, end) = (usize::from(place), usize::from(end));
        if end == 0 {
            break;
        }
        let operand = code.bytes_mut().get_mut(place..place + 4)?;
        let distance = i32::from_le_bytes((&*operand).try_into().ok()?) as isize;
        let moved = distance + (from + end) as isize - (at + end) as isize;
        operand.copy_from_slice(&i32::try_from(moved).ok()?.to_le_bytes());
    }
    let back = syscall + 2;
    let number = found.number.known();
    if number.is_some_and(hook::does_not_care) {
        let tails = tails::make(tails_at, back, 0, Children::None);
        code.put_far_jump(tails.plain);
        return Some(Made { stub: code, tails });
    }
    let pool = pool_of(at);
    // The Site lies behind the code, whose length is fixed from here on.
    let site_at = (code.here() + 7 + 6).next_multiple_of(8);
    let tails = tails::make(tails_at, back, site_at, Children::of(number));
    code.put_relative(&[0x48, 0x8d, 0x0d], site_at); // lea rcx, [site]
    code.put_relative(&[0xff, 0x25], pool); // jmp [pool]
    while code.here() < site_at {
        code.put(&[0xcc]);
    }
    let caller = found.caller.unwrap_or(usize::MAX);
    for word in [back, tails.plain, tails.thread, tails.fork, caller, number.unwrap_or(usize::MAX)] {
        code.put_word(word);
    }
    const { assert!(size_of::<Site>() == 6 * 8) };
    Some(Made { stub: code, tails })
}

/// Where the pool of a stub begins.
pub(crate) const fn pool_of(stub: usize) -> usize {
    stub & !(POOL - 1)
}

/// The nearest place for a pool where nothing is mapped, with room to both sides.
struct Nearest {
    address: usize,
    best: Option<usize>,
    last_end: usize,
}

impl Nearest {
    fn to(address: usize) -> Nearest {
        Nearest { address, best: None, last_end: 16 * PAGE_SIZE }
    }

    /// What is mapped, in ascending order.
    fn mapped(&mut self, range: Range) {
        if let Ok(gap) = Range::new(self.last_end, range.start()) {
            self.consider(gap);
        }
        self.last_end = range.end();
    }

    /// What is mapped, ascending, and some more in any order.
    fn among(&mut self, mapped: impl Iterator<Item = Range>, more: impl Iterator<Item = Range> + Clone) {
        let mut mapped = mapped.peekable();
        loop {
            let next = more.clone().filter(|range| range.start() >= self.last_end).min_by_key(Range::start);
            let first = match (mapped.peek().copied(), next) {
                (Some(range), Some(next)) if next.start() < range.start() => next,
                (Some(range), _) => {
                    mapped.next();
                    range
                }
                (None, Some(next)) => next,
                (None, None) => return,
            };
            self.mapped(first);
        }
    }

    fn consider(&mut self, gap: Range) {
        const MARGIN: usize = 16 * PAGE_SIZE;
        for place in [gap.start() + MARGIN, gap.end().saturating_sub(POOL + MARGIN)] {
            let place = place & !(POOL - 1);
            let fits = Range::with_len(place, POOL).is_ok_and(|pool| gap.contains(&pool));
            let nearer =
                self.best.is_none_or(|best| place.abs_diff(self.address) < best.abs_diff(self.address));
            if fits && nearer && place.abs_diff(self.address) < REACH - POOL {
                self.best = Some(place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_keeps_its_distance() {
        let range = |start: usize, end: usize| Range::new(start << 20, end << 20).unwrap();
        let mapped = [range(16, 32), range(33, 48), range(64, 96)];
        let nearest = |address: usize, pools: &[Range]| {
            let mut nearest = Nearest::to(address << 20);
            nearest.among(mapped.iter().copied(), pools.iter().copied());
            nearest.best
        };
        let margin = 16 * PAGE_SIZE;
        assert_eq!(nearest(34, &[]), Some((33 << 20) - POOL - margin));
        assert_eq!(nearest(50, &[]), Some((48 << 20) + margin));
        // Where a pool is there is no room for another one.
        let pool = Range::with_len((33 << 20) - POOL - margin, POOL).unwrap();
        assert_eq!(nearest(34, &[pool]), Some(((33 << 20) - 2 * POOL - 2 * margin) & !(POOL - 1)));
        assert_eq!(nearest(34, &[pool, range(32, 33)]), Some((48 << 20) + margin));
        assert_eq!(nearest(1 << 14, &[]), None, "too far");
    }
}
