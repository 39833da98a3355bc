//! Call stacks from the upper end of a stack, taken in a process that may be gone: unwound by the tables of its files.
//!
//! What is kept of a stack are the registers at a system call and some words. Each function's way back to its caller stands
//! in the `.eh_frame` of its file, which is also in stripped ones. Where there is none (code made at run time), a chain of
//! frame pointers is followed, if there is one. Through a signal handler it goes on with what was interrupted. A stack ends early
//! where nothing of this helps, or where what was kept ends.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, RegisterRule, UnwindSection,
};
use mmu_notifier_primary::session::Process;
use mmu_notifier_primary::session::check::{STACK_WORDS, Stack};
use object::LittleEndian as Le;
use object::elf::{FileHeader64, PT_GNU_EH_FRAME, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::symbols::Symbols;

/// Frames that are told.
const FRAMES: usize = 48;
/// Registers by their DWARF number, and the return address.
const REGISTERS: usize = 17;
const RBX: usize = 3;
const RBP: usize = 6;
const RSP: usize = 7;
const RETURN: usize = 16;
/// What a function gives back to its caller as it was.
const KEPT: [usize; 6] = [RBX, RBP, 12, 13, 14, 15];

/// Files that were read for their tables.
#[derive(Debug, Default)]
pub struct Unwinder {
    files: HashMap<String, Option<Elf>>,
}

#[derive(Debug)]
struct Elf {
    bytes: Vec<u8>,
    /// File offset, size and address of what is loaded.
    segments: Vec<(u64, u64, u64)>,
    /// Address and file offset of the table's header.
    header: (u64, usize),
}

/// Room for unwind rows.
struct Rows;

impl gimli::UnwindContextStorage<usize> for Rows {
    type Rules = [(gimli::Register, RegisterRule<usize>); 32];
    type Stack = [gimli::UnwindTableRow<usize, Self>; 4];
}

/// What was kept of a stack.
struct Memory<'a> {
    sp: u64,
    words: &'a [std::sync::atomic::AtomicU64],
}

impl Memory<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.sp)?;
        let word = self.words.get(usize::try_from(offset / 8).ok()?)?;
        (offset % 8 == 0).then(|| word.load(Relaxed))
    }
}

impl Unwinder {
    /// The return addresses of a stack, the system call's first: of the process with entry `entry`.
    pub fn addresses(
        &mut self,
        symbols: &mut Symbols,
        entry: usize,
        process: &Process,
        stack: &Stack,
    ) -> Vec<u64> {
        let used = (stack.used.load(Relaxed) as usize).min(STACK_WORDS);
        let memory = Memory { sp: stack.sp.load(Relaxed), words: &stack.words[..used] };
        let mut registers = [None; REGISTERS];
        registers[RSP] = Some(memory.sp);
        registers[RBP] = Some(stack.bp.load(Relaxed));
        registers[RBX] = Some(stack.bx.load(Relaxed));
        registers[RETURN] = Some(stack.ip.load(Relaxed)).filter(|&ip| ip != 0);
        let mut addresses = Vec::new();
        while let Some(address) = registers[RETURN]
            && addresses.len() < FRAMES
        {
            addresses.push(address);
            let call = address.wrapping_sub(1);
            let known = symbols.in_file(entry, process, call).and_then(|(file, offset)| {
                let elf = self.files.entry(file.to_owned()).or_insert_with(|| Elf::read(file));
                elf.as_ref()?.caller(offset, &registers, &memory)
            });
            let Some(next) = known.or_else(|| by_frame_pointer(symbols, entry, process, &registers, &memory))
            else {
                break;
            };
            // Callers are further up: else the stack is not what its tables say.
            if next[RSP] <= registers[RSP] {
                break;
            }
            registers = next;
        }
        addresses
    }
}

fn by_frame_pointer(
    symbols: &mut Symbols,
    entry: usize,
    process: &Process,
    registers: &[Option<u64>; REGISTERS],
    memory: &Memory<'_>,
) -> Option<[Option<u64>; REGISTERS]> {
    let frame = registers[RBP]?;
    let address = memory.word(frame.checked_add(8)?)?;
    // Only to where there is code: what stands there may be anything.
    symbols.in_file(entry, process, address.wrapping_sub(1))?;
    let mut next = [None; REGISTERS];
    next[RBP] = memory.word(frame);
    next[RSP] = Some(frame + 16);
    next[RETURN] = Some(address);
    Some(next)
}

/// The registers that a signal has interrupted: they lie in the `ucontext_t` that the handler has returned to.
fn interrupted(context: u64, memory: &Memory<'_>) -> Option<[Option<u64>; REGISTERS]> {
    // Behind flags, link and stack (40 bytes): r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
    let general = |nth: u64| memory.word(context.checked_add(40 + 8 * nth)?);
    let mut registers = [None; REGISTERS];
    for nth in 0..8 {
        registers[8 + nth as usize] = general(nth);
    }
    (registers[RBP], registers[RBX]) = (general(10), general(11));
    (registers[RSP], registers[RETURN]) = (general(15), general(16));
    registers[RETURN]?;
    Some(registers)
}

impl Elf {
    fn read(path: &str) -> Option<Elf> {
        let bytes = std::fs::read(path).ok()?;
        let header = FileHeader64::<Le>::parse(&*bytes).ok()?;
        let segments: &[ProgramHeader64<Le>] = header.program_headers(Le, &*bytes).ok()?;
        let table = segments.iter().find(|segment| segment.p_type(Le) == PT_GNU_EH_FRAME)?;
        let header = (table.p_vaddr(Le), usize::try_from(table.p_offset(Le)).ok()?);
        let loaded = segments.iter().filter(|segment| segment.p_type(Le) == PT_LOAD);
        let segments = loaded.map(|s| (s.p_offset(Le), s.p_filesz(Le), s.p_vaddr(Le))).collect();
        Some(Elf { bytes, segments, header })
    }

    fn address_of(&self, offset: u64) -> Option<u64> {
        let within = |&&(from, size, _): &&(u64, u64, u64)| offset.wrapping_sub(from) < size;
        self.segments.iter().find(within).map(|(from, _, address)| offset - from + address)
    }

    fn offset_of(&self, address: u64) -> Option<usize> {
        let within = |&&(_, size, at): &&(u64, u64, u64)| address.wrapping_sub(at) < size;
        let (from, _, at) = self.segments.iter().find(within)?;
        usize::try_from(address - at + from).ok()
    }

    /// The registers of the caller of the function around a file offset.
    fn caller(
        &self,
        offset: u64,
        registers: &[Option<u64>; REGISTERS],
        memory: &Memory<'_>,
    ) -> Option<[Option<u64>; REGISTERS]> {
        let address = self.address_of(offset)?;
        let (header_address, header_offset) = self.header;
        let bases = BaseAddresses::default().set_eh_frame_hdr(header_address);
        let header = EhFrameHdr::new(self.bytes.get(header_offset..)?, LittleEndian).parse(&bases, 8).ok()?;
        let gimli::Pointer::Direct(frames_at) = header.eh_frame_ptr() else { return None };
        let frames: EhFrame<EndianSlice<'_, LittleEndian>> =
            EhFrame::new(self.bytes.get(self.offset_of(frames_at)?..)?, LittleEndian);
        let bases = bases.set_eh_frame(frames_at);
        let fde = header.table()?.fde_for_address(&frames, &bases, address, EhFrame::cie_from_offset).ok()?;
        if fde.is_signal_trampoline() {
            return interrupted(registers[RSP]?, memory);
        }
        let mut context = gimli::UnwindContext::<usize, Rows>::new_in();
        let row = fde.unwind_info_for_address(&frames, &bases, &mut context, address).ok()?;
        let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else { return None };
        let frame = (*registers.get(usize::from(register.0))?)?.wrapping_add_signed(*offset);
        let mut caller = [None; REGISTERS];
        for kept in KEPT {
            caller[kept] = registers[kept];
        }
        for (register, rule) in row.registers() {
            let Some(place) = caller.get_mut(usize::from(register.0)) else { continue };
            *place = match *rule {
                RegisterRule::Offset(offset) => memory.word(frame.wrapping_add_signed(offset)),
                RegisterRule::ValOffset(offset) => Some(frame.wrapping_add_signed(offset)),
                RegisterRule::SameValue => registers[usize::from(register.0)],
                RegisterRule::Register(other) => registers.get(usize::from(other.0)).copied().flatten(),
                _ => None,
            };
        }
        caller[RSP] = Some(frame);
        // The first function of a thread says that it has no caller.
        caller[RETURN]?;
        Some(caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn a_file_that_is_none_has_no_tables() {
        assert!(Elf::read("/nonexistent").is_none());
        assert!(Elf::read("/etc/passwd").is_none());
    }

    #[test]
    fn what_was_not_kept_is_not_read() {
        let words = [7, 8].map(AtomicU64::new);
        let memory = Memory { sp: 0x1000, words: &words };
        assert_eq!(
            [0x1000, 0x1008, 0x1010, 0x1004, 0xff8].map(|at| memory.word(at)),
            [Some(7), Some(8), None, None, None]
        );
    }
}
