//! The check, and what can be delivered, in strict mode.
//!
//! One test, as a process has one primary MMU.

// UNSAFETY: makes code, calls it, and puts what it has made of the C library's code back.
#![expect(unsafe_code)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use mmu_notifier::{Change, Event, Subscriber};
use mmu_notifier_primary::{InstallError, Options, Primary, Strict, Syscall, Wanted};

const PAGE: usize = 4096;

/// Notes where a change of one page is made.
#[derive(Default)]
struct Where {
    page: AtomicUsize,
    site: AtomicUsize,
}

impl Subscriber for Where {
    fn start(&self, change: &Change) {
        if change.range().start() == self.page.load(SeqCst) {
            self.site.store(Primary::get().and_then(Primary::call_site).unwrap_or(0), SeqCst);
        }
    }

    fn end(&self, _: &Change) {}
}

fn map(protection: i32) -> usize {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping.
    unsafe { libc::mmap(null_mut(), PAGE, protection, flags, -1, 0) as usize }
}

#[test]
fn what_is_trapped_is_delivered_and_known_by_its_place() {
    let primary = match Primary::install(&Options { strict: Strict::Always, ..Options::default() }) {
        Ok(primary) => primary,
        Err(error @ InstallError::NoDispatch { .. }) => {
            println!("SKIPPED: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert_eq!(primary.can_deliver(&[Wanted::MadeCode]), Ok(()));
    for event in [Event::Unmap, Event::Clear, Event::ProtectionVma, Event::ProtectionPage, Event::Release] {
        assert_eq!(primary.can_deliver(&[Wanted::Event(event)]), Ok(()));
    }
    // Calls that are none of memory are rewritten, too.
    let check = primary.check().expect("/proc is there");
    assert!(check.is_sound() && check.intact > 200, "{check:#?}");

    let told = Arc::new(Where::default());
    let _subscription = primary.space().subscribe(told.clone());
    let code = map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    // mov $11, %eax; syscall; ret
    // SAFETY: mapped just now.
    unsafe { (code as *mut [u8; 8]).write([0xb8, 11, 0, 0, 0, 0x0f, 0x05, 0xc3]) };
    // SAFETY: the code is a function of that kind.
    let unmap = unsafe { std::mem::transmute::<usize, unsafe extern "C" fn(usize, usize) -> isize>(code) };
    for _ in 0..3 {
        let page = map(libc::PROT_READ);
        told.page.store(page, SeqCst);
        told.site.store(0, SeqCst);
        // SAFETY: mapped just now.
        assert_eq!(unsafe { unmap(page, PAGE) }, 0);
        assert_eq!(told.site.load(SeqCst), code + 5);
    }

    // What was put back is trapped: a fault, as it was not meant so, and announced all the same.
    let munmap = check.calls.iter().find(|call| call.name == "munmap").expect("it is tried");
    let own = [0xb8, 11, 0, 0, 0];
    let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem").expect("there is /proc");
    let mut jump = [0; 5];
    memory.read_exact_at(&mut jump, (munmap.site - 5) as u64).expect("code can be read");
    assert_eq!(jump[0], 0xe9, "a site of the first shape");
    memory.write_all_at(&own, (munmap.site - 5) as u64).expect("code can be written");
    let after = primary.check().expect("/proc is there");
    memory.write_all_at(&jump, (munmap.site - 5) as u64).expect("code can be written");
    assert_eq!(after.faults.len(), 1, "{after:#?}");
    assert_eq!(after.faults[0].call, Some(Syscall::Munmap));
    let munmap = after.calls.iter().find(|call| call.name == "munmap").expect("it is tried");
    assert!(munmap.is_right() && munmap.site != 0, "{munmap:?}");
}
