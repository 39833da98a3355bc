//! The process that puts the object into programs which watched ones start, and into which nothing can be preloaded.
//!
//! A thread that is about to exec such a program asks (`Request`, in the session). It is traced until its exec has succeeded or
//! failed - nothing of it is made by anybody else, so that it keeps all that it keeps, and fails as it fails - and then the object is
//! put into the program as into the first one of a run ([`inject`](crate::inject)).
//!
//! A process of its own, as the kernel tells a parent nothing of a child that it traces itself, but its tracer. It is in nobody's
//! process group, holds no file open, and ends with `mmun`; but not in the middle.

// UNSAFETY: fork, ptrace, and sleeping on a word of the session.
#![expect(unsafe_code)]

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use mmu_notifier_primary::session::{PROCESSES, Request, RequestState, UnseenReason};

use crate::inject::{Injection, Otherwise};
use crate::session::Session;
use crate::tracee::Tracee;

/// The running process. Dropped, it ends at once.
#[derive(Debug)]
pub struct Tracer(i32);

impl Tracer {
    /// Starts it; to be called before there are other threads. It lives as long as this process, or until the session is closed.
    pub fn start(session: &Session, injection: &Injection) -> Result<Tracer> {
        let parent = std::process::id();
        // SAFETY: this process has one thread, so that the child finds no lock held, and can do what it could.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()).context("cannot start a process (fork)"),
            0 => {
                leave_everything();
                serve(session, injection, parent);
                // SAFETY: ends the child without anything that belongs to the parent (buffers, exit functions).
                unsafe { libc::_exit(0) };
            }
            pid => {
                session.header().tracer.store(pid as u32, Ordering::Relaxed);
                Ok(Tracer(pid))
            }
        }
    }

    /// Waits until it has ended, as it does when the session is closed; but not for an exec that does not come to its end.
    pub fn end(self) {
        const TIMES: u32 = 1000;
        let ended = (0..TIMES).any(|time| {
            if time > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.is_reaped(libc::WNOHANG)
        });
        if !ended {
            // What it does it may finish.
            std::mem::forget(self);
        }
    }

    fn is_reaped(&self, how: i32) -> bool {
        // SAFETY: with a null pointer nothing is written. -1: it was reaped before.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), how) != 0 }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if !self.is_reaped(libc::WNOHANG) {
            // SAFETY: a child that has not been waited for.
            unsafe { libc::kill(self.0, libc::SIGKILL) };
            self.is_reaped(0);
        }
    }
}

/// Says that the session is closed.
pub fn session_closed(session: &Session) {
    wake(&session.header().asked);
}

/// Nothing that the parent has is kept from being closed, unmounted or signalled by this process.
fn leave_everything() {
    // SAFETY: a structure of integers, for which zeroes are valid; then filled and read.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
    // SAFETY: these concern this process, which has no thread but this one, and uses no file from here on.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"mmun-tracer".as_ptr());
        if libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) != 0 {
            (0..1024).for_each(|descriptor| {
                libc::close(descriptor);
            });
        }
    }
    let _ = std::env::set_current_dir("/");
}

fn serve(session: &Session, injection: &Injection, parent: u32) {
    const SECOND: u64 = 1_000_000_000;
    let header = session.header();
    std::thread::scope(|threads| {
        while header.closed.load(Ordering::Acquire) == 0 && std::os::unix::process::parent_id() == parent {
            // Before looking: what is asked later raises it.
            let asked = header.asked.load(Ordering::Acquire);
            for request in &header.requests {
                // Acquire pairs with the Release of who asks.
                if !change(request, RequestState::Asked, RequestState::Taken) {
                    continue;
                }
                let work = move || answer(session, injection, request);
                if std::thread::Builder::new().spawn_scoped(threads, work).is_err() {
                    refuse(request, libc::EAGAIN);
                }
            }
            wait(&header.asked, asked, SECOND);
        }
        header.tracer.store(0, Ordering::Relaxed);
        for request in &header.requests {
            if change(request, RequestState::Asked, RequestState::Taken) {
                refuse(request, libc::ESRCH);
            }
        }
    });
}

/// Serves one request, which is this thread's.
fn answer(session: &Session, injection: &Injection, request: &Request) {
    let process = request.process.load(Ordering::Relaxed) as usize;
    let seized = find(request).and_then(Seized::new);
    let seized = match seized {
        Ok(seized) => seized,
        Err(error) => return refuse(request, error.raw_os_error().unwrap_or(libc::ESRCH)),
    };
    if !change(request, RequestState::Taken, RequestState::Going) {
        // Withdrawn.
        seized.let_go();
        return free(request);
    }
    wake(&request.state);
    let exec = seized.follow();
    free(request);
    let put_in = match exec {
        Exec::Done(pid) => Tracee::stopped(pid)
            .and_then(|tracee| injection.put_into(tracee, Otherwise::Run))
            .inspect_err(|_| detach(pid, 0)),
        Exec::Foreign(pid) => {
            detach(pid, 0);
            return;
        }
        Exec::NotDone => return,
    };
    if put_in.is_err() && process < PROCESSES {
        let entry = session.process(process);
        let path = crate::totals::path(&entry.exec);
        entry.note_unseen(UnseenReason::NotPutIn, None, 0, path.as_bytes());
    }
}

/// The thread that asks. In another pid namespace its id means somebody else, who does not have the word that it has.
fn find(request: &Request) -> io::Result<i32> {
    let [pid, tid] = [&request.pid, &request.tid].map(|id| id.load(Ordering::Relaxed));
    let memory = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut token = [0; 8];
    memory.read_exact_at(&mut token, request.place.load(Ordering::Relaxed))?;
    let same = u64::from_ne_bytes(token) == request.token.load(Ordering::Relaxed);
    if same && std::fs::exists(format!("/proc/{pid}/task/{tid}"))? {
        Ok(tid as i32)
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

fn refuse(request: &Request, errno: i32) {
    request.errno.store(errno as u32, Ordering::Relaxed);
    if change(request, RequestState::Taken, RequestState::Refused) {
        wake(&request.state);
    } else {
        free(request);
    }
}

fn free(request: &Request) {
    // Release pairs with the Acquire of who asks next.
    request.state.store(RequestState::Free as u32, Ordering::Release);
}

fn change(request: &Request, from: RequestState, to: RequestState) -> bool {
    // Both ways: what was asked is read behind it, what is answered was written before.
    request.state.compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// A thread that this one traces, on its way to exec.
struct Seized(i32);

/// How that went.
enum Exec {
    /// It is the program of this process, which is traced and stopped before its first instruction.
    Done(i32),
    /// It is one of another kind, traced and stopped.
    Foreign(i32),
    /// It is not traced any more: the exec has failed, or the process is gone.
    NotDone,
}

impl Seized {
    /// Stops the thread where it is: it waits for the answer.
    fn new(tid: i32) -> io::Result<Seized> {
        let options = libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACESYSGOOD;
        request(libc::PTRACE_SEIZE, tid, options as usize)?;
        let seized = Seized(tid);
        request(libc::PTRACE_INTERRUPT, tid, 0)?;
        loop {
            match Stop::next() {
                Some(Stop { why: Why::Stopped, .. }) => return Ok(seized),
                Some(stop) => stop.go_on(libc::PTRACE_CONT),
                None => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            }
        }
    }

    fn let_go(self) {
        detach(self.0, 0);
    }

    /// Follows it until its exec is done or has failed.
    fn follow(self) -> Exec {
        let mut in_exec = false;
        let mut done = false;
        if request(libc::PTRACE_SYSCALL, self.0, 0).is_err() {
            return Exec::NotDone;
        }
        while let Some(stop) = Stop::next() {
            match stop.why {
                Why::Exec => done = true,
                // Where the call returns: before that its result would be written over what is put into the registers.
                Why::SystemCall if done => {
                    return if stop.has_64_bits() { Exec::Done(stop.pid) } else { Exec::Foreign(stop.pid) };
                }
                Why::SystemCall if stop.is_exec() => {
                    if in_exec {
                        detach(stop.pid, 0);
                        return Exec::NotDone;
                    }
                    in_exec = true;
                }
                _ => {}
            }
            stop.go_on(libc::PTRACE_SYSCALL);
        }
        Exec::NotDone
    }
}

/// A stop of the thread that this one traces.
struct Stop {
    /// Whose: a thread that execs gets its process's id.
    pid: i32,
    why: Why,
}

#[derive(Clone, Copy)]
enum Why {
    /// As it was asked to.
    Stopped,
    /// With all of its process: it stays so until that goes on.
    WithAll,
    Exec,
    /// Before or behind one.
    SystemCall,
    Signal(i32),
}

impl Stop {
    /// The next one; `None` if it is gone.
    fn next() -> Option<Stop> {
        let mut status = 0;
        // SAFETY: writes `status`.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if pid <= 0 || !libc::WIFSTOPPED(status) {
            return None;
        }
        let why = match (libc::WSTOPSIG(status), status >> 16) {
            (_, libc::PTRACE_EVENT_EXEC) => Why::Exec,
            (libc::SIGTRAP, libc::PTRACE_EVENT_STOP) => Why::Stopped,
            (_, libc::PTRACE_EVENT_STOP) => Why::WithAll,
            (signal, _) if signal == libc::SIGTRAP | 0x80 => Why::SystemCall,
            (signal, _) => Why::Signal(signal),
        };
        Some(Stop { pid, why })
    }

    /// Lets it go on, with the signal that has stopped it.
    fn go_on(&self, how: libc::c_uint) {
        let (how, signal) = match self.why {
            Why::WithAll => (libc::PTRACE_LISTEN, 0),
            Why::Signal(signal) => (how, signal as usize),
            _ => (how, 0),
        };
        // Who is gone says so at the next wait.
        let _ = request(how, self.pid, signal);
    }

    fn registers(&self) -> Option<libc::user_regs_struct> {
        // SAFETY: a structure of integers, for which zeroes are valid.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        request(libc::PTRACE_GETREGS, self.pid, (&raw mut registers).expose_provenance()).ok()?;
        Some(registers)
    }

    fn is_exec(&self) -> bool {
        let number = self.registers().map(|registers| registers.orig_rax.cast_signed());
        matches!(number, Some(libc::SYS_execve | libc::SYS_execveat))
    }

    fn has_64_bits(&self) -> bool {
        const CODE_64: u64 = 0x33;
        self.registers().is_some_and(|registers| registers.cs == CODE_64)
    }
}

fn request(request: libc::c_uint, tid: i32, data: usize) -> io::Result<()> {
    // SAFETY: `data` is what the request takes, as every caller sees to.
    match unsafe { libc::ptrace(request, tid, 0usize, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn detach(tid: i32, signal: usize) {
    let _ = request(libc::PTRACE_DETACH, tid, signal);
}

fn wait(word: &AtomicU32, seen: u32, nanoseconds: u64) {
    let time = libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as i64,
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    };
    // SAFETY: waits while the word is as it was seen; reads the time.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, &raw const time) };
}

fn wake(word: &AtomicU32) {
    // SAFETY: an address that is only looked up.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
