//! The system calls that change an address space.

/// A system call that can change what an address means, or that makes or ends an address space.
///
/// The order is that of the counters in a [session](crate::session): new calls go to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[expect(missing_docs, reason = "each is the system call of that name, see its manual page")]
pub enum Syscall {
    Mmap,
    Munmap,
    Mremap,
    Brk,
    Madvise,
    ProcessMadvise,
    Mprotect,
    PkeyMprotect,
    Shmat,
    Shmdt,
    RemapFilePages,
    Ftruncate,
    Truncate,
    Fallocate,
    Fork,
    Vfork,
    Clone,
    Clone3,
    Execve,
    Execveat,
    ExitGroup,
}

impl Syscall {
    /// All of them: `ALL[call as usize] == call`.
    pub const ALL: [Syscall; 21] = [
        Syscall::Mmap,
        Syscall::Munmap,
        Syscall::Mremap,
        Syscall::Brk,
        Syscall::Madvise,
        Syscall::ProcessMadvise,
        Syscall::Mprotect,
        Syscall::PkeyMprotect,
        Syscall::Shmat,
        Syscall::Shmdt,
        Syscall::RemapFilePages,
        Syscall::Ftruncate,
        Syscall::Truncate,
        Syscall::Fallocate,
        Syscall::Fork,
        Syscall::Vfork,
        Syscall::Clone,
        Syscall::Clone3,
        Syscall::Execve,
        Syscall::Execveat,
        Syscall::ExitGroup,
    ];

    /// Which of them a system call number of x86-64 is, if any.
    ///
    /// ```
    /// use mmu_notifier_primary::Syscall;
    /// assert_eq!(Syscall::from_number(11), Some(Syscall::Munmap));
    /// assert_eq!(Syscall::from_number(39), None, "getpid changes no address space");
    /// ```
    #[inline]
    pub const fn from_number(number: usize) -> Option<Syscall> {
        if number < BY_NUMBER.len() { BY_NUMBER[number] } else { None }
    }

    /// Its number on x86-64.
    pub const fn number(self) -> usize {
        match self {
            Syscall::Mmap => 9,
            Syscall::Mprotect => 10,
            Syscall::Munmap => 11,
            Syscall::Brk => 12,
            Syscall::Mremap => 25,
            Syscall::Madvise => 28,
            Syscall::Shmat => 30,
            Syscall::Clone => 56,
            Syscall::Fork => 57,
            Syscall::Vfork => 58,
            Syscall::Execve => 59,
            Syscall::Shmdt => 67,
            Syscall::Truncate => 76,
            Syscall::Ftruncate => 77,
            Syscall::RemapFilePages => 216,
            Syscall::ExitGroup => 231,
            Syscall::Fallocate => 285,
            Syscall::Execveat => 322,
            Syscall::PkeyMprotect => 329,
            Syscall::Clone3 => 435,
            Syscall::ProcessMadvise => 440,
        }
    }

    /// Its name, as `strace` and the manual pages spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Syscall::Mmap => "mmap",
            Syscall::Munmap => "munmap",
            Syscall::Mremap => "mremap",
            Syscall::Brk => "brk",
            Syscall::Madvise => "madvise",
            Syscall::ProcessMadvise => "process_madvise",
            Syscall::Mprotect => "mprotect",
            Syscall::PkeyMprotect => "pkey_mprotect",
            Syscall::Shmat => "shmat",
            Syscall::Shmdt => "shmdt",
            Syscall::RemapFilePages => "remap_file_pages",
            Syscall::Ftruncate => "ftruncate",
            Syscall::Truncate => "truncate",
            Syscall::Fallocate => "fallocate",
            Syscall::Fork => "fork",
            Syscall::Vfork => "vfork",
            Syscall::Clone => "clone",
            Syscall::Clone3 => "clone3",
            Syscall::Execve => "execve",
            Syscall::Execveat => "execveat",
            Syscall::ExitGroup => "exit_group",
        }
    }
}

/// The calls by their numbers: one load for every call that a program makes.
static BY_NUMBER: [Option<Syscall>; 441] = {
    let mut table = [None; 441];
    let mut index = 0;
    while index < Syscall::ALL.len() {
        let call = Syscall::ALL[index];
        table[call.number()] = Some(call);
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_agree() {
        for (index, call) in Syscall::ALL.into_iter().enumerate() {
            assert_eq!(call as usize, index);
            assert_eq!(Syscall::from_number(call.number()), Some(call));
        }
        assert_eq!((0..1024).filter_map(Syscall::from_number).count(), Syscall::ALL.len());
    }
}
