//! Finding the system-call sites of a file, and how each can be rewritten.
//!
//! [`search`] is a function of a file's bytes. The two bytes `0f 05` occur by chance (in constants, in the middle
//! of other instructions), and so does a `mov $number,%eax` in front of them: so every candidate is *decoded from the
//! start of its function*, which `.eh_frame` or the symbol table names. What does not come out as a `syscall`
//! instruction is none.
//!
//! # Shapes
//!
//! A site is rewritten without touching any byte behind the `syscall` (threads that sleep in it return there), and
//! without a branch into the middle of what is replaced:
//!
//! * **T1**: the instruction directly before `syscall` has at least 5 bytes. Its first 5 become `jmp stub`; the
//!   `syscall` stays where it is.
//! * **T2**: an earlier instruction of at least 5 bytes, with straight-line code up to the `syscall`. The stub
//!   replays all of it.
//! * **T3**: neither: the 2-byte `syscall` itself becomes a short jump to 5 bytes of padding nearby, and these
//!   become `jmp stub`. Padding that is executed (a long `nop` before a loop) will do if it has 7 bytes: then its
//!   first two become a jump over the rest.
//!
//! Anything else is reported, not rewritten.

use gimli::{BaseAddresses, CfaRule, EhFrame, EhFrameHdr, LittleEndian, UnwindContext, UnwindSection};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use object::LittleEndian as Le;
use object::elf::{FileHeader64, PF_X, PT_GNU_EH_FRAME, PT_LOAD, SHT_DYNSYM, SHT_SYMTAB, STT_FUNC};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};

use crate::Syscall;
use crate::flow::{Flow, Numbers};
use crate::hook;
use crate::masks;

/// Most bytes that a stub replays.
pub(crate) const REPLAY: usize = 48;
/// Longest stretch of code without frame information that is decoded.
const FRAMELESS: u64 = 1 << 16;
/// Most instructions that a stub replays.
const WINDOW: usize = 8;

/// How a site is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Replace the instruction before the `syscall`.
    T1,
    /// Replace an earlier instruction; the stub replays what lies between.
    T2,
    /// Replace the `syscall` by a jump to the padding at this file offset.
    T3 {
        /// File offset of 5 bytes that are never executed.
        cave: usize,
        /// 0, or the length of the `nop` that begins 2 bytes before and must be jumped over first.
        nop: u8,
    },
}

/// Which calls are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// Those that change memory.
    Memory,
    /// And those that register it with the kernel ([`crate::check`]).
    AlsoRegistrations,
}

impl Calls {
    pub(crate) fn has(self, number: usize) -> bool {
        Syscall::from_number(number).is_some()
            || self == Calls::AlsoRegistrations && crate::check::is_wanted(number)
    }
}

/// Which sites are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Those that make, or may make, such a call.
    Only(Calls),
    /// All.
    All,
    /// All but those that make, or may make, such a call.
    Rest(Calls),
}

impl Wanted {
    fn calls(self) -> Calls {
        match self {
            Wanted::Only(calls) | Wanted::Rest(calls) => calls,
            Wanted::All => Calls::Memory,
        }
    }
}

/// What is known of the number that the site passes to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    /// This one.
    Known(usize),
    /// It comes in a register: any.
    Unknown,
}

impl Number {
    pub(crate) fn known(self) -> Option<usize> {
        match self {
            Number::Known(number) => Some(number),
            Number::Unknown => None,
        }
    }
}

/// A `syscall` instruction that makes, or may make, a memory system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// File offset of the `syscall` instruction.
    pub(crate) offset: usize,
    /// The system call number.
    pub(crate) number: Number,
    /// How to rewrite it, or why it cannot be.
    pub(crate) shape: Result<Shape, Unfit>,
    /// First replaced byte: file offset, at most `offset`.
    pub(crate) from: usize,
    /// How far above the stack pointer at the `syscall` the function's return address is, in bytes.
    pub(crate) caller: Option<usize>,
    /// Operands in the replayed code that are relative to the instruction pointer.
    pub(crate) relative: Relative,
}

impl Found {
    /// Between which addresses the bytes lie that rewriting it reads or writes, if the file's first byte is at `base`.
    pub(crate) fn bytes(&self, base: usize) -> (usize, usize) {
        let (mut start, mut end) = (self.from, self.offset + 2);
        if let Ok(Shape::T3 { cave, .. }) = self.shape {
            (start, end) = (start.min(cave.saturating_sub(2)), end.max(cave + 5));
        }
        (base.wrapping_add(start), base.wrapping_add(end))
    }
}

/// Where code between the first replaced byte and the `syscall` must be adjusted when it moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Relative {
    /// For each: where its 32-bit distance is, and where its instruction ends, in bytes from the first replaced
    /// one; an end of 0: unused.
    pub(crate) operands: [(u8, u8); 4],
}

/// Why a site cannot be rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// None of the shapes fits.
    Shape,
    /// It is in no function that the file knows; it may not be an instruction at all.
    NoFunction,
    /// It is Go's own code, which runs on stacks of a few hundred bytes.
    SmallStacks,
}

/// A file whose executable segments can be searched.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    bytes: &'a [u8],
    header: &'a FileHeader64<Le>,
    unwind: Option<Unwind<'a>>,
}

#[derive(Debug)]
struct Unwind<'a> {
    header: gimli::ParsedEhFrameHdr<gimli::EndianSlice<'a, LittleEndian>>,
    frames: EhFrame<gimli::EndianSlice<'a, LittleEndian>>,
    bases: BaseAddresses,
}

/// A function: virtual addresses, its file offset.
#[derive(Clone, Copy, Debug)]
struct Function {
    address: u64,
    end: u64,
    offset: usize,
}

impl<'a> Image<'a> {
    /// Understands `bytes` as an x86-64 ELF file; `None` if it is none.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Image<'a>> {
        let header = FileHeader64::<Le>::parse(bytes).ok()?;
        let mut image = Image { bytes, header, unwind: None };
        image.unwind = image.find_unwind();
        Some(image)
    }

    /// Whether it holds Go code, whose stacks are small: the linker leaves a section of this name also in stripped files.
    pub(crate) fn is_go(&self) -> bool {
        self.header
            .sections(Le, self.bytes)
            .is_ok_and(|sections| sections.section_by_name(Le, b".go.buildinfo").is_some())
    }

    fn segments(&self) -> &'a [object::elf::ProgramHeader64<Le>] {
        self.header.program_headers(Le, self.bytes).unwrap_or(&[])
    }

    fn find_unwind(&self) -> Option<Unwind<'a>> {
        let segment = self.segments().iter().find(|segment| segment.p_type(Le) == PT_GNU_EH_FRAME)?;
        let (address, offset) = (segment.p_vaddr(Le), usize::try_from(segment.p_offset(Le)).ok()?);
        let header = EhFrameHdr::new(self.bytes.get(offset..)?, LittleEndian);
        let bases = BaseAddresses::default().set_eh_frame_hdr(address);
        let header = header.parse(&bases, 8).ok()?;
        let gimli::Pointer::Direct(frames_at) = header.eh_frame_ptr() else { return None };
        let frames_offset = self.to_offset(frames_at)?;
        let frames = EhFrame::new(self.bytes.get(frames_offset..)?, LittleEndian);
        Some(Unwind { header, frames, bases: bases.set_eh_frame(frames_at) })
    }

    /// File offset of a virtual address.
    fn to_offset(&self, address: u64) -> Option<usize> {
        self.segments().iter().filter(|segment| segment.p_type(Le) == PT_LOAD).find_map(|segment| {
            let within = address.checked_sub(segment.p_vaddr(Le))?;
            (within < segment.p_filesz(Le)).then(|| (segment.p_offset(Le) + within) as usize)
        })
    }

    /// Virtual address of a file offset in an executable segment.
    fn to_address(&self, offset: usize) -> Option<u64> {
        self.executable().find_map(|segment| {
            let within = (offset as u64).checked_sub(segment.p_offset(Le))?;
            (within < segment.p_filesz(Le)).then(|| segment.p_vaddr(Le) + within)
        })
    }

    fn executable(&self) -> impl Iterator<Item = &'a object::elf::ProgramHeader64<Le>> {
        self.segments()
            .iter()
            .filter(|segment| segment.p_type(Le) == PT_LOAD && segment.p_flags(Le).0 & PF_X.0 != 0)
    }

    /// What lies between the function before `address` and the one behind it, from the start of the former: code
    /// without frame information. The C library ends it on purpose before the `syscall` of `clone`, whose child
    /// has no frame to unwind; functions written in assembler have none. Decoding goes on through the end of the
    /// former function, so it does not have to be known where the latter begins.
    fn function_before(&self, address: u64) -> Option<Function> {
        let unwind = self.unwind.as_ref()?;
        let table = unwind.header.table()?;
        let entry_at = |address| match table.lookup(address, &unwind.bases).ok()? {
            gimli::Pointer::Direct(at) => Some(at),
            gimli::Pointer::Indirect(_) => None,
        };
        let at = entry_at(address)?;
        let offset = usize::try_from(at.checked_sub(self.unwind_start(unwind)?)?).ok()?;
        let offset = gimli::EhFrameOffset(offset);
        let fde = unwind.frames.fde_from_offset(&unwind.bases, offset, EhFrame::cie_from_offset).ok()?;
        let start = fde.initial_address();
        if address < start || address - fde.end_address() > FRAMELESS {
            return None;
        }
        // The entries are in ascending order, so where the next begins can be found by halving.
        let (mut same, mut other) = (address, address + FRAMELESS);
        while other - same > 1 {
            let middle = same + (other - same) / 2;
            if entry_at(middle) == Some(at) { same = middle } else { other = middle }
        }
        let end = self.executable().find_map(|segment| {
            let (from, to) = (segment.p_vaddr(Le), segment.p_vaddr(Le) + segment.p_filesz(Le));
            (from..to).contains(&address).then_some(to.min(other))
        })?;
        Some(Function { address: start, end, offset: self.to_offset(start)? })
    }

    fn unwind_start(&self, unwind: &Unwind<'_>) -> Option<u64> {
        match unwind.header.eh_frame_ptr() {
            gimli::Pointer::Direct(address) => Some(address),
            gimli::Pointer::Indirect(_) => None,
        }
    }

    fn framed_function(&self, address: u64) -> Option<Function> {
        let unwind = self.unwind.as_ref()?;
        let fde = unwind
            .header
            .table()?
            .fde_for_address(&unwind.frames, &unwind.bases, address, EhFrame::cie_from_offset)
            .ok()?;
        // The frame of a signal trampoline begins a byte early, for unwinders that look up the address before.
        let start = fde.initial_address() + u64::from(fde.is_signal_trampoline());
        Some(Function { address: start, end: fde.end_address(), offset: self.to_offset(start)? })
    }

    fn named_function(&self, address: u64) -> Option<Function> {
        let sections = self.header.sections(Le, self.bytes).ok()?;
        for kind in [SHT_SYMTAB, SHT_DYNSYM] {
            let Some(section) = sections.iter().find(|section| section.sh_type(Le) == kind) else { continue };
            let symbols = section.data_as_array::<object::elf::Sym64<Le>, _>(Le, self.bytes).unwrap_or(&[]);
            let around = symbols.iter().find(|symbol| {
                symbol.st_type() == STT_FUNC
                    && symbol.st_value(Le) <= address
                    && address - symbol.st_value(Le) < symbol.st_size(Le)
            });
            if let Some(symbol) = around {
                let start = symbol.st_value(Le);
                return Some(Function {
                    address: start,
                    end: start + symbol.st_size(Le),
                    offset: self.to_offset(start)?,
                });
            }
        }
        None
    }

    /// File offset of the first byte of the function that the byte at `offset` is in, if it is in one that the file names.
    pub(crate) fn function_start(&self, offset: usize) -> Option<usize> {
        let address = self.to_address(offset)?;
        let function = self.framed_function(address).or_else(|| self.named_function(address))?;
        Some(function.offset)
    }

    /// Distance from the stack pointer at `address` up to the return address.
    fn caller(&self, address: u64) -> Option<usize> {
        let unwind = self.unwind.as_ref()?;
        let fde = unwind
            .header
            .table()?
            .fde_for_address(&unwind.frames, &unwind.bases, address, EhFrame::cie_from_offset)
            .ok()?;
        let mut context = UnwindContext::<usize, Rows>::new_in();
        let row = fde.unwind_info_for_address(&unwind.frames, &unwind.bases, &mut context, address).ok()?;
        match *row.cfa() {
            CfaRule::RegisterAndOffset { register: gimli::X86_64::RSP, offset } => {
                usize::try_from(offset).ok()?.checked_sub(8)
            }
            _ => None,
        }
    }
}

/// Room for unwind rows on the stack: the hook searches late libraries and must not allocate.
struct Rows;

impl gimli::UnwindContextStorage<usize> for Rows {
    type Rules = [(gimli::Register, gimli::RegisterRule<usize>); 32];
    type Stack = [gimli::UnwindTableRow<usize, Self>; 4];
}

/// Looks through `code`, a part of an executable segment of `image` at file offset `offset`, and calls `found` for
/// every `syscall` instruction that is `wanted`. Never allocates: `flow` is room to work in.
pub(crate) fn search(
    image: &Image<'_>,
    code: &[u8],
    offset: usize,
    wanted: Wanted,
    flow: &mut Flow,
    mut found: impl FnMut(Found),
) {
    let go = image.is_go();
    for at in candidates(code) {
        if let Some(mut site) = judge(image, offset + at, wanted, flow) {
            // A jump to a system call takes no stack.
            if go && !site.number.known().is_some_and(hook::does_not_care) {
                site.shape = Err(Unfit::SmallStacks);
            }
            found(site);
        }
    }
}

/// Where the two bytes of a `syscall` instruction occur.
pub(crate) fn candidates(code: &[u8]) -> impl Iterator<Item = usize> + '_ {
    memchr::memmem::find_iter(code, b"\x0f\x05")
}

/// A candidate at a file offset: what it is, if it is something.
fn judge(image: &Image<'_>, offset: usize, wanted: Wanted, flow: &mut Flow) -> Option<Found> {
    let calls = wanted.calls();
    let address = image.to_address(offset)?;
    let decode = |function: Function| {
        let end = function.offset + (function.end - function.address) as usize;
        let code = image.bytes.get(function.offset..end)?;
        Some((Scan::of(code, function.address, address)?, code, function))
    };
    let (scan, code, function) = match image.framed_function(address) {
        // Not an instruction of its function: the two bytes are there by chance.
        Some(function) => decode(function)?,
        None => {
            // By name first: what lies between functions with frames may be a whole library that has none.
            let named = image.named_function(address).and_then(decode);
            match named.or_else(|| image.function_before(address).and_then(decode)) {
                Some(decoded) => decoded,
                None => return outside(image, calls, offset),
            }
        }
    };
    let numbers = match scan.number_directly_before() {
        // Most are none of ours: seen at a glance.
        Some(number) if matches!(wanted, Wanted::Only(calls) if !calls.has(number)) => return None,
        Some(number) => Numbers::One(number),
        None => flow.numbers(calls, code, function.address, address),
    };
    let (number, among) = match numbers {
        Numbers::One(number) => (Number::Known(number), calls.has(number)),
        Numbers::Any | Numbers::Several => (Number::Unknown, true),
        Numbers::NoMemoryCall => (Number::Unknown, false),
    };
    if matches!((wanted, among), (Wanted::Only(_), false) | (Wanted::Rest(_), true)) {
        return None;
    }
    // What the frame of a signal handler returns to: unwinders know it by its bytes.
    if number == Number::Known(masks::RT_SIGRETURN) {
        return None;
    }
    let (shape, from) = scan.shape(image, &function);
    let relative = scan.relative(from, code, function.address);
    let shape = if relative.is_some() { shape } else { Err(Unfit::Shape) };
    let from = function.offset + (from - function.address) as usize;
    let caller = image.caller(address);
    Some(Found { offset, number, shape, from, caller, relative: relative.unwrap_or_default() })
}

/// A candidate outside all functions: most are padding, tables, or chance. It is worth a word only if it
/// looks exactly like a memory system call.
fn outside(image: &Image<'_>, calls: Calls, offset: usize) -> Option<Found> {
    let before = image.bytes.get(offset.checked_sub(5)?..offset)?;
    let number = match before {
        [0xb8, number @ ..] => u32::from_le_bytes(number.try_into().ok()?) as usize,
        _ => return None,
    };
    if !calls.has(number) {
        return None;
    }
    Some(Found {
        offset,
        number: Number::Known(number),
        shape: Err(Unfit::NoFunction),
        from: offset,
        caller: None,
        relative: Relative::default(),
    })
}

/// One pass over a function, from its start: what matters around one `syscall`.
struct Scan {
    /// The last instructions before the `syscall`, in a ring.
    window: [Instruction; WINDOW],
    /// Instructions before the `syscall`, the forgotten ones included.
    len: usize,
    syscall: u64,
    /// Targets of branches near the `syscall`.
    targets: [u64; 32],
    targets_used: usize,
    /// Padding that is never executed, within reach of a short jump: address.
    cave: Option<u64>,
    /// A long `nop` that is executed, within reach: address and length.
    nop: Option<(u64, usize)>,
}

impl Scan {
    /// `None` if decoding from the start of the function does not come upon an instruction at `syscall`.
    fn of(code: &[u8], start: u64, syscall: u64) -> Option<Scan> {
        let mut scan = Scan {
            window: [Instruction::default(); WINDOW],
            len: 0,
            syscall,
            targets: [0; 32],
            targets_used: 0,
            cave: None,
            nop: None,
        };
        let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        let mut hit = false;
        let mut after_jump = false;
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let ip = instruction.ip();
            if ip == syscall {
                if instruction.code() != Code::Syscall {
                    return None;
                }
                hit = true;
            } else if ip > syscall && !hit {
                return None;
            } else if !hit {
                scan.push(instruction);
            }
            if instruction.mnemonic() == Mnemonic::Nop {
                if after_jump && instruction.len() >= 5 && scan.in_reach(ip) {
                    scan.cave = Some(ip);
                } else if instruction.len() >= 7 && scan.in_reach(ip + 2) {
                    scan.nop = Some((ip, instruction.len()));
                }
            }
            after_jump = matches!(
                instruction.flow_control(),
                FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return
            ) || (after_jump && instruction.mnemonic() == Mnemonic::Nop);
            if matches!(instruction.op0_kind(), OpKind::NearBranch64) {
                scan.target(instruction.near_branch64());
            }
        }
        if let Some(cave) = scan.cave
            && scan.is_target(cave..cave + 5)
        {
            scan.cave = None;
        }
        if let Some((nop, len)) = scan.nop
            && scan.is_target(nop + 1..nop + len as u64)
        {
            scan.nop = None;
        }
        hit.then_some(scan)
    }

    fn push(&mut self, instruction: Instruction) {
        self.window[self.len % WINDOW] = instruction;
        self.len += 1;
    }

    /// The instructions before the `syscall`, the latest first.
    fn before(&self) -> impl Iterator<Item = &Instruction> {
        (0..self.len.min(WINDOW)).map(|back| &self.window[(self.len - 1 - back) % WINDOW])
    }

    /// Whether a 2-byte jump at the `syscall` gets to `address`.
    fn in_reach(&self, address: u64) -> bool {
        i8::try_from(address.wrapping_sub(self.syscall + 2) as i64).is_ok()
    }

    fn target(&mut self, address: u64) {
        if address.abs_diff(self.syscall) > 256 {
            return;
        }
        match self.targets.get_mut(self.targets_used) {
            Some(slot) => {
                *slot = address;
                self.targets_used += 1;
            }
            // More than we can remember: as if everything were one.
            None => self.targets_used = usize::MAX,
        }
    }

    fn is_target(&self, mut addresses: core::ops::Range<u64>) -> bool {
        match self.targets.get(..self.targets_used) {
            Some(targets) => targets.iter().any(|target| addresses.contains(target)),
            None => addresses.next().is_some(),
        }
    }

    /// The number, if the instruction before the `syscall` puts it there and no branch comes in between: nearly
    /// always.
    fn number_directly_before(&self) -> Option<usize> {
        let last = self.before().next()?;
        let constant = last.mnemonic() == Mnemonic::Mov
            && last.op0_kind() == OpKind::Register
            && last.op0_register().full_register() == Register::RAX
            && matches!(last.op1_kind(), OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64);
        (constant && !self.is_target(self.syscall..self.syscall + 1))
            .then(|| last.immediate(1) as u32 as usize)
    }

    /// The shape of the site, and the address of the first byte that is replaced.
    fn shape(&self, image: &Image<'_>, function: &Function) -> (Result<Shape, Unfit>, u64) {
        let mut replayed = 0;
        for (distance, instruction) in self.before().enumerate() {
            let ip = instruction.ip();
            replayed += instruction.len();
            // A branch to the `syscall` itself would go past the hook.
            let movable = instruction.flow_control() == FlowControl::Next
                && !instruction.is_invalid()
                && replayed <= REPLAY
                && !self.is_target(ip + 1..self.syscall + 1);
            if !movable {
                break;
            }
            if instruction.len() >= 5 {
                return (Ok(if distance == 0 { Shape::T1 } else { Shape::T2 }), ip);
            }
        }
        let cave = self.cave.or_else(|| self.padding_behind(image, function)).map(|cave| (cave, 0));
        let nop = || self.nop.map(|(nop, len)| (nop + 2, len as u8));
        let shape =
            cave.or_else(nop).and_then(|(cave, nop)| Some(Shape::T3 { cave: image.to_offset(cave)?, nop }));
        (shape.ok_or(Unfit::Shape), self.syscall)
    }

    /// The operands relative to the instruction pointer in what is replayed; `None` if there are too many.
    fn relative(&self, from: u64, code: &[u8], start: u64) -> Option<Relative> {
        let mut relative = Relative::default();
        let replayed = self.before().filter(|instruction| instruction.ip() >= from);
        let moved = replayed.filter(|instruction| instruction.is_ip_rel_memory_operand());
        for (used, instruction) in moved.enumerate() {
            let bytes = code.get((instruction.ip() - start) as usize..)?;
            let mut decoder = Decoder::with_ip(64, bytes, instruction.ip(), DecoderOptions::NONE);
            let again = decoder.decode();
            let place = decoder.get_constant_offsets(&again).displacement_offset();
            let at = (instruction.ip() - from) as usize;
            *relative.operands.get_mut(used)? = ((at + place) as u8, (at + again.len()) as u8);
        }
        Some(relative)
    }

    /// Padding between this function and the next.
    fn padding_behind(&self, image: &Image<'_>, function: &Function) -> Option<u64> {
        let end = function.end;
        if !self.in_reach(end) || image.framed_function(end).is_some() {
            return None;
        }
        let offset = image.to_offset(end)?;
        let code = image.bytes.get(offset..offset + 16)?;
        let mut decoder = Decoder::with_ip(64, code, end, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        let mut length = 0;
        while length < 5 && decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if !matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
                || image.framed_function(instruction.ip()).is_some()
            {
                return None;
            }
            length += instruction.len();
        }
        (length >= 5).then_some(end)
    }
}

#[cfg(test)]
mod tests;
