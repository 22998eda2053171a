//! `rowctl doctor --bundle`: what goes with a report, and what must not.
//!
//! Absent: what `doctor` finds.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rowd_tests::client::Client;
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::tool;

/// Hexadecimal, so that it can be a key too.
const MASTER: &str = "5ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e7abcd";
const MARKER: &str = "MARKER-that-nobody-may-see";

/// A daemon that has the marker everywhere where it must not come out.
fn daemon() -> Daemon {
    let daemon = Setup::default().master_key(MASTER).start();
    daemon.ctl(&["disk", "create", "plain", "--size", "8MiB", "--description", MARKER]);
    daemon.ctl(&[
        "disk",
        "create",
        "secret",
        "--size",
        "8MiB",
        "--encrypted",
        "--tag",
        "k=MARKER-tag",
    ]);
    for disk in ["plain", "secret"] {
        let mut block = vec![b' '; 4096];
        block[..MARKER.len()].copy_from_slice(MARKER.as_bytes());
        Client::connect(&daemon.nbd_socket(), disk).write(0, &block);
        daemon.ctl(&["snapshot", "create", disk, "first", "--description", MARKER]);
    }
    let keys = daemon.file("repo.toml");
    let text = format!("access_key = \"{MARKER}\"\nsecret_key = \"{MARKER}\"\n");
    fs::write(&keys, text).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(daemon.file("repo-MARKER")).unwrap();
    let url = format!("file://{}", daemon.path("repo-MARKER"));
    daemon.ctl(&["repo", "add", "away", &url]);
    daemon
}

/// Promise: the bundle has everything that was looked at, and nothing that is secret or data.
#[test]
fn a_bundle_has_what_helps_and_no_secrets() {
    let daemon = daemon();
    let path = daemon.path("rowd.tar");
    let written = daemon.json(&["doctor", "--bundle", &path]);
    let members: Vec<&str> =
        written["members"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    for wanted in [
        "README",
        "doctor.json",
        "status.json",
        "disks.json",
        "events.json",
        "audit.json",
        "config.txt",
        "metrics.txt",
        "versions.txt",
        "keys.json",
        "usage.json",
        "repos.json",
    ] {
        assert!(members.contains(&wanted), "{wanted}: {members:?}");
    }
    assert!(members.iter().all(|name| !name.ends_with(".error")), "{members:?}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = fs::read(&path).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    for secret in ["MARKER", MASTER, &MASTER[..16]] {
        assert!(!has(secret), "{secret} is in the bundle");
    }
    // As bytes too, in case something was encoded.
    let raw: Vec<u8> = (0..MASTER.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&MASTER[at..at + 2], 16).unwrap())
        .collect();
    assert!(!bytes.windows(8).any(|part| part == &raw[..8]), "the key's bytes are in the bundle");
    assert!(has("snapshot.create") && has("rowd_pool_used_bytes") && has("segment_bytes"));
    let listed = tool::run("tar", &["-tf", &path]).ok();
    assert_eq!(listed.stdout.lines().count(), members.len(), "{listed}");
}

/// Promise: an existing file stays what it is.
#[test]
fn an_existing_file_is_not_overwritten() {
    let daemon = Daemon::new();
    let path = daemon.path("precious");
    fs::write(&path, "precious").unwrap();
    daemon.json_error(21, &["doctor", "--bundle", &path]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    daemon.json_error(20, &["doctor", "--bundle", "/nonexistent/rowd.tar"]);
}

/// Promise: a daemon that does not answer is what the bundle says then.
#[test]
fn without_a_daemon_the_bundle_says_so() {
    let mut daemon = Daemon::new();
    daemon.stop();
    let path = daemon.path("rowd.tar");
    daemon.ctl(&["doctor", "--bundle", &path]);
    let told = tool::run("tar", &["-xOf", &path, "rowd-bundle/daemon.error"]).ok();
    assert!(told.stdout.contains("no daemon listens"), "{told}");
}
