//! Lists by tag, and dry runs of what holds snapshots: what an action on many would concern.
//!
//! Absent: tags as such (`chains.rs`), dry runs of disks and snapshots (`trash.rs`, `chains.rs`).

use std::fs;

use rowd_tests::client::Client;
use rowd_tests::process::Daemon;
use rowd_tests::tool;
use serde_json::{Value, json};

/// The names, or ids where there is none, of what a list has.
fn names(daemon: &Daemon, args: &[&str]) -> Vec<String> {
    let listed = daemon.json(args);
    let name = |one: &Value| one["name"].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(name).collect()
}

/// TAG-01, 02, 03, 04, 09, PERM-12: each list can be cut down to a tag, and what is left can be acted on.
#[test]
fn lists_are_cut_down_to_a_tag() {
    let daemon = Daemon::new();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "away", &format!("file://{}", daemon.path("vault"))]);
    for (name, tag) in [("db1", "env=live"), ("db2", "env=test"), ("db3", "purpose=x")] {
        daemon.ctl(&["disk", "create", name, "--size", "1MiB", "--tag", tag]);
        daemon.ctl(&["snapshot", "create", name, &format!("of-{name}"), "--tag", tag]);
        let group = format!("group-{name}");
        daemon.ctl(&["group", "create", name, "--name", &group, "--tag", tag]);
        let (image, from) = (format!("image-{name}"), format!("{name}@of-{name}"));
        daemon.ctl(&["image", "create", &image, "--from", &from, "--tag", tag]);
        daemon.ctl(&["instance", "add", &format!("vm-{name}"), "--tag", tag]);
        daemon.ctl(&["policy", "create", &format!("p-{name}"), "--at", "1", "--tag", tag]);
        daemon.ctl(&["snapshot", "copy", &from, "--to", "away", "--tag", tag, "--wait"]);
    }
    for (noun, prefix) in [
        ("disk", ""),
        ("snapshot", "of-"),
        ("group", "group-"),
        ("image", "image-"),
        ("instance", "vm-"),
        ("policy", "p-"),
    ] {
        let list = |filters: &[&str]| names(&daemon, &[&[noun, "list"], filters].concat());
        let [db1, db2] = ["db1", "db2"].map(|name| format!("{prefix}{name}"));
        assert_eq!(list(&["--filter", "tag:env=test"]), [db2.as_str()], "{noun}");
        assert_eq!(list(&["--filter", "tag:env"]), [db1.as_str(), db2.as_str()], "{noun}");
        let both = ["--filter", "tag:env", "--filter", "tag:env=test"];
        assert_eq!(list(&both), [db2.as_str()], "{noun}");
        assert!(list(&["--filter", "tag:env=none"]).is_empty(), "{noun}");
        let error = daemon.json_error(2, &[noun, "list", "--filter", "env=test"]);
        assert!(error["message"].as_str().unwrap().contains("tag:key=value"), "{error}");
    }
    let copies = daemon.json(&["copy", "list", "--filter", "tag:env=live"]);
    assert_eq!(copies.as_array().unwrap().len(), 1);
    assert_eq!(copies[0]["detail"]["snapshot_name"], "of-db1");
    // What is listed is what the next command takes.
    let ids = daemon.ctl(&["-q", "snapshot", "list", "--filter", "tag:env=test"]);
    assert_eq!(ids.lines().count(), 1);
    daemon.ctl(&["tag", "set", ids.trim(), "env=live"]);
    let live = names(&daemon, &["snapshot", "list", "--filter", "tag:env=live"]);
    assert_eq!(live, ["of-db1", "of-db2"]);
    daemon.ctl(&["tag", "remove", "db1", "env"]);
    assert!(names(&daemon, &["disk", "list", "--filter", "tag:env=live"]).is_empty());
}

/// COPY-17: the snapshots of a tag are copied by what `snapshot copy --help` shows, and no others.
#[test]
fn the_snapshots_of_a_tag_are_copied_together() {
    let daemon = Daemon::new();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "away", &format!("file://{}", daemon.path("vault"))]);
    for (name, tag) in [("db1", "class=daily"), ("db2", "class=daily"), ("db3", "class=hourly")] {
        daemon.ctl(&["disk", "create", name, "--size", "1MiB"]);
        daemon.ctl(&["snapshot", "create", name, "one", "--tag", tag]);
    }
    let line = "rowctl() { \"$ROWCTL\" --dir \"$DIR\" \"$@\"; }; export -f rowctl
        rowctl snapshot list --filter tag:class=daily -q |
            xargs -n 1 bash -c 'rowctl snapshot copy --to away \"$@\"' -";
    let mut shell = tool::command("bash");
    shell.args(["-euo", "pipefail", "-c", line]).env("DIR", daemon.dir());
    tool::finish(shell.env("ROWCTL", tool::built("rowctl"))).ok();
    let copies = daemon.json(&["copy", "list"]);
    let ids = copies.as_array().unwrap().iter().map(|copy| copy["id"].as_str().unwrap());
    ids.for_each(|id| drop(daemon.ctl(&["copy", "wait", id])));
    let copies = daemon.json(&["copy", "list"]);
    let disk = |copy: &Value| copy["detail"]["disk_name"].as_str().unwrap().to_owned();
    let mut disks: Vec<String> = copies.as_array().unwrap().iter().map(disk).collect();
    disks.sort();
    assert_eq!(disks, ["db1", "db2"]);
}

/// Promise: a dry run of a group or an image tells to the byte what deleting it frees, and changes nothing.
#[test]
fn a_dry_run_of_a_group_or_an_image_tells_what_would_be_free() {
    const BLOCK: u64 = 4096;
    let daemon = Daemon::new();
    for name in ["data", "wal"] {
        daemon.ctl(&["disk", "create", name, "--size", "1MiB"]);
    }
    let write = |disk: &str, blocks: usize, byte: u8| {
        let mut client = Client::connect(&daemon.nbd_socket(), disk);
        client.write(0, &vec![byte; blocks << 12]);
        client.disconnect();
    };
    let used = || {
        daemon.wait_reclaimed();
        daemon.status("used_bytes")
    };
    write("data", 8, 1);
    write("wal", 4, 1);
    daemon.ctl(&["group", "create", "data", "wal", "--name", "both"]);
    write("data", 8, 2);
    write("wal", 1, 2);
    let total = |told: &Value| -> u64 {
        told.as_array().unwrap().iter().map(|one| one["freed_bytes"].as_u64().unwrap()).sum()
    };
    let told = daemon.json(&["group", "delete", "both", "--dry-run"]);
    assert_eq!((told.as_array().unwrap().len(), total(&told)), (2, 9 * BLOCK));
    assert_eq!(names(&daemon, &["group", "list"]), ["both"], "nothing is deleted");
    let before = used();
    daemon.ctl(&["group", "delete", "both", "--yes"]);
    assert_eq!(before - used(), 9 * BLOCK);
    daemon.ctl(&["snapshot", "create", "data", "first"]);
    write("data", 3, 3);
    daemon.ctl(&["image", "create", "web", "--from", "data@first", "--data", "data@first"]);
    assert_eq!(daemon.json(&["image", "delete", "web", "--dry-run"]), json!([]));
    let told = daemon.json(&["image", "delete", "web", "--with-snapshots", "--dry-run"]);
    assert_eq!((told.as_array().unwrap().len(), total(&told)), (1, 3 * BLOCK));
    assert_eq!(told[0]["name"], "first");
    let text = daemon.ctl(&["image", "delete", "web", "--with-snapshots", "--dry-run"]);
    assert!(text.contains("would free 12 KiB; nothing was deleted"), "{text}");
    let before = used();
    daemon.ctl(&["image", "delete", "web", "--with-snapshots", "--yes"]);
    assert_eq!(before - used(), 3 * BLOCK);
}
