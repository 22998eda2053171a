//! The table of requirement rows (`tests/rows.md`): what it names exists, and no row is left out or there twice.
//!
//! Absent: whether a test tests what the row says; who writes one says it beside the test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Areas that are there from their first row to this one.
const WHOLE: &[(&str, u32)] = &[
    ("CAP", 12),
    ("COPY", 20),
    ("DEL", 19),
    ("ENC", 10),
    ("EXIT", 16),
    ("IA", 24),
    ("IMG", 29),
    ("INCR", 20),
    ("LOC", 21),
    ("PERF", 10),
    ("POL", 51),
    ("ROLL", 28),
    ("SNAP", 35),
    ("TAG", 10),
];

struct Row {
    id: String,
    place: String,
}

fn rows() -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("rows.md");
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| row"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, what, place] = cells[..] else { panic!("three cells: {line}") };
        assert!(!what.is_empty(), "what is it? {line}");
        Row { id: id.to_owned(), place: place.to_owned() }
    };
    lines.map(row).collect()
}

/// The names of all functions below a directory that have the attribute of a test.
fn tests_below(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            names(&fs::read_to_string(path).unwrap(), found);
        }
    }
}

fn names(source: &str, found: &mut BTreeSet<String>) {
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        let function = line.trim_start_matches("async ").strip_prefix("fn ");
        if let Some((name, _)) = function.and_then(|rest| rest.split_once(['(', '<'])) {
            if std::mem::take(&mut is_test) {
                found.insert(name.to_owned());
            }
        } else {
            is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
        }
    }
}

/// What stands between backticks, and whether the word before it is `curve`.
fn named(place: &str) -> Vec<(String, bool)> {
    let parts: Vec<&str> = place.split('`').collect();
    let name = |pair: &[&str]| {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let curve = pair[0].ends_with("curve ");
        (pair[1].chars().all(is_word) && (curve || pair[1].contains('_')))
            .then(|| (pair[1].to_owned(), curve))
    };
    parts.chunks_exact(2).filter_map(name).collect()
}

/// Promise: each row is tested by something that exists, or says why it is not.
#[test]
fn every_row_names_tests_that_exist_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut tests = BTreeSet::new();
    for dir in ["tests", "daemon/src", "proto/src", "ctl/src"] {
        tests_below(&root.join(dir), &mut tests);
    }
    assert!(tests.contains("every_row_names_tests_that_exist_or_a_reason"), "{}", tests.len());
    let curves = fs::read_to_string(root.join("tests/bench/curves/mod.rs")).unwrap();
    let mut wrong = Vec::new();
    for Row { id, place } in rows() {
        let all = named(&place);
        if all.is_empty() && !place.starts_with("none: ") {
            wrong.push(format!("{id} names no test and no reason"));
        }
        for (name, curve) in all {
            let exists = match curve {
                true => curves.contains(&format!("(\"{name}\", ")),
                false => tests.contains(&name),
            };
            if !exists {
                wrong.push(format!("{id}: there is no {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Promise: an area has all of its rows, and each row one line.
#[test]
fn no_row_is_missing_or_there_twice() {
    let mut seen = BTreeSet::new();
    for Row { id, .. } in rows() {
        assert!(seen.insert(id.clone()), "{id} is there twice");
    }
    for (area, last) in WHOLE {
        for number in 1..=*last {
            let id = format!("{area}-{number:02}");
            assert!(seen.contains(&id), "{id} is missing");
        }
    }
}
