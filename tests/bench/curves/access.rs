//! Instant access: how soon a snapshot on its way to a repository is of use, and what a rollback to it costs clients.
//!
//! Invariants: the repository is so slow that the copy is under way until the daemon ends; the disk was overwritten
//! wholly since the snapshot, so that a cost per change shows.
//! Absent: the copy itself (`copy`), snapshots that stay in the pool (`live`, `change`).

use std::fs;

use rowd_proto::{
    DiskCreate, DiskDelete, DiskRollback, InstantAccess, RepoAdd, SnapshotCreate, SnapshotShow,
    SnapshotStatus,
};
use serde_json::json;

use super::live::{flat, millis};
use super::{Bench, Finding, human};
use crate::daemon::Daemon;
use crate::fio::{Job, Length, Load, Stretch};
use crate::report::{ms, number, percentile};

const DISK: &str = "access";
const REPO: &str = "slow";
/// Bytes a second to the repository.
const BANDWIDTH: u64 = 64 << 10;
const TIMES: usize = 10;
/// What it may take until a snapshot is usable.
const READY_MS: f64 = 5000.0;
/// Of what clients had before.
const KEPT_MIN: f64 = 0.95;

/// Milliseconds until a snapshot was made, and until a disk was made of it too.
struct Seen {
    size: u64,
    made: Vec<f64>,
    usable: Vec<f64>,
}

pub fn curve(bench: Bench<'_>) -> Vec<Finding> {
    let sizes = bench.options.sizes();
    let seen = sizes.map(|size| usable(bench, size));
    let mut findings: Vec<Finding> = seen.iter().map(told).collect();
    let p50 = |of: fn(&Seen) -> &Vec<f64>| seen.each_ref().map(|seen| percentile(of(seen), 50.0));
    findings.push(flat("instant access p50", p50(|seen| &seen.made)));
    findings.extend(["randread", "randwrite"].map(|pattern| around(bench, sizes[0], pattern)));
    findings
}

fn told(seen: &Seen) -> Finding {
    let Seen { size, made, usable } = seen;
    let [p50, max] = [50.0, 100.0].map(|percent| percentile(made, percent));
    let ready = percentile(usable, 100.0);
    let text = format!(
        "p50 {p50:.1} ms, max {max:.1} ms of {}; with a disk of it max {ready:.1} ms",
        made.len()
    );
    let what = format!("a snapshot with instant access, {} to copy", human(*size));
    Finding::told(what, text, json!({ "ms": made, "usable_ms": usable }))
        .target(format!("≤ {} s", READY_MS / 1e3), ready <= READY_MS)
}

/// A daemon with a full disk, and a repository that takes for ever.
fn daemon(bench: Bench<'_>, size: u64) -> Daemon {
    let mut daemon = Daemon::start(&bench.options.rowd, bench.dir);
    let dir = daemon.files().join("repo");
    fs::create_dir_all(&dir).expect("a directory for the repository");
    daemon.control.call(&RepoAdd {
        name: REPO.to_owned(),
        url: format!("file://{}", dir.display()),
        bandwidth: BANDWIDTH,
        ..RepoAdd::default()
    });
    daemon.full_disk(DISK, size);
    daemon
}

/// The id of a new snapshot, and the milliseconds it took.
fn snapshot(daemon: &mut Daemon) -> (String, f64) {
    let params = SnapshotCreate {
        disk: DISK.to_owned(),
        repo: Some(REPO.to_owned()),
        instant_access: InstantAccess::Endless,
        ..SnapshotCreate::default()
    };
    let (made, took) = daemon.control.timed(&params);
    (made.snapshot.id, ms(took))
}

fn is_under_way(daemon: &mut Daemon, id: &str) {
    let shown = daemon.control.call(&SnapshotShow { snapshot: id.to_owned() });
    assert_eq!(shown.status, SnapshotStatus::Progressing, "the copy was faster than the curve");
}

fn usable(bench: Bench<'_>, size: u64) -> Seen {
    let mut daemon = daemon(bench, size);
    let mut seen = Seen { size, made: Vec::new(), usable: Vec::new() };
    for _ in 0..TIMES {
        let (id, made) = snapshot(&mut daemon);
        let name = "trial".to_owned();
        let from = Some(id.clone());
        let clone = DiskCreate { name: name.clone(), from, ..DiskCreate::default() };
        let took = ms(daemon.control.timed(&clone).1);
        is_under_way(&mut daemon, &id);
        daemon.control.call(&DiskDelete { disk: name, force: true, now: true });
        seen.made.push(made);
        seen.usable.push(made + took);
    }
    daemon.note_memory();
    seen
}

/// The same load before a snapshot and after a rollback to it, while it is being copied.
fn around(bench: Bench<'_>, size: u64, pattern: &'static str) -> Finding {
    let mut daemon = daemon(bench, size);
    let load = |daemon: &Daemon| -> Stretch {
        let (window, ramp) = (bench.options.window, bench.options.window / 2);
        crate::machine::settle(daemon.files());
        let length = Length::Seconds { ramp: 0, measured: window + ramp };
        let uri = daemon.uri(DISK);
        let job = Job::start(daemon.files(), &uri, Load::random(pattern, 32), size, length);
        let history = job.history();
        let ended = millis();
        history.between(ended - u64::from(window) * 1000, ended)
    };
    let before = load(&daemon);
    let (id, _) = snapshot(&mut daemon);
    daemon.connect(DISK).fill(0, size, 2);
    let back = DiskRollback { disk: DISK.to_owned(), snapshot: id.clone(), force: true };
    daemon.control.call(&back);
    let after = load(&daemon);
    is_under_way(&mut daemon, &id);
    daemon.note_memory();
    let kept = after.per_second / before.per_second;
    let text = format!(
        "{} before, {} after: {kept:.3}; p99 {:.0} µs and {:.0} µs",
        number(before.per_second),
        number(after.per_second),
        before.p99_us,
        after.p99_us
    );
    let what = format!("{pattern} at depth 32 before, and after a rollback to instant access");
    let numbers = json!({
        "before": before.per_second, "after": after.per_second,
        "before_p99_us": before.p99_us, "after_p99_us": after.p99_us,
    });
    Finding::told(what, text, numbers).target(format!("≥ {KEPT_MIN}"), kept >= KEPT_MIN)
}
