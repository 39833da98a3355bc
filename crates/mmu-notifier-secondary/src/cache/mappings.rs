//! Why memory could not be registered, as far as the process's mappings say.

use mmu_notifier::Range;

use super::error::{GetError, Rights};
use super::registrar::{Access, RegisterError};

/// The error of a registrar, or a better one if the mappings explain it. Reads `/proc/self/maps`.
pub(super) fn why(range: Range, access: Access, error: RegisterError) -> GetError {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return GetError::Register { range, access, error };
    };
    explain(&maps, range, access).unwrap_or(GetError::Register { range, access, error })
}

fn explain(maps: &str, range: Range, access: Access) -> Option<GetError> {
    let needed = Rights { read: access.includes(Access::Read), write: access.includes(Access::Write) };
    let mut next = range.start();
    for (mapping, rights) in maps.lines().filter_map(mapping).filter(|(it, _)| it.overlaps(&range)) {
        if mapping.start() > next {
            return Some(GetError::NotMapped { range, hole: next });
        }
        if needed.read && !rights.read || needed.write && !rights.write {
            return Some(GetError::Forbidden { range, access, mapping, rights, needed });
        }
        next = mapping.end();
    }
    (next < range.end()).then_some(GetError::NotMapped { range, hole: next })
}

/// A line of `/proc/self/maps`: proc(5).
fn mapping(line: &str) -> Option<(Range, Rights)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let rights = words.next()?.as_bytes();
    let rights = Rights { read: rights.first() == Some(&b'r'), write: rights.get(1) == Some(&b'w') };
    Some((Range::new(address(start)?, address(end)?).ok()?, rights))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
        10000-14000 rw-p 00000000 00:00 0\n\
        14000-16000 r--p 00000000 08:01 1234       /usr/lib/a name with spaces.so\n\
        18000-19000 ---p 00000000 00:00 0          [stack]\n";

    fn explained(start: usize, end: usize, access: Access) -> Option<String> {
        let range = Range::new(start, end).unwrap();
        explain(MAPS, range, access).map(|error| error.to_string())
    }

    #[test]
    fn what_is_mapped_with_the_rights_is_not_explained() {
        assert_eq!(explained(0x10000, 0x16000, Access::Read), None);
        assert_eq!(explained(0x11000, 0x14000, Access::ReadWrite), None);
    }

    #[test]
    fn holes_are_named_by_their_first_address() {
        for (start, end, hole) in
            [(0x9000, 0x11000, "0x9000"), (0x15000, 0x19000, "0x16000"), (0x20000, 0x21000, "0x20000")]
        {
            let text = explained(start, end, Access::Read).unwrap();
            assert!(text.contains(&format!("nothing is mapped at {hole}")), "{text}");
        }
    }

    #[test]
    fn missing_rights_are_named_with_the_mapping() {
        let text = explained(0x13000, 0x15000, Access::Write).unwrap();
        assert!(text.contains("[0x14000, 0x16000) is r--, and that takes -w-"), "{text}");
    }
}
