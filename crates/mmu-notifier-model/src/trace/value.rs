//! Lines as JSON again: what a comparison walks over, and what a writer writes.

use serde_json::{Map, Value, json};

use super::{Header, Line, Trait};
use crate::observe::{Args, Call, Count, Deferral, Finish, MmState, Observed, Ret, Subs, Who};
use crate::op::{
    Blocking, Callback, Change, Class, Failing, Injection, IntervalClass, Op, Passes, Qualifying,
};

/// An object in the making; `null` is a value, [`None`] is nothing.
struct Object(Map<String, Value>);

impl Object {
    fn new() -> Object {
        Object(Map::new())
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Object {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    fn maybe(self, key: &str, value: Option<impl Into<Value>>) -> Object {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    fn flag(self, key: &str, present: bool, written: bool) -> Object {
        self.maybe(key, present.then_some(written))
    }

    /// A list that is left out when it is empty.
    fn list<T>(self, key: &str, list: &[T], value: impl Fn(&T) -> Value) -> Object {
        match list.is_empty() {
            true => self,
            false => self.full_list(key, list, value),
        }
    }

    fn full_list<T>(self, key: &str, list: &[T], value: impl Fn(&T) -> Value) -> Object {
        self.with(key, list.iter().map(value).collect::<Vec<_>>())
    }

    fn inputs<const N: usize>(self, inputs: [(&str, u64); N]) -> Object {
        inputs.into_iter().fold(self, |object, (key, value)| object.with(key, value))
    }

    fn merge(mut self, other: Map<String, Value>) -> Object {
        self.0.extend(other);
        self
    }
}

impl Header {
    pub(super) fn to_value(&self) -> Value {
        let object = Object::new()
            .with("format", 1)
            .with("kernel", self.kernel.release.unwrap_or(self.kernel.name))
            .maybe("variant", self.kernel.variant)
            .with("name", self.name.as_str())
            .maybe("note", self.note.as_deref())
            .maybe("seed", self.random.map(|(seed, _)| seed))
            .maybe("profile", self.random.map(|(_, profile)| profile.name()))
            .flag("misuse", self.misuse, true)
            .with("traits", self.traits.iter().map(|which| which.name().into()).collect::<Vec<Value>>());
        Value::Object(object.0)
    }
}

impl Trait {
    /// Traits as a header lists them.
    pub(crate) fn list<'a>(traits: impl IntoIterator<Item = &'a Trait>) -> Value {
        traits.into_iter().map(|which| Value::from(which.name())).collect()
    }
}

impl Line {
    /// The line as JSON.
    pub fn to_value(&self) -> Value {
        let object =
            Object::new().with("n", (self.number as u64).saturating_sub(2)).with("op", self.op.name());
        Value::Object(object.merge(self.op.inputs()).merge(self.seen.fields()).0)
    }
}

impl Op {
    /// The inputs under the trace format's names.
    fn inputs(&self) -> Map<String, Value> {
        let o = Object::new();
        let object = match *self {
            Op::Mm { m } | Op::Exit { m } | Op::Mmdrop { m } | Op::HasNotifiers { m } | Op::Peek { m } => {
                o.inputs([("m", m)])
            }
            Op::Class { c, ref class } => o.inputs([("c", c)]).merge(class_fields(class)),
            Op::Iclass { c, ref class } => o.inputs([("c", c)]).merge(interval_class_fields(class)),
            Op::Inject { kind } => o.with(
                "kind",
                match kind {
                    Injection::Enomem => "enomem",
                    Injection::Eintr => "eintr",
                },
            ),
            Op::Register { s, c, m } => o.inputs([("s", s), ("c", c), ("m", m)]),
            Op::Unregister { s } | Op::Put { s } => o.inputs([("s", s)]),
            Op::Get { c, m, new } => o.inputs([("c", c), ("m", m), ("new", new)]),
            Op::Synchronize | Op::Gp | Op::Finish => o,
            Op::Start { r, m, change: Change { start, end, event, blocking, owner } } => o
                .inputs([("r", r), ("m", m), ("start", start), ("end", end), ("owner", owner)])
                .with("event", event.name())
                .with("blockable", blocking == Blocking::Allowed),
            Op::End { r } | Op::EndOnly { r } => o.inputs([("r", r)]),
            Op::Insert { i, c, m, start, length } | Op::InsertLocked { i, c, m, start, length } => {
                o.inputs([("i", i), ("c", c), ("m", m), ("start", start), ("length", length)])
            }
            Op::Remove { i } | Op::ReadBegin { i } => o.inputs([("i", i)]),
            Op::ReadRetry { i, seq } | Op::CheckRetry { i, seq } => o.inputs([("i", i), ("seq", seq)]),
            Op::ClearFlushYoung { m, start, end }
            | Op::ClearYoung { m, start, end }
            | Op::Tlb { m, start, end } => o.inputs([("m", m), ("start", start), ("end", end)]),
            Op::TestYoung { m, address } | Op::ChangePte { m, address } => {
                o.inputs([("m", m), ("address", address)])
            }
            Op::RoCheck { event, vma } => o.with("event", event.name()).with("vma", vma.name()),
            Op::PokeSeq { m, v } => o.inputs([("m", m), ("v", v)]),
            Op::PokeUsers { s, v } => o.inputs([("s", s), ("v", v)]),
        };
        object.0
    }
}

fn class_fields(class: &Class) -> Map<String, Value> {
    let number = |&answer: &u64| Value::from(answer);
    Object::new()
        .full_list("cbs", &class.callbacks, |callback: &Callback| callback.name().into())
        .maybe("start_fail", class.start_fail.map(|fail| failing(fail, true)))
        .list("clear_flush_young_answers", &class.answers.clear_flush_young, number)
        .list("clear_young_answers", &class.answers.clear_young, number)
        .list("test_young_answers", &class.answers.test_young, number)
        .flag("release_puts", class.release_puts, true)
        .0
}

fn interval_class_fields(class: &IntervalClass) -> Map<String, Value> {
    let object = Object::new()
        .maybe("fail", class.fail.map(|fail| failing(fail, false)))
        .flag("set_seq", !class.set_seq, false)
        .maybe(
            "ignore",
            class.ignore.map(|ignored| json!({"event": ignored.event.name(), "owner": ignored.owner})),
        );
    let object = match class.passes {
        Passes::One => object,
        Passes::Two { has_finish, finish_every } => {
            object.with("two_pass", true).with("has_finish", has_finish).with("finish_every", finish_every)
        }
    };
    object.0
}

fn failing(fail: Failing, has_code: bool) -> Value {
    let when = match fail.when {
        Qualifying::Nonblock => "nonblock",
        Qualifying::Always => "always",
    };
    let object = Object::new().with("every", fail.every).maybe("code", has_code.then_some(fail.code));
    Value::Object(object.with("when", when).0)
}

impl Observed {
    /// Everything seen, under the trace format's names. What the kernel lacks is no part of it.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        Object::new()
            .maybe("ret", self.ret.map(ret))
            .maybe("got", self.got)
            .maybe("seq", self.seq)
            .flag("misuse", self.misuse, true)
            .maybe("blocked", self.blocked.map(|(wait, _)| wait.name()))
            .maybe("task", self.blocked.map(|(_, task)| task))
            .list("cb", &self.calls, call)
            .list("warn", &self.warnings, |warning| warning.name().into())
            .maybe("bug", self.bug.map(|bug| bug.name()))
            .list(
                "log",
                &self.log,
                |log| json!({"ret": log.ret, "blockable": log.blocking == Blocking::Allowed}),
            )
            .list("resumed", &self.resumed, |resumed| {
                let (letter, number) = resumed.id;
                let object = Object::new().merge(resumed.seen.fields()).with("task", resumed.task);
                Value::Object(object.with("op", resumed.op).with(&letter.to_string(), number).0)
            })
            .maybe("st", self.state.as_ref().map(mm_state))
            .merge(self.finish.as_ref().map(finish).unwrap_or_default())
            .0
    }
}

fn ret(ret: Ret) -> Value {
    match ret {
        Ret::Nothing => Value::Null,
        Ret::Code(code) => code.into(),
        Ret::Truth(truth) => truth.into(),
    }
}

fn call(call: &Call) -> Value {
    let object = Object::new().with("c", call.kind.name());
    let object = match call.who {
        Who::Subscriber(s) => object.with("s", s),
        Who::Interval(i) => object.with("i", i),
        Who::Mm(m) => object.with("m", m),
    };
    let object = object
        .maybe("f", call.context.map(|context| context.to_string()))
        .maybe("r", call.ret.map(ret))
        .maybe("q", call.seq)
        .maybe("set", call.set)
        .maybe("fin", call.finish)
        .maybe("a", call.args.map(args));
    Value::Object(object.0)
}

fn args(args: Args) -> Value {
    match args {
        Args::Change(Change { start, end, event, blocking, owner }) => {
            json!([start, end, event.name(), u8::from(blocking == Blocking::Allowed), owner])
        }
        Args::Bounds(start, end) => json!([start, end]),
        Args::Address(address) => json!([address]),
    }
}

fn mm_state(state: &MmState) -> Value {
    match state {
        MmState::Freed { m } => json!({"m": m, "freed": true}),
        MmState::Live { m, users, count, subs } => {
            let object = Object::new().inputs([("m", *m), ("users", *users), ("count", *count)]);
            let object = match subs {
                None => object.with("subs", Value::Null),
                Some(subs) => object.merge(subs_fields(subs)),
            };
            Value::Object(object.0)
        }
    }
}

fn subs_fields(subs: &Subs) -> Map<String, Value> {
    let id = |&id: &u64| Value::from(id);
    Object::new()
        .with("seq", subs.seq)
        .with("active", subs.active)
        .with("has_itree", subs.has_itree)
        .full_list("list", &subs.list, id)
        .full_list("tree", &subs.tree, id)
        .full_list("deferred", &subs.deferred, |deferral| match deferral {
            Deferral::Insert(i) => json!(["insert", i]),
            Deferral::Remove(i) => json!(["remove", i]),
        })
        .full_list("iseq", &subs.stored, |(i, seq)| json!([i, seq]))
        .full_list("sub", &subs.counts, |&Count { s, users, linked, started, failed, ended }| {
            json!([s, users, u8::from(linked), started, failed, ended])
        })
        .maybe("srcu_pending", (subs.pending_frees != 0).then_some(subs.pending_frees))
        .0
}

fn finish(finish: &Finish) -> Map<String, Value> {
    Object::new()
        .full_list("stuck", &finish.stuck, |(task, op, wait)| json!([task, op, wait.name()]))
        .full_list("open", &finish.open, |&r| r.into())
        .full_list("mms", &finish.mms, mm_state)
        .0
}
