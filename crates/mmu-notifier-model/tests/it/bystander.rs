//! The bystander of the generated operations: it keeps books of its own, and compares. Also used by `fuzz/`.

use std::collections::{BTreeMap, BTreeSet};

use mmu_notifier_model::{
    Blocking, CallKind, Callback, Change, Class, Event, Failing, Ignored, IntervalClass, Kernel, Machine,
    MmState, Observed, Op, Passes, Qualifying, Ret, Subs, Wait, Who,
};

/// An operation whose numbers are made fit: which of the things that are there it is about.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Register { s: u64, c: u64, m: u64 },
    Unregister(usize),
    Get { c: u64, m: u64 },
    Put(usize),
    GracePeriod,
    Exit(u64),
    Mmdrop(u64),
    Start { m: u64, page: u64, pages: u64, event: Event, blocking: Blocking, owner: u64 },
    End(usize),
    Insert { i: u64, c: u64, m: u64, page: u64, pages: u64, locked: bool },
    Remove(usize),
    Read(usize),
}

/// What the bystander knows of a subscriber.
#[derive(Clone, Debug)]
struct Known {
    m: u64,
    /// References that were got and not put.
    gets: u64,
    by_register: bool,
    linked: bool,
    /// Holds a reference to its address space.
    holds: bool,
    /// Starts minus ends when it was linked.
    baseline: i128,
}

#[derive(Debug)]
pub(crate) struct Bystander {
    machine: Machine,
    subscribers: BTreeMap<u64, Known>,
    registering: BTreeMap<u64, u64>,
    /// Interval and address space, from insert until remove returned.
    intervals: BTreeMap<u64, u64>,
    removing: BTreeSet<u64>,
    /// Waiting gets and inserts, by task: address space.
    waiting: BTreeMap<u64, (u64, Wait, u64)>,
    inserting: BTreeSet<u64>,
    open: BTreeMap<u64, u64>,
    /// Who stored the sequence of the odd phase that is running.
    marked: BTreeMap<u64, BTreeSet<u64>>,
    born: [bool; 2],
    exited: [bool; 2],
    fresh: u64,
}

pub(crate) type Checked = Result<(), String>;

fn ensure(condition: bool, what: impl FnOnce() -> String) -> Checked {
    if condition { Ok(()) } else { Err(what()) }
}

impl Bystander {
    pub(crate) fn new(kernel: Kernel) -> Bystander {
        let mut machine = Machine::new(kernel);
        let paired = vec![Callback::Release, Callback::Start, Callback::End];
        let failing = |every, when| Some(Failing { every, code: -11, when });
        let classes = [
            Class { callbacks: paired, ..Class::default() },
            Class {
                callbacks: vec![Callback::Start],
                start_fail: failing(2, Qualifying::Nonblock),
                ..Class::default()
            },
            // Breaks the rule that a blockable start must not fail.
            Class {
                callbacks: vec![Callback::Start, Callback::Release],
                start_fail: failing(3, Qualifying::Always),
                ..Class::default()
            },
            Class { callbacks: vec![Callback::Start, Callback::End], ..Class::default() },
        ];
        let interval = IntervalClass { fail: None, set_seq: true, ignore: None, passes: Passes::One };
        let interval_classes = [
            interval.clone(),
            IntervalClass { fail: failing(3, Qualifying::Nonblock), ..interval.clone() },
            IntervalClass { ignore: Some(Ignored { event: Event::Migrate, owner: 1 }), ..interval.clone() },
            IntervalClass { passes: Passes::Two { has_finish: true, finish_every: 2 }, ..interval },
        ];
        let mut define = |op| drop(machine.apply(&op).expect("a definition"));
        for m in 0..2 {
            define(Op::Mm { m });
        }
        for (c, class) in (0..).zip(classes) {
            define(Op::Class { c, class });
        }
        for (c, class) in (0..).zip(interval_classes) {
            define(Op::Iclass { c, class });
        }
        Bystander {
            machine,
            subscribers: BTreeMap::new(),
            registering: BTreeMap::new(),
            intervals: BTreeMap::new(),
            removing: BTreeSet::new(),
            waiting: BTreeMap::new(),
            inserting: BTreeSet::new(),
            open: BTreeMap::new(),
            marked: BTreeMap::new(),
            born: [true; 2],
            exited: [false; 2],
            fresh: 100,
        }
    }

    /// The operation, if it keeps the rules of the subsystem. Address spaces of numbers that are not
    /// there make exit and drop rare.
    fn op(&mut self, action: &Action) -> Option<Op> {
        let nth = |keys: Vec<u64>, at: usize| (!keys.is_empty()).then(|| keys[at % keys.len()]);
        let alive = |m: u64| !self.exited[m as usize];
        self.fresh += 1;
        Some(match *action {
            Action::Register { s, c, m } => {
                let busy = self.subscribers.get(&s).is_some_and(|known| known.holds);
                if !alive(m) || busy || self.registering.contains_key(&s) {
                    return None;
                }
                Op::Register { s, c, m }
            }
            Action::Unregister(at) => {
                let of = self.subscribers.iter().filter(|(_, known)| known.by_register && known.holds);
                Op::Unregister { s: nth(of.map(|(&s, _)| s).collect(), at)? }
            }
            Action::Get { c, m } if alive(m) => Op::Get { c, m, new: self.fresh },
            Action::Put(at) => {
                let of = self.subscribers.iter().filter(|(_, known)| known.gets > 0);
                Op::Put { s: nth(of.map(|(&s, _)| s).collect(), at)? }
            }
            Action::GracePeriod => Op::Gp,
            // The last user goes once nobody waits for the address space to be usable.
            Action::Exit(m) if m < 2 && alive(m) && self.waiting.values().all(|(of, ..)| *of != m) => {
                Op::Exit { m }
            }
            Action::Mmdrop(m)
                if m < 2 && !alive(m) && self.born[m as usize] && self.open.values().all(|of| *of != m) =>
            {
                Op::Mmdrop { m }
            }
            Action::Start { m, page, pages, event, blocking, owner } if self.born[m as usize] => {
                let (start, end) = (page << 12, (page + pages) << 12);
                Op::Start { r: self.fresh, m, change: Change { start, end, event, blocking, owner } }
            }
            Action::End(at) => Op::End { r: nth(self.open.keys().copied().collect(), at)? },
            Action::Insert { i, c, m, page, pages, locked } => {
                if !alive(m) || self.intervals.contains_key(&i) || self.inserting.contains(&i) {
                    return None;
                }
                let (start, length) = (page << 12, pages << 12);
                match locked {
                    true => Op::InsertLocked { i, c, m, start, length },
                    false => Op::Insert { i, c, m, start, length },
                }
            }
            Action::Remove(at) => {
                let of = self.intervals.keys().filter(|i| !self.removing.contains(*i));
                Op::Remove { i: nth(of.copied().collect(), at)? }
            }
            Action::Read(at) => Op::ReadBegin { i: nth(self.intervals.keys().copied().collect(), at)? },
            _ => return None,
        })
    }

    fn subs(&self, m: u64) -> Option<Subs> {
        match self.machine.state(m) {
            Some(MmState::Live { subs, .. }) => subs,
            _ => None,
        }
    }

    pub(crate) fn step(&mut self, action: &Action) -> Checked {
        let Some(op) = self.op(action) else { return Ok(()) };
        let before = [self.machine.state(0), self.machine.state(1)];
        let seen = self.machine.apply(&op).map_err(|why| format!("{op}: {why}"))?;
        ensure(seen.bug.is_none(), || format!("{op}: {:?}", seen.bug))?;

        self.callbacks_are_due(&op, &seen)?;
        for resumed in &seen.resumed {
            self.callbacks_are_due(&op, &resumed.seen)?;
        }
        self.book(&op, &seen);
        for m in 0..2 {
            let was = match &before[m as usize] {
                Some(MmState::Live { subs, .. }) => subs.clone(),
                _ => None,
            };
            if let (Some(was), Some(is)) = (was, self.subs(m)) {
                let frozen = was.seq & 1 == 1 && is.seq == was.seq;
                ensure(!frozen || was.tree == is.tree, || format!("{op}: the tree changed while frozen"))?;
                if let Op::Start { m: of, change, .. } = &op
                    && *of == m
                    && change.blocking == Blocking::Forbidden
                    && seen.ret != Some(Ret::Code(0))
                {
                    refusal_left_nothing(&was, &is).map_err(|what| format!("{op}: {what}"))?;
                    ensure(seen.resumed.is_empty(), || format!("{op}: someone went on"))?;
                }
            }
            self.holds(m).map_err(|what| format!("{op}: mm{m}: {what}"))?;
        }
        self.nobody_waits_for_nothing().map_err(|what| format!("{op}: {what}"))
    }

    /// Invariant 8.
    fn callbacks_are_due(&self, op: &Op, seen: &Observed) -> Checked {
        for call in &seen.calls {
            let due = match (call.kind, call.who) {
                (CallKind::Alloc | CallKind::MmFree, _) => true,
                (CallKind::Free, Who::Subscriber(Some(s))) => self
                    .subscribers
                    .get(&s)
                    .is_some_and(|known| !known.by_register && known.gets == 0 && !known.linked),
                (_, Who::Subscriber(Some(s))) => self.subscribers.get(&s).is_some_and(|known| known.linked),
                (_, Who::Interval(i)) => self.intervals.contains_key(&i),
                _ => false,
            };
            ensure(due, || format!("{op}: {:?} is called", call))?;
        }
        Ok(())
    }

    /// Writes down what the operation, and those that went on after it, did.
    fn book(&mut self, op: &Op, seen: &Observed) {
        for call in &seen.calls {
            if let (CallKind::Invalidate | CallKind::InvalidateStart, Who::Interval(i), Some(true)) =
                (call.kind, call.who, call.set)
            {
                self.marked.entry(self.intervals[&i]).or_default().insert(i);
            }
            if let (CallKind::Free, Who::Subscriber(Some(s))) = (call.kind, call.who) {
                self.subscribers.remove(&s);
            }
        }
        if let Some((wait, task)) = seen.blocked {
            let m = match *op {
                Op::Register { s, m, .. } => {
                    self.registering.insert(s, m);
                    m
                }
                Op::Insert { i, m, .. } | Op::InsertLocked { i, m, .. } => {
                    self.inserting.insert(i);
                    m
                }
                Op::Remove { i } => {
                    self.removing.insert(i);
                    self.intervals[&i]
                }
                Op::ReadBegin { i } => self.intervals[&i],
                Op::Get { m, .. } => m,
                _ => unreachable!("{op} waits"),
            };
            let seq = self.subs(m).map_or(0, |subs| subs.seq);
            self.waiting.insert(task, (m, wait, seq));
        } else {
            self.book_result(op, seen);
        }
        for resumed in &seen.resumed {
            let (m, ..) = self.waiting.remove(&resumed.task).expect("it waited");
            let (_, number) = resumed.id;
            match resumed.op {
                "register" => {
                    self.registering.remove(&number);
                    self.link(number, m, true);
                }
                "get" => self.got(resumed.seen.got.expect("it got one"), m),
                "insert" | "insert_locked" => {
                    self.inserting.remove(&number);
                    self.intervals.insert(number, m);
                }
                "remove" => {
                    self.removing.remove(&number);
                    self.intervals.remove(&number);
                }
                _ => {}
            }
        }
        for m in 0..2 {
            if self.subs(m).is_none_or(|subs| subs.seq & 1 == 0) {
                self.marked.remove(&m);
            }
        }
    }

    fn book_result(&mut self, op: &Op, seen: &Observed) {
        match *op {
            Op::Register { s, m, .. } => self.link(s, m, true),
            Op::Get { m, .. } => self.got(seen.got.expect("nothing fails"), m),
            Op::Unregister { s } => {
                let known = self.subscribers.get_mut(&s).expect("known");
                (known.linked, known.holds) = (false, false);
            }
            Op::Put { s } => {
                let known = self.subscribers.get_mut(&s).expect("known");
                known.gets -= 1;
                if known.gets == 0 && !known.by_register {
                    known.linked = false;
                }
            }
            Op::Exit { m } => {
                self.exited[m as usize] = true;
                for known in self.subscribers.values_mut().filter(|known| known.m == m) {
                    known.linked = false;
                }
            }
            Op::Mmdrop { m } => self.born[m as usize] = false,
            Op::Start { r, m, change }
                if change.blocking == Blocking::Allowed || seen.ret == Some(Ret::Code(0)) =>
            {
                self.open.insert(r, m);
            }
            Op::Start { .. } => {}
            Op::End { r } => drop(self.open.remove(&r)),
            Op::Insert { i, m, .. } | Op::InsertLocked { i, m, .. } => {
                self.intervals.insert(i, m);
                if self.open.values().any(|of| *of == m) {
                    self.marked.entry(m).or_default().insert(i);
                }
            }
            Op::Remove { i } => {
                self.intervals.remove(&i);
                for marked in self.marked.values_mut() {
                    marked.remove(&i);
                }
            }
            _ => {}
        }
    }

    fn link(&mut self, s: u64, m: u64, by_register: bool) {
        let balance =
            self.machine.balances().into_iter().find(|balance| balance.s == s).expect("it is there");
        let gets = u64::from(!by_register);
        let baseline = balance.open();
        self.subscribers.insert(s, Known { m, gets, by_register, linked: true, holds: true, baseline });
    }

    fn got(&mut self, s: u64, m: u64) {
        match self.subscribers.get_mut(&s) {
            Some(known) => known.gets += 1,
            None => self.link(s, m, false),
        }
    }

    /// Invariants 1, 3, 5 and 7 of one address space.
    fn holds(&self, m: u64) -> Checked {
        let Some(MmState::Live { count, subs, .. }) = self.machine.state(m) else { return Ok(()) };
        let subscribers = self.subscribers.values().filter(|known| known.m == m && known.holds).count();
        let intervals = self.intervals.values().filter(|of| **of == m).count();
        let due = u64::from(self.born[m as usize]) + subscribers as u64 + intervals as u64;
        ensure(count == due, || format!("{count} references, {due} are due"))?;

        let Some(subs) = subs else { return Ok(()) };
        let open = self.open.values().filter(|of| **of == m).count() as u64;
        let entered = if subs.has_itree { open } else { 0 };
        ensure(subs.active == entered, || format!("active {} with {entered} open", subs.active))?;
        ensure(subs.seq & 1 == 0 || subs.active > 0, || "odd with nothing active".to_owned())?;
        let is_idle = subs.seq & 1 == 0 && subs.deferred.is_empty();
        ensure(subs.active > 0 || is_idle, || "idle, and odd or something deferred".to_owned())?;

        for (i, stored) in &subs.stored {
            ensure(stored & 1 == 1, || format!("i{i} stored the even {stored}"))?;
            let is_hit = self.marked.get(&m).is_some_and(|marked| marked.contains(i));
            ensure((*stored == subs.seq) == is_hit, || {
                format!("i{i} stored {stored} at {}: {is_hit}", subs.seq)
            })?;
        }

        for balance in self.machine.balances() {
            let Some(known) = self.subscribers.get(&balance.s) else { continue };
            if known.linked && known.m == m && balance.is_paired {
                let raised = balance.open() - known.baseline;
                ensure(raised == i128::from(open), || {
                    format!("s{} is at {raised} with {open} open", balance.s)
                })?;
            }
        }
        Ok(())
    }

    /// Invariant 6.
    fn nobody_waits_for_nothing(&self) -> Checked {
        let stuck = self.machine.finish().stuck;
        ensure(stuck.len() == self.waiting.len(), || format!("{stuck:?} wait"))?;
        for (task, _, wait) in stuck {
            let (m, booked, seq) = self.waiting[&task];
            let justified = match wait {
                Wait::Invalidation => self.subs(m).is_some_and(|subs| subs.seq == seq),
                Wait::MmapLock => self.open.values().any(|of| *of == m),
            };
            ensure(booked == wait && justified, || format!("task {task} still waits for {}", wait.name()))?;
        }
        Ok(())
    }
}

/// Invariant 2.
fn refusal_left_nothing(was: &Subs, is: &Subs) -> Checked {
    let moved = is.seq.wrapping_sub(was.seq);
    let allowed = if was.active == 0 { [0, 2] } else { [0, 1] };
    ensure(allowed.contains(&moved), || format!("the sequence went from {} to {}", was.seq, is.seq))?;
    let intervals = |subs: &Subs| subs.stored.iter().map(|(i, _)| *i).collect::<Vec<_>>();
    let subscribers = |subs: &Subs| {
        let rest = |c: &mmu_notifier_model::Count| (c.s, c.users, c.linked);
        subs.counts.iter().map(rest).collect::<Vec<_>>()
    };
    ensure(
        (is.active, is.has_itree, &is.list, &is.tree, &is.deferred, is.pending_frees)
            == (was.active, was.has_itree, &was.list, &was.tree, &was.deferred, was.pending_frees)
            && intervals(is) == intervals(was)
            && subscribers(is) == subscribers(was),
        || format!("something is left: {was:?} became {is:?}"),
    )
}
