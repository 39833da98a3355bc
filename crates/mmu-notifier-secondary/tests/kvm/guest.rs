//! A guest of the real KVM: a processor in user mode that reads or writes the pages it is told to.
//!
//! In user mode, since that is what has a second stage also where KVM itself runs in a virtual machine and interprets the rest.
//! Its page tables map each guest-virtual address to itself. It says that it is done by a write to where no memory is.

// UNSAFETY: gives memory to a guest, which writes it; and memory that guest and test share.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use mmu_notifier::{PAGE_SIZE, Range};

/// Where the guest's data begins, in its memory.
pub(crate) const DATA: usize = 2 << 20;
/// As much as its page tables map behind that.
const MAPPED: usize = 6 << 20;

// The desk: code, page tables, orders and answers, in a memslot of their own that never changes.
const DESK: u32 = 0;
const DESK_LEN: usize = 16 * PAGE_SIZE;
const CODE: usize = 0x1000;
const CODE_TO_WRITE: usize = 0x1800;
const TABLES: usize = 0x2000;
const ORDERS: usize = 0x9000;
const ANSWERS: usize = 0xa000;
/// No memory is there.
const DOORBELL: usize = 0xf_f000;
/// How many pages a guest is told to access at a time.
const BATCH: usize = PAGE_SIZE / 8;

/// A loop over `rcx` orders at `rsi`, with answers at `rdi`, and the bell at `rdx`.
#[rustfmt::skip]
const READ: [u8; 27] = [
    0x48, 0x8b, 0x1e, // again: mov rbx, [rsi]
    0x48, 0x8b, 0x03, //        mov rax, [rbx]
    0x48, 0x89, 0x07, //        mov [rdi], rax
    0x48, 0x83, 0xc6, 0x08, //  add rsi, 8
    0x48, 0x83, 0xc7, 0x08, //  add rdi, 8
    0x48, 0xff, 0xc9, //        dec rcx
    0x75, 0xea, //              jnz again
    0x48, 0x89, 0x02, //        mov [rdx], rax
    0xeb, 0xfe, //              jmp $
];
/// The same the other way.
const fn write_loop() -> [u8; 27] {
    let mut code = READ;
    code[5] = 0x07; // mov rax, [rdi]
    code[7] = 0x89;
    code[8] = 0x03; // mov [rbx], rax
    code
}
const WRITE: [u8; 27] = write_loop();

/// This process has nothing there that allows the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotMapped;

pub(crate) struct Guest {
    pub(crate) vm: VmFd,
    vcpu: VcpuFd,
    desk: Desk,
    stats: File,
    /// Where the number of pages is in `stats`.
    pages_at: u64,
    /// Pages that are no data: code, and what else this kernel counts.
    own: u64,
}

/// Opens KVM, or says why not.
pub(crate) fn kvm(test: &str) -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            eprintln!("SKIPPED: {test}: /dev/kvm: {error}");
            None
        }
    }
}

impl Guest {
    /// With no data yet; `None`: skipped, and said so.
    pub(crate) fn new(test: &str) -> Option<Guest> {
        let kvm = kvm(test)?;
        let vm = kvm.create_vm().expect("a virtual machine");
        let Some((stats, pages_at)) = stats_of(&vm) else {
            eprintln!(
                "SKIPPED: {test}: this kernel has no statistics of virtual machines (KVM_GET_STATS_FD)"
            );
            return None;
        };
        let desk = Desk::new();
        let region = kvm_userspace_memory_region {
            slot: DESK,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: DESK_LEN as u64,
            userspace_addr: desk.0 as u64,
        };
        // SAFETY: the desk stays mapped for as long as the guest lives, and is shared by raw pointers only.
        unsafe { vm.set_user_memory_region(region) }.expect("a memslot");
        desk.lay_out();
        let vcpu = vm.create_vcpu(0).expect("a processor");
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("what the processor can");
        vcpu.set_cpuid2(&cpuid).expect("as it can");
        in_user_mode(&vcpu);
        Some(Guest { vm, vcpu, desk, stats, pages_at, own: 0 })
    }

    /// Gives it, or takes away, the memory of this process behind its guest-physical address `guest`.
    pub(crate) fn set_memory(&self, slot: u32, guest: usize, memory: Range, flags: u32) -> Result<(), i32> {
        self.set_memory_raw(slot, guest, memory.start(), memory.len(), flags)
    }

    /// The same for whatever numbers; the error is the kernel's number.
    pub(crate) fn set_memory_raw(
        &self,
        slot: u32,
        guest: usize,
        host: usize,
        len: usize,
        flags: u32,
    ) -> Result<(), i32> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: guest as u64,
            memory_size: len as u64,
            userspace_addr: host as u64,
        };
        // SAFETY: what the guest does to memory of the tests' own is what they are about; who looks there uses raw pointers.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(|error| error.errno())
    }

    /// Which pages of a memslot were written since the last call, a bit each; the error is the kernel's number.
    pub(crate) fn dirty_log(&self, slot: u32, log: &mut [u64]) -> Result<(), i32> {
        let found = self.vm.get_dirty_log(slot, log.len() * 64 * PAGE_SIZE).map_err(|error| error.errno())?;
        log.copy_from_slice(&found);
        Ok(())
    }

    /// Counts only pages of its data from now on; `data` of them are in the table.
    pub(crate) fn count_data(&mut self, data: u64) {
        self.own = 0;
        self.own = self.pages() - data;
    }

    /// How many pages of 4 KiB are in the second-stage table, as the kernel says.
    pub(crate) fn pages(&self) -> u64 {
        let mut count = [0; 8];
        self.stats.read_exact_at(&mut count, self.pages_at).expect("a number");
        u64::from_ne_bytes(count).checked_sub(self.own).expect("code and page tables are never taken away")
    }

    /// Reads the first word of each page at these guest addresses.
    pub(crate) fn read(&mut self, pages: &[usize]) -> Vec<Result<u64, NotMapped>> {
        let mut words = Vec::with_capacity(pages.len());
        for pages in pages.chunks(BATCH) {
            let results = self.run(pages, CODE);
            let word =
                |(at, result): (usize, Result<(), NotMapped>)| result.map(|()| self.desk.word(ANSWERS, at));
            words.extend(results.into_iter().enumerate().map(word));
        }
        words
    }

    /// Writes the first word of each page.
    pub(crate) fn write(&mut self, pages: &[usize], words: &[u64]) -> Vec<Result<(), NotMapped>> {
        let mut results = Vec::with_capacity(pages.len());
        for (pages, words) in pages.chunks(BATCH).zip(words.chunks(BATCH)) {
            for (at, word) in words.iter().enumerate() {
                self.desk.set_word(ANSWERS, at, *word);
            }
            results.extend(self.run(pages, CODE_TO_WRITE));
        }
        results
    }

    /// Runs the loop at `code` over these pages.
    fn run(&mut self, pages: &[usize], code: usize) -> Vec<Result<(), NotMapped>> {
        for (at, page) in pages.iter().enumerate() {
            self.desk.set_word(ORDERS, at, *page as u64);
        }
        self.desk.forget_accesses();
        let mut results = vec![Ok(()); pages.len()];
        let mut next = 0;
        while next < pages.len() {
            let mut registers = self.vcpu.get_regs().expect("registers");
            registers.rip = code as u64;
            registers.rsi = (ORDERS + next * 8) as u64;
            registers.rdi = (ANSWERS + next * 8) as u64;
            registers.rcx = (pages.len() - next) as u64;
            registers.rdx = DOORBELL as u64;
            registers.rflags = 2;
            self.vcpu.set_regs(&registers).expect("registers");
            let ended = match self.vcpu.run() {
                Ok(VcpuExit::MmioWrite(at, _)) if at == DOORBELL as u64 => Ok(()),
                Err(error) if matches!(error.errno(), libc::EFAULT | libc::EINTR) => Err(error.errno()),
                other => panic!("the guest has stopped: {other:?}"),
            };
            let left = self.vcpu.get_regs().expect("registers").rcx as usize;
            next = pages.len() - left;
            if ended == Err(libc::EFAULT) {
                results[next] = Err(NotMapped);
                next += 1;
            }
        }
        results
    }
}

/// 64-bit user mode, with paging.
fn in_user_mode(vcpu: &VcpuFd) {
    const USER: u8 = 3;
    let mut registers = vcpu.get_sregs().expect("registers");
    registers.cr3 = TABLES as u64;
    registers.cr4 = 1 << 5; // PAE
    registers.cr0 = 0x8005_0033; // PG, AM, WP, NE, ET, MP, PE
    registers.efer = 0x501; // LMA, LME, SCE
    let segment = |selector: u16, kind, long| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: selector | u16::from(USER),
        type_: kind,
        present: 1,
        dpl: USER,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..Default::default()
    };
    registers.cs = segment(0x08, 11, 1);
    let data = segment(0x10, 3, 0);
    (registers.ds, registers.es, registers.fs, registers.gs, registers.ss) = (data, data, data, data, data);
    vcpu.set_sregs(&registers).expect("registers");
}

/// Memory that the guest and the test share, in a file, so that a fork leaves it alone.
struct Desk(*mut u8);

// SAFETY: shared memory, accessed by raw pointers.
unsafe impl Send for Desk {}

impl Desk {
    fn new() -> Desk {
        // SAFETY: the name is a string.
        let file = unsafe { libc::memfd_create(c"desk".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(file >= 0, "memfd_create: {}", io::Error::last_os_error());
        // SAFETY: a descriptor that nobody has.
        let file = unsafe { File::from_raw_fd(file) };
        file.set_len(DESK_LEN as u64).expect("a memfd has any length");
        let (rights, file) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(null_mut(), DESK_LEN, rights, libc::MAP_SHARED, file, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Desk(at.cast())
    }

    fn lay_out(&self) {
        for (at, (read, write)) in READ.iter().zip(WRITE).enumerate() {
            self.set_byte(CODE + at, *read);
            self.set_byte(CODE_TO_WRITE + at, write);
        }
        /// Present, writable, for user mode.
        const ALL: u64 = 7;
        let [first, second, third, tables] = [0, 1, 2, 3].map(|number| TABLES + number * PAGE_SIZE);
        self.set_word(first, 0, second as u64 | ALL);
        self.set_word(second, 0, third as u64 | ALL);
        for table in 0..MAPPED >> 21 {
            self.set_word(third, table, (tables + table * PAGE_SIZE) as u64 | ALL);
        }
        // The tables lie one behind the other.
        for page in 0..MAPPED / PAGE_SIZE {
            self.set_word(tables, page, (page * PAGE_SIZE) as u64 | ALL);
        }
    }

    /// Makes the guest's own page tables forget which pages of its data were accessed. KVM maps what was, if it is a neighbour of
    /// what is accessed now.
    fn forget_accesses(&self) {
        const ACCESSED: u64 = 1 << 5;
        let tables = TABLES + 3 * PAGE_SIZE;
        for page in DATA / PAGE_SIZE..MAPPED / PAGE_SIZE {
            self.set_word(tables, page, self.word(tables, page) & !ACCESSED);
        }
    }

    fn set_byte(&self, at: usize, byte: u8) {
        assert!(at < DESK_LEN);
        // SAFETY: in the desk.
        unsafe { self.0.add(at).write_volatile(byte) };
    }

    fn set_word(&self, at: usize, number: usize, word: u64) {
        assert!(at + number * 8 + 8 <= DESK_LEN);
        // SAFETY: in the desk, aligned.
        unsafe { self.0.add(at + number * 8).cast::<u64>().write_volatile(word) };
    }

    fn word(&self, at: usize, number: usize) -> u64 {
        assert!(at + number * 8 + 8 <= DESK_LEN);
        // SAFETY: in the desk, aligned.
        unsafe { self.0.add(at + number * 8).cast::<u64>().read_volatile() }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`. The guest's processor and memslots are gone, or find nothing.
        unsafe { libc::munmap(self.0.cast(), DESK_LEN) };
    }
}

/// The file with the statistics of a virtual machine, and where in it the number of 4 KiB pages is.
///
/// It begins with six words: flags, size of a name, number of descriptors, and where the id, the descriptors and the data are. A
/// descriptor has 16 bytes, of which the third word is where its data are, and a name.
fn stats_of(vm: &VmFd) -> Option<(File, u64)> {
    const KVM_GET_STATS_FD: u64 = 0xaece;
    // SAFETY: has no argument.
    let descriptor = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_GET_STATS_FD) };
    if descriptor < 0 {
        return None;
    }
    // SAFETY: a descriptor that nobody has.
    let stats = unsafe { File::from_raw_fd(descriptor) };
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        stats.read_exact_at(&mut bytes, at).expect("statistics");
        bytes
    };
    let word = |bytes: &[u8], number: usize| {
        u32::from_ne_bytes(bytes[4 * number..4 * number + 4].try_into().expect("four bytes"))
    };
    let header = read(0, 24);
    let descriptor_len = 16 + word(&header, 1) as usize;
    let (count, descriptors, data) = (word(&header, 2), word(&header, 4), word(&header, 5));
    (0..count)
        .find_map(|number| {
            let at = u64::from(descriptors) + u64::from(number) * descriptor_len as u64;
            let descriptor = read(at, descriptor_len);
            let name = descriptor[16..].split(|byte| *byte == 0).next();
            (name == Some(b"pages_4k")).then(|| u64::from(data + word(&descriptor, 2)))
        })
        .map(|at| (stats, at))
}
