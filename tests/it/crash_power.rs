//! A cut of power loses nothing that a flush, FUA or a snapshot has made durable, and never mixes.
//!
//! Absent: killed daemons (`crash_kill.rs`) and long runs (`make soak`).

use std::path::Path;

use rowd_tests::crash::{power, rng};

/// States in `make test`.
const STATES: u64 = 300;

/// Below a real file system every write and flush of the daemon's disk is recorded. Of three hundred
/// moments the disk is put together as a cut might leave it: what was flushed, and of the rest any
/// part, torn and in any order. Each time the disks show a prefix of the writes, across all disks and
/// no earlier than the last flush; no request is there in part; snapshots that were answered are
/// there, and exact; the check finds nothing; and opening once more shows the same.
#[test]
fn three_hundred_cuts_leave_a_prefix_that_holds_everything_flushed() {
    let seed = rng::seed("cargo test --release -p rowd-tests --test it crash_power");
    let totals = power::run(Path::new(env!("CARGO_BIN_EXE_rowd-faulty")), seed, STATES);
    println!("{}", serde_json::to_string_pretty(&totals).unwrap());
    assert_eq!(totals.states, STATES);
    assert!(totals.device_flushes > 100 && totals.snapshots > 10 && totals.records_replayed > 0);
}
