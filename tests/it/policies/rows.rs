//! Rows of the guides about policies that have no story of their own.

use rowd_tests::client::Client;
use rowd_tests::wait;
use serde_json::{Value, json};

use super::World;

/// POL-39: that automatic snapshots go with a disk can be said at any time, with a warning when nothing makes any.
#[test]
fn releasing_snapshots_with_a_disk_that_has_no_policy_is_warned_of() {
    let world = World::new();
    let daemon = &world.daemon;
    let set = ["disk", "set", "data", "--delete-auto-snapshot", "on"];
    let warned = daemon.try_ctl(&set).ok();
    assert!(warned.stderr.contains("data has no policy"), "{warned}");
    assert!(warned.stderr.contains("rowctl policy apply POLICY data"), "{warned}");
    assert_eq!(daemon.json(&["disk", "show", "data"])["delete_auto_snapshot"], true, "it is set");
    let create = ["disk", "create", "new1", "--size", "8MiB", "--delete-auto-snapshot"];
    assert!(daemon.try_ctl(&create).ok().stderr.contains("new1 has no policy"));
    let off = daemon.try_ctl(&["disk", "set", "data", "--delete-auto-snapshot", "off"]).ok();
    assert!(!off.stderr.contains("has no policy"), "{off}");
    world.policy("often", &["--every", "30m"]);
    let quiet = daemon.try_ctl(&set).ok();
    assert!(!quiet.stderr.contains("has no policy"), "{quiet}");
}

/// POL-45, BILL-12: who deletes the only policy of a disk is told what that means, and what to do for what matters.
#[test]
fn deleting_the_only_policy_of_a_disk_says_what_it_leaves_without() {
    let world = World::new();
    world.policy("often", &["--every", "30m"]);
    let told = world.daemon.try_ctl(&["policy", "delete", "often", "--yes"]).ok();
    let told = told.says(&["no snapshots of data are made any more"]);
    assert!(told.stderr.contains("rowctl policy apply POLICY data"), "{told}");
    world.daemon.ctl(&["policy", "create", "idle", "--at", "3"]);
    let told = world.daemon.try_ctl(&["policy", "delete", "idle", "--yes"]).ok();
    assert!(!told.stderr.contains("what matters"), "no disk had it: {told}");
}

/// POL-43: with jitter a run begins later than its slot, always as much, as `policy show` says; what is made has the slot.
#[test]
fn a_policy_with_jitter_begins_at_a_time_of_its_own() {
    let mut world = World::new();
    let daemon = &world.daemon;
    daemon.json_error(2, &["policy", "create", "bad", "--at", "1", "--jitter", "13h"]);
    daemon.json_error(2, &["policy", "create", "bad", "--at", "1", "--jitter", "soon"]);
    // The delay comes from the id: one of at least ten minutes, so that there is a time before it.
    let made = wait::until("a policy with a long delay", || {
        let made = daemon.json(&["policy", "create", "a-late", "--at", "1", "--jitter", "1h"]);
        let next = made["next_run_at"].as_str().unwrap();
        assert!(("2030-01-07T01:00:00Z"..="2030-01-07T02:00:00Z").contains(&next), "{next}");
        if ("2030-01-07T01:10:00Z".."2030-01-07T01:50:00Z").contains(&next) {
            return Some(made);
        }
        daemon.ctl(&["policy", "delete", "a-late", "--yes"]);
        None
    });
    assert_eq!(made["jitter"], 3600);
    let minute: i64 = made["next_run_at"].as_str().unwrap()[14..16].parse().unwrap();
    daemon.ctl(&["policy", "apply", "a-late", "data"]);
    let runs = daemon.json(&["policy", "preview", "a-late", "--runs", "2"])["runs"].clone();
    let late = made["next_run_at"].as_str().unwrap().replace("-07T", "-08T");
    assert_eq!(
        (&runs[0], &runs[1]),
        (&made["next_run_at"], &json!(late)),
        "the same delay each day"
    );
    // Without jitter, at the same time, and looked at after the other.
    daemon.ctl(&["disk", "create", "log1", "--size", "8MiB"]);
    daemon.ctl(&["policy", "create", "b-prompt", "--at", "1"]);
    daemon.ctl(&["policy", "apply", "b-prompt", "log1"]);
    world.move_clock(51 * 60);
    wait::until("the run at its time", || world.events("policy.run").pop());
    assert!(world.times().is_empty(), "not yet");
    world.move_clock(minute * 60);
    world.wait_times(&["20300107"]);
    assert_eq!(world.snapshots()[0]["scheduled_at"], "2030-01-07T01:00:00Z");
    assert!(world.events("policy.missed").is_empty());
    let set = world.daemon.json(&["policy", "set", "a-late", "--jitter", "0s"]);
    assert_eq!((&set["jitter"], &set["next_run_at"]), (&json!(0), &json!("2030-01-08T01:00:00Z")));
}

/// DISK-25, POL-17: each disk of a new instance gets a policy as it is made, or all of them get that of the instance.
#[test]
fn disks_get_their_policies_as_an_instance_is_made() {
    let world = World::new();
    let daemon = &world.daemon;
    for policy in ["system", "data-daily"] {
        daemon.ctl(&["policy", "create", policy, "--at", "2"]);
    }
    daemon.ctl(&["instance", "add", "web1"]);
    for (disk, policy) in [("root1", "system"), ("data1", "data-daily")] {
        let create = ["disk", "create", disk, "--size", "8MiB", "--instance", "web1"];
        let made = daemon.json(&[&create[..], &["--policy", policy]].concat());
        let of = json!({"id": made["policy"]["id"], "name": policy, "instance": null});
        assert_eq!((&made["policy"], &made["instance_name"]), (&of, &json!("web1")));
    }
    for policy in ["system", "data-daily"] {
        let disks = daemon.json(&["disk", "list", "--policy", policy]);
        assert_eq!(disks.as_array().unwrap().len(), 1);
    }
    daemon.ctl(&["instance", "add", "web2"]);
    daemon.ctl(&["policy", "apply", "system", "--instance", "web2"]);
    let made = daemon.json(&["disk", "create", "root2", "--size", "8MiB", "--instance", "web2"]);
    assert_eq!(
        (&made["policy"]["name"], &made["policy"]["instance"]),
        (&json!("system"), &json!("web2"))
    );
}

/// POL-36 (goes beyond the cloud, design.md section 9): snapshots of encrypted disks are copied by policies too, as
/// ciphertext; without the master key the snapshot is made all the same, and it is told why it is not copied.
#[test]
fn automatic_snapshots_of_encrypted_disks_are_copied() {
    const MASTER: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    let mut world = World::new();
    world.daemon.stop();
    world.daemon.change_setup(|setup| setup.master_key(MASTER));
    world.daemon.start();
    std::fs::create_dir(world.daemon.file("vault")).unwrap();
    let url = format!("file://{}", world.daemon.path("vault"));
    world.daemon.ctl(&["repo", "add", "away", &url]);
    world.daemon.ctl(&["disk", "create", "secret1", "--size", "8MiB", "--encrypted"]);
    world.daemon.ctl(&["policy", "create", "often", "--every", "30m", "--copy-to", "away"]);
    world.daemon.ctl(&["policy", "apply", "often", "secret1"]);
    // Nothing that could be made smaller: what is stored in clear would be found.
    let byte = |at: u32| at.wrapping_mul(0x9E37_79B9).rotate_left(at % 31).to_be_bytes()[0];
    let block: Vec<u8> = (1..=4096).map(byte).collect();
    Client::connect(&world.daemon.nbd_socket(), "secret1").write(0, &block);
    world.move_clock(20 * 60);
    wait::until("a copy", || world.events("copy.done").pop());
    let copies = world.daemon.json(&["copy", "list"]);
    let stored = files_below(&world.daemon.file("vault"));
    assert!(stored.iter().any(|bytes| bytes.len() > 4096), "a block is there");
    let in_clear = |bytes: &Vec<u8>| bytes.windows(64).any(|part| part == &block[..64]);
    assert!(!stored.iter().any(in_clear), "a block is there in clear");
    let id = copies[0]["id"].as_str().unwrap();
    world.daemon.ctl(&["disk", "create", "back1", "--from", id, "--full"]);
    assert_eq!(Client::connect(&world.daemon.nbd_socket(), "back1").read(0, 4096), block);
    // Without the key.
    world.daemon.stop();
    world.daemon.change_setup(|setup| setup.credential("rowd-master-key", ""));
    world.daemon.start();
    world.move_clock(30 * 60);
    let told = world.wait_event("policy.uncopied", "secret1@");
    assert!(told.contains("and not copied") && told.contains("encrypted"), "{told}");
    let snapshots = world.daemon.json(&["snapshot", "list", "secret1"]);
    assert_eq!(snapshots.as_array().map(Vec::len), Some(2), "{snapshots}");
}

fn files_below(dir: &std::path::Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_below(&path)),
            false => found.push(std::fs::read(path).unwrap()),
        }
    }
    found
}

/// TAG-05: an object has at most 64 tags (the guides name no number), each with a key of 1 to 128 characters and a value of at
/// most 128; one more, or a longer one, is refused and changes nothing. TAG-10: they are typed `key=value` and shown `key:value`.
#[test]
fn tags_have_their_limits_and_are_shown_as_the_guides_show_them() {
    let world = World::new();
    let daemon = &world.daemon;
    let long = "x".repeat(128);
    daemon.ctl(&["tag", "set", "data", &format!("{long}={long}")]);
    for bad in [format!("{long}x=v"), format!("k={long}x"), "=v".to_owned()] {
        daemon.json_error(2, &["tag", "set", "data", &bad]);
    }
    let more: Vec<String> = (1..64).map(|number| format!("k{number}=v")).collect();
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    daemon.ctl(&[&["tag", "set", "data"], &more[..]].concat());
    let error = daemon.json_error(14, &["tag", "set", "data", "one=more"]);
    assert_eq!(error["message"], "more than 64 tags");
    daemon.ctl(&["tag", "set", "data", "k1=another"]);
    assert_eq!(daemon.json(&["disk", "show", "data"])["tags"].as_object().unwrap().len(), 64);
    // A new object is no way around it.
    let tags: Vec<String> = (0..65).map(|number| format!("k{number}=v")).collect();
    let tags: Vec<&str> = tags.iter().flat_map(|tag| ["--tag", tag]).collect();
    daemon.json_error(14, &[&["disk", "create", "new1", "--size", "8MiB"], &tags[..]].concat());
    daemon.json_error(14, &[&["policy", "create", "new1", "--at", "1"], &tags[..]].concat());
    assert_eq!(daemon.json(&["disk", "list"]).as_array().unwrap().len(), 1);
    let create =
        ["disk", "create", "doc1", "--size", "8MiB", "--tag", "ECS=Documentation", "--tag", "a=b"];
    daemon.try_ctl(&create).ok().says(&["ECS:Documentation, a:b"]);
    daemon.try_ctl(&["tag", "set", "doc1", "a=c"]).ok().says(&["ECS:Documentation, a:c"]);
    assert_eq!(
        daemon.json(&["disk", "show", "doc1"])["tags"],
        json!({"ECS": "Documentation", "a": "c"})
    );
}

/// BILL-04, GRP-17: groups have no line in the usage: what their snapshots hold counts with the disks, as if they had been made
/// alone. BILL-12: `--top` has the chains that hold most first.
#[test]
fn groups_are_not_metered_and_the_largest_chains_come_first() {
    let world = World::new();
    let daemon = &world.daemon;
    daemon.ctl(&["disk", "create", "log1", "--size", "8MiB"]);
    for (disk, bytes) in [("data", 1 << 20), ("log1", 2 << 20)] {
        Client::connect(&daemon.nbd_socket(), disk).write(0, &vec![7; bytes]);
    }
    let keys =
        |usage: &Value| -> Vec<String> { usage.as_object().unwrap().keys().cloned().collect() };
    let before = daemon.json(&["usage"]);
    daemon.ctl(&["group", "create", "data", "log1", "--name", "both"]);
    let after = daemon.json(&["usage"]);
    assert_eq!(keys(&before), keys(&after));
    assert!(!after.to_string().contains("group"), "{after}");
    assert_eq!(
        (&after["total"]["snapshots"], &after["total"]["snapshot_bytes"]),
        (&json!(2), &json!(3 << 20))
    );
    assert_eq!(
        before["used_bytes"], after["used_bytes"],
        "a group costs what its snapshots cost: nothing at first"
    );
    let top = daemon.json(&["usage", "--top"]);
    let names: Vec<&Value> = top.as_array().unwrap().iter().map(|one| &one["disk_name"]).collect();
    assert_eq!(names, ["log1", "data"], "{top}");
}
