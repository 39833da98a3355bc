//! Copies that come, go and find each other, while memory changes or somebody forbids it.

// UNSAFETY: calls functions of the objects, and confines itself.
#![expect(unsafe_code)]

use std::ffi::c_int;
use std::path::PathBuf;
use std::ptr::without_provenance_mut;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};

use mmu_notifier::{Blocking, Change, Event, Range};
use mmu_notifier_primary::{InstallError, Options, Primary};

use super::{Counts, Object, PAGE, alone, install, map, subscribe, try_announce, unmap, unmap_one};

/// A copy of another version has been here: this one cannot ask it, and leaves the process to it.
#[test]
fn where_a_copy_of_another_version_is_none_is_installed() {
    alone("coming::where_a_copy_of_another_version_is_none_is_installed", |_| {
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
    alone("coming::copies_in_other_namespaces_find_each_other", |copy| {
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
    alone("coming::each_copy_is_uninstalled_for_itself", |copy| {
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

/// Installs and uninstalls while other threads change memory: what is begun is ended, and nothing is told meanwhile.
#[test]
fn a_told_copy_comes_and_goes_while_changes_are_open() {
    alone("coming::a_told_copy_comes_and_goes_while_changes_are_open", |copy| {
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

/// The copies come at the same time: one does the work, and both are told.
#[test]
fn copies_that_come_at_the_same_time_agree() {
    alone("coming::copies_that_come_at_the_same_time_agree", |copy| {
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

/// Who is told by another copy switches himself off inside his own change, and on again: it has its end all the same.
#[test]
fn a_told_copy_may_be_uninstalled_inside_an_own_change() {
    alone("coming::a_told_copy_may_be_uninstalled_inside_an_own_change", |copy| {
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
    alone("coming::a_told_copy_is_installed_once", |copy| {
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
    alone("coming::a_copy_in_a_sandbox_finds_the_first_one", |copy| {
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
