//! Images in repositories: put there once, and made into disks by any daemon that knows the repository.
//!
//! Absent: images of one host (`images.rs` above).

use std::fs;

use rowd_tests::process::{Daemon, Setup};
use rowd_tests::wait;
use serde_json::{Value, json};

use super::copies::{contents, copied, id, noise, url, write};
use super::server::files;

const MIB: u64 = 1 << 20;

/// A daemon with the repository `backup` and the image `web`: a system disk, a data disk and an empty one.
fn with_image(encrypted: bool) -> Daemon {
    let daemon = Setup::default().master_key(&"1".repeat(64)).start();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    let create = ["disk", "create", "system", "--size", "16MiB", "--encrypted"];
    daemon.ctl(&create[..if encrypted { 6 } else { 5 }]);
    daemon.ctl(&["disk", "create", "more", "--size", "8MiB"]);
    write(&daemon, "system", 0, &noise(1, 5 << 20));
    write(&daemon, "more", MIB, &noise(2, 1 << 20));
    for disk in ["system", "more"] {
        daemon.ctl(&["snapshot", "create", disk, "clean"]);
    }
    let from = ["image", "create", "web", "--from", "system@clean", "--data", "more@clean"];
    let about = ["--blank=4MiB", "--family", "pages", "--description", "d", "--tag", "k=v"];
    daemon.ctl(&[&from[..], &about].concat());
    daemon
}

fn other(of: &Daemon, setup: Setup) -> Daemon {
    let daemon = setup.start();
    daemon.ctl(&["repo", "add", "found", &url(of), "--existing"]);
    daemon
}

fn count(value: &Value) -> usize {
    value.as_array().unwrap().len()
}

/// Its snapshots are copied as far as they are not there. Another daemon, with an empty pool, lists it and makes its
/// disks, when the first daemon is gone.
#[test]
fn disks_of_an_image_are_made_from_a_repository_alone() {
    let mut daemon = with_image(false);
    copied(&daemon, "more@clean", "backup");
    let image = daemon.json(&["image", "copy", "web", "--to", "backup"]);
    assert_eq!(count(&daemon.json(&["copy", "list"])), 2);
    daemon.json(&["image", "copy", id(&image), "--to", "backup"]);
    assert_eq!(count(&daemon.json(&["copy", "list"])), 2, "nothing is sent again");
    daemon.ctl(&["image", "deprecate", "web"]);
    daemon.ctl(&["image", "copy", "web", "--to", "backup"]);
    let there = other(&daemon, Setup::default());
    let system = contents(&daemon, "system@clean", 16 * MIB);
    let more = contents(&daemon, "more@clean", 8 * MIB);
    daemon.kill();
    let listed = there.json(&["image", "list", "--repo", "found"]);
    assert_eq!(count(&listed), 1);
    let found = &listed[0];
    assert_eq!((&found["name"], &found["family"]), (&json!("web"), &json!("pages")));
    assert_eq!((&found["tags"], &found["deprecated"]), (&json!({"k": "v"}), &json!(true)));
    assert_eq!((&found["id"], count(&found["disks"])), (&image["id"], 3));
    assert_eq!(found["disks"][1]["snapshot_name"], "more@clean");
    there.try_ctl(&["image", "list", "--repo", "found"]).ok().says(&["web", "pages", "deprecated"]);
    let all = ["disk", "create", "vm", "--from", "web", "--repo", "found", "--with-data"];
    let made = there.json(&all);
    assert_eq!(count(&made), 3);
    assert!(contents(&there, "vm", 16 * MIB) == system);
    assert!(contents(&there, "vm-data1", 8 * MIB) == more);
    assert!(contents(&there, "vm-data2", 4 * MIB).iter().all(|byte| *byte == 0));
    there.ctl(&["disk", "create", "single", "--from", id(&image), "--repo", "found"]);
    assert!(contents(&there, "single", 16 * MIB) == system);
}

/// A copy that an image names stays, whoever deletes it, until the image is taken out. Then everything can go.
#[test]
fn a_copy_that_an_image_needs_is_not_deleted() {
    let daemon = with_image(false);
    let image = daemon.json(&["image", "copy", "web", "--to", "backup"]);
    let there = other(&daemon, Setup::default());
    let copies = daemon.json(&["copy", "list"]);
    for copy in copies.as_array().unwrap() {
        for at in [&daemon, &there] {
            let error = at.json_error(21, &["copy", "delete", id(copy), "--yes"]);
            let told = error["message"].as_str().unwrap();
            assert!(told.contains("web") && told.contains(id(&image)), "{told}");
        }
        there.ctl(&["copy", "verify", id(copy)]);
    }
    daemon.ctl(&["image", "delete", "web", "--yes"]);
    there.ctl(&["image", "delete", "web", "--repo", "found", "--yes"]);
    there.json_error(20, &["image", "delete", "web", "--repo", "found", "--yes"]);
    assert_eq!(there.json(&["image", "list", "--repo", "found"]), json!([]));
    for copy in copies.as_array().unwrap() {
        there.ctl(&["copy", "delete", id(copy), "--yes"]);
    }
    wait::until("an empty repository", || (files(&daemon.file("vault")).len() == 1).then_some(()));
}

/// A delete that was interrupted comes first: an image is not made of what is about to go.
#[test]
fn an_image_is_not_made_of_copies_that_are_being_deleted() {
    let daemon = with_image(false);
    let copy = copied(&daemon, "system@clean", "backup");
    let faulty = Setup::default().program(env!("CARGO_BIN_EXE_rowd-faulty"));
    let mut there = other(&daemon, faulty.env("ROWD_FAIL_POINT", "delete.marked:1"));
    there.try_ctl(&["copy", "delete", id(&copy), "--yes"]);
    there.wait_ended();
    daemon.json_error(15, &["image", "copy", "web", "--to", "backup"]);
    assert_eq!(daemon.json(&["image", "list", "--repo", "backup"]), json!([]));
}

/// All disks of an image are made or none: not when a name is taken, nor when a key is not there.
#[test]
fn of_the_disks_of_an_image_all_are_made_or_none() {
    let daemon = with_image(true);
    daemon.ctl(&["image", "copy", "web", "--to", "backup"]);
    let all = ["disk", "create", "vm", "--from", "web", "--repo", "found", "--with-data"];
    let keyless = other(&daemon, Setup::default());
    keyless.json_error(1, &all);
    assert_eq!(keyless.json(&["disk", "list"]), json!([]));
    let there = other(&daemon, Setup::default().master_key(&"1".repeat(64)));
    there.ctl(&["disk", "create", "vm-data2", "--size", "1MiB"]);
    there.json_error(21, &all);
    assert_eq!(count(&there.json(&["disk", "list"])), 1);
    there.ctl(&["disk", "delete", "vm-data2", "--yes"]);
    there.ctl(&all);
    for (disk, encrypted) in [("vm", true), ("vm-data1", false), ("vm-data2", true)] {
        assert_eq!(there.json(&["disk", "show", disk])["encrypted"], encrypted, "{disk}");
    }
    assert!(contents(&there, "vm", 16 * MIB) == contents(&daemon, "system@clean", 16 * MIB));
}

/// What cannot be meant is refused in words.
#[test]
fn images_of_repositories_that_make_no_sense_are_refused() {
    let daemon = with_image(false);
    for (code, args) in [
        (20, &["image", "copy", "none", "--to", "backup"][..]),
        (20, &["image", "copy", "web", "--to", "none"]),
        (20, &["image", "list", "--repo", "none"]),
        (20, &["disk", "create", "vm", "--from", "web", "--repo", "backup"]),
        (20, &["image", "delete", "m-none", "--repo", "backup", "--yes"]),
    ] {
        daemon.json_error(code, args);
    }
    assert_eq!(files(&daemon.file("vault")).len(), 1);
}

/// Promise: an image is made of copies where they are, by a daemon that has nothing else of them; its disks are theirs.
#[test]
fn an_image_is_made_directly_of_copies() {
    let daemon = with_image(false);
    let system = copied(&daemon, "system@clean", "backup");
    copied(&daemon, "more@clean", "backup");
    let more = daemon.json(&["snapshot", "show", "more@clean"])["id"].clone();
    let there = other(&daemon, Setup::default());
    let create = ["image", "create", "site", "--repo", "found", "--from"];
    let about = ["--blank=4MiB", "--family", "pages", "--tag", "k=v", "--data"];
    let error = there.json_error(20, &[&create[..], &["c-0000nothing"]].concat());
    assert!(error["message"].as_str().unwrap().contains("no copy c-0000nothing"), "{error}");
    let error = there.json_error(2, &["image", "create", "site", "--from", id(&system)]);
    assert!(error["hint"].as_str().unwrap().contains("--repo"), "{error}");
    let made =
        there.json(&[&create[..], &[id(&system)], &about, &[more.as_str().unwrap()]].concat());
    let names: Vec<&Value> =
        made["disks"].as_array().unwrap().iter().map(|d| &d["snapshot_name"]).collect();
    assert_eq!(names, [&json!("system@clean"), &json!("more@clean"), &Value::Null]);
    assert_eq!((&made["family"], &made["tags"]["k"]), (&json!("pages"), &json!("v")));
    for name in ["site", "pages"] {
        let args = ["image", "create", name, "--repo", "found", "--from", id(&system)];
        there.try_ctl(&args).fails_with(21).says(&["has an image or a family"]);
    }
    assert_eq!(count(&there.json(&["image", "list", "--repo", "found"])), 1);
    assert_eq!(count(&there.json(&["image", "list"])), 0, "nothing of it is here");
    daemon.json_error(21, &["copy", "delete", id(&system), "--yes"]);
    there.ctl(&["disk", "create", "vm", "--from", "site", "--repo", "found", "--with-data"]);
    let (first, second) = ("system@clean", "more@clean");
    assert!(contents(&there, "vm", 16 * MIB) == contents(&daemon, first, 16 * MIB));
    assert!(contents(&there, "vm-data1", 8 * MIB) == contents(&daemon, second, 8 * MIB));
    assert_eq!(there.json(&["disk", "show", "vm-data2"])["size"], 4 * MIB);
}
