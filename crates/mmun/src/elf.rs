//! What kind of executable a file is, as far as preloading into it is concerned.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// The answer of [`judge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Dynamically linked for x86-64, by this dynamic linker.
    Dynamic {
        /// The dynamic linker.
        interpreter: String,
    },
    /// For x86-64, and no dynamic linker is asked for: static, static-pie, or the dynamic linker itself.
    Static,
    /// For x86, 32 bits.
    ThirtyTwoBits,
    /// For another processor: the ELF machine number.
    Foreign(u16),
    /// Says it is ELF and is broken, or is no program (a core dump, an object file).
    Broken,
    /// `#!`: a script.
    Script,
    /// No executable, but text.
    Text,
    /// Nothing we know.
    Unknown,
}

const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
const PT_INTERP: u32 = 3;

/// Looks at the file's head.
pub fn judge(file: &File) -> std::io::Result<Kind> {
    let mut head = [0; 256];
    let len = read_at(file, &mut head, 0)?;
    let head = &head[..len];
    if head.starts_with(b"#!") {
        return Ok(Kind::Script);
    }
    if !head.starts_with(b"\x7fELF") {
        let binary = |byte: &u8| *byte == 0;
        return Ok(if head.iter().any(binary) { Kind::Unknown } else { Kind::Text });
    }
    Ok(judge_elf(file, head).unwrap_or(Kind::Broken))
}

fn judge_elf(file: &File, head: &[u8]) -> Option<Kind> {
    let (class, order) = (*head.get(4)?, *head.get(5)?);
    let machine = [*head.get(18)?, *head.get(19)?];
    let machine = if order == 2 { u16::from_be_bytes(machine) } else { u16::from_le_bytes(machine) };
    if machine == MACHINE_386 || (machine == MACHINE_X86_64 && class == 1) {
        return Some(Kind::ThirtyTwoBits);
    }
    if machine != MACHINE_X86_64 {
        return Some(Kind::Foreign(machine));
    }
    if ![TYPE_EXEC, TYPE_DYN].contains(&u16_at(head, 16)?) {
        return None;
    }
    let (table, size, count) = (u64_at(head, 32)?, u16_at(head, 54)?, u16_at(head, 56)?);
    for index in 0..u64::from(count) {
        let mut entry = [0; 56];
        let offset = index.checked_mul(size.into())?.checked_add(table)?;
        if read_at(file, &mut entry, offset).ok()? < entry.len() {
            return None;
        }
        if u32_at(&entry, 0)? == PT_INTERP {
            let mut name = [0; 4096];
            let wanted = usize::try_from(u64_at(&entry, 32)?).ok()?.min(name.len());
            let len = read_at(file, &mut name[..wanted], u64_at(&entry, 8)?).ok()?;
            let name = name[..len].split(|byte| *byte == 0).next()?;
            return Some(Kind::Dynamic { interpreter: String::from_utf8_lossy(name).into_owned() });
        }
    }
    Some(Kind::Static)
}

/// Reads until the buffer or the file is at its end.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(len) => done += len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
