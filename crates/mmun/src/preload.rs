//! The object that is loaded into programs: carried in this executable, kept in a cache.
//!
//! The dynamic linker wants a file. It is named by its content, so that several versions live side by
//! side, and written once: to a temporary name, then renamed.

// UNSAFETY: asks the kernel for the user's id and for the flags of a mount.
#![expect(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libmmu_notifier_capi.so"));
/// Of its content, made when it was built.
const HASH: &str = include_str!(concat!(env!("OUT_DIR"), "/object-hash"));

/// The object's file, written if it is not there yet.
pub fn object() -> Result<PathBuf> {
    let mut failures = Vec::new();
    for folder in folders() {
        match install(&folder, OBJECT, HASH) {
            Ok(file) => return Ok(file),
            Err(error) => failures.push(format!("\n  {}: {error:#}", folder.display())),
        }
    }
    bail!(
        "found no place for the object that is to be preloaded:{}\n  set XDG_CACHE_HOME to a folder of \
         yours on a mount that allows execution",
        failures.concat()
    );
}

/// Candidates, best first.
fn folders() -> Vec<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    // SAFETY: cannot fail and touches nothing.
    let user = unsafe { libc::geteuid() };
    cache.map(|cache| cache.join("mmun")).into_iter().chain([format!("/tmp/mmun-{user}").into()]).collect()
}

fn install(folder: &Path, object: &[u8], hash: &str) -> Result<PathBuf> {
    let name = format!("libmmu_notifier_capi-{hash}.so");
    let file = folder.join(name);
    // LD_PRELOAD is a list, and `$` begins a variable of the dynamic linker's in it.
    let awkward = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b':' | b'$');
    ensure!(
        !file.as_os_str().as_bytes().iter().any(awkward),
        "a path with a space, a colon or a dollar sign cannot be preloaded"
    );
    prepare(folder)?;
    if holds(&file, object).unwrap_or(false) {
        return Ok(file);
    }
    let temporary = folder.join(format!(".{}.tmp", std::process::id()));
    let written = write(&temporary, object).and_then(|()| fs::rename(&temporary, &file));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.context("cannot write")?;
    Ok(file)
}

/// Whether a file is these bytes, without memory for all of it: this is done at every start.
fn holds(file: &Path, bytes: &[u8]) -> std::io::Result<bool> {
    let mut file = File::open(file)?;
    if file.metadata()?.len() != bytes.len() as u64 {
        return Ok(false);
    }
    let mut buffer = [0; 16 << 10];
    for expected in bytes.chunks(buffer.len()) {
        let found = &mut buffer[..expected.len()];
        file.read_exact(found)?;
        if found != expected {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the folder, and refuses one that others could put something into.
fn prepare(folder: &Path) -> Result<()> {
    if let Some(above) = folder.parent() {
        fs::create_dir_all(above).with_context(|| format!("cannot make {}", above.display()))?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).context("cannot make it");
        }
        _ => {}
    }
    let found = fs::symlink_metadata(folder).context("cannot look at it")?;
    // SAFETY: cannot fail and touches nothing.
    let user = unsafe { libc::geteuid() };
    ensure!(found.is_dir(), "is not a folder");
    ensure!(found.uid() == user, "belongs to another user ({})", found.uid());
    ensure!(found.mode() & 0o022 == 0, "others may write to it (mode {:o})", found.mode() & 0o7777);
    ensure!(!mounted_noexec(folder)?, "is on a mount that forbids execution (noexec)");
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // A leftover of a process that had our pid; `create_new` follows no link that somebody laid.
    let _ = fs::remove_file(path);
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o700).open(path)?;
    file.write_all(bytes)
}

fn mounted_noexec(folder: &Path) -> Result<bool> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: a structure of integers, for which zeroes are valid.
    let mut mount: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is terminated; writes to `mount` only.
    if unsafe { libc::statvfs(path.as_ptr(), &mut mount) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot ask for its mount");
    }
    Ok(mount.f_flag & libc::ST_NOEXEC != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn is_written_once_and_checked() {
        let folder = std::env::temp_dir().join(format!("mmun-preload-{}", std::process::id()));
        let cache = folder.join("a/mmun");
        let file = install(&cache, b"object", "1").unwrap();
        let first = fs::metadata(&file).unwrap().ino();
        assert_eq!(fs::metadata(&cache).unwrap().mode() & 0o777, 0o700);
        assert_eq!(install(&cache, b"object", "1").unwrap(), file);
        assert_eq!(fs::metadata(&file).unwrap().ino(), first, "not written again");
        for torn in ["torn", "objekt", "object, and more"] {
            fs::write(&file, torn).unwrap();
            install(&cache, b"object", "1").unwrap();
            assert_eq!(fs::read(&file).unwrap(), b"object", "{torn} is repaired");
        }
        assert_ne!(install(&cache, b"other!", "2").unwrap(), file);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 2, "nothing temporary left");

        fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
        let open = install(&cache, b"object", "1").unwrap_err();
        assert!(open.to_string().contains("others may write"), "{open}");
        let spaced = install(&folder.join("my cache/mmun"), b"object", "1").unwrap_err();
        assert!(spaced.to_string().contains("cannot be preloaded"), "{spaced}");
        assert!(install(Path::new("/proc/mmun"), b"object", "1").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn sees_noexec_mounts() {
        let maps = fs::read_to_string("/proc/self/mounts").unwrap();
        let noexec =
            |line: &&str| line.split(' ').nth(3).is_some_and(|o| o.split(',').any(|o| o == "noexec"));
        match maps.lines().find(noexec).and_then(|line| line.split(' ').nth(1)) {
            Some(mount) => assert!(mounted_noexec(Path::new(mount)).unwrap(), "{mount}"),
            None => println!("skipped: nothing here is mounted noexec"),
        }
        assert!(!mounted_noexec(Path::new("/bin")).unwrap());
    }
}
