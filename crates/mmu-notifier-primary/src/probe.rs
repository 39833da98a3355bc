//! Memory system calls made to see whether they are announced, before and after.
//!
//! A [`Shot`] is a call: what it works on, what changes by it, and how that can be seen. [`fire`] makes it by whatever is
//! to be tried - a function of the C library, an instruction in code made at run time - and a [`Watch`] that is told of
//! the changes looks at the memory *at the start* and *at the end*: at the start everything must be as before, at the
//! end the change must be done.
//!
//! [`Primary::check`](crate::Primary::check) fires those that work on memory of their own, in any program;
//! `mmun doctor` all of them, from everywhere.
//!
//! | file | what |
//! | --- | --- |
//! | `probe/shots.rs` | the calls |
//! | `probe/ground.rs` | the memory and files that they work on |
//! | `probe/watch.rs` | who is told |
//! | `probe/by.rs` | making a call by the C library |

mod by;
mod ground;
mod shots;
mod watch;

pub use by::{Make, NOT_OFFERED, by_libc, by_syscall};
pub use ground::Ground;
pub use shots::{SHOTS, Scope, Shot};
pub use watch::{Look, State, Watch};

use core::fmt;

use mmu_notifier::Range;

use crate::Syscall;
use crate::userfault::Net;
use shots::Aim;

/// What has become of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The name of the shot.
    pub name: &'static str,
    /// The call.
    pub call: Syscall,
    /// Whether it changes something that has to be announced.
    pub changes: bool,
    /// It was announced, and at its start everything was as before.
    pub before: bool,
    /// Its end was announced before the call returned, and by then the change was done.
    pub after: bool,
    /// How often its start was announced: once for each piece that changes.
    pub starts: usize,
    /// How often its end was.
    pub ends: usize,
    /// The call site that the change was made at: the address of the `syscall` instruction. 0: it was not announced, or
    /// not by a rewritten site.
    pub site: usize,
    /// What the kernel said, if it refused: the error number.
    pub errno: Option<i32>,
}

impl Outcome {
    /// Whether it was announced as it should be: before and after if it changes something, and each start has its end.
    pub fn is_right(&self) -> bool {
        self.starts == self.ends && if self.changes { self.before && self.after } else { self.starts == 0 }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = match (self.changes, self.starts, self.before, self.after) {
            (true, 0, ..) => "is not announced",
            (true, _, false, _) => "is announced too late: at its start the change was made already",
            (true, _, _, false) => "is announced as done before it is",
            (true, ..) if self.starts != self.ends => "has a start without an end",
            (true, ..) => "is announced before and after",
            (false, 0, ..) => "changes nothing and is not announced",
            (false, ..) => "changes nothing, and is announced",
        };
        write!(f, "{} {said}", self.name)
    }
}

/// Makes a call by `make`, with `watch` told of all changes of this process meanwhile. `None`: it cannot be made this
/// way, or the ground for it cannot be had (no file in memory, no segment, no such call in this kernel).
pub fn fire(shot: &Shot, make: Make, watch: &Watch) -> Option<Outcome> {
    fire_around(shot, make, watch, |_| Some(()), |()| ())
}

/// The same, with what changes caught in `net`, which tells `watch`. `None` also if it cannot be caught.
pub fn fire_in_net(shot: &Shot, make: Make, watch: &Watch, net: &Net) -> Option<Outcome> {
    if shot.scope != Scope::Memory {
        return None;
    }
    fire_around(shot, make, watch, |range| net.register(range).ok(), |_| net.settle())
}

fn fire_around<T>(
    shot: &Shot,
    make: Make,
    watch: &Watch,
    prepare: impl FnOnce(Range) -> Option<T>,
    settle: impl FnOnce(&T),
) -> Option<Outcome> {
    let mut ground = Ground::new(make);
    let aim = (shot.aim)(&mut ground)?;
    let prepared = prepare(aim.range)?;
    watch.arm(aim.range, aim.look);
    let result = ground.make(shot.call, &aim.args);
    settle(&prepared);
    watch.disarm();
    drop(prepared);
    if result == NOT_OFFERED {
        return None;
    }
    let errno = (-4095..0).contains(&result).then_some(-result as i32);
    let told = watch.told();
    if errno.is_none() {
        ground.changed(&aim, result);
    }
    // What was refused changes nothing, but for `brk`, which says no by saying where the break is.
    let expected = if errno.is_some() { aim.before } else { aim.after };
    let seen = |state: State, expected: State| expected == State::Unknown || state == expected;
    Some(Outcome {
        name: shot.name,
        call: shot.call,
        changes: aim.changes,
        before: told.starts > 0 && seen(told.before, aim.before),
        after: told.ends > 0 && seen(told.after, expected),
        starts: told.starts,
        ends: told.ends,
        site: told.site,
        errno,
    })
}

/// How long a call takes, in nanoseconds, measured `rounds` times; the median, without what measuring takes. Each time
/// on new ground. `None` as in [`fire`].
pub fn time(shot: &Shot, make: Make, rounds: usize) -> Option<u64> {
    let nothing = median((0..rounds).map(|_| {
        let began = std::time::Instant::now();
        began.elapsed().as_nanos() as u64
    }))?;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let mut ground = Ground::new(make);
        let aim: Aim = (shot.aim)(&mut ground)?;
        let began = std::time::Instant::now();
        let result = ground.make(shot.call, &aim.args);
        times.push(began.elapsed().as_nanos() as u64);
        if result == NOT_OFFERED {
            return None;
        }
        if !(-4095..0).contains(&result) {
            ground.changed(&aim, result);
        }
    }
    Some(median(times.into_iter())?.saturating_sub(nothing))
}

fn median(times: impl Iterator<Item = u64>) -> Option<u64> {
    let mut times: Vec<u64> = times.collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}
