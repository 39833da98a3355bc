//! One operation after the other, on the model and on the core, compared.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use mmu_notifier::Event;
use mmu_notifier_model::{CallKind, Callback, Change, Kernel, Machine, Observed, Op, Ret};

use crate::books::{Books, Got, Here, Listed, Pair, Waiter, subs};
use crate::driver::Core;
use crate::faults::Fault;
use crate::leftout::{Fit, LeftOut, alloc_failed, fit};
use crate::refine::{Expected, Refinement, Tally, expect};
use crate::seen::{Said, Seen, difference, is_in_order};
use crate::threads::{Answer, MANY, Progress, TWO};

/// What differs, if anything does.
pub(crate) type Checked = Result<(), String>;

pub(crate) struct Oracle {
    pub(crate) machine: Machine,
    core: Core,
    pub(crate) books: Books,
    task: u64,
    pub(crate) met: Tally,
    pub(crate) left_out: BTreeMap<LeftOut, usize>,
    /// Operations that were done to both.
    pub(crate) compared: usize,
}

fn ensure(condition: bool, what: impl FnOnce() -> String) -> Checked {
    if condition { Ok(()) } else { Err(what()) }
}

impl Oracle {
    pub(crate) fn new(fault: Fault) -> Oracle {
        let (books, task, met, left_out, compared) = Default::default();
        Oracle {
            machine: Machine::new(Kernel::REPAIRED),
            core: Core::new(fault),
            books,
            task,
            met,
            left_out,
            compared,
        }
    }

    fn met(&mut self, refinement: Refinement) {
        *self.met.entry(refinement).or_insert(0) += 1;
    }

    /// Does an operation; what the model saw of it, if it was done to the model.
    pub(crate) fn step(&mut self, op: &Op) -> Result<Option<Observed>, String> {
        self.task += 1;
        match fit(op, &self.books, &self.core, &self.machine) {
            Fit::Neither(reason) => {
                *self.left_out.entry(reason).or_insert(0) += 1;
                if let Op::Start { r, .. } = *op {
                    self.books.left_out.insert(r);
                }
                Ok(None)
            }
            Fit::ModelOnly(reason, done) => {
                let (observed, after) = *done;
                if let Some(reason) = reason {
                    *self.left_out.entry(reason).or_insert(0) += 1;
                }
                self.machine = after;
                self.arm(op, &observed);
                Ok(Some(observed))
            }
            Fit::Both(done) => {
                let (observed, after) = *done;
                self.both(op, &observed, after)
                    .map_err(|what| format!("operation {}, {op}: {what}", self.task))?;
                Ok(Some(observed))
            }
        }
    }

    fn arm(&mut self, op: &Op, observed: &Observed) {
        match (op, observed.ret) {
            (Op::Inject { kind: mmu_notifier_model::Injection::Enomem }, _) => self.books.armed[0] = true,
            (Op::Inject { kind: mmu_notifier_model::Injection::Eintr }, _) => self.books.armed[1] = true,
            (_, Some(Ret::Code(-12))) => self.books.armed[0] = false,
            (_, Some(Ret::Code(-4))) => self.books.armed[1] = false,
            _ => {}
        }
    }

    fn both(&mut self, op: &Op, observed: &Observed, after: Machine) -> Checked {
        self.compared += 1;
        let expected = expect(op, observed, &self.machine, &self.books, &mut self.met);
        self.tell_guests();
        if let Op::ReadRetry { i, seq } | Op::CheckRetry { i, seq } = *op {
            self.machine = after;
            return self.compare_staleness(i, seq, observed.ret == Some(Ret::Truth(true)));
        }
        let begun = match *op {
            Op::ReadBegin { i } => self.books.intervals[&i].hits.len(),
            _ => 0,
        };
        if let Op::Get { .. } | Op::Register { .. } = op {
            // It is on the list before it has waited.
            self.list(op);
        }
        let progress = self.core.apply(self.task, op, alloc_failed(observed));
        let seen = self.core.seen();
        ensure(is_in_order(&seen), || format!("the order is not that of the contract: {seen:?}"))?;
        difference(&expected.seen, &seen).map_or(Ok(()), Err)?;
        for (i, change) in &expected.elsewhere {
            self.core.called_elsewhere(*i, *change);
        }
        self.count_hits(&seen, observed);
        if observed.bug.is_none() {
            self.machine = after;
            self.arm(op, observed);
        } else {
            ensure(observed.blocked.is_none(), || "it waits and stops".to_owned())?;
        }
        self.compare_progress(op, observed, &expected, progress, begun)?;
        self.settle(op, observed)?;
        self.check_invariants()
    }

    /// Whom the model does not call agrees and does not count.
    fn tell_guests(&self) {
        let all: Vec<_> = self.books.mms.iter().filter_map(|m| subs(&self.machine, *m)).collect();
        self.core.set_counted(
            |s| all.iter().any(|subs| subs.list.contains(&s)),
            |i| all.iter().any(|subs| subs.tree.contains(&i)),
        );
    }

    fn list(&mut self, op: &Op) {
        let books = &mut self.books;
        let (s, c, m, shares) = match *op {
            Op::Register { s, c, m } => (s, c, m, 0),
            Op::Get { c, m, new } => {
                let found =
                    books.listed.values_mut().find(|other| other.m == m && other.c == c && other.shares > 0);
                if let Some(found) = found {
                    found.shares += 1;
                    return;
                }
                (new, c, m, 1)
            }
            _ => return,
        };
        let class = books.classes[&c].clone();
        // A member ages when `get` has returned: see `Core::went_on`.
        let ages = if shares == 0 { books.next_age() } else { None };
        let listed = Listed { m, c, class, since: self.task, shares, ages };
        if listed.sides().changes {
            books.edited.insert(m, self.task);
        }
        books.listed.insert(s, listed);
    }

    fn count_hits(&mut self, seen: &[Seen], observed: &Observed) {
        for seen in seen {
            let Seen::Interval { i, answer, .. } = *seen else { continue };
            if answer == Said::Ignored {
                continue;
            }
            let is_it = |call: &&mmu_notifier_model::Call| {
                matches!(call.kind, CallKind::Invalidate | CallKind::InvalidateStart)
                    && call.who == mmu_notifier_model::Who::Interval(i)
            };
            let stored = observed.calls.iter().find(is_it).is_some_and(|call| call.set == Some(true));
            self.books.intervals.get_mut(&i).expect("it was called").hits.push(stored);
        }
    }

    fn compare_staleness(&mut self, i: u64, seq: u64, stale_there: bool) -> Checked {
        let books = &self.books;
        let hits = &books.intervals[&i].hits;
        let mut more = 0;
        for got in books.tickets[&i].iter().filter(|got| got.seq == Some(seq)) {
            let Some(ticket) = &got.ticket else { continue };
            let stale = self.core.is_stale(i, ticket);
            let expected = hits.len() != got.begun;
            ensure(stale == expected, || {
                format!("stale: {stale}, but {} calls since the read began", hits.len() - got.begun)
            })?;
            ensure(stale || !stale_there, || "not stale here, stale in the model".to_owned())?;
            if stale && !stale_there {
                // All those calls did not store the sequence, or came before the model's reader had it.
                let stored = hits[got.over.max(got.begun)..].iter().any(|stored| *stored);
                ensure(!stored, || {
                    "a call that stored the sequence, and the model's ticket is good".to_owned()
                })?;
                more += 1;
            }
        }
        for _ in 0..more {
            self.met(Refinement::StaleMore);
        }
        Ok(())
    }

    /// What the first half of the operation came to.
    fn compare_progress(
        &mut self,
        op: &Op,
        observed: &Observed,
        expected: &Expected,
        progress: Progress,
        begun: usize,
    ) -> Checked {
        let over_there = observed.blocked.is_none();
        // Who made it may wait longer than he must: for changes that know him, but from another list.
        let may_get_wait = matches!(*op, Op::Get { c, m, .. } if self.books.is_being_made(c, m) && !self.books.open_in(m).is_empty());
        let may_wait = !expected.waits.is_empty() || self.may_synchronize_wait(op).is_ok() || may_get_wait;
        let progress = match progress {
            Progress::Waits(waiting) if !may_wait => {
                self.core.late(self.task, MANY).map_or(Progress::Waits(waiting), Progress::Done)
            }
            other => other,
        };
        let core = match progress {
            Progress::Done(answer) => {
                ensure(expected.waits.is_empty(), || {
                    format!("it must wait for {:?}, and answered {answer:?}", expected.waits)
                })?;
                Some(answer)
            }
            Progress::Waits(waiting) if matches!(op, Op::Synchronize | Op::Gp) => {
                self.may_synchronize_wait(op).map_err(|what| format!("{what}: {waiting:?}"))?;
                self.met(Refinement::SynchronizeWaits);
                None
            }
            Progress::Waits(waiting) => {
                ensure(!expected.waits.is_empty() || may_get_wait, || {
                    format!("it waits for nothing: {waiting:?}")
                })?;
                None
            }
        };
        if let Op::ReadBegin { i } = *op {
            let here = &self.books.intervals[&i];
            let got = Got { ticket: None, seq: observed.seq, task: self.task, begun, over: here.hits.len() };
            self.books.tickets.entry(i).or_default().push(got);
        }
        if let Some(answer) = &core {
            self.enter(self.task, op, answer);
        }
        if over_there && let Some(answer) = &core {
            return self.compare_answers(self.task, op, observed, answer);
        }
        let label = observed.blocked.map(|(_, label)| label);
        let model = over_there.then(|| observed.clone());
        let must = expected.waits.clone();
        self.books.waiters.insert(self.task, Waiter { op: op.clone(), label, model, core, must });
        Ok(())
    }

    /// `synchronize` waits only if somebody came or left while something was open that is open still.
    fn may_synchronize_wait(&self, op: &Op) -> Checked {
        ensure(matches!(op, Op::Synchronize | Op::Gp), || "it does not synchronize".to_owned())?;
        let books = &self.books;
        let edited = |pair: &Pair| books.edited.get(&pair.m).is_some_and(|edited| *edited > pair.since);
        ensure(books.open.values().any(|pair| edited(pair) && !pair.is_unseen), || {
            "the list that is in use is that of today".to_owned()
        })
    }

    /// The result of an operation that is over in both.
    fn compare_answers(&mut self, task: u64, op: &Op, observed: &Observed, answer: &Answer) -> Checked {
        let refuses = matches!(observed.ret, Some(Ret::Code(code)) if code != 0);
        let dead = observed.bug == Some(mmu_notifier_model::Bug::DeadMm);
        let panics = matches!(answer, Answer::Panicked(text) if text.contains("has been released"));
        let agree = match *op {
            Op::Register { .. } if dead => panics,
            Op::Get { .. } if dead => panics,
            Op::Register { .. } => !refuses && *answer == Answer::Nothing,
            Op::Get { .. } => match (observed.got, answer) {
                (Some(s), Answer::Got(got, made)) => {
                    let makes = observed.calls.iter().any(|call| call.kind == CallKind::Alloc);
                    s == *got && makes == *made
                }
                (None, Answer::Failed) => refuses,
                _ => false,
            },
            Op::Insert { .. } | Op::InsertLocked { .. } => match answer {
                Answer::Nothing => !refuses && !dead,
                Answer::Failed => {
                    if dead {
                        self.met(Refinement::LateInsertFails);
                    }
                    refuses || dead
                }
                _ => false,
            },
            Op::Start { .. } => *answer == if refuses { Answer::Refused } else { Answer::Nothing },
            Op::ClearFlushYoung { .. } | Op::ClearYoung { .. } | Op::TestYoung { .. } => {
                *answer == Answer::Truth(refuses)
            }
            Op::ReadBegin { .. } => matches!(answer, Answer::Ticket(_)),
            Op::HasNotifiers { m } => {
                let somebody = !self.books.is_nobody_there(m);
                if observed.ret != Some(Ret::Truth(somebody)) {
                    self.met(Refinement::NobodyIsNobody);
                }
                *answer == Answer::Truth(somebody)
            }
            Op::Finish => {
                let open = observed.finish.as_ref().map(|finish| &finish.open);
                open.is_some_and(|open| open.iter().eq(self.books.open.keys()))
            }
            Op::End { .. } | Op::Tlb { .. } | Op::Synchronize | Op::Gp => *answer == Answer::Truth(true),
            _ => *answer == Answer::Nothing,
        };
        ensure(agree, || format!("the model says{observed}, the core {answer:?}"))?;
        self.check_departed(task, op)
    }

    /// Writes down what the core has done.
    fn enter(&mut self, task: u64, op: &Op, answer: &Answer) {
        let books = &mut self.books;
        match *op {
            Op::Mm { m } => drop(books.mms.insert(m)),
            Op::Class { c, ref class } => drop(books.classes.insert(c, class.clone())),
            Op::Iclass { c, ref class } => drop(books.interval_classes.insert(c, class.clone())),
            Op::Register { s, .. } if *answer != Answer::Nothing => drop(books.listed.remove(&s)),
            Op::Get { new, .. } if !matches!(answer, Answer::Got(..)) => drop(books.listed.remove(&new)),
            Op::Get { .. } => {
                if let Answer::Got(s, true) = answer {
                    let ages = books.next_age();
                    if let Some(listed) = books.listed.get_mut(s) {
                        listed.ages = ages;
                    }
                }
            }
            Op::Unregister { s } => books.leaves(s, task),
            Op::Put { s } => {
                let listed = books.listed.get_mut(&s);
                let last = listed.is_none_or(|listed| {
                    listed.shares = listed.shares.saturating_sub(1);
                    listed.shares == 0
                });
                if last {
                    if let Some(listed) = books.listed.get_mut(&s) {
                        // It leaves the list of members.
                        listed.shares = 1;
                    }
                    books.leaves(s, task);
                }
            }
            Op::Exit { m } => {
                let all: Vec<u64> =
                    books.listed.iter().filter(|(_, listed)| listed.m == m).map(|(s, _)| *s).collect();
                for s in all {
                    books.leaves(s, task);
                }
                books.starts.entry(m).or_default().0[Event::Release as usize] += 1;
            }
            Op::Start { r, m, change } => {
                let is_unseen = books.is_nobody_there(m);
                let (events, refused) = books.starts.entry(m).or_default();
                events[event_index(&change)] += 1;
                match answer {
                    Answer::Nothing => drop(books.open.insert(r, Pair { m, change, since: task, is_unseen })),
                    _ => {
                        *refused += 1;
                        books.left_out.remove(&r);
                    }
                }
            }
            Op::End { r } => drop(books.open.remove(&r)),
            Op::Insert { i, c, m, start, length } | Op::InsertLocked { i, c, m, start, length }
                if *answer == Answer::Nothing =>
            {
                let class = books.interval_classes[&c].clone();
                let here = Here { m, class, start, end: start + length, since: task, hits: Vec::new() };
                books.intervals.insert(i, here);
            }
            Op::ReadBegin { i } => {
                let got =
                    books.tickets.get_mut(&i).and_then(|got| got.iter_mut().find(|got| got.task == task));
                if let (Some(got), Answer::Ticket(ticket)) = (got, answer) {
                    got.ticket = Some(*ticket);
                }
            }
            Op::Remove { i } => {
                books.intervals.remove(&i);
                books.tickets.remove(&i);
            }
            _ => {}
        }
    }

    /// Lets those go on that the operation has woken, in both.
    fn settle(&mut self, op: &Op, observed: &Observed) -> Checked {
        for resumed in &observed.resumed {
            let (task, waiter) = self
                .books
                .waiters
                .iter_mut()
                .find(|(_, waiter)| waiter.label == Some(resumed.task))
                .ok_or_else(|| format!("nobody waits as {}", resumed.task))?;
            waiter.model = Some(resumed.seen.clone());
            if let Op::ReadBegin { i } = waiter.op {
                let over = self.books.intervals.get(&i).map_or(0, |here| here.hits.len());
                let mut got = self.books.tickets.get_mut(&i).into_iter().flatten();
                if let Some(got) = got.find(|got| got.task == *task) {
                    (got.seq, got.over) = (resumed.seen.seq, over);
                }
            }
        }
        let waiting: Vec<u64> = self
            .books
            .waiters
            .iter()
            .filter(|(_, waiter)| waiter.core.is_none())
            .map(|(task, _)| *task)
            .collect();
        for task in waiting {
            self.settle_core(task, matches!(op, Op::End { .. }))?;
        }
        let is_over = |_: &u64, waiter: &mut Waiter| waiter.core.is_some() && waiter.model.is_some();
        let over: Vec<_> = self.books.waiters.extract_if(.., is_over).collect();
        for (task, Waiter { op, model, core, .. }) in over {
            let (Some(observed), Some(answer)) = (model, core) else { continue };
            self.compare_answers(task, &op, &observed, &answer)
                .map_err(|what| format!("{op} went on: {what}"))?;
        }
        let stuck = |waiter: &Waiter| {
            let may = matches!(waiter.op, Op::ReadBegin { .. } | Op::Synchronize | Op::Gp);
            waiter.model.is_some() && waiter.core.is_none() && !may
        };
        match self.books.waiters.values().find(|waiter| stuck(waiter)) {
            Some(waiter) => Err(format!("{} went on in the model only", waiter.op)),
            None => Ok(()),
        }
    }

    /// Whether the core lets one go on when it must, and not before.
    fn settle_core(&mut self, task: u64, something_ended: bool) -> Checked {
        let waiter = &self.books.waiters[&task];
        let op = waiter.op.clone();
        let first = waiter.must.iter().find(|r| self.books.open.contains_key(r)).copied();
        let still = match op {
            Op::Register { m, .. } | Op::Get { m, .. } => !self.books.open_in(m).is_empty(),
            Op::ReadBegin { i } => !self.books.open_over(i, true).is_empty(),
            _ => self.may_synchronize_wait(&op).is_ok(),
        };
        let reports = match (something_ended, still) {
            (false, _) => 0,
            (true, true) => TWO,
            (true, false) => MANY,
        };
        let answer = self.core.late(task, reports);
        if let (Some(r), Some(answer)) = (first, &answer) {
            return Err(format!("{op} went on with {answer:?}, although r{r} is open"));
        }
        match answer {
            Some(answer) => {
                self.enter(task, &op, &answer);
                self.books.waiters.get_mut(&task).expect("it waits").core = Some(answer);
                Ok(())
            }
            None => ensure(still || !something_ended, || format!("{op} still waits, for nothing")),
        }
    }

    /// Who has left is dropped: plain subscribers at once, shared ones when it was waited for.
    fn check_departed(&self, task: u64, op: &Op) -> Checked {
        for (s, (departed, present)) in &self.core.departed {
            let over = match *op {
                Op::Unregister { s: other } => *s == other,
                Op::Synchronize | Op::Gp => *departed < task,
                _ => false,
            };
            let left = present.load(Ordering::SeqCst);
            ensure(!over || left == 0, || format!("{left} parts of s{s} are left"))?;
        }
        Ok(())
    }

    /// Every start has an end or an open change, of those that began when the subscriber was there; and who is there
    /// has not been dropped.
    fn check_invariants(&self) -> Checked {
        for (s, listed) in &self.books.listed {
            let waits = |waiter: &Waiter| match waiter.op {
                Op::Register { s: other, .. } => other == *s,
                Op::Get { c, m, .. } => c == listed.c && m == listed.m,
                _ => false,
            };
            let is_there = !self.books.waiters.values().any(|waiter| waiter.core.is_none() && waits(waiter));
            ensure(!is_there || self.core.present(*s) > 0, || format!("s{s} was dropped before it left"))?;
            if !listed.class.has(Callback::End) {
                continue;
            }
            let mut unended = self.core.unended(*s);
            for pair in self.books.open.values() {
                if pair.m == listed.m && pair.since > listed.since {
                    let at = unended.iter().position(|change| *change == pair.change);
                    let at = at.ok_or_else(|| format!("s{s} has not heard of {}", pair.change))?;
                    unended.swap_remove(at);
                }
            }
            ensure(unended.is_empty(), || format!("s{s} waits for the end of {unended:?}"))?;
        }
        Ok(())
    }

    /// Ends what is open; then nobody waits, every balance is 0, and the core has counted what was done.
    pub(crate) fn quiesce(&mut self) -> Checked {
        while let Some((&r, _)) = self.books.open.first_key_value() {
            if self.step(&Op::End { r })?.is_none() {
                return Err(format!("r{r} cannot be ended"));
            }
        }
        let waiters: Vec<_> = self.books.waiters.values().map(|waiter| waiter.op.to_string()).collect();
        ensure(waiters.is_empty(), || format!("nothing is open, and yet {waiters:?} wait"))?;
        self.check_invariants()?;
        for m in &self.books.mms {
            let (events, refused) = self.books.starts.get(m).copied().unwrap_or_default();
            let stats = self.core.stats(*m);
            let got = (stats.changes, stats.refused, stats.abandoned);
            ensure(got == (events, refused, 0), || {
                format!("mm{m}: the core has counted {got:?}, not {events:?} and {refused} refused")
            })?;
        }
        Ok(())
    }
}

fn event_index(change: &Change) -> usize {
    mmu_notifier_model::Event::ALL.iter().position(|event| *event == change.event).expect("all are there")
}
