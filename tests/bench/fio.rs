//! fio with its NBD engine: how a load is put, and what it reports.
//!
//! Invariants: every load is a command line that can be printed and run by hand; the sequence of
//! offsets is the same in every run.
//! Absent: jobs of more than one kind; every line of the tables is one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rowd_tests::tool;
use serde_json::Value;

use crate::guard::Running;

/// Longer than any load that is not bounded by time.
const BYTES_LIMIT: Duration = Duration::from_secs(900);
/// The exit code of fio after SIGINT, when everything else went well.
const INTERRUPTED: i32 = 128;
/// fio's latency histogram: groups of 64 bins, each group twice as wide as the one before.
const BINS_PER_GROUP: u64 = 64;

/// How long a load lasts.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    Seconds {
        ramp: u32,
        measured: u32,
    },
    Bytes(u64),
    /// Every block once, in random order.
    Cover,
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// As fio says it: `randread`, `write`, …
    pub pattern: &'static str,
    pub block: u32,
    pub depth: u32,
    /// A flush after that many writes; 0 is none.
    pub writes_per_flush: u32,
}

impl Load {
    pub const fn random(pattern: &'static str, depth: u32) -> Load {
        Load { pattern, block: 4096, depth, writes_per_flush: 0 }
    }
}

/// What a load did.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub per_second: f64,
    pub bytes_per_second: f64,
}

/// A load that runs.
#[derive(Debug)]
pub struct Job {
    running: Running,
    files: PathBuf,
    limit: Duration,
}

impl Job {
    /// Starts a load on `size` bytes of an export that keeps its history; its files go to `dir`.
    pub fn start(dir: &Path, uri: &str, load: Load, size: u64, length: Length) -> Job {
        Job::spawn(dir, uri, load, size, length, true)
    }

    fn spawn(dir: &Path, uri: &str, load: Load, size: u64, length: Length, history: bool) -> Job {
        let files = dir.join("fio");
        let mut command = tool::command("fio");
        // As a thread: a process of its own would outlive fio when that is killed.
        command.args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--thread"]);
        command.arg(format!("--uri={uri}")).arg(format!("--size={size}"));
        command.arg(format!("--rw={}", load.pattern)).arg(format!("--bs={}", load.block));
        command.arg(format!("--iodepth={}", load.depth));
        if load.writes_per_flush > 0 {
            command.arg(format!("--fsync={}", load.writes_per_flush));
        }
        let limit = add_length(&mut command, length);
        command.arg(format!("--output={}", files.with_extension("json").display()));
        if history {
            remove(&histogram_file(&files));
            command.arg(format!("--write_hist_log={}", files.display()));
            command.args(["--log_hist_msec=100", "--log_unix_epoch=1"]);
        }
        let log = files.with_extension("log");
        Job { running: Running::start(&mut command, &log), files, limit }
    }

    /// Waits for its end.
    pub fn finish(self) -> Rates {
        self.running.wait_done(self.limit, &[0]);
        rates(&self.files.with_extension("json"))
    }

    /// Ends it early; how operations and latencies went over time.
    pub fn end(self) -> History {
        self.running.interrupt();
        self.recorded(&[0, INTERRUPTED])
    }

    /// As [`Job::finish`]; how operations and latencies went over time.
    pub fn history(self) -> History {
        self.recorded(&[0])
    }

    fn recorded(self, codes: &[i32]) -> History {
        self.running.wait_done(self.limit, codes);
        let path = histogram_file(&self.files);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let history = History(text.lines().map(slice).collect());
        remove(&path);
        history
    }

    pub fn check_alive(&mut self) {
        self.running.check_alive();
    }
}

/// Runs a load to its end.
pub fn run(dir: &Path, uri: &str, load: Load, size: u64, length: Length) -> Rates {
    Job::spawn(dir, uri, load, size, length, false).finish()
}

fn add_length(command: &mut Command, length: Length) -> Duration {
    match length {
        Length::Seconds { ramp, measured } => {
            command.args(["--time_based", "--norandommap"]);
            command.arg(format!("--runtime={measured}")).arg(format!("--ramp_time={ramp}"));
            Duration::from_secs(u64::from(ramp + measured) + 60)
        }
        Length::Bytes(bytes) => {
            command.arg(format!("--io_size={bytes}")).arg("--norandommap");
            BYTES_LIMIT
        }
        Length::Cover => BYTES_LIMIT,
    }
}

fn rates(path: &Path) -> Rates {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    // Notes of the engine may stand before the JSON.
    let json = &text[text.find('{').expect("fio prints JSON")..];
    let report: Value = serde_json::from_str(json).expect("fio prints JSON");
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "fio reports an error: {text}");
    let of = |name: &str| {
        let both = ["read", "write"].map(|kind| job[kind][name].as_f64().unwrap_or(0.0));
        both[0] + both[1]
    };
    Rates { per_second: of("iops"), bytes_per_second: of("bw_bytes") }
}

/// A tenth of a second of a load.
#[derive(Clone, Debug)]
struct Slice {
    /// Milliseconds since 1970 at its end.
    end: u64,
    bins: Vec<u64>,
}

/// A load over time.
#[derive(Clone, Debug)]
pub struct History(Vec<Slice>);

/// A stretch of a load.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    pub per_second: f64,
    pub p99_us: f64,
    /// Operations per second in the worst tenth of a second.
    pub worst: f64,
}

impl History {
    /// What happened between two instants, in milliseconds since 1970.
    pub fn between(&self, from: u64, to: u64) -> Stretch {
        let of = |s: &&Slice| s.end > from && s.end <= to;
        let slices: Vec<&Slice> = self.0.iter().filter(of).collect();
        assert!(!slices.is_empty(), "the load did not last that long");
        let counts: Vec<u64> = slices.iter().map(|s| s.bins.iter().sum()).collect();
        let worst = counts.iter().copied().min().unwrap_or(0) as f64 * 10.0;
        let total: u64 = counts.iter().sum();
        let mut seen = 0;
        let bins = slices[0].bins.len();
        let p99 = (0..bins).find(|bin| {
            seen += slices.iter().map(|s| s.bins[*bin]).sum::<u64>();
            seen * 100 >= total * 99
        });
        Stretch {
            per_second: total as f64 * 10.0 / slices.len() as f64,
            p99_us: bin_ns(p99.unwrap_or(0) as u64) / 1000.0,
            worst,
        }
    }
}

fn slice(line: &str) -> Slice {
    let mut numbers = line.split(',').map(|n| n.trim().parse::<u64>().expect("a number of fio"));
    let end = numbers.next().expect("a time");
    // Direction and block size.
    Slice { end, bins: numbers.skip(2).collect() }
}

/// The latency in the middle of a bin of fio's histogram.
fn bin_ns(bin: u64) -> f64 {
    let group = bin / BINS_PER_GROUP;
    if group < 2 {
        return bin as f64;
    }
    let step = 1u64 << (group - 1);
    let base = BINS_PER_GROUP << (group - 1);
    base as f64 + (bin % BINS_PER_GROUP) as f64 * step as f64 + step as f64 / 2.0
}

fn histogram_file(files: &Path) -> PathBuf {
    PathBuf::from(format!("{}_clat_hist.1.log", files.display()))
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            panic!("{}: {error}", path.display())
        }
        _ => {}
    }
}
