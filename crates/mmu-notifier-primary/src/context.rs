//! Whether a call's subscribers may wait: not where the program may hold locks that they wait for.
//!
//! Half to all of a program's memory calls come from inside the C library, the loader and the allocator, which hold locks
//! around them. If a subscriber waits there for a lock of its own, and whoever has that lock allocates, both wait for
//! ever. So a call is announced as non-blocking, unless it is *proven* that it comes from the program's own code:
//!
//! * the function around the `syscall` was called from outside the C library, the loader, and whatever defines the
//!   allocator's functions;
//! * the thread is in no other change: not in a signal handler that has interrupted one, and in no callback;
//! * the thread is on the stack that it was made with, not too deep, and there is no signal frame on it, as a handler may
//!   have interrupted the allocator.
//!
//! A `fork` is never proven: the C library holds all locks of the allocator around it.
//!
//! # Signal frames
//!
//! `setup_rt_frame` of the kernel puts the interrupted registers on the stack, among them, in one word, the selectors of
//! code and stack: `0x33` and `0x2b` in every 64-bit program. No other word looks like that, so a look at the words
//! between the stack pointer and the end of the stack finds it. (What an earlier handler has left in memory that nobody
//! has written since looks the same; then the call is non-blocking, which is never wrong.)

// UNSAFETY: reads the calling thread's stack, and asks the dynamic loader where functions are.
#![expect(unsafe_code)]

use core::arch::x86_64::{
    __m128i, _mm_cmpeq_epi16, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi16, _mm_unpackhi_epi64,
};
use core::ffi::{CStr, c_char, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

use mmu_notifier::{Blocking, Caller, Range};

use crate::entry::{Frame, Site};
use crate::hook::return_address;
use crate::maps::Mapping;
use crate::primary::Primary;

/// Functions that say which files hold locks around memory calls: the allocator's, and the C library's own. There are such in
/// every process: to look for one that is not there, the loader would allocate with the program's allocator.
const MARKS: [&CStr; 9] = [
    c"malloc",
    c"free",
    c"calloc",
    c"realloc",
    c"aligned_alloc",
    c"posix_memalign",
    c"gnu_get_libc_version",
    c"pthread_create",
    c"dlopen",
];

/// Executable mappings of such files.
const RANGES: usize = 16;

/// How deep on its stack a thread may be, in bytes: so much is looked at for signal frames.
const DEPTH: usize = 32 << 10;

/// Where calls come from that must not wait.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Contexts {
    /// Where the first thread's stack begins to grow down; 0: not known.
    first_stack: AtomicUsize,
    /// Where there are locks: start and end; 0: unused, as are all behind. Written once, before the hook is installed.
    ranges: [(AtomicUsize, AtomicUsize); RANGES],
}

/// Finds out which mappings those are.
#[derive(Debug)]
pub(crate) struct Survey {
    marks: [usize; MARKS.len() + 1],
    /// Files (device and inode) that hold a mark.
    files: Vec<(u64, u64)>,
    code: Vec<(Range, (u64, u64))>,
    /// Where the kernel has put the arguments of the program: the first frame lies below.
    stack_end: usize,
    first_stack: usize,
}

impl Survey {
    /// Asks the dynamic loader, which may take its lock: not in the hook.
    pub(crate) fn new() -> Survey {
        const AT_BASE: usize = 7;
        unsafe extern "C" {
            fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
            safe fn getauxval(kind: usize) -> usize;
        }
        let mut marks = [0; MARKS.len() + 1];
        // SAFETY: RTLD_DEFAULT and a zero-ended name.
        let find = |name: &CStr| unsafe { dlsym(core::ptr::null_mut(), name.as_ptr()) };
        for (mark, name) in marks.iter_mut().zip(MARKS) {
            *mark = find(name) as usize;
        }
        let stack_end = find(c"__libc_stack_end").cast::<usize>();
        // SAFETY: if it is there, a word of the loader's.
        let stack_end = if stack_end.is_null() { 0 } else { unsafe { *stack_end } };
        // The loader itself.
        marks[MARKS.len()] = getauxval(AT_BASE);
        Survey { marks, files: Vec::new(), code: Vec::new(), stack_end, first_stack: 0 }
    }

    pub(crate) fn look_at(&mut self, mapping: &Mapping<'_>) {
        let file = (mapping.device, mapping.inode);
        let range = &mapping.range;
        if mapping.path == b"[stack]" && (range.start()..range.end()).contains(&self.stack_end) {
            self.first_stack = self.stack_end;
        }
        if mapping.inode == 0 {
            return;
        }
        if self.marks.iter().any(|mark| (range.start()..range.end()).contains(mark)) {
            self.files.push(file);
        }
        if mapping.executable {
            self.code.push((*range, file));
        }
    }
}

impl Contexts {
    pub(crate) fn new() -> Contexts {
        Contexts {
            ranges: [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; RANGES],
            first_stack: AtomicUsize::new(0),
        }
    }

    /// Relaxed, all: what is not seen yet makes a call blocking that comes before the hook is installed.
    pub(crate) fn learn(&self, survey: &Survey) {
        self.first_stack.store(survey.first_stack, Ordering::Relaxed);
        // Without a loader: a static program, whose allocator is a part of its code like any other.
        if survey.marks.iter().all(|&mark| mark == 0) {
            let (start, end) = &self.ranges[0];
            end.store(usize::MAX, Ordering::Relaxed);
            start.store(1, Ordering::Relaxed);
            return;
        }
        let locked = survey.code.iter().filter(|(_, file)| survey.files.contains(file));
        for ((range, _), (start, end)) in locked.zip(&self.ranges) {
            end.store(range.end(), Ordering::Relaxed);
            start.store(range.start(), Ordering::Relaxed);
        }
    }

    /// Whether there may be locks around code at `address`.
    fn is_locked(&self, address: usize) -> bool {
        // Relaxed: see `learn`.
        let ranges =
            self.ranges.iter().map(|(start, end)| [start, end].map(|word| word.load(Ordering::Relaxed)));
        ranges.take_while(|&[start, _]| start != 0).any(|[start, end]| (start..end).contains(&address))
    }

    /// Whether the call at `site` may wait.
    ///
    /// Behind [`Primary::end_abandoned`]: what the caller has open, it is inside of.
    pub(crate) fn of(&self, primary: &Primary, caller: &Caller, frame: &Frame, site: &Site) -> Blocking {
        let called_from = return_address(frame, site);
        // 0, if it is not known.
        if called_from < 4096 || self.is_locked(called_from) {
            return Blocking::Forbidden;
        }
        self.of_exec(primary, caller, frame)
    }

    /// Whether an `exec` may wait: the C library holds no lock around it, whoever calls.
    pub(crate) fn of_exec(&self, primary: &Primary, caller: &Caller, frame: &Frame) -> Blocking {
        if primary.space.may_have_open(caller) {
            return Blocking::Forbidden;
        }
        let stack = frame.stack();
        let first = self.first_stack.load(Ordering::Relaxed);
        let is_near = |top: usize| stack < top && top - stack <= DEPTH;
        let top = if is_near(first) {
            first
        } else {
            primary.threads.stack_around(stack, caller.thread() == primary.pid().into())
        };
        if !is_near(top) {
            return Blocking::Forbidden;
        }
        // SAFETY: between the stack pointer and the end of the stack of the calling thread, which is not further away than
        // what was mapped for it.
        if unsafe { has_signal_frame(stack, top) } { Blocking::Forbidden } else { Blocking::Allowed }
    }
}

/// Whether there is a signal frame between two addresses of a stack.
///
/// # Safety
///
/// All that lies between, and [`CHUNK`] bytes before, is mapped and can be read; `from` is less than `to`.
#[target_feature(enable = "sse2")]
unsafe fn has_signal_frame(from: usize, to: usize) -> bool {
    // struct sigcontext: the selectors cs, gs, fs, ss are the quarters of one word. What gs and fs hold is the program's
    // business.
    const LAST: i16 = 0x2b;
    /// Of the bytes of two words, those of the last quarters.
    const LAST_QUARTERS: i32 = 0xc0c0;
    let wanted = _mm_set1_epi16(LAST);
    // Whole chunks up to the end: perhaps some words too many at the other side, where our own frames are. What is cut off at
    // the end is less than a frame has behind its selectors.
    let to = to & !(ALIGNMENT - 1);
    let mut at = to - to.saturating_sub(from).next_multiple_of(CHUNK);
    while at < to {
        // SAFETY: by the caller's promise, and aligned. What other threads write there meanwhile, if they were handed a
        // pointer, does not matter to a search.
        let words = |index: usize| unsafe { (at as *const __m128i).add(index).read() };
        // Of each 16 bytes the second word is looked at.
        let four = |index: usize| {
            let [a, b] = [0, 2].map(|next| _mm_unpackhi_epi64(words(index + next), words(index + next + 1)));
            _mm_or_si128(_mm_cmpeq_epi16(a, wanted), _mm_cmpeq_epi16(b, wanted))
        };
        let found = _mm_or_si128(four(0), four(4));
        // Hardly ever: then one is looked at more closely.
        // SAFETY: as above.
        if _mm_movemask_epi8(found) & LAST_QUARTERS != 0 && unsafe { holds_selectors(at) } {
            return true;
        }
        at += CHUNK;
    }
    false
}

/// How much is looked at in one go, in bytes.
const CHUNK: usize = 128;
/// The kernel puts a signal frame where a function's frame could be, a word below a multiple of this; so the word with the
/// selectors is a word above one (`get_sigframe`, and the offsets in `struct rt_sigframe`).
const ALIGNMENT: usize = 16;

/// Whether a chunk has such a word where it would be.
///
/// # Safety
///
/// The chunk can be read.
#[cold]
#[inline(never)]
unsafe fn holds_selectors(chunk: usize) -> bool {
    // SAFETY: by the caller's promise.
    let words: [[u64; 2]; CHUNK / ALIGNMENT] =
        unsafe { (chunk as *const [[u64; 2]; CHUNK / ALIGNMENT]).read() };
    words.into_iter().any(|[_, word]| is_selectors(word))
}

fn is_selectors(word: u64) -> bool {
    word & 0xffff_0000_0000_ffff == 0x002b_0000_0000_0033
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_frame_is_found() {
        static FOUND: AtomicUsize = AtomicUsize::new(0);
        extern "C" fn handler(_: libc::c_int) {
            let here = 0u64;
            let here = (&raw const here).addr();
            // SAFETY: the test's stack, above this frame: the frame of the signal alone has more than this.
            let found = unsafe { has_signal_frame(here, here + 1024) };
            FOUND.store(1 + usize::from(found), Ordering::SeqCst);
        }
        // In a thread, whose stack is fresh.
        let here = std::thread::spawn(|| {
            let here = 0u64;
            let here = (&raw const here).addr();
            // SAFETY: the stack of this thread, above this frame.
            let before = unsafe { has_signal_frame(here, here + 512) };
            // SAFETY: a handler for a signal that is sent to this thread alone.
            unsafe {
                libc::signal(libc::SIGURG, handler as extern "C" fn(libc::c_int) as libc::sighandler_t);
                libc::raise(libc::SIGURG);
            }
            before
        });
        assert!(!here.join().unwrap(), "before there was a signal");
        assert_eq!(FOUND.load(Ordering::SeqCst), 2, "in the handler");
    }

    #[test]
    fn nothing_else_looks_like_one() {
        const FRAME: u64 = 0x002b_0000_0000_0033;
        #[repr(align(16))]
        struct Stack([u64; 80]);
        let mut stack = Stack([0; 80]);
        let here = stack.0.as_ptr() as usize;
        // SAFETY: inside the array, here and below: a chunk before the first word is looked at, too.
        let found = |from: usize, to: usize| unsafe { has_signal_frame(here + 8 * from, here + 8 * to) };
        for (word, at) in [(0x33, 19), (0x2b << 48, 21), (0x33, 23), (FRAME << 16, 25), (FRAME - 1, 27)] {
            // SAFETY: as above.
            unsafe { (here as *mut u64).add(at).write_volatile(word) };
        }
        assert!(!found(16, 76));
        for at in 17..76 {
            // SAFETY: as above.
            let before = unsafe { (here as *mut u64).add(at).read_volatile() };
            // SAFETY: as above.
            unsafe { (here as *mut u64).add(at).write_volatile(FRAME | 0x63 << 16) };
            if at % 2 == 1 {
                assert!(found(16, 76) && found(at, 76) && found(at, at + 1), "{at}");
            } else {
                assert!(!found(16, 76), "the kernel puts it nowhere else: {at}");
            }
            assert!(!found(16, at), "behind the end: {at}");
            // SAFETY: as above.
            unsafe { (here as *mut u64).add(at).write_volatile(before) };
        }
        std::hint::black_box(&mut stack);
    }

    #[test]
    fn the_allocator_and_the_loader_have_locks() {
        let mut survey = Survey::new();
        crate::maps::for_each(|mapping| survey.look_at(mapping)).unwrap();
        let contexts = Contexts::new();
        contexts.learn(&survey);
        assert!(contexts.is_locked(libc::munmap as *const () as usize), "the C library");
        assert!(!contexts.is_locked(has_signal_frame as *const () as usize), "this program");
        assert!(!contexts.is_locked(0));
        assert_ne!(contexts.first_stack.load(Ordering::Relaxed), 0);
    }
}
