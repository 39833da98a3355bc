//! The call sites of files, remembered in the session.
//!
//! Searching a C library takes milliseconds; a shell script starts hundreds of processes with the same one. The
//! first process that finds a file's sites leaves them in the session for all others. Nothing of it is trusted:
//! the bytes in memory are compared before anything is written (`crate::patch`).

use core::sync::atomic::Ordering;

use mmu_notifier::Range;

use crate::gate::safe::FileId;
use crate::log::Log;
use crate::search::{Found, Number, Relative, Shape, Unfit};
use crate::session::{FILES, File, FileSite, SITE_BYTES, SITES};

const WRITING: u32 = 1;
const COMPLETE: u32 = 2;

/// The sites of the mapping of `id` at file offset `offset`, if they are known.
pub(crate) fn known<'a>(log: &'a Log, id: &FileId, offset: usize, len: usize) -> Option<&'a File> {
    // Only the places in use: to look at the others would make the kernel allocate them.
    let used = log.header().files_used.load(Ordering::Relaxed) as usize;
    (0..used.min(FILES)).map(|index| log.file(index)).find(|file| {
        // Acquire pairs with the Release in `Draft::complete`.
        file.state.load(Ordering::Acquire) == COMPLETE
            && file.inode.load(Ordering::Relaxed) == id.inode
            && file.device.load(Ordering::Relaxed) == id.device
            && file.size.load(Ordering::Relaxed) == id.size
            && file.changed.load(Ordering::Relaxed) == id.changed
            && file.offset.load(Ordering::Relaxed) == offset as u64
            && file.len.load(Ordering::Relaxed) == len as u64
    })
}

/// Calls `visit` with every remembered site and its code.
pub(crate) fn for_each(file: &File, mut visit: impl FnMut(Found, &[u8])) {
    let used = file.used.load(Ordering::Relaxed) as usize;
    for site in file.sites.iter().take(used) {
        let load = |word: &core::sync::atomic::AtomicU64| word.load(Ordering::Relaxed) as usize;
        let shape = load(&site.shape);
        let found = Found {
            offset: load(&site.offset),
            number: match load(&site.number) {
                usize::MAX => Number::Unknown,
                number => Number::Known(number),
            },
            shape: match shape & 0xff {
                1 => Ok(Shape::T1),
                2 => Ok(Shape::T2),
                3 => Ok(Shape::T3 { cave: shape >> 16, nop: (shape >> 8) as u8 }),
                4 => Err(Unfit::NoFunction),
                5 => Err(Unfit::SmallStacks),
                _ => Err(Unfit::Shape),
            },
            from: load(&site.from),
            caller: Some(load(&site.caller)).filter(|&caller| caller != usize::MAX),
            relative: unpack(load(&site.relative)),
        };
        let mut code = [0; SITE_BYTES];
        for (to, from) in code.iter_mut().zip(&site.code) {
            *to = from.load(Ordering::Relaxed);
        }
        let len = (found.offset + 2).wrapping_sub(found.from);
        if let Some(code) = code.get(..len) {
            visit(found, code);
        }
    }
}

/// Sites on their way into the session.
pub(crate) struct Draft<'a> {
    file: Option<&'a File>,
}

impl<'a> Draft<'a> {
    /// Takes a free place; without one, nothing is remembered.
    pub(crate) fn new(log: &'a Log, id: &FileId, offset: usize, range: Range) -> Draft<'a> {
        // Relaxed: `complete` publishes.
        let index = log.header().files_used.fetch_add(1, Ordering::Relaxed) as usize;
        let file = (index < FILES).then(|| log.file(index));
        if let Some(file) = file {
            file.inode.store(id.inode, Ordering::Relaxed);
            file.device.store(id.device, Ordering::Relaxed);
            file.size.store(id.size, Ordering::Relaxed);
            file.changed.store(id.changed, Ordering::Relaxed);
            file.offset.store(offset as u64, Ordering::Relaxed);
            file.len.store(range.len() as u64, Ordering::Relaxed);
            file.state.store(WRITING, Ordering::Relaxed);
        }
        Draft { file }
    }

    /// Nothing is remembered.
    pub(crate) fn none() -> Draft<'a> {
        Draft { file: None }
    }

    /// Adds a site.
    pub(crate) fn add(&mut self, found: &Found, code: &[u8]) {
        let Some(file) = self.file else { return };
        let index = file.used.load(Ordering::Relaxed) as usize;
        if index == SITES || code.len() > SITE_BYTES {
            // Too many to remember.
            self.file = None;
            return;
        }
        let site: &FileSite = &file.sites[index];
        let store =
            |word: &core::sync::atomic::AtomicU64, value: usize| word.store(value as u64, Ordering::Relaxed);
        store(&site.offset, found.offset);
        store(&site.from, found.from);
        store(&site.caller, found.caller.unwrap_or(usize::MAX));
        store(&site.relative, pack(&found.relative));
        store(
            &site.number,
            match found.number {
                Number::Known(number) => number,
                Number::Unknown => usize::MAX,
            },
        );
        store(
            &site.shape,
            match found.shape {
                Ok(Shape::T1) => 1,
                Ok(Shape::T2) => 2,
                Ok(Shape::T3 { cave, nop }) => 3 | usize::from(nop) << 8 | cave << 16,
                Err(Unfit::NoFunction) => 4,
                Err(Unfit::SmallStacks) => 5,
                Err(Unfit::Shape) => 0,
            },
        );
        for (to, &from) in site.code.iter().zip(code) {
            to.store(from, Ordering::Relaxed);
        }
        file.used.store(index as u32 + 1, Ordering::Relaxed);
    }

    /// Everything has been added: others may use it.
    pub(crate) fn complete(self) {
        if let Some(file) = self.file {
            // Release pairs with the Acquire in `known`.
            file.state.store(COMPLETE, Ordering::Release);
        }
    }
}

fn pack(relative: &Relative) -> usize {
    relative
        .operands
        .iter()
        .rev()
        .fold(0, |word, &(place, end)| word << 16 | usize::from(place) << 8 | usize::from(end))
}

fn unpack(word: usize) -> Relative {
    Relative {
        operands: core::array::from_fn(|index| {
            let pair = word >> (16 * index);
            ((pair >> 8) as u8, pair as u8)
        }),
    }
}
