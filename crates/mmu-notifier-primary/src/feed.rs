//! What the copy at work does for others (`copy.rs`): it passes every change on to them, and answers what they are asked.
//!
//! All of it is a C interface, as the other copy may be built by another compiler. Its version is in the name of the board.
//!
//! Another copy is one subscriber of the first one's address space, a [relay](AddressSpace::subscribe_relay) into its own.
//! If somebody there refuses a start, the relay refuses; those who had started there have got their end by then, as in any
//! address space. What the relay has started leaves a ticket, which the end takes.

// UNSAFETY: is called by, and calls, functions of another copy, with pointers.
#![expect(unsafe_code)]

use core::ffi::{c_int, c_void};
use core::mem::forget;
use core::ptr::{from_ref, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use mmu_notifier::{AddressSpace, Blocking, Caller, Change, Event, Range, Ticketed, WouldBlock};

use crate::Syscall;
use crate::deliver::Wanted;
use crate::gate::safe;
use crate::hook;
use crate::primary::{Primary, wait_for_changes};
use crate::probe::Outcome;

pub(crate) const EAGAIN: c_int = 11;
pub(crate) const ENOMEM: c_int = 12;
pub(crate) const ENODEV: c_int = 19;
pub(crate) const EINVAL: c_int = 22;

/// A change, and who makes it.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Told {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) owner: usize,
    pub(crate) thread: Thread,
    /// Where on the stack it is made; 0: not known.
    pub(crate) stack: usize,
    pub(crate) event: u32,
    /// 1: who is told may wait.
    pub(crate) blocking: u32,
}

/// A [`Caller`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Thread {
    pub(crate) id: u64,
    pub(crate) home: u64,
}

impl Thread {
    pub(crate) fn of(caller: &Caller) -> Thread {
        Thread { id: caller.thread(), home: caller.home() as u64 }
    }
}

/// What a start leaves for its end.
pub(crate) type Ticket = [usize; 4];

impl Told {
    pub(crate) fn new(change: &Change, caller: &Caller) -> Told {
        Told {
            start: change.range().start(),
            end: change.range().end(),
            owner: change.owner(),
            thread: Thread::of(caller),
            stack: caller.stack(),
            event: change.event() as u32,
            blocking: (change.blocking() == Blocking::Allowed).into(),
        }
    }

    pub(crate) fn change(&self) -> Option<Change> {
        let blocking = if self.blocking == 0 { Blocking::Forbidden } else { Blocking::Allowed };
        let &event = Event::ALL.get(self.event as usize)?;
        Some(Change::new(Range::new(self.start, self.end).ok()?, event, blocking).with_owner(self.owner))
    }
}

/// How the other copy is told. Each with the context that it has subscribed with.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Operations {
    /// 0, or `-EAGAIN` if it may not wait and somebody would have to.
    pub(crate) start: unsafe extern "C" fn(*const Told, *mut Ticket, *mut c_void) -> c_int,
    /// With what that start has written.
    pub(crate) end: unsafe extern "C" fn(*const Told, *const Ticket, *mut c_void),
    /// What the thread has begun below this place on its stack, it has jumped out of. Nothing else matters of the change.
    pub(crate) abandoned: unsafe extern "C" fn(*const Told, *mut c_void),
    /// The process is about to exit.
    pub(crate) release: unsafe extern "C" fn(*mut c_void),
    /// In a forked child, before anything else: the relay is still there, and nobody else.
    pub(crate) forked: unsafe extern "C" fn(*mut c_void),
    /// The same, when all copies have forgotten their parent's: may change memory.
    pub(crate) after_fork: unsafe extern "C" fn(*mut c_void),
}

/// A sentence, its length, what it is about, and the context.
pub(crate) type Say = unsafe extern "C" fn(*const u8, usize, usize, *mut c_void);
pub(crate) type Make = unsafe extern "C" fn(*mut c_void);

/// The functions of the copy at work.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct First {
    /// Passes every change on to who says this context, from when it returns. Allocates and waits, as
    /// [`AddressSpace::subscribe`](mmu_notifier::AddressSpace::subscribe). 1, or 0 if that was so before. `-ENOMEM`: too many
    /// copies.
    pub(crate) subscribe: unsafe extern "C" fn(*const Operations, *mut c_void) -> c_int,
    /// No more: when it returns, all that was started has been ended, but for what the calling thread has open itself, which is
    /// ended in its time. 1, or 0 if that was so before.
    pub(crate) unsubscribe: unsafe extern "C" fn(*mut c_void) -> c_int,
    /// 1: changes are passed on to who says this context.
    pub(crate) is_subscribed: unsafe extern "C" fn(*mut c_void) -> c_int,
    /// Who is calling.
    pub(crate) thread: unsafe extern "C" fn(*mut Thread),
    /// Announces a change to all copies, and calls a function in it. `-EAGAIN`: it was refused, and nothing is called.
    pub(crate) announce: unsafe extern "C" fn(*const Told, Make, *mut c_void) -> c_int,
    /// [`Primary::quarantined`].
    pub(crate) quarantined: unsafe extern "C" fn(*mut usize) -> usize,
    /// [`Primary::call_site`], or 0.
    pub(crate) call_site: extern "C" fn() -> usize,
    /// [`Primary::check`]: says what is not right. An error number.
    pub(crate) check: unsafe extern "C" fn(Say, *mut c_void) -> c_int,
    /// [`Primary::can_deliver`]: the kind, and one or two values; 0, or it says why not.
    pub(crate) can_deliver: unsafe extern "C" fn(u32, usize, usize, Say, *mut c_void) -> c_int,
}

/// Those of this copy.
pub(crate) static FIRST: First = First {
    subscribe,
    unsubscribe,
    is_subscribed,
    thread,
    announce,
    quarantined,
    call_site,
    check,
    can_deliver,
};

/// Copies that can be told.
const COPIES: usize = 16;

/// Who wants announcements: the program of this copy, and other copies.
#[derive(Debug)]
pub(crate) struct Feeds {
    /// All that have ever been told, each for good, as the hook looks here.
    copies: [AtomicPtr<Copy>; COPIES],
    /// Somebody is switching on or off.
    busy: AtomicBool,
    own: AtomicBool,
}

impl Feeds {
    /// Only this copy's program.
    pub(crate) fn new() -> Feeds {
        Feeds {
            copies: [const { AtomicPtr::new(null_mut()) }; COPIES],
            busy: AtomicBool::new(false),
            own: AtomicBool::new(true),
        }
    }

    /// One at a time. In no callback; may wait for one.
    fn one_at_a_time<R>(&self, work: impl FnOnce() -> R) -> R {
        // Acquire pairs with the Release below.
        while self.busy.swap(true, Ordering::Acquire) {
            safe::sched_yield();
        }
        let result = work();
        self.busy.store(false, Ordering::Release);
        result
    }

    fn is_wanted(&self) -> bool {
        // Relaxed, both: `one_at_a_time` orders them.
        self.own.load(Ordering::Relaxed) || self.copies().any(|copy| !copy.closed.load(Ordering::Relaxed))
    }

    fn copies(&self) -> impl Iterator<Item = &'static Copy> {
        // Acquire pairs with the Release in `copy`. They are side by side, so the first that is not there is the last.
        // SAFETY: null, or leaked there.
        self.copies.iter().map_while(|copy| unsafe { copy.load(Ordering::Acquire).as_ref() })
    }

    fn find(&self, context: Context) -> Option<&'static Copy> {
        self.copies().find(|copy| copy.context == context)
    }

    /// The copy that says `context`, on the list of `space` for good; `None`: there are too many. One at a time.
    fn add(&self, space: &AddressSpace, operations: Operations, context: Context) -> Option<&'static Copy> {
        let place = self.copies.get(self.copies().count())?;
        let copy: &'static Copy =
            Box::leak(Box::new(Copy { operations, context, closed: AtomicBool::new(true) }));
        // It stays, so that what is open when the other copy has enough gets its end.
        forget(space.subscribe_relay(Relay(copy)));
        place.store(from_ref(copy).cast_mut(), Ordering::Release);
        Some(copy)
    }

    /// In a forked child, by its only thread, before anything changes: the other copies forget what was their parent's.
    pub(crate) fn forked(&self) {
        self.busy.store(false, Ordering::Relaxed);
        for Copy { operations, context, .. } in self.copies() {
            // SAFETY: what the other copy has subscribed; it stays.
            unsafe { (operations.forked)(context.0) };
        }
    }

    /// When all have: they may begin anew.
    pub(crate) fn after_fork(&self) {
        for Copy { operations, context, .. } in self.copies() {
            // SAFETY: as above.
            unsafe { (operations.after_fork)(context.0) };
        }
    }

    /// The calling thread has jumped out of what it had begun, as far as it lies below its place on the stack: the other
    /// copies may have starts that have not returned, of which nobody knows here.
    pub(crate) fn abandoned(&self, caller: &Caller) {
        for Copy { operations, context, .. } in self.copies() {
            let nothing = Change::new(Range::EVERYTHING, Event::Unmap, Blocking::Forbidden);
            // SAFETY: as above.
            unsafe { (operations.abandoned)(&Told::new(&nothing, caller), context.0) };
        }
    }
}

impl Primary {
    /// The program of this copy wants announcements, or does not any more; false if that was so before. They go on for as long
    /// as another copy wants them.
    pub(crate) fn want(&self, wanted: bool) -> bool {
        self.feeds.one_at_a_time(|| {
            let changed = self.feeds.own.swap(wanted, Ordering::Relaxed) != wanted;
            self.switch_as_wanted();
            changed
        })
    }

    fn switch_as_wanted(&self) {
        if self.feeds.is_wanted() {
            self.switch_on();
        } else {
            self.switch_off();
        }
    }
}

/// Another copy.
#[derive(Debug)]
struct Copy {
    operations: Operations,
    context: Context,
    /// What begins is not passed on: it is uninstalled.
    closed: AtomicBool,
}

impl Copy {
    /// From when this returns, what begins is passed on, or is not; and what began before is over, but for changes of this
    /// thread. Whether that was otherwise before. One at a time.
    fn close(&self, closed: bool, space: &AddressSpace) -> bool {
        // Relaxed: the wait publishes a list, and then a full fence pairs with that of each change's claim. So a change that
        // does not see this is seen by the wait.
        let changed = self.closed.swap(closed, Ordering::Relaxed) != closed;
        wait_for_changes(space);
        changed
    }
}

/// A pointer of the other copy's, which only goes back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Context(*mut c_void);

// SAFETY: never dereferenced here; the other copy has a primary MMU there, which any thread may use.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// A change, as the other copies are told of it.
fn told(change: &Change) -> Told {
    let here = 0u8;
    let caller = hook::caller().with_stack((&raw const here).addr());
    let stack = hook::primary().and_then(|primary| primary.space.changes_at(&caller));
    Told::new(change, &caller.with_stack(stack.unwrap_or(0)))
}

/// On the list of the address space.
struct Relay(&'static Copy);

impl Ticketed for Relay {
    /// `None`: it was not passed on.
    type Ticket = Option<Ticket>;

    fn start(&self, change: &Change) -> Option<Ticket> {
        // Nobody can refuse what may wait.
        self.try_start(change).unwrap_or(None)
    }

    fn try_start(&self, change: &Change) -> Result<Option<Ticket>, WouldBlock> {
        let Copy { operations, context, closed, .. } = self.0;
        // Relaxed: see `Copy::close`.
        if closed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut ticket = Ticket::default();
        // SAFETY: what the other copy has subscribed, with a change and room for a ticket.
        match unsafe { (operations.start)(&told(change), &raw mut ticket, context.0) } {
            0 => Ok(Some(ticket)),
            _ => Err(WouldBlock),
        }
    }

    fn end(&self, change: &Change, ticket: Option<Ticket>) {
        let Copy { operations, context, .. } = self.0;
        if let Some(ticket) = ticket {
            // SAFETY: as above, with the ticket of its start.
            unsafe { (operations.end)(&told(change), &raw const ticket, context.0) };
        }
    }

    fn release(&self) {
        let Copy { operations, context, closed, .. } = self.0;
        // Relaxed: as above.
        if !closed.load(Ordering::Relaxed) {
            // SAFETY: as above.
            unsafe { (operations.release)(context.0) };
        }
    }
}

unsafe extern "C" fn subscribe(operations: *const Operations, context: *mut c_void) -> c_int {
    let Some(primary) = hook::primary() else { return -ENODEV };
    // Somebody there may refuse.
    primary.prepare_to_wait();
    let (context, space, feeds) = (Context(context), &primary.space, &primary.feeds);
    feeds.one_at_a_time(|| {
        // SAFETY: by the other copy's promise, for the time of this call.
        let operations = unsafe { *operations };
        let Some(copy) = feeds.find(context).or_else(|| feeds.add(space, operations, context)) else {
            return -ENOMEM;
        };
        let changed = copy.close(false, space);
        primary.switch_as_wanted();
        changed.into()
    })
}

unsafe extern "C" fn unsubscribe(context: *mut c_void) -> c_int {
    let Some(primary) = hook::primary() else { return -ENODEV };
    primary.feeds.one_at_a_time(|| {
        let changed =
            primary.feeds.find(Context(context)).is_some_and(|copy| copy.close(true, &primary.space));
        primary.switch_as_wanted();
        changed.into()
    })
}

unsafe extern "C" fn is_subscribed(context: *mut c_void) -> c_int {
    let copy = hook::primary().and_then(|primary| primary.feeds.find(Context(context)));
    // Relaxed: for who knows whether it was uninstalled.
    copy.is_some_and(|copy| !copy.closed.load(Ordering::Relaxed)).into()
}

unsafe extern "C" fn thread(out: *mut Thread) {
    // SAFETY: by the other copy's promise.
    unsafe { out.write(Thread::of(&hook::caller())) };
}

unsafe extern "C" fn announce(told: *const Told, make: Make, argument: *mut c_void) -> c_int {
    // SAFETY: by the other copy's promise, for the time of this call.
    let change = unsafe { (*told).change() };
    let (Some(primary), Some(change)) = (hook::primary(), change) else { return -EINVAL };
    // SAFETY: by the other copy's promise.
    let made = primary.announce(change, || unsafe { make(argument) });
    if made.is_ok() { 0 } else { -EAGAIN }
}

unsafe extern "C" fn quarantined(bytes: *mut usize) -> usize {
    let (ranges, size) = hook::primary().map_or((0, 0), Primary::quarantined);
    // SAFETY: by the other copy's promise.
    unsafe { bytes.write(size) };
    ranges
}

extern "C" fn call_site() -> usize {
    hook::primary().and_then(Primary::call_site).unwrap_or(0)
}

unsafe extern "C" fn check(say: Say, context: *mut c_void) -> c_int {
    let Some(primary) = hook::primary() else { return ENODEV };
    let check = match primary.check() {
        Ok(check) => check,
        Err(crate::CheckError::Maps { errno }) => return errno,
    };
    let faults = check.faults.iter().map(|fault| (fault.to_string(), fault.address));
    let calls =
        check.calls.iter().filter(|call| !call.is_right()).map(|call: &Outcome| (call.to_string(), 0));
    for (text, address) in faults.chain(calls) {
        // SAFETY: by the other copy's promise.
        unsafe { say(text.as_ptr(), text.len(), address, context) };
    }
    0
}

impl Wanted {
    /// In numbers, for another copy.
    pub(crate) fn to_numbers(self) -> (u32, usize, usize) {
        match self {
            Wanted::Event(event) => (0, event as usize, 0),
            Wanted::Call(call) => (1, call.number(), 0),
            Wanted::Memory(range) => (2, range.start(), range.end()),
            Wanted::MadeCode => (3, 0, 0),
        }
    }

    fn from_numbers(kind: u32, value: usize, end: usize) -> Option<Wanted> {
        match kind {
            0 => Event::ALL.get(value).copied().map(Wanted::Event),
            1 => Syscall::from_number(value).map(Wanted::Call),
            2 => Range::new(value, end).ok().map(Wanted::Memory),
            3 => Some(Wanted::MadeCode),
            _ => None,
        }
    }
}

unsafe extern "C" fn can_deliver(
    kind: u32,
    value: usize,
    end: usize,
    say: Say,
    context: *mut c_void,
) -> c_int {
    let Some(primary) = hook::primary() else { return -ENODEV };
    let Some(wanted) = Wanted::from_numbers(kind, value, end) else { return -EINVAL };
    let Err(why) = primary.can_deliver(&[wanted]) else { return 0 };
    let why = why.to_string();
    // SAFETY: by the other copy's promise.
    unsafe { say(why.as_ptr(), why.len(), from_ref(primary).addr(), context) };
    -EINVAL
}
