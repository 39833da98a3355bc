//! A registration cache as most are: it hears of a change once, before the system call.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mmu_notifier::{Change, Range, Subscriber};
use mmu_notifier_secondary::cache::{Access, RegisterError, Registrar};
use mmu_notifier_secondary::io_uring::{FixedBuffers, Slot};

use super::timeline::{Timeline, Who};

/// What is registered, by range.
#[derive(Debug)]
pub struct ToldOnce {
    buffers: FixedBuffers,
    entries: Mutex<Entries>,
    timeline: Arc<Timeline>,
}

#[derive(Debug, Default)]
struct Entries {
    all: Vec<Entry>,
    /// How many there ever were.
    made: u32,
}

#[derive(Debug)]
struct Entry {
    range: Range,
    slot: Slot,
    number: u32,
}

impl ToldOnce {
    pub fn new(buffers: FixedBuffers, timeline: Arc<Timeline>) -> ToldOnce {
        ToldOnce { buffers, entries: Mutex::default(), timeline }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot of a buffer: one that is there, or else a new one.
    pub fn get(&self, range: Range) -> anyhow::Result<u16> {
        let who = Who::is_calling();
        let mut entries = self.entries();
        if let Some(entry) = entries.all.iter().find(|entry| entry.range.contains(&range)) {
            self.timeline.say(who, format!("wants the buffer: #{} is in the cache", entry.number));
            return Ok(entry.slot.index());
        }
        let slot = self.buffers.register(range, Access::Write).map_err(|error: RegisterError| error)?;
        let index = slot.index();
        entries.made += 1;
        let number = entries.made;
        entries.all.push(Entry { range, slot, number });
        self.timeline.say(who, format!("wants the buffer: registers it, #{number}"));
        Ok(index)
    }
}

impl Subscriber for ToldOnce {
    fn start(&self, change: &Change) {
        let mut entries = self.entries();
        while let Some(at) = entries.all.iter().position(|entry| entry.range.overlaps(&change.range())) {
            let entry = entries.all.swap_remove(at);
            self.timeline.say(Who::is_calling(), format!("is told: drops #{}", entry.number));
            self.buffers.deregister(entry.range, entry.slot);
        }
    }

    /// What such a cache is not told.
    fn end(&self, _: &Change) {}
}
