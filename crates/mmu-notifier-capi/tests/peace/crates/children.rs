//! Forked children of a process with several copies: told from their first change on, and of nothing that is their parent's.

// UNSAFETY: forks, and is an allocator for the moment in which a child begins.
#![expect(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use mmu_notifier_primary::{Options, Primary};

use super::{Counts, Object, alone, install, map, subscribe, unmap, unmap_one};

/// A forked child is told from its first change on, whoever does the work; its parent's subscribers are not.
#[test]
fn a_forked_child_is_told_as_well() {
    alone("children::a_forked_child_is_told_as_well", |copy| {
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

/// What whoever does the work changes in a forked child, before the others have begun anew, is not told to their parent's
/// subscribers.
#[test]
fn the_first_ones_child_begins_behind_all_copies() {
    alone("children::the_first_ones_child_begins_behind_all_copies", |copy| {
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
    alone("children::a_told_copy_begins_anew_in_a_child", |copy| {
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
    alone("children::a_child_can_install_whatever_its_parent_was_doing", |copy| {
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
