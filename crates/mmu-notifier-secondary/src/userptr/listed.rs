//! i915 until Linux 5.12: told of every change; stops the jobs that use an object, and drops its pages.
//!
//! ```
//! use mmu_notifier::{AddressSpace, Event, Range};
//! use mmu_notifier_secondary::device::{Access, Page};
//! use mmu_notifier_secondary::userptr::listed::{Device, Stopped};
//!
//! let space = AddressSpace::new();
//! let own = |address: usize, _: Access| Some(Page::writable(address)); // look at the page table
//! let device = Device::new(&space, own);
//! let memory = Range::new(0x10000, 0x14000)?;
//! let mut object = device.object(memory, Access::ReadWrite)?;
//!
//! object.bind()?;
//! let mut job = object.submit()?;
//! assert_eq!(job.step(|pages| pages.len()), Ok(4));
//!
//! let madvise = || unreachable!("it was refused");
//! assert!(space.try_invalidate(memory, Event::Clear, madvise).is_err(), "the object is busy");
//! space.invalidate(memory, Event::Clear, || { /* there is time to stop the job */ });
//! assert_eq!(job.step(|pages| pages.len()), Err(Stopped));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Why no job touches a page that has gone
//!
//! The state of an object is one word, which is only ever exchanged as a whole: its phase, how many jobs use it, and a
//! generation that every taking away of the pages raises.
//!
//! ```text
//!            bind                   all found                  submit, drop of a job
//!  empty ------------> pinning ------------------> bound <-----------------------> bound, busy
//!    ^                    |                          |                                |
//!    +---- start ---------+---- start ---------------+---- start that may wait -------+
//!                                                          (one that must not refuses)
//! ```
//!
//! Binding marks the object before it waits for open changes and looks at the page table, so a start that it has not waited
//! for finds the mark and takes it away. A job works in *steps*, each of which looks at the generation first; a start that has
//! taken the pages away waits for the steps under way, not for jobs to be dropped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

use mmu_notifier::{AddressSpace, Change, PAGE_SIZE, Range, Refuser, Subscription, WouldBlock};

use super::{ATTEMPTS, BindError, ObjectError, of_pages, pages};
use crate::device::{Access, InFlight, Page, PageTable, Seat};

/// The device: see the [module documentation](self).
pub struct Device {
    shared: Arc<Shared>,
    _told: Subscription,
}

struct Shared {
    space: AddressSpace,
    table: Box<dyn PageTable>,
    slots: Box<[Slot]>,
    engines: InFlight,
    /// No start comes any more: nothing may be bound.
    released: AtomicBool,
}

/// What starts see of an object.
#[derive(Default)]
struct Slot {
    /// A [`State`].
    state: AtomicU64,
    /// Good unless the phase is free or claimed; written before that.
    start: AtomicUsize,
    end: AtomicUsize,
}

/// Phase, jobs and generation.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State(u64);

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// No object.
    Free = 0,
    /// An object is being made.
    Claimed = 1,
    Empty = 2,
    Pinning = 3,
    Bound = 4,
}

impl State {
    const PHASE: u64 = 0xff;
    const JOB: u64 = 1 << 8;
    const JOBS: u64 = 0xffff << 8;
    const GENERATION: u64 = 1 << 24;

    fn phase(self) -> Phase {
        match self.0 & State::PHASE {
            0 => Phase::Free,
            1 => Phase::Claimed,
            2 => Phase::Empty,
            3 => Phase::Pinning,
            _ => Phase::Bound,
        }
    }

    fn has_jobs(self) -> bool {
        self.0 & State::JOBS != 0
    }

    fn generation(self) -> u64 {
        self.0 / State::GENERATION
    }

    /// The next generation, without jobs. 40 bits of generations do not come round.
    fn next(self, phase: Phase) -> State {
        State(((self.generation() + 1) * State::GENERATION) | phase as u64)
    }

    fn with_phase(self, phase: Phase) -> State {
        State((self.0 & !State::PHASE) | phase as u64)
    }
}

impl Slot {
    fn state(&self) -> State {
        // Acquire pairs with the Release in `exchange`: range and pages are seen.
        State(self.state.load(Ordering::Acquire))
    }

    /// Whether it was still `from`.
    fn exchange(&self, from: State, to: State) -> bool {
        // Release pairs with the Acquire in `state`.
        self.state.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Relaxed: `state` was loaded before, and an exchange of it afterwards shows that they belonged together.
    fn overlaps(&self, range: &Range) -> bool {
        let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        Range::new(start, end).is_ok_and(|own| own.overlaps(range))
    }

    /// Takes the pages away, if it has any of `range`.
    ///
    /// # Errors
    ///
    /// If a job uses them, and that is not `stopping`.
    fn take_away(&self, range: &Range, stopping: bool) -> Result<(), WouldBlock> {
        loop {
            let state = self.state();
            if !matches!(state.phase(), Phase::Pinning | Phase::Bound) || !self.overlaps(range) {
                return Ok(());
            }
            if state.has_jobs() && !stopping {
                return Err(WouldBlock);
            }
            if self.exchange(state, state.next(Phase::Empty)) {
                return Ok(());
            }
        }
    }
}

impl Device {
    /// How many objects there are at a time.
    pub const OBJECTS: usize = 64;

    /// How many jobs there are at a time.
    pub const ENGINES: usize = 16;

    /// A device that accesses the memory of `space` through `table`. Subscribes.
    ///
    /// # Panics
    ///
    /// As [`AddressSpace::subscribe_refuser`].
    pub fn new(space: &AddressSpace, table: impl PageTable + 'static) -> Device {
        let shared = Arc::new(Shared {
            space: space.clone(),
            table: Box::new(table),
            slots: (0..Device::OBJECTS).map(|_| Slot::default()).collect(),
            engines: InFlight::new(Device::ENGINES),
            released: AtomicBool::new(false),
        });
        let told = space.subscribe_refuser(Told(shared.clone()));
        Device { shared, _told: told }
    }

    /// An object for that memory, without pages yet. Never waits; allocates.
    ///
    /// # Errors
    ///
    /// [`ObjectError`] if the range is not of whole pages, or there is no room.
    #[doc(alias = "i915_gem_userptr_ioctl")]
    pub fn object(&self, range: Range, access: Access) -> Result<Object<'_>, ObjectError> {
        let (shared, range) = (&*self.shared, of_pages(range)?);
        let pages = Vec::with_capacity(range.len() / PAGE_SIZE);
        let claim = |slot: &Slot| {
            let state = slot.state();
            state.phase() == Phase::Free && slot.exchange(state, state.next(Phase::Claimed))
        };
        let number = shared.slots.iter().position(claim);
        let number = number.ok_or(ObjectError::TooMany { max: Device::OBJECTS })?;
        let slot = &shared.slots[number];
        slot.start.store(range.start(), Ordering::Relaxed);
        slot.end.store(range.end(), Ordering::Relaxed);
        let object = Object { shared, number, range, access, pages };
        object.become_next(Phase::Empty);
        Ok(object)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_object = |slot: &&Slot| slot.state().phase() != Phase::Free;
        let objects = self.shared.slots.iter().filter(is_object).count();
        f.debug_struct("Device").field("objects", &objects).finish_non_exhaustive()
    }
}

/// Memory of the program that jobs may use while it is [bound](Object::bind).
#[doc(alias = "drm_i915_gem_object")]
pub struct Object<'a> {
    shared: &'a Shared,
    number: usize,
    range: Range,
    access: Access,
    /// Good if bound. Replaced by `bind` only, which no job can outlive.
    pages: Vec<Page>,
}

impl Object<'_> {
    fn slot(&self) -> &Slot {
        &self.shared.slots[self.number]
    }

    /// Whatever a start does meanwhile.
    fn become_next(&self, phase: Phase) -> State {
        loop {
            let state = self.slot().state();
            if self.slot().exchange(state, state.next(phase)) {
                return state.next(phase);
            }
        }
    }

    /// The memory.
    pub fn range(&self) -> Range {
        self.range
    }

    /// Whether it has pages. A change may take them at any time.
    pub fn is_bound(&self) -> bool {
        self.slot().state().phase() == Phase::Bound
    }

    /// Looks the pages up, unless it has them. Waits for open changes of the memory and for the page table.
    ///
    /// # Errors
    ///
    /// [`BindError`] says why it has no pages; it is as before.
    #[doc(alias = "i915_gem_userptr_get_pages")]
    pub fn bind(&mut self) -> Result<(), BindError> {
        if self.is_bound() {
            return Ok(());
        }
        let result = self.look_up();
        if result.is_err() {
            self.become_next(Phase::Empty);
        }
        result
    }

    fn look_up(&mut self) -> Result<(), BindError> {
        let (shared, range, access) = (self.shared, self.range, self.access);
        for _ in 0..ATTEMPTS {
            // Before anything is looked at, where starts find it; the wait has the full fence between.
            let pinning = self.become_next(Phase::Pinning);
            if !shared.space.wait_for_changes(range) {
                return Err(BindError::Changing { range });
            }
            if shared.released.load(Ordering::Relaxed) {
                return Err(BindError::Released);
            }
            self.pages.clear();
            let found = |address| shared.table.look_up(address, access).filter(|page| page.allows(access));
            let missing =
                pages(range).find(|address| found(*address).map(|page| self.pages.push(page)).is_none());
            match missing {
                None if self.slot().exchange(pinning, pinning.with_phase(Phase::Bound)) => return Ok(()),
                Some(address) if self.slot().state() == pinning => {
                    return Err(BindError::NotMapped { address, access });
                }
                // A start has come, and what was seen is of the middle of a change.
                _ => {}
            }
        }
        Err(BindError::Unsettled { range })
    }

    /// A job that uses the pages. Until it is dropped the object is busy. Never waits.
    ///
    /// # Errors
    ///
    /// [`SubmitError::NotBound`]: bind and submit again. [`SubmitError::Busy`] if there are too many jobs.
    #[doc(alias = "i915_gem_execbuffer2_ioctl")]
    pub fn submit(&self) -> Result<Job<'_>, SubmitError> {
        let seat = self.shared.engines.take().ok_or(SubmitError::Busy)?;
        loop {
            let state = self.slot().state();
            if state.phase() != Phase::Bound {
                return Err(SubmitError::NotBound { range: self.range });
            }
            if self.slot().exchange(state, State(state.0 + State::JOB)) {
                return Ok(Job { object: self, seat, generation: state.generation() });
            }
        }
    }
}

impl Drop for Object<'_> {
    fn drop(&mut self) {
        self.become_next(Phase::Free);
    }
}

impl fmt::Debug for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut object = f.debug_struct("Object");
        object.field("range", &self.range).field("is_bound", &self.is_bound()).finish_non_exhaustive()
    }
}

/// There is no job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// A change has taken the pages, or there never were any.
    #[error("{range} is not bound")]
    NotBound {
        /// The object's memory.
        range: Range,
    },
    /// All [`ENGINES`](Device::ENGINES) have a job.
    #[error("all {} engines of the device have a job", Device::ENGINES)]
    Busy,
}

/// The job's memory has changed: it has no pages any more, and never gets them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the job was stopped because its memory changes")]
pub struct Stopped;

/// Work of the device on an object.
#[doc(alias = "i915_request")]
pub struct Job<'a> {
    object: &'a Object<'a>,
    seat: Seat<'a>,
    generation: u64,
}

impl Job<'_> {
    fn is_stopped(&self, state: State) -> bool {
        state.phase() != Phase::Bound || state.generation() != self.generation
    }

    /// Does a part of the work: `work` gets the object's pages, in order. A change of the memory waits until it returns; so
    /// it should be short, and must not change that memory itself: such a change does not wait for it.
    ///
    /// # Errors
    ///
    /// [`Stopped`] once a change has begun; `work` has not run.
    pub fn step<R>(&mut self, work: impl FnOnce(&[Page]) -> R) -> Result<R, Stopped> {
        let object = self.object;
        let inside = self.seat.enter(object.shared.space.caller().thread(), object.number);
        // Behind the fence in `enter`.
        let state = object.slot().state();
        if state.phase() != Phase::Bound || state.generation() != self.generation {
            return Err(Stopped);
        }
        let result = work(&object.pages);
        drop(inside);
        Ok(result)
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        let slot = self.object.slot();
        loop {
            let state = slot.state();
            // Of a later generation it is no job.
            if self.is_stopped(state) || slot.exchange(state, State(state.0 - State::JOB)) {
                return;
            }
        }
    }
}

impl fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_stopped = self.is_stopped(self.object.slot().state());
        f.debug_struct("Job").field("object", self.object).field("is_stopped", &is_stopped).finish()
    }
}

impl Shared {
    /// Whether the object in that slot has memory of `range`.
    fn concerns(&self, range: Range) -> impl Fn(usize) -> bool {
        move |number| self.slots[number].overlaps(&range)
    }
}

/// What the address space tells. Takes no lock; neither allocates nor frees.
struct Told(Arc<Shared>);

impl Refuser for Told {
    fn start(&self, change: &Change) {
        let (shared, range) = (&*self.0, change.range());
        for slot in &shared.slots {
            slot.take_away(&range, true).expect("who may stop jobs has no reason to refuse");
        }
        // Also if nothing was taken: it may be another start that has, and is waiting.
        shared.engines.wait(shared.space.caller().thread(), shared.concerns(range));
    }

    fn try_start(&self, change: &Change) -> Result<(), WouldBlock> {
        let (shared, range) = (&*self.0, change.range());
        shared.slots.iter().try_for_each(|slot| slot.take_away(&range, false))?;
        let is_used = shared.engines.is_used(shared.space.caller().thread(), shared.concerns(range));
        if is_used { Err(WouldBlock) } else { Ok(()) }
    }

    fn release(&self) {
        // Relaxed: the full fences of `wait` here, and of the wait for changes there, order it.
        self.0.released.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        for slot in &self.0.slots {
            slot.take_away(&Range::EVERYTHING, true).expect("who may stop jobs has no reason to refuse");
        }
        self.0.engines.wait(self.0.space.caller().thread(), |_| true);
    }
}
