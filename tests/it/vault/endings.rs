//! The daemon killed at every step of a copy, a fill and a delete: the next one finishes, and all is right.
//!
//! Absent: power cuts; what the daemon keeps is one kind of record, and `crash_power` proves those.

use rowd::faults::VAULT_FAIL_POINTS;
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::wait;
use serde_json::{Value, json};

use super::copies::{contents, copied, id, noise, url, write};
use super::server::files;

/// A daemon that is killed at a fail point, with the snapshots `data@one`, copied, and `data@two`.
fn daemon(point: &str) -> Daemon {
    let faulty = env!("CARGO_BIN_EXE_rowd-faulty");
    let mut daemon = Setup::default().master_key(&"1".repeat(64)).program(faulty).start();
    std::fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    let create = ["disk", "create", "data", "--size", "64MiB", "--encrypted"];
    // Some are encrypted, some are not.
    let encrypted = ["copy.sent", "copy.table", "fill.written", "collect.step"].contains(&point);
    daemon.ctl(&create[..if encrypted { 6 } else { 5 }]);
    write(&daemon, "data", 0, &noise(1, 5 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    copied(&daemon, "data@one", "backup");
    write(&daemon, "data", 2 << 20, &noise(2, 9 << 20));
    daemon.ctl(&["snapshot", "create", "data", "two"]);
    daemon.stop();
    let env = format!("{point}:1");
    daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", &env));
    daemon.start();
    daemon
}

/// The next daemon, without fail points, once nothing is under way.
fn next(daemon: &mut Daemon) {
    daemon.wait_ended();
    daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "copy.marked:1000000"));
    daemon.start();
    wait::until("the end of all jobs", || {
        let jobs = daemon.json(&["job", "list"]);
        let running = jobs.as_array().unwrap().iter().any(|job| job["state"] == "running");
        let copies = daemon.json(&["copy", "list"]);
        let under_way = copies.as_array().unwrap().iter().any(|c| c["status"] == "progressing");
        (!running && !under_way).then_some(())
    });
}

fn copies(daemon: &Daemon) -> Vec<Value> {
    let copies = daemon.json(&["copy", "list"]);
    let all = copies.as_array().unwrap().clone();
    assert!(all.iter().all(|copy| copy["status"] == "accomplished"), "{copies}");
    all
}

#[test]
fn a_copy_goes_on_wherever_the_daemon_was_killed() {
    for point in VAULT_FAIL_POINTS.iter().filter(|point| point.starts_with("copy.")) {
        let mut daemon = daemon(point);
        // The answer may or may not come before the end.
        daemon.try_ctl(&["snapshot", "copy", "data@two", "--to", "backup"]);
        next(&mut daemon);
        let all = copies(&daemon);
        assert_eq!(all.len(), 2, "{point}");
        let second = all.iter().find(|copy| copy["detail"]["snapshot_name"] == "two").unwrap();
        daemon.ctl(&["copy", "verify", id(second)]);
        daemon.ctl(&["disk", "create", "again", "--from", id(second)]);
        let expected = contents(&daemon, "data@two", 64 << 20);
        assert!(contents(&daemon, "again", 64 << 20) == expected, "{point}");
        assert!(files(&daemon.file("vault").join("uploads")).is_empty(), "{point}");
        daemon.ctl(&["snapshot", "delete", "data@two", "--yes"]);
    }
}

/// A snapshot that is to be in the repository gets there, and leaves the pool, wherever the daemon was killed.
#[test]
fn a_snapshot_gets_to_its_repository_wherever_the_daemon_was_killed() {
    let points = VAULT_FAIL_POINTS.iter();
    let points = points.filter(|point| point.starts_with("copy.") || point.starts_with("life."));
    for point in points.filter(|point| **point != "life.deleted") {
        let mut daemon = daemon(point);
        let expected = contents(&daemon, "data", 64 << 20);
        daemon.try_ctl(&["snapshot", "create", "data", "three", "--repo", "backup"]);
        next(&mut daemon);
        let told = wait::until("a snapshot that has left the pool", || {
            let told = daemon.json(&["snapshot", "show", "data@three"]);
            (told["presence"] == json!(["repository"])).then_some(told)
        });
        assert_eq!(told["status"], "accomplished", "{point}");
        let copy = told["copy"].as_str().unwrap();
        daemon.ctl(&["snapshot", "verify", "data@three"]);
        daemon.ctl(&["disk", "create", "again", "--from", "data@three", "--size", "65MiB"]);
        next_job(&daemon);
        assert!(contents(&daemon, "again", 64 << 20) == expected, "{point}");
        assert!(!objects(&daemon).iter().any(|one| one.contains("/uploads/")), "{point}");
        daemon.ctl(&["snapshot", "delete", "data@three", "--force", "--yes"]);
        wait::until("the end of the copy", || {
            let left = objects(&daemon);
            (!left.iter().any(|object| object.contains(copy))).then_some(())
        });
    }
}

/// The delete of a snapshot that is in a repository is finished by the next daemon.
#[test]
fn a_snapshot_in_a_repository_is_gone_from_there_wherever_the_daemon_was_killed() {
    for point in ["life.deleted", "delete.marked", "collect.step"] {
        let mut daemon = daemon("copy.marked");
        daemon.kill();
        daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "copy.marked:1000000"));
        daemon.start();
        daemon.ctl(&["snapshot", "create", "data", "three", "--repo", "backup", "--wait"]);
        let told = daemon.json(&["snapshot", "show", "data@three"]);
        daemon.stop();
        let env = format!("{point}:1");
        daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", &env));
        daemon.start();
        daemon.try_ctl(&["snapshot", "delete", "data@three", "--yes"]);
        next(&mut daemon);
        daemon.json_error(20, &["snapshot", "show", "data@three"]);
        let copy = told["copy"].as_str().unwrap();
        wait::until("the end of the copy", || {
            let left = objects(&daemon);
            (!left.iter().any(|object| object.contains(copy))).then_some(())
        });
        // What is left is whole.
        assert_eq!(copies(&daemon).len(), 1, "{point}");
        daemon.ctl(&["copy", "verify", id(&copies(&daemon)[0])]);
    }
}

/// What is in the repository, less what a write that was killed has left beside its object.
fn objects(daemon: &Daemon) -> Vec<String> {
    let all = files(&daemon.file("vault")).into_iter().map(|file| file.display().to_string());
    all.filter(|name| !name.contains('#')).collect()
}

fn next_job(daemon: &Daemon) {
    wait::until("the end of all jobs", || {
        let jobs = daemon.json(&["job", "list"]);
        let running = jobs.as_array().unwrap().iter().any(|job| job["state"] == "running");
        (!running).then_some(())
    });
}

#[test]
fn a_disk_is_filled_or_gone_wherever_the_daemon_was_killed() {
    let mut daemon = daemon("fill.written");
    let copy = copies(&daemon).remove(0);
    daemon.try_ctl(&["disk", "create", "again", "--from", id(&copy), "--full"]);
    next(&mut daemon);
    let expected = contents(&daemon, "data@one", 64 << 20);
    assert!(contents(&daemon, "again", 64 << 20) == expected);
}

#[test]
fn a_delete_that_was_interrupted_is_finished_by_the_next() {
    for point in ["delete.marked", "collect.step"] {
        let mut daemon = daemon(point);
        let copy = copies(&daemon).remove(0);
        daemon.try_ctl(&["copy", "delete", id(&copy), "--yes"]);
        next(&mut daemon);
        let other = copied(&daemon, "data@two", "backup");
        wait::until("the end of the copy that was deleted", || {
            let left = daemon.json(&["copy", "list"]);
            let left: Vec<&Value> = left.as_array().unwrap().iter().map(|c| &c["id"]).collect();
            (left == [&json!(id(&other))]).then_some(())
        });
        daemon.ctl(&["copy", "verify", id(&other)]);
        daemon.ctl(&["copy", "delete", id(&other), "--yes"]);
        wait::until("an empty repository", || {
            (files(&daemon.file("vault")).len() == 1).then_some(())
        });
    }
}
