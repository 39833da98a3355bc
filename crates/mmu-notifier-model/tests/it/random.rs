//! Operations out of random bytes, and what must hold of them. Also used by `fuzz/`.

use mmu_notifier_model::{
    AnswerLists, Blocking, Callback, Change, Class, Event, Failing, Header, Ignored, Injection,
    IntervalClass, Kernel, Line, Machine, Op, Passes, Qualifying, Trace, Vma, replay,
};

use crate::bystander::{Action, Bystander, Checked};

/// Decisions, one byte each; 0 when there are no more.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    /// One of `0..bound`.
    fn below(&mut self, bound: u8) -> u64 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        (first % bound).into()
    }

    fn truth(&mut self) -> bool {
        self.below(2) == 1
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u8) as usize]
    }

    fn address(&mut self) -> u64 {
        match self.below(16) {
            0 => 0,
            1 => u64::MAX,
            2 => u64::MAX - self.below(255),
            3 => self.below(255),
            page => page << 12,
        }
    }

    fn seq(&mut self) -> u64 {
        match self.below(9) {
            0 => u64::MAX,
            1 => u64::MAX - 1,
            small => small,
        }
    }

    fn change(&mut self) -> Change {
        Change {
            start: self.address(),
            end: self.address(),
            event: self.pick(&Event::ALL),
            blocking: self.pick(&[Blocking::Allowed, Blocking::Forbidden]),
            owner: self.below(2),
        }
    }

    fn failing(&mut self, codes: &[i64]) -> Option<Failing> {
        self.truth().then(|| Failing {
            every: 1 + self.below(3),
            code: self.pick(codes),
            when: self.pick(&[Qualifying::Nonblock, Qualifying::Always]),
        })
    }

    fn class(&mut self) -> Class {
        let callbacks = Callback::ALL.into_iter().filter(|_| self.truth()).collect();
        let start_fail = self.failing(&[-11, -12, 1]);
        let mut answers = || (0..self.below(3)).map(|_| self.below(3)).collect();
        let answers =
            AnswerLists { clear_flush_young: answers(), clear_young: answers(), test_young: answers() };
        Class { callbacks, start_fail, answers, release_puts: self.below(4) == 1 }
    }

    fn interval_class(&mut self) -> IntervalClass {
        let passes = match self.below(4) {
            0 | 1 => Passes::One,
            2 => Passes::Two { has_finish: true, finish_every: self.below(3) },
            _ => Passes::Two { has_finish: false, finish_every: 0 },
        };
        let ignore = self.truth().then(|| Ignored { event: self.pick(&Event::ALL), owner: self.below(2) });
        IntervalClass { fail: self.failing(&[0]), set_seq: self.below(4) != 1, ignore, passes }
    }

    /// Any operation but the last one of a trace.
    fn op(&mut self) -> Op {
        let which = self.below(40);
        let (m, c, s, i, r) = (self.below(3), self.below(3), self.below(4), self.below(4), self.below(12));
        match which {
            0 => Op::Mm { m },
            1 => Op::Class { c, class: self.class() },
            2 => Op::Iclass { c, class: self.interval_class() },
            3 => Op::Inject { kind: self.pick(&[Injection::Enomem, Injection::Eintr]) },
            4 | 5 => Op::Register { s, c, m },
            6 => Op::Unregister { s },
            7 | 8 => Op::Get { c, m, new: s },
            9 => Op::Put { s },
            10 => Op::Synchronize,
            11 => Op::Gp,
            12 => Op::Exit { m },
            13 => Op::Mmdrop { m },
            14..=19 => Op::Start { r, m, change: self.change() },
            20..=24 => Op::End { r },
            25 => Op::EndOnly { r },
            26 | 27 => Op::Insert { i, c, m, start: self.address(), length: self.address() },
            28 => Op::InsertLocked { i, c, m, start: self.address(), length: self.address() },
            29 => Op::Remove { i },
            30 => Op::ReadBegin { i },
            31 => match self.truth() {
                true => Op::ReadRetry { i, seq: self.seq() },
                false => Op::CheckRetry { i, seq: self.seq() },
            },
            32 => Op::ClearFlushYoung { m, start: self.address(), end: self.address() },
            33 => Op::ClearYoung { m, start: self.address(), end: self.address() },
            34 => Op::TestYoung { m, address: self.address() },
            35 => Op::Tlb { m, start: self.address(), end: self.address() },
            36 => Op::ChangePte { m, address: self.address() },
            37 => match self.truth() {
                true => Op::HasNotifiers { m },
                false => Op::RoCheck { event: self.pick(&Event::ALL), vma: self.pick(&Vma::ALL) },
            },
            38 => Op::PokeSeq { m, v: self.seq() },
            _ => match self.truth() {
                true => Op::PokeUsers { s, v: self.pick(&[0, 1, 2, u32::MAX.into()]) },
                false => Op::Peek { m },
            },
        }
    }

    /// An operation for the bystander, who makes it keep the rules.
    fn action(&mut self) -> Action {
        let which = self.below(32);
        let (m, at) = (self.below(2), self.below(16) as usize);
        let (s, c, i, page) = (self.below(4), self.below(4), self.below(5), self.below(8));
        match which {
            0..=2 => Action::Register { s, c, m },
            3 | 4 => Action::Unregister(at),
            5 | 6 => Action::Get { c, m },
            7 | 8 => Action::Put(at),
            9 => Action::GracePeriod,
            10 => Action::Exit(at as u64),
            11 => Action::Mmdrop(at as u64),
            12..=18 => Action::Start {
                m,
                page,
                pages: self.below(4),
                event: self.pick(&[Event::Unmap, Event::Clear, Event::Migrate]),
                blocking: self.pick(&[Blocking::Allowed, Blocking::Forbidden]),
                owner: self.below(2),
            },
            19..=24 => Action::End(at),
            25..=27 => Action::Insert { i, c, m, page, pages: 1 + self.below(3), locked: self.truth() },
            28 | 29 => Action::Remove(at),
            _ => Action::Read(at),
        }
    }
}

/// Whatever is done, under every setting: nothing panics, and what is impossible changes nothing. What was
/// seen under one of them (that takes most of the time) can be written as a trace that reads and replays as
/// it was.
pub(crate) fn any_operations(bytes: &[u8]) -> Checked {
    let mut bytes = Bytes(bytes);
    let recorded = bytes.pick(&Kernel::ALL);
    Kernel::ALL.into_iter().try_for_each(|kernel| {
        let lines = as_kernel(kernel, Bytes(bytes.0))?;
        if kernel == recorded && kernel.release.is_some() { is_a_trace(kernel, lines) } else { Ok(()) }
    })
}

fn as_kernel(kernel: Kernel, mut bytes: Bytes<'_>) -> Result<Vec<Line>, String> {
    let mut machine = Machine::new(kernel);
    let mut lines: Vec<Line> = Vec::new();
    // Most of the bytes should not be spent on making something to work with.
    let mut first = vec![Op::Mm { m: 0 }];
    first.push(Op::Class { c: 0, class: bytes.class() });
    first.push(Op::Iclass { c: 0, class: bytes.interval_class() });
    let mut first = first.into_iter();
    while first.len() > 0 || !bytes.0.is_empty() {
        let op = first.next().unwrap_or_else(|| bytes.op());
        let before = machine.clone();
        let seen = match machine.apply(&op) {
            Ok(seen) if seen.absent.is_empty() => seen,
            // A trace of this kernel has no such line.
            Ok(_) => {
                machine = before;
                continue;
            }
            Err(why) => {
                if before != machine {
                    return Err(format!("{op} is impossible ({why}) on {kernel}, and changed something"));
                }
                continue;
            }
        };
        let bug = seen.bug;
        lines.push(Line { number: lines.len() + 2, op, seen });
        if bug.is_some() {
            break;
        }
    }
    if lines.last().is_none_or(|line| line.seen.bug.is_none()) {
        let seen = machine.apply(&Op::Finish).expect("a trace can always end");
        lines.push(Line { number: lines.len() + 2, op: Op::Finish, seen });
    }
    Ok(lines)
}

fn is_a_trace(kernel: Kernel, lines: Vec<Line>) -> Checked {
    let name = "random".to_owned();
    let header = Header { kernel, name, note: None, random: None, misuse: false, traits: Default::default() };
    let mut trace = Trace { file: "random".to_owned(), header, lines };
    trace.header.traits = trace.traits();
    let text = trace.to_text();
    let read = Trace::read("random", &text).map_err(|error| format!("{error}\nin\n{text}"))?;
    if read != trace {
        return Err(format!("it reads as another trace:\n{text}\n{}", read.to_text()));
    }
    trace.check().map_err(|error| error.to_string())?;
    match replay(&trace, kernel).mismatches.first() {
        None => Ok(()),
        Some(mismatch) => Err(format!("{mismatch}\nin\n{text}")),
    }
}

/// Whatever is done by the rules: the repaired kernel keeps the invariants.
pub(crate) fn lawful_operations(bytes: &[u8]) -> Checked {
    let mut bytes = Bytes(bytes);
    let mut bystander = Bystander::new(Kernel::REPAIRED);
    while !bytes.0.is_empty() {
        bystander.step(&bytes.action())?;
    }
    Ok(())
}
