//! The inputs of each operation.

use serde_json::Value;

use super::fields::{Fields, Read, unsigned, word};
use crate::op::{
    AnswerLists, Blocking, Callback, Change, Class, Event, Failing, Ignored, Injection, IntervalClass, Op,
    Passes, Qualifying, Vma,
};

/// Takes `op` and its inputs.
pub(super) fn read(fields: &mut Fields) -> Read<Op> {
    let name = fields.text("op")?;
    let f = fields;
    Ok(match name.as_str() {
        "mm" => Op::Mm { m: f.unsigned("m")? },
        "class" => Op::Class { c: f.unsigned("c")?, class: class(f)? },
        "iclass" => Op::Iclass { c: f.unsigned("c")?, class: interval_class(f)? },
        "inject" => Op::Inject {
            kind: f.word("kind", &[Injection::Enomem, Injection::Eintr], |kind| match kind {
                Injection::Enomem => "enomem",
                Injection::Eintr => "eintr",
            })?,
        },
        "register" => Op::Register { s: f.unsigned("s")?, c: f.unsigned("c")?, m: f.unsigned("m")? },
        "unregister" => Op::Unregister { s: f.unsigned("s")? },
        "get" => Op::Get { c: f.unsigned("c")?, m: f.unsigned("m")?, new: f.unsigned("new")? },
        "put" => Op::Put { s: f.unsigned("s")? },
        "synchronize" => Op::Synchronize,
        "gp" => Op::Gp,
        "exit" => Op::Exit { m: f.unsigned("m")? },
        "mmdrop" => Op::Mmdrop { m: f.unsigned("m")? },
        "start" => Op::Start { r: f.unsigned("r")?, m: f.unsigned("m")?, change: change(f)? },
        "end" => Op::End { r: f.unsigned("r")? },
        "end_only" => Op::EndOnly { r: f.unsigned("r")? },
        "insert" => Op::Insert {
            i: f.unsigned("i")?,
            c: f.unsigned("c")?,
            m: f.unsigned("m")?,
            start: f.unsigned("start")?,
            length: f.unsigned("length")?,
        },
        "insert_locked" => Op::InsertLocked {
            i: f.unsigned("i")?,
            c: f.unsigned("c")?,
            m: f.unsigned("m")?,
            start: f.unsigned("start")?,
            length: f.unsigned("length")?,
        },
        "remove" => Op::Remove { i: f.unsigned("i")? },
        "read_begin" => Op::ReadBegin { i: f.unsigned("i")? },
        "read_retry" => Op::ReadRetry { i: f.unsigned("i")?, seq: f.unsigned("seq")? },
        "check_retry" => Op::CheckRetry { i: f.unsigned("i")?, seq: f.unsigned("seq")? },
        "clear_flush_young" => {
            Op::ClearFlushYoung { m: f.unsigned("m")?, start: f.unsigned("start")?, end: f.unsigned("end")? }
        }
        "clear_young" => {
            Op::ClearYoung { m: f.unsigned("m")?, start: f.unsigned("start")?, end: f.unsigned("end")? }
        }
        "test_young" => Op::TestYoung { m: f.unsigned("m")?, address: f.unsigned("address")? },
        "tlb" => Op::Tlb { m: f.unsigned("m")?, start: f.unsigned("start")?, end: f.unsigned("end")? },
        "change_pte" => Op::ChangePte { m: f.unsigned("m")?, address: f.unsigned("address")? },
        "has_notifiers" => Op::HasNotifiers { m: f.unsigned("m")? },
        "ro_check" => Op::RoCheck {
            event: f.word("event", &Event::ALL, Event::name)?,
            vma: f.word("vma", &Vma::ALL, Vma::name)?,
        },
        "poke_seq" => Op::PokeSeq { m: f.unsigned("m")?, v: f.unsigned("v")? },
        "poke_users" => {
            let (s, v) = (f.unsigned("s")?, f.unsigned("v")?);
            if u32::try_from(v).is_err() {
                return f.fault("v", format!("{v} does not fit into a reference count of 32 bits"));
            }
            Op::PokeUsers { s, v }
        }
        "peek" => Op::Peek { m: f.unsigned("m")? },
        "finish" => Op::Finish,
        other => return f.fault("op", format!("{other:?} is not an operation")),
    })
}

fn change(fields: &mut Fields) -> Read<Change> {
    Ok(Change {
        start: fields.unsigned("start")?,
        end: fields.unsigned("end")?,
        event: fields.word("event", &Event::ALL, Event::name)?,
        blocking: blocking(fields.truth("blockable")?),
        owner: fields.unsigned("owner")?,
    })
}

pub(super) fn blocking(blockable: bool) -> Blocking {
    if blockable { Blocking::Allowed } else { Blocking::Forbidden }
}

fn class(fields: &mut Fields) -> Read<Class> {
    let callbacks =
        fields.full_list("cbs", |field, value| word(field, &value, &Callback::ALL, Callback::name))?;
    if (1..callbacks.len()).any(|at| callbacks[..at].contains(&callbacks[at])) {
        return fields.fault("cbs", "a callback is there twice");
    }
    let mut answers = |key| fields.list(key, answer);
    let answers = AnswerLists {
        clear_flush_young: answers("clear_flush_young_answers")?,
        clear_young: answers("clear_young_answers")?,
        test_young: answers("test_young_answers")?,
    };
    let start_fail = failing(fields, "start_fail", true)?;
    Ok(Class { callbacks, start_fail, answers, release_puts: fields.flag("release_puts", true)? })
}

/// An aging answer, which is an `int` in the kernel, and is never negative in a trace.
fn answer(field: &str, value: Value) -> Read<u64> {
    let answer = unsigned(field, &value)?;
    match i32::try_from(answer) {
        Ok(_) => Ok(answer),
        Err(_) => super::fault(field, format!("{answer} is not an answer of 31 bits")),
    }
}

fn interval_class(fields: &mut Fields) -> Read<IntervalClass> {
    let ignore = match fields.take("ignore") {
        None => None,
        Some(value) => {
            let mut fields = Fields::of_value("ignore", value)?;
            let event = fields.word("event", &Event::ALL, Event::name)?;
            let owner = fields.unsigned("owner")?;
            fields.end()?;
            Some(Ignored { event, owner })
        }
    };
    let passes = if fields.flag("two_pass", true)? {
        let has_finish = fields.truth("has_finish")?;
        let finish_every = fields.unsigned("finish_every")?;
        if !has_finish && finish_every != 0 {
            return fields.fault("finish_every", "a finish is asked for that is not there");
        }
        Passes::Two { has_finish, finish_every }
    } else {
        Passes::One
    };
    Ok(IntervalClass {
        fail: failing(fields, "fail", false)?,
        set_seq: !fields.flag("set_seq", false)?,
        ignore,
        passes,
    })
}

/// A programmed failure, with or without a code.
fn failing(fields: &mut Fields, key: &str, has_code: bool) -> Read<Option<Failing>> {
    let Some(value) = fields.take(key) else {
        return Ok(None);
    };
    let mut fields = Fields::of_value(&fields.name(key), value)?;
    let every = fields.unsigned("every")?;
    if every == 0 {
        return fields.fault("every", "every 0th call is none: leave the failure out");
    }
    let code = if has_code { fields.code("code")? } else { 0 };
    if has_code && code == 0 {
        return fields.fault("code", "0 is not a failure");
    }
    let when = fields.word("when", &[Qualifying::Nonblock, Qualifying::Always], |when| match when {
        Qualifying::Nonblock => "nonblock",
        Qualifying::Always => "always",
    })?;
    fields.end()?;
    Ok(Some(Failing { every, code, when }))
}
