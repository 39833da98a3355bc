//! In a forked child the cache is empty, and the parent's registrations stay the parent's.

// UNSAFETY: forks, and says so to the address space.
#![expect(unsafe_code)]

use mmu_notifier_secondary::cache::Access;

use crate::device::{Rig, range};

/// Runs `child` in a forked process; whether it returned true there.
fn in_child(child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child makes no use of locks that another thread may have held, but for the allocator's, which glibc
    // takes around fork; and it leaves by `_exit`.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            libc::_exit(i32::from(!child()));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status == 0
    }
}

#[test]
fn the_child_has_an_empty_cache_and_the_parent_keeps_its_own() {
    let rig = Rig::new();
    let held = rig.cache.get(range(0..2), Access::Read).unwrap();
    let (handle, kept) = (*held.handle(), rig.get(7..8));
    for is_announced in [true, false] {
        let is_good = in_child(|| {
            if is_announced {
                // SAFETY: the child has one thread, in no callback.
                unsafe { rig.space.forked() };
            }
            let stats = rig.cache.stats();
            let was_empty = (stats.entries, stats.hits, stats.misses) == (0, 0, 0);
            // The device knows of the parent's registrations, as a device does.
            let anew = rig.get(0..2);
            let again = rig.get(0..2);
            rig.unmap(0..100);
            let other = rig.get(0..2);
            rig.cache.flush();
            was_empty
                && anew != handle
                && again == anew
                && other != anew
                && rig.device.is_registered(handle)
                && rig.device.is_registered(kept)
        });
        assert!(is_good, "announced: {is_announced}");
    }
    assert!(held.is_current());
    assert_eq!((rig.get(0..2), rig.get(7..8)), (handle, kept));
}

#[test]
fn what_the_child_lets_go_of_is_the_parents() {
    let rig = Rig::new();
    // One counted in the entry, the others pinned, and some that are dead.
    let mut held: Vec<_> = (0..20).map(|_| rig.cache.get(range(0..2), Access::Read).unwrap()).collect();
    held.extend((0..20).map(|_| rig.cache.get(range(5..6), Access::Read).unwrap()));
    rig.unmap(5..6);
    let count = rig.device.ranges().len();
    let mut held = Some(held);
    assert!(in_child(|| {
        rig.get(0..1);
        held = None;
        rig.get(0..1);
        rig.device.ranges().len() == count + 1
    }));
    assert_eq!(rig.device.ranges().len(), count);
    held = None;
    assert!(held.is_none());
    assert_eq!(rig.device.ranges(), [range(0..2)]);
}

#[test]
fn the_child_can_drop_the_cache() {
    let rig = Rig::new();
    rig.get(0..2);
    std::mem::forget(rig.cache.get(range(5..6), Access::Read).unwrap());
    rig.unmap(5..6);
    let mut rig = Some(rig);
    let device = rig.as_ref().unwrap().device.clone();
    assert!(in_child(|| {
        rig.as_ref().unwrap().get(3..4);
        rig = None;
        device.ranges() == [range(0..2), range(5..6)]
    }));
    assert_eq!(device.ranges(), [range(0..2), range(5..6)]);
}

#[test]
fn children_of_children() {
    let rig = Rig::new();
    let handle = rig.get(0..2);
    assert!(in_child(|| {
        let mine = rig.get(0..2);
        mine != handle && in_child(|| rig.get(0..2) != mine) && rig.get(0..2) == mine
    }));
    assert_eq!(rig.get(0..2), handle);
}
