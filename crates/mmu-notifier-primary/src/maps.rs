//! The mappings of this process, read from `/proc/self/maps` without allocating.

use mmu_notifier::Range;

use crate::gate::safe::{Errno, File};

/// One line of `/proc/self/maps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping<'a> {
    pub(crate) range: Range,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) executable: bool,
    pub(crate) shared: bool,
    /// Offset of the first byte in the file.
    pub(crate) offset: usize,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Empty for anonymous memory; `[heap]` and the like in brackets.
    pub(crate) path: &'a [u8],
}

/// Calls `visit` for every mapping, in ascending order. Mappings that come and go meanwhile may be missed or
/// seen twice.
pub(crate) fn for_each(visit: impl FnMut(&Mapping<'_>)) -> Result<(), Errno> {
    // On the stack of whoever made the call, so not large.
    for_each_in(&mut [0; 2048], visit)
}

/// The same with room for a part of the file: a line is 73 characters and a path.
pub(crate) fn for_each_in(buffer: &mut [u8], mut visit: impl FnMut(&Mapping<'_>)) -> Result<(), Errno> {
    let file = File::open(c"/proc/self/maps", 0)?;
    let mut filled = 0;
    loop {
        let read = file.read(&mut buffer[filled..])?;
        filled += read;
        let mut line_start = 0;
        while let Some(len) = buffer[line_start..filled].iter().position(|&byte| byte == b'\n') {
            if let Some(mapping) = parse(&buffer[line_start..line_start + len]) {
                visit(&mapping);
            }
            line_start += len + 1;
        }
        if read == 0 {
            return Ok(());
        }
        if line_start == 0 && filled == buffer.len() {
            // A path that is longer than this: the mapping is seen without the path's end.
            buffer[filled - 1] = b'\n';
            continue;
        }
        buffer.copy_within(line_start..filled, 0);
        filled -= line_start.min(filled);
    }
}

pub(crate) fn parse(line: &[u8]) -> Option<Mapping<'_>> {
    let (start, rest) = hex(line)?;
    let (end, rest) = hex(rest.strip_prefix(b"-")?)?;
    let rest = rest.strip_prefix(b" ")?;
    let (permissions, rest) = rest.split_at_checked(4)?;
    let (offset, rest) = hex(rest.strip_prefix(b" ")?)?;
    let (major, rest) = hex(rest.strip_prefix(b" ")?)?;
    let (minor, rest) = hex(rest.strip_prefix(b":")?)?;
    let rest = rest.strip_prefix(b" ")?;
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    let inode =
        rest[..digits].iter().fold(0u64, |n, digit| n.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')));
    let path = rest[digits..].trim_ascii_start();
    Some(Mapping {
        range: Range::new(start, end).ok()?,
        readable: permissions[0] == b'r',
        writable: permissions[1] == b'w',
        executable: permissions[2] == b'x',
        shared: permissions[3] == b's',
        offset,
        device: device(major as u64, minor as u64),
        inode,
        path,
    })
}

/// The number that stat(2) gives for a device (glibc's gnu_dev_makedev(3)).
fn device(major: u64, minor: u64) -> u64 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12 | (major & !0xfff) << 32
}

fn hex(text: &[u8]) -> Option<(usize, &[u8])> {
    let digits = text.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(text.len());
    if digits == 0 {
        return None;
    }
    let value = text[..digits]
        .iter()
        .fold(0usize, |value, &digit| value << 4 | (char::from(digit).to_digit(16).unwrap_or(0) as usize));
    Some((value, &text[digits..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let line =
            b"7f0a5a400000-7f0a5a600000 r-xp 0002a000 fe:01 1234567                   /lib/a b.so (deleted)";
        let mapping = parse(line).unwrap();
        assert_eq!(mapping.range, Range::new(0x7f0a_5a40_0000, 0x7f0a_5a60_0000).unwrap());
        assert!(mapping.readable && !mapping.writable && mapping.executable && !mapping.shared);
        assert_eq!((mapping.offset, mapping.inode), (0x2a000, 1_234_567));
        assert_eq!(mapping.device, 0xfe01);
        assert_eq!(mapping.path, b"/lib/a b.so (deleted)");
        let anonymous = parse(b"7ffd1000-7ffd2000 rw-p 00000000 00:00 0 ").unwrap();
        assert_eq!((anonymous.path, anonymous.executable), (&b""[..], false));
        assert!(anonymous.readable && anonymous.writable);
        assert_eq!(parse(b"7f0a5a400000-7f0a"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn this_process_has_its_own_code_mapped() {
        let here = this_process_has_its_own_code_mapped as fn() as usize;
        let mut found = 0;
        let mut last = 0;
        for_each(|mapping| {
            assert!(mapping.range.start() >= last, "ascending");
            last = mapping.range.end();
            if mapping.range.contains(&Range::with_len(here, 1).unwrap()) {
                assert!(mapping.executable && !mapping.path.is_empty());
                found += 1;
            }
        })
        .unwrap();
        assert_eq!(found, 1);
    }
}
