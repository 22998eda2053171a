//! Reads below 1 and below 1256 snapshots.
//!
//! Invariants: both disks live in one pool and have had the same writes in the same order, so they are
//! fragmented alike and differ in nothing but snapshots; they are read in turn.
//! The last two lines have no target: on a disk this small one block of the map serves a dozen first
//! reads at 1 snapshot and a single one at 1256, which on large disks is so at both.
//! Absent: first reads of disks larger than the map cache.

use std::time::Instant;

use serde_json::json;

use super::{Bench, Finding};
use crate::daemon::Daemon;
use crate::fio::{self, Length, Load};
use crate::nbd::{Ask, random};
use crate::report::{median, number};

/// 256 manual and 1000 automatic snapshots: what the quotas of a disk allow.
const SNAPSHOTS: u32 = 1256;
/// Random 4K writes between two snapshots: each then owns leaves all over the disk.
const WRITES: usize = 64;
/// Each with a restart; the median counts.
const ROUNDS: usize = 5;
const LEAF: u64 = 256 << 10;
const DISKS: [&str; 2] = ["one", "many"];

pub fn curve(bench: Bench<'_>) -> Vec<Finding> {
    let size = bench.options.disk;
    let deep = if bench.options.quick { SNAPSHOTS / 10 } else { SNAPSHOTS };
    let mut daemon = Daemon::start(&bench.options.rowd, bench.dir);
    for (disk, count) in DISKS.into_iter().zip([1, deep]) {
        layer(&mut daemon, disk, size, count, deep);
    }
    let mut seen: [[Vec<f64>; 2]; 4] = Default::default();
    let rounds = if bench.options.quick { 2 } else { ROUNDS };
    for round in 0..rounds {
        for turn in 0..DISKS.len() {
            let index = (round + turn) % DISKS.len();
            let rates = read(bench, &mut daemon, DISKS[index]);
            for (seen, rate) in seen.iter_mut().zip(rates) {
                seen[index].push(rate);
            }
        }
    }
    daemon.note_memory();
    let [cold, warm, started, evicted] = seen;
    let told = |what: &str, rates| finding(what, deep, rates);
    vec![
        judged(
            told("4K random reads of the whole disk, depth 32, nothing in memory", &cold),
            &cold,
        ),
        judged(told("4K random reads, depth 32, all in memory", &warm), &warm),
        told("first read of each leaf after a restart", &started),
        told("the same, the map evicted from the page cache", &evicted),
    ]
}

/// Reads per second of one disk in four states of the caches.
fn read(bench: Bench<'_>, daemon: &mut Daemon, disk: &str) -> [f64; 4] {
    let size = bench.options.disk;
    daemon.connect(disk).read_all(size);
    daemon.stop();
    daemon.relaunch();
    let started = first_reads(daemon, disk, size);
    daemon.restart_without_map();
    let evicted = first_reads(daemon, disk, size);
    let length = Length::Seconds { ramp: 0, measured: bench.options.runtime };
    let load = Load::random("randread", 32);
    let warm = fio::run(daemon.files(), &daemon.uri(disk), load, size, length);
    daemon.restart_cold();
    let cold = fio::run(daemon.files(), &daemon.uri(disk), load, size, Length::Cover);
    [cold.per_second, warm.per_second, started, evicted]
}

/// A full disk with `writes` rounds of random writes, of which the last `snapshots` have one before.
fn layer(daemon: &mut Daemon, disk: &str, size: u64, snapshots: u32, writes: u32) {
    daemon.full_disk(disk, size);
    let mut client = daemon.connect(disk);
    let (mut state, blocks) = (0x1256_u64, size / 4096);
    for round in 0..writes {
        if round >= writes - snapshots {
            daemon.snapshot(disk);
        }
        let asks: Vec<Ask> = (0..WRITES)
            .map(|_| Ask::Write(random(&mut state) % blocks * 4096, 4096, u64::from(round)))
            .collect();
        client.drive(32, asks);
    }
    client.drive(1, [Ask::Flush]);
}

/// Reads per second when every read is the first of its leaf.
fn first_reads(daemon: &Daemon, disk: &str, size: u64) -> f64 {
    let mut leaves: Vec<u64> = (0..size / LEAF).collect();
    let mut state = 0x5eed_u64;
    for last in (1..leaves.len()).rev() {
        let other = usize::try_from(random(&mut state)).expect("64 bits") % (last + 1);
        leaves.swap(last, other);
    }
    let count = leaves.len() as f64;
    let mut client = daemon.connect(disk);
    let began = Instant::now();
    client.drive(32, leaves.into_iter().map(|leaf| Ask::Read(leaf * LEAF, 4096)));
    count / began.elapsed().as_secs_f64()
}

fn finding(what: &str, deep: u32, rates: &[Vec<f64>; 2]) -> Finding {
    let [one, many] = rates.each_ref().map(|rates| median(rates));
    let ratio = many / one;
    let text = format!("{} and {}: {ratio:.2}", number(one), number(many));
    let numbers = json!({ "one": rates[0], "many": rates[1], "ratio": ratio });
    Finding::told(format!("{what}, at 1 and at {deep} snapshots"), text, numbers)
}

fn judged(finding: Finding, rates: &[Vec<f64>; 2]) -> Finding {
    let [one, many] = rates.each_ref().map(|rates| median(rates));
    finding.target("≥ 0.95", many / one >= 0.95)
}
