//! The record of open changes: who is changing what right now, and who is being called.
//!
//! This is the project's sleepable RCU. Linux counts its readers in per-CPU counters (`srcu_read_lock`);
//! here every reader is *on record* in a slot of its own, so that one can wait for the right readers
//! only, say whom one waits for, and find a change whose thread has jumped out of it.
//!
//! # Protocol
//!
//! A slot goes through four phases. Only the thread that holds it writes it, except that an abandoned
//! change may be ended by somebody else, who then holds it.
//!
//! ```text
//!           claim (CAS)             change()            finish (CAS)          free()
//! Free ---------------> Starting ------------> Changing -----------> Ending ---------> Free
//!                       callbacks              no callback           callbacks
//!                       run: a reader          runs                  run: a reader
//! ```
//!
//! * In `Starting` and `Ending` the holder may call subscribers: whoever took a subscriber off the list
//!   waits for these two ([`OpenChanges::wait_for_callbacks`]).
//! * From `Starting` to `Free` the holder keeps the list it found: a subscriber who is not on that list
//!   is not told of this change, so `subscribe` waits for it ([`OpenChanges::wait_for_strangers`]), and
//!   the list must not be freed ([`OpenChanges::holds`]).
//!
//! The one hard race, twice:
//!
//! ```text
//! change                                   subscribe / unsubscribe
//! ------                                   -----------------------
//! slot := Starting | Ending  (RMW)         list := without S / S.gone := true
//! full fence                               full fence
//! read list / read S.gone                  read all slots
//!
//!    [ the change sees the new list / S.gone, or the other sees the slot: never neither ]
//! ```
//!
//! The fences forbid that both read the old state (store buffering). On x86-64 the claim is the fence.

use std::fmt;

use crate::caller::Caller;
use crate::sync::{AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Backoff, Ordering, fence, fence_after_rmw};
use crate::{Blocking, Change, Event, Range};

/// Threads with different homes modulo this number write to different cache lines.
#[cfg(not(any(mmu_loom, miri)))]
const SETS: usize = 256;
#[cfg(miri)]
const SETS: usize = 4;
#[cfg(mmu_loom)]
const SETS: usize = 1;

/// Open changes of one home: nested ones, and a neighbour's when its own set is full.
const WAYS: usize = if cfg!(mmu_loom) { 2 } else { 4 };

const FREE: u64 = 0;
const STARTING: u64 = 1;
const CHANGING: u64 = 2;
const ENDING: u64 = 3;
const PHASE: u64 = 3;

/// One open change. Two slots never share a cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Slot {
    /// Number of uses << 2 | phase.
    state: AtomicU64,
    /// [`Caller::thread`] and [`Caller::stack`] of the holder.
    thread: AtomicU64,
    stack: AtomicUsize,
    /// The change.
    start: AtomicUsize,
    end: AtomicUsize,
    /// Event << 1 | may wait.
    what: AtomicU32,
    /// Subscribers of the list whose start has returned, and those whose end has been called.
    started: AtomicU16,
    ended: AtomicU16,
    /// The list that the holder walks: address | 1; 0 while it is not known yet.
    list: AtomicUsize,
    /// The subscriber that the holder is calling, 0 if none.
    calling: AtomicUsize,
}

/// The slots of one address space.
pub(crate) struct OpenChanges {
    sets: Box<[[Slot; WAYS]]>,
}

/// A slot that the caller holds: a change in phase `Starting` or `Ending`.
#[derive(Clone, Copy)]
pub(crate) struct Held<'a> {
    slot: &'a Slot,
    sequence: u64,
    token: OpenChange,
    /// Subscribers that this thread is calling already: it came back to us out of their callbacks.
    busy: [usize; WAYS],
}

/// A change that has been started and not ended: what [`AddressSpace::start`](crate::AddressSpace::start)
/// returns and [`end`](crate::AddressSpace::end) takes.
///
/// A plain value without a destructor, for code that must stay in control of its stack (the hook of a
/// system call). Everybody else uses [`invalidate`](crate::AddressSpace::invalidate).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a change that was started must be ended"]
pub struct OpenChange {
    index: u32,
    sequence: u64,
}

impl OpenChanges {
    pub(crate) const BYTES: usize = SETS * WAYS * size_of::<Slot>();

    pub(crate) fn new() -> OpenChanges {
        let slot = || Slot {
            state: AtomicU64::new(FREE),
            thread: AtomicU64::new(0),
            stack: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            what: AtomicU32::new(0),
            started: AtomicU16::new(0),
            ended: AtomicU16::new(0),
            list: AtomicUsize::new(0),
            calling: AtomicUsize::new(0),
        };
        OpenChanges { sets: (0..SETS).map(|_| std::array::from_fn(|_| slot())).collect() }
    }

    /// Takes a slot for `change`, in phase `Starting`; `None` if all are in use.
    pub(crate) fn claim(&self, caller: &Caller, change: &Change) -> Option<Held<'_>> {
        let home = caller.home % SETS;
        let busy = self.busy(caller);
        for step in 0..SETS {
            let set = (home + step) % SETS;
            for (way, slot) in self.sets[set].iter().enumerate() {
                let state = slot.state.load(Ordering::Relaxed);
                if state & PHASE != FREE {
                    continue;
                }
                let sequence = (state >> 2) + 1;
                // Acquire pairs with the Release in `free`: the fields of the last use are over.
                let claimed = slot.state.compare_exchange(
                    state,
                    sequence << 2 | STARTING,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                if claimed.is_err() {
                    continue;
                }
                // Pairs with the fence in `wait` and in `holds`: see the module documentation.
                fence_after_rmw();
                // Relaxed: read by others for reports only, or after an Acquire of a later phase.
                slot.stack.store(caller.stack, Ordering::Relaxed);
                slot.started.store(0, Ordering::Relaxed);
                slot.ended.store(0, Ordering::Relaxed);
                // Release: a signal handler that finds its own thread here finds the stack position, too.
                slot.thread.store(caller.thread, Ordering::Release);
                slot.start.store(change.range().start(), Ordering::Relaxed);
                slot.end.store(change.range().end(), Ordering::Relaxed);
                let may_wait = u32::from(change.blocking() == Blocking::Allowed);
                slot.what.store((change.event() as u32) << 1 | may_wait, Ordering::Relaxed);
                let token = OpenChange { index: (set * WAYS + way) as u32, sequence };
                return Some(Held { slot, sequence, token, busy });
            }
        }
        None
    }

    /// Takes a change out of phase `Changing` into `Ending`; `None` if it has been ended already.
    pub(crate) fn finish(&self, caller: &Caller, open: OpenChange) -> Option<Held<'_>> {
        let index = open.index as usize;
        let slot = self.sets.get(index / WAYS)?.get(index % WAYS)?;
        // Acquire pairs with the Release in `change`, for the one who ends somebody else's.
        let ending = slot.state.compare_exchange(
            open.sequence << 2 | CHANGING,
            open.sequence << 2 | ENDING,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        ending.ok()?;
        // Pairs with the fence in `wait`: see the module documentation.
        fence_after_rmw();
        let busy = self.busy(caller);
        // Relaxed: as in `claim`. Who ends somebody else's abandoned change is the one who calls now.
        slot.thread.store(caller.thread, Ordering::Relaxed);
        Some(Held { slot, sequence: open.sequence, token: open, busy })
    }

    /// The subscribers whose callbacks the calling thread is in.
    fn busy(&self, caller: &Caller) -> [usize; WAYS] {
        std::array::from_fn(|way| {
            let slot = &self.sets[caller.home % SETS][way];
            // Relaxed: what is used was written by the calling thread itself.
            let callbacks = matches!(slot.state.load(Ordering::Relaxed) & PHASE, STARTING | ENDING);
            if callbacks && slot.thread.load(Ordering::Relaxed) == caller.thread {
                slot.calling.load(Ordering::Relaxed)
            } else {
                0
            }
        })
    }

    /// The changes that the calling thread has open, in any phase, with the stack position of each.
    pub(crate) fn of_thread(&self, caller: &Caller) -> impl Iterator<Item = (OpenChange, usize)> + use<'_> {
        let home = caller.home % SETS;
        let thread = caller.thread;
        self.sets[home].iter().enumerate().filter_map(move |(way, slot)| {
            // Relaxed: what is used was written by the calling thread itself.
            let state = slot.state.load(Ordering::Relaxed);
            let mine = state & PHASE != FREE && slot.thread.load(Ordering::Relaxed) == thread;
            let open = OpenChange { index: (home * WAYS + way) as u32, sequence: state >> 2 };
            mine.then(|| (open, slot.stack.load(Ordering::Relaxed)))
        })
    }

    /// Takes over a change that the calling thread itself has abandoned, in whatever phase it was, into
    /// `Ending`; `None` if it is over. Says whether a callback was left in its middle.
    pub(crate) fn adopt(&self, caller: &Caller, open: OpenChange) -> Option<(Held<'_>, bool)> {
        let index = open.index as usize;
        let slot = self.sets.get(index / WAYS)?.get(index % WAYS)?;
        // Relaxed: the calling thread wrote it.
        let state = slot.state.load(Ordering::Relaxed);
        if state >> 2 != open.sequence || state & PHASE == FREE {
            return None;
        }
        if state & PHASE == CHANGING {
            return self.finish(caller, open).map(|held| (held, false));
        }
        let inside = slot.calling.load(Ordering::Relaxed) != 0;
        slot.calling.store(0, Ordering::Relaxed);
        let held = Held { slot, sequence: open.sequence, token: open, busy: self.busy(caller) };
        held.ending();
        Some((held, inside))
    }

    /// Whether some open change may still walk the list at `list`.
    pub(crate) fn holds(&self, list: usize) -> bool {
        // Pairs with `fence_after_rmw` in `claim`: who is not seen here sees the list that replaced this one.
        fence(Ordering::SeqCst);
        self.sets.iter().flatten().any(|slot| {
            // Acquire pairs with the claim and, through it, with the Release in `free`: `list` is not older.
            let state = slot.state.load(Ordering::Acquire);
            let held = slot.list.load(Ordering::Relaxed);
            state & PHASE != FREE && (held == 0 || held == list | 1)
        })
    }

    /// Waits until every callback that was running in another thread is over. Returns false if the calling
    /// thread itself is in a callback of `subscriber`.
    pub(crate) fn wait_for_callbacks(&self, caller: &Caller, subscriber: usize) -> bool {
        self.wait(caller, |phase, _| phase == STARTING || phase == ENDING);
        !self.busy(caller).contains(&subscriber)
    }

    /// Waits until every change of other threads that does not walk the list at `list` is over.
    pub(crate) fn wait_for_strangers(&self, caller: &Caller, list: usize) {
        self.wait(caller, |phase, held| phase != FREE && held != list | 1);
    }

    fn wait(&self, caller: &Caller, concerns: impl Fn(u64, usize) -> bool) {
        // Pairs with `fence_after_rmw` in `claim` and `finish`: see the module documentation.
        fence(Ordering::SeqCst);
        for slot in self.sets.iter().flatten() {
            // Acquire, here and below, pairs with the Release in `change` and `free`: what the callbacks did
            // happened before.
            let mut state = slot.state.load(Ordering::Acquire);
            let sequence = state >> 2;
            let mut backoff = Backoff::default();
            while state >> 2 == sequence && concerns(state & PHASE, slot.list.load(Ordering::Relaxed)) {
                if slot.thread.load(Ordering::Relaxed) == caller.thread {
                    break;
                }
                backoff.wait();
                state = slot.state.load(Ordering::Acquire);
            }
        }
    }

    /// Forgets everything: in the only thread of a forked child, the other threads do not exist.
    pub(crate) fn forget_all(&self) {
        for slot in self.sets.iter().flatten() {
            // Relaxed: there is only one thread.
            let sequence = slot.state.load(Ordering::Relaxed) >> 2;
            slot.list.store(0, Ordering::Relaxed);
            slot.thread.store(0, Ordering::Relaxed);
            slot.calling.store(0, Ordering::Relaxed);
            slot.state.store(sequence << 2 | FREE, Ordering::Relaxed);
        }
    }
}

impl Held<'_> {
    /// Puts on record which list is walked; before this, the holder is taken to walk any.
    pub(crate) fn walks(&self, list: usize) {
        // Relaxed: a reader that misses it takes the slot to hold any list.
        self.slot.list.store(list | 1, Ordering::Relaxed);
    }

    /// The list that is walked, as given to [`walks`](Held::walks).
    pub(crate) fn list(&self) -> usize {
        // Relaxed: the holder wrote it, or the Acquire in `finish` made it visible.
        self.slot.list.load(Ordering::Relaxed) & !1
    }

    /// The change on record.
    pub(crate) fn change(&self) -> Change {
        // Relaxed: as in `list`.
        let what = self.slot.what.load(Ordering::Relaxed);
        let range =
            Range::new(self.slot.start.load(Ordering::Relaxed), self.slot.end.load(Ordering::Relaxed))
                .unwrap_or(Range::EVERYTHING);
        let blocking = if what & 1 == 1 { Blocking::Allowed } else { Blocking::Forbidden };
        Change::new(range, Event::ALL[(what >> 1) as usize % Event::ALL.len()], blocking)
    }

    /// How many starts have returned, in the order of the list.
    pub(crate) fn started(&self) -> usize {
        // Relaxed, here and below: as in `list`.
        self.slot.started.load(Ordering::Relaxed).into()
    }

    pub(crate) fn set_started(&self, count: usize) {
        self.slot.started.store(count as u16, Ordering::Relaxed);
    }

    /// How many ends have been called, in the order of the list.
    pub(crate) fn ended(&self) -> usize {
        self.slot.ended.load(Ordering::Relaxed).into()
    }

    pub(crate) fn set_ended(&self, count: usize) {
        self.slot.ended.store(count as u16, Ordering::Relaxed);
    }

    /// The change will not take place: from `Starting` to `Ending` at once.
    pub(crate) fn ending(&self) {
        // Relaxed: a reader before, a reader after; nobody may conclude anything from it.
        self.slot.state.store(self.sequence << 2 | ENDING, Ordering::Relaxed);
    }

    /// Runs `callback` of the subscriber at address `subscriber` with the call on record; false, and
    /// nothing run, if this thread is in a callback of that subscriber already.
    #[inline]
    pub(crate) fn calling(&self, subscriber: usize, callback: impl FnOnce()) -> bool {
        if self.is_calling(subscriber) {
            return false;
        }
        // Relaxed: read by the same thread only.
        self.slot.calling.store(subscriber, Ordering::Relaxed);
        callback();
        self.slot.calling.store(0, Ordering::Relaxed);
        true
    }

    /// Whether this thread is in a callback of that subscriber.
    pub(crate) fn is_calling(&self, subscriber: usize) -> bool {
        self.busy.contains(&subscriber)
    }

    /// All callbacks of the start have returned: to phase `Changing`.
    pub(crate) fn changing(self) -> OpenChange {
        // Release pairs with the Acquire in `wait`: the callbacks are over.
        self.slot.state.store(self.sequence << 2 | CHANGING, Ordering::Release);
        self.token
    }

    /// All is over: the slot can be used again.
    pub(crate) fn free(self) {
        // Relaxed: published by the Release below. The thread is cleared so that nobody takes the next holder,
        // who has not written it yet, for himself.
        self.slot.list.store(0, Ordering::Relaxed);
        self.slot.thread.store(0, Ordering::Relaxed);
        // Release pairs with the Acquire in `claim` and in `wait`.
        self.slot.state.store(self.sequence << 2 | FREE, Ordering::Release);
    }
}

impl fmt::Debug for OpenChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open =
            self.sets.iter().flatten().filter(|slot| slot.state.load(Ordering::Relaxed) & PHASE != FREE);
        f.debug_list().entries(open).finish()
    }
}
