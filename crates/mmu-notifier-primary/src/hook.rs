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
//! Allocate, take a lock of libc or of ours, touch thread-local storage, or unwind. Nor does it make the call fail, unless
//! somebody has refused it where nobody may wait. It runs anywhere: before `main`, in signal handlers, in a thread
//! without storage, inside the allocator, and inside a subscriber's callback.
//!
//! # Context
//!
//! A change is announced as blocking if it is certain that the program holds no lock of its allocator ([`crate::context`]), else
//! as non-blocking. If somebody refuses that, the call is put off, or fails ([`crate::refused`]).

// UNSAFETY: called from assembler with a frame on the program's stack.
#![expect(unsafe_code)]

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicPtr, Ordering};

use mmu_notifier::{Blocking, Caller, Change, Event, OpenChange, Range, WouldBlock};

use crate::Syscall;
use crate::bracket::{Bracket, Opened, count, count_changes, end, start};
use crate::check;
use crate::children;
use crate::decode::{Changes, Common, decode_common};
use crate::entry::{Frame, Site};
use crate::files::Entered;
use crate::gate::{self, safe};
use crate::hot;
use crate::log::{self, observe};
use crate::masks::{self, Changed};
use crate::primary::Primary;
use crate::refused::{self, NotMade, Refusals};
use crate::strict;
use crate::trapped;
use crate::written;

/// This process's primary MMU; null until it is installed, never changed after.
static PRIMARY: AtomicPtr<Primary> = AtomicPtr::new(core::ptr::null_mut());

/// Makes `primary` the one that the hook uses; false if there is one.
pub(crate) fn set_primary(primary: &'static Primary) -> bool {
    let new = core::ptr::from_ref(primary).cast_mut();
    // Release pairs with the Acquire in `primary`.
    PRIMARY.compare_exchange(core::ptr::null_mut(), new, Ordering::Release, Ordering::Relaxed).is_ok()
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
    /// 1, as the entry code has written: [`finish`] ends it, as it does [`MASKED`]; 0: nobody was told, [`after`] does.
    told: u32,
    /// What nobody was told of; written if `told` is 0.
    unheard: MaybeUninit<OpenChange>,
    /// Written if `told` is 1.
    seen: MaybeUninit<Seen>,
    /// Written by [`announce`].
    news: MaybeUninit<News>,
    /// Written by [`announce`] if `told` is [`MASKED`] and the call is made.
    changed: MaybeUninit<Changed>,
}

/// In [`Underway::told`]: no change, but a mask of signals is on its way to the kernel.
const MASKED: u32 = 2;

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
    refusals: Refusals,
    /// Of a common call, as nearly always: everybody was told. A plain field, as it goes through two registers.
    open: Option<OpenChange>,
    /// Of a common call, else.
    opened: Option<Opened>,
    /// Of a rare call.
    rare: Option<Rare>,
}

#[derive(Debug)]
struct Rare {
    changes: Changes,
    bracket: Bracket,
    /// It maps a file, or changes one.
    entered: Option<Entered>,
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

/// Whether a call is nothing to us, wherever it is made.
pub(crate) fn does_not_care(number: usize) -> bool {
    let registers = || primary().is_some_and(|primary| primary.check.is_some()) && check::is_wanted(number);
    Syscall::from_number(number).is_none() && !masks::concern(number) && !registers()
}

/// Leaves a call to [`tell`]: false if it is none of ours.
#[inline(always)]
fn leave(primary: &Primary, frame: &mut Frame, underway: &mut Underway, look: Look) -> bool {
    let Look { common, range, event, caller } = look;
    let site = site(frame);
    let Some(call) = Syscall::from_number(frame.rax) else {
        if strict::is_armed() && masks::concern(frame.rax) {
            underway.told = MASKED;
            return true;
        }
        if primary.check.as_ref().is_some_and(|check| check.concerns(frame.rax, frame.rsi)) {
            // The frame still says where from: `registration` goes on there.
            return true;
        }
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
    if look.common != Common::Rare && look.caller.thread() != 0 && primary.mode.is_ordinary() {
        if look.common == Common::Nothing {
            frame.go = site.plain;
            return Way::Out;
        }
        let change = Change::new(look.range, look.event, Blocking::Forbidden);
        if !takes_frame(frame, look.range, look.event)
            && let Some(open) = primary.space.start_unheard(&look.caller, &change)
        {
            // Behind the claim.
            if !primary.mode.is_hot() {
                frame.go = site.back;
                underway.told = 0;
                underway.unheard.write(open);
                return Way::Call;
            }
            primary.space.end_unheard(open);
        }
    }
    if leave(primary, frame, underway, look) { Way::Announce } else { Way::Out }
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
    if !leave(primary, frame, underway, look) {
        return Way::Out;
    }
    if underway.told == MASKED {
        return announce_mask(primary, frame, underway);
    }
    if registration(primary, frame) {
        return Way::Out;
    }
    // SAFETY: written by `leave`.
    let seen = unsafe { underway.seen.assume_init_mut() };
    tell(primary, frame, seen, &mut underway.news)
}

/// All of a call, where the entry code cannot run. Afterwards the frame says where to go on, and with what result.
pub(crate) fn serve(frame: &mut Frame) {
    let mut underway = Underway {
        told: 1,
        unheard: MaybeUninit::uninit(),
        seen: MaybeUninit::uninit(),
        news: MaybeUninit::uninit(),
        changed: MaybeUninit::uninit(),
    };
    // SAFETY: a complete frame and what belongs to it.
    if unsafe { heavy(frame, &mut underway) } != Way::Out {
        // SAFETY: the program's own call; those that do not return once go out to a tail.
        frame.rax = unsafe { gate::call(frame.rax, &frame.args()) } as usize;
        // SAFETY: as above, behind the call.
        unsafe { finish(frame, &mut underway) };
    }
}

/// Makes a call that registers memory, if it is one: of these [`leave`] has left nothing.
#[inline]
fn registration(primary: &Primary, frame: &mut Frame) -> bool {
    let Some(check) = &primary.check else { return false };
    if Syscall::from_number(frame.rax).is_some() {
        return false;
    }
    check.call(&primary.log, frame, site(frame));
    true
}

/// Announces a call that [`before`] has looked at.
///
/// # Safety
///
/// Called by `crate::entry` only, with what it has called [`before`] with, if that returned [`Way::Announce`].
pub(crate) unsafe extern "C" fn announce(frame: *mut Frame, underway: *mut Underway) -> Way {
    // SAFETY: by the entry code, a complete frame and what belongs to it, that nobody else looks at.
    let (frame, underway) = unsafe { (&mut *frame, &mut *underway) };
    let Some(primary) = primary() else { return Way::Out };
    if underway.told == MASKED {
        return announce_mask(primary, frame, underway);
    }
    if registration(primary, frame) {
        return Way::Out;
    }
    // SAFETY: written by `before`.
    let seen = unsafe { underway.seen.assume_init_mut() };
    tell(primary, frame, seen, &mut underway.news)
}

/// A call that may block or catch the signal of strict mode.
#[cold]
fn announce_mask(primary: &Primary, frame: &mut Frame, underway: &mut Underway) -> Way {
    let site = site(frame);
    let changed = underway.changed.write(Changed::NOTHING);
    masks::before(primary, frame, site, changed)
}

#[inline(always)]
fn tell(primary: &Primary, frame: &mut Frame, seen: &mut Seen, news: &mut MaybeUninit<News>) -> Way {
    if seen.caller.thread() == 0 {
        seen.caller = primary.threads.caller(seen.caller.stack());
    }
    let time = primary.log.now();
    let is_special = primary.mode.is_special();
    if is_special && let Err(not_made) = first(primary, frame, seen) {
        let told = (Refusals::default(), time);
        refused::answer(primary, &seen.caller, frame, (seen.call, seen.site), &[], told, not_made);
        return Way::Out;
    }
    let mut open = None;
    match seen.common {
        Common::Rare => return announce_rare(primary, frame, seen, news),
        Common::Nothing => {}
        Common::One => {
            primary.end_abandoned(&seen.caller);
            if takes_frame(frame, seen.range, seen.event) {
                return tell_end(primary, frame, seen, time);
            }
            let blocking = primary.contexts.of(primary, &seen.caller, frame, seen.site);
            if is_special {
                return announce_otherwise(primary, frame, seen, news, time, Some(blocking));
            }
            match primary.space.start(&seen.caller, Change::new(seen.range, seen.event, blocking)) {
                Ok(started) => {
                    hot::before(primary, seen.range, seen.event);
                    open = Some(started);
                }
                Err(WouldBlock) => return announce_otherwise(primary, frame, seen, news, time, None),
            }
        }
    }
    let (started, refusals) = (primary.log.now(), Refusals::default());
    if open.is_some() && primary.log.is_audited() {
        primary.log.opened(&seen.caller, seen.call, &[(seen.range, seen.event)], started);
    }
    news.write(News { time, started, refusals, open, opened: None, rare: None });
    Way::Call
}

/// Announces a common call that has been refused, or, if it was not asked yet, where something is special: `blocking` then
/// says whether it may wait.
#[cold]
#[inline(never)]
fn announce_otherwise(
    primary: &Primary,
    frame: &mut Frame,
    seen: &Seen,
    news: &mut MaybeUninit<News>,
    time: u64,
    blocking: Option<Blocking>,
) -> Way {
    let &Seen { call, range, event, site, ref caller, .. } = seen;
    let mut refusals = Refusals::default();
    let started = match blocking.map(|blocking| start(primary, caller, range, event, blocking)) {
        Some(Ok(opened)) => Ok(opened),
        _ => refused::one(primary, caller, call, &frame.args(), (range, event), &mut refusals),
    };
    match started {
        Ok(opened) => {
            let started = primary.log.now();
            if primary.log.is_audited() {
                primary.log.opened(caller, call, &[(range, event)], started);
            }
            news.write(News { time, started, refusals, open: None, opened: Some(opened), rare: None });
            Way::Call
        }
        Err(not_made) => {
            let told = (refusals, time);
            refused::answer(primary, caller, frame, (call, site), &[(range, event)], told, not_made);
            Way::Out
        }
    }
}

/// What was put off and is touched by a call is done before it.
#[cold]
#[inline(never)]
fn first(primary: &Primary, frame: &Frame, seen: &Seen) -> Result<(), NotMade> {
    if !primary.mode.has_quarantine() {
        return Ok(());
    }
    primary.end_abandoned(&seen.caller);
    let (call, args) = (seen.call, frame.args());
    let blocking = primary.contexts.of(primary, &seen.caller, frame, seen.site);
    match primary.make_touched(&seen.caller, call, &args, blocking) {
        Err(WouldBlock) if !refused::is_only_a_wish(call, &args) => {
            Err(NotMade { result: refused::untouched(call) })
        }
        _ => Ok(()),
    }
}

/// Whether a change takes away the stack that we stand on: a thread that ends by unmapping its own.
#[inline(always)]
fn takes_frame(frame: &Frame, range: Range, event: Event) -> bool {
    let here = core::ptr::from_ref(frame) as usize;
    matches!(event, Event::Unmap | Event::Clear) && range.start() <= here && here < range.end()
}

/// Behind such a call there is nobody to tell its end: it is told before. Nor can it be put off, as nothing says when the
/// thread has left its stack: who refuses is asked again, and may then make it wait.
#[cold]
fn tell_end(primary: &Primary, frame: &mut Frame, seen: &Seen, time: u64) -> Way {
    let &Seen { range, event, ref caller, .. } = seen;
    let mut refusals = Refusals::default();
    let mut blocking = Blocking::Forbidden;
    let opened = loop {
        match start(primary, caller, range, event, blocking) {
            Ok(opened) => break opened,
            Err(WouldBlock) => {
                refusals.refused += 1;
                refusals.again += 1;
                blocking = Blocking::Allowed;
            }
        }
    };
    let started = primary.log.now();
    // It stays open on record: the change comes behind the end.
    if primary.log.is_audited() {
        primary.log.opened(caller, seen.call, &[(range, event)], started);
    }
    end(primary, caller, opened);
    let news = News { time, started, refusals, open: None, opened: None, rare: None };
    if primary.log.is_watched() {
        note(primary, frame, seen, &news, false, [started, primary.log.now()]);
    }
    // Nor can what comes after it be trapped, without a stack.
    if strict::is_armed() {
        strict::disarm_thread();
    }
    frame.go = seen.site.plain;
    Way::Out
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
            // Before it is on record itself, at the same place of the stack.
            primary.end_abandoned_of_files(caller);
            let (changes, entered) = primary.rare_changes(caller, call, &frame.args());
            let rare = Some(Rare { changes, bracket: Bracket::NONE, entered });
            let time = primary.log.now();
            let refusals = Refusals::default();
            let news = news.write(News { time, started: 0, refusals, open: None, opened: None, rare });
            if let Some(Rare { changes, bracket, entered }) = &mut news.rare {
                let blocking = primary.contexts.of(primary, caller, frame, site);
                let mut started = bracket.start(primary, caller, changes, blocking);
                if started.is_ok()
                    && let Some(entered) = entered
                {
                    started = primary.announced_of_file(caller, call, *entered, changes, blocking);
                }
                news.refusals = bracket.refusals;
                if started.is_err() {
                    bracket.end(primary, caller);
                    primary.leave_file(caller, entered.take());
                    let not_made = NotMade { result: refused::error(call) };
                    let told = (news.refusals, time);
                    refused::answer(primary, caller, frame, (call, site), changes.as_slice(), told, not_made);
                    return Way::Out;
                }
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

/// Behind a system call that was announced, its result in the frame.
///
/// # Safety
///
/// Called by `crate::entry` only, with what it has called [`announce`] with, if that returned [`Way::Call`].
pub(crate) unsafe extern "C" fn finish(frame: *mut Frame, underway: *mut Underway) {
    // SAFETY: as in `announce`.
    let (frame, underway) = unsafe { (&mut *frame, &mut *underway) };
    if underway.told == MASKED {
        // SAFETY: written by `announce_mask`.
        return masks::after(frame, unsafe { underway.changed.assume_init_ref() });
    }
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
    } else {
        finish_otherwise(primary, seen, news);
    }
    // Of most calls nothing else is to be done.
    if seen.common == Common::Rare || primary.log.is_watched() {
        finish_more(primary, frame, seen, news, changed);
    }
}

/// Ends what [`announce_otherwise`] has started.
#[cold]
#[inline(never)]
fn finish_otherwise(primary: &Primary, seen: &Seen, news: &mut News) {
    if let Some(opened) = news.opened.take() {
        end(primary, &seen.caller, opened);
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
    if let Some(rare) = &mut news.rare {
        primary.leave_file(&seen.caller, rare.entered.take());
    }
    if let Some(check) = &primary.check
        && !failed
    {
        let one = [(seen.range, seen.event)];
        check.changed(&primary.log, frame, seen.site, call, changes_of(seen, news, &one));
    }
    if primary.log.is_watched() {
        note(primary, frame, seen, news, failed, [changed, ended]);
    }
    if !failed {
        primary.new_code(call, &args, result);
    }
}

/// What a call has changed; `one` is what a common call changes, if it does.
fn changes_of<'a>(seen: &Seen, news: &'a News, one: &'a [(Range, Event)]) -> &'a [(Range, Event)] {
    match (&news.rare, seen.common) {
        (Some(rare), _) => rare.changes.as_slice(),
        (None, Common::One) => one,
        (None, _) => &[],
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
    let &Seen { call, event, range, site, ref caller, .. } = seen;
    let &News { time, started, refusals, .. } = news;
    let one = [(range, event)];
    let changes = changes_of(seen, news, &one);
    if let Some(shard) = primary.log.shard(caller.home()) {
        count(shard, call, failed, !changes.is_empty());
        if !changes.is_empty() {
            count_changes(shard, changes, refusals);
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
            refused: refusals.refused > 0,
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

/// The return address of the function around the site, if its place on the stack is known.
pub(crate) fn return_address(frame: &Frame, site: &Site) -> usize {
    if site.caller == usize::MAX {
        return 0;
    }
    // SAFETY: by its unwind table the function keeps its return address there, above the live stack pointer.
    unsafe { ((frame.stack() + site.caller) as *const usize).read_unaligned() }
}

impl Primary {
    /// Inside a callback: where the system call is made that makes the change, the address of its `syscall` instruction.
    /// `None`: at none that was rewritten or trapped (who makes a change by himself announces it by himself).
    ///
    /// A look through a table; neither allocates nor waits.
    pub fn call_site(&'static self) -> Option<usize> {
        if let Some(fed) = &self.fed {
            return fed.call_site();
        }
        let here = 0u8;
        let here = core::ptr::from_ref(&here) as usize;
        let stack = self.space.changes_at(&self.space.caller().with_stack(here))?;
        let back = stack.checked_sub(Frame::BACK_BELOW_STACK).filter(|&back| back > here)?;
        // SAFETY: on the stack of this thread, above what runs: there it can be read. Whether it is a frame, say the
        // tables of sites.
        let back = unsafe { (back as *const usize).read_unaligned() };
        let site = back.wrapping_sub(2);
        (written::ending_at(back).is_some() || trapped::was_trapped(site)).then_some(site)
    }
}
