//! Golden files: the JSON that a verb prints, held against a file in `tests/it/golden/`: which fields there are, and of
//! which types.
//!
//! Invariants: a field may be added within a version of the protocol; one that goes or changes its type breaks the
//! scripts of users, and the test. What is not there this time, such as an end that has not come yet, may be there
//! another time.
//! Absent: values, which the tests of each subject check; which verbs are run, which the tests say (`it/golden.rs`, and
//! `vm/attach.rs` for those that need a kernel device).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

/// Fields whose names are data: all their values have one shape.
const MAPS: &[&str] = &["tags", "params", "operations"];

/// Fields that are null when there was no request in the second that was measured.
const LATENCIES: &[&str] = &["mean_us", "p99_us"];

/// What verbs printed, by verb.
#[derive(Debug, Default)]
pub struct Shapes {
    all: BTreeMap<String, Value>,
}

impl Shapes {
    /// Adds what a verb printed; several times: what fits all of it.
    pub fn add(&mut self, verb: &str, printed: &Value) {
        let shape = shape(printed);
        let merged = match self.all.get(verb) {
            Some(known) => together(known, &shape),
            None => shape,
        };
        self.all.insert(verb.to_owned(), merged);
    }

    /// Holds what was printed against the files, or with `ROWD_GOLDEN=write` the files against what was printed.
    ///
    /// # Panics
    /// A verb prints something else than its file says.
    #[track_caller]
    pub fn hold(&self) {
        if std::env::var_os("ROWD_GOLDEN").is_some_and(|wish| wish == "write") {
            for (verb, shape) in &self.all {
                if together(&kept(verb), shape) != kept(verb) {
                    let text = serde_json::to_string_pretty(shape).expect("JSON") + "\n";
                    fs::write(file(verb), text).expect("a golden file");
                }
            }
        }
        let mut broken = Vec::new();
        for (verb, shape) in &self.all {
            let kept = kept(verb);
            if together(&kept, shape) != kept {
                let (kept, now) = (format!("{kept:#}"), format!("{shape:#}"));
                broken
                    .push(format!("{verb}:\n--- {}\n{kept}\n--- now\n{now}", file(verb).display()));
            }
        }
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }
}

/// The file of a verb.
#[must_use]
pub fn file(verb: &str) -> PathBuf {
    directory().join(format!("{}.json", verb.replace(' ', "-")))
}

/// Where the files are.
#[must_use]
pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("it/golden")
}

/// What the file of a verb says; nothing when there is none yet.
fn kept(verb: &str) -> Value {
    let text = fs::read_to_string(file(verb)).unwrap_or_else(|_| "null".to_owned());
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file(verb).display()))
}

/// Field names and types of a value; the elements of a list, and the values of a map, are put together.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(_) => json!("boolean"),
        Value::Number(number) if number.is_f64() => json!("number"),
        Value::Number(_) => json!("integer"),
        Value::String(text) if is_time(text) => json!("time"),
        Value::String(_) => json!("string"),
        Value::Array(list) => {
            let elements = list.iter().map(shape).reduce(|one, other| together(&one, &other));
            Value::Array(elements.into_iter().collect())
        }
        Value::Object(fields) => {
            let shaped = fields.iter().map(|(name, value)| (name.clone(), field(name, value)));
            Value::Object(shaped.collect())
        }
    }
}

fn field(name: &str, value: &Value) -> Value {
    match value {
        // Who is connected at this moment is chance; `disconnected` of a rollback has the fields.
        Value::Array(_) if name == "clients" => json!(["client"]),
        // There is a latency if there was a request in that second, which is chance too.
        Value::Null | Value::Number(_) if LATENCIES.contains(&name) => json!("integer or null"),
        Value::Object(entries) if MAPS.contains(&name) || has_ids(entries) => {
            let values = entries.values().map(shape).reduce(|one, other| together(&one, &other));
            json!({ "*": values.unwrap_or_else(|| json!("nothing")) })
        }
        other => shape(other),
    }
}

/// Whether the names of the fields are ids of objects.
fn has_ids(entries: &Map<String, Value>) -> bool {
    !entries.is_empty() && entries.keys().all(|name| name.starts_with("d-"))
}

fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 20 && bytes[4] == b'-' && bytes[10] == b'T' && bytes.ends_with(b"Z")
}

/// What fits both shapes.
fn together(one: &Value, other: &Value) -> Value {
    match (one, other) {
        (one, other) if one == other => one.clone(),
        (Value::Object(one), Value::Object(other)) if is_plain(one) && is_plain(other) => {
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            let merged = names.into_iter().map(|name| {
                let shape = match (one.get(name), other.get(name)) {
                    (Some(one), Some(other)) => together(one, other),
                    (Some(only), None) | (None, Some(only)) => together(only, &json!("absent")),
                    (None, None) => json!("absent"),
                };
                (name.clone(), shape)
            });
            Value::Object(merged.collect())
        }
        (Value::Array(one), Value::Array(other)) => {
            let elements = one.iter().chain(other).cloned();
            let merged = elements.reduce(|one, other| together(&one, &other));
            Value::Array(merged.into_iter().collect())
        }
        (one, other) => {
            // The empty map and the empty list fit what has something in it.
            let mut variants: Vec<Value> = Vec::new();
            for part in [one, other].into_iter().flat_map(variants_of) {
                let same_kind = |known: &Value| {
                    (known.is_object() && part.is_object()) || (known.is_array() && part.is_array())
                };
                match variants.iter().position(same_kind) {
                    Some(at) => variants[at] = together(&variants[at], &part),
                    None if !variants.contains(&part) => variants.push(part),
                    None => {}
                }
            }
            variants.sort_by_key(ToString::to_string);
            variants.retain(|variant| *variant != json!("nothing"));
            match variants.len() {
                1 => variants.remove(0),
                _ => json!({ "one of": variants }),
            }
        }
    }
}

fn is_plain(fields: &Map<String, Value>) -> bool {
    !fields.contains_key("one of")
}

fn variants_of(shape: &Value) -> Vec<Value> {
    match shape.get("one of").and_then(Value::as_array) {
        Some(variants) => variants.clone(),
        None => vec![shape.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_put_together() {
        let one = shape(
            &json!([{"a": 1, "b": null, "tags": {}}, {"a": 2, "b": "x", "tags": {"k": "v"}}]),
        );
        let expected = json!([{
            "a": "integer", "b": {"one of": ["null", "string"]}, "tags": {"*": "string"},
        }]);
        assert_eq!(one, expected);
        let more = together(&one, &shape(&json!([{"a": 1.5}])));
        let a = json!({"one of": ["integer", "number"]});
        assert_eq!(more[0]["a"], a);
        assert_eq!(more[0]["b"], json!({"one of": ["absent", "null", "string"]}));
        assert_eq!(shape(&json!("2026-01-31T09:00:00Z")), json!("time"));
    }
}
