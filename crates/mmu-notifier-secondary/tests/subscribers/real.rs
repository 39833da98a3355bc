//! Memory of this process, taken away and given back beside accesses: one through a stale translation would be a segmentation
//! fault.

// UNSAFETY: mapping memory, and reading and writing it through pointers.
#![expect(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use mmu_notifier::{AddressSpace, Event, PAGE_SIZE, Range};
use mmu_notifier_secondary::device::{Access, Page, PageTable};
use mmu_notifier_secondary::gru::Gru;
use mmu_notifier_secondary::stage2::{Memslot, Stage2};
use mmu_notifier_secondary::userptr::listed::Device;

use crate::memory::{Random, Sets};

const PAGES: usize = 8;

struct Real {
    space: AddressSpace,
    base: usize,
    /// Which pages can be accessed; changed inside changes only.
    here: [AtomicBool; PAGES],
}

impl Real {
    fn new() -> Arc<Real> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), PAGES * PAGE_SIZE, protection, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        let here = std::array::from_fn(|_| AtomicBool::new(true));
        Arc::new(Real { space: AddressSpace::new(), base: base as usize, here })
    }

    fn range(&self) -> Range {
        Range::with_len(self.base, PAGES * PAGE_SIZE).unwrap()
    }

    /// Takes the page away, in one of two ways, or gives it back.
    fn change(&self, page: usize, how: usize) {
        let address = self.base + page * PAGE_SIZE;
        let range = Range::with_len(address, PAGE_SIZE).unwrap();
        let event = if how == 0 { Event::Unmap } else { Event::ProtectionVma };
        self.space.invalidate(range, event, || {
            self.here[page].store(how == 2, SeqCst);
            let protection = if how == 2 { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_NONE };
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            let pointer = address as *mut libc::c_void;
            // SAFETY: a page of our own mapping, which is replaced, or gets other rights.
            let failed = unsafe {
                match how {
                    0 => libc::mmap(pointer, PAGE_SIZE, protection, flags, -1, 0) == libc::MAP_FAILED,
                    _ => libc::mprotect(pointer, PAGE_SIZE, protection) != 0,
                }
            };
            assert!(!failed);
        });
    }

    /// Changes until `done`.
    fn storm(&self, done: &AtomicBool, seed: u64) {
        let mut random = Random(seed);
        while !done.load(SeqCst) {
            self.change(random.below(PAGES), random.below(3));
        }
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nobody has pointers into it any more.
        unsafe { libc::munmap(self.base as *mut libc::c_void, PAGES * PAGE_SIZE) };
    }
}

impl PageTable for Real {
    fn look_up(&self, address: usize, _: Access) -> Option<Page> {
        let is_here = self.here[(address - self.base) / PAGE_SIZE].load(SeqCst);
        is_here.then(|| Page::writable(address))
    }
}

/// An access of the device.
fn touch(pointer: usize) {
    // SAFETY: this is what is tested: the page is there while the access is under way.
    unsafe { AtomicU64::from_ptr(pointer as *mut u64) }.fetch_add(1, SeqCst);
}

/// Runs `device` in two threads beside changes, as long as it takes.
fn beside_changes(real: &Arc<Real>, device: impl Fn(Random) + Sync) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (done, device) = (&done, &device);
            scope.spawn(move || {
                let _done = Sets(done);
                device(Random(seed));
            });
        }
        scope.spawn(|| real.storm(&done, 9));
    });
}

#[test]
fn a_gru_beside_changes_of_this_process() {
    let real = Real::new();
    let gru = Gru::new(&real.space, real.clone());
    beside_changes(&real, |mut random| {
        let mut context = gru.context().unwrap();
        for _ in 0..20_000 {
            _ = context.access(real.base + random.below(PAGES) * PAGE_SIZE, Access::Write, touch);
        }
    });
}

#[test]
fn a_guest_beside_changes_of_this_process() {
    let real = Real::new();
    let stage2 = Stage2::new(&real.space, real.clone());
    stage2.add(0, Memslot { guest: 0, memory: real.range(), access: Access::ReadWrite }).unwrap();
    beside_changes(&real, |mut random| {
        let mut vcpu = stage2.vcpu().unwrap();
        for _ in 0..20_000 {
            _ = vcpu.access(random.below(PAGES) * PAGE_SIZE, Access::Write, touch);
        }
    });
}

#[test]
fn jobs_beside_changes_of_this_process() {
    let real = Real::new();
    let device = Device::new(&real.space, real.clone());
    beside_changes(&real, |mut random| {
        for _ in 0..5_000 {
            let page = real.base + random.below(PAGES) * PAGE_SIZE;
            let range = Range::with_len(page, PAGE_SIZE).unwrap();
            let mut object = device.object(range, Access::Write).unwrap();
            if object.bind().is_ok()
                && let Ok(mut job) = object.submit()
            {
                _ = job.step(|pages| touch(pages[0].frame()));
            }
        }
    });
}
