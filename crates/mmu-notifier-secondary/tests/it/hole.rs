//! The hole that caches have which are told once, before a system call: another thread registers the dying pages between
//! the event and the call, and the entry survives.
//!
//! ```text
//! thread A                      thread B
//! event: forget the range
//!                               miss: registers the pages that are about to go
//! munmap, mmap: other pages
//! hit: the old pages
//! ```

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;

use mmu_notifier::{AddressSpace, Event, Range};
use mmu_notifier_secondary::cache::{Access, Cache, Options, RegisterError, Registrar};

use crate::device::range;

/// A device that remembers the pages, by their number in a pretended page table, that it has registered.
struct Pages<'a> {
    mapped: &'a AtomicU64,
    on_register: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Registrar for Pages<'static> {
    type Handle = u64;

    fn register(&self, _: Range, _: Access) -> Result<u64, RegisterError> {
        let pages = self.mapped.load(SeqCst);
        // It takes a while.
        let hook = self.on_register.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        Ok(pages)
    }

    fn deregister(&self, _: Range, _: u64) {}
}

fn pages() -> &'static AtomicU64 {
    Box::leak(Box::new(AtomicU64::new(1)))
}

#[test]
fn a_miss_between_start_and_system_call_waits_for_the_end() {
    let (space, mapped) = (AddressSpace::new(), pages());
    let cache = Cache::new(&space, Pages { mapped, on_register: Mutex::default() }, Options::default());
    let buffer = range(0..4);
    assert_eq!(*cache.get(buffer, Access::Write).unwrap().handle(), 1);
    let (begun, has_begun) = mpsc::channel();
    std::thread::scope(|scope| {
        let cache = &cache;
        let other = scope.spawn(move || {
            has_begun.recv().unwrap();
            // The start is over, the system call has not been made: here a naive cache registers page 1 again.
            *cache.get(buffer, Access::Write).unwrap().handle()
        });
        space.invalidate(buffer, Event::Unmap, || {
            begun.send(()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            mapped.store(2, SeqCst);
        });
        assert_eq!(other.join().unwrap(), 2, "the pages after the change");
    });
    assert_eq!(*cache.get(buffer, Access::Write).unwrap().handle(), 2, "and nothing stale is left");
}

#[test]
fn a_whole_change_inside_a_registration_makes_it_anew() {
    let (space, mapped) = (AddressSpace::new(), pages());
    let cache = Cache::new(&space, Pages { mapped, on_register: Mutex::default() }, Options::default());
    let buffer = range(0..4);
    let changing = space.clone();
    *cache.registrar().on_register.lock().unwrap() = Some(Box::new(move || {
        changing.invalidate(buffer, Event::Unmap, || mapped.store(2, SeqCst));
    }));
    assert_eq!(*cache.get(buffer, Access::Write).unwrap().handle(), 2);
    assert_eq!(cache.stats().retries, 1);
}

/// Both sides at full speed: whatever a request gets outside of a change is what is mapped.
#[test]
fn no_interleaving_returns_a_stale_entry() {
    let (space, mapped) = (AddressSpace::new(), pages());
    let cache = Cache::new(&space, Pages { mapped, on_register: Mutex::default() }, Options::default());
    let buffer = range(0..4);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for change in 2..20_000 {
                space.invalidate(buffer, Event::Unmap, || mapped.store(change, SeqCst));
                // No change is open, and nobody else begins one.
                let got = *cache.get(buffer, Access::Write).unwrap().handle();
                assert_eq!(got, change, "stale");
            }
            is_over.store(true, SeqCst);
        });
        scope.spawn(|| {
            while !is_over.load(SeqCst) {
                drop(cache.get(buffer, Access::Write).unwrap());
            }
        });
    });
}
