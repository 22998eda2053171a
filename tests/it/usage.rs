//! Usage: who holds how many bytes, now and over the last days.
//!
//! Absent: two weeks of waiting; how long samples are kept is a unit test of the catalogue.

use rowd_tests::client::Client;
use rowd_tests::process::Daemon;
use rowd_tests::wait;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Two disks: 4 MiB in a snapshot of `data`, 1 MiB of that replaced since; 2 MiB in `logs` without a snapshot.
fn daemon() -> Daemon {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB", "--tag", "env=live"]);
    daemon.ctl(&["disk", "create", "logs", "--size", "64MiB"]);
    let mut client = Client::connect(&daemon.nbd_socket(), "data");
    client.write(0, &vec![1; 4 << 20]);
    daemon.ctl(&["snapshot", "create", "data", "first", "--tag", "class=daily"]);
    client.write(0, &vec![2; 1 << 20]);
    Client::connect(&daemon.nbd_socket(), "logs").write(0, &vec![3; 2 << 20]);
    daemon
}

fn of<'a>(usage: &'a Value, disk: &str) -> &'a Value {
    let disks = usage["disks"].as_array().unwrap();
    disks.iter().find(|one| one["disk_name"] == disk).unwrap_or_else(|| panic!("{disk}: {usage}"))
}

/// Promise: each block in use counts once, with the disk or with the first snapshot that has it.
#[test]
fn what_disks_and_snapshots_hold_adds_up_to_the_pool() {
    let daemon = daemon();
    daemon.ctl(&["disk", "create", "clone", "--from", "data@first"]);
    daemon.ctl(&["snapshot", "create", "data", "second"]);
    daemon.ctl(&["disk", "rollback", "data", "first", "--yes", "--force"]);
    Client::connect(&daemon.nbd_socket(), "data").write(0, &[9; 8192]);
    daemon.wait_reclaimed();
    let usage = daemon.json(&["usage"]);
    let data = of(&usage, "data");
    assert_eq!(data["snapshot_bytes"], 5 * MIB, "4 MiB and what was replaced: {data}");
    assert_eq!((&data["snapshots"], &data["data_bytes"]), (&2.into(), &8192.into()), "{data}");
    assert_eq!(of(&usage, "clone")["data_bytes"], 0, "a clone holds nothing of its own");
    assert_eq!(of(&usage, "logs")["data_bytes"], 2 * MIB);
    let total = &usage["total"];
    let parts = ["data_bytes", "snapshot_bytes", "undo_bytes"].map(|part| total[part].as_u64());
    let sum: u64 = parts.into_iter().flatten().sum();
    assert_eq!(sum, daemon.status("used_bytes"), "{total}");
    assert_eq!(sum, usage["used_bytes"].as_u64().unwrap());
    assert_eq!(usage["disks"][0]["disk_name"], "data", "the largest first");
}

/// Promise: what a deleted disk has left behind is still told, under its id.
#[test]
fn the_snapshots_of_a_deleted_disk_are_told() {
    let daemon = daemon();
    let id = daemon.json(&["disk", "show", "data"])["id"].as_str().unwrap().to_owned();
    daemon.ctl(&["disk", "delete", "data", "--yes", "--force"]);
    let top = daemon.json(&["usage", "--top"]);
    assert_eq!((&top[0]["disk_id"], &top[0]["disk_name"]), (&id.into(), &Value::Null), "{top}");
    assert_eq!(top[0]["snapshot_bytes"], 4 * MIB);
    daemon.try_ctl(&["usage", "--top"]).ok().says(&["(deleted)", "4 MiB"]);
}

/// Promise: with a tag only what has it counts, disks and snapshots each by their own.
#[test]
fn usage_can_be_asked_by_tag() {
    let daemon = daemon();
    let total = |tag: &str| daemon.json(&["usage", "--tag", tag])["total"].clone();
    let daily = total("class=daily");
    assert_eq!((&daily["snapshot_bytes"], &daily["data_bytes"]), (&(4 * MIB).into(), &0.into()));
    let live = total("env");
    assert_eq!((&live["snapshot_bytes"], &live["data_bytes"]), (&0.into(), &MIB.into()));
    assert_eq!(total("env=other")["snapshots"], 0);
    daemon.json_error(2, &["usage", "--tag", "=x"]);
}

/// Promise: a sample is taken when the daemon starts and once an hour; it survives a crash.
#[test]
fn samples_survive_a_crash() {
    let mut daemon = daemon();
    let samples = |daemon: &Daemon| daemon.json(&["usage"])["samples"].as_array().unwrap().clone();
    let before = wait::until("the first sample", || {
        Some(samples(&daemon)).filter(|samples| !samples.is_empty())
    });
    daemon.crash();
    let after = samples(&daemon);
    assert_eq!(after[..before.len()], before[..]);
    // One more when the clock has struck meanwhile.
    assert!(after.len() <= before.len() + 1, "{after:?}");
    let events = daemon.ctl(&["events"]);
    assert!(!events.contains("usage"), "nobody wants to read of it every hour: {events}");
}

/// Promise: a range that makes no sense, or reaches further back than samples are kept, is refused.
#[test]
fn only_the_last_fifteen_days_can_be_asked_for() {
    let daemon = daemon();
    let refused = |from: &str, to: &str, code: i32, word: &str| {
        let error = daemon.json_error(code, &["usage", "--from", from, "--to", to]);
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    };
    refused("2026-01-02", "2026-01-01", 2, "ends before it begins");
    refused("2026-01-01", "2026-01-16T00:00:01Z", 2, "longer than 15 days");
    refused("soon", "2026-01-01", 2, "2026-01-31T09:00:00Z");
    daemon.try_ctl(&["usage", "--from", "2020-01-01", "--to", "2020-01-16"]).fails_with(20);
    wait::until("the first sample", || {
        let usage = daemon.json(&["usage"]);
        (!usage["samples"].as_array()?.is_empty()).then_some(())
    });
    let text = daemon.ctl(&["usage"]);
    assert!(text.contains("DAY (UTC)") && text.contains("1 samples"), "{text}");
}

/// What a deletion of these says it frees, in order.
fn freed(printed: &Value) -> Vec<u64> {
    printed.as_array().unwrap().iter().map(|one| one["freed_bytes"].as_u64().unwrap()).collect()
}

/// Promise: `--dry-run` tells exactly what deleting the whole set frees, with clones and shared blocks, and changes
/// nothing.
#[test]
fn a_dry_run_of_a_set_tells_exactly_what_is_freed() {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    let mut client = Client::connect(&daemon.nbd_socket(), "data");
    // Each snapshot has 4 MiB of which the next one replaces 1 MiB; a clone of the second keeps what it sees.
    client.write(0, &vec![1; 4 << 20]);
    for (number, name) in (1u8..).zip(["s1", "s2", "s3", "s4"]) {
        daemon.ctl(&["snapshot", "create", "data", name]);
        client.write(u64::from(number - 1) << 20, &vec![number + 1; 1 << 20]);
    }
    daemon.ctl(&["disk", "create", "clone", "--from", "data@s2"]);
    Client::connect(&daemon.nbd_socket(), "clone").write(2 << 20, &vec![9; 1 << 20]);
    let set = ["data@s1", "data@s2", "data@s3"];
    let mut args = vec!["snapshot", "delete", "--dry-run"];
    args.extend(set);
    let foretold = daemon.json(&args);
    assert_eq!(daemon.json(&["snapshot", "list"]).as_array().unwrap().len(), 4, "nothing is gone");
    let used = daemon.status("used_bytes");
    let mut args = vec!["snapshot", "delete", "--yes", "--force"];
    args.extend(set);
    daemon.ctl(&args);
    daemon.wait_reclaimed();
    let gone = used - daemon.status("used_bytes");
    assert_eq!(freed(&foretold).iter().sum::<u64>(), gone, "{foretold}");
    // What only s1 saw. What s3 saw too is kept with s2, whose two branches go on.
    assert_eq!(freed(&foretold), [MIB, 0, 0], "{foretold}");
    daemon.ctl(&["disk", "delete", "clone", "--yes", "--force"]);
    daemon.wait_reclaimed();
    let foretold = daemon.json(&["snapshot", "delete", "--dry-run", "data@s4"]);
    assert_eq!(freed(&foretold), [MIB], "without a clone the counters tell: {foretold}");
}

/// Promise: of a chain it is told what only it holds, and that is what deleting it frees.
#[test]
fn a_chain_tells_what_only_it_holds() {
    let daemon = daemon();
    let chain = daemon.json(&["chain", "show", "data"]);
    assert_eq!(
        (&chain["snapshot_bytes"], &chain["exclusive_bytes"]),
        (&(4 * MIB).into(), &MIB.into())
    );
    daemon.try_ctl(&["chain", "show", "data"]).ok().says(&["exclusive", "shared", "3 MiB"]);
    let used = daemon.status("used_bytes");
    daemon.ctl(&["snapshot", "delete", "data@first", "--yes"]);
    daemon.wait_reclaimed();
    assert_eq!(used - daemon.status("used_bytes"), MIB);
}
