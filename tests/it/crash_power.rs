//! A cut of power loses nothing that a flush, FUA or a snapshot has made durable, and never mixes.
//!
//! Absent: killed daemons (`crash_kill.rs`) and long runs (`make soak`).

use std::path::Path;

use rowd::pool::file::IoMode;
use rowd_tests::crash::{Modes, power, rng};

/// States in `make test`.
const STATES: u64 = 300;

/// Below a real file system every write and flush of the daemon's disk is recorded. Of three hundred
/// moments the disk is put together as a cut might leave it: what was flushed, and of the rest any
/// part, torn and in any order. Each time the disks show a prefix of the writes, across all disks and
/// no earlier than the last flush; no request is there in part; snapshots that were answered are
/// there, and exact; the check finds nothing; and opening once more shows the same.
#[test]
fn three_hundred_cuts_leave_a_prefix_that_holds_everything_flushed() {
    cut_again_and_again(&[IoMode::Buffered], STATES);
}

/// The same past the page cache, and each life of the daemon and each look in one of the two modes.
#[test]
fn cuts_in_direct_mode_leave_such_a_prefix_too() {
    cut_again_and_again(&[IoMode::Direct, IoMode::Direct, IoMode::Buffered], STATES / 2);
}

fn cut_again_and_again(modes: Modes, states: u64) {
    let seed = rng::seed("cargo test --release -p rowd-tests --test it crash_power");
    let daemon = Path::new(env!("CARGO_BIN_EXE_rowd-faulty"));
    let totals = power::run(daemon, modes, seed, states);
    println!("{}", serde_json::to_string_pretty(&totals).unwrap());
    assert_eq!(totals.states, states);
    assert!(totals.device_flushes > 100 && totals.snapshots > 10 && totals.records_replayed > 0);
}
