//! Asks to be traced: for who is about to become a program into which nothing can be preloaded.
//!
//! `mmun` has a process that does nothing else (`session.rs`, `Request`). It traces the thread that asks until its exec has
//! succeeded or failed, puts the object into the new program, and lets go. So the exec itself is the program's own, with
//! all that it keeps and with all its errors.

use core::ffi::CStr;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::gate::safe::{self, File};
use crate::log::{Log, ticks};
use crate::session::{Request, RequestState};

/// How long somebody is waited for who has not even taken the request, and how long after that.
const PATIENCE: [u64; 2] = [2_000_000_000, 10_000_000_000];

/// Whether the object is going to be in what this thread execs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Yes, if the exec succeeds.
    Traced,
    /// No.
    Refused,
    /// Nobody does that in this session.
    Nobody,
}

/// Asks, and waits for the answer: a tenth of a millisecond, as a rule. `session` is the path of the session, `process` the
/// entry that what goes wrong later is noted in.
pub(crate) fn ask(log: &Log, session: &CStr, process: usize) -> Answer {
    const EPERM: u32 = 1;
    let header = log.header();
    let tracer = header.tracer.load(Ordering::Relaxed);
    if tracer == 0 || header.closed.load(Ordering::Relaxed) != 0 {
        return Answer::Nobody;
    }
    // Who cannot open the session now could not do it as another program either.
    if File::open(session, 0).is_err() {
        return Answer::Refused;
    }
    let mut answer = ask_once(log, process);
    if answer == Err(EPERM) {
        // Where only who is above may trace (yama), unless it is said.
        safe::let_trace(tracer);
        answer = ask_once(log, process);
    }
    if answer.is_ok() { Answer::Traced } else { Answer::Refused }
}

/// The error is the kernel's, or 0 if there was no answer.
fn ask_once(log: &Log, process: usize) -> Result<(), u32> {
    let header = log.header();
    let free = |request: &&Request| {
        // Acquire pairs with the Release of who has set it free.
        change(request, RequestState::Free, RequestState::Writing, Ordering::Acquire)
    };
    let Some(request) = header.requests.iter().find(free) else { return Err(0) };
    let token = AtomicU64::new(ticks());
    request.errno.store(0, Ordering::Relaxed);
    request.pid.store(safe::getpid(), Ordering::Relaxed);
    request.tid.store(safe::gettid(), Ordering::Relaxed);
    request.process.store(process as u64, Ordering::Relaxed);
    request.place.store(token.as_ptr().expose_provenance() as u64, Ordering::Relaxed);
    request.token.store(token.load(Ordering::Relaxed), Ordering::Relaxed);
    // Release pairs with the Acquire of the tracer: the request is complete.
    request.state.store(RequestState::Asked as u32, Ordering::Release);
    // Relaxed: the kernel orders this and whoever goes to sleep on it.
    header.asked.fetch_add(1, Ordering::Relaxed);
    safe::wake_shared(&header.asked);

    for (state, withdrawn, patience) in [
        (RequestState::Asked, RequestState::Free, PATIENCE[0]),
        (RequestState::Taken, RequestState::Withdrawn, PATIENCE[1]),
    ] {
        if wait(request, state, patience) {
            continue;
        }
        if change(request, state, withdrawn, Ordering::Release) {
            if state == RequestState::Asked {
                // Nobody is there; who comes next need not find that out as well.
                header.tracer.store(0, Ordering::Relaxed);
            }
            return Err(0);
        }
    }
    // Acquire pairs with the Release of the tracer: the error.
    if request.state.load(Ordering::Acquire) == RequestState::Going as u32 {
        return Ok(());
    }
    let errno = request.errno.load(Ordering::Relaxed);
    request.state.store(RequestState::Free as u32, Ordering::Release);
    Err(errno)
}

/// Waits until the request has left that state; false if it takes too long.
fn wait(request: &Request, state: RequestState, nanoseconds: u64) -> bool {
    let mut left = nanoseconds;
    while request.state.load(Ordering::Relaxed) == state as u32 {
        if left == 0 {
            return false;
        }
        // A signal ends it early, and then it has not been waited for so long: the time is an upper bound on nothing.
        let turn = left.min(nanoseconds / 20);
        safe::wait_shared(&request.state, state as u32, turn);
        left -= turn;
    }
    true
}

fn change(request: &Request, from: RequestState, to: RequestState, order: Ordering) -> bool {
    request.state.compare_exchange(from as u32, to as u32, order, Ordering::Relaxed).is_ok()
}
