//! Operations that the core cannot be asked for, and those after which the two could not be compared any more.
//!
//! They are done to neither, unless said otherwise, and counted by name: `golden.rs` asserts how many there are.

use mmu_notifier_model::{Bug, CallKind, Callback, Change, Class, Machine, MmState, Observed, Op, Ret, Who};

use crate::books::{Books, subs, waits_in};
use crate::driver::{Core, MEMBERS};
use crate::seen::{Said, Seen};

/// Why an operation is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LeftOut {
    /// `Range::new` fails: an empty or backwards range cannot be made.
    EmptyRange,
    /// `Range::with_len` fails: the last byte of the address space is part of no range.
    LastByte,
    /// Does not compile: `OpenChange` is used up by the first end, and a refused start gives none.
    EndWithoutChange,
    /// Does not compile: the subscription, the share or the interval was moved into its drop.
    Gone,
    /// Does not compile: `subscribe` has not returned the subscription yet.
    NotYetThere,
    /// Does not compile: a reader borrows the interval.
    RemoveUnderReader,
    /// Would drop the subscription that is there, which the kernel leaves where it was.
    SubscribedTwice,
    /// Does not compile: `SecondaryTlb` has no start and no end.
    MixedTlb,
    /// Does not compile: `get` is for a `Subscriber`, which cannot refuse.
    SharedRefuser,
    /// `get` does not find who is subscribed plainly, the kernel's does: from then on there would be two.
    GetFindsPlain,
    /// In the core the `get` has found it already and keeps it, in the kernel it still waits and finds nobody.
    PutUnderGet,
    /// The core's internals cannot be written to.
    Poke,
    /// Memory that cannot be had aborts, and there is no lock to be interrupted in. Done to the model, which changes
    /// nothing but that the failure is over.
    InjectedFailure,
    /// Asked for while somebody waits, so that it would hit him when he has subscribed here.
    InjectedUnderWaiter,
    /// Somebody waits to subscribe: the kernel stops when he goes on.
    ExitUnderWaiter,
    /// The address space has been released and something is open: the kernel waits, and then stops. Here it fails at once,
    /// as it does in both if nothing is open, which is compared.
    WaitsToStop,
    /// The kernel stops; here subscribers keep their address space.
    LastReference,
    /// The model's interval refuses, which the core has removed already.
    RefusedByRemoved,
    /// Of intervals that begin at the same address, another would be asked first, and one refuses. Their order is a
    /// detail, but not whose turn it then was.
    OrderOfEquals,
    /// Somebody else would be asked first whether a page is young, and the first who says yes is the last. The order is a
    /// detail, but not whose turn it then was.
    OrderOfAging,
    /// A sequence that no reader was given.
    UnknownTicket,
    /// It refers to something that was left out before.
    Consequence,
}

/// What to do with an operation.
#[derive(Debug)]
pub(crate) enum Fit {
    /// It is for both. What the model says, and the model afterwards.
    Both(Box<(Observed, Machine)>),
    /// It is for neither.
    Neither(LeftOut),
    /// It is for the model only.
    ModelOnly(Option<LeftOut>, Box<(Observed, Machine)>),
}

/// Decides.
pub(crate) fn fit(op: &Op, books: &Books, core: &Core, machine: &Machine) -> Fit {
    use Fit::{Both, ModelOnly, Neither};
    if let Some(reason) = before(op, books, core, machine) {
        return Neither(reason);
    }
    let mut after = machine.clone();
    let Ok(observed) = after.apply(op) else { return Neither(LeftOut::Consequence) };
    if observed.bug == Some(Bug::DestroyWithSubscribers) {
        return Neither(LeftOut::LastReference);
    }
    if let Some(reason) = afterwards(op, books, machine, &observed) {
        return Neither(reason);
    }
    if matches!(op, Op::Inject { .. }) {
        return ModelOnly(None, Box::new((observed, after)));
    }
    if waits_in(op).is_some() && is_injected(&observed) && !alloc_failed(&observed) {
        return ModelOnly(Some(LeftOut::InjectedFailure), Box::new((observed, after)));
    }
    Both(Box::new((observed, after)))
}

fn before(op: &Op, books: &Books, core: &Core, machine: &Machine) -> Option<LeftOut> {
    let empty = |start: u64, end: u64| (end <= start).then_some(LeftOut::EmptyRange);
    match *op {
        Op::PokeSeq { .. } | Op::PokeUsers { .. } => Some(LeftOut::Poke),
        Op::Inject { .. } if books.model_waits().next().is_some() => Some(LeftOut::InjectedUnderWaiter),
        Op::Start { change: Change { start, end, .. }, .. }
        | Op::ClearFlushYoung { start, end, .. }
        | Op::ClearYoung { start, end, .. }
        | Op::Tlb { start, end, .. } => empty(start, end),
        Op::End { r } if books.left_out.contains(&r) => Some(LeftOut::Consequence),
        Op::End { r } if !books.open.contains_key(&r) => Some(LeftOut::EndWithoutChange),
        Op::Insert { start, length, .. } | Op::InsertLocked { start, length, .. } => {
            let last = length.checked_sub(1).and_then(|rest| start.checked_add(rest));
            (last == Some(u64::MAX)).then_some(LeftOut::LastByte)
        }
        Op::Register { s, c, .. } => match books.classes.get(&c) {
            _ if core.has_handle(s) => Some(LeftOut::SubscribedTwice),
            Some(class) if is_mixed(class) => Some(LeftOut::MixedTlb),
            _ => None,
        },
        Op::Get { c, m, .. } => {
            assert!(c < MEMBERS, "there is no type for class {c}");
            let class = books.classes.get(&c)?;
            let plain = |(op, m): (&Op, u64)| matches!(*op, Op::Register { c: other, m: there, .. } if other == c && there == m);
            if is_mixed(class) {
                Some(LeftOut::MixedTlb)
            } else if class.start_fail.is_some() && class.has(Callback::Start) {
                Some(LeftOut::SharedRefuser)
            } else if books.listed.values().any(|other| other.m == m && other.c == c && other.shares == 0)
                || books.model_waits().any(|op| plain((op, m)))
            {
                Some(LeftOut::GetFindsPlain)
            } else {
                None
            }
        }
        Op::Unregister { s } => leaves(s, books, core),
        Op::Put { s } => leaves(s, books, core).or_else(|| {
            let listed = books.listed.get(&s)?;
            let waits = |op: &Op| matches!(*op, Op::Get { c, m, .. } if c == listed.c && m == listed.m);
            let users = subs(machine, listed.m)?.counts.into_iter().find(|count| count.s == s)?.users;
            (users == 1 && books.model_waits().any(waits)).then_some(LeftOut::PutUnderGet)
        }),
        Op::Remove { i } | Op::ReadBegin { i } if !books.intervals.contains_key(&i) => Some(LeftOut::Gone),
        Op::Remove { i } => {
            let reads = |op: &Op| matches!(*op, Op::ReadBegin { i: other } if other == i);
            books.core_waits().any(reads).then_some(LeftOut::RemoveUnderReader)
        }
        Op::ReadRetry { i, .. } | Op::CheckRetry { i, .. } if !books.intervals.contains_key(&i) => {
            Some(LeftOut::Gone)
        }
        Op::ReadRetry { i, seq } | Op::CheckRetry { i, seq } => {
            let has_ticket = books.tickets.get(&i).is_some_and(|got| got.iter().any(|g| g.seq == Some(seq)));
            (!has_ticket).then_some(LeftOut::UnknownTicket)
        }
        Op::Exit { m } => {
            books.model_waits().any(|op| waits_in(op) == Some(m)).then_some(LeftOut::ExitUnderWaiter)
        }
        _ => None,
    }
}

fn leaves(s: u64, books: &Books, core: &Core) -> Option<LeftOut> {
    let registers = |op: &Op| matches!(*op, Op::Register { s: other, .. } if other == s);
    if books.waiters.values().any(|waiter| registers(&waiter.op)) {
        return Some(LeftOut::NotYetThere);
    }
    (!core.has_handle(s)).then_some(LeftOut::Gone)
}

fn afterwards(op: &Op, books: &Books, machine: &Machine, observed: &Observed) -> Option<LeftOut> {
    if observed.blocked.is_some() && waits_in(op).is_some() && books.armed != [false; 2] {
        return Some(LeftOut::InjectedUnderWaiter);
    }
    if let Some(m) = waits_in(op)
        && observed.blocked.is_some()
        && matches!(machine.state(m), Some(MmState::Live { users: 0, .. }))
    {
        let is_refused = matches!(op, Op::Insert { .. } | Op::InsertLocked { .. })
            && subs(machine, m).is_some_and(|subs| subs.has_itree);
        return (!is_refused).then_some(LeftOut::WaitsToStop);
    }
    if let Op::TestYoung { m, .. } = *op
        && observed.ret == Some(Ret::Code(1))
    {
        let mut theirs = subs(machine, m)?.list;
        let mut ours = books.asked_young(m);
        ours.retain(|s| theirs.contains(s));
        theirs.retain(|s| ours.contains(s));
        return (ours != theirs).then_some(LeftOut::OrderOfAging);
    }
    let Op::Start { m, change, .. } = *op else { return None };
    let asked: Vec<u64> = observed.calls.iter().filter_map(interval_of).collect();
    let refusal = observed.calls.iter().filter_map(Seen::of).find_map(|seen| match seen {
        Seen::Interval { i, answer: Said::Refused, .. } => Some(i),
        _ => None,
    });
    let refuser = refusal.filter(|_| change.blocking == mmu_notifier_model::Blocking::Forbidden)?;
    if !books.intervals.contains_key(&refuser) {
        return Some(LeftOut::RefusedByRemoved);
    }
    // Who comes before the refuser here, and who there, of those that both have.
    let tree = subs(machine, m).map_or(Vec::new(), |subs| subs.tree);
    let before = |list: &[u64], has: &[u64]| -> Vec<u64> {
        let known = list.iter().copied().take_while(|i| *i != refuser).filter(|i| has.contains(i));
        let mut before: Vec<u64> = known.collect();
        before.sort_unstable();
        before
    };
    let here = books.asked(m, &change);
    (before(&here, &tree) != before(&asked, &here)).then_some(LeftOut::OrderOfEquals)
}

fn interval_of(call: &mmu_notifier_model::Call) -> Option<u64> {
    match (call.kind, call.who) {
        (CallKind::Invalidate | CallKind::InvalidateStart, Who::Interval(i)) => Some(i),
        _ => None,
    }
}

fn is_mixed(class: &Class) -> bool {
    class.has(Callback::Tlb) && (class.has(Callback::Start) || class.has(Callback::End))
}

/// Whether an allocation or a lock failed.
pub(crate) fn is_injected(observed: &Observed) -> bool {
    matches!(observed.ret, Some(Ret::Code(-4 | -12)))
}

/// Whether `get` could not make an instance.
pub(crate) fn alloc_failed(observed: &Observed) -> bool {
    observed.calls.iter().any(|call| call.kind == CallKind::Alloc && call.ret != Some(Ret::Code(0)))
}
