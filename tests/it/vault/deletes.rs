//! Deleting copies frees what no other needs and nothing else, also beside an upload of another daemon.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use rowd_tests::wait;
use serde_json::json;

use super::copies::{copied, daemon, id, noise, write};
use super::server::files;

/// The base goes, what was built on it stays whole; when all is gone, nothing is left but the format.
#[test]
fn deleting_copies_in_any_order_keeps_the_others_whole_and_leaves_nothing() {
    let daemon = daemon();
    let mut all = Vec::new();
    for name in ["one", "two", "three"] {
        write(&daemon, "data", (all.len() as u64) << 22, &noise(all.len() as u64, 6 << 20));
        daemon.ctl(&["snapshot", "create", "data", name]);
        all.push(copied(&daemon, &format!("data@{name}"), "backup"));
    }
    for number in [0, 2, 1] {
        daemon.ctl(&["copy", "delete", id(&all[number]), "--yes"]);
        daemon.json_error(20, &["copy", "show", id(&all[number])]);
        wait::until("the end of the job", || {
            let jobs = daemon.json(&["job", "list"]);
            jobs.as_array().unwrap().iter().all(|job| job["state"] != "running").then_some(())
        });
        for copy in daemon.json(&["copy", "list"]).as_array().unwrap() {
            daemon.ctl(&["copy", "verify", id(copy)]);
        }
    }
    let left = files(&daemon.file("vault"));
    assert_eq!(left, [daemon.file("vault").join("rowd-vault")]);
}

/// A mark of an upload, of whatever daemon, keeps every chunk; when it is gone, they go.
#[test]
fn nothing_is_freed_while_an_upload_is_under_way() {
    let daemon = daemon();
    write(&daemon, "data", 0, &noise(1, 5 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let first = copied(&daemon, "data@one", "backup");
    write(&daemon, "data", 20 << 20, &noise(2, 40 << 20));
    daemon.ctl(&["snapshot", "create", "data", "two"]);
    // Another daemon would use its own name for the repository; a slow one keeps the mark for a while.
    daemon.ctl(&["repo", "remove", "backup", "--yes"]);
    let slow = super::copies::url(&daemon);
    daemon.ctl(&["repo", "add", "slow", &slow, "--bandwidth", "20MiB"]);
    let begun = daemon.json(&["snapshot", "copy", "data@two", "--to", "slow"]);
    wait::until("the mark of the upload", || {
        (!files(&daemon.file("vault"))
            .iter()
            .all(|f| !f.display().to_string().contains("uploads/")))
        .then_some(())
    });
    daemon.json_error(21, &["snapshot", "delete", "data@two", "--yes"]);
    daemon.json_error(21, &["snapshot", "copy", "data@two", "--to", "slow"]);
    daemon.json_error(21, &["repo", "remove", "slow", "--yes"]);
    daemon.ctl(&["copy", "delete", id(&first), "--yes"]);
    let done = daemon.json(&["copy", "wait", id(&begun)]);
    assert_eq!(done["status"], json!("accomplished"));
    daemon.ctl(&["copy", "verify", id(&begun)]);
    daemon.ctl(&["copy", "delete", id(&begun), "--yes"]);
    wait::until("an empty repository", || (files(&daemon.file("vault")).len() == 1).then_some(()));
}

/// A copy that is cancelled leaves nothing, and the next one begins anew.
#[test]
fn a_cancelled_copy_leaves_nothing() {
    let daemon = daemon();
    let url = super::copies::url(&daemon);
    daemon.ctl(&["repo", "remove", "backup", "--yes"]);
    daemon.ctl(&["repo", "add", "slow", &url, "--bandwidth", "4MiB"]);
    write(&daemon, "data", 0, &noise(2, 40 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let begun = daemon.json(&["snapshot", "copy", "data@one", "--to", "slow"]);
    wait::until("the first chunk", || {
        let all = files(&daemon.file("vault"));
        all.iter().any(|file| file.display().to_string().contains("chunks/")).then_some(())
    });
    daemon.ctl(&["copy", "delete", id(&begun), "--yes"]);
    wait::until("an empty repository", || (files(&daemon.file("vault")).len() == 1).then_some(()));
    daemon.json_error(20, &["copy", "show", id(&begun)]);
    daemon.ctl(&["snapshot", "delete", "data@one", "--yes"]);
}

/// Promise: what a killed writer has left in a directory goes after a week, and nothing else.
#[test]
fn unfinished_files_of_killed_writers_go_after_a_week() {
    let daemon = daemon();
    write(&daemon, "data", 0, &noise(1, 5 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let copy = copied(&daemon, "data@one", "backup");
    let vault = daemon.file("vault");
    let beside = |name: &str| vault.join("chunks").join(id(&copy)).join(name);
    let day = Duration::from_secs(24 * 3600);
    let old = [beside("ab#1"), vault.join("uploads").join("c-0#12"), vault.join("rowd-vault#2")];
    let kept = [beside("cd#1"), beside("ef#x"), beside("#1"), beside("gh")];
    for (path, age) in old.iter().map(|path| (path, 8)).chain(kept.iter().zip([6, 8, 8, 8])) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create(path).unwrap();
        file.set_modified(SystemTime::now() - age * day).unwrap();
    }
    let before = files(&vault).len();
    // Looking for them is part of freeing what copies have left; it is done once a day.
    let mut daemon = daemon;
    daemon.crash();
    write(&daemon, "data", 0, &noise(2, 4096));
    daemon.ctl(&["snapshot", "create", "data", "two"]);
    let second = copied(&daemon, "data@two", "backup");
    let told = wait::until("the end of the job", || {
        let jobs = daemon.json(&["job", "list"]);
        let message = |job: &serde_json::Value| job["message"].as_str().unwrap().to_owned();
        let done = |message: &String| message.contains("3 unfinished files");
        jobs.as_array().unwrap().iter().map(message).find(done)
    });
    assert!(told.contains("killed writers"), "{told}");
    assert!(old.iter().all(|path| !path.exists()) && kept.iter().all(|path| path.exists()));
    // Header, table and chunk of the second copy are new.
    assert_eq!(files(&vault).len(), before - 3 + 3);
    for one in [&copy, &second] {
        daemon.ctl(&["copy", "verify", id(one)]);
    }
}
