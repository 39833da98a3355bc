//! Everything at once.
//!
//! | file | what |
//! | --- | --- |
//! | `memory.rs` | memory whose mappings change, and the kernel's page table of it |
//! | `devices.rs` | one thread for each kind of device |
//! | `fixed.rs` | the registration cache: fixed buffers of `io_uring` |
//! | `reaping.rs` | the reaper, under pressure |
//! | `visitors.rs` | devices that come and go |
//! | `counts.rs` | what has happened |

mod counts;
mod devices;
mod fixed;
mod memory;
mod reaping;
mod visitors;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use mmu_notifier::{AddressSpace, Change, Range, Subscriber};
use mmu_notifier_primary::{Options, Primary};

use counts::{Counts, Report, add};
use devices::Devices;
use fixed::Ring;
use memory::Memory;
use reaping::Reaping;

/// Threads that change the memory.
const CHANGERS: u64 = 2;
/// Threads whose devices come and go.
const VISITORS: u64 = 2;

/// Hears of every change, and counts.
struct Witness(Arc<Counts>);

impl Subscriber for Witness {
    fn start(&self, _: &Change) {
        add(&self.0.starts);
    }

    fn end(&self, _: &Change) {
        add(&self.0.ends);
    }
}

/// Ends all other threads, also if its own panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Runs for that time. Once in a process, whose system calls are intercepted from then on.
///
/// # Errors
///
/// If the process cannot be intercepted, or not everything came out even.
///
/// # Panics
///
/// If a device has used a page that was not there any more.
pub(crate) fn run(time: Duration) -> Result<Report, Box<dyn Error>> {
    let space = Primary::install(&Options::default())?.space();
    let counts = Arc::new(Counts::default());
    let memory = Arc::new(Memory::new(counts.clone())?);
    let witness = space.subscribe(Witness(counts.clone()));
    let devices = Devices::new(space, &memory)?;
    let mut ring = Ring::new(space, &memory);
    let reaping = Reaping::new(space)?;
    let (over, changed) = (AtomicBool::new(false), AtomicBool::new(false));

    std::thread::scope(|scope| {
        let (memory, counts, over, changed, reaping) = (&memory, &*counts, &over, &changed, &reaping);
        let changers: Vec<_> = (0..CHANGERS)
            .map(|number| scope.spawn(move || until(over, |random| memory.change(random), number)))
            .collect();
        devices.spawn(scope, memory, counts, changed);
        if let Some(ring) = &mut ring {
            scope.spawn(move || ring.work(memory, counts, changed));
        }
        scope.spawn(move || until(changed, |random| reaping.press(memory, random), 30));
        for number in 0..VISITORS {
            let visit = move |random: &mut _| visitors::visit(space, memory, counts, random);
            scope.spawn(move || until(changed, visit, 100 + number));
        }
        let end = Instant::now() + time;
        while Instant::now() < end && !over.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        over.store(true, SeqCst);
        // Whoever waits for a change is to see its end.
        changers.into_iter().for_each(|changer| drop(changer.join()));
        changed.store(true, SeqCst);
    });

    let reaped = reaping.end();
    devices.agree(&memory);
    if let Some(ring) = ring {
        ring.give_back(space, &memory, &counts)?;
    }
    devices.are_balanced()?;
    drop(devices);
    // The last one to leave, so that it has heard of everything that the others have.
    drop(witness);
    is_over(space, &counts)?;
    let mut idle = counts.idle();
    idle.extend((reaped.announced == 0).then_some("reaping"));
    if !idle.is_empty() && time >= Duration::from_secs(1) {
        return Err(format!("nothing came of these: {}", idle.join(", ")).into());
    }
    Ok(Report { counts, reaped, stats: space.stats(), has_frames: memory.has_frames() })
}

fn is_over(space: &AddressSpace, counts: &Counts) -> Result<(), String> {
    if !space.wait_for_changes(Range::EVERYTHING) || space.is_changing() {
        return Err("a change is still open".to_owned());
    }
    let (starts, ends) = (counts.starts.load(SeqCst), counts.ends.load(SeqCst));
    if starts != ends {
        return Err(format!("{starts} starts, {ends} ends"));
    }
    if space.has_subscribers() {
        return Err("somebody is still subscribed".to_owned());
    }
    Ok(())
}

/// Numbers that look random.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// Works until it is over, which it also is if this panics.
fn until(over: &AtomicBool, mut work: impl FnMut(&mut Random), seed: u64) {
    let _over = Over(over);
    let mut random = Random(seed);
    while !over.load(SeqCst) {
        work(&mut random);
    }
}
