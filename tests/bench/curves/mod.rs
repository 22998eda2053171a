//! The second table: what nobody publishes about snapshots, each with its target.
//!
//! Invariants: every curve makes its own pool and removes it, so that it can be run alone; at most
//! 40 GiB are in use at a time.
//! Absent: other servers, which have nothing to compare.

mod access;
mod change;
mod copy;
mod depth;
mod group;
mod lazy;
mod live;
mod scale;
mod space;

use std::path::Path;

use serde_json::{Value, json};

use crate::options::Options;
use crate::report::{Table, Verdict};

/// `--only` takes it for all curves.
pub const TABLE: &str = "curves";

/// What a curve gets.
#[derive(Clone, Copy, Debug)]
pub struct Bench<'a> {
    pub options: &'a Options,
    pub dir: &'a Path,
}

/// A row of the table.
#[derive(Debug)]
pub struct Finding {
    what: String,
    seen: String,
    target: String,
    verdict: Verdict,
    numbers: Value,
}

impl Finding {
    /// A finding without a target.
    pub fn told(what: impl Into<String>, seen: impl Into<String>, numbers: Value) -> Finding {
        let (what, seen) = (what.into(), seen.into());
        Finding { what, seen, target: String::new(), verdict: Verdict::Told, numbers }
    }

    /// With a target, as text, and whether it was met.
    pub fn target(mut self, target: impl Into<String>, met: bool) -> Finding {
        self.target = target.into();
        self.verdict = Verdict::of(met);
        self
    }
}

type Curve = fn(Bench<'_>) -> Vec<Finding>;

/// Every curve and its name for `--only`.
pub const CURVES: &[(&str, Curve)] = &[
    ("snapshot", live::curve),
    ("group", group::curve),
    ("switch", change::switch),
    ("reclaim", change::reclaim),
    ("depth", depth::curve),
    ("amplification", space::amplification),
    ("trim", space::trim),
    ("empty", space::empty),
    ("copy", copy::curve),
    ("access", access::curve),
    ("lazy", lazy::curve),
    ("scale", scale::curve),
];

/// How far two sizes may differ and still count as flat.
pub const FLAT: f64 = 1.25;
/// The target for memory above the configured cache.
const MEMORY_MAX: u64 = 200 << 20;

/// Draws the curves that are wanted; `None` when none is.
pub fn run(options: &Options, dir: &Path) -> Option<(Table, Value)> {
    let wanted = CURVES.iter().filter(|(name, _)| options.wants(TABLE, name));
    let mut findings = Vec::new();
    for (name, curve) in wanted {
        eprintln!("curve: {name}");
        for finding in curve(Bench { options, dir }) {
            eprintln!("  {}: {}", finding.what, finding.seen);
            findings.push((*name, finding));
        }
    }
    if findings.is_empty() {
        return None;
    }
    findings.push(("memory", memory()));
    let head = ["what", "seen", "target", ""].map(str::to_owned).to_vec();
    let mut table = Table::new(head);
    let mut values = Vec::new();
    for (curve, finding) in findings {
        let Finding { what, seen, target, verdict, numbers } = finding;
        values.push(json!({
            "curve": curve, "what": what, "seen": seen, "target": target,
            "verdict": verdict.name(), "numbers": numbers,
        }));
        table.push(vec![what, seen, target], verdict);
    }
    Some((table, Value::Array(values)))
}

/// The most memory a daemon used in any curve.
fn memory() -> Finding {
    let (peak, cache) = (crate::daemon::memory_max(), crate::daemon::cache_limit());
    let limit = cache + MEMORY_MAX;
    let human = rowd_proto::size::human;
    let seen = format!("{} with a cache of {}", human(peak), human(cache));
    let numbers = json!({ "peak_bytes": peak, "cache_bytes": cache });
    Finding::told("peak memory of the daemon, all curves", seen, numbers)
        .target(format!("≤ {}", human(limit)), peak <= limit)
}

/// A size as it stands in the table.
fn human(bytes: u64) -> String {
    rowd_proto::size::human(bytes)
}
