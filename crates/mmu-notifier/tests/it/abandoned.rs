use mmu_notifier::{Abandoned, AddressSpace, Blocking, Caller, Change, Event, Options};

use crate::witness::{Log, PAGES, Task, Witness, end_abandoned, meeting};

const CHANGE: Change = Change::new(PAGES, Event::Unmap, Blocking::Allowed);

/// The calling thread, as if it were this deep in its stack.
fn at(space: &AddressSpace, stack: usize) -> Caller {
    space.caller().with_stack(stack)
}

#[test]
fn a_change_whose_frame_is_gone_is_ended_for_its_thread() {
    let log = Log::default();
    let space = AddressSpace::new();
    let _subscription = space.subscribe(Witness::new("A", &log));
    let left = space.start(&at(&space, 0x1000), CHANGE).unwrap();
    let outer = space.start(&at(&space, 0x3000), CHANGE).unwrap();
    log.take();
    // The thread is at 0x2000 now: the frame at 0x1000, deeper, does not exist any more.
    let ended = end_abandoned(&space, &at(&space, 0x2000), |stack| stack <= 0x2000);
    assert_eq!(ended, Abandoned { changes: 1, callbacks: 0 });
    assert_eq!(log.take(), "A-");
    assert!(!space.end(&space.caller(), left));
    assert!(space.end(&space.caller(), outer), "the outer one is open as before");
    assert_eq!(end_abandoned(&space, &space.caller(), |_| true), Abandoned::default());
}

#[test]
fn other_threads_changes_are_their_own() {
    let space = AddressSpace::new();
    let open = space.start(&space.caller(), CHANGE).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(end_abandoned(&space, &space.caller(), |_| true), Abandoned::default());
        });
    });
    assert!(space.end(&space.caller(), open));
}

#[test]
fn a_change_that_another_thread_has_begun_to_end_is_not_abandoned() {
    let log = Log::default();
    let space = AddressSpace::new();
    let (meeting, gate) = meeting();
    let _a = space.subscribe(Witness::new("A", &log).on_end(move |_| meeting.stop()));
    let mut open = Some(space.start(&space.caller(), CHANGE).unwrap());
    let mut ends = None;
    let found = end_abandoned(&space, &space.caller(), |_| {
        // Between the look at the change and the take-over.
        let (ending, open) = (space.clone(), open.take().expect("one change"));
        ends = Some(Task::new(move || ending.end(&ending.caller(), open)));
        gate.await_other();
        true
    });
    assert_eq!(found, Abandoned::default(), "another thread is in its end");
    gate.let_go();
    assert!(ends.expect("asked about it").finish());
    assert_eq!(log.take(), "A+ A-");
}

/// What a `siglongjmp` out of a callback does: the callback never returns, and the thread goes on elsewhere.
fn jump_out_of(space: &AddressSpace, log: &Log, in_start: bool) -> String {
    let (inner, inner_log) = (space.clone(), log.clone());
    // The thread goes on inside the callback, as if it had jumped: from here the frames above do not exist.
    let elsewhere = move |_: &Change| {
        inner_log.add("jump");
        let caller = inner.caller().with_stack(0x5000);
        let abandoned = end_abandoned(&inner, &caller, |stack| stack <= 0x5000);
        inner_log.add(&format!("{}/{}", abandoned.changes, abandoned.callbacks));
    };
    let witness = Witness::new("B", log);
    let witness = if in_start { witness.on_start(elsewhere) } else { witness.on_end(elsewhere) };
    let _c = space.subscribe(Witness::new("C", log));
    let _b = space.subscribe(witness);
    let _a = space.subscribe(Witness::new("A", log));
    let caller = space.caller().with_stack(0x1000);
    if let Ok(open) = space.start(&caller, CHANGE) {
        space.end(&caller, open);
    }
    log.take()
}

#[test]
fn who_was_told_of_the_start_gets_its_end_after_a_jump_out_of_a_start() {
    let log = Log::default();
    let told = jump_out_of(&AddressSpace::new(), &log, true);
    // A had started and is ended; B's start has not returned; C was not asked.
    assert!(told.starts_with("A+ B+ jump A- 1/1"), "{told}");
}

#[test]
fn who_has_not_been_told_of_the_end_is_told_after_a_jump_out_of_an_end() {
    let log = Log::default();
    let told = jump_out_of(&AddressSpace::new(), &log, false);
    // A has had its end, B was in it, C still waited for it.
    assert!(told.starts_with("A+ B+ C+ A- B- jump C- 1/1"), "{told}");
}

#[test]
fn the_same_if_each_callback_is_timed() {
    let timed = || AddressSpace::with(Options { time_every: 1, ..Options::default() });
    let told = jump_out_of(&timed(), &Log::default(), true);
    assert!(told.starts_with("A+ B+ jump A- 1/1"), "{told}");
    let told = jump_out_of(&timed(), &Log::default(), false);
    assert!(told.starts_with("A+ B+ C+ A- B- jump C- 1/1"), "{told}");
}
