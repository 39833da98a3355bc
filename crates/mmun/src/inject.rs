//! Puts the object into a program that nothing can be preloaded into: one without a dynamic linker, or with that of another C
//! library. mmun traces the program for the moment in which it has just been exec'ed: maps the object, links it by itself -
//! the object carries the few functions that it needs of a C library - calls its start, and lets go.
//!
//! The object then runs before the program's first instruction.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use object::LittleEndian as Le;
use object::elf::{
    FileHeader64, PF_W, PF_X, PT_LOAD, ProgramHeader64, R_X86_64_DTPMOD64, R_X86_64_DTPOFF64,
    R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT, R_X86_64_RELATIVE, Rela64, SHN_UNDEF, SHT_DYNSYM, SHT_RELA,
    STB_WEAK, Sym64,
};
use object::read::StringTable;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};

use crate::tracee::Tracee;

const PAGE: u64 = 4096;

/// What is put into a program.
#[derive(Debug)]
pub struct Injection {
    /// The object's file.
    pub object: PathBuf,
    /// The session's path.
    pub session: String,
}

/// What becomes of a program into which the object cannot be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// It ends before its first instruction.
    Kill,
    /// It runs as if nothing had been tried.
    Run,
}

impl Injection {
    /// Puts the object into the program, which has just been exec'ed, and lets it run.
    pub fn put_into(&self, mut tracee: Tracee, otherwise: Otherwise) -> Result<()> {
        let done = self.link_in(&mut tracee).with_context(|| {
            format!("cannot put {} into the program before it starts", self.object.display())
        });
        if done.is_err() && otherwise == Otherwise::Kill {
            tracee.kill();
        }
        tracee.let_go()?;
        done
    }

    fn link_in(&self, tracee: &mut Tracee) -> Result<()> {
        let file = std::fs::read(&self.object).context("cannot read it")?;
        let image = Image::parse(&file).context("it is no shared object")?;
        let start = image.symbol("mmu_notifier_alone_start").context("it has no start")?;
        let registers = tracee.registers()?;
        // Room for a few strings below the program's stack, and for the stack of the start.
        let strings = (registers.rsp - 2 * PAGE) & !(PAGE - 1);
        let object = text(&self.object)?;
        let session = CString::new(self.session.as_str())?;
        ensure!(
            object.as_bytes_with_nul().len() + session.as_bytes_with_nul().len() < PAGE as usize,
            "too long"
        );
        let (object_at, session_at) = (strings, strings + object.as_bytes_with_nul().len() as u64);
        tracee.write(object_at, object.as_bytes_with_nul())?;
        tracee.write(session_at, session.as_bytes_with_nul())?;

        let len = image.memory_len();
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let base =
            tracee.system_call(libc::SYS_mmap, [0, len, libc::PROT_NONE as u64, flags, u64::MAX, 0])?;
        let linked = image.map(tracee, base, object_at).and_then(|()| image.link(tracee, base));
        if let Err(error) = linked {
            tracee.system_call(libc::SYS_munmap, [base, len, 0, 0, 0, 0])?;
            return Err(error);
        }
        let started = tracee.call(base + start, strings, [registers.rsp, session_at, object_at]);
        if started.is_err() {
            // Not half of it: nobody has seen the program yet.
            tracee.kill();
        }
        started
    }
}

fn text(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).context("a path with a zero byte")
}

/// A name of the C library, and the address in the object of what is there instead.
type Instead<'a> = (&'a [u8], u64);

/// The object as a file.
struct Image<'a> {
    bytes: &'a [u8],
    segments: Vec<&'a ProgramHeader64<Le>>,
    symbols: &'a [Sym64<Le>],
    names: StringTable<'a>,
    relocations: Vec<&'a Rela64<Le>>,
}

impl<'a> Image<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Image<'a>> {
        let header = FileHeader64::<Le>::parse(bytes).ok()?;
        let segments = header.program_headers(Le, bytes).ok()?;
        let segments: Vec<_> = segments.iter().filter(|segment| segment.p_type(Le) == PT_LOAD).collect();
        let sections = header.sections(Le, bytes).ok()?;
        let symbols = sections.symbols(Le, bytes, SHT_DYNSYM).ok()?;
        let mut relocations = Vec::new();
        for section in sections.iter().filter(|section| section.sh_type(Le) == SHT_RELA) {
            relocations.extend(section.data_as_array::<Rela64<Le>, _>(Le, bytes).ok()?);
        }
        (!segments.is_empty()).then(|| Image {
            bytes,
            segments,
            symbols: symbols.symbols(),
            names: symbols.strings(),
            relocations,
        })
    }

    fn symbol(&self, name: &str) -> Option<u64> {
        let defined = self.symbols.iter().find(|symbol| {
            symbol.st_shndx(Le) != SHN_UNDEF && symbol.name(Le, self.names) == Ok(name.as_bytes())
        });
        defined.map(|symbol| symbol.st_value(Le))
    }

    /// How much memory it takes.
    fn memory_len(&self) -> u64 {
        let end = self.segments.iter().map(|segment| segment.p_vaddr(Le) + segment.p_memsz(Le)).max();
        end.unwrap_or(0).next_multiple_of(PAGE)
    }

    /// Maps the segments over what is reserved for them at `base`.
    fn map(&self, tracee: &mut Tracee, base: u64, path_at: u64) -> Result<()> {
        let open = [libc::AT_FDCWD as u64, path_at, (libc::O_RDONLY | libc::O_CLOEXEC) as u64, 0, 0, 0];
        let descriptor = tracee.system_call(libc::SYS_openat, open).context("it cannot open the object")?;
        for segment in &self.segments {
            let within = segment.p_vaddr(Le) % PAGE;
            let start = base + segment.p_vaddr(Le) - within;
            let file_end = (segment.p_vaddr(Le) + segment.p_filesz(Le)) + base;
            let memory_end = base + segment.p_vaddr(Le) + segment.p_memsz(Le);
            let flags = u64::from(segment.p_flags(Le).0);
            // PF_X, PF_W, PF_R are 1, 2, 4: PROT_EXEC, PROT_WRITE, PROT_READ are 4, 2, 1.
            let protection = (flags & 1) << 2 | flags & 2 | (flags & 4) >> 2;
            let fixed = (libc::MAP_PRIVATE | libc::MAP_FIXED) as u64;
            let offset = segment.p_offset(Le) - within;
            let args =
                [start, file_end.next_multiple_of(PAGE) - start, protection, fixed, descriptor, offset];
            tracee.system_call(libc::SYS_mmap, args)?;
            if memory_end > file_end && segment.p_flags(Le).0 & PF_X.0 == 0 {
                let page_end = file_end.next_multiple_of(PAGE);
                tracee.write(file_end, &vec![0; (page_end.min(memory_end) - file_end) as usize])?;
                if memory_end > page_end {
                    let anonymous = fixed | libc::MAP_ANONYMOUS as u64;
                    let args = [page_end, memory_end - page_end, protection, anonymous, u64::MAX, 0];
                    tracee.system_call(libc::SYS_mmap, args)?;
                }
            }
        }
        tracee.system_call(libc::SYS_close, [descriptor, 0, 0, 0, 0, 0])?;
        Ok(())
    }

    /// What a dynamic linker does with a C library.
    fn link(&self, tracee: &mut Tracee, base: u64) -> Result<()> {
        let (known, missing) = self.instead().context("it has no table of names")?;
        // Each segment is written at once: there are thousands of places.
        let mut written = Vec::new();
        for segment in self.segments.iter().filter(|segment| segment.p_flags(Le).0 & PF_W.0 != 0) {
            let bytes = segment.data(Le, self.bytes).ok().context("a segment is not in the file")?;
            written.push((segment.p_vaddr(Le), bytes.to_vec()));
        }
        for relocation in &self.relocations {
            let addend = relocation.r_addend.get(Le) as u64;
            let symbol =
                self.symbols.get(relocation.r_sym(Le, false) as usize).context("a symbol is missing")?;
            let value = match relocation.r_type(Le, false) {
                R_X86_64_RELATIVE => base + addend,
                R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT if symbol.st_shndx(Le) != SHN_UNDEF => {
                    base + symbol.st_value(Le)
                }
                R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT if symbol.st_bind() == STB_WEAK => 0,
                R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT => {
                    let name = symbol.name(Le, self.names).unwrap_or(b"");
                    base + known
                        .iter()
                        .find(|(known, _)| *known == name)
                        .map_or(missing, |(_, instead)| *instead)
                }
                // One object, with storage that all threads share.
                R_X86_64_DTPMOD64 => 1,
                R_X86_64_DTPOFF64 => symbol.st_value(Le) + addend,
                kind => bail!("a relocation of type {kind:?}"),
            };
            let at = relocation.r_offset.get(Le);
            let place = written.iter_mut().find_map(|(start, bytes)| {
                let within = usize::try_from(at.checked_sub(*start)?).ok()?;
                bytes.get_mut(within..within.checked_add(8)?)
            });
            place.context("a relocation of what is not written")?.copy_from_slice(&value.to_le_bytes());
        }
        for (start, bytes) in written {
            tracee.write(base + start, &bytes)?;
        }
        Ok(())
    }

    /// What stands for the C library: the object's own table of names and addresses, and for all others.
    fn instead(&self) -> Option<(Vec<Instead<'a>>, u64)> {
        let mut at = self.symbol("mmu_notifier_alone")?;
        let pointer = |at: u64| {
            let here = self.relocations.iter().find(|relocation| relocation.r_offset.get(Le) == at)?;
            (here.r_type(Le, false) == R_X86_64_RELATIVE).then(|| here.r_addend.get(Le) as u64)
        };
        let mut known = Vec::new();
        loop {
            let instead = pointer(at + 8)?;
            let Some(name) = pointer(at) else { return Some((known, instead)) };
            let name = self.bytes.get(self.to_offset(name)?..)?.split(|byte| *byte == 0).next()?;
            known.push((name, instead));
            at += 16;
        }
    }

    fn to_offset(&self, address: u64) -> Option<usize> {
        self.segments.iter().find_map(|segment| {
            let within = address.checked_sub(segment.p_vaddr(Le))?;
            (within < segment.p_filesz(Le)).then_some((segment.p_offset(Le) + within) as usize)
        })
    }
}
