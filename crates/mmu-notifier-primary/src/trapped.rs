//! The places where system calls were trapped: the stub of each, and how often it was.
//!
//! A stub here is for good, and knows nothing of its place but the address: whatever instruction is there later, what is
//! trapped is a `syscall` that goes on two bytes behind.

// UNSAFETY: writes code.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use mmu_notifier::Range;

use crate::code::Code;
use crate::entry::Site;
use crate::patch::{Live, Writer};
use crate::tails::{self, Children};

/// Bytes of a stub: the way in, the tails, the `Site`.
const STUB: usize = 128;
const SITE_AT: usize = STUB - size_of::<Site>();
const TAILS_AT: usize = 16;
/// Instructions that can be trapped.
const STUBS: usize = (64 << 10) / STUB;
/// Places where one is looked for.
const PROBES: usize = 64;

/// Traps of a place before it is rewritten ([`crate::hot`]). That costs as much as so many traps (`docs/performance.md`): who
/// knows no future does at most twice the work of who does.
pub(crate) const HOT: u32 = 16;

/// By the place of their stub: the addresses of trapped instructions; bit 62: a call of 32 bits; bit 63: the stub is there.
static ADDRESSES: [AtomicU64; STUBS] = [const { AtomicU64::new(0) }; STUBS];
const THERE: u64 = 1 << 63;
const COMPAT: u64 = 1 << 62;

/// By the same: traps since the place was last as the program has made it, and at how many of them it is to be rewritten.
static COUNTS: [Count; STUBS] =
    [const { Count { traps: AtomicU32::new(0), due: AtomicU32::new(HOT), notes: AtomicU32::new(0) } }; STUBS];

struct Count {
    traps: AtomicU32,
    due: AtomicU32,
    notes: AtomicU32,
}

/// A trapped instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    index: usize,
}

impl Place {
    /// Of the `syscall` instruction at `address`, which is trapped; `None`: there are too many.
    pub(crate) fn of(address: usize) -> Option<Place> {
        Place::find(address as u64, |place| write(place.stub(), address))
    }

    /// Of the `int $0x80` at `address`. It has no way into the hook, to which its numbers and arguments are unknown.
    pub(crate) fn of_compat(address: usize) -> Option<Place> {
        Place::find(address as u64 | COMPAT, |place| write_compat(place.stub(), address))
    }

    fn find(wanted: u64, write: impl Fn(Place) -> Option<()>) -> Option<Place> {
        let first = first_probe(wanted);
        for probe in 0..PROBES {
            let index = (first + probe) % STUBS;
            let known = &ADDRESSES[index];
            // Acquire pairs with the Release below: the stub is written.
            let mut found = known.load(Ordering::Acquire);
            if found == 0 {
                // Relaxed: the place is ours by it, nothing else.
                found = match known.compare_exchange(0, wanted, Ordering::Relaxed, Ordering::Acquire) {
                    Ok(_) => wanted,
                    Err(now) => now,
                };
            }
            let place = Place { index };
            if found == wanted | THERE {
                return Some(place);
            }
            if found == wanted {
                // Whoever took the place may be at it still, or be the parent of this process. All write the same.
                write(place)?;
                known.store(wanted | THERE, Ordering::Release);
                return Some(place);
            }
        }
        None
    }

    /// The place of an instruction that has been trapped.
    fn known(address: usize) -> Option<Place> {
        // Relaxed: only whether. The probes end at the first place that was never taken.
        let wanted = address as u64 | THERE;
        let first = first_probe(address as u64);
        let indices = (0..PROBES).map(|probe| (first + probe) % STUBS);
        let found = indices.map(|index| (index, ADDRESSES[index].load(Ordering::Relaxed)));
        found
            .take_while(|&(_, found)| found != 0)
            .find(|&(_, found)| found == wanted)
            .map(|(index, _)| Place { index })
    }

    /// Its stub: the way into the hook.
    pub(crate) fn stub(self) -> usize {
        tails::traps().start + self.index * STUB
    }

    /// Its tail that makes the call and goes back, nothing else.
    pub(crate) fn plain(self) -> usize {
        self.stub() + TAILS_AT
    }

    pub(crate) fn site(self) -> &'static Site {
        // SAFETY: written with the stub, before there was a `Place`, and the same ever after.
        unsafe { &*((self.stub() + SITE_AT) as *const Site) }
    }

    /// Counts a trap. Whether the place is to be rewritten now.
    pub(crate) fn count(self) -> bool {
        let Count { traps, due, .. } = &COUNTS[self.index];
        // Relaxed, here and below: numbers. Who is told so too often, or too late, finds out.
        let now = traps.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        now >= due.load(Ordering::Relaxed)
    }

    /// Not before so many more traps.
    pub(crate) fn put_off(self, traps: u32) {
        let count = &COUNTS[self.index];
        count.due.store(count.traps.load(Ordering::Relaxed).saturating_add(traps), Ordering::Relaxed);
    }

    /// Notes something, a number below 32, of the place. Whether it was not noted yet.
    pub(crate) fn notes(self, what: usize) -> bool {
        let bit = 1 << what;
        COUNTS[self.index].notes.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// Traps so far.
    pub(crate) fn traps(self) -> u32 {
        COUNTS[self.index].traps.load(Ordering::Relaxed)
    }
}

/// What is at `address` has changed, or is about to: it has never been trapped yet.
pub(crate) fn forget_traps(address: usize) {
    if let Some(Place { index }) = Place::known(address) {
        COUNTS[index].traps.store(0, Ordering::Relaxed);
        COUNTS[index].due.store(HOT, Ordering::Relaxed);
    }
}

/// Whether the `syscall` instruction at `address` has been trapped.
pub(crate) fn was_trapped(address: usize) -> bool {
    Place::known(address).is_some()
}

/// Where to look first for the place of an address.
fn first_probe(address: u64) -> usize {
    const { assert!(STUBS == 1 << 9) };
    (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55) as usize
}

/// Writes the stub of the instruction at `address`.
fn write(stub: usize, address: usize) -> Option<()> {
    let (site, back) = (stub + SITE_AT, address + 2);
    let mut code = Code::<STUB>::at(stub);
    tails::put_way_in(&mut code, site);
    code.put(&[0xcc]);
    debug_assert_eq!(code.here(), stub + TAILS_AT);
    let children = if is_small(address) { Children::Armed } else { Children::Told };
    let tails = tails::make(code.here(), back, site, children);
    code.put(tails.code.bytes());
    while code.here() < site {
        code.put(&[0xcc]);
    }
    for word in [back, tails.plain, tails.thread, tails.fork, usize::MAX, usize::MAX] {
        code.put_word(word);
    }
    // SAFETY: the place is this stub's, and who writes there writes the same.
    unsafe { Writer::new(Live::No).quiet(stub, code.bytes()).ok() }
}

/// Writes the stub of the `int $0x80` at `address`: it makes the call, nothing else.
fn write_compat(stub: usize, address: usize) -> Option<()> {
    let mut code = Code::<STUB>::at(stub);
    while code.here() < stub + TAILS_AT {
        code.put(&[0xcc]);
    }
    code.put(&[0xcd, 0x80]);
    code.put_far_jump(address + 2);
    // SAFETY: as in `write`.
    unsafe { Writer::new(Live::No).quiet(stub, code.bytes()).ok() }
}

/// Code that runs on stacks which are too small for the hook: mappings, first and behind the last address.
static SMALL: [[AtomicUsize; 2]; 8] = [const { [const { AtomicUsize::new(0) }; 2] }; 8];

/// The code in this mapping runs on small stacks.
pub(crate) fn stacks_are_small(range: Range) {
    for [start, end] in &SMALL {
        // Relaxed: whoever runs the code was told of it after this.
        match start.compare_exchange(0, range.start(), Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return end.store(range.end(), Ordering::Relaxed),
            Err(known) if known == range.start() => return end.store(range.end(), Ordering::Relaxed),
            Err(_) => {}
        }
    }
}

pub(crate) fn is_small(address: usize) -> bool {
    let load = |word: &AtomicUsize| word.load(Ordering::Relaxed);
    SMALL.iter().any(|[start, end]| (load(start)..load(end)).contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_has_one_stub() {
        // Addresses at which there is nothing: nobody runs these stubs.
        let one = Place::of(0x1000).unwrap();
        assert_eq!(Place::of(0x1000), Some(one));
        let other = Place::of(0x2000).unwrap();
        assert_ne!(one, other);
        let stub = other.stub();
        assert!(tails::traps().contains(&stub) && tails::calls().contains(&(stub + STUB)));
        let site = one.site();
        assert_eq!((site.back, site.plain, site.number), (0x1002, one.plain(), usize::MAX));
        // SAFETY: written just now.
        let tail = unsafe { *(site.plain as *const [u8; 2]) };
        assert_eq!(tail, [0x0f, 0x05]);
    }

    #[test]
    fn a_call_of_32_bits_has_a_stub_of_its_own() {
        let (one, other) = (Place::of(0x4000).unwrap(), Place::of_compat(0x4000).unwrap());
        assert_ne!(one, other);
        assert_eq!(Place::of_compat(0x4000), Some(other));
        // SAFETY: written just now.
        assert_eq!(unsafe { *(other.plain() as *const [u8; 2]) }, [0xcd, 0x80]);
    }

    #[test]
    fn a_place_is_due_at_every_trap_once_it_is_hot() {
        let place = Place::of(0x3000).unwrap();
        assert_eq!((1..=HOT).filter(|_| place.count()).count(), 1);
        assert!(place.count());
        place.put_off(3);
        assert_eq!([place.count(), place.count(), place.count()], [false, false, true]);
        forget_traps(0x3000);
        assert_eq!((place.traps(), (1..HOT).any(|_| place.count())), (0, false));
    }
}
