//! A secondary MMU of one's own: where a page is, remembered until that changes. `docs/subscribers.md` explains it.

use std::sync::{Arc, Mutex};

use mmu_notifier::{AddressSpace, Change, Event, IntervalSubscriber, Pass, Range, WouldBlock};

/// What is kept: the frame of one page.
#[derive(Default)]
struct Kept(Mutex<Option<usize>>);

impl IntervalSubscriber for Kept {
    fn invalidate(&self, _: &Change) -> Pass {
        *self.0.lock().unwrap() = None;
        Pass::Done
    }
    fn try_invalidate(&self, _: &Change) -> Result<Pass, WouldBlock> {
        *self.0.try_lock().map_err(|_| WouldBlock)? = None;
        Ok(Pass::Done)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (space, kept) = (AddressSpace::new(), Arc::new(Kept::default()));
    let page = Range::new(0x1000, 0x2000)?;
    let interval = space.insert(page, kept.clone())?;
    // Uses what is kept, or looks at the page table first.
    let access = || loop {
        // Used under the lock: a change waits for it, or is refused. It should be short, and change no memory.
        if let Some(frame) = *kept.0.lock().unwrap() {
            return assert_eq!(frame, 0x1000);
        }
        let ticket = interval.read(); // waits for open changes of the page
        let frame = page.start(); // look at the page table, without the lock
        let mut kept = kept.0.lock().unwrap();
        if !interval.is_stale(&ticket) {
            *kept = Some(frame);
        }
    };
    access();
    space.invalidate(page, Event::Unmap, || assert_eq!(*kept.0.lock().unwrap(), None));
    access();
    println!("never stale");
    Ok(())
}
