//! Strict reading of one JSON object: every field has a type and a range, and none is left over.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// What is wrong with which field, before file and line are known.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) field: String,
    pub(super) problem: String,
}

pub(super) type Read<T> = Result<T, Fault>;

pub(super) fn fault<T>(field: impl Into<String>, problem: impl Into<String>) -> Read<T> {
    Err(Fault { field: field.into(), problem: problem.into() })
}

/// A JSON object whose fields are taken out one by one.
#[derive(Debug)]
pub(super) struct Fields {
    /// What leads to this object from the beginning of the line: `cb[2].`.
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a line.
    pub(super) fn of_line(text: &str) -> Read<Fields> {
        let value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => {
                let what = if error.is_eof() { "truncated" } else { "not JSON" };
                // The parser saw one line and calls it line 1.
                let why = error.to_string().replace(" at line 1 column ", " in column ");
                return fault("", format!("the line is {what}: {why}"));
            }
        };
        if let Some(key) = repeated_key(text) {
            return fault(shown(&key), "the field is there twice");
        }
        match value {
            Value::Object(map) => Ok(Fields { path: String::new(), map }),
            other => fault("", format!("the line is not an object but {}", kind(&other))),
        }
    }

    /// Reads a value that has to be an object.
    pub(super) fn of_value(path: &str, value: Value) -> Read<Fields> {
        match value {
            Value::Object(map) => Ok(Fields { path: format!("{path}."), map }),
            other => wrong_type(path, "an object", &other),
        }
    }

    /// The name of a field as an error should give it.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{}", self.path, shown(key))
    }

    /// An error about a field.
    pub(super) fn fault<T>(&self, key: &str, problem: impl Into<String>) -> Read<T> {
        fault(self.name(key), problem)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key)
    }

    pub(super) fn value(&mut self, key: &str) -> Read<Value> {
        match self.take(key) {
            Some(value) => Ok(value),
            None => self.fault(key, "the field is missing"),
        }
    }

    pub(super) fn unsigned(&mut self, key: &str) -> Read<u64> {
        let value = self.value(key)?;
        unsigned(&self.name(key), &value)
    }

    /// A return code: anything that fits into the kernel's `int`.
    pub(super) fn code(&mut self, key: &str) -> Read<i64> {
        let value = self.value(key)?;
        code(&self.name(key), &value)
    }

    pub(super) fn truth(&mut self, key: &str) -> Read<bool> {
        match self.value(key)? {
            Value::Bool(truth) => Ok(truth),
            other => wrong_type(&self.name(key), "true or false", &other),
        }
    }

    /// A field that is either `true` or not there.
    pub(super) fn flag(&mut self, key: &str, written: bool) -> Read<bool> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(value)) if value == written => Ok(true),
            Some(other) => wrong_type(&self.name(key), &format!("{written} or absent"), &other),
        }
    }

    pub(super) fn text(&mut self, key: &str) -> Read<String> {
        match self.value(key)? {
            Value::String(text) => Ok(text),
            other => wrong_type(&self.name(key), "a string", &other),
        }
    }

    /// A word out of a list.
    pub(super) fn word<T: Copy>(&mut self, key: &str, words: &[T], name: fn(T) -> &'static str) -> Read<T> {
        let value = self.value(key)?;
        word(&self.name(key), &value, words, name)
    }

    pub(super) fn array(&mut self, key: &str) -> Read<Vec<Value>> {
        let value = self.value(key)?;
        array(&self.name(key), value)
    }

    /// A list that is left out when it is empty, each element read by `read`.
    pub(super) fn list<T>(&mut self, key: &str, read: fn(&str, Value) -> Read<T>) -> Read<Vec<T>> {
        if !self.has(key) {
            return Ok(Vec::new());
        }
        let list = self.full_list(key, read)?;
        if list.is_empty() { self.fault(key, "an empty list is left out") } else { Ok(list) }
    }

    /// A list that is always there.
    pub(super) fn full_list<T>(&mut self, key: &str, read: fn(&str, Value) -> Read<T>) -> Read<Vec<T>> {
        let name = self.name(key);
        let elements = self.array(key)?.into_iter().enumerate();
        elements.map(|(at, value)| read(&format!("{name}[{at}]"), value)).collect()
    }

    /// An error if any field was not taken.
    pub(super) fn end(self) -> Read<()> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(key) => self.fault(key, "the field is unknown here"),
        }
    }
}

pub(super) fn unsigned(field: &str, value: &Value) -> Read<u64> {
    match value {
        Value::Number(number) => match number.as_u64() {
            Some(value) => Ok(value),
            None if number.as_i64().is_some() => fault(field, format!("{number} is negative")),
            None => fault(field, format!("{number} is not a whole number of 64 bits")),
        },
        other => wrong_type(field, "a number", other),
    }
}

pub(super) fn code(field: &str, value: &Value) -> Read<i64> {
    let code = match value {
        Value::Number(number) => number.as_i64().filter(|&code| i32::try_from(code).is_ok()),
        other => return wrong_type(field, "a number", other),
    };
    match code {
        Some(code) => Ok(code),
        None => fault(field, format!("{value} is not a whole number of 32 bits")),
    }
}

pub(super) fn array(field: &str, value: Value) -> Read<Vec<Value>> {
    match value {
        Value::Array(elements) => Ok(elements),
        other => wrong_type(field, "a list", &other),
    }
}

/// A list of so many elements.
pub(super) fn tuple<const N: usize>(field: &str, value: Value) -> Read<[Value; N]> {
    array(field, value)?.try_into().or_else(|elements: Vec<Value>| {
        fault(field, format!("the list has {} elements instead of {N}", elements.len()))
    })
}

pub(super) fn word<T: Copy>(field: &str, value: &Value, words: &[T], name: fn(T) -> &'static str) -> Read<T> {
    let Value::String(text) = value else {
        return wrong_type(field, "a string", value);
    };
    match words.iter().find(|&&word| name(word) == text) {
        Some(&word) => Ok(word),
        None => {
            let known: Vec<_> = words.iter().map(|&word| name(word)).collect();
            fault(field, format!("{value} is none of {}", known.join(", ")))
        }
    }
}

pub(super) fn wrong_type<T>(field: &str, wanted: &str, got: &Value) -> Read<T> {
    fault(field, format!("it should be {wanted} and is {}", kind(got)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(true) => "true",
        Value::Bool(false) => "false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A key, which an error has to name even if it is nothing.
fn shown(key: &str) -> &str {
    if key.is_empty() { "\"\"" } else { key }
}

/// A key that stands twice in one object of `text`, which is known to be JSON. The parser would
/// silently keep the last of them.
fn repeated_key(text: &str) -> Option<String> {
    // One set of keys for each object that is open; lists have none.
    let mut open: Vec<Option<BTreeSet<String>>> = Vec::new();
    let mut expects_key = false;
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'{' => {
                open.push(Some(BTreeSet::new()));
                expects_key = true;
            }
            b'[' => {
                open.push(None);
                expects_key = false;
            }
            b'}' | b']' => drop(open.pop()),
            b',' => expects_key = matches!(open.last(), Some(Some(_))),
            b'"' => {
                let begin = at;
                at += 1;
                while bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                if expects_key && let Some(Some(keys)) = open.last_mut() {
                    // The same key can be spelt in several ways.
                    let key: String = serde_json::from_str(&text[begin..=at]).expect("a string of the text");
                    if !keys.insert(key.clone()) {
                        return Some(key);
                    }
                }
                expects_key = false;
            }
            _ => {}
        }
        at += 1;
    }
    None
}
