//! Calls that make or end an address space: fork, exec, exit.
//!
//! * **A child with memory of its own** (`fork`, `clone` without `CLONE_VM`) starts with an empty address space:
//!   nobody of the parent's subscribers is told of its changes.
//! * **A child that shares the memory** (a thread, `vfork`, `posix_spawn`) changes the same address space; its
//!   brackets are in the same place.
//! * **exec** ends the address space if it succeeds, and nothing of ours runs after that: it is announced as
//!   `Release` of everything, which a failed exec ends. A `vfork`ed child's exec leaves the parent's memory alone.
//! * **exit_group** releases.
//!
//! Watched programs are followed through exec: what is preloaded into them is put back into the environment of each, and who is about
//! to become a program that loads nothing asks to be traced meanwhile (`loadable.rs`, `traced.rs`).

// UNSAFETY: makes the program's system calls, and passes on an environment built on the stack.
#![expect(unsafe_code)]

use core::ffi::CStr;
use core::sync::atomic::Ordering;

use mmu_notifier::{Blocking, Caller, Event, PAGE_SIZE};

use crate::Syscall;
use crate::bracket::{Bracket, count, count_changes};
use crate::decode::{decode, needs};
use crate::entry::{Frame, Site};
use crate::facts::Ranges;
use crate::gate::{self, safe};
use crate::hook::return_address;
use crate::loadable::{self, Loading};
use crate::log::{Entry, observe, ticks};
use crate::primary::Primary;
use crate::refused::{self, NotMade};
use crate::session::{PATH, PROCESSES, ProcessState, UnseenReason};
use crate::thread::Clone;
use crate::traced::{self, Answer};

const CLONE_VM: u64 = 0x100;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_SETTLS: u64 = 0x80000;

/// Before the stub makes a call that returns twice.
#[inline(never)]
pub(crate) fn before_clone(
    primary: &Primary,
    caller: &Caller,
    call: Syscall,
    frame: &mut Frame,
    site: &Site,
) {
    let args = frame.args();
    let mut ranges = Ranges::new();
    let facts = primary.memory.find(needs(call, &args), &mut ranges);
    let changes = decode(call, &args, &facts);
    let (flags, [stack, stack_size, storage]) = match call {
        // How large the stack is it does not say.
        Syscall::Clone => (args[0] as u64, [0, 0, args[4]]),
        Syscall::Clone3 => (facts.clone_flags, clone3_thread(args[0])),
        Syscall::Vfork => (CLONE_VM | CLONE_VFORK, [0; 3]),
        _ => (0, [0; 3]),
    };
    let time = ticks();
    let mut bracket = Bracket::NONE;
    // The C library holds all locks of the allocator around a fork.
    if !changes.as_slice().is_empty() {
        primary.end_abandoned(caller);
    }
    if bracket.start(primary, caller, &changes, Blocking::Forbidden).is_err() {
        let not_made = NotMade { result: refused::error(call) };
        let told = (bracket.refusals, time);
        refused::answer(primary, caller, frame, (call, site), changes.as_slice(), told, not_made);
        return;
    }
    let shares_memory = flags & CLONE_VM != 0;
    if shares_memory {
        if flags & CLONE_SETTLS != 0 {
            primary.threads.born(storage, stack.wrapping_add(stack_size), stack_size);
        } else if flags & CLONE_VFORK == 0 {
            primary.threads.share_base();
        }
    }
    const CLONE_THREAD: u64 = 0x10000;
    if shares_memory && flags & CLONE_THREAD == 0 {
        primary.lend();
    }
    if flags & CLONE_THREAD != 0
        && let Some(process) = primary.log.process()
    {
        process.threads.fetch_add(1, Ordering::Relaxed);
    }
    let started = ticks();
    if primary.log.is_audited() {
        primary.log.opened(caller, call, changes.as_slice(), started);
    }
    primary.threads.set_clone(&Clone { call, time, started });
    if let Some(shard) = primary.log.shard(caller.home()) {
        count(shard, call, false, !changes.as_slice().is_empty());
        count_changes(shard, changes.as_slice(), bracket.refusals);
    }
    frame.go = if shares_memory { site.thread } else { site.fork };
}

/// Whether the child of such a call shares the memory.
pub(crate) fn shares_memory(primary: &Primary, call: Syscall, args: &[usize; 6]) -> bool {
    let flags = match call {
        Syscall::Clone => args[0] as u64,
        Syscall::Clone3 => primary.memory.find(needs(call, args), &mut Ranges::new()).clone_flags,
        Syscall::Vfork => CLONE_VM,
        _ => 0,
    };
    flags & CLONE_VM != 0
}

/// Where a `clone3` puts the child's stack, how large that is, and where it puts the child's thread storage.
fn clone3_thread(args: usize) -> [usize; 3] {
    // struct clone_args: eight words, the last of them `stack`, `stack_size` and `tls`.
    let mut bytes = [0; 24];
    if safe::read_memory(args.wrapping_add(40), &mut bytes) != Ok(24) {
        return [0; 3];
    }
    let (words, _) = bytes.as_chunks::<8>();
    core::array::from_fn(|index| usize::from_ne_bytes(words[index]))
}

/// In the parent; and in the child, if it has memory of its own.
#[inline(never)]
pub(crate) fn after_clone(primary: &Primary, frame: &Frame, site: &Site) {
    let result = frame.rax as isize;
    if result == 0 {
        primary.forked();
        return;
    }
    let caller = primary.threads.caller(frame.stack());
    let changed = ticks();
    if primary.log.is_audited() {
        primary.log.closed(&caller, frame.stack(), changed);
    }
    // The bracket was opened at the same place of the stack.
    // SAFETY: the parent's frame of the hook, which has jumped here and does not come back.
    let ended = unsafe { primary.end_those(&caller, |stack| stack == frame.stack()) };
    let known = primary.threads.clone_of_caller();
    let by_site = Syscall::from_number(site.number).unwrap_or(Syscall::Clone);
    let call = known.as_ref().map_or(by_site, |known| known.call);
    let failed = result < 0;
    let Some(shard) = primary.log.shard(caller.home()) else { return };
    if failed {
        shard.calls[call as usize].failed.fetch_add(1, Ordering::Relaxed);
    }
    if ended.changes > 0
        && let Some(Clone { time, started, .. }) = known
    {
        let done = ticks();
        observe(&shard.starts, started.saturating_sub(time));
        observe(&shard.changes, changed.saturating_sub(started));
        observe(&shard.ends, done - changed);
        if primary.log.records_wanted() {
            primary.log.record(&Entry {
                call,
                event: Some(Event::ProtectionPage),
                failed,
                refused: false,
                time,
                starts: started.saturating_sub(time),
                change: changed.saturating_sub(started),
                ends: done - changed,
                thread: caller.thread(),
                home: caller.home(),
                start: 0,
                len: usize::MAX,
                caller: return_address(frame, site),
            });
        }
    }
}

/// Ends the process.
#[inline(never)]
pub(crate) fn exit(primary: &Primary, caller: &Caller, frame: &mut Frame) {
    if let Some(shard) = primary.log.shard(caller.home()) {
        count(shard, Syscall::ExitGroup, false, false);
    }
    // A vforked child ends alone; its parent's memory lives.
    if primary.is_caller() {
        // What this thread has jumped out of: there is no next change that would find it.
        primary.end_abandoned(caller);
        primary.space.release();
        if let Some(check) = &primary.check {
            check.ending(&primary.log);
        }
        primary.log.ending(ProcessState::Exited);
    }
    // SAFETY: the program's own call.
    frame.rax = unsafe { gate::call(Syscall::ExitGroup.number(), &frame.args()) } as usize;
}

/// Becomes another program, with the preload object in its environment.
// Rare, and large on the stack: kept out of the frame of every other call.
#[inline(never)]
pub(crate) fn exec(primary: &Primary, caller: &Caller, call: Syscall, frame: &mut Frame, site: &Site) {
    let mut args = frame.args();
    let (path_at, environment_at) = if call == Syscall::Execve { (0, 2) } else { (1, 3) };
    let mut path = [0; PATH];
    let path = read_string(args[path_at], &mut path);
    // Who may not read the object (other rights, another root) gets no complaint of the loader for it.
    let preload = primary.preload.as_ref().filter(|preload| preload.readable());
    let program = preload.map(|_| match call {
        Syscall::Execve => loadable::look_from_here(args[0]),
        _ => loadable::look(args[0], args[1], args[4]),
    });
    let mut environment = Environment::new();
    let own_environment = args[environment_at];
    if let (Some(preload), Some(program)) = (preload, program)
        && program.loading != Loading::Fails
    {
        match environment.build(own_environment, preload) {
            Some(built) => args[environment_at] = built,
            None if program.loading == Loading::Ignored => {}
            None => primary.log.unseen(UnseenReason::Exec, None, args[path_at], path),
        }
    }
    let same_process = primary.is_caller();
    let changes = decode(call, &args, &Default::default());
    let mut claimed = None;
    let mut bracket = None;
    let time = ticks();
    if same_process {
        primary.end_abandoned(caller);
        let bracket = bracket.insert(Bracket::NONE);
        let blocking = primary.contexts.of_exec(primary, caller, frame);
        if bracket.start(primary, caller, &changes, blocking).is_err() {
            let not_made = NotMade { result: refused::error(call) };
            let told = (bracket.refusals, time);
            refused::answer(primary, caller, frame, (call, site), changes.as_slice(), told, not_made);
            return;
        }
        if let Some(process) = primary.log.process() {
            crate::log::put_path(&process.exec, path);
        }
    } else {
        claimed = primary.log.vforked_exec(path);
    }
    if let Some(shard) = primary.log.shard(caller.home()) {
        count(shard, call, false, same_process);
        if let Some(bracket) = &bracket {
            count_changes(shard, changes.as_slice(), bracket.refusals);
        }
    }
    let started = ticks();
    if same_process {
        if let Some(check) = &primary.check {
            check.ending(&primary.log);
        }
        if primary.log.records_wanted() {
            // Before the call: after it there is nobody to do it.
            primary.log.record(&Entry {
                call,
                event: Some(Event::Release),
                failed: false,
                refused: bracket.as_ref().is_some_and(|bracket| bracket.refusals.refused > 0),
                time,
                starts: started - time,
                change: 0,
                ends: 0,
                thread: caller.thread(),
                home: caller.home(),
                start: 0,
                len: usize::MAX,
                caller: return_address(frame, site),
            });
        }
        if primary.log.is_audited() {
            primary.log.opened(caller, call, changes.as_slice(), started);
        }
        primary.log.ending(ProcessState::Exec);
    }
    if let (Some(preload), Some(program)) = (preload, program)
        && program.loading != Loading::Loaded
    {
        let process = claimed.or_else(|| primary.log.index()).unwrap_or(PROCESSES);
        let answer = match program.gains_rights {
            true => Err(UnseenReason::GainsRights),
            false => Ok(traced::ask(&primary.log, preload.session_path(), process)),
        };
        match answer {
            // It does not look at our variables, and must not see them.
            Ok(Answer::Traced) => args[environment_at] = own_environment,
            Ok(Answer::Nobody) => {}
            Ok(Answer::Refused) => primary.log.unseen(UnseenReason::NotTraced, None, args[path_at], path),
            Err(reason) => primary.log.unseen(reason, None, args[path_at], path),
        }
    }
    // SAFETY: the program's own call; `environment` lives through it.
    let result = unsafe { gate::call(call.number(), &args) };
    // Still here: it failed.
    if let Some(index) = claimed {
        primary.log.vforked_exec_failed(index);
    }
    if let Some(bracket) = &mut bracket {
        primary.log.not_ending();
        let changed = ticks();
        if primary.log.is_audited() {
            primary.log.closed(caller, caller.stack(), changed);
        }
        bracket.end(primary, caller);
        if let Some(shard) = primary.log.shard(caller.home()) {
            observe(&shard.starts, started - time);
            observe(&shard.changes, changed - started);
            observe(&shard.ends, ticks() - changed);
        }
    }
    if let Some(shard) = primary.log.shard(caller.home()) {
        shard.calls[call as usize].failed.fetch_add(1, Ordering::Relaxed);
    }
    frame.rax = result as usize;
}

/// Reads a string of the program's, as far as it fits and is readable.
fn read_string(at: usize, buffer: &mut [u8]) -> &[u8] {
    let read = safe::read_memory(at, buffer).unwrap_or(0);
    let len = buffer[..read].iter().position(|&byte| byte == 0).unwrap_or(read);
    &buffer[..len]
}

/// What a followed program must find in its environment: `NAME=value`, zero-ended.
#[derive(Debug)]
pub(crate) struct Preload {
    /// `LD_PRELOAD=` and the path of the preload object.
    pub(crate) preload: Box<[u8]>,
    /// The session.
    pub(crate) session: Box<[u8]>,
}

impl Preload {
    /// Whether this process, as it is now, can read the object.
    fn readable(&self) -> bool {
        let path = self.preload.get(Environment::NAME.len()..).unwrap_or(&[]);
        CStr::from_bytes_until_nul(path).is_ok_and(|path| safe::File::open(path, 0).is_ok())
    }

    fn session_path(&self) -> &CStr {
        const NAME: &[u8] = b"MMUN_SESSION=";
        CStr::from_bytes_until_nul(self.session.get(NAME.len()..).unwrap_or(&[])).unwrap_or(c"")
    }
}

/// An environment for exec, built on the stack.
struct Environment {
    pointers: [usize; Environment::ENTRIES],
    preload: [u8; 2048],
}

impl Environment {
    /// Variables that are followed; a larger environment is left as it is.
    const ENTRIES: usize = 1000;
    /// Variables that are looked at with two system calls.
    const AT_ONCE: usize = 64;
    const NAME: &'static [u8; 11] = b"LD_PRELOAD=";

    fn new() -> Environment {
        Environment { pointers: [0; Environment::ENTRIES], preload: [0; 2048] }
    }

    /// The program's environment at `original` with ours in front; `None` if it is too large. One that the
    /// kernel would not take either is handed on as it is.
    fn build(&mut self, original: usize, preload: &Preload) -> Option<usize> {
        let mut used = 2;
        let mut theirs = 0;
        let mut at = original;
        while at != 0 {
            // Not beyond a page: the array may end at the last one that is mapped.
            let mut words = [0u8; Environment::AT_ONCE * 8];
            let room = (PAGE_SIZE - at % PAGE_SIZE) / 8 * 8;
            let room = if room == 0 { 8 } else { room.min(words.len()) };
            let read = safe::read_memory(at, &mut words[..room]).unwrap_or(0) / 8 * 8;
            if read == 0 {
                return Some(original);
            }
            let mut variables = [0; Environment::AT_ONCE];
            let mut count = 0;
            for (variable, word) in variables.iter_mut().zip(words[..read].chunks_exact(8)) {
                *variable = word.try_into().map(usize::from_ne_bytes).unwrap_or(0);
                if *variable == 0 {
                    break;
                }
                count += 1;
            }
            let mut starts = [[0; Environment::NAME.len()]; Environment::AT_ONCE];
            safe::read_memories(&variables[..count], &mut starts[..count]);
            for (&pointer, start) in variables[..count].iter().zip(&starts) {
                if *start == *Environment::NAME {
                    theirs = pointer + start.len();
                    continue;
                }
                // Leave room for the final zero.
                if used + 1 == Environment::ENTRIES {
                    return None;
                }
                self.pointers[used] = pointer;
                used += 1;
            }
            if count < read / 8 {
                break;
            }
            at += read;
        }
        let ours = &preload.preload[..preload.preload.len() - 1];
        let (head, tail) = self.preload.split_at_mut_checked(ours.len())?;
        head.copy_from_slice(ours);
        if theirs != 0 && tail.len() > 1 {
            tail[0] = b':';
            let room = tail.len() - 1;
            let len = read_string(theirs, &mut tail[1..room]).len();
            if len + 2 == room {
                return None;
            }
            // Theirs may be ours, if the program has put it back.
            tail[len + 1] = 0;
            if len == 0 || tail[1..].starts_with(&ours[Environment::NAME.len()..]) {
                tail[0] = 0;
            }
        }
        self.pointers[0] = self.preload.as_ptr() as usize;
        self.pointers[1] = preload.session.as_ptr() as usize;
        self.pointers[used] = 0;
        Some(self.pointers.as_ptr() as usize)
    }
}
