//! A program with the Rust crate in it, and copies of the C object beside: whoever comes first does the work. Each case in a
//! process of its own, this test again.

// UNSAFETY: loads objects, calls their functions, and maps memory.
#![expect(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ffi::{CString, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::SeqCst};

use mmu_notifier::{Blocking, Change, Event, Range, Refuser, Subscriber, Subscription, WouldBlock};
use mmu_notifier_primary::{InstallError, Options, Primary, Undeliverable, Wanted};

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

/// The C object comes after the crate: it is told by that, of the same, once.
#[test]
fn the_object_is_told_by_the_crate() {
    alone("the_object_is_told_by_the_crate", |copy| {
        let primary = install();
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let (here, there) = (Counts::new(), Counts::new());
        let _here = subscribe(primary, here);
        let subscription = object.count(there);
        unmap_one(&[here, there]);
        assert_eq!((here.take(), there.take()), ((1, 1), (1, 1)));
        assert_eq!(object.problems(), 0);
        assert!(primary.check().expect("looked").is_sound());
        object.unsubscribe(subscription);
        unmap_one(&[here, there]);
        assert_eq!((here.take(), there.take()), ((1, 1), (0, 0)));
    });
}

/// The crate comes after the C object, as under `mmun run`.
#[test]
fn the_crate_is_told_by_the_object() {
    alone("the_crate_is_told_by_the_object", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        assert_eq!(Primary::install(&Options::default()).unwrap_err(), InstallError::Twice);
        let (here, there) = (Counts::new(), Counts::new());
        let _here = subscribe(primary, here);
        object.count(there);
        unmap_one(&[here, there]);
        assert_eq!((here.take(), there.take()), ((1, 1), (1, 1)));
        let check = primary.check().expect("looked");
        assert!(check.is_sound() && check.calls.len() > 10 && check.intact == 0, "{check:#?}");
        assert!(check.calls.iter().filter(|call| call.changes).all(|call| call.site != 0), "{check:#?}");
        // What cannot be delivered, the copy at work knows.
        assert_eq!(primary.can_deliver(&[Wanted::Event(Event::Unmap)]), Ok(()));
        let error = primary.can_deliver(&[Wanted::MadeCode]).expect_err("no strict mode");
        assert_eq!(error, Undeliverable::Elsewhere { text: Undeliverable::MadeCode.to_string() });
        // What the program announces itself, everybody hears.
        let pages = Range::new(0x1000, 0x2000).expect("a range");
        for counts in [here, there] {
            counts.only.store(0x1000, SeqCst);
            counts.take();
        }
        let change = Change::new(pages, Event::Unmap, Blocking::Allowed);
        assert_eq!(primary.announce(change, || primary.space().is_changing()), Ok(true));
        assert_eq!((here.take(), there.take()), ((1, 1), (1, 1)));
    });
}

/// A told copy knows whose change it is, whether it is switched on, and when the process exits.
#[test]
fn a_told_copy_knows_the_owner_whether_it_is_on_and_the_exit() {
    static OWNER: AtomicUsize = AtomicUsize::new(0);
    struct Hears;
    impl Subscriber for Hears {
        fn start(&self, change: &Change) {
            if change.range().start() == PAGE {
                OWNER.store(change.owner(), SeqCst);
            }
        }
        fn end(&self, _: &Change) {}
        fn release(&self) {
            const TEXT: &[u8] = b"the told copy is released\n";
            // SAFETY: writes a static.
            unsafe { libc::write(1, TEXT.as_ptr().cast(), TEXT.len()) };
        }
    }
    let said = alone("a_told_copy_knows_the_owner_whether_it_is_on_and_the_exit", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        std::mem::forget(primary.space().subscribe(Hears));
        let page = Range::with_len(PAGE, PAGE).expect("a range");
        let change = Change::new(page, Event::Unmap, Blocking::Allowed).with_owner(77);
        assert_eq!(primary.announce(change, || OWNER.load(SeqCst)), Ok(77));
        assert!(primary.uninstall());
        assert_eq!(primary.can_deliver(&[Wanted::Event(Event::Unmap)]), Err(Undeliverable::Uninstalled));
        install();
        assert_eq!(primary.can_deliver(&[Wanted::Event(Event::Unmap)]), Ok(()));
    });
    assert!(said.is_empty() || said.contains("the told copy is released"), "{said}");
}

/// A copy of another version has been here: this one cannot ask it, and leaves the process to it.
#[test]
fn where_a_copy_of_another_version_is_none_is_installed() {
    alone("where_a_copy_of_another_version_is_none_is_installed", |_| {
        const BOARD: usize = 0x7e80_6d6d_0000;
        let name = b"mmu-notifier 0\0\0";
        // SAFETY: new memory where nothing is, that begins as another version's would.
        unsafe {
            let file = libc::memfd_create(c"mmu-notifier".as_ptr(), 0);
            assert_eq!(libc::write(file, name.as_ptr().cast(), name.len()), 16);
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
            let at = without_provenance_mut(BOARD);
            assert_eq!(libc::mmap(at, PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0), at);
        }
        let error = Primary::install(&Options::default()).expect_err("it is there");
        assert_eq!(error, InstallError::Copy { why: "it is of another version" });
    });
}

/// Two copies that no loader knows of: one in each namespace.
#[test]
fn copies_in_other_namespaces_find_each_other() {
    alone("copies_in_other_namespaces_find_each_other", |copy| {
        let (second, third) = (Object::open_apart(copy), Object::open_apart(copy));
        assert_eq!(second.install(), 0);
        let primary = install();
        assert_eq!(third.install(), 0);
        let told = [Counts::new(), Counts::new(), Counts::new()];
        let _here = subscribe(primary, told[0]);
        second.count(told[1]);
        third.count(told[2]);
        unmap_one(&told);
        assert_eq!(told.map(Counts::take), [(1, 1); 3]);
        assert_eq!((second.problems(), third.problems()), (0, 0));
        assert!(primary.check().expect("looked").is_sound());
    });
}

/// Each is switched on and off for itself, and who does the work goes on for the other.
#[test]
fn each_copy_is_uninstalled_for_itself() {
    alone("each_copy_is_uninstalled_for_itself", |copy| {
        let primary = install();
        let object = Object::open(copy);
        let (here, there) = (Counts::new(), Counts::new());
        assert_eq!(object.install(), 0);
        let _here = subscribe(primary, here);
        object.count(there);
        assert!(primary.uninstall() && !primary.uninstall());
        unmap_one(&[here, there]);
        assert_eq!(there.take(), (1, 1), "the other copy still wants it");
        assert_eq!(object.uninstall(), 0);
        unmap_one(&[here, there]);
        assert_eq!((here.take(), there.take()), ((0, 0), (0, 0)), "nobody wants it");
        assert_eq!(object.install(), 0);
        unmap_one(&[here, there]);
        assert_eq!(there.take(), (1, 1), "the subscription has stayed");
        install();
        assert_eq!(object.uninstall(), 0);
        unmap_one(&[here, there]);
        assert_eq!((here.take(), there.take()), ((1, 1), (0, 0)));
    });
}

/// Refuses what must not wait, as long as it is told to.
struct Refusing {
    refuses: AtomicBool,
    refused: AtomicU64,
}

static REFUSING: Refusing = Refusing { refuses: AtomicBool::new(false), refused: AtomicU64::new(0) };

impl Refusing {
    fn refuse(&self) -> bool {
        let refuses = self.refuses.load(SeqCst);
        self.refused.fetch_add(u64::from(refuses), SeqCst);
        refuses
    }
}

struct Refuse;

impl Refuser for Refuse {
    fn start(&self, _: &Change) {}

    fn try_start(&self, _: &Change) -> Result<(), WouldBlock> {
        if REFUSING.refuse() { Err(WouldBlock) } else { Ok(()) }
    }
}

/// Announces a change that must not wait, by whichever copy; whether it was made.
fn try_announce(primary: &Primary, at: usize) -> bool {
    let pages = Range::with_len(at, PAGE).expect("a range");
    primary.announce(Change::new(pages, Event::Unmap, Blocking::Forbidden), || ()).is_ok()
}

/// Somebody refuses on either side: whoever was told of a start, on both sides, is told of its end.
#[test]
fn a_refusal_goes_through_and_leaves_nothing_open() {
    alone("a_refusal_goes_through_and_leaves_nothing_open", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        let told = [Counts::new(), Counts::new(), Counts::new(), Counts::new()];
        // Around the relay, and around who refuses behind it.
        object.count(told[0]);
        let _before = subscribe(primary, told[1]);
        let refuser = primary.space().subscribe_refuser(Refuse);
        let _behind = subscribe(primary, told[2]);
        object.count(told[3]);
        for counts in told {
            counts.only.store(16 * PAGE, SeqCst);
        }
        assert!(try_announce(primary, 16 * PAGE));
        assert_eq!(told.map(Counts::take), [(1, 1); 4]);
        REFUSING.refuses.store(true, SeqCst);
        assert!(!try_announce(primary, 16 * PAGE));
        assert_eq!(told.map(Counts::take), [(1, 1); 4], "all were asked, and called off");
        assert!(!primary.space().is_changing());
        REFUSING.refuses.store(false, SeqCst);
        drop(refuser);
        // And from the other side.
        unsafe extern "C" fn start(_: *const CChange, _: *mut c_void) {}
        unsafe extern "C" fn try_start(_: *const CChange, _: *mut c_void) -> c_int {
            if REFUSING.refuse() { -EAGAIN } else { 0 }
        }
        let refuser =
            object.subscribe("subscribe_refuser", &RefuserOps { start, try_start, release: None }, 0);
        REFUSING.refuses.store(true, SeqCst);
        assert!(!try_announce(primary, 16 * PAGE));
        assert_eq!(told.map(Counts::take), [(1, 1); 4]);
        REFUSING.refuses.store(false, SeqCst);
        object.unsubscribe(refuser);
    });
}

/// Who is told by another copy refuses a call of the C library's: it is put off, and made when nobody minds.
#[test]
fn what_a_told_copy_refuses_is_put_off() {
    alone("what_a_told_copy_refuses_is_put_off", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        let counts = Counts::new();
        let _first = subscribe(primary, counts);
        let _refuser = primary.space().subscribe_refuser(Refuse);
        let big = 1 << 20;
        // SAFETY: of this size the C library maps it, and unmaps it when it is freed: inside the allocator.
        let memory = unsafe { libc::malloc(big) };
        assert!(!memory.is_null());
        REFUSING.refuses.store(true, SeqCst);
        // SAFETY: allocated above.
        unsafe { libc::free(memory) };
        assert!(REFUSING.refused.load(SeqCst) > 0, "it was asked");
        REFUSING.refuses.store(false, SeqCst);
        let mut tries = 0;
        while primary.quarantined().0 > 0 || counts.open.load(SeqCst) != 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
            tries += 1;
            assert!(tries < 30_000, "{:?}, {} open", primary.quarantined(), counts.open.load(SeqCst));
        }
        let (starts, ends) = counts.take();
        assert!(starts > 1 && starts == ends, "{starts} {ends}");
    });
}

/// A callback of a told copy makes a change: the others there are told of it, itself is not.
#[test]
fn changes_in_callbacks_of_a_told_copy_are_told_to_its_others() {
    struct Unmaps(&'static Counts);
    impl Subscriber for Unmaps {
        fn start(&self, change: &Change) {
            self.0.start(change.range().start());
            unmap(map());
        }
        fn end(&self, change: &Change) {
            self.0.end(change.range().start());
        }
    }
    alone("changes_in_callbacks_of_a_told_copy_are_told_to_its_others", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        let told = [Counts::new(), Counts::new(), Counts::new()];
        object.count(told[0]);
        let _witness = subscribe(primary, told[1]);
        let _maker = primary.space().subscribe(Unmaps(told[2]));
        let at = map();
        for counts in told {
            counts.take();
        }
        unmap(at);
        assert_eq!(told.map(Counts::take), [(2, 2), (2, 2), (1, 1)]);
    });
}

/// Installs and uninstalls while other threads change memory: what is begun is ended, and nothing is told meanwhile.
#[test]
fn a_told_copy_comes_and_goes_while_changes_are_open() {
    alone("a_told_copy_comes_and_goes_while_changes_are_open", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        let (stays, comes) = (Counts::new(), Counts::new());
        let _stays = subscribe(primary, stays);
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    while !stop.load(SeqCst) {
                        unmap(map());
                    }
                })
            })
            .collect();
        for round in 0..60 {
            let subscription = subscribe(primary, comes);
            while round % 3 == 0 && comes.starts.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            if round % 2 == 0 {
                drop(subscription);
                assert!(primary.uninstall());
            } else {
                assert!(primary.uninstall());
                assert_eq!(comes.open.load(SeqCst), 0, "what was begun is over");
                drop(subscription);
            }
            assert_eq!(stays.open.load(SeqCst), 0);
            let (before, _) = stays.take();
            unmap(map());
            assert_eq!((stays.take(), before > 0 || round > 0), ((0, 0), true), "it is off");
            comes.take();
            comes.open.store(0, SeqCst);
            install();
        }
        stop.store(true, SeqCst);
        for thread in threads {
            thread.join().expect("no panic");
        }
        unmap_one(&[stays]);
        assert_eq!(stays.take(), (1, 1));
        assert!(!primary.space().is_changing());
    });
}

/// A forked child is told from its first change on, whoever does the work; its parent's subscribers are not.
#[test]
fn a_forked_child_is_told_as_well() {
    alone("a_forked_child_is_told_as_well", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        let parents = Counts::new();
        let _parents = subscribe(primary, parents);
        let busy = Arc::new(AtomicBool::new(true));
        let thread = {
            let busy = busy.clone();
            std::thread::spawn(move || {
                while busy.load(SeqCst) {
                    unmap(map());
                }
            })
        };
        for _ in 0..50 {
            // SAFETY: the child calls what may be called there: the C library makes its allocator ready.
            let child = unsafe { libc::fork() };
            if child == 0 {
                parents.take();
                let own = Counts::new();
                let subscription = subscribe(primary, own);
                unmap_one(&[own]);
                let told = own.take();
                drop(subscription);
                let right = told == (1, 1)
                    && parents.take() == (0, 0)
                    && primary.uninstall()
                    && Primary::install(&Options::default()).is_ok();
                let subscription = subscribe(primary, own);
                unmap_one(&[own]);
                std::mem::forget(subscription);
                let code = c_int::from(!(right && own.take() == (1, 1)));
                // SAFETY: ends the child.
                unsafe { libc::_exit(code) };
            }
            let mut status = -1;
            // SAFETY: the child above.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0);
        }
        busy.store(false, SeqCst);
        thread.join().expect("no panic");
        assert_eq!(parents.open.load(SeqCst), 0);
    });
}

/// The copies come at the same time: one does the work, and both are told.
#[test]
fn copies_that_come_at_the_same_time_agree() {
    alone("copies_that_come_at_the_same_time_agree", |copy| {
        let second = {
            let path: PathBuf = copy.with_extension("second.so");
            let _ = std::fs::remove_file(&path);
            std::fs::copy(copy, &path).expect("a copy");
            Object::open(&path)
        };
        let first = Object::open(copy);
        let functions = [first, second].map(|object| object.function::<extern "C" fn() -> c_int>("install"));
        let start = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for install in functions {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    assert_eq!(install(), 0);
                });
            }
            start.wait();
            install();
        });
        let told = [Counts::new(), Counts::new(), Counts::new()];
        let _here = subscribe(install_again(), told[0]);
        first.count(told[1]);
        second.count(told[2]);
        unmap_one(&told);
        assert_eq!(told.map(Counts::take), [(1, 1); 3]);
    });
}

fn install_again() -> &'static Primary {
    Primary::get().expect("it is installed")
}

/// What whoever does the work changes in a forked child, before the others have begun anew, is not told to their parent's
/// subscribers.
#[test]
fn the_first_ones_child_begins_behind_all_copies() {
    alone("the_first_ones_child_begins_behind_all_copies", |copy| {
        let primary =
            Primary::install(&Options { after_fork: begin, ..Options::default() }).expect("installed");
        let (object, apart) = (Object::open(copy), Object::open_apart(copy));
        let parents = [Counts::new(), Counts::new(), Counts::new()];
        let _parents = subscribe(primary, parents[0]);
        for (object, counts) in [(object, parents[1]), (apart, parents[2])] {
            assert_eq!(object.install(), 0);
            object.count(counts);
        }
        unmap_one(&parents);
        assert_eq!(parents.map(Counts::take), [(1, 1); 3]);
        for counts in parents {
            counts.only.store(0, SeqCst);
        }
        in_a_child(|| {
            let right = parents.map(|counts| counts.starts.load(SeqCst)) == [1; 3] && OWN.take() == (1, 1);
            unmap(map());
            right && parents.map(|counts| counts.starts.load(SeqCst)) == [1; 3]
        });
    });
}

static OWN: Counts = Counts::const_new();

/// In a child: subscribes again, and changes something.
fn begin(primary: &Primary) {
    IN_BEGIN.store(true, SeqCst);
    std::mem::forget(subscribe(primary, &OWN));
    IN_BEGIN.store(false, SeqCst);
    unmap_one(&[&OWN]);
}

/// The C library's allocator, which is locked while a child begins; then some memory of our own, for good.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;
static IN_BEGIN: AtomicBool = AtomicBool::new(false);
static ROOM_USED: AtomicUsize = AtomicUsize::new(0);
static ROOM: Room = Room(UnsafeCell::new([0; ROOM_SIZE]));
const ROOM_SIZE: usize = 64 << 10;

#[repr(align(4096))]
struct Room(UnsafeCell<[u8; ROOM_SIZE]>);

// SAFETY: each byte is given out once.
unsafe impl Sync for Room {}

// SAFETY: passed on; or memory that is given out once, of the size and alignment asked for.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !IN_BEGIN.load(SeqCst) {
            // SAFETY: by the caller's promise.
            return unsafe { System.alloc(layout) };
        }
        let align = layout.align();
        let at = ROOM_USED.fetch_add(layout.size() + align, SeqCst).next_multiple_of(align);
        if at + layout.size() > ROOM_SIZE { null_mut() } else { ROOM.0.get().cast::<u8>().wrapping_add(at) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let room = ROOM.0.get().addr();
        if !(room..room + ROOM_SIZE).contains(&pointer.addr()) && !IN_BEGIN.load(SeqCst) {
            // SAFETY: by the caller's promise.
            unsafe { System.dealloc(pointer, layout) };
        }
    }
}

/// A copy that is told begins anew in a child as well.
#[test]
fn a_told_copy_begins_anew_in_a_child() {
    alone("a_told_copy_begins_anew_in_a_child", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        Primary::install(&Options { after_fork: begin, ..Options::default() }).expect("installed");
        in_a_child(|| OWN.take() == (1, 1));
    });
}

/// Runs `works` in a forked child, and demands true of it.
fn in_a_child(works: impl FnOnce() -> bool) {
    // SAFETY: the child calls what may be called there: the C library makes its allocator ready.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: ends a child that hangs.
        unsafe { libc::alarm(100) };
        let code = c_int::from(!works());
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    let mut status = -1;
    // SAFETY: the child above.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
}

/// A fork while another thread installs and uninstalls: the child can do both, and is told.
#[test]
fn a_child_can_install_whatever_its_parent_was_doing() {
    alone("a_child_can_install_whatever_its_parent_was_doing", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(SeqCst) {
                    assert!(primary.uninstall());
                    install();
                    std::thread::yield_now();
                }
            })
        };
        for _ in 0..20 {
            in_a_child(|| {
                primary.uninstall();
                let installed = Primary::install(&Options::default()).is_ok();
                let own = Counts::new();
                std::mem::forget(subscribe(primary, own));
                unmap_one(&[own]);
                installed && own.take() == (1, 1)
            });
        }
        stop.store(true, SeqCst);
        thread.join().expect("no panic");
    });
}

/// Who is told by another copy switches himself off inside his own change, and on again: it has its end all the same.
#[test]
fn a_told_copy_may_be_uninstalled_inside_an_own_change() {
    alone("a_told_copy_may_be_uninstalled_inside_an_own_change", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        let told = [Counts::new(), Counts::new()];
        let _here = subscribe(primary, told[0]);
        object.count(told[1]);
        for counts in told {
            counts.only.store(16 * PAGE, SeqCst);
        }
        for again in [false, true] {
            let pages = Range::with_len(16 * PAGE, PAGE).expect("a range");
            let change = Change::new(pages, Event::Unmap, Blocking::Allowed);
            let off = primary.announce(change, || {
                let off = primary.uninstall() && !primary.uninstall();
                // A change inside: nobody here is told of it.
                assert!(try_announce(primary, 16 * PAGE));
                if again {
                    install();
                }
                off
            });
            assert_eq!(off, Ok(true));
            assert_eq!(told.map(Counts::take), [(1, 1), (2, 2)]);
            assert!(!primary.space().is_changing());
            if !again {
                install();
            }
        }
        unmap_one(&told);
        assert_eq!(told.map(Counts::take), [(1, 1); 2]);
    });
}

/// Several threads install the same copy: it is installed once, and that is said to one of them.
#[test]
fn a_told_copy_is_installed_once() {
    alone("a_told_copy_is_installed_once", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let start = std::sync::Barrier::new(8);
        let installed = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    match Primary::install(&Options::default()) {
                        Ok(_) => _ = installed.fetch_add(1, SeqCst),
                        Err(error) => assert_eq!(error, InstallError::Twice),
                    }
                });
            }
        });
        assert_eq!(installed.load(SeqCst), 1);
        let counts = Counts::new();
        let _here = subscribe(install_again(), counts);
        unmap_one(&[counts]);
        assert_eq!(counts.take(), (1, 1));
    });
}

/// A sandbox forbids to make what copies find each other by: the later one finds the first all the same.
#[test]
fn a_copy_in_a_sandbox_finds_the_first_one() {
    alone("a_copy_in_a_sandbox_finds_the_first_one", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        forbid(libc::SYS_memfd_create);
        // SAFETY: only makes a file, if at all.
        assert_eq!(unsafe { libc::syscall(libc::SYS_memfd_create, c"no".as_ptr(), 0) }, -1);
        let primary = install();
        let told = [Counts::new(), Counts::new()];
        let _here = subscribe(primary, told[0]);
        object.count(told[1]);
        unmap_one(&told);
        assert_eq!(told.map(Counts::take), [(1, 1); 2]);
        assert!(primary.check().expect("looked").elsewhere.is_empty());
        assert_eq!(object.uninstall(), 0);
        unmap_one(&told);
        assert_eq!(told.map(Counts::take), [(1, 1); 2], "one does the work, for both");
        assert!(primary.uninstall());
        unmap_one(&told);
        assert_eq!(told.map(Counts::take), [(0, 0); 2], "and it is off");
    });
}

/// Lets a system call fail with `EPERM` from now on.
fn forbid(call: libc::c_long) {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let line = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut lines = [
        line(LOAD_NUMBER, 0, 0, 0),
        line(JUMP_IF_EQUAL, 0, 1, call as u32),
        line(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: lines.len() as u16, filter: lines.as_mut_ptr() };
    // SAFETY: a filter of four lines, copied by the kernel.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    assert!(set, "{}", std::io::Error::last_os_error());
}
