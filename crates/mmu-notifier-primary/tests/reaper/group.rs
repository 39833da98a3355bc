//! A control group with a limit (version 1), made and removed by the test: alarms, and what happens when nothing is left.

// UNSAFETY: only asks who the user is.
#![expect(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mmu_notifier::{AddressSpace, PAGE_SIZE, Range};
use mmu_notifier_primary::reaper::{Options, Reaper, Source, Trigger, memory_group};

use crate::memory::{Memory, until};
use crate::own_process;
use crate::walk::Busy;

const LIMIT: usize = 64 << 20;
const GROUP: &str = "MMU_TEST_GROUP";
/// Pages of a MiB.
const MIB: usize = (1 << 20) / PAGE_SIZE;

/// Removed when it is dropped.
struct Group(PathBuf);

impl Group {
    /// `None` where there are none, which is said.
    fn new(test: &str) -> Option<Group> {
        // SAFETY: only asks.
        let is_root = unsafe { libc::geteuid() } == 0;
        let above = memory_group().filter(|above| is_root && above.join("memory.limit_in_bytes").exists());
        let Some(above) = above else {
            eprintln!("SKIPPED: {test}: no memory control group of version 1, or not root");
            return None;
        };
        let name = test.rsplit("::").next().unwrap();
        let group = Group(above.join(format!("mmu-notifier-{name}-{}", std::process::id())));
        fs::create_dir(&group.0).unwrap();
        fs::write(group.0.join("memory.limit_in_bytes"), LIMIT.to_string()).unwrap();
        fs::write(group.0.join("memory.swappiness"), "0").unwrap();
        Some(group)
    }

    fn control(&self) -> String {
        fs::read_to_string(self.0.join("memory.oom_control")).unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..1000 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Runs `inside` in a process of its own in a group of its own, unless there are none.
fn in_a_group(test: &str, inside: impl FnOnce(&Path)) {
    if let Some(group) = std::env::var_os(GROUP) {
        return own_process::run(test, |_| (), || inside(&enter(group.into())));
    }
    let Some(group) = Group::new(test) else { return };
    own_process::run(test, |command| _ = command.env(GROUP, &group.0), || unreachable!("it has a group"));
}

fn enter(group: PathBuf) -> PathBuf {
    fs::write(group.join("cgroup.procs"), "0").unwrap();
    group
}

fn with(source: Source) -> Options {
    Options { trigger: Trigger::Source(source), retry_after: Duration::from_millis(10), ..Options::default() }
}

/// Caches of 40 MiB.
fn caches() -> Vec<Memory> {
    (0..40).map(|_| Memory::new(MIB)).collect()
}

#[test]
fn a_threshold_wakes_it_in_time() {
    in_a_group("group::a_threshold_wakes_it_in_time", |group| {
        assert_eq!(memory_group().as_deref(), Some(group), "its own group is found");
        let options = Options { level: 75, ..Options::default() };
        let reaper = Reaper::start(&AddressSpace::new(), options).unwrap();
        let armed = reaper.armed();
        assert_eq!((armed.source, armed.group.as_deref()), (Some(Source::Threshold), Some(group)));
        assert_eq!(armed.level, Some(LIMIT as u64 / 100 * 75));
        let caches = caches();
        let _evictable: Vec<_> = caches.iter().map(|cache| cache.add_to(&reaper).unwrap()).collect();
        assert_eq!(reaper.stats().walks, 0);
        let more: Vec<_> = (0..40).map(|_| Memory::new(MIB)).collect();
        until("it has reaped", || reaper.stats().freed() >= 40 << 20);
        assert!(more.iter().all(|more| more.byte() == 7));
    });
}

#[test]
fn who_is_over_the_level_already_is_reaped_at_once() {
    in_a_group("group::who_is_over_the_level_already_is_reaped_at_once", |_| {
        let caches = caches();
        for source in [Source::Threshold, Source::Polling] {
            caches.iter().for_each(|cache| cache.fill(7));
            let reaper = Reaper::start(&AddressSpace::new(), Options { level: 20, ..with(source) }).unwrap();
            let _evictable: Vec<_> = caches.iter().map(|cache| cache.add_to(&reaper).unwrap()).collect();
            // So much that it is not over it any more.
            until("it is reaped without an alarm", || reaper.stats().freed() >= 20 << 20);
        }
    });
}

#[test]
fn the_killer_waits_until_there_is_nothing_more_to_reap() {
    let test = "group::the_killer_waits_until_there_is_nothing_more_to_reap";
    if let Some(group) = std::env::var_os(GROUP) {
        let group = enter(group.into());
        let reaper = Reaper::start(&AddressSpace::new(), with(Source::OomControl)).unwrap();
        let text = fs::read_to_string(group.join("memory.oom_control")).unwrap();
        assert!(text.contains("oom_kill_disable 1"), "{text}");
        let caches = caches();
        let _evictable: Vec<_> = caches.iter().map(|cache| cache.add_to(&reaper).unwrap()).collect();
        // Twice what fits: once for the caches, and once for the killer.
        let more: Vec<_> = (0..40).map(|_| Memory::new(MIB)).collect();
        assert!(caches.iter().all(|cache| cache.byte() == 0));
        eprintln!("it lives");
        drop((0..40).map(|_| Memory::new(MIB)).collect::<Vec<_>>());
        drop(more);
        return;
    }
    let Some(group) = Group::new(test) else { return };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(GROUP, &group.0).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > Duration::from_secs(60) {
            // It would be stopped for ever.
            child.kill().unwrap();
            panic!("it was not killed: {}", group.control());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(text.contains("it lives"), "{text}");
    assert!(!status.success(), "it was killed");
    assert!(group.control().contains("oom_kill 1"), "{}", group.control());
}

#[test]
fn the_killer_is_as_it_was_when_the_reaper_goes() {
    in_a_group("group::the_killer_is_as_it_was_when_the_reaper_goes", |group| {
        let control = group.join("memory.oom_control");
        let is_stopped = || fs::read_to_string(&control).unwrap().contains("oom_kill_disable 1");
        let space = AddressSpace::new();
        let reaper = Reaper::start(&space, with(Source::OomControl)).unwrap();
        assert!(is_stopped());
        drop(reaper);
        assert!(!is_stopped());
        fs::write(&control, "1").unwrap();
        drop(Reaper::start(&space, with(Source::OomControl)).unwrap());
        assert!(is_stopped(), "it was before");
        fs::write(&control, "0").unwrap();
    });
}

/// A group that stays over its level passes no threshold: it is looked at all the same.
#[test]
fn as_long_as_there_is_pressure_it_goes_on() {
    in_a_group("group::as_long_as_there_is_pressure_it_goes_on", |_| {
        let space = AddressSpace::new();
        let caches = caches();
        let busy = Busy::with(Range::EVERYTHING);
        let subscription = space.subscribe_refuser(busy.clone());
        let reaper = Reaper::start(&space, Options { level: 20, ..with(Source::Threshold) }).unwrap();
        let evictable: Vec<_> = caches.iter().map(|cache| cache.add_to(&reaper).unwrap()).collect();
        until("all are marked", || evictable.iter().all(|evictable| evictable.is_marked()));
        drop(subscription);
        evictable[0].retry();
        until("that one is reaped", || caches[0].is_gone());
        assert!(caches[1..].iter().all(|cache| cache.byte() == 7), "and the others are left alone");
        caches[0].fill(9);
        until("it is reaped again, without an alarm", || caches[0].is_gone());
    });
}

/// Who is over the first threshold and goes on growing meets another one.
#[test]
fn there_are_more_thresholds_above_the_first() {
    in_a_group("group::there_are_more_thresholds_above_the_first", |_| {
        let options = Options { level: 50, retry_after: Duration::from_secs(3600), ..Options::default() };
        let space = AddressSpace::new();
        let _busy = space.subscribe_refuser(Busy::with(Range::EVERYTHING));
        let reaper = Reaper::start(&space, options).unwrap();
        let cache = Memory::new(MIB);
        let _evictable = cache.add_to(&reaper).unwrap();
        let mut more: Vec<_> = (0..34).map(|_| Memory::new(MIB)).collect();
        until("the first one is heard of", || reaper.stats().alarms > 0);
        until("the cache was tried", || reaper.stats().refused > 0);
        let alarms = reaper.stats().alarms;
        more.extend((0..14).map(|_| Memory::new(MIB)));
        until("another one is heard of", || reaper.stats().alarms > alarms);
        assert_eq!(cache.byte(), 7);
    });
}
