//! Many sites rewritten at a time, in code that nobody runs.
//!
//! To write a few bytes of code is a system call; a C library has dozens of sites on a dozen pages. So what is to be
//! written is kept here, and then goes out a page at a time: first all stubs, as nothing jumps to them yet, then the
//! code. Only then it is known which sites were rewritten.
//!
//! A site whose bytes lie on one page is written by one call, so either all of it is there or nothing.

// UNSAFETY: writes code.
#![expect(unsafe_code)]

use core::ops::Range;

use mmu_notifier::PAGE_SIZE;

use crate::patch::Writer;
use crate::search::Shape;
use crate::session::UnseenReason;
use crate::tails;

/// Sites that are kept.
const SITES: usize = 64;
/// Places of code that are kept: a site has one, or three.
const EDITS: usize = SITES + 32;
/// Most bytes that are kept of stubs.
const STUBS: usize = 8192;
/// Bytes that are kept of their tails.
const TAILS: usize = SITES * tails::LONGEST;
/// Bytes of the longest jump.
const JUMP: usize = 5;

/// What is to be written. Nothing here ever grows beyond the room that it is made with: late libraries are searched in
/// the hook, which must not allocate.
#[derive(Debug)]
pub(crate) struct Batch {
    sites: Vec<Waiting>,
    edits: Vec<Edit>,
    stubs: Stretch,
    tails: Stretch,
    /// A page on its way; the last jump may reach into the next one.
    page: Vec<u8>,
}

/// Code that goes somewhere in one piece.
#[derive(Debug)]
struct Stretch {
    at: usize,
    bytes: Vec<u8>,
    room: usize,
}

impl Stretch {
    fn new(room: usize) -> Stretch {
        Stretch { at: 0, bytes: Vec::with_capacity(room), room }
    }

    /// Keeps more. False: it does not lie behind the last one, or there is no room.
    fn add(&mut self, address: usize, bytes: &[u8]) -> bool {
        if self.bytes.is_empty() {
            self.at = address;
        }
        let Some(from) = address.checked_sub(self.at) else { return false };
        if from < self.bytes.len() || from + bytes.len() > self.room {
            return false;
        }
        self.bytes.resize(from, 0);
        self.bytes.extend_from_slice(bytes);
        true
    }

    /// # Safety
    ///
    /// As for [`Writer::quiet`].
    unsafe fn write(&self, writer: &mut Writer) -> Result<(), UnseenReason> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: by the caller's promise.
        unsafe { writer.quiet(self.at, &self.bytes) }
    }
}

/// A site that is rewritten as soon as the batch is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) shape: Shape,
    pub(crate) number: Option<usize>,
    pub(crate) address: usize,
    /// Its last edit: all its edits are on one page, and so in one call.
    last_edit: usize,
}

#[derive(Clone, Copy, Debug)]
struct Edit {
    address: usize,
    len: usize,
    bytes: [u8; JUMP],
}

impl Edit {
    fn end(&self) -> usize {
        self.address + self.len
    }
}

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch {
            sites: Vec::with_capacity(SITES),
            edits: Vec::with_capacity(EDITS),
            stubs: Stretch::new(STUBS),
            tails: Stretch::new(TAILS),
            page: Vec::with_capacity(PAGE_SIZE + JUMP),
        }
    }

    /// Memory that it takes.
    pub(crate) const fn bytes() -> usize {
        SITES * size_of::<Waiting>() + EDITS * size_of::<Edit>() + STUBS + TAILS + PAGE_SIZE + JUMP
    }

    /// Whether there is room for one more site, whatever its shape, with a stub of at most `stub` bytes.
    pub(crate) fn has_room(&self, stub: usize) -> bool {
        self.sites.len() < SITES && self.edits.len() + 3 <= EDITS && self.stubs.bytes.len() + stub <= STUBS
    }

    /// Whether anything is kept of the code in `start..end`: then what is in memory is not what will be there.
    pub(crate) fn touches(&self, start: usize, end: usize) -> bool {
        self.edits.iter().any(|edit| edit.address < end && start < edit.end())
    }

    /// Keeps a stub. False: it does not lie behind the last one; whoever has it writes it himself.
    pub(crate) fn stub(&mut self, address: usize, bytes: &[u8]) -> bool {
        self.stubs.add(address, bytes)
    }

    /// The same of a stub's tails.
    pub(crate) fn tails(&mut self, address: usize, bytes: &[u8]) -> bool {
        self.tails.add(address, bytes)
    }

    /// Keeps what a site's code becomes: a few places on one page, for which there is room.
    pub(crate) fn site(
        &mut self,
        shape: Shape,
        number: Option<usize>,
        address: usize,
        places: &[(usize, &[u8])],
    ) {
        for &(address, place) in places {
            let mut bytes = [0; JUMP];
            bytes[..place.len()].copy_from_slice(place);
            self.edits.push(Edit { address, len: place.len(), bytes });
        }
        self.sites.push(Waiting { shape, number, address, last_edit: self.edits.len() - 1 });
    }

    /// Writes everything, and says of each site what has become of it.
    ///
    /// # Safety
    ///
    /// As for [`Writer::quiet`], of everything that is kept.
    pub(crate) unsafe fn write(
        &mut self,
        writer: &mut Writer,
        mut outcome: impl FnMut(&Waiting, Result<(), UnseenReason>),
    ) {
        // SAFETY: by the caller's promise.
        let tails = unsafe { self.tails.write(writer) };
        // SAFETY: by the caller's promise.
        let stubs = tails.and_then(|()| unsafe { self.stubs.write(writer) });
        let (mut from, mut site) = (0, 0);
        while from < self.edits.len() {
            let page = self.edits[from].address & !(PAGE_SIZE - 1);
            let here = |edit: &Edit| edit.address & !(PAGE_SIZE - 1) == page;
            let to = from + self.edits[from..].iter().take_while(|edit| here(edit)).count();
            // SAFETY: by the caller's promise.
            let written = stubs.and_then(|()| unsafe { self.write_page(from..to, writer) });
            from = to;
            while let Some(done) = self.sites.get(site).filter(|site| site.last_edit < from) {
                outcome(done, written);
                site += 1;
            }
        }
        self.forget();
    }

    /// Keeps nothing any more.
    pub(crate) fn forget(&mut self) {
        self.sites.clear();
        self.edits.clear();
        self.stubs.bytes.clear();
        self.tails.bytes.clear();
    }

    /// Writes those edits, which are on one page, with the code that lies between.
    ///
    /// # Safety
    ///
    /// As for [`Writer::quiet`].
    unsafe fn write_page(&mut self, edits: Range<usize>, writer: &mut Writer) -> Result<(), UnseenReason> {
        let edits = &self.edits[edits];
        let start = edits.iter().map(|edit| edit.address).min().unwrap_or(0);
        let end = edits.iter().map(Edit::end).max().unwrap_or(0);
        self.page.clear();
        // SAFETY: mapped code, by the caller's promise.
        self.page.extend_from_slice(unsafe { core::slice::from_raw_parts(start as *const u8, end - start) });
        for edit in edits {
            let at = edit.address - start;
            self.page[at..at + edit.len].copy_from_slice(&edit.bytes[..edit.len]);
        }
        // SAFETY: by the caller's promise.
        unsafe { writer.quiet(start, &self.page) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages;
    use crate::patch::Live;

    /// Two pages, filled with 0x90, and a batch that writes there.
    fn two_pages() -> usize {
        let at = pages::map(2 * PAGE_SIZE);
        // SAFETY: mapped just now.
        unsafe { at.write_bytes(0x90, 2 * PAGE_SIZE) };
        at as usize
    }

    fn bytes(at: usize, len: usize) -> Vec<u8> {
        // SAFETY: on the pages of a test.
        unsafe { core::slice::from_raw_parts(at as *const u8, len) }.to_vec()
    }

    fn write(batch: &mut Batch) -> Vec<(usize, bool)> {
        let mut outcomes = Vec::new();
        let mut writer = Writer::new(Live::No);
        // SAFETY: on the pages of a test.
        unsafe { batch.write(&mut writer, |site, written| outcomes.push((site.address, written.is_ok()))) };
        outcomes
    }

    #[test]
    fn all_is_written_and_nothing_else() {
        let (at, stubs) = (two_pages(), two_pages());
        let mut batch = Batch::new();
        assert!(batch.stub(stubs, &[1; 10]) && batch.stub(stubs + 16, &[2; 10]));
        assert!(!batch.stub(stubs + 4, &[3]), "among the others");
        assert!(!batch.stub(stubs - 16, &[3]), "before them");
        assert!(!batch.stub(stubs + STUBS, &[3]), "too far behind them");
        batch.site(Shape::T1, None, at + 1, &[(at + 1, &[0xe9; 5])]);
        batch.site(Shape::T1, None, at + 10, &[(at + 20, &[7; 2]), (at + 22, &[8; 5]), (at + 10, &[9; 2])]);
        // Over the end of the page.
        batch.site(Shape::T2, None, at + PAGE_SIZE - 2, &[(at + PAGE_SIZE - 2, &[0xaa; 5])]);
        batch.site(Shape::T1, None, at + PAGE_SIZE + 3, &[(at + PAGE_SIZE + 3, &[0xbb; 5])]);
        assert!(batch.touches(at + 26, at + 27) && batch.touches(at, at + 2));
        assert!(
            !batch.touches(at + 27, at + 28) && !batch.touches(at, at + 1) && !batch.touches(at + 6, at + 10)
        );
        assert_eq!(bytes(at, 2 * PAGE_SIZE), [0x90; 2 * PAGE_SIZE], "nothing yet");

        let done = [at + 1, at + 10, at + PAGE_SIZE - 2, at + PAGE_SIZE + 3].map(|site| (site, true));
        assert_eq!(write(&mut batch), done);
        let mut code = vec![0x90; 2 * PAGE_SIZE];
        code[1..6].fill(0xe9);
        code[20..22].fill(7);
        code[22..27].fill(8);
        code[10..12].fill(9);
        code[PAGE_SIZE - 2..PAGE_SIZE + 3].fill(0xaa);
        code[PAGE_SIZE + 3..PAGE_SIZE + 8].fill(0xbb);
        assert!(bytes(at, 2 * PAGE_SIZE) == code);
        assert_eq!(bytes(stubs, 27), [&[1; 10][..], &[0; 6], &[2; 10], &[0x90]].concat());
        assert!(!batch.touches(0, usize::MAX) && batch.has_room(STUBS));
        assert_eq!(write(&mut batch), []);
    }

    #[test]
    fn each_site_learns_its_own_outcome() {
        let at = two_pages();
        // SAFETY: the second page of this test's.
        assert!(unsafe { pages::unmap((at + PAGE_SIZE) as *mut u8, PAGE_SIZE) });
        let mut batch = Batch::new();
        // There is nothing to write the stub to.
        assert!(batch.stub(at + PAGE_SIZE, &[1; 10]));
        batch.site(Shape::T1, None, at, &[(at, &[0xe9; 5])]);
        assert_eq!(write(&mut batch), [(at, false)]);
        assert_eq!(bytes(at, PAGE_SIZE), [0x90; PAGE_SIZE], "no jump to nowhere");
    }

    #[test]
    fn there_is_room_for_so_much() {
        let at = two_pages();
        let mut batch = Batch::new();
        let mut sites = 0;
        while batch.has_room(100) {
            batch.site(Shape::T1, None, at + 8 * sites, &[(at + 8 * sites, &[0xe9; 5])]);
            sites += 1;
        }
        assert_eq!(sites, SITES);
        assert_eq!(write(&mut batch).len(), SITES);
        let mut batch = Batch::new();
        assert!(batch.stub(at, &[1; STUBS - 100]) && batch.has_room(100) && !batch.has_room(101));
    }
}
