//! Rollback, clone and delete of a snapshot that shares nothing with the disk any more.
//!
//! Invariants: the disk was overwritten wholly since the snapshot, so that a cost per change shows.
//! Absent: snapshots under load (`live`).

use std::time::Duration;

use rowd_proto::{DiskCreate, DiskDelete, DiskRollback, DiskUndo};
use serde_json::json;

use super::live::{flat, millis};
use super::{Bench, Finding, human};
use crate::daemon::Daemon;
use crate::fio::{self, Job, Length, Load};
use crate::guard::pause;
use crate::report::{ms, number, percentile};

const DISK: &str = "change";
/// Rollbacks and undos, and clones, of which the slowest counts.
const TIMES: usize = 10;
/// Longer than any reclaim; the load is ended when that is.
const LOAD_SECONDS: u32 = 840;

#[derive(Debug)]
struct Seen {
    size: u64,
    rollbacks: Vec<f64>,
    clones: Vec<f64>,
}

pub fn switch(bench: Bench<'_>) -> Vec<Finding> {
    let seen = bench.options.sizes().map(|size| switch_at(bench, size));
    let mut findings = Vec::new();
    for seen in &seen {
        for (what, times) in [("rollback", &seen.rollbacks), ("clone", &seen.clones)] {
            let (p50, max) = (percentile(times, 50.0), percentile(times, 100.0));
            let text = format!("p50 {p50:.1} ms, max {max:.1} ms of {}", times.len());
            let what = format!("{what}, {} of changes", human(seen.size));
            findings.push(
                Finding::told(what, text, json!({ "ms": times }))
                    .target("max ≤ 20 ms", max <= 20.0),
            );
        }
    }
    let p50 = |of: fn(&Seen) -> &Vec<f64>| seen.each_ref().map(|seen| percentile(of(seen), 50.0));
    findings.push(flat("rollback p50", p50(|seen| &seen.rollbacks)));
    findings.push(flat("clone p50", p50(|seen| &seen.clones)));
    findings
}

fn switch_at(bench: Bench<'_>, size: u64) -> Seen {
    let mut daemon = Daemon::start(&bench.options.rowd, bench.dir);
    daemon.full_disk(DISK, size);
    let snapshot = daemon.snapshot(DISK).0.id;
    daemon.connect(DISK).fill(0, size, 2);
    crate::machine::settle(daemon.files());
    let (mut rollbacks, mut clones) = (Vec::new(), Vec::new());
    for round in 0..TIMES {
        let disk = DISK.to_owned();
        // A connection that was just closed may take a moment to be gone: force does not wait for it.
        let back = DiskRollback { disk: disk.clone(), snapshot: snapshot.clone(), force: true };
        rollbacks.push(ms(daemon.control.timed(&back).1));
        rollbacks.push(ms(daemon.control.timed(&DiskUndo { disk, force: true }).1));
        let name = format!("clone-{round}");
        let from = Some(snapshot.clone());
        let clone = DiskCreate { name: name.clone(), from, ..DiskCreate::default() };
        clones.push(ms(daemon.control.timed(&clone).1));
        daemon.control.call(&DiskDelete { disk: name, force: true, now: true });
    }
    daemon.note_memory();
    Seen { size, rollbacks, clones }
}

/// Half the large size: snapshot and disk together take no more than the large size then, which leaves
/// room for what the load writes before freed space comes back.
pub fn reclaim(bench: Bench<'_>) -> Vec<Finding> {
    let size = bench.options.sizes()[1] / 2;
    let mut daemon = Daemon::start(&bench.options.rowd, bench.dir);
    daemon.full_disk(DISK, size);
    ["randwrite", "randread"].map(|load| foreground(bench, &mut daemon, size, load)).into()
}

/// What a load loses while a snapshot is freed.
fn foreground(bench: Bench<'_>, daemon: &mut Daemon, size: u64, pattern: &'static str) -> Finding {
    let snapshot = daemon.snapshot(DISK).0.id;
    let (files, uri) = (daemon.files().to_owned(), daemon.uri(DISK));
    let cover = Load::random("randwrite", 32);
    fio::run(&files, &uri, cover, size, Length::Cover);
    crate::machine::settle(&files);
    let length = Length::Seconds { ramp: 0, measured: LOAD_SECONDS };
    let mut job = Job::start(&files, &uri, Load::random(pattern, 32), size, length);
    let window = u64::from(bench.options.window);
    pause(Duration::from_secs(window + window / 2));
    job.check_alive();
    let began = millis();
    daemon.delete_snapshot(&snapshot);
    daemon.wait_reclaimed();
    // At least one slice of the history.
    let ended = millis().max(began + 200);
    pause(Duration::from_millis(300));
    let history = job.end();
    daemon.note_memory();
    let before = history.between(began - window * 1000, began).per_second;
    let during = history.between(began, ended).per_second;
    let (loss, seconds) = (1.0 - during / before, (ended - began) as f64 / 1e3);
    let text = format!(
        "{} before, {} during {seconds:.1} s: {:.1} % lost",
        number(before),
        number(during),
        loss * 100.0
    );
    let what = format!("{pattern} at depth 32 while {} are reclaimed", human(size));
    let numbers = json!({ "before": before, "during": during, "seconds": seconds });
    Finding::told(what, text, numbers).target("≤ 15 % lost", loss <= 0.15)
}
