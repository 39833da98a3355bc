//! What is measured: one window of each cell, for whichever contender.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::contenders::Contender;
use crate::layout::{Layout, Place, Places};
use crate::measure::{Distance, Helper, batch, window};

/// One or more figures in nanoseconds, and how they were taken. Nothing if the window was disturbed.
pub(crate) type Sample = Option<(Distance, Vec<f64>)>;

/// Something that is measured in windows, and what the figures of a window are called.
pub(crate) struct Cell {
    pub(crate) names: Vec<String>,
    pub(crate) threads: usize,
    /// Not there for who cannot do it.
    pub(crate) run: Option<Box<dyn FnMut() -> Sample>>,
}

/// All cells of one contender. Each contender has the same ones, in the same order.
struct Cells<C> {
    contender: Arc<C>,
    helper: Option<Arc<Helper>>,
    cells: Vec<Cell>,
}

pub(crate) fn cells<C: Contender>(layout: &Layout, helper: Option<&Arc<Helper>>) -> Vec<Cell> {
    let contender = C::filled(layout);
    let registered = contender.registrations();
    layout.shuffled().for_each(|(start, end)| contender.get(start + 64, end - 64));
    assert!(
        registered == layout.count as u64 && contender.registrations() == registered,
        "{} does not find what it was filled with",
        C::NAME
    );
    let mut cells = Cells { contender: Arc::new(contender), helper: helper.cloned(), cells: Vec::new() };
    cells.hits(layout);
    cells.hits_beside(layout);
    cells.unmaps(layout);
    cells.churn(layout);
    cells.cells
}

/// An unmap of what nobody holds.
#[inline(always)]
fn unmap_nothing<C: Contender>(contender: &C, place: Place) {
    let (start, end) = place.gap();
    contender.unmap(start, end);
}

#[inline(always)]
fn hit<C: Contender>(contender: &C, place: Place) {
    let (start, end) = place.buffer();
    contender.get(start, end);
}

/// Unmaps an entry and registers it again.
#[inline(always)]
fn replace<C: Contender>(contender: &C, place: Place) {
    let (start, end) = place.entry();
    contender.unmap(start, end);
    contender.get(start, end);
}

/// What the shortest system call takes that unmaps anything: no two unmaps of a thread follow each other faster. Without
/// it nobody else comes to UCX's lock, for a second and more.
const SYSTEM_CALL: Duration = Duration::from_nanos(700);
const NOW_AND_THEN: Duration = Duration::from_micros(10);

/// Two threads may be ten times as slow as one: they look at the clock more often.
fn short(batch: u64) -> u64 {
    (batch / 4).max(1)
}

/// Does not sleep.
fn wait(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {}
}

impl<C: Contender> Cells<C> {
    fn cell(&mut self, names: &[&str], threads: usize, writes: bool, run: impl FnMut() -> Sample + 'static) {
        let run: Option<Box<dyn FnMut() -> Sample>> =
            if writes && C::READ_ONLY { None } else { Some(Box::new(run)) };
        self.cells.push(Cell { names: names.iter().map(|name| (*name).into()).collect(), threads, run });
    }

    /// One thread does `body` in one place after the other.
    fn one(&mut self, name: &str, writes: bool, places: Places, body: impl Fn(&C, Place) + Copy + 'static) {
        let contender = self.contender.clone();
        let mut places = places;
        let mut count = None;
        self.cell(&[name], 1, writes, move || {
            let mut run = |count| places.each(count, |place| body(&contender, place));
            let count = *count.get_or_insert_with(|| batch(&mut run));
            let registered = contender.registrations();
            let side = window(count, false, &mut run);
            assert!(
                writes || contender.registrations() == registered,
                "{} has missed what it holds",
                C::NAME
            );
            Some((Distance::None, vec![side.undisturbed()?.each()]))
        });
    }

    /// Two threads do `body`, each in places of its own.
    fn two(
        &mut self,
        name: &str,
        writes: bool,
        [mine, theirs]: [Places; 2],
        body: impl Fn(&C, Place) + Copy + Send + 'static,
    ) {
        let Some(helper) = self.helper.clone() else {
            return;
        };
        let contender = self.contender.clone();
        let (mut mine, mut theirs) = (mine, Some(theirs));
        let mut count = None;
        self.cell(&[name], 2, writes, move || {
            let mut run = |count| mine.each(count, |place| body(&contender, place));
            let count = *count.get_or_insert_with(|| short(batch(&mut run)));
            let other = contender.clone();
            let mut places = theirs.take().expect("it was put back");
            // Where the other thread goes on next time: as far as it would come alone.
            let (sender, receiver) = std::sync::mpsc::channel();
            let both = helper.both(
                move || {
                    let side = window(count, false, |count| places.each(count, |place| body(&other, place)));
                    let _ = sender.send(places);
                    side
                },
                || window(count, false, &mut run),
            );
            theirs = receiver.recv().ok();
            let (distance, each) = both?;
            Some((distance, vec![each]))
        });
    }

    /// Hits while the other thread does `disturb`.
    fn beside(
        &mut self,
        name: &str,
        [mine, theirs]: [Places; 2],
        disturb: impl Fn(&C, Place) + Copy + Send + 'static,
        pause: Duration,
        finally: Option<(usize, usize)>,
    ) {
        let Some(helper) = self.helper.clone() else {
            return;
        };
        let contender = self.contender.clone();
        let mut mine = mine;
        let mut count = None;
        self.cell(&[name], 2, true, move || {
            let mut run = |count| mine.each(count, |place| hit(&*contender, place));
            let count = *count.get_or_insert_with(|| short(batch(&mut run)));
            let (other, last) = (contender.clone(), contender.clone());
            let mut places = theirs.clone();
            let (distance, each) = helper.one(
                move || {
                    places.each(1, |place| disturb(&other, place));
                    wait(pause);
                },
                move || {
                    if let Some((start, end)) = finally {
                        last.unmap(start, end);
                    }
                },
                || window(count, true, &mut run),
            )?;
            Some((distance, vec![each]))
        });
    }

    fn hits(&mut self, layout: &Layout) {
        let (same, random) = (layout.fixed(0), layout.random());
        self.one("hit/same/1-thread", false, same.clone(), hit);
        if layout.count > 1 {
            self.one("hit/random/1-thread", false, random.clone(), hit);
        }
        self.two("hit/same/2-threads", false, [same.clone(), same.clone()], hit);
        if layout.count > 1 {
            self.two("hit/own/2-threads", false, [same, layout.fixed(layout.count - 1)], hit);
            self.two("hit/random/2-threads", false, [random.clone(), random.half_way_on()], hit);
        }
    }

    fn hits_beside(&mut self, layout: &Layout) {
        let (same, random) = (layout.fixed(0), layout.random());
        let middle = random.clone().half_way_on();
        let unmap = unmap_nothing;
        self.one("hit/same/after-own-unmap", true, same.clone(), |contender, place| {
            unmap_nothing(contender, place);
            hit(contender, place);
        });
        self.beside("hit/same/beside-unmaps", [same.clone(), middle.clone()], unmap, SYSTEM_CALL, None);
        let both = [same.clone(), middle.clone()];
        self.beside("hit/same/beside-unmap-each-10-us", both, unmap, NOW_AND_THEN, None);
        if layout.count > 1 {
            self.beside("hit/random/beside-unmaps", [random, middle], unmap, SYSTEM_CALL, None);
        }
        // Who has one entry must not find two next time.
        let extra = (layout.count == 1).then(|| layout.entry(1));
        let (reader, writer) = (layout.half(0), layout.half(1));
        self.beside("hit/same/beside-writer", [same, writer.clone()], replace, Duration::ZERO, extra);
        if layout.count > 1 {
            let both = [reader.clone(), writer.clone()];
            self.beside("hit/random/beside-writer", both, replace, Duration::ZERO, None);
        }
        self.beside("hit/random/beside-write-each-10-us", [reader, writer], replace, NOW_AND_THEN, extra);
    }

    fn unmaps(&mut self, layout: &Layout) {
        let random = layout.random();
        self.one("unmap/nothing/1-thread", true, random.clone(), unmap_nothing);
        self.one("unmap/nothing-64-GiB/1-thread", true, random.clone(), |contender, _| {
            let (start, end) = Layout::elsewhere();
            contender.unmap(start, end);
        });
        let middle = random.clone().half_way_on();
        self.two("unmap/nothing/2-threads", true, [random, middle], unmap_nothing);
    }

    fn churn(&mut self, layout: &Layout) {
        self.one("unmap-and-miss/1-thread", true, layout.random(), replace);
        if layout.count > 1 {
            self.two("unmap-and-miss/2-threads", true, [layout.half(0), layout.half(1)], replace);
        }
        for together in [1, 16, 256] {
            if together < layout.count {
                self.together(layout, together);
            }
        }
    }

    /// Unmaps `together` neighbours at a time and then registers them again, at least 16 entries between two looks at the
    /// clock. What a contender puts off at an unmap it does at the misses.
    fn together(&mut self, layout: &Layout, together: usize) {
        let contender = self.contender.clone();
        let layout = layout.clone();
        let mut places = layout.random();
        let calls = 16_usize.div_ceil(together);
        let unmap = format!("unmap/{together}-of-n/each");
        let miss = format!("miss/after-unmap-of-{together}/each");
        self.cell(&[&unmap, &miss], 1, true, move || {
            let (mut unmapping, mut missing) = (Duration::ZERO, Duration::ZERO);
            let mut firsts = Vec::with_capacity(calls);
            let side = window(1, true, |_| {
                firsts.clear();
                places.each(calls as u64, |place| firsts.push(place.number.min(layout.count - together)));
                let began = Instant::now();
                for &first in &firsts {
                    contender.unmap(layout.entry(first).0, layout.entry(first + together - 1).1);
                }
                let unmapped = Instant::now();
                for &first in &firsts {
                    for number in first..first + together {
                        let (start, end) = layout.entry(number);
                        contender.get(start, end);
                    }
                }
                unmapping += unmapped - began;
                missing += unmapped.elapsed();
            });
            // The window's first turn, which warms up, is counted here.
            let entries = ((side.operations + 1) as usize * calls * together) as f64;
            side.undisturbed()?;
            let each = |time: Duration| time.as_nanos() as f64 / entries;
            Some((Distance::None, vec![each(unmapping), each(missing)]))
        });
    }
}
