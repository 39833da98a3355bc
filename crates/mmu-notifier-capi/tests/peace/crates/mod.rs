//! A program with the Rust crate in it, and copies of the C object beside: whoever comes first does the work. Each case in a
//! process of its own, this test again.

// UNSAFETY: loads objects, calls their functions, and maps memory.
#![expect(unsafe_code)]

mod children;
mod coming;
mod told;

use std::ffi::{CString, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize};

use mmu_notifier::{Blocking, Change, Event, Range, Subscriber, Subscription};
use mmu_notifier_primary::{Options, Primary};

const PAGE: usize = 4096;
const EAGAIN: c_int = 11;

/// Runs `case` in another process, in which this same test comes here again. Each wait for a change of another thread may take
/// as long as that is kept from running: few rounds, and a generous end.
/// What it has said; in there, nothing.
fn alone(name: &str, case: fn(&Path)) -> String {
    const CASE: &str = "MMU_NOTIFIER_CASE";
    if let Some(copy) = std::env::var_os(CASE) {
        // SAFETY: nobody waits for this signal; a case that hangs ends.
        unsafe { libc::alarm(300) };
        case(Path::new(&copy));
        return String::new();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peace");
    std::fs::create_dir_all(&folder).expect("a folder");
    let copy = folder.join(format!("crates-{name}.so"));
    let _ = std::fs::remove_file(&copy);
    std::fs::copy(super::object(), &copy).expect("a copy");
    let test = format!("peace::crates::{name}");
    let mut command = Command::new(std::env::current_exe().expect("a name"));
    command.args(["--exact", &test, "--nocapture", "--test-threads=1"]).env(CASE, &copy);
    let output = command.output().expect("it runs");
    let said = super::all(&output);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    said
}

/// `struct mmu_notifier_change`.
#[repr(C)]
struct CChange {
    start: usize,
    end: usize,
    event: c_int,
    blocking: c_int,
}

/// `struct mmu_notifier_ops`.
#[repr(C)]
struct Ops {
    start: unsafe extern "C" fn(*const CChange, *mut c_void),
    end: unsafe extern "C" fn(*const CChange, *mut c_void),
    release: Option<unsafe extern "C" fn(*mut c_void)>,
}

/// `struct mmu_notifier_refuser_ops`.
#[repr(C)]
struct RefuserOps {
    start: unsafe extern "C" fn(*const CChange, *mut c_void),
    try_start: unsafe extern "C" fn(*const CChange, *mut c_void) -> c_int,
    release: Option<unsafe extern "C" fn(*mut c_void)>,
}

/// A copy of the C object.
#[derive(Clone, Copy)]
struct Object {
    handle: *mut c_void,
}

impl Object {
    fn open(path: &Path) -> Object {
        let path = CString::new(path.as_os_str().as_bytes()).expect("a path");
        // SAFETY: runs the object's initialiser, which does nothing without a session.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{path:?}");
        Object { handle }
    }

    /// In a namespace of its own, with its own C library.
    fn open_apart(path: &Path) -> Object {
        let path = CString::new(path.as_os_str().as_bytes()).expect("a path");
        // SAFETY: as above.
        let handle = unsafe { libc::dlmopen(libc::LM_ID_NEWLM, path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "{path:?}");
        Object { handle }
    }

    fn function<F: Copy>(self, name: &str) -> F {
        let name = CString::new(format!("mmu_notifier_{name}")).expect("a name");
        // SAFETY: an open handle.
        let function = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        assert!(!function.is_null() && size_of::<F>() == size_of::<usize>());
        // SAFETY: the caller says the type that the header says.
        unsafe { std::mem::transmute_copy(&function) }
    }

    fn install(self) -> c_int {
        self.function::<extern "C" fn() -> c_int>("install")()
    }

    fn uninstall(self) -> c_int {
        self.function::<extern "C" fn() -> c_int>("uninstall")()
    }

    fn subscribe<T>(self, name: &str, ops: &T, context: usize) -> *mut c_void {
        type Subscribe = unsafe extern "C" fn(*const c_void, usize, *mut c_void, *mut *mut c_void) -> c_int;
        let mut subscription = null_mut();
        let subscribe: Subscribe = self.function(name);
        let ops = (&raw const *ops).cast();
        // SAFETY: callbacks that take such a context.
        let answer =
            unsafe { subscribe(ops, size_of::<T>(), without_provenance_mut(context), &raw mut subscription) };
        assert_eq!(answer, 0);
        subscription
    }

    /// Counts changes that begin at `page`, or all.
    fn count(self, counts: &'static Counts) -> *mut c_void {
        unsafe extern "C" fn start(change: *const CChange, counts: *mut c_void) {
            // SAFETY: by the object, a change, and the context.
            unsafe { (*counts.cast::<Counts>()).start((*change).start) };
        }
        unsafe extern "C" fn end(change: *const CChange, counts: *mut c_void) {
            // SAFETY: as above.
            unsafe { (*counts.cast::<Counts>()).end((*change).start) };
        }
        self.subscribe("subscribe", &Ops { start, end, release: None }, (&raw const *counts).addr())
    }

    fn unsubscribe(self, subscription: *mut c_void) {
        // SAFETY: given by `subscribe`, once.
        unsafe { self.function::<unsafe extern "C" fn(*mut c_void)>("unsubscribe")(subscription) };
    }

    fn problems(self) -> c_int {
        self.function::<extern "C" fn(*const c_void, *const c_void) -> c_int>("check")(null_mut(), null_mut())
    }
}

/// What somebody is told of one address, or of all.
struct Counts {
    only: AtomicUsize,
    starts: AtomicU64,
    ends: AtomicU64,
    open: AtomicI64,
}

impl Counts {
    fn new() -> &'static Counts {
        Box::leak(Box::new(Counts::const_new()))
    }

    const fn const_new() -> Counts {
        Counts {
            only: AtomicUsize::new(0),
            starts: AtomicU64::new(0),
            ends: AtomicU64::new(0),
            open: AtomicI64::new(0),
        }
    }

    fn concerns(&self, start: usize) -> bool {
        [0, start].contains(&self.only.load(SeqCst))
    }

    fn start(&self, start: usize) {
        if self.concerns(start) {
            self.starts.fetch_add(1, SeqCst);
            self.open.fetch_add(1, SeqCst);
        }
    }

    fn end(&self, start: usize) {
        if self.concerns(start) {
            self.ends.fetch_add(1, SeqCst);
            self.open.fetch_sub(1, SeqCst);
        }
    }

    fn take(&self) -> (u64, u64) {
        (self.starts.swap(0, SeqCst), self.ends.swap(0, SeqCst))
    }
}

struct Count(&'static Counts);

impl Subscriber for Count {
    fn start(&self, change: &Change) {
        self.0.start(change.range().start());
    }

    fn end(&self, change: &Change) {
        self.0.end(change.range().start());
    }
}

fn map() -> *mut c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: new memory.
    let at = unsafe { libc::mmap(null_mut(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at
}

fn unmap(at: *mut c_void) {
    // SAFETY: mapped by `map`, and nobody looks at it.
    assert_eq!(unsafe { libc::munmap(at, PAGE) }, 0);
}

/// Unmaps a page that all of these are interested in.
fn unmap_one(told: &[&Counts]) {
    let at = map();
    for counts in told {
        counts.only.store(at.addr(), SeqCst);
        counts.take();
    }
    unmap(at);
}

fn install() -> &'static Primary {
    Primary::install(&Options::default()).expect("installed")
}

fn subscribe(primary: &Primary, counts: &'static Counts) -> Subscription {
    primary.space().subscribe(Count(counts))
}

/// Announces a change that must not wait, by whichever copy; whether it was made.
fn try_announce(primary: &Primary, at: usize) -> bool {
    let pages = Range::with_len(at, PAGE).expect("a range");
    primary.announce(Change::new(pages, Event::Unmap, Blocking::Forbidden), || ()).is_ok()
}
