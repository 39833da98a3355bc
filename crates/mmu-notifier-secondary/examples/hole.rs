//! The hole between the event and the system call: another thread registers memory that is about to go. A cache that is told
//! once keeps that registration; one that is told before and after does not.
//!
//! `cargo run -p mmu-notifier-secondary --example hole`; `mmun demo hole` shows the same as a timeline.

// UNSAFETY: submits reads, and maps memory.
#![expect(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex};
use std::thread;

use io_uring::IoUring;
use io_uring::opcode::ReadFixed;
use io_uring::types::Fd;
use mmu_notifier::{AddressSpace, Change, Event, PAGE_SIZE, Range, Subscriber};
use mmu_notifier_secondary::cache::{Access, Cache, Options, Registrar};
use mmu_notifier_secondary::io_uring::{FixedBuffers, Slot};

/// A cache of one buffer, which hears of changes once.
struct ToldOnce {
    buffers: FixedBuffers,
    buffer: Range,
    slot: Mutex<Option<Slot>>,
}

impl ToldOnce {
    fn get(&self) -> u16 {
        let mut slot = self.slot.lock().expect("nobody panics");
        let register = || self.buffers.register(self.buffer, Access::Write).expect("it can be pinned");
        slot.get_or_insert_with(register).index()
    }
}

impl Subscriber for ToldOnce {
    fn start(&self, change: &Change) {
        if change.range().overlaps(&self.buffer)
            && let Some(slot) = self.slot.lock().expect("nobody panics").take()
        {
            self.buffers.deregister(self.buffer, slot);
        }
    }

    fn end(&self, _: &Change) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let (Ok(mut one), Ok(mut other)) = (IoUring::new(8), IoUring::new(8)) else {
        println!("io_uring is not available here");
        return Ok(());
    };
    let file = File::open("/proc/self/exe")?;
    let at = map(null_mut())? as usize;
    let buffer = Range::with_len(at, PAGE_SIZE)?;

    let space = AddressSpace::new();
    let told_once =
        Arc::new(ToldOnce { buffers: FixedBuffers::new(&one, 8)?, buffer, slot: Mutex::default() });
    let subscription = space.subscribe(told_once.clone());
    space.invalidate(buffer, Event::Unmap, || {
        // Everybody has been told, and nothing has been unmapped yet.
        thread::scope(|scope| scope.spawn(|| told_once.get()).join().expect("no panic"));
        map(at as *mut u8)
    })?;
    let byte = read(&mut one, &file, at, told_once.get())?;
    println!("told once: {}", if byte == b'E' { "right" } else { "STALE" });
    assert_ne!(byte, b'E');
    drop(subscription);

    let cache = Cache::new(&space, FixedBuffers::new(&other, 8)?, Options::default());
    thread::scope(|scope| {
        space.invalidate(buffer, Event::Unmap, || {
            // This one waits until the change is done, or is refused and tries again.
            scope.spawn(|| cache.get(buffer, Access::Write).map(drop).expect("it can be pinned"));
            map(at as *mut u8)
        })
    })?;
    let registration = cache.get(buffer, Access::Write)?;
    let byte = read(&mut other, &file, at, registration.handle().index())?;
    println!("told before and after: {}", if byte == b'E' { "right" } else { "STALE" });
    assert_eq!(byte, b'E');
    Ok(())
}

/// Reads the file, which begins with `\x7fELF`, into the page; its second byte then.
fn read(ring: &mut IoUring, file: &File, at: usize, slot: u16) -> Result<u8, Box<dyn Error>> {
    const MINE: u64 = 1;
    let read = ReadFixed::new(Fd(file.as_raw_fd()), at as *mut u8, PAGE_SIZE as u32, slot);
    // SAFETY: the page is mapped, and nobody looks at it, until the completion.
    unsafe { ring.submission().push(&read.build().user_data(MINE)) }?;
    loop {
        ring.submit_and_wait(1)?;
        // The other completions say that a buffer was released.
        if let Some(done) = ring.completion().find(|done| done.user_data() == MINE) {
            assert_eq!(done.result(), PAGE_SIZE as i32, "the kernel reports success");
            // SAFETY: mapped, and the read is done.
            return Ok(unsafe { (at as *const u8).add(1).read_volatile() });
        }
    }
}

/// A new page, over whatever is there.
fn map(at: *mut u8) -> io::Result<*mut u8> {
    let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let kind = if at.is_null() { kind } else { kind | libc::MAP_FIXED };
    // SAFETY: over nothing but the page that this program uses for this.
    match unsafe { libc::mmap(at.cast(), PAGE_SIZE, rights, kind, -1, 0) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        at => Ok(at.cast()),
    }
}
