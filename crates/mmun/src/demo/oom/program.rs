//! The program: caches, who refers to them, and an allocation that meets the limit.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, ensure};
use mmu_notifier::{AddressSpace, Change, Event, PAGE_SIZE, Range, Subscriber};
use mmu_notifier_primary::Primary;
use mmu_notifier_primary::reaper::{self, Reaper, Source, Trigger};
use mmu_notifier_secondary::device::{Access, Page};
use mmu_notifier_secondary::stage2::{Memslot, Stage2};
use mmu_notifier_secondary::userptr::listed::{Device, Job, Object};
use serde::{Deserialize, Serialize};

use super::disk::{Disk, FILE, LEN, PIPE, Parked, Registrations};
use super::memory::{Memory, exchange, set_up_process};
use crate::cli::{Alarms, OomProgram, Way};

/// How many caches the program has, and how long each is, in bytes.
pub const CACHES: usize = 60;
pub const CACHE: usize = 2 << 20;
/// What it allocates, in bytes.
pub const MORE: usize = 120 << 20;
/// The limit of its group, in bytes: it has room for one of the two.
pub const LIMIT: u64 = 192 << 20;

/// One in so many is in use.
const BUSY: usize = 4;
/// What says that a completion is that of a read into a cache that was taken: with the cache's number added.
const READ_ANEW: u64 = 1000;

/// What a program that has survived found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Found {
    /// Caches that were taken away.
    pub reaped: usize,
    /// Caches that were in use and are as they were.
    pub untouched: usize,
    /// Bytes that were discarded and that nobody holds any more.
    pub freed: u64,
    /// Changes that were refused.
    pub refused: u64,
    /// What is wrong; nothing should be.
    pub wrong: Vec<String>,
}

/// What caches are full of: not 0.
fn pattern(cache: usize) -> u8 {
    cache as u8 | 0x80
}

fn is_busy(way: Way, cache: usize) -> bool {
    way == Way::Busy && cache.is_multiple_of(BUSY)
}

/// How many caches are in use.
pub fn busy(way: Way) -> usize {
    (0..CACHES).filter(|&cache| is_busy(way, cache)).count()
}

/// Counts starts and ends, and the starts of changes of the caches.
struct Counts {
    caches: Range,
    starts: AtomicU64,
    ends: AtomicU64,
    of_caches: AtomicU64,
}

impl Counts {
    fn of(caches: Range) -> Counts {
        let zero = || AtomicU64::new(0);
        Counts { caches, starts: zero(), ends: zero(), of_caches: zero() }
    }

    fn are_balanced(&self) -> bool {
        self.starts.load(Ordering::Relaxed) == self.ends.load(Ordering::Relaxed)
    }
}

impl Subscriber for Counts {
    fn start(&self, change: &Change) {
        self.starts.fetch_add(1, Ordering::Relaxed);
        if change.event() == Event::Clear && self.caches.contains(&change.range()) {
            self.of_caches.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn end(&self, _: &Change) {
        self.ends.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs it; gives the exit status. What it has found goes to standard output.
pub fn run(options: &OomProgram) -> i32 {
    match found(options) {
        Ok(found) => {
            let text = serde_json::to_string(&found).expect("numbers and text");
            i32::from(writeln!(std::io::stdout(), "{text}").is_err())
        }
        Err(error) => {
            crate::complain(&error);
            2
        }
    }
}

fn found(options: &OomProgram) -> anyhow::Result<Found> {
    let OomProgram { group, way, alarm } = options;
    fs::write(group.join("cgroup.procs"), "0").context("cannot enter the control group")?;
    set_up_process()?;
    let primary = Primary::install(&Default::default()).context("cannot intercept our own system calls")?;
    let space = primary.space();

    let caches = Memory::new(CACHES * CACHE)?;
    let at =
        |cache: usize| Range::with_len(caches.range().start() + cache * CACHE, CACHE).expect("it has bytes");
    (0..CACHES).for_each(|cache| caches.fill(cache * CACHE, CACHE, pattern(cache)));
    let counts = Arc::new(Counts::of(caches.range()));
    let _counts = space.subscribe(counts.clone());

    // Everything is where it is: the devices reach memory at its address.
    let own = |address: usize, _: Access| Some(Page::writable(address));
    let guest = Stage2::new(space, own);
    guest.add(0, Memslot { guest: 0, memory: caches.range(), access: Access::ReadWrite })?;
    let mut vcpu = guest.vcpu()?;
    (0..CACHES * CACHE).step_by(PAGE_SIZE).try_for_each(|page| vcpu.access(page, Access::Read, |_| ()))?;
    let device = Device::new(space, own);
    let mut objects =
        (0..CACHES).map(|it| device.object(at(it), Access::ReadWrite)).collect::<Result<Vec<_>, _>>()?;
    objects.iter_mut().try_for_each(Object::bind)?;
    let mut disk = Disk::new(space, 2 * CACHES as u16)?;
    (0..CACHES).try_for_each(|cache| disk.register(at(cache)))?;
    let registrations = disk.registrations.clone();
    // Reads that wait are on a ring of their own: older kernels release the buffers of a ring in order, so one that is in use
    // would keep all others.
    let mut waiting = Disk::new(space, CACHES as u16)?;
    let waiting_registrations = waiting.registrations.clone();
    let in_use = InUse::new(*way, &objects, &mut waiting, &waiting_registrations, &at)?;

    let nobody = AddressSpace::new();
    let told = if *way == Way::Untold { &nobody } else { space };
    let reaper = match way {
        Way::Nobody => None,
        _ => Some(start(told, group, *alarm, registrations.clone())?),
    };
    let add = |cache| reaper.as_ref().map(|reaper| caches.add_to(reaper, cache * CACHE, CACHE));
    let evictable = (0..CACHES).filter_map(add).collect::<Result<Vec<_>, _>>()?;
    let more = allocate(&mut disk)?;
    let mut checks = Checks::default();
    checks.check(is_intact(&more), "what was allocated has changed");
    drop(more);
    // From here on nothing is taken any more.
    drop(evictable);
    let stats = reaper.as_ref().map(Reaper::stats).unwrap_or_default();
    drop(reaper);

    let (mut reaped, mut untouched) = (0, 0);
    for cache in 0..CACHES {
        let byte = caches.byte(cache * CACHE, CACHE);
        checks
            .check(byte == Some(0) || byte == Some(pattern(cache)), "a cache is neither as it was nor gone");
        reaped += usize::from(byte == Some(0) && !is_busy(*way, cache));
        untouched += usize::from(byte == Some(pattern(cache)) && is_busy(*way, cache));
    }
    let is_once = stats.announced == counts.of_caches.load(Ordering::Relaxed);
    checks.check(is_once, "a change was announced more than once, or not at all");
    in_use.go_on(&mut waiting, &caches, &mut checks)?;
    // What was taken can be used anew, by everybody, and all see the same.
    for cache in (0..CACHES).filter(|&cache| !is_busy(*way, cache)) {
        disk.read(at(cache), READ_ANEW + cache as u64)?;
        checks.check(caches.byte(cache * CACHE, LEN) == Some(FILE), "what was read anew is not there");
        let before = vcpu.access(cache * CACHE, Access::Write, |pointer| exchange(pointer, 3));
        checks.check(before == Ok(FILE), "the guest sees other memory");
        checks.check(caches.byte(cache * CACHE, 1) == Some(3), "what the guest has written is not there");
        objects[cache].bind()?;
        let before = objects[cache].submit()?.step(|pages| exchange(pages[0].frame(), 4));
        checks.check(before == Ok(3), "a job sees other memory");
        checks.check(caches.byte(cache * CACHE, 1) == Some(4), "what a job has written is not there");
    }
    let of_guest = guest.stats();
    let is_idle = (of_guest.active, of_guest.in_progress, of_guest.unbalanced) == (0, 0, 0);
    checks.check(is_idle, "the guest's counts are raised");
    checks.check(counts.are_balanced(), "a start has no end");
    Ok(Found { reaped, untouched, freed: stats.freed(), refused: stats.refused, wrong: checks.wrong })
}

/// The caches that are in use, by turns by a job of the graphics processor and by a read of the disk.
struct InUse<'a> {
    jobs: Vec<(usize, Job<'a>)>,
    reads: Vec<(usize, Parked<'a>)>,
}

impl<'a> InUse<'a> {
    fn new(
        way: Way,
        objects: &'a [Object<'_>],
        disk: &mut Disk,
        registrations: &'a Registrations,
        at: &dyn Fn(usize) -> Range,
    ) -> anyhow::Result<InUse<'a>> {
        let (mut jobs, mut reads) = (Vec::new(), Vec::new());
        for cache in (0..CACHES).filter(|&cache| is_busy(way, cache)) {
            match (cache / BUSY).is_multiple_of(2) {
                true => jobs.push((cache, objects[cache].submit()?)),
                false => reads.push((cache, disk.park(registrations, at(cache), 1 + cache as u64)?)),
            }
        }
        Ok(InUse { jobs, reads })
    }

    /// To their ends.
    fn go_on(self, disk: &mut Disk, caches: &Memory, checks: &mut Checks) -> anyhow::Result<()> {
        for (cache, mut job) in self.jobs {
            let all = |pages: &[Page]| pages.iter().all(|page| exchange(page.frame(), 1) == pattern(cache));
            checks.check(job.step(all) == Ok(true), "a job lost its memory");
            checks.check(caches.byte(cache * CACHE, 1) == Some(1), "what a job has written is not there");
        }
        for (cache, read) in self.reads {
            disk.finish(read)?;
            checks.check(caches.byte(cache * CACHE, LEN) == Some(PIPE), "what was read is not there");
            let rest = caches.byte(cache * CACHE + LEN, CACHE - LEN);
            checks.check(rest == Some(pattern(cache)), "a read has changed more than it read");
        }
        Ok(())
    }
}

/// What is wrong, each once.
#[derive(Default)]
struct Checks {
    wrong: Vec<String>,
}

impl Checks {
    fn check(&mut self, is_so: bool, otherwise: &str) {
        if !is_so && !self.wrong.iter().any(|it| it == otherwise) {
            self.wrong.push(otherwise.to_owned());
        }
    }
}

fn start(
    space: &AddressSpace,
    group: &Path,
    alarm: Alarms,
    registrations: Arc<Registrations>,
) -> anyhow::Result<Reaper> {
    let source = match alarm {
        Alarms::OomControl => Source::OomControl,
        Alarms::Threshold => Source::Threshold,
        Alarms::Polling | Alarms::All => Source::Polling,
    };
    let options = reaper::Options {
        trigger: Trigger::Source(source),
        group: Some(group.into()),
        ranges: CACHES,
        unreleased: Box::new(move || {
            registrations.unreleased() as u64 + registrations.registrar().unreleased()
        }),
        ..reaper::Options::default()
    };
    Ok(Reaper::start(space, options)?)
}

/// Bytes that are allocated before the program does something else for a moment.
const AT_ONCE: usize = 2 << 20;

/// Allocates past the limit. Now and then looks at what the disk has to say, as programs do.
fn allocate(disk: &mut Disk) -> anyhow::Result<Memory> {
    let more = Memory::new(MORE)?;
    for at in (0..MORE).step_by(AT_ONCE) {
        more.fill(at, AT_ONCE, content(at));
        disk.hear_of_releases();
        sleep(Duration::from_micros(500));
    }
    ensure!(more.range().len() == MORE, "not all of it is there");
    Ok(more)
}

fn content(at: usize) -> u8 {
    (at / AT_ONCE) as u8 | 0x40
}

fn is_intact(more: &Memory) -> bool {
    (0..MORE).step_by(AT_ONCE).all(|at| more.byte(at, AT_ONCE) == Some(content(at)))
}
