//! Why the kernel invalidates when nobody asked it to: read off its own call chain.
//!
//! A cause is only given if the function that does it is in the chain. The innermost counts: a page fault that finds no
//! memory and makes the kernel reclaim some is reclaim. None of these changes what an address means, which is what the
//! brackets are about; what does (`unmap_mapping_range` of a truncated file, `io_madvise`, `move_pages` of userfaultfd) is
//! not in this table.

/// A cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A page was written to for the first time, or copied as it was shared.
    Fault,
    /// A mapping was cut inside a block of 2 MiB, all of which the kernel invalidates.
    Split,
    /// Dirty pages of a file are write-protected before they are written.
    WriteBack,
    /// Pages move to other frames: compaction, NUMA, `move_pages`.
    Migration,
    /// Pages are taken away that can be had again.
    Reclaim,
    /// Equal pages become one.
    Ksm,
    /// Small pages become a huge one.
    Collapse,
    /// Pages are made inaccessible to see who uses them.
    NumaBalancing,
    /// Pages are write-protected to see who writes: `clear_refs`, `PAGEMAP_SCAN`.
    DirtyTracking,
    /// Pages are write-protected, or no more, by userfaultfd.
    Userfaultfd,
    /// The process is being killed and its memory taken.
    OomReaper,
    /// A new mapping could not be completed, and what there was of it is undone: nothing was there before.
    FailedMapping,
    /// A task that is not of this address space did it.
    ForeignTask,
    /// The hook or this program, with memory of their own.
    Hook,
}

impl Cause {
    /// All of them.
    pub const ALL: [Cause; 14] = [
        Cause::Fault,
        Cause::Split,
        Cause::WriteBack,
        Cause::Migration,
        Cause::Reclaim,
        Cause::Ksm,
        Cause::Collapse,
        Cause::NumaBalancing,
        Cause::DirtyTracking,
        Cause::Userfaultfd,
        Cause::OomReaper,
        Cause::FailedMapping,
        Cause::ForeignTask,
        Cause::Hook,
    ];

    /// A word for scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Cause::Fault => "fault",
            Cause::Split => "split",
            Cause::WriteBack => "write_back",
            Cause::Migration => "migration",
            Cause::Reclaim => "reclaim",
            Cause::Ksm => "ksm",
            Cause::Collapse => "collapse",
            Cause::NumaBalancing => "numa_balancing",
            Cause::DirtyTracking => "dirty_tracking",
            Cause::Userfaultfd => "userfaultfd",
            Cause::OomReaper => "oom_reaper",
            Cause::FailedMapping => "failed_mapping",
            Cause::ForeignTask => "foreign_task",
            Cause::Hook => "hook",
        }
    }

    /// Words for people.
    pub const fn words(self) -> &'static str {
        match self {
            Cause::Fault => "first writes and copies on write",
            Cause::Split => "splits of 2 MiB blocks",
            Cause::WriteBack => "write-back",
            Cause::Migration => "compaction and migration",
            Cause::Reclaim => "reclaim",
            Cause::Ksm => "merging of equal pages",
            Cause::Collapse => "collapses to huge pages",
            Cause::NumaBalancing => "NUMA balancing",
            Cause::DirtyTracking => "dirty tracking",
            Cause::Userfaultfd => "userfaultfd write-protection",
            Cause::OomReaper => "the OOM reaper",
            Cause::FailedMapping => "new mappings that failed",
            Cause::ForeignTask => "foreign tasks",
            Cause::Hook => "memory of the watching itself",
        }
    }

    /// The cause that a call chain of the kernel (innermost first) shows.
    pub fn shown_by<'a>(mut chain: impl Iterator<Item = &'a str>) -> Option<Cause> {
        let mut inner = "";
        chain.find_map(|name| {
            let calls = (name, std::mem::replace(&mut inner, name));
            Cause::of_function(name).or_else(|| Cause::of_call(calls))
        })
    }

    /// What only says something together with what it calls.
    fn of_call(calls: (&str, &str)) -> Option<Cause> {
        match calls {
            // Where something is mapped over, it goes by other ways (`vms_clear_ptes`, `do_vmi_munmap`).
            ("__mmap_region" | "mmap_region" | "__mmap_new_vma" | "__mmap_new_file_vma", "unmap_region") => {
                Some(Cause::FailedMapping)
            }
            _ => None,
        }
    }

    fn of_function(name: &str) -> Option<Cause> {
        Some(match name {
            "__split_huge_pmd"
            | "split_huge_pmd_locked"
            | "split_huge_pmd_address"
            | "__split_huge_pud"
            | "vma_adjust_trans_huge"
            | "hugetlb_unshare_pmds" => Cause::Split,
            "page_vma_mkclean_one" | "page_mkclean_one" | "folio_mkclean" | "page_mkclean" => {
                Cause::WriteBack
            }
            "try_to_migrate_one" | "try_to_migrate" | "migrate_pages" => Cause::Migration,
            "try_to_unmap_one" | "try_to_unmap" | "shrink_folio_list" | "shrink_page_list" => Cause::Reclaim,
            "write_protect_page"
            | "replace_page"
            | "try_to_merge_one_page"
            | "try_to_merge_with_ksm_page" => Cause::Ksm,
            "collapse_huge_page"
            | "collapse_file"
            | "retract_page_tables"
            | "collapse_pte_mapped_thp"
            | "try_collapse_pte_mapped_thp"
            | "hpage_collapse_scan_pmd"
            | "khugepaged" => Cause::Collapse,
            "change_prot_numa" | "task_numa_work" => Cause::NumaBalancing,
            "clear_refs_write" | "do_pagemap_scan" | "pagemap_scan_pmd_entry" => Cause::DirtyTracking,
            "mwriteprotect_range" | "uffd_wp_range" => Cause::Userfaultfd,
            "__oom_reap_task_mm" | "oom_reap_task_mm" | "oom_reaper" => Cause::OomReaper,
            "do_wp_page" | "wp_page_copy" | "do_cow_fault" | "hugetlb_wp" | "hugetlb_fault"
            | "handle_pte_fault" | "__handle_mm_fault" | "handle_mm_fault" => Cause::Fault,
            _ => return None,
        })
    }
}

/// The system call that a call chain of the kernel (innermost first) is in, by its function.
pub fn system_call<'a>(mut chain: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    chain.find_map(|name| {
        // Some entries are left by a jump to what does the work.
        let entry = ["__x64_sys_", "__do_sys_", "__se_sys_", "ksys_", "do_sys_"];
        let name = entry.iter().find_map(|prefix| name.strip_prefix(prefix))?;
        Some(name.strip_suffix("_pgoff").unwrap_or(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(chain: &[&str]) -> Option<Cause> {
        Cause::shown_by(chain.iter().copied())
    }

    #[test]
    fn the_innermost_counts() {
        assert_eq!(of(&["do_wp_page", "handle_mm_fault", "exc_page_fault"]), Some(Cause::Fault));
        assert_eq!(of(&["try_to_unmap_one", "shrink_node", "handle_mm_fault"]), Some(Cause::Reclaim));
        assert_eq!(of(&["__split_huge_pmd", "do_vmi_munmap", "__x64_sys_munmap"]), Some(Cause::Split));
    }

    #[test]
    fn what_failed_is_told_from_what_was_mapped_over() {
        assert_eq!(
            of(&["unmap_vmas", "unmap_region", "__mmap_region", "do_mmap"]),
            Some(Cause::FailedMapping)
        );
        assert_eq!(of(&["unmap_vmas", "vms_clear_ptes", "__mmap_region", "do_mmap"]), None);
        assert_eq!(of(&["unmap_vmas", "unmap_region", "do_vmi_align_munmap", "mmap_region"]), None);
    }

    #[test]
    fn what_changes_an_address_has_no_cause() {
        for chain in [
            &["unmap_vmas", "do_vmi_munmap", "__x64_sys_munmap"][..],
            &["zap_page_range_single", "unmap_mapping_range", "truncate_pagecache", "__x64_sys_openat"],
            &["move_pages", "userfaultfd_ioctl", "__x64_sys_ioctl"],
            &["do_madvise", "io_madvise", "io_wq_worker"],
            &["copy_page_range", "dup_mmap", "kernel_clone", "__x64_sys_clone"],
        ] {
            assert_eq!(of(chain), None, "{chain:?}");
        }
    }

    #[test]
    fn system_calls_are_named() {
        let of = |chain: &[&'static str]| system_call(chain.iter().copied());
        assert_eq!(of(&["unmap_vmas", "__vm_munmap", "__x64_sys_munmap", "do_syscall_64"]), Some("munmap"));
        assert_eq!(of(&["do_mmap", "vm_mmap_pgoff", "ksys_mmap_pgoff", "do_syscall_64"]), Some("mmap"));
        assert_eq!(of(&["do_wp_page", "exc_page_fault"]), None);
    }
}
