use std::panic::{AssertUnwindSafe, catch_unwind};

use mmu_notifier::{AddressSpace, Change, OpenChange, Ticketed, WouldBlock};

use crate::witness::{Busy, Log, PAGES, Witness, change, forked, try_change};

/// Passes changes on to another space.
struct Relay(AddressSpace);

impl Ticketed for Relay {
    type Ticket = OpenChange;

    fn start(&self, change: &Change) -> OpenChange {
        self.try_start(change).expect("nobody refuses a change that may wait")
    }

    fn try_start(&self, change: &Change) -> Result<OpenChange, WouldBlock> {
        self.0.start(&self.0.caller(), *change)
    }

    fn end(&self, _: &Change, open: OpenChange) {
        assert!(self.0.end(&self.0.caller(), open), "it was open");
    }

    fn release(&self) {
        self.0.release();
    }
}

fn spaces() -> (AddressSpace, AddressSpace) {
    (AddressSpace::new(), AddressSpace::new())
}

#[test]
fn a_relay_passes_on_starts_ends_and_the_release() {
    let (log, (here, there)) = (Log::default(), spaces());
    let _relay = here.subscribe_relay(Relay(there.clone()));
    let _told = there.subscribe(Witness::new("A", &log));
    change(&here, &log);
    assert_eq!(log.take(), "A+ * A-");
    here.release();
    assert_eq!(log.take(), "A~");
}

#[test]
fn a_refusal_behind_a_relay_refuses_and_ends_all_who_had_started() {
    let (log, (here, there)) = (Log::default(), spaces());
    let _last = here.subscribe(Witness::new("A", &log));
    let _relay = here.subscribe_relay(Relay(there.clone()));
    let _first = here.subscribe(Witness::new("B", &log));
    let _behind = there.subscribe(Witness::new("C", &log));
    let busy = there.subscribe_refuser(Busy::new("N", &log, 1));
    let _before = there.subscribe(Witness::new("D", &log));
    assert!(try_change(&here, &log).is_err());
    let said = log.take();
    for name in ["A", "B", "C", "D"] {
        for sign in ["+", "-"] {
            assert_eq!(said.matches(&format!("{name}{sign}")).count(), 1, "{said}");
        }
    }
    assert!(!said.contains('*') && !here.is_changing() && !there.is_changing(), "{said}");
    drop(busy);
    log.take();
    assert!(try_change(&here, &log).is_ok());
    assert_eq!(log.take(), "B+ D+ C+ A+ * B- D- C- A-");
}

/// Whose callback a change is made in, the other space knows: its other subscribers are told of it.
#[test]
fn changes_in_callbacks_behind_a_relay_are_passed_on() {
    let (log, (here, there)) = (Log::default(), spaces());
    let _relay = here.subscribe_relay(Relay(there.clone()));
    let _witness = there.subscribe(Witness::new("A", &log));
    let (space, inner) = (here.clone(), log.clone());
    let _maker = there.subscribe(Witness::new("M", &log).on_start(move |_| change(&space, &inner)));
    change(&here, &log);
    assert_eq!(log.take(), "M+ A+ * A- A+ * M- A-");
}

#[test]
fn a_panic_behind_a_relay_leaves_nothing_open() {
    let (log, (here, there)) = (Log::default(), spaces());
    let _relay = here.subscribe_relay(Relay(there.clone()));
    let _witness = there.subscribe(Witness::new("A", &log).on_start(|_| panic!("no")));
    let _other = there.subscribe(Witness::new("B", &log));
    assert!(catch_unwind(AssertUnwindSafe(|| change(&here, &log))).is_err());
    assert_eq!(log.take(), "B+ A+ B-");
    assert!(!here.is_changing() && !there.is_changing());
}

/// In a forked child the relay stays, wherever it was on the list, and nobody else.
#[test]
fn a_relay_stays_in_a_forked_child() {
    for at in 0..3 {
        let (log, (here, there)) = (Log::default(), spaces());
        let mut relay = None;
        let mut parents = Vec::new();
        for place in 0..3 {
            parents.push(here.subscribe(Witness::new("P", &log)));
            if place == at {
                relay = Some(here.subscribe_relay(Relay(there.clone())));
            }
        }
        let _behind = there.subscribe(Witness::new("Q", &log));
        forked(&there);
        forked(&here);
        let child = there.subscribe(Witness::new("A", &log));
        let beside = here.subscribe(Witness::new("B", &log));
        change(&here, &log);
        assert_eq!(log.take(), "B+ A+ * B- A-");
        drop(parents);
        assert_eq!(log.take(), "", "the parent's are released there");
        change(&here, &log);
        assert_eq!(log.take(), "B+ A+ * B- A-");
        // There it can be given back, as anybody.
        drop((child, relay, beside));
        assert_eq!(log.take(), "A~ B~");
        change(&here, &log);
        assert_eq!(log.take(), "*");
        here.invalidate(PAGES, mmu_notifier::Event::Unmap, || assert!(!there.is_changing()));
    }
}
