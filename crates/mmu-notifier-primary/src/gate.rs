//! The `syscall` instruction for calls of our own.
//!
//! Everything that the hook asks of the kernel goes through here: no libc, no `errno`, no thread-local. So do an exec
//! and an exit of the program; its other calls are made in [`crate::entry`]. These two instructions are never patched
//! (they would call themselves), but by another copy of this library that is at work instead of this one; and as they lie at known places, whoever filters system calls by address can let
//! them through.

// UNSAFETY: a system call is an instruction that only assembler has.
#![expect(unsafe_code)]

use core::arch::global_asm;

global_asm!(
    ".pushsection mmu_notifier_calls, \"ax\", @progbits",
    ".p2align 4",
    ".hidden mmu_notifier_gate",
    ".globl mmu_notifier_gate",
    ".type mmu_notifier_gate, @function",
    "mmu_notifier_gate:",
    ".cfi_startproc",
    "mov rax, rdi",
    "mov rdi, [rsi]",
    "mov rdx, [rsi + 16]",
    "mov r10, [rsi + 24]",
    "mov r8, [rsi + 32]",
    "mov r9, [rsi + 40]",
    // mov rsi, [rsi + 8], in the long form: another copy of this library can put a jump there.
    ".byte 0x48, 0x8b, 0xb6, 8, 0, 0, 0",
    ".hidden mmu_notifier_gate_syscall",
    ".globl mmu_notifier_gate_syscall",
    "mmu_notifier_gate_syscall:",
    "syscall",
    "ret",
    ".cfi_endproc",
    ".size mmu_notifier_gate, . - mmu_notifier_gate",
    ".popsection",
);

unsafe extern "C" {
    fn mmu_notifier_gate(number: usize, args: *const [usize; 6]) -> isize;
    static mmu_notifier_gate_syscall: u8;
}

/// The address of the `syscall` instruction.
pub(crate) fn address() -> usize {
    &raw const mmu_notifier_gate_syscall as usize
}

/// Makes a system call. Returns what the kernel returns: `-errno` on failure.
///
/// For who must not use the C library, as its calls are what is watched: nobody is told of this one.
///
/// ```
/// // getpid
/// assert_eq!(unsafe { mmu_notifier_primary::system_call(39, &[0; 6]) }, std::process::id() as isize);
/// ```
///
/// # Safety
///
/// As for the system call itself: it can change any memory of the process. The call must return (once): not `vfork`; of a
/// `clone` with a stack of its own, the new thread goes to the address that it finds there.
#[inline]
pub unsafe fn call(number: usize, args: &[usize; 6]) -> isize {
    // SAFETY: the caller answers for the call; the assembler keeps the C calling convention.
    unsafe { mmu_notifier_gate(number, args) }
}

/// Calls that only look, or that work on memory of ours: safe wrappers.
pub(crate) mod safe {
    use core::ffi::CStr;

    use super::call;

    const READ: usize = 0;
    const WRITE: usize = 1;
    const OPEN: usize = 2;
    const CLOSE: usize = 3;
    const FSTAT: usize = 5;
    const RT_SIGPROCMASK: usize = 14;
    const STAT: usize = 4;
    const IOCTL: usize = 16;
    const PREAD: usize = 17;
    const PWRITE: usize = 18;
    const SCHED_YIELD: usize = 24;
    const SOCKET: usize = 41;
    const SENDMSG: usize = 46;
    const NANOSLEEP: usize = 35;
    const GETPID: usize = 39;
    const SHMCTL: usize = 31;
    const READLINK: usize = 89;
    const GETPPID: usize = 110;
    const SIGALTSTACK: usize = 131;
    const SETPRIORITY: usize = 141;
    const MLOCK: usize = 149;
    const MUNLOCK: usize = 150;
    const GETTID: usize = 186;
    const PPOLL: usize = 271;
    const EVENTFD2: usize = 290;
    const PRCTL: usize = 157;
    const FGETXATTR: usize = 193;
    const FUTEX: usize = 202;
    const OPENAT: usize = 257;
    const NEWFSTATAT: usize = 262;
    const GETUID: usize = 102;
    const GETGID: usize = 104;
    const PROCESS_VM_READV: usize = 310;
    const MEMBARRIER: usize = 324;

    const O_CLOEXEC: usize = 0o2000000;

    /// Writes to standard error, as far as it can be written to now.
    pub(crate) fn write_to_stderr(bytes: &[u8]) {
        // SAFETY: the kernel reads `bytes` only.
        unsafe { call(WRITE, &[2, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) };
    }

    /// A failed system call's `errno`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Errno(pub(crate) i32);

    fn result(ret: isize) -> Result<usize, Errno> {
        if (-4095..0).contains(&ret) { Err(Errno(-ret as i32)) } else { Ok(ret as usize) }
    }

    pub(crate) fn getpid() -> u32 {
        // SAFETY: touches no memory.
        unsafe { call(GETPID, &[0; 6]) as u32 }
    }

    pub(crate) fn getppid() -> u32 {
        // SAFETY: touches no memory.
        unsafe { call(GETPPID, &[0; 6]) as u32 }
    }

    pub(crate) fn gettid() -> u32 {
        // SAFETY: touches no memory.
        unsafe { call(GETTID, &[0; 6]) as u32 }
    }

    /// Lets others run.
    pub(crate) fn yield_processor() {
        // SAFETY: touches no memory.
        unsafe { call(SCHED_YIELD, &[0; 6]) };
    }

    /// Does something that no signal interrupts, and so neither a cancellation nor a jump.
    pub(crate) fn without_signals(work: impl FnOnce()) {
        let before = block_signals();
        work();
        set_signals(before);
    }

    /// Sleeps so long, or until a signal comes.
    pub(crate) fn sleep(nanoseconds: u64) {
        let time = [nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000];
        // SAFETY: the kernel reads a `struct timespec`.
        unsafe { call(NANOSLEEP, &[time.as_ptr() as usize, 0, 0, 0, 0, 0]) };
    }

    /// An open file, which is closed when dropped unless the descriptor is somebody else's.
    #[derive(Debug)]
    pub(crate) struct File {
        descriptor: usize,
        ours: bool,
    }

    impl File {
        /// Opens `path` with `flags` of open(2).
        pub(crate) fn open(path: &CStr, flags: usize) -> Result<File, Errno> {
            // SAFETY: the path is a zero-ended string that lives through the call.
            let fd = unsafe { call(OPEN, &[path.as_ptr() as usize, flags | O_CLOEXEC, 0, 0, 0, 0]) };
            result(fd).map(|descriptor| File { descriptor, ours: true })
        }

        /// As openat(2): `path` is an address that may be anything.
        pub(crate) fn open_at(folder: usize, path: usize, flags: usize) -> Result<File, Errno> {
            // SAFETY: a bad path is EFAULT.
            let fd = unsafe { call(OPENAT, &[folder, path, flags | O_CLOEXEC, 0, 0, 0]) };
            result(fd).map(|descriptor| File { descriptor, ours: true })
        }

        /// A descriptor of somebody else's, which is not closed.
        pub(crate) fn borrowed(descriptor: usize) -> File {
            File { descriptor, ours: false }
        }

        /// A descriptor that is ours.
        pub(crate) fn adopt(descriptor: usize) -> File {
            File { descriptor, ours: true }
        }

        pub(crate) fn descriptor(&self) -> usize {
            self.descriptor
        }

        pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
            // SAFETY: the kernel writes into `buffer` only.
            result(unsafe {
                call(READ, &[self.descriptor, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0])
            })
        }

        /// A counter that is readable once something has been written to it (eventfd(2)), and never makes anybody wait.
        pub(crate) fn counter() -> Result<File, Errno> {
            const EFD_NONBLOCK: usize = 0o4000;
            // SAFETY: touches no memory.
            let fd = unsafe { call(EVENTFD2, &[0, O_CLOEXEC | EFD_NONBLOCK, 0, 0, 0, 0]) };
            result(fd).map(|descriptor| File { descriptor, ours: true })
        }

        /// Adds one to a [counter](File::counter).
        pub(crate) fn count_one(&self) {
            let one = 1u64;
            // SAFETY: the kernel reads eight bytes.
            unsafe { call(WRITE, &[self.descriptor, &raw const one as usize, 8, 0, 0, 0]) };
        }

        pub(crate) fn read_at(&self, buffer: &mut [u8], offset: usize) -> Result<usize, Errno> {
            let args = [self.descriptor, buffer.as_mut_ptr() as usize, buffer.len(), offset, 0, 0];
            // SAFETY: the kernel writes into `buffer` only.
            result(unsafe { call(PREAD, &args) })
        }

        /// Writes where the file is at.
        pub(crate) fn write(&self, buffer: &[u8]) -> Result<usize, Errno> {
            // SAFETY: the kernel reads `buffer` only.
            result(unsafe {
                call(WRITE, &[self.descriptor, buffer.as_ptr() as usize, buffer.len(), 0, 0, 0])
            })
        }

        /// Asks a device for a new file (an ioctl without an argument).
        pub(crate) fn make(&self, request: usize) -> Result<File, Errno> {
            // SAFETY: no memory of this process is involved.
            let fd = unsafe { call(IOCTL, &[self.descriptor, request, 0, 0, 0, 0]) };
            result(fd).map(|descriptor| File { descriptor, ours: true })
        }

        /// Writes to a file; on `/proc/self/mem` this changes memory, which the caller answers for.
        pub(crate) fn write_at(&self, buffer: &[u8], offset: usize) -> Result<usize, Errno> {
            // SAFETY: the kernel reads `buffer` only.
            result(unsafe {
                call(PWRITE, &[self.descriptor, buffer.as_ptr() as usize, buffer.len(), offset, 0, 0])
            })
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            if self.ours {
                // SAFETY: the descriptor is ours.
                unsafe { call(CLOSE, &[self.descriptor, 0, 0, 0, 0, 0]) };
            }
        }
    }

    /// What to wait for at a descriptor: `struct pollfd`.
    #[derive(Clone, Copy, Debug)]
    #[repr(C)]
    pub(crate) struct Poll {
        /// Negative: nothing.
        pub(crate) descriptor: i32,
        pub(crate) events: i16,
        /// What has come.
        pub(crate) came: i16,
    }

    /// Something can be read.
    pub(crate) const POLLIN: i16 = 1;
    /// Something out of the ordinary has happened.
    pub(crate) const POLLPRI: i16 = 2;

    /// Waits until something has come at one of them, a signal has, or so much time is over.
    pub(crate) fn poll(polls: &mut [Poll], timeout: Option<core::time::Duration>) {
        let time = timeout.map(|it| [it.as_secs() as usize, it.subsec_nanos() as usize]);
        let time = time.as_ref().map_or(0, |time| time.as_ptr() as usize);
        polls.iter_mut().for_each(|poll| poll.came = 0);
        // SAFETY: the kernel writes into `polls` only.
        unsafe { call(PPOLL, &[polls.as_mut_ptr() as usize, polls.len(), time, 0, 0, 0]) };
    }

    /// Makes all pages around `range` present, and keeps them (mlock(2)).
    pub(crate) fn lock_memory(range: mmu_notifier::Range) -> Result<(), Errno> {
        // SAFETY: neither what is in the memory nor where it is changes.
        result(unsafe { call(MLOCK, &[range.start(), range.len(), 0, 0, 0, 0]) }).map(drop)
    }

    /// Undoes [`lock_memory`] (munlock(2)).
    pub(crate) fn unlock_memory(range: mmu_notifier::Range) {
        // SAFETY: as there.
        unsafe { call(MUNLOCK, &[range.start(), range.len(), 0, 0, 0, 0]) };
    }

    /// Puts the calling thread before all those of normal priority, if it may.
    pub(crate) fn come_first() {
        // SAFETY: touches no memory.
        unsafe { call(SETPRIORITY, &[0, 0, -20isize as usize, 0, 0, 0]) };
    }

    /// Sends a message and an open file to the datagram socket of this name in the abstract namespace. Waits if
    /// many are on their way.
    pub(crate) fn send_descriptor<const NAME: usize>(
        name: &[u8; NAME],
        file: &File,
        message: &[u8],
    ) -> Result<(), Errno> {
        const AF_UNIX: usize = 1;
        const DATAGRAM: usize = 2;
        const MSG_NOSIGNAL: usize = 0x4000;
        const EINTR: i32 = 4;
        // SAFETY: no memory is involved.
        let socket = result(unsafe { call(SOCKET, &[AF_UNIX, DATAGRAM | O_CLOEXEC, 0, 0, 0, 0]) })?;
        let socket = File { descriptor: socket, ours: true };
        // struct sockaddr_un: the family, a zero that says abstract, and the name.
        let mut address = [0u8; 110];
        address[0] = AF_UNIX as u8;
        let place = address[3..].get_mut(..NAME).ok_or(Errno(22))?;
        place.copy_from_slice(name);
        // struct cmsghdr: length, level (SOL_SOCKET) and kind (SCM_RIGHTS), and the descriptor.
        let control = [20u64, 1 | 1 << 32, file.descriptor as u64];
        let vector = [message.as_ptr() as usize, message.len()];
        // struct msghdr.
        let header = [
            address.as_ptr() as usize,
            3 + NAME,
            vector.as_ptr() as usize,
            1,
            control.as_ptr() as usize,
            size_of_val(&control),
            0,
        ];
        loop {
            let args = [socket.descriptor, header.as_ptr() as usize, MSG_NOSIGNAL, 0, 0, 0];
            // SAFETY: the kernel reads the structures above, which live through the call.
            match result(unsafe { call(SENDMSG, &args) }) {
                Err(Errno(EINTR)) => {}
                sent => return sent.map(drop),
            }
        }
    }

    /// Which file a descriptor or path is, and how long.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct FileId {
        pub(crate) device: u64,
        pub(crate) inode: u64,
        /// Bytes.
        pub(crate) size: u64,
        /// Last change of the contents, in nanoseconds since 1970.
        pub(crate) changed: u64,
    }

    fn file_id(ret: isize, stat: &[u64; 18]) -> Result<FileId, Errno> {
        // struct stat of x86-64: st_dev, st_ino, st_nlink, (st_mode, st_uid), (st_gid, pad), st_rdev, st_size,
        // st_blksize, st_blocks, st_atim, st_mtim, st_ctim
        let changed = stat[11].wrapping_mul(1_000_000_000).wrapping_add(stat[12]);
        result(ret).map(|_| FileId { device: stat[0], inode: stat[1], size: stat[6], changed })
    }

    pub(crate) fn fstat(descriptor: usize) -> Result<FileId, Errno> {
        let mut stat = [0u64; 18];
        // SAFETY: 144 bytes are what the kernel writes.
        let ret = unsafe { call(FSTAT, &[descriptor, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) };
        if ret == 0 {
            return file_id(ret, &stat);
        }
        // A sandbox may have just this one on its list, which newer C libraries call instead.
        const EMPTY_PATH: usize = 0x1000;
        let args = [descriptor, c"".as_ptr() as usize, stat.as_mut_ptr() as usize, EMPTY_PATH, 0, 0];
        // SAFETY: as above; the path is zero-ended.
        file_id(unsafe { call(NEWFSTATAT, &args) }, &stat)
    }

    /// Of a path that the program gave to the kernel: an address that may be anything.
    pub(crate) fn stat(path: usize) -> Result<FileId, Errno> {
        let mut stat = [0u64; 18];
        // SAFETY: 144 bytes are what the kernel writes; a bad path is EFAULT.
        let ret = unsafe { call(STAT, &[path, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) };
        file_id(ret, &stat)
    }

    /// What kind of file it is, and whose.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct FileMode {
        /// As `st_mode` of stat(2).
        pub(crate) mode: u32,
        pub(crate) user: u32,
        pub(crate) group: u32,
    }

    /// As fstatat(2): `path` is an address that may be anything.
    pub(crate) fn mode_at(folder: usize, path: usize, flags: usize) -> Result<FileMode, Errno> {
        let mut stat = [0u64; 18];
        // SAFETY: 144 bytes are what the kernel writes; a bad path is EFAULT.
        result(unsafe { call(NEWFSTATAT, &[folder, path, stat.as_mut_ptr() as usize, flags, 0, 0]) })?;
        // See `file_id`.
        Ok(FileMode { mode: stat[3] as u32, user: (stat[3] >> 32) as u32, group: stat[4] as u32 })
    }

    /// Whether it has an attribute of that name.
    pub(crate) fn has_attribute(file: &File, name: &CStr) -> bool {
        // SAFETY: the name is zero-ended; with a size of 0 nothing is written.
        unsafe { call(FGETXATTR, &[file.descriptor, name.as_ptr() as usize, 0, 0, 0, 0]) > 0 }
    }

    /// The real ids of user and group.
    pub(crate) fn ids() -> (u32, u32) {
        // SAFETY: these touch no memory.
        unsafe { (call(GETUID, &[0; 6]) as u32, call(GETGID, &[0; 6]) as u32) }
    }

    /// Lets the process of this id trace the calling one, where only parents may otherwise.
    pub(crate) fn let_trace(pid: u32) {
        const PR_SET_PTRACER: usize = 0x5961_6d61;
        // SAFETY: touches no memory.
        unsafe { call(PRCTL, &[PR_SET_PTRACER, pid as usize, 0, 0, 0, 0]) };
    }

    /// Waits while a word that processes share is as it was `seen`, at most so long, or until a signal comes.
    pub(crate) fn wait_shared(word: &core::sync::atomic::AtomicU32, seen: u32, nanoseconds: u64) {
        const WAIT: usize = 0;
        let time = [nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000];
        let args = [word.as_ptr() as usize, WAIT, seen as usize, time.as_ptr() as usize, 0, 0];
        // SAFETY: the kernel looks at the word, and reads a `struct timespec`.
        unsafe { call(FUTEX, &args) };
    }

    /// Wakes who [waits](wait_shared) for a word.
    pub(crate) fn wake_shared(word: &core::sync::atomic::AtomicU32) {
        const WAKE: usize = 1;
        // SAFETY: an address that is only looked up.
        unsafe { call(FUTEX, &[word.as_ptr() as usize, WAKE, i32::MAX as usize, 0, 0, 0]) };
    }

    /// How many names a file has, or how many folders a folder, with some more.
    pub(crate) fn links(path: &CStr) -> Result<u64, Errno> {
        let mut stat = [0u64; 18];
        // SAFETY: the path is a zero-ended string; 144 bytes are what the kernel writes.
        result(unsafe { call(STAT, &[path.as_ptr() as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) })?;
        // The third word: see `file_id`.
        Ok(stat[2])
    }

    /// The link to an open file in `/proc`.
    pub(crate) fn descriptor_link(descriptor: usize, link: &mut [u8; 26]) -> &CStr {
        *link = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0";
        let mut digits = [0u8; 10];
        let mut first = digits.len();
        let mut left = descriptor as u32;
        loop {
            first -= 1;
            digits[first] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        let number = &digits[first..];
        link[14..14 + number.len()].copy_from_slice(number);
        CStr::from_bytes_until_nul(link).unwrap_or(c"")
    }

    /// The path of an open file, as far as it fits; empty if it cannot be found out.
    pub(crate) fn descriptor_path(descriptor: usize, buffer: &mut [u8]) -> &[u8] {
        read_link(descriptor_link(descriptor, &mut [0; 26]), buffer)
    }

    /// Where a symbolic link leads, as far as it fits; empty if it cannot be found out.
    pub(crate) fn read_link<'a>(link: &CStr, buffer: &'a mut [u8]) -> &'a [u8] {
        let args = [link.as_ptr() as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
        // SAFETY: the path is zero-ended; the kernel writes into `buffer` only.
        let read = result(unsafe { call(READLINK, &args) }).unwrap_or(0);
        &buffer[..read]
    }

    /// Reads this process's own memory where it may not be mapped: bytes read.
    pub(crate) fn read_memory(address: usize, buffer: &mut [u8]) -> Result<usize, Errno> {
        let local = [buffer.as_mut_ptr() as usize, buffer.len()];
        let remote = [address, buffer.len()];
        let args = [getpid() as usize, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0];
        // SAFETY: the kernel writes into `buffer` only; an unmapped source is EFAULT.
        result(unsafe { call(PROCESS_VM_READV, &args) })
    }

    /// Reads the beginnings of things of this process's own that may not be mapped, one after the other: as much of
    /// each as is there; the rest is left as it is.
    pub(crate) fn read_memories<const LEN: usize>(addresses: &[usize], buffers: &mut [[u8; LEN]]) {
        const AT_ONCE: usize = 64;
        let own = getpid() as usize;
        let mut done = 0;
        while done < addresses.len().min(buffers.len()) {
            let some = &addresses[done..addresses.len().min(buffers.len()).min(done + AT_ONCE)];
            let mut remote = [[0; 2]; AT_ONCE];
            for (entry, &address) in remote.iter_mut().zip(some) {
                *entry = [address, LEN];
            }
            let buffer = &mut buffers[done..done + some.len()];
            let local = [buffer.as_mut_ptr() as usize, some.len() * LEN];
            let args = [own, local.as_ptr() as usize, 1, remote.as_ptr() as usize, some.len(), 0];
            // SAFETY: the kernel writes into `buffer` only; it stops at the first source that is not mapped.
            let read = result(unsafe { call(PROCESS_VM_READV, &args) }).unwrap_or(0);
            done += read / LEN;
            if read < some.len() * LEN {
                // That one ends before its length is through, or is nowhere.
                let _ = read_memory(addresses[done], &mut buffers[done]);
                done += 1;
            }
        }
    }

    /// The alternate signal stack, if the thread is running on it.
    pub(crate) fn on_signal_stack() -> Option<core::ops::Range<usize>> {
        const SS_ONSTACK: usize = 1;
        let mut stack = [0usize; 3];
        // SAFETY: the kernel writes a stack_t of three words.
        let ret = unsafe { call(SIGALTSTACK, &[0, stack.as_mut_ptr() as usize, 0, 0, 0, 0]) };
        (ret == 0 && stack[1] & SS_ONSTACK != 0).then(|| stack[0]..stack[0].saturating_add(stack[2]))
    }

    /// The size of a System V shared memory segment, in bytes.
    pub(crate) fn segment_bytes(id: usize) -> Option<usize> {
        const IPC_STAT: usize = 2;
        let mut shmid = [0usize; 14];
        // SAFETY: struct shmid_ds has 112 bytes on x86-64.
        let ret = unsafe { call(SHMCTL, &[id, IPC_STAT, shmid.as_mut_ptr() as usize, 0, 0, 0]) };
        // struct ipc_perm has 48 bytes, then shm_segsz.
        (ret == 0).then_some(shmid[6])
    }

    /// Keeps signals from this thread, but SIGSYS, without which strict mode kills; returns which were kept from it before.
    pub(crate) fn block_signals() -> u64 {
        const SIG_BLOCK: usize = 0;
        const SIGSYS: u32 = 31;
        let (all, mut before) = (!(1u64 << (SIGSYS - 1)), 0u64);
        let args = [SIG_BLOCK, &raw const all as usize, &raw mut before as usize, size_of::<u64>(), 0, 0];
        // SAFETY: the kernel reads one word and writes the other.
        unsafe { call(RT_SIGPROCMASK, &args) };
        before
    }

    /// What [`block_signals`] has returned.
    pub(crate) fn set_signals(blocked: u64) {
        const SIG_SETMASK: usize = 2;
        let args = [SIG_SETMASK, &raw const blocked as usize, 0, size_of::<u64>(), 0, 0];
        // SAFETY: the kernel reads one word.
        unsafe { call(RT_SIGPROCMASK, &args) };
    }

    /// Lets others run.
    pub(crate) fn sched_yield() {
        // SAFETY: touches no memory.
        unsafe { call(SCHED_YIELD, &[0; 6]) };
    }

    /// Calls `visit` with every entry of a folder whose name is a number.
    pub(crate) fn for_each_number_in(folder: &CStr, mut visit: impl FnMut(u32)) {
        const GETDENTS64: usize = 217;
        const O_DIRECTORY: usize = 0o200000;
        /// Where the name is in a `struct linux_dirent64`, behind inode, offset, length and type.
        const NAME: usize = 19;
        let Ok(folder) = File::open(folder, O_DIRECTORY) else { return };
        let mut buffer = [0u8; 1024];
        loop {
            let args = [folder.descriptor(), buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
            // SAFETY: the kernel writes into `buffer` only.
            let read = result(unsafe { call(GETDENTS64, &args) }).unwrap_or(0);
            let mut entries = &buffer[..read];
            if entries.is_empty() {
                return;
            }
            while let Some(&[low, high]) = entries.get(16..18) {
                let len = usize::from(u16::from_ne_bytes([low, high])).clamp(NAME, entries.len());
                let name = entries[NAME..len].split(|&byte| byte == 0).next().unwrap_or(&[]);
                if !name.is_empty() && name.iter().all(u8::is_ascii_digit) {
                    let digit =
                        |number: u32, &byte: &u8| number.wrapping_mul(10).wrapping_add((byte - b'0').into());
                    visit(name.iter().fold(0, digit));
                }
                entries = &entries[len..];
            }
        }
    }

    /// Whether this process has a child that has not been waited for.
    pub(crate) fn has_child() -> bool {
        const WAITID: usize = 247;
        const ALL: usize = 0;
        const NO_HANG_EXITED_NO_WAIT: usize = 1 | 4 | 0x0100_0000;
        // SAFETY: nothing is written, and nobody is waited for.
        unsafe { call(WAITID, &[ALL, 0, 0, NO_HANG_EXITED_NO_WAIT, 0, 0]) == 0 }
    }

    /// Makes every thread of this process see code that was written before.
    pub(crate) fn synchronize_code() -> Result<(), Errno> {
        const PRIVATE_EXPEDITED_SYNC_CORE: usize = 1 << 5;
        // SAFETY: touches no memory.
        let synchronize =
            || result(unsafe { call(MEMBARRIER, &[PRIVATE_EXPEDITED_SYNC_CORE, 0, 0, 0, 0, 0]) });
        if synchronize().is_err() {
            // Not registered, or a filter of seccomp, which says so again.
            register_to_synchronize_code()?;
            synchronize()?;
        }
        Ok(())
    }

    /// What the kernel wants before. Of a process with several threads the first time takes milliseconds; it is inherited by
    /// forked children.
    pub(crate) fn register_to_synchronize_code() -> Result<(), Errno> {
        const REGISTER: usize = 1 << 6;
        // SAFETY: touches no memory.
        result(unsafe { call(MEMBARRIER, &[REGISTER, 0, 0, 0, 0, 0]) }).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::safe::read_memories;
    use crate::pages;

    #[test]
    fn what_is_mapped_is_read_between_what_is_not() {
        let page = pages::map(8192);
        // SAFETY: two pages that were mapped just now.
        unsafe { page.write_bytes(7, 4096) };
        // SAFETY: the second of them, which nobody uses.
        assert!(unsafe { pages::unmap(page.add(4096), 4096) });
        let at = page as usize;
        let addresses: Vec<_> = [at, 0, at + 4093, at + 4096, at + 1].into_iter().cycle().take(500).collect();
        let mut read = vec![[0; 8]; addresses.len()];
        read_memories(&addresses, &mut read);
        let (all, some, none) = ([7; 8], [7, 7, 7, 0, 0, 0, 0, 0], [0; 8]);
        for five in read.chunks(5) {
            assert_eq!(five, [all, none, some, none, all]);
        }
        // SAFETY: the first of them.
        assert!(unsafe { pages::unmap(page, 4096) });
    }
}
