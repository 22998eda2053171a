//! Two daemons on one repository, through one server or through different ones: neither loses what is its own, and
//! neither frees what the other needs.
//!
//! Absent: two daemons that make copies of one disk; a disk has one daemon.

use std::fs;

use rowd_tests::moto::Moto;
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::wait;
use serde_json::{Value, json};

use super::copies::{MIB, contents, copied, id, noise, url, write};
use super::server::{S3Server, add, files};

const SIZE: u64 = 64 << 20;

fn with_disk(disk: &str) -> Daemon {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", disk, "--size", "64MiB"]);
    daemon
}

fn begun(daemon: &Daemon, snapshot: &str, repo: &str) -> Value {
    daemon.json(&["snapshot", "copy", snapshot, "--to", repo])
}

#[track_caller]
fn finished(daemon: &Daemon, copy: &Value) {
    assert_eq!(daemon.json(&["copy", "wait", id(copy)])["status"], json!("accomplished"));
}

fn wait_for_jobs(daemon: &Daemon) {
    wait::until("the end of all jobs", || {
        let jobs = daemon.json(&["job", "list"]);
        jobs.as_array().unwrap().iter().all(|job| job["state"] != "running").then_some(())
    });
}

/// Both send at once, several rounds, and each finds what both have sent.
fn both_upload(one: &Daemon, two: &Daemon, third: &Daemon) {
    let mut copies = Vec::new();
    for round in 0..3 {
        for (seed, daemon, disk) in [(10, one, "left"), (20, two, "right")] {
            write(daemon, disk, round * 3 * MIB, &noise(seed + round, 7 << 20));
            daemon.ctl(&["snapshot", "create", disk, &format!("round{round}")]);
        }
        let left = format!("left@round{round}");
        let right = format!("right@round{round}");
        let first = begun(one, &left, "shared");
        let second = begun(two, &right, "shared");
        finished(one, &first);
        finished(two, &second);
        copies.extend([(first, one, left), (second, two, right)]);
    }
    for daemon in [one, two, third] {
        let listed = daemon.json(&["copy", "list"]);
        assert_eq!(listed.as_array().unwrap().len(), copies.len(), "{listed}");
    }
    for (copy, daemon, snapshot) in &copies {
        third.ctl(&["disk", "create", id(copy), "--from", id(copy)]);
        assert!(contents(third, id(copy), SIZE) == contents(daemon, snapshot, SIZE), "{snapshot}");
        third.ctl(&["disk", "delete", id(copy), "--yes"]);
    }
}

#[test]
fn two_daemons_upload_to_one_server_at_once() {
    let server = S3Server::start();
    let (one, two, third) = (with_disk("left"), with_disk("right"), Daemon::new());
    for daemon in [&one, &two, &third] {
        add(daemon, "shared", "host", &server.endpoint());
    }
    both_upload(&one, &two, &third);
}

/// The same objects, reached through two servers and as a directory.
#[test]
fn a_repository_is_the_same_through_different_servers() {
    let server = S3Server::start();
    let another = server.beside();
    let (one, two, third) = (with_disk("left"), with_disk("right"), Daemon::new());
    add(&one, "shared", "host", &server.endpoint());
    add(&two, "shared", "host", &another.endpoint());
    let directory = format!("file://{}/host", server.objects().display());
    third.ctl(&["repo", "add", "shared", &directory, "--existing"]);
    let repo = |daemon: &Daemon| daemon.json(&["repo", "show", "shared"])["id"].clone();
    assert_eq!((repo(&one), repo(&two)), (repo(&two), repo(&third)));
    both_upload(&one, &two, &third);
}

/// While one sends what changed since its last copy, the other deletes the copies that this is built on, round
/// after round. Every new copy is whole, and when all are deleted nothing is left.
#[test]
fn one_deletes_while_the_other_uploads_what_changed() {
    let (one, two) = (with_disk("data"), Daemon::new());
    fs::create_dir(one.file("vault")).unwrap();
    one.ctl(&["repo", "add", "shared", &url(&one), "--bandwidth", "24MiB"]);
    two.ctl(&["repo", "add", "shared", &url(&one), "--existing"]);
    write(&one, "data", 0, &noise(1, 20 << 20));
    one.ctl(&["snapshot", "create", "data", "round0"]);
    let mut last = copied(&one, "data@round0", "shared");
    for round in 1..6 {
        let snapshot = format!("data@round{round}");
        write(&one, "data", round * 2 * MIB, &noise(round, 6 << 20));
        one.ctl(&["snapshot", "create", "data", &format!("round{round}")]);
        let copy = begun(&one, &snapshot, "shared");
        if round % 2 == 0 {
            // Not before it has marked itself.
            wait::until("the mark of the upload", || {
                let all = files(&one.file("vault"));
                all.iter().any(|file| file.display().to_string().contains("uploads/")).then_some(())
            });
        }
        two.ctl(&["copy", "delete", id(&last), "--yes"]);
        finished(&one, &copy);
        wait_for_jobs(&two);
        two.ctl(&["copy", "verify", id(&copy)]);
        two.ctl(&["disk", "create", "again", "--from", id(&copy)]);
        assert!(contents(&two, "again", SIZE) == contents(&one, &snapshot, SIZE), "{snapshot}");
        two.ctl(&["disk", "delete", "again", "--yes"]);
        last = copy;
    }
    two.ctl(&["copy", "delete", id(&last), "--yes"]);
    wait::until("an empty repository", || (files(&one.file("vault")).len() == 1).then_some(()));
}

/// One is killed in the middle of sending; the other deletes what that is built on, and frees nothing. The first goes
/// on and is whole.
#[test]
fn a_copy_of_a_daemon_that_was_killed_keeps_what_it_is_built_on() {
    let faulty = Setup::default().program(env!("CARGO_BIN_EXE_rowd-faulty"));
    let mut one = faulty.start();
    one.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    fs::create_dir(one.file("vault")).unwrap();
    one.ctl(&["repo", "add", "shared", &url(&one)]);
    write(&one, "data", 0, &noise(1, 9 << 20));
    one.ctl(&["snapshot", "create", "data", "one"]);
    let base = copied(&one, "data@one", "shared");
    write(&one, "data", 4 * MIB, &noise(2, 12 << 20));
    one.ctl(&["snapshot", "create", "data", "two"]);
    one.stop();
    one.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "copy.sent:1"));
    one.start();
    one.try_ctl(&["snapshot", "copy", "data@two", "--to", "shared"]);
    one.wait_ended();
    let two = Daemon::new();
    two.ctl(&["repo", "add", "shared", &url(&one), "--existing"]);
    let chunks = |id: &str| files(&one.file("vault").join("chunks").join(id)).len();
    let before = chunks(id(&base));
    two.ctl(&["copy", "delete", id(&base), "--yes"]);
    wait_for_jobs(&two);
    assert_eq!(chunks(id(&base)), before, "what an upload may need is kept");
    one.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "copy.marked:1000000"));
    one.start();
    let copy = wait::until("the end of the copy", || {
        let all = two.json(&["copy", "list"]);
        all.as_array().unwrap().first().cloned()
    });
    wait_for_jobs(&one);
    two.ctl(&["disk", "create", "again", "--from", id(&copy)]);
    assert!(contents(&two, "again", SIZE) == contents(&one, "data@two", SIZE));
}

/// Another server, by other people: the same again, and a copy of a copy from one kind of server to the other.
/// Nothing is left when all is deleted.
#[test]
fn moto_is_a_server_too() {
    let (moto, server) = (Moto::start(), S3Server::start());
    let (one, two, third) = (with_disk("left"), with_disk("right"), Daemon::new());
    for daemon in [&one, &two, &third] {
        add(daemon, "shared", "host", &moto.endpoint());
        daemon.ctl(&["repo", "check", "shared"]);
    }
    both_upload(&one, &two, &third);
    add(&third, "other", "host", &server.endpoint());
    let listed = third.json(&["copy", "list", "--repo", "shared"]);
    let copies = listed.as_array().unwrap();
    let newest = copies.iter().find(|copy| copy["detail"]["snapshot_name"] == "round2").unwrap();
    let relayed = copied(&third, id(newest), "other");
    third.ctl(&["copy", "verify", id(&relayed)]);
    for copy in copies {
        two.ctl(&["copy", "delete", id(copy), "--yes"]);
    }
    wait::until("an empty repository", || (moto.keys("host") == ["host/rowd-vault"]).then_some(()));
    let back = copied(&third, id(&relayed), "shared");
    one.ctl(&["copy", "verify", id(&back)]);
}
