//! A device with memory of its own. The program's memory is a file that is mapped twice: once for the processor, whose rights
//! say whether it gets there, and once for the device and for moving pages. An access of the processor to a page that it has
//! no rights for is a fault, in which it gets the page back.

// UNSAFETY: mapping memory of our own, copying it, and a handler of segmentation faults.
#![expect(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Once, OnceLock, Weak};

use mmu_notifier::{AddressSpace, Event, PAGE_SIZE, Range};
use mmu_notifier_secondary::device::{Access, Page, PageTable};
use mmu_notifier_secondary::mirror::Mirror;

use crate::buffer::{READ_WRITE, file, place};
use crate::world::World;

pub(crate) const PAGES: usize = 8;
const LEN: usize = PAGES * PAGE_SIZE;

/// Where a page is.
const HERE: u8 = 0;
/// There, but the device has it for itself.
const TAKEN: u8 = 1;
/// In the device's memory.
const MOVED: u8 = 2;

pub(crate) struct Memory {
    world: World,
    /// The mappings: the processor's, the other one of the same file, and the device's memory.
    processor: usize,
    system: usize,
    device: usize,
    pages: [AtomicU8; PAGES],
    is_read_only: AtomicBool,
    /// Rights and the above are changed together.
    lock: AtomicBool,
    mirror: OnceLock<Weak<Mirror>>,
    pub(crate) given_back: AtomicUsize,
}

/// Who is asked about segmentation faults. What is there stays for the rest of the process.
static MEMORIES: [AtomicPtr<Memory>; 16] = [const { AtomicPtr::new(ptr::null_mut()) }; 16];

impl Memory {
    pub(crate) fn new(world: &World) -> (Arc<Memory>, Arc<Mirror>) {
        let world = match world {
            World::ByHand(space) => World::ByHand(space.clone()),
            World::Intercepted(space) => World::Intercepted(space.clone()),
        };
        let file = file(LEN);
        let map = |file: Option<&std::fs::File>| {
            use std::os::fd::AsRawFd;
            let (flags, file) = match file {
                Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
                None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            };
            let at = place(PAGES) as *mut libc::c_void;
            // SAFETY: a place of ours.
            let mapped = unsafe { libc::mmap(at, LEN, READ_WRITE, flags | libc::MAP_FIXED, file, 0) };
            assert_eq!(mapped, at);
            mapped as usize
        };
        let memory = Arc::new(Memory {
            world,
            processor: map(Some(&file)),
            system: map(Some(&file)),
            device: map(None),
            pages: Default::default(),
            is_read_only: AtomicBool::new(false),
            lock: AtomicBool::new(false),
            mirror: OnceLock::new(),
            given_back: AtomicUsize::new(0),
        });
        let mirror = Arc::new(Mirror::new(memory.space(), memory.range(0..PAGES), memory.clone()).unwrap());
        memory.mirror.set(Arc::downgrade(&mirror)).expect("once");
        let known = Arc::into_raw(memory.clone()).cast_mut();
        let free =
            |slot: &&AtomicPtr<Memory>| slot.compare_exchange(ptr::null_mut(), known, SeqCst, SeqCst).is_ok();
        MEMORIES.iter().find(free).expect("there is room");
        handle_faults();
        (memory, mirror)
    }

    pub(crate) fn space(&self) -> &AddressSpace {
        self.world.space()
    }

    pub(crate) fn address(&self, page: usize) -> usize {
        self.processor + page * PAGE_SIZE
    }

    pub(crate) fn range(&self, pages: std::ops::Range<usize>) -> Range {
        Range::new(self.address(pages.start), self.address(pages.end)).expect("pages")
    }

    pub(crate) fn is_moved(&self, page: usize) -> bool {
        self.pages[page].load(SeqCst) == MOVED
    }

    pub(crate) fn is_taken(&self, page: usize) -> bool {
        self.pages[page].load(SeqCst) == TAKEN
    }

    fn locked<R>(&self, work: impl FnOnce() -> R) -> R {
        while self.lock.swap(true, SeqCst) {
            std::thread::yield_now();
        }
        let result = work();
        self.lock.store(false, SeqCst);
        result
    }

    /// What the processor may do with a page. A change, in an intercepted process.
    fn set_rights(&self, page: usize, rights: libc::c_int) {
        // SAFETY: a page of ours.
        assert_eq!(unsafe { libc::mprotect(self.address(page) as *mut _, PAGE_SIZE, rights) }, 0);
    }

    fn rights(&self) -> libc::c_int {
        if self.is_read_only.load(SeqCst) { libc::PROT_READ } else { READ_WRITE }
    }

    fn copy(&self, page: usize, from: usize, to: usize) {
        let [from, to] = [from, to].map(|base| base + page * PAGE_SIZE);
        // SAFETY: two pages of ours, which nobody has rights for meanwhile.
        unsafe { ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, PAGE_SIZE) };
    }

    /// The migration itself.
    pub(crate) fn move_to_device(&self, pages: std::ops::Range<usize>) {
        self.locked(|| {
            for page in pages {
                if !self.is_moved(page) {
                    self.set_rights(page, libc::PROT_NONE);
                    self.copy(page, self.system, self.device);
                    self.pages[page].store(MOVED, SeqCst);
                }
            }
        });
    }

    pub(crate) fn move_back(&self, pages: std::ops::Range<usize>) {
        self.locked(|| {
            for page in pages {
                if self.is_moved(page) {
                    self.copy(page, self.device, self.system);
                    self.set_rights(page, self.rights());
                    self.pages[page].store(HERE, SeqCst);
                }
            }
        });
    }

    /// The processor, which has no rights, wants to get there.
    fn give_back(&self, page: usize) {
        if self.is_moved(page) {
            let mirror = self.mirror.get().and_then(Weak::upgrade).expect("it is there");
            mirror.migrate(self.range(page..page + 1), || self.move_back(page..page + 1)).expect("inside");
        }
        self.locked(|| {
            if self.is_taken(page) {
                // Waits for the device, as the kernel's fault does. The change of rights alone, in a handler of signals, may
                // not wait, and as it takes no rights away, it would be made at once though the device has refused.
                self.space().invalidate(self.range(page..page + 1), Event::Clear, || {
                    self.set_rights(page, self.rights());
                    self.pages[page].store(HERE, SeqCst);
                });
            }
        });
        self.given_back.fetch_add(1, SeqCst);
    }

    /// The processor may only read from now on.
    pub(crate) fn make_read_only(&self) {
        self.locked(|| {
            self.world.change(self.range(0..PAGES), Event::ProtectionVma, || {
                self.is_read_only.store(true, SeqCst);
                for page in 0..PAGES {
                    self.set_rights(page, libc::PROT_READ);
                    self.pages[page].store(HERE, SeqCst);
                }
            });
        });
    }
}

impl PageTable for Memory {
    fn look_up(&self, address: usize, access: Access) -> Option<Page> {
        let page = (address - self.processor) / PAGE_SIZE;
        if self.is_taken(page) {
            // As the processor would.
            self.give_back(page);
        }
        let base = if self.is_moved(page) { self.device } else { self.system };
        let frame = base + page * PAGE_SIZE;
        let may_write = !self.is_read_only.load(SeqCst);
        let found = if may_write { Page::writable(frame) } else { Page::read_only(frame) };
        found.allows(access).then_some(found)
    }

    fn peek(&self, address: usize) -> Option<Page> {
        let page = (address - self.processor) / PAGE_SIZE;
        if self.is_taken(page) { None } else { self.look_up(address, Access::Read) }
    }

    fn take(&self, address: usize) -> Option<Page> {
        let page = (address - self.processor) / PAGE_SIZE;
        self.locked(|| {
            if self.is_read_only.load(SeqCst) || self.is_moved(page) {
                return None;
            }
            if !self.is_taken(page) {
                self.set_rights(page, libc::PROT_NONE);
                self.pages[page].store(TAKEN, SeqCst);
            }
            Some(Page::writable(self.system + page * PAGE_SIZE))
        })
    }
}

fn handle_faults() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler does what may be done in one: atomics, and system calls.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGSEGV, &raw const action, ptr::null_mut()), 0);
        }
    });
}

extern "C" fn on_fault(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: given by the kernel.
    let address = unsafe { (*info).si_addr() } as usize;
    for memory in &MEMORIES {
        // SAFETY: what is there stays.
        let memory = unsafe { memory.load(SeqCst).as_ref() };
        if let Some(memory) = memory
            && let Some(page) = address.checked_sub(memory.processor).map(|offset| offset / PAGE_SIZE)
            && page < PAGES
        {
            return memory.give_back(page);
        }
    }
    // SAFETY: nobody's: the access is made once more, and ends the process.
    unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
}
