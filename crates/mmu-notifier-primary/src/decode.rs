//! From a system call to the changes it makes: a pure function.
//!
//! [`decode`] looks at a call *before* it is made and says which ranges of the address space it is
//! about to change, and why. It errs towards more: what cannot be known before the call is taken to
//! change. It reads no memory and makes no system call; what it must know beside the arguments is
//! handed to it as [`Facts`], and [`needs`] says which of them a call wants.
//!
//! Both run inside a system call of somebody else's program. They take any six numbers, never panic,
//! never allocate, and cost a few comparisons.
//!
//! # Rules
//!
//! * A call is left alone only if it loses nothing, or if its arguments alone make *every* kernel
//!   refuse it before it has touched anything (`EINVAL` for an unaligned address, say). A call that
//!   may fail half-way, such as an `mprotect` that meets a hole, is announced in full.
//! * Numbers are read as wide as the kernel reads them: advice, modes and `shmflg` are C `int`s, and
//!   whatever stands in the upper half of the register does not count.
//! * Lengths are rounded up to pages as the kernel does it, where a length in the last page of the
//!   number range becomes 0.
//! * `munmap`, `mprotect`, `madvise` and the source of `mremap` ignore the tag bits of an address if
//!   linear address masking is on (`untagged_addr`). We ignore them always: if it is off, such an
//!   address maps nothing, and announcing its untagged twin is merely too much.
//! * Huge pages of `hugetlbfs` make the kernel round some lengths up further than to 4 KiB. Nothing in
//!   the arguments tells, except that such a mapping begins on a multiple of its page size. Where that
//!   rounding exists and the address allows it, it is assumed.
//!
//! The sources named at each rule are the manual pages (section 2) and the functions of Linux that
//! decide, as of 6.18; older kernels since 4.17 differ only in refusing more.

use mmu_notifier::{Event, PAGE_SIZE, Range};

use crate::Syscall;

/// Where user space ends at the latest: five-level page tables, and a page that is never mapped
/// (`task_size_max`). With four levels it ends at `0x7fff_ffff_f000`, but which it is does not matter:
/// to announce what the kernel will refuse costs little.
const USER_END: usize = 0x00ff_ffff_ffff_f000;

/// The tag bits of an address under linear address masking, 62 to 57 (`mm_enable_lam`).
const TAG: usize = 0x3f << 57;

/// The sizes of huge pages on x86-64.
const HUGE_PAGES: [usize; 2] = [2 << 20, 1 << 30];

const MAP_FIXED: usize = 0x10;
const MAP_ANONYMOUS: usize = 0x20;
const MAP_HUGETLB: usize = 0x4_0000;
const MAP_FIXED_NOREPLACE: usize = 0x10_0000;

const PROT_EXEC: usize = 4;
const PROT_GROWSDOWN: usize = 0x0100_0000;
const PROT_GROWSUP: usize = 0x0200_0000;

const MREMAP_MAYMOVE: usize = 1;
const MREMAP_FIXED: usize = 2;
const MREMAP_DONTUNMAP: usize = 4;

const SHM_RND: i32 = 0o20000;
const SHM_REMAP: i32 = 0o40000;
/// What `SHM_RND` rounds down to: a page, on x86-64.
const SHMLBA: usize = PAGE_SIZE;

const MADV_NORMAL: i32 = 0;
const MADV_RANDOM: i32 = 1;
const MADV_SEQUENTIAL: i32 = 2;
const MADV_WILLNEED: i32 = 3;
const MADV_REMOVE: i32 = 9;
const MADV_DONTFORK: i32 = 10;
const MADV_DOFORK: i32 = 11;
const MADV_MERGEABLE: i32 = 12;
const MADV_HUGEPAGE: i32 = 14;
const MADV_NOHUGEPAGE: i32 = 15;
const MADV_DONTDUMP: i32 = 16;
const MADV_DODUMP: i32 = 17;
const MADV_WIPEONFORK: i32 = 18;
const MADV_KEEPONFORK: i32 = 19;
const MADV_COLD: i32 = 20;
const MADV_POPULATE_READ: i32 = 22;
const MADV_POPULATE_WRITE: i32 = 23;
const MADV_GUARD_REMOVE: i32 = 103;

/// The longest vector that `process_madvise` takes (`IOV_MAX`).
const VECTOR_MAX: usize = 1024;

const FALLOC_FL_KEEP_SIZE: i32 = 0x01;
const FALLOC_FL_PUNCH_HOLE: i32 = 0x02;
const FALLOC_FL_COLLAPSE_RANGE: i32 = 0x08;
const FALLOC_FL_ZERO_RANGE: i32 = 0x10;
const FALLOC_FL_INSERT_RANGE: i32 = 0x20;
const FALLOC_FL_UNSHARE_RANGE: i32 = 0x40;
const FALLOC_FL_WRITE_ZEROES: i32 = 0x80;

const CLONE_VM: u64 = 0x100;

/// What the arguments of a call do not say, found out by the hook before it decodes.
///
/// The default is to know nothing; then more is announced.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// `brk`: where the heap ends now (the kernel's answer to `brk(0)`). 0: could not be found out.
    pub program_break: usize,
    /// `shmat` with `SHM_REMAP`, `shmdt`: the segment's size in bytes, if it could be found out.
    pub segment: Option<usize>,
    /// `process_madvise`: the ranges named by its vector, or the one range that covers them all.
    /// `ftruncate`, `truncate`, `fallocate`: the mapped pieces of the file that the call can touch.
    /// `madvise` with `MADV_REMOVE`: the other mappings of the same pieces of the same files.
    /// Empty: there are none. `None`: could not be found out, so everything.
    pub ranges: Option<&'a [Range]>,
    /// `clone3`: the flags that its structure holds. 0, also for a structure that cannot be read: none.
    /// (`clone` has its flags among the arguments.)
    pub clone_flags: u64,
}

/// Which of the [`Facts`] a call wants.
///
/// Pointers, descriptors and counts are the caller's and may be anything. The hook must read them in a
/// way that survives a bad pointer, and if it cannot find out, it leaves the fact at its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// None: the arguments suffice, or the call changes nothing.
    Nothing,
    /// [`Facts::program_break`].
    ProgramBreak,
    /// [`Facts::segment`] of the segment with this id: `shmctl(id, IPC_STAT)`.
    SegmentById(i32),
    /// [`Facts::segment`] of the segment that was attached at this address.
    SegmentAt(usize),
    /// [`Facts::ranges`]: those in a vector of `count` `struct iovec` at `pointer`. `count` is at least
    /// 1 and at most 1024. Neither page alignment nor tag bits need care; an entry that is no [`Range`]
    /// can be left out, since there the kernel stops.
    Vector {
        /// Where the vector is.
        pointer: usize,
        /// How many entries it has.
        count: usize,
    },
    /// [`Facts::ranges`]: where this process maps the bytes `from..to` of the file.
    FileRanges {
        /// Which file.
        file: File,
        /// The first byte, rounded down to a page.
        from: usize,
        /// The byte behind the last, rounded up to a page; `usize::MAX` is the end of the file,
        /// whatever it is.
        to: usize,
    },
    /// [`Facts::ranges`]: where else this process maps what is mapped from files in this range. (All
    /// mappings of those files will do.)
    Aliases(Range),
    /// [`Facts::clone_flags`]: the first eight bytes of the structure at this address.
    CloneFlags(usize),
}

/// A file, as a system call names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// An open file.
    Descriptor(i32),
    /// The path at this address.
    Path(usize),
}

/// The changes of one call, in the order in which they are announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changes {
    len: usize,
    items: [(Range, Event); Changes::MAX],
}

impl Changes {
    /// A call makes no more changes than this; more pieces are announced as one range around them.
    pub const MAX: usize = 4;

    pub(crate) const NONE: Changes =
        Changes { len: 0, items: [(Range::EVERYTHING, Event::Unmap); Changes::MAX] };

    /// The changes as a slice; empty if the call changes nothing that was there.
    pub fn as_slice(&self) -> &[(Range, Event)] {
        self.items.get(..self.len).unwrap_or_default()
    }

    fn one(range: impl Into<Option<Range>>, event: Event) -> Changes {
        Changes::all(range.into().into_iter(), event)
    }

    /// All of `ranges`; if they are too many, the range around them.
    fn all(ranges: impl Iterator<Item = Range> + Clone, event: Event) -> Changes {
        if ranges.clone().nth(Changes::MAX).is_some() {
            return Changes::one(ranges.reduce(around), event);
        }
        let mut changes = Changes::NONE;
        for range in ranges {
            changes.push(range, event);
        }
        changes
    }

    /// Adds a change. The caller sees to it that there is room.
    fn push(&mut self, range: Range, event: Event) {
        if let Some(item) = self.items.get_mut(self.len) {
            *item = (range.to_pages(), event);
            self.len += 1;
        }
    }
}

/// Says what must be found out before [`decode`] can be exact about `call` with `args`.
///
/// ```
/// use mmu_notifier_primary::Syscall;
/// use mmu_notifier_primary::decode::{File, Needs, needs};
///
/// let wanted = Needs::FileRanges { file: File::Descriptor(3), from: 0x1000, to: usize::MAX };
/// assert_eq!(needs(Syscall::Ftruncate, &[3, 0x1234, 0, 0, 0, 0]), wanted);
/// assert_eq!(needs(Syscall::Munmap, &[0x1000, 0x1000, 0, 0, 0, 0]), Needs::Nothing);
/// ```
pub fn needs(call: Syscall, args: &[usize; 6]) -> Needs {
    let &[a, b, c, d, e, _] = args;
    match call {
        Syscall::Brk if a != 0 => Needs::ProgramBreak,
        Syscall::Madvise if int(c) == MADV_REMOVE => {
            advised(a, b, int(c)).map_or(Needs::Nothing, Needs::Aliases)
        }
        Syscall::ProcessMadvise if int(d) != MADV_REMOVE && vector_is_advised(c, int(d), e) => {
            Needs::Vector { pointer: b, count: c }
        }
        Syscall::Shmat if attached_over(b, int(c)).is_some() => Needs::SegmentById(int(a)),
        Syscall::Shmdt if a.is_multiple_of(PAGE_SIZE) => Needs::SegmentAt(a),
        Syscall::Ftruncate => file_ranges(File::Descriptor(int(a)), truncated(b)),
        Syscall::Truncate => file_ranges(File::Path(a), truncated(b)),
        Syscall::Fallocate => file_ranges(File::Descriptor(int(a)), reallocated(int(b), c, d)),
        Syscall::Clone3 => Needs::CloneFlags(a),
        _ => Needs::Nothing,
    }
}

/// Which file a call maps that was not mapped there before, in a process where others may change that file meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maps {
    /// The file that is open at a descriptor.
    File(i32),
    /// One that the process maps already, if any.
    Mapped,
    /// Nobody can say.
    Unknown,
}

/// Says what `call` with `args` maps; `None`: no file.
///
/// Memory of nobody but this mapping (`MAP_ANONYMOUS`) is a file, too, if it is shared; but one that no call changes
/// which was not told of the mapping.
pub(crate) fn maps(call: Syscall, args: &[usize; 6]) -> Option<Maps> {
    let &[_, old_size, new_size, flags, descriptor, _] = args;
    match call {
        Syscall::Mmap => (flags & MAP_ANONYMOUS == 0).then_some(Maps::File(int(descriptor))),
        // What only shrinks is nowhere else afterwards. Without a size the mapping is doubled.
        Syscall::Mremap => {
            let stays =
                flags & !MREMAP_MAYMOVE == 0 && old_size != 0 && page_ceil(new_size) <= page_ceil(old_size);
            (!stays).then_some(Maps::Mapped)
        }
        Syscall::RemapFilePages => Some(Maps::Mapped),
        Syscall::Shmat => Some(Maps::Unknown),
        _ => None,
    }
}

/// Says what `call` with `args` is about to change.
///
/// ```
/// use mmu_notifier::{Event, Range};
/// use mmu_notifier_primary::Syscall;
/// use mmu_notifier_primary::decode::{Facts, decode};
///
/// let changes = decode(Syscall::Munmap, &[0x1000, 0x1fff, 0, 0, 0, 0], &Facts::default());
/// assert_eq!(changes.as_slice(), [(Range::new(0x1000, 0x3000)?, Event::Unmap)]);
/// # Ok::<(), mmu_notifier::RangeError>(())
/// ```
pub fn decode(call: Syscall, args: &[usize; 6], facts: &Facts<'_>) -> Changes {
    let &[a, b, c, d, e, _] = args;
    match call {
        // munmap(addr, len). `do_vmi_munmap` refuses an unaligned address, no length, and what leaves
        // user space.
        Syscall::Munmap => Changes::one(user_pages(untagged(a), b), Event::Unmap),
        Syscall::Mmap => Changes::one(replaced_by_mmap(a, b, d), Event::Unmap),
        Syscall::Mremap => mremap(args),
        Syscall::Brk => Changes::one(moved_break(facts.program_break, a), Event::Unmap),
        Syscall::Madvise => madvise(a, b, int(c), facts.ranges),
        Syscall::ProcessMadvise => process_madvise(c, int(d), e, facts.ranges),
        // pkey_mprotect(addr, len, prot, pkey) is mprotect with one argument more, and so is its change:
        // the key decides about access like the protection does.
        Syscall::Mprotect | Syscall::PkeyMprotect => Changes::one(protected(a, b, c), Event::ProtectionVma),
        Syscall::Shmat => {
            let segment = attached_over(b, int(c)).and_then(|start| segment(start, facts.segment));
            Changes::one(segment, Event::Unmap)
        }
        // shmdt(addr). `ksys_shmdt` wants an aligned address and takes away every piece that is left of
        // the segment attached there; they all lie within its size from the address on.
        Syscall::Shmdt if a.is_multiple_of(PAGE_SIZE) => {
            Changes::one(segment(a, facts.segment), Event::Unmap)
        }
        Syscall::Shmdt => Changes::NONE,
        // remap_file_pages(addr, size, ..). Both are rounded *down* to pages, and what wraps around is
        // refused. Other pages of the same file come to stand there; the mapping stays.
        Syscall::RemapFilePages => {
            Changes::one(Range::with_len(page_floor(a), page_floor(b)).ok(), Event::Clear)
        }
        Syscall::Ftruncate | Syscall::Truncate | Syscall::Fallocate => match needs(call, args) {
            Needs::FileRanges { .. } => {
                let pieces = facts.ranges.unwrap_or(&[Range::EVERYTHING]);
                Changes::all(pieces.iter().copied(), Event::Clear)
            }
            _ => Changes::NONE,
        },
        Syscall::Fork => forked(0),
        // vfork(): the child borrows the address space until it execs or exits.
        Syscall::Vfork => Changes::NONE,
        Syscall::Clone => forked(a as u64),
        Syscall::Clone3 => forked(facts.clone_flags),
        // execve, execveat: `exec_mmap` drops the address space. If the call fails, nothing has changed.
        Syscall::Execve | Syscall::Execveat => Changes::one(Range::EVERYTHING, Event::Release),
        // exit_group(): the hook itself announces the release, it has more to wind up.
        Syscall::ExitGroup => Changes::NONE,
    }
}

/// How much [`decode_common`] says of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Common {
    /// It changes nothing.
    Nothing,
    /// It makes the one change.
    One,
    /// Nothing: [`decode`] knows.
    Rare,
}

/// How [`decode_common`] reads a call: the first two arguments are a range.
#[derive(Clone, Copy)]
struct Rule {
    /// Where the kernel wants the range to end.
    end: usize,
    /// Bits of the third argument that make the call a rare one.
    rare: u32,
    kind: Kind,
    event: Event,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pages,
    Advice,
    Mapping,
    Rare,
}

/// By system call number.
static RULES: [Rule; 32] = {
    const EXECUTES: u32 = PROT_EXEC as u32;
    const GROWS: u32 = (PROT_GROWSDOWN | PROT_GROWSUP) as u32;
    let rule = Rule { end: USER_END, rare: 0, kind: Kind::Rare, event: Event::Unmap };
    let mut rules = [rule; 32];
    rules[Syscall::Munmap.number()] = Rule { kind: Kind::Pages, ..rule };
    rules[Syscall::Mmap.number()] = Rule { kind: Kind::Mapping, rare: EXECUTES, ..rule };
    rules[Syscall::Mprotect.number()] =
        Rule { kind: Kind::Pages, event: Event::ProtectionVma, rare: EXECUTES | GROWS, end: usize::MAX };
    rules[Syscall::Madvise.number()] =
        Rule { kind: Kind::Advice, event: Event::Clear, rare: 0, end: usize::MAX };
    rules
};

/// What [`decode`] says, for the calls of which programs make most, and of which nothing is to be learned or searched:
/// one range at most, which the first four arguments tell. The range means something only if there is
/// [one](Common::One).
///
/// Written for few instructions on few cache lines: it runs in every memory system call. The tests hold it against
/// [`decode`].
#[inline(always)]
pub(crate) fn decode_common(number: usize, &[a, b, c, d]: &[usize; 4]) -> (Common, Range, Event) {
    let none = |common| (common, Range::EVERYTHING, Event::Unmap);
    let Some(rule) = RULES.get(number) else { return none(Common::Rare) };
    if rule.kind == Kind::Rare || c as u32 & rule.rare != 0 {
        return none(Common::Rare);
    }
    let mut start = untagged(a);
    if rule.kind == Kind::Advice {
        if is_harmless(int(c)) {
            return none(Common::Nothing);
        }
        if int(c) == MADV_REMOVE {
            return none(Common::Rare);
        }
    } else if rule.kind == Kind::Mapping {
        if d & (MAP_ANONYMOUS | MAP_HUGETLB) != MAP_ANONYMOUS {
            return none(Common::Rare);
        }
        if d & (MAP_FIXED | MAP_FIXED_NOREPLACE) != MAP_FIXED {
            return none(Common::Nothing);
        }
        start = a;
    }
    match pages(start, b) {
        Some(range) if range.end() <= rule.end => (Common::One, range, rule.event),
        _ => none(Common::Nothing),
    }
}

/// `mmap(addr, len, prot, flags, fd, offset)`: what a new mapping is placed over.
///
/// Only `MAP_FIXED` replaces anything. With `MAP_FIXED_NOREPLACE`, alone or beside `MAP_FIXED`, the
/// kernel refuses an occupied range while it holds the lock (`do_mmap`). `ksys_mmap_pgoff` rounds the
/// length of huge pages up to their size, for `MAP_HUGETLB` and for every file of `hugetlbfs`.
fn replaced_by_mmap(addr: usize, len: usize, flags: usize) -> Option<Range> {
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != MAP_FIXED {
        return None;
    }
    let range = user_pages(addr, len)?;
    let may_be_huge = flags & MAP_HUGETLB != 0 || flags & MAP_ANONYMOUS == 0;
    Some(if may_be_huge { to_huge_pages(range) } else { range })
}

/// `mremap(old, old_size, new_size, flags, new)`: the destination, then the source.
///
/// That is the order of the kernel: `mremap_to` empties the destination before it looks at the source
/// in earnest, so that a call may fail and have unmapped only the destination.
///
/// | sizes, in pages | flags | lost |
/// | --- | --- | --- |
/// | any | fixed | destination, source |
/// | source has none | fixed | destination; the source is a shared mapping and stays, it is duplicated |
/// | equal | don't unmap | source: the mapping stays but its pages go |
/// | smaller | | the tail, in place even if it may move |
/// | larger | may move | source: whether it moves is decided by what lies behind it |
/// | other | | nothing |
///
/// `check_mremap_params` and `mremap_to` refuse what is unaligned, has no new size, is to be placed
/// without `MREMAP_MAYMOVE`, leaves user space at the destination, or overlaps it. A flag that we do
/// not know is refused today; a later kernel may move for it.
fn mremap(args: &[usize; 6]) -> Changes {
    let &[old, old_size, new_size, flags, new, _] = args;
    let old = untagged(old);
    let (old_size, new_size) = (page_ceil(old_size), page_ceil(new_size));
    let fixed = flags & MREMAP_FIXED != 0;
    let keep = flags & MREMAP_DONTUNMAP != 0;
    let unknown = flags & !(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) != 0;
    let may_move = flags & MREMAP_MAYMOVE != 0;

    let mut changes = Changes::NONE;
    if !old.is_multiple_of(PAGE_SIZE)
        || new_size == 0
        || ((fixed || keep) && !may_move && !unknown)
        || (keep && old_size != new_size && !unknown)
    {
        return changes;
    }
    // A source that leaves user space cannot be mapped; then there is none to lose.
    let source = user_pages(old, old_size);
    if fixed {
        let Some(destination) = user_pages(new, new_size) else { return changes };
        if source.is_some_and(|source| source.overlaps(&destination)) {
            return changes;
        }
        changes.push(to_huge_pages(destination), Event::Unmap);
    }
    let Some(source) = source else { return changes };
    let huge = to_huge_pages(source);
    if fixed || keep || unknown {
        changes.push(huge, Event::Unmap);
    } else if new_size < old_size {
        // `new_size` is less than the length of `source`: no overflow, and never empty.
        if let Ok(tail) = Range::new(old.saturating_add(new_size), huge.end()) {
            changes.push(tail, Event::Unmap);
        }
    } else if new_size > old_size && may_move {
        // Huge pages cannot grow (`align_hugetlb`).
        changes.push(source, Event::Unmap);
    }
    changes
}

/// `brk(new)`: what lies between the two ends of the heap.
///
/// The kernel rounds both up to pages (`brk` in `mm/mmap.c`); 0 and whatever else lies below the heap
/// only asks. Where the heap begins we do not know, so only 0 counts as a question.
///
/// Growth loses nothing, and the kernel tells nobody of it. We announce it all the same: `old` is
/// what a look *before* the call has found, and if another thread moves the break in between, the call
/// does something else than the two numbers say. Both ends of the move are inside what is announced,
/// whichever way it goes by then. No look can cover a break that has meanwhile gone *past* both ends:
/// against that, the hook must not let two `brk` of a process overlap.
fn moved_break(old: usize, new: usize) -> Option<Range> {
    if new == 0 || new > USER_END {
        return None;
    }
    if old == 0 || old > USER_END {
        return Some(Range::EVERYTHING);
    }
    let (old, new) = (page_ceil(old), page_ceil(new));
    Range::new(old.min(new), old.max(new)).ok()
}

/// Whether an advice neither drops nor replaces a page.
///
/// An allow-list, so that an advice which is invented later is announced. Missing from it on purpose:
/// `MADV_UNMERGEABLE` (13), which gives every merged page a frame of its own; `MADV_PAGEOUT` (21) and
/// `MADV_COLLAPSE` (25), which move contents to other frames, the latter in whole blocks of 2 MiB
/// inside the range (`madvise_collapse`); and the injection of memory errors (100, 101).
const fn is_harmless(advice: i32) -> bool {
    const LOW: u64 = 1 << MADV_NORMAL
        | 1 << MADV_RANDOM
        | 1 << MADV_SEQUENTIAL
        | 1 << MADV_WILLNEED
        | 1 << MADV_DONTFORK
        | 1 << MADV_DOFORK
        | 1 << MADV_MERGEABLE
        | 1 << MADV_HUGEPAGE
        | 1 << MADV_NOHUGEPAGE
        | 1 << MADV_DONTDUMP
        | 1 << MADV_DODUMP
        | 1 << MADV_WIPEONFORK
        | 1 << MADV_KEEPONFORK
        | 1 << MADV_COLD
        | 1 << MADV_POPULATE_READ
        | 1 << MADV_POPULATE_WRITE;
    (0 <= advice && advice < 64 && LOW >> advice & 1 == 1) || advice == MADV_GUARD_REMOVE
}

/// What `madvise(addr, len, advice)` takes pages from, at `addr` itself.
///
/// `is_valid_madvise` refuses an unaligned address and what wraps around. It does *not* refuse to leave
/// user space: then all mappings on the way are treated, and `ENOMEM` comes at the end. Huge pages of
/// `hugetlbfs` round the range to less, never to more (`madvise_dontneed_free_valid_vma`).
fn advised(addr: usize, len: usize, advice: i32) -> Option<Range> {
    if is_harmless(advice) { None } else { pages(untagged(addr), len) }
}

/// `madvise(addr, len, advice)`.
///
/// `MADV_REMOVE` punches a hole into the file behind the range (`madvise_remove`), which is then seen
/// through every mapping of it: `aliases` are the others.
fn madvise(addr: usize, len: usize, advice: i32, aliases: Option<&[Range]>) -> Changes {
    let Some(range) = advised(addr, len, advice) else { return Changes::NONE };
    if advice != MADV_REMOVE {
        return Changes::one(range, Event::Clear);
    }
    match aliases {
        Some(aliases) => Changes::all(core::iter::once(range).chain(aliases.iter().copied()), Event::Clear),
        None => Changes::one(Range::EVERYTHING, Event::Clear),
    }
}

/// Whether `process_madvise(.., count, advice, flags)` gets as far as an advice that takes pages.
///
/// There are no flags yet, and vectors are bounded: both are refused at once (`process_madvise`,
/// `import_iovec`).
fn vector_is_advised(count: usize, advice: i32, flags: usize) -> bool {
    (1..=VECTOR_MAX).contains(&count) && int(flags) == 0 && !is_harmless(advice)
}

/// `process_madvise(pidfd, vector, count, advice, flags)`: `madvise` of each of `ranges`.
///
/// Whose address space the descriptor stands for cannot be told from its number; it is taken to be
/// ours. `MADV_REMOVE`, which the kernel lets only us do to ourselves, would need the other mappings
/// of all those files: rare enough to announce everything.
fn process_madvise(count: usize, advice: i32, flags: usize, ranges: Option<&[Range]>) -> Changes {
    if !vector_is_advised(count, advice, flags) {
        return Changes::NONE;
    }
    match ranges {
        Some(ranges) if advice != MADV_REMOVE => {
            Changes::all(ranges.iter().copied().map(untagged_range), Event::Clear)
        }
        _ => Changes::one(Range::EVERYTHING, Event::Clear),
    }
}

/// `mprotect(addr, len, prot)`: whose rights change.
///
/// `do_mprotect_pkey` refuses an unaligned address and what wraps around, but not what leaves user
/// space: it goes as far as there are mappings and then fails. `PROT_GROWSDOWN` extends the change down
/// to the start of the mapping and `PROT_GROWSUP` up to its end (x86-64 knows no mapping of the latter
/// kind and refuses). Where a mapping starts and ends we do not know: down to 0, up to the end. Both at
/// once are refused.
fn protected(addr: usize, len: usize, prot: usize) -> Option<Range> {
    let range = pages(untagged(addr), len)?;
    match (prot & PROT_GROWSDOWN != 0, prot & PROT_GROWSUP != 0) {
        (false, false) => Some(range),
        (true, false) => Range::new(0, range.end()).ok(),
        (false, true) => Range::new(range.start(), usize::MAX).ok(),
        (true, true) => None,
    }
}

/// `shmat(id, addr, flags)`: the address from which on a segment takes the place of what was there.
///
/// Only with `SHM_REMAP`, which wants an address (`do_shmat`); without it an occupied range is refused.
fn attached_over(addr: usize, flags: i32) -> Option<usize> {
    let start = if flags & SHM_RND != 0 { addr & !(SHMLBA - 1) } else { addr };
    (flags & SHM_REMAP != 0 && start != 0 && start.is_multiple_of(PAGE_SIZE)).then_some(start)
}

/// The range of a segment of `size` bytes at `start`; if the size is unknown, all from there on.
///
/// `shmctl` reports the size that was asked for. A segment of huge pages is mapped in whole ones
/// (`newseg`).
fn segment(start: usize, size: Option<usize>) -> Option<Range> {
    match size {
        Some(size) if size > 0 => user_pages(start, size).map(to_huge_pages),
        _ => Range::new(start, usize::MAX).ok(),
    }
}

/// `ftruncate`, `truncate` to `length`: the bytes of the file that go.
///
/// From the page of the new end on, since the rest of that page is zeroed (`truncate_setsize`). Whether
/// the file shrinks at all depends on its size. A negative length is refused.
fn truncated(length: usize) -> Option<(usize, usize)> {
    (length.cast_signed() >= 0).then_some((page_floor(length), usize::MAX))
}

/// `fallocate(fd, mode, offset, len)`: the bytes of the file that are dropped, zeroed or moved.
///
/// `vfs_fallocate` refuses a negative offset, a length that is not positive, and a sum that is no file
/// offset. To allocate (mode 0) and to keep the size loses nothing; to unshare gives the file other
/// blocks, and we take it to drop the pages before them; to collapse and to insert moves everything
/// behind the offset. A mode that we do not know may do anything to the file.
fn reallocated(mode: i32, offset: usize, len: usize) -> Option<(usize, usize)> {
    const IN_PLACE: i32 =
        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_WRITE_ZEROES;
    const MOVING: i32 = FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE;

    let end = offset.cast_signed().checked_add(len.cast_signed())?.cast_unsigned();
    if offset.cast_signed() < 0 || len.cast_signed() <= 0 || mode & !FALLOC_FL_KEEP_SIZE == 0 {
        None
    } else if mode & !(FALLOC_FL_KEEP_SIZE | IN_PLACE | MOVING) != 0 {
        Some((0, usize::MAX))
    } else if mode & MOVING != 0 {
        Some((page_floor(offset), usize::MAX))
    } else {
        // A sum that is a file offset is far from where rounding would wrap.
        Some((page_floor(offset), page_ceil(end)))
    }
}

/// What is needed to know where these bytes of the file are mapped.
fn file_ranges(file: File, bytes: Option<(usize, usize)>) -> Needs {
    bytes.map_or(Needs::Nothing, |(from, to)| Needs::FileRanges { file, from, to })
}

/// `fork`, `clone`, `clone3`: a new address space write-protects the private pages of the old one, so
/// that both can copy on write (`dup_mmap`). With `CLONE_VM` there is none.
fn forked(flags: u64) -> Changes {
    if flags & CLONE_VM != 0 { Changes::NONE } else { Changes::one(Range::EVERYTHING, Event::ProtectionPage) }
}

/// An argument that the kernel declares as `int` (or `unsigned int`): the lower half of the register.
const fn int(arg: usize) -> i32 {
    arg as i32
}

/// A user address without its tag. In the upper half, where the kernel lives, there are no tags.
const fn untagged(addr: usize) -> usize {
    if addr.cast_signed() < 0 { addr } else { addr & !TAG }
}

/// The range without tags; everything, if it begins under one tag and ends under another.
fn untagged_range(range: Range) -> Range {
    if (range.start() ^ (range.end() - 1)) & TAG != 0 {
        return Range::EVERYTHING;
    }
    let start = untagged(range.start());
    Range::with_len(start, range.len()).unwrap_or(Range::EVERYTHING)
}

const fn page_floor(n: usize) -> usize {
    n & !(PAGE_SIZE - 1)
}

/// Rounded up to a page; in the last page of the number range that is 0, as in the kernel (`PAGE_ALIGN`).
const fn page_ceil(n: usize) -> usize {
    page_floor(n.wrapping_add(PAGE_SIZE - 1))
}

/// The pages from the page-aligned `start` on; `None` if the kernel calls them none or invalid.
#[inline(always)]
fn pages(start: usize, len: usize) -> Option<Range> {
    if start.is_multiple_of(PAGE_SIZE) { Range::with_len(start, page_ceil(len)).ok() } else { None }
}

/// The same for calls that also refuse what leaves user space.
fn user_pages(start: usize, len: usize) -> Option<Range> {
    pages(start, len).filter(|range| range.end() <= USER_END)
}

/// The range as the kernel rounds it up if it is one of huge pages, which it can be if it starts like one.
fn to_huge_pages(range: Range) -> Range {
    let mut end = range.end();
    for size in HUGE_PAGES {
        if range.start().is_multiple_of(size) {
            end = end.checked_next_multiple_of(size).unwrap_or(usize::MAX);
        }
    }
    Range::new(range.start(), end).unwrap_or(range)
}

/// The smallest range that contains both.
fn around(one: Range, other: Range) -> Range {
    Range::new(one.start().min(other.start()), one.end().max(other.end())).unwrap_or(one)
}

#[cfg(test)]
mod tests;
