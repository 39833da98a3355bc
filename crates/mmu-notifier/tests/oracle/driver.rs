//! The core, driven by the model's operations through its public interface.
//!
//! | operation | here |
//! | --- | --- |
//! | `mm` | an `AddressSpace` |
//! | `register`, `unregister` | `subscribe…` for each of the class's sides, and their drop |
//! | `get`, `put` | `get` of the class's type, and the drop of a `Shared` |
//! | `synchronize`, `gp` | `synchronize` of every address space |
//! | `exit` | `release` |
//! | `start`, `end` | `start`, `end` |
//! | `insert`, `insert_locked`, `remove` | `insert`, and the drop of an `IntervalSubscription` |
//! | `read_begin`, `read_retry`, `check_retry` | `read`, `is_stale` |
//! | `clear_flush_young`, `clear_young`, `test_young`, `tlb` | the same, `flush` |
//!
//! In the core nobody waits for changes that his own thread has open, in the kernel he would. So changes are made by
//! threads of their own: two, so that one ends what the other has started. Everything else is done by a new thread each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mmu_notifier::{AddressSpace, IntervalSubscription, OpenChange, Options, Range, Ticket};
use mmu_notifier_model::{Callback, Change, Class, IntervalClass, Op};

use crate::convert;
use crate::faults::Fault;
use crate::guests::{
    Ages, AnyShare, Asked, Flushes, Guest, Handle, Inserted, IntervalGuest, Member, Paired, Part, Told,
    World, lock,
};
use crate::seen::Seen;
use crate::threads::{self, Answer, Name, Progress, TWO, Threads};

/// The core with everything that operations refer to.
pub(crate) struct Core {
    threads: Threads,
    world: Arc<World>,
    spaces: BTreeMap<u64, AddressSpace>,
    classes: BTreeMap<u64, Arc<Class>>,
    interval_classes: BTreeMap<u64, IntervalClass>,
    guests: BTreeMap<u64, Arc<Guest>>,
    /// What a shared subscriber has beside its member: added when that is there.
    beside: BTreeMap<u64, (u64, Arc<Class>)>,
    interval_guests: BTreeMap<u64, Arc<IntervalGuest>>,
    /// The class it was inserted under last.
    class_of_interval: BTreeMap<u64, IntervalClass>,
    intervals: BTreeMap<u64, (Arc<IntervalSubscription>, Arc<AtomicUsize>)>,
    open: BTreeMap<u64, (u64, OpenChange)>,
    /// Operations that wait.
    waiting: Vec<u64>,
    /// Subscribers that have left: with which operation, and how many parts the core keeps.
    pub(crate) departed: BTreeMap<u64, (u64, Arc<AtomicUsize>)>,
    fault: Fault,
}

/// Which lists of the core a class is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sides {
    pub(crate) changes: bool,
    pub(crate) aging: bool,
    pub(crate) tlb: bool,
}

pub(crate) fn sides(class: &Class) -> Sides {
    let has = |callbacks: &[Callback]| callbacks.iter().any(|callback| class.has(*callback));
    let aging = has(&[Callback::ClearFlushYoung, Callback::ClearYoung, Callback::TestYoung]);
    let tlb = has(&[Callback::Tlb]);
    // Who has nothing at all has to be somewhere to hear of the release.
    Sides { changes: has(&[Callback::Start, Callback::End]) || !(aging || tlb), aging, tlb }
}

/// Classes that `get` can tell apart here.
pub(crate) const MEMBERS: u64 = 12;

fn other(task: u64) -> Name {
    Name { thread: 1000 + task, home: 1 + task as usize % 3 }
}

fn changer(number: u64) -> Name {
    Name { thread: 1 + number % 2, home: 0 }
}

impl Core {
    pub(crate) fn new(fault: Fault) -> Core {
        let (world, spaces, classes, interval_classes, guests, beside) = Default::default();
        let (interval_guests, class_of_interval, intervals, open, waiting, departed) = Default::default();
        Core {
            threads: Threads::new(),
            world,
            spaces,
            classes,
            interval_classes,
            guests,
            beside,
            interval_guests,
            class_of_interval,
            intervals,
            open,
            waiting,
            departed,
            fault,
        }
    }

    /// Does one operation. `make_fails`: what `get` has to make cannot be made.
    pub(crate) fn apply(&mut self, task: u64, op: &Op, make_fails: bool) -> Progress {
        let progress = match *op {
            Op::Mm { m } => {
                let options = Options {
                    caller: Some(threads::caller),
                    stall_after: Duration::from_millis(1),
                    on_stall: self.threads.on_stall(),
                    ..Options::default()
                };
                self.spaces.insert(m, AddressSpace::with(options));
                Progress::Done(Answer::Nothing)
            }
            Op::Class { c, ref class } => {
                self.classes.insert(c, Arc::new(class.clone()));
                Progress::Done(Answer::Nothing)
            }
            Op::Iclass { c, ref class } => {
                self.interval_classes.insert(c, class.clone());
                Progress::Done(Answer::Nothing)
            }
            Op::Register { s, c, m } => self.register(task, s, c, m),
            Op::Unregister { s } => self.unregister(task, s),
            Op::Get { c, m, new } => self.get(task, c, m, new, make_fails),
            Op::Put { s } => self.put(task, s),
            Op::Synchronize | Op::Gp => {
                let spaces: Vec<_> = self.spaces.values().cloned().collect();
                self.run(task, move || Answer::Truth(spaces.iter().all(AddressSpace::synchronize)))
            }
            Op::Exit { m } => {
                let space = self.spaces[&m].clone();
                let present: Vec<_> = lock(&self.world.handles)
                    .iter()
                    .map(|(s, handle)| (*s, handle.present.clone()))
                    .collect();
                let progress = self.run(task, move || {
                    space.release();
                    Answer::Nothing
                });
                // Some may have put themselves.
                for (s, present) in present {
                    if !self.has_handle(s) {
                        self.departed.insert(s, (task, present));
                    }
                }
                progress
            }
            Op::Start { r, m, change } => self.start(task, r, m, change),
            Op::End { r } => self.end(task, r),
            Op::Insert { i, c, m, start, length } | Op::InsertLocked { i, c, m, start, length } => {
                self.insert(task, i, c, m, start, length)
            }
            Op::Remove { i } => {
                let (subscription, present) = self.intervals.remove(&i).expect("it is inserted");
                let progress = self.run(task, move || {
                    drop(subscription);
                    Answer::Nothing
                });
                assert_eq!(present.load(Ordering::SeqCst), 0, "it is dropped when its removal returns");
                progress
            }
            Op::ReadBegin { i } => {
                let subscription = self.intervals[&i].0.clone();
                self.run(task, move || Answer::Ticket(threads::reading(|| subscription.read())))
            }
            Op::ClearFlushYoung { m, start, end } => {
                self.ask(task, m, start, end, AddressSpace::clear_flush_young)
            }
            Op::ClearYoung { m, start, end } => self.ask(task, m, start, end, AddressSpace::clear_young),
            Op::TestYoung { m, address } => {
                let space = self.spaces[&m].clone();
                self.run(task, move || Answer::Truth(space.test_young(address as usize)))
            }
            Op::Tlb { m, start, end } => self.ask(task, m, start, end, |space, range| {
                space.flush(range);
                true
            }),
            Op::HasNotifiers { m } => Progress::Done(Answer::Truth(self.spaces[&m].has_subscribers())),
            Op::RoCheck { .. } | Op::Mmdrop { .. } | Op::Peek { .. } | Op::Finish => {
                Progress::Done(Answer::Nothing)
            }
            Op::ReadRetry { .. }
            | Op::CheckRetry { .. }
            | Op::Inject { .. }
            | Op::EndOnly { .. }
            | Op::ChangePte { .. }
            | Op::PokeSeq { .. }
            | Op::PokeUsers { .. } => unreachable!("{op} is not for the core"),
        };
        match &progress {
            Progress::Done(answer) => self.went_on(answer),
            Progress::Waits(_) => self.waiting.push(task),
        }
        progress
    }

    fn run(&mut self, task: u64, work: impl FnOnce() -> Answer + Send + 'static) -> Progress {
        self.threads.run(task, other(task), work)
    }

    /// What has been called since this was asked last.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.world.log))
    }

    /// Whether an operation that waited has gone on, after so many reports; if 0, as far as is known already.
    pub(crate) fn late(&mut self, task: u64, reports: u32) -> Option<Answer> {
        let answer = match reports {
            0 => self.threads.glance(task),
            _ => match self.threads.look(task, other(task), reports) {
                Progress::Done(answer) => Some(answer),
                Progress::Waits(_) => None,
            },
        }?;
        self.waiting.retain(|waiting| *waiting != task);
        self.went_on(&answer);
        Some(answer)
    }

    /// What the core lacks of `get` is done by hand: members are told of changes, other sides are subscribed beside.
    fn went_on(&mut self, answer: &Answer) {
        if let Answer::Got(s, true) = answer {
            let (m, class) = self.beside[s].clone();
            let mut handles = lock(&self.world.handles);
            let handle = handles.get_mut(s).expect("it was got just now");
            let parts = side_parts(&self.spaces[&m], &self.guests[s], &class, &handle.present, false);
            handle.parts.extend(parts);
        }
    }

    /// The model has called an interval that is not inserted here any more: its program counts that.
    pub(crate) fn called_elsewhere(&self, i: u64, change: Change) {
        let class = &self.class_of_interval[&i];
        let is_own = class.ignore.is_some_and(|own| own.event == change.event && own.owner == change.owner);
        if !is_own {
            self.interval_guests[&i].program(class, change);
        }
    }

    /// Which guests the model calls at this moment.
    pub(crate) fn set_counted(&self, counts: impl Fn(u64) -> bool, interval_counts: impl Fn(u64) -> bool) {
        for (s, guest) in &self.guests {
            guest.counts.store(counts(*s), Ordering::SeqCst);
        }
        for (i, guest) in &self.interval_guests {
            guest.counts.store(interval_counts(*i), Ordering::SeqCst);
        }
    }

    /// Starts that a subscriber has seen and not the end of.
    pub(crate) fn unended(&self, s: u64) -> Vec<Change> {
        lock(&self.guests[&s].open).clone()
    }

    /// How many parts of a subscriber the core has not dropped.
    pub(crate) fn present(&self, s: u64) -> usize {
        lock(&self.world.handles).get(&s).map_or(0, |handle| handle.present.load(Ordering::SeqCst))
    }

    pub(crate) fn has_handle(&self, s: u64) -> bool {
        lock(&self.world.handles).contains_key(&s)
    }

    pub(crate) fn is_stale(&self, i: u64, ticket: &Ticket) -> bool {
        self.fault != Fault::NothingIsStale && self.intervals[&i].0.is_stale(ticket)
    }

    pub(crate) fn stats(&self, m: u64) -> mmu_notifier::Stats {
        self.spaces[&m].stats()
    }

    fn guest(&mut self, s: u64) -> Arc<Guest> {
        let world = &self.world;
        self.guests.entry(s).or_insert_with(|| Arc::new(Guest::new(s, world.clone()))).clone()
    }

    fn register(&mut self, task: u64, s: u64, c: u64, m: u64) -> Progress {
        let (guest, class, space) = (self.guest(s), self.classes[&c].clone(), self.spaces[&m].clone());
        let (world, twice) = (self.world.clone(), self.fault == Fault::SubscribesTwice);
        lock(&guest.open).clear();
        self.run(task, move || {
            let mut handle = Handle::default();
            let changes = sides(&class).changes;
            handle.parts = side_parts(&space, &guest, &class, &handle.present, !changes);
            if changes {
                for _ in 0..if twice { 2 } else { 1 } {
                    handle.parts.push(main_part(&space, &guest, &class, &handle.present));
                }
            }
            lock(&world.handles).insert(guest.s, handle);
            Answer::Nothing
        })
    }

    fn unregister(&mut self, task: u64, s: u64) -> Progress {
        let handle = lock(&self.world.handles).remove(&s).expect("it is subscribed");
        let (present, leaks) = (handle.present.clone(), self.fault == Fault::StaysSubscribed);
        let progress = self.run(task, move || {
            if leaks {
                std::mem::forget(handle);
            } else {
                drop(handle);
            }
            Answer::Nothing
        });
        self.departed.insert(s, (task, present));
        progress
    }

    fn get(&mut self, task: u64, c: u64, m: u64, new: u64, fails: bool) -> Progress {
        macro_rules! by_class {
            ($($number:literal)*) => {
                match c {
                    $($number => get::<$number>,)*
                    _ => panic!("there is no type for class {c}"),
                }
            };
        }
        let get: fn(&AddressSpace, &Arc<Guest>, &Arc<Class>, bool) -> Answer =
            by_class!(0 1 2 3 4 5 6 7 8 9 10 11);
        let (guest, class, space) = (self.guest(new), self.classes[&c].clone(), self.spaces[&m].clone());
        self.beside.insert(new, (m, class.clone()));
        self.run(task, move || get(&space, &guest, &class, fails))
    }

    fn put(&mut self, task: u64, s: u64) -> Progress {
        let world = self.world.clone();
        if let Some(handle) = lock(&world.handles).get(&s)
            && handle.shares.len() <= 1
        {
            self.departed.insert(s, (task, handle.present.clone()));
        }
        self.run(task, move || {
            assert!(world.put(s), "there is a share");
            Answer::Nothing
        })
    }

    fn start(&mut self, task: u64, r: u64, m: u64, change: Change) -> Progress {
        let (space, name) = (self.spaces[&m].clone(), changer(r));
        let change = convert::to_core(&change).expect("it is a range");
        let change = if self.fault == Fault::ForgetsOwner { change.with_owner(0) } else { change };
        let progress = self.threads.run(task, name, move || {
            space.start(&space.caller(), change).map_or(Answer::Refused, Answer::Open)
        });
        match progress {
            Progress::Done(Answer::Open(open)) => {
                self.open.insert(r, (m, open));
                Progress::Done(Answer::Nothing)
            }
            Progress::Done(Answer::Refused) if self.fault == Fault::DeniesRefusals => {
                Progress::Done(Answer::Nothing)
            }
            other => other,
        }
    }

    fn end(&mut self, task: u64, r: u64) -> Progress {
        let (m, open) = self.open.remove(&r).expect("it is open");
        let (space, name) = (self.spaces[&m].clone(), changer(task));
        if self.fault == Fault::NeverEnds {
            return Progress::Done(Answer::Truth(true));
        }
        self.threads.run(task, name, move || Answer::Truth(space.end(&space.caller(), open)))
    }

    fn insert(&mut self, task: u64, i: u64, c: u64, m: u64, start: u64, length: u64) -> Progress {
        let world = &self.world;
        let guest = self.interval_guests.entry(i);
        let guest = guest.or_insert_with(|| Arc::new(IntervalGuest::new(i, world.clone()))).clone();
        self.class_of_interval.insert(i, self.interval_classes[&c].clone());
        let Ok(range) = Range::with_len(start as usize, length as usize) else {
            return Progress::Done(Answer::Failed);
        };
        let present = Arc::default();
        let mut inserted = Inserted::new(&guest, &self.interval_classes[&c], &present);
        inserted.ignores_nothing = self.fault == Fault::IgnoresNothing;
        let space = self.spaces[&m].clone();
        let (sender, receiver) = std::sync::mpsc::channel();
        let progress = self.run(task, move || match space.insert(range, inserted) {
            Ok(subscription) => {
                let _ = sender.send(subscription);
                Answer::Nothing
            }
            Err(_) => Answer::Failed,
        });
        if let Ok(subscription) = receiver.try_recv() {
            self.intervals.insert(i, (Arc::new(subscription), present));
        }
        progress
    }

    fn ask(
        &mut self,
        task: u64,
        m: u64,
        start: u64,
        end: u64,
        ask: impl FnOnce(&AddressSpace, Range) -> bool + Send + 'static,
    ) -> Progress {
        let (space, range) = (self.spaces[&m].clone(), convert::range(start, end).expect("it is a range"));
        self.run(task, move || Answer::Truth(ask(&space, range)))
    }
}

impl Drop for Core {
    /// Lets everybody go who waits, and unties the knot of handles and guests.
    fn drop(&mut self) {
        for (m, open) in std::mem::take(&mut self.open).into_values() {
            let space = self.spaces[&m].clone();
            space.end(&space.caller(), open);
        }
        for task in std::mem::take(&mut self.waiting) {
            // In a run that failed, it may never go on.
            drop(self.threads.look(task, other(task), TWO));
        }
        let handles = std::mem::take(&mut *lock(&self.world.handles));
        drop(handles);
    }
}

/// The subscription that is told of changes, of the kind that the class needs.
fn main_part(
    space: &AddressSpace,
    guest: &Arc<Guest>,
    class: &Arc<Class>,
    present: &Arc<AtomicUsize>,
) -> mmu_notifier::Subscription {
    let part = Part::new(guest, class, true, present);
    match (class.start_fail.is_some(), class.has(Callback::End)) {
        (true, true) => space.subscribe_ticketed(Paired(part)),
        (true, false) => space.subscribe_refuser(Asked(part)),
        (false, false) if class.has(Callback::Start) => space.subscribe_refuser(Asked(part)),
        (false, _) => space.subscribe(Told(part)),
    }
}

/// The subscriptions beside; `has_main`: one of them is told of the release.
fn side_parts(
    space: &AddressSpace,
    guest: &Arc<Guest>,
    class: &Arc<Class>,
    present: &Arc<AtomicUsize>,
    has_main: bool,
) -> Vec<mmu_notifier::Subscription> {
    let Sides { aging, tlb, .. } = sides(class);
    let mut parts = Vec::new();
    if aging {
        parts.push(space.subscribe_aging(Ages(Part::new(guest, class, has_main, present))));
    }
    if tlb {
        parts.push(space.subscribe_tlb(Flushes(Part::new(guest, class, has_main && !aging, present))));
    }
    parts
}

fn get<const CLASS: usize>(
    space: &AddressSpace,
    guest: &Arc<Guest>,
    class: &Arc<Class>,
    fails: bool,
) -> Answer {
    let present = Arc::default();
    let mut made = false;
    let got = space.get::<Member<CLASS>, ()>(|| {
        if fails {
            return Err(());
        }
        made = true;
        lock(&guest.open).clear();
        Ok(Member(Told(Part::new(guest, class, true, &present))))
    });
    let Ok(share) = got else { return Answer::Failed };
    let s = share.0.0.guest.s;
    let mut handles = lock(&guest.world.handles);
    let handle = handles.entry(s).or_default();
    if made {
        handle.present = present;
    }
    handle.shares.push(AnyShare::new(share));
    Answer::Got(s, made)
}
