//! What came from a repository is not sent there again: after a return, and of a disk made of a copy.
//!
//! Absent: what changed otherwise (`copies.rs`).

use std::fs;

use rowd_tests::process::{Daemon, Setup};
use rowd_tests::wait;
use serde_json::{Value, json};

use super::copies::{MIB, contents, copied, id, noise, url, write};
use super::lazy::wait_filled;
use super::life::gone;

const SIZE: u64 = 64 * MIB;

/// A daemon with the repositories `backup` and `other`, and a disk `data` with 24 MiB.
fn daemon(encrypted: bool) -> Daemon {
    let daemon = Setup::default().master_key(&"1".repeat(64)).start();
    fs::create_dir(daemon.file("vault")).unwrap();
    fs::create_dir(daemon.file("other")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    daemon.ctl(&["repo", "add", "other", &format!("file://{}", daemon.path("other"))]);
    let create = ["disk", "create", "data", "--size", "64MiB", "--encrypted"];
    daemon.ctl(&create[..if encrypted { 6 } else { 5 }]);
    write(&daemon, "data", 0, &noise(1, 24 << 20));
    daemon
}

/// A disk that has returned to `data@one`, which is in `backup` only: 5 MiB of it came from there.
fn returned(encrypted: bool) -> (Daemon, String) {
    let daemon = daemon(encrypted);
    daemon.ctl(&["snapshot", "create", "data", "one", "--repo", "backup"]);
    let told = gone(&daemon, "data@one");
    write(&daemon, "data", 3 * MIB, &noise(2, 2 << 20));
    write(&daemon, "data", 17 * MIB, &noise(3, 3 << 20));
    write(&daemon, "data", 40 * MIB, &noise(4, 2 << 20));
    daemon.ctl(&["disk", "rollback", "data", "one", "--yes"]);
    (daemon, told["copy"].as_str().unwrap().to_owned())
}

/// Makes a snapshot and a copy of it. Returns the copy and the bytes of blocks that were sent.
fn sent(daemon: &Daemon, disk: &str, name: &str, repo: &str) -> (Value, u64) {
    wait_filled(daemon, disk);
    daemon.ctl(&["snapshot", "create", disk, name, "--local"]);
    let copy = copied(daemon, &format!("{disk}@{name}"), repo);
    let bytes = copy["detail"]["new_bytes"].as_u64().unwrap();
    let chunks = daemon.file(if repo == "backup" { "vault" } else { repo }).join("chunks");
    assert_eq!(chunks.join(id(&copy)).exists(), bytes > 0, "what is told is what is there");
    (copy, bytes)
}

/// What a copy holds is `expected`, for a daemon that has nothing but the repository too.
fn holds(daemon: &Daemon, copy: &Value, expected: &[u8]) {
    let other = Setup::default().master_key(&"1".repeat(64)).start();
    other.ctl(&["repo", "add", "found", &url(daemon), "--existing"]);
    other.ctl(&["copy", "verify", id(copy)]);
    other.ctl(&["disk", "create", "again", "--from", id(copy), "--full"]);
    wait_filled(&other, "again");
    assert!(contents(&other, "again", SIZE) == expected);
}

/// Promise: the copy after a return sends only what differs from the copy that the disk returned to, be it written
/// while the disk was filled or after; it is whole, also when that copy is gone.
#[test]
fn the_copy_after_a_return_sends_only_what_differs() {
    for encrypted in [false, true] {
        let (daemon, one) = returned(encrypted);
        // In a chunk that is fetched, perhaps before it is; in one that is not; where there was nothing.
        for (offset, seed) in [(18 * MIB + 8192, 7), (9 * MIB, 8), (50 * MIB, 9)] {
            write(&daemon, "data", offset, &noise(seed, 4096));
        }
        let (two, bytes) = sent(&daemon, "data", "two", "backup");
        assert_eq!(
            (bytes, &two["detail"]["base"]),
            (3 * 4096, &json!(one)),
            "encrypted: {encrypted}"
        );
        let expected = contents(&daemon, "data", SIZE);
        holds(&daemon, &two, &expected);
        // The next one follows the changes, as ever.
        write(&daemon, "data", 18 * MIB, &noise(10, 8192));
        assert_eq!(sent(&daemon, "data", "three", "backup").1, 8192);
        daemon.ctl(&["snapshot", "delete", "data@one", "--yes"]);
        wait::until("the end of the first copy", || {
            let listed = daemon.json(&["copy", "list"]);
            listed.as_array().unwrap().iter().all(|copy| copy["id"] != *one).then_some(())
        });
        holds(&daemon, &two, &expected);
    }
}

/// Promise: where nothing was written nothing is sent. In another repository, and when the copy is gone or damaged,
/// all that is new there is sent.
#[test]
fn a_return_without_writes_sends_nothing_where_it_came_from_and_all_elsewhere() {
    let (daemon, _) = returned(false);
    let (two, bytes) = sent(&daemon, "data", "two", "backup");
    assert_eq!(bytes, 0);
    holds(&daemon, &two, &contents(&daemon, "data", SIZE));
    let (_, bytes) = sent(&daemon, "data", "three", "other");
    assert_eq!(bytes, 24 * MIB);
    let (daemon, one) = returned(false);
    wait_filled(&daemon, "data");
    let table = daemon.file("vault").join("tables").join(one);
    let good = fs::read(&table).unwrap();
    let mut bad = good.clone();
    bad[9] ^= 1;
    fs::write(&table, bad).unwrap();
    // Neither a base nor anything else.
    let (two, bytes) = sent(&daemon, "data", "two", "backup");
    assert_eq!(bytes, 24 * MIB);
    fs::write(&table, good).unwrap();
    holds(&daemon, &two, &contents(&daemon, "data", SIZE));
}

/// Promise: a disk made of a copy sends what was written to it.
#[test]
fn the_first_copy_of_a_disk_made_of_a_copy_sends_what_was_written_to_it() {
    let daemon = daemon(false);
    daemon.ctl(&["snapshot", "create", "data", "one", "--local"]);
    let one = copied(&daemon, "data@one", "backup");
    daemon.ctl(&["disk", "create", "again", "--from", id(&one)]);
    write(&daemon, "again", 5 * MIB, &noise(5, 4096));
    write(&daemon, "again", 60 * MIB, &noise(6, 4096));
    let (copy, bytes) = sent(&daemon, "again", "own", "backup");
    assert_eq!((bytes, &copy["detail"]["base"]), (2 * 4096, &Value::Null));
    let expected = contents(&daemon, "again", SIZE);
    daemon.ctl(&["copy", "delete", id(&one), "--yes"]);
    holds(&daemon, &copy, &expected);
}
