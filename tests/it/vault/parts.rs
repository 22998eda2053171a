//! Copies whose table is so large that it is in parts: made, read from any end, built upon, taken elsewhere, damaged.
//!
//! Absent: how few of the parts are read (`dense.rs`); the parts themselves, which have their tests beside them.

use std::fs;
use std::path::{Path, PathBuf};

use rowd_tests::client::{Ask, Client};
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::{tool, wait};
use serde_json::{Value, json};

use super::copies::{MIB, contents, copied, id, noise, url, write};
use super::lazy::wait_filled;
use super::life::gone;

const SIZE: u64 = 64 * MIB;
/// Every third block of the disk: more pieces than there are in a part.
const STEP: u64 = 3 * 4096;

/// Writes every third block of a disk.
fn scatter(daemon: &Daemon, disk: &str, seed: u64) {
    let blocks = noise(seed, 4096 * usize::try_from(SIZE / STEP).unwrap());
    let mut client = Client::connect(&daemon.nbd_socket(), disk);
    for (number, block) in (0..).zip(blocks.chunks_exact(4096)) {
        client.write(number * STEP, block);
    }
    client.flush();
    client.disconnect();
}

/// A daemon with the repository `backup`, and an encrypted or plain disk `data` with scattered blocks.
fn daemon(encrypted: bool) -> Daemon {
    let daemon = Setup::default().master_key(&"1".repeat(64)).start();
    set_up(&daemon, encrypted);
    daemon
}

/// As [`daemon`], and no disk is filled there in the background.
fn daemon_that_fills_nothing() -> Daemon {
    let mut daemon = Setup::default().program(tool::built("rowd-faulty")).prepare();
    let (point, file) = ("fill.begun", daemon.path("hold"));
    let hold = format!("{point}:{file}");
    daemon.change_setup(|setup| setup.env("ROWD_HOLD_POINT", &hold));
    daemon.start();
    set_up(&daemon, false);
    daemon
}

fn set_up(daemon: &Daemon, encrypted: bool) {
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(daemon)]);
    let create = ["disk", "create", "data", "--size", "64MiB", "--encrypted"];
    daemon.ctl(&create[..if encrypted { 6 } else { 5 }]);
    scatter(daemon, "data", 1);
}

/// The header of a copy, as it is in the repository.
fn header(repository: &Path, copy: &str) -> Value {
    let files = super::server::files(&repository.join("copies"));
    let file = files.into_iter().find(|file| file.display().to_string().contains(copy)).unwrap();
    serde_json::from_str(fs::read_to_string(file).unwrap().lines().next().unwrap()).unwrap()
}

/// Reads single blocks here and there, each on a connection of its own, then all of it.
fn reads(daemon: &Daemon, disk: &str, expected: &[u8]) {
    for block in [16383u64, 0, 8191, 3, 5460, 12287, 4096, 16382] {
        let mut client = Client::connect(&daemon.nbd_socket(), disk);
        let at = usize::try_from(block * 4096).unwrap();
        assert!(
            client.read(block * 4096, 4096) == expected[at..at + 4096],
            "{disk}: block {block}"
        );
        client.disconnect();
    }
    assert!(contents(daemon, disk, SIZE) == expected, "{disk}");
}

/// Promise: such a copy is made of changes and makes disks as any other, plain or encrypted: here, on a daemon that
/// has only the repository, and from another repository.
#[test]
fn a_copy_with_a_table_in_parts_is_a_copy_like_any_other() {
    for encrypted in [false, true] {
        let daemon = daemon(encrypted);
        daemon.ctl(&["snapshot", "create", "data", "one"]);
        let first = contents(&daemon, "data", SIZE);
        let one = copied(&daemon, "data@one", "backup");
        let told = header(&daemon.file("vault"), id(&one));
        assert_eq!((&told["version"], &told["parts"]["rows"]), (&json!(3), &json!(4096)));
        write(&daemon, "data", 20 * MIB, &noise(2, 8192));
        daemon.ctl(&["snapshot", "create", "data", "two"]);
        let second = contents(&daemon, "data", SIZE);
        let two = copied(&daemon, "data@two", "backup");
        assert_eq!(
            (&two["detail"]["base"], &two["detail"]["new_bytes"]),
            (&one["id"], &json!(8192))
        );
        let other = Setup::default().master_key(&"1".repeat(64)).start();
        fs::create_dir(other.file("far")).unwrap();
        other.ctl(&["repo", "add", "found", &url(&daemon), "--existing"]);
        other.ctl(&["repo", "add", "far", &format!("file://{}", other.path("far"))]);
        let far = other.json(&["snapshot", "copy", id(&two), "--to", "far", "--wait"]);
        assert_eq!(header(&other.file("far"), id(&far))["version"], 3);
        let copies = [(&one, &first, "found"), (&two, &second, "found"), (&far, &second, "far")];
        for (number, (copy, expected, repo)) in copies.into_iter().enumerate() {
            other.ctl(&["copy", "verify", id(copy), "--repo", repo]);
            let name = format!("again{number}");
            other.ctl(&["disk", "create", &name, "--from", id(copy)]);
            reads(&other, &name, expected);
            wait_filled(&other, &name);
            assert!(contents(&other, &name, SIZE) == *expected, "{name}");
        }
        // Without the first copy the second is still whole.
        daemon.ctl(&["copy", "delete", id(&one), "--yes"]);
        daemon.ctl(&["copy", "verify", id(&two)]);
    }
}

/// Promise: a snapshot that is only there is read where it is, and a disk returns to it.
#[test]
fn a_snapshot_with_a_table_in_parts_is_read_where_it_is_and_returned_to() {
    let daemon = daemon(false);
    let first = contents(&daemon, "data", SIZE);
    daemon.ctl(&["snapshot", "create", "data", "one", "--repo", "backup"]);
    gone(&daemon, "data@one");
    scatter(&daemon, "data", 3);
    reads(&daemon, "data@one", &first);
    daemon.ctl(&["disk", "rollback", "data", "one", "--yes"]);
    reads(&daemon, "data", &first);
    wait_filled(&daemon, "data");
    assert!(contents(&daemon, "data", SIZE) == first);
}

/// Promise: writes, TRIM and zeroes before anything is known of the table win over what the copy has.
#[test]
fn what_is_written_before_the_table_is_read_stays() {
    let daemon = daemon_that_fills_nothing();
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let copy = copied(&daemon, "data@one", "backup");
    let mut expected = contents(&daemon, "data", SIZE);
    daemon.ctl(&["disk", "create", "again", "--from", id(&copy)]);
    let mut client = Client::connect(&daemon.nbd_socket(), "again");
    // The rest of a block that the copy has, and of one that it has not.
    client.write(STEP * 5000 + 100, &[7; 50]);
    client.write(STEP * 5000 + 4096 + 100, &[8; 50]);
    client.trim(40 * MIB, 1 << 20);
    client.flush();
    client.disconnect();
    let at = usize::try_from(STEP * 5000).unwrap() + 100;
    expected[at..at + 50].fill(7);
    expected[at + 4096..at + 4146].fill(8);
    expected[40 << 20..41 << 20].fill(0);
    reads(&daemon, "again", &expected);
    wait::until("the hold point", || daemon.file("hold").exists().then_some(()));
    fs::remove_file(daemon.file("hold")).unwrap();
    wait_filled(&daemon, "again");
    assert!(contents(&daemon, "again", SIZE) == expected);
}

/// The file of the table of a copy.
fn table(daemon: &Daemon, copy: &str) -> PathBuf {
    daemon.file("vault").join("tables").join(copy)
}

/// Promise: a part that is damaged is an error to who needs it and is named; nobody reads anything wrong of it, and
/// no disk is filled of it, nor a copy built on it.
#[test]
fn a_damaged_part_of_a_table_is_an_error_to_who_needs_it_and_is_named() {
    let daemon = daemon_that_fills_nothing();
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let copy = copied(&daemon, "data@one", "backup");
    let expected = contents(&daemon, "data", SIZE);
    let file = table(&daemon, id(&copy));
    let good = fs::read(&file).unwrap();
    let root = header(&daemon.file("vault"), id(&copy))["parts"]["root"].as_u64().unwrap();
    // The last part tells of the last pieces; the root is needed by all; the first part has the chunks.
    for (what, at) in
        [("last", good.len() - 9), ("root", 40), ("chunks", usize::try_from(root).unwrap() + 9)]
    {
        let mut bad = good.clone();
        bad[at] ^= 2;
        fs::write(&file, bad).unwrap();
        let named = format!("tables/{}", id(&copy));
        let verified = daemon.try_ctl(&["copy", "verify", id(&copy)]);
        assert_ne!(verified.code, 0, "{what}");
        assert!([verified.stdout, verified.stderr].concat().contains(&named), "{what}");
        let made = daemon.try_ctl(&["disk", "create", what, "--from", id(&copy)]);
        assert_eq!(made.code, 0, "{what}: {}", made.stderr);
        let mut client = Client::connect(&daemon.nbd_socket(), what);
        let mut read = |block: u64| {
            let ask = Ask { offset: block * 4096, length: 4096, ..Ask::default() };
            client.ask(ask).error
        };
        // The first part of pieces tells of every third of the first 12288 blocks.
        let first = read(0);
        assert_eq!(first == 0, what == "last", "{what}: the first block: {first}");
        assert_ne!(read(16380), 0, "{what}: the last block");
        client.disconnect();
        wait::until("the event", || {
            let events = daemon.json(&["events"]);
            let told = |event: &Value| {
                event["kind"] == "fill.trouble" && event.to_string().contains(&named)
            };
            events.as_array().unwrap().iter().any(told).then_some(())
        });
        daemon.ctl(&["disk", "delete", what, "--yes"]);
        fs::write(&file, &good).unwrap();
    }
    daemon.ctl(&["disk", "create", "right", "--from", id(&copy)]);
    reads(&daemon, "right", &expected);
}
