//! The rules of snapshot chains, as the guides give them: what a snapshot stores, what deleting one
//! frees, what its neighbours keep. The tests carry the numbers of the requirements.
//!
//! Absent: rolling back (`rollback.rs`).

use rowd_tests::client::Client;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::wait;
use serde_json::Value;

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

/// A daemon with one disk called `disk`, of 64 MiB.
fn daemon() -> Daemon {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    daemon
}

/// Fills whole blocks with one value each.
fn write(daemon: &Daemon, disk: &str, blocks: &[(u64, u8)]) {
    let mut client = Client::connect(&daemon.nbd_socket(), disk);
    for &(block, value) in blocks {
        client.write(block * BLOCK, &[value; 4096]);
    }
    client.disconnect();
}

/// The value each of the first blocks is filled with.
fn values(daemon: &Daemon, export: &str, count: u32) -> Vec<u8> {
    let data = Client::connect(&daemon.nbd_socket(), export).read(0, count * 4096);
    let value_of = |block: &[u8]| {
        assert!(block.iter().all(|byte| *byte == block[0]), "a torn block");
        block[0]
    };
    data.chunks(4096).map(value_of).collect()
}

fn snapshot(daemon: &Daemon, name: &str) -> Value {
    daemon.json(&["snapshot", "create", "disk", name])
}

/// A number of blocks out of an object.
#[track_caller]
fn blocks(object: &Value, field: &str) -> u64 {
    let bytes = object[field].as_u64().unwrap_or_else(|| panic!("no {field} in {object}"));
    assert_eq!(bytes % BLOCK, 0);
    bytes / BLOCK
}

fn show(daemon: &Daemon, name: &str) -> Value {
    daemon.json(&["snapshot", "show", name])
}

/// INCR-07, 08, 09: snapshots of A B C D, then B1 C1, then B2 store 4, 2 and 1 blocks; without the
/// second, B1 is gone and C1 is the third's.
#[test]
fn three_snapshots_store_four_two_and_one_blocks_and_share_the_rest() {
    let daemon = daemon();
    write(&daemon, "disk", &[(0, 0xA0), (1, 0xB0), (2, 0xC0), (3, 0xD0)]);
    assert_eq!(blocks(&snapshot(&daemon, "s1"), "stored_bytes"), 4);
    write(&daemon, "disk", &[(1, 0xB1), (2, 0xC1)]);
    assert_eq!(blocks(&snapshot(&daemon, "s2"), "stored_bytes"), 2);
    write(&daemon, "disk", &[(1, 0xB2)]);
    assert_eq!(blocks(&snapshot(&daemon, "s3"), "stored_bytes"), 1);
    assert_eq!(values(&daemon, "disk@s1", 4), [0xA0, 0xB0, 0xC0, 0xD0]);
    assert_eq!(values(&daemon, "disk@s2", 4), [0xA0, 0xB1, 0xC1, 0xD0]);
    assert_eq!(values(&daemon, "disk@s3", 4), [0xA0, 0xB2, 0xC1, 0xD0]);
    assert_eq!(daemon.status("used_bytes"), 7 * BLOCK);
    assert_eq!(blocks(&show(&daemon, "disk@s2"), "exclusive_bytes"), 1, "B1 alone");

    let deleted = daemon.json(&["snapshot", "delete", "disk@s2", "--yes"]);
    assert_eq!(blocks(&deleted[0], "freed_bytes"), 1);
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), 6 * BLOCK, "B1 is gone, C1 is not");
    let third = show(&daemon, "disk@s3");
    assert_eq!(blocks(&third, "stored_bytes"), 2, "C1 and B2");
    assert_eq!(blocks(&third, "exclusive_bytes"), 0, "the disk has the same blocks");

    daemon.ctl(&["disk", "reinit", "disk", "--yes"]);
    daemon.ctl(&["disk", "rollback", "disk", "s3", "--yes"]);
    assert_eq!(values(&daemon, "disk", 4), [0xA0, 0xB2, 0xC1, 0xD0]);
    assert_eq!(values(&daemon, "disk@s1", 4), [0xA0, 0xB0, 0xC0, 0xD0]);
}

/// DEL-05, 06: without the middle one of three, ten blocks are left: six of the first, two of the
/// deleted one, two of the last, whose own size is four now.
#[test]
fn what_the_next_snapshot_needs_of_a_deleted_one_becomes_its_own() {
    let daemon = daemon();
    write(&daemon, "disk", &[(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
    assert_eq!(blocks(&snapshot(&daemon, "s0"), "stored_bytes"), 6);
    write(&daemon, "disk", &[(6, 2), (7, 2), (8, 2)]);
    assert_eq!(blocks(&snapshot(&daemon, "s1"), "stored_bytes"), 3);
    write(&daemon, "disk", &[(8, 3), (9, 3)]);
    assert_eq!(blocks(&snapshot(&daemon, "s2"), "stored_bytes"), 2);

    daemon.ctl(&["snapshot", "delete", "disk@s1", "--yes"]);
    daemon.wait_reclaimed();
    let chain = daemon.json(&["chain", "show", "disk"]);
    assert_eq!(blocks(&chain, "snapshot_bytes"), 10);
    assert_eq!(blocks(&chain["snapshots"][0], "stored_bytes"), 6);
    assert_eq!(blocks(&chain["snapshots"][1], "stored_bytes"), 4);
    assert_eq!(daemon.status("used_bytes"), 10 * BLOCK);
    assert_eq!(values(&daemon, "disk@s2", 10), [1, 1, 1, 1, 1, 1, 2, 2, 3, 3]);
}

/// INCR-17: the first of a chain can go without harm to the later ones.
#[test]
fn the_first_snapshot_of_a_chain_can_be_deleted() {
    let daemon = daemon();
    for value in 1..=3 {
        write(&daemon, "disk", &[(0, value), (u64::from(value), value)]);
        snapshot(&daemon, &format!("s{value}"));
    }
    daemon.ctl(&["snapshot", "delete", "disk@s1", "--yes"]);
    daemon.wait_reclaimed();
    assert_eq!(values(&daemon, "disk@s2", 4), [2, 1, 2, 0]);
    assert_eq!(values(&daemon, "disk@s3", 4), [3, 1, 2, 3]);
}

/// INCR-03, CAP-12: the first snapshot has the size of what was written, not of the disk.
#[test]
fn the_first_snapshot_has_the_size_of_what_was_written() {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "disk", "--size", "200MiB"]);
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    for piece in 0..122 {
        client.write(piece * MIB, &vec![1; 1 << 20]);
    }
    client.disconnect();
    let first = snapshot(&daemon, "s1");
    assert_eq!(
        (first["size"].clone(), first["stored_bytes"].clone()),
        ((200 * MIB).into(), (122 * MIB).into())
    );
    let chains = daemon.json(&["chain", "list"]);
    assert_eq!(chains[0]["snapshot_bytes"], 122 * MIB);
}

/// CAP-01, 02, 04, 07: a chain counts shared blocks once, and only disks with snapshots have one.
#[test]
fn a_chain_counts_shared_blocks_once() {
    let daemon = daemon();
    assert_eq!(daemon.json(&["chain", "list"]), Value::Array(vec![]));
    write(&daemon, "disk", &[(0, 1), (1, 1), (2, 1)]);
    snapshot(&daemon, "s1");
    snapshot(&daemon, "s2");
    write(&daemon, "disk", &[(0, 2)]);
    snapshot(&daemon, "s3");
    let chain = daemon.json(&["chain", "show", "disk"]);
    assert_eq!(blocks(&chain, "snapshot_bytes"), 4);
    let list = daemon.json(&["chain", "list"]);
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["snapshots"].as_array().unwrap().len(), 3);
    assert_eq!(blocks(&list[0], "snapshot_bytes"), 4);
}

/// FAQ-04, CAP-08: what was written counts until it is trimmed, and older snapshots keep it.
#[test]
fn a_trimmed_block_leaves_later_snapshots_and_stays_in_older_ones() {
    let daemon = daemon();
    write(&daemon, "disk", &[(0, 1), (1, 1), (2, 1)]);
    snapshot(&daemon, "s1");
    Client::connect(&daemon.nbd_socket(), "disk").trim(0, 8192);
    let second = snapshot(&daemon, "s2");
    assert_eq!(blocks(&second, "stored_bytes"), 0);
    assert_eq!(values(&daemon, "disk@s1", 3), [1, 1, 1]);
    assert_eq!(values(&daemon, "disk@s2", 3), [0, 0, 1]);
    daemon.ctl(&["snapshot", "delete", "disk@s1", "--yes"]);
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), BLOCK);
}

/// DEL-01, 02, 03, 18: several go in one call, what they shared goes with the last of them.
#[test]
fn deleting_several_snapshots_frees_what_only_they_held() {
    let daemon = daemon();
    write(&daemon, "disk", &[(0, 1), (1, 1)]);
    snapshot(&daemon, "s1");
    snapshot(&daemon, "s2");
    write(&daemon, "disk", &[(0, 2), (1, 2)]);
    assert_eq!(blocks(&show(&daemon, "disk@s1"), "exclusive_bytes"), 0, "s2 has all of it");
    daemon.ctl(&["snapshot", "delete", "disk@s1", "disk@s2", "--yes"]);
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), 2 * BLOCK);
    assert_eq!(daemon.json(&["snapshot", "list"]), Value::Array(vec![]));
    daemon.json_error(20, &["snapshot", "delete", "disk@s1", "--yes"]);
}

/// DEL-08, 09, DISK-09: a snapshot that disks were made from goes only by force; the disks stay.
#[test]
fn a_snapshot_that_made_a_disk_needs_force_and_the_disk_stays_whole() {
    let daemon = daemon();
    write(&daemon, "disk", &[(0, 1), (1, 1)]);
    snapshot(&daemon, "s1");
    let copy = daemon.json(&["disk", "create", "copy", "--from", "disk@s1"]);
    assert_ne!(copy["id"], daemon.json(&["disk", "show", "disk"])["id"]);
    write(&daemon, "copy", &[(1, 9)]);
    assert_eq!(values(&daemon, "disk", 2), [1, 1], "the copy is a disk of its own");
    write(&daemon, "disk", &[(0, 7), (1, 7)]);

    let error = daemon.json_error(21, &["snapshot", "delete", "disk@s1", "--yes"]);
    assert!(error["message"].as_str().unwrap().contains("copy"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("--force"), "{error}");
    daemon.json_error(2, &["snapshot", "delete", "disk@s1", "--force"]);
    daemon.ctl(&["snapshot", "delete", "disk@s1", "--force", "--yes"]);
    daemon.wait_reclaimed();
    assert_eq!(values(&daemon, "copy", 2), [1, 9]);
    let error = daemon.json_error(15, &["disk", "reinit", "copy", "--yes"]);
    assert!(error["message"].as_str().unwrap().contains("deleted"), "{error}");
    assert_eq!(values(&daemon, "copy", 2), [1, 9], "a refused reinit changes nothing");
    // With two disks below it the snapshot's blocks wait; with one they go or become that disk's.
    assert_eq!(daemon.status("used_bytes"), 5 * BLOCK);
    daemon.ctl(&["disk", "delete", "disk", "--yes", "--force"]);
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), 2 * BLOCK);
    assert_eq!(values(&daemon, "copy", 2), [1, 9]);
}

/// DEL-16, SNAP-16: what goes by itself are undo snapshots; manual ones stay.
#[test]
fn only_undo_snapshots_expire() {
    let config = format!("{SMALL}\n[background]\nundo_hours = 0\n");
    let daemon = Setup::default().config(&config).start();
    daemon.ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    write(&daemon, "disk", &[(0, 1)]);
    snapshot(&daemon, "keep");
    write(&daemon, "disk", &[(0, 2)]);
    daemon.ctl(&["disk", "rollback", "disk", "keep", "--yes"]);
    wait::until("the end of the undo snapshot", || {
        let left = daemon.json(&["snapshot", "list"]);
        (left.as_array().unwrap().len() == 1).then_some(())
    });
    assert_eq!(show(&daemon, "disk@keep")["kind"], "manual");
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), BLOCK);
    daemon.json_error(15, &["disk", "rollback", "--undo", "disk", "--yes"]);
}

/// DISK-20, ROLL-04: the snapshots of a deleted disk are kept, found by its id, and make disks.
#[test]
fn the_snapshots_of_a_deleted_disk_stay_usable() {
    let daemon = daemon();
    write(&daemon, "disk", &[(0, 1), (1, 1)]);
    snapshot(&daemon, "s1");
    write(&daemon, "disk", &[(2, 2)]);
    let id = daemon.json(&["disk", "delete", "disk", "--yes"])["id"].as_str().unwrap().to_owned();
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), 2 * BLOCK, "only what the snapshot holds is left");
    let chain = daemon.json(&["chain", "show", &id]);
    assert_eq!(blocks(&chain, "snapshot_bytes"), 2);
    assert_eq!(chain["disk_name"], Value::Null);
    daemon.json_error(20, &["disk", "rollback", &id, "s1", "--yes"]);
    daemon.ctl(&["disk", "create", "again", "--from", &format!("{id}@s1")]);
    assert_eq!(values(&daemon, "again", 3), [1, 1, 0]);
}

/// DISK-13: a disk returns to what it was made from: nothing, or its snapshot.
#[test]
fn reinit_returns_a_disk_to_its_first_contents() {
    let daemon = daemon();
    write(&daemon, "disk", &[(0, 1), (1, 1)]);
    snapshot(&daemon, "s1");
    daemon.ctl(&["disk", "create", "copy", "--from", "s1", "--size", "128MiB"]);
    write(&daemon, "copy", &[(0, 5), (9, 5), (64 * MIB / BLOCK, 5)]);
    daemon.ctl(&["disk", "reinit", "copy", "--yes"]);
    assert_eq!(values(&daemon, "copy", 10), [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut client = Client::connect(&daemon.nbd_socket(), "copy");
    assert_eq!(client.size, 128 * MIB, "it keeps its size");
    assert_eq!(client.read(64 * MIB, 4096), [0; 4096]);
    daemon.ctl(&["disk", "reinit", "disk", "--yes"]);
    assert_eq!(values(&daemon, "disk", 2), [0, 0]);
    assert_eq!(values(&daemon, "disk@s1", 2), [1, 1]);
}

/// SNAP-04, 05: 2 to 128 characters, not bytes, and not the beginning of automatic names.
#[test]
fn snapshot_names_are_checked_also_on_renaming() {
    let daemon = daemon();
    snapshot(&daemon, "ok");
    let wide = |count: usize| "\u{5feb}".repeat(count);
    for bad in ["a".to_owned(), wide(129), "auto2.0_x".to_owned(), "a b".to_owned()] {
        daemon.json_error(2, &["snapshot", "create", "disk", &bad]);
        daemon.json_error(2, &["snapshot", "set", "disk@ok", "--name", &bad]);
    }
    snapshot(&daemon, &wide(128));
    snapshot(&daemon, "ab");
    daemon.json_error(21, &["snapshot", "create", "disk", "ab"]);
    daemon.ctl(&["snapshot", "set", "disk@ab", "--name", "renamed"]);
    assert_eq!(show(&daemon, "disk@renamed")["name"], "renamed");
}

/// SNAP-17, 18: at the quota nothing is evicted; one has to be deleted.
#[test]
fn the_quota_of_manual_snapshots_refuses_and_evicts_nothing() {
    let config = format!("{SMALL}\n[quota]\nmanual_snapshots = 3\n");
    let daemon = Setup::default().config(&config).start();
    daemon.ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    daemon.ctl(&["disk", "create", "other", "--size", "64MiB"]);
    for name in ["s1", "s2", "s3"] {
        snapshot(&daemon, name);
    }
    let error = daemon.json_error(14, &["snapshot", "create", "disk", "s4"]);
    assert_eq!(error["kind"], "quota");
    assert!(error["message"].as_str().unwrap().contains('3'), "{error}");
    daemon.ctl(&["snapshot", "create", "other", "s1"]);
    // A rollback keeps the state before, which is not the user's snapshot to count.
    daemon.ctl(&["disk", "rollback", "disk", "s2", "--yes"]);
    daemon.json_error(14, &["snapshot", "create", "disk", "s4"]);
    daemon.ctl(&["snapshot", "delete", "disk@s1", "--yes"]);
    snapshot(&daemon, "s4");
}

/// TAG-01, 02: tags of disks and snapshots; a key has one value.
#[test]
fn tags_are_set_changed_and_removed() {
    let daemon = daemon();
    daemon.ctl(&["snapshot", "create", "disk", "s1", "--tag", "env=test", "--tag", "x=a=b"]);
    daemon.ctl(&["tag", "set", "disk@s1", "env=prod", "new="]);
    let tags = serde_json::json!({"env": "prod", "x": "a=b", "new": ""});
    assert_eq!(show(&daemon, "disk@s1")["tags"], tags);
    daemon.ctl(&["tag", "remove", "disk@s1", "x", "new", "absent"]);
    assert_eq!(show(&daemon, "disk@s1")["tags"], serde_json::json!({"env": "prod"}));
    daemon.ctl(&["tag", "set", "disk", "owner=ops"]);
    assert_eq!(daemon.json(&["disk", "show", "disk"])["tags"]["owner"], "ops");
    let long = format!("k={}", "v".repeat(129));
    daemon.json_error(2, &["tag", "set", "disk", &long]);
    daemon.json_error(2, &["tag", "set", "disk", "=v"]);
}

/// SVC-07, PERF-06: the first overwrite after a snapshot is written once and reads nothing: nothing is copied aside.
#[test]
fn an_overwrite_after_a_snapshot_is_one_write_and_no_read() {
    const BYTES: u64 = 32 << 20;
    let daemon = daemon();
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    let mut fill = |value: u8| {
        for at in (0..BYTES).step_by(1 << 20) {
            client.write(at, &vec![value; 1 << 20]);
        }
        client.flush();
    };
    // What the daemon has asked the kernel to read and to write of files.
    let moved = || {
        let text = std::fs::read_to_string(format!("/proc/{}/io", daemon.pid())).unwrap();
        let field = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().unwrap()
        };
        (field("rchar:"), field("wchar:"))
    };
    fill(1);
    snapshot(&daemon, "s1");
    let before = moved();
    fill(2);
    let after = moved();
    let (read, written) = (after.0 - before.0, after.1 - before.1);
    assert!((BYTES..BYTES + BYTES / 4).contains(&written), "{written} bytes for {BYTES}");
    assert!(read < BYTES / 4, "{read} bytes read to overwrite {BYTES}");
}

/// DEL-04: a kill in the middle of freeing a snapshot leaves the rest for the next start.
#[test]
fn freeing_goes_on_after_a_kill() {
    const PIECES: u64 = 48;
    let mut daemon = daemon();
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    for piece in 0..PIECES {
        client.write(piece * MIB, &vec![1; 1 << 20]);
    }
    snapshot(&daemon, "s1");
    for piece in 0..PIECES {
        client.write(piece * MIB, &vec![2; 1 << 20]);
    }
    client.flush();
    drop(client);
    daemon.ctl(&["snapshot", "delete", "disk@s1", "--yes"]);
    for _ in 0..3 {
        daemon.crash();
    }
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), PIECES * MIB);
    assert_eq!(values(&daemon, "disk", 256), [2; 256]);
    daemon.stop();
    let checked = std::process::Command::new(rowd_tests::tool::built("rowd"))
        .args(["check", "--dir"])
        .arg(daemon.dir())
        .arg("--config")
        .arg(daemon.file("rowd.toml"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// Many deleted snapshots are merged into what follows them; it is freed all the same, from the store.
#[test]
fn a_disk_that_took_over_many_deleted_snapshots_is_freed_wholly() {
    const SNAPSHOTS: u64 = 40;
    let mut daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "worn", "--size", "64MiB"]);
    let names: Vec<String> = (0..SNAPSHOTS).map(|number| format!("worn@at-{number}")).collect();
    for (number, name) in (0..SNAPSHOTS).zip(&names) {
        let mut client = Client::connect(&daemon.nbd_socket(), "worn");
        client.write(number * 262_144, &[1; 4096]);
        client.write(0, &[2; 8192]);
        drop(client);
        daemon.ctl(&["snapshot", "create", "worn", &name[5..]]);
    }
    let delete = ["snapshot", "delete", "--yes"].into_iter();
    daemon.ctl(&delete.chain(names.iter().map(String::as_str)).collect::<Vec<_>>());
    daemon.wait_reclaimed();
    assert_eq!(
        daemon.status("used_bytes"),
        (SNAPSHOTS + 1) * 4096,
        "one block each, and two in leaf 0"
    );
    daemon.stop();
    daemon.start();
    daemon.ctl(&["disk", "delete", "worn", "--yes"]);
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), 0);
}
