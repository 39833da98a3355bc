//! Fixed buffers that say what is done with them, and can be stopped in the middle of a registration.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier};

use mmu_notifier::{Event, Range};
use mmu_notifier_secondary::cache::{Access, RegisterError, Registrar};
use mmu_notifier_secondary::io_uring::{FixedBuffers, Slot};

use super::timeline::{Timeline, Who};

/// A registrar that keeps a diary.
#[derive(Debug)]
pub struct Watched {
    buffers: FixedBuffers,
    timeline: Arc<Timeline>,
    made: AtomicU32,
    pause: Option<Pause>,
}

/// A registration with its number: slots are used again.
#[derive(Debug)]
pub struct Numbered {
    slot: Slot,
    number: u32,
}

impl Numbered {
    pub fn index(&self) -> u16 {
        self.slot.index()
    }
}

impl fmt::Display for Numbered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.number)
    }
}

/// A moment in thread B's first registration: the pages are pinned, and the cache does not know yet.
#[derive(Clone, Debug)]
pub struct Pause(Arc<Stop>);

#[derive(Debug)]
struct Stop {
    turn: Barrier,
    was: AtomicBool,
}

impl Default for Pause {
    fn default() -> Pause {
        Pause(Arc::new(Stop { turn: Barrier::new(2), was: AtomicBool::new(false) }))
    }
}

impl Pause {
    /// Waits until thread B is there.
    pub fn until_reached(&self) {
        self.0.turn.wait();
    }

    /// Lets thread B go on.
    pub fn end(&self) {
        self.0.turn.wait();
    }

    fn here(&self) {
        // Relaxed: one thread.
        if Who::is_calling() == Who::B && !self.0.was.swap(true, Ordering::Relaxed) {
            self.0.turn.wait();
            self.0.turn.wait();
        }
    }
}

impl Watched {
    pub fn new(buffers: FixedBuffers, timeline: Arc<Timeline>, pause: Option<Pause>) -> Watched {
        Watched { buffers, timeline, made: AtomicU32::new(0), pause }
    }

    fn say_dropped(&self, number: u32) {
        match Who::is_calling() {
            Who::A => self.timeline.say(Who::A, format!("is told: drops #{number}")),
            Who::B => self.timeline.say(Who::B, format!("it has changed: drops #{number}, once more")),
        }
    }
}

impl Registrar for Watched {
    type Handle = Numbered;

    fn register(&self, range: Range, access: Access) -> Result<Numbered, RegisterError> {
        // Relaxed: only a number.
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        let slot = self.buffers.register(range, access);
        self.timeline.say(Who::is_calling(), format!("wants the buffer: registers it, #{number}"));
        // Also if it failed, as somebody waits for that moment.
        if let Some(pause) = &self.pause {
            pause.here();
        }
        Ok(Numbered { slot: slot?, number })
    }

    fn deregister(&self, range: Range, Numbered { slot, number }: Numbered) {
        self.say_dropped(number);
        self.buffers.deregister(range, slot);
    }

    fn survives(&self, event: Event) -> bool {
        self.buffers.survives(event)
    }

    fn max_len(&self) -> usize {
        self.buffers.max_len()
    }
}
