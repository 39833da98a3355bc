//! The light half of the hook: what runs around a call that nobody has to be told of.
//!
//! [`hook::before`](crate::hook::before) and [`hook::after`](crate::hook::after) run while the vector registers are
//! the program's: to save and restore these takes as long as all the rest. So both must leave them alone, which no
//! attribute promises. The machine code that has become of them is looked at before it is used: if it is not light (a
//! build without optimisation, or for a processor with more registers), or calls somebody, the entry code saves the
//! vector registers first.

// UNSAFETY: reads the machine code of this crate.
#![expect(unsafe_code)]

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};

use crate::hook;

/// More instructions than the light half can have.
const MANY: usize = 2000;

/// Whether the light half leaves the vector registers alone.
pub(crate) fn is_light() -> bool {
    is_light_from(hook::before as *const () as u64) && is_light_from(hook::after as *const () as u64)
}

/// Follows the code of a function on all ways to its returns.
fn is_light_from(function: u64) -> bool {
    let mut pending = vec![function];
    let mut seen = Vec::new();
    let mut left = MANY;
    while let Some(mut at) = pending.pop() {
        while !seen.contains(&at) {
            seen.push(at);
            // SAFETY: code that the function can reach, and so mapped; at the end of the last page of this object there
            // are other things than code.
            let code = unsafe { core::slice::from_raw_parts(at as *const u8, 15) };
            let instruction = Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode();
            left -= 1;
            if instruction.is_invalid() || left == 0 || !leaves_vectors_alone(&instruction) {
                return false;
            }
            match instruction.flow_control() {
                FlowControl::Next => at = instruction.next_ip(),
                FlowControl::ConditionalBranch => {
                    pending.push(instruction.near_branch_target());
                    at = instruction.next_ip();
                }
                FlowControl::UnconditionalBranch => at = instruction.near_branch_target(),
                FlowControl::Return | FlowControl::Exception => break,
                _ => return false,
            }
        }
    }
    true
}

fn leaves_vectors_alone(instruction: &Instruction) -> bool {
    let operands =
        (0..instruction.op_count()).filter(|&index| instruction.op_kind(index) == OpKind::Register);
    let registers = operands.map(|index| instruction.op_register(index));
    !matches!(instruction.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall | Mnemonic::Emms)
        && registers.chain([instruction.memory_index()]).all(|register| {
            !(register.is_vector_register() || register.is_mm() || register.is_st() || register.is_k())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(bytes: &[u8]) -> bool {
        leaves_vectors_alone(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn vector_registers_are_noticed() {
        assert!(alone(&[0x48, 0x89, 0xc1]), "mov rcx, rax");
        assert!(alone(&[0xf0, 0x48, 0x0f, 0xb1, 0x0e]), "lock cmpxchg [rsi], rcx");
        assert!(!alone(&[0x0f, 0x10, 0x06]), "movups xmm0, [rsi]");
        assert!(!alone(&[0x0f, 0x11, 0x06]), "movups [rsi], xmm0");
        assert!(!alone(&[0xc5, 0xf8, 0x77]), "vzeroupper");
        assert!(!alone(&[0xc5, 0xfe, 0x6f, 0x06]), "vmovdqu ymm0, [rsi]");
        assert!(!alone(&[0xc5, 0xf8, 0x90, 0xc1]), "kmovw k0, k1");
        assert!(!alone(&[0xd9, 0xc1]), "fld st(1)");
        assert!(!alone(&[0x0f, 0x6f, 0x06]), "movq mm0, [rsi]");
    }

    /// Also of use: it decodes every instruction of this build's light half.
    #[test]
    fn only_an_optimised_build_is_light() {
        if cfg!(debug_assertions) {
            assert!(!is_light(), "without optimisation functions are called");
        } else {
            assert!(is_light(), "the hook saves the vector registers at every call");
        }
    }
}
