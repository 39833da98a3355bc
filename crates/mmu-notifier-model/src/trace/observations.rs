//! What was seen of each operation: which fields it must have, may have, cannot have.

use serde_json::Value;

use super::fields::{Fields, Read, code, fault, tuple, unsigned, word, wrong_type};
use super::inputs::blocking;
use crate::observe::{
    Args, Bug, Call, CallKind, Context, Count, Deferral, Finish, Log, MmState, Observed, Resumed, Ret, Subs,
    Wait, Warning, Who,
};
use crate::op::{Blocking, Change, Event, Op};

/// The operations that may have to wait, and the field that a resumed one is known by.
const WAITING: [(&str, char); 6] = [
    ("register", 's'),
    ("get", 'c'),
    ("insert", 'i'),
    ("insert_locked", 'i'),
    ("remove", 'i'),
    ("read_begin", 'i'),
];

/// Takes everything that was seen of `op`.
pub(super) fn read(fields: &mut Fields, op: &Op) -> Read<Observed> {
    let mut seen = Observed {
        calls: fields.list("cb", call)?,
        warnings: fields.list("warn", warning)?,
        log: fields.list("log", log)?,
        resumed: fields.list("resumed", resumed)?,
        ..Observed::default()
    };
    if fields.has("bug") {
        seen.bug = Some(fields.word("bug", &Bug::ALL, Bug::name)?);
    }
    // Without a bug, whoever went on has a result or waits again.
    let lacks_result = |r: &Resumed| {
        r.op != "remove" && r.seen.blocked.is_none() && r.seen.ret.is_none() && r.seen.seq.is_none()
    };
    if seen.bug.is_none()
        && let Some(at) = seen.resumed.iter().position(lacks_result)
    {
        return fields.fault(&format!("resumed[{at}]"), "its result is missing");
    }
    let may_wait = WAITING.iter().any(|(name, _)| *name == op.name());
    if may_wait && fields.has("blocked") {
        let wait = fields.word("blocked", &Wait::ALL, Wait::name)?;
        seen.blocked = Some((wait, fields.unsigned("task")?));
    }
    // Who waits has no result yet. Who ran into a bug has none either, but an operation after which
    // someone else did has.
    if seen.blocked.is_none() && !(seen.bug.is_some() && !fields.has("ret") && !fields.has("seq")) {
        result(fields, op.name(), is_blocking_start(op), &mut seen)?;
    }
    if matches!(op, Op::End { .. } | Op::EndOnly { .. }) {
        seen.misuse = fields.flag("misuse", true)?;
    }
    if *op == Op::Finish {
        seen.finish = Some(finish(fields)?);
    }
    if shows_state(op) {
        let value = fields.value("st")?;
        seen.state = Some(mm_state(&fields.name("st"), value)?);
    }
    Ok(seen)
}

fn is_blocking_start(op: &Op) -> bool {
    matches!(op, Op::Start { change, .. } if change.blocking == Blocking::Allowed)
}

/// Takes what the operation of this name returned.
fn result(fields: &mut Fields, op: &str, is_blocking_start: bool, seen: &mut Observed) -> Read<()> {
    match op {
        "start" if is_blocking_start => match fields.value("ret")? {
            Value::Null => seen.ret = Some(Ret::Nothing),
            other => return wrong_type(&fields.name("ret"), "null", &other),
        },
        "register" | "unregister" | "get" | "start" | "insert" | "insert_locked" | "clear_flush_young"
        | "clear_young" | "test_young" => seen.ret = Some(Ret::Code(fields.code("ret")?)),
        "read_retry" | "check_retry" | "has_notifiers" | "ro_check" => {
            seen.ret = Some(Ret::Truth(fields.truth("ret")?));
        }
        "read_begin" => seen.seq = Some(fields.unsigned("seq")?),
        _ => {}
    }
    if op == "get" && seen.ret == Some(Ret::Code(0)) {
        seen.got = Some(fields.unsigned("got")?);
    }
    Ok(())
}

fn shows_state(op: &Op) -> bool {
    !matches!(
        op,
        Op::Mm { .. }
            | Op::Class { .. }
            | Op::Iclass { .. }
            | Op::Inject { .. }
            | Op::ReadRetry { .. }
            | Op::CheckRetry { .. }
            | Op::ClearFlushYoung { .. }
            | Op::ClearYoung { .. }
            | Op::TestYoung { .. }
            | Op::Tlb { .. }
            | Op::ChangePte { .. }
            | Op::HasNotifiers { .. }
            | Op::RoCheck { .. }
            | Op::Finish
    )
}

fn warning(field: &str, value: Value) -> Read<Warning> {
    word(field, &value, &Warning::ALL, Warning::name)
}

fn log(field: &str, value: Value) -> Read<Log> {
    let mut fields = Fields::of_value(field, value)?;
    let log = Log { ret: fields.code("ret")?, blocking: blocking(fields.truth("blockable")?) };
    fields.end()?;
    Ok(log)
}

fn resumed(field: &str, value: Value) -> Read<Resumed> {
    let mut fields = Fields::of_value(field, value)?;
    let task = fields.unsigned("task")?;
    let (op, letter) = fields.word("op", &WAITING, |(name, _)| name)?;
    let id = (letter, fields.unsigned(letter.encode_utf8(&mut [0; 4]))?);
    let mut seen = Observed {
        calls: fields.list("cb", call)?,
        warnings: fields.list("warn", warning)?,
        log: fields.list("log", log)?,
        ..Observed::default()
    };
    if fields.has("blocked") {
        let wait = fields.word("blocked", &Wait::ALL, Wait::name)?;
        seen.blocked = Some((wait, task));
    } else if fields.has("ret") || fields.has("seq") || op == "remove" {
        result(&mut fields, op, false, &mut seen)?;
    }
    fields.end()?;
    Ok(Resumed { task, op, id, seen })
}

fn call(field: &str, value: Value) -> Read<Call> {
    let mut f = Fields::of_value(field, value)?;
    let kind = f.word("c", &CallKind::ALL, CallKind::name)?;
    let who = match kind {
        CallKind::MmFree => Who::Mm(f.unsigned("m")?),
        CallKind::Invalidate | CallKind::InvalidateStart | CallKind::InvalidateFinish => {
            Who::Interval(f.unsigned("i")?)
        }
        CallKind::Alloc => match f.value("s")? {
            Value::Null => Who::Subscriber(None),
            other => Who::Subscriber(Some(unsigned(&f.name("s"), &other)?)),
        },
        _ => Who::Subscriber(Some(f.unsigned("s")?)),
    };
    let mut call = Call::new(kind, who, None);
    if !matches!(kind, CallKind::Alloc | CallKind::MmFree) {
        call.context = Some(context(&mut f)?);
    }
    match kind {
        CallKind::Start | CallKind::Alloc => call.ret = Some(Ret::Code(f.code("r")?)),
        CallKind::ClearFlushYoung | CallKind::ClearYoung | CallKind::TestYoung => {
            call.ret = Some(Ret::Code(f.code("r")?));
        }
        CallKind::Invalidate | CallKind::InvalidateStart => {
            call.ret = Some(Ret::Truth(f.truth("r")?));
            call.seq = Some(f.unsigned("q")?);
            call.set = Some(f.truth("set")?);
        }
        _ => {}
    }
    if kind == CallKind::InvalidateStart {
        call.finish = Some(f.truth("fin")?);
    }
    call.args = match kind {
        CallKind::Start | CallKind::End | CallKind::Invalidate | CallKind::InvalidateStart => {
            let value = f.value("a")?;
            Some(Args::Change(change(&f.name("a"), value)?))
        }
        CallKind::ClearFlushYoung | CallKind::ClearYoung | CallKind::Tlb => {
            let [start, end] = addresses(&mut f)?;
            Some(Args::Bounds(start, end))
        }
        CallKind::TestYoung | CallKind::ChangePte => {
            let [address] = addresses(&mut f)?;
            Some(Args::Address(address))
        }
        _ => None,
    };
    f.end()?;
    Ok(call)
}

fn context(fields: &mut Fields) -> Read<Context> {
    let letters = fields.text("f")?;
    match Context::ALL.into_iter().find(|context| context.to_string() == letters) {
        Some(context) => Ok(context),
        None => fields.fault("f", format!("{letters:?} is not a context that the kernel calls in")),
    }
}

fn addresses<const N: usize>(fields: &mut Fields) -> Read<[u64; N]> {
    let value = fields.value("a")?;
    numbers(&fields.name("a"), value)
}

fn numbers<const N: usize>(field: &str, value: Value) -> Read<[u64; N]> {
    let values: [Value; N] = tuple(field, value)?;
    let mut numbers = [0; N];
    for (at, value) in values.iter().enumerate() {
        numbers[at] = unsigned(&format!("{field}[{at}]"), value)?;
    }
    Ok(numbers)
}

fn change(field: &str, value: Value) -> Read<Change> {
    let [start, end, event, blockable, owner] = tuple(field, value)?;
    Ok(Change {
        start: unsigned(&format!("{field}[0]"), &start)?,
        end: unsigned(&format!("{field}[1]"), &end)?,
        event: word(&format!("{field}[2]"), &event, &Event::ALL, Event::name)?,
        blocking: blocking(bit(&format!("{field}[3]"), &blockable)?),
        owner: unsigned(&format!("{field}[4]"), &owner)?,
    })
}

fn bit(field: &str, value: &Value) -> Read<bool> {
    match code(field, value)? {
        0 => Ok(false),
        1 => Ok(true),
        other => fault(field, format!("{other} is neither 0 nor 1")),
    }
}

fn mm_state(field: &str, value: Value) -> Read<MmState> {
    let mut f = Fields::of_value(field, value)?;
    let m = f.unsigned("m")?;
    if f.flag("freed", true)? {
        f.end()?;
        return Ok(MmState::Freed { m });
    }
    let (users, count) = (f.unsigned("users")?, f.unsigned("count")?);
    let subs = if f.has("subs") {
        match f.value("subs")? {
            Value::Null => None,
            other => return wrong_type(&f.name("subs"), "null or absent", &other),
        }
    } else {
        Some(subs(&mut f)?)
    };
    f.end()?;
    Ok(MmState::Live { m, users, count, subs })
}

fn subs(f: &mut Fields) -> Read<Subs> {
    let id = |field: &str, value: Value| unsigned(field, &value);
    let pending_frees = match f.has("srcu_pending") {
        true => match f.unsigned("srcu_pending")? {
            0 => return f.fault("srcu_pending", "it is left out when it is 0"),
            pending => pending,
        },
        false => 0,
    };
    Ok(Subs {
        seq: f.unsigned("seq")?,
        active: f.unsigned("active")?,
        has_itree: f.truth("has_itree")?,
        list: f.full_list("list", id)?,
        tree: f.full_list("tree", id)?,
        deferred: f.full_list("deferred", deferral)?,
        stored: f.full_list("iseq", |field, value| numbers(field, value).map(|[i, seq]| (i, seq)))?,
        counts: f.full_list("sub", count)?,
        pending_frees,
    })
}

fn deferral(field: &str, value: Value) -> Read<Deferral> {
    let [what, i] = tuple(field, value)?;
    let i = unsigned(&format!("{field}[1]"), &i)?;
    let words = [Deferral::Insert(i), Deferral::Remove(i)];
    word(&format!("{field}[0]"), &what, &words, |deferral| match deferral {
        Deferral::Insert(_) => "insert",
        Deferral::Remove(_) => "remove",
    })
}

fn count(field: &str, value: Value) -> Read<Count> {
    let [s, users, linked, started, failed, ended] = tuple(field, value)?;
    Ok(Count {
        s: unsigned(&format!("{field}[0]"), &s)?,
        users: unsigned(&format!("{field}[1]"), &users)?,
        linked: bit(&format!("{field}[2]"), &linked)?,
        started: unsigned(&format!("{field}[3]"), &started)?,
        failed: unsigned(&format!("{field}[4]"), &failed)?,
        ended: unsigned(&format!("{field}[5]"), &ended)?,
    })
}

fn finish(fields: &mut Fields) -> Read<Finish> {
    Ok(Finish {
        stuck: fields.full_list("stuck", |field, value| {
            let [task, op, wait] = tuple(field, value)?;
            let task = unsigned(&format!("{field}[0]"), &task)?;
            let (op, _) = word(&format!("{field}[1]"), &op, &WAITING, |(name, _)| name)?;
            Ok((task, op, word(&format!("{field}[2]"), &wait, &Wait::ALL, Wait::name)?))
        })?,
        open: fields.full_list("open", |field, value| unsigned(field, &value))?,
        mms: fields.full_list("mms", mm_state)?,
    })
}
