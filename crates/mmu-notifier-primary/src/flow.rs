//! Which numbers a `syscall` instruction can get: constants followed backwards through a function.
//!
//! Compilers load the number of a system call far away from it, on several paths, or by way of another
//! register. From the `syscall` every path is followed back until something is put into the register:
//! a constant is a number it can get, a copy goes on with the other register, anything else - a
//! parameter, memory, arithmetic, a call - means that it can be any. The hook looks at the real number
//! again, so this only decides what need not be rewritten.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::search::Calls;

/// Longest function that is followed, and the most places to follow at a time; beyond that the number is not known.
const STEPS: usize = 1024;

/// What an instruction does to the registers that matter, and whether it leads to the next one.
#[derive(Clone, Copy, Debug)]
struct Step {
    address: u64,
    /// The next instruction may follow it.
    falls_through: bool,
    /// Does nothing: where nothing leads to it, it is padding.
    nop: bool,
    put: Put,
}

/// What an instruction puts where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Put {
    Nothing,
    Constant(Register, u32),
    Copy(Register, Register),
    Something(Register),
    /// A call: every register that a callee may change.
    Call,
}

/// The instructions of one function. Room to work in: made once, used for every site.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    steps: Vec<Step>,
    /// Where steps jump to and which do, in ascending order: who comes to a step is looked up for each one of a path.
    jumps: Vec<(u64, u32)>,
    /// Positions still to be followed.
    pending: Vec<(u32, Register)>,
    /// For each step the registers that were followed from there.
    seen: Vec<u16>,
}

/// What numbers a site can get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// It cannot be told.
    Any,
    /// This one.
    One(usize),
    /// Several constants, a memory system call among them.
    Several,
    /// Constants, none of them a memory system call.
    NoMemoryCall,
}

impl Flow {
    pub(crate) fn new() -> Flow {
        Flow {
            steps: Vec::with_capacity(STEPS),
            jumps: Vec::with_capacity(STEPS),
            pending: Vec::with_capacity(STEPS),
            seen: Vec::with_capacity(STEPS),
        }
    }

    /// Memory that it takes.
    pub(crate) const fn bytes() -> usize {
        STEPS
            * (size_of::<Step>() + size_of::<(u64, u32)>() + size_of::<(u32, Register)>() + size_of::<u16>())
    }

    /// The numbers that the `syscall` at address `syscall` can get, in the function whose code is `code`.
    pub(crate) fn numbers(&mut self, calls: Calls, code: &[u8], start: u64, syscall: u64) -> Numbers {
        self.steps.clear();
        self.jumps.clear();
        let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        let mut index = None;
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if instruction.ip() == syscall {
                index = Some(self.steps.len());
            }
            self.push(&instruction);
        }
        self.jumps.sort_unstable();
        index.map_or(Numbers::Any, |index| self.number(calls, index))
    }

    /// The next instruction of the function. Beyond the room there is, the function is not followed.
    fn push(&mut self, instruction: &Instruction) {
        if self.steps.len() == self.steps.capacity() {
            return;
        }
        let flow = instruction.flow_control();
        let target = match instruction.op0_kind() {
            OpKind::NearBranch64 if flow != FlowControl::Call => instruction.near_branch64(),
            _ => 0,
        };
        let falls_through = matches!(
            flow,
            FlowControl::Next
                | FlowControl::ConditionalBranch
                | FlowControl::Call
                | FlowControl::IndirectCall
        );
        // `hlt` is a trap in user space.
        let falls_through = falls_through && instruction.mnemonic() != Mnemonic::Hlt;
        let nop = instruction.mnemonic() == Mnemonic::Nop;
        if target != 0 {
            self.jumps.push((target, self.steps.len() as u32));
        }
        self.steps.push(Step { address: instruction.ip(), falls_through, nop, put: put(instruction) });
    }

    /// The numbers that the `syscall` at position `index` can get.
    fn number(&mut self, calls: Calls, index: usize) -> Numbers {
        if self.steps.len() == self.steps.capacity() {
            return Numbers::Any;
        }
        let mut only = None;
        let mut several = false;
        let mut memory_call = false;
        self.pending.clear();
        self.seen.clear();
        self.seen.resize(self.steps.len(), 0);
        self.pending.push((index as u32, Register::RAX));
        while let Some((at, register)) = self.pending.pop() {
            // Another kind of register: a segment's, say.
            let Some(bit) = general(register) else { return Numbers::Any };
            let seen = &mut self.seen[at as usize];
            if *seen & bit != 0 {
                continue;
            }
            *seen |= bit;
            let address = self.steps[at as usize].address;
            let before = (at as usize).checked_sub(1).filter(|&before| self.steps[before].falls_through);
            let mut came_from_somewhere = false;
            let first = self.jumps.partition_point(|&(target, _)| target < address);
            let jumps = self.jumps[first..].iter().take_while(|&&(target, _)| target == address);
            // What falls through to it may jump to it, too: followed twice, which does no harm.
            for from in before.into_iter().chain(jumps.map(|&(_, from)| from as usize)) {
                came_from_somewhere = true;
                let next = match self.steps[from].put {
                    Put::Constant(to, number) if to == register => {
                        memory_call |= calls.has(number as usize);
                        several |= only.is_some_and(|only| only != number);
                        only = Some(number);
                        continue;
                    }
                    Put::Copy(to, source) if to == register => (from as u32, source),
                    Put::Something(to) if to == register => return Numbers::Any,
                    Put::Call if changed_by_callee(register) => return Numbers::Any,
                    _ => (from as u32, register),
                };
                if self.pending.len() == self.pending.capacity() {
                    return Numbers::Any;
                }
                self.pending.push(next);
            }
            let padding = at > 0 && self.steps[at as usize].nop;
            if !came_from_somewhere && !padding {
                // The start of the function, or the target of a jump table.
                return Numbers::Any;
            }
        }
        match only {
            None => Numbers::Any,
            Some(_) if !memory_call => Numbers::NoMemoryCall,
            Some(_) if several => Numbers::Several,
            Some(number) => Numbers::One(number as usize),
        }
    }
}

/// A bit for each general register.
fn general(register: Register) -> Option<u16> {
    let index = (register as usize).checked_sub(Register::RAX as usize)?;
    (index < 16).then(|| 1 << index)
}

fn changed_by_callee(register: Register) -> bool {
    !matches!(
        register,
        Register::RBX
            | Register::RBP
            | Register::R12
            | Register::R13
            | Register::R14
            | Register::R15
            | Register::RSP
    )
}

fn put(instruction: &Instruction) -> Put {
    if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
        // A system call is no such call: it changes rax, rcx and r11.
        if instruction.mnemonic() == Mnemonic::Syscall {
            return Put::Something(Register::RAX);
        }
        return Put::Call;
    }
    if instruction.op0_kind() != OpKind::Register {
        return implicit(instruction);
    }
    let to = instruction.op0_register().full_register();
    match (instruction.mnemonic(), instruction.op1_kind()) {
        (Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push | Mnemonic::Bt, _) => Put::Nothing,
        (Mnemonic::Mov, OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64) => {
            Put::Constant(to, instruction.immediate(1) as u32)
        }
        (Mnemonic::Mov, OpKind::Register) if instruction.op0_register().size() >= 4 => {
            Put::Copy(to, instruction.op1_register().full_register())
        }
        (Mnemonic::Xor, OpKind::Register) if instruction.op1_register() == instruction.op0_register() => {
            Put::Constant(to, 0)
        }
        _ => Put::Something(to),
    }
}

/// Instructions that write a register which is not their first operand.
fn implicit(instruction: &Instruction) -> Put {
    match instruction.mnemonic() {
        Mnemonic::Xchg | Mnemonic::Xadd if instruction.op1_kind() == OpKind::Register => {
            Put::Something(instruction.op1_register().full_register())
        }
        Mnemonic::Cmpxchg
        | Mnemonic::Cmpxchg8b
        | Mnemonic::Cmpxchg16b
        | Mnemonic::Mul
        | Mnemonic::Imul
        | Mnemonic::Div
        | Mnemonic::Idiv
        | Mnemonic::Cbw
        | Mnemonic::Cwde
        | Mnemonic::Cdqe
        | Mnemonic::Cpuid
        | Mnemonic::Rdtsc
        | Mnemonic::Rdtscp
        | Mnemonic::Rdpmc
        | Mnemonic::Xgetbv
        | Mnemonic::Lahf
        | Mnemonic::Xlatb
        | Mnemonic::Lodsb
        | Mnemonic::Lodsw
        | Mnemonic::Lodsd
        | Mnemonic::Lodsq => Put::Something(Register::RAX),
        _ => Put::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(code: &[u8]) -> Numbers {
        let syscall = code.windows(2).position(|two| two == [0x0f, 0x05]).unwrap();
        Flow::new().numbers(Calls::Memory, code, 0x1000, 0x1000 + syscall as u64)
    }

    #[test]
    fn general_registers_have_a_bit_each() {
        let all = [Register::RAX, Register::RCX, Register::RSP, Register::R8, Register::R15];
        let bits: Vec<_> = all.iter().map(|&register| general(register).unwrap()).collect();
        assert_eq!(bits, [1 << 0, 1 << 1, 1 << 4, 1 << 8, 1 << 15]);
        assert_eq!([Register::EAX, Register::FS, Register::XMM0, Register::None].map(general), [None; 4]);
    }

    #[test]
    fn every_way_to_it_is_followed() {
        // mov eax, 11; syscall
        assert_eq!(numbers(&[0xb8, 11, 0, 0, 0, 0x0f, 0x05]), Numbers::One(11));
        // mov eax, 39; syscall
        assert_eq!(numbers(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05]), Numbers::NoMemoryCall);
        // mov ebx, 11; mov eax, ebx; syscall
        assert_eq!(numbers(&[0xbb, 11, 0, 0, 0, 0x89, 0xd8, 0x0f, 0x05]), Numbers::One(11));
        // mov eax, fs; syscall
        assert_eq!(numbers(&[0x8c, 0xe0, 0x0f, 0x05]), Numbers::Any);
        // mov eax, 39; 1: syscall; mov eax, 11; jmp 1b
        let back = [0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xb8, 11, 0, 0, 0, 0xeb, 0xf7];
        assert_eq!(numbers(&back), Numbers::Several);
        // mov eax, 39; jz 1f; mov eax, 11; 1: syscall
        let over = [0xb8, 39, 0, 0, 0, 0x74, 5, 0xb8, 11, 0, 0, 0, 0x0f, 0x05];
        assert_eq!(numbers(&over), Numbers::Several);
        // jz 1f; mov eax, 11; 1: syscall
        assert_eq!(numbers(&[0x74, 5, 0xb8, 11, 0, 0, 0, 0x0f, 0x05]), Numbers::Any);
        // mov eax, 11; 1: syscall; jmp 1b: the result of the call is a number, too
        assert_eq!(numbers(&[0xb8, 11, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xfc]), Numbers::Any);
    }
}
