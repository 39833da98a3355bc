//! The hook: what happens around a memory system call.
//!
//! ```text
//! before    who calls? -> what changes, by the first arguments -> is there somebody to tell?
//!             no: on record ----------------+
//! announce    yes: facts, on record, starts-+
//!                                        system call (crate::entry)
//! after       no: off the record <----------+
//! finish      yes: ends, learn, count <-----+
//! ```
//!
//! `before` and `after` are light: some two hundred instructions that leave the vector registers alone
//! ([`crate::light`]). What one half of a call leaves for the other, [`Underway`], lies in the frame of the entry code.
//!
//! # What it never does
//!
//! Allocate, take a lock of libc or of ours, touch thread-local storage, unwind, or make the call fail. It runs
//! anywhere: before `main`, in signal handlers, in a thread without storage, inside the allocator, and
//! inside a subscriber's callback.
//!
//! # Context
//!
//! Nothing is known here about the locks that the program holds, so a change is announced as non-blocking. If
//! somebody refuses, it is announced again as blocking, as the call cannot be put off.

// UNSAFETY: called from assembler with a frame on the program's stack.
#![expect(unsafe_code)]

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicPtr, Ordering};

use mmu_notifier::{Blocking, Caller, Change, Event, OpenChange, Range, WouldBlock};

use crate::Syscall;
use crate::children;
use crate::decode::{Changes, Common, decode, decode_common, needs};
use crate::entry::{Frame, Site};
use crate::facts::Ranges;
use crate::gate::safe;
use crate::log::{self, observe};
use crate::primary::Primary;
use crate::session::Shard;

/// This process's primary MMU; null until it is installed, never changed after.
static PRIMARY: AtomicPtr<Primary> = AtomicPtr::new(core::ptr::null_mut());

/// Makes `primary` the one that the hook uses.
pub(crate) fn set_primary(primary: &'static Primary) {
    // Release pairs with the Acquire in `primary`.
    PRIMARY.store(core::ptr::from_ref(primary).cast_mut(), Ordering::Release);
}

/// This process's primary MMU, if it is installed.
pub(crate) fn primary() -> Option<&'static Primary> {
    // SAFETY: null, or from a `&'static`.
    unsafe { PRIMARY.load(Ordering::Acquire).as_ref() }
}

/// Identity of the calling thread, for the address space.
pub(crate) fn caller() -> Caller {
    match primary() {
        Some(primary) => primary.threads.caller(0),
        // SAFETY: the kernel's name of the calling thread.
        None => unsafe { Caller::new(safe::gettid().into(), 0) },
    }
}

/// Where the entry code goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Way {
    /// To where the frame says: the call has been made, or a tail of the stub makes it.
    Out = 0,
    /// It makes the system call.
    Call = 1,
    /// It saves the vector registers and calls [`announce`].
    Announce = 2,
}

/// A call between its two halves; lies in the frame of the entry code. No destructor: the frame may be jumped over.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Underway {
    /// 1, as the entry code has written: [`finish`] ends it; 0: nobody was told, [`after`] does.
    told: u32,
    /// What nobody was told of; written if `told` is 0.
    unheard: MaybeUninit<OpenChange>,
    /// Written if `told` is 1.
    seen: MaybeUninit<Seen>,
    /// Written by [`announce`].
    news: MaybeUninit<News>,
}

/// Where the entry code finds [`Underway::told`].
#[cfg(test)]
pub(crate) const TOLD: usize = core::mem::offset_of!(Underway, told);

/// What is known of a call before anybody has been told of it.
#[derive(Debug)]
struct Seen {
    call: Syscall,
    common: Common,
    /// The change that a common call makes, if it makes one.
    event: Event,
    range: Range,
    site: &'static Site,
    /// Thread 0: not known yet.
    caller: Caller,
}

/// What was announced.
#[derive(Debug)]
struct News {
    /// Ticks before and after the starts, if anybody wants to know.
    time: u64,
    started: u64,
    refused: u64,
    /// Of a common call.
    open: Option<OpenChange>,
    /// Of a rare call.
    rare: Option<Rare>,
}

#[derive(Debug)]
struct Rare {
    changes: Changes,
    bracket: Bracket,
}

/// The site that an entry has come from.
#[inline(always)]
fn site(frame: &Frame) -> &'static Site {
    // SAFETY: by the stub, the address of its `Site`, which is never changed or unmapped.
    unsafe { &*(frame.go as *const Site) }
}

/// Who calls, and what is about to change.
struct Look {
    common: Common,
    range: Range,
    event: Event,
    /// Thread 0: not known yet.
    caller: Caller,
}

#[inline(always)]
fn look(primary: &Primary, frame: &Frame) -> Look {
    // SAFETY: not given to an address space: `seen` looks for the real one first.
    let nobody = unsafe { Caller::new(0, 0) }.with_stack(frame.stack());
    let caller = primary.threads.known_caller(frame.stack()).unwrap_or(nobody);
    let (common, range, event) = decode_common(frame.rax, &frame.first_args());
    Look { common, range, event, caller }
}

/// Leaves a call to [`tell`]: false if it is none of ours.
#[inline(always)]
fn leave(frame: &mut Frame, underway: &mut Underway, look: Look) -> bool {
    let Look { common, range, event, caller } = look;
    let site = site(frame);
    let Some(call) = Syscall::from_number(frame.rax) else {
        frame.go = site.plain;
        return false;
    };
    frame.go = site.back;
    underway.seen.write(Seen { call, common, event, range, site, caller });
    true
}

/// Before the system call of a rewritten site, as long as there is nobody to tell.
///
/// # Safety
///
/// Called by `crate::entry` only, with the frame it has built and room for an [`Underway`].
#[unsafe(link_section = ".text.mmu_notifier_entry")]
pub(crate) unsafe extern "C" fn before(frame: *mut Frame, underway: *mut Underway) -> Way {
    // SAFETY: by the entry code, a complete frame and room that nobody else looks at; the one number in there is
    // written, and the rest may be uninitialised.
    let (frame, underway) = unsafe { (&mut *frame, &mut *underway) };
    let site = site(frame);
    let Some(primary) = primary() else {
        frame.go = site.plain;
        return Way::Out;
    };
    let look = look(primary, frame);
    if look.common != Common::Rare && look.caller.thread() != 0 && !primary.log.is_watched() {
        if look.common == Common::Nothing {
            frame.go = site.plain;
            return Way::Out;
        }
        let change = Change::new(look.range, look.event, Blocking::Forbidden);
        if let Some(open) = primary.space.start_unheard(&look.caller, &change) {
            frame.go = site.back;
            underway.told = 0;
            underway.unheard.write(open);
            return Way::Call;
        }
    }
    if leave(frame, underway, look) { Way::Announce } else { Way::Out }
}

/// Behind a system call that nobody had to be told of.
///
/// # Safety
///
/// Called by `crate::entry` only, with what it has called [`before`] with.
#[unsafe(link_section = ".text.mmu_notifier_entry")]
pub(crate) unsafe extern "C" fn after(_: *mut Frame, underway: *mut Underway) {
    // SAFETY: `before` has written it, as the entry code has seen by `told`; it is taken once.
    let open = unsafe { (*underway).unheard.assume_init_read() };
    if let Some(primary) = primary() {
        primary.space.end_unheard(open);
    }
}

/// Both halves before a system call, where the first one must not run by itself.
///
/// # Safety
///
/// As [`before`].
pub(crate) unsafe extern "C" fn heavy(frame: *mut Frame, underway: *mut Underway) -> Way {
    // SAFETY: as in `before`.
    let (frame, underway) = unsafe { (&mut *frame, &mut *underway) };
    let Some(primary) = primary() else {
        frame.go = site(frame).plain;
        return Way::Out;
    };
    let look = look(primary, frame);
    if !leave(frame, underway, look) {
        return Way::Out;
    }
    // SAFETY: written by `leave`.
    let seen = unsafe { underway.seen.assume_init_mut() };
    tell(primary, frame, seen, &mut underway.news)
}

/// Announces a call that [`before`] has looked at.
///
/// # Safety
///
/// Called by `crate::entry` only, with what it has called [`before`] with, if that returned [`Way::Announce`].
pub(crate) unsafe extern "C" fn announce(frame: *mut Frame, underway: *mut Underway) -> Way {
    // SAFETY: by the entry code, a complete frame and what belongs to it, that nobody else looks at.
    let (frame, underway) = unsafe { (&mut *frame, &mut *underway) };
    // SAFETY: written by `before`.
    let seen = unsafe { underway.seen.assume_init_mut() };
    match primary() {
        Some(primary) => tell(primary, frame, seen, &mut underway.news),
        None => Way::Out,
    }
}

#[inline(always)]
fn tell(primary: &Primary, frame: &mut Frame, seen: &mut Seen, news: &mut MaybeUninit<News>) -> Way {
    if seen.caller.thread() == 0 {
        seen.caller = primary.threads.caller(seen.caller.stack());
    }
    let time = primary.log.now();
    let (mut refused, mut open) = (0, None);
    match seen.common {
        Common::Rare => return announce_rare(primary, frame, seen, news),
        Common::Nothing => {}
        Common::One => {
            primary.end_abandoned(&seen.caller);
            open = Some(start(primary, &seen.caller, seen.range, seen.event, &mut refused));
        }
    }
    let started = primary.log.now();
    if open.is_some() && primary.log.is_audited() {
        primary.log.opened(&seen.caller, seen.call, &[(seen.range, seen.event)], started);
    }
    news.write(News { time, started, refused, open, rare: None });
    Way::Call
}

/// The same for calls that make several changes, that must ask for facts, or that do not come back here.
#[inline(never)]
fn announce_rare(primary: &Primary, frame: &mut Frame, seen: &Seen, news: &mut MaybeUninit<News>) -> Way {
    let &Seen { call, site, ref caller, .. } = seen;
    match call {
        Syscall::Fork | Syscall::Vfork | Syscall::Clone | Syscall::Clone3 => {
            children::before_clone(primary, caller, call, frame, site);
            Way::Out
        }
        Syscall::Execve | Syscall::Execveat => {
            children::exec(primary, caller, call, frame, site);
            Way::Out
        }
        Syscall::ExitGroup => {
            children::exit(primary, caller, frame);
            Way::Out
        }
        _ => {
            let changes = rare_changes(primary, call, &frame.args());
            let rare = Some(Rare { changes, bracket: Bracket::NONE });
            let time = primary.log.now();
            let news = news.write(News { time, started: 0, refused: 0, open: None, rare });
            if let Some(Rare { changes, bracket }) = &mut news.rare {
                bracket.start(primary, caller, changes);
                news.refused = bracket.refused;
            }
            news.started = primary.log.now();
            if primary.log.is_audited()
                && let Some(rare) = &news.rare
            {
                primary.log.opened(caller, call, rare.changes.as_slice(), news.started);
            }
            Way::Call
        }
    }
}

// Kept out of the frame in which subscribers are called: it may be large.
#[inline(never)]
fn rare_changes(primary: &Primary, call: Syscall, args: &[usize; 6]) -> Changes {
    let mut ranges = Ranges::new();
    decode(call, args, &primary.memory.find(needs(call, args), &mut ranges))
}

/// Behind a system call that was announced, its result in the frame.
///
/// # Safety
///
/// Called by `crate::entry` only, with what it has called [`announce`] with, if that returned [`Way::Call`].
pub(crate) unsafe extern "C" fn finish(frame: *mut Frame, underway: *mut Underway) {
    // SAFETY: as in `announce`.
    let (frame, underway) = unsafe { (&*frame, &mut *underway) };
    // SAFETY: written by `before` or `heavy`.
    let seen = unsafe { underway.seen.assume_init_ref() };
    // SAFETY: written by `announce` or `heavy`.
    let news = unsafe { underway.news.assume_init_mut() };
    let Some(primary) = primary() else { return };
    let changed = primary.log.now();
    if primary.log.is_audited() && seen.common != Common::Nothing {
        primary.log.closed(&seen.caller, seen.caller.stack(), changed);
    }
    if let Some(open) = news.open.take() {
        primary.space.end(&seen.caller, open);
    }
    // Of most calls nothing else is to be done.
    if seen.common == Common::Rare || primary.log.is_watched() {
        finish_more(primary, frame, seen, news, changed);
    }
}

/// The same for rare calls, or if somebody wants to know.
#[inline(never)]
fn finish_more(primary: &Primary, frame: &Frame, seen: &Seen, news: &mut News, changed: u64) {
    let (call, args, result) = (seen.call, frame.args(), frame.rax);
    if let Some(rare) = &mut news.rare {
        rare.bracket.end(primary, &seen.caller);
    }
    let ended = primary.log.now();
    // `brk` fails by returning the old break.
    let failed = if call == Syscall::Brk {
        args[0] != 0 && result != args[0]
    } else {
        (-4095..0).contains(&result.cast_signed())
    };
    if !failed || call == Syscall::Brk {
        primary.memory.learn(call, &args, result);
    }
    if primary.log.is_watched() {
        note(primary, frame, seen, news, failed, [changed, ended]);
    }
    if !failed {
        primary.new_code(call, &args, result);
    }
}

/// Counts and records a call that was made.
#[inline(never)]
fn note(
    primary: &Primary,
    frame: &Frame,
    seen: &Seen,
    news: &News,
    failed: bool,
    [changed, ended]: [u64; 2],
) {
    let &Seen { call, common, event, range, site, ref caller, .. } = seen;
    let &News { time, started, refused, .. } = news;
    let one = [(range, event)];
    let changes = match (&news.rare, common) {
        (Some(rare), _) => rare.changes.as_slice(),
        (None, Common::One) => &one,
        (None, _) => &[],
    };
    if let Some(shard) = primary.log.shard(caller.home()) {
        count(shard, call, failed, !changes.is_empty());
        if !changes.is_empty() {
            count_changes(shard, changes, refused);
            observe(&shard.starts, started - time);
            observe(&shard.changes, changed - started);
            observe(&shard.ends, ended - changed);
        }
    }
    if primary.log.records_wanted() {
        let args = frame.args();
        let mut entry = log::Entry {
            call,
            event: None,
            failed,
            refused: refused > 0,
            time,
            starts: started - time,
            change: changed - started,
            ends: ended - changed,
            thread: caller.thread(),
            home: caller.home(),
            start: args[0],
            len: args[1],
            caller: return_address(frame, site),
        };
        if changes.is_empty() {
            primary.log.record(&entry);
        }
        for (range, event) in changes {
            (entry.event, entry.start, entry.len) = (Some(*event), range.start(), range.len());
            primary.log.record(&entry);
        }
    }
}

/// Behind a system call that the stub made itself: in the parent, and in a child with memory of its own.
///
/// # Safety
///
/// As [`before`].
pub(crate) unsafe extern "C" fn after_clone(frame: *mut Frame) {
    // SAFETY: as in `before`.
    let frame = unsafe { &mut *frame };
    // SAFETY: as in `before`.
    let site = unsafe { &*(frame.go as *const Site) };
    if let Some(primary) = primary() {
        children::after_clone(primary, frame, site);
    }
    frame.go = site.back;
}

/// Counts a call.
pub(crate) fn count(shard: &Shard, call: Syscall, failed: bool, bracketed: bool) {
    let counts = &shard.calls[call as usize];
    counts.count.fetch_add(1, Ordering::Relaxed);
    if failed {
        counts.failed.fetch_add(1, Ordering::Relaxed);
    }
    if bracketed {
        counts.bracketed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts what a call announced.
pub(crate) fn count_changes(shard: &Shard, changes: &[(Range, Event)], refused: u64) {
    for (range, event) in changes {
        let counts = &shard.events[*event as usize];
        counts.changes.fetch_add(1, Ordering::Relaxed);
        if range.end() != usize::MAX {
            counts.bytes.fetch_add(range.len() as u64, Ordering::Relaxed);
        }
    }
    if refused > 0 {
        shard.refused.fetch_add(refused, Ordering::Relaxed);
        shard.announced_again.fetch_add(refused, Ordering::Relaxed);
    }
}

/// The return address of the function around the site, if its place on the stack is known.
pub(crate) fn return_address(frame: &Frame, site: &Site) -> usize {
    if site.caller == usize::MAX {
        return 0;
    }
    // SAFETY: by its unwind table the function keeps its return address there, above the live stack pointer.
    unsafe { ((frame.stack() + site.caller) as *const usize).read_unaligned() }
}

/// The open changes of a call that may make several.
#[derive(Debug)]
pub(crate) struct Bracket {
    open: [Option<OpenChange>; Changes::MAX],
    /// Non-blocking announcements that were refused.
    pub(crate) refused: u64,
}

impl Bracket {
    /// Nothing is open.
    pub(crate) const NONE: Bracket = Bracket { open: [const { None }; Changes::MAX], refused: 0 };

    #[inline(never)]
    pub(crate) fn start(&mut self, primary: &Primary, caller: &Caller, changes: &Changes) {
        if !changes.as_slice().is_empty() {
            primary.end_abandoned(caller);
        }
        for (open, &(range, event)) in self.open.iter_mut().zip(changes.as_slice()) {
            *open = Some(start(primary, caller, range, event, &mut self.refused));
        }
    }

    #[inline(never)]
    pub(crate) fn end(&mut self, primary: &Primary, caller: &Caller) {
        for open in self.open.iter_mut().rev().filter_map(Option::take) {
            primary.space.end(caller, open);
        }
    }
}

/// Starts one change: non-blocking, and if that is refused, blocking.
#[inline(always)]
fn start(primary: &Primary, caller: &Caller, range: Range, event: Event, refused: &mut u64) -> OpenChange {
    match primary.space.start(caller, Change::new(range, event, Blocking::Forbidden)) {
        Ok(open) => open,
        Err(WouldBlock) => {
            *refused += 1;
            start_blocking(primary, caller, range, event)
        }
    }
}

#[cold]
fn start_blocking(primary: &Primary, caller: &Caller, range: Range, event: Event) -> OpenChange {
    loop {
        // A blocking start is not refused; the loop says so without a panic.
        if let Ok(open) = primary.space.start(caller, Change::new(range, event, Blocking::Allowed)) {
            return open;
        }
    }
}
