//! Who is told of a probe's changes, and looks.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use mmu_notifier::Range;

use crate::gate::safe;

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// At the byte at this address.
    Byte(usize),
    /// At whether this process has a child that has not been waited for.
    Child,
    /// At nothing: there is nothing to be seen of this change.
    Nothing,
}

/// What there is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not looked at, or it does not matter.
    Unknown,
    /// A byte that can be read.
    Byte(u8),
    /// Nothing that can be read.
    Gone,
    /// There is no child.
    NoChild,
    /// There is one.
    Child,
}

impl Look {
    /// Looks: two system calls at most, and no memory.
    pub fn look(self) -> State {
        match self {
            Look::Byte(address) => {
                let mut byte = [0];
                match safe::read_memory(address, &mut byte) {
                    Ok(1) => State::Byte(byte[0]),
                    _ => State::Gone,
                }
            }
            Look::Child => {
                if safe::has_child() {
                    State::Child
                } else {
                    State::NoChild
                }
            }
            Look::Nothing => State::Unknown,
        }
    }
}

/// Looks when it is told of a change of the range that it is armed for. Neither allocates nor waits: the callbacks can
/// be called by a subscriber in the middle of a system call.
#[derive(Debug)]
pub struct Watch {
    start: AtomicUsize,
    /// 0: not armed.
    end: AtomicUsize,
    /// What to look at: an address, 1: a child, 0: nothing.
    look: AtomicUsize,
    starts: AtomicUsize,
    ends: AtomicUsize,
    before: [AtomicU8; 2],
    after: [AtomicU8; 2],
    site: AtomicUsize,
}

/// What a [`Watch`] was told, since it was armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Told {
    /// How many starts.
    pub starts: usize,
    /// How many ends.
    pub ends: usize,
    /// What was to be seen at the first start.
    pub before: State,
    /// What was to be seen at the last end.
    pub after: State,
    /// The site of the first start.
    pub site: usize,
}

impl Watch {
    /// One that is not armed.
    #[expect(clippy::new_without_default, reason = "it is made once, for a static")]
    pub const fn new() -> Watch {
        Watch {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            look: AtomicUsize::new(0),
            starts: AtomicUsize::new(0),
            ends: AtomicUsize::new(0),
            before: [const { AtomicU8::new(0) }; 2],
            after: [const { AtomicU8::new(0) }; 2],
            site: AtomicUsize::new(0),
        }
    }

    /// From now on, changes that overlap `range` count.
    pub fn arm(&self, range: Range, look: Look) {
        // Relaxed, all: what is watched is what the calling thread does.
        let look = match look {
            Look::Byte(address) => address,
            Look::Child => 1,
            Look::Nothing => 0,
        };
        for (word, value) in [(&self.look, look), (&self.starts, 0), (&self.ends, 0), (&self.site, 0)] {
            word.store(value, Ordering::Relaxed);
        }
        store(&self.before, State::Unknown);
        store(&self.after, State::Unknown);
        self.start.store(range.start(), Ordering::Relaxed);
        self.end.store(range.end(), Ordering::Relaxed);
    }

    /// From now on, nothing counts.
    pub fn disarm(&self) {
        self.end.store(0, Ordering::Relaxed);
    }

    /// A change of `range` is about to be made; `site` finds out where.
    pub fn start(&self, range: &Range, site: fn() -> usize) {
        if self.concerns(range) && self.starts.fetch_add(1, Ordering::Relaxed) == 0 {
            store(&self.before, self.look().look());
            self.site.store(site(), Ordering::Relaxed);
        }
    }

    /// A change of `range` has been made.
    pub fn end(&self, range: &Range) {
        if self.concerns(range) {
            store(&self.after, self.look().look());
            self.ends.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What it was told since it was armed.
    pub fn told(&self) -> Told {
        Told {
            starts: self.starts.load(Ordering::Relaxed),
            ends: self.ends.load(Ordering::Relaxed),
            before: load(&self.before),
            after: load(&self.after),
            site: self.site.load(Ordering::Relaxed),
        }
    }

    fn concerns(&self, range: &Range) -> bool {
        let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        range.start() < end && start < range.end()
    }

    fn look(&self) -> Look {
        match self.look.load(Ordering::Relaxed) {
            0 => Look::Nothing,
            1 => Look::Child,
            address => Look::Byte(address),
        }
    }
}

fn store(to: &[AtomicU8; 2], state: State) {
    let (kind, byte) = match state {
        State::Unknown => (0, 0),
        State::Byte(byte) => (1, byte),
        State::Gone => (2, 0),
        State::NoChild => (3, 0),
        State::Child => (4, 0),
    };
    to[1].store(byte, Ordering::Relaxed);
    to[0].store(kind, Ordering::Relaxed);
}

fn load(from: &[AtomicU8; 2]) -> State {
    match from[0].load(Ordering::Relaxed) {
        1 => State::Byte(from[1].load(Ordering::Relaxed)),
        2 => State::Gone,
        3 => State::NoChild,
        4 => State::Child,
        _ => State::Unknown,
    }
}
