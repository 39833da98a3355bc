//! What the calls of probes work on: memory, files, segments, children; all of it given back afterwards.

// UNSAFETY: makes system calls, and writes to memory that it has mapped.
#![expect(unsafe_code)]

use mmu_notifier::{PAGE_SIZE, Range};

use super::by::{Make, by_libc};
use super::shots::Aim;
use crate::Syscall;
use crate::gate;

const READ_WRITE: usize = 3;
const SHARED: usize = 1;
const PRIVATE_ANONYMOUS: usize = 0x22;
const NONE: usize = usize::MAX;

/// Ground for one call.
///
/// What it takes is mapped by the C library, as only what the hook has seen being mapped can it know.
#[derive(Debug)]
pub struct Ground {
    make: Make,
    /// Pages that are ours, by address.
    pages: Vec<usize>,
    descriptors: Vec<usize>,
    segments: Vec<usize>,
    children: Vec<usize>,
    /// What arguments point to.
    words: Box<[usize; 16]>,
}

impl Ground {
    /// Ground for a call that is made by `make`.
    pub(crate) fn new(make: Make) -> Ground {
        Ground {
            make,
            // Nothing is allocated while a call is watched.
            pages: Vec::with_capacity(2048),
            descriptors: Vec::with_capacity(4),
            segments: Vec::with_capacity(4),
            children: Vec::with_capacity(4),
            words: Box::new([0; 16]),
        }
    }

    /// Makes a call by what is to be tried. A child with memory of its own ends at once.
    pub(crate) fn make(&mut self, call: Syscall, args: &[usize; 6]) -> isize {
        // SAFETY: the calls of shots are made on ground that belongs to nobody else.
        let result = unsafe { (self.make)(call.number(), args) };
        if matches!(call, Syscall::Fork | Syscall::Vfork | Syscall::Clone | Syscall::Clone3) {
            match result {
                // SAFETY: the child has nothing to lose.
                0 => unsafe {
                    gate::call(Syscall::ExitGroup.number(), &[0; 6]);
                },
                child @ 1.. => self.children.push(child.cast_unsigned()),
                _ => {}
            }
        }
        result
    }

    /// A call that was made has succeeded: what of the ground is no more, and what has come.
    pub(crate) fn changed(&mut self, aim: &Aim, result: isize) {
        if let Some(range) = aim.frees {
            self.pages.retain(|page| !(range.start()..range.end()).contains(page));
        }
        for page in 0..aim.gives {
            self.pages.push(result.cast_unsigned() + page * PAGE_SIZE);
        }
    }

    /// Memory of so many pages, full of `A`.
    pub(crate) fn memory(&mut self, pages: usize) -> Option<Range> {
        self.map(pages, PRIVATE_ANONYMOUS, NONE, b'A')
    }

    /// The same, but nothing is in it yet.
    pub(crate) fn untouched(&mut self, pages: usize) -> Option<Range> {
        self.map(pages, PRIVATE_ANONYMOUS, NONE, 0)
    }

    /// Writes `A` to the first byte of memory of ours.
    pub(crate) fn touch(&self, memory: Range) {
        debug_assert!(self.pages.contains(&memory.start()));
        // SAFETY: mapped by this, and nobody else has it.
        unsafe { (memory.start() as *mut u8).write_volatile(b'A') };
    }

    /// A file in memory of so many pages that is mapped, the first page full of `A`, the next of `B`, and so on; and its
    /// descriptor.
    pub(crate) fn file(&mut self, pages: usize) -> Option<(Range, usize)> {
        const MEMFD_CREATE: usize = 319;
        const CLOSE_ON_EXEC: usize = 1;
        let args = [c"probe".as_ptr() as usize, CLOSE_ON_EXEC, 0, 0, 0, 0];
        // SAFETY: makes a file.
        let file = usize::try_from(unsafe { gate::call(MEMFD_CREATE, &args) }).ok()?;
        self.descriptors.push(file);
        // SAFETY: of a file that nobody else has.
        let grown = unsafe { by_libc(Syscall::Ftruncate.number(), &[file, pages * PAGE_SIZE, 0, 0, 0, 0]) };
        let range = (grown == 0).then(|| self.map(pages, SHARED, file, b'A')).flatten()?;
        for page in 1..pages {
            // SAFETY: mapped just now.
            unsafe {
                ((range.start() + page * PAGE_SIZE) as *mut u8).write_bytes(b'A' + page as u8, PAGE_SIZE)
            };
        }
        Some((range, file))
    }

    /// A segment of one page full of `S`, its number.
    pub(crate) fn segment(&mut self) -> Option<usize> {
        const SHMGET: usize = 29;
        const PRIVATE: usize = 0;
        const CREATE_READ_WRITE: usize = 0o1600;
        // SAFETY: makes a segment.
        let id = unsafe { gate::call(SHMGET, &[PRIVATE, PAGE_SIZE, CREATE_READ_WRITE, 0, 0, 0]) };
        let id = usize::try_from(id).ok()?;
        self.segments.push(id);
        let there = self.attach(id)?;
        // SAFETY: attached just now.
        unsafe { (there.start() as *mut u8).write_bytes(b'S', PAGE_SIZE) };
        Some(id)
    }

    /// A segment of one page, attached.
    pub(crate) fn attach(&mut self, id: usize) -> Option<Range> {
        // SAFETY: where the kernel finds a place.
        let at = unsafe { by_libc(Syscall::Shmat.number(), &[id, 0, 0, 0, 0, 0]) };
        self.own(at, 1)
    }

    /// A descriptor that stands for this process.
    pub(crate) fn this_process(&mut self) -> Option<usize> {
        const PIDFD_OPEN: usize = 434;
        // SAFETY: only opens.
        let id = unsafe { gate::call(PIDFD_OPEN, &[gate::safe::getpid() as usize, 0, 0, 0, 0, 0]) };
        let id = usize::try_from(id).ok()?;
        self.descriptors.push(id);
        Some(id)
    }

    /// Room for what an argument points to; stays where it is.
    pub(crate) fn words(&mut self, words: &[usize]) -> usize {
        self.words[..words.len()].copy_from_slice(words);
        self.words.as_ptr() as usize
    }

    /// The heap one page longer than it was, the page full of `A`, and where the heap ended.
    pub(crate) fn longer_heap(&mut self) -> Option<(Range, usize)> {
        // SAFETY: 0 only asks.
        let end = unsafe { gate::call(Syscall::Brk.number(), &[0; 6]) }.cast_unsigned();
        let page = Range::with_len(end.next_multiple_of(PAGE_SIZE), PAGE_SIZE).ok()?;
        let grown = self.make(Syscall::Brk, &[page.end(), 0, 0, 0, 0, 0]);
        if grown != page.end().cast_signed() {
            return None;
        }
        // SAFETY: the heap has just been made longer by this page, of which nobody else knows.
        unsafe { (page.start() as *mut u8).write_bytes(b'A', PAGE_SIZE) };
        Some((page, end))
    }

    fn map(&mut self, pages: usize, flags: usize, file: usize, byte: u8) -> Option<Range> {
        let args = [0, pages * PAGE_SIZE, READ_WRITE, flags, file, 0];
        // SAFETY: a new mapping.
        let at = unsafe { by_libc(Syscall::Mmap.number(), &args) };
        let range = self.own(at, pages)?;
        if byte != 0 {
            // SAFETY: mapped just now.
            unsafe { (range.start() as *mut u8).write_bytes(byte, range.len()) };
        }
        Some(range)
    }

    fn own(&mut self, at: isize, pages: usize) -> Option<Range> {
        let at = usize::try_from(at).ok()?;
        self.pages.extend((0..pages).map(|page| at + page * PAGE_SIZE));
        Range::with_len(at, pages * PAGE_SIZE).ok()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        const CLOSE: usize = 3;
        const SHMCTL: usize = 31;
        const WAIT4: usize = 61;
        const IPC_RMID: usize = 0;
        // As few calls as there are pieces.
        self.pages.sort_unstable();
        for piece in self.pages.chunk_by(|one, next| one + PAGE_SIZE == *next) {
            // SAFETY: ours, and nobody uses it any more.
            unsafe { by_libc(Syscall::Munmap.number(), &[piece[0], piece.len() * PAGE_SIZE, 0, 0, 0, 0]) };
        }
        for &file in &self.descriptors {
            // SAFETY: opened by this.
            unsafe { gate::call(CLOSE, &[file, 0, 0, 0, 0, 0]) };
        }
        for &segment in &self.segments {
            // SAFETY: made by this.
            unsafe { gate::call(SHMCTL, &[segment, IPC_RMID, 0, 0, 0, 0]) };
        }
        for &child in &self.children {
            // SAFETY: nothing is written.
            unsafe { gate::call(WAIT4, &[child, 0, 0, 0, 0, 0]) };
        }
    }
}
