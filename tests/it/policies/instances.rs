//! Policies of instances: all disks of one at one instant, as a group that comes and goes as a whole.
//!
//! Absent: ten years of them (`daemon/src/policy/simulation/groups.rs`).

use rowd_tests::client::Client;
use rowd_tests::wait;
use serde_json::{Value, json};

use super::{DAY, World};

impl World {
    /// The instance `web1` with the disks `root1` and `log1`, and its policy `often`.
    fn instance(config: &str, more: &[&str]) -> World {
        let world = World::with(config);
        world.daemon.ctl(&["instance", "add", "web1"]);
        for disk in ["root1", "log1"] {
            world.daemon.ctl(&["disk", "create", disk, "--size", "8MiB", "--instance", "web1"]);
        }
        world.daemon.ctl(&[&["policy", "create", "often", "--every", "30m"], more].concat());
        world.daemon.ctl(&["policy", "apply", "often", "--instance", "web1"]);
        world
    }

    fn groups(&self) -> Vec<Value> {
        self.daemon.json(&["group", "list"]).as_array().unwrap().clone()
    }

    /// Lets half an hour pass, and waits until the run is over.
    fn next_run(&mut self, minutes: i64) {
        let before = self.events("policy.run").len();
        self.move_clock(minutes * 60);
        wait::until("a run", || (self.events("policy.run").len() > before).then_some(()));
    }
}

/// The names of the disks of a group.
fn disks(group: &Value) -> Vec<&str> {
    let members = group["members"].as_array().unwrap();
    members.iter().map(|one| one["disk_name"].as_str().unwrap()).collect()
}

/// Promise: at each time all disks that the instance has then are snapshotted at one instant, under one name, with the
/// policy's tags and end; those that join it later too, and those that leave it no longer.
#[test]
fn all_disks_of_an_instance_are_snapshotted_together() {
    let mut world = World::instance("", &["--keep", "1d", "--tag", "app=web"]);
    let shown = world.daemon.json(&["policy", "show", "often"]);
    assert_eq!(shown["instances"][0]["name"], "web1");
    assert_eq!(shown["disks"].as_array().unwrap().len(), 2, "{shown}");
    assert_eq!(world.daemon.json(&["instance", "show", "web1"])["policy"]["name"], "often");
    let policy = world.daemon.json(&["disk", "show", "log1"])["policy"].clone();
    assert_eq!((&policy["name"], &policy["instance"]), (&json!("often"), &json!("web1")));
    // One write on each disk, the second one after the first was answered.
    let mut root = Client::connect(&world.daemon.nbd_socket(), "root1");
    let mut log = Client::connect(&world.daemon.nbd_socket(), "log1");
    root.write(0, &[1; 4096]);
    log.write(0, &[1; 4096]);
    world.next_run(20);
    let group = world.groups().remove(0);
    assert_eq!(disks(&group), ["log1", "root1"]);
    let name = format!("auto2.0_20300107_{}", shown["id"].as_str().unwrap());
    assert_eq!((&group["name"], &group["policy_id"]), (&json!(name), &shown["id"]));
    assert_eq!(group["scheduled_at"], "2030-01-07T00:30:00Z");
    assert_eq!(
        (&group["tags"], &group["instance_id"]),
        (&json!({"app": "web"}), &shown["instances"][0]["id"])
    );
    for member in group["members"].as_array().unwrap() {
        let one = &member["snapshot"];
        assert_eq!(
            (&one["name"], &one["kind"], &one["tags"]),
            (&json!(name), &json!("auto"), &json!({"app": "web"}))
        );
        assert_eq!(one["created_at"], group["created_at"], "one instant");
        assert_eq!(one["expires_at"], group["expires_at"]);
    }
    let run = world.daemon.json(&["policy", "show", "often"])["last_run"].clone();
    assert_eq!((&run["made"], &run["skipped"]), (&json!(2), &json!(0)));
    world.daemon.ctl(&["disk", "create", "swap1", "--size", "8MiB", "--instance", "web1"]);
    world.daemon.ctl(&["disk", "set", "log1", "--instance", "local"]);
    // What `snapshot mount` makes is no disk of the machine.
    let mounted = [
        "disk",
        "create",
        "mount1",
        "--size",
        "8MiB",
        "--instance",
        "web1",
        "--tag",
        "rowd.mount=/mnt",
    ];
    assert_eq!(world.daemon.json(&mounted)["policy"], Value::Null);
    world.daemon.crash();
    world.next_run(30);
    let groups = world.groups();
    assert_eq!(disks(&groups[1]), ["root1", "swap1"]);
    assert_eq!(groups[1]["name"], format!("{name}_0100"));
    // A group is a group: all of it goes back.
    let id = groups[0]["id"].as_str().unwrap();
    world.daemon.ctl(&["group", "rollback", id, "--yes", "--force"]);
    // Without the policy nothing is made any more.
    world.daemon.ctl(&["policy", "cancel", "--instance", "web1"]);
    assert_eq!(world.daemon.json(&["disk", "show", "root1"])["policy"], Value::Null);
    world.policy("marker", &["--every", "30m"]);
    world.next_run(30);
    assert_eq!(world.groups().len(), 2);
}

/// POL-13: a disk has one policy, its own or that of its instance; whichever way to two is refused, with the other one's
/// name, and changes nothing.
#[test]
fn a_disk_has_one_policy_however_it_comes_to_an_instance() {
    let world = World::instance("", &[]);
    let daemon = &world.daemon;
    daemon.ctl(&["policy", "create", "other", "--at", "3"]);
    let refused = |args: &[&str], parts: &[&str]| {
        let error = daemon.json_error(21, args);
        let text = error["message"].as_str().unwrap();
        assert!(parts.iter().all(|part| text.contains(part)), "{args:?}: {error}");
        assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("rowctl")), "{error}");
    };
    refused(
        &["policy", "apply", "other", "log1"],
        &["log1 has the policy often with its instance web1"],
    );
    refused(
        &["policy", "apply", "other", "log1", "--replace"],
        &["the policy often with its instance"],
    );
    refused(
        &["policy", "apply", "other", "--instance", "web1"],
        &["instance web1 has the policy often"],
    );
    let create =
        ["disk", "create", "new1", "--size", "8MiB", "--instance", "web1", "--policy", "other"];
    refused(&create, &["new1 would have the policy other", "instance web1, the policy often"]);
    daemon.ctl(&["policy", "apply", "other", "data"]);
    refused(&["disk", "set", "data", "--instance", "web1"], &["data would have the policy other"]);
    refused(&["policy", "apply", "often", "--instance", "local"], &["data has the policy other"]);
    let error = daemon.json_error(15, &["policy", "cancel", "log1"]);
    assert!(error["hint"].as_str().unwrap().contains("policy cancel --instance web1"), "{error}");
    daemon.json_error(15, &["policy", "cancel", "--instance", "local"]);
    daemon.json_error(20, &["policy", "apply", "often", "--instance", "web2"]);
    // With --replace the disks of the instance give up their own.
    daemon.ctl(&["policy", "apply", "often", "--instance", "local", "--replace"]);
    let policy = daemon.json(&["disk", "show", "data"])["policy"].clone();
    assert_eq!((&policy["name"], &policy["instance"]), (&json!("often"), &json!("local")));
    daemon.ctl(&["policy", "cancel", "--instance", "local"]);
    assert_eq!(daemon.json(&["disk", "show", "data"])["policy"], Value::Null);
    // A removed instance hands its disks to this host, and not two policies with them.
    daemon.ctl(&["instance", "add", "web2"]);
    daemon.ctl(&["disk", "set", "data", "--instance", "web2"]);
    daemon.ctl(&["policy", "apply", "other", "data"]);
    daemon.ctl(&["policy", "apply", "often", "--instance", "local"]);
    refused(
        &["instance", "remove", "web2", "--force", "--yes"],
        &["data would have the policy other"],
    );
    let gone = daemon.json(&["policy", "delete", "often", "--yes"]);
    assert_eq!(gone["instances"].as_array().unwrap().len(), 2, "{gone}");
    assert_eq!(daemon.json(&["disk", "list", "--policy", "any"]).as_array().unwrap().len(), 1);
    assert_eq!(daemon.json(&["instance", "show", "web1"])["policy"], Value::Null);
}

/// Promise: a group is whole or not made; what stands in the way of one disk is told, and the next slot is like any other.
#[test]
fn when_one_disk_stands_in_the_way_no_other_is_snapshotted() {
    let mut world = World::instance("[quota]\nautomatic_snapshots = 1\n", &["--keep", "forever"]);
    world.next_run(20);
    let first = world.groups().remove(0);
    let member = first["members"][0]["snapshot_id"].as_str().unwrap().to_owned();
    world.daemon.ctl(&["image", "create", "kept", "--from", &member]);
    world.next_run(30);
    let told =
        world.wait_event("policy.skip", "policy often left instance web1 out at 2030-01-07 01:00");
    assert!(told.contains("log1 has 1 automatic snapshots, all of them in use"), "{told}");
    let run = world.daemon.json(&["policy", "show", "often"])["last_run"].clone();
    assert_eq!((&run["made"], &run["skipped"]), (&json!(0), &json!(2)));
    assert_eq!(world.groups().len(), 1);
    // Beyond the quota of one disk the oldest group goes, whole.
    world.daemon.ctl(&["image", "delete", "kept", "--yes"]);
    world.next_run(30);
    let told = world.wait_event("group.evict", "with 2 snapshots removed");
    assert!(told.contains("the oldest beyond the quota"), "{told}");
    let groups = world.groups();
    assert_eq!((groups.len(), groups[0]["name"] == first["name"]), (1, false));
    for disk in ["root1", "log1"] {
        assert_eq!(world.daemon.json(&["snapshot", "list", disk]).as_array().unwrap().len(), 1);
    }
}

/// Promise: a group expires as a whole, and stays as a whole while one of its snapshots is in use; the newest one stays, and
/// one that has the newest snapshot of a disk that left the instance.
#[test]
fn a_group_goes_as_a_whole_or_stays_as_a_whole() {
    let mut world = World::instance("", &["--keep", "1h"]);
    world.next_run(20);
    world.next_run(30);
    let groups = world.groups();
    let id = |number: usize| groups[number]["id"].as_str().unwrap().to_owned();
    let member = groups[0]["members"][0]["snapshot_id"].as_str().unwrap().to_owned();
    world.daemon.ctl(&["disk", "create", "clone1", "--from", &member]);
    world.daemon.ctl(&["disk", "set", "log1", "--instance", "local"]);
    for _ in 0..4 {
        world.next_run(30);
    }
    world.move_clock(61);
    // 03:01. The first is the origin of a disk, the second has the newest snapshot of log1; the third has had its hour.
    wait::until("a group to go", || (world.groups().len() == 4).then_some(()));
    let left: Vec<Value> = world.groups().iter().map(|one| one["id"].clone()).collect();
    assert_eq!((&left[0], &left[1]), (&json!(id(0)), &json!(id(1))), "{left:?}");
    assert_eq!(disks(&world.groups()[1]), ["log1", "root1"], "whole");
    assert!(world.events("snapshot.expire").is_empty(), "no snapshot goes without its group");
    let preview = world.daemon.json(&["policy", "preview", "often"]);
    assert_eq!(preview["pruned"], json!([]));
    world.daemon.ctl(&["disk", "delete", "clone1", "--yes"]);
    world.move_clock(61);
    world.wait_event("group.expire", "with 2 snapshots expired: its time is over");
    wait::until("the first to go", || (world.groups().len() == 3).then_some(()));
    // A snapshot may be deleted alone; of a group without any nothing stays.
    let other = world.groups().remove(0);
    assert_eq!(other["id"], id(1));
    for member in other["members"].as_array().unwrap() {
        let snapshot = member["snapshot_id"].as_str().unwrap();
        world.daemon.ctl(&["snapshot", "delete", snapshot, "--yes"]);
    }
    world.move_clock(61);
    world.wait_event("group.expire", "with 0 snapshots expired");
}

/// Promise: many groups do not go at once unless somebody agrees, whatever has become of the instance.
#[test]
fn a_mass_of_groups_waits_for_somebody_to_agree() {
    let mut world = World::instance("", &["--keep", "1d"]);
    for run in 0..13 {
        world.next_run(if run == 0 { 20 } else { 30 });
    }
    world.daemon.ctl(&["policy", "cancel", "--instance", "web1"]);
    world.move_clock(3 * DAY);
    let told = world.wait_event("policy.hold", "12 of 13 automatic groups of instance web1");
    assert!(told.contains("rowctl policy resume --instance web1"), "{told}");
    let preview = world.daemon.json(&["policy", "preview", "often"]);
    assert_eq!(preview["pruned"].as_array().unwrap().len(), 24, "two snapshots each");
    world.daemon.crash();
    assert_eq!(world.groups().len(), 13);
    world.daemon.json_error(2, &["policy", "resume", "--instance", "web1"]);
    let done = world.daemon.json(&["policy", "resume", "--instance", "web1", "--yes"]);
    assert_eq!(done["removed"], 12);
    assert_eq!(world.groups().len(), 1);
    world.daemon.json_error(15, &["policy", "resume", "--instance", "web1", "--yes"]);
}

/// Promise: the level of the policy is for all disks together: a machine whose agent does not answer costs the whole group, and
/// it is told why; nothing is frozen for a snapshot that is not made.
#[test]
fn the_level_of_a_policy_is_for_the_whole_group() {
    let mut world = World::instance("", &["--consistency", "fs"]);
    world.next_run(20);
    let told = world.wait_event("policy.skip", "policy often left instance web1 out");
    assert!(told.contains("guest agent"), "{told}");
    assert!(world.groups().is_empty());
    world.daemon.ctl(&["policy", "set", "often", "--consistency", "crash"]);
    world.next_run(30);
    assert_eq!(world.groups().len(), 1);
}

/// Promise: a daemon that is killed when a group is made and the run is not done with makes no second one of that time.
#[test]
fn a_kill_during_a_run_makes_no_second_group() {
    let mut world = World::instance("", &[]);
    world.daemon.stop();
    world.daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "snapshot.journaled:1"));
    world.daemon.start();
    world.move_clock(20 * 60);
    world.daemon.wait_ended();
    world.daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "snapshot.journaled:1000000"));
    world.daemon.start();
    let run = wait::until("the end of the run", || {
        let run = world.daemon.json(&["policy", "show", "often"])["last_run"].clone();
        (!run.is_null()).then_some(run)
    });
    assert_eq!((&run["made"], &run["scheduled_at"]), (&json!(2), &json!("2030-01-07T00:30:00Z")));
    assert_eq!(world.groups().len(), 1);
}

/// Promise: with `--copy-to` each snapshot of a group is copied, and the copies have an end of their own each.
#[test]
fn snapshots_of_a_group_are_copied_one_by_one() {
    let mut world = World::instance("", &["--keep", "1h"]);
    std::fs::create_dir(world.daemon.file("vault")).unwrap();
    let url = format!("file://{}", world.daemon.path("vault"));
    world.daemon.ctl(&["repo", "add", "away", &url]);
    world.daemon.ctl(&["policy", "set", "often", "--copy-to", "away", "--copy-keep", "10d"]);
    world.next_run(20);
    wait::until("two copies", || (world.events("copy.done").len() == 2).then_some(()));
    for _ in 0..4 {
        world.next_run(30);
    }
    world.wait_event("group.expire", "with 2 snapshots expired");
    let copies = world.daemon.json(&["copy", "list"]);
    let ends = copies.as_array().unwrap().iter().map(|one| one["expires_at"].as_str().unwrap());
    assert_eq!(ends.filter(|end| end.starts_with("2030-01-17T00:3")).count(), 2, "{copies}");
}
