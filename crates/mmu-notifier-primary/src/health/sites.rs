//! The code of every rewritten site, held against what was written there and against its file.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use mmu_notifier::Range;

use super::fault::{Fault, FaultKind, LeadsTo};
use crate::Syscall;
use crate::gate::safe::{self, Errno};
use crate::hot::{self, Rewritten};
use crate::maps;
use crate::patch::pool_of;
use crate::primary::Primary;
use crate::search::Image;
use crate::written::{self, Code, Site};

/// Bytes of foreign code that are shown.
const SHOWN: usize = 16;

pub(super) struct Looked {
    pub(super) intact: usize,
    pub(super) gone: usize,
    pub(super) faults: Vec<Fault>,
}

/// A mapping, kept.
struct Mapping {
    range: Range,
    executable: bool,
    offset: usize,
    inode: u64,
    path: PathBuf,
}

pub(super) fn look(primary: &Primary) -> Result<Looked, Errno> {
    let mut mappings = Vec::new();
    maps::for_each(|mapping| {
        mappings.push(Mapping {
            range: mapping.range,
            executable: mapping.executable,
            offset: mapping.offset,
            inode: mapping.inode,
            path: OsStr::from_bytes(mapping.path).into(),
        });
    })?;
    let sites: Vec<Site> = written::all().collect();
    let contents = contents(&sites, &mappings);
    let parsed = contents.iter().filter_map(|(&path, bytes)| Some((path, (Image::parse(bytes)?, &**bytes))));
    let images: HashMap<&Path, (Image<'_>, &[u8])> = parsed.collect();
    let mut looked = Looked { intact: 0, gone: 0, faults: Vec::new() };
    for site in &sites {
        let Some(mapping) = at(&mappings, site.address).filter(|mapping| is_of(site, mapping)) else {
            looked.gone += 1;
            continue;
        };
        let kind = edited(site, &mappings)
            .or_else(|| stub(primary, site, &mappings))
            .or_else(|| before(site, &sites, &mappings, images.get(&*mapping.path)));
        match kind {
            None => looked.intact += 1,
            Some(kind) => looked.faults.push(Fault {
                kind,
                call: site.number.and_then(Syscall::from_number),
                number: site.number,
                address: site.address,
                file: mapping.path.clone(),
                offset: site.address.wrapping_sub(site.base),
            }),
        }
    }
    for place in hot::all() {
        let kind = rewritten_while_it_ran(&place, &mappings);
        // What the program has changed meanwhile was put back before.
        if !place.is_still() {
            continue;
        }
        match kind {
            None => looked.intact += 1,
            Some(kind) => {
                let mapping = at(&mappings, place.address).filter(|mapping| mapping.inode != 0);
                let base = mapping.map_or(0, |mapping| mapping.range.start().wrapping_sub(mapping.offset));
                looked.faults.push(Fault {
                    kind,
                    call: None,
                    number: None,
                    address: place.address,
                    file: mapping.map_or_else(PathBuf::new, |mapping| mapping.path.clone()),
                    offset: place.address.wrapping_sub(base),
                });
            }
        }
    }
    Ok(looked)
}

/// What is wrong with a place that was rewritten while it ran.
fn rewritten_while_it_ran(place: &Rewritten, mappings: &[Mapping]) -> Option<FaultKind> {
    let (found, len) = read::<SHOWN>(place.address);
    if found[..place.own.len()] == place.own {
        return Some(FaultKind::Restored);
    }
    if found[..place.jump.len()] != place.jump {
        let leads_to = leads_to(&found[..len], place.address, mappings);
        return Some(FaultKind::Overwritten { found: found[..len].to_vec(), leads_to });
    }
    (!place.has_landing()).then_some(FaultKind::StubGone)
}

fn at(mappings: &[Mapping], address: usize) -> Option<&Mapping> {
    mappings.iter().find(|mapping| (mapping.range.start()..mapping.range.end()).contains(&address))
}

/// Whether the file of the site is still the one that is mapped there.
fn is_of(site: &Site, mapping: &Mapping) -> bool {
    mapping.executable
        && mapping.inode != 0
        && mapping.range.start().wrapping_sub(mapping.offset) == site.base
}

/// What is at an address, as far as it can be read.
fn read<const LEN: usize>(address: usize) -> ([u8; LEN], usize) {
    let mut bytes = [0; LEN];
    let len = safe::read_memory(address, &mut bytes).unwrap_or(0);
    (bytes, len)
}

/// Whether what was written is there.
fn edited(site: &Site, mappings: &[Mapping]) -> Option<FaultKind> {
    let mut kind = None;
    for edit in site.edits() {
        let (found, len) = read::<SHOWN>(edit.address);
        let now = &found[..edit.len()];
        if now == &edit.was()[..edit.len()] && len >= edit.len() {
            kind = Some(FaultKind::Restored);
        } else if now != &edit.is()[..edit.len()] {
            let leads_to = leads_to(&found[..len], edit.address, mappings);
            return Some(FaultKind::Overwritten { found: found[..len].to_vec(), leads_to });
        }
    }
    kind
}

/// Whether the stub and the tails are there, and the way from the stub into the hook.
fn stub(primary: &Primary, site: &Site, mappings: &[Mapping]) -> Option<FaultKind> {
    let [stub, tails] = &site.code;
    let (pool, pool_len) = read::<16>(pool_of(stub.address));
    let way = pool_len == 16 && primary.pool_header().is_none_or(|header| header == pool);
    (!(is_there(stub, mappings) && is_there(tails, mappings) && way)).then_some(FaultKind::StubGone)
}

fn is_there(code: &Code, mappings: &[Mapping]) -> bool {
    const LONGEST: usize = 512;
    let (now, len) = read::<LONGEST>(code.address);
    let runs = at(mappings, code.address).is_some_and(|mapping| mapping.executable);
    code.len <= LONGEST && len >= code.len && runs && written::hash(&now[..code.len]) == code.hash
}

/// Whether the function of the site is that of the file, up to the site.
///
/// One byte `0xcc` alone is a breakpoint of a debugger: whoever runs into it comes back.
fn before(
    site: &Site,
    sites: &[Site],
    mappings: &[Mapping],
    image: Option<&(Image<'_>, &[u8])>,
) -> Option<FaultKind> {
    let (image, bytes) = image?;
    let offset = site.address - site.base;
    let start = image.function_start(offset)?;
    let file = bytes.get(start..offset)?;
    let mut memory = vec![0; file.len()];
    let len = safe::read_memory(site.base + start, &mut memory).unwrap_or(0);
    for edit in sites.iter().flat_map(Site::edits) {
        for address in edit.address..edit.address + edit.len() {
            // Ours: looked at already.
            if let Some(index) = address.checked_sub(site.base + start).filter(|&index| index < file.len()) {
                memory[index] = file[index];
            }
        }
    }
    for (index, byte) in memory.iter_mut().enumerate() {
        if (*byte, file[index]) == hot::WRITTEN && hot::knows(site.base + start + index) {
            *byte = file[index];
        }
    }
    let differ: Vec<usize> = (0..len).filter(|&index| memory[index] != file[index]).collect();
    match differ[..] {
        [] => None,
        [one] if memory[one] == 0xcc => None,
        [first, ..] => {
            let address = site.base + start + first;
            let (found, len) = read::<SHOWN>(address);
            let leads_to = leads_to(&found[..len], address, mappings);
            Some(FaultKind::Bypassed { found: found[..len].to_vec(), leads_to })
        }
    }
}

/// Where code jumps to: `jmp target`, `jmp [pointer]`, or `mov target, register; jmp register`.
fn leads_to(code: &[u8], address: usize, mappings: &[Mapping]) -> Option<LeadsTo> {
    let mut decoder = Decoder::with_ip(64, code, address as u64, DecoderOptions::NONE);
    let mut loaded: Option<(Register, u64)> = None;
    for _ in 0..4 {
        if !decoder.can_decode() {
            return None;
        }
        let instruction = decoder.decode();
        match (instruction.mnemonic(), instruction.op0_kind()) {
            (Mnemonic::Mov, OpKind::Register) if instruction.op1_kind() == OpKind::Immediate64 => {
                loaded = Some((instruction.op0_register(), instruction.immediate64()));
            }
            (Mnemonic::Jmp, _) => {
                let address = target(&instruction, loaded)?;
                let file = at(mappings, address).filter(|mapping| mapping.inode != 0);
                return Some(LeadsTo { address, file: file.map(|mapping| mapping.path.clone()) });
            }
            _ => {}
        }
    }
    None
}

fn target(jump: &Instruction, loaded: Option<(Register, u64)>) -> Option<usize> {
    match jump.op0_kind() {
        OpKind::NearBranch64 => Some(jump.near_branch64() as usize),
        OpKind::Register => {
            loaded.filter(|(register, _)| *register == jump.op0_register()).map(|(_, to)| to as usize)
        }
        OpKind::Memory if jump.is_ip_rel_memory_operand() => {
            let (pointer, len) = read::<8>(jump.ip_rel_memory_address() as usize);
            (len == 8).then(|| usize::from_ne_bytes(pointer))
        }
        _ => None,
    }
}

/// The files that have sites, as they are on the disk: what has the name still, if it is the file that is mapped.
fn contents<'a>(sites: &[Site], mappings: &'a [Mapping]) -> HashMap<&'a Path, Vec<u8>> {
    let mut contents = HashMap::new();
    let with_sites =
        sites.iter().filter_map(|site| at(mappings, site.address).filter(|mapping| is_of(site, mapping)));
    for mapping in with_sites {
        if !contents.contains_key(&*mapping.path)
            && std::fs::metadata(&mapping.path).is_ok_and(|file| file.ino() == mapping.inode)
            && let Ok(bytes) = std::fs::read(&mapping.path)
        {
            contents.insert(&*mapping.path, bytes);
        }
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_followed_to_where_they_lead() {
        let pointer = 0x1234_5678usize;
        let at = &raw const pointer as usize;
        // The code is taken to be in front of the pointer, within reach.
        let code_at = at - 64;
        let to = |code: &[u8]| leads_to(code, code_at, &[]).map(|found| found.address);
        assert_eq!(to(&[0xe9, 16, 0, 0, 0]), Some(code_at + 21), "jmp near");
        assert_eq!(to(&[0xeb, 0xfe]), Some(code_at), "jmp short");
        assert_eq!(to(&[0xff, 0x25, 58, 0, 0, 0]), Some(pointer), "jmp [rip + 58]");
        let absolute = |register: u8| {
            let mut code = vec![0x49, 0xbb];
            code.extend_from_slice(&pointer.to_le_bytes());
            code.extend_from_slice(&[0x41, 0xff, 0xe0 | register]);
            code
        };
        assert_eq!(to(&absolute(3)), Some(pointer), "movabs r11; jmp r11");
        assert_eq!(to(&absolute(2)), None, "jmp r10, which is not known");
        assert_eq!(to(&[0xf3, 0x0f, 0x1e, 0xfa, 0xe9, 0, 0, 0, 0]), Some(code_at + 9), "endbr64; jmp near");
        assert_eq!(to(&[0xcc, 0x90, 0x90, 0x90, 0xe9, 0, 0, 0, 0]), None, "not among the first");
        assert_eq!(to(&[]), None);
    }
}
