//! Copies from one repository to another: only what is not there, complete in themselves, whatever becomes of the
//! first.
//!
//! Absent: how copies are made of snapshots (`copies.rs`).

use std::fs;
use std::path::Path;

use rowd_tests::process::{Daemon, Setup};
use rowd_tests::wait;
use serde_json::{Value, json};

use super::copies::{contents, copied, daemon, id, noise, url, write};
use super::server::{S3Server, add, files};

/// A daemon that has nothing but the repository `backup` of another one, and one of its own, `far`.
fn relay(of: &Daemon, setup: Setup) -> Daemon {
    let daemon = setup.start();
    fs::create_dir(daemon.file("far")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(of), "--existing"]);
    daemon.ctl(&["repo", "add", "far", &far(&daemon)]);
    daemon
}

fn far(daemon: &Daemon) -> String {
    format!("file://{}", daemon.path("far"))
}

fn size(dir: &Path) -> u64 {
    files(dir).iter().map(|file| fs::metadata(file).unwrap().len()).sum()
}

fn snapshot_and_copy(daemon: &Daemon, name: &str) -> Value {
    daemon.ctl(&["snapshot", "create", "data", name, "--tag", "colour=red"]);
    copied(daemon, &format!("data@{name}"), "backup")
}

fn wait_for_jobs(daemon: &Daemon) {
    wait::until("the end of all jobs", || {
        let jobs = daemon.json(&["job", "list"]);
        jobs.as_array().unwrap().iter().all(|job| job["state"] != "running").then_some(())
    });
}

/// A copy of a copy has an id, a name, a description and tags of its own. The second holds only what changed. Both
/// are whole when the first repository, the disk and its snapshots are gone.
#[test]
fn copies_go_to_another_repository_by_what_changed_and_outlive_the_first() {
    let (server, daemon) = (S3Server::start(), daemon());
    write(&daemon, "data", 0, &noise(1, 9 << 20));
    let first = snapshot_and_copy(&daemon, "one");
    for at in 0..64 {
        write(&daemon, "data", (at * 128) << 10, &noise(100 + at, 4096));
    }
    let second = snapshot_and_copy(&daemon, "two");
    // Neither the snapshot nor its disk is on the daemon that copies.
    let relay = relay(&daemon, Setup::default());
    add(&relay, "s3", "host", &server.endpoint());
    let about = ["--name", "monday", "--description", "off site", "--tag", "k=v"];
    let far_one = relay
        .json(&[&["snapshot", "copy", id(&first), "--to", "s3", "--wait"], &about[..]].concat());
    let detail = &far_one["detail"];
    assert_ne!(far_one["id"], first["id"]);
    assert_eq!(
        (&detail["snapshot_name"], &detail["description"], &detail["tags"], &detail["source"]),
        (&json!("monday"), &json!("off site"), &json!({"k": "v"}), &first["id"])
    );
    assert_eq!((&detail["new_bytes"], &detail["base"]), (&json!(9 << 20), &Value::Null));
    let before = size(&server.objects());
    // By the id of the snapshot, which is in the first repository only; no tag comes along.
    let snapshot = second["snapshot_id"].as_str().unwrap();
    let far_two = copied(&relay, snapshot, "s3");
    let detail = &far_two["detail"];
    assert_eq!((&detail["snapshot_name"], &detail["tags"]), (&json!("two"), &json!({})));
    assert_eq!((&detail["new_bytes"], &detail["base"]), (&json!(64 * 4096), &far_one["id"]));
    let sent = size(&server.objects()) - before;
    assert!(sent < 64 * 4096 * 102 / 100 + (16 << 10), "{sent} bytes for 256 KiB of changes");
    let expected = ["data@one", "data@two"].map(|name| contents(&daemon, name, 64 << 20));
    drop((daemon, relay));
    let last = Daemon::new();
    add(&last, "found", "host", &server.endpoint());
    for (copy, bytes) in [&far_one, &far_two].into_iter().zip(expected) {
        last.ctl(&["copy", "verify", id(copy)]);
        last.ctl(&["disk", "create", id(copy), "--from", id(copy)]);
        assert!(contents(&last, id(copy), 64 << 20) == bytes, "{copy}");
    }
}

/// A copy made from the snapshot itself later on is built on what came from the other repository.
#[test]
fn copies_of_snapshots_and_copies_of_copies_are_one_chain() {
    let daemon = daemon();
    fs::create_dir(daemon.file("far")).unwrap();
    daemon.ctl(&["repo", "add", "far", &far(&daemon)]);
    write(&daemon, "data", 0, &noise(1, 5 << 20));
    let first = snapshot_and_copy(&daemon, "one");
    let far_one = copied(&daemon, id(&first), "far");
    write(&daemon, "data", 1 << 20, &noise(2, 8192));
    daemon.ctl(&["snapshot", "create", "data", "two"]);
    let far_two = copied(&daemon, "data@two", "far");
    assert_eq!(
        (&far_two["detail"]["base"], &far_two["detail"]["new_bytes"]),
        (&far_one["id"], &json!(8192))
    );
    // And back: the first repository lacks the second snapshot only.
    let back = copied(&daemon, id(&far_two), "backup");
    assert_eq!(back["detail"]["new_bytes"], 8192);
    daemon.ctl(&["copy", "delete", id(&far_one), "--yes"]);
    daemon.ctl(&["copy", "delete", id(&first), "--yes"]);
    wait_for_jobs(&daemon);
    daemon.ctl(&["copy", "verify", id(&far_two)]);
    daemon.ctl(&["copy", "verify", id(&back)]);
}

/// A daemon without the master key takes copies along. They are as unreadable as before, and one that has the
/// key reads them.
#[test]
fn an_encrypted_copy_is_taken_along_without_its_key() {
    let key = "1".repeat(64);
    let daemon = Setup::default().master_key(&key).start();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB", "--encrypted"]);
    write(&daemon, "data", 0, &noise(1, 5 << 20));
    let first = snapshot_and_copy(&daemon, "one");
    write(&daemon, "data", 1 << 20, &noise(2, 8192));
    let second = snapshot_and_copy(&daemon, "two");
    let relay = relay(&daemon, Setup::default());
    copied(&relay, id(&first), "far");
    let copy = copied(&relay, id(&second), "far");
    assert_eq!(copy["detail"]["new_bytes"], 8192);
    assert_eq!(copy["detail"]["master"], second["detail"]["master"]);
    relay.json_error(1, &["disk", "create", "again", "--from", id(&copy)]);
    let last = Setup::default().master_key(&key).start();
    last.ctl(&["repo", "add", "far", &far(&relay), "--existing"]);
    last.ctl(&["disk", "create", "again", "--from", id(&copy)]);
    assert_eq!(last.json(&["disk", "show", "again"])["encrypted"], true);
    assert!(contents(&last, "again", 64 << 20) == contents(&daemon, "data@two", 64 << 20));
}

/// Begins a slow copy of `copy` from `backup` to `far`, and waits for its first chunk.
fn slowly(relay: &Daemon, copy: &Value) -> Value {
    relay.ctl(&["repo", "remove", "far", "--yes"]);
    relay.ctl(&["repo", "add", "far", &far(relay), "--bandwidth", "16MiB"]);
    let begun = relay.json(&["snapshot", "copy", id(copy), "--to", "far"]);
    assert_eq!(begun["status"], "progressing");
    wait::until("the first chunk", || {
        let all = files(&relay.file("far"));
        all.iter().any(|file| file.display().to_string().contains("chunks/")).then_some(())
    });
    begun
}

/// The source is deleted in the middle of it, by another daemon: the copy is completed, and only then are the chunks
/// of the source freed.
#[test]
fn a_copy_is_completed_when_its_source_is_deleted_meanwhile() {
    let daemon = daemon();
    write(&daemon, "data", 0, &noise(1, 40 << 20));
    let first = snapshot_and_copy(&daemon, "one");
    let relay = relay(&daemon, Setup::default());
    let begun = slowly(&relay, &first);
    daemon.ctl(&["copy", "delete", id(&first), "--yes"]);
    relay.json_error(20, &["copy", "show", id(&first)]);
    let done = relay.json(&["copy", "wait", id(&begun)]);
    assert_eq!(done["status"], "accomplished");
    relay.ctl(&["copy", "verify", id(&begun)]);
    wait::until("an empty source", || (files(&daemon.file("vault")).len() == 1).then_some(()));
    relay.json_error(20, &["snapshot", "copy", id(&first), "--to", "far"]);
}

/// Deleting a copy under way ends it: nothing is left in the target, nor a mark in the source, which stays whole.
#[test]
fn a_cancelled_copy_of_a_copy_leaves_nothing() {
    let daemon = daemon();
    write(&daemon, "data", 0, &noise(1, 40 << 20));
    let first = snapshot_and_copy(&daemon, "one");
    let before = files(&daemon.file("vault"));
    let relay = relay(&daemon, Setup::default());
    let begun = slowly(&relay, &first);
    for args in [
        &["snapshot", "copy", id(&first), "--to", "far"][..],
        &["repo", "remove", "backup", "--yes"],
        &["repo", "remove", "far", "--yes"],
    ] {
        relay.json_error(21, args);
    }
    relay.ctl(&["copy", "delete", id(&begun), "--yes"]);
    wait::until("an empty target", || (files(&relay.file("far")).len() == 1).then_some(()));
    wait_for_jobs(&relay);
    assert_eq!(files(&daemon.file("vault")), before);
    relay.ctl(&["copy", "verify", id(&first)]);
    // Nothing is in the way of another one.
    relay.ctl(&["repo", "remove", "far", "--yes"]);
    relay.ctl(&["repo", "add", "far", &far(&relay)]);
    let again = copied(&relay, id(&first), "far");
    relay.ctl(&["copy", "verify", id(&again)]);
}

/// Killed at every step, it goes on at the next start, also when the source was deleted in between.
#[test]
fn a_copy_of_a_copy_goes_on_wherever_the_daemon_was_killed() {
    let daemon = daemon();
    write(&daemon, "data", 0, &noise(1, 20 << 20));
    for point in ["relay.marked", "relay.sent", "copy.table", "copy.committed"] {
        let first = snapshot_and_copy(&daemon, point);
        let faulty = Setup::default().program(env!("CARGO_BIN_EXE_rowd-faulty"));
        let mut relay = relay(&daemon, faulty.env("ROWD_FAIL_POINT", &format!("{point}:1")));
        // The answer may or may not come before the end.
        relay.try_ctl(&["snapshot", "copy", id(&first), "--to", "far"]);
        relay.wait_ended();
        daemon.ctl(&["copy", "delete", id(&first), "--yes"]);
        wait_for_jobs(&daemon);
        relay.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "copy.marked:1000000"));
        relay.start();
        let copy = wait::until("the end of the copy", || {
            let copies = relay.json(&["copy", "list", "--repo", "far"]);
            let copy = copies.as_array().unwrap().first()?;
            assert_ne!(copy["status"], "failed", "{point}: {copy}");
            (copy["status"] == "accomplished").then(|| copy.clone())
        });
        relay.ctl(&["copy", "verify", id(&copy)]);
        relay.ctl(&["disk", "create", "again", "--from", id(&copy)]);
        let expected = contents(&daemon, &format!("data@{point}"), 64 << 20);
        assert!(contents(&relay, "again", 64 << 20) == expected, "{point}");
        wait_for_jobs(&relay);
        let left = files(&daemon.file("vault"));
        assert_eq!(left.len(), 1, "{point}: {left:?}");
    }
}

/// A damaged chunk is not passed on: the copy fails and names it, and goes on when it is mended.
#[test]
fn damage_is_not_passed_on() {
    let daemon = daemon();
    write(&daemon, "data", 0, &noise(1, 9 << 20));
    let first = snapshot_and_copy(&daemon, "one");
    let relay = relay(&daemon, Setup::default());
    let chunk = files(&daemon.file("vault").join("chunks")).remove(1);
    let good = fs::read(&chunk).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 4;
    fs::write(&chunk, bad).unwrap();
    let failed = relay.try_ctl(&["snapshot", "copy", id(&first), "--to", "far", "--wait"]);
    let name = chunk.file_name().unwrap().to_string_lossy().into_owned();
    assert!(failed.code != 0 && failed.stdout.contains(&name), "{failed}");
    let sent = files(&relay.file("far"));
    assert!(sent.iter().all(|file| !file.display().to_string().contains("copies/")), "{sent:?}");
    fs::write(&chunk, good).unwrap();
    let copy = relay.json(&["copy", "list", "--repo", "far"]).as_array().unwrap()[0].clone();
    relay.ctl(&["copy", "retry", id(&copy)]);
    assert_eq!(relay.json(&["copy", "wait", id(&copy)])["status"], "accomplished");
    relay.ctl(&["copy", "verify", id(&copy)]);
}

/// What cannot be meant is refused in words.
#[test]
fn copies_of_copies_that_make_no_sense_are_refused() {
    let daemon = daemon();
    let first = snapshot_and_copy(&daemon, "one");
    fs::create_dir(daemon.file("far")).unwrap();
    daemon.ctl(&["repo", "add", "far", &far(&daemon)]);
    for (code, args) in [
        (2, &["snapshot", "copy", id(&first), "--to", "backup"][..]),
        (20, &["snapshot", "copy", "c-none", "--to", "far"]),
        (20, &["snapshot", "copy", "s-none", "--to", "far"]),
        (20, &["snapshot", "copy", id(&first), "--to", "none"]),
        (20, &["snapshot", "copy", id(&first), "--from", "none", "--to", "far"]),
        (20, &["snapshot", "copy", id(&first), "--from", "far", "--to", "far"]),
        (2, &["snapshot", "copy", id(&first), "--to", "far", "--name", "x"]),
        (2, &["snapshot", "copy", "data@one", "--to", "far", "--name", "automatic"]),
    ] {
        daemon.json_error(code, args);
    }
    assert_eq!(daemon.json(&["copy", "list", "--repo", "far"]), json!([]));
}
