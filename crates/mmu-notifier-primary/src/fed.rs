//! A copy of this library that is fed by the one at work (`copy.rs`, `feed.rs`): it rewrites nothing, and has its own
//! address space, in which every change of the process is made once more.

// UNSAFETY: calls, and is called by, functions of another copy, with pointers.
#![expect(unsafe_code)]

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, Ordering};

use mmu_notifier::{Blocking, Caller, Change, Event, OpenChange, Range, WouldBlock};

use crate::deliver::{Undeliverable, Wanted};
use crate::feed::{EAGAIN, First, Operations, Thread, Ticket, Told};
use crate::health::{CheckError, Finding};
use crate::hook;
use crate::primary::{InstallError, Primary};

/// By whom this copy is fed.
#[derive(Debug)]
pub(crate) struct Fed {
    first: &'static First,
    /// It is installed for the first time: until then nobody else switches it on.
    begun: AtomicBool,
}

static OPERATIONS: Operations = Operations { start, end, abandoned, release, forked, after_fork };

/// As what the copy at work knows this one.
fn context(primary: &Primary) -> *mut c_void {
    core::ptr::from_ref(primary).cast_mut().cast()
}

impl Fed {
    pub(crate) fn new(first: &'static First) -> Fed {
        Fed { first, begun: AtomicBool::new(false) }
    }

    /// Has changes passed on to `primary`, which is complete.
    pub(crate) fn begin(&self, primary: &'static Primary) -> Result<(), InstallError> {
        self.switch_on(primary)?;
        // Release pairs with the Acquire in `begin_again`: what comes before the first change has been done.
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    /// The same when it was installed before. Whether they were not passed on.
    pub(crate) fn begin_again(&self, primary: &'static Primary) -> Result<bool, InstallError> {
        // Acquire pairs with the Release in `begin`.
        if self.begun.load(Ordering::Acquire) { self.switch_on(primary) } else { Ok(false) }
    }

    fn switch_on(&self, primary: &'static Primary) -> Result<bool, InstallError> {
        // SAFETY: `start` and the others take a primary MMU that stays.
        match unsafe { (self.first.subscribe)(&raw const OPERATIONS, context(primary)) } {
            switched @ 0.. => Ok(switched == 1),
            _ => Err(InstallError::Copy { why: "it feeds as many others as it can" }),
        }
    }

    /// Has nothing passed on any more. Whether it was before.
    pub(crate) fn stop(&self, primary: &Primary) -> bool {
        // SAFETY: as in `switch_on`.
        unsafe { (self.first.unsubscribe)(context(primary)) == 1 }
    }

    pub(crate) fn is_off(&self, primary: &Primary) -> bool {
        // SAFETY: as in `switch_on`.
        unsafe { (self.first.is_subscribed)(context(primary)) == 0 }
    }

    pub(crate) fn announce<R>(&self, change: Change, make: impl FnOnce() -> R) -> Result<R, WouldBlock> {
        struct Job<F, R> {
            make: Option<F>,
            result: Option<R>,
        }
        unsafe extern "C" fn run<F: FnOnce() -> R, R>(job: *mut c_void) {
            // SAFETY: the `Job` below, as it was given.
            let job = unsafe { &mut *job.cast::<Job<F, R>>() };
            job.result = job.make.take().map(|make| make());
        }
        fn of<F: FnOnce() -> R, R>(_: &Job<F, R>) -> unsafe extern "C" fn(*mut c_void) {
            run::<F, R>
        }
        let mut job = Job { make: Some(make), result: None };
        // Who calls, the other copy sees for itself.
        let (run, told) = (of(&job), Told::new(&change, &self::of(Thread::default())));
        // SAFETY: calls `run` with what it takes, if at all.
        let _ = unsafe { (self.first.announce)(&raw const told, run, (&raw mut job).cast()) };
        job.result.ok_or(WouldBlock)
    }

    pub(crate) fn quarantined(&self) -> (usize, usize) {
        let mut bytes = 0;
        // SAFETY: room for the answer.
        let ranges = unsafe { (self.first.quarantined)(&raw mut bytes) };
        (ranges, bytes)
    }

    pub(crate) fn call_site(&self) -> Option<usize> {
        Some((self.first.call_site)()).filter(|&site| site != 0)
    }

    /// What is wrong with the copy at work.
    pub(crate) fn check(&self) -> Result<Vec<Finding>, CheckError> {
        let mut findings: Vec<Finding> = Vec::new();
        // SAFETY: `note` takes the vector.
        match unsafe { (self.first.check)(note, (&raw mut findings).cast()) } {
            0 => Ok(findings),
            errno => Err(CheckError::Maps { errno }),
        }
    }

    pub(crate) fn can_deliver(&self, wanted: Wanted) -> Result<(), Undeliverable> {
        let mut why: Vec<Finding> = Vec::new();
        let (kind, value, end) = wanted.to_numbers();
        // SAFETY: as above.
        match unsafe { (self.first.can_deliver)(kind, value, end, note, (&raw mut why).cast()) } {
            0 => Ok(()),
            _ => {
                let text =
                    why.pop().map_or("the copy at work does not know it".into(), |finding| finding.text);
                Err(Undeliverable::Elsewhere { text })
            }
        }
    }
}

/// Puts a sentence of the other copy's into a vector.
unsafe extern "C" fn note(text: *const u8, len: usize, address: usize, findings: *mut c_void) {
    // SAFETY: by the other copy's promise.
    let text = String::from_utf8_lossy(unsafe { core::slice::from_raw_parts(text, len) }).into_owned();
    // SAFETY: what `check` and `can_deliver` have given.
    unsafe { (*findings.cast::<Vec<Finding>>()).push(Finding { text, address }) };
}

/// The calling thread, as the copy at work knows it.
pub(crate) fn caller() -> Caller {
    let mut thread = Thread::default();
    if let Some(Fed { first, .. }) = hook::primary().and_then(|primary| primary.fed.as_ref()) {
        // SAFETY: room for the answer.
        unsafe { (first.thread)(&raw mut thread) };
    }
    of(thread)
}

fn of(thread: Thread) -> Caller {
    // SAFETY: the calling thread, as the copy at work names it, everywhere in the same way.
    unsafe { Caller::new(thread.id, thread.home as usize) }
}

const _: () = assert!(size_of::<OpenChange>() <= size_of::<Ticket>());
const _: () = assert!(align_of::<OpenChange>() <= align_of::<Ticket>());

/// # Safety
///
/// Called by the copy at work only, with what [`Fed::begin`] has given, and with room for a ticket.
unsafe extern "C" fn start(told: *const Told, ticket: *mut Ticket, context: *mut c_void) -> c_int {
    // SAFETY: by this function's promise; the primary stays.
    let (told, primary) = unsafe { (&*told, &*context.cast::<Primary>()) };
    // Whatever it is, the range changes.
    let everything = || Change::new(Range::EVERYTHING, Event::Unmap, Blocking::Forbidden);
    let change = told.change().unwrap_or_else(everything);
    let caller = of(told.thread).with_stack(told.stack);
    match primary.space.start(&caller, change) {
        Ok(open) => {
            // SAFETY: it has room there, by the assertions above.
            unsafe { ticket.cast::<OpenChange>().write(open) };
            0
        }
        Err(WouldBlock) => -EAGAIN,
    }
}

/// # Safety
///
/// As [`start`], which has written the ticket.
unsafe extern "C" fn end(told: *const Told, ticket: *const Ticket, context: *mut c_void) {
    // SAFETY: as in `start`.
    let (told, primary) = unsafe { (&*told, &*context.cast::<Primary>()) };
    // SAFETY: written by `start`, and taken once.
    let open = unsafe { ticket.cast::<OpenChange>().read() };
    primary.space.end(&of(told.thread), open);
}

/// # Safety
///
/// As [`start`], by a thread that is where it says.
unsafe extern "C" fn abandoned(told: *const Told, context: *mut c_void) {
    // SAFETY: as in `start`.
    let (told, primary) = unsafe { (&*told, &*context.cast::<Primary>()) };
    primary.end_abandoned(&of(told.thread).with_stack(told.stack));
}

/// # Safety
///
/// As [`start`].
unsafe extern "C" fn release(context: *mut c_void) {
    // SAFETY: as in `start`.
    unsafe { &*context.cast::<Primary>() }.space.release();
}

/// # Safety
///
/// As [`start`], in a forked child.
unsafe extern "C" fn forked(context: *mut c_void) {
    // SAFETY: as in `start`.
    unsafe { &*context.cast::<Primary>() }.forked_elsewhere();
}

/// # Safety
///
/// As [`forked`], when all copies have been told.
unsafe extern "C" fn after_fork(context: *mut c_void) {
    // SAFETY: as in `start`.
    unsafe { &*context.cast::<Primary>() }.after_fork();
}
