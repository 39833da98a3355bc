//! The reaper: memory runs short all the time, as the test says, and what is evictable is taken away.

// UNSAFETY: an eventfd, and a promise about memory that may be discarded.
#![expect(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Mutex;
use std::time::Duration;

use mmu_notifier::AddressSpace;
use mmu_notifier_primary::reaper::{Evictable, Options, Reaper, Stats, Trigger};

use super::Random;
use super::memory::{EVICTABLE, Memory, PAGES};

/// Pages of an evictable range.
const PART: usize = 8;

/// A reaper with its ranges.
pub(crate) struct Reaping {
    reaper: Reaper,
    /// Written to: there is pressure.
    alarm: File,
    ranges: Mutex<Vec<Option<Evictable>>>,
}

impl Reaping {
    pub(crate) fn new(space: &AddressSpace) -> Result<Reaping, Box<dyn Error>> {
        // SAFETY: has no pointers.
        let alarm = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if alarm < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: a descriptor that nobody has.
        let alarm = File::from(unsafe { OwnedFd::from_raw_fd(alarm) });
        let options = Options {
            trigger: Trigger::Descriptor(alarm.try_clone()?.into()),
            retry_after: Duration::from_millis(5),
            ..Options::default()
        };
        let ranges = Mutex::new((0..EVICTABLE / PART).map(|_| None).collect());
        Ok(Reaping { reaper: Reaper::start(space, options)?, alarm, ranges })
    }

    /// Memory runs short; or a range becomes evictable, or the program's again.
    pub(crate) fn press(&self, memory: &Memory, random: &mut Random) {
        if random.below(4) == 0 {
            let part = random.below(EVICTABLE / PART);
            let first = PAGES + part * PART;
            let place = &mut self.ranges.lock().expect("nobody panics with it")[part];
            // Dropped here, if there is one.
            let is_evictable = place.take().is_some();
            if !is_evictable {
                let range = memory.range(first..first + PART);
                // SAFETY: it stays mapped for as long as the process lives, and nobody relies on what is in it.
                *place = Some(unsafe { self.reaper.add(range) }.expect("own memory"));
            }
        }
        // Full: it has not been read yet, and will be.
        _ = (&self.alarm).write(&1_u64.to_ne_bytes());
        std::thread::sleep(Duration::from_micros(500));
    }

    /// Ends it. What it has done.
    pub(crate) fn end(self) -> Stats {
        drop(self.ranges);
        self.reaper.stats()
    }
}
