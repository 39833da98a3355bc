use super::*;
use crate::pages;

/// Pages that are there.
struct Memory(*mut u8, usize);

impl Memory {
    fn new(count: usize) -> Memory {
        let at = pages::map(count * PAGE_SIZE);
        let memory = Memory(at, count);
        memory.touch(0..count);
        memory
    }

    fn start(&self) -> usize {
        self.0 as usize
    }

    fn touch(&self, which: core::ops::Range<usize>) {
        for page in which {
            // SAFETY: inside what was mapped.
            unsafe { self.0.add(page * PAGE_SIZE).write_volatile(1) };
        }
    }

    fn kept(&self) -> Vec<u64> {
        let mut words = vec![0; self.1];
        keep(self.start(), &mut words);
        words
    }

    fn advise(&self, which: core::ops::Range<usize>, advice: usize) {
        let args = [self.start() + which.start * PAGE_SIZE, which.len() * PAGE_SIZE, advice, 0, 0, 0];
        // SAFETY: memory that nobody else uses.
        assert_eq!(unsafe { gate::call(MADVISE, &args) }, 0);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; parts of it may be gone.
        unsafe { pages::unmap(self.0, self.1 * PAGE_SIZE) };
    }
}

fn compared(pages: u64, other: u64, empty: u64, unmapped: u64) -> Compared {
    Compared { pages, other, empty, unmapped }
}

/// Frames are seen by who may.
fn seen() -> bool {
    visible() || {
        println!("SKIPPED: page frames are seen by root alone");
        false
    }
}

#[test]
fn what_is_the_same_is_the_same() {
    let memory = Memory::new(200);
    let mut words = memory.kept();
    assert_eq!(seen(), words.iter().all(|&word| word != 0));
    memory.touch(0..200);
    assert_eq!(compare(memory.start(), &mut words, false), compared(200, 0, 0, 0));
}

#[test]
fn what_is_dropped_is_empty_and_what_comes_then_is_another() {
    const DONTNEED: usize = 4;
    let memory = Memory::new(200);
    let mut words = memory.kept();
    memory.advise(60..130, DONTNEED);
    assert_eq!(compare(memory.start(), &mut words.clone(), false), compared(200, 0, 70, 0));
    // Held by nobody, a frame may come back; the page before it is written first.
    memory.touch(0..130);
    let later = compare(memory.start(), &mut words, false);
    if seen() {
        assert!(later.other <= 70 && later.empty + later.unmapped == 0, "{later:?}");
        let again = compare(memory.start(), &mut words, false);
        assert_eq!(again, compared(200, 0, 0, 0), "told once");
    }
}

#[test]
fn what_is_unmapped_is_told_once() {
    let memory = Memory::new(100);
    let mut words = memory.kept();
    // SAFETY: pages of it, which nobody uses.
    assert!(unsafe { pages::unmap(memory.0.add(10 * PAGE_SIZE), 20 * PAGE_SIZE) });
    assert_eq!(compare(memory.start(), &mut words, false), compared(100, 0, 0, 20));
    assert_eq!(compare(memory.start(), &mut words, false), compared(100, 0, 0, 0));
    assert!(has_holes(&Range::with_len(memory.start(), 100 * PAGE_SIZE).unwrap()));
    assert!(!has_holes(&Range::with_len(memory.start(), 10 * PAGE_SIZE).unwrap()));
}

#[test]
fn pages_of_a_file_are_found_again() {
    const DONTNEED: usize = 4;
    const REMOVE: usize = 9;
    const READ_WRITE: usize = 3;
    const SHARED_ANONYMOUS: usize = 0x21;
    let args = [0, 50 * PAGE_SIZE, READ_WRITE, SHARED_ANONYMOUS, usize::MAX, 0];
    // SAFETY: a new mapping.
    let at = unsafe { gate::call(crate::Syscall::Mmap.number(), &args) };
    let memory = Memory(at as *mut u8, 50);
    memory.touch(0..50);
    let mut words = memory.kept();
    memory.advise(0..50, DONTNEED);
    assert_eq!(compare(memory.start(), &mut words, false), compared(50, 0, 0, 0), "they only are not mapped");
    memory.advise(5..9, REMOVE);
    assert_eq!(compare(memory.start(), &mut words, false), compared(50, 0, 4, 0));
}

#[test]
fn who_sees_no_frames_goes_by_the_call() {
    let memory = Memory::new(10);
    let mut words = vec![0; 10];
    assert_eq!(compare(memory.start(), &mut words, false), compared(10, 0, 0, 0));
    assert_eq!(compare(memory.start(), &mut words, true), compared(10, 10, 0, 0));
}

#[test]
fn rights_are_taken_and_given_back() {
    let mut words = [1, 2 | STALE, 3 | UNMAPPED, 4];
    assert_eq!(expose(&mut words, true), 2);
    assert_eq!(expose(&mut words, true), 0, "told once");
    assert_eq!(expose(&mut words, false), 0);
    assert_eq!(expose(&mut words, true), 2, "taken again");
}
