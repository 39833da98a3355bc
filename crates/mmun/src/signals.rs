//! Signals: what mmun does with them, and what the program is to find.
//!
//! While the program runs, mmun blocks the signals it cares for and takes them one by one with
//! `sigwaitinfo`, so that no handler runs anywhere. The program starts with the mask and the
//! dispositions that mmun was started with.

// UNSAFETY: signals are libc calls on plain structures.
#![expect(unsafe_code)]

use std::mem::zeroed;
use std::sync::atomic::{AtomicBool, Ordering};

/// What mmun waits for while the program runs.
const WAITED_FOR: [i32; 10] = [
    libc::SIGCHLD,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGCONT,
    libc::SIGTSTP,
];

/// What asks mmun to end.
const ENDS: [i32; 4] = [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP];

/// Rust's runtime ignores SIGPIPE and opens closed standard descriptors before `main`; this is how it was
/// before that.
static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);
static WERE_CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

// SAFETY: the section holds pointers to functions that are called once, before `main`; this one asks
// the kernel and stores what it says.
#[unsafe(link_section = ".init_array")]
#[used]
static REMEMBER: extern "C" fn() = remember;

// Relaxed, here and where it is read: there is one thread.
extern "C" fn remember() {
    SIGPIPE_WAS_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
    for (fd, closed) in WERE_CLOSED.iter().enumerate() {
        // SAFETY: asks whether there is such a descriptor.
        let answer = unsafe { libc::fcntl(fd as i32, libc::F_GETFD) };
        closed.store(answer < 0, Ordering::Relaxed);
    }
}

/// Mask and dispositions as mmun found them.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    mask: libc::sigset_t,
    sigchld_ignored: bool,
    sigxfsz_ignored: bool,
}

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Which.
    pub signal: i32,
    /// From a process, rather than from the terminal or the kernel (who tell the program themselves).
    pub sent: bool,
}

/// Blocks what is to be waited for. To be called before there are other threads.
pub fn take_over() -> Found {
    let mut found = Found {
        // SAFETY: a plain structure of integers.
        mask: unsafe { zeroed() },
        sigchld_ignored: is_ignored(libc::SIGCHLD),
        sigxfsz_ignored: is_ignored(libc::SIGXFSZ),
    };
    // If it were ignored, the kernel would throw the program's exit status away.
    set(libc::SIGCHLD, libc::SIG_DFL);
    // A file that gets too long is an error to tell, not to die of.
    set(libc::SIGXFSZ, libc::SIG_IGN);
    let set = waited_for();
    // SAFETY: reads one set and writes the other.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, &mut found.mask) };
    found
}

impl Found {
    /// Makes everything as it was found, also the standard descriptors; for the child between `fork` and `exec` (async-signal-safe).
    pub fn restore(&self) {
        if self.sigchld_ignored {
            set(libc::SIGCHLD, libc::SIG_IGN);
        }
        if !self.sigxfsz_ignored {
            set(libc::SIGXFSZ, libc::SIG_DFL);
        }
        if !SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed) {
            set(libc::SIGPIPE, libc::SIG_DFL);
        }
        for fd in (0..3).filter(|fd| WERE_CLOSED[*fd as usize].load(Ordering::Relaxed)) {
            // SAFETY: /dev/null, which the runtime has put there; the child writes to it no more.
            unsafe { libc::close(fd) };
        }
        // SAFETY: reads the set.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.mask, std::ptr::null_mut()) };
    }
}

impl Found {
    /// Makes mmun's own mask as it was, after throwing away what has come meanwhile (the control-C that
    /// ended the program came to mmun too).
    pub fn give_back(&self) {
        let set = waited_for();
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: reads the set and the time; with a null pointer nothing is written.
        while unsafe { libc::sigtimedwait(&set, std::ptr::null_mut(), &at_once) } > 0 {}
        // SAFETY: reads the set.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.mask, std::ptr::null_mut()) };
    }
}

/// Waits for the next of the signals that were taken over.
pub fn next() -> Arrived {
    let set = waited_for();
    loop {
        // SAFETY: a plain structure of integers.
        let mut info: libc::siginfo_t = unsafe { zeroed() };
        // SAFETY: reads the set, writes `info`.
        let signal = unsafe { libc::sigwaitinfo(&set, &mut info) };
        if signal > 0 {
            return Arrived { signal, sent: info.si_code <= 0 };
        }
        // EINTR: we were stopped and continued, or traced.
    }
}

/// Blocks what asks mmun to end, so that it can clean up first: see [`asked_to_end`]. To be called before there are other
/// threads.
pub fn defer_the_end() {
    let set = set_of(ENDS.into_iter().filter(|signal| !is_ignored(*signal)));
    // SAFETY: reads the set.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
}

/// What has asked mmun to end, since that was deferred. Does not wait.
pub fn asked_to_end() -> Option<i32> {
    let set = set_of(ENDS.into_iter().filter(|signal| !is_ignored(*signal)));
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: reads the set and the time; with a null pointer nothing is written.
    let signal = unsafe { libc::sigtimedwait(&set, std::ptr::null_mut(), &at_once) };
    (signal > 0).then_some(signal)
}

/// Sends a signal to a process.
pub fn send(pid: i32, signal: i32) {
    // SAFETY: concerns no memory. That the process is still ours to signal is for the caller, who has
    // not reaped it.
    unsafe { libc::kill(pid, signal) };
}

/// Does to mmun what the signal does by default: stops it until it is continued, or ends it.
pub fn suffer(signal: i32) {
    // SAFETY: a plain structure of integers; all zeroes is the empty set.
    let mut only: libc::sigset_t = unsafe { zeroed() };
    // SAFETY: writes the set.
    unsafe { libc::sigaddset(&mut only, signal) };
    // SAFETY: a plain structure of integers.
    let mut old: libc::sigaction = unsafe { zeroed() };
    // SAFETY: a plain structure of integers; all zeroes is SIG_DFL without flags.
    let default: libc::sigaction = unsafe { zeroed() };
    // SAFETY: reads `default`, writes `old`; SIGKILL and SIGSTOP need nothing and fail.
    unsafe { libc::sigaction(signal, &default, &mut old) };
    send(std::process::id() as i32, signal);
    // SAFETY: reads the set.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &only, std::ptr::null_mut()) };
    // Whoever is here was continued.
    // SAFETY: reads the set.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &only, std::ptr::null_mut()) };
    // SAFETY: reads `old`, which the kernel filled.
    unsafe { libc::sigaction(signal, &old, std::ptr::null_mut()) };
}

/// Ends mmun as the signal ended the program, so that the parent sees the same; no second core dump.
pub fn die_of(signal: i32) -> ! {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads `none`.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
    suffer(signal);
    // It does not kill by default (the program made something of it): what shells say.
    std::process::exit(128 + signal);
}

fn waited_for() -> libc::sigset_t {
    set_of(WAITED_FOR)
}

fn set_of(signals: impl IntoIterator<Item = i32>) -> libc::sigset_t {
    // SAFETY: a plain structure of integers; all zeroes is the empty set.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    for signal in signals {
        // SAFETY: writes the set.
        unsafe { libc::sigaddset(&mut set, signal) };
    }
    set
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: a plain structure of integers.
    let mut action: libc::sigaction = unsafe { zeroed() };
    // SAFETY: asks only, writes `action`.
    let known = unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) } == 0;
    known && action.sa_sigaction == libc::SIG_IGN
}

fn set(signal: i32, disposition: libc::sighandler_t) {
    // SAFETY: SIG_DFL or SIG_IGN: no handler of ours runs.
    unsafe { libc::signal(signal, disposition) };
}
