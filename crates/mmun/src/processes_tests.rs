use super::*;
use std::sync::atomic::Ordering::Relaxed;

use mmu_notifier_primary::Syscall;
use mmu_notifier_primary::session::{PROCESSES, UnseenReason};

use crate::clock::Scale;
use crate::session::Wanted;
use crate::summary::Summary;

/// A session that the test fills, and a clock that it turns.
struct World {
    session: Session,
    processes: Processes,
    now: Instant,
    gone: Vec<u32>,
    born: u64,
}

impl World {
    fn new() -> World {
        let session = Session::create(Wanted::default(), 1).unwrap();
        World { session, processes: Processes::default(), now: Instant::now(), gone: vec![], born: 0 }
    }

    /// A process that counts one munmap.
    fn process(&mut self, index: usize, pid: u32) -> &Process {
        self.born += 1;
        let process = self.session.process(index);
        process.pid.store(pid, Relaxed);
        process.born.store(self.born, Relaxed);
        process.threads.store(1, Relaxed);
        process.shards[pid as usize % 8].calls[Syscall::Munmap as usize].count.store(1, Relaxed);
        process.state.store(ProcessState::Running as u32, Ordering::Release);
        process
    }

    fn state(&self, index: usize, state: ProcessState) {
        self.session.process(index).state.store(state as u32, Ordering::Release);
    }

    fn exec(&self, index: usize, program: &str) {
        let path = &self.session.process(index).exec;
        path.bytes.iter().zip(program.as_bytes()).for_each(|(to, from)| to.store(*from, Relaxed));
        path.len.store(program.len() as u64, Ordering::Release);
        self.state(index, ProcessState::Exec);
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
        let gone = self.processes.look(&self.session, self.now, &|pid| self.gone.contains(&pid));
        self.processes.fold(&self.session, gone);
    }

    fn used(&self) -> Vec<usize> {
        entries(&self.session).iter().map(|seen| seen.index).collect()
    }

    fn unseen(&self) -> Vec<(&str, u64)> {
        self.processes.unseen().iter().map(|(path, count)| (path.as_str(), *count)).collect()
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        self.processes.totals().fill(&mut summary, &Scale::new(0, 0.5));
        summary
    }

    fn finish(&mut self) -> u64 {
        self.processes.finish(&self.session, self.now, &|pid| self.gone.contains(&pid))
    }
}

#[test]
fn sums_up_who_is_gone() {
    let mut world = World::new();
    let first = world.process(0, 10);
    first.shards[1].calls[Syscall::Munmap as usize].failed.store(2, Relaxed);
    first.shards[0].events[0].changes.store(5, Relaxed);
    first.shards[7].events[0].bytes.store(4096, Relaxed);
    first.shards[3].starts.sum.store(100, Relaxed);
    first.shards[3].starts.max.store(60, Relaxed);
    first.shards[3].starts.buckets[5].store(2, Relaxed);
    first.own_bytes.store(7, Relaxed);
    let second = world.process(PROCESSES - 1, 11);
    second.own_bytes.store(9, Relaxed);
    second.forked.store(1, Relaxed);
    world.pass(10);
    assert_eq!(world.used(), [0, PROCESSES - 1]);
    assert_eq!(world.summary().calls["munmap"].count, 0, "nobody is gone");
    assert_eq!(world.processes.progress(&world.session).calls, 2);

    world.gone = vec![10, 11];
    world.pass(10);
    assert_eq!(world.used(), [0; 0]);
    let summary = world.summary();
    assert_eq!((summary.calls["munmap"].count, summary.calls["munmap"].failed), (2, 2));
    assert_eq!(summary.calls.len(), Syscall::ALL.len());
    assert_eq!(summary.events.len(), 1);
    assert_eq!((summary.events[0].0, summary.events[0].1.bytes), ("unmap", 4096));
    assert_eq!((summary.starts.total_ns, summary.starts.max_ns), (50, 30));
    assert_eq!(summary.starts.buckets, [(31, 2)], "buckets of ticks become nanoseconds");
    assert_eq!((summary.own_bytes, summary.threads), (9, 2));
    assert_eq!(world.session.process(0).born.load(Relaxed), 0, "zeroed");
    assert_eq!(world.processes.progress(&world.session).calls, 2);
}

#[test]
fn entries_are_used_again() {
    let mut world = World::new();
    for pid in 1..=50 {
        world.process(0, pid);
        world.pass(1);
        world.gone.push(pid);
        world.pass(1);
    }
    assert_eq!(world.summary().calls["munmap"].count, 50);
}

#[test]
fn an_announced_exit_is_waited_for() {
    let mut world = World::new();
    world.process(3, 10);
    world.state(3, ProcessState::Exited);
    world.pass(0);
    world.pass(900);
    assert_eq!(world.used(), [3], "other threads may still count");
    world.pass(200);
    assert_eq!(world.used(), [0; 0], "a pid that is somebody else's is not believed for ever");
}

#[test]
fn an_exec_ends_a_process_when_the_next_reports() {
    let mut world = World::new();
    let first = world.process(0, 10);
    first.shards[0].balance_starts.store(5, Relaxed);
    first.shards[0].balance_ends.store(3, Relaxed);
    world.exec(0, "/bin/next");
    world.pass(10);
    assert_eq!(world.used(), [0]);
    world.process(1, 10);
    world.pass(10);
    assert_eq!(world.used(), [1]);
    world.exec(1, "/bin/last");
    world.process(2, 10);
    world.gone.push(10);
    world.pass(10);
    assert_eq!(world.used(), [0; 0]);
    assert_eq!(world.unseen(), []);
    let summary = world.summary();
    assert_eq!((summary.cut_short, summary.balance_starts, summary.balance_ends), (2, 5, 3));
}

#[test]
fn programs_that_never_report_are_counted() {
    let mut world = World::new();
    for (index, pid) in [(0, 10), (1, 11), (2, 12), (3, 13)] {
        world.process(index, pid);
        world.exec(index, "/sbin/static");
    }
    world.gone.push(10);
    world.pass(0);
    assert_eq!(world.used(), [0, 1, 2, 3], "the look may have missed the next program");
    world.pass(10);
    assert_eq!(world.used(), [1, 2, 3]);
    assert_eq!(world.unseen(), [("/sbin/static", 1)]);
    world.pass(1000);
    assert_eq!(world.unseen(), [("/sbin/static", 4)], "three run on and are silent");
    // One was only slow, and the exec of another fails after all.
    world.process(7, 11);
    world.state(2, ProcessState::Running);
    world.pass(10);
    assert_eq!(world.unseen(), [("/sbin/static", 2)]);
    world.gone.push(13);
    world.pass(10);
    world.pass(10);
    assert_eq!(world.unseen(), [("/sbin/static", 2)], "counted once");
    assert_eq!(world.used(), [2, 7]);
}

#[test]
fn cut_short_is_told_from_wrong() {
    let mut world = World::new();
    for (index, pid, threads) in [(0, 10, 1), (1, 11, 2), (2, 12, 1), (3, 13, 1)] {
        let process = world.process(index, pid);
        process.threads.store(threads, Relaxed);
        process.shards[0].balance_starts.store(1, Relaxed);
    }
    world.state(0, ProcessState::Exited); // in order, with a bracket open: wrong
    world.state(1, ProcessState::Exited); // another thread was inside
    world.gone = vec![10, 11, 12]; // the third was killed
    assert_eq!(world.finish(), 1);
    let summary = world.summary();
    assert_eq!((summary.balance_starts, summary.balance_ends), (4, 0));
    assert_eq!((summary.cut_short, summary.still_open), (2, 1));
}

#[test]
fn the_last_look_takes_everything() {
    let mut world = World::new();
    world.process(0, 10); // outlives
    world.process(1, 11);
    world.state(1, ProcessState::Exited);
    world.process(2, 12);
    world.exec(2, "/bin/static"); // and is gone
    world.process(3, 13);
    world.state(3, ProcessState::Free); // given back and written to again
    world.process(4, 0); // claimed, no pid yet
    world.state(4, ProcessState::Starting);
    world.gone = vec![12];
    assert_eq!(world.finish(), 2);
    assert_eq!(world.summary().calls["munmap"].count, 5);
    assert_eq!(world.unseen(), [("/bin/static", 1)]);
}

#[test]
fn unseen_things_are_told_by_kind() {
    let mut world = World::new();
    for (index, pid) in [(0, 10), (1, 11)] {
        let process = world.process(index, pid);
        process.unseen.store(40, Relaxed); // 32 are listed
        for (at, unseen) in process.unseen_list.iter().enumerate().take(3) {
            unseen.reason.store(UnseenReason::Shape as u32, Relaxed);
            unseen.number.store(if at == 2 { u32::MAX } else { 11 }, Relaxed);
            unseen.address.store(0x1000 + at as u64, Relaxed);
            unseen.file.bytes[0].store(b'x', Relaxed);
            unseen.file.len.store(1, Relaxed);
        }
        process.unseen_list[3].reason.store(99, Relaxed); // nonsense
    }
    world.finish();
    let summary = world.summary();
    assert_eq!(summary.unseen_more, 16);
    let told: Vec<_> = summary.unseen.iter().map(|u| (u.call.as_deref(), u.address, u.processes)).collect();
    assert_eq!(told, [(Some("munmap"), 0x1000, 2), (None, 0x1002, 2)]);
}

#[test]
fn broken_memory_is_survived() {
    let mut world = World::new();
    for (index, pid) in [(0, 10), (1, 11)] {
        let process = world.process(index, pid);
        process.exec.len.store(u64::MAX, Relaxed);
        process.exec.bytes[0].store(0xff, Relaxed);
        process.unseen.store(u64::MAX, Relaxed);
        process.unseen_list[0].file.len.store(u64::MAX, Relaxed);
        process.modules_used.store(u64::MAX, Relaxed);
        process.shards[0].balance_ends.store(u64::MAX, Relaxed);
        process.search_ticks.store(u64::MAX, Relaxed);
        for shard in &process.shards {
            shard.starts.sum.store(u64::MAX, Relaxed);
            shard.starts.buckets.iter().for_each(|bucket| bucket.store(u64::MAX, Relaxed));
            shard.calls.iter().for_each(|call| call.count.store(u64::MAX, Relaxed));
        }
        process.state.store(ProcessState::Exec as u32, Relaxed);
        crate::symbols::Symbols::default().caller(index, process, u64::MAX);
    }
    let unknown = world.process(2, 12);
    unknown.state.store(77, Relaxed);
    world.pass(10);
    world.pass(2000);
    world.gone = vec![10, 11];
    world.pass(10);
    world.pass(10);
    world.finish();
    assert_eq!(world.summary().calls["mmap"].count, u64::MAX);
}

#[test]
fn knows_who_is_gone() {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = child.id();
    assert!(!is_gone(std::process::id()));
    for _ in 0..500 {
        if is_gone(pid) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(is_gone(pid), "a zombie");
    child.wait().unwrap();
    assert!(is_gone(pid));
}
