//! Whether a check notices what others do to the code that was rewritten.
//!
//! One test, as a process has one primary MMU.

// UNSAFETY: overwrites code of the C library, and calls it.
#![expect(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use mmu_notifier_primary::{Check, Fault, FaultKind, Options, Primary, Syscall};

/// Writes code as a debugger does.
fn write(memory: &File, address: usize, code: &[u8]) {
    memory.write_all_at(code, address as u64).expect("/proc/self/mem can be written to");
}

fn read(memory: &File, address: usize, len: usize) -> Vec<u8> {
    let mut code = vec![0; len];
    memory.read_exact_at(&mut code, address as u64).expect("code can be read");
    code
}

fn check(primary: &Primary) -> Check {
    primary.check().expect("/proc is there")
}

/// The only fault there is.
fn fault(check: &Check) -> &Fault {
    let [fault] = &check.faults[..] else { panic!("{:#?}", check.faults) };
    fault
}

/// Names of the calls that were not announced as they should have been.
fn missed(check: &Check) -> Vec<&str> {
    check.calls.iter().filter(|call| !call.is_right()).map(|call| call.name).collect()
}

/// `munmap` by the function `syscall`, as UCX does it.
unsafe extern "C" fn elsewhere(at: usize, len: usize) -> libc::c_long {
    // SAFETY: the caller's.
    unsafe { libc::syscall(libc::SYS_munmap, at, len) }
}

/// The same by an instruction that nobody has looked at.
fn unseen() -> usize {
    // mov $11, %eax; syscall; ret
    made(&[0xb8, 11, 0, 0, 0, 0x0f, 0x05, 0xc3])
}

/// Code in memory without a file.
fn made(code: &[u8]) -> usize {
    // SAFETY: new memory, written to before it is code.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let at = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        at.cast::<u8>().copy_from_nonoverlapping(code.as_ptr(), code.len());
        assert_eq!(libc::mprotect(at, 4096, libc::PROT_READ | libc::PROT_EXEC), 0);
        at as usize
    }
}

/// What UCX writes over a function: `movabs $target, %r11; jmp *%r11`.
fn bistro(target: usize) -> Vec<u8> {
    [&[0x49, 0xbb][..], &target.to_le_bytes(), &[0x41, 0xff, 0xe3]].concat()
}

#[test]
fn what_others_do_to_the_code_is_noticed() {
    let primary = Primary::install(&Options::default()).expect("installed");
    let sound = check(primary);
    assert!(sound.is_sound(), "{sound:#?}");
    assert!(sound.intact > 20 && sound.gone == 0 && sound.calls.len() > 35, "{sound:#?}");
    let munmap = sound.calls.iter().find(|call| call.name == "munmap").expect("it is tried");
    assert!(munmap.site != 0 && (munmap.starts, munmap.ends) == (1, 1), "{munmap:?}");
    let again = check(primary);
    assert_eq!((again.intact, &again.calls), (sound.intact, &sound.calls), "nothing has changed");

    let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem").expect("there is /proc");
    let entry = libc::munmap as *const () as usize;
    let ours = read(&memory, entry, 13);

    // As UCX overwrites it: the code is another one, but the call is still announced, from another site.
    write(&memory, entry, &bistro(elsewhere as *const () as usize));
    let after = check(primary);
    assert!(!after.is_sound());
    let found = fault(&after);
    assert_eq!((found.call, found.address), (Some(Syscall::Munmap), munmap.site));
    let FaultKind::Overwritten { found: code, leads_to: Some(leads_to) } = &found.kind else {
        panic!("{found:?}")
    };
    assert_eq!((code[0], leads_to.address), (0x49, elsewhere as *const () as usize));
    assert_eq!(leads_to.file.as_deref(), Some(&*std::env::current_exe().expect("this program")));
    assert!(
        found.to_string().starts_with("munmap at /") && found.to_string().contains("by a jump into /"),
        "{found}"
    );
    assert_eq!(missed(&after), [""; 0]);
    let moved = after.calls.iter().find(|call| call.name == "munmap").expect("it is tried");
    assert!(moved.site != 0 && moved.site != munmap.site, "{moved:?}");

    // By somebody who makes the system call himself.
    let unseen = unseen();
    write(&memory, entry, &bistro(unseen));
    let after = check(primary);
    let FaultKind::Overwritten { leads_to: Some(leads_to), .. } = &fault(&after).kind else {
        panic!("{after:?}")
    };
    assert_eq!((leads_to.address, &leads_to.file), (unseen, &None));
    assert_eq!(missed(&after), ["munmap"]);

    // By the file's own code.
    write(&memory, entry, &ours);
    assert!(check(primary).is_sound());
    let file = std::fs::File::open(&found.file).expect("the C library");
    let mut own = [0; 5];
    // The jump is the five bytes before the instruction, or more of them.
    file.read_exact_at(&mut own, (found.offset - 5) as u64).expect("its code");
    if own[0] == 0xb8 {
        write(&memory, munmap.site - 5, &own);
        let after = check(primary);
        assert_eq!(fault(&after).kind, FaultKind::Restored);
        assert_eq!(missed(&after), ["munmap"]);
        write(&memory, entry, &ours);
    } else {
        eprintln!("SKIPPED: munmap of this C library is not `mov $11, %eax; syscall`");
    }

    let mremap = sound.calls.iter().find(|call| call.name == "mremap, shrunk").expect("it is tried");
    in_front_of_the_site(primary, &memory, mremap.site);
    the_way_into_the_hook(primary, &memory, munmap.site);
    let shmdt = sound.calls.iter().find(|call| call.name == "shmdt").expect("it is tried");
    the_way_to_the_kernel(primary, &memory, shmdt.site);
    assert!(check(primary).is_sound());
    what_is_unmapped_is_gone(primary, sound.intact, &found.file);
}

/// `mremap` by the function `syscall`.
unsafe extern "C" fn mremap_elsewhere(a: usize, b: usize, c: usize, d: usize, e: usize) -> libc::c_long {
    // SAFETY: the caller's.
    unsafe { libc::syscall(libc::SYS_mremap, a, b, c, d, e) }
}

/// `mremap` does something before its call: there is room for other code that leaves our jump alone.
fn in_front_of_the_site(primary: &Primary, memory: &File, site: usize) {
    let entry = libc::mremap as *const () as usize;
    if site.saturating_sub(entry) < 13 + 7 {
        eprintln!("SKIPPED: there is no room in front of the site in mremap");
        return;
    }
    let ours = read(memory, entry, 13);
    write(memory, entry, &[0xcc]);
    let breakpoint = primary.check_code();
    write(memory, entry, &ours);
    assert_eq!(breakpoint.expect("/proc is there").faults, []);
    write(memory, entry, &bistro(mremap_elsewhere as *const () as usize));
    let after = check(primary);
    let FaultKind::Bypassed { leads_to: Some(leads_to), .. } = &fault(&after).kind else {
        panic!("{after:?}")
    };
    assert_eq!(leads_to.address, mremap_elsewhere as *const () as usize);
    assert_eq!((fault(&after).address, missed(&after)), (site, vec![]));
    write(memory, entry, &ours);
    assert!(check(primary).is_sound());
}

/// The stub of the site: `jmp stub` leads there; behind what it replays stands where its data are.
fn the_way_into_the_hook(primary: &Primary, memory: &File, site: usize) {
    let relative =
        |at: usize| i32::from_le_bytes(read(memory, at, 4).try_into().expect("four bytes")) as isize;
    let jump = read(memory, site - 5, 1);
    assert_eq!(jump, [0xe9], "a site of the first shape");
    let stub = site.wrapping_add_signed(relative(site - 4));
    assert_eq!(read(memory, stub + 5, 3), [0x48, 0x8d, 0x0d], "lea rcx, [data]");
    let data = (stub + 12).wrapping_add_signed(relative(stub + 8));
    // Its last word only says which call it is.
    let last = data + 40;
    let number = read(memory, last, 8);
    write(memory, last, &[12]);
    let after = check(primary);
    write(memory, last, &number);
    assert_eq!((&fault(&after).kind, fault(&after).address), (&FaultKind::StubGone, site));
    // The head of the pool leads into the hook for all of its stubs. Nothing may be called meanwhile; behind a call that
    // returns twice it is used.
    let pool = stub & !(8 * 4096 - 1);
    let ours = read(memory, pool + 8, 8);
    write(memory, pool + 8, &[!ours[0]]);
    let code = primary.check_code();
    write(memory, pool + 8, &ours);
    let code = code.expect("/proc is there");
    assert!(
        code.faults.len() > 20 && code.faults.iter().all(|fault| fault.kind == FaultKind::StubGone),
        "{code:#?}"
    );
}

/// The tails of the site, where its call is made: the data of the stub say where. Nobody calls it meanwhile.
fn the_way_to_the_kernel(primary: &Primary, memory: &File, site: usize) {
    let relative =
        |at: usize| i32::from_le_bytes(read(memory, at, 4).try_into().expect("four bytes")) as isize;
    let stub = site.wrapping_add_signed(relative(site - 4));
    let data = (stub + 12).wrapping_add_signed(relative(stub + 8));
    let plain = usize::from_le_bytes(read(memory, data + 8, 8).try_into().expect("a word"));
    assert_eq!(read(memory, plain, 2), [0x0f, 0x05], "a system call");
    write(memory, plain, &[0x0f, 0x0b]);
    let code = primary.check_code();
    write(memory, plain, &[0x0f, 0x05]);
    let code = code.expect("/proc is there");
    assert_eq!((&fault(&code).kind, fault(&code).address), (&FaultKind::StubGone, site));
}

/// Another mapping of the code of the C library has sites of its own, for as long as it is there.
fn what_is_unmapped_is_gone(primary: &Primary, intact: usize, file: &Path) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("there is /proc");
    // In pieces, since some of it was writable for a moment.
    let lines =
        maps.lines().filter(|line| line.contains(" r-xp ") && line.ends_with(&*file.to_string_lossy()));
    let pieces: Vec<Vec<&str>> = lines.map(|line| line.split_whitespace().collect()).collect();
    let number = |text: &str| usize::from_str_radix(text, 16).expect("a number");
    let ends = |piece: &[&str]| piece[0].split_once('-').map(|(start, end)| (number(start), number(end)));
    let (start, end) =
        (ends(&pieces[0]).expect("a range").0, ends(&pieces[pieces.len() - 1]).expect("a range").1);
    let (len, offset) = (end - start, number(pieces[0][2]));
    let file = File::open(file).expect("it can be read");
    let map = |at: usize, fixed| {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | fixed);
        // SAFETY: a new mapping, or over the last one.
        unsafe { libc::mmap(at as *mut _, len, protection, flags, file.as_raw_fd(), offset as i64) as usize }
    };
    let at = map(0, 0);
    let twice = check(primary);
    assert!(twice.is_sound() && twice.intact > intact + 20 && twice.gone == 0, "{twice:#?}");
    assert_eq!(map(at, libc::MAP_FIXED), at);
    let again = check(primary);
    assert_eq!((again.intact, again.gone, again.is_sound()), (twice.intact, 0, true), "{again:#?}");
    // SAFETY: mapped above.
    unsafe { libc::munmap(at as *mut _, len) };
    let after = check(primary);
    assert_eq!((after.intact, after.gone), (intact, twice.intact - intact));
    assert!(after.is_sound(), "{after:#?}");
    // Whatever comes in its place.
    for protection in [libc::PROT_READ, libc::PROT_READ | libc::PROT_EXEC] {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: what was mapped above, or over the last one.
        assert_eq!(unsafe { libc::mmap(at as *mut _, len, protection, flags, -1, 0) as usize }, at);
        let after = check(primary);
        assert_eq!((after.intact, after.gone, after.is_sound()), (intact, twice.intact - intact, true));
    }
    // And another part of the file, by somebody whom the hook does not see.
    type Mmap = unsafe extern "C" fn(usize, usize, i32, i32, i32, usize) -> usize;
    // mov %rcx, %r10; mov $9, %eax; syscall; ret
    let mmap = made(&[0x49, 0x89, 0xca, 0xb8, 9, 0, 0, 0, 0x0f, 0x05, 0xc3]);
    // SAFETY: that code.
    let mmap = unsafe { std::mem::transmute::<usize, Mmap>(mmap) };
    let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_FIXED);
    // SAFETY: as above.
    assert_eq!(unsafe { mmap(at, len, protection, flags, file.as_raw_fd(), offset + 4096) }, at);
    let after = check(primary);
    assert_eq!((after.intact, after.gone), (intact, twice.intact - intact));
    assert!(after.is_sound(), "{after:#?}");
}
