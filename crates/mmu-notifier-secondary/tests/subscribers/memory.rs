//! A primary MMU for tests: pages of a simulated address space, in frames that know whose they are.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use mmu_notifier::{AddressSpace, Event, PAGE_SIZE, Range, WouldBlock};
use mmu_notifier_secondary::device::{Access, Page, PageTable};

/// Where page 0 lies.
pub(crate) const BASE: usize = 0x10_0000_0000;
/// Where frame 0 lies.
const FRAMES: usize = 0x70_0000_0000;
/// The owner of a frame that is free.
const NOBODY: usize = usize::MAX;

type Hook = Arc<dyn Fn(usize) + Send + Sync>;

pub(crate) struct Memory {
    pub(crate) space: AddressSpace,
    state: Mutex<State>,
    frames: Vec<Frame>,
    pub(crate) look_ups: AtomicUsize,
    on_look_up: Mutex<Option<Hook>>,
}

#[derive(Default)]
struct State {
    /// By number.
    pages: BTreeMap<usize, Mapped>,
    free: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Mapped {
    writable: bool,
    /// None before the first access.
    frame: Option<usize>,
    /// The processor has to take it back first.
    taken: bool,
}

struct Frame {
    /// The page.
    owner: AtomicUsize,
    word: AtomicU64,
}

/// The number of the page at `address`.
pub(crate) fn number(address: usize) -> usize {
    (address - BASE) / PAGE_SIZE
}

pub(crate) fn address(page: usize) -> usize {
    BASE + page * PAGE_SIZE
}

pub(crate) fn range(pages: std::ops::Range<usize>) -> Range {
    Range::new(address(pages.start), address(pages.end)).unwrap()
}

impl Memory {
    /// With these pages mapped, writable.
    pub(crate) fn new(pages: std::ops::Range<usize>) -> Arc<Memory> {
        Memory::of(AddressSpace::new(), pages)
    }

    pub(crate) fn of(space: AddressSpace, pages: std::ops::Range<usize>) -> Arc<Memory> {
        let count = 2 * pages.len() + 8;
        let free_frame = || Frame { owner: AtomicUsize::new(NOBODY), word: AtomicU64::new(0) };
        let memory = Memory {
            space,
            state: Mutex::new(State { pages: BTreeMap::new(), free: (0..count).rev().collect() }),
            frames: (0..count).map(|_| free_frame()).collect(),
            look_ups: AtomicUsize::new(0),
            on_look_up: Mutex::new(None),
        };
        memory.map(pages);
        Arc::new(memory)
    }

    pub(crate) fn map(&self, pages: std::ops::Range<usize>) {
        let mut state = self.state.lock().unwrap();
        for page in pages {
            state.pages.entry(page).or_insert(Mapped { writable: true, frame: None, taken: false });
        }
    }

    /// Runs in each look-up, after it has looked, with the number of the page.
    pub(crate) fn on_look_up(&self, hook: impl Fn(usize) + Send + Sync + 'static) {
        *self.on_look_up.lock().unwrap() = Some(Arc::new(hook));
    }

    pub(crate) fn do_nothing_else(&self) {
        *self.on_look_up.lock().unwrap() = None;
    }

    /// The change itself, which nobody is told of.
    pub(crate) fn drop_pages(&self, pages: std::ops::Range<usize>, and_mappings: bool) {
        let mut state = self.state.lock().unwrap();
        for page in pages {
            let Some(mapped) = state.pages.get_mut(&page) else { continue };
            let frame = mapped.frame.take();
            mapped.taken = false;
            if and_mappings {
                state.pages.remove(&page);
            }
            if let Some(frame) = frame {
                self.frames[frame].owner.store(NOBODY, SeqCst);
                self.frames[frame].word.store(0xdead, SeqCst);
                // The next one gets it at once.
                state.free.push(frame);
            }
        }
    }

    pub(crate) fn unmap(&self, pages: std::ops::Range<usize>) {
        self.space.invalidate(range(pages.clone()), Event::Unmap, || self.drop_pages(pages, true));
    }

    pub(crate) fn discard(&self, pages: std::ops::Range<usize>) {
        self.space.invalidate(range(pages.clone()), Event::Clear, || self.drop_pages(pages, false));
    }

    pub(crate) fn try_discard(&self, pages: std::ops::Range<usize>) -> Result<(), WouldBlock> {
        self.space.try_invalidate(range(pages.clone()), Event::Clear, || self.drop_pages(pages, false))
    }

    pub(crate) fn protect(&self, pages: std::ops::Range<usize>, writable: bool) {
        self.space.invalidate(range(pages.clone()), Event::ProtectionVma, || {
            let mut state = self.state.lock().unwrap();
            for (_, mapped) in state.pages.range_mut(pages) {
                mapped.writable = writable;
            }
        });
    }

    /// The frame that is used for this page, made present, as the processor sees it.
    pub(crate) fn frame_of(&self, page: usize) -> Option<usize> {
        self.present(page).map(|(frame, _)| FRAMES + frame * PAGE_SIZE)
    }

    /// What the processor does with a page that a device has for itself: takes it back.
    pub(crate) fn touch(&self, page: usize) {
        let is_taken = self.state.lock().unwrap().pages.get(&page).is_some_and(|mapped| mapped.taken);
        if is_taken {
            self.space.invalidate(range(page..page + 1), Event::Clear, || {
                if let Some(mapped) = self.state.lock().unwrap().pages.get_mut(&page) {
                    mapped.taken = false;
                }
            });
        }
    }

    pub(crate) fn is_taken(&self, page: usize) -> bool {
        self.state.lock().unwrap().pages.get(&page).is_some_and(|mapped| mapped.taken)
    }

    /// Gives the page another frame, as a migration does, with what is in it; nobody is told. Its old frame is the next one that
    /// is used.
    pub(crate) fn move_page(&self, page: usize) {
        let mut state = self.state.lock().unwrap();
        let Some(old) = state.pages.get_mut(&page).and_then(|mapped| mapped.frame.take()) else { return };
        let new = state.free.pop().expect("there are frames enough");
        self.frames[new].word.store(self.frames[old].word.load(SeqCst), SeqCst);
        self.frames[new].owner.store(page, SeqCst);
        self.frames[old].owner.store(NOBODY, SeqCst);
        self.frames[old].word.store(0xdead, SeqCst);
        state.pages.get_mut(&page).expect("it is there").frame = Some(new);
        state.free.push(old);
    }

    fn present(&self, page: usize) -> Option<(usize, bool)> {
        let mut state = self.state.lock().unwrap();
        let mapped = *state.pages.get(&page)?;
        let frame = mapped.frame.unwrap_or_else(|| {
            let frame = state.free.pop().expect("there are frames enough");
            self.frames[frame].owner.store(page, SeqCst);
            self.frames[frame].word.store(0, SeqCst);
            frame
        });
        state.pages.get_mut(&page).unwrap().frame = Some(frame);
        Some((frame, mapped.writable))
    }

    /// What a device does at a frame that it takes for that of `page`: fails if it is not, at the beginning or at the end.
    #[track_caller]
    pub(crate) fn use_frame<R>(&self, frame: usize, page: usize, how: impl FnOnce(&AtomicU64) -> R) -> R {
        let frame = &self.frames[(frame - FRAMES) / PAGE_SIZE];
        assert_eq!(frame.owner.load(SeqCst), page, "a stale translation was used");
        let result = how(&frame.word);
        assert_eq!(frame.owner.load(SeqCst), page, "the page went while it was used");
        result
    }

    /// Whether the page may be written now.
    pub(crate) fn is_writable(&self, page: usize) -> bool {
        self.state.lock().unwrap().pages.get(&page).is_some_and(|mapped| mapped.writable)
    }
}

impl PageTable for Memory {
    fn look_up(&self, address: usize, access: Access) -> Option<Page> {
        self.look_ups.fetch_add(1, SeqCst);
        let page = number(address);
        self.touch(page);
        let found = self.present(page).filter(|(_, writable)| *writable || !access.includes(Access::Write));
        let hook = self.on_look_up.lock().unwrap().clone();
        if let Some(hook) = hook {
            hook(page);
        }
        let (frame, writable) = found?;
        let frame = FRAMES + frame * PAGE_SIZE;
        Some(if writable { Page::writable(frame) } else { Page::read_only(frame) })
    }

    fn peek(&self, address: usize) -> Option<Page> {
        let page = number(address);
        let found = self.state.lock().unwrap().pages.get(&page).copied();
        let hook = self.on_look_up.lock().unwrap().clone();
        if let Some(hook) = hook {
            hook(page);
        }
        let Mapped { writable, frame, taken } = found?;
        let frame = FRAMES + frame.filter(|_| !taken)? * PAGE_SIZE;
        Some(if writable { Page::writable(frame) } else { Page::read_only(frame) })
    }

    fn take(&self, address: usize) -> Option<Page> {
        let page = number(address);
        let (frame, writable) = self.present(page)?;
        let found = writable.then(|| Page::writable(FRAMES + frame * PAGE_SIZE))?;
        self.state.lock().unwrap().pages.get_mut(&page)?.taken = true;
        let hook = self.on_look_up.lock().unwrap().clone();
        if let Some(hook) = hook {
            hook(page);
        }
        Some(found)
    }
}

/// Numbers that look random.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// Sets it when it is dropped, also by a panic: nobody waits for a thread that has failed.
pub(crate) struct Sets<'a>(pub(crate) &'a AtomicBool);

impl Drop for Sets<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
