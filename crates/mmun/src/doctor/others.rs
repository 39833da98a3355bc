//! What is done for a program: by the C library, by the loader, and when it ends or becomes another one.

// UNSAFETY: threads, memory and processes by the plain functions of the C library; memory shared with a child.
#![expect(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use mmu_notifier::Range;
use mmu_notifier_primary::Syscall;
use mmu_notifier_primary::probe::{Look, State};

use super::findings::Finding;
use super::hook::{self, Told};
use super::origins::{Library, alone};
use super::patient::place;

/// Larger than what the C library keeps for later.
const LARGE: usize = 64 << 20;

fn page_of(address: usize) -> Range {
    Range::with_len(address & !4095, 4096).expect("a page")
}

/// What was told since `told` was armed, as a finding.
fn finding(event: &str, call: Syscall, told: &Told, before: State, after: Option<State>) -> Finding {
    told.watch.disarm();
    let heard = told.watch.told();
    let seen = |state: State, expected: State| expected == State::Unknown || state == expected;
    Finding {
        event: event.to_owned(),
        call: call.name().to_owned(),
        origin: None,
        changes: true,
        before: heard.starts > 0 && seen(heard.before, before),
        after: after.map(|after| heard.ends > 0 && seen(heard.after, after)),
        starts: heard.starts,
        ends: heard.ends,
        site: place(heard.site),
        errno: None,
    }
}

/// `free` of memory that the allocator has mapped for it.
pub fn free(told: &Told) -> Result<Finding> {
    // SAFETY: plain memory.
    let block = unsafe { libc::malloc(LARGE) };
    ensure!(!block.is_null(), "no memory");
    let middle = block.wrapping_byte_add(LARGE / 2);
    // SAFETY: in the middle of the block.
    unsafe { middle.cast::<u8>().write_volatile(b'A') };
    told.watch.arm(page_of(middle as usize), Look::Byte(middle as usize));
    // SAFETY: allocated above.
    unsafe { libc::free(block) };
    // Other allocators than the C library's keep it for later, perhaps without its pages.
    let is_kept = Look::Byte(middle as usize).look() != State::Gone;
    let (before, after) =
        if is_kept { (State::Unknown, State::Unknown) } else { (State::Byte(b'A'), State::Gone) };
    let mut finding = finding("free(), a large block", Syscall::Munmap, told, before, Some(after));
    finding.changes = !is_kept || finding.starts > 0;
    Ok(finding)
}

/// The stack of a thread that is over.
pub fn thread(told: &'static Told) -> Result<Finding> {
    extern "C" fn run(told: *mut c_void) -> *mut c_void {
        let mut mark = b'A';
        let mark = &raw mut mark;
        // SAFETY: on this stack; stays when the function has returned, as nothing else is written there.
        unsafe { mark.write_volatile(b'A') };
        // SAFETY: as given below.
        let told = unsafe { &*told.cast::<Told>() };
        // Only its page counts: what lies above is used when the thread ends.
        let address = mark as usize;
        told.watch.arm(page_of(address), Look::Byte(address & !4095));
        null_mut()
    }
    // SAFETY: zeroes are valid, and it is initialised next.
    let mut attributes: libc::pthread_attr_t = unsafe { std::mem::zeroed() };
    let mut thread = 0;
    let argument = std::ptr::from_ref(told).cast_mut().cast();
    // SAFETY: as the manual pages say.
    let made = unsafe {
        libc::pthread_attr_init(&mut attributes);
        libc::pthread_attr_setstacksize(&mut attributes, LARGE);
        libc::pthread_create(&mut thread, &attributes, run, argument)
    };
    ensure!(made == 0, "no thread: error {made}");
    // SAFETY: made above.
    unsafe { libc::pthread_join(thread, null_mut()) };
    // What is on its page does not matter; that it can be read does.
    let mut finding =
        finding("a thread's stack, joined", Syscall::Munmap, told, State::Unknown, Some(State::Gone));
    finding.before &= told.watch.told().before != State::Gone;
    Ok(finding)
}

/// A library that is loaded: what it is put over, and what is made read-only.
pub fn load(told: &Told) -> Result<(Finding, Library)> {
    told.watch.arm(Range::EVERYTHING, Look::Nothing);
    let library = Library::open()?;
    Ok((finding("dlopen()", Syscall::Mmap, told, State::Unknown, Some(State::Unknown)), library))
}

/// A library that is unloaded.
pub fn unload(told: &Told, library: Library) -> Finding {
    let code = library.address();
    // SAFETY: code that is mapped.
    let byte = unsafe { (code as *const u8).read_volatile() };
    told.watch.arm(page_of(code), Look::Byte(code));
    library.close();
    finding("dlclose()", Syscall::Munmap, told, State::Byte(byte), Some(State::Gone))
}

/// What a child tells of its last moments, in memory that it shares with its parent.
fn last_words(child: impl FnOnce(&'static Told)) -> Result<&'static Told> {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    ensure!(at != libc::MAP_FAILED, "no memory");
    const { assert!(size_of::<Told>() <= 4096) };
    // SAFETY: mapped just now, large enough, and never unmapped.
    let told: &'static Told = unsafe {
        at.cast::<Told>().write(Told::new());
        &*at.cast::<Told>()
    };
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).context("fork"),
        0 => {
            // The address space of a child begins with nobody subscribed.
            if hook::subscribe(told).is_ok() {
                told.watch.arm(Range::EVERYTHING, Look::Nothing);
                child(told);
            }
            // SAFETY: the child ends.
            unsafe { libc::_exit(1) }
        }
        pid => {
            // SAFETY: nothing is written.
            unsafe { libc::waitpid(pid, null_mut(), 0) };
            Ok(told)
        }
    }
}

/// A program that becomes another one.
pub fn exec() -> Result<Finding> {
    let (_file, path) = alone()?;
    let told = last_words(|_| run(&path))?;
    Ok(finding("execve, succeeding", Syscall::Execve, told, State::Unknown, None))
}

fn run(path: &CStr) {
    let arguments = [path.as_ptr(), null()];
    // SAFETY: zero-ended strings and lists.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), [null()].as_ptr()) };
}

/// A program that ends.
pub fn exit() -> Result<Finding> {
    // SAFETY: the child ends.
    let told = last_words(|_| unsafe { libc::_exit(0) })?;
    let mut finding = finding("exit_group", Syscall::ExitGroup, told, State::Unknown, None);
    finding.starts = told.releases.load(Ordering::Relaxed);
    finding.before = finding.starts == 1;
    Ok(finding)
}

/// Runs the static program; its process id.
pub fn run_alone() -> Result<u32> {
    let (_file, path) = alone()?;
    let path = path.to_str().context("a path of digits")?;
    let mut child = std::process::Command::new(path).spawn().context("the static program does not run")?;
    let id = child.id();
    ensure!(child.wait()?.success(), "the static program failed");
    Ok(id)
}
