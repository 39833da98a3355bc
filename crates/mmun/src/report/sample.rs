//! A made-up run for the tests of the reports: the same every time, and shaped like a real one.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::summary::{
    At, Audit, Caller, Calls, Check, Events, Finding, Nearest, Outcome, PutOff, Record, Registered, Summary,
    Times, Unexplained, Unseen, Verdict,
};

/// Files that the tests leave to be looked at.
pub(super) fn directory() -> std::path::PathBuf {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp");
    std::fs::create_dir_all(&directory).expect("a place for the reports of the tests");
    directory
}

pub(super) fn callers() -> Vec<Caller> {
    let caller = |symbol: &str, file: &str| Caller { symbol: symbol.to_owned(), file: file.to_owned() };
    vec![
        caller("sysmalloc+0x1a7", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
        caller("systrim+0x8e", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
        caller("_int_free_maybe_consolidate+0x31", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
        caller("alloc::raw_vec::RawVecInner<A>::finish_grow+0x52", "/home/me/bin/ingest"),
        caller("je_pages_purge_forced+0x19", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"),
        caller("pthread_create@@GLIBC_2.34+0x7c4", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
        caller("_dl_map_segments+0x12f", "/usr/lib64/ld-linux-x86-64.so.2"),
        caller("ingest::arena::Arena::recycle::h9f2c+0x84", "/home/me/bin/ingest"),
        caller("0x7f3a12c04e10", "anonymous executable memory"),
    ]
}

/// A run's records, as many as wanted, all balanced.
pub(super) fn records(number: u64) -> impl Iterator<Item = Record> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) % below.max(1)
    };
    let mut free_at = BTreeMap::<u32, u64>::new();
    let mut now = 180_000;
    (0..number).map(move |index| {
        let phase = index * 10 / number.max(1);
        now += match phase {
            0 => next(20_000),
            3 | 4 => next(4_000),
            7 => next(90_000),
            _ => next(16_000),
        };
        let pid = if next(8) == 0 { 4_242 } else { 4_217 };
        let tid = pid + if phase == 0 { 0 } else { (next(4) * next(5)) as u32 };
        let kinds: [(&str, Option<&str>, u32, u64); 9] = [
            ("mmap", None, 0, 132 << 10),
            ("munmap", Some("unmap"), 2, 132 << 10),
            ("madvise", Some("clear"), 4, 2 << 20),
            ("brk", Some("unmap"), 1, 128 << 10),
            ("mprotect", Some("protection_vma"), 5, 4 << 10),
            ("mremap", Some("unmap"), 3, 8 << 20),
            ("mmap", Some("unmap"), 6, 64 << 10),
            ("clone3", None, 5, 88),
            ("munmap", Some("unmap"), 7, 1 << 20),
        ];
        let odds: [u64; 9] = match phase {
            0 => [40, 5, 0, 8, 20, 0, 24, 2, 1],
            3 | 4 => [10, 12, 60, 4, 2, 3, 1, 0, 8],
            _ => [26, 24, 14, 10, 8, 6, 1, 1, 10],
        };
        let mut at = next(odds.iter().sum());
        let kind = odds
            .iter()
            .position(|&odds| {
                at < odds || {
                    at -= odds;
                    false
                }
            })
            .unwrap_or(0);
        let (call, event, caller, size) = kinds[kind];
        let failed = next(400) == 0;
        let slow = if next(900) == 0 { 1 + next(300) } else { 1 };
        let time = |usual: u64, spread: u64| (usual + spread) * slow;
        let bracketed = event.is_some();
        let record = Record {
            time_ns: now.max(free_at.get(&tid).copied().unwrap_or(0)),
            pid,
            tid,
            call,
            event,
            failed,
            refused: bracketed && next(500) == 0,
            start: 0x7f3a_0000_0000 + (next(1 << 20) << 12),
            len: (size << next(5)) >> next(5),
            starts_ns: if bracketed { time(70, next(60)) } else { 0 },
            change_ns: time(420, next(2_600) + if call == "madvise" { next(9_000) } else { 0 }),
            ends_ns: if bracketed { time(40, next(30)) } else { 0 },
            caller: if next(300) == 0 { 8 } else { caller },
        };
        free_at.insert(tid, record.time_ns + record.starts_ns + record.change_ns + record.ends_ns + 20);
        record
    })
}

/// What a watcher would say of these records.
pub(super) fn summary_of(records: impl Iterator<Item = Record>) -> Summary {
    let mut summary = Summary {
        command: ["ingest", "--threads", "12", "/data/2026-11 raw"].map(str::to_owned).to_vec(),
        outcome: Outcome::Exited(0),
        processes: 2,
        sites: [118, 31, 4],
        mappings_searched: 19,
        search: Duration::from_micros(7_340),
        own_bytes: 1_340_000,
        record_buffer: 16 << 20,
        ..Summary::default()
    };
    let names = ["mmap", "munmap", "mremap", "brk", "madvise", "mprotect", "clone3", "execve", "exit_group"];
    summary.calls = names.map(|name| (name, Calls::default())).into();
    let mut events = BTreeMap::<&str, Events>::new();
    let mut threads = std::collections::BTreeSet::new();
    for record in records {
        threads.insert(record.tid);
        summary.records += 1;
        let end = record.time_ns + record.starts_ns + record.change_ns + record.ends_ns;
        summary.wall = summary.wall.max(Duration::from_nanos(end + 90_000));
        let calls = summary.calls.entry(record.call).or_default();
        calls.count += 1;
        calls.failed += u64::from(record.failed);
        if let Some(event) = record.event {
            calls.bracketed += 1;
            let events = events.entry(event).or_default();
            events.changes += 1;
            events.bytes += record.len;
            summary.balance_starts += 1;
            summary.balance_ends += 1;
            add(&mut summary.starts, record.starts_ns);
            add(&mut summary.changes, record.change_ns);
            add(&mut summary.ends, record.ends_ns);
        }
    }
    summary.threads = threads.len() as u64;
    let order = ["unmap", "clear", "protection_vma"];
    summary.events = order.iter().filter_map(|&name| Some((name, *events.get(name)?))).collect();
    summary
}

fn add(times: &mut Times, took: u64) {
    times.count += 1;
    times.total_ns += took;
    times.max_ns = times.max_ns.max(took);
    // As with a time stamp counter of 2.1 GHz: the bounds are no round numbers.
    let ticks = took * 21 / 10;
    let bound = (2_u64 << ticks.max(1).ilog2()) * 10 / 21;
    match times.buckets.binary_search_by_key(&bound, |&(bound, _)| bound) {
        Ok(at) => times.buckets[at].1 += 1,
        Err(at) => times.buckets.insert(at, (bound, 1)),
    }
}

/// A run in which all went well.
pub(super) fn summary() -> Summary {
    summary_of(records(20_000))
}

/// A run in which nearly everything went wrong that can be reported.
pub(super) fn troubled() -> Summary {
    let unseen = |reason, file: &str, call: Option<&str>, processes| Unseen {
        reason,
        file: file.to_owned(),
        call: call.map(str::to_owned),
        address: 0x7f3a_12c0_4e10,
        processes,
    };
    Summary {
        outcome: Outcome::Killed(11),
        processes_lost: 2,
        processes_left: 1,
        programs_unseen: [("/bin/static".to_owned(), 3), ("/usr/bin/su".to_owned(), 1)].into(),
        balance_starts: 1_236,
        balance_ends: 1_231,
        cut_short: 1,
        abandoned: 3,
        refuse_every: 100,
        refused: 12,
        announced_again: 12,
        put_off: PutOff { ranges: 3, bytes: 48 << 10, by_worker: 1, by_calls: 1, declined: 2 },
        records_dropped: 7,
        own_calls: 1,
        unseen: vec![
            unseen(
                "instructions of a shape that cannot be rewritten",
                "/usr/lib/libcuda.so.1",
                Some("mmap"),
                2,
            ),
            unseen("executable memory made at run time", "[anonymous]", None, 1),
            unseen("the file behind the mapping could not be read", "/tmp/.mount_App/lib/plugin.so", None, 1),
        ],
        unseen_more: 12,
        check: Some(check()),
        audit: Some(audit()),
        ..summary()
    }
}

/// One finding of each verdict, and one that came to nothing.
pub(super) fn check() -> Check {
    let stack = |names: &[&str]| -> Vec<Caller> {
        let frame =
            |name: &&str| Caller { symbol: (*name).to_owned(), file: "/home/me/bin/ingest".to_owned() };
        names.iter().map(frame).collect()
    };
    let finding = |verdict, kind, index, call: &str| Finding {
        verdict,
        kind,
        times: 3,
        registrations: 4,
        descriptor: Some(7),
        index,
        start: 0x7f3a_12c0_4000,
        len: 1 << 20,
        from: 0x7f3a_12c0_6000,
        changed: 8192,
        pages: 2,
        other: 1,
        empty: 1,
        unmapped: 0,
        inherited: false,
        taken_back: false,
        pid: 4_217,
        registered: At {
            call: "io_uring_register".to_owned(),
            tid: 4_217,
            time_ns: 1_200_000,
            stack: stack(&["syscall+0x19", "ingest::pool::Pool::register::h12ab+0x44", "main+0x21"]),
        },
        changed_by: At {
            call: call.to_owned(),
            tid: 4_219,
            time_ns: 7_000_000_000,
            stack: stack(&["madvise+0xb"; 14]),
        },
    };
    let unmapped = Finding {
        other: 0,
        empty: 0,
        unmapped: 2,
        ..finding(Verdict::Unmapped, Registered::Buffer, 3, "munmap")
    };
    Check {
        registered: vec![
            (Registered::Buffer, 40, 40 << 20),
            (Registered::Vfio, 1, 1 << 30),
            (Registered::Lock, 2, 8192),
        ],
        changes: 12,
        compared: 4_000,
        untracked: 1,
        missed: 2,
        lost: 3,
        unchecked: 1,
        blind: 1,
        findings: vec![
            finding(Verdict::Stale, Registered::Buffer, 3, "madvise(MADV_DONTNEED)"),
            Finding { inherited: true, ..finding(Verdict::Stale, Registered::Buffer, 0, "io_uring_enter") },
            finding(Verdict::Stale, Registered::Vfio, 0x1_0000_0000, "mremap(MREMAP_DONTUNMAP)"),
            unmapped.clone(),
            finding(Verdict::Exposed, Registered::Buffer, 3, "mprotect(PROT_READ)"),
            finding(Verdict::Dangling, Registered::Memslot, 1, "munmap"),
            Finding {
                descriptor: None,
                ..finding(Verdict::Unlocked, Registered::Lock, 0, "mmap(MAP_FIXED)")
            },
            Finding { taken_back: true, ..unmapped },
        ],
    }
}

/// An audit that found what it was made for.
pub(super) fn audit() -> Audit {
    let place = Unexplained {
        call: Some("munmap".to_owned()),
        caller: Caller { symbol: "unmap_raw+0x12".to_owned(), file: "/home/me/bin/ingest".to_owned() },
        count: 2,
        pid: 4_217,
        tid: 4_219,
        start: 0x7f3a_12c0_0000,
        len: 4096,
        nearest: Some(Nearest { call: "mmap", start: 0x7f3a_0000_0000, len: 8192, before_ns: Some(3_000) }),
        chain: ["unmap_vmas", "do_vmi_munmap", "__x64_sys_munmap"].map(str::to_owned).to_vec(),
    };
    Audit {
        invalidations: 1_000,
        covered: 900,
        causes: vec![("fault", "first writes and copies on write", 90), ("write_back", "write-back", 8)],
        unexplained: 2,
        kinds: vec![place],
        samples_lost: 2,
        records_lost: 1,
        judged: 3,
        without_oracle: [("it could not open /dev/kvm: Permission denied".to_owned(), 1)].into(),
        elsewhere: 5,
        ..Audit::default()
    }
}
