//! The keys of `rowd.toml`, written out for people: an example, a reference in Markdown, a man page.
//!
//! Invariants: everything comes from the table of keys; what is installed and what is in `docs/` is held against it by
//! a test.
//! Absent: the table (`keys.rs`).

use std::io;

use roff::{Roff, bold, roman};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::keys::{Key, Kind, Preset, SECTIONS, Section};

/// The longest line of the example.
const WIDTH: usize = 118;

const EXAMPLE: &str = "\
# Configuration of rowd, read when it starts: `systemctl restart rowd` after a change (connections stay).
#
# Every key is here, with its default. A line that begins with `#` and no space is a setting that is
# commented out. Sizes are written as \"64MiB\", durations have their unit in the key. See rowd.toml(5).
";

const MARKDOWN: &str = "\
# rowd.toml

<!-- Written by the daemon: `ROWD_GOLDEN=write cargo test -p rowd-tests --test it -- configuration` -->

The configuration of rowd, read when it starts: `systemctl restart rowd` after a change (connections stay). The file is
`/etc/rowd/rowd.toml`, or what `--config` names; it may be empty. `rowd --dir DIR` needs none and has everything inside DIR.
An unknown key and a value that will not do are errors, and rowd does not start.

Sizes are text such as `\"64MiB\"`, with `KiB`, `MiB`, `GiB`, `TiB`, `PiB`, or a number of bytes. The man page rowd.toml(5)
says the same, and so does the example that is installed.
";

const MAN: &str = "\
The configuration of rowd(8), read when it starts. An unknown key and a value that will not do are errors, and rowd does \
not start. The file is in TOML. Sizes are text such as \"64MiB\", with KiB, MiB, GiB, TiB, PiB, or a number of bytes.";

impl Kind {
    /// What people call it.
    fn name(self) -> &'static str {
        match self {
            Kind::Path => "path",
            Kind::Text => "text",
            Kind::Size => "size",
            Kind::Number | Kind::Count => "number",
            Kind::Octal => "number, in octal",
            Kind::Numbers => "list of numbers",
            Kind::Names => "list of names",
            Kind::Address => "address with port",
            Kind::Addresses => "list of addresses with port",
            Kind::Switch => "true or false",
        }
    }
}

impl Key {
    /// Its type with unit and range.
    fn value_type(&self) -> String {
        let unit = self.unit.map(|unit| format!(" {unit}")).unwrap_or_default();
        let range = self.range.map(|(low, high)| format!(", {low} to {high}")).unwrap_or_default();
        format!("{}{unit}{range}", self.kind.name())
    }

    /// Its meaning as one line of Markdown.
    fn sentence(&self) -> String {
        joined(self.meaning)
    }
}

/// The words of several lines of a comment.
fn joined(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// The file that is installed: all keys, commented out.
#[must_use]
pub fn example() -> String {
    let mut text = EXAMPLE.to_owned();
    for Section { name, meaning, keys } in SECTIONS {
        text.push('\n');
        if !name.is_empty() {
            comment(&mut text, &joined(meaning).replace('`', ""));
            text.push_str(&format!("[{name}]\n"));
        }
        for key in *keys {
            let mut meaning = key.sentence().replace('`', "");
            if key.unit.is_some() || key.range.is_some() {
                let about = key.value_type();
                meaning.push_str(&format!(" A {about}."));
            }
            comment(&mut text, &meaning);
            let (Preset::Default(value) | Preset::Example(value)) = key.preset;
            text.push_str(&format!("#{} = {value}\n", key.name));
        }
    }
    text
}

/// Adds words as lines of a comment.
fn comment(text: &mut String, words: &str) {
    let mut line = "#".to_owned();
    for word in words.split(' ') {
        if line.len() + 1 + word.len() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = "#".to_owned();
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

/// `docs/configuration.md`.
#[must_use]
pub fn markdown() -> String {
    let mut text = MARKDOWN.to_owned();
    for Section { name, meaning, keys } in SECTIONS {
        let title =
            if name.is_empty() { "Above all sections".to_owned() } else { format!("`[{name}]`") };
        text.push_str(&format!("\n## {title}\n\n"));
        if !meaning.is_empty() {
            text.push_str(&format!("{}\n\n", joined(meaning)));
        }
        text.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
        for key in *keys {
            let preset = match key.preset {
                Preset::Default(value) => format!("`{value}`"),
                Preset::Example(value) => format!("none; for example `{value}`"),
            };
            let (kind, meaning) = (key.value_type(), key.sentence());
            text.push_str(&format!("| `{}` | {kind} | {preset} | {meaning} |\n", key.name));
        }
    }
    text
}

/// rowd.toml(5).
///
/// # Errors
/// It cannot be written.
pub fn man(to: &mut dyn io::Write) -> io::Result<()> {
    let mut page = Roff::new();
    page.control("TH", ["rowd.toml", "5", "", concat!("rowd ", env!("CARGO_PKG_VERSION")), ""]);
    page.control("SH", ["NAME"]).text([roman("rowd.toml - configuration of rowd")]);
    page.control("SH", ["SYNOPSIS"]).text([roman("/etc/rowd/rowd.toml")]);
    page.control("SH", ["DESCRIPTION"]).text([roman(MAN)]);
    for Section { name, meaning, keys } in SECTIONS {
        if name.is_empty() {
            page.control("SH", ["KEYS ABOVE ALL SECTIONS"]);
        } else {
            page.control("SH", [format!("SECTION [{name}]").as_str()]);
            page.text([roman(joined(meaning).replace('`', ""))]);
        }
        for key in *keys {
            page.control("TP", []);
            page.text([bold(key.name), roman(format!(" ({})", key.value_type()))]);
            let preset = match key.preset {
                Preset::Default(value) => format!("Default: {value}"),
                Preset::Example(value) => format!("For example: {value}"),
            };
            page.text([roman(format!("{} {preset}", key.sentence().replace('`', "")))]);
        }
    }
    page.control("SH", ["SEE ALSO"]).text([roman("rowd(8), rowctl(1)")]);
    page.to_writer(to)
}

/// The key `section.name`.
///
/// # Panics
/// There is none: its name is wrong in the code.
fn key(path: &str) -> &'static Key {
    let (section, name) = path.split_once('.').unwrap_or(("", path));
    let mut keys = SECTIONS.iter().filter(|s| s.name == section).flat_map(|s| s.keys);
    keys.find(|key| key.name == name).unwrap_or_else(|| panic!("there is no key {path}"))
}

/// The default of the key `section.name`.
///
/// # Panics
/// It has none of this type: the table is wrong.
pub(super) fn default<T: DeserializeOwned>(path: &str) -> T {
    #[derive(Deserialize)]
    struct Line<T> {
        value: T,
    }
    let Preset::Default(value) = key(path).preset else { panic!("{path} has no default") };
    let line = toml::from_str::<Line<T>>(&format!("value = {value}"));
    line.unwrap_or_else(|e| panic!("the default of {path}: {e}")).value
}

/// The values of the key `section.name` that will do.
///
/// # Panics
/// It has no range: the table is wrong.
pub(super) fn range(path: &str) -> (u64, u64) {
    key(path).range.unwrap_or_else(|| panic!("{path} has no range"))
}
