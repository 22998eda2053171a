//! Groups: several disks at exactly one instant, and back together.
//!
//! Absent: freezing of file systems; what member snapshots do as snapshots (`chains.rs`, `rollback.rs`).

use rowd_tests::client::Client;
use rowd_tests::order::{self, Shape};
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::{tool, wait};
use serde_json::{Value, json};

const BLOCK: usize = 4096;

/// A daemon with these disks of 1 GiB, all of them 1.
fn daemon(disks: &[&str]) -> Daemon {
    let daemon = Daemon::new();
    make(&daemon, disks);
    daemon
}

fn make(daemon: &Daemon, disks: &[&str]) {
    for disk in disks {
        daemon.ctl(&["disk", "create", disk, "--size", "1GiB"]);
        fill(daemon, disk, 1);
    }
}

fn fill(daemon: &Daemon, disk: &str, value: u8) {
    Client::connect(&daemon.nbd_socket(), disk).write(0, &[value; BLOCK]);
}

#[track_caller]
fn is(daemon: &Daemon, export: &str, value: u8) {
    let data = Client::connect(&daemon.nbd_socket(), export).read(0, 4096);
    assert_eq!(data, [value; BLOCK], "{export}");
}

fn members(group: &Value) -> &Vec<Value> {
    group["members"].as_array().expect("a list of members")
}

/// GRP-01, 10, 18, 31: members are snapshots like any other, also when two disks share blocks.
#[test]
fn a_group_has_a_snapshot_of_each_disk_and_they_are_snapshots_like_any_other() {
    let mut daemon = daemon(&["data", "log"]);
    daemon.ctl(&["snapshot", "create", "data", "base"]);
    daemon.ctl(&["disk", "create", "clone", "--from", "data@base"]);
    fill(&daemon, "clone", 2);
    let made = daemon.json(&["group", "create", "data", "log", "clone", "--name", "evening"]);
    assert_eq!((members(&made).len(), &made["name"]), (3, &json!("evening")));
    for disk in ["data", "log", "clone"] {
        fill(&daemon, disk, 9);
    }
    daemon.crash();
    let shown = daemon.json(&["group", "show", "evening"]);
    assert_eq!(shown["id"], made["id"]);
    for (disk, value) in [("data", 1), ("log", 1), ("clone", 2)] {
        is(&daemon, &format!("{disk}@evening"), value);
        is(&daemon, disk, 9);
    }
    daemon.ctl(&["disk", "create", "from-member", "--from", "clone@evening"]);
    is(&daemon, "from-member", 2);
    daemon.ctl(&["disk", "rollback", "log", "evening", "--yes"]);
    is(&daemon, "log", 1);
    let listed = daemon.json(&["group", "list"]);
    assert_eq!(listed[0]["members"].as_array().map(Vec::len), Some(3));
    wait_alone(&daemon, &["data", "log", "clone"]);
    daemon.ctl(&["group", "rollback", "evening", "--yes"]);
    is(&daemon, "data", 1);
    is(&daemon, "clone", 2);
}

/// GRP-02: a write that was sent after another was answered is in no group without the other. `rowd-soak
/// order` does the same for longer.
#[test]
fn a_group_under_load_never_has_a_write_without_the_one_before_it() {
    let daemon = Daemon::new();
    let shape = Shape { disks: 4, writers: 3, groups: 60, time: wait::PATIENCE };
    let seen = order::run(&daemon, shape);
    assert!(seen.moved > seen.groups, "hardly anything was written between: {seen:?}");
    assert!(seen.groups == 60 && seen.between > 0, "{seen:?}");
}

/// GRP-19, 24: all disks go back, or those that are named.
#[test]
fn all_disks_of_a_group_go_back_or_those_that_are_named() {
    let daemon = daemon(&["data", "log", "temp"]);
    daemon.ctl(&["group", "create", "data", "log", "temp", "--name", "evening"]);
    for disk in ["data", "log", "temp"] {
        fill(&daemon, disk, 2);
    }
    wait_alone(&daemon, &["data", "log", "temp"]);
    let done = daemon.json(&["group", "rollback", "evening", "data", "log", "--yes"]);
    assert_eq!(done.as_array().map(Vec::len), Some(2));
    for (disk, value) in [("data", 1), ("log", 1), ("temp", 2)] {
        is(&daemon, disk, value);
    }
    wait_alone(&daemon, &["data", "log", "temp"]);
    daemon.ctl(&["disk", "rollback", "--undo", "log", "--yes"]);
    is(&daemon, "log", 2);
    wait_alone(&daemon, &["data", "log", "temp"]);
    daemon.ctl(&["group", "rollback", "evening", "--yes"]);
    for disk in ["data", "log", "temp"] {
        is(&daemon, disk, 1);
    }
}

/// GRP-21: one disk that is in use keeps all of them where they are.
#[test]
fn a_rollback_of_a_group_under_a_client_changes_nothing_and_names_it() {
    let daemon = daemon(&["data", "log"]);
    daemon.ctl(&["group", "create", "data", "log", "--name", "evening"]);
    fill(&daemon, "data", 2);
    wait_alone(&daemon, &["data", "log"]);
    let mut holder = Client::connect(&daemon.nbd_socket(), "log");
    holder.write(0, &[3; BLOCK]);
    let error = daemon.json_error(21, &["group", "rollback", "evening", "--yes"]);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("log is in use by")));
    is(&daemon, "data", 2);
    wait_alone(&daemon, &["data"]);
    let done = daemon.json(&["group", "rollback", "evening", "--yes", "--force"]);
    assert_eq!(done[1]["disconnected"].as_array().map(Vec::len), Some(1));
    is(&daemon, "data", 1);
    is(&daemon, "log", 1);
}

/// GRP-20, DEL-17: a member may be deleted; its disk cannot go back then, the others can.
#[test]
fn a_member_that_is_gone_is_named_and_the_others_go_back() {
    let daemon = daemon(&["data", "log", "other"]);
    daemon.ctl(&["group", "create", "data", "log", "--name", "evening"]);
    daemon.ctl(&["snapshot", "delete", "log@evening", "--yes"]);
    let shown = daemon.json(&["group", "show", "evening"]);
    assert_eq!(
        (&shown["members"][0]["snapshot"]["name"], &shown["members"][1]["snapshot"]),
        (&json!("evening"), &Value::Null)
    );
    fill(&daemon, "data", 2);
    wait_alone(&daemon, &["data", "log", "other"]);
    let error = daemon.json_error(7, &["group", "rollback", "evening", "--yes"]);
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("log") && message.contains("snapshot was deleted"), "{message}");
    is(&daemon, "data", 2);
    daemon.json_error(20, &["group", "rollback", "evening", "other", "--yes"]);
    wait_alone(&daemon, &["data"]);
    daemon.ctl(&["group", "rollback", "evening", "data", "--yes"]);
    is(&daemon, "data", 1);
    wait_alone(&daemon, &["data"]);
    let data = shown["members"][0]["disk_id"].as_str().expect("an id").to_owned();
    daemon.ctl(&["disk", "delete", "data", "--yes"]);
    let error = daemon.json_error(7, &["group", "rollback", "evening", &data, "--yes"]);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("disk was deleted")));
}

/// A group goes with its snapshots, or, while one is in use, not at all.
#[test]
fn a_group_is_deleted_with_its_snapshots_or_not_at_all() {
    let daemon = daemon(&["data", "log"]);
    daemon.ctl(&["group", "create", "data", "log", "--name", "evening"]);
    daemon.ctl(&["disk", "create", "clone", "--from", "log@evening"]);
    daemon.json_error(2, &["group", "delete", "evening"]);
    let error = daemon.json_error(21, &["group", "delete", "evening", "--yes"]);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("clone was made from")));
    assert_eq!(daemon.json(&["snapshot", "list"]).as_array().map(Vec::len), Some(2));
    let done = daemon.json(&["group", "delete", "evening", "--yes", "--force"]);
    assert_eq!(done["snapshots"], 2);
    assert_eq!(daemon.json(&["snapshot", "list"]), json!([]));
    assert_eq!(daemon.json(&["group", "list"]), json!([]));
    is(&daemon, "clone", 1);
}

/// GRP-07, 08, 28: beyond a limit, or when one name is taken, no snapshot is made of any disk.
#[test]
fn a_group_that_cannot_be_made_leaves_nothing() {
    let daemon = Daemon::new();
    let names: Vec<String> = (0..17).map(|n| format!("disk-{n}")).collect();
    for name in &names {
        daemon.ctl(&["disk", "create", name, "--size", "2TiB"]);
    }
    let group = |count: usize, more: &[&'static str]| {
        let disks = names[..count].iter().map(String::as_str);
        ["group", "create"].into_iter().chain(disks).chain(more.iter().copied()).collect::<Vec<_>>()
    };
    daemon.json_error(14, &group(17, &[]));
    daemon.ctl(&["disk", "resize", "disk-15", "2049GiB"]);
    daemon.json_error(14, &group(16, &[]));
    daemon.json_error(2, &group(2, &["disk-0"]));
    daemon.json_error(20, &group(2, &["missing"]));
    daemon.ctl(&["snapshot", "create", "disk-3", "taken"]);
    daemon.json_error(21, &group(5, &["--name", "taken"]));
    assert_eq!(daemon.json(&["snapshot", "list"]).as_array().map(Vec::len), Some(1));
    assert_eq!(daemon.json(&["group", "list"]), json!([]));
    let made = daemon.json(&group(15, &[]));
    assert_eq!(members(&made).len(), 15);
    daemon.ctl(&["group", "create", "disk-0", "--name", "named"]);
    daemon.json_error(21, &["group", "create", "disk-1", "--name", "named"]);
}

/// A kill between the record and the answer: all members are there, with their contents, or none.
#[test]
fn a_group_that_was_cut_off_is_whole() {
    let setup = Setup::default().program(tool::built("rowd-faulty"));
    let mut daemon = setup.env("ROWD_FAIL_POINT", "snapshot.journaled:1").start();
    make(&daemon, &["data", "log"]);
    daemon.json_error(23, &["group", "create", "data", "log", "--name", "evening"]);
    daemon.wait_ended();
    daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "snapshot.journaled:1000000"));
    daemon.start();
    let shown = daemon.json(&["group", "show", "evening"]);
    assert_eq!(members(&shown).len(), 2);
    for disk in ["data", "log"] {
        fill(&daemon, disk, 2);
        is(&daemon, &format!("{disk}@evening"), 1);
    }
    wait_alone(&daemon, &["data", "log"]);
    daemon.ctl(&["group", "rollback", "evening", "--yes"]);
    is(&daemon, "log", 1);
}

/// EXIT-05: nothing is left that could go back; with a name it is that member's fault.
#[test]
fn a_group_with_nothing_left_to_return_to_is_in_the_wrong_state() {
    let daemon = daemon(&["data", "log"]);
    daemon.ctl(&["group", "create", "data", "log", "--name", "evening"]);
    daemon.ctl(&["group", "set", "evening", "--name", "kept", "--description", "before the move"]);
    daemon.ctl(&["snapshot", "delete", "data@evening", "--yes"]);
    wait_alone(&daemon, &["log"]);
    daemon.ctl(&["disk", "delete", "log", "--yes"]);
    let error = daemon.json_error(5, &["group", "rollback", "kept", "--yes"]);
    assert_eq!(
        (&error["kind"], &error["hint"]),
        (&json!("group_state"), &json!("delete it: `rowctl group delete kept`"))
    );
    daemon.json_error(7, &["group", "rollback", "kept", "data", "--yes"]);
    assert_eq!(daemon.json(&["group", "show", "kept"])["description"], "before the move");
    daemon.json_error(20, &["group", "show", "evening"]);
    daemon.ctl(&["group", "delete", "kept", "--yes"]);
}

/// EXIT-04: the device fails while a group is made. It is told so, and afterwards the group is there whole
/// or not at all.
#[test]
fn a_group_that_the_device_cannot_keep_has_failed() {
    let mut daemon = daemon(&["data", "log"]);
    let home = tempfile::tempdir().unwrap();
    let said = home.path().join("strace");
    let mut tracer = tool::command("strace");
    let inject = "inject=fdatasync:error=EIO";
    tracer.args(["-f", "-e", "trace=fdatasync", "-e", inject, "-o", "/dev/null", "-p"]);
    tracer.arg(daemon.pid().to_string()).stderr(std::fs::File::create(&said).unwrap());
    let mut tracer = tracer.spawn().expect("start strace");
    wait::until("strace holds the daemon", || {
        std::fs::read_to_string(&said).is_ok_and(|text| text.contains("attached")).then_some(())
    });
    let error = daemon.json_error(4, &["group", "create", "data", "log", "--name", "evening"]);
    assert_eq!(error["kind"], "group_failed");
    let message = error["message"].as_str().expect("a message");
    assert!(message.starts_with("the group could not be made: "), "{message}");
    let again = daemon.json_error(4, &["group", "create", "data", "log", "--name", "night"]);
    assert!(again["message"].as_str().is_some_and(|text| text.contains("stopped")), "{again}");
    daemon.kill();
    tracer.wait().expect("strace ends with the daemon");
    daemon.start();
    let groups = daemon.json(&["group", "list"]);
    for group in groups.as_array().expect("a list") {
        assert_eq!(group["name"], "evening");
        assert!(members(group).iter().all(|member| member["snapshot"].is_object()), "{group}");
    }
    daemon.ctl(&["group", "create", "data", "log", "--name", "night"]);
    is(&daemon, "data@night", 1);
    is(&daemon, "log@night", 1);
}

/// Connections that were dropped take a moment to be noticed.
fn wait_alone(daemon: &Daemon, disks: &[&str]) {
    for disk in disks {
        wait::until("nobody is connected", || {
            (daemon.json(&["disk", "show", disk])["clients"] == json!([])).then_some(())
        });
    }
}
