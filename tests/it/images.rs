//! Images: templates of disks, what they hold on to, and their files.
//!
//! Absent: images of snapshots that are only in a repository.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rowd::engine::api::{DiskSpec, ImageSource, ImageSpec, Tags};
use rowd::engine::{Engine, Settings};

use rowd_tests::client::Client;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::{tool, wait};
use serde_json::{Value, json};

use crate::model::machine::{BY, settings};

const BLOCK: usize = 4096;

/// A daemon with disks of 1 GiB, all of them 1, and a snapshot `clean` of each.
fn daemon(disks: &[&str]) -> Daemon {
    let daemon = Daemon::new();
    make(&daemon, disks);
    daemon
}

fn make(daemon: &Daemon, disks: &[&str]) {
    for disk in disks {
        daemon.ctl(&["disk", "create", disk, "--size", "1GiB"]);
        fill(daemon, disk, 1);
        daemon.ctl(&["snapshot", "create", disk, "clean"]);
    }
}

fn fill(daemon: &Daemon, disk: &str, value: u8) {
    Client::connect(&daemon.nbd_socket(), disk).write(0, &[value; BLOCK]);
    wait_alone(daemon, disk);
}

#[track_caller]
fn is(daemon: &Daemon, export: &str, value: u8) {
    let data = Client::connect(&daemon.nbd_socket(), export).read(0, 4096);
    assert_eq!(data, [value; BLOCK], "{export}");
    if !export.contains('@') {
        wait_alone(daemon, export);
    }
}

/// Connections that were dropped take a moment to be noticed.
fn wait_alone(daemon: &Daemon, disk: &str) {
    wait::until("nobody is connected", || {
        (daemon.json(&["disk", "show", disk])["clients"] == json!([])).then_some(())
    });
}

#[track_caller]
fn message(error: &Value) -> &str {
    error["message"].as_str().expect("a message")
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().filter_map(|one| one["name"].as_str()).collect()
}

/// IMG-01, 05, 08, 11, 27, 29: what an image was told it tells, and a disk of it is the snapshot, when the source
/// is long gone, and whatever happens to disks that were made of it.
#[test]
fn a_disk_from_an_image_is_its_snapshot_also_when_the_source_is_gone() {
    let mut daemon = daemon(&["vm"]);
    let made = daemon.json(&[
        "image",
        "create",
        "web-1",
        "--from",
        "vm@clean",
        "--family",
        "web",
        "--description",
        "the shop",
        "--tag",
        "env=test",
    ]);
    assert!(made["id"].as_str().is_some_and(|id| id.starts_with("m-") && id.len() == 18));
    // IMG-10: people are told that secrets on the disks are in it too.
    let told = daemon.try_ctl(&["image", "create", "told", "--from", "vm@clean"]).ok();
    assert!(told.stderr.contains("passwords, keys and network settings"), "{told}");
    fill(&daemon, "vm", 9);
    daemon.ctl(&["disk", "create", "first", "--from", "web-1"]);
    fill(&daemon, "first", 7);
    daemon.ctl(&["disk", "resize", "first", "2GiB"]);
    daemon.ctl(&["disk", "delete", "vm", "--yes"]);
    daemon.crash();
    let shown = daemon.json(&["image", "show", "web-1"]);
    let field = |name: &str| shown[name].clone();
    assert_eq!(
        (field("id"), field("family"), field("description"), field("tags")),
        (made["id"].clone(), json!("web"), json!("the shop"), json!({"env": "test"}))
    );
    assert_eq!((field("total_size"), field("current")), (json!(1 << 30), json!(true)));
    let system = &shown["disks"][0];
    assert_eq!(
        (&system["role"], &system["snapshot_id"]),
        (&json!("system"), &made["disks"][0]["snapshot_id"])
    );
    let second = daemon.json(&["disk", "create", "second", "--from", "web", "--size", "3GiB"]);
    assert_eq!(second["image"], json!({"id": made["id"], "name": "web-1"}));
    is(&daemon, "second", 1);
    is(&daemon, "first", 7);
    let made_disks = daemon.json(&["image", "show", "web-1"])["made_disks"].clone();
    assert_eq!(made_disks.as_array().map(Vec::len), Some(2));
    daemon.ctl(&["disk", "reinit", "first", "--yes"]);
    is(&daemon, "first", 1);
    let events = daemon.json(&["events"]);
    let kinds: Vec<_> = events.as_array().unwrap().iter().map(|one| one["kind"].clone()).collect();
    assert!(kinds.contains(&json!("image.create")), "{kinds:?}");
}

/// IMG-12, 13, 26: one data disk of the size of its snapshot, which may be a group's, and an empty one of 5 GiB;
/// all of them are made, or none.
#[test]
fn all_disks_of_an_image_are_made_or_none() {
    let mut daemon = daemon(&["vm"]);
    daemon.ctl(&["disk", "create", "data", "--size", "2GiB"]);
    fill(&daemon, "data", 2);
    daemon.ctl(&["disk", "create", "near", "--from", "vm@clean"]);
    fill(&daemon, "near", 3);
    daemon.ctl(&["group", "create", "vm", "data", "near", "--name", "all"]);
    let data = ["--data", "data@all", "--data", "near@all", "--blank", "--blank=8MiB"];
    let create = ["image", "create", "web", "--from", "vm@all"];
    let made = daemon.json(&[&create[..], &data[..]].concat());
    let sizes: Vec<u64> =
        made["disks"].as_array().unwrap().iter().filter_map(|one| one["size"].as_u64()).collect();
    assert_eq!(sizes, [1 << 30, 2 << 30, 1 << 30, 5 << 30, 8 << 20]);
    let deploy = ["disk", "create", "new", "--from", "web", "--with-data", "--tag", "a=b"];
    daemon.ctl(&["disk", "create", "new-data3", "--size", "4KiB"]);
    let error = daemon.json_error(21, &deploy);
    assert!(message(&error).contains("new-data3"), "{error}");
    assert_eq!(daemon.json(&["disk", "list"]).as_array().map(Vec::len), Some(4));
    daemon.ctl(&["disk", "delete", "new-data3", "--yes"]);
    let disks = daemon.json(&deploy);
    assert_eq!(names(&disks), ["new", "new-data1", "new-data2", "new-data3", "new-data4"]);
    daemon.crash();
    for (disk, value, size) in [
        ("new", 1, 1u64 << 30),
        ("new-data1", 2, 2 << 30),
        ("new-data2", 3, 1 << 30),
        ("new-data3", 0, 5 << 30),
        ("new-data4", 0, 8 << 20),
    ] {
        is(&daemon, disk, value);
        let shown = daemon.json(&["disk", "show", disk]);
        assert_eq!((&shown["size"], &shown["tags"]), (&json!(size), &json!({"a": "b"})), "{disk}");
    }
    fill(&daemon, "new-data3", 5);
    is(&daemon, "new-data4", 0);
    // One alone, and a word about the others.
    let told = daemon.try_ctl(&["disk", "create", "alone", "--from", "web"]).ok();
    told.says(&["image web has data disks too (4); --with-data makes them"]);
}

/// IMG-02, 18, FAQ-14: there is no image without a system disk, nor of things that are not there.
#[test]
fn an_image_that_cannot_be_made_leaves_nothing_and_says_why() {
    let daemon = daemon(&["vm"]);
    let create = |more: &[&'static str]| [&["image", "create", "web"], more].concat();
    daemon.json_error(2, &create(&["--data", "vm@clean"]));
    daemon.json_error(2, &create(&["--blank"]));
    daemon.json_error(20, &create(&["--from", "vm@missing"]));
    daemon.json_error(20, &create(&["--from", "vm@clean", "--data", "vm@missing"]));
    daemon.json_error(20, &create(&["--from", "vm"]));
    daemon.json_error(2, &create(&["--from", "vm@clean", "--blank=1000"]));
    daemon.json_error(2, &create(&["--from", "vm@clean", "--family", "web"]));
    daemon.json_error(2, &["image", "create", "a b", "--from", "vm@clean"]);
    let many = [&["--from", "vm@clean"][..], &["--blank"; 16]].concat();
    daemon.json_error(14, &create(&many));
    assert_eq!(daemon.json(&["image", "list"]), json!([]));
    daemon.ctl(&create(&["--from", "vm@clean", "--family", "shop"]));
    daemon.json_error(21, &create(&["--from", "vm@clean"]));
    daemon.json_error(21, &["image", "create", "shop", "--from", "vm@clean"]);
    daemon.json_error(21, &["image", "create", "other", "--from", "vm@clean", "--family", "web"]);
    let error = daemon.json_error(20, &["image", "show", "wen"]);
    assert_eq!(error["hint"], "did you mean 'web'?");
    daemon.ctl(&["image", "create", "clean", "--from", "vm@clean"]);
    let error = daemon.json_error(2, &["disk", "create", "new", "--from", "clean"]);
    assert_eq!(message(&error), "'clean' is an image and a snapshot");
    daemon.ctl(&["disk", "create", "new", "--from", "vm@clean"]);
}

/// IMG-14: a family is its newest image that is not deprecated; a name always means the image.
#[test]
fn a_family_means_its_newest_image_that_is_not_deprecated() {
    let mut daemon = daemon(&["vm"]);
    for (image, value) in [("web-1", 1), ("web-2", 2), ("web-3", 3)] {
        fill(&daemon, "vm", value);
        let from = format!("vm@of-{image}");
        daemon.ctl(&["snapshot", "create", "vm", &from[3..]]);
        daemon.ctl(&["image", "create", image, "--from", &from, "--family", "web"]);
    }
    let current = |daemon: &Daemon| daemon.json(&["image", "show", "web"])["name"].clone();
    assert_eq!(current(&daemon), "web-3");
    let told = daemon.json(&["image", "deprecate", "web-3"]);
    assert_eq!((&told["deprecated"], &told["current"]), (&json!(true), &json!(false)));
    daemon.crash();
    assert_eq!(current(&daemon), "web-2");
    daemon.ctl(&["disk", "create", "by-family", "--from", "web"]);
    is(&daemon, "by-family", 2);
    daemon.ctl(&["disk", "create", "by-name", "--from", "web-3"]);
    is(&daemon, "by-name", 3);
    daemon.ctl(&["image", "delete", "web-2", "--yes"]);
    daemon.ctl(&["image", "deprecate", "web-1"]);
    let error = daemon.json_error(15, &["disk", "create", "none", "--from", "web"]);
    assert_eq!(message(&error), "all images of the family \"web\" are deprecated");
    daemon.ctl(&["image", "restore", "web-3"]);
    assert_eq!(current(&daemon), "web-3");
    // What means another image tomorrow is not changed or deleted today.
    for verb in
        [&["delete", "web", "--yes"][..], &["deprecate", "web"], &["set", "web", "--name", "x1"]]
    {
        let error = daemon.json_error(2, &[&["image"], verb].concat());
        assert!(message(&error).contains("family of images"), "{error}");
    }
    // Out of the family, out of its states.
    let told = daemon.json(&["image", "set", "web-1", "--family", "", "--name", "old"]);
    assert_eq!((&told["family"], &told["deprecated"]), (&Value::Null, &json!(false)));
    daemon.json_error(15, &["image", "deprecate", "old"]);
    daemon.json_error(21, &["image", "set", "old", "--name", "web"]);
    daemon.ctl(&["tag", "set", "web-3", "keep=yes"]);
    assert_eq!(daemon.json(&["image", "show", "web-3"])["tags"], json!({"keep": "yes"}));
    assert_eq!(names(&daemon.json(&["image", "list"])), ["old", "web-3"]);
}

/// IMG-15, DEL-10, DEL-11, FAQ-10, FAQ-16: with force neither, nor in a group, and the image is named.
#[test]
fn a_snapshot_of_an_image_stays_until_the_image_is_gone() {
    let mut daemon = daemon(&["vm", "data"]);
    daemon.ctl(&["group", "create", "vm", "data", "--name", "all"]);
    let create = ["image", "create", "web", "--from", "vm@clean", "--data", "data@all"];
    let id = daemon.json(&create)["id"].as_str().unwrap().to_owned();
    daemon.crash();
    let refused = |daemon: &Daemon, ask: &[&str]| {
        let error = daemon.json_error(21, ask);
        assert_eq!(error["kind"], "in_use");
        assert!(message(&error).contains(&format!("web ({id})")), "{error}");
        assert!(
            error["hint"].as_str().is_some_and(|hint| hint.contains("rowctl image delete web"))
        );
    };
    for snapshot in ["vm@clean", "data@all"] {
        refused(&daemon, &["snapshot", "delete", snapshot, "--yes"]);
        refused(&daemon, &["snapshot", "delete", snapshot, "--yes", "--force"]);
    }
    refused(&daemon, &["group", "delete", "all", "--yes", "--force"]);
    assert_eq!(daemon.json(&["snapshot", "list"]).as_array().map(Vec::len), Some(4));
    assert_eq!(daemon.json(&["snapshot", "show", "vm@clean"])["images"], json!([id]));
    // The disk may go: its snapshots stay.
    daemon.ctl(&["disk", "delete", "data", "--yes"]);
    daemon.ctl(&["image", "create", "second", "--from", "vm@clean"]);
    let error = daemon.json_error(21, &["image", "delete", "web", "--with-snapshots", "--yes"]);
    assert!(message(&error).contains("second"), "{error}");
    daemon.ctl(&["image", "delete", "web", "--yes"]);
    daemon.json_error(20, &["image", "show", "web"]);
    daemon.ctl(&["group", "delete", "all", "--yes"]);
    daemon.json_error(21, &["snapshot", "delete", "vm@clean", "--yes", "--force"]);
    let done = daemon.json(&["image", "delete", "second", "--with-snapshots", "--yes"]);
    assert_eq!(done["snapshots"], 1);
    assert_eq!(names(&daemon.json(&["snapshot", "list"])), ["clean"], "that of the other disk");
    daemon.ctl(&["snapshot", "delete", "clean", "--yes"]);
    daemon.ctl(&["disk", "delete", "vm", "--yes"]);
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), 0);
}

/// The state before a rollback goes with its disk; while an image is made of it the disk stays.
#[test]
fn a_disk_stays_while_an_image_is_made_of_what_would_go_with_it() {
    let daemon = daemon(&["vm"]);
    fill(&daemon, "vm", 2);
    let done = daemon.json(&["disk", "rollback", "vm", "clean", "--yes"]);
    let undo = done["undo"].as_str().unwrap();
    daemon.ctl(&["image", "create", "before", "--from", undo]);
    let error = daemon.json_error(21, &["disk", "delete", "vm", "--yes", "--force"]);
    assert!(message(&error).starts_with("vm cannot be deleted: image before (m-"), "{error}");
    is(&daemon, "vm", 1);
    daemon.ctl(&["disk", "create", "new", "--from", "before"]);
    is(&daemon, "new", 2);
    daemon.ctl(&["image", "delete", "before", "--yes"]);
    wait_alone(&daemon, "vm");
    daemon.ctl(&["disk", "delete", "vm", "--yes"]);
    is(&daemon, "new", 2);
}

/// IMG-16, DEL-12, DISK-14: an image goes although disks were made of it. They are whole, and go back to their
/// first contents for as long as the snapshot is there.
#[test]
fn a_disk_outlives_its_image_and_is_reinitialised_while_the_snapshot_is_there() {
    let daemon = daemon(&["vm"]);
    daemon.ctl(&["image", "create", "web", "--from", "vm@clean"]);
    daemon.ctl(&["disk", "create", "new", "--from", "web"]);
    daemon.ctl(&["image", "delete", "web", "--yes"]);
    let shown = daemon.json(&["disk", "show", "new"]);
    assert_eq!((&shown["image"]["name"], &shown["origin"]["exists"]), (&Value::Null, &json!(true)));
    fill(&daemon, "new", 2);
    daemon.ctl(&["disk", "reinit", "new", "--yes"]);
    is(&daemon, "new", 1);
    daemon.ctl(&["image", "create", "again", "--from", "vm@clean"]);
    daemon.json_error(21, &["image", "delete", "again", "--with-snapshots", "--yes"]);
    daemon.ctl(&["image", "delete", "again", "--with-snapshots", "--force", "--yes"]);
    let error = daemon.json_error(15, &["disk", "reinit", "new", "--yes"]);
    let image = shown["image"]["id"].as_str().unwrap();
    assert!(message(&error).contains(&format!("from image {image}, whose snapshot is deleted")));
    is(&daemon, "new", 1);
}

/// IMG-17, SNAP-30: all disks of an instance at one instant, the system disk first.
#[test]
fn an_image_of_an_instance_has_a_snapshot_of_each_of_its_disks() {
    let daemon = daemon(&["root", "data", "other"]);
    daemon.ctl(&["instance", "add", "web1"]);
    daemon.json_error(3, &["image", "create", "web", "--instance", "web1"]);
    for disk in ["data", "root"] {
        daemon.ctl(&["disk", "set", disk, "--instance", "web1"]);
    }
    let error = daemon.json_error(2, &["image", "create", "web", "--instance", "web1"]);
    assert!(message(&error).contains("several disks: data, root"), "{error}");
    let of =
        |system: &'static str| ["image", "create", "web", "--instance", "web1", "--system", system];
    daemon.json_error(2, &of("other"));
    assert_eq!(daemon.json(&["snapshot", "list"]).as_array().map(Vec::len), Some(3));
    fill(&daemon, "root", 2);
    fill(&daemon, "data", 3);
    let made = daemon.json(&of("root"));
    fill(&daemon, "root", 9);
    let first = made["disks"][0]["snapshot_name"].as_str().unwrap();
    assert!(first.starts_with("root@image-"), "{made}");
    let snapshot = daemon.json(&["snapshot", "show", first]);
    assert_eq!(
        (&snapshot["kind"], &snapshot["description"]),
        (&json!("manual"), &json!("made for image web"))
    );
    daemon.ctl(&["disk", "create", "new", "--from", "web", "--with-data", "--instance", "web1"]);
    is(&daemon, "new", 2);
    is(&daemon, "new-data1", 3);
    assert_eq!(daemon.json(&["disk", "show", "new-data1"])["instance_name"], "web1");
}

/// IMG-03, ENC-05: encrypted and plain snapshots make images; disks of them are as the snapshots are.
#[test]
fn a_disk_of_an_image_is_encrypted_as_its_snapshot_is() {
    let mut daemon = Setup::default().master_key(&"5a".repeat(32)).start();
    make(&daemon, &["plain"]);
    let (raw, bytes) = disk_file(&daemon, 7);
    let import = ["image", "import", &raw, "--format", "raw", "secret", "--encrypted"];
    let imported = daemon.json(&import);
    let system = imported["disks"][0]["snapshot_id"].as_str().unwrap();
    let both = ["image", "create", "both", "--from", system, "--data", "plain@clean", "--blank"];
    let both = daemon.json(&both);
    daemon.crash();
    let encrypted = |list: &Value| {
        let all = list.as_array().expect("a list");
        all.iter().map(|disk| disk["encrypted"] == true).collect::<Vec<_>>()
    };
    assert_eq!(encrypted(&both["disks"]), [true, false, true]);
    let disks = daemon.json(&["disk", "create", "new", "--from", "both", "--with-data"]);
    assert_eq!(encrypted(&disks), [true, false, true]);
    is(&daemon, "new", 7);
    is(&daemon, "new-data1", 1);
    fill(&daemon, "new-data2", 3);
    is(&daemon, "new-data2", 3);
    // What comes out is what went in.
    let out = daemon.path("out.qcow2");
    daemon.ctl(&["image", "export", "secret", &out, "--format", "qcow2"]);
    let back = daemon.path("back");
    tool::run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &out, &back]).ok();
    assert!(fs::read(back).unwrap()[..bytes.len()] == bytes);
}

/// A kill between the record of an image and the answer: it is there with the snapshots that were cut for it.
#[test]
fn an_image_that_was_cut_off_is_whole() {
    let setup = Setup::default().program(tool::built("rowd-faulty"));
    let mut daemon = setup.env("ROWD_FAIL_POINT", "snapshot.journaled:2").start();
    make(&daemon, &["root"]);
    daemon.json_error(23, &["image", "create", "web", "--instance", "local"]);
    daemon.wait_ended();
    daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "snapshot.journaled:1000000"));
    daemon.start();
    let shown = daemon.json(&["image", "show", "web"]);
    let snapshot = shown["disks"][0]["snapshot_name"].as_str().unwrap();
    is(&daemon, snapshot, 1);
    daemon.json_error(21, &["snapshot", "delete", snapshot, "--yes", "--force"]);
}

/// A file of 3 MiB and 512 bytes with a hole, made of this byte.
fn disk_file(daemon: &Daemon, value: u8) -> (String, Vec<u8>) {
    let mut bytes = vec![value; (3 << 20) + 512];
    bytes[1 << 20..2 << 20].fill(0);
    fs::write(daemon.file("disk.img"), &bytes).unwrap();
    (daemon.path("disk.img"), bytes)
}

/// IMG-20, 21, FAQ-15: raw or qcow2, the file that comes out is the disk that went in.
#[test]
fn an_image_goes_through_files_of_both_formats_unchanged() {
    let daemon = Daemon::new();
    let (raw, bytes) = disk_file(&daemon, 7);
    let qcow2 = daemon.path("disk.qcow2");
    tool::run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2]).ok();
    for (format, file) in [("raw", &raw), ("qcow2", &qcow2)] {
        let import = ["image", "import", file, "--format", format, format, "--family", "both"];
        let made = daemon.json(&import);
        // Whole blocks of a disk.
        assert_eq!(
            (&made["total_size"], &made["name"]),
            (&json!((3 << 20) + 4096), &json!(format))
        );
        for out in ["raw", "qcow2"] {
            let path = daemon.path(&format!("{format}-to-{out}"));
            let told = daemon.json(&["image", "export", format, &path, "--format", out]);
            assert_eq!((&told["format"], &told["size"]), (&json!(out), &json!((3 << 20) + 4096)));
            let back = daemon.path("back");
            tool::run("qemu-img", &["convert", "-f", out, "-O", "raw", &path, &back]).ok();
            let back = fs::read(back).unwrap();
            assert!(back[..bytes.len()] == bytes && back[bytes.len()..].iter().all(|b| *b == 0));
        }
    }
    assert_eq!(daemon.json(&["disk", "list"]), json!([]), "no disk is left of an import");
    tool::run("qemu-img", &["check", "-f", "qcow2", &daemon.path("raw-to-qcow2")]).ok();
    // Disks go the same way.
    daemon.ctl(&["disk", "import", "copy", &qcow2, "--format", "qcow2"]);
    is(&daemon, "copy", 7);
    let error = daemon.json_error(21, &["disk", "export", "copy", &qcow2, "--format", "qcow2"]);
    assert!(message(&error).contains("exists"), "{error}");
    daemon.ctl(&["disk", "export", "copy", &qcow2, "--format", "qcow2", "--force"]);
    daemon.json_error(2, &["disk", "export", "copy", "-", "--format", "qcow2"]);
}

/// Nothing but the named file is read: what refers to another is refused, and a raw disk that looks like
/// qcow2 stays raw.
#[test]
fn a_file_that_needs_another_is_refused_and_no_format_is_guessed() {
    let daemon = Daemon::new();
    let (raw, _) = disk_file(&daemon, 7);
    let refused = |file: &str, why: &str| {
        let error = daemon.json_error(2, &["image", "import", file, "--format", "qcow2", "evil"]);
        assert!(message(&error).contains(why), "{error}");
        assert_eq!(daemon.json(&["disk", "list"]), json!([]));
    };
    let backed = daemon.path("backed.qcow2");
    tool::run("qemu-img", &["create", "-f", "qcow2", "-b", &raw, "-F", "raw", &backed]).ok();
    refused(&backed, "backing file");
    let outside = daemon.path("outside.qcow2");
    let option = format!("data_file={}", daemon.path("outside.raw"));
    tool::run("qemu-img", &["create", "-f", "qcow2", "-o", &option, &outside, "1M"]).ok();
    refused(&outside, "data are in another file");
    refused(&raw, "no qcow2 file");
    daemon.json_error(20, &["image", "import", &daemon.path("none"), "--format", "qcow2", "evil"]);
    daemon.json_error(2, &["image", "import", &raw, "evil"]);
    // The bytes of a qcow2 file as the contents of a disk: they stay what they are, through both formats.
    let inner = fs::read(&backed).unwrap();
    daemon.ctl(&["image", "import", &backed, "--format", "raw", "inside"]);
    let out = daemon.path("out.qcow2");
    daemon.ctl(&["image", "export", "inside", &out, "--format", "qcow2"]);
    let back = daemon.path("back");
    tool::run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &out, &back]).ok();
    assert!(fs::read(back).unwrap()[..inner.len()] == inner);
}

/// What is left of an import or export that cannot be finished is nothing, and who is missing is named.
#[test]
fn a_copy_that_fails_leaves_nothing() {
    let config = SMALL.replace("[pool]", "[pool]\nmax_size = \"64MiB\"");
    let daemon = Setup::default().config(&config).start();
    let big = daemon.path("big.qcow2");
    let noise = daemon.path("noise");
    fs::write(&noise, [9u8; 65536].repeat(1600)).unwrap();
    tool::run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &noise, &big]).ok();
    let error = daemon.json_error(22, &["image", "import", &big, "--format", "qcow2", "big"]);
    assert!(message(&error).contains("its disk is deleted again"), "{error}");
    assert_eq!(daemon.json(&["disk", "list"]), json!([]));
    daemon.ctl(&["disk", "create", "small", "--size", "1MiB"]);
    let out = daemon.path("out.qcow2");
    let mut export: Command =
        daemon.ctl_command(&["disk", "export", "small", &out, "--format", "qcow2", "-o", "json"]);
    let said = export.env("PATH", daemon.path("nowhere")).output().unwrap();
    let error: Value = serde_json::from_slice(&said.stderr).unwrap();
    assert_eq!((said.status.code(), &error["error"]["kind"]), (Some(1), &json!("condition")));
    assert!(message(&error["error"]).contains("qemu-img is not installed"), "{error}");
    let left = fs::read_dir(daemon.file("")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("out.qcow2")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The qemu-img that rowctl has started; before it is that it is a copy of rowctl, which waits for it.
fn qemu_img(rowctl: &Child) -> Option<Pid> {
    let pid = rowctl.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let child = children.split_whitespace().next()?;
    let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    (name.trim() == "qemu-img").then(|| child.parse().ok().map(Pid::from_raw))?
}

/// Ctrl-C in the middle of an import: rowctl ends qemu-img, and no disk is left.
#[test]
fn an_import_that_is_interrupted_leaves_nothing() {
    let daemon = Daemon::new();
    let big = daemon.path("big.qcow2");
    let noise = daemon.path("noise");
    fs::write(&noise, [9u8; 65536].repeat(1600)).unwrap();
    tool::run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &noise, &big]).ok();
    let import = ["-o", "json", "image", "import", &big, "--format", "qcow2", "big"];
    let mut command = daemon.ctl_command(&import);
    let rowctl = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let qemu_img = wait::until("qemu-img", || qemu_img(&rowctl));
    // So that it cannot be done before the signal comes.
    kill(qemu_img, Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(rowctl.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let said = rowctl.wait_with_output().unwrap();
    let error: Value = serde_json::from_slice(&said.stderr).unwrap();
    assert_eq!((said.status.code(), &error["error"]["kind"]), (Some(25), &json!("cancelled")));
    assert!(message(&error["error"]).contains("its disk is deleted again"), "{error}");
    assert!(kill(qemu_img, None).is_err(), "qemu-img has outlived rowctl");
    assert_eq!(daemon.json(&["disk", "list"]), json!([]));
}

/// Expiry passes over what an image is made of, and comes back to it when the image is gone.
#[test]
fn an_image_keeps_the_state_before_a_rollback_beyond_its_time() {
    let dir = tempfile::Builder::new().prefix("rowd-image-").tempdir_in("/dev/shm").unwrap();
    let undo_kept = Duration::ZERO;
    let settings = Settings { background: true, undo_kept, ..settings(dir.path()) };
    let engine = Engine::open(settings).unwrap();
    let spec = DiskSpec { name: "vm".to_owned(), size: Some(1 << 20), ..DiskSpec::default() };
    let disk = engine.disk_create(BY, spec).unwrap().id;
    let system = engine.disk_reinit(BY, &disk, false).unwrap().undo.unwrap().id;
    let spec = ImageSpec {
        name: "before".to_owned(),
        description: String::new(),
        family: None,
        source: ImageSource::Snapshots { system: system.clone(), data: Vec::new() },
        blank: Vec::new(),
        tags: Tags::new(),
    };
    let image = engine.image_create(BY, spec).unwrap().id;
    let other = engine.disk_reinit(BY, &disk, false).unwrap().undo.unwrap().id;
    wait::until("the end of the other", || engine.snapshot(&other).is_err().then_some(()));
    assert!(engine.snapshot(&system).is_ok());
    engine.image_delete(BY, &image, false, false).unwrap();
    wait::until("its own end", || engine.snapshot(&system).is_err().then_some(()));
    engine.close().unwrap();
}
