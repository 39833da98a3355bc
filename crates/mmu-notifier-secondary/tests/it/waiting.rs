//! Registrars for which a change must wait until nobody uses the memory.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use mmu_notifier::{AddressSpace, Event};
use mmu_notifier_secondary::cache::{Access, Cache, Options, WhenOverdue};

use crate::device::{Device, Rig, range};

fn waiting(options: Options) -> Rig {
    Rig::with(Device { waits: true, ..Device::default() }, options)
}

/// Much longer than anything takes.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_change_waits_until_the_memory_is_not_used_any_more() {
    let rig = waiting(Options { patience: LONG, ..Options::default() });
    let held = rig.cache.get(range(0..1), Access::Write).unwrap();
    let also_held = rig.cache.get(range(0..1), Access::Write).unwrap();
    let handle = *held.handle();
    let (hurried, is_hurried) = mpsc::channel();
    let hurried = Mutex::new(hurried);
    rig.device.on_hurry(move |_| hurried.lock().unwrap().send(()).unwrap());
    std::thread::scope(|scope| {
        let change = scope.spawn(|| {
            rig.space.invalidate(range(0..1), Event::Unmap, || assert!(!rig.device.is_registered(handle)));
        });
        is_hurried.recv().unwrap();
        assert!(!change.is_finished() && rig.device.is_registered(handle));
        drop(held);
        assert!(!change.is_finished() && rig.device.is_registered(handle));
        drop(also_held);
        change.join().unwrap();
    });
    assert_eq!(rig.cache.stats().waited, 1);
}

#[test]
fn a_change_that_must_not_wait_is_refused() {
    let rig = waiting(Options::default());
    let held = rig.cache.get(range(0..1), Access::Write).unwrap();
    assert!(rig.try_unmap(1..2), "elsewhere there is nothing to wait for");
    assert!(!rig.try_unmap(0..1));
    assert!(!rig.try_unmap(0..1), "as often as it is tried");
    assert!(!held.is_current(), "it is out of the cache all the same");
    drop(held);
    assert!(rig.try_unmap(0..1));
    assert_eq!(rig.cache.stats().refused, 2);
}

#[test]
fn unused_memory_is_not_waited_for() {
    let rig = waiting(Options { patience: LONG, ..Options::default() });
    rig.get(0..1);
    rig.unmap(0..1);
    let held = rig.cache.get(range(0..1), Access::Write).unwrap();
    rig.unmap(1..100);
    assert!(held.is_current());
    assert_eq!(rig.cache.stats().waited, 0);
}

#[test]
fn a_wait_too_long_is_reported_and_the_change_goes_on_if_it_shall() {
    for then in [WhenOverdue::Quarantine, WhenOverdue::Report] {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let (seen, patience) = (reports.clone(), Duration::from_millis(5));
        let on_overdue = Arc::new(move |overdue: &_| seen.lock().unwrap().push(format!("{overdue}")));
        let rig = waiting(Options { patience, when_overdue: then, on_overdue, ..Options::default() });
        let held = rig.cache.get(range(0..2), Access::Write).unwrap();
        rig.space.invalidate(range(1..2), Event::Clear, || {
            assert!(rig.device.is_registered(*held.handle()), "its pages stay with it");
        });
        assert_eq!(rig.cache.stats().unreleased, 2 * 4096);
        let reports = reports.lock().unwrap();
        let [report] = &reports[..] else { panic!("{reports:?}") };
        assert!(
            report.starts_with("a change (clear) of [0x1000001000, 0x1000002000) has waited "),
            "{report}"
        );
        assert!(
            report.contains("ms for 1 users of the registration of [0x1000000000, 0x1000002000): going on")
        );
        drop(held);
        assert_eq!((rig.device.ranges(), rig.cache.stats().overdue), (vec![], 1));
    }
}

#[test]
fn a_wait_too_long_is_reported_again_and_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let (counted, patience) = (count.clone(), Duration::from_millis(2));
    let on_overdue = Arc::new(move |_: &_| _ = counted.fetch_add(1, SeqCst));
    let rig = waiting(Options { patience, on_overdue, ..Options::default() });
    let held = rig.cache.get(range(0..1), Access::Write).unwrap();
    std::thread::scope(|scope| {
        let change = scope.spawn(|| rig.unmap(0..1));
        while count.load(SeqCst) < 3 {
            std::thread::yield_now();
        }
        assert!(!change.is_finished());
        drop(held);
    });
    assert!(rig.cache.stats().overdue >= 3);
}

#[test]
fn users_are_hurried_again_and_again() {
    let rig = waiting(Options {
        patience: Duration::from_millis(1),
        on_overdue: Arc::new(|_| ()),
        ..Options::default()
    });
    let held = rig.cache.get(range(0..1), Access::Write).unwrap();
    let (hurried, is_hurried) = mpsc::channel();
    let hurried = Mutex::new(hurried);
    rig.device.on_hurry(move |_| _ = hurried.lock().unwrap().send(()));
    std::thread::scope(|scope| {
        scope.spawn(|| rig.unmap(0..1));
        (0..3).for_each(|_| is_hurried.recv().unwrap());
        drop(held);
    });
}

#[test]
fn quarantine_is_bounded_and_then_changes_wait() {
    let patience = Duration::from_millis(2);
    let rig = waiting(Options {
        patience,
        when_overdue: WhenOverdue::Quarantine,
        on_overdue: Arc::new(|_| ()),
        unreleased: 2 * 4096,
        ..Options::default()
    });
    let held: Vec<_> = (0..3).map(|at| rig.cache.get(range(at..at + 1), Access::Write).unwrap()).collect();
    rig.unmap(0..1);
    rig.unmap(1..2);
    std::thread::scope(|scope| {
        let change = scope.spawn(|| rig.unmap(2..3));
        while rig.cache.stats().overdue < 5 {
            std::thread::yield_now();
        }
        assert!(!change.is_finished());
        drop(held);
    });
}

#[test]
fn a_change_waits_for_what_another_thread_is_deregistering() {
    let rig = Rig::new();
    let handle = rig.get(0..1);
    let (entered, is_in) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let may_leave = Mutex::new(may_leave);
    rig.device.on_deregister(move |_| {
        entered.send(()).unwrap();
        may_leave.lock().unwrap().recv().unwrap();
    });
    std::thread::scope(|scope| {
        scope.spawn(|| rig.cache.clear());
        is_in.recv().unwrap();
        let change = scope.spawn(|| {
            rig.space.invalidate(range(0..1), Event::Unmap, || assert!(!rig.device.is_registered(handle)));
        });
        rig.unmap(5..6);
        std::thread::sleep(Duration::from_millis(20));
        assert!(!change.is_finished());
        leave.send(()).unwrap();
    });
}

#[test]
fn abort_ends_the_process() {
    const ME: &str = "waiting::abort_ends_the_process";
    if std::env::var_os("ABORT_NOW").is_some() {
        let options = Options {
            patience: Duration::from_millis(1),
            when_overdue: WhenOverdue::Abort,
            ..Options::default()
        };
        let space = AddressSpace::new();
        let cache = Cache::new(&space, Device { waits: true, ..Device::default() }, options);
        let _held = cache.get(range(0..1), Access::Write).unwrap();
        space.invalidate(range(0..1), Event::Unmap, || unreachable!("it went on"));
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", ME, "--nocapture"]).env("ABORT_NOW", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(libc::SIGABRT), "{text}");
    assert!(
        text.contains("mmu-notifier: a change (unmap) of [0x1000000000, 0x1000001000) has waited"),
        "{text}"
    );
    assert!(text.contains("aborting"), "{text}");
}
