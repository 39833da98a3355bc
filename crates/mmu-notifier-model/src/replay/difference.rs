//! The difference of two JSON values, place by place.

use serde_json::Value;

/// Calls `report(field, expected, got)` for every place in which the two differ, as deep down as both
/// have something there.
pub(super) fn each(expected: &Value, got: &Value, report: &mut dyn FnMut(String, String, String)) {
    at("", Some(expected), Some(got), report);
}

fn at(
    path: &str,
    expected: Option<&Value>,
    got: Option<&Value>,
    report: &mut dyn FnMut(String, String, String),
) {
    match (expected, got) {
        (Some(Value::Object(expected)), Some(Value::Object(got))) => {
            let only_got = got.keys().filter(|key| !expected.contains_key(*key));
            for key in expected.keys().chain(only_got) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                at(&path, expected.get(key), got.get(key), report);
            }
        }
        (Some(Value::Array(expected)), Some(Value::Array(got))) => {
            for index in 0..expected.len().max(got.len()) {
                at(&format!("{path}[{index}]"), expected.get(index), got.get(index), report);
            }
        }
        (expected, got) if expected == got => {}
        (expected, got) => report(path.to_owned(), text(expected), text(got)),
    }
}

fn text(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), Value::to_string)
}
