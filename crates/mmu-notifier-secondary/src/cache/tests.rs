//! Moments that nobody outside can bring about: a signal handler has interrupted its own thread where it holds the lock of
//! the books; a change has killed something and not yet handed it on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use mmu_notifier::{AddressSpace, Event, Range};

use super::counters::Counter;
use super::table::Victims;
use super::{Access, Cache, Options, RegisterError, Registrar, Unregistered, Wait};

fn pages(first: usize, count: usize) -> Range {
    Range::with_len(first << 12, count << 12).unwrap()
}

/// Runs it with the lock held by the calling thread.
fn interrupting<R: Registrar>(cache: &Cache<R>, handler: impl FnOnce()) {
    cache.store.with_books(|_| handler());
}

struct Waits;

impl Registrar for Waits {
    type Handle = ();

    fn register(&self, _: Range, _: Access) -> Result<(), RegisterError> {
        Ok(())
    }

    fn deregister(&self, _: Range, (): ()) {}

    fn wait(&self) -> Wait {
        Wait::UntilUnused
    }
}

#[test]
fn a_change_in_a_signal_handler_takes_effect_and_waits_for_nobody() {
    let space = AddressSpace::new();
    let cache = Cache::new(&space, Unregistered, Options::default());
    let tokens: Vec<_> = (0..3).map(|at| cache.get(pages(at, 1), Access::Read).unwrap().token()).collect();
    interrupting(&cache, || {
        space.invalidate(pages(0, 1), Event::Unmap, || assert!(!tokens[0].is_valid()));
        space.try_invalidate(pages(1, 1), Event::Unmap, || assert!(!tokens[1].is_valid())).unwrap();
    });
    assert!(tokens[2].is_valid());
    assert!(cache.store.written.corpses.is_empty(), "entered when the lock was let go of");
    assert_eq!(cache.stats().entries, 3, "and buried by");
    cache.flush();
    assert_eq!(cache.stats().entries, 1, "who comes next");
}

/// It cannot look whether anything is in use.
#[test]
fn there_a_change_that_must_not_wait_is_refused_if_it_might_have_to() {
    let space = AddressSpace::new();
    let cache = Cache::new(&space, Waits, Options::default());
    let held = cache.get(pages(0, 1), Access::Read).unwrap();
    interrupting(&cache, || {
        space.try_invalidate(pages(0, 1), Event::Unmap, || ()).unwrap_err();
    });
    drop(held);
    space.try_invalidate(pages(0, 1), Event::Unmap, || ()).unwrap();
}

#[test]
fn there_nothing_can_be_asked_for() {
    let cache = Cache::new(&AddressSpace::new(), Unregistered, Options::default());
    interrupting(&cache, || {
        let get = || drop(cache.get(pages(0, 1), Access::Read));
        catch_unwind(AssertUnwindSafe(get)).unwrap_err();
    });
    drop(cache.get(pages(0, 1), Access::Read).unwrap());
}

/// In the middle of a change of the index it goes through the table.
#[test]
fn there_an_index_that_is_being_changed_hides_nothing() {
    let space = AddressSpace::new();
    let cache = Cache::new(&space, Unregistered, Options::default());
    let tokens: Vec<_> = (0..40).map(|at| cache.get(pages(at, 1), Access::Read).unwrap().token()).collect();
    interrupting(&cache, || {
        cache.store.index.while_changing(|| {
            space.try_invalidate(pages(10, 20), Event::Unmap, || ()).unwrap();
        });
    });
    for (at, token) in tokens.iter().enumerate() {
        assert_eq!(token.is_valid(), !(10..30).contains(&at), "{at}");
    }
}

/// Two are hit: one that is in use, and one that another change has just killed. The change waits for both, says so, and
/// leaves neither with a user that nobody is.
#[test]
fn a_change_waits_for_what_another_one_has_not_handed_on_yet() {
    let (reported, report) = mpsc::channel();
    let reported = Mutex::new(reported);
    let options = Options {
        patience: Duration::from_millis(1),
        on_overdue: Arc::new(move |_| _ = reported.lock().unwrap().send(())),
        ..Options::default()
    };
    let space = AddressSpace::new();
    let cache = Cache::new(&space, Waits, options);
    let held = cache.get(pages(0, 1), Access::Read).unwrap();
    space.try_invalidate(pages(0, 1), Event::Unmap, || ()).unwrap_err();
    drop(cache.get(pages(1, 1), Access::Read).unwrap());
    let store = &*cache.store;
    let victims = Victims::default();
    assert!(store.kill_one(store.index.find(pages(1, 1).start()).unwrap(), &victims));
    std::thread::scope(|scope| {
        let change = scope.spawn(|| space.invalidate(pages(0, 2), Event::Unmap, || ()));
        (0..3).for_each(|_| report.recv().unwrap());
        store.lay_out(victims, &Counter::default());
        store.try_settle();
        (0..3).for_each(|_| report.recv().unwrap());
        assert!(!change.is_finished(), "one is still in use");
        drop(held);
        change.join().unwrap();
    });
    assert_eq!((cache.stats().entries, cache.stats().unreleased), (0, 0));
}
