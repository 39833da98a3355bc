//! `mmun run --check`: mistakes with registered memory are found, each with who registered and who changed; programs
//! without mistakes are clean.
//!
//! `mistakes.c` says of each row what the program sees after a read through its registration: where that is not what was
//! read, and only there, the verdict must be that the registration is stale.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::command::{self, Ended, MMUN, Mmun, Report};
use crate::program::{compile, find, skipped, workshop};

const STALE: i32 = 66;

/// The programs and the file that they read.
struct Shop {
    dir: PathBuf,
    mistakes: String,
}

impl Shop {
    fn new(test: &str) -> Shop {
        let dir = workshop(test);
        fs::write(dir.join("file"), [b'B'; 1 << 16]).unwrap();
        let mistakes = compile(&dir, "mistakes").display().to_string();
        Shop { dir, mistakes }
    }

    fn run(&self, row: &str) -> (Ended, Report) {
        let mmun = Mmun::new(&self.dir).label(row).option("--check");
        let (ended, report) = mmun.run(&[&self.mistakes, row, "file"]);
        report.assert_balanced();
        for key in ["untracked", "missed", "lost", "processes_unchecked", "processes_blind"] {
            assert_eq!(report.number(&format!("check.{key}")), 0, "{row}: {key}");
        }
        (ended, report)
    }

    fn findings(&self, row: &str) -> (Ended, Vec<Value>) {
        let (ended, report) = self.run(row);
        let findings = report.value("check.findings").as_array().expect("a list").clone();
        (ended, findings)
    }
}

/// What has no io_uring or no KVM cannot make the mistake.
fn can(test: &str, row: &str) -> bool {
    if (row.starts_with("memslot") || row.starts_with("machine")) && !Path::new("/dev/kvm").exists() {
        skipped(test, "no /dev/kvm on this machine");
        return false;
    }
    if fs::read("/proc/sys/kernel/io_uring_disabled").is_ok_and(|disabled| disabled != b"0\n") {
        skipped(test, "io_uring is switched off on this machine");
        return false;
    }
    if Command::new("id").arg("-u").output().expect("id runs").stdout != b"0\n" {
        skipped(test, "page frames are seen by root alone");
        return false;
    }
    true
}

/// Whether a call stack has a function of this name, the system call's own one left out.
fn has(at: &Value, function: &str) -> bool {
    let frames = at["stack"].as_array().expect("a list");
    frames
        .iter()
        .filter_map(|frame| frame["symbol"].as_str())
        .any(|symbol| symbol.split_once(['+', '.']).map_or(symbol, |(name, _)| name) == function)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value:#}"))
}

/// A row; what the program sees, if it reads; and what must be found: verdict, severity, what holds the memory, the call that
/// changed it, and the function that made it.
type Mistake = (&'static str, &'static str, &'static [[&'static str; 5]]);

const BUFFER: &str = "io_uring_buffer";

const MISTAKES: [Mistake; 28] = [
    (
        "remap",
        "read N",
        &[
            ["stale", "error", BUFFER, "mmap(MAP_FIXED)", "row_remap"],
            ["unmapped", "warning", BUFFER, "munmap", "row_remap"],
        ],
    ),
    ("over", "read N", &[["stale", "error", BUFFER, "mmap(MAP_FIXED)", "row_over"]]),
    ("over_part", "read BN", &[["stale", "error", BUFFER, "mmap(MAP_FIXED)", "row_over_part"]]),
    ("discard", "read 0", &[["stale", "error", BUFFER, "madvise(MADV_DONTNEED)", "row_discard"]]),
    ("guard", "read 0", &[["stale", "error", BUFFER, "madvise(MADV_GUARD_INSTALL)", "row_guard"]]),
    (
        "away",
        "read N",
        &[
            ["stale", "error", BUFFER, "mmap(MAP_FIXED)", "row_away"],
            ["unmapped", "warning", BUFFER, "mremap(MREMAP_FIXED)", "row_away"],
        ],
    ),
    ("dontunmap", "read 0", &[["stale", "error", BUFFER, "mremap(MREMAP_DONTUNMAP)", "row_dontunmap"]]),
    ("onto", "read N", &[["stale", "error", BUFFER, "mremap(MREMAP_FIXED)", "row_onto"]]),
    ("truncate", "read 0", &[["stale", "error", BUFFER, "ftruncate", "row_truncate"]]),
    ("punch", "read 0", &[["stale", "error", BUFFER, "fallocate(0x3)", "row_punch"]]),
    ("remove", "read 0", &[["stale", "error", BUFFER, "madvise(MADV_REMOVE)", "row_remove"]]),
    ("shared_over", "read N", &[["stale", "error", BUFFER, "mmap(MAP_FIXED)", "row_shared_over"]]),
    (
        "heap",
        "read N",
        &[
            ["stale", "error", BUFFER, "mmap", "row_heap"],
            ["unmapped", "warning", BUFFER, "munmap", "row_heap"],
        ],
    ),
    ("update", "read N", &[["stale", "error", BUFFER, "mmap(MAP_FIXED)", "row_update"]]),
    ("clone", "read N", &[["stale", "error", BUFFER, "mmap(MAP_FIXED)", "row_clone"]]),
    ("index", "read N", &[["stale", "error", BUFFER, "mmap(MAP_FIXED)", "row_index"]]),
    ("thread", "read 0", &[["stale", "error", BUFFER, "madvise(MADV_DONTNEED)", "discard"]]),
    ("signal", "read 0", &[["stale", "error", BUFFER, "madvise(MADV_DONTNEED)", "row_signal"]]),
    ("jit", "read 0", &[["stale", "error", BUFFER, "madvise(MADV_DONTNEED)", "row_jit"]]),
    ("child", "read A", &[["stale", "error", BUFFER, "io_uring_enter", "use_in_child"]]),
    (
        "buffer_ring",
        "none",
        &[["stale", "error", "io_uring_buffer_ring", "mmap(MAP_FIXED)", "row_buffer_ring"]],
    ),
    ("protect", "read B", &[["exposed", "warning", BUFFER, "mprotect(PROT_READ)", "row_protect"]]),
    ("forgotten", "none", &[["unmapped", "warning", BUFFER, "munmap", "row_forgotten"]]),
    ("detach", "none", &[["unmapped", "warning", BUFFER, "shmdt", "row_detach"]]),
    ("memslot", "none", &[["dangling", "warning", "kvm_memslot", "munmap", "row_memslot"]]),
    ("lock", "none", &[["unlocked", "note", "mlock", "mmap(MAP_FIXED)", "row_lock"]]),
    // Nothing came of these.
    ("late", "read B", &[["unmapped", "note", BUFFER, "munmap", "row_late"]]),
    ("late_close", "read B", &[["unmapped", "note", BUFFER, "munmap", "row_late_close"]]),
];

#[test]
fn each_mistake_is_found_with_who_registered_and_who_changed() {
    const TEST: &str = "each_mistake_is_found_with_who_registered_and_who_changed";
    let shop = Shop::new(TEST);
    for (row, seen, expected) in MISTAKES {
        if !can(TEST, row) {
            continue;
        }
        let (ended, findings) = shop.findings(row);
        let shown = ended.stdout();
        if shown == "none\n" && seen != "none" {
            skipped(TEST, &format!("this kernel cannot do {row}"));
            continue;
        }
        assert_eq!(shown, format!("{seen}\n"), "{row}: {ended:?}");
        let lost = seen.starts_with("read") && seen != "read B";
        let stale = expected.iter().any(|[verdict, ..]| *verdict == "stale");
        assert!(stale || !lost, "{row}: data are lost");
        assert_eq!(ended.status.code(), Some(if stale { STALE } else { 7 }), "{row}: {ended:?}");
        assert_eq!(findings.len(), expected.len(), "{row}: {findings:#?}");
        for [verdict, severity, kind, call, function] in expected.iter().copied() {
            let found = findings.iter().find(|finding| text(finding, "verdict") == verdict);
            let found = found.unwrap_or_else(|| panic!("{row}: no {verdict} in {findings:#?}"));
            assert_eq!(text(found, "severity"), severity, "{row}: {found:#}");
            assert_eq!(text(found, "kind"), kind, "{row}: {found:#}");
            assert_eq!(text(&found["changed"], "call"), call, "{row}: {found:#}");
            assert!(has(&found["changed"], function), "{row}: no {function} in {found:#}");
            let registering = format!("row_{row}");
            assert!(has(&found["registered"], &registering), "{row}: no {registering} in {found:#}");
            assert!(has(&found["registered"], "main"), "{row}: no main in {found:#}");
            assert!(
                !text(found, "means").is_empty() && !text(found, "advice").is_empty(),
                "{row}: {found:#}"
            );
        }
    }
}

#[test]
fn what_is_right_is_clean() {
    const TEST: &str = "what_is_right_is_clean";
    let shop = Shop::new(TEST);
    for row in [
        "nothing",
        "lazy",
        "shared_discard",
        "shared_again",
        "fork",
        "writable",
        "neighbour",
        "unregister",
        "index_unregister",
        "take_out",
        "close",
        "close_and_open",
        "memslot_deleted",
        "machine_closed",
        "lock_freed",
    ] {
        if !can(TEST, row) {
            continue;
        }
        let (ended, report) = shop.run(row);
        assert_eq!(ended.status.code(), Some(7), "{row}: {ended:?}");
        assert!(["read B\n", "none\n"].contains(&ended.stdout().as_str()), "{row}: {ended:?}");
        assert_eq!(report.value("check.findings"), &Value::Array(Vec::new()), "{row}");
        if row == "index_unregister" && ended.stdout() == "none\n" {
            skipped(TEST, "this kernel registers nothing by the index of a ring");
            continue;
        }
        let kinds = report.value("check.registered").as_object().expect("an object").len();
        assert_eq!(kinds, 1, "{row}: its registration was not seen");
    }
}

#[test]
fn pages_and_bytes_are_exact() {
    const TEST: &str = "pages_and_bytes_are_exact";
    let shop = Shop::new(TEST);
    for (row, pages, other, empty, unmapped, bytes) in [
        ("over_part", 2, 0, 2, 0, 8192),
        ("onto", 8, 8, 0, 0, 32768),
        ("forgotten", 8, 0, 0, 8, 32768),
        ("late", 8, 0, 0, 8, 32768),
        ("child", 8, 8, 0, 0, 32768),
    ] {
        if !can(TEST, row) {
            continue;
        }
        let (_, findings) = shop.findings(row);
        let found = &findings[0];
        let numbers = ["changed", "other", "empty", "unmapped"].map(|key| found["pages"][key].as_u64());
        assert_eq!(numbers, [pages, other, empty, unmapped].map(Some), "{row}: {found:#}");
        assert_eq!(found["changed_bytes"].as_u64(), Some(bytes), "{row}: {found:#}");
        assert_eq!(found["bytes"].as_u64(), Some(32768), "{row}: {found:#}");
    }
}

#[test]
fn the_same_mistake_is_told_once() {
    const TEST: &str = "the_same_mistake_is_told_once";
    if !can(TEST, "often") {
        return;
    }
    let (ended, findings) = Shop::new(TEST).findings("often");
    assert_eq!(ended.status.code(), Some(STALE), "{ended:?}");
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!(findings[0]["times"].as_u64(), Some(50), "{findings:#?}");
    assert_eq!(findings[0]["registrations"].as_u64(), Some(50), "{findings:#?}");
}

#[test]
fn the_status_can_be_chosen_and_a_signal_goes_first() {
    const TEST: &str = "the_status_can_be_chosen_and_a_signal_goes_first";
    if !can(TEST, "over") {
        return;
    }
    let shop = Shop::new(TEST);
    let status = |options: &[&str], row: &str| {
        let mut mmun = Mmun::new(&shop.dir);
        for option in options {
            mmun = mmun.option(*option);
        }
        let (ended, report) = mmun.run(&[&shop.mistakes, row, "file"]);
        (ended.status, report.value("check.stale").as_u64())
    };
    let (ended, stale) = status(&["--check", "--check-status=99"], "over");
    assert_eq!((ended.code(), stale), (Some(99), Some(1)));
    let (ended, stale) = status(&["--check", "--check-status", "0"], "over");
    assert_eq!((ended.code(), stale), (Some(7), Some(1)));
    let (ended, stale) = status(&[], "over");
    assert_eq!((ended.code(), stale), (Some(7), None), "not asked for");
    let (ended, stale) = status(&["--check"], "killed");
    assert_eq!((ended.signal(), stale), (Some(15), Some(1)));
}

#[test]
fn people_are_told_what_to_do() {
    const TEST: &str = "people_are_told_what_to_do";
    if !can(TEST, "over") {
        return;
    }
    let shop = Shop::new(TEST);
    let page = shop.dir.join("page.html");
    let mut mmun = Command::new(MMUN);
    mmun.args(["run", "--check", "--report"]).arg(&page).args(["--", &shop.mistakes, "over"]);
    let ended = command::run(mmun.current_dir(&shop.dir), &shop.dir, "people");
    assert_eq!(ended.status.code(), Some(STALE), "{ended:?}");
    let page = fs::read_to_string(page).unwrap();
    for part in [
        "STALE (error): io_uring buffer 0 of descriptor",
        "1 io_uring buffer of 32.0 KiB; 1 change met them",
        "1 stale registration: see below",
        "by io_uring_register",
        "#0 ring_register+",
        "#1 register_buffer+",
        "by mmap(MAP_FIXED)",
        "row_over+",
        "of 8 pages changed, 8 empty now",
        "take the buffer out of the table first",
    ] {
        assert!(ended.stderr().contains(part), "{part:?} is missing: {}", ended.stderr());
        assert!(page.contains(part), "{part:?} is missing in the page");
    }
    assert!(ended.stderr().lines().all(|line| line.chars().count() <= 80), "{}", ended.stderr());
}

#[test]
fn who_may_not_see_frames_judges_by_the_calls() {
    const TEST: &str = "who_may_not_see_frames_judges_by_the_calls";
    if !can(TEST, "over") || find(TEST, "setpriv").is_none() {
        return;
    }
    let shop = Shop::new(TEST);
    // Where anybody may go.
    let dir = std::env::temp_dir().join(format!("mmun-check-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    for (from, to) in [(MMUN, "mmun"), (&shop.mistakes, "mistakes")] {
        fs::copy(from, dir.join(to)).unwrap();
    }
    fs::write(dir.join("file"), [b'B'; 1 << 16]).unwrap();
    for (row, status) in
        [("over", STALE), ("discard", STALE), ("shared_discard", 7), ("lazy", 7), ("close", 7)]
    {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "./mmun",
                "run",
                "--check",
                "--",
                "./mistakes",
                row,
            ])
            .env("HOME", "/nonexistent")
            .env_remove("XDG_CACHE_HOME")
            .current_dir(&dir);
        let ended = command::run(&mut command, &shop.dir, row);
        assert_eq!(ended.status.code(), Some(status), "{row}: {ended:?}");
        assert!(ended.stderr().contains("may not see page frames"), "{row}: {ended:?}");
    }
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn nothing_is_lost_in_a_storm() {
    const TEST: &str = "nothing_is_lost_in_a_storm";
    if !can(TEST, "over") {
        return;
    }
    let dir = workshop(TEST);
    let storm = compile(&dir, "checkstorm").display().to_string();
    let (ended, report) = Mmun::new(&dir).option("--check").run(&[&storm, "300"]);
    assert_eq!(ended.status.code(), Some(STALE), "{ended:?}");
    let mistakes: u64 = ended.stdout().trim().parse().expect("a number");
    let findings = report.value("check.findings").as_array().expect("a list");
    let told: u64 = findings.iter().filter_map(|finding| finding["times"].as_u64()).sum();
    assert!(findings.iter().all(|finding| text(finding, "verdict") == "stale"), "{findings:#?}");
    assert_eq!(told + report.number("check.lost"), mistakes, "{findings:#?}");
    assert_eq!(report.number("check.missed") + report.number("check.untracked"), 0);
    assert_eq!(report.number("check.registered.io_uring_buffer.count"), 8 * 300 * 4 + 1);
}

#[test]
fn fio_with_fixed_buffers_is_clean() {
    const TEST: &str = "fio_with_fixed_buffers_is_clean";
    if !can(TEST, "over") || find(TEST, "fio").is_none() {
        return;
    }
    let dir = workshop(TEST);
    let job = |block: &str, threads: &str| {
        let words = format!(
            "fio --name=x --ioengine=io_uring --fixedbufs=1 --rw=randrw --size=4m --filename=data --number_ios=2000 \
             --iodepth=16 --numjobs=2 --bs={block} {threads}"
        );
        let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
        let (ended, report) = Mmun::new(&dir).option("--check").run(&words);
        ended.assert_success();
        assert_eq!(report.number("check.registered.io_uring_buffer.count"), 32, "{words:?}");
        report
    };
    for threads in ["", "--thread"] {
        let report = job("4k", threads);
        assert_eq!(report.value("check.findings"), &Value::Array(Vec::new()), "{threads}");
    }
    // Large buffers go back to the kernel before the ring is closed: nothing comes of it.
    let report = job("256k", "");
    let findings = report.value("check.findings").as_array().expect("a list");
    assert!(findings.iter().all(|finding| text(finding, "severity") == "note"), "{findings:#?}");
}

#[test]
fn qemu_with_kvm_is_clean() {
    const TEST: &str = "qemu_with_kvm_is_clean";
    if !can(TEST, "memslot") {
        return;
    }
    let Some(qemu) = find(TEST, "qemu-system-x86_64") else { return };
    let dir = workshop(TEST);
    let script = format!(
        "(sleep 2; echo quit) | '{}' -accel kvm -m 128 -display none -serial none -monitor stdio >log 2>&1",
        qemu.display()
    );
    let mmun = Mmun::new(&dir).option("--check");
    let mut command = mmun.command::<&str>(&[], &["sh", "-c", &script]);
    command.stdin(Stdio::null());
    let ended = command::start(&mut command, &dir, "qemu").wait();
    let report = Report::read(&mmun.json(), &ended);
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    if log.contains("failed to initialize") {
        skipped(TEST, "this qemu cannot use KVM here");
        return;
    }
    assert_eq!(ended.status.code(), Some(0), "{ended:?}\n{log}");
    assert!(report.number("check.registered.kvm_memslot.count") > 3, "{log}");
    assert_eq!(report.value("check.findings"), &Value::Array(Vec::new()), "{log}");
}
