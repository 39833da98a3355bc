//! Coming and going: registration, references, grace periods, exit.
//!
//! A registration must not fall between a start and its end, or its subscriber would see an end without
//! a start. The kernel excludes that by taking every lock of the address space (`mm_take_all_locks`),
//! one of which each caller of start holds until after the end. Here a pair that is open says the same.
//!
//! A subscriber goes in one of two ways: `mmu_notifier_unregister` calls release and waits until no
//! callback runs; `mmu_notifier_put` drops a reference and leaves the waiting to SRCU, which frees the
//! object after a grace period. A grace period here ends when someone waits for one, or on request.

use super::waiters::{Task, Waiter};
use super::{Impossible, Machine, Outcome, Subscriber, Subscriptions, impossible};
use crate::observe::{Bug, Call, CallKind, Context, Observed, Ret, Wait, Warning, Who};
use crate::op::{Blocking, Callback, Change, Event};

pub(super) const EINTR: i64 = -4;
pub(super) const ENOMEM: i64 = -12;
pub(super) const EINVAL: i64 = -22;
pub(super) const EOVERFLOW: i64 = -75;

/// A code to return, or the end of everything.
pub(super) type Registered = Result<(), Failure>;

pub(super) enum Failure {
    Code(i64),
    Bug(Bug),
}

impl Machine {
    /// `mmu_notifier_register`, up to where it wants `mmap_lock`.
    pub(super) fn register(&mut self, task: u64, s: u64, c: u64, m: u64) -> Result<Outcome, Impossible> {
        self.live_mm(m)?;
        self.known_class(c)?;
        if let Some(old) = self.subscribers.get(&s) {
            if old.freed {
                return impossible("s", format!("subscriber {s} was freed"));
            }
            if self.is_linked(s) || self.is_registering(s) || self.pending_frees.contains(&s) {
                return impossible("s", format!("subscriber {s} is registered, or not yet free"));
            }
            let subscriber = self.subscriber_mut(s);
            (subscriber.class, subscriber.mm) = (c, m);
        } else {
            self.subscribers.insert(s, Subscriber::new(c, m));
        }
        if self.mm(m).open > 0 {
            return Ok(self.wait(Waiter { task, mm: m, what: Task::Register { s } }));
        }
        Ok(Outcome::of(self.register_locked(s), m))
    }

    /// `mmu_notifier_register` with `mmap_lock` held.
    pub(super) fn register_locked(&mut self, s: u64) -> Observed {
        let m = self.subscribers[&s].mm;
        match self.link(m, Some(s)) {
            Ok(()) => Observed { ret: Some(Ret::Code(0)), ..Observed::default() },
            Err(Failure::Code(code)) => Observed { ret: Some(Ret::Code(code)), ..Observed::default() },
            Err(Failure::Bug(bug)) => self.stop(bug),
        }
    }

    /// `__mmu_notifier_register`: makes the structure if there is none, then links a subscriber at the
    /// head of the list, or switches intervals on if there is none to link.
    pub(super) fn link(&mut self, m: u64, s: Option<u64>) -> Registered {
        if self.mm(m).users == 0 || self.mm(m).freed {
            return Err(Failure::Bug(Bug::DeadMm));
        }
        if let Some(s) = s
            && self.kernel.tlb_excludes_ranges
        {
            let class = self.class_of(s);
            if class.has(Callback::Tlb) && (class.has(Callback::Start) || class.has(Callback::End)) {
                if !self.warned_mixed {
                    self.warned_mixed = true;
                    self.warn(Warning::MixedTlbAndRangeOps);
                }
                return Err(Failure::Code(EINVAL));
            }
        }
        let is_first = self.mm(m).subs.is_none();
        if is_first && std::mem::take(&mut self.fail_next_allocation) {
            return Err(Failure::Code(ENOMEM));
        }
        if std::mem::take(&mut self.fail_next_locking) {
            return Err(Failure::Code(EINTR));
        }
        let mm = self.mm_mut(m);
        let subs = mm.subs.get_or_insert_with(Subscriptions::new);
        match s {
            Some(s) => {
                mm.count += 1;
                subs.list.insert(0, s);
                self.subscriber_mut(s).users = 1;
            }
            None => subs.has_itree = true,
        }
        Ok(())
    }

    /// `mmu_notifier_unregister`. Who unregisters inside an open pair gets release, and no end.
    pub(super) fn unregister(&mut self, s: u64) -> Result<Outcome, Impossible> {
        let m = self.live_subscriber(s)?.mm;
        self.live_mm(m)?;
        if self.is_linked(s) {
            self.call_release(s);
            // Already unlinked if release put it.
            self.unlink(s);
        }
        // The wait for callbacks that may still run is also what lets pending frees run.
        self.run_pending_frees();
        self.drop_reference(m);
        Ok(Outcome::code(0, m))
    }

    /// `mmu_notifier_get`, up to where it wants `mmap_lock`.
    pub(super) fn get(&mut self, task: u64, c: u64, m: u64, new: u64) -> Result<Outcome, Impossible> {
        self.live_mm(m)?;
        self.known_class(c)?;
        if self.subscribers.contains_key(&new) || self.is_promised(new) {
            return impossible("new", format!("subscriber {new} is there already"));
        }
        if self.mm(m).open > 0 {
            return Ok(self.wait(Waiter { task, mm: m, what: Task::Get { c, new } }));
        }
        Ok(Outcome::of(self.get_locked(c, m, new), m))
    }

    /// `mmu_notifier_get_locked`: one subscriber for each pair of ops table and address space.
    pub(super) fn get_locked(&mut self, c: u64, m: u64, new: u64) -> Observed {
        let failed = |code| Observed { ret: Some(Ret::Code(code)), ..Observed::default() };
        let got = |s| Observed { ret: Some(Ret::Code(0)), got: Some(s), ..Observed::default() };

        // Whoever is linked with these ops will do, even if it came by plain registration.
        let list = self.mm(m).subs.as_ref().map_or(&[][..], |subs| &subs.list);
        if let Some(&s) = list.iter().find(|s| self.subscribers[s].class == c) {
            let subscriber = self.subscriber_mut(s);
            return match subscriber.users.checked_add(1) {
                Some(users) => {
                    subscriber.users = users;
                    got(s)
                }
                None => failed(EOVERFLOW),
            };
        }

        let fails = std::mem::take(&mut self.fail_next_allocation);
        let mut call = Call::new(CallKind::Alloc, Who::Subscriber((!fails).then_some(new)), None);
        call.ret = Some(Ret::Code(if fails { ENOMEM } else { 0 }));
        self.record.calls.push(call);
        if fails {
            return failed(ENOMEM);
        }
        self.subscribers.insert(new, Subscriber::new(c, m));
        match self.link(m, Some(new)) {
            Ok(()) => got(new),
            Err(Failure::Code(code)) => {
                // Nobody can have seen the object: no grace period is needed.
                self.call_free(new);
                failed(code)
            }
            Err(Failure::Bug(bug)) => self.stop(bug),
        }
    }

    /// `mmu_notifier_put`. Release is not called: the driver tore its mappings down before.
    pub(super) fn put(&mut self, s: u64) -> Result<Outcome, Impossible> {
        let m = self.live_subscriber(s)?.mm;
        self.put_reference(s);
        Ok(Outcome::quiet(m))
    }

    pub(super) fn put_reference(&mut self, s: u64) {
        let subscriber = self.subscriber_mut(s);
        match subscriber.users {
            0 => self.warn(Warning::PutWithoutUsers),
            1 => {
                subscriber.users = 0;
                self.unlink(s);
                self.pending_frees.push_back(s);
            }
            _ => subscriber.users -= 1,
        }
    }

    /// `mmu_notifier_synchronize`, and the grace period that ends by itself.
    pub(super) fn grace_period(&mut self) -> Result<Outcome, Impossible> {
        self.run_pending_frees();
        // A grace period is of no address space in particular; the trace shows the first.
        Ok(Outcome { show: self.mms.keys().next().copied(), ..Outcome::default() })
    }

    /// `mmu_notifier_free_rcu` for everyone whose last reference was put, oldest first.
    pub(super) fn run_pending_frees(&mut self) {
        while let Some(s) = self.pending_frees.pop_front() {
            self.call_free(s);
            self.drop_reference(self.subscribers[&s].mm);
        }
    }

    /// The last user is gone: `mmu_notifier_release`, which runs before any page is unmapped.
    pub(super) fn exit(&mut self, m: u64) -> Result<Outcome, Impossible> {
        self.live_mm_mut(m)?.users = 0;
        let Some(subs) = &self.mm(m).subs else {
            return Ok(Outcome::quiet(m));
        };
        if subs.has_itree {
            self.release_intervals(m);
        }
        let list = self.mm(m).subs.as_ref().map_or(Vec::new(), |subs| subs.list.clone());
        if !list.is_empty() {
            // `mn_hlist_release`: first everyone is told, then everyone is unlinked, then it waits for
            // those that an unregister elsewhere may still be telling.
            for s in list {
                if self.class_of(s).has(Callback::Release) {
                    self.call_release(s);
                }
            }
            self.mm_mut(m).subs.as_mut().expect("never goes while the mm lives").list.clear();
            self.run_pending_frees();
        }
        Ok(Outcome::quiet(m))
    }

    /// `mn_itree_release`: a made-up invalidation of everything but the last byte. The intervals stay
    /// in the tree, and get the unmapping that follows as well.
    fn release_intervals(&mut self, m: u64) {
        let change =
            Change { start: 0, end: u64::MAX, event: Event::Release, blocking: Blocking::Allowed, owner: 0 };
        let (hit, seq) = self.enter_intervals(m, change.start, change.end);
        let mut finishes = Vec::new();
        for i in hit {
            let answer = self.call_interval(i, change, seq, Context::BARE);
            finishes.extend(answer.finish.then_some(i));
            if !answer.agreed {
                self.warn(Warning::ReleaseRefused);
            }
        }
        self.call_finishes(&finishes, Context::BARE);
        self.leave_intervals(m);
    }

    /// The owner of the address space drops the reference it was born with (`mmdrop`).
    pub(super) fn drop_born_reference(&mut self, m: u64) -> Result<Outcome, Impossible> {
        let mm = self.live_mm_mut(m)?;
        if std::mem::replace(&mut mm.born_reference_dropped, true) {
            return impossible("m", format!("the reference of address space {m} was dropped before"));
        }
        self.drop_reference(m);
        Ok(Outcome::quiet(m))
    }

    /// `mmdrop`; the last one frees the structure, too (`mmu_notifier_subscriptions_destroy`).
    pub(super) fn drop_reference(&mut self, m: u64) {
        let mm = self.mm_mut(m);
        mm.count = mm.count.saturating_sub(1);
        if mm.count > 0 || mm.freed {
            return;
        }
        if mm.subs.as_ref().is_some_and(|subs| !subs.list.is_empty()) {
            self.record.bug = Some(Bug::DestroyWithSubscribers);
            return;
        }
        mm.freed = true;
        mm.subs = None;
        self.record.calls.push(Call::new(CallKind::MmFree, Who::Mm(m), None));
    }

    fn unlink(&mut self, s: u64) {
        let m = self.subscribers[&s].mm;
        if let Some(subs) = &mut self.mm_mut(m).subs {
            subs.list.retain(|&other| other != s);
        }
    }

    fn known_class(&self, c: u64) -> Result<(), Impossible> {
        match self.classes.contains_key(&c) {
            true => Ok(()),
            false => impossible("c", format!("there is no class {c}")),
        }
    }

    /// Records a bug; the operation has no result.
    pub(super) fn stop(&mut self, bug: Bug) -> Observed {
        self.record.bug = Some(bug);
        Observed::default()
    }

    fn wait(&mut self, waiter: Waiter) -> Outcome {
        let (m, task) = (waiter.mm, waiter.task);
        self.waiters.push(waiter);
        Outcome::of(Observed { blocked: Some((Wait::MmapLock, task)), ..Observed::default() }, m)
    }
}

impl Subscriptions {
    fn new() -> Subscriptions {
        Subscriptions {
            seq: 2,
            active: 0,
            has_itree: false,
            list: Vec::new(),
            tree: Vec::new(),
            deferred: Default::default(),
        }
    }
}

impl Subscriber {
    fn new(class: u64, mm: u64) -> Subscriber {
        Subscriber {
            class,
            mm,
            users: 0,
            freed: false,
            started: 0,
            failed: 0,
            ended: 0,
            qualifying: 0,
            answered: [0; 3],
        }
    }
}
