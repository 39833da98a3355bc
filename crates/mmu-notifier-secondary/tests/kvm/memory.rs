//! Memory of this process that is changed in every way, each announced, and what must be there afterwards.

// UNSAFETY: the calls that change memory, in a part of the address space that nobody else uses.
#![expect(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;

use mmu_notifier::{AddressSpace, Blocking, Change, Event, Invalidation, PAGE_SIZE, Range};

/// What a page table entry of the second level maps: what the kernel takes away as a whole if it splits it.
pub(crate) const HUGE: usize = 2 << 20;

const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;
const MADV_GUARD_INSTALL: c_int = 102;
const MADV_GUARD_REMOVE: c_int = 103;

/// Ways to change pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Unmap,
    /// New memory of this process's own, over whatever is there.
    MapOver,
    /// A file in memory, over whatever is there.
    MapFile,
    /// `mremap` of other pages to here, over whatever is there.
    MoveIn,
    /// `mremap` elsewhere, of one mapping.
    MoveAway,
    /// `MREMAP_DONTUNMAP`: only the pages go.
    MovePagesAway,
    Discard,
    /// `MADV_FREE`: the kernel may discard them.
    Free,
    /// `MADV_GUARD_INSTALL`: not to be accessed.
    Guard,
    Unguard,
    Forbid,
    ForbidToWrite,
    Allow,
    /// `fallocate` of the file.
    PunchHole,
    /// `MADV_REMOVE`.
    Remove,
    /// A child that does nothing.
    Fork,
}

impl Way {
    pub(crate) const ALL: [Way; 16] = [
        Way::Unmap,
        Way::MapOver,
        Way::MapFile,
        Way::MoveIn,
        Way::MoveAway,
        Way::MovePagesAway,
        Way::Discard,
        Way::Free,
        Way::Guard,
        Way::Unguard,
        Way::Forbid,
        Way::ForbidToWrite,
        Way::Allow,
        Way::PunchHole,
        Way::Remove,
        Way::Fork,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backing {
    Nothing,
    Own,
    File,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    backing: Backing,
    rights: c_int,
    is_guard: bool,
    /// The first word; none if it may be anything.
    word: Option<u64>,
}

const NEW: Page = Page { backing: Backing::Own, rights: READ_WRITE, is_guard: false, word: Some(0) };
const NONE: Page = Page { backing: Backing::Nothing, rights: libc::PROT_NONE, is_guard: false, word: None };

/// Pages in the middle of nowhere.
pub(crate) struct Memory {
    /// What is reserved, and where.
    reserved: (usize, usize),
    base: usize,
    /// Where pages come from and go to.
    parking: usize,
    pages: Vec<Page>,
    file: File,
    /// The first word of each page of the file.
    file_words: Vec<Option<u64>>,
    stamp: u64,
}

// Calls of the kernel, which must not fail.
fn check(result: c_int, call: &str) {
    assert_eq!(result, 0, "{call}: {}", io::Error::last_os_error());
}

fn map(at: usize, len: usize, rights: c_int, flags: c_int, file: c_int, offset: usize) -> usize {
    // SAFETY: `at` is nowhere, or in the part that is reserved.
    let mapped = unsafe { libc::mmap(at as *mut _, len, rights, flags, file, offset as libc::off_t) };
    assert_ne!(mapped, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    mapped as usize
}

const OWN: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

impl Memory {
    /// Whether this kernel has guard regions (6.13).
    pub(crate) fn has_guards(&self) -> bool {
        let at = self.parking as *mut libc::c_void;
        map(self.parking, PAGE_SIZE, READ_WRITE, OWN | libc::MAP_FIXED, -1, 0);
        // SAFETY: a page of ours.
        unsafe { libc::madvise(at, PAGE_SIZE, MADV_GUARD_INSTALL) == 0 }
    }

    /// So many pages; less than a huge one, and in the middle of one, or a whole one.
    pub(crate) fn new(pages: usize) -> Memory {
        let (len, size) = (pages * PAGE_SIZE, 6 * HUGE);
        let reserved = map(0, size, libc::PROT_NONE, OWN | libc::MAP_NORESERVE, -1, 0);
        let first = reserved.next_multiple_of(HUGE);
        let base = if len == HUGE { first + HUGE } else { first + HUGE + HUGE / 4 };
        map(base, len, READ_WRITE, OWN | libc::MAP_FIXED, -1, 0);
        // SAFETY: the name is a string.
        let file = unsafe { libc::memfd_create(c"data".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(file >= 0, "memfd_create: {}", io::Error::last_os_error());
        // SAFETY: a descriptor that nobody has.
        let file = unsafe { File::from_raw_fd(file) };
        file.set_len(len as u64).expect("a memfd has any length");
        let memory = Memory {
            reserved: (reserved, size),
            base,
            parking: first + 3 * HUGE + HUGE / 4,
            pages: vec![NEW; pages],
            file,
            file_words: vec![Some(0); pages],
            stamp: 0,
        };
        memory.no_huge_pages(0..pages);
        memory
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    pub(crate) fn range(&self) -> Range {
        self.range_of(&(0..self.len()))
    }

    pub(crate) fn range_of(&self, pages: &std::ops::Range<usize>) -> Range {
        Range::with_len(self.base + pages.start * PAGE_SIZE, pages.len() * PAGE_SIZE).expect("pages")
    }

    /// What a guest must find there: the first word, which may be anything; or nothing.
    pub(crate) fn expected(&self, page: usize, is_write: bool) -> Option<Option<u64>> {
        let Page { backing, rights, is_guard, word } = self.pages[page];
        let needed = if is_write { libc::PROT_WRITE } else { libc::PROT_READ };
        let is_there = backing != Backing::Nothing && rights & needed != 0 && !is_guard;
        is_there.then(|| if backing == Backing::File { self.file_words[page] } else { word })
    }

    /// A guest has written that.
    pub(crate) fn written(&mut self, page: usize, word: u64) {
        match self.pages[page].backing {
            Backing::File => self.file_words[page] = Some(word),
            _ => self.pages[page].word = Some(word),
        }
    }

    /// A first write of it, or one after a fork, gives it another frame.
    pub(crate) fn is_own(&self, page: usize) -> bool {
        self.pages[page].backing == Backing::Own
    }

    /// Looks itself, as the processor does; only where it may read.
    pub(crate) fn word(&self, page: usize) -> u64 {
        assert!(self.expected(page, false).is_some());
        // SAFETY: mapped and readable, or the test dies.
        unsafe { ((self.base + page * PAGE_SIZE) as *const u64).read_volatile() }
    }

    /// A word that has never been anywhere.
    pub(crate) fn stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// Changes these pages that way, announced to `space`; the ranges that were announced, or none if there is no such change
    /// of these pages.
    pub(crate) fn change(
        &mut self,
        space: &AddressSpace,
        way: Way,
        pages: std::ops::Range<usize>,
    ) -> Option<Vec<Range>> {
        if !self.allows(way, &pages) {
            return None;
        }
        let (range, parked) = (self.range_of(&pages), self.parked(pages.len()));
        let announced = match way {
            Way::Unmap | Way::MapOver | Way::MapFile => vec![(range, Event::Unmap)],
            Way::MoveIn | Way::MoveAway => vec![(range, Event::Unmap), (parked, Event::Unmap)],
            Way::MovePagesAway => vec![(range, Event::Unmap), (parked, Event::Unmap)],
            Way::Discard | Way::Free | Way::Guard | Way::PunchHole | Way::Remove => {
                vec![(range, Event::Clear)]
            }
            Way::Unguard => vec![],
            Way::Forbid | Way::ForbidToWrite | Way::Allow => vec![(range, Event::ProtectionVma)],
            Way::Fork => self.own_parts().into_iter().map(|part| (part, Event::ProtectionPage)).collect(),
        };
        if way == Way::MoveIn {
            self.park_new_pages(&pages);
        }
        let begin = |(range, event): &(Range, Event)| {
            space.begin(Change::new(*range, *event, Blocking::Allowed)).expect("it may wait")
        };
        let open: Vec<Invalidation<'_>> = announced.iter().map(begin).collect();
        self.make(way, &pages);
        // The last one first, as the change is over for all.
        open.into_iter().rev().for_each(Invalidation::end);
        Some(announced.into_iter().map(|(range, _)| range).collect())
    }

    fn allows(&self, way: Way, pages: &std::ops::Range<usize>) -> bool {
        let all = |test: fn(&Page) -> bool| self.pages[pages.clone()].iter().all(test);
        let is_there = |page: &Page| page.backing != Backing::Nothing;
        match way {
            Way::Unmap | Way::MapOver | Way::MapFile | Way::MoveIn | Way::Fork => true,
            Way::MoveAway => all(is_there),
            Way::MovePagesAway => all(|page| page.backing == Backing::Own && !page.is_guard),
            Way::Discard => all(is_there),
            Way::Free | Way::Guard => all(|page| page.backing == Backing::Own),
            Way::Unguard => all(|page| page.is_guard),
            Way::PunchHole => all(|page| page.backing != Backing::Own),
            Way::Remove => all(|page| page.backing == Backing::File && page.rights & libc::PROT_WRITE != 0),
            // The kernel does nothing where the rights are those, and so would announce nothing.
            Way::Forbid => all(|page| page.backing != Backing::Nothing && page.rights != libc::PROT_NONE),
            Way::ForbidToWrite => {
                all(|page| page.backing != Backing::Nothing && page.rights != libc::PROT_READ)
            }
            Way::Allow => all(|page| page.backing != Backing::Nothing && page.rights != READ_WRITE),
        }
    }

    fn make(&mut self, way: Way, pages: &std::ops::Range<usize>) {
        let (at, len) = (self.base + pages.start * PAGE_SIZE, pages.len() * PAGE_SIZE);
        let advise = |advice: c_int| {
            // SAFETY: pages of ours.
            check(unsafe { libc::madvise(at as *mut _, len, advice) }, "madvise");
        };
        let protect = |rights: c_int| {
            // SAFETY: pages of ours.
            check(unsafe { libc::mprotect(at as *mut _, len, rights) }, "mprotect");
        };
        let set =
            |own: &mut [Page], change: &dyn Fn(&mut Page)| own[pages.clone()].iter_mut().for_each(change);
        match way {
            Way::Unmap => {
                // SAFETY: pages of ours.
                check(unsafe { libc::munmap(at as *mut _, len) }, "munmap");
                set(&mut self.pages, &|page| *page = NONE);
            }
            Way::MapOver => {
                map(at, len, READ_WRITE, OWN | libc::MAP_FIXED, -1, 0);
                set(&mut self.pages, &|page| *page = NEW);
                self.no_huge_pages(pages.clone());
            }
            Way::MapFile => {
                let flags = libc::MAP_SHARED | libc::MAP_FIXED;
                map(at, len, READ_WRITE, flags, self.file.as_raw_fd(), pages.start * PAGE_SIZE);
                set(&mut self.pages, &|page| *page = Page { backing: Backing::File, ..NEW });
            }
            Way::MoveIn => {
                remap(self.parking, len, at, 0);
                let first = self.stamp + 1 - pages.len() as u64;
                for (number, page) in self.pages[pages.clone()].iter_mut().enumerate() {
                    *page = Page { word: Some(first + number as u64), ..NEW };
                }
            }
            Way::MoveAway => {
                remap(at, len, self.parking, 0);
                set(&mut self.pages, &|page| *page = NONE);
            }
            Way::MovePagesAway => {
                remap(at, len, self.parking, libc::MREMAP_DONTUNMAP);
                set(&mut self.pages, &|page| page.word = Some(0));
            }
            Way::Discard => {
                advise(libc::MADV_DONTNEED);
                set(&mut self.pages, &|page| page.word = Some(0));
            }
            Way::Free => {
                advise(libc::MADV_FREE);
                set(&mut self.pages, &|page| page.word = None);
            }
            Way::Guard => {
                advise(MADV_GUARD_INSTALL);
                set(&mut self.pages, &|page| (page.is_guard, page.word) = (true, Some(0)));
            }
            Way::Unguard => {
                advise(MADV_GUARD_REMOVE);
                set(&mut self.pages, &|page| page.is_guard = false);
            }
            Way::Forbid => {
                protect(libc::PROT_NONE);
                set(&mut self.pages, &|page| page.rights = libc::PROT_NONE);
            }
            Way::ForbidToWrite => {
                protect(libc::PROT_READ);
                set(&mut self.pages, &|page| page.rights = libc::PROT_READ);
            }
            Way::Allow => {
                protect(READ_WRITE);
                set(&mut self.pages, &|page| page.rights = READ_WRITE);
            }
            Way::PunchHole => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let (file, offset) = (self.file.as_raw_fd(), (pages.start * PAGE_SIZE) as libc::off_t);
                // SAFETY: a file of ours.
                check(unsafe { libc::fallocate(file, mode, offset, len as libc::off_t) }, "fallocate");
                self.file_words[pages.clone()].fill(Some(0));
            }
            Way::Remove => {
                advise(libc::MADV_REMOVE);
                self.file_words[pages.clone()].fill(Some(0));
            }
            Way::Fork => fork_and_wait(),
        }
        self.clear_parking(way, len);
    }

    /// What is private, as ranges.
    fn own_parts(&self) -> Vec<Range> {
        let mut parts: Vec<std::ops::Range<usize>> = Vec::new();
        for page in (0..self.len()).filter(|page| self.is_own(*page)) {
            match parts.last_mut().filter(|part| part.end == page) {
                Some(part) => part.end = page + 1,
                None => parts.push(page..page + 1),
            }
        }
        parts.iter().map(|part| self.range_of(part)).collect()
    }

    fn parked(&self, pages: usize) -> Range {
        Range::with_len(self.parking, pages * PAGE_SIZE).expect("pages")
    }

    /// Pages with new stamps, to be moved to `pages`.
    fn park_new_pages(&mut self, pages: &std::ops::Range<usize>) {
        map(self.parking, pages.len() * PAGE_SIZE, READ_WRITE, OWN | libc::MAP_FIXED, -1, 0);
        for number in 0..pages.len() {
            let stamp = self.stamp();
            // SAFETY: just mapped, and nobody else's.
            unsafe { ((self.parking + number * PAGE_SIZE) as *mut u64).write(stamp) };
        }
    }

    fn clear_parking(&self, way: Way, len: usize) {
        if matches!(way, Way::MoveAway | Way::MovePagesAway) {
            map(self.parking, len, libc::PROT_NONE, OWN | libc::MAP_NORESERVE | libc::MAP_FIXED, -1, 0);
        }
    }

    fn no_huge_pages(&self, pages: std::ops::Range<usize>) {
        let range = self.range_of(&pages);
        // Fails where the kernel has no huge pages.
        // SAFETY: pages of ours.
        unsafe { libc::madvise(range.start() as *mut _, range.len(), libc::MADV_NOHUGEPAGE) };
    }

    /// What is in the file.
    pub(crate) fn word_in_file(&self, page: usize) -> u64 {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, (page * PAGE_SIZE) as u64).expect("it is that long");
        u64::from_ne_bytes(word)
    }

    /// What must be in the file, if that is known.
    pub(crate) fn expected_in_file(&self, page: usize) -> Option<u64> {
        self.file_words[page]
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: ours, and the test is over.
        unsafe { libc::munmap(self.reserved.0 as *mut _, self.reserved.1) };
    }
}

fn remap(from: usize, len: usize, to: usize, extra: c_int) {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | extra;
    // SAFETY: pages of ours, to a place of ours.
    let moved = unsafe { libc::mremap(from as *mut _, len, len, flags, to) };
    assert_eq!(moved as usize, to, "mremap: {}", io::Error::last_os_error());
}

fn fork_and_wait() {
    // SAFETY: the child does nothing.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", io::Error::last_os_error());
    if child == 0 {
        // SAFETY: ends it.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: waits for our child.
    assert_eq!(unsafe { libc::waitpid(child, null_mut(), 0) }, child);
}
