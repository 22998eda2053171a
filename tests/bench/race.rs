//! The first table: rowd against every other NBD server of the distribution.
//!
//! Invariants: for each line all servers are measured within the same minute or so, one at a time, and in
//! another order each round; the first lines of a round see disks that were just filled.
//! Absent: how servers are started (`server`) and what a load is (`fio`).

use serde_json::{Value, json};

use crate::fio::{self, Length, Load, Rates};
use crate::options::Options;
use crate::report::{Table, Verdict, median, number};
use crate::server::{Images, Kind, Serving, Stable};

/// `--only` takes it for all lines.
pub const TABLE: &str = "race";

/// A line of the table.
#[derive(Debug)]
pub struct Line {
    /// As `--only` takes it.
    pub name: &'static str,
    title: &'static str,
    load: Load,
    in_bytes: bool,
    /// The least ratio to the best peer.
    target: Option<f64>,
    /// The disk is written anew before, by `qemu-img convert`, whose writes have 2 MiB.
    converted: bool,
}

const fn line(name: &'static str, title: &'static str, load: Load, target: f64) -> Line {
    let in_bytes = load.block > 4096;
    Line { name, title, load, in_bytes, target: Some(target), converted: false }
}

const fn big(pattern: &'static str) -> Load {
    Load { pattern, block: 256 << 10, depth: 8, writes_per_flush: 0 }
}

/// Reads first: they see the disk as it was filled. Sequential writes before random ones, for the same
/// reason; the last line shows what the random ones did to the layout.
pub const LINES: &[Line] = &[
    line("read-256k", "256K read, depth 8", big("read"), 1.0),
    line("randread-1", "4K random read, depth 1", Load::random("randread", 1), 1.5),
    line("randread-32", "4K random read, depth 32", Load::random("randread", 32), 1.5),
    line("write-256k", "256K write, depth 8", big("write"), 1.0),
    line("randwrite-1", "4K random write, depth 1", Load::random("randwrite", 1), 1.7),
    line("randwrite-32", "4K random write, depth 32", Load::random("randwrite", 32), 5.0),
    line(
        "randwrite-flush",
        "4K random write + flush, depth 1",
        Load { writes_per_flush: 1, ..Load::random("randwrite", 1) },
        1.2,
    ),
    line(
        "write-256k-synced",
        "256K write, depth 8, a flush each 256 MiB",
        Load { writes_per_flush: 1 << 10, ..big("write") },
        1.0,
    ),
    Line {
        target: None,
        ..line(
            "randwrite-32-synced",
            "4K random write, depth 32, a flush each 256 MiB",
            Load { writes_per_flush: 64 << 10, ..Load::random("randwrite", 32) },
            1.0,
        )
    },
    Line {
        target: None,
        ..line("read-256k-after", "256K read, depth 8, after the above", big("read"), 1.0)
    },
    Line {
        converted: true,
        ..line(
            "randwrite-32-converted",
            "4K random write, depth 32, disk made by qemu-img convert",
            Load::random("randwrite", 32),
            5.0,
        )
    },
];

/// What one server did on one line, round by round.
#[derive(Debug)]
struct Cell {
    kind: Kind,
    rounds: Vec<f64>,
}

/// Runs the race; `None` when nothing of it is wanted.
pub fn run(options: &Options, dir: &std::path::Path) -> Option<(Table, Value)> {
    let lines: Vec<&Line> = LINES.iter().filter(|line| options.wants(TABLE, line.name)).collect();
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| options.has(*kind)).collect();
    if lines.is_empty() || kinds.is_empty() {
        return None;
    }
    let place = tempfile::TempDir::with_prefix_in("race-", dir).expect("make a directory");
    eprintln!("race: filling the disks");
    let mut stable = Stable::fill(place.path(), &options.rowd, options.disk, &kinds);
    // Disks of their own: what is done to the others must not depend on it.
    let mut images = lines.iter().any(|line| line.converted).then(|| {
        let dir = place.path().join("images");
        std::fs::create_dir(&dir).expect("make a directory");
        Images::new(&dir, Stable::fill(&dir, &options.rowd, options.disk, &kinds))
    });
    let mut cells: Vec<Vec<Cell>> = lines.iter().map(|_| empty_cells(&kinds)).collect();
    for round in 0..options.rounds {
        for (index, line) in lines.iter().enumerate() {
            for turn in 0..kinds.len() {
                // A different server goes first each round, so that none always follows the same one.
                let at = (turn + round as usize) % kinds.len();
                if index == 0 && kinds[at] == Kind::Rowd && round > 0 {
                    stable.serve(kinds[at]).refill(options.disk);
                }
                let serving = match images.as_mut().filter(|_| line.converted) {
                    Some(images) => images.serve(kinds[at]),
                    None => stable.serve(kinds[at]),
                };
                let value = measure(options, place.path(), line, serving);
                eprintln!("race: round {round}, {}: {} {value:.0}", line.name, kinds[at].name());
                cells[index][at].rounds.push(value);
            }
        }
    }
    assert_eq!(stable.size(), options.disk);
    Some(report(&lines, &kinds, &cells))
}

fn empty_cells(kinds: &[Kind]) -> Vec<Cell> {
    kinds.iter().map(|kind| Cell { kind: *kind, rounds: Vec::new() }).collect()
}

fn measure(options: &Options, dir: &std::path::Path, line: &Line, serving: Serving<'_>) -> f64 {
    let length = Length::Seconds { ramp: options.ramp, measured: options.runtime };
    let Rates { per_second, bytes_per_second } =
        fio::run(dir, &serving.uri, line.load, options.disk, length);
    serving.stop();
    if line.in_bytes { bytes_per_second / f64::from(1 << 20) } else { per_second }
}

fn report(lines: &[&Line], kinds: &[Kind], cells: &[Vec<Cell>]) -> (Table, Value) {
    let mut head = vec!["IOPS, or MiB/s for 256K".to_owned()];
    head.extend(kinds.iter().map(|kind| kind.title().to_owned()));
    head.extend(["ratio to best", "in each round", "target", ""].map(str::to_owned));
    let mut table = Table::new(head);
    let mut values = Vec::new();
    for (line, cells) in lines.iter().zip(cells) {
        let mut row = vec![line.title.to_owned()];
        row.extend(cells.iter().map(|cell| number(median(&cell.rounds))));
        let ratio = ratio(cells);
        let verdict = match (&ratio, line.target) {
            (Some((ratio, _)), Some(target)) => Verdict::of(*ratio >= target),
            _ => Verdict::Told,
        };
        row.push(ratio.as_ref().map_or(String::new(), |(ratio, _)| format!("{ratio:.2}")));
        row.push(ratio.as_ref().map_or(String::new(), |(_, rounds)| span(rounds)));
        row.push(line.target.map_or(String::new(), |target| format!("≥ {target:.1}")));
        table.push(row, verdict);
        let rounds: serde_json::Map<String, Value> =
            cells.iter().map(|c| (c.kind.name().to_owned(), json!(c.rounds))).collect();
        let (ratio, _) = ratio.unzip();
        values.push(json!({
            "name": line.name, "unit": if line.in_bytes { "MiB/s" } else { "IOPS" },
            "rounds": rounds, "ratio": ratio, "target": line.target, "verdict": verdict.name(),
        }));
    }
    (table, Value::Array(values))
}

/// rowd's median over the best median of another server, and the same in each round.
fn ratio(cells: &[Cell]) -> Option<(f64, Vec<f64>)> {
    let ours = cells.iter().find(|cell| cell.kind == Kind::Rowd)?;
    let best = |of: &dyn Fn(&Cell) -> f64| {
        let peers = cells.iter().filter(|cell| cell.kind.is_peer());
        peers.map(of).max_by(f64::total_cmp)
    };
    let all = median(&ours.rounds) / best(&|cell| median(&cell.rounds))?;
    let rounds = ours.rounds.iter().enumerate();
    let each = rounds.map(|(round, value)| Some(value / best(&|cell| cell.rounds[round])?));
    Some((all, each.collect::<Option<_>>()?))
}

fn span(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    format!("{low:.2} to {high:.2}")
}
