//! The hook: what happens around a memory system call.
//!
//! ```text
//! who calls -> count -> facts -> decode -> start .. start -> system call -> end .. end -> learn -> record
//! ```
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

// UNSAFETY: called from assembler with a frame on the program's stack; makes the program's system calls.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicPtr, Ordering};

use mmu_notifier::{Blocking, Caller, Change, Event, OpenChange, Range, WouldBlock};

use crate::Syscall;
use crate::children;
use crate::decode::{Changes, decode, needs};
use crate::entry::{Frame, Site};
use crate::facts::Ranges;
use crate::gate::{self, safe};
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
        None => Caller { thread: safe::gettid().into(), home: 0, stack: 0 },
    }
}

/// The system call at a rewritten site.
///
/// # Safety
///
/// Called by `crate::entry` only, with the frame it has built.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmu_notifier_hook(frame: *mut Frame) {
    // SAFETY: by the entry code, a complete frame that nobody else looks at.
    let frame = unsafe { &mut *frame };
    // SAFETY: by the stub, the address of its `Site`, which is never changed or unmapped.
    let site = unsafe { &*(frame.go as *const Site) };
    let (Some(call), Some(primary)) = (Syscall::from_number(frame.rax), primary()) else {
        frame.go = site.plain;
        return;
    };
    let caller = primary.threads.caller(frame.stack());
    match call {
        Syscall::Fork | Syscall::Vfork | Syscall::Clone | Syscall::Clone3 => {
            children::before_clone(primary, &caller, call, frame, site);
            return;
        }
        Syscall::Execve | Syscall::Execveat => children::exec(primary, &caller, call, frame, site),
        Syscall::ExitGroup => children::exit(primary, &caller, frame),
        _ => change(primary, &caller, call, frame, site),
    }
    frame.go = site.back;
}

/// Behind a system call that the stub made itself: in the parent, and in a child with memory of its own.
///
/// # Safety
///
/// As [`mmu_notifier_hook`].
#[unsafe(no_mangle)]
unsafe extern "C" fn mmu_notifier_hook_after(frame: *mut Frame) {
    // SAFETY: as in `mmu_notifier_hook`.
    let frame = unsafe { &mut *frame };
    // SAFETY: as in `mmu_notifier_hook`.
    let site = unsafe { &*(frame.go as *const Site) };
    if let Some(primary) = primary() {
        children::after_clone(primary, frame, site);
    }
    frame.go = site.back;
}

/// A call that changes the address space and returns.
fn change(primary: &Primary, caller: &Caller, call: Syscall, frame: &mut Frame, site: &Site) {
    let args = frame.args();
    let mut ranges = Ranges::new();
    let changes = decode(call, &args, &primary.memory.find(needs(call, &args), &mut ranges));
    let time = primary.log.now();
    let mut bracket = Bracket::start(primary, caller, &changes);
    let started = primary.log.now();
    // SAFETY: the program's own call, with its own arguments.
    let result = unsafe { gate::call(call.number(), &args) };
    let changed = primary.log.now();
    bracket.end(primary, caller);
    let ended = primary.log.now();
    frame.rax = result as usize;
    // `brk` fails by returning the old break.
    let failed = if call == Syscall::Brk {
        args[0] != 0 && result as usize != args[0]
    } else {
        (-4095..0).contains(&result)
    };
    if !failed || call == Syscall::Brk {
        primary.memory.learn(call, &args, result as usize);
    }
    let first = changes.as_slice().first();
    if let Some(shard) = primary.log.shard(caller.home) {
        count(shard, call, failed, first.is_some());
        if first.is_some() {
            count_changes(shard, &changes, &bracket);
            observe(&shard.starts, started - time);
            observe(&shard.changes, changed - started);
            observe(&shard.ends, ended - changed);
        }
    }
    if primary.log.records_wanted() {
        let mut entry = log::Entry {
            call,
            event: None,
            failed,
            refused: bracket.refused > 0,
            time,
            starts: started - time,
            change: changed - started,
            ends: ended - changed,
            thread: caller.thread,
            home: caller.home,
            start: args[0],
            len: args[1],
            caller: return_address(frame, site),
        };
        if changes.as_slice().is_empty() {
            primary.log.record(&entry);
        }
        for (range, event) in changes.as_slice() {
            (entry.event, entry.start, entry.len) = (Some(*event), range.start(), range.len());
            primary.log.record(&entry);
        }
    }
    if !failed {
        primary.new_code(call, &args, result as usize);
    }
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
pub(crate) fn count_changes(shard: &Shard, changes: &Changes, bracket: &Bracket) {
    for (range, event) in changes.as_slice() {
        let counts = &shard.events[*event as usize];
        counts.changes.fetch_add(1, Ordering::Relaxed);
        if range.end() != usize::MAX {
            counts.bytes.fetch_add(range.len() as u64, Ordering::Relaxed);
        }
    }
    if bracket.refused > 0 {
        shard.refused.fetch_add(bracket.refused, Ordering::Relaxed);
        shard.announced_again.fetch_add(bracket.refused, Ordering::Relaxed);
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

/// The open changes of one call. No destructor: the frame may be jumped over.
#[derive(Debug)]
pub(crate) struct Bracket {
    open: [Option<OpenChange>; Changes::MAX],
    /// Non-blocking announcements that were refused.
    pub(crate) refused: u64,
}

impl Bracket {
    pub(crate) fn start(primary: &Primary, caller: &Caller, changes: &Changes) -> Bracket {
        let mut bracket = Bracket { open: [const { None }; Changes::MAX], refused: 0 };
        if changes.as_slice().is_empty() {
            return bracket;
        }
        primary.end_abandoned(caller);
        for (open, &(range, event)) in bracket.open.iter_mut().zip(changes.as_slice()) {
            *open = Some(announce(primary, caller, range, event, &mut bracket.refused));
        }
        bracket
    }

    pub(crate) fn end(&mut self, primary: &Primary, caller: &Caller) {
        for open in self.open.iter_mut().rev().filter_map(Option::take) {
            primary.space.end(caller, open);
        }
    }
}

/// Starts one change: non-blocking, and if that is refused, blocking.
fn announce(primary: &Primary, caller: &Caller, range: Range, event: Event, refused: &mut u64) -> OpenChange {
    match primary.space.start(caller, Change::new(range, event, Blocking::Forbidden)) {
        Ok(open) => open,
        Err(WouldBlock) => {
            *refused += 1;
            loop {
                // A blocking start is not refused; the loop says so without a panic.
                if let Ok(open) = primary.space.start(caller, Change::new(range, event, Blocking::Allowed)) {
                    return open;
                }
            }
        }
    }
}
