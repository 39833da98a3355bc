//! The same memory behind the real KVM and behind `stage2`, which must have the same pages of it at any time.

// UNSAFETY: asks the kernel to make pages present.
#![expect(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mmu_notifier::{AddressSpace, PAGE_SIZE, Range};
use mmu_notifier_secondary::device::{Access, Page};
use mmu_notifier_secondary::stage2::{Fault, Memslot, Stage2};

use crate::events::{Events, Unmapped, this_thread};
use crate::guest::{DATA, Guest, NotMapped};
use crate::memory::{HUGE, Memory, Way};

/// The memslot of the data, here and there.
pub(crate) const SLOT: u32 = 1;

/// One at a time: the fork of one changes the memory of all.
static ALONE: Mutex<()> = Mutex::new(());

/// All but the guest.
pub(crate) struct Rest<'a> {
    pub(crate) space: &'a AddressSpace,
    pub(crate) memory: &'a mut Memory,
    pub(crate) stage2: &'a Stage2,
    pub(crate) events: &'a mut Events,
}

pub(crate) struct Rig {
    pub(crate) space: AddressSpace,
    pub(crate) memory: Memory,
    pub(crate) guest: Guest,
    pub(crate) stage2: Stage2,
    events: Events,
    /// What the kernel told KVM that nobody had announced, by cause.
    pub(crate) causes: BTreeMap<&'static str, usize>,
    /// What was announced.
    pub(crate) changes: usize,
    /// What the kernel told KVM inside that.
    pub(crate) told: usize,
    /// Until all of it is gone.
    _alone: MutexGuard<'static, ()>,
}

/// The pages of this process, as KVM looks them up: made present, for reading or for writing.
pub(crate) fn get_user_page(address: usize, access: Access) -> Option<Page> {
    let is_write = access.includes(Access::Write);
    let advice = if is_write { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
    // SAFETY: makes pages present that are there; changes nothing.
    let result = unsafe { libc::madvise(address as *mut _, PAGE_SIZE, advice) };
    let page = if is_write { Page::writable } else { Page::read_only };
    (result == 0).then(|| page(address))
}

pub(crate) fn guest_address(page: usize) -> usize {
    DATA + page * PAGE_SIZE
}

/// Whether the two have the same pages after a change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Agree {
    Exactly,
    /// The kernel has fewer: it has taken away what lies in the same 2 MiB as well.
    OursAndMore,
    /// The kernel has more: nothing was announced to it where nothing was written.
    KernelsAndMore,
}

impl Rig {
    /// With so many pages, none of which is in a table; `None`: skipped, and said so.
    pub(crate) fn new(test: &str, pages: usize) -> Option<Rig> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut guest = Guest::new(test)?;
        let memory = Memory::new(pages);
        let events = Events::new(test, memory.range())?;
        let space = AddressSpace::new();
        let stage2 = Stage2::new(&space, get_user_page);
        let range = memory.range();
        guest.set_memory(SLOT, DATA, range, 0).expect("a memslot");
        stage2.add(SLOT as usize, Memslot { guest: DATA, memory: range, access: Access::ReadWrite }).unwrap();
        // Once, so that what it needs beside its data is there.
        let all: Vec<usize> = (0..pages).map(guest_address).collect();
        assert!(guest.read(&all).iter().all(|read| *read == Ok(0)));
        guest.count_data(pages as u64);
        let mut rig = Rig {
            space,
            memory,
            guest,
            stage2,
            events,
            causes: BTreeMap::new(),
            changes: 0,
            told: 0,
            _alone: alone,
        };
        rig.access(0..pages, false);
        Some(rig)
    }

    /// Changes these pages; whether there is such a change. The kernel tells KVM of nothing outside of what was announced, and
    /// both have the same pages left.
    pub(crate) fn change(&mut self, way: Way, pages: std::ops::Range<usize>) -> bool {
        self.expect_quiet();
        let Some(announced) = self.memory.change(&self.space, way, pages.clone()) else { return false };
        self.changes += 1;
        let mut agree = if way == Way::Fork { Agree::KernelsAndMore } else { Agree::Exactly };
        for event in self.events.take() {
            if announced.iter().any(|range| range.contains(&event.range)) {
                self.told += 1;
            } else if is_split(&event, &announced) {
                self.count("a huge page's mapping was split");
                agree = Agree::OursAndMore;
            } else if event.thread != this_thread() {
                self.count("another task");
                agree = Agree::OursAndMore;
            } else {
                panic!("{way:?} of {pages:?}: {event:x?} is in none of {announced:x?}");
            }
        }
        let (ours, kernels) = (self.stage2.pages() as u64, self.guest.pages());
        let is_so = match agree {
            Agree::Exactly => ours == kernels,
            Agree::OursAndMore => ours >= kernels,
            Agree::KernelsAndMore => ours <= kernels,
        };
        assert!(is_so, "{way:?} of {pages:?}: the kernel has {kernels} pages, and we {ours}");
        if agree != Agree::Exactly {
            self.access(0..self.memory.len(), false);
        }
        true
    }

    /// Both guests read, or write, these pages: they are there for both or for neither, and so are their words.
    pub(crate) fn access(&mut self, pages: impl IntoIterator<Item = usize>, is_write: bool) {
        let pages: Vec<usize> = pages.into_iter().collect();
        let addresses: Vec<usize> = pages.iter().map(|page| guest_address(*page)).collect();
        let access = if is_write { Access::Write } else { Access::Read };
        let mut vcpu = self.stage2.vcpu().expect("a processor");
        for (page, address) in pages.iter().zip(&addresses) {
            let result = vcpu.access(*address, access, |_| ());
            match self.memory.expected(*page, is_write) {
                Some(_) => assert_eq!(result, Ok(()), "{access} of page {page}"),
                None => assert!(
                    matches!(result, Err(Fault::NotMapped { .. })),
                    "{access} of page {page}: {result:?}"
                ),
            }
        }
        drop(vcpu);
        if is_write {
            let words: Vec<u64> = pages.iter().map(|_| self.memory.stamp()).collect();
            let results = self.guest.write(&addresses, &words);
            for ((page, word), result) in pages.iter().zip(words).zip(results) {
                match self.memory.expected(*page, true) {
                    Some(_) => {
                        assert_eq!(result, Ok(()), "the guest writes page {page}");
                        self.memory.written(*page, word);
                        if self.memory.expected(*page, false).is_some() {
                            assert_eq!(
                                self.memory.word(*page),
                                word,
                                "what the guest has written to page {page}"
                            );
                        }
                    }
                    None => assert_eq!(result, Err(NotMapped), "the guest writes page {page}"),
                }
            }
        } else {
            for (page, result) in pages.iter().zip(self.guest.read(&addresses)) {
                match (self.memory.expected(*page, false), result) {
                    (Some(Some(word)), result) => assert_eq!(result, Ok(word), "the guest reads page {page}"),
                    (Some(None), result) => assert!(result.is_ok(), "the guest reads page {page}"),
                    (None, result) => assert_eq!(result, Err(NotMapped), "the guest reads page {page}"),
                }
            }
        }
        let mut is_foreign = false;
        for event in self.events.take() {
            let is_first_write = |page: &usize| {
                is_write
                    && self.memory.is_own(*page)
                    && self.memory.range_of(&(*page..*page + 1)) == event.range
            };
            if event.thread != this_thread() {
                self.count("another task");
                is_foreign = true;
            } else {
                assert!(pages.iter().any(is_first_write), "{event:x?} at {access} of {pages:?}");
                self.count("the first write of a page");
            }
        }
        let (ours, kernels) = (self.stage2.pages() as u64, self.guest.pages());
        assert!(
            ours == kernels || is_foreign,
            "{access} of {pages:?}: the kernel has {kernels} pages, and we {ours}"
        );
    }

    /// Changes these pages without a look at who has what.
    pub(crate) fn change_unseen(&mut self, way: Way, pages: std::ops::Range<usize>) -> bool {
        let is_made = self.memory.change(&self.space, way, pages).is_some();
        self.events.take();
        is_made
    }

    /// For threads of their own.
    pub(crate) fn split(&mut self) -> (&mut Guest, Rest<'_>) {
        let Rig { space, memory, guest, stage2, events, .. } = self;
        (guest, Rest { space, memory, stage2, events })
    }

    /// Both guests read all of their memory, after all of it was taken away from them.
    pub(crate) fn find_all_again(&mut self) {
        let all: Vec<usize> = (0..self.memory.len()).map(guest_address).collect();
        self.guest.read(&all);
        self.guest.write(&all, &vec![0; all.len()]);
    }

    /// Both guests write these pages, without a look at who has what.
    pub(crate) fn write_both(&mut self, pages: std::ops::Range<usize>) {
        let addresses: Vec<usize> = pages.map(guest_address).collect();
        let mut vcpu = self.stage2.vcpu().expect("a processor");
        for address in &addresses {
            vcpu.access(*address, Access::Write, |_| ()).expect("it is there");
        }
        let results = self.guest.write(&addresses, &vec![7; addresses.len()]);
        assert!(results.iter().all(Result::is_ok));
    }

    fn count(&mut self, cause: &'static str) {
        *self.causes.entry(cause).or_default() += 1;
    }

    /// Nothing has come since the last look, but from other tasks.
    fn expect_quiet(&mut self) {
        for event in self.events.take() {
            assert_ne!(event.thread, this_thread(), "{event:x?} came of nothing");
            self.count("another task");
            let range = self.memory.range();
            assert!(event.range.overlaps(&range), "{event:x?} is not filtered");
        }
    }

    pub(crate) fn summary(&self) -> String {
        let Rig { changes, told, causes, .. } = self;
        format!("{changes} changes, {told} kernel invalidations inside them, others: {causes:?}")
    }
}

/// A whole block of 2 MiB that something was changed in.
fn is_split(event: &Unmapped, announced: &[Range]) -> bool {
    let is_block = event.range.start().is_multiple_of(HUGE) && event.range.len().is_multiple_of(HUGE);
    // The cut may be at the end of what was changed.
    let is_near = |range: &Range| event.range.start() <= range.end() && range.start() <= event.range.end();
    is_block && announced.iter().any(is_near)
}
