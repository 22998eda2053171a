//! Style that matters, as tests: what a reader may rely on in every file of this repository.
//!
//! Invariants: each rule is a function from a file to the lines that break it, and has a test of its
//! own that shows it does find something.
//! Absent: what rustfmt and clippy check already (line length, length of functions).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rowd::faults::{FAIL_POINTS, HOLD_POINTS, SEEDED_FAULTS};

/// Lines a file may have; beyond, it says more than one thing.
const LINES_MAX: usize = 600;

/// The files that may contain `unsafe`, each for a system call that has no safe wrapper.
const UNSAFE_ALLOWED: &[&str] = &[
    "daemon/src/attach/block.rs",
    "daemon/src/control/peer.rs",
    "daemon/src/crypt/locked.rs",
    "daemon/src/freeze/kernel.rs",
    "daemon/src/memory.rs",
    "daemon/src/nbd/activation.rs",
    "daemon/src/pool/aligned.rs",
    "daemon/src/pool/direct.rs",
    "daemon/src/pool/file.rs",
    "daemon/src/pool/ring.rs",
    "tests/src/manager.rs",
];

/// Who may name whom: files below the first must not contain any of the words (ARCHITECTURE.md).
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "daemon/src/nbd/",
        &["crate::attach", "crate::control", "rowd_proto", "crate::meta", "crate::map"],
    ),
    ("daemon/src/control/", &["crate::nbd", "crate::disk", "crate::map", "crate::pool"]),
    (
        "daemon/src/crypt/",
        &[
            "tokio",
            "crate::nbd",
            "crate::disk",
            "crate::engine",
            "crate::control",
            "crate::map",
            "crate::pool",
            "crate::meta",
        ],
    ),
    ("daemon/src/map/", &["tokio", "crate::nbd", "crate::disk", "crate::engine", "crate::control"]),
    ("daemon/src/pool/", &["tokio", "crate::nbd", "crate::disk", "crate::engine", "crate::map"]),
    (
        "daemon/src/meta/",
        &["tokio", "crate::nbd", "crate::disk", "crate::engine", "crate::control"],
    ),
    (
        "daemon/src/disk/",
        &["tokio", "crate::nbd", "crate::engine", "crate::control", "crate::meta"],
    ),
    (
        "daemon/src/engine/",
        &[
            "tokio",
            "crate::nbd",
            "crate::attach",
            "crate::control",
            "crate::freeze",
            "crate::policy",
            "crate::vault",
            "rowd_proto",
        ],
    ),
    (
        "daemon/src/vault/",
        &["crate::nbd", "crate::control", "crate::map", "crate::pool", "crate::meta", "rowd_proto"],
    ),
    (
        "daemon/src/policy/",
        &[
            "tokio",
            "crate::nbd",
            "crate::control",
            "crate::disk",
            "crate::map",
            "crate::pool",
            "crate::meta",
            "crate::vault",
            "rowd_proto",
        ],
    ),
    (
        "daemon/src/attach/",
        &["tokio", "crate::control", "crate::disk", "crate::map", "crate::pool", "crate::meta"],
    ),
    (
        "daemon/src/freeze/",
        &["crate::nbd", "crate::control", "crate::disk", "crate::map", "crate::pool"],
    ),
    (
        "daemon/src/metrics/",
        &[
            "crate::nbd",
            "crate::control",
            "crate::disk",
            "crate::map",
            "crate::pool",
            "crate::meta",
            "rowd_proto",
        ],
    ),
    ("proto/src/", &["rowd::", "tokio"]),
    ("ctl/src/", &["rowd::", "tokio"]),
];

/// System calls on data, which only the pool makes.
const DATA_IO: &[&str] = &["pwritev", "preadv", "pwrite(", "pread(", "fdatasync", "fallocate"];

#[derive(Debug)]
struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    /// Lines of code: without comments, and up to the unit tests.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().take_while(|line| line.trim() != "mod tests {");
        lines.enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.path, line + 1)
    }

    fn is_test(&self) -> bool {
        self.path.starts_with("tests/it/") || self.path.starts_with("tests/src/")
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

/// The files of the repository with one of these endings.
fn sources(endings: &[&str]) -> Vec<Source> {
    let (mut found, mut dirs) = (Vec::new(), vec![root()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && name != ".git" {
                dirs.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root()).unwrap().display().to_string();
                found.push(Source { path, text });
            }
        }
    }
    assert!(!found.is_empty(), "the repository was not found");
    found
}

#[track_caller]
fn holds(endings: &[&str], rule: impl Fn(&Source) -> Vec<String>) {
    let broken: Vec<String> = sources(endings).iter().flat_map(rule).collect();
    assert!(broken.is_empty(), "{} places:\n{}", broken.len(), broken.join("\n"));
}

fn has_head(source: &Source) -> Vec<String> {
    if source.text.starts_with("//! ") { vec![] } else { vec![source.at(0, "no //! head")] }
}

fn is_short(source: &Source) -> Vec<String> {
    match source.text.lines().count() {
        count if count > LINES_MAX => vec![source.at(count - 1, "more than 600 lines")],
        _ => vec![],
    }
}

fn looks_right_only(source: &Source) -> Vec<String> {
    let mut broken = Vec::new();
    for (_, words) in FORBIDDEN.iter().filter(|(dir, _)| source.path.starts_with(dir)) {
        for (number, line) in source.code() {
            let names = |word: &&&str| {
                line.match_indices(**word).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                })
            };
            broken.extend(words.iter().filter(names).map(|word| source.at(number, word)));
        }
    }
    broken
}

fn knows_its_place(source: &Source) -> Vec<String> {
    let mut broken = Vec::new();
    for (number, line) in source.code() {
        let daemon = source.path.starts_with("daemon/src/");
        let rocksdb = line.contains("rocksdb::") && !source.path.starts_with("daemon/src/meta/");
        let word =
            |word: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word);
        let is_unsafe = word("unsafe") && !UNSAFE_ALLOWED.contains(&source.path.as_str());
        let data = daemon
            && !source.path.starts_with("daemon/src/pool/")
            && DATA_IO.iter().any(|call| line.contains(call));
        if !source.path.ends_with("tidy.rs") && (rocksdb || is_unsafe || data) {
            broken.push(source.at(number, line.trim()));
        }
    }
    broken
}

/// `matches!(x, y);` as a statement looks like an assertion and is none.
fn asserts_its_matches(source: &Source) -> Vec<String> {
    let mut broken = Vec::new();
    let mut before = ';';
    for (number, line) in source.code() {
        let line = line.trim();
        let begins = matches!(before, ';' | '{' | '}');
        if begins && line.starts_with("matches!(") && line.ends_with(");") {
            broken.push(source.at(number, line));
        }
        before = line.chars().next_back().unwrap_or(before);
    }
    broken
}

fn is_finished(source: &Source) -> Vec<String> {
    // Put together, so that this file does not break its own rule.
    let words = ["todo", "unimplemented", "dbg"].map(|word| format!("{word}!("));
    let ignored = ["#[", "ignore"].concat();
    // A test that another one starts in a process of its own is not skipped.
    let started = [&ignored, " = \"a part of "].concat();
    let sleep = ["thread", "::sleep"].concat();
    let mut broken = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        let unfinished = words.iter().any(|word| line.contains(word.as_str()));
        let skipped = line.contains(&ignored) && !line.contains(&started);
        if unfinished || skipped || source.is_test() && line.contains(&sleep) {
            broken.push(source.at(number, line.trim()));
        }
    }
    broken
}

fn names_no_machine(source: &Source) -> Vec<String> {
    let paths = [["/wo", "rk/"].concat(), ["/ro", "ot/"].concat()];
    let names = |line: &str| paths.iter().any(|path| line.contains(path.as_str()));
    let lines = source.text.lines().enumerate().filter(|(_, line)| names(line));
    lines.map(|(number, line)| source.at(number, line.trim())).collect()
}

fn has_one_title(source: &Source) -> Vec<String> {
    let mut in_code = false;
    let mut titles = 0;
    for line in source.text.lines() {
        in_code ^= line.trim_start().starts_with("```");
        titles += usize::from(!in_code && line.starts_with("# "));
    }
    if titles == 1 { vec![] } else { vec![source.at(0, &format!("{titles} titles"))] }
}

#[test]
fn every_file_begins_with_its_purpose() {
    holds(&[".rs"], has_head);
    assert_eq!(has_head(&Source::new("a.rs", "use x;\n//! late\n")).len(), 1);
}

#[test]
fn no_file_is_longer_than_600_lines() {
    holds(&[".rs"], is_short);
    assert_eq!(is_short(&Source::new("a.rs", &"x\n".repeat(601))).len(), 1);
    assert_eq!(is_short(&Source::new("a.rs", &"x\n".repeat(600))).len(), 0);
}

/// clippy measures functions; that it is told how long they may be is checked here.
#[test]
fn no_function_is_longer_than_70_lines() {
    let clippy = fs::read_to_string(root().join("clippy.toml")).unwrap();
    assert!(clippy.contains("too-many-lines-threshold = 70"), "{clippy}");
    let cargo = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(cargo.contains("too_many_lines = \"warn\""));
}

#[test]
fn modules_use_only_those_to_their_right() {
    holds(&[".rs"], looks_right_only);
    let broken = |path: &str, line: &str| looks_right_only(&Source::new(path, line)).len();
    assert_eq!(broken("daemon/src/nbd/x.rs", "use crate::control::Role;"), 1);
    assert_eq!(broken("daemon/src/map/x.rs", "    tokio::spawn(x)"), 1);
    assert_eq!(broken("daemon/src/map/x.rs", "// as tokio does"), 0);
    assert_eq!(broken("ctl/src/x.rs", "use rowd::units::Lba;"), 1);
    assert_eq!(broken("ctl/src/x.rs", "crate::rowd::x"), 0);
}

#[test]
fn unsafe_code_rocksdb_and_data_io_are_where_they_belong() {
    holds(&[".rs"], knows_its_place);
    let broken = |path: &str, line: &str| knows_its_place(&Source::new(path, line)).len();
    assert_eq!(broken("daemon/src/map/x.rs", "unsafe { x() }"), 1);
    assert_eq!(broken("daemon/src/map/x.rs", "unsafe_op_in_unsafe_fn"), 0);
    assert_eq!(broken("daemon/src/map/x.rs", "use rocksdb::DB;"), 1);
    assert_eq!(broken("daemon/src/disk/x.rs", "nix::sys::uio::pwritev(x)"), 1);
    for path in UNSAFE_ALLOWED {
        let text = fs::read_to_string(root().join(path)).unwrap();
        assert!(text.contains("unsafe"), "{path} has none any more: take it off the list");
    }
}

#[test]
fn no_match_is_left_unasserted() {
    holds(&[".rs"], asserts_its_matches);
    let broken = |text: &str| asserts_its_matches(&Source::new("a.rs", text)).len();
    assert_eq!(broken("    let x = 1;\n    matches!(x, 1);\n"), 1);
    assert_eq!(broken("    let x =\n        matches!(y, 1);\n"), 0);
    assert_eq!(broken("    assert!(matches!(x, 1));\n"), 0);
}

#[test]
fn nothing_is_left_unfinished_ignored_or_waited_for_blindly() {
    holds(&[".rs"], is_finished);
    let broken = |path: &str, text: &str| is_finished(&Source::new(path, text)).len();
    assert_eq!(broken("a.rs", &["todo", "!()"].concat()), 1);
    assert_eq!(broken("a.rs", &["#[", "ignore]"].concat()), 1);
    let sleep = ["std::thread", "::sleep(d)"].concat();
    assert_eq!(broken("tests/it/a.rs", &sleep), 1);
    assert_eq!(broken("ctl/src/a.rs", &sleep), 0);
}

#[test]
fn no_path_of_the_machine_it_was_written_on_is_in_any_file() {
    let all = [".rs", ".md", ".toml", ".sh", "Makefile", "run"];
    holds(&all, names_no_machine);
    assert_eq!(names_no_machine(&Source::new("a.md", &["in /wo", "rk/x"].concat())).len(), 1);
}

#[test]
fn every_document_has_one_title() {
    holds(&[".md"], has_one_title);
    assert_eq!(has_one_title(&Source::new("a.md", "# a\n# b\n")).len(), 1);
    assert_eq!(has_one_title(&Source::new("a.md", "# a\n```\n# comment\n```\n")).len(), 0);
}

/// A fail point that the daemon does not pass, or no test uses, proves nothing; nor does a fault.
#[test]
fn every_fail_point_and_seeded_fault_is_in_the_daemon_and_in_a_test() {
    let all = sources(&[".rs"]);
    let missing = |names: &[&str], wanted: &dyn Fn(&Source) -> bool, marks: &[&str]| {
        let text: String =
            all.iter().filter(|source| wanted(source)).map(|s| s.text.as_str()).collect();
        let all_used = marks.iter().any(|mark| text.contains(mark));
        let absent = |name: &&&str| !all_used && !text.contains(&format!("\"{name}\""));
        names.iter().filter(absent).map(|name| (*name).to_owned()).collect::<BTreeSet<_>>()
    };
    let daemon = |s: &Source| s.path.starts_with("daemon/src/") && !s.path.ends_with("faults.rs");
    let tests = |s: &Source| s.is_test() && !s.path.ends_with("tidy.rs");
    let none = BTreeSet::new();
    assert_eq!(missing(FAIL_POINTS, &daemon, &[]), none, "not in the daemon");
    assert_eq!(missing(SEEDED_FAULTS, &daemon, &[]), none, "not in the daemon");
    assert_eq!(missing(HOLD_POINTS, &daemon, &[]), none, "not in the daemon");
    assert_eq!(missing(HOLD_POINTS, &tests, &[]), none, "in no test");
    // A test that walks the whole table uses every name in it.
    assert_eq!(missing(FAIL_POINTS, &tests, &["faults::FAIL_POINTS"]), none, "in no test");
    assert_eq!(missing(SEEDED_FAULTS, &tests, &["faults::SEEDED_FAULTS"]), none, "in no test");
}
