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
use mmu_notifier_secondary::userptr::listed::Device;
use serde::{Deserialize, Serialize};

use super::devices::{self, Disk, FILE, LEN, PIPE};
use super::memory::{Memory, exchange, without_huge_pages};
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

/// Counts starts and ends, and those of the caches.
#[derive(Default)]
struct Counts {
    starts: AtomicU64,
    ends: AtomicU64,
    of_caches: AtomicU64,
    caches: std::sync::OnceLock<Range>,
}

impl Subscriber for Counts {
    fn start(&self, change: &Change) {
        self.starts.fetch_add(1, Ordering::Relaxed);
        if change.event() == Event::Clear
            && self.caches.get().is_some_and(|caches| caches.contains(&change.range()))
        {
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
    without_huge_pages()?;
    let primary = Primary::install(&Default::default()).context("cannot intercept our own system calls")?;
    let space = primary.space();

    let caches = Memory::new(CACHES * CACHE)?;
    let at =
        |cache: usize| Range::with_len(caches.range().start() + cache * CACHE, CACHE).expect("it has bytes");
    (0..CACHES).for_each(|cache| caches.fill(cache * CACHE, CACHE, pattern(cache)));
    let counts = Arc::new(Counts::default());
    counts.caches.get_or_init(|| caches.range());
    let _counts = space.subscribe(counts.clone());

    // Everything is where it is: the devices reach memory at its address.
    let own = |address: usize, _: Access| Some(Page::writable(address));
    let guest = Stage2::new(space, own);
    guest.add(0, Memslot { guest: 0, memory: caches.range(), access: Access::ReadWrite })?;
    let mut vcpu = guest.vcpu()?;
    for page in (0..CACHES * CACHE).step_by(PAGE_SIZE) {
        vcpu.access(page, Access::Read, |_| ())?;
    }
    let device = Device::new(space, own);
    let mut objects =
        (0..CACHES).map(|it| device.object(at(it), Access::ReadWrite)).collect::<Result<Vec<_>, _>>()?;
    for object in &mut objects {
        object.bind()?;
    }
    let mut disk = Disk::new(space, 2 * CACHES as u16)?;
    (0..CACHES).try_for_each(|cache| disk.register(at(cache)))?;

    // What is in use is so by turns: a job of the graphics processor, a read of the disk.
    let is_a_job = |cache: usize| (cache / BUSY).is_multiple_of(2);
    let busy = || (0..CACHES).filter(|&cache| is_busy(*way, cache));
    let mut jobs = Vec::new();
    for cache in busy().filter(|&cache| is_a_job(cache)) {
        jobs.push((cache, objects[cache].submit()?));
    }
    let registrations = disk.cache.clone();
    let (ring, _) = disk.parts();
    let mut reads = Vec::new();
    for cache in busy().filter(|&cache| !is_a_job(cache)) {
        reads.push((cache, devices::park(ring, &registrations, at(cache), 1 + cache as u64)?));
    }

    let nobody = AddressSpace::new();
    let told = if *way == Way::Untold { &nobody } else { space };
    let reaper = match way {
        Way::Nobody => None,
        _ => Some(start(told, group, *alarm, disk.cache.clone())?),
    };
    let mut evictable = Vec::new();
    for cache in 0..CACHES {
        evictable
            .extend(reaper.as_ref().map(|reaper| caches.add_to(reaper, cache * CACHE, CACHE)).transpose()?);
    }

    let more = allocate()?;
    let mut wrong = Vec::new();
    let mut check = |is_so: bool, what: &str| {
        if !is_so && !wrong.iter().any(|it| it == what) {
            wrong.push(what.to_owned());
        }
    };
    check(is_intact(&more), "what was allocated has changed");
    drop(more);
    drop(evictable);
    let stats = reaper.as_ref().map(Reaper::stats).unwrap_or_default();
    drop(reaper);

    let (mut reaped, mut untouched) = (0, 0);
    for cache in 0..CACHES {
        let byte = caches.byte(cache * CACHE, CACHE);
        check(byte == Some(0) || byte == Some(pattern(cache)), "a cache is neither as it was nor gone");
        reaped += usize::from(byte == Some(0) && !is_busy(*way, cache));
        untouched += usize::from(byte == Some(pattern(cache)) && is_busy(*way, cache));
    }
    check(
        stats.announced == counts.of_caches.load(Ordering::Relaxed),
        "a change was announced more than once, or not",
    );

    // What was in use goes on.
    for (cache, job) in &mut jobs {
        let stepped = job.step(|pages| pages.iter().all(|page| exchange(page.frame(), 1) == pattern(*cache)));
        check(stepped == Ok(true), "a job lost its memory");
        check(byte_at(&caches, *cache) == Some(1), "what a job has written is not there");
    }
    drop(jobs);
    let (ring, registrations) = (disk.parts().0, &*registrations);
    for (cache, read) in reads {
        read.finish(ring, registrations)?;
        check(caches.byte(cache * CACHE, LEN) == Some(PIPE), "what was read is not there");
        check(
            caches.byte(cache * CACHE + LEN, CACHE - LEN) == Some(pattern(cache)),
            "a read has changed more",
        );
    }
    // And what was taken can be used anew.
    for cache in (0..CACHES).filter(|&cache| !is_busy(*way, cache)) {
        disk.read(at(cache), 1000 + cache as u64)?;
        check(caches.byte(cache * CACHE, LEN) == Some(FILE), "what was read anew is not there");
        check(
            vcpu.access(cache * CACHE, Access::Write, |at| exchange(at, 3)) == Ok(FILE),
            "the guest sees other memory",
        );
        check(byte_at(&caches, cache) == Some(3), "what the guest has written is not there");
        objects[cache].bind()?;
        let stepped = objects[cache].submit()?.step(|pages| exchange(pages[0].frame(), 4));
        check(stepped == Ok(3), "a job sees other memory");
    }
    let of_guest = guest.stats();
    check(
        of_guest.active == 0 && of_guest.in_progress == 0 && of_guest.unbalanced == 0,
        "the guest's counts are raised",
    );
    let [starts, ends] = [&counts.starts, &counts.ends].map(|count| count.load(Ordering::Relaxed));
    check(starts == ends, "a start has no end");
    Ok(Found { reaped, untouched, freed: stats.freed(), refused: stats.refused, wrong })
}

fn byte_at(caches: &Memory, cache: usize) -> Option<u8> {
    caches.byte(cache * CACHE, 1)
}

fn start(
    space: &AddressSpace,
    group: &Path,
    alarm: Alarms,
    cache: Arc<mmu_notifier_secondary::cache::Cache<mmu_notifier_secondary::io_uring::FixedBuffers>>,
) -> anyhow::Result<Reaper> {
    let source = match alarm {
        Alarms::OomControl => Source::OomControl,
        Alarms::Threshold | Alarms::Both => Source::Threshold,
    };
    let options = reaper::Options {
        trigger: Trigger::Source(source),
        group: Some(group.into()),
        ranges: CACHES,
        unreleased: Box::new(move || cache.unreleased() as u64),
        ..reaper::Options::default()
    };
    Ok(Reaper::start(space, options)?)
}

/// Bytes that are allocated before the program does something else for a moment.
const AT_ONCE: usize = 2 << 20;

/// Allocates past the limit.
fn allocate() -> anyhow::Result<Memory> {
    let more = Memory::new(MORE)?;
    for at in (0..MORE).step_by(AT_ONCE) {
        more.fill(at, AT_ONCE, content(at));
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
