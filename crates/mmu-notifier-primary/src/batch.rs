//! Many sites rewritten at a time, in code that nobody runs.
//!
//! To write a few bytes of code is a system call; a C library has dozens of sites on a dozen pages. So what is to be
//! written is kept here, and then goes out a page at a time: first all stubs, as nothing jumps to them yet, then the
//! code. Only then it is known which sites were rewritten.
//!
//! A site whose bytes lie on one page is written by one call, so either all of it is there or nothing.

// UNSAFETY: writes code.
#![expect(unsafe_code)]

use mmu_notifier::PAGE_SIZE;

use crate::patch::Writer;
use crate::search::Shape;
use crate::session::UnseenReason;

/// Sites that are kept.
const SITES: usize = 64;
/// Places of code that are kept: a site has one, or three.
const EDITS: usize = SITES + 32;
/// Most bytes that are kept of stubs.
const STUBS: usize = 8192;
/// Bytes of the longest jump.
const JUMP: usize = 5;

/// What is to be written.
pub(crate) struct Batch {
    sites: [Waiting; SITES],
    sites_used: usize,
    edits: [Edit; EDITS],
    edits_used: usize,
    /// Where the stubs go, one behind the other.
    stubs_at: usize,
    stubs_used: usize,
    stubs: [u8; STUBS],
    /// Room for a page on its way; the last jump may reach into the next one.
    page: [u8; PAGE_SIZE + JUMP],
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

#[derive(Clone, Copy)]
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
        let site = Waiting { shape: Shape::T1, number: None, address: 0, last_edit: 0 };
        Batch {
            sites: [site; SITES],
            sites_used: 0,
            edits: [Edit { address: 0, len: 0, bytes: [0; JUMP] }; EDITS],
            edits_used: 0,
            stubs_at: 0,
            stubs_used: 0,
            stubs: [0; STUBS],
            page: [0; PAGE_SIZE + JUMP],
        }
    }

    /// Whether there is room for one more site, whatever its shape, with a stub of at most `stub` bytes.
    pub(crate) fn has_room(&self, stub: usize) -> bool {
        self.sites_used < SITES && self.edits_used + 3 <= EDITS && self.stubs_used + stub <= STUBS
    }

    /// Whether anything is kept of the code in `start..end`: then what is in memory is not what will be there.
    pub(crate) fn touches(&self, start: usize, end: usize) -> bool {
        self.edits[..self.edits_used].iter().any(|edit| edit.address < end && start < edit.end())
    }

    /// Keeps a stub. False: it does not lie behind the last one; whoever has it writes it himself.
    pub(crate) fn stub(&mut self, address: usize, bytes: &[u8]) -> bool {
        if self.stubs_used == 0 {
            self.stubs_at = address;
        }
        let Some(from) = address.checked_sub(self.stubs_at).filter(|&from| from >= self.stubs_used) else {
            return false;
        };
        let Some(room) = self.stubs.get_mut(self.stubs_used..from + bytes.len()) else { return false };
        let (gap, stub) = room.split_at_mut(from - self.stubs_used);
        gap.fill(0);
        stub.copy_from_slice(bytes);
        self.stubs_used = from + bytes.len();
        true
    }

    /// Keeps what a site's code becomes: a few places on one page, for which there is room.
    pub(crate) fn site(
        &mut self,
        shape: Shape,
        number: Option<usize>,
        address: usize,
        places: &[(usize, &[u8])],
    ) {
        for &(address, bytes) in places {
            let edit = &mut self.edits[self.edits_used];
            (edit.address, edit.len) = (address, bytes.len());
            edit.bytes[..bytes.len()].copy_from_slice(bytes);
            self.edits_used += 1;
        }
        self.sites[self.sites_used] = Waiting { shape, number, address, last_edit: self.edits_used - 1 };
        self.sites_used += 1;
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
        let stubs = match &self.stubs[..self.stubs_used] {
            [] => Ok(()),
            // SAFETY: by the caller's promise.
            stubs => unsafe { writer.quiet(self.stubs_at, stubs) },
        };
        let (mut from, mut site) = (0, 0);
        while from < self.edits_used {
            let page = self.edits[from].address & !(PAGE_SIZE - 1);
            let here = |edit: &Edit| edit.address & !(PAGE_SIZE - 1) == page;
            let count = self.edits[from..self.edits_used].iter().take_while(|edit| here(edit)).count();
            // SAFETY: by the caller's promise.
            let written = stubs.and_then(|()| unsafe { self.write_page(from, count, writer) });
            from += count;
            while site < self.sites_used && self.sites[site].last_edit < from {
                outcome(&self.sites[site], written);
                site += 1;
            }
        }
        self.forget();
    }

    /// Keeps nothing any more.
    pub(crate) fn forget(&mut self) {
        (self.sites_used, self.edits_used, self.stubs_used) = (0, 0, 0);
    }

    /// Writes `count` edits of one page, from the `from`th on, with the code that lies between.
    ///
    /// # Safety
    ///
    /// As for [`Writer::quiet`].
    unsafe fn write_page(
        &mut self,
        from: usize,
        count: usize,
        writer: &mut Writer,
    ) -> Result<(), UnseenReason> {
        let edits = &self.edits[from..from + count];
        let start = edits.iter().map(|edit| edit.address).min().unwrap_or(0);
        let end = edits.iter().map(Edit::end).max().unwrap_or(0);
        let page = &mut self.page[..end - start];
        // SAFETY: mapped code, by the caller's promise.
        page.copy_from_slice(unsafe { core::slice::from_raw_parts(start as *const u8, end - start) });
        for edit in edits {
            let at = edit.address - start;
            page[at..at + edit.len].copy_from_slice(&edit.bytes[..edit.len]);
        }
        // SAFETY: by the caller's promise.
        unsafe { writer.quiet(start, page) }
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
