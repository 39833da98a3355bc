//! One device of each kind, and a thread that uses it: each page is compared while it is in use.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use mmu_notifier::{
    AddressSpace, Change, IntervalSubscriber, IntervalSubscription, PAGE_SIZE, Pass, Range, WouldBlock,
};
use mmu_notifier_secondary::device::{Access, Page, PageTable};
use mmu_notifier_secondary::gru::{self, Gru};
use mmu_notifier_secondary::mirror::{self, Engine, Mirror};
use mmu_notifier_secondary::stage2::{Fault, Memslot, MemslotError, Stage2, Vcpu};
use mmu_notifier_secondary::userptr::listed::Device;
use mmu_notifier_secondary::userptr::tracked::{Object, Pinner};

use super::counts::{Counts, add};
use super::memory::{EVICTABLE, Memory, PAGES};
use super::{Random, until};

/// All of them.
pub(crate) struct Devices {
    gru: Gru,
    stage2: Stage2,
    listed: Device,
    tracked: Vec<Object>,
    mirror: Mirror,
    kept: Arc<Kept>,
    interval: IntervalSubscription,
}

/// How many pages an object has.
pub(crate) const OBJECT: usize = 4;
/// The memslots: of what becomes anything, and of what is evictable.
const PROGRAM: usize = 0;
const CACHE: usize = 1;
/// Where the second one is in the guest.
const PLACES: [usize; 2] = [1 << 30, 2 << 30];
/// The page that an interval is about.
const KEPT: usize = 17;

impl Devices {
    pub(crate) fn new(space: &AddressSpace, memory: &Arc<Memory>) -> Result<Devices, Box<dyn Error>> {
        let stage2 = Stage2::with_patience(space, memory.clone(), Duration::from_millis(100));
        let slot = |guest, pages| Memslot { guest, memory: memory.range(pages), access: Access::ReadWrite };
        stage2.add(PROGRAM, slot(0, 0..PAGES))?;
        stage2.add(CACHE, slot(PLACES[0], PAGES..PAGES + EVICTABLE))?;
        let objects = (0..PAGES + EVICTABLE).step_by(3 * OBJECT);
        let object = |page| {
            Object::new(space, Frames(memory.clone()), memory.range(page..page + OBJECT), Access::Read)
        };
        let kept = Arc::new(Kept::default());
        Ok(Devices {
            gru: Gru::new(space, memory.clone()),
            stage2,
            listed: Device::new(space, memory.clone()),
            tracked: objects.map(object).collect::<Result<_, _>>()?,
            mirror: Mirror::new(space, memory.range(0..PAGES + EVICTABLE), memory.clone())?,
            interval: space.insert(memory.range(KEPT..KEPT + 1), kept.clone())?,
            kept,
        })
    }

    /// Uses them until it is `over`.
    pub(crate) fn spawn<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        memory: &'scope Memory,
        counts: &'scope Counts,
        over: &'scope AtomicBool,
    ) {
        scope.spawn(move || {
            let mut context = self.gru.context().expect("a context");
            until(over, |random| use_gru(&mut context, memory, &counts.gru, random), 10);
        });
        scope.spawn(move || {
            let mut vcpu = self.stage2.vcpu().expect("a processor");
            let guest =
                |page| if page < PAGES { page * PAGE_SIZE } else { PLACES[0] + (page - PAGES) * PAGE_SIZE };
            until(over, |random| use_stage2(&mut vcpu, guest, memory, &counts.stage2, random), 11);
        });
        scope.spawn(move || until(over, |random| self.change_memslots(memory, counts, random), 12));
        scope.spawn(move || {
            until(over, |random| use_listed(&self.listed, memory, &counts.listed, random), 13)
        });
        scope.spawn(move || {
            let use_one = |random: &mut Random| {
                use_tracked(&self.tracked[random.below(self.tracked.len())], memory, &counts.tracked);
            };
            until(over, use_one, 14);
        });
        scope.spawn(move || {
            let mut engine = self.mirror.engine().expect("an engine");
            let use_or_move = |random: &mut Random| match random.below(50) {
                // To the device, where it is not used, and back.
                0 => memory
                    .discard(|range, change| self.mirror.migrate(range, change).expect("inside"), random),
                _ => use_mirror(&mut engine, memory, &counts.mirror, random),
            };
            until(over, use_or_move, 16);
        });
        scope.spawn(move || {
            until(over, |_| self.kept.used(&self.interval, memory, &counts.interval), 15);
        });
    }

    fn change_memslots(&self, memory: &Memory, counts: &Counts, random: &mut Random) {
        let stage2 = &self.stage2;
        let place = PLACES[random.below(2)];
        let evictable = memory.range(PAGES..PAGES + EVICTABLE);
        let slot = Memslot { guest: place, memory: evictable, access: Access::ReadWrite };
        let updated = match random.below(5) {
            0 => stage2.delete(CACHE),
            1 => stage2.add(CACHE, slot),
            2 => stage2.relocate(CACHE, place),
            3 => stage2.log_dirty(CACHE),
            _ => stage2.dirty_log(CACHE).map(drop),
        };
        match updated {
            Ok(()) => add(&counts.memslots),
            Err(MemslotError::Stalled { .. }) => add(&counts.stalled),
            Err(
                MemslotError::Exists { .. } | MemslotError::NoSuch { .. } | MemslotError::NotLogged { .. },
            ) => (),
            Err(other) => panic!("{other}"),
        }
        std::thread::sleep(Duration::from_micros(500));
    }

    /// Nothing changes any more: what they still have is what is there.
    pub(crate) fn agree(&self, memory: &Memory) {
        let mut context = self.gru.context().expect("a context");
        let mut vcpu = self.stage2.vcpu().expect("a processor");
        let mut engine = self.mirror.engine().expect("an engine");
        for page in 0..PAGES + EVICTABLE {
            let address = memory.address(page);
            _ = context.access(address, Access::Read, |found| memory.check(address, found));
            _ = engine.access(address, Access::Read, |found| memory.check(address, found));
            if page < PAGES {
                _ = vcpu.access(page * PAGE_SIZE, Access::Read, |found| memory.check(address, found));
            }
            for place in PLACES.iter().filter(|_| page >= PAGES) {
                let guest = place + (page - PAGES) * PAGE_SIZE;
                _ = vcpu.access(guest, Access::Read, |found| memory.check(address, found));
            }
        }
        for object in &self.tracked {
            use_tracked(object, memory, &AtomicU64::new(0));
        }
        let kept = *self.kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(frame) = kept {
            memory.check(memory.address(KEPT), frame);
        }
    }

    /// Nothing is open for any of them.
    pub(crate) fn are_balanced(&self) -> Result<(), String> {
        let (gru, stage2) = (self.gru.stats(), self.stage2.stats());
        let is_even = (gru.active, gru.waiting) == (0, 0)
            && (stage2.active, stage2.in_progress, stage2.unbalanced) == (0, 0, 0);
        if is_even { Ok(()) } else { Err(format!("something is left open: {gru:?}, {stage2:?}")) }
    }
}

fn any_access(random: &mut Random) -> Access {
    if random.below(2) == 0 { Access::Read } else { Access::Write }
}

pub(crate) fn use_gru(
    context: &mut gru::Context<'_>,
    memory: &Memory,
    used: &AtomicU64,
    random: &mut Random,
) {
    let address = memory.address(random.below(PAGES + EVICTABLE));
    let check = |found| {
        memory.check(address, found);
        add(used);
    };
    match context.access(address, any_access(random), check) {
        Ok(()) | Err(gru::Fault::NotMapped { .. }) => (),
        Err(other) => panic!("{other}"),
    }
}

pub(crate) fn use_mirror(engine: &mut Engine<'_>, memory: &Memory, used: &AtomicU64, random: &mut Random) {
    let address = memory.address(random.below(PAGES + EVICTABLE));
    let check = |found| {
        memory.check(address, found);
        add(used);
    };
    let used = match random.below(8) {
        0 => engine.access_alone(address, check),
        _ => engine.access(address, any_access(random), check),
    };
    match used {
        Ok(()) | Err(mirror::Fault::NotMapped { .. } | mirror::Fault::NotTaken { .. }) => (),
        // Changes came for all of its patience.
        Err(mirror::Fault::Unsettled { .. }) => (),
        Err(other) => panic!("{other}"),
    }
}

pub(crate) fn use_stage2(
    vcpu: &mut Vcpu<'_>,
    guest: impl Fn(usize) -> usize,
    memory: &Memory,
    used: &AtomicU64,
    random: &mut Random,
) {
    let page = random.below(PAGES + EVICTABLE);
    let check = |found| {
        memory.check(memory.address(page), found);
        add(used);
    };
    match vcpu.access(guest(page), any_access(random), check) {
        Ok(()) | Err(Fault::NotMapped { .. } | Fault::NoMemslot { .. }) => (),
        Err(other) => panic!("{other}"),
    }
}

pub(crate) fn use_listed(device: &Device, memory: &Memory, used: &AtomicU64, random: &mut Random) {
    let page = random.below(PAGES + EVICTABLE - OBJECT);
    let range = memory.range(page..page + OBJECT);
    let mut object = device.object(range, any_access(random)).expect("room for an object");
    // What is not mapped, or changes all the time, cannot be bound.
    if object.bind().is_err() {
        return;
    }
    let Ok(mut job) = object.submit() else { return };
    for _ in 0..4 {
        let check = |pages: &[Page]| {
            for (number, page) in pages.iter().enumerate() {
                memory.check(memory.address(number) + (range.start() - memory.address(0)), page.frame());
                add(used);
            }
        };
        if job.step(check).is_err() {
            return;
        }
        std::thread::yield_now();
    }
}

/// Pages that nobody holds: a job compares them as long as they are not stale.
pub(crate) struct Frames(pub(crate) Arc<Memory>);

impl Pinner for Frames {
    fn pin(&self, address: usize, access: Access) -> Option<Page> {
        self.0.look_up(address, access)
    }

    fn unpin(&self, _: usize, _: Page) {}
}

pub(crate) fn use_tracked(object: &Object, memory: &Memory, used: &AtomicU64) {
    let Ok(prepared) = object.prepare() else { return };
    let first = object.range().start();
    let is_right = |(number, page): (usize, &Page)| memory.is(first + number * PAGE_SIZE, page.frame());
    let are_right = prepared.pages().iter().enumerate().all(is_right);
    let pages = prepared.pages().len();
    // If that finds no change, there was none since the pages were found.
    if prepared.submit().is_ok() {
        assert!(are_right, "an object of {} was submitted with other pages", object.range());
        used.fetch_add(pages as u64, std::sync::atomic::Ordering::SeqCst);
    }
}

/// One page, remembered as long as nothing changes: `docs/subscribers.md` explains it.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Option<usize>>);

impl IntervalSubscriber for Kept {
    fn invalidate(&self, _: &Change) -> Pass {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Pass::Done
    }

    fn try_invalidate(&self, _: &Change) -> Result<Pass, WouldBlock> {
        *self.0.try_lock().map_err(|_| WouldBlock)? = None;
        Ok(Pass::Done)
    }
}

impl Kept {
    pub(crate) fn used(&self, interval: &IntervalSubscription, memory: &Memory, used: &AtomicU64) {
        let address = interval.range().start();
        if let Some(frame) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            memory.check(address, frame);
            add(used);
            return;
        }
        let ticket = interval.read();
        let Some(page) = memory.look_up(address, Access::Read) else { return };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !interval.is_stale(&ticket) {
            *kept = Some(page.frame());
        }
    }
}

/// The range of one page.
pub(crate) fn one_page(memory: &Memory, random: &mut Random) -> Range {
    let page = random.below(PAGES + EVICTABLE);
    memory.range(page..page + 1)
}
