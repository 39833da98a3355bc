//! Whether a program loads what it is told to preload: what a file is that is about to be exec'ed.
//!
//! As the kernel will look at it: the file, or the interpreter of a script at the end of the line. Nothing here decides
//! whether the exec succeeds. What cannot be found out is taken for a program as most are; then the kernel has the last word.

use core::ffi::CStr;

use crate::gate::safe::{self, File, FileMode};

/// What becomes of an object that the environment of a program names for preloading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loading {
    /// Its dynamic linker loads it, as far as is known.
    Loaded,
    /// Nothing: it has no dynamic linker.
    Ignored,
    /// It has a dynamic linker that fails on it: that of musl.
    Fails,
}

/// A program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) loading: Loading,
    /// The kernel gives it rights that this process has not, but not while it is traced.
    pub(crate) gains_rights: bool,
}

impl Program {
    const UNKNOWN: Program = Program { loading: Loading::Loaded, gains_rights: false };
}

const AT_FDCWD: usize = -100isize as usize;
const AT_SYMLINK_NOFOLLOW: usize = 0x100;
const AT_EMPTY_PATH: usize = 0x1000;

/// Looks at what `execveat(folder, path, .., flags)` would execute; `path` is an address that may be anything.
pub(crate) fn look(folder: usize, path: usize, flags: usize) -> Program {
    find(folder, path, flags).unwrap_or(Program::UNKNOWN)
}

/// As execve(2): from the current folder.
pub(crate) fn look_from_here(path: usize) -> Program {
    look(AT_FDCWD, path, 0)
}

fn find(folder: usize, path: usize, flags: usize) -> Option<Program> {
    /// Scripts that may be each other's interpreters.
    const SCRIPTS: usize = 5;
    let mut mode = safe::mode_at(folder, path, flags & (AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)).ok()?;
    let mut file = open(folder, path, flags, &mode)?;
    for _ in 0..=SCRIPTS {
        let head = Head::read(&file)?;
        let mut name = [0; HEAD];
        let Some(interpreter) = head.interpreter(&mut name) else { return judge(&file, &head, &mode) };
        let path = interpreter.as_ptr().addr();
        mode = safe::mode_at(AT_FDCWD, path, 0).ok()?;
        file = open(AT_FDCWD, path, 0, &mode)?;
    }
    None
}

/// Opens a file to read it, if it is an ordinary one: others do something when they are opened.
fn open(folder: usize, path: usize, flags: usize, mode: &FileMode) -> Option<File> {
    const S_IFMT: u32 = 0o170_000;
    const S_IFREG: u32 = 0o100_000;
    const O_NOFOLLOW: usize = 0o400_000;
    const O_NONBLOCK: usize = 0o4000;
    if mode.mode & S_IFMT != S_IFREG {
        return None;
    }
    let mut first = [1];
    if flags & AT_EMPTY_PATH != 0 && safe::read_memory(path, &mut first).is_ok() && first == [0] {
        // The descriptor itself, which need not be one for reading.
        let mut link = [0; 26];
        return File::open(safe::descriptor_link(folder, &mut link), O_NONBLOCK).ok();
    }
    let no_follow = if flags & AT_SYMLINK_NOFOLLOW != 0 { O_NOFOLLOW } else { 0 };
    File::open_at(folder, path, no_follow | O_NONBLOCK).ok()
}

/// What the kernel reads of a script.
const HEAD: usize = 256;

/// The beginning of a file, with the table of segments of most programs.
struct Head {
    bytes: [u8; 1024],
    len: usize,
}

impl Head {
    fn read(file: &File) -> Option<Head> {
        let mut head = Head { bytes: [0; 1024], len: 0 };
        head.len = file.read_at(&mut head.bytes, 0).ok()?;
        Some(head)
    }

    /// The interpreter that a script names, as the kernel finds it.
    fn interpreter<'a>(&self, name: &'a mut [u8; HEAD]) -> Option<&'a CStr> {
        let line = self.bytes[..self.len.min(HEAD)].strip_prefix(b"#!")?;
        let blank = |byte: &u8| matches!(*byte, b' ' | b'\t');
        let begin = line.iter().position(|byte| !blank(byte))?;
        let line = &line[begin..];
        let end =
            line.iter().position(|byte| matches!(*byte, b' ' | b'\t' | b'\n' | 0)).unwrap_or(line.len());
        name[..end].copy_from_slice(&line[..end]);
        CStr::from_bytes_until_nul(name).ok()
    }

    /// `len` bytes at `offset` of the file; fewer at its end.
    fn piece<'a>(&'a self, file: &File, offset: usize, buffer: &'a mut [u8]) -> &'a [u8] {
        let end = offset.saturating_add(buffer.len());
        if end <= self.len {
            return &self.bytes[offset..end];
        }
        let read = file.read_at(buffer, offset).unwrap_or(0);
        &buffer[..read]
    }
}

fn judge(file: &File, head: &Head, mode: &FileMode) -> Option<Program> {
    let loading = if is_dynamic_linker(file) { Loading::Loaded } else { elf(file, head)? };
    let gains_rights = loading != Loading::Loaded && gains_rights(file, mode);
    Some(Program { loading, gains_rights })
}

/// `ld.so program` preloads, though nothing loads `ld.so`.
fn is_dynamic_linker(file: &File) -> bool {
    let mut path = [0; 256];
    let path = safe::descriptor_path(file.descriptor(), &mut path);
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    name.starts_with(b"ld-linux") || (name.starts_with(b"ld-2.") && name.ends_with(b".so"))
}

/// Of a 64-bit program for x86-64.
fn elf(file: &File, head: &Head) -> Option<Loading> {
    const EXECUTABLE: u16 = 2;
    const DYNAMIC: u16 = 3;
    const X86_64: u16 = 62;
    const PT_INTERP: u64 = 3;
    /// The size of an entry in the table of segments.
    const ENTRY: usize = 56;
    let bytes = &head.bytes[..head.len];
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let half = |at: usize| Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    if half(18)? != X86_64 || ![EXECUTABLE, DYNAMIC].contains(&half(16)?) || usize::from(half(54)?) != ENTRY {
        return None;
    }
    let table = usize::try_from(word(bytes, 32)?).ok()?;
    for index in 0..usize::from(half(56)?) {
        let mut entry = [0; ENTRY];
        let entry = head.piece(file, table.checked_add(index * ENTRY)?, &mut entry);
        if word(entry, 0)? & 0xffff_ffff != PT_INTERP {
            continue;
        }
        let mut name = [0; 256];
        let len = usize::try_from(word(entry, 32)?).ok()?.min(name.len());
        let name = head.piece(file, usize::try_from(word(entry, 8)?).ok()?, &mut name[..len]);
        let musl = name.windows(7).any(|part| part == b"ld-musl");
        return Some(if musl { Loading::Fails } else { Loading::Loaded });
    }
    Some(Loading::Ignored)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..at.checked_add(8)?)?.as_array()?))
}

fn gains_rights(file: &File, mode: &FileMode) -> bool {
    const SETUID: u32 = 0o4000;
    /// Without the bit for executing it means mandatory locking.
    const SETGID: u32 = 0o2010;
    let (user, group) = safe::ids();
    (mode.mode & SETUID != 0 && mode.user != user)
        || (mode.mode & SETGID == SETGID && mode.group != group)
        // Root has all capabilities before.
        || (user != 0 && safe::has_attribute(file, c"security.capability"))
}
