//! Repositories: made, found again, refused, and never a secret in what is told or kept.
//!
//! Absent: what is kept in them.

use std::fs;
use std::path::Path;

use rowd_tests::process::{Daemon, Setup};
use serde_json::{Value, json};

use super::server::{BUCKET, KEY, S3Server, SECRET, add, files, key_file};

/// An empty directory as the URL of a repository.
fn directory(daemon: &Daemon, name: &str) -> String {
    fs::create_dir(daemon.file(name)).unwrap();
    format!("file://{}", daemon.path(name))
}

fn steps(checked: &Value) -> usize {
    checked["steps"].as_array().unwrap().len()
}

/// A repository in a directory says itself what it is: another daemon finds the same.
#[test]
fn a_directory_becomes_a_repository_that_two_daemons_know() {
    let mut one = Daemon::new();
    let url = directory(&one, "vault");
    let made = one.json(&["repo", "add", "backup", &url, "--bandwidth", "20MiB"]);
    assert_eq!((&made["url"], &made["bandwidth"]), (&json!(url), &json!(20 << 20)));
    one.crash();
    assert_eq!(one.json(&["repo", "list"]), json!([made]));
    assert_eq!(steps(&one.json(&["repo", "check", "backup"])), 7);
    let other = Daemon::new();
    let found = other.json(&["repo", "add", "theirs", &url, "--existing"]);
    assert_eq!(found["id"], made["id"]);
    one.ctl(&["repo", "remove", "backup", "--yes"]);
    assert_eq!(one.json(&["repo", "list"]), json!([]));
    assert_eq!(steps(&other.json(&["repo", "check", "theirs"])), 7, "it is still there");
    one.stop();
    one.start();
    one.json_error(20, &["repo", "show", "backup"]);
}

/// What cannot be meant is refused in words, and nothing is remembered or written.
#[test]
fn places_that_cannot_be_repositories_are_refused() {
    let daemon = Daemon::new();
    let url = directory(&daemon, "vault");
    daemon.ctl(&["repo", "add", "backup", &url]);
    let full = directory(&daemon, "full");
    fs::write(daemon.file("full").join("letter"), "mine").unwrap();
    let missing = format!("file://{}", daemon.path("missing"));
    let empty = directory(&daemon, "empty");
    for (code, args) in [
        (21, &["backup", &empty][..]),
        (21, &["again", &url]),
        (21, &["full", &full]),
        (20, &["missing", &missing]),
        (20, &["empty", &empty, "--existing"]),
        (2, &["b@d", &empty]),
        (2, &["relative", "file://srv"]),
        (2, &["ftp", "ftp://host/dir"]),
        (2, &["option", &empty, "--region", "x"]),
        (2, &["plain", "s3://b", "--endpoint", "http://192.0.2.1:9000"]),
        (2, &["source", "s3://b", "--credentials", "file:relative"]),
        (1, &["nothing", "s3://b", "--endpoint", "http://127.0.0.1:9"]),
    ] {
        let error = daemon.json_error(code, &[&["repo", "add"], args].concat());
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
    }
    assert_eq!(daemon.json(&["repo", "list"]).as_array().unwrap().len(), 1);
    assert!(files(Path::new(&daemon.path("empty"))).is_empty());
    assert_eq!(files(&daemon.file("full")).len(), 1);
}

/// A damaged format file, a foreign one and a missing one are told apart and named.
#[test]
fn a_repository_that_is_not_what_it_was_is_named() {
    let daemon = Daemon::new();
    for name in ["one", "two"] {
        let url = directory(&daemon, name);
        daemon.ctl(&["repo", "add", name, &url]);
    }
    let format = |name: &str| daemon.file(name).join("rowd-vault");
    let good = fs::read(format("one")).unwrap();
    let check = |part: &str| {
        let error = daemon.json_error(24, &["repo", "check", "one"]);
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
    };
    let mut bad = good.clone();
    bad[20] ^= 1;
    fs::write(format("one"), bad).unwrap();
    check("damaged: its sum is wrong");
    fs::copy(format("two"), format("one")).unwrap();
    check("but at file:///");
    fs::remove_file(format("one")).unwrap();
    check("there is no repository at");
    fs::write(format("one"), good).unwrap();
    assert_eq!(steps(&daemon.json(&["repo", "check", "one"])), 7);
}

/// A real S3 server over HTTP with signatures does all that is needed of a repository.
#[test]
fn an_s3_server_is_a_repository_and_wrong_credentials_are_told() {
    let server = S3Server::start();
    let daemon = Daemon::new();
    add(&daemon, "s3", "host1", &server.endpoint());
    assert!(server.objects().join("host1/rowd-vault").is_file());
    assert_eq!(steps(&daemon.json(&["repo", "check", "s3"])), 7);
    // Credentials are read each time, so that they can be changed.
    key_file(&daemon, "wrong-wrong-wrong", 0o600);
    let error = daemon.json_error(3, &["repo", "check", "s3"]);
    assert!(!error.to_string().contains("wrong-wrong-wrong"), "{error}");
    key_file(&daemon, SECRET, 0o644);
    let error = daemon.json_error(1, &["repo", "check", "s3"]);
    assert!(error["hint"].as_str().unwrap().starts_with("chmod 600"), "{error}");
    key_file(&daemon, SECRET, 0o600);
    daemon.ctl(&["repo", "check", "s3"]);
}

/// A secret is in nothing that the daemon tells, logs or keeps, wherever it came from.
#[test]
fn secrets_are_neither_told_nor_kept() {
    let server = S3Server::start();
    let logs = Setup::default().env("RUST_LOG", "debug").env("AWS_ACCESS_KEY_ID", KEY);
    let mut daemon = logs.env("AWS_SECRET_ACCESS_KEY", SECRET).start();
    let url = format!("s3://{BUCKET}/env");
    daemon.ctl(&["repo", "add", "env", &url, "--endpoint", &server.endpoint()]);
    add(&daemon, "file", "file", &server.endpoint());
    daemon.ctl(&["repo", "check", "env"]);
    daemon.json_error(20, &["repo", "show", "none"]);
    let told = [
        daemon.json(&["repo", "list"]).to_string(),
        daemon.json(&["events"]).to_string(),
        daemon.log(),
    ];
    daemon.stop();
    for text in told {
        assert!(!text.contains(SECRET), "{text}");
    }
    for file in files(&daemon.dir()) {
        let bytes = fs::read(&file).unwrap_or_default();
        let found = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
        assert!(!found, "{}", file.display());
    }
}
