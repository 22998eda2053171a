//! What a command prints on its standard output: a table, fields, or JSON.
//!
//! Invariants: with `-o json` the output is exactly one JSON value, with `jsonl` one per line;
//! colour only on a terminal without `NO_COLOR`; no line ends in blanks; a table leaves out what is
//! normal.
//! Absent: errors and questions, which go to the standard error.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Attribute, Cell, CellAlignment, Color, Table, presets};
use rowd_proto::{Tags, Time};
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use crate::error::{Failure, Result};
use rowd_proto::size;

use crate::time;

/// The shape of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// One JSON value: an object, or an array for lists.
    Json,
    /// One JSON object per line.
    Jsonl,
}

/// Where and how to print.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub format: Format,
    /// Only ids, and no remarks.
    pub quiet: bool,
    /// Escape sequences may be used.
    pub color: bool,
    /// The standard output is a terminal.
    pub terminal: bool,
    /// The present, in seconds since 1970.
    pub now: u64,
}

impl Output {
    /// The output of this process.
    pub fn of_process(format: Format, quiet: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        // https://no-color.org: any value but the empty one.
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Output { format, quiet, color: terminal && !unwanted && !dumb, terminal, now: time::now() }
    }

    /// Prints many objects: a table, an array, or a line each. With `-q` one id per line.
    pub fn list<T: Serialize>(
        &self,
        items: &[T],
        id: impl Fn(&T) -> String,
        text: impl FnOnce(&Output) -> String,
    ) -> Result<()> {
        match self.format {
            Format::Json => self.line(&json(&items)?),
            Format::Jsonl => self.lines(items.iter().map(json)),
            Format::Table if self.quiet => self.lines(items.iter().map(|item| Ok(id(item)))),
            Format::Table => self.text(&text(self)),
        }
    }

    /// Prints one object: text, or JSON. With `-q` its id.
    pub fn object<T: Serialize>(
        &self,
        item: &T,
        id: &str,
        text: impl FnOnce(&Output) -> String,
    ) -> Result<()> {
        match self.format {
            Format::Json | Format::Jsonl => self.line(&json(item)?),
            Format::Table if self.quiet => self.line(id),
            Format::Table => self.text(&text(self)),
        }
    }

    /// Prints one piece of a stream at once: text, or JSON on one line.
    pub fn item<T: Serialize>(&self, item: &T, text: impl FnOnce() -> String) -> Result<()> {
        match self.format {
            Format::Json | Format::Jsonl => self.line(&json(item)?),
            Format::Table => self.line(&text()),
        }
    }

    /// A remark for people, on the standard error; not with `-q` or JSON.
    pub fn remark(&self, text: &str) {
        if !self.quiet && self.format == Format::Table {
            eprintln!("{text}");
        }
    }

    /// Why what was waited for did not come to a good end, on the standard error, where `-q` has left no other word of it.
    pub fn reason(&self, what: &str, why: &str) {
        if self.quiet && self.format == Format::Table {
            eprintln!("rowctl: {what}: {why}");
        }
    }

    /// A point in time for a table.
    pub fn time(&self, at: Time) -> String {
        if self.terminal { time::relative(at, self.now) } else { at.to_string() }
    }

    /// A point in time where there is room for both forms.
    pub fn full_time(&self, at: Time) -> String {
        if self.terminal {
            format!("{at} ({})", time::relative(at, self.now))
        } else {
            at.to_string()
        }
    }

    fn text(&self, text: &str) -> Result<()> {
        if text.is_empty() { Ok(()) } else { self.line(text) }
    }

    fn line(&self, line: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        written(writeln!(stdout, "{line}").and_then(|()| stdout.flush()))
    }

    /// Many lines, which come together.
    fn lines(&self, lines: impl Iterator<Item = Result<String>>) -> Result<()> {
        let mut stdout = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
        for line in lines {
            written(writeln!(stdout, "{}", line?))?;
        }
        written(stdout.flush())
    }
}

fn written(outcome: io::Result<()>) -> Result<()> {
    match outcome {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::ReaderGone),
        Err(error) => Err(Failure::io("cannot write the output", &error)),
    }
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Failure::io("cannot encode the output", &io::Error::other(e)))
}

/// Columns with a heading; a column that is empty in all rows is left out.
#[derive(Debug)]
pub struct Columns {
    headings: Vec<Heading>,
    rows: Vec<Vec<Text>>,
}

/// The heading of a column, and to which side its cells lean.
#[derive(Clone, Copy, Debug)]
pub enum Heading {
    Left(&'static str),
    /// For numbers.
    Right(&'static str),
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    Plain(String),
    /// Something to look at; red where there is colour.
    Alarm(String),
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Text::Plain(text)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Text::Plain(text.to_owned())
    }
}

impl Text {
    fn as_str(&self) -> &str {
        match self {
            Text::Plain(text) | Text::Alarm(text) => text,
        }
    }
}

impl Columns {
    pub fn new(headings: &[Heading]) -> Self {
        Columns { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, which has a cell for each heading.
    pub fn row<const N: usize>(&mut self, cells: [Text; N]) {
        assert_eq!(N, self.headings.len(), "a cell for each heading");
        self.rows.push(cells.into());
    }

    /// The table as text; nothing at all when there are no rows.
    pub fn render(&self, output: &Output) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let used: Vec<usize> = (0..self.headings.len())
            .filter(|&column| self.rows.iter().any(|row| !row[column].as_str().is_empty()))
            .collect();
        let lines = self.rows.iter().flatten().any(|cell| cell.as_str().contains('\n'));
        if lines { self.render_lines(&used, output) } else { self.render_flat(&used, output) }
    }

    /// A table each of whose rows is one line. There may be tens of thousands of them, of which the library below makes
    /// a table in most of a second.
    fn render_flat(&self, used: &[usize], output: &Output) -> String {
        let widest = |column: usize| {
            let cells = self.rows.iter().map(|row| width(row[column].as_str()));
            cells.fold(width(self.headings[column].name()), usize::max)
        };
        let columns: Vec<(usize, usize)> =
            used.iter().map(|&column| (column, widest(column))).collect();
        let length: usize = columns.iter().map(|(_, width)| width + 2).sum();
        let mut text = String::with_capacity((length + 1) * (self.rows.len() + 1));
        for &(column, width) in &columns {
            let heading = self.headings[column];
            pad(&mut text, heading, (heading.name(), width), output.color.then_some(BOLD));
        }
        for row in &self.rows {
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
            for &(column, width) in &columns {
                let color = match &row[column] {
                    Text::Alarm(_) if output.color => Some(RED),
                    Text::Alarm(_) | Text::Plain(_) => None,
                };
                pad(&mut text, self.headings[column], (row[column].as_str(), width), color);
            }
        }
        text.truncate(text.trim_end_matches(' ').len());
        text
    }

    /// A table with cells of several lines.
    fn render_lines(&self, used: &[usize], output: &Output) -> String {
        let mut table = plain_table(output);
        table.set_header(used.iter().map(|&column| match self.headings[column] {
            Heading::Left(name) => Cell::new(name).add_attribute(Attribute::Bold),
            Heading::Right(name) => {
                Cell::new(name).add_attribute(Attribute::Bold).set_alignment(CellAlignment::Right)
            }
        }));
        for row in &self.rows {
            table.add_row(used.iter().map(|&column| {
                let cell = cell(&row[column]);
                match self.headings[column] {
                    Heading::Left(_) => cell,
                    Heading::Right(_) => cell.set_alignment(CellAlignment::Right),
                }
            }));
        }
        finish(&mut table)
    }
}

impl Heading {
    fn name(self) -> &'static str {
        match self {
            Heading::Left(name) | Heading::Right(name) => name,
        }
    }
}

const BOLD: &str = "\u{1b}[1m";
const RED: &str = "\u{1b}[31m";
const NORMAL: &str = "\u{1b}[0m";

/// How many columns of a terminal a text takes.
fn width(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.width() }
}

/// Adds a cell that is so many columns wide, and two blanks.
fn pad(to: &mut String, heading: Heading, (text, wide): (&str, usize), color: Option<&str>) {
    let blanks = wide - width(text);
    let (before, after) = match heading {
        Heading::Left(_) => (0, blanks),
        Heading::Right(_) => (blanks, 0),
    };
    to.extend(std::iter::repeat_n(' ', before));
    if let Some(color) = color {
        to.push_str(color);
    }
    to.push_str(text);
    if color.is_some() {
        to.push_str(NORMAL);
    }
    to.extend(std::iter::repeat_n(' ', after + 2));
}

/// Label and value, one pair per line; for one object.
#[derive(Debug, Default)]
pub struct Fields {
    pairs: Vec<(&'static str, Text)>,
}

impl Fields {
    pub fn new() -> Self {
        Fields::default()
    }

    /// Adds a line.
    pub fn add(&mut self, label: &'static str, value: impl Into<Text>) {
        self.pairs.push((label, value.into()));
    }

    /// Adds a line unless there is nothing to say.
    pub fn add_some(&mut self, label: &'static str, value: Option<impl Into<Text>>) {
        if let Some(value) = value.map(Into::into).filter(|value| !value.as_str().is_empty()) {
            self.add(label, value);
        }
    }

    pub fn render(&self, output: &Output) -> String {
        let mut table = plain_table(output);
        for (label, value) in &self.pairs {
            table.add_row([Cell::new(label).add_attribute(Attribute::Bold), cell(value)]);
        }
        finish(&mut table)
    }
}

fn plain_table(output: &Output) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if output.color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

fn cell(text: &Text) -> Cell {
    match text {
        Text::Plain(text) => Cell::new(text),
        Text::Alarm(text) => Cell::new(text).fg(Color::Red),
    }
}

/// The lines, with two blanks between columns and none at the end.
fn finish(table: &mut Table) -> String {
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// `k:v, k:v`, as the cloud's pages have it; what is typed is `k=v`.
pub fn tags(tags: &Tags) -> String {
    tags.iter().map(|(key, value)| format!("{key}:{value}")).collect::<Vec<_>>().join(", ")
}

/// A number of bytes for a table.
pub fn bytes(bytes: u64) -> Text {
    Text::Plain(size::human(bytes))
}

/// A count for a table: nothing when there is nothing.
pub fn count(count: u64) -> Text {
    Text::Plain(if count == 0 { String::new() } else { count.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Output {
        Output { format: Format::Table, quiet: false, color: false, terminal: false, now: 0 }
    }

    fn example() -> Columns {
        let mut columns =
            Columns::new(&[Heading::Left("NAME"), Heading::Right("SIZE"), Heading::Left("NOTE")]);
        columns.row(["data1".into(), "20 GiB".into(), "".into()]);
        columns.row(["a-longer-name".into(), "512 B".into(), "".into()]);
        columns
    }

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        assert_eq!(
            example().render(&plain()),
            "NAME             SIZE\n\
             data1          20 GiB\n\
             a-longer-name   512 B"
        );
    }

    #[test]
    fn a_column_with_something_to_say_is_shown() {
        let mut columns = example();
        columns.row(["x".into(), "0 B".into(), Text::Alarm("deleting".into())]);
        let text = columns.render(&plain());
        assert!(text.starts_with("NAME             SIZE  NOTE\n"), "{text}");
        assert!(text.ends_with("x                 0 B  deleting"), "{text}");
        assert!(!text.contains('\u{1b}'), "no escape sequences without colour: {text:?}");
    }

    #[test]
    fn an_alarm_is_red_where_there_is_colour() {
        let mut columns = Columns::new(&[Heading::Left("STATE")]);
        columns.row([Text::Alarm("failed".into())]);
        let text = columns.render(&Output { color: true, ..plain() });
        assert!(text.contains('\u{1b}') && text.contains("failed"), "{text:?}");
        // What the escape sequences leave is the table without colour.
        let heading = text.lines().next().unwrap();
        assert!(heading.starts_with("\u{1b}[1mSTATE"), "{heading:?}");
    }

    #[test]
    fn fields_are_aligned_and_absent_ones_left_out() {
        let mut fields = Fields::new();
        fields.add("name", "data1");
        fields.add_some("description", Some(String::new()));
        fields.add_some("origin", None::<String>);
        fields.add("exclusive", bytes(1 << 20));
        assert_eq!(fields.render(&plain()), "name       data1\nexclusive  1 MiB");
    }

    #[test]
    fn wide_letters_take_the_room_they_take() {
        let mut columns = Columns::new(&[Heading::Left("NAME"), Heading::Right("SIZE")]);
        columns.row(["\u{5feb}\u{7167}".into(), "1 B".into()]);
        columns.row(["a".into(), "12 B".into()]);
        assert_eq!(columns.render(&plain()), "NAME  SIZE\n\u{5feb}\u{7167}   1 B\na     12 B");
    }

    #[test]
    fn a_cell_of_several_lines_moves_no_other_column() {
        let mut columns = Columns::new(&[Heading::Left("A"), Heading::Left("B")]);
        columns.row(["one\ntwo".into(), "x".into()]);
        columns.row(["1".into(), "y".into()]);
        assert_eq!(columns.render(&plain()), "A    B\none  x\ntwo\n1    y");
    }

    #[test]
    fn an_empty_table_is_silent() {
        assert_eq!(Columns::new(&[Heading::Left("NAME")]).render(&plain()), "");
    }
}
