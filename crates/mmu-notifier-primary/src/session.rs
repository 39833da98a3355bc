//! A session: what watched processes write, and the one who watches them reads.
//!
//! `mmun` makes a memory file, every watched process maps it, and whoever holds the mapping writes
//! into it with plain atomic instructions: no lock, no system call, nothing to flush when a process is
//! killed. A forked child has the mapping already; a program that was `exec`ed maps it again.
//!
//! # Shape
//!
//! ```text
//! +--------+--------------+--------------------------------------+--------------------------------+
//! | Header | File x FILES | Process x PROCESSES                  | Ring x header.rings            |
//! |        | call sites   | counters (in shards), sites, modules | records of single system calls |
//! +--------+--------------+--------------------------------------+--------------------------------+
//! ```
//!
//! and, where registrations are [checked](check), one [`check::Area`] behind.
//!
//! Counters are exact. Records are for pictures and traces and may be dropped when the reader is too
//! slow: then the ring counts them. All times are ticks of the time stamp counter (`rdtsc`); the
//! reader knows how long a tick is.
//!
//! All memory starts zeroed, and zero is a valid value of everything here. The reader must distrust
//! what it reads: a broken program may have scribbled over it.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use crate::Syscall;

pub mod check;

/// First word of a session.
pub const MAGIC: u64 = u64::from_ne_bytes(*b"mmun-ses");
/// Layout version: both sides must have the same.
pub const VERSION: u32 = 4;
/// Processes that a session can hold at one time.
pub const PROCESSES: usize = 4096;
/// Sets of counters in a process; threads are spread over them.
pub const SHARDS: usize = 8;
/// Buckets of a [`Histogram`]: bucket `n` counts durations `d` with `d >> n == 1` (0 in bucket 0).
pub const BUCKETS: usize = 48;
/// Number of kernel events, [`mmu_notifier::Event::ALL`].
pub const EVENTS: usize = 8;
/// Executable mappings that a process lists.
pub const MODULES: usize = 256;
/// Things that could not be watched that a process lists by name.
pub const UNSEEN: usize = 32;
/// Programs that can wait to be traced at one time.
pub const REQUESTS: usize = 64;
/// Files whose call sites a session remembers.
pub const FILES: usize = 512;
/// Call sites of a file that a session remembers; files with more are searched again.
pub const SITES: usize = 640;
/// Bytes of code around a site that are kept, to compare and to move.
pub const SITE_BYTES: usize = 56;
/// Bytes of a path; longer ones keep their end.
pub const PATH: usize = 232;

/// The first page of a session.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Header {
    /// [`MAGIC`], written last by who makes the session.
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// Attach a refuser that refuses every n-th non-blocking start; 0: none.
    pub refuse_every: AtomicU32,
    /// Number of record rings, at least 1.
    pub rings: AtomicU32,
    /// Records in each ring, a power of two.
    pub ring_records: AtomicU32,
    /// 1: write records; 0: only count.
    pub records_wanted: AtomicU32,
    /// 1: nobody reads any more; do not begin to watch.
    pub closed: AtomicU32,
    /// Found out by the first process: vector registers of this machine, 0: not yet; 1: xmm; 2, 3: ymm; 4: zmm; with bit 8
    /// if the light half of the hook leaves them alone.
    pub vectors: AtomicU32,
    /// Whether to catch what cannot be rewritten: a [`Strict`](crate::Strict).
    pub strict: AtomicU32,
    /// Places of the file table that were taken, also beyond [`FILES`].
    pub files_used: AtomicU32,
    /// Processes that found no free entry: they ran unwatched.
    pub processes_lost: AtomicU64,
    /// Where to look for a free entry next.
    pub process_hint: AtomicU64,
    /// Processes that ever got an entry; a process that execs has one entry after the other.
    pub processes_total: AtomicU64,
    /// 1: check registrations; behind the rings lies a [`check::Area`].
    pub check: AtomicU32,
    /// Not 0: an audit is wanted. Every bracket goes on record as it opens and as it closes ([`OPENED`], [`CLOSED`]), and
    /// every process sends a virtual machine of its own to the socket of that [name](audit_socket).
    pub audit: AtomicU64,
    /// The id of the process that puts the object into programs which cannot preload it, in its own pid namespace; 0: there is
    /// none.
    pub tracer: AtomicU32,
    /// Raised with each request: what the tracer sleeps on.
    pub asked: AtomicU32,
    /// Who wants to be traced.
    pub requests: [Request; REQUESTS],
}

/// A thread that is about to become a program into which nothing can be preloaded, and wants to be traced for that moment.
#[derive(Debug)]
#[repr(C)]
pub struct Request {
    /// A [`RequestState`]; both sides sleep on it.
    pub state: AtomicU32,
    /// Why it was refused: the number of an error.
    pub errno: AtomicU32,
    /// The process, in its own pid namespace.
    pub pid: AtomicU32,
    /// The thread.
    pub tid: AtomicU32,
    /// The index of its process entry, for what cannot be watched after all.
    pub process: AtomicU64,
    /// The address of a word in its memory; whose memory it is must be found out, as ids mean something else in other namespaces.
    pub place: AtomicU64,
    /// What that word holds.
    pub token: AtomicU64,
}

/// What became of a [`Request`].
///
/// Free -> Writing -> Asked -> Taken -> Going -> (tracer) Free; or from Taken to Refused, and then (who asked) Free. Who asked and
/// does not wait any longer goes from Asked to Free, and from Taken to Withdrawn, from where the tracer goes to Free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RequestState {
    /// Nobody's.
    Free = 0,
    /// Being written.
    Writing = 1,
    /// To be taken by the tracer.
    Asked = 2,
    /// The tracer has it.
    Taken = 3,
    /// The thread is traced: exec.
    Going = 4,
    /// It cannot be traced.
    Refused = 5,
    /// The thread has given up.
    Withdrawn = 6,
}

/// The call sites of one executable mapping of a file: found by the first process that maps it, used by all.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct File {
    /// 0: not used; 1: being written; 2: complete.
    pub state: AtomicU32,
    /// Sites in `sites`.
    pub used: AtomicU32,
    /// Which file.
    pub device: AtomicU64,
    /// Which file.
    pub inode: AtomicU64,
    /// Its size in bytes.
    pub size: AtomicU64,
    /// Its last change, in nanoseconds since 1970.
    pub changed: AtomicU64,
    /// Offset of the mapping in the file.
    pub offset: AtomicU64,
    /// Length of the mapping.
    pub len: AtomicU64,
    /// The sites.
    pub sites: [FileSite; SITES],
}

/// One call site, in file offsets.
#[derive(Debug)]
#[repr(C)]
pub struct FileSite {
    /// The `syscall` instruction.
    pub offset: AtomicU64,
    /// The system call number; `u64::MAX`: unknown.
    pub number: AtomicU64,
    /// 1, 2: T1, T2; 3: T3, with the length of the `nop` to jump over in bits 8 to 16 and the padding's
    /// offset above; 0: none fits, 4: in no function, 5: small stacks.
    pub shape: AtomicU64,
    /// First replaced byte.
    pub from: AtomicU64,
    /// Distance from the stack pointer to the return address; `u64::MAX`: unknown.
    pub caller: AtomicU64,
    /// Operands relative to the instruction pointer: four pairs of bytes, place and end.
    pub relative: AtomicU64,
    /// The code from `from` to behind the `syscall`.
    pub code: [AtomicU8; SITE_BYTES],
}

/// What a process entry is used for. Free -> Starting -> Running -> Gone -> (reader) Free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProcessState {
    /// Nobody's.
    Free = 0,
    /// Claimed; still looking for call sites, nothing is counted yet.
    Starting = 1,
    /// Watched.
    Running = 2,
    /// It announced its exit.
    Exited = 3,
    /// It announced an `exec`, which has succeeded as soon as another entry with its pid exists; back to
    /// `Running` if the `exec` failed.
    Exec = 4,
}

impl ProcessState {
    /// The state that a number stands for; anything unknown is `Free`.
    pub const fn from_u32(state: u32) -> ProcessState {
        match state {
            1 => ProcessState::Starting,
            2 => ProcessState::Running,
            3 => ProcessState::Exited,
            4 => ProcessState::Exec,
            _ => ProcessState::Free,
        }
    }
}

/// Whether a process is in strict mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum StrictState {
    /// No.
    Off = 0,
    /// As it was asked for.
    Asked = 1,
    /// Because a call site could not be rewritten.
    Needed = 2,
    /// It should be, and the kernel refuses.
    Refused = 3,
}

impl StrictState {
    /// The state that a number stands for; anything unknown is `Off`.
    pub const fn from_u32(state: u32) -> StrictState {
        match state {
            1 => StrictState::Asked,
            2 => StrictState::Needed,
            3 => StrictState::Refused,
            _ => StrictState::Off,
        }
    }
}

/// A path or a name, cut to its last [`PATH`] bytes.
#[derive(Debug)]
#[repr(C)]
pub struct Path {
    /// Number of valid bytes; written after them.
    pub len: AtomicU64,
    /// The bytes.
    pub bytes: [AtomicU8; PATH],
}

/// One process between its start (or fork, or exec) and its end (or the next exec).
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Process {
    /// A [`ProcessState`].
    pub state: AtomicU32,
    /// Its process id, in its own pid namespace.
    pub pid: AtomicU32,
    /// Its parent's.
    pub parent: AtomicU32,
    /// 1: came by fork, the sites were already patched; 0: came by exec.
    pub forked: AtomicU32,
    /// Ticks when the entry was claimed.
    pub born: AtomicU64,
    /// Ticks when it began to count.
    pub ready: AtomicU64,
    /// Ticks when it announced its exit or exec, 0 before.
    pub ended: AtomicU64,
    /// The program.
    pub exe: Path,
    /// The program that it announced to exec last.
    pub exec: Path,
    /// Threads made (the first one included).
    pub threads: AtomicU64,
    /// Memory system calls that the hook itself made since `ready` (they are not in `calls`).
    pub own_calls: AtomicU64,
    /// Bytes of memory that the hook holds in this process, records not included.
    pub own_bytes: AtomicU64,
    /// Executable mappings that were searched for call sites.
    pub mappings_searched: AtomicU64,
    /// Ticks that the search and the patching took.
    pub search_ticks: AtomicU64,
    /// Call sites patched, by shape (T1, T2, T3 of ARCHITECTURE.md).
    pub sites: [AtomicU64; 3],
    /// Things that could not be patched or searched; the first [`UNSEEN`] are listed in `unseen_list`.
    pub unseen: AtomicU64,
    /// How what cannot be rewritten is caught: a [`StrictState`].
    pub strict: AtomicU32,
    /// System calls that were caught by strict mode.
    pub trapped: AtomicU64,
    /// Places where they were so again and again: rewritten while they ran, and those that could not be.
    pub hot: [AtomicU64; 2],
    /// Brackets that were left open by a thread (cancelled, longjmp) and ended when that was found out.
    pub abandoned: AtomicU64,
    /// Callbacks that a thread has jumped out of: a start or an end that has not returned.
    pub unfinished: AtomicU64,
    /// Refused changes that did not take place when they were asked for.
    pub put_off: PutOff,
    /// An [`Oracle`] in the lowest 8 bits; above them, why there is none: the number of the error.
    pub oracle: AtomicU64,
    /// Behind the `syscall` instruction of the hook's own calls.
    pub gate: AtomicU64,
    /// Behind the one by which the hook makes the program's calls.
    pub entry: AtomicU64,
    /// A page that the hook has mapped and unmapped when the oracle was in place: the kernel must have told of it.
    pub probe: AtomicU64,
    /// 1: `mmun` has the oracle, and has looked at the process's mappings as they were when it came.
    pub oracle_taken: AtomicU64,
    /// Entries of `modules` in use.
    pub modules_used: AtomicU64,
    /// Counters; sum over all.
    pub shards: [Shard; SHARDS],
    /// What could not be watched, by name.
    pub unseen_list: [Unseen; UNSEEN],
    /// Executable file mappings, for symbol names. A later entry overrides an earlier one that it overlaps.
    pub modules: [Module; MODULES],
}

/// What became of changes that were refused and could not wait.
#[derive(Debug)]
#[repr(C)]
pub struct PutOff {
    /// Ranges that were put in quarantine: their `munmap` was told that it is done.
    pub ranges: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Ranges that were unmapped by the thread that does nothing else.
    pub by_worker: AtomicU64,
    /// Ranges that were unmapped by a later call, which touched them or had no room for its own.
    pub by_calls: AtomicU64,
    /// Calls that failed, as they were refused each time they asked.
    pub declined: AtomicU64,
}

/// Whether the kernel tells of this process's changes: a virtual machine without a guest, of which `mmun` holds the only
/// descriptor, makes the kernel's own notifier call KVM, and a tracepoint there reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Oracle {
    /// Nobody has asked for one.
    None = 0,
    /// It is there.
    InPlace = 1,
    /// `/dev/kvm` could not be opened.
    NoDevice = 2,
    /// It could not be made (`KVM_CREATE_VM`).
    NotMade = 3,
    /// It could not be sent to `mmun`.
    NotSent = 4,
}

impl Oracle {
    /// The state that the lowest 8 bits of a number stand for; anything unknown is `None`.
    pub const fn from_u64(state: u64) -> Oracle {
        match state & 0xff {
            1 => Oracle::InPlace,
            2 => Oracle::NoDevice,
            3 => Oracle::NotMade,
            4 => Oracle::NotSent,
            _ => Oracle::None,
        }
    }
}

/// The name of the datagram socket that oracles are sent to, in the abstract namespace: a zero and this.
///
/// A datagram is 16 bytes, the index of the process entry and the ticks just before the machine was made, and the
/// machine's descriptor.
pub const fn audit_socket(key: u64) -> [u8; 22] {
    let mut name = *b"mmun--0000000000000000";
    let mut digit = 0;
    while digit < 16 {
        name[21 - digit] = b"0123456789abcdef"[(key >> (4 * digit)) as usize & 15];
        digit += 1;
    }
    name
}

/// Counters of some of a process's threads. On one page: what no thread touches is never allocated.
#[derive(Debug)]
#[repr(C, align(2048))]
pub struct Shard {
    /// By [`Syscall`].
    pub calls: [CallCount; Syscall::ALL.len()],
    /// By [`mmu_notifier::Event`].
    pub events: [EventCount; EVENTS],
    /// Starts that the paired counting subscriber saw. Over all shards equal to the ends when no bracket is open.
    pub balance_starts: AtomicU64,
    /// Ends that it saw.
    pub balance_ends: AtomicU64,
    /// Non-blocking changes that a subscriber refused.
    pub refused: AtomicU64,
    /// How often a refused change was announced again.
    pub announced_again: AtomicU64,
    /// How long all starts of a call took together.
    pub starts: Histogram,
    /// How long the system call itself took, of calls that had a bracket.
    pub changes: Histogram,
    /// How long all ends of a call took together.
    pub ends: Histogram,
}

const _: () = assert!(size_of::<Shard>() == 2048);

/// How often a system call was made.
#[derive(Debug)]
#[repr(C)]
pub struct CallCount {
    /// All calls, failed ones included.
    pub count: AtomicU64,
    /// Calls that returned an error.
    pub failed: AtomicU64,
    /// Calls that announced at least one change.
    pub bracketed: AtomicU64,
}

/// How often an event was announced.
#[derive(Debug)]
#[repr(C)]
pub struct EventCount {
    /// Changes announced.
    pub changes: AtomicU64,
    /// Bytes of their ranges (whole-address-space changes count 0).
    pub bytes: AtomicU64,
}

/// Durations in ticks.
#[derive(Debug)]
#[repr(C)]
pub struct Histogram {
    /// Sum of all.
    pub sum: AtomicU64,
    /// The longest.
    pub max: AtomicU64,
    /// Logarithmic buckets.
    pub buckets: [AtomicU64; BUCKETS],
}

/// Why something is not watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum UnseenReason {
    /// No reason given (an unused entry).
    None = 0,
    /// A memory system call whose instructions have a shape that cannot be rewritten.
    Shape = 1,
    /// A `syscall` instruction with an unknown number.
    UnknownNumber = 2,
    /// A `syscall` instruction that belongs to no known function.
    NoFunction = 3,
    /// No place for a stub within reach of the site.
    NoPool = 4,
    /// The code could not be written.
    NotWritable = 5,
    /// The file behind an executable mapping could not be read.
    NoFile = 6,
    /// Executable memory without a file: made by the program at run time.
    Anonymous = 7,
    /// A table of ours was full.
    TableFull = 8,
    /// `exec` of a program whose environment could not be prepared: it runs unwatched.
    Exec = 9,
    /// The bytes in memory are not those of the file: somebody else has patched them.
    ForeignPatch = 10,
    /// Code of the Go runtime, whose stacks are too small for the hook.
    SmallStacks = 11,
    /// Strict mode ended in a thread: system calls were trapped at more places than there is room for.
    ManyTraps = 12,
    /// `exec` of a program into which nothing can be preloaded, by somebody who cannot be traced: it runs unwatched.
    NotTraced = 13,
    /// `exec` of such a program, which gains rights: it would lose them if it were traced, and runs unwatched.
    GainsRights = 14,
    /// The object could not be put into such a program: it runs unwatched.
    NotPutIn = 15,
    /// A system call of 32 bits (`int $0x80`), which strict mode has caught, and which is made without being announced.
    Compat = 16,
    /// A thread that blocked SIGSYS when strict mode began: its calls are not caught until it unblocks it.
    Deaf = 17,
}

impl UnseenReason {
    /// The reason that a number stands for; anything unknown is `None`.
    pub const fn from_u32(reason: u32) -> UnseenReason {
        match reason {
            1 => UnseenReason::Shape,
            2 => UnseenReason::UnknownNumber,
            3 => UnseenReason::NoFunction,
            4 => UnseenReason::NoPool,
            5 => UnseenReason::NotWritable,
            6 => UnseenReason::NoFile,
            7 => UnseenReason::Anonymous,
            8 => UnseenReason::TableFull,
            9 => UnseenReason::Exec,
            10 => UnseenReason::ForeignPatch,
            11 => UnseenReason::SmallStacks,
            12 => UnseenReason::ManyTraps,
            13 => UnseenReason::NotTraced,
            14 => UnseenReason::GainsRights,
            15 => UnseenReason::NotPutIn,
            16 => UnseenReason::Compat,
            17 => UnseenReason::Deaf,
            _ => UnseenReason::None,
        }
    }
}

impl UnseenReason {
    /// Whether strict mode sees it all the same: the calls of code that was not rewritten.
    pub const fn is_about_code(self) -> bool {
        use UnseenReason::{Compat, Deaf, Exec, GainsRights, ManyTraps, None, NotPutIn, NotTraced};
        !matches!(self, None | Exec | ManyTraps | NotTraced | GainsRights | NotPutIn | Compat | Deaf)
    }
}

/// One thing that is not watched.
#[derive(Debug)]
#[repr(C)]
pub struct Unseen {
    /// An [`UnseenReason`].
    pub reason: AtomicU32,
    /// The system call number at the site; `u32::MAX` if unknown.
    pub number: AtomicU32,
    /// Where, in the process.
    pub address: AtomicU64,
    /// The file, if there is one.
    pub file: Path,
}

/// One executable file mapping.
#[derive(Debug)]
#[repr(C)]
pub struct Module {
    /// First address.
    pub start: AtomicU64,
    /// Address behind the last.
    pub end: AtomicU64,
    /// Offset of `start` in the file, in bytes.
    pub offset: AtomicU64,
    /// The file.
    pub file: Path,
}

/// Head of a ring; `header.ring_records` records follow it.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct RingHead {
    /// Position of the next record to write.
    pub head: AtomicU64,
    /// Records that found the ring full.
    pub dropped: AtomicU64,
    /// Position of the next record to read. On a line of its own: only the reader writes it.
    pub tail: Tail,
}

/// The reader's side of a ring.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Tail(pub AtomicU64);

/// One change of a system call, or a system call that changes nothing; 64 bytes. A call that makes several changes
/// has a record for each, with the same times.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Record {
    /// Position in the ring plus 1, written last; anything else: not (yet) written.
    pub sequence: AtomicU64,
    /// Ticks when the hook was entered.
    pub time: AtomicU64,
    /// Bits 0..8: [`Syscall`]; 8..16: [`mmu_notifier::Event`] or 255 for none; 16: failed; 17: refused once;
    /// 18: [`OPENED`]; 19: [`CLOSED`]; 32..64: ticks of all starts.
    pub what: AtomicU64,
    /// Bits 0..32: ticks of the system call; 32..64: ticks of all ends.
    pub took: AtomicU64,
    /// Bits 0..32: thread id; 32..48: index of the process entry.
    pub who: AtomicU64,
    /// First address of the change, or the call's first argument.
    pub start: AtomicU64,
    /// Bytes of the change, or the call's second argument.
    pub len: AtomicU64,
    /// The return address of the function that made the call (0: not known).
    pub caller: AtomicU64,
}

/// A record of this kind says that a change has been announced, and that the system call is made next. `time` is between
/// the two; `start` and `len` are the change's; in place of the caller there is the stack position of the hook, by which
/// it is closed.
pub const OPENED: u64 = 1 << 18;
/// A record of this kind says that the changes of a thread that were [opened](OPENED) at the stack position in `caller` are
/// over, before their ends are called: the system call is done, or the thread has jumped out of it.
pub const CLOSED: u64 = 1 << 19;

/// Size of the whole session in bytes.
pub const fn session_bytes(rings: usize, ring_records: usize) -> usize {
    ring_offset(rings, ring_records)
}

/// Where file `index` begins, in bytes from the start of the session.
pub const fn file_offset(index: usize) -> usize {
    size_of::<Header>() + index * size_of::<File>()
}

/// Where process entry `index` begins, in bytes from the start of the session.
pub const fn process_offset(index: usize) -> usize {
    file_offset(FILES).next_multiple_of(4096) + index * size_of::<Process>()
}

/// Where ring `index` begins, in bytes from the start of the session.
pub const fn ring_offset(index: usize, ring_records: usize) -> usize {
    process_offset(PROCESSES) + index * (size_of::<RingHead>() + ring_records * size_of::<Record>())
}

/// Size of a session that checks registrations, in bytes.
pub const fn checked_session_bytes(rings: usize, ring_records: usize) -> usize {
    check_offset(rings, ring_records) + size_of::<check::Area>()
}

/// Where the [`check::Area`] begins, in bytes from the start of the session.
pub const fn check_offset(rings: usize, ring_records: usize) -> usize {
    ring_offset(rings, ring_records).next_multiple_of(4096)
}
