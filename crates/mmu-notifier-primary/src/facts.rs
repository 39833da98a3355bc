//! What a call's arguments do not say: found out by asking the kernel, without trusting a pointer.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mmu_notifier::Range;

use crate::Syscall;
use crate::decode::{Facts, Needs};
use crate::gate::safe::{self, FileId};
use crate::maps::{self, Mapping};

/// Ranges that are told apart; more become one range around them.
pub(crate) const RANGES: usize = 8;

/// What this process remembers to be able to answer.
#[derive(Debug)]
pub(crate) struct Memory {
    program_break: AtomicUsize,
    /// Attached segments: address and size in bytes; address 0: free.
    segments: [(AtomicUsize, AtomicUsize); 64],
    /// A bit for every file that was ever mapped, by hash: most files that are truncated never were.
    mapped_files: [AtomicU64; 64],
}

/// Room for [`Facts::ranges`].
#[derive(Debug)]
pub(crate) struct Ranges {
    ranges: [Range; RANGES],
    len: usize,
}

impl Ranges {
    pub(crate) fn new() -> Ranges {
        Ranges { ranges: [Range::EVERYTHING; RANGES], len: 0 }
    }

    fn add(&mut self, range: Range) {
        if let Some(free) = self.ranges.get_mut(self.len) {
            *free = range;
            self.len += 1;
        } else if let Some(last) = self.ranges.last_mut() {
            let (start, end) = (last.start().min(range.start()), last.end().max(range.end()));
            *last = Range::new(start, end).unwrap_or(Range::EVERYTHING);
        }
    }

    fn as_slice(&self) -> &[Range] {
        &self.ranges[..self.len]
    }
}

impl Memory {
    pub(crate) fn new() -> Memory {
        Memory {
            program_break: AtomicUsize::new(0),
            segments: [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; 64],
            mapped_files: [const { AtomicU64::new(0) }; 64],
        }
    }

    /// Learns of a mapping that was there before.
    pub(crate) fn look_at(&self, mapping: &Mapping<'_>) {
        if mapping.inode != 0 {
            self.file_mapped(&FileId { device: mapping.device, inode: mapping.inode, size: 0, changed: 0 });
        }
        if mapping.path.starts_with(b"/SYSV") {
            self.segment_attached(mapping.range.start(), mapping.range.len());
        }
    }

    /// Learns where the end of the heap is.
    pub(crate) fn break_is(&self, program_break: usize) {
        self.program_break.store(program_break, Ordering::Relaxed);
    }

    /// Where the end of the heap is, as far as is known.
    pub(crate) fn program_break(&self) -> usize {
        self.program_break.load(Ordering::Relaxed)
    }

    /// Finds out what `needs` says; `ranges` is room for the answer.
    pub(crate) fn find<'a>(&self, needs: Needs, ranges: &'a mut Ranges) -> Facts<'a> {
        match needs {
            Needs::Nothing => Facts::default(),
            // Relaxed, here and in the rest: each value stands for itself.
            Needs::ProgramBreak => Facts { program_break: self.program_break(), ..Facts::default() },
            _ => self.ask(needs, ranges),
        }
    }

    // Large on the stack, by what it reads into: kept out of the frame of every other call, as are the functions
    // that it calls.
    #[inline(never)]
    fn ask<'a>(&self, needs: Needs, ranges: &'a mut Ranges) -> Facts<'a> {
        let mut facts = Facts::default();
        match needs {
            Needs::Nothing | Needs::ProgramBreak => {}
            Needs::SegmentById(id) => facts.segment = safe::segment_bytes(id as usize),
            Needs::SegmentAt(address) => facts.segment = self.segment(address),
            Needs::Vector { pointer, count } => {
                facts.ranges = read_vector(pointer, count, ranges).then_some(ranges.as_slice());
            }
            Needs::FileRanges { .. } => {}
            Needs::Aliases(range) => {
                if aliases(range, ranges) {
                    facts.ranges = Some(ranges.as_slice());
                }
            }
            Needs::CloneFlags(pointer) => {
                let mut flags = [0; 8];
                if safe::read_memory(pointer, &mut flags) == Ok(8) {
                    facts.clone_flags = u64::from_ne_bytes(flags);
                }
            }
        }
        facts
    }

    /// The same where it is known already which file a call changes.
    #[inline(never)]
    pub(crate) fn find_in<'a>(
        &self,
        file: &FileId,
        part: core::ops::Range<usize>,
        ranges: &'a mut Ranges,
    ) -> Facts<'a> {
        let is_complete = file_ranges(file, part, ranges);
        Facts { ranges: is_complete.then_some(ranges.as_slice()), ..Facts::default() }
    }

    /// Remembers what a call that succeeded has told.
    #[inline]
    pub(crate) fn learn(&self, call: Syscall, args: &[usize; 6], result: usize) {
        match call {
            Syscall::Brk => self.program_break.store(result, Ordering::Relaxed),
            Syscall::Shmat => self.learn_more(call, args, result),
            Syscall::Mmap if args[3] & MAP_ANONYMOUS == 0 => self.learn_more(call, args, result),
            _ => {}
        }
    }

    #[inline(never)]
    fn learn_more(&self, call: Syscall, args: &[usize; 6], result: usize) {
        match call {
            Syscall::Shmat => {
                if let Some(bytes) = safe::segment_bytes(args[0]) {
                    self.segment_attached(result, bytes);
                }
            }
            Syscall::Mmap if args[3] & MAP_ANONYMOUS == 0 => {
                if let Ok(id) = safe::fstat(args[4]) {
                    self.file_mapped(&id);
                }
            }
            _ => {}
        }
    }

    fn segment_attached(&self, address: usize, bytes: usize) {
        let place =
            self.segments.iter().position(|(at, _)| at.load(Ordering::Relaxed) == address).or_else(|| {
                self.segments.iter().position(|(at, _)| {
                    at.compare_exchange(0, address, Ordering::Relaxed, Ordering::Relaxed).is_ok()
                })
            });
        if let Some(place) = place {
            self.segments[place].1.store(bytes, Ordering::Relaxed);
        }
    }

    fn segment(&self, address: usize) -> Option<usize> {
        let (_, bytes) = self.segments.iter().find(|(at, _)| at.load(Ordering::Relaxed) == address)?;
        Some(bytes.load(Ordering::Relaxed))
    }

    fn bit(file: &FileId) -> (usize, u64) {
        let hash = (file.inode ^ file.device.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
        (hash as usize / 64, 1 << (hash % 64))
    }

    fn file_mapped(&self, file: &FileId) {
        let (word, bit) = Memory::bit(file);
        self.mapped_files[word].fetch_or(bit, Ordering::Relaxed);
    }

    /// Whether this process may have mapped a file.
    pub(crate) fn was_mapped(&self, file: &FileId) -> bool {
        let (word, bit) = Memory::bit(file);
        self.mapped_files[word].load(Ordering::Relaxed) & bit != 0
    }
}

const MAP_ANONYMOUS: usize = 0x20;

/// Reads an array of `struct iovec` of the program's.
#[inline(never)]
fn read_vector(pointer: usize, count: usize, ranges: &mut Ranges) -> bool {
    let mut at = pointer;
    let mut left = count;
    while left > 0 {
        let mut bytes = [0u8; 16 * 16];
        let now = left.min(16) * 16;
        if safe::read_memory(at, &mut bytes[..now]) != Ok(now) {
            return false;
        }
        for entry in bytes[..now].chunks_exact(16) {
            let word = |half: &[u8]| half.try_into().map(usize::from_ne_bytes).unwrap_or(0);
            if let Ok(range) = Range::with_len(word(&entry[..8]), word(&entry[8..])) {
                ranges.add(range);
            }
        }
        at += now;
        left -= now / 16;
    }
    true
}

/// Where this process maps the bytes `part` of a file.
#[inline(never)]
fn file_ranges(file: &FileId, part: core::ops::Range<usize>, ranges: &mut Ranges) -> bool {
    maps::for_each(|mapping| {
        if (mapping.inode, mapping.device) != (file.inode, file.device) {
            return;
        }
        let from = part.start.max(mapping.offset);
        let to = part.end.min(mapping.offset.saturating_add(mapping.range.len()));
        if from < to {
            let start = mapping.range.start() + (from - mapping.offset);
            ranges.add(Range::with_len(start, to - from).unwrap_or(mapping.range));
        }
    })
    .is_ok()
}

/// All mappings of the files that are mapped in `range`, the same parts of them.
#[inline(never)]
fn aliases(range: Range, ranges: &mut Ranges) -> bool {
    let mut pieces = [const { (FileId { device: 0, inode: 0, size: 0, changed: 0 }, 0..0) }; RANGES];
    let mut used = 0;
    let mut complete = true;
    let read = maps::for_each(|mapping| {
        let Some(common) = mapping.range.intersection(&range) else { return };
        if mapping.inode == 0 {
            return;
        }
        let from = mapping.offset + (common.start() - mapping.range.start());
        let file = FileId { device: mapping.device, inode: mapping.inode, size: 0, changed: 0 };
        match pieces.get_mut(used) {
            Some(piece) => *piece = (file, from..from + common.len()),
            None => complete = false,
        }
        used += 1;
    });
    read.is_ok()
        && complete
        && pieces[..used].iter().all(|(file, part)| file_ranges(file, part.clone(), ranges))
}
