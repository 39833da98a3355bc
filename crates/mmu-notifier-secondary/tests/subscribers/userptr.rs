//! `userptr`: both versions.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};

use mmu_notifier::Range;
use mmu_notifier_secondary::device::{Access, Page, PageTable};
use mmu_notifier_secondary::userptr::listed::{Device, Object, Stopped, SubmitError};
use mmu_notifier_secondary::userptr::tracked::{self, Pinner, Stale};
use mmu_notifier_secondary::userptr::{BindError, ObjectError};

use crate::memory::{Memory, Random, Sets, address, range};

fn rig(pages: usize) -> (Arc<Memory>, Device) {
    let memory = Memory::new(0..pages);
    let device = Device::new(&memory.space, memory.clone());
    (memory, device)
}

fn bound(device: &Device, pages: std::ops::Range<usize>) -> Object<'_> {
    let mut object = device.object(range(pages), Access::ReadWrite).unwrap();
    object.bind().unwrap();
    object
}

#[test]
fn a_job_finds_the_pages_of_its_object() {
    let (memory, device) = rig(8);
    let object = bound(&device, 2..5);
    let mut job = object.submit().unwrap();
    job.step(|pages| {
        let frames: Vec<_> = pages.iter().map(|page| Some(page.frame())).collect();
        assert_eq!(frames, [2, 3, 4].map(|page| memory.frame_of(page)));
    })
    .unwrap();
}

#[test]
fn a_busy_object_refuses_and_stays_bound() {
    let (memory, device) = rig(8);
    let object = bound(&device, 2..5);
    let mut job = object.submit().unwrap();
    assert!(memory.try_discard(0..8).is_err());
    assert!(object.is_bound());
    job.step(|pages| memory.use_frame(pages[0].frame(), 2, |_| ())).unwrap();
}

#[test]
fn an_idle_object_is_dropped_without_waiting() {
    let (memory, device) = rig(8);
    let mut object = bound(&device, 2..5);
    drop(object.submit().unwrap());
    assert!(memory.try_discard(4..5).is_ok());
    assert!(!object.is_bound());
    assert_eq!(object.submit().unwrap_err(), SubmitError::NotBound { range: range(2..5) });
    object.bind().unwrap();
    object.submit().unwrap().step(|pages| memory.use_frame(pages[2].frame(), 4, |_| ())).unwrap();
}

#[test]
fn a_busy_object_elsewhere_refuses_nothing() {
    let (memory, device) = rig(8);
    let object = bound(&device, 2..5);
    let mut job = object.submit().unwrap();
    memory.try_discard(0..2).unwrap();
    memory.try_discard(5..8).unwrap();
    assert_eq!(job.step(<[_]>::len), Ok(3));
}

#[test]
fn a_change_that_may_wait_stops_the_jobs() {
    let (memory, device) = rig(8);
    let mut object = bound(&device, 2..5);
    let mut jobs = [object.submit().unwrap(), object.submit().unwrap()];
    memory.discard(2..3);
    for job in &mut jobs {
        assert_eq!(job.step(<[_]>::len), Err(Stopped));
    }
    drop(jobs);
    object.bind().unwrap();
    // The stopped jobs are not counted among the new ones.
    memory.try_discard(2..3).unwrap();
}

#[test]
fn a_stopped_job_stays_stopped_beside_new_ones() {
    let memory = Memory::new(0..4);
    let device = Device::new(&memory.space, memory.clone());
    let object = bound(&device, 0..1);
    let mut job = object.submit().unwrap();
    memory.discard(0..1);
    let other = bound(&device, 0..1);
    let newer = other.submit().unwrap();
    assert_eq!(job.step(<[_]>::len), Err(Stopped));
    drop(job);
    assert!(memory.try_discard(0..1).is_err(), "the new job is still there");
    drop(newer);
    memory.try_discard(0..1).unwrap();
}

/// A change waits for the step under way, also if another change has stopped the job; and one that must not wait refuses then.
#[test]
fn a_change_waits_for_the_step_under_way() {
    let (memory, device) = rig(4);
    let object = bound(&device, 0..2);
    let (inside, is_inside) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let has_left = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (memory, has_left, object) = (&memory, &has_left, &object);
        scope.spawn(move || {
            let work = |_: &[Page]| {
                inside.send(()).unwrap();
                may_leave.recv().unwrap();
                has_left.store(true, SeqCst);
            };
            object.submit().unwrap().step(work).unwrap();
        });
        is_inside.recv().unwrap();
        let change = || {
            memory
                .space
                .invalidate(range(0..1), mmu_notifier::Event::Unmap, || assert!(has_left.load(SeqCst)));
        };
        let first = scope.spawn(change);
        while object.is_bound() {
            std::thread::yield_now();
        }
        let second = scope.spawn(change);
        let refused = memory.try_discard(1..2).is_err();
        memory.try_discard(2..3).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let waiting = !first.is_finished() && !second.is_finished();
        leave.send(()).unwrap();
        assert!(refused && waiting);
    });
}

#[test]
fn a_thread_that_changes_memory_inside_a_step_does_not_wait_for_itself() {
    let (memory, device) = rig(4);
    let object = bound(&device, 0..2);
    let mut job = object.submit().unwrap();
    job.step(|_| memory.discard(0..1)).unwrap();
    assert_eq!(job.step(<[_]>::len), Err(Stopped));
}

#[test]
fn a_change_while_pages_are_looked_up_begins_the_binding_anew() {
    for blocking in [false, true] {
        let (memory, device) = rig(4);
        let (weak, count) = (Arc::downgrade(&memory), AtomicUsize::new(0));
        memory.on_look_up(move |page| {
            if page == 2 && count.fetch_add(1, SeqCst) < 3 {
                let memory = weak.upgrade().unwrap();
                if blocking { memory.discard(0..1) } else { memory.try_discard(0..1).unwrap() }
            }
        });
        let object = bound(&device, 0..4);
        let step = |pages: &[Page]| memory.use_frame(pages[0].frame(), 0, |_| ());
        object.submit().unwrap().step(step).unwrap();
        assert_eq!(memory.look_ups.load(SeqCst), 4 * 4);
    }
}

#[test]
fn changes_for_ever_are_an_error_in_the_end() {
    let (memory, device) = rig(4);
    let weak = Arc::downgrade(&memory);
    memory.on_look_up(move |_| weak.upgrade().unwrap().discard(0..1));
    let mut object = device.object(range(0..1), Access::Read).unwrap();
    assert_eq!(object.bind(), Err(BindError::Unsettled { range: range(0..1) }));
    assert!(!object.is_bound());
    memory.do_nothing_else();
    object.bind().unwrap();
}

#[test]
fn binding_waits_for_open_changes() {
    let (memory, device) = rig(4);
    let mut object = device.object(range(0..4), Access::Read).unwrap();
    let is_over = AtomicBool::new(false);
    let (begun, has_begun) = mpsc::channel();
    std::thread::scope(|scope| {
        memory.space.invalidate(range(3..4), mmu_notifier::Event::Clear, || {
            let (object, memory, is_over) = (&mut object, &memory, &is_over);
            scope.spawn(move || {
                begun.send(()).unwrap();
                object.bind().unwrap();
                assert!(is_over.load(SeqCst), "looked up inside an open change");
                assert_eq!(memory.look_ups.load(SeqCst), 4);
            });
            has_begun.recv().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            memory.drop_pages(3..4, false);
            is_over.store(true, SeqCst);
        });
    });
}

#[test]
fn binding_inside_a_change_of_the_same_thread_is_an_error() {
    let (memory, device) = rig(4);
    let mut object = device.object(range(0..4), Access::Read).unwrap();
    memory.space.invalidate(range(3..4), mmu_notifier::Event::Clear, || {
        assert_eq!(object.bind(), Err(BindError::Changing { range: range(0..4) }));
    });
    object.bind().unwrap();
}

#[test]
fn what_is_missing_or_forbidden_is_said() {
    let (memory, device) = rig(4);
    memory.unmap(2..3);
    let mut object = device.object(range(0..4), Access::Read).unwrap();
    let missing = BindError::NotMapped { address: address(2), access: Access::Read };
    assert_eq!(object.bind(), Err(missing));
    assert_eq!(missing.to_string(), format!("nothing at {:#x} allows access for reading", address(2)));
    memory.map(2..3);
    object.bind().unwrap();
    memory.protect(1..2, false);
    let mut object = device.object(range(0..4), Access::Write).unwrap();
    assert_eq!(object.bind(), Err(BindError::NotMapped { address: address(1), access: Access::Write }));
}

#[test]
fn what_is_missing_in_the_middle_of_a_change_is_not_missing() {
    let memory = Memory::new(0..1);
    let (inner, count) = (memory.clone(), AtomicUsize::new(0));
    let table = move |address: usize, access: Access| {
        let is_first = count.fetch_add(1, SeqCst) == 0;
        if is_first {
            inner.discard(0..1);
            return None;
        }
        inner.look_up(address, access)
    };
    let device = Device::new(&memory.space, table);
    device.object(range(0..1), Access::Read).unwrap().bind().unwrap();
}

#[test]
fn objects_are_of_whole_pages_and_there_are_so_many() {
    let (_memory, device) = rig(1);
    let odd = Range::with_len(address(0), 100).unwrap();
    assert_eq!(device.object(odd, Access::Read).unwrap_err(), ObjectError::Unaligned { range: odd });
    let objects: Vec<_> =
        (0..Device::OBJECTS).map(|_| device.object(range(0..1), Access::Read).unwrap()).collect();
    assert_eq!(device.object(range(0..1), Access::Read).unwrap_err(), ObjectError::TooMany { max: 64 });
    drop(objects);
    let object = bound(&device, 0..1);
    let jobs: Vec<_> = (0..Device::ENGINES).map(|_| object.submit().unwrap()).collect();
    assert_eq!(object.submit().unwrap_err(), SubmitError::Busy);
    drop(jobs);
    object.submit().unwrap();
}

#[test]
fn after_release_nothing_is_bound() {
    let (memory, device) = rig(1);
    let mut object = bound(&device, 0..1);
    let mut job = object.submit().unwrap();
    memory.space.release();
    assert_eq!(job.step(<[_]>::len), Err(Stopped));
    drop(job);
    assert_eq!(object.bind(), Err(BindError::Released));
}

/// No step ever sees a page that is not, or no longer, that of its object.
#[test]
fn jobs_beside_changes() {
    let (memory, device) = rig(16);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (memory, device, done) = (&memory, &device, &done);
        for thread in 0..3 {
            scope.spawn(move || {
                let _done = Sets(done);
                let mut random = Random(thread);
                for _ in 0..4_000 {
                    let start = random.below(14);
                    let mut object = device.object(range(start..start + 3), Access::Write).unwrap();
                    if object.bind().is_err() {
                        continue;
                    }
                    let Ok(mut job) = object.submit() else { continue };
                    for page in 0..3 {
                        _ = job.step(|pages| {
                            assert!(memory.is_writable(start + page));
                            memory.use_frame(pages[page].frame(), start + page, |word| {
                                word.fetch_add(1, SeqCst)
                            });
                        });
                    }
                }
            });
        }
        for thread in 0..2 {
            scope.spawn(move || {
                let mut random = Random(100 + thread);
                while !done.load(SeqCst) {
                    let start = random.below(15);
                    match random.below(4) {
                        0 => memory.unmap(start..start + 1),
                        1 => _ = memory.try_discard(start..start + 1),
                        2 => memory.protect(start..start + 1, false),
                        _ => memory.protect(start..start + 1, true),
                    }
                    memory.map(start..start + 1);
                }
            });
        }
    });
}

/// Pins by counting, so that whoever leaves pages pinned is found.
struct Pinning {
    memory: Arc<Memory>,
    pinned: Mutex<std::collections::BTreeMap<usize, usize>>,
}

impl Pinning {
    fn new(memory: &Arc<Memory>) -> Arc<Pinning> {
        Arc::new(Pinning { memory: memory.clone(), pinned: Mutex::default() })
    }

    fn count(&self) -> usize {
        self.pinned.lock().unwrap().values().sum()
    }
}

impl Pinner for Pinning {
    fn pin(&self, address: usize, access: Access) -> Option<Page> {
        let page = self.memory.look_up(address, access)?;
        *self.pinned.lock().unwrap().entry(address).or_default() += 1;
        Some(page)
    }

    fn unpin(&self, address: usize, _: Page) {
        let mut pinned = self.pinned.lock().unwrap();
        let count = pinned.get_mut(&address).unwrap();
        *count = count.checked_sub(1).expect("unpinned twice");
    }
}

fn tracked_rig(pages: usize) -> (Arc<Memory>, Arc<Pinning>, tracked::Object) {
    let memory = Memory::new(0..pages);
    let pinning = Pinning::new(&memory);
    let object =
        tracked::Object::new(&memory.space, pinning.clone(), range(0..pages), Access::Write).unwrap();
    (memory, pinning, object)
}

#[test]
fn tracked_pages_are_pinned_once_and_used_again() {
    let (memory, pinning, object) = tracked_rig(4);
    let jobs = [(); 2].map(|()| object.prepare().unwrap().submit().unwrap());
    assert_eq!((memory.look_ups.load(SeqCst), pinning.count()), (4, 4));
    assert_eq!(jobs[0].pages(), jobs[1].pages());
    drop(object);
    assert_eq!(pinning.count(), 4, "the jobs still have them");
    drop(jobs);
    assert_eq!(pinning.count(), 0);
}

#[test]
fn a_change_makes_tracked_pages_stale_and_stops_no_job() {
    let (memory, pinning, object) = tracked_rig(4);
    let job = object.prepare().unwrap().submit().unwrap();
    let late = object.prepare().unwrap();
    memory.try_discard(1..2).unwrap();
    assert_eq!(late.submit().unwrap_err(), Stale);
    assert_eq!(pinning.count(), 4, "nothing is given back by a change");
    let next = object.prepare().unwrap().submit().unwrap();
    memory.use_frame(next.pages()[1].frame(), 1, |_| ());
    assert_eq!(pinning.count(), 8, "those of the old job, too");
    drop(job);
    assert_eq!(pinning.count(), 4);
}

#[test]
fn a_change_elsewhere_leaves_tracked_pages_good() {
    let (memory, pinning, object) = tracked_rig(4);
    memory.map(4..8);
    let prepared = object.prepare().unwrap();
    memory.discard(4..8);
    prepared.submit().unwrap();
    object.prepare().unwrap();
    assert_eq!(pinning.count(), 4);
}

#[test]
fn a_change_while_tracked_pages_are_pinned_begins_anew() {
    let (memory, pinning, object) = tracked_rig(2);
    let (weak, count) = (Arc::downgrade(&memory), AtomicUsize::new(0));
    memory.on_look_up(move |page| {
        if page == 1 && count.fetch_add(1, SeqCst) < 3 {
            weak.upgrade().unwrap().discard(0..1);
        }
    });
    let job = object.prepare().unwrap().submit().unwrap();
    memory.use_frame(job.pages()[0].frame(), 0, |_| ());
    assert_eq!((memory.look_ups.load(SeqCst), pinning.count()), (8, 2));
}

#[test]
fn tracked_errors() {
    let (memory, pinning, object) = tracked_rig(2);
    memory.space.invalidate(range(0..1), mmu_notifier::Event::Clear, || {
        assert_eq!(object.prepare().unwrap_err(), BindError::Changing { range: range(0..2) });
    });
    memory.unmap(1..2);
    assert_eq!(
        object.prepare().unwrap_err(),
        BindError::NotMapped { address: address(1), access: Access::Write }
    );
    assert_eq!(pinning.count(), 0, "what was pinned before is given back");
    memory.map(1..2);
    let weak = Arc::downgrade(&memory);
    memory.on_look_up(move |_| weak.upgrade().unwrap().discard(0..1));
    assert_eq!(object.prepare().unwrap_err(), BindError::Unsettled { range: range(0..2) });
    memory.do_nothing_else();
    memory.space.release();
    assert_eq!(object.prepare().unwrap_err(), BindError::Released);
    let released = tracked::Object::new(&memory.space, pinning.clone(), range(0..1), Access::Read);
    assert_eq!(released.unwrap_err(), ObjectError::Released);
    assert_eq!(pinning.count(), 0);
    let odd = Range::with_len(address(0), 100).unwrap();
    let unaligned = tracked::Object::new(&memory.space, pinning, odd, Access::Read);
    assert_eq!(unaligned.unwrap_err(), ObjectError::Unaligned { range: odd });
}
