//! Any buffer as a fixed buffer of `io_uring`, right also after its memory has changed.
//!
//! `cargo run -p mmu-notifier-secondary --example fixed_buffers`

// UNSAFETY: submits reads, and maps memory.
#![expect(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;

use io_uring::IoUring;
use io_uring::opcode::{Read, ReadFixed};
use io_uring::types::Fd;
use mmu_notifier::Range;
use mmu_notifier_primary::Primary;
use mmu_notifier_secondary::cache::{Access, Cache, Options};
use mmu_notifier_secondary::io_uring::FixedBuffers;

const LEN: usize = 64 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let Ok(mut ring) = IoUring::new(8) else {
        println!("io_uring is not available here");
        return Ok(());
    };
    // From here on every memory system call of this process is announced, whoever makes it.
    let primary = Primary::install(&mmu_notifier_primary::Options::default())?;
    let cache = Cache::new(primary.space(), FixedBuffers::new(&ring, 64)?, Options::default());

    let file = File::open("/proc/self/exe")?;
    let mut buffer = map(null_mut())?;
    for _ in 0..3 {
        assert_eq!(read(&mut ring, &cache, &file, buffer)?, LEN);
        println!("{} bytes read, {} registrations made", LEN, cache.stats().registered);
        // Other memory at the same address. A buffer registered by hand would not notice.
        // SAFETY: a mapping of ours, that nobody uses.
        unsafe { libc::munmap(buffer.cast(), LEN) };
        buffer = map(buffer)?;
        assert_eq!(read(&mut ring, &cache, &file, buffer)?, LEN);
        // SAFETY: mapped, and the read is done.
        let read = unsafe { std::slice::from_raw_parts(buffer, LEN) };
        assert_eq!(&read[1..4], b"ELF", "what was read is there");
    }
    println!("{}", cache.stats());
    Ok(())
}

/// Reads the beginning of the file into the buffer.
fn read(
    ring: &mut IoUring,
    cache: &Cache<FixedBuffers>,
    file: &File,
    buffer: *mut u8,
) -> Result<usize, Box<dyn Error>> {
    let file = Fd(file.as_raw_fd());
    // Held until the completion. What cannot be registered - a read-only page, a file on a disk - still can be read into.
    let registration = cache.get(Range::with_len(buffer as usize, LEN)?, Access::ReadWrite);
    let read = match &registration {
        Ok(registration) => ReadFixed::new(file, buffer, LEN as u32, registration.handle().index()).build(),
        Err(_) => Read::new(file, buffer, LEN as u32).build(),
    };
    // SAFETY: the buffer is mapped, and nobody looks at it, until the completion.
    unsafe { ring.submission().push(&read.user_data(1)) }?;
    {
        // So that changes which must not wait do not wait for page faults of this.
        let _submitting = cache.registrar().submitting();
        ring.submit()?;
    }
    loop {
        ring.submit_and_wait(1)?;
        for done in ring.completion() {
            if cache.registrar().released(done.user_data()) {
                continue; // a buffer has been unpinned
            }
            let result = done.result();
            return Ok(usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))?);
        }
    }
}

fn map(at: *mut u8) -> io::Result<*mut u8> {
    let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let kind = if at.is_null() { kind } else { kind | libc::MAP_FIXED_NOREPLACE };
    // SAFETY: over no other mapping.
    match unsafe { libc::mmap(at.cast(), LEN, rights, kind, -1, 0) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        at => Ok(at.cast()),
    }
}
