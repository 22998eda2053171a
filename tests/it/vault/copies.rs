//! Copies: complete in themselves, sent once, read back by anybody, and never wrong.
//!
//! Absent: deletes (`deletes.rs`) and servers in trouble (`trouble.rs`).

use std::fs;

use rowd_tests::client::Client;
use rowd_tests::process::Daemon;
use serde_json::{Value, json};

use super::server::{S3Server, add, files};

pub const MIB: u64 = 1 << 20;

/// Bytes that do not compress and differ with the seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn write(daemon: &Daemon, disk: &str, offset: u64, bytes: &[u8]) {
    let mut client = Client::connect(&daemon.nbd_socket(), disk);
    for (at, piece) in bytes.chunks(1 << 20).enumerate() {
        client.write(offset + at as u64 * MIB, piece);
    }
    client.flush();
    client.disconnect();
}

/// All bytes of an export.
pub fn contents(daemon: &Daemon, export: &str, size: u64) -> Vec<u8> {
    let mut client = Client::connect(&daemon.nbd_socket(), export);
    let mut bytes = Vec::new();
    for offset in (0..size).step_by(1 << 20) {
        bytes.extend(client.read(offset, 1 << 20));
    }
    client.disconnect();
    bytes
}

/// A daemon with a repository `backup` in the directory `vault`, and a disk `data` of 64 MiB.
pub fn daemon() -> Daemon {
    let daemon = Daemon::new();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    daemon
}

pub fn url(daemon: &Daemon) -> String {
    format!("file://{}", daemon.path("vault"))
}

/// Copies a snapshot and waits.
#[track_caller]
pub fn copied(daemon: &Daemon, snapshot: &str, repo: &str) -> Value {
    let copy = daemon.json(&["snapshot", "copy", snapshot, "--to", repo, "--wait"]);
    assert_eq!((&copy["status"], &copy["progress"]), (&json!("accomplished"), &json!(100)));
    copy
}

pub fn id(copy: &Value) -> &str {
    copy["id"].as_str().unwrap()
}

/// What a copy holds is what its snapshot holds: on this daemon, and on one that has nothing but the repository.
fn returns_everywhere(daemon: &Daemon, copies: &[(String, &str)], other: &Daemon) {
    for (number, (copy, snapshot)) in copies.iter().enumerate() {
        let size = daemon.json(&["snapshot", "show", snapshot])["size"].as_u64().unwrap();
        let expected = contents(daemon, snapshot, size);
        for (at, name) in [(daemon, format!("again{number}")), (other, format!("new{number}"))] {
            at.ctl(&["copy", "verify", copy]);
            at.ctl(&["disk", "create", &name, "--from", copy]);
            assert!(contents(at, &name, size) == expected, "{snapshot} differs in {name}");
        }
    }
}

/// First all, then what changed: data, zeros, a larger and a smaller disk. Then from the repository alone.
#[test]
fn a_chain_of_copies_returns_byte_by_byte_on_a_daemon_with_an_empty_pool() {
    let daemon = daemon();
    write(&daemon, "data", 0, &noise(1, 9 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let first = copied(&daemon, "data@one", "backup");
    assert_eq!(
        (&first["detail"]["new_bytes"], &first["detail"]["base"]),
        (&json!(9 << 20), &Value::Null)
    );
    // Scattered blocks: what is sent follows the changes, not the chunks.
    for at in 0..64 {
        write(&daemon, "data", (at * 128) << 10, &noise(100 + at, 4096));
    }
    let mut client = Client::connect(&daemon.nbd_socket(), "data");
    client.trim(4 * MIB, 1 << 20);
    client.flush();
    client.disconnect();
    daemon.ctl(&["disk", "resize", "data", "80MiB"]);
    write(&daemon, "data", 79 * MIB, &noise(7, 8192));
    daemon.ctl(&["snapshot", "create", "data", "two"]);
    let second = copied(&daemon, "data@two", "backup");
    assert_eq!(second["detail"]["base"], first["id"]);
    // Eight of the blocks were trimmed again.
    assert_eq!(second["detail"]["new_bytes"], (64 - 8 + 2) * 4096);
    daemon.ctl(&["disk", "resize", "data", "5MiB", "--yes"]);
    daemon.ctl(&["snapshot", "create", "data", "three"]);
    let third = copied(&daemon, "data@three", "backup");
    assert_eq!(
        (&third["detail"]["new_bytes"], &third["detail"]["size"]),
        (&json!(0), &json!(5 << 20))
    );
    let other = Daemon::new();
    other.ctl(&["repo", "add", "found", &url(&daemon), "--existing"]);
    let listed = other.json(&["copy", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 3);
    let copies = [(&first, "data@one"), (&second, "data@two"), (&third, "data@three")];
    let copies = copies.map(|(copy, snapshot)| (id(copy).to_owned(), snapshot));
    returns_everywhere(&daemon, &copies, &other);
    // Without the snapshot that a copy was made of, it is still complete.
    daemon.ctl(&["snapshot", "delete", "data@one", "data@two", "--yes"]);
    other.ctl(&["copy", "verify", id(&second)]);
}

/// The same through an S3 server, and an empty snapshot too.
#[test]
fn copies_go_to_an_s3_server_and_come_back() {
    let server = S3Server::start();
    let (daemon, other) = (Daemon::new(), Daemon::new());
    add(&daemon, "s3", "host", &server.endpoint());
    daemon.ctl(&["disk", "create", "data", "--size", "32MiB"]);
    daemon.ctl(&["snapshot", "create", "data", "empty"]);
    let empty = copied(&daemon, "data@empty", "s3");
    assert_eq!(empty["detail"]["data_bytes"], 0);
    write(&daemon, "data", 3 * MIB, &noise(5, 10 << 20));
    daemon.ctl(&["snapshot", "create", "data", "full", "--tag", "k=v", "--description", "d"]);
    let full = copied(&daemon, "data@full", "s3");
    // Tags stay where they are.
    assert_eq!((&full["detail"]["base"], &full["detail"]["tags"]), (&empty["id"], &json!({})));
    add(&other, "theirs", "host", &server.endpoint());
    let copies = [(id(&empty).to_owned(), "data@empty"), (id(&full).to_owned(), "data@full")];
    returns_everywhere(&daemon, &copies, &other);
}

/// A flipped bit, a missing object, one in another's place: named, listed, and no disk is made of it.
#[test]
fn a_repository_that_was_tampered_with_returns_nothing_wrong() {
    let daemon = daemon();
    let mut copies = Vec::new();
    for name in ["one", "two"] {
        write(&daemon, "data", 0, &noise(name.len() as u64 + copies.len() as u64, 6 << 20));
        daemon.ctl(&["snapshot", "create", "data", name]);
        copies.push(copied(&daemon, &format!("data@{name}"), "backup"));
    }
    let (one, two) = (id(&copies[0]), id(&copies[1]));
    let vault = daemon.file("vault");
    let refused = |part: &str| {
        let listed = daemon.json(&["copy", "list"]);
        assert_eq!(listed.as_array().unwrap().len(), 2);
        let verified = daemon.try_ctl(&["copy", "verify", two]);
        assert!(verified.code != 0, "{part}: {}", verified.stdout);
        let made = daemon.try_ctl(&["disk", "create", "wrong", "--from", two, "--full"]);
        assert!(made.code != 0, "{part}: {}", made.stdout);
        assert_eq!(daemon.json(&["disk", "list"]).as_array().unwrap().len(), 1, "{part}");
        let told = [verified.stdout, verified.stderr].concat();
        assert!(told.contains(part), "{part:?} is not in {told}");
    };
    for file in files(&vault).iter().filter(|file| file.display().to_string().contains(two)) {
        let good = fs::read(file).unwrap();
        let name = file.strip_prefix(&vault).unwrap().display().to_string();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 4;
        fs::write(file, bad).unwrap();
        refused(&name);
        if !name.starts_with("copies/") {
            fs::remove_file(file).unwrap();
            refused(&name);
        }
        fs::write(file, &good).unwrap();
    }
    // The header of another copy in its place.
    let header = |id: &str| {
        let all = files(&vault.join("copies"));
        all.into_iter().find(|file| file.display().to_string().contains(id)).unwrap()
    };
    let good = fs::read(header(two)).unwrap();
    fs::copy(header(one), header(two)).unwrap();
    refused("copies/");
    fs::write(header(two), good).unwrap();
    daemon.ctl(&["copy", "verify", two]);
    daemon.ctl(&["disk", "create", "right", "--from", two, "--full"]);
}

/// What cannot be meant is refused in words.
#[test]
fn copies_that_make_no_sense_are_refused() {
    let daemon = daemon();
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let copy = copied(&daemon, "data@one", "backup");
    for (code, args) in [
        (20, &["snapshot", "copy", "data@none", "--to", "backup"][..]),
        (20, &["snapshot", "copy", "data@one", "--to", "none"]),
        (20, &["copy", "show", "c-none"]),
        (15, &["copy", "retry", id(&copy)]),
        (2, &["disk", "create", "small", "--size", "1MiB", "--from", id(&copy)]),
        (21, &["disk", "create", "data", "--from", id(&copy)]),
        (2, &["copy", "delete", id(&copy)]),
    ] {
        daemon.json_error(code, args);
    }
    daemon.ctl(&["disk", "create", "larger", "--size", "65MiB", "--from", id(&copy)]);
    assert_eq!(daemon.json(&["disk", "show", "larger"])["size"], 65 << 20);
}
