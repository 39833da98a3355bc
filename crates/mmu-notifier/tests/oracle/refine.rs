//! Where the core may and must differ from the repaired kernel: each difference by name, with what exactly it changes.
//!
//! From what the model saw of an operation follows what the core must do: the same, but for these.

use std::collections::{BTreeMap, BTreeSet};

use mmu_notifier_model::{
    Args, Blocking, CallKind, Callback, Change, Event, Machine, Observed, Op, Ret, Warning,
};

use crate::books::{Books, Listed, subs};
use crate::driver::sides;
use crate::seen::{Said, Seen};

/// A difference that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refinement {
    /// An interval is inserted at once, whatever is open. The kernel's first insert waits for everything that is open,
    /// and later ones are put off while something is hit.
    InsertDoesNotWait,
    /// So it is called at once, too; the kernel calls it once it is in the tree.
    CalledEarlier,
    /// A removal waits for callbacks that are running; the kernel's for everything that is open once something was hit.
    RemoveDoesNotWait,
    /// So nobody calls it afterwards; the kernel does while the removal waits.
    NotCalledAfterRemoval,
    /// A reader waits for changes that overlap its interval; the kernel's also for those that do not.
    ReadDoesNotWait,
    /// A reader waits for every overlapping change that its interval does not ignore, also if the interval forgot to
    /// store the sequence, or "refused" a change that cannot be refused.
    ReadWaits,
    /// Not as good as it could be, but never worse than the kernel: a reader also waits for a change that began when
    /// nobody was subscribed, wherever it is, because its range is not on record.
    ReadWaitsForUnseen,
    /// Tickets go stale by every overlapping change that is not ignored: also one that the interval itself refused, did
    /// not store the sequence of, or that came while the reader waited for another.
    StaleMore,
    /// `get` of somebody who is there waits for nothing but what who made it waits for.
    GetDoesNotWait,
    /// Who only ages or flushes is told of no start and no end, and waits for none.
    SideDoesNotWait,
    /// Who waits to subscribe is told of changes that begin meanwhile. In the kernel he waits for those as well.
    NewcomerIsTold,
    /// Who may refuse and has an end gets no end for a start that he refused; the kernel warns and sends one.
    RefusedHasNoEnd,
    /// There is one code: `WouldBlock`. The kernel warns of others and passes them on.
    OneCode,
    /// A blocking start has no result: "failing" it is accepting it. The kernel warns.
    BlockingCannotFail,
    /// The same of an interval. The kernel warns, and takes it for not invalidated.
    BlockingCannotRefuse,
    /// A plain subscription has no count of references: its only put is its drop, which tells it of the release.
    PutIsUnsubscribe,
    /// A second pass that is not there is one that does nothing. The kernel warns.
    MissingSecondPass,
    /// `has_subscribers` knows who is told of changes, not whether somebody ever was; the kernel's structure stays.
    NobodyIsNobody,
    /// The first interval of a released address space is refused like all others; the kernel stops.
    LateInsertFails,
    /// Not better: `synchronize` also waits for changes that were open when somebody came on the list or left it, as these
    /// keep the list. In the kernel what is open keeps nobody.
    SynchronizeWaits,
}

/// How often each difference was met.
pub(crate) type Tally = BTreeMap<Refinement, usize>;

/// What the core must do.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) seen: Vec<Seen>,
    /// The changes it waits for; if there are none, it does not.
    pub(crate) waits: BTreeSet<u64>,
    /// Intervals that the model has called, and the core has removed.
    pub(crate) elsewhere: Vec<(u64, Change)>,
}

/// From what the model saw, before the operation is done to the core. `before`: the model before the operation.
pub(crate) fn expect(
    op: &Op,
    observed: &Observed,
    before: &Machine,
    books: &Books,
    tally: &mut Tally,
) -> Expected {
    let mut met = |refinement| *tally.entry(refinement).or_insert(0) += 1;
    let mut seen: Vec<Seen> = observed.calls.iter().filter_map(Seen::of).collect();
    let is_elsewhere = |seen: &Seen| match *seen {
        Seen::Interval { i, change, .. } if !books.intervals.contains_key(&i) => Some((i, change)),
        _ => None,
    };
    let elsewhere = seen.iter().filter_map(is_elsewhere).collect();
    match *op {
        Op::Start { m, change, .. } => start(m, change, observed, before, books, &mut seen, &mut met),
        Op::End { r } => {
            let pair = &books.open[&r];
            for (s, listed) in newcomers(pair.m, before, books) {
                if listed.since < pair.since && listed.class.has(Callback::End) {
                    met(Refinement::NewcomerIsTold);
                    seen.push(Seen::End { s, change: pair.change });
                }
            }
        }
        Op::Exit { m } => {
            let going = Change {
                start: 0,
                end: u64::MAX,
                event: Event::Release,
                blocking: Blocking::Allowed,
                owner: 0,
            };
            intervals(m, going, before, books, &mut seen, &mut met);
        }
        Op::Put { s } => {
            let listed = books.listed.get(&s);
            if let Some(listed) = listed.filter(|listed| listed.shares == 0)
                && listed.class.has(Callback::Release)
            {
                met(Refinement::PutIsUnsubscribe);
                seen.push(Seen::Release { s });
            }
        }
        Op::ClearFlushYoung { m, start, end } => {
            let args = Args::Bounds(start, end);
            let which = (Callback::ClearFlushYoung, CallKind::ClearFlushYoung);
            young(m, which, args, before, books, &mut seen, &mut met);
        }
        Op::ClearYoung { m, start, end } => {
            let args = Args::Bounds(start, end);
            young(m, (Callback::ClearYoung, CallKind::ClearYoung), args, before, books, &mut seen, &mut met);
        }
        Op::TestYoung { m, address } => {
            let args = Args::Address(address);
            young(m, (Callback::TestYoung, CallKind::TestYoung), args, before, books, &mut seen, &mut met);
        }
        Op::Tlb { m, start, end } => {
            for (s, _) in newcomers(m, before, books).filter(|(_, listed)| listed.class.has(Callback::Tlb)) {
                met(Refinement::NewcomerIsTold);
                seen.push(Seen::Flush { s, start, end });
            }
        }
        _ => {}
    }
    for warning in &observed.warnings {
        match warning {
            Warning::TwoPassWithoutFinish => met(Refinement::MissingSecondPass),
            // Each of these is answered by a result, or by what was changed above.
            Warning::BadStartFailure
            | Warning::FailingStartHasEnd
            | Warning::IntervalRefusedBlockable
            | Warning::ReleaseRefused
            | Warning::InsertDeadMm => {}
            other => panic!("{op}: nothing here is like the warning {}", other.name()),
        }
    }
    Expected { seen, waits: waits(op, observed, books, &mut met), elsewhere }
}

/// What the core waits for.
fn waits(op: &Op, observed: &Observed, books: &Books, met: &mut impl FnMut(Refinement)) -> BTreeSet<u64> {
    let waits = match *op {
        Op::Register { c, m, .. } if sides(&books.classes[&c]).changes => books.open_in(m),
        Op::Get { c, m, .. } if !books.has_shared(c, m) => books.open_in(m),
        // The same as who made it, if that one waits still.
        Op::Get { c, m, .. } => books.waited_for_by_who_made(c, m),
        Op::ReadBegin { i } => {
            let waits = books.open_over(i, true);
            if waits != books.open_over(i, false) {
                met(Refinement::ReadWaitsForUnseen);
            }
            waits
        }
        _ => BTreeSet::new(),
    };
    match (observed.blocked.is_some(), waits.is_empty()) {
        (true, true) => met(match op {
            Op::Register { .. } => Refinement::SideDoesNotWait,
            Op::Get { .. } => Refinement::GetDoesNotWait,
            Op::Insert { .. } | Op::InsertLocked { .. } => Refinement::InsertDoesNotWait,
            Op::Remove { .. } => Refinement::RemoveDoesNotWait,
            Op::ReadBegin { .. } => Refinement::ReadDoesNotWait,
            other => panic!("{other} does not wait in the model"),
        }),
        (false, false) => {
            let Op::ReadBegin { i } = *op else {
                panic!("{op} waits here for {waits:?}, and for nothing in the model")
            };
            // One of those is a change that the model's interval was called for and did not store.
            let class = &books.intervals[&i].class;
            let forgets = !class.set_seq || class.fail.is_some();
            assert!(forgets, "{op} waits here for {waits:?}, and for nothing in the model");
            met(Refinement::ReadWaits);
        }
        _ => {}
    }
    waits
}

/// Who is on the core's lists and waits to be on the model's.
fn newcomers<'a>(m: u64, before: &Machine, books: &'a Books) -> impl Iterator<Item = (u64, &'a Listed)> {
    let list = subs(before, m).map_or(Vec::new(), |subs| subs.list);
    let new = move |(s, listed): &(&u64, &Listed)| listed.m == m && !list.contains(s);
    books.listed.iter().filter(new).map(|(s, listed)| (*s, listed))
}

fn start(
    m: u64,
    change: Change,
    observed: &Observed,
    before: &Machine,
    books: &Books,
    seen: &mut Vec<Seen>,
    met: &mut impl FnMut(Refinement),
) {
    let by_interval = intervals(m, change, before, books, seen, met);
    let refused = matches!(observed.ret, Some(Ret::Code(code)) if code != 0);
    if matches!(observed.ret, Some(Ret::Code(code)) if code != 0 && code != -11) {
        met(Refinement::OneCode);
    }
    let mut refusers = BTreeSet::new();
    for seen in seen.iter_mut() {
        if let Seen::Start { s, refused, .. } = seen
            && *refused
        {
            if change.blocking == Blocking::Allowed {
                met(Refinement::BlockingCannotFail);
                *refused = false;
            } else {
                refusers.insert(*s);
            }
        }
    }
    seen.retain(|seen| {
        let ends = matches!(seen, Seen::End { s, .. } if refusers.contains(s));
        if ends {
            met(Refinement::RefusedHasNoEnd);
        }
        !ends
    });
    if by_interval {
        return;
    }
    for (s, listed) in newcomers(m, before, books).filter(|(_, listed)| listed.sides().changes) {
        if listed.class.has(Callback::Start) {
            met(Refinement::NewcomerIsTold);
            seen.push(Seen::Start { s, change, refused: false });
        }
        if refused && listed.class.has(Callback::End) {
            met(Refinement::NewcomerIsTold);
            seen.push(Seen::End { s, change });
        }
    }
}

/// The interval side of a start or a release; whether one refused.
fn intervals(
    m: u64,
    change: Change,
    before: &Machine,
    books: &Books,
    seen: &mut Vec<Seen>,
    met: &mut impl FnMut(Refinement),
) -> bool {
    let mut refuser = None;
    for seen in seen.iter_mut() {
        let Seen::Interval { i, answer, .. } = seen else { continue };
        let Some(here) = books.intervals.get(i) else { continue };
        match answer {
            Said::Agreed if here.ignores(&change) => *answer = Said::Ignored,
            Said::Refused if change.blocking == Blocking::Allowed => {
                met(Refinement::BlockingCannotRefuse);
                *answer = Said::Agreed;
            }
            Said::Refused => refuser = Some(*i),
            Said::Agreed | Said::Ignored => {}
        }
    }
    seen.retain(|seen| {
        let (Seen::Interval { i, .. } | Seen::Finish { i }) = seen else { return true };
        let stays = books.intervals.contains_key(i);
        if !stays {
            met(Refinement::NotCalledAfterRemoval);
        }
        stays
    });
    let tree = subs(before, m).map_or(Vec::new(), |subs| subs.tree);
    for i in books.asked(m, &change) {
        if refuser == Some(i) {
            break;
        }
        if !tree.contains(&i) {
            met(Refinement::CalledEarlier);
            let ignores = books.intervals[&i].ignores(&change);
            let answer = if ignores { Said::Ignored } else { Said::Agreed };
            seen.push(Seen::Interval { i, change, answer, unfinished: false });
        }
    }
    refuser.is_some()
}

fn young(
    m: u64,
    (callback, which): (Callback, CallKind),
    args: Args,
    before: &Machine,
    books: &Books,
    seen: &mut Vec<Seen>,
    met: &mut impl FnMut(Refinement),
) {
    // They say no. The first who says yes to a test is the last who is asked.
    let order = books.asked_young(m);
    let place = |s: u64| order.iter().position(|other| *other == s);
    let yes = seen.iter().find_map(|seen| match *seen {
        Seen::Young { s, which: CallKind::TestYoung, young: true, .. } => place(s),
        _ => None,
    });
    let ages = |listed: &Listed| listed.ages.is_some() && listed.class.has(callback);
    for (s, _) in newcomers(m, before, books).filter(|(_, listed)| ages(listed)) {
        if yes.is_none_or(|yes| place(s) < Some(yes)) {
            met(Refinement::NewcomerIsTold);
            seen.push(Seen::Young { s, which, args, young: false });
        }
    }
}
