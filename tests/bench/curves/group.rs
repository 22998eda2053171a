//! Groups of 16 disks under load: how long a cut holds the writers of a disk up.
//!
//! Invariants: each disk has one client that writes 4 KiB at random places, the next when the one before
//! is answered; stretches with groups and without take turns, so that both see the same machine.
//! Absent: whether a group is exact, which the tests judge.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Bench, Finding};
use crate::daemon::Daemon;
use crate::guard::pause;
use crate::nbd::{Ask, Client, random};
use crate::report::{ms, percentile};

const DISKS: usize = 16;
/// From the beginning of one group to that of the next.
const PACE: Duration = Duration::from_millis(100);
/// A stretch with groups or without.
const STRETCH: Duration = Duration::from_secs(5);
/// What a client thinks between two writes in the second part, so that the processors are not all busy
/// and a pause is the daemon's.
const THOUGHT: Duration = Duration::from_millis(2);
/// What a cut may hold up a disk.
const TARGET_MS: f64 = 10.0;

/// One write: when it was sent, after the beginning, and when answered.
type Write = (Duration, Duration);

/// Moments of cuts, from request to reply.
type Span = (Duration, Duration);

pub fn curve(bench: Bench<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (load, thought) in [("full load", None), ("2 ms between writes", Some(THOUGHT))] {
        findings.extend(measure(bench, load, thought));
    }
    findings
}

fn measure(bench: Bench<'_>, load: &str, thought: Option<Duration>) -> Vec<Finding> {
    let (rounds, size) = if bench.options.quick { (1, 16 << 20) } else { (6, 128 << 20) };
    let mut daemon = Daemon::start(&bench.options.rowd, bench.dir);
    let disks: Vec<String> = (0..DISKS).map(|number| format!("disk{number}")).collect();
    for disk in &disks {
        daemon.full_disk(disk, size);
    }
    let began = Instant::now();
    let stop = AtomicBool::new(false);
    let (mut cuts, mut quiet) = (Vec::new(), Vec::new());
    let socket = daemon.nbd_socket();
    let writes: Vec<Vec<Write>> = thread::scope(|scope| {
        let clients: Vec<_> = disks
            .iter()
            .enumerate()
            .map(|(number, disk)| {
                let (stop, socket) = (&stop, &socket);
                let plan = Plan { size, thought, began, seed: number as u64 + 1 };
                scope.spawn(move || plan.write(socket, disk, stop))
            })
            .collect();
        pause(Duration::from_secs(1));
        for _ in 0..rounds {
            spans(began, &mut cuts, || {
                daemon.group(&disks);
            });
            // The same moments of nothing, as long as the middle one of the cuts.
            let length = Duration::from_secs_f64(percentile(&lengths(&cuts), 50.0) / 1000.0);
            spans(began, &mut quiet, || pause(length));
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    });
    daemon.note_memory();
    told(load, &daemon.cuts(), &writes, &cuts, &quiet)
}

/// Does something at the pace of groups for a stretch, and notes when.
fn spans(began: Instant, spans: &mut Vec<Span>, mut act: impl FnMut()) {
    let end = Instant::now() + STRETCH;
    while Instant::now() < end {
        let next = Instant::now() + PACE;
        let asked = began.elapsed();
        act();
        spans.push((asked, began.elapsed()));
        pause(next.saturating_duration_since(Instant::now()));
    }
}

struct Plan {
    size: u64,
    thought: Option<Duration>,
    began: Instant,
    seed: u64,
}

impl Plan {
    fn write(&self, socket: &Path, disk: &str, stop: &AtomicBool) -> Vec<Write> {
        let mut client = Client::connect(socket, disk);
        let (mut state, mut writes) = (self.seed, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let place = random(&mut state) % (self.size / 4096) * 4096;
            let sent = self.began.elapsed();
            client.drive(1, [Ask::Write(place, 4096, self.seed)]);
            writes.push((sent, self.began.elapsed()));
            if let Some(thought) = self.thought {
                pause(thought);
            }
        }
        writes
    }
}

/// The longest write of each disk that met each span, in milliseconds.
fn longest(writes: &[Vec<Write>], spans: &[Span]) -> Vec<f64> {
    let mut found = Vec::with_capacity(writes.len() * spans.len());
    for of_disk in writes {
        let mut next = 0;
        for (from, to) in spans {
            while next < of_disk.len() && of_disk[next].1 < *from {
                next += 1;
            }
            let met = of_disk[next..].iter().take_while(|(sent, _)| sent <= to);
            found.extend(met.map(|(sent, answered)| ms(*answered - *sent)).reduce(f64::max));
        }
    }
    found
}

fn lengths(spans: &[Span]) -> Vec<f64> {
    spans.iter().map(|(asked, answered)| ms(*answered - *asked)).collect()
}

fn told(
    load: &str,
    held: &[f64],
    writes: &[Vec<Write>],
    cuts: &[Span],
    quiet: &[Span],
) -> Vec<Finding> {
    let numbers = |all: &[f64]| {
        let at = |percent| percentile(all, percent);
        format!("p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", at(50.0), at(99.0), at(100.0))
    };
    let (during, without) = (longest(writes, cuts), longest(writes, quiet));
    let count: usize = writes.iter().map(Vec::len).sum();
    let took = lengths(cuts);
    let p99 = percentile(held, 99.0);
    vec![
        Finding::told(
            format!("a group of {DISKS} disks holds their writers, {load}"),
            format!("{} of {} groups", numbers(held), held.len()),
            json!({ "ms": held }),
        )
        .target("p99 ≤ 10 ms", p99 <= TARGET_MS),
        Finding::told(
            format!("longest write of a disk at a group, {load}"),
            format!("{}; without a group {}", numbers(&during), numbers(&without)),
            json!({ "writes": count, "during_p99_ms": percentile(&during, 99.0),
                "without_p99_ms": percentile(&without, 99.0) }),
        ),
        Finding::told(
            format!("a group of {DISKS} disks, from request to reply, {load}"),
            numbers(&took),
            json!({ "ms": took }),
        ),
    ]
}
