//! Intervals: readers, comers and goers against changes.

use loom::sync::Arc;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering::*};
use loom::thread;
use mmu_notifier::{
    AddressSpace, Change, Event, IntervalSubscriber, IntervalSubscription, Pass, Range, WouldBlock,
};

use crate::{CHANGE, PAGES, Watched, explore, explore_with, space};

/// One page, and a mirror of its translation.
#[derive(Default)]
struct Page {
    /// What the page table says: 0, until a change makes something else of it.
    table: AtomicUsize,
    /// The memory behind it: reached through the mirror, taken away by changes.
    memory: Watched,
    /// The translation in the mirror, and the lock of the protocol.
    mirror: Mutex<Option<usize>>,
    told: AtomicUsize,
}

/// The subscriber itself; nobody looks at it when it has gone.
struct Mirror {
    page: Arc<Page>,
    /// Whether the first pass only begins.
    unfinished: bool,
    state: Arc<Watched>,
}

impl IntervalSubscriber for Mirror {
    fn invalidate(&self, _: &Change) -> Pass {
        self.state.touch();
        self.page.told.fetch_add(1, Relaxed);
        if self.unfinished {
            // The lock is taken here all the same: tickets are looked at under it.
            drop(self.page.mirror.lock().unwrap());
            return Pass::Unfinished;
        }
        *self.page.mirror.lock().unwrap() = None;
        Pass::Done
    }

    fn try_invalidate(&self, change: &Change) -> Result<Pass, WouldBlock> {
        Ok(self.invalidate(change))
    }

    fn finish(&self, _: &Change) {
        self.state.touch();
        *self.page.mirror.lock().unwrap() = None;
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.state.take_away();
    }
}

impl Page {
    fn new() -> Arc<Page> {
        Arc::new(Page::default())
    }

    /// What a change does in its middle: the memory goes, and nobody can reach it.
    fn replace(&self, by: usize) {
        assert_eq!(*self.mirror.lock().unwrap(), None, "live inside an open change");
        // Behind the lock, which must not be what orders this and a reader.
        self.memory.take_away();
        self.table.store(by, Relaxed);
    }

    /// Reads under the protocol, and uses what is installed.
    fn read(&self, interval: &IntervalSubscription) {
        let ticket = interval.read();
        let translation = self.table.load(Relaxed);
        let mut mirror = self.mirror.lock().unwrap();
        if !interval.is_stale(&ticket) {
            *mirror = Some(translation);
            self.memory.touch();
        }
    }

    /// At rest, what is in the mirror is what the table says.
    fn check(&self) {
        if let Some(translation) = *self.mirror.lock().unwrap() {
            assert_eq!(translation, self.table.load(Relaxed), "the mirror is out of date");
        }
    }
}

/// Mirrors the page, as far as `range` is concerned.
fn mirror(space: &AddressSpace, page: &Arc<Page>, range: Range) -> (IntervalSubscription, Arc<Watched>) {
    let state = Arc::new(Watched::default());
    let mirror = Mirror { page: page.clone(), unfinished: false, state: state.clone() };
    (space.insert(range, mirror).unwrap(), state)
}

/// The same for the page at `at`, which is none of [`PAGES`].
fn elsewhere(space: &AddressSpace, page: &Arc<Page>, at: usize) -> IntervalSubscription {
    mirror(space, page, Range::with_len(at, 0x1000).unwrap()).0
}

fn change(space: &AddressSpace, page: &Arc<Page>, by: usize) -> thread::JoinHandle<()> {
    let (space, page) = (space.clone(), page.clone());
    thread::spawn(move || space.invalidate(PAGES, Event::Unmap, || page.replace(by)))
}

/// G7, in one change.
#[test]
fn nothing_stale_is_live_inside_a_change() {
    explore_with(3, || {
        let space = space();
        let page = Page::new();
        let (interval, _) = mirror(&space, &page, PAGES);
        let changing = change(&space, &page, 1);
        page.read(&interval);
        changing.join().unwrap();
        page.check();
        drop(interval);
    });
}

/// The same when the invalidation takes two passes.
#[test]
fn nothing_stale_is_live_inside_a_change_of_two_passes() {
    explore_with(3, || {
        let space = space();
        let page = Page::new();
        let state = Arc::new(Watched::default());
        let mirror = Mirror { page: page.clone(), unfinished: true, state };
        let interval = space.insert(PAGES, mirror).unwrap();
        let changing = change(&space, &page, 1);
        page.read(&interval);
        changing.join().unwrap();
        page.check();
        drop(interval);
    });
}

/// Who inserts while a change is under way is told of it, or waits for it when he reads.
#[test]
fn who_inserts_is_told_or_waits() {
    explore(|| {
        let space = space();
        let page = Page::new();
        let changing = change(&space, &page, 1);
        let (interval, _) = mirror(&space, &page, PAGES);
        page.read(&interval);
        changing.join().unwrap();
        page.check();
        drop(interval);
    });
}

/// The same for a change that nobody hears of.
#[test]
fn who_inserts_waits_for_an_unheard_change() {
    explore(|| {
        let space = space();
        let page = Page::new();
        let changing = {
            let (space, page) = (space.clone(), page.clone());
            thread::spawn(move || {
                if let Some(open) = space.start_unheard(&space.caller(), &CHANGE) {
                    page.replace(1);
                    space.end_unheard(open);
                }
            })
        };
        let (interval, _) = mirror(&space, &page, PAGES);
        page.read(&interval);
        changing.join().unwrap();
        page.check();
        drop(interval);
    });
}

/// G5 for intervals: when the drop has returned, no callback runs or will run, and nobody looks at the interval.
#[test]
fn no_callback_after_removing() {
    explore(|| {
        let space = space();
        let page = Page::new();
        let (interval, state) = mirror(&space, &page, PAGES);
        let changing = {
            let space = space.clone();
            thread::spawn(move || space.invalidate(PAGES, Event::Unmap, || ()))
        };
        drop(interval);
        state.take_away();
        changing.join().unwrap();
    });
}

/// G5 when the second pass is the race.
#[test]
fn no_second_pass_after_removing() {
    explore(|| {
        let space = space();
        let state = Arc::new(Watched::default());
        let mirror = Mirror { page: Page::new(), unfinished: true, state: state.clone() };
        let interval = space.insert(PAGES, mirror).unwrap();
        let changing = {
            let space = space.clone();
            thread::spawn(move || space.invalidate(PAGES, Event::Unmap, || ()))
        };
        drop(interval);
        state.take_away();
        changing.join().unwrap();
    });
}

/// The nodes that a change walks are not freed by who inserts and removes beside it: loom watches the nodes.
#[test]
fn walked_nodes_are_not_freed() {
    explore(|| {
        let space = space();
        let (page, other) = (Page::new(), Page::new());
        let (stays, _) = mirror(&space, &page, PAGES);
        let (leaves, _) = mirror(&space, &other, Range::new(0x5000, 0x6000).unwrap());
        let changing = change(&space, &page, 1);
        drop(leaves);
        changing.join().unwrap();
        assert_eq!(page.told.load(Relaxed), 1, "told, whatever others do to the tree");
        assert_eq!(other.told.load(Relaxed), 0);
        drop(stays);
    });
}

/// The same in a tree of two levels, which becomes one of one level meanwhile.
#[test]
fn walked_nodes_are_not_freed_when_nodes_join() {
    explore(|| {
        let space = space();
        let (page, other) = (Page::new(), Page::new());
        let (stays, _) = mirror(&space, &page, PAGES);
        let mut others: Vec<_> = (0..4)
            .map(|at| mirror(&space, &other, Range::with_len(0x5000 + at * 0x1000, 0x1000).unwrap()).0)
            .collect();
        let leaves = others.remove(0);
        let changing = change(&space, &page, 1);
        drop(leaves);
        changing.join().unwrap();
        assert_eq!(page.told.load(Relaxed), 1);
        drop((stays, others));
    });
}

/// The same by who inserts, who waits for nobody.
#[test]
fn walked_nodes_are_not_freed_by_who_inserts() {
    explore(|| {
        let space = space();
        let (page, other) = (Page::new(), Page::new());
        let (stays, _) = mirror(&space, &page, PAGES);
        let changing = {
            let space = space.clone();
            thread::spawn(move || space.invalidate(PAGES, Event::Clear, || ()))
        };
        let (comes, _) = mirror(&space, &other, Range::new(0x5000, 0x6000).unwrap());
        changing.join().unwrap();
        assert_eq!(page.told.load(Relaxed), 1);
        drop((stays, comes));
    });
}

/// In its callback it waits until somebody has edited the tree, which is in no order with the walk.
#[derive(Default)]
struct Slow {
    is_inside: AtomicUsize,
    is_edited: AtomicUsize,
}

fn wait_for(flag: &AtomicUsize) {
    while flag.load(Relaxed) == 0 {
        thread::yield_now();
    }
}

impl IntervalSubscriber for Slow {
    fn invalidate(&self, _: &Change) -> Pass {
        self.is_inside.store(1, Relaxed);
        wait_for(&self.is_edited);
        Pass::Done
    }

    fn try_invalidate(&self, change: &Change) -> Result<Pass, WouldBlock> {
        Ok(self.invalidate(change))
    }
}

/// Lets it go on, also when something fails: who removes it waits for its callback.
struct LetGo(std::sync::Arc<Slow>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.is_edited.store(1, Relaxed);
    }
}

/// The same by who inserts a second one at once: the nodes of the first are as young as can be.
#[test]
fn walked_nodes_are_not_freed_by_who_inserts_twice() {
    explore_with(1, || {
        let space = space();
        let (page, slow) = (Page::new(), std::sync::Arc::new(Slow::default()));
        let stays = space.insert(PAGES, slow.clone()).unwrap();
        let slow = LetGo(slow);
        let changing = {
            let space = space.clone();
            thread::spawn(move || space.invalidate(PAGES, Event::Clear, || ()))
        };
        let come = [0x5000, 0x6000].map(|at| elsewhere(&space, &page, at));
        drop(slow);
        changing.join().unwrap();
        drop((stays, come));
    });
}

/// The same by who has inserted others since the walk was put on record, and does it again while it is under way.
#[test]
fn walked_nodes_are_not_freed_however_late_they_were_made() {
    explore_with(1, || {
        let space = space();
        let (page, slow) = (Page::new(), std::sync::Arc::new(Slow::default()));
        let stays = space.insert(PAGES, slow.clone()).unwrap();
        // The walk is here and not there: then one preemption finds what goes wrong.
        let inserting = {
            let space = space.clone();
            thread::spawn(move || {
                let slow = LetGo(slow);
                let came = [0x5000, 0x6000].map(|at| elsewhere(&space, &page, at));
                wait_for(&slow.0.is_inside);
                let comes = elsewhere(&space, &page, 0x7000);
                drop(slow);
                (came, comes)
            })
        };
        space.invalidate(PAGES, Event::Clear, || ());
        drop((stays, inserting.join().unwrap()));
    });
}

/// The same in a slot that was used before, in which other eras were on record: older ones than those of the nodes.
#[test]
fn walked_nodes_are_not_freed_when_a_slot_is_used_again() {
    explore(|| {
        let space = space();
        let (page, other) = (Page::new(), Page::new());
        let (stays, _) = mirror(&space, &page, PAGES);
        space.invalidate(PAGES, Event::Clear, || ());
        let came = [0x3000, 0x4000].map(|at| elsewhere(&space, &other, at));
        let changing = {
            let space = space.clone();
            thread::spawn(move || space.invalidate(PAGES, Event::Clear, || ()))
        };
        let (comes, _) = mirror(&space, &other, Range::new(0x5000, 0x6000).unwrap());
        changing.join().unwrap();
        assert_eq!(page.told.load(Relaxed), 2);
        drop((stays, came, comes));
    });
}

/// Two who insert at the same time are both found.
#[test]
fn nobody_is_lost_when_two_insert() {
    explore(|| {
        let space = space();
        let pages = [Page::new(), Page::new()];
        let other = {
            let (space, page) = (space.clone(), pages[0].clone());
            thread::spawn(move || mirror(&space, &page, PAGES).0)
        };
        let (one, _) = mirror(&space, &pages[1], PAGES);
        let other = other.join().unwrap();
        space.invalidate(PAGES, Event::Unmap, || ());
        for page in &pages {
            assert_eq!(page.told.load(Relaxed), 1);
        }
        drop((one, other));
    });
}

/// One comes while another goes.
#[test]
fn nobody_is_lost_when_one_inserts_and_one_removes() {
    explore(|| {
        let space = space();
        let pages = [Page::new(), Page::new()];
        let (leaves, _) = mirror(&space, &pages[0], PAGES);
        let removing = thread::spawn(move || drop(leaves));
        let (stays, _) = mirror(&space, &pages[1], PAGES);
        removing.join().unwrap();
        space.invalidate(PAGES, Event::Unmap, || ());
        assert_eq!(pages[0].told.load(Relaxed), 0);
        assert_eq!(pages[1].told.load(Relaxed), 1);
        drop(stays);
    });
}

/// The same with a subscriber on the list, so that the change has ends to call.
#[test]
fn nothing_stale_is_live_inside_a_change_that_has_ends() {
    explore_with(3, || {
        let space = space();
        let witness = crate::Witness::new();
        let subscription = space.subscribe(crate::Told(witness.clone()));
        let page = Page::new();
        let (interval, _) = mirror(&space, &page, PAGES);
        let changing = change(&space, &page, 1);
        page.read(&interval);
        changing.join().unwrap();
        page.check();
        assert_eq!(witness.told(), (1, 1));
        drop((interval, subscription));
    });
}

/// The same when the change is started and ended in two calls.
#[test]
fn nothing_stale_is_live_inside_a_change_that_is_left_open() {
    explore_with(3, || {
        let space = space();
        let subscription = space.subscribe(crate::Told(crate::Witness::new()));
        let page = Page::new();
        let (interval, _) = mirror(&space, &page, PAGES);
        let changing = {
            let (space, page) = (space.clone(), page.clone());
            thread::spawn(move || {
                let caller = space.caller();
                let open = space.start(&caller, CHANGE).unwrap();
                page.replace(1);
                assert!(space.end(&caller, open));
            })
        };
        page.read(&interval);
        changing.join().unwrap();
        page.check();
        drop((interval, subscription));
    });
}

/// The same when another thread ends the change, and who started it reads.
#[test]
fn nothing_stale_is_read_by_who_started_a_change_that_another_ends() {
    explore(|| {
        let space = space();
        // Somebody who is told of ends, or nobody would have to see who makes it.
        let subscription = space.subscribe(crate::Told(crate::Witness::new()));
        let page = Page::new();
        let (interval, _) = mirror(&space, &page, PAGES);
        let open = space.start(&space.caller(), CHANGE).unwrap();
        let other = {
            let (space, page) = (space.clone(), page.clone());
            thread::spawn(move || {
                page.replace(1);
                space.end(&space.caller(), open)
            })
        };
        page.read(&interval);
        assert!(other.join().unwrap());
        page.check();
        drop((interval, subscription));
    });
}

/// A slot that was used before for something else is waited for as what it is used for now.
#[test]
fn nothing_stale_is_live_when_a_slot_is_used_again() {
    explore_with(3, || {
        let space = space();
        let page = Page::new();
        let (interval, _) = mirror(&space, &page, PAGES);
        // The same slot, for what no reader waits for. Somebody is there, or it would not be on record.
        space.invalidate(Range::new(0x8000, 0x9000).unwrap(), Event::Clear, || ());
        let changing = change(&space, &page, 1);
        page.read(&interval);
        changing.join().unwrap();
        page.check();
        drop(interval);
    });
}

/// A list that is walked in a slot that was used before is not freed either.
#[test]
fn what_is_walked_in_a_slot_that_is_used_again_is_not_freed() {
    explore_with(1, || {
        let space = space();
        let page = Page::new();
        let (interval, _) = mirror(&space, &page, PAGES);
        let changing = {
            let space = space.clone();
            thread::spawn(move || {
                space.invalidate(PAGES, Event::Clear, || ());
                space.invalidate(PAGES, Event::Clear, || ());
            })
        };
        drop(interval);
        changing.join().unwrap();
    });
}
