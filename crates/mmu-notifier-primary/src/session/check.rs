//! What checked processes say of their registrations: behind the rings of a session that asks for it.
//!
//! A finding holds everything that is needed to tell it: what was registered, what changed it, how many pages
//! are not the registered ones any more, and for both calls the upper end of the stack as it was. Who reads unwinds
//! it, with the files of the process's modules.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Findings that wait to be read; further ones are counted.
pub const FINDINGS: usize = 256;
/// Words of a stack that are kept.
pub const STACK_WORDS: usize = 1000;
/// Kinds of registrations, and one place for none.
pub const KINDS: usize = 8;

/// The area of a session in which checked processes write.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Area {
    /// Registrations made, by [`Registered`].
    pub registered: [AtomicU64; KINDS],
    /// Their bytes.
    pub bytes: [AtomicU64; KINDS],
    /// Changes of memory that met a registration.
    pub changes: AtomicU64,
    /// Pages that these changes were compared at.
    pub compared: AtomicU64,
    /// Registrations that were not followed: a table was full.
    pub untracked: AtomicU64,
    /// Calls that were not looked at, as another thread held the table for too long.
    pub missed: AtomicU64,
    /// Findings that found no room here.
    pub lost: AtomicU64,
    /// Processes that had no memory for their tables.
    pub unchecked: AtomicU64,
    /// Processes that may not see page frames: they judge by the calls.
    pub blind: AtomicU64,
    /// Of each finding: 0: free; 1: being written; 2: complete. Together, so that looking at them touches no more memory.
    pub states: [AtomicU32; FINDINGS],
    /// The findings.
    pub findings: [Finding; FINDINGS],
}

/// What holds memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Registered {
    /// A fixed buffer of an io_uring.
    Buffer = 1,
    /// A ring of provided buffers of an io_uring.
    BufferRing = 2,
    /// A memslot of a KVM virtual machine.
    Memslot = 3,
    /// A DMA mapping of a VFIO container.
    Vfio = 4,
    /// A DMA mapping of an iommufd.
    Iommufd = 5,
    /// A memory region of an RDMA device.
    Rdma = 6,
    /// `mlock`.
    Lock = 7,
}

impl Registered {
    /// All of them, in order.
    pub const ALL: [Registered; 7] = [
        Registered::Buffer,
        Registered::BufferRing,
        Registered::Memslot,
        Registered::Vfio,
        Registered::Iommufd,
        Registered::Rdma,
        Registered::Lock,
    ];

    /// The kind that a number stands for.
    pub fn from_u32(number: u32) -> Option<Registered> {
        Registered::ALL.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Verdict {
    /// Other pages stand at the address: data go where the program does not see them.
    Stale = 1,
    /// Nothing is mapped there any more; the registration holds the old pages.
    Unmapped = 2,
    /// The program may not write there any more, the kernel still does.
    Exposed = 3,
    /// Nothing is mapped there any more, and the registration follows: what uses it fails.
    Dangling = 4,
    /// Other memory stands there that is not locked.
    Unlocked = 5,
}

impl Verdict {
    /// All of them, the worst first.
    pub const ALL: [Verdict; 5] =
        [Verdict::Stale, Verdict::Unmapped, Verdict::Exposed, Verdict::Dangling, Verdict::Unlocked];

    /// The verdict that a number stands for.
    pub fn from_u32(number: u32) -> Option<Verdict> {
        Verdict::ALL.into_iter().find(|verdict| *verdict as u32 == number)
    }
}

/// One change of registered memory.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Finding {
    /// A [`Verdict`].
    pub verdict: AtomicU32,
    /// A [`Registered`].
    pub kind: AtomicU32,
    /// Index of the process entry.
    pub process: AtomicU32,
    /// Registrations of one call that are affected alike.
    pub count: AtomicU32,
    /// Of the first of them: the descriptor, as a C `int` (-1: a registered ring), and the buffer, slot or address in the device.
    pub descriptor: AtomicU32,
    /// Thread that registered.
    pub registered_thread: AtomicU32,
    /// Thread that changed.
    pub changed_thread: AtomicU32,
    /// 1: made before this process was forked.
    pub inherited: AtomicU32,
    /// 1: of an unmapped one: it was taken back later, and nothing else was mapped there before.
    pub taken_back: AtomicU32,
    /// See `descriptor`.
    pub index: AtomicU64,
    /// First address of the first registration.
    pub start: AtomicU64,
    /// Its bytes.
    pub len: AtomicU64,
    /// First address of what was changed of it.
    pub from: AtomicU64,
    /// Bytes changed, of all of them together.
    pub changed: AtomicU64,
    /// Pages changed, of all of them together; 0: pages are of no concern.
    pub pages: AtomicU64,
    /// Pages that have another frame now.
    pub other: AtomicU64,
    /// Pages that are mapped, but empty.
    pub empty: AtomicU64,
    /// Pages that are not mapped.
    pub unmapped: AtomicU64,
    /// Ticks when it was registered.
    pub registered_time: AtomicU64,
    /// Ticks when it was found.
    pub changed_time: AtomicU64,
    /// Number of the system call that registered.
    pub registering: AtomicU64,
    /// Number of the system call that changed.
    pub call: AtomicU64,
    /// Its arguments.
    pub args: [AtomicU64; 6],
    /// Who registered.
    pub registered_at: Stack,
    /// Who changed.
    pub changed_at: Stack,
}

/// The upper end of a stack, and the registers that unwinding begins with.
#[derive(Debug)]
#[repr(C)]
pub struct Stack {
    /// Behind the `syscall` instruction; 0: the stack was not kept.
    pub ip: AtomicU64,
    /// The stack pointer.
    pub sp: AtomicU64,
    /// `rbp`.
    pub bp: AtomicU64,
    /// `rbx`.
    pub bx: AtomicU64,
    /// Words that are kept, from the stack pointer on.
    pub used: AtomicU64,
    /// The words.
    pub words: [AtomicU64; STACK_WORDS],
}
