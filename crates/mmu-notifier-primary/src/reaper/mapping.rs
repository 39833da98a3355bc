//! What a range consists of, and whether the kernel's reaper would take it.

use std::fs::File;
use std::io::{BufRead, BufReader};

use mmu_notifier::{PAGE_SIZE, Range};

use super::EvictError;
use crate::maps;

/// Whether the kernel's OOM reaper would take all of `range` from a victim.
///
/// `__oom_reap_task_mm` takes private mappings, also of files and locked ones. It passes over shared ones, whose memory does
/// not go with a mapping, over huge pages of hugetlbfs, and over what is no memory of pages (`VM_PFNMAP`).
pub(super) fn check(range: Range) -> Result<(), EvictError> {
    if !range.start().is_multiple_of(PAGE_SIZE) || !range.end().is_multiple_of(PAGE_SIZE) {
        return Err(EvictError::Unaligned { range });
    }
    let maps = File::open("/proc/self/smaps").map_err(EvictError::Maps)?;
    check_in(range, BufReader::new(maps))
}

fn check_in(range: Range, smaps: impl BufRead) -> Result<(), EvictError> {
    let mut mapped_to = range.start();
    let mut current = None;
    for line in smaps.split(b'\n') {
        let line = line.map_err(EvictError::Maps)?;
        if let Some(mapping) = maps::parse(&line) {
            if mapping.range.start() >= range.end() {
                break;
            }
            current = mapping.range.intersection(&range);
            let Some(part) = current else { continue };
            if part.start() > mapped_to {
                break;
            }
            if mapping.shared {
                return Err(EvictError::Shared { range: part });
            }
            mapped_to = part.end();
        } else if let (Some(range), Some(flags)) = (current, line.strip_prefix(b"VmFlags:")) {
            let has = |flag: &[u8]| flags.split(|&byte| byte == b' ').any(|it| it == flag);
            if has(b"ht") {
                return Err(EvictError::HugeTlb { range });
            }
            if has(b"pf") {
                return Err(EvictError::NoPages { range });
            }
        }
    }
    match Range::new(mapped_to, range.end()) {
        Ok(_) => Err(EvictError::NotMapped { address: mapped_to }),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
10000-20000 rw-p 00000000 00:00 0 
Rss:                   4 kB
VmFlags: rd wr mr mw me ac lo
20000-30000 r--p 00001000 fe:01 77                          /lib/x.so
VmFlags: rd mr mw me
40000-50000 rw-s 00000000 00:01 5                           /memfd:x (deleted)
VmFlags: rd wr sh mr mw me ms
50000-60000 rw-p 00000000 00:0f 9                           /anon_hugepage (deleted)
VmFlags: rd wr mr mw me de ht
60000-64000 r--p 00000000 00:00 0                          [vvar]
VmFlags: rd mr pf io de dd
";

    fn check_of(start: usize, end: usize) -> Result<(), EvictError> {
        check_in(Range::new(start, end).unwrap(), SMAPS.as_bytes())
    }

    #[test]
    fn private_memory_is_taken_and_what_the_kernel_passes_over_is_not() {
        assert!(check_of(0x10000, 0x20000).is_ok(), "locked memory, too");
        assert!(check_of(0x12000, 0x13000).is_ok());
        assert!(check_of(0x1f000, 0x21000).is_ok(), "two mappings side by side, one of a file");
        assert!(matches!(check_of(0x40000, 0x41000), Err(EvictError::Shared { .. })));
        assert!(matches!(check_of(0x50000, 0x60000), Err(EvictError::HugeTlb { .. })));
        assert!(matches!(check_of(0x61000, 0x62000), Err(EvictError::NoPages { .. })));
    }

    #[test]
    fn a_hole_is_found_wherever_it_is() {
        for (start, end, hole) in
            [(0x2f000, 0x41000, 0x30000), (0x1000, 0x11000, 0x1000), (0x63000, 0x65000, 0x64000)]
        {
            let error = check_of(start, end).unwrap_err();
            let is_pages = matches!(error, EvictError::NoPages { .. });
            assert!(
                is_pages || matches!(error, EvictError::NotMapped { address } if address == hole),
                "{start:#x}: {error}"
            );
        }
    }

    #[test]
    fn this_process_has_a_page_of_the_kernels() {
        let mut vvar = None;
        maps::for_each(|mapping| {
            if mapping.path == b"[vvar]" {
                vvar = Some(mapping.range);
            }
        })
        .unwrap();
        let Some(vvar) = vvar else {
            eprintln!("SKIPPED: this kernel shows no [vvar]");
            return;
        };
        assert!(matches!(check(vvar), Err(EvictError::NoPages { .. })));
    }
}
