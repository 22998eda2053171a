//! A killed daemon loses nothing it has acknowledged.
//!
//! Absent: cuts of power (`crash_power.rs`) and long runs (`make soak`).

use rowd::faults::FAIL_POINTS;
use rowd::pool::file::IoMode;
use rowd_tests::crash::{Modes, kill, rng};

/// Kills in `make test`: enough that every fail point is reached several times.
const KILLS: u64 = 100;

/// Under load from three connections and an administrator, the daemon is killed a hundred times: at
/// random moments, at every fail point, and while it recovers. Each time every acknowledged write is
/// there, snapshots, groups, templates and clones are what they were, and the offline check finds nothing.
#[test]
fn a_hundred_kills_lose_no_acknowledged_write_and_no_snapshot() {
    kill_again_and_again(&[IoMode::Buffered]);
}

/// The same past the page cache, where records wait in memory to be written together: two of three
/// lives of the daemon in direct mode, the others on the same pool through the page cache.
#[test]
fn a_hundred_kills_in_direct_mode_lose_nothing_either() {
    kill_again_and_again(&[IoMode::Direct, IoMode::Direct, IoMode::Buffered]);
}

fn kill_again_and_again(modes: Modes) {
    let seed = rng::seed("cargo test --release -p rowd-tests --test it crash_kill");
    let totals = kill::run(env!("CARGO_BIN_EXE_rowd-faulty").into(), modes, seed, KILLS);
    println!("{}", serde_json::to_string_pretty(&totals).unwrap());
    for point in FAIL_POINTS {
        let reached = totals.kills_at_fail_points.get(*point).copied().unwrap_or(0);
        assert!(reached > 0, "no kill at {point}: {totals:?}");
    }
    assert!(totals.rollbacks > 0 && totals.clones > 0 && totals.snapshot_deletes > 0);
    assert!(totals.templates > 0 && totals.template_deletes > 0 && totals.refusals > 0);
    assert!(totals.groups > 0 && totals.group_returns > 0 && totals.group_deletes > 0);
}
