//! Guests that run while their memory changes: what they read of a page that nobody was changing is what is there.

// UNSAFETY: the model's guest reads memory through pointers.
#![expect(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use mmu_notifier_secondary::device::Access;
use mmu_notifier_secondary::stage2::Fault;

use crate::agree::{Random, steps};
use crate::memory::Way;
use crate::rig::{Rig, guest_address};

const PAGES: usize = 32;
/// Of a page that cannot be read.
const NOTHING: u64 = u64::MAX;

/// What must be read of a page while its version is even and the same before and after.
#[derive(Default)]
struct Truth {
    version: AtomicU64,
    word: AtomicU64,
}

impl Truth {
    fn now(&self) -> (u64, u64) {
        (self.version.load(SeqCst), self.word.load(SeqCst))
    }

    /// Whether `word` may have been read since it was `then`; none if it has changed since, and anything may.
    fn allows(&self, then: (u64, u64), word: u64) -> Option<bool> {
        (then.0.is_multiple_of(2) && self.version.load(SeqCst) == then.0).then_some(word == then.1)
    }
}

/// Ends the others also if a thread panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn guests_that_run_beside_changes_read_what_is_there() {
    let Some(mut rig) = Rig::new("guests_that_run_beside_changes_read_what_is_there", PAGES) else { return };
    let truths: [Truth; PAGES] = std::array::from_fn(|_| Truth::default());
    let (is_over, reads) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    let addresses: Vec<usize> = (0..PAGES).map(guest_address).collect();
    let (guest, rest) = rig.split();
    std::thread::scope(|scope| {
        let (truths, is_over, reads, addresses, stage2) =
            (&truths, &is_over, &reads, &addresses, rest.stage2);
        scope.spawn(move || {
            let _over = Over(is_over);
            while !is_over.load(SeqCst) {
                let then: Vec<_> = truths.iter().map(Truth::now).collect();
                let words = guest.read(addresses);
                for (page, (then, word)) in then.into_iter().zip(words).enumerate() {
                    let word = word.unwrap_or(NOTHING);
                    if let Some(is_right) = truths[page].allows(then, word) {
                        assert!(
                            is_right,
                            "the guest has read {word:#x} of page {page}, and {then:x?} is there"
                        );
                        reads[0].fetch_add(1, SeqCst);
                    }
                }
            }
        });
        scope.spawn(move || {
            let _over = Over(is_over);
            let mut vcpu = stage2.vcpu().expect("a processor");
            let mut random = Random(5);
            while !is_over.load(SeqCst) {
                let page = random.below(PAGES);
                let then = truths[page].now();
                // A change waits for it: it stays the same, whatever page that is.
                let read = |pointer: usize| {
                    // SAFETY: this is what is tested: the page is there while the access is under way.
                    let word = || unsafe { (pointer as *const u64).read_volatile() };
                    let first = word();
                    assert!((0..500).all(|_| word() == first), "page {page} has changed during an access");
                    first
                };
                let word = match vcpu.access(addresses[page], Access::Read, read) {
                    Ok(word) => word,
                    Err(Fault::NotMapped { .. }) => NOTHING,
                    Err(other) => panic!("{other}"),
                };
                if let Some(is_right) = truths[page].allows(then, word) {
                    assert!(is_right, "the model has read {word:#x} of page {page}, and {then:x?} is there");
                    reads[1].fetch_add(1, SeqCst);
                }
            }
        });
        let _over = Over(is_over);
        let mut random = Random(9);
        let has_guards = rest.memory.has_guards();
        for _ in 0..steps() {
            let way = Way::ALL[random.below(Way::ALL.len())];
            let (page, len) = (random.below(PAGES), 1 + random.below(2) * random.below(4));
            let pages = page..(page + len).min(PAGES);
            let is_of_one = matches!(way, Way::MoveAway | Way::MovePagesAway) && pages.len() > 1;
            // What the kernel may do later changes no version here.
            let is_missing = matches!(way, Way::Guard | Way::Unguard) && !has_guards;
            if is_of_one || is_missing || matches!(way, Way::Free | Way::Fork) || is_over.load(SeqCst) {
                continue;
            }
            pages.clone().for_each(|page| _ = truths[page].version.fetch_add(1, SeqCst));
            if let Some(announced) = rest.memory.change(rest.space, way, pages.clone()) {
                for event in rest.events.take() {
                    let is_announced = announced.iter().any(|range| range.contains(&event.range));
                    assert!(is_announced, "{way:?} of {pages:?}: {event:x?} is in none of {announced:x?}");
                }
            }
            for page in pages {
                let word =
                    rest.memory.expected(page, false).map_or(NOTHING, |word| word.expect("it is known"));
                truths[page].word.store(word, SeqCst);
                truths[page].version.fetch_add(1, SeqCst);
            }
        }
    });
    eprintln!("beside: {} reads of the guest, {} of the model", reads[0].load(SeqCst), reads[1].load(SeqCst));
    let stats = rig.stage2.stats();
    assert!(reads.iter().all(|reads| reads.load(SeqCst) > 0) && stats.zapped > 0);
    assert_eq!((stats.active, stats.in_progress, stats.unbalanced), (0, 0, 0));
    rig.access(0..PAGES, false);
    rig.access(0..PAGES, true);
}
