//! Deleted disks: what goes with them, how they come back, and what deleting frees.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use rowd_tests::client::Client;
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::{tool, wait};
use serde_json::{Value, json};

const BLOCK: u64 = 4096;
const CONFIG: &str = "[pool]\nsegment = \"4MiB\"\njournal = \"8MiB\"\nhost_reserve = \"64MiB\"\n";

/// A daemon with a trash, and the disk `data` with four blocks.
fn daemon(config: &str) -> Daemon {
    let daemon = Setup::default().config(&format!("{CONFIG}{config}")).start();
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB", "--tag", "app=db"]);
    write(&daemon, "data", &[(0, 1), (1, 1), (2, 1), (3, 1)]);
    daemon
}

fn write(daemon: &Daemon, disk: &str, blocks: &[(u64, u8)]) {
    let mut client = Client::connect(&daemon.nbd_socket(), disk);
    for (block, value) in blocks {
        client.write(block * BLOCK, &[*value; 4096]);
    }
    client.disconnect();
    wait_alone(daemon);
}

fn wait_alone(daemon: &Daemon) {
    wait::until("nobody is connected", || (daemon.status("clients") == 0).then_some(()));
}

#[track_caller]
fn is(daemon: &Daemon, export: &str, values: &[u8]) {
    let mut client = Client::connect(&daemon.nbd_socket(), export);
    let found: Vec<u8> =
        (0..values.len() as u64).map(|at| client.read(at * BLOCK, 4096)[0]).collect();
    assert_eq!(found, values, "{export}");
    client.disconnect();
    wait_alone(daemon);
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
}

/// Promise: a deleted disk comes back as it was, with its id, snapshots and the way to undo, also after a kill.
#[test]
fn a_deleted_disk_comes_back_as_it_was() {
    let mut daemon = daemon("");
    daemon.ctl(&["snapshot", "create", "data", "monday"]);
    write(&daemon, "data", &[(0, 2)]);
    daemon.ctl(&["disk", "rollback", "data", "monday", "--yes"]);
    write(&daemon, "data", &[(1, 3)]);
    let before = daemon.json(&["disk", "show", "data"]);
    let said = daemon.try_ctl(&["disk", "delete", "data", "--yes"]);
    said.ok().says(&["data is in the trash until", "rowctl trash restore data"]);
    daemon.json_error(20, &["disk", "show", "data"]);
    assert_eq!(names(&daemon.json(&["disk", "list"])), Vec::<&str>::new());
    daemon.crash();
    let trash = daemon.json(&["trash", "list"]);
    assert_eq!((&trash[0]["id"], &trash[0]["name"]), (&before["id"], &json!("data")));
    assert_eq!(trash[0]["exclusive_bytes"], BLOCK);
    assert_eq!(daemon.json(&["trash", "restore", "data"])["id"], before["id"]);
    is(&daemon, "data", &[1, 3, 1, 1]);
    is(&daemon, "data@monday", &[1, 1, 1, 1]);
    let after = daemon.json(&["disk", "show", "data"]);
    for field in ["size", "tags", "created_at", "snapshot_count", "mapped_bytes"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    daemon.ctl(&["disk", "rollback", "--undo", "data", "--yes"]);
    is(&daemon, "data", &[2, 1, 1, 1]);
    daemon.wait_reclaimed();
    daemon.crash();
    is(&daemon, "data", &[2, 1, 1, 1]);
    assert_eq!(daemon.json(&["trash", "list"]), json!([]));
    let kinds = daemon.json(&["events"]).to_string();
    assert!(kinds.contains("disk.trash") && kinds.contains("disk.restore"), "{kinds}");
}

/// Promise: the name of a deleted disk is free, and the disk comes back under another one if it is taken.
#[test]
fn a_name_that_is_taken_meanwhile_is_told() {
    let daemon = daemon("");
    daemon.ctl(&["disk", "delete", "data", "--yes"]);
    daemon.ctl(&["disk", "create", "data", "--size", "1MiB"]);
    let error = daemon.json_error(21, &["trash", "restore", "data"]);
    assert!(error["hint"].as_str().unwrap().contains("--name"), "{error}");
    daemon.ctl(&["trash", "restore", "data", "--name", "old"]);
    is(&daemon, "old", &[1, 1]);
    for disk in ["data", "old"] {
        daemon.ctl(&["disk", "delete", disk, "--yes"]);
    }
    daemon.ctl(&["disk", "create", "data", "--size", "1MiB"]);
    daemon.ctl(&["disk", "delete", "data", "--yes"]);
    let error = daemon.json_error(2, &["trash", "restore", "data"]);
    assert!(error["message"].as_str().unwrap().contains("2 disks in the trash"), "{error}");
    daemon.json_error(2, &["trash", "purge", "data", "--yes"]);
    daemon.json_error(20, &["trash", "restore", "nothing"]);
    daemon.json_error(2, &["trash", "purge", "--all"]);
    assert_eq!(daemon.json(&["trash", "purge", "--all", "--yes"]).as_array().unwrap().len(), 3);
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), 0);
    daemon.json_error(20, &["trash", "purge", "old", "--yes"]);
}

/// DISK-20, 21, POL-37, 38, 40, 46, FAQ-09: automatic snapshots go with the disk for good, or stay until their time;
/// manual ones stay.
#[test]
fn automatic_snapshots_go_with_the_disk_or_stay() {
    for (with_disk, left) in [("on", vec!["mine"]), ("off", vec!["mine", "auto"])] {
        let mut daemon = Setup::default().program(tool::built("rowd-faulty")).prepare();
        let clock = daemon.path("clock");
        daemon.change_setup(|setup| setup.config(CONFIG).env("ROWD_CLOCK", &clock));
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let set_clock = |at: u64| {
            fs::write(daemon.file("clock.next"), (at - real).to_string()).unwrap();
            fs::rename(daemon.file("clock.next"), daemon.file("clock")).unwrap();
        };
        // Ten minutes past an hour.
        let start = 1_893_975_000;
        set_clock(start);
        let path = daemon.dir().to_owned();
        daemon.start();
        assert!(path.exists());
        daemon.ctl(&["policy", "create", "often", "--every", "30m", "--keep", "1d"]);
        let create = ["disk", "create", "data", "--size", "64MiB", "--policy", "often"];
        daemon.ctl(&create);
        daemon.ctl(&["disk", "set", "data", "--delete-auto-snapshot", with_disk]);
        let id = daemon.json(&["disk", "show", "data"])["id"].as_str().unwrap().to_owned();
        write(&daemon, "data", &[(0, 1), (1, 1)]);
        daemon.ctl(&["snapshot", "create", "data", "mine"]);
        write(&daemon, "data", &[(0, 2)]);
        let move_clock = |at: u64| {
            fs::write(daemon.file("clock.next"), (at - real).to_string()).unwrap();
            fs::rename(daemon.file("clock.next"), daemon.file("clock")).unwrap();
        };
        let kinds = || -> Vec<String> {
            let all = daemon.json(&["snapshot", "list", &id]);
            let name = |one: &Value| match one["kind"].as_str() {
                Some("auto") => "auto".to_owned(),
                _ => one["name"].as_str().unwrap().to_owned(),
            };
            all.as_array().unwrap().iter().map(name).collect()
        };
        move_clock(start + 20 * 60);
        wait::until("a snapshot", || (kinds() == ["mine", "auto"]).then_some(()));
        write(&daemon, "data", &[(0, 3)]);
        let preview = daemon.json(&["disk", "delete", "data", "--dry-run"]);
        daemon.ctl(&["disk", "delete", "data", "--yes"]);
        assert_eq!(kinds(), ["mine", "auto"], "in the trash everything is kept");
        let used = daemon.status("used_bytes");
        assert_eq!(used, 4 * BLOCK);
        move_clock(start + 20 * 60 + 24 * 3600 - 600);
        daemon.ctl(&["trash", "list"]);
        assert_eq!(names(&daemon.json(&["trash", "list"])), ["data"]);
        daemon.ctl(&["trash", "purge", "data", "--yes"]);
        assert_eq!(kinds(), left);
        daemon.wait_reclaimed();
        assert_eq!(json!(used - daemon.status("used_bytes")), preview["freed_bytes"]);
        // What stayed goes at its time, although it is the newest: its disk is gone.
        move_clock(start + 50 * 3600);
        wait::until("the end of its time", || (kinds() == ["mine"]).then_some(()));
    }
}

/// Promise: after its time a disk is gone for good.
#[test]
fn a_disk_leaves_the_trash_after_its_time_or_at_once_if_wanted() {
    let daemon = daemon("[trash]\nhours = 0\n");
    let said = daemon.try_ctl(&["disk", "delete", "data", "--yes"]);
    said.ok().says(&["data is deleted"]);
    assert_eq!(daemon.json(&["trash", "list"]), json!([]));
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), 0);

    let mut daemon = Setup::default().program(tool::built("rowd-faulty")).config(CONFIG).prepare();
    let clock = daemon.path("clock");
    fs::write(&clock, "0").unwrap();
    daemon.change_setup(|setup| setup.env("ROWD_CLOCK", &clock));
    daemon.start();
    for disk in ["data", "log"] {
        daemon.ctl(&["disk", "create", disk, "--size", "64MiB"]);
        write(&daemon, disk, &[(0, 1)]);
    }
    let done = daemon.json(&["disk", "delete", "log", "--yes", "--now"]);
    assert_eq!(done["restorable_until"], Value::Null);
    daemon.ctl(&["disk", "delete", "data", "--yes"]);
    assert_eq!(names(&daemon.json(&["trash", "list"])), ["data"]);
    fs::write(&clock, (25 * 3600).to_string()).unwrap();
    wait::until("the end of its time", || {
        (daemon.json(&["trash", "list"]) == json!([])).then_some(())
    });
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), 0);
}

/// Promise: the trash blocks no space that is needed.
#[test]
fn a_pool_that_is_short_of_space_gives_up_what_was_deleted_first() {
    let daemon = daemon("max_size = \"64MiB\"\n");
    let fill = |disk: &str, from: u64, count: u64| {
        let mut client = Client::connect(&daemon.nbd_socket(), disk);
        for at in from..from + count {
            client.write(at << 20, &vec![7; 1 << 20]);
        }
        client.flush();
        client.disconnect();
        wait_alone(&daemon);
    };
    fill("data", 0, 20);
    daemon.ctl(&["disk", "create", "log", "--size", "64MiB"]);
    fill("log", 0, 20);
    for disk in ["data", "log"] {
        daemon.ctl(&["disk", "delete", disk, "--yes"]);
    }
    assert_eq!(names(&daemon.json(&["trash", "list"])), ["data", "log"]);
    daemon.ctl(&["disk", "create", "new", "--size", "64MiB"]);
    fill("new", 0, 18);
    wait::until("the first to go", || {
        (names(&daemon.json(&["trash", "list"])) == ["log"]).then_some(())
    });
    daemon.wait_reclaimed();
    fill("new", 18, 15);
    let events = daemon.json(&["events"]).to_string();
    assert!(events.contains("deleted for good: the pool was short of space"), "{events}");
    is(&daemon, "new", &[7, 7]);
}

/// CAP, DEL: what a dry run foretells is what is freed, also where snapshots share blocks.
#[test]
fn a_dry_run_tells_exactly_what_is_freed() {
    let daemon = daemon("[trash]\nhours = 0\n");
    for name in ["s1", "s2", "s3"] {
        daemon.ctl(&["snapshot", "create", "data", name]);
        let value = name.as_bytes()[1];
        write(&daemon, "data", &[(0, value), (1, value)]);
    }
    daemon.ctl(&["disk", "create", "copy", "--from", "data@s2"]);
    write(&daemon, "copy", &[(0, 9), (2, 9)]);
    write(&daemon, "data", &[(0, 8), (1, 8), (2, 8), (3, 8)]);
    let foretold = |args: &[&str]| -> u64 {
        let all = daemon.json(&[args, &["--dry-run"]].concat());
        match all.as_array() {
            Some(all) => all.iter().map(|one| one["freed_bytes"].as_u64().unwrap()).sum(),
            None => all["freed_bytes"].as_u64().unwrap(),
        }
    };
    let sets: [&[&str]; 4] = [
        &["snapshot", "delete", "data@s3"],
        &["snapshot", "delete", "data@s1", "data@s2", "--force"],
        &["disk", "delete", "copy"],
        &["disk", "delete", "data"],
    ];
    for set in sets {
        let (used, told) = (daemon.status("used_bytes"), foretold(set));
        daemon.ctl(&[set, &["--yes"]].concat());
        daemon.wait_reclaimed();
        assert_eq!(used - daemon.status("used_bytes"), told, "{set:?}");
    }
    assert_eq!(daemon.status("used_bytes"), 0);
}

/// What only several together hold is told, which no number of one alone tells.
#[test]
fn a_dry_run_of_several_counts_what_they_share() {
    let daemon = daemon("");
    daemon.ctl(&["snapshot", "create", "data", "s1"]);
    daemon.ctl(&["snapshot", "create", "data", "s2"]);
    write(&daemon, "data", &[(0, 2), (1, 2)]);
    let alone = daemon.json(&["snapshot", "delete", "data@s1", "--dry-run"]);
    assert_eq!(alone[0]["freed_bytes"], 0);
    let both = daemon.json(&["snapshot", "delete", "data@s1", "data@s2", "--dry-run"]);
    let bytes: Vec<u64> =
        both.as_array().unwrap().iter().map(|one| one["freed_bytes"].as_u64().unwrap()).collect();
    assert_eq!(bytes, [0, 2 * BLOCK]);
    assert_eq!(daemon.json(&["snapshot", "list"]).as_array().unwrap().len(), 2, "nothing is gone");
    assert_eq!(names(&daemon.json(&["disk", "list"])), ["data"]);
}

/// EXIT-21, 15: what cannot be deleted is not moved to the trash either.
#[test]
fn a_disk_in_use_is_refused_by_the_trash_too() {
    let daemon = daemon("");
    let client = Client::connect(&daemon.nbd_socket(), "data");
    daemon.json_error(21, &["disk", "delete", "data", "--yes"]);
    assert_eq!(names(&daemon.json(&["disk", "list"])), ["data"]);
    daemon.ctl(&["disk", "delete", "data", "--yes", "--force"]);
    drop(client);
    daemon.ctl(&["trash", "restore", "data"]);
    is(&daemon, "data", &[1, 1, 1, 1]);
}
