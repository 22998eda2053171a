//! What is written about `rowd.toml`: the reference, the example that is installed, the man page.
//!
//! After a change that is meant: `ROWD_GOLDEN=write cargo test -p rowd-tests --test it -- configuration`, and look at
//! the difference.
//! Absent: what single keys do, which is tested where they have an effect.

use std::fs;
use std::path::Path;

use rowd::config::{Config, SECTIONS, reference};
use rowd_tests::tool;

/// Promise: reference and example say what the daemon does, since they come from the table that it reads by.
#[test]
fn the_reference_and_the_example_are_those_of_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let files = [
        ("docs/configuration.md", reference::markdown()),
        ("systemd/rowd.toml", reference::example()),
    ];
    for (name, text) in files {
        let path = root.join(name);
        if std::env::var_os("ROWD_GOLDEN").is_some_and(|wish| wish == "write") {
            fs::write(&path, &text).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap();
        assert!(kept == text, "{name} differs from the code; now it is\n{text}");
    }
}

/// Promise: the range that the reference tells is the range that is taken, and one beyond is refused by name.
#[test]
fn every_range_is_the_one_that_is_checked() {
    let mut ranges = 0;
    for section in SECTIONS {
        for key in section.keys {
            let Some((low, high)) = key.range else { continue };
            let path = format!("{}.{}", section.name, key.name);
            let parse = |value: u64| {
                Config::parse(&format!("[{}]\n{} = {value}", section.name, key.name), None)
            };
            for value in [low, high] {
                parse(value).unwrap_or_else(|e| panic!("{path} = {value}: {e}"));
            }
            for value in low.checked_sub(1).into_iter().chain([high + 1]) {
                let error = parse(value).unwrap_err();
                assert!(error.message().contains(&path), "{path} = {value}: {error}");
            }
            ranges += 1;
        }
    }
    assert!(ranges >= 12, "only {ranges} keys have a range");
}

/// The man page has every key, and no markup of the reference.
#[test]
fn the_man_page_has_every_key() {
    let rowd = tool::built("rowd").display().to_string();
    let page =
        tool::finish(std::process::Command::new(rowd).args(["man", "rowd.toml"])).ok().stdout;
    assert!(page.contains("\n.TH rowd.toml 5 "), "{page}");
    for key in SECTIONS.iter().flat_map(|section| section.keys) {
        assert!(page.contains(&format!("\\fB{}\\fR", key.name)), "{} is missing\n{page}", key.name);
    }
    assert!(!page.contains('`'), "{page}");
}
