//! Snapshots under load: how long they take, what clients feel, how the daemon starts after a kill.
//!
//! Invariants: the load is 4K random writes at depth 32 over the whole disk, at full speed; a snapshot is
//! timed from the request on the control socket to the reply.
//! Absent: rollback and clones (`change`).

use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::{Bench, FLAT, Finding, human};
use crate::daemon::Daemon;
use crate::fio::{Job, Length, Load, Stretch};
use crate::guard::pause;
use crate::report::{ms, number, percentile};

const WRITES: Load = Load::random("randwrite", 32);
const DISK: &str = "live";
/// In one row, all of them kept until its end.
const SNAPSHOTS: usize = 200;
/// With one row the 99th percentile is the second worst of all, and two runs differ by a third.
const ROWS: usize = 3;
/// Between two snapshots. Every one keeps what is overwritten until the next: 200 of them at this pace
/// and a GiB a second stay below 12 GiB.
const GAP: Duration = Duration::from_millis(50);
/// No more snapshots are made beyond this, so that no machine's disk is filled.
const POOL_MAX: u64 = 36 << 30;

#[derive(Debug)]
struct Seen {
    size: u64,
    before: Stretch,
    after: Stretch,
    /// Milliseconds of each snapshot.
    snapshots: Vec<f64>,
    restart: Duration,
    replayed: u64,
}

pub fn curve(bench: Bench<'_>) -> Vec<Finding> {
    let seen = bench.options.sizes().map(|size| measure(bench, size));
    let mut findings = Vec::new();
    let at = |percent| seen.each_ref().map(|seen| percentile(&seen.snapshots, percent));
    for (seen, p99) in seen.iter().zip(at(99.0)) {
        let (p50, max) = (percentile(&seen.snapshots, 50.0), percentile(&seen.snapshots, 100.0));
        let text = format!(
            "p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms of {}",
            seen.snapshots.len()
        );
        let what = format!("snapshot under load, {} mapped", human(seen.size));
        let numbers = json!({ "ms": seen.snapshots, "mapped_bytes": seen.size });
        findings.push(Finding::told(what, text, numbers).target("p99 ≤ 10 ms", p99 <= 10.0));
    }
    findings.push(flat("snapshot p50", at(50.0)));
    findings.push(flat("snapshot p99", at(99.0)));
    findings.extend(seen.iter().flat_map(|seen| clients(bench, seen)));
    for seen in &seen {
        let took = seen.restart.as_secs_f64();
        let what = format!("restart after kill -9 under load, {} mapped", human(seen.size));
        let text = format!("{took:.2} s, {} records replayed", seen.replayed);
        let numbers = json!({ "seconds": took, "records": seen.replayed });
        findings.push(Finding::told(what, text, numbers).target("≤ 2 s", took <= 2.0));
    }
    findings
}

/// The larger size against the smaller.
pub fn flat(what: &str, times: [f64; 2]) -> Finding {
    let ratio = times[1] / times[0];
    // Faster with more mapped is no fault.
    Finding::told(
        format!("{what}, large against small"),
        format!("{ratio:.2}"),
        json!({ "ratio": ratio }),
    )
    .target(format!("≤ {FLAT}"), ratio <= FLAT)
}

fn clients(bench: Bench<'_>, seen: &Seen) -> [Finding; 2] {
    let Seen { before, after, .. } = seen;
    let (window, mapped) = (bench.options.window, human(seen.size));
    let kept = after.per_second / before.per_second;
    let text = format!(
        "{} before, {} after: {kept:.3}; worst 0.1 s {} and {}",
        number(before.per_second),
        number(after.per_second),
        number(before.worst),
        number(after.worst)
    );
    let what = format!("writes/s in the {window} s around a snapshot, {mapped} mapped");
    let numbers = json!({ "before": before.per_second, "after": after.per_second });
    let throughput = Finding::told(what, text, numbers).target("after ≥ 0.95", kept >= 0.95);
    let text = format!("{:.0} µs before, {:.0} µs after", before.p99_us, after.p99_us);
    let what = format!("p99 write latency around a snapshot, {mapped} mapped");
    let numbers = json!({ "before_us": before.p99_us, "after_us": after.p99_us });
    [throughput, Finding::told(what, text, numbers)]
}

fn measure(bench: Bench<'_>, size: u64) -> Seen {
    let mut daemon = Daemon::start(&bench.options.rowd, bench.dir);
    daemon.full_disk(DISK, size);
    let (before, after) = around(bench, &mut daemon, size);
    daemon.delete_all_snapshots();
    let job = load(&daemon, size, 60);
    daemon.wait_busy();
    pause(Duration::from_secs(u64::from(bench.options.runtime)));
    let restart = daemon.crash();
    drop(job);
    let replayed = daemon.status().recovered_records;
    daemon.note_memory();
    drop(daemon);
    let rows = 0..if bench.options.quick { 1 } else { ROWS };
    let snapshots = rows.flat_map(|_| row(bench, size)).collect();
    Seen { size, before, after, snapshots, restart, replayed }
}

/// The milliseconds of a row of snapshots, in a pool of its own: to free those of the row before takes minutes.
fn row(bench: Bench<'_>, size: u64) -> Vec<f64> {
    let mut daemon = Daemon::start(&bench.options.rowd, bench.dir);
    daemon.full_disk(DISK, size);
    let times = repeat(bench, &mut daemon, size);
    daemon.note_memory();
    times
}

/// The same load before and after one snapshot.
fn around(bench: Bench<'_>, daemon: &mut Daemon, size: u64) -> (Stretch, Stretch) {
    let window = bench.options.window;
    // The first seconds of a load are faster: the page cache takes them without writing back.
    let ramp = window / 2;
    let mut job = load(daemon, size, 2 * window + ramp + 2);
    daemon.wait_busy();
    pause(Duration::from_secs(u64::from(window + ramp)));
    job.check_alive();
    let asked = millis();
    daemon.snapshot(DISK);
    let history = job.history();
    let window = u64::from(window) * 1000;
    (history.between(asked - window, asked), history.between(asked, asked + window))
}

/// Many snapshots under one load.
fn repeat(bench: Bench<'_>, daemon: &mut Daemon, size: u64) -> Vec<f64> {
    let count = if bench.options.quick { SNAPSHOTS / 10 } else { SNAPSHOTS };
    let job = load(daemon, size, 300);
    daemon.wait_busy();
    let mut times = Vec::new();
    while times.len() < count && daemon.status().file_bytes < POOL_MAX {
        let next = Instant::now() + GAP;
        times.push(ms(daemon.snapshot(DISK).1));
        pause(next.saturating_duration_since(Instant::now()));
    }
    job.end();
    times
}

fn load(daemon: &Daemon, size: u64, seconds: u32) -> Job {
    let length = Length::Seconds { ramp: 0, measured: seconds };
    Job::start(daemon.files(), &daemon.uri(DISK), WRITES, size, length)
}

/// Milliseconds since 1970, as fio's history has them.
pub fn millis() -> u64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970");
    u64::try_from(now.as_millis()).expect("a time of this age")
}
