//! Which file a command means, and whether it can be watched.
//!
//! The search is that of `execvp`, scripts are followed by the kernel's rules, and the verdict falls on
//! the executable at the end. What cannot be run gets the statuses that shells use (127 and 126); what
//! can be run but not be watched (`LD_PRELOAD` would silently do nothing) is mmun's own failure.

// UNSAFETY: asks the kernel about access rights, ids and mounts, by libc calls.
#![expect(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::elf::{self, Kind};

/// Where `execvp` looks without `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// Scripts that may be each other's interpreters; the kernel says `ELOOP` then.
const SCRIPTS: usize = 5;
/// What the kernel reads of a script.
const SCRIPT_HEAD: usize = 256;

/// Why a program is not run: a status and a sentence.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 125, 126 or 127.
    pub status: i32,
    sentence: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Refusal {}

/// Finds the file to execute.
pub fn resolve(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, Refusal> {
    let not_found = |reason: &str| refuse(127, name, reason);
    if name.is_empty() {
        return Err(not_found("there is no program without a name"));
    }
    if name.as_bytes().contains(&0) {
        return Err(not_found("no file has a name with a zero byte"));
    }
    if name.as_bytes().contains(&b'/') {
        let file = PathBuf::from(name);
        return may_execute(&file).map(|()| file.clone()).map_err(|error| cannot_execute(&file, &error));
    }
    let mut denied = None;
    for folder in path.unwrap_or(DEFAULT_PATH.as_ref()).as_bytes().split(|byte| *byte == b':') {
        // An empty entry is the current folder.
        let folder = if folder.is_empty() { b"." } else { folder };
        let file = Path::new(OsStr::from_bytes(folder)).join(name);
        match may_execute(&file) {
            Ok(()) => return Ok(file),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                denied.get_or_insert((file, error));
            }
            Err(_) => {}
        }
    }
    Err(match denied {
        Some((file, error)) => cannot_execute(&file, &error),
        None => not_found("not found in PATH; if it is in this folder, say ./ before it"),
    })
}

/// How the object gets into a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The dynamic linker loads it.
    Preload,
    /// mmun puts it there itself, as the program has no dynamic linker, or that of another C library.
    Inject,
}

/// Says how the program can be watched, and if not, why and what to do.
pub fn check(program: &Path) -> Result<Way, Refusal> {
    let mut file = program.to_owned();
    for _ in 0..=SCRIPTS {
        let Ok(open) = File::open(&file) else {
            // Executable and not readable: the kernel can run it, so let it try.
            return Ok(Way::Preload);
        };
        let kind =
            elf::judge(&open).map_err(|error| refuse(126, &file, &format!("cannot read it: {error}")))?;
        if kind != Kind::Script {
            return judge(&file, &open, &kind);
        }
        let interpreter = script_interpreter(&file, &open)?;
        if let Err(error) = may_execute(&interpreter) {
            let reason = format!("its interpreter {} cannot be executed: {error}", interpreter.display());
            return Err(refuse(126, &file, &reason));
        }
        file = interpreter;
    }
    Err(refuse(126, program, "its interpreter is a script, whose interpreter is a script, and so on"))
}

fn judge(file: &Path, open: &File, kind: &Kind) -> Result<Way, Refusal> {
    let no = |status, reason: &str| Err(refuse(status, file, reason));
    match kind {
        Kind::Script => unreachable!("scripts are followed"),
        Kind::ThirtyTwoBits => no(126, "a 32-bit program; mmun watches 64-bit x86-64 programs"),
        Kind::Foreign(machine) => no(
            126,
            &format!("made for another processor (ELF machine {machine}); mmun watches x86-64 programs"),
        ),
        Kind::Broken => no(126, "a damaged ELF file, or one that is no program"),
        Kind::Text => {
            let hint =
                format!("text without a #! line, which only shells run: say mmun run sh {}", file.display());
            no(126, &hint)
        }
        Kind::Unknown => no(126, "not in a format that can be executed"),
        Kind::Static if is_dynamic_linker(file) => Ok(Way::Preload),
        Kind::Static => match gains_rights(file, open) {
            Some(what) => {
                no(125, &format!("{what}, which it loses when mmun puts something into it: {AS_USER}"))
            }
            None => Ok(Way::Inject),
        },
        Kind::Dynamic { interpreter } => match gains_rights(file, open) {
            Some(what) => {
                no(125, &format!("{what}, so that the dynamic linker ignores LD_PRELOAD: {AS_USER}"))
            }
            None if interpreter.contains("ld-musl") => Ok(Way::Inject),
            None => Ok(Way::Preload),
        },
    }
}

/// What to do with a program that gains rights.
const AS_USER: &str = "run it as the user it turns into, or run a copy of it without that";

/// `ld.so program` honours `LD_PRELOAD`, though nothing loads `ld.so`.
fn is_dynamic_linker(file: &Path) -> bool {
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let name = file.file_name().unwrap_or_default().as_bytes();
    name.starts_with(b"ld-linux") || (name.starts_with(b"ld-2.") && name.ends_with(b".so"))
}

/// The interpreter of a script, by the kernel's rules: no search, relative to the current folder.
fn script_interpreter(script: &Path, open: &File) -> Result<PathBuf, Refusal> {
    let mut head = [0; SCRIPT_HEAD];
    let len = elf::read_at(open, &mut head, 0)
        .map_err(|error| refuse(126, script, &format!("cannot read it: {error}")))?;
    let line = head[..len].split(|byte| *byte == b'\n' || *byte == 0).next().unwrap_or_default();
    let blank = |byte: &u8| matches!(*byte, b' ' | b'\t');
    let rest = line.get(2..).unwrap_or_default();
    let begin = rest.iter().position(|byte| !blank(byte)).unwrap_or(rest.len());
    let name = rest[begin..].split(blank).next().unwrap_or_default();
    if name.is_empty() {
        return Err(refuse(126, script, "a script whose #! line names no interpreter"));
    }
    // A name that reaches the end of what the kernel reads may go on: the kernel refuses it.
    if len == SCRIPT_HEAD && begin + 2 + name.len() == SCRIPT_HEAD {
        return Err(refuse(126, script, "a script whose #! line is too long"));
    }
    let name = name.strip_suffix(b"\r").map_or(Ok(name), |name| {
        let reason = format!(
            "a script with Windows line ends: the system looks for the interpreter {}\\r",
            String::from_utf8_lossy(name)
        );
        Err(refuse(126, script, &reason))
    })?;
    Ok(OsString::from_vec(name.to_owned()).into())
}

/// Whether the kernel makes a program of this file "secure" because it gets rights that we have not.
fn gains_rights(path: &Path, open: &File) -> Option<&'static str> {
    let file = open.metadata().ok()?;
    // SAFETY: these two cannot fail and touch nothing.
    let (user, group) = unsafe { (libc::getuid(), libc::getgid()) };
    let what = set_id(&file, user, group).or_else(|| {
        // Root has all capabilities before.
        (user != 0 && has_capabilities(path)).then_some("it has file capabilities")
    })?;
    (!rights_are_ignored(path)).then_some(what)
}

fn set_id(file: &Metadata, user: u32, group: u32) -> Option<&'static str> {
    let mode = file.mode();
    if mode & libc::S_ISUID != 0 && file.uid() != user {
        return Some("it is setuid");
    }
    // Without the execute bit it means mandatory locking.
    let setgid = libc::S_ISGID | libc::S_IXGRP;
    (mode & setgid == setgid && file.gid() != group).then_some("it is setgid")
}

fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: both names are terminated; with a size of 0 nothing is written.
    let size =
        unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    size > 0
}

/// On a mount with `nosuid`, or in a process that may gain no rights, the bits mean nothing.
fn rights_are_ignored(path: &Path) -> bool {
    // SAFETY: a question about ourselves.
    if unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) } == 1 {
        return true;
    }
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: a structure of integers, for which zeroes are valid.
    let mut mount: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is terminated; writes to `mount` only.
    let known = unsafe { libc::statvfs(path.as_ptr(), &mut mount) } == 0;
    known && mount.f_flag & libc::ST_NOSUID != 0
}

/// Whether `execve` would get as far as looking into the file.
fn may_execute(file: &Path) -> std::io::Result<()> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "it is a folder" } else { "it is no regular file" };
        return Err(std::io::Error::new(ErrorKind::PermissionDenied, what));
    }
    let path = CString::new(file.as_os_str().as_bytes())?;
    // SAFETY: the path is terminated.
    let answer = unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) };
    if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn cannot_execute(file: &Path, error: &std::io::Error) -> Refusal {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => refuse(127, file, "no such file"),
        ErrorKind::PermissionDenied if error.raw_os_error().is_some() => {
            refuse(126, file, "may not be executed; does it lack the execute bit (chmod +x)?")
        }
        _ => refuse(126, file, &format!("cannot be executed: {error}")),
    }
}

/// What it means that `execve` failed on a program that had passed all checks.
pub fn exec_failed(file: &Path, error: &std::io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(libc::E2BIG) => refuse(126, file, "its arguments and variables are too long"),
        _ => cannot_execute(file, error),
    }
}

fn refuse(status: i32, file: impl AsRef<OsStr>, reason: &str) -> Refusal {
    Refusal { status, sentence: format!("{}: {reason}", file.as_ref().display()) }
}

#[cfg(test)]
#[path = "program_tests.rs"]
mod tests;
