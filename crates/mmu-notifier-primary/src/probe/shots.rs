//! The calls that are tried: each memory system call, and each advice.
//!
//! Not among them: an `execve` that succeeds and `exit_group`, of which nobody is left to see anything (`mmun doctor` has
//! a child for them), and `MADV_HWPOISON` and `MADV_SOFT_OFFLINE`, which take memory of the machine out of service.

use mmu_notifier::{PAGE_SIZE, Range};

use super::ground::Ground;
use super::watch::{Look, State};
use crate::Syscall;

/// A call that is tried.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Shot {
    /// What it does, in a few words: `madvise DONTNEED`.
    pub name: &'static str,
    /// The call.
    pub call: Syscall,
    /// What it touches.
    pub scope: Scope,
    pub(super) aim: fn(&mut Ground) -> Option<Aim>,
}

/// What a call touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Memory of its own.
    Memory,
    /// The end of the heap: nobody else may use the heap meanwhile.
    Heap,
    /// The process: a child, or another program in its place.
    Process,
}

/// A call on its ground.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aim {
    pub(super) args: [usize; 6],
    /// Where it changes something.
    pub(super) range: Range,
    /// Whether it does.
    pub(super) changes: bool,
    pub(super) look: Look,
    pub(super) before: State,
    pub(super) after: State,
    /// Pages that are not there any more after it.
    pub(super) frees: Option<Range>,
    /// How many pages there are new, at the address that it returns.
    pub(super) gives: usize,
}

const A: State = State::Byte(b'A');
const ZERO: State = State::Byte(0);

impl Aim {
    /// Changes `range`, of which nothing is to be seen.
    fn at(range: Range, args: [usize; 6]) -> Aim {
        let (before, after) = (State::Unknown, State::Unknown);
        Aim { args, range, changes: true, look: Look::Nothing, before, after, frees: None, gives: 0 }
    }

    /// The first byte of the range is `before`, and then `after`.
    fn turns(self, before: State, after: State) -> Aim {
        Aim { look: Look::Byte(self.range.start()), before, after, ..self }
    }

    fn frees(self) -> Aim {
        Aim { frees: Some(self.range), ..self }
    }

    fn gives(self, pages: usize) -> Aim {
        Aim { gives: pages, ..self }
    }

    /// There is nothing to announce.
    fn nothing(self) -> Aim {
        Aim { changes: false, ..self }
    }
}

const MAYMOVE: usize = 1;
const FIXED: usize = 2;
const DONTUNMAP: usize = 4;
const READ_WRITE: usize = 3;
const NONE: usize = 0;
const ANONYMOUS: usize = 0x22;
const MAP_FIXED: usize = 0x10;
const SIGCHLD: usize = 17;

/// `[start, length]` of a range and the rest of the arguments.
fn on(range: Range, [c, d, e, f]: [usize; 4]) -> [usize; 6] {
    [range.start(), range.len(), c, d, e, f]
}

/// The page so many behind the first of a range.
fn page(range: Range, number: usize) -> Option<Range> {
    Range::with_len(range.start() + number * PAGE_SIZE, PAGE_SIZE).ok()
}

/// An advice that takes pages away.
fn takes(ground: &mut Ground, advice: usize, after: State) -> Option<Aim> {
    let memory = ground.memory(2)?;
    Some(Aim::at(memory, on(memory, [advice, 0, 0, 0])).turns(A, after))
}

macro_rules! shot {
    ($name:literal, $call:ident, $scope:ident, $aim:expr) => {
        Shot { name: $name, call: Syscall::$call, scope: Scope::$scope, aim: $aim }
    };
}

/// An advice that takes nothing away.
macro_rules! harmless {
    ($name:literal, $advice:literal) => {
        shot!($name, Madvise, Memory, |ground| {
            let memory = ground.memory(2)?;
            Some(Aim::at(memory, on(memory, [$advice, 0, 0, 0])).nothing())
        })
    };
}

/// All of them.
pub static SHOTS: &[Shot] = &[
    shot!("mmap, new", Mmap, Memory, |ground| {
        // Whatever is announced now, it is none of this.
        let near = ground.memory(1)?;
        let args = [0, PAGE_SIZE, READ_WRITE, ANONYMOUS, usize::MAX, 0];
        Some(Aim::at(near, args).nothing().gives(1))
    }),
    shot!("mmap FIXED", Mmap, Memory, |ground| {
        let memory = ground.memory(2)?;
        let args = on(memory, [READ_WRITE, ANONYMOUS | MAP_FIXED, usize::MAX, 0]);
        Some(Aim::at(memory, args).turns(A, ZERO))
    }),
    shot!("munmap", Munmap, Memory, |ground| {
        let memory = ground.memory(2)?;
        Some(Aim::at(memory, on(memory, [0; 4])).turns(A, State::Gone).frees())
    }),
    shot!("mremap, moved", Mremap, Memory, |ground| {
        let (from, to) = (ground.memory(1)?, ground.memory(1)?);
        let args = on(from, [PAGE_SIZE, MAYMOVE | FIXED, to.start(), 0]);
        Some(Aim::at(from, args).turns(A, State::Gone).frees())
    }),
    shot!("mremap, moved over", Mremap, Memory, |ground| {
        let (from, to) = (ground.file(2)?.0, ground.memory(1)?);
        let from = page(from, 1)?;
        let args = on(from, [PAGE_SIZE, MAYMOVE | FIXED, to.start(), 0]);
        let aim = Aim::at(to, args).turns(A, State::Byte(b'B'));
        Some(Aim { frees: Some(from), ..aim })
    }),
    shot!("mremap, shrunk", Mremap, Memory, |ground| {
        let memory = ground.memory(2)?;
        let args = on(memory, [PAGE_SIZE, 0, 0, 0]);
        Some(Aim::at(page(memory, 1)?, args).turns(A, State::Gone).frees())
    }),
    shot!("mremap DONTUNMAP", Mremap, Memory, |ground| {
        let memory = ground.memory(1)?;
        let args = on(memory, [PAGE_SIZE, MAYMOVE | DONTUNMAP, 0, 0]);
        Some(Aim::at(memory, args).turns(A, ZERO).gives(1))
    }),
    shot!("brk, shrunk", Brk, Heap, |ground| {
        let (heap, end) = ground.longer_heap()?;
        Some(Aim::at(heap, [end, 0, 0, 0, 0, 0]).turns(A, State::Gone))
    }),
    shot!("mprotect", Mprotect, Memory, |ground| {
        let memory = ground.memory(2)?;
        Some(Aim::at(memory, on(memory, [NONE, 0, 0, 0])).turns(A, State::Gone))
    }),
    shot!("pkey_mprotect", PkeyMprotect, Memory, |ground| {
        let memory = ground.memory(2)?;
        Some(Aim::at(memory, on(memory, [NONE, usize::MAX, 0, 0])).turns(A, State::Gone))
    }),
    shot!("madvise DONTNEED", Madvise, Memory, |ground| takes(ground, 4, ZERO)),
    shot!("madvise FREE", Madvise, Memory, |ground| takes(ground, 8, State::Unknown)),
    shot!("madvise REMOVE", Madvise, Memory, |ground| {
        let (file, _) = ground.file(1)?;
        Some(Aim::at(file, on(file, [9, 0, 0, 0])).turns(A, ZERO))
    }),
    shot!("madvise UNMERGEABLE", Madvise, Memory, |ground| takes(ground, 13, A)),
    shot!("madvise PAGEOUT", Madvise, Memory, |ground| takes(ground, 21, State::Unknown)),
    shot!("madvise DONTNEED_LOCKED", Madvise, Memory, |ground| takes(ground, 24, ZERO)),
    shot!("madvise COLLAPSE", Madvise, Memory, |ground| {
        const HUGE: usize = 2 << 20;
        let memory = ground.untouched(2 * HUGE / PAGE_SIZE)?;
        let huge = Range::with_len(memory.start().next_multiple_of(HUGE), HUGE).ok()?;
        ground.touch(huge);
        Some(Aim::at(huge, on(huge, [25, 0, 0, 0])).turns(A, A))
    }),
    shot!("madvise GUARD_INSTALL", Madvise, Memory, |ground| takes(ground, 102, State::Gone)),
    shot!("process_madvise DONTNEED", ProcessMadvise, Memory, |ground| {
        let (memory, process) = (ground.memory(2)?, ground.this_process()?);
        let vector = ground.words(&[memory.start(), memory.len()]);
        Some(Aim::at(memory, [process, vector, 1, 4, 0, 0]).turns(A, ZERO))
    }),
    shot!("shmat REMAP", Shmat, Memory, |ground| {
        const REMAP: usize = 0o40000;
        let (memory, segment) = (ground.memory(1)?, ground.segment()?);
        let args = [segment, memory.start(), REMAP, 0, 0, 0];
        Some(Aim::at(memory, args).turns(A, State::Byte(b'S')))
    }),
    shot!("shmdt", Shmdt, Memory, |ground| {
        let segment = ground.segment()?;
        let there = ground.attach(segment)?;
        let args = [there.start(), 0, 0, 0, 0, 0];
        Some(Aim::at(there, args).turns(State::Byte(b'S'), State::Gone).frees())
    }),
    shot!("remap_file_pages", RemapFilePages, Memory, |ground| {
        let (file, _) = ground.file(2)?;
        let first = page(file, 0)?;
        Some(Aim::at(first, on(first, [0, 1, 0, 0])).turns(A, State::Byte(b'B')))
    }),
    shot!("ftruncate", Ftruncate, Memory, |ground| {
        let (memory, file) = ground.file(2)?;
        Some(Aim::at(memory, [file, 0, 0, 0, 0, 0]).turns(A, State::Gone))
    }),
    shot!("truncate", Truncate, Memory, |ground| {
        let (memory, file) = ground.file(2)?;
        let path = format!("/proc/self/fd/{file}\0");
        let mut words = [0; 16];
        for (index, byte) in path.bytes().enumerate().take(size_of_val(&words)) {
            words[index / 8] |= usize::from(byte) << (8 * (index % 8));
        }
        let path = ground.words(&words);
        Some(Aim::at(memory, [path, 0, 0, 0, 0, 0]).turns(A, State::Gone))
    }),
    shot!("fallocate PUNCH_HOLE", Fallocate, Memory, |ground| {
        const PUNCH_HOLE_KEEP_SIZE: usize = 3;
        let (memory, file) = ground.file(2)?;
        let args = [file, PUNCH_HOLE_KEEP_SIZE, 0, memory.len(), 0, 0];
        Some(Aim::at(memory, args).turns(A, ZERO))
    }),
    shot!("fork", Fork, Process, |_| Some(forks([0; 6]))),
    shot!("clone", Clone, Process, |_| Some(forks([SIGCHLD, 0, 0, 0, 0, 0]))),
    shot!("clone3", Clone3, Process, |ground| {
        let words = [0, 0, 0, 0, SIGCHLD, 0, 0, 0];
        Some(forks([ground.words(&words), size_of_val(&words), 0, 0, 0, 0]))
    }),
    shot!("vfork", Vfork, Process, |ground| {
        let near = ground.memory(1)?;
        Some(Aim::at(near, [0; 6]).nothing())
    }),
    shot!("execve, failing", Execve, Process, |ground| Some(fails(ground, Syscall::Execve))),
    shot!("execveat, failing", Execveat, Process, |ground| Some(fails(ground, Syscall::Execveat))),
    harmless!("madvise NORMAL", 0),
    harmless!("madvise RANDOM", 1),
    harmless!("madvise SEQUENTIAL", 2),
    harmless!("madvise WILLNEED", 3),
    harmless!("madvise DONTFORK", 10),
    harmless!("madvise DOFORK", 11),
    harmless!("madvise MERGEABLE", 12),
    harmless!("madvise HUGEPAGE", 14),
    harmless!("madvise NOHUGEPAGE", 15),
    harmless!("madvise DONTDUMP", 16),
    harmless!("madvise DODUMP", 17),
    harmless!("madvise WIPEONFORK", 18),
    harmless!("madvise KEEPONFORK", 19),
    harmless!("madvise COLD", 20),
    harmless!("madvise POPULATE_READ", 22),
    harmless!("madvise POPULATE_WRITE", 23),
    harmless!("madvise GUARD_REMOVE", 103),
];

/// A child with memory of its own: the pages of the parent are write-protected.
fn forks(args: [usize; 6]) -> Aim {
    let aim = Aim::at(Range::EVERYTHING, args);
    Aim { look: Look::Child, before: State::NoChild, after: State::Child, ..aim }
}

/// Another program, which there is not: the address space was to go.
fn fails(ground: &mut Ground, call: Syscall) -> Aim {
    // The name, then two empty lists.
    let words = [usize::from_le_bytes(*b"/proc/0\0"), 0, 0];
    let path = ground.words(&words);
    let lists = path + 8;
    let args = match call {
        Syscall::Execve => [path, lists, lists, 0, 0, 0],
        _ => [usize::MAX, path, lists, lists, 0, 0],
    };
    Aim::at(Range::EVERYTHING, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_tried() {
        for call in Syscall::ALL {
            assert_eq!(
                SHOTS.iter().any(|shot| shot.call == call),
                call != Syscall::ExitGroup,
                "{}",
                call.name()
            );
        }
        // Those that the kernel has as of 6.18, but the two that poison memory.
        let advices = SHOTS.iter().filter(|shot| shot.call == Syscall::Madvise).count();
        assert_eq!(advices, 8 + 17);
    }
}
