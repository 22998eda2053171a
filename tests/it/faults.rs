//! Seeded faults: each guard against a hazard of ARCHITECTURE.md is removed once, and has to be missed.
//!
//! Invariants: a fault is seeded for a whole process, so each scenario runs in a child of its own, once
//! with the guard and once without; it passes with the guard, or it proves nothing.
//! Absent: crashes at fail points, and power cuts inside the map's files; other suites have those.

mod engine;
mod found;
mod kernel;
mod vault;
mod wire;

use std::fs::File;
use std::process::{Command, Stdio};

use rowd::faults::SEEDED_FAULTS;
use rowd_tests::wait;

type Outcome = Result<(), String>;

/// Looks at a scenario without its guard, until one fails.
const TRIES: usize = 6;
const SCENARIO: &str = "ROWD_FAULT_SCENARIO";

fn scenario(name: &str) -> Outcome {
    match name {
        "h1-replay-skips-data-check" => engine::a_record_without_its_data_is_dropped(),
        "h1-flush-skips-sync" => wire::a_flush_reaches_the_device(),
        "h2-reuse-before-durable" => engine::power_cuts_on_a_full_pool(),
        "h2-reuse-under-reader" => engine::a_slow_reader_on_a_full_pool(),
        "h3-ignore-older-map" => engine::an_older_map_is_refused(),
        "h4-map-before-data" => engine::a_reader_beside_a_writer(),
        "h5-no-recheck-of-merged-block" => engine::two_halves_of_a_block(),
        "h6-flush-own-connection-only" => engine::a_flush_covers_other_connections(),
        "h7-reclaim-forgets-cursor" => engine::a_reclaim_cut_in_pieces(),
        "h8-reply-with-last-cookie" => wire::each_reply_names_its_request(),
        "h9-retry-after-failed-sync" => wire::a_failed_sync_is_never_forgotten(),
        "h10-directory-not-synced" => wire::a_new_pool_is_in_its_directory(),
        "h11-retry-overtakes" => kernel::a_request_sent_twice(),
        "h12-runtime-ends-first" => vault::an_end_while_a_store_is_waited_for(),
        "h13-turn-is-never-given-up" => vault::a_copy_cancelled_while_chunks_wait(),
        "h14-fill-leaves-holes-below" => engine::a_disk_that_is_kept_while_it_is_filled(),
        other => Err(format!("there is no scenario for {other}")),
    }
}

/// Whether the scenario passes in a process of its own, and what it said.
fn passes(name: &str, with_fault: bool) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["faults::one_scenario", "--exact", "--ignored", "--nocapture"]);
    command.env(SCENARIO, name).env_remove("ROWD_SEEDED_FAULT").env("RUST_BACKTRACE", "0");
    if with_fault {
        command.env("ROWD_SEEDED_FAULT", name);
    }
    let output = tempfile::NamedTempFile::new().expect("a file for its output");
    // Appended to from two descriptors: each would else write over the other.
    let append = || File::options().append(true).open(output.path());
    let log = || Stdio::from(append().expect("open the output again"));
    let mut child = command.stdout(log()).stderr(log()).spawn().expect("start the scenario");
    let ended = wait::try_until(wait::PATIENCE, || child.try_wait().expect("wait for the child"));
    if ended.is_none() {
        child.kill().expect("end the scenario");
        child.wait().expect("reap the scenario");
    }
    let said = std::fs::read_to_string(output.path()).expect("its output");
    (ended.is_some_and(|status| status.success()), said)
}

/// Promise: the suite notices when any one of the guards is gone.
#[test]
fn every_seeded_fault_is_caught() {
    let mut missed = Vec::new();
    for name in SEEDED_FAULTS {
        let (sound, said) = passes(name, false);
        assert!(sound, "the scenario of {name} fails with its guard in place:\n{said}");
        // A race may be won without its guard now and then, not time after time.
        let mut tries = (0..TRIES).map(|_| passes(name, true));
        let Some((_, said)) = tries.find(|(blind, _)| !blind) else {
            println!("{name}: MISSED");
            missed.push(name);
            continue;
        };
        let why = said.lines().find(|line| line.starts_with("caught: ")).unwrap_or("no reason");
        println!("{name}: {why}");
    }
    let all = SEEDED_FAULTS.len();
    println!("{} of {all} seeded faults caught", all - missed.len());
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// One scenario, in the child that `every_seeded_fault_is_caught` starts.
#[test]
#[ignore = "a part of every_seeded_fault_is_caught, which starts it"]
fn one_scenario() {
    let name = std::env::var(SCENARIO).expect("ROWD_FAULT_SCENARIO names a seeded fault");
    if let Err(why) = scenario(&name) {
        panic!("\ncaught: {why}");
    }
}
