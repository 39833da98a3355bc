//! Places that are not rewritten: where there is no room, where code may change by itself, in a program that confines itself.

// UNSAFETY: maps memory of the tests', and confines a child.
#![expect(unsafe_code)]

use mmu_notifier_primary::Primary;

use crate::place::{
    ALL, HOT, NOWHERE, PAGE, Place, READ_EXECUTE, READ_WRITE, RETURN, Since, edge, map, new_page, protect,
    unmap,
};

/// Confines the calling process to what the test calls, and the return from a trap: whoever calls anything else is killed.
fn confine() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // The last one is the hook's own, at the end of a process whose memory a child may share.
    let allowed = [
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_getpid,
    ];
    let step = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let [a, b, c, d, e] = allowed.map(|number| number as u32);
    // The number comes first in what the filter is given.
    let mut filter = [
        step(LOAD, 0, 0),
        step(IS, 5, a),
        step(IS, 4, b),
        step(IS, 3, c),
        step(IS, 2, d),
        step(IS, 1, e),
        step(RETURN, 0, libc::SECCOMP_RET_KILL_PROCESS),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: a filter of that length.
    let confined = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    assert!(confined);
}

pub(crate) fn who_confines_itself_has_its_own_code_and_no_call_but_its_own(_: &'static Primary) {
    let (old, new) = (Place::made(820, &RETURN), Place::made(920, &RETURN));
    old.heat();
    // The first trap of a place takes calls: its stub is written.
    new.call_many(1);
    // SAFETY: the child makes calls of the test's, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        confine();
        let back = !old.is_rewritten();
        old.call_many(4 * HOT);
        new.call_many(4 * HOT);
        protect(new.page(), READ_WRITE);
        let ok = back && !old.is_rewritten() && !new.is_rewritten();
        // Not by a place of the C library that has never been trapped.
        old.call(usize::from(!ok), 0, libc::SYS_exit_group);
    }
    let mut status = 0;
    // SAFETY: the child of this process.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "killed by {}, or wrong", status & 0x7f);
    assert!(old.is_rewritten());
    unmap(old.page(), PAGE);
    unmap(new.page(), PAGE);
}

/// Stays trapped, and works.
fn assert_kept(primary: &Primary, place: Place) {
    let since = Since::now(primary);
    let own = place.bytes();
    place.call_many(10 * HOT);
    assert_eq!(place.bytes(), own);
    assert_eq!((since.traps(primary), since.told()), (10 * HOT, 10 * HOT));
    assert_eq!((since.rewritten(primary), since.kept(primary)), (0, 1));
}

pub(crate) fn where_nothing_can_be_mapped_a_place_stays_trapped(primary: &'static Primary) {
    let place = Place::made(1000, &RETURN);
    let window = place.target() & !(PAGE - 1);
    map(window, PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
    assert_kept(primary, place);
    // SAFETY: mapped above.
    assert_eq!(unsafe { *(window as *const [u8; PAGE]) }, [0; PAGE]);
    // And is rewritten once there is room.
    unmap(window, PAGE);
    place.call_many(20 * HOT);
    assert!(place.is_rewritten());
    // Then again, if somebody takes that.
    assert_eq!(map(window, PAGE, READ_WRITE, libc::MAP_FIXED), window);
    assert!(!place.is_rewritten());
    let since = Since::now(primary);
    place.call_many(3 * HOT);
    assert_eq!((since.traps(primary), since.told()), (3 * HOT, 3 * HOT));
    // SAFETY: mapped above.
    assert_eq!(unsafe { *(window as *const [u8; PAGE]) }, [0; PAGE]);
    unmap(window, PAGE);
    unmap(place.page(), PAGE);
    // Where the heap and the stack grow.
    for (name, up, behind) in [("[heap]", 64isize << 20, RETURN), ("[stack]", -32 << 20, [0xc3, 0, 1])] {
        let [b, c, d] = behind;
        let grown = edge(name, up > 0).wrapping_add_signed(up);
        let address = grown.wrapping_add_signed(-(i32::from_le_bytes([5, b, c, d]) as isize) - 5);
        let page = map(address & !(PAGE - 1), PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
        let place = Place::write(page + 100, &behind);
        protect(page, READ_EXECUTE);
        assert_kept(primary, place);
        unmap(page, PAGE);
    }
    // Where nobody may map anything, and below all addresses.
    let page = map(0x6fff_8000, PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
    let place = Place::write(page + 0xcf6, &[0xc3, 0, 0x90]);
    assert_eq!(place.target(), 0x5000);
    protect(page, READ_EXECUTE);
    assert_kept(primary, place);
    unmap(page, PAGE);
    let page = map(0x7000_0000, PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
    let place = Place::write(page + 100, &[0xc3, 0, 0x80]);
    protect(page, READ_EXECUTE);
    assert_kept(primary, place);
    unmap(page, PAGE);
}

pub(crate) fn code_that_can_change_by_itself_stays_trapped(primary: &'static Primary) {
    // Writable.
    let page = map(new_page(), PAGE, ALL, libc::MAP_FIXED_NOREPLACE);
    let place = Place::write(page + 100, &RETURN);
    assert_kept(primary, place);
    // And once it is not.
    protect(page, READ_EXECUTE);
    place.call_many(20 * HOT);
    assert!(place.is_rewritten());
    unmap(page, PAGE);
    // Shared: somebody may have it writable elsewhere.
    let page = new_page();
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: new memory.
    let got = unsafe { libc::mmap(page as *mut _, PAGE, READ_WRITE, flags, -1, 0) };
    assert_eq!(got as usize, page);
    let place = Place::write(page + 100, &RETURN);
    protect(page, READ_EXECUTE);
    assert_kept(primary, place);
    unmap(page, PAGE);
    // Over two pages.
    let page = map(new_page(), 2 * PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
    let place = Place::write(page + PAGE - 4, &RETURN);
    protect(page, READ_EXECUTE);
    protect(page + PAGE, READ_EXECUTE);
    assert_kept(primary, place);
    unmap(page, 2 * PAGE);
}

pub(crate) fn places_that_share_bytes_or_landings_are_not_rewritten_together(primary: &'static Primary) {
    let page = map(new_page(), PAGE, READ_WRITE, libc::MAP_FIXED_NOREPLACE);
    // syscall; mov %esi, %eax; syscall; ret: the second one is what the first one's jump would consist of.
    let first = Place::write(page + 100, &[0x90, 0x0f, 0x05, 0xc3, 0xcc, 0xcc]);
    // And two whose jumps lead close to one another.
    let near = Place::write(page + 110, &RETURN);
    let nearer = Place::write(page + 120, &RETURN);
    let second = Place(page + 103 - Place::FRONT);
    protect(page, READ_EXECUTE);
    let since = Since::now(primary);
    for _ in 0..4 * HOT {
        // The second call is read(2), of no descriptor.
        assert!(first.call(NOWHERE, PAGE, libc::SYS_munmap) <= 0);
    }
    assert_eq!(since.told(), 4 * HOT);
    assert!(!(first.is_rewritten() && second.is_rewritten()));
    assert_eq!(second.bytes()[1..], [0x05, 0xc3, 0xcc, 0xcc]);
    near.call_many(4 * HOT);
    assert_eq!((near.is_rewritten(), since.told()), (true, 8 * HOT));
    nearer.call_many(4 * HOT);
    assert_eq!((nearer.is_rewritten(), since.told()), (false, 12 * HOT));
    near.call_many(1);
    assert_eq!(since.told(), 12 * HOT + 1);
    unmap(page, PAGE);
}
