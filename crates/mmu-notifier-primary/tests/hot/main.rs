//! Places that are trapped again and again are rewritten while they run, and no code that the program can see is other than
//! it has made it.
//!
//! The tests run one after the other in the first thread, and no harness around them: what is trapped is counted for all of a
//! process, and the threads of a harness make system calls of their own.

mod changing;
mod place;
mod running;
mod staying;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use mmu_notifier::{Change, Event, Subscriber};
use mmu_notifier_primary::{InstallError, Options, Primary, Strict};

use place::{HOT, NOWHERE, Place};

/// A place to call many times in each start of a change that begins at an address.
static IN_START: AtomicUsize = AtomicUsize::new(0);
static IN_START_OF: AtomicUsize = AtomicUsize::new(0);

/// Counts what is unmapped there, starts and ends. There are two: of a change that is made in a callback of the one, only
/// the other hears.
#[derive(Debug)]
struct Count {
    starts: AtomicU64,
    ends: AtomicU64,
}

static COUNTS: [Count; 2] = [const { Count { starts: AtomicU64::new(0), ends: AtomicU64::new(0) } }; 2];

impl Count {
    /// Changes so far: none is open.
    fn now(&self) -> u64 {
        assert_eq!(self.starts.load(SeqCst), self.ends.load(SeqCst));
        self.ends.load(SeqCst)
    }
}

struct Counts(&'static Count);

impl Subscriber for Counts {
    fn start(&self, change: &Change) {
        let range = change.range();
        let is_it = change.event() == Event::Unmap && range.start() == NOWHERE;
        self.0.starts.fetch_add(u64::from(is_it), SeqCst);
        // By one of the two.
        if core::ptr::eq(self.0, &COUNTS[0])
            && IN_START_OF.load(SeqCst) != 0
            && range.start() == IN_START_OF.load(SeqCst)
        {
            Place(IN_START.load(SeqCst)).call_many(4 * HOT);
        }
    }

    fn end(&self, change: &Change) {
        let is_it = change.event() == Event::Unmap && change.range().start() == NOWHERE;
        self.0.ends.fetch_add(u64::from(is_it), SeqCst);
    }
}

/// Runs those whose names contain the first argument: here, in the first thread.
fn main() -> ExitCode {
    let primary = match Primary::install(&Options { strict: Strict::Always, ..Options::default() }) {
        Ok(primary) => primary,
        Err(error @ InstallError::NoDispatch { .. }) => {
            println!("SKIPPED: {error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => panic!("{error}"),
    };
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let is_wanted = |(name, _): &&(&str, Test)| name.contains(&wanted);
    println!("running {} tests", ALONE.iter().chain(TESTS).filter(is_wanted).count());
    let failed = run(primary, ALONE.iter().filter(is_wanted));
    for count in &COUNTS {
        core::mem::forget(primary.space().subscribe(Counts(count)));
    }
    ExitCode::from(failed + run(primary, TESTS.iter().filter(is_wanted)))
}

type Test = fn(&'static Primary);

/// Runs them; how many have failed.
fn run<'a>(primary: &'static Primary, tests: impl Iterator<Item = &'a (&'a str, Test)>) -> u8 {
    let mut failed = 0;
    for (name, test) in tests {
        let result = catch_unwind(AssertUnwindSafe(|| test(primary)));
        IN_START_OF.store(0, SeqCst);
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        failed += u8::from(result.is_err());
    }
    failed
}

macro_rules! tests {
    ($($module:ident :: $name:ident,)*) => { &[$((stringify!($name), $module::$name as Test)),*] };
}

/// Those before anybody is subscribed.
const ALONE: &[(&str, Test)] = tests![changing::also_where_nobody_is_subscribed_code_is_the_programs_own,];

const TESTS: &[(&str, Test)] = tests![
    running::a_hot_place_is_rewritten_and_nothing_is_missed,
    running::eight_threads_call_a_place_while_it_is_rewritten,
    changing::code_that_is_made_writable_is_the_programs_own_before,
    changing::other_code_where_a_place_was_is_not_touched,
    changing::what_is_discarded_was_put_back_before,
    running::whoever_comes_behind_the_call_finds_what_was_there,
    running::signals_in_the_middle_change_nothing,
    running::what_handlers_return_by_stays_what_debuggers_know,
    running::a_call_that_waits_is_started_again_by_the_jump,
    running::a_forked_child_has_a_copy_of_its_own,
    staying::who_confines_itself_has_its_own_code_and_no_call_but_its_own,
    staying::where_nothing_can_be_mapped_a_place_stays_trapped,
    staying::code_that_can_change_by_itself_stays_trapped,
    staying::places_that_share_bytes_or_landings_are_not_rewritten_together,
    changing::while_its_memory_is_changing_a_place_is_not_rewritten,
    changing::code_is_put_back_also_before_changes_that_are_refused,
    changing::code_is_put_back_also_while_the_hook_is_switched_off,
    running::code_that_threads_run_and_change_by_turns_is_never_mixed_up,
    changing::a_check_knows_what_was_rewritten_and_sees_who_writes_over_it,
];
