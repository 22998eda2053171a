//! Copies that policies make: on their way to a repository with each snapshot, and gone when their own time is over.
//!
//! Absent: how a copy is made, and what it holds (`vault/`).

use std::fs;

use rowd_tests::client::Client;
use rowd_tests::wait;
use serde_json::{Value, json};

use super::{DAY, HOUR, World};

/// A world with the repository `away`, and a policy that is due every half hour and copies there.
fn world(more: &[&str]) -> World {
    let world = World::with("");
    fs::create_dir(world.daemon.file("vault")).unwrap();
    world.daemon.ctl(&["repo", "add", "away", &format!("file://{}", world.daemon.path("vault"))]);
    world.policy("often", &[&["--every", "30m", "--copy-to", "away"], more].concat());
    world
}

impl World {
    fn copies(&self) -> Vec<Value> {
        self.daemon.json(&["copy", "list"]).as_array().unwrap().clone()
    }

    /// The times of complete copies, oldest first: the half hours in which their snapshots were made.
    fn copied(&self) -> Vec<String> {
        let accomplished = |one: &&Value| one["status"] == "accomplished";
        let time = |one: &Value| {
            let at = one["detail"]["created_at"].as_str().unwrap();
            let half = if &at[14..16] < "30" { "00" } else { "30" };
            format!("{}:{half}", &at[11..13])
        };
        let mut times: Vec<String> = self.copies().iter().filter(accomplished).map(time).collect();
        times.sort();
        times
    }

    #[track_caller]
    fn wait_copied(&self, wanted: &[&str]) {
        let mut last = Vec::new();
        let found = wait::try_until(wait::PATIENCE, || {
            last = self.copied();
            (last == wanted).then_some(())
        });
        assert!(found.is_some(), "{last:?} instead of {wanted:?}\n{:?}", self.events(""));
    }

    /// Goes to the next half hour, and waits until its snapshot is copied.
    fn next_copied(&mut self, minutes: i64, count: usize) {
        self.move_clock(minutes * 60);
        wait::until("a copy", || (self.events("copy.done").len() == count).then_some(()));
    }
}

/// POL-33, 35, TAG-07, COPY-06: each snapshot is copied, and its copy has an end of its own, which no end of the
/// snapshot and no kill brings nearer; a disk of it has what the disk had.
#[test]
fn a_copy_outlives_its_snapshot_and_goes_at_its_own_time() {
    let mut world = world(&["--keep", "1h", "--copy-keep", "2h", "--tag", "app=db"]);
    let mut client = Client::connect(&world.daemon.nbd_socket(), "data");
    client.write(0, &[1; 4096]);
    world.next_copied(20, 1);
    client.write(0, &[2; 4096]);
    let first = world.copies().remove(0);
    let end = first["expires_at"].as_str().unwrap();
    assert!(end.starts_with("2030-01-07T02:3"), "two hours after 00:30: {end}");
    assert_eq!(first["policy_id"], world.daemon.json(&["policy", "show", "often"])["id"]);
    assert_eq!(first["detail"]["tags"], json!({}), "those of the snapshot are its own");
    assert_eq!(world.snapshots()[0]["tags"], json!({"app": "db"}));
    drop(client);
    world.daemon.crash();
    for count in 2..=4 {
        world.next_copied(30, count);
    }
    // 02:00: of the snapshots that of 00:30 has had its hour and a half, and of the copies none.
    wait::until("snapshots to go", || (world.snapshots().len() <= 3).then_some(()));
    world.wait_copied(&["00:30", "01:00", "01:30", "02:00"]);
    let id = first["id"].as_str().unwrap();
    world.daemon.ctl(&["disk", "create", "back", "--from", id, "--full"]);
    let mut back = Client::connect(&world.daemon.nbd_socket(), "back");
    assert_eq!(back.read(0, 4096), [1; 4096]);
    world.next_copied(31, 5);
    let told = world.wait_event("copy.expire", "in away expired: its time is over");
    assert!(told.contains("copy ") && told.contains("data@auto2.0_20300107"), "{told}");
    world.wait_copied(&["01:00", "01:30", "02:00", "02:30"]);
    let error = world.daemon.json_error(20, &["copy", "show", id]);
    assert!(error["message"].as_str().unwrap().contains("no copy"), "{error}");
}

/// Promise: many copies do not go at once unless somebody agrees, and the newest complete one never does; a change of
/// the policy is for copies that are made after it.
#[test]
fn a_mass_of_copies_waits_for_somebody_to_agree_and_the_newest_stays() {
    let mut world = world(&["--keep", "forever", "--copy-keep", "1d"]);
    world.next_copied(20, 1);
    for count in 2..=13 {
        world.next_copied(30, count);
    }
    let set = world.daemon.json(&["policy", "set", "often", "--no-copy", "--keep", "2d"]);
    assert_eq!(set["copy"], Value::Null);
    // One that somebody deletes is the policy's no longer.
    let newest = world.copies().into_iter().max_by_key(|one| one["expires_at"].to_string());
    let newest = newest.unwrap()["id"].as_str().unwrap().to_owned();
    world.daemon.ctl(&["copy", "delete", &newest, "--yes"]);
    world.daemon.ctl(&["policy", "cancel", "data"]);
    world.move_clock(3 * DAY);
    let told = world.wait_event("policy.hold", "11 of 12 copies of data in away");
    assert!(told.contains("rowctl policy resume data"), "{told}");
    let preview = world.daemon.json(&["policy", "preview", "often"]);
    assert_eq!((&preview["pruned"], pruned(&preview)), (&json!([]), 11));
    world.daemon.crash();
    assert_eq!(world.copied().len(), 12);
    let held = world.daemon.try_ctl(&["policy", "list"]).ok();
    assert!(held.stderr.contains("11 of 12 copies"), "{}", held.stderr);
    let done = world.daemon.json(&["policy", "resume", "data", "--yes"]);
    assert_eq!(done["removed"], 11);
    world.wait_copied(&["06:00"]);
    assert_eq!(world.snapshots().len(), 13, "those made to stay forever stay");
    world.daemon.json_error(15, &["policy", "resume", "data", "--yes"]);
    assert_eq!(pruned(&world.daemon.json(&["policy", "preview", "often"])), 0);
}

fn pruned(preview: &Value) -> usize {
    preview["pruned_copies"].as_array().unwrap().len()
}

/// Promise: a repository that is out of reach costs no snapshot; what is not copied yet does not go, and what failed is
/// tried again by itself.
#[test]
fn a_repository_out_of_reach_costs_no_snapshot_and_what_failed_is_tried_again() {
    let mut world = world(&["--keep", "1h"]);
    let (vault, hidden) = (world.daemon.file("vault"), world.daemon.file("hidden"));
    fs::rename(&vault, &hidden).unwrap();
    world.move_clock(20 * 60);
    world.wait_event("copy.fail", "there is no directory");
    world.move_clock(30 * 60);
    wait::until("two failures", || (world.events("copy.fail").len() == 2).then_some(()));
    world.daemon.ctl(&["policy", "cancel", "data"]);
    fs::rename(&hidden, &vault).unwrap();
    // Both have had their hour, and both are still to be copied.
    world.move_clock(HOUR + 35 * 60);
    wait::until("copies", || (world.events("copy.done").len() == 2).then_some(()));
    assert_eq!(world.events("copy.retry").len(), 2);
    world.move_clock(61);
    // The first goes, the newest stays; copies too are kept for an hour, and the newest longer.
    world.wait_times(&["20300107_0100"]);
    world.wait_copied(&["01:00"]);
}

/// POL-34: what makes no sense is refused, with what would be right, and changes nothing.
#[test]
fn copies_that_make_no_sense_are_refused() {
    let world = world(&["--keep", "7d"]);
    let daemon = &world.daemon;
    let shown = daemon.json(&["policy", "show", "often"]);
    let week = json!({"kind": "for", "seconds": 7 * DAY});
    assert_eq!(shown["copy"], json!({"repo": "away", "keep": week}), "as the snapshots");
    let error = daemon.json_error(21, &["repo", "remove", "away", "--yes"]);
    assert!(error["message"].as_str().unwrap().contains("policy often"), "{error}");
    for (code, args) in [
        (20, &["--copy-to", "nowhere"][..]),
        (2, &["--copy-keep", "90d"]),
        (2, &["--copy-to", "away", "--copy-keep", "0d"]),
        (2, &["--copy-to", "away", "--copy-keep", "65537d"]),
        (2, &["--copy-to", "away", "--copy-keep", "soon"]),
    ] {
        daemon.json_error(code, &[&["policy", "create", "bad", "--at", "1"], args].concat());
    }
    daemon.json_error(2, &["policy", "set", "often", "--no-copy", "--copy-to", "away"]);
    let set = daemon.json(&["policy", "set", "often", "--copy-keep", "daily=7"]);
    assert_eq!((&set["copy"]["repo"], &set["copy"]["keep"]["daily"]), (&json!("away"), &json!(7)));
    daemon.ctl(&["policy", "set", "often", "--no-copy"]);
    let error = daemon.json_error(2, &["policy", "set", "often", "--copy-keep", "90d"]);
    assert_eq!(error["hint"], "name a repository: --copy-to R");
    daemon.ctl(&["repo", "remove", "away", "--yes"]);
    daemon.json_error(20, &["policy", "set", "often", "--copy-to", "away"]);
}
