//! Instances: whose disk it is, and groups of the disks of instances.
//!
//! Absent: freezing in an instance, which takes a machine with a guest agent.

use rowd_tests::client::Client;
use rowd_tests::process::Daemon;
use rowd_tests::wait;
use serde_json::{Value, json};

/// A daemon with an instance `web` that has these disks of 1 GiB, and a disk `host` of this host.
fn daemon(disks: &[&str]) -> Daemon {
    let daemon = Daemon::new();
    daemon.ctl(&["instance", "add", "web", "--qga", "/run/web/qga.sock"]);
    daemon.ctl(&["disk", "create", "host", "--size", "1GiB"]);
    for disk in disks {
        daemon.ctl(&["disk", "create", disk, "--size", "1GiB", "--instance", "web"]);
    }
    daemon
}

/// The names of instances, or of the disks that something has.
#[track_caller]
fn names(of: &Value) -> Vec<&str> {
    let name = |one: &'_ Value| one.get("disk_name").or(one.get("name")).cloned();
    let all = of.as_array().expect("a list");
    assert!(all.iter().all(|one| name(one).is_some_and(|name| name.is_string())), "{of}");
    all.iter().filter_map(|one| one["disk_name"].as_str().or(one["name"].as_str())).collect()
}

#[test]
fn a_disk_belongs_to_one_instance_and_to_this_host_by_default() {
    let mut daemon = daemon(&["data", "log"]);
    let listed = daemon.json(&["instance", "list"]);
    assert_eq!(names(&listed), ["local", "web"]);
    assert_eq!((&listed[0]["created_at"], &listed[0]["qga"]), (&Value::Null, &Value::Null));
    assert_eq!(listed[1]["qga"], "/run/web/qga.sock");
    daemon.ctl(&["disk", "set", "log", "--instance", "local"]);
    daemon.ctl(&["instance", "set", "web", "--name", "web1", "--qga", "", "--description", "shop"]);
    daemon.ctl(&["tag", "set", "local", "rack=3"]);
    daemon.crash();
    assert_eq!(daemon.json(&["disk", "show", "data"])["instance_name"], "web1");
    assert_eq!(daemon.json(&["disk", "list"])[2]["instance_name"], "local");
    let web = daemon.json(&["instance", "show", "web1"]);
    assert_eq!((&web["description"], &web["qga"]), (&json!("shop"), &Value::Null));
    assert_eq!(names(&web["disks"]), ["data"]);
    let local = daemon.json(&["instance", "show", "local"]);
    assert_eq!(names(&local["disks"]), ["host", "log"]);
    assert_eq!(local["tags"], json!({"rack": "3"}));
    daemon.ctl(&["disk", "delete", "data", "--yes"]);
    daemon.stop();
    daemon.start();
    assert_eq!(daemon.json(&["instance", "show", "web1"])["disks"], json!([]));
}

#[test]
fn an_instance_with_disks_is_kept_or_its_disks_become_local() {
    let daemon = daemon(&["data", "log"]);
    let error = daemon.json_error(21, &["instance", "remove", "web"]);
    assert_eq!(error["message"], "web has the disks data, log");
    daemon.json_error(2, &["instance", "remove", "web", "--force"]);
    let done = daemon.json(&["instance", "remove", "web", "--force", "--yes"]);
    assert_eq!(done["disks"], 2);
    assert_eq!(names(&daemon.json(&["instance", "list"])), ["local"]);
    assert_eq!(daemon.json(&["disk", "show", "data"])["instance_name"], "local");
    let kinds = daemon.json(&["events"]);
    let kinds: Vec<&str> =
        kinds.as_array().unwrap().iter().filter_map(|event| event["kind"].as_str()).collect();
    assert!(kinds.contains(&"instance.add") && kinds.ends_with(&["instance.remove"]), "{kinds:?}");
}

#[test]
fn an_instance_that_makes_no_sense_is_refused_and_changes_nothing() {
    let daemon = daemon(&[]);
    for (code, args) in [
        (21, &["instance", "add", "web"][..]),
        (21, &["instance", "add", "local"]),
        (2, &["instance", "add", "a"]),
        (2, &["instance", "add", "bad name"]),
        (2, &["instance", "add", "web2", "--qga", "relative.sock"]),
        (2, &["instance", "set", "local", "--name", "other"]),
        (2, &["instance", "set", "local", "--qga", "/run/qga.sock"]),
        (2, &["instance", "set", "web"]),
        (2, &["instance", "remove", "local", "--force", "--yes"]),
        (20, &["instance", "remove", "wob"]),
        (20, &["disk", "create", "new", "--size", "1MiB", "--instance", "wob"]),
        (20, &["disk", "set", "host", "--instance", "wob"]),
    ] {
        daemon.json_error(code, args);
    }
    let long = format!("/{}", "x".repeat(107));
    daemon.json_error(2, &["instance", "add", "web2", "--qga", &long]);
    let error = daemon.json_error(20, &["instance", "show", "wob"]);
    assert_eq!(error["hint"], "did you mean 'web'?");
    assert_eq!(names(&daemon.json(&["instance", "list"])), ["local", "web"]);
    assert_eq!(daemon.json(&["disk", "list"]).as_array().map(Vec::len), Some(1));
}

/// GRP-13, 14, PLUG-02: all disks of instances, less those left out, and those named besides.
#[test]
fn a_group_of_an_instance_has_all_its_disks_but_those_left_out() {
    let daemon = daemon(&["data", "log", "scratch"]);
    let made = daemon.json(&["group", "create", "--instance", "web", "--exclude", "scratch"]);
    assert_eq!(names(&made["members"]), ["data", "log"]);
    assert_eq!(made["total_size"], 2u64 << 30);
    assert_eq!(daemon.json(&["snapshot", "list", "scratch"]), json!([]));
    let made = daemon.json(&["group", "create", "host", "--instance", "web", "--exclude", ""]);
    assert_eq!(names(&made["members"]), ["host", "data", "log", "scratch"]);
    let made = daemon.json(&["group", "create", "log", "--instance", "web", "--instance", "local"]);
    assert_eq!(names(&made["members"]), ["log", "data", "scratch", "host"]);
    let shown = daemon.ctl(&["group", "show", made["id"].as_str().unwrap()]);
    assert!(shown.contains("4, 4 GiB"), "{shown}");
}

/// EXIT-03, PLUG-02: nothing left is exit 3; leaving out what is not there is an error.
#[test]
fn a_group_without_a_disk_or_with_a_wrong_one_left_out_is_not_made() {
    let daemon = daemon(&["data"]);
    daemon.ctl(&["instance", "add", "empty"]);
    for (code, kind, args) in [
        (3, "no_eligible_disk", &["group", "create", "--instance", "empty"][..]),
        (3, "no_eligible_disk", &["group", "create", "--instance", "web", "--exclude", "data"]),
        (20, "not_found", &["group", "create", "--instance", "web", "--exclude", "missing"]),
        (2, "invalid", &["group", "create", "--instance", "web", "--exclude", "host"]),
        (2, "invalid", &["group", "create", "data", "--instance", "web", "--exclude", "data"]),
        (20, "not_found", &["group", "create", "--instance", "wob"]),
    ] {
        assert_eq!(daemon.json_error(code, args)["kind"], kind, "{args:?}");
    }
    daemon.try_ctl(&["group", "create", "host", "--exclude", "data"]).fails_with(2);
    daemon.try_ctl(&["group", "create"]).fails_with(2);
    assert_eq!(daemon.json(&["group", "list"]), json!([]));
}

/// A name means a disk first, then a group, an instance, a snapshot; an id is never ambiguous.
#[test]
fn groups_and_instances_have_tags() {
    let daemon = daemon(&["data", "log"]);
    let group = daemon.json(&["group", "create", "data", "log", "--name", "evening"]);
    let tagged = daemon.json(&["tag", "set", "evening", "keep=yes", "a=b"]);
    assert_eq!((&tagged["object"], &tagged["id"]), (&json!("group"), &group["id"]));
    daemon.ctl(&["tag", "remove", "evening", "a"]);
    assert_eq!(daemon.json(&["group", "show", "evening"])["tags"], json!({"keep": "yes"}));
    let tagged = daemon.json(&["tag", "set", "web", "keep=no"]);
    assert_eq!(tagged["object"], "instance");
    daemon.ctl(&["disk", "create", "web", "--size", "1MiB"]);
    assert_eq!(daemon.json(&["tag", "set", "web", "keep=no"])["object"], "disk");
    let id = daemon.json(&["instance", "list"])[1]["id"].clone();
    let tagged = daemon.json(&["tag", "remove", id.as_str().unwrap(), "keep"]);
    assert_eq!((&tagged["object"], &tagged["tags"]), (&json!("instance"), &json!({})));
    let snapshot = daemon.json(&["tag", "set", "data@evening", "keep=no"]);
    assert_eq!(snapshot["object"], "snapshot");
}

/// GRP-23: the state before a rollback as a group of its own, or no rollback.
#[test]
fn a_group_may_be_made_before_a_rollback() {
    let daemon = daemon(&["data", "log"]);
    let fill = |value: u8| {
        for disk in ["data", "log"] {
            Client::connect(&daemon.nbd_socket(), disk).write(0, &[value; 4096]);
        }
    };
    let is = |export: &str, value: u8| {
        let data = Client::connect(&daemon.nbd_socket(), export).read(0, 4096);
        assert_eq!(data, [value; 4096], "{export}");
    };
    fill(1);
    daemon.ctl(&["group", "create", "data", "log", "--name", "evening"]);
    fill(2);
    wait_alone(&daemon);
    let refused = ["group", "rollback", "evening", "--yes", "--group-first", "evening"];
    daemon.json_error(21, &refused);
    is("data", 2);
    wait_alone(&daemon);
    let done = daemon.try_ctl(&["group", "rollback", "evening", "--yes", "--group-first", "noon"]);
    done.ok().says(&["data is back", "log is back", "the state before is kept as group noon"]);
    let first = daemon.json(&["group", "show", "noon"]);
    assert_eq!(first["description"], "before the return to group evening");
    for disk in ["data", "log"] {
        is(disk, 1);
        is(&format!("{disk}@noon"), 2);
    }
    wait_alone(&daemon);
    daemon.ctl(&["group", "rollback", "noon", "log", "--yes", "--group-first", "half"]);
    assert_eq!(names(&daemon.json(&["group", "show", "half"])["members"]), ["log"]);
    is("data", 1);
    is("log", 2);
}

fn wait_alone(daemon: &Daemon) {
    wait::until("nobody is connected", || {
        (daemon.json(&["status"])["clients"] == json!(0)).then_some(())
    });
}
