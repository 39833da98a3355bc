//! The replay can fail: whatever observation is changed, it is noticed, in the line where it is.

use mmu_notifier_model::{Observed, Trace, replay};
use serde_json::{Map, Value, json};

use crate::Random;
use crate::golden;

/// The lines of a trace as JSON, the header first.
fn values(trace: &Trace) -> Vec<Value> {
    trace.to_text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn text(values: &[Value]) -> String {
    values.iter().map(|value| format!("{value}\n")).collect()
}

/// Changes one place of the first line that has it, and demands exactly one mismatch: there.
fn change(name: &str, release: &str, pointer: &str, field: &str, new: Value) {
    let original = golden::trace(name, release);
    let mut lines = values(original);
    let (at, old) = lines
        .iter_mut()
        .enumerate()
        .find_map(|(at, line)| Some((at, std::mem::replace(line.pointer_mut(pointer)?, new.clone()))))
        .unwrap_or_else(|| panic!("{name} has no {pointer}"));
    assert_ne!(old, new, "nothing was changed");

    let trace = Trace::read(&original.file, &text(&lines)).expect("still a trace");
    let mismatches = replay(&trace, trace.header.kernel).mismatches;
    let expected = format!("{name}--{release}.jsonl:{}: {field}: expected {new}, got {old}", at + 1);
    assert_eq!(mismatches.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
}

#[test]
fn a_changed_result_is_rejected() {
    change("eagain_refuser_in_middle", "6.1.192", "/ret", "ret", json!(-12));
    change("read_collision", "7.2.13", "/seq", "seq", json!(77));
    change("get_get_put_put", "6.12.117", "/got", "got", json!(9));
}

#[test]
fn a_changed_truth_is_rejected() {
    change("no_subscriptions", "5.10.13", "/ret", "ret", json!(true));
    change("update_to_read_only", "5.10.13", "/ret", "ret", json!(true));
}

#[test]
fn a_changed_callback_is_rejected() {
    // Its kind would change which fields it has; each of those is changed instead.
    change("eagain_two_refusers", "7.2.13", "/cb/0/s", "cb[0].s", json!(7));
    change("eagain_two_refusers", "7.2.13", "/cb/0/r", "cb[0].r", json!(0));
    change("eagain_two_refusers", "7.2.13", "/cb/0/f", "cb[0].f", json!("sl"));
    change("eagain_two_refusers", "7.2.13", "/cb/0/a/0", "cb[0].a[0]", json!(1));
    change("eagain_two_refusers", "7.2.13", "/cb/0/a/1", "cb[0].a[1]", json!(u64::MAX));
    change("eagain_two_refusers", "7.2.13", "/cb/0/a/2", "cb[0].a[2]", json!("MIGRATE"));
    change("eagain_two_refusers", "7.2.13", "/cb/0/a/3", "cb[0].a[3]", json!(1));
    change("eagain_two_refusers", "7.2.13", "/cb/0/a/4", "cb[0].a[4]", json!(3));
    change("interval_basic", "6.1.192", "/cb/0/q", "cb[0].q", json!(5));
    change("interval_basic", "6.1.192", "/cb/0/set", "cb[0].set", json!(false));
    change("two_pass_basic", "7.2.13", "/cb/0/fin", "cb[0].fin", json!(false));
}

#[test]
fn a_changed_state_is_rejected() {
    for (place, new) in [
        ("m", json!(3)),
        ("users", json!(0)),
        ("count", json!(9)),
        ("seq", json!(4)),
        ("active", json!(1)),
        ("has_itree", json!(true)),
        ("list/0", json!(5)),
        ("sub/0/1", json!(2)),
        ("sub/0/2", json!(0)),
        ("sub/0/3", json!(1)),
        ("sub/0/4", json!(1)),
        ("sub/0/5", json!(1)),
    ] {
        let mut names = place.split('/');
        let list = names.next().expect("every place has a name");
        let field = format!("st.{list}{}", names.map(|at| format!("[{at}]")).collect::<String>());
        change("pair_single", "5.10.13", &format!("/st/{place}"), &field, new);
    }
    change("deferred_order", "7.2.13", "/st/tree/0", "st.tree[0]", json!(8));
    change("deferred_order", "7.2.13", "/st/deferred/0/0", "st.deferred[0][0]", json!("remove"));
    change("deferred_order", "7.2.13", "/st/deferred/0/1", "st.deferred[0][1]", json!(8));
    change("deferred_order", "7.2.13", "/st/iseq/0/1", "st.iseq[0][1]", json!(8));
    change("put_inside_range", "7.2.13", "/st/srcu_pending", "st.srcu_pending", json!(2));
}

#[test]
fn a_changed_warning_or_bug_is_rejected() {
    let other = json!("release_refused");
    change("failing_start_has_end", "6.12.117", "/warn/0", "warn[0]", other);
    change("register_after_exit", "6.12.117", "/bug", "bug", json!("destroy_with_subscribers"));
}

#[test]
fn a_changed_log_line_is_rejected() {
    change("eagain_refuser_walked_last", "5.10.13", "/log/0/ret", "log[0].ret", json!(-16));
    change("eagain_refuser_walked_last", "5.10.13", "/log/0/blockable", "log[0].blockable", json!(true));
}

#[test]
fn a_changed_waiter_is_rejected() {
    change("many_waiters", "6.1.192", "/blocked", "blocked", json!("mmap_lock"));
    change("many_waiters", "6.1.192", "/task", "task", json!(2));
    change("many_waiters", "6.1.192", "/resumed/1/task", "resumed[1].task", json!(9));
    change("many_waiters", "6.1.192", "/resumed/0/seq", "resumed[0].seq", json!(5));
    change("many_waiters", "6.1.192", "/resumed/2/i", "resumed[2].i", json!(0));
    change("register_waits_for_open_range", "6.1.192", "/resumed/0/ret", "resumed[0].ret", json!(-4));
}

#[test]
fn a_changed_last_line_is_rejected() {
    let leak = "interval_ok_then_hlist_eagain";
    change(leak, "7.2.13", "/stuck/0/0", "stuck[0][0]", json!(3));
    change(leak, "7.2.13", "/stuck/0/1", "stuck[0][1]", json!("remove"));
    change(leak, "7.2.13", "/stuck/0/2", "stuck[0][2]", json!("mmap_lock"));
    change(leak, "7.2.13", "/mms/0/active", "mms[0].active", json!(0));
}

#[test]
fn a_changed_header_is_rejected() {
    let original = golden::trace("nonblock_all_succeed", "7.2.13");
    let mut lines = values(original);
    lines[0]["traits"] = json!(["warn"]);
    let trace = Trace::read("mine", &text(&lines)).expect("still a trace");
    let mismatches = replay(&trace, trace.header.kernel).mismatches;
    assert_eq!(mismatches.len(), 1);
    assert_eq!(mismatches[0].to_string(), r#"mine:1: traits: expected ["warn"], got []"#);
}

/// Five mutations of every trace: a leaf changed, something taken out, something put in.
#[test]
fn any_changed_observation_is_rejected() {
    let mut random = Random(20_210_325);
    let mut tried = 0;
    for original in golden::traces() {
        let recorded = values(original);
        for _ in 0..5 {
            let mut lines = recorded.clone();
            let at = 1 + random.below(original.lines.len());
            let inputs = {
                let mut line = original.lines[at - 1].clone();
                line.seen = Observed::default();
                line.to_value()
            };
            let Value::Object(line) = &mut lines[at] else { panic!("a line is an object") };
            let mut seen: Map<String, Value> =
                line.iter().filter(|(key, _)| inputs.get(key).is_none()).map(clone).collect();
            let before = seen.clone();
            mutate(&mut seen, &mut random);
            if seen == before {
                continue;
            }
            line.retain(|key, _| inputs.get(key).is_some());
            line.append(&mut seen);
            tried += 1;

            let mutated = text(&lines);
            // An observation that says the trace ends here, or no longer does, is missed a line later.
            let noticed = match Trace::read(&original.file, &mutated) {
                Err(error) => error.line == at + 1 || error.line == at + 2,
                Ok(trace) => {
                    let mismatches = replay(&trace, trace.header.kernel).mismatches;
                    mismatches.iter().any(|mismatch| mismatch.line == at + 1)
                        && mismatches.iter().all(|mismatch| [1, at + 1].contains(&mismatch.line))
                }
            };
            assert!(
                noticed,
                "{}:{}: nobody noticed\n{}\nnow\n{}",
                original.file,
                at + 1,
                recorded[at],
                lines[at]
            );
        }
    }
    assert!(tried > 2500, "only {tried} mutations");
}

fn clone((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

fn mutate(seen: &mut Map<String, Value>, random: &mut Random) {
    let extra = [
        ("warn", json!(["put_without_users"])),
        ("log", json!([{"ret": -11, "blockable": false}])),
        ("cb", json!([{"c": "free", "s": 0, "f": ""}])),
        ("bug", json!("dead_mm")),
        ("ret", json!(1)),
        ("got", json!(0)),
        ("misuse", json!(true)),
        ("blocked", json!("mmap_lock")),
        ("resumed", json!([{"task": 0, "op": "register", "s": 0, "ret": 0}])),
        ("st", json!({"m": 0, "freed": true})),
    ];
    if seen.is_empty() || random.below(8) == 0 {
        let (key, value) = random.pick(&extra).clone();
        seen.insert(key.to_owned(), value);
        return;
    }
    let keys: Vec<String> = seen.keys().cloned().collect();
    let key = random.pick(&keys);
    if random.below(10) == 0 {
        seen.remove(key);
        return;
    }
    mutate_value(seen.get_mut(key).expect("one of its keys"), random);
}

fn mutate_value(value: &mut Value, random: &mut Random) {
    match value {
        Value::Null => *value = json!(0),
        Value::Bool(truth) => *truth = !*truth,
        Value::Number(_) => {
            let other = [json!(0), json!(1), json!(2), json!(-11), json!(3), json!(u64::MAX), json!(4096)];
            *value = random.pick(&other).clone();
        }
        Value::String(_) => {
            let other =
                ["", "s", "sl", "nsl", "start", "end", "UNMAP", "CLEAR", "insert", "remove", "invalidation"];
            *value = json!(random.pick(&other));
        }
        Value::Array(list) => match random.below(if list.is_empty() { 1 } else { 8 }) {
            0 => list.push(list.last().cloned().unwrap_or(json!(0))),
            1 => drop(list.remove(random.below(list.len()))),
            2 => list.rotate_left(1),
            _ => {
                let at = random.below(list.len());
                mutate_value(&mut list[at], random);
            }
        },
        Value::Object(map) => mutate(map, random),
    }
}
