//! Who relies on something that cannot be delivered is told so.
//!
//! One test, as a process has one primary MMU.

// UNSAFETY: maps files as memory and as code, and overwrites code of the C library.
#![expect(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use mmu_notifier::{Change, Event, Range, Subscriber};
use mmu_notifier_primary::session::UnseenReason;
use mmu_notifier_primary::{Options, Primary, Strict, Syscall, Undeliverable, Wanted};

#[derive(Default)]
struct Count(AtomicUsize);

impl Subscriber for Count {
    fn start(&self, _: &Change) {
        self.0.fetch_add(1, SeqCst);
    }

    fn end(&self, _: &Change) {}
}

const PAGE: usize = 4096;

fn map(file: Option<&File>, protection: i32) -> Range {
    let (kind, file) = file.map_or((libc::MAP_ANONYMOUS, -1), |file| (0, file.as_raw_fd()));
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(null_mut(), PAGE, protection, libc::MAP_PRIVATE | kind, file, 0) };
    assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    Range::with_len(at as usize, PAGE).expect("a page")
}

/// A file of the kind that is searched, with an `munmap` in no function.
fn image() -> Vec<u8> {
    let mut image = vec![0; 0x120];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    // A 64-bit little-endian shared object for x86-64 with one program header behind the file header.
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[3, 0, 62, 0, 1, 0, 0, 0]);
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 1, 0, 64, 0]);
    // Loaded as a whole, readable and executable.
    put(64, &[1, 0, 0, 0, 5, 0, 0, 0]);
    put(96, &0x120u64.to_le_bytes());
    put(104, &0x120u64.to_le_bytes());
    // mov $11, %eax; syscall; ret
    put(0x100, &[0xb8, 11, 0, 0, 0, 0x0f, 0x05, 0xc3]);
    image
}

#[test]
fn what_cannot_be_delivered_is_not_subscribed_to() {
    let primary =
        Primary::install(&Options { strict: Strict::Never, ..Options::default() }).expect("installed");
    let can = |wanted: &[Wanted]| primary.can_deliver(wanted);
    for event in Event::ALL {
        let never = matches!(event, Event::SoftDirty | Event::Migrate | Event::Exclusive);
        match can(&[Wanted::Event(event)]) {
            Ok(()) => assert!(!never, "{event:?}"),
            Err(error) => {
                assert!(
                    never && matches!(error, Undeliverable::Event { event: e, .. } if e == event),
                    "{error}"
                );
                assert!(error.to_string().starts_with(event.name()), "{error}");
            }
        }
    }
    for call in Syscall::ALL {
        assert_eq!(can(&[Wanted::Call(call)]), Ok(()));
    }
    assert_eq!(can(&[Wanted::MadeCode]), Err(Undeliverable::MadeCode));
    assert_eq!(can(&[]), Ok(()));

    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    memory_of_others(primary, folder);
    overwritten(primary);
    uninstalled(primary);

    // The subscription is there, or it is not.
    let (told, not_told) = (Arc::new(Count::default()), Arc::new(Count::default()));
    let subscription =
        primary.subscribe_to(&[Wanted::Call(Syscall::Munmap)], told.clone()).expect("it can be");
    let refused = primary.subscribe_to(&[Wanted::Call(Syscall::Munmap), Wanted::MadeCode], not_told.clone());
    assert_eq!(refused.expect_err("not that"), Undeliverable::MadeCode);
    let (before, not_before) = (told.0.load(SeqCst), not_told.0.load(SeqCst));
    // SAFETY: mapped for this.
    unsafe { libc::munmap(map(None, libc::PROT_READ).start() as *mut _, PAGE) };
    assert!(told.0.load(SeqCst) > before && not_told.0.load(SeqCst) == not_before);
    drop(subscription);

    // Last: it stays noted.
    let path = folder.join("in_no_function.so");
    fs::write(&path, image()).expect("a file");
    map(Some(&File::open(&path).expect("just written")), libc::PROT_READ | libc::PROT_EXEC);
    let error = can(&[Wanted::Event(Event::Unmap)]).expect_err("munmap in there is not seen");
    let Undeliverable::NotRewritten { call: Syscall::Munmap, unseen } = &error else { panic!("{error:?}") };
    assert_eq!(
        (unseen.reason, unseen.call, &unseen.file),
        (UnseenReason::NoFunction, Some(Syscall::Munmap), &path)
    );
    assert!(error.to_string().contains("build it with unwind tables"), "{error}");
    assert_eq!(can(&[Wanted::Call(Syscall::Madvise), Wanted::Event(Event::ProtectionVma)]), Ok(()));
}

/// Memory that others can change.
fn memory_of_others(primary: &Primary, folder: &Path) {
    let can = |range: Range| primary.can_deliver(&[Wanted::Memory(range)]);
    assert_eq!(can(map(None, libc::PROT_READ)), Ok(()));
    let path = folder.join("deliver");
    fs::write(&path, [0; PAGE]).expect("a file");
    let range = map(Some(&File::open(&path).expect("just written")), libc::PROT_READ);
    let error = can(range).expect_err("others can truncate it");
    assert_eq!(error, Undeliverable::File { range, file: path });
    assert!(error.to_string().ends_with("use anonymous memory or a memfd"), "{error}");
    // The page in front of it and the one behind it are nobody's business.
    assert_eq!(can(Range::with_len(0x10000, PAGE).expect("a page")), Ok(()));

    let mut parameters = [0u32; 30];
    // SAFETY: what io_uring_setup(2) fills in has 120 bytes.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if ring < 0 {
        eprintln!("SKIPPED: there is no io_uring to map memory of");
        return;
    }
    let shared = libc::MAP_SHARED;
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(null_mut(), PAGE, libc::PROT_READ, shared, ring as i32, 0) };
    let range = Range::with_len(at as usize, PAGE).expect("a page");
    let error = can(range).expect_err("the kernel can");
    assert!(
        matches!(&error, Undeliverable::Device { device, .. } if device.starts_with("anon_inode:[io_uring]")),
        "{error}"
    );
}

/// A call of which somebody has taken the code away.
fn overwritten(primary: &Primary) {
    let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem").expect("there is /proc");
    let entry = libc::shmdt as *const () as usize;
    let mut ours = [0; 5];
    memory.read_exact_at(&mut ours, entry as u64).expect("code can be read");
    // shmdt does nothing before its call, and is not called here.
    memory.write_all_at(&[0x0f, 0x0b, 0x90, 0x90, 0x90], entry as u64).expect("code can be written");
    let (shmdt, unmap, mmap) = (
        primary.can_deliver(&[Wanted::Call(Syscall::Shmdt)]),
        primary.can_deliver(&[Wanted::Event(Event::Unmap)]),
        primary.can_deliver(&[Wanted::Call(Syscall::Mmap)]),
    );
    memory.write_all_at(&ours, entry as u64).expect("code can be written");
    assert!(matches!(shmdt, Err(Undeliverable::Fault { call: Syscall::Shmdt, .. })), "{shmdt:?}");
    assert_eq!((unmap, mmap), (shmdt, Ok(())));
    // A function that makes any call: who can say what is made there?
    let entry = libc::syscall as *const () as usize;
    let function = |at: usize| (entry..entry + 64).contains(&at);
    let mut code = [0; 64];
    memory.read_exact_at(&mut code, entry as u64).expect("code can be read");
    let Some(at) = code.windows(2).position(|two| two == [0x0f, 0x05]) else {
        panic!("no syscall in syscall")
    };
    memory.write_all_at(&[0x90; 5], (entry + at - 5) as u64).expect("code can be written");
    let (fork, exit) = (
        primary.can_deliver(&[Wanted::Call(Syscall::Fork)]),
        primary.can_deliver(&[Wanted::Call(Syscall::ExitGroup)]),
    );
    memory.write_all_at(&code[at - 5..at], (entry + at - 5) as u64).expect("code can be written");
    for call in [fork, exit] {
        let Err(Undeliverable::Fault { fault, .. }) = call else { panic!("{call:?}") };
        assert!(function(fault.address) && fault.number.is_none(), "{fault}");
        assert!(fault.to_string().starts_with("a system call of any number at /"), "{fault}");
    }
}

/// While the hook is off nothing is delivered.
fn uninstalled(primary: &Primary) {
    let can = || primary.can_deliver(&[Wanted::Call(Syscall::Munmap)]);
    assert!(primary.uninstall());
    assert_eq!(can(), Err(Undeliverable::Uninstalled));
    Primary::install(&Options::default()).expect("installed again");
    assert_eq!(can(), Ok(()));
}
