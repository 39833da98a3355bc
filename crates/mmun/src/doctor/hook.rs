//! The object that is preloaded into this process: its C interface, found by name.

// UNSAFETY: finds functions by name and calls them; is called back.
#![expect(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use mmu_notifier::Range;
use mmu_notifier_primary::probe::Watch;

/// `struct mmu_notifier_change`.
#[repr(C)]
struct Change {
    start: usize,
    end: usize,
    event: c_int,
    blocking: c_int,
}

/// `struct mmu_notifier_ops`.
#[repr(C)]
struct Ops {
    start: unsafe extern "C" fn(*const Change, *mut c_void),
    end: unsafe extern "C" fn(*const Change, *mut c_void),
    release: unsafe extern "C" fn(*mut c_void),
}

type Subscribe = unsafe extern "C" fn(*const Ops, usize, *mut c_void, *mut *mut c_void) -> c_int;
type CallSite = unsafe extern "C" fn() -> *const c_void;
type Problem = unsafe extern "C" fn(*const c_char, *const c_void, *mut c_void);
type Check = unsafe extern "C" fn(Problem, *mut c_void) -> c_int;

/// Who is told: a [`Watch`], and whether the address space has gone.
#[derive(Debug)]
pub struct Told {
    pub watch: Watch,
    /// How often its release was announced.
    pub releases: AtomicUsize,
}

impl Told {
    pub const fn new() -> Told {
        Told { watch: Watch::new(), releases: AtomicUsize::new(0) }
    }
}

/// `mmu_notifier_call_site`, 0 if there is none.
static CALL_SITE: AtomicUsize = AtomicUsize::new(0);

fn call_site() -> usize {
    match CALL_SITE.load(Ordering::Relaxed) {
        0 => 0,
        // SAFETY: the function of that type, found by its name.
        function => unsafe { std::mem::transmute::<usize, CallSite>(function)() as usize },
    }
}

unsafe extern "C" fn start(change: *const Change, told: *mut c_void) {
    // SAFETY: as subscribed, and as the header says.
    let (change, told) = unsafe { (&*change, &*told.cast::<Told>()) };
    if let Ok(range) = Range::new(change.start, change.end) {
        told.watch.start(&range, call_site);
    }
}

unsafe extern "C" fn end(change: *const Change, told: *mut c_void) {
    // SAFETY: as in `start`.
    let (change, told) = unsafe { (&*change, &*told.cast::<Told>()) };
    if let Ok(range) = Range::new(change.start, change.end) {
        told.watch.end(&range);
    }
}

unsafe extern "C" fn release(told: *mut c_void) {
    // SAFETY: as in `start`.
    unsafe { &*told.cast::<Told>() }.releases.fetch_add(1, Ordering::Relaxed);
}

/// The address of a function, if the process has one of that name.
fn find(name: &CStr) -> Option<usize> {
    // SAFETY: a zero-ended name.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found as usize)
}

/// Whether the object is there.
pub fn is_preloaded() -> bool {
    find(c"mmu_notifier_subscribe").is_some()
}

/// Subscribes, for ever.
pub fn subscribe(told: &'static Told) -> Result<()> {
    let function = find(c"mmu_notifier_subscribe").context("the object is not preloaded")?;
    CALL_SITE.store(find(c"mmu_notifier_call_site").unwrap_or(0), Ordering::Relaxed);
    // SAFETY: the function of that type, found by its name.
    let subscribe = unsafe { std::mem::transmute::<usize, Subscribe>(function) };
    let ops = Ops { start, end, release };
    let mut subscription = std::ptr::null_mut();
    let told = std::ptr::from_ref(told).cast_mut().cast();
    // SAFETY: as the header says; `told` lives for ever.
    let error = unsafe { subscribe(&ops, size_of::<Ops>(), told, &mut subscription) };
    ensure!(error == 0, "mmu_notifier_subscribe: error {}", -error);
    Ok(())
}

/// What is not as it was written in the hook's code.
pub fn check() -> Result<Vec<String>> {
    unsafe extern "C" fn problem(text: *const c_char, address: *const c_void, problems: *mut c_void) {
        // Calls that are not announced: the patient finds that out by itself.
        if address.is_null() {
            return;
        }
        // SAFETY: as the header says, and as called below.
        let (text, problems) = unsafe { (CStr::from_ptr(text), &mut *problems.cast::<Vec<String>>()) };
        problems.push(text.to_string_lossy().into_owned());
    }
    let function = find(c"mmu_notifier_check").context("the object is not preloaded")?;
    // SAFETY: the function of that type, found by its name.
    let check = unsafe { std::mem::transmute::<usize, Check>(function) };
    let mut problems: Vec<String> = Vec::new();
    // SAFETY: as the header says.
    let count = unsafe { check(problem, (&raw mut problems).cast()) };
    ensure!(count >= 0, "mmu_notifier_check: error {}", -count);
    Ok(problems)
}
