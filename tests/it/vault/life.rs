//! Snapshots that are kept in a repository: on their way there, at once usable or not, and without the pool.
//!
//! Absent: the end of instant access by its time, which takes a day (`engine/presence.rs` has it as a unit test).

use std::fs;

use rowd_proto::{DiskCreate, ErrorKind};
use rowd_tests::client::Client;
use rowd_tests::crash::control::{Control, Failure};
use rowd_tests::process::{Daemon, SMALL};
use rowd_tests::wait;
use serde_json::{Value, json};

use super::copies::{MIB, contents, daemon, id, noise, url, write};
use super::server::files;

const DISK: u64 = 64 << 20;

/// As [`daemon`], with the repository under the name `slow` and at so many bytes per second.
fn slow(rate: &str) -> Daemon {
    let daemon = daemon();
    daemon.ctl(&["repo", "remove", "backup", "--yes"]);
    daemon.ctl(&["repo", "add", "slow", &url(&daemon), "--bandwidth", rate]);
    daemon
}

fn show(daemon: &Daemon, snapshot: &str) -> Value {
    daemon.json(&["snapshot", "show", snapshot])
}

/// A snapshot that has left the pool.
#[track_caller]
pub fn gone(daemon: &Daemon, snapshot: &str) -> Value {
    daemon.ctl(&["snapshot", "wait", snapshot]);
    wait::until("a snapshot that has left the pool", || {
        let told = show(daemon, snapshot);
        (told["presence"] == json!(["repository"])).then_some(told)
    })
}

/// What a disk of a snapshot holds, wherever the snapshot is.
fn restored(daemon: &Daemon, snapshot: &str, size: u64) -> Vec<u8> {
    daemon.ctl(&["disk", "create", "restored", "--from", snapshot]);
    wait::until("a disk that has its contents", || {
        let jobs = daemon.json(&["job", "list"]);
        let filling = |job: &Value| job["kind"] == "fill" && job["state"] == "running";
        (!jobs.as_array().unwrap().iter().any(filling)).then_some(())
    });
    let bytes = contents(daemon, "restored", size);
    daemon.ctl(&["disk", "delete", "restored", "--yes"]);
    bytes
}

fn empty(daemon: &Daemon) {
    wait::until("an empty repository", || (files(&daemon.file("vault")).len() == 1).then_some(()));
}

/// Promise: without instant access the answer comes at once; until the copy is complete the snapshot serves nothing
/// but the copy; then it is in the repository alone, the same snapshot as before.
#[test]
fn a_snapshot_is_of_no_use_until_it_is_copied_and_then_it_is_in_the_repository_alone() {
    let daemon = slow("8MiB");
    let first = noise(1, 24 << 20);
    write(&daemon, "data", 0, &first);
    let args = ["snapshot", "create", "data", "one", "--repo", "slow", "--tag", "k=v"];
    let made = daemon.json(&[&args[..], &["--description", "first"]].concat());
    assert_eq!(
        (&made["status"], &made["instant_access"], &made["presence"], &made["repo"]),
        (&json!("progressing"), &json!(false), &json!(["pool"]), &json!("slow"))
    );
    assert_eq!(daemon.json(&["snapshot", "list", "data"])[0]["tags"], json!({"k": "v"}));
    write(&daemon, "data", 0, &noise(2, 24 << 20));
    for args in [
        &["disk", "create", "new", "--from", "data@one"][..],
        &["disk", "rollback", "data", "one", "--yes"],
        &["image", "create", "template", "--from", "data@one"],
    ] {
        let error = daemon.json_error(15, args);
        assert!(error["message"].as_str().unwrap().contains("is being copied to slow"), "{error}");
        assert!(error["hint"].as_str().unwrap().contains("snapshot wait data@one"), "{error}");
    }
    assert!(Client::try_connect(&daemon.nbd_socket(), "data@one", true, &[]).is_err());
    for args in [&["--local"][..], &["--repo", "slow"], &["--repo", "slow", "--instant-access"]] {
        let error = daemon.json_error(16, &[&["snapshot", "create", "data", "two"], args].concat());
        assert_eq!(error["kind"], "still_copying");
        assert!(error["message"].as_str().unwrap().contains(" %"), "{error}");
    }
    daemon.json_error(16, &["group", "create", "data"]);
    // Another disk is another matter.
    daemon.ctl(&["disk", "create", "other", "--size", "1MiB"]);
    daemon.ctl(&["snapshot", "create", "other", "one"]);
    let (mut last, mut remaining) = (0, false);
    wait::until("progress", || {
        let told = show(&daemon, "data@one");
        let progress = told["progress"].as_u64().unwrap();
        assert!(progress >= last, "it goes back from {last} to {progress}");
        assert_eq!(progress == 100, told["status"] == "accomplished");
        remaining |= told["remaining_s"].is_u64();
        last = progress;
        (progress == 100).then_some(())
    });
    assert!(remaining, "the time that is left is told");
    let told = gone(&daemon, "data@one");
    for field in ["id", "name", "description", "tags", "created_at", "size", "copy"] {
        assert_eq!(told[field], made[field], "{field}");
    }
    assert_eq!((&told["exclusive_bytes"], &told["stored_bytes"]), (&json!(0), &json!(0)));
    daemon.wait_reclaimed();
    let head = daemon.json(&["disk", "show", "data"])["mapped_bytes"].as_u64().unwrap();
    wait::until("a pool without the snapshot", || {
        (daemon.status("used_bytes") == head).then_some(())
    });
    let error = daemon.json_error(15, &["image", "create", "template", "--from", "data@one"]);
    assert!(error["message"].as_str().unwrap().contains("only in repository slow"), "{error}");
    assert!(restored(&daemon, "data@one", DISK)[..24 << 20] == first[..]);
    daemon.ctl(&["snapshot", "verify", "data@one"]);
    daemon.ctl(&["snapshot", "set", "data@one", "--name", "first"]);
    daemon.ctl(&["tag", "set", "data@first", "more=yes"]);
    assert_eq!(show(&daemon, "data@first")["tags"], json!({"k": "v", "more": "yes"}));
}

/// Promise: with instant access a rollback at 0 % works, and the copy is right all the same; a second snapshot can
/// be made; instant access ends when somebody says so, and not before the copy is complete.
#[test]
fn a_disk_goes_back_to_a_snapshot_that_is_not_copied_yet_and_the_copy_is_right() {
    let mut daemon = slow("8MiB");
    let first = noise(1, 24 << 20);
    write(&daemon, "data", 0, &first);
    let create = ["snapshot", "create", "data", "one", "--repo", "slow", "--instant-access"];
    let made = daemon.json(&create);
    assert_eq!(
        (&made["progress"], &made["instant_access"], &made["status"]),
        (&json!(0), &json!(true), &json!("progressing"))
    );
    write(&daemon, "data", 0, &noise(2, 24 << 20));
    daemon.ctl(&["disk", "rollback", "data", "one", "--yes"]);
    assert!(contents(&daemon, "data", DISK)[..24 << 20] == first[..]);
    daemon.ctl(&["disk", "create", "clone", "--from", "data@one"]);
    write(&daemon, "data", 0, &noise(3, 24 << 20));
    daemon.ctl(&[
        "snapshot",
        "create",
        "data",
        "two",
        "--repo",
        "slow",
        "--instant-access",
        "none",
    ]);
    let error = daemon.json_error(15, &["snapshot", "set", "data@one", "--no-instant-access"]);
    assert!(error["message"].as_str().unwrap().contains("cannot end yet"), "{error}");
    let told = show(&daemon, "data@one");
    assert_eq!(told["status"], "progressing", "it was faster than this test: {told}");
    daemon.crash();
    daemon.ctl(&["snapshot", "wait", "data@one"]);
    daemon.ctl(&["snapshot", "wait", "data@two"]);
    let told = show(&daemon, "data@one");
    assert_eq!(told["presence"], json!(["pool", "repository"]));
    assert_eq!(until(&told) - seconds(&told["created_at"]), 24 * 3600);
    assert_eq!(show(&daemon, "data@two")["instant_access_until"], Value::Null);
    daemon.ctl(&["snapshot", "set", "data@one", "--instant-access", "3"]);
    let told = show(&daemon, "data@one");
    assert!(
        (2 * 24 * 3600..=3 * 24 * 3600 + 60)
            .contains(&(until(&told) - seconds(&told["created_at"])))
    );
    // Used by a client and held by an image: it leaves when they are gone.
    let reader = Client::connect(&daemon.nbd_socket(), "data@two");
    daemon.ctl(&["image", "create", "template", "--from", "data@one"]);
    for name in ["data@one", "data@two"] {
        daemon.ctl(&["snapshot", "set", name, "--no-instant-access"]);
        let told = show(&daemon, name);
        assert_eq!(
            (&told["presence"], &told["instant_access"]),
            (&json!(["pool", "repository"]), &json!(false))
        );
    }
    reader.disconnect();
    daemon.ctl(&["image", "delete", "template", "--yes"]);
    gone(&daemon, "data@one");
    gone(&daemon, "data@two");
    daemon.json_error(15, &["snapshot", "set", "data@one", "--instant-access"]);
    // The clone stays whole, though where it came from is no longer here.
    assert!(contents(&daemon, "clone", DISK)[..24 << 20] == first[..]);
    daemon.json_error(15, &["disk", "reinit", "clone", "--yes"]);
    assert!(restored(&daemon, "data@one", DISK)[..24 << 20] == first[..]);
    assert!(restored(&daemon, "data@two", DISK)[..24 << 20] == noise(3, 24 << 20)[..]);
}

fn seconds(time: &Value) -> i64 {
    let time: rowd_proto::Time = serde_json::from_value(time.clone()).unwrap();
    i64::try_from(time.unix()).unwrap()
}

fn until(snapshot: &Value) -> i64 {
    seconds(&snapshot["instant_access_until"])
}

/// Promise: what is sent follows the changes, also when the snapshot before has left the pool, and whatever happened
/// in between: scattered writes, zeros, a smaller and a larger disk, a rollback, deleted snapshots.
#[test]
fn copies_stay_incremental_when_the_snapshot_before_has_left_the_pool() {
    let daemon = daemon();
    let create = |name: &str| {
        let args = ["snapshot", "create", "data", name, "--repo", "backup", "--instant-access"];
        daemon.ctl(&[&args[..], &["none", "--wait"]].concat());
        let expected = contents(&daemon, &format!("data@{name}"), DISK);
        daemon.ctl(&["snapshot", "set", &format!("data@{name}"), "--no-instant-access"]);
        let told = gone(&daemon, &format!("data@{name}"));
        daemon.wait_reclaimed();
        let copy = daemon.json(&["copy", "show", told["copy"].as_str().unwrap()]);
        (copy["detail"]["new_bytes"].as_u64().unwrap(), expected)
    };
    write(&daemon, "data", 0, &noise(1, 20 << 20));
    let mut all = vec![("one", create("one").1)];
    for at in 0..64 {
        write(&daemon, "data", (at * 256) << 10, &noise(100 + at, 4096));
    }
    daemon.ctl(&["snapshot", "create", "data", "between", "--local"]);
    write(&daemon, "data", 30 * MIB, &noise(5, 1 << 20));
    daemon.ctl(&["snapshot", "delete", "data@between", "--yes"]);
    let mut client = Client::connect(&daemon.nbd_socket(), "data");
    client.trim(2 * MIB, 4 << 20);
    client.flush();
    client.disconnect();
    let (sent, expected) = create("two");
    // Sixteen of the blocks were trimmed again.
    assert_eq!(sent, (64 - 16) * 4096 + MIB);
    all.push(("two", expected));
    daemon.ctl(&["disk", "resize", "data", "18MiB", "--yes"]);
    daemon.ctl(&["disk", "resize", "data", "64MiB"]);
    write(&daemon, "data", 19 * MIB, &noise(6, 8192));
    daemon.ctl(&["snapshot", "create", "data", "kept", "--local"]);
    write(&daemon, "data", 40 * MIB, &noise(7, 8192));
    let (sent, expected) = create("three");
    assert_eq!(sent, 2 * 8192);
    all.push(("three", expected));
    // Back behind the last copy: the one before it serves.
    daemon.ctl(&["disk", "rollback", "data", "kept", "--yes"]);
    write(&daemon, "data", 50 * MIB, &noise(8, 4096));
    let (sent, expected) = create("four");
    assert_eq!(sent, 8192 + 4096);
    all.push(("four", expected));
    for (name, expected) in all {
        assert!(restored(&daemon, &format!("data@{name}"), DISK) == expected, "{name}");
        daemon.ctl(&["snapshot", "verify", &format!("data@{name}")]);
    }
}

/// Promise: deleting a snapshot deletes its copy, be it complete, under way, failed, or out of reach.
#[test]
fn a_snapshot_goes_with_its_copy_also_when_the_repository_is_out_of_reach() {
    let mut daemon = slow("2MiB");
    write(&daemon, "data", 0, &noise(1, 4 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one", "--repo", "slow", "--wait"]);
    gone(&daemon, "data@one");
    daemon.ctl(&["snapshot", "delete", "data@one", "--yes"]);
    empty(&daemon);
    // Under way: it is cancelled.
    write(&daemon, "data", 0, &noise(2, 40 << 20));
    daemon.ctl(&["snapshot", "create", "data", "two", "--repo", "slow"]);
    wait::until("the mark of the upload", || {
        let all = files(&daemon.file("vault"));
        all.iter().any(|file| file.display().to_string().contains("uploads/")).then_some(())
    });
    daemon.ctl(&["snapshot", "delete", "data@two", "--yes"]);
    daemon.json_error(20, &["snapshot", "show", "data@two"]);
    assert_eq!(daemon.json(&["copy", "list"]), json!([]));
    empty(&daemon);
    // Out of reach: it is gone here at once, and there when it can be, whatever happens in between.
    write(&daemon, "data", 0, &noise(3, 1 << 20));
    write(&daemon, "data", MIB, &vec![0; 63 << 20]);
    daemon.ctl(&["snapshot", "create", "data", "three", "--repo", "slow", "--wait"]);
    gone(&daemon, "data@three");
    let away = daemon.file("away");
    fs::rename(daemon.file("vault"), &away).unwrap();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["snapshot", "delete", "data@three", "--yes"]);
    daemon.json_error(20, &["snapshot", "show", "data@three"]);
    wait::until("a delete that failed", || {
        let jobs = daemon.json(&["job", "list"]);
        let failed = |job: &Value| job["kind"] == "delete" && job["state"] == "failed";
        jobs.as_array().unwrap().iter().any(failed).then_some(())
    });
    daemon.kill();
    fs::remove_dir(daemon.file("vault")).unwrap();
    fs::rename(&away, daemon.file("vault")).unwrap();
    daemon.start();
    empty(&daemon);
}

/// Promise: more snapshots can be made for a repository than are copied at a time; those that wait go at once when
/// they are deleted, and one whose job somebody ends can be tried again.
#[test]
fn copies_that_wait_for_their_turn_can_be_deleted_ended_and_tried_again() {
    let daemon = slow("4MiB");
    for number in 0..6 {
        let disk = format!("disk{number}");
        daemon.ctl(&["disk", "create", &disk, "--size", "16MiB"]);
        write(&daemon, &disk, 0, &noise(number + 1, 4 << 20));
        daemon.ctl(&["snapshot", "create", &disk, "one", "--repo", "slow"]);
    }
    daemon.ctl(&["snapshot", "delete", "disk5@one", "--yes"]);
    let jobs = daemon.json(&["job", "list"]);
    let copy = show(&daemon, "disk4@one")["copy"].clone();
    let job = jobs.as_array().unwrap().iter().find(|job| job["object"] == copy).unwrap();
    daemon.ctl(&["job", "cancel", job["id"].as_str().unwrap()]);
    wait::until("the end of the job", || {
        (show(&daemon, "disk4@one")["status"] == "failed").then_some(())
    });
    daemon.ctl(&["copy", "retry", copy.as_str().unwrap()]);
    for number in 0..5 {
        gone(&daemon, &format!("disk{number}@one"));
    }
    let listed = daemon.json(&["copy", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 5);
    assert!(restored(&daemon, "disk4@one", 16 << 20)[..4 << 20] == noise(5, 4 << 20)[..]);
}

/// Promise: a copy that fails says why and how to go on; meanwhile the snapshot can be given instant access, and
/// others can be made.
#[test]
fn a_snapshot_whose_copy_fails_says_why_and_goes_on_when_asked() {
    let mut daemon = daemon();
    write(&daemon, "data", 0, &noise(1, 4 << 20));
    let away = daemon.file("away");
    fs::rename(daemon.file("vault"), &away).unwrap();
    fs::create_dir(daemon.file("vault")).unwrap();
    let failed =
        daemon.try_ctl(&["snapshot", "create", "data", "one", "--repo", "backup", "--wait"]);
    failed.fails_with(15).says(&["data@one failed", "no repository at", "rowctl copy retry c-"]);
    let told = show(&daemon, "data@one");
    assert_eq!((&told["status"], &told["presence"]), (&json!("failed"), &json!(["pool"])));
    let error = daemon.json_error(15, &["disk", "create", "new", "--from", "data@one"]);
    assert!(error["message"].as_str().unwrap().contains("could not be copied"), "{error}");
    daemon.ctl(&["snapshot", "create", "data", "local", "--local"]);
    daemon.ctl(&["snapshot", "set", "data@one", "--instant-access"]);
    daemon.ctl(&["disk", "create", "new", "--from", "data@one"]);
    let error = daemon.json_error(15, &["snapshot", "set", "data@one", "--no-instant-access"]);
    assert!(error["hint"].as_str().unwrap().contains("rowctl copy retry c-"), "{error}");
    daemon.crash();
    assert_eq!(show(&daemon, "data@one")["status"], "failed");
    fs::remove_dir(daemon.file("vault")).unwrap();
    fs::rename(&away, daemon.file("vault")).unwrap();
    daemon.ctl(&["copy", "retry", id(&json!({"id": told["copy"]}))]);
    daemon.ctl(&["snapshot", "wait", "data@one"]);
    daemon.ctl(&["snapshot", "set", "data@one", "--no-instant-access"]);
    gone(&daemon, "data@one");
    assert!(restored(&daemon, "data@one", DISK)[..4 << 20] == noise(1, 4 << 20)[..]);
}

/// Promise: a default repository is where snapshots go unless somebody says otherwise, after a restart too.
#[test]
fn a_default_repository_is_used_unless_somebody_says_otherwise() {
    let mut daemon = daemon();
    let created = |daemon: &Daemon, args: &[&str]| {
        let made = daemon.json(&[&["snapshot", "create", "data"], args].concat());
        let name = made["id"].as_str().unwrap().to_owned();
        daemon.ctl(&["snapshot", "wait", &name]);
        made["repo"].clone()
    };
    assert_eq!(created(&daemon, &[]), Value::Null);
    daemon.json_error(2, &["snapshot", "create", "data", "--instant-access"]);
    daemon.ctl(&["repo", "set", "backup", "--default"]);
    fs::create_dir(daemon.file("second")).unwrap();
    let second = format!("file://{}", daemon.path("second"));
    daemon.ctl(&["repo", "add", "second", &second]);
    daemon.crash();
    assert_eq!(created(&daemon, &[]), "backup");
    assert_eq!(created(&daemon, &["--local"]), Value::Null);
    assert_eq!(created(&daemon, &["--repo", "second"]), "second");
    daemon.ctl(&["repo", "set", "second", "--default"]);
    assert_eq!(created(&daemon, &["--instant-access"]), "second");
    assert_eq!(daemon.json(&["repo", "show", "backup"])["default"], false);
    daemon.ctl(&["repo", "set", "second", "--no-default"]);
    assert_eq!(created(&daemon, &[]), Value::Null);
    daemon.json_error(21, &["repo", "remove", "second", "--yes"]);
}

/// What cannot be meant is refused in words, and changes nothing.
#[test]
fn a_copy_that_is_all_there_is_of_a_snapshot_is_not_deleted_and_odd_wishes_are_refused() {
    let daemon = daemon();
    write(&daemon, "data", 0, &noise(1, 1 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one", "--repo", "backup", "--wait"]);
    let told = gone(&daemon, "data@one");
    let error = daemon.json_error(21, &["copy", "delete", told["copy"].as_str().unwrap(), "--yes"]);
    assert!(error["message"].as_str().unwrap().contains("all there is of snapshot data@one"));
    let access = ["snapshot", "create", "data", "two", "--repo", "backup", "--instant-access"];
    for (code, args) in [(2, &["0"][..]), (2, &["65537"]), (2, &["soon"]), (2, &["--local"])] {
        daemon.json_error(code, &[&access[..], args].concat());
    }
    daemon.json_error(20, &["snapshot", "create", "data", "two", "--repo", "none"]);
    daemon.json_error(2, &["snapshot", "copy", "data@one", "--to", "backup"]);
    fs::create_dir(daemon.file("second")).unwrap();
    daemon.ctl(&["repo", "add", "second", &format!("file://{}", daemon.path("second"))]);
    daemon.ctl(&["snapshot", "copy", "data@one", "--to", "second", "--wait"]);
    daemon.json_error(15, &["snapshot", "diff", "--from-empty", "data@one"]);
    // A copy beside is none of the snapshot's business; its own, deleted, leaves it in the pool for good.
    daemon.ctl(&[&access[..], &["65536", "--wait"]].concat());
    let two = show(&daemon, "data@two");
    daemon.ctl(&["copy", "delete", two["copy"].as_str().unwrap(), "--yes"]);
    let stays = show(&daemon, "data@two");
    assert_eq!(
        (&stays["presence"], &stays["repo"], &stays["status"]),
        (&json!(["pool"]), &Value::Null, &json!("accomplished"))
    );
    daemon.json_error(15, &["snapshot", "verify", "data@two"]);
    daemon.json_error(15, &["snapshot", "set", "data@two", "--no-instant-access"]);
    daemon.ctl(&["disk", "rollback", "data", "two", "--yes"]);
    wait::until("the end of the copy", || {
        (daemon.json(&["copy", "list"]).as_array().unwrap().len() == 2).then_some(())
    });
}

/// Promise: the members of a group go to the repository like any snapshot; with instant access the group can be
/// returned to before they are there.
#[test]
fn the_members_of_a_group_are_kept_in_a_repository_too() {
    let daemon = slow("8MiB");
    daemon.ctl(&["disk", "create", "logs", "--size", "64MiB"]);
    let bytes = [noise(1, 8 << 20), noise(2, 8 << 20)];
    let both = [("data", &bytes[0]), ("logs", &bytes[1])];
    both.iter().for_each(|(disk, bytes)| write(&daemon, disk, 0, bytes));
    let create = ["group", "create", "data", "logs", "--repo", "slow", "--name"];
    daemon.ctl(&[&create[..], &["plain"]].concat());
    let error = daemon.json_error(7, &["group", "rollback", "plain", "--yes"]);
    assert!(error["message"].as_str().unwrap().contains("is being copied to slow"), "{error}");
    daemon.json_error(16, &[&create[..], &["next"]].concat());
    both.iter().for_each(|(disk, _)| drop(gone(&daemon, &format!("{disk}@plain"))));
    for (disk, _) in both {
        write(&daemon, disk, 16 * MIB, &noise(3, 16 << 20));
    }
    daemon.ctl(&[&create[..], &["ready", "--instant-access"]].concat());
    both.iter().for_each(|(disk, _)| write(&daemon, disk, 0, &noise(4, 8 << 20)));
    daemon.ctl(&["group", "rollback", "ready", "--yes"]);
    assert_eq!(show(&daemon, "logs@ready")["status"], "progressing");
    for (disk, bytes) in both {
        assert!(contents(&daemon, disk, DISK)[..8 << 20] == bytes[..], "{disk}");
        assert!(
            restored(&daemon, &format!("{disk}@plain"), DISK)[..8 << 20] == bytes[..],
            "{disk}"
        );
        daemon.ctl(&["snapshot", "wait", &format!("{disk}@ready")]);
    }
    for group in ["plain", "ready"] {
        daemon.ctl(&["group", "delete", group, "--yes"]);
    }
    empty(&daemon);
}

/// Promise: the snapshots of a deleted disk keep to their repository: instant access ends with the disk.
#[test]
fn instant_access_ends_with_the_disk() {
    let daemon = slow("16MiB");
    write(&daemon, "data", 0, &noise(1, 24 << 20));
    let args = ["snapshot", "create", "data", "one", "--repo", "slow", "--instant-access", "none"];
    let made = daemon.json(&args);
    let name = made["id"].as_str().unwrap();
    daemon.ctl(&["disk", "delete", "data", "--yes"]);
    assert_eq!(show(&daemon, name)["instant_access"], false);
    gone(&daemon, name);
    assert!(restored(&daemon, name, DISK)[..24 << 20] == noise(1, 24 << 20)[..]);
    wait::until("an empty pool", || (daemon.status("used_bytes") == 0).then_some(()));
}

/// Promise: a disk in the trash keeps its snapshots as they are: copies under way go on, under the disk's name, instant
/// access stays, what is in the repository alone serves on, and the disk comes back with all of it; when it goes for
/// good instant access ends.
#[test]
fn a_disk_in_the_trash_keeps_its_snapshots_wherever_they_are() {
    let mut daemon = daemon();
    daemon.change_setup(|setup| setup.config(&SMALL.replace("hours = 0", "hours = 24")));
    daemon.stop();
    daemon.start();
    daemon.ctl(&["repo", "remove", "backup", "--yes"]);
    daemon.ctl(&["repo", "add", "slow", &url(&daemon), "--bandwidth", "16MiB"]);
    let all: Vec<Vec<u8>> = (1..4).map(|seed| noise(seed, 20 << 20)).collect();
    let create = |name: &str, access: &[&str]| {
        let args = ["snapshot", "create", "data", name, "--repo", "slow"];
        daemon.json(&[&args[..], access].concat())["id"].as_str().unwrap().to_owned()
    };
    write(&daemon, "data", 0, &all[0]);
    let one = create("one", &[]);
    gone(&daemon, &one);
    write(&daemon, "data", 0, &all[1]);
    let two = create("two", &["--instant-access", "none"]);
    write(&daemon, "data", 0, &all[2]);
    let three = create("three", &["--instant-access", "none"]);
    daemon.ctl(&["disk", "delete", "data", "--yes"]);
    for snapshot in [&two, &three] {
        daemon.ctl(&["snapshot", "wait", snapshot]);
        let told = show(&daemon, snapshot);
        assert_eq!(told["presence"], json!(["pool", "repository"]), "{told}");
        let copy = daemon.json(&["copy", "show", told["copy"].as_str().unwrap()]);
        assert_eq!(copy["detail"]["disk_name"], "data");
    }
    // Its node was between those of the others, and the disk's own is below.
    daemon.ctl(&["snapshot", "set", &two, "--no-instant-access"]);
    gone(&daemon, &two);
    daemon.wait_reclaimed();
    daemon.crash();
    daemon.ctl(&["trash", "restore", "data"]);
    daemon.wait_reclaimed();
    assert!(contents(&daemon, "data", DISK)[..20 << 20] == all[2][..]);
    daemon.ctl(&["disk", "rollback", "data", "three", "--yes"]);
    for (snapshot, bytes) in [&one, &two, &three].into_iter().zip(&all) {
        assert!(restored(&daemon, snapshot, DISK)[..20 << 20] == bytes[..], "{snapshot}");
    }
    daemon.ctl(&["trash", "purge", "--all", "--yes"]);
    daemon.ctl(&["disk", "delete", "data", "--yes"]);
    assert_eq!(show(&daemon, &three)["instant_access"], true);
    daemon.ctl(&["trash", "purge", "data", "--yes"]);
    assert_eq!(show(&daemon, &three)["instant_access"], false);
    gone(&daemon, &three);
    wait::until("an empty pool", || (daemon.status("used_bytes") == 0).then_some(()));
    for snapshot in [&one, &two, &three] {
        daemon.ctl(&["snapshot", "verify", snapshot]);
        daemon.ctl(&["snapshot", "delete", snapshot, "--yes"]);
    }
    empty(&daemon);
}

/// Promise: a program that asks for a disk of a snapshot that only the repository has gets one that can be used at
/// once; with `--quiet` too it is said why a copy is not right.
#[test]
fn a_program_gets_a_disk_of_what_only_the_repository_has() {
    let daemon = slow("64MiB");
    let bytes = noise(1, 9 << 20);
    write(&daemon, "data", 0, &bytes);
    daemon.ctl(&["snapshot", "create", "data", "one", "--repo", "slow"]);
    gone(&daemon, "data@one");
    daemon.ctl(&["policy", "create", "nightly", "--at", "2", "--keep", "7d"]);
    let mut control = Control::connect(&daemon.control_socket()).unwrap();
    let mut ask = DiskCreate {
        name: "new".to_owned(),
        from: Some("data@one".to_owned()),
        policy: Some("nightly".to_owned()),
        ..DiskCreate::default()
    };
    let Err(Failure::Refused(refused)) = control.call(&ask) else { panic!("a policy is taken") };
    assert_eq!(refused.kind, ErrorKind::Invalid, "{refused:?}");
    ask.policy = None;
    let made = control.call(&ask).unwrap();
    assert_eq!(made.name, "new");
    assert!(contents(&daemon, "new", DISK)[..9 << 20] == bytes[..]);
    let chunks = files(&daemon.file("vault").join("chunks"));
    let mut chunk = fs::read(&chunks[0]).unwrap();
    chunk[100] ^= 1;
    fs::write(&chunks[0], chunk).unwrap();
    let copy = show(&daemon, "data@one")["copy"].as_str().unwrap().to_owned();
    for args in [["copy", "verify", copy.as_str()], ["snapshot", "verify", "data@one"]] {
        let said = daemon.try_ctl(&[&["--quiet"], &args[..]].concat()).fails_with(24);
        assert!(said.stderr.contains("is damaged"), "{said}");
        let said = daemon.try_ctl(&args).fails_with(24);
        assert!(said.stderr.is_empty() && said.stdout.contains("is damaged"), "{said}");
    }
}
