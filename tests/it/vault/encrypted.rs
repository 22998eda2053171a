//! Copies of encrypted disks: ciphertext only, returned to who has the master key and to nobody else.
//!
//! Invariants: what must not be in a repository is searched for in every file of it, with blocks that do not
//! compress, so that it would be found.
//! Absent: kills (`endings.rs`, half of whose disks are encrypted); the cipher, which has its tests beside it.

use std::fs;
use std::path::Path;

use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::tool;
use serde_json::{Value, json};

use super::copies::{MIB, contents, copied, id, noise, url, write};
use super::server::{S3Server, add, files};

const MARKER: &[u8; 32] = b"a secret that nobody must see...";
const SIZE: u64 = 16 << 20;

fn key(digit: char) -> String {
    format!("{}\n", String::from(digit).repeat(64))
}

/// Blocks of noise that each end with the marker.
fn marked(seed: u64, blocks: usize) -> Vec<u8> {
    let mut bytes = noise(seed, blocks * 4096);
    bytes.chunks_exact_mut(4096).for_each(|block| block[4064..].copy_from_slice(MARKER));
    bytes
}

/// How often the marker is in the files below a directory.
fn seen(dir: &Path) -> usize {
    let seen = |file| {
        let content = fs::read(file).unwrap();
        content.windows(MARKER.len()).filter(|window| *window == MARKER).count()
    };
    files(dir).iter().filter(|file| file.is_file()).map(seen).sum()
}

/// A daemon with the master key `1`, the repository `backup` and the encrypted disk `secret`.
fn secret() -> Daemon {
    let daemon = Setup::default().master_key(&key('1')).start();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    daemon.ctl(&["disk", "create", "secret", "--size", "16MiB", "--encrypted"]);
    daemon
}

/// Another daemon that knows the repository.
fn other(of: &Daemon, master_key: Option<char>) -> Daemon {
    let setup = Setup::default();
    let daemon = match master_key {
        Some(digit) => setup.master_key(&key(digit)).start(),
        None => setup.start(),
    };
    daemon.ctl(&["repo", "add", "found", &url(of), "--existing"]);
    daemon
}

fn snapshot_and_copy(daemon: &Daemon, name: &str) -> Value {
    daemon.ctl(&["snapshot", "create", "secret", name]);
    copied(daemon, &format!("secret@{name}"), "backup")
}

fn master(daemon: &Daemon) -> Value {
    daemon.json(&["key", "show"])["master"].clone()
}

/// No file of the repository has what was written, and a daemon with the same master key and an empty pool
/// makes encrypted disks of the copies, equal byte by byte. Of a plain disk the search does find it.
#[test]
fn plaintext_is_nowhere_in_a_repository_and_comes_back_to_who_has_the_key() {
    let daemon = secret();
    write(&daemon, "secret", 0, &marked(1, 1300));
    let first = snapshot_and_copy(&daemon, "one");
    write(&daemon, "secret", 2 * MIB, &marked(2, 3));
    let second = snapshot_and_copy(&daemon, "two");
    let detail = &second["detail"];
    assert_eq!((&detail["base"], &detail["new_bytes"]), (&first["id"], &json!(3 * 4096)));
    assert_eq!((&detail["encrypted"], &detail["master"]), (&json!(true), &master(&daemon)));
    let vault = daemon.file("vault");
    assert_eq!(seen(&vault), 0, "plaintext is in the repository");
    let there = other(&daemon, Some('1'));
    for (copy, snapshot) in [(&first, "secret@one"), (&second, "secret@two")] {
        let verified = there.json(&["copy", "verify", id(copy)]);
        assert!(!verified["message"].as_str().unwrap().contains("decrypted"), "{verified}");
        let name = format!("of-{}", snapshot.replace('@', "-"));
        there.ctl(&["disk", "create", &name, "--from", id(copy)]);
        assert_eq!(there.json(&["disk", "show", &name])["encrypted"], true);
        assert!(contents(&there, &name, SIZE) == contents(&daemon, snapshot, SIZE), "{snapshot}");
    }
    assert_eq!(seen(&there.dir()), 0, "plaintext is in the pool of the other daemon");
    daemon.ctl(&["disk", "create", "plain", "--size", "16MiB"]);
    write(&daemon, "plain", 0, &marked(3, 3));
    daemon.ctl(&["snapshot", "create", "plain", "one"]);
    let plain = copied(&daemon, "plain@one", "backup");
    assert_eq!((&plain["detail"]["encrypted"], seen(&vault)), (&json!(false), 3));
    daemon.ctl(&["disk", "create", "again", "--from", id(&plain), "--encrypted"]);
    assert_eq!(daemon.json(&["disk", "show", "again"])["encrypted"], true);
    assert!(contents(&daemon, "again", SIZE) == contents(&daemon, "plain@one", SIZE));
}

/// The same through an S3 server.
#[test]
fn encrypted_copies_go_through_an_s3_server() {
    let server = S3Server::start();
    let daemon = secret();
    add(&daemon, "s3", "host", &server.endpoint());
    write(&daemon, "secret", MIB, &marked(1, 600));
    daemon.ctl(&["snapshot", "create", "secret", "one"]);
    let copy = copied(&daemon, "secret@one", "s3");
    assert_eq!(seen(&server.objects()), 0);
    let there = Setup::default().master_key(&key('1')).start();
    add(&there, "s3", "host", &server.endpoint());
    there.ctl(&["disk", "create", "again", "--from", id(&copy)]);
    assert!(contents(&there, "again", SIZE) == contents(&daemon, "secret@one", SIZE));
}

/// With another master key, or with none, copies are listed and what is stored is verified. No disk is made of
/// them, and which key is needed is said.
#[test]
fn without_its_master_key_a_copy_is_checked_and_not_read() {
    let daemon = secret();
    write(&daemon, "secret", 0, &marked(1, 300));
    let copy = snapshot_and_copy(&daemon, "one");
    let needed = master(&daemon).as_str().unwrap().to_owned();
    for (digit, reason) in [(Some('2'), "another one"), (None, "no master key")] {
        let there = other(&daemon, digit);
        assert_eq!(there.json(&["copy", "show", id(&copy)])["detail"]["master"], *needed);
        let verified = there.json(&["copy", "verify", id(&copy)]);
        let told = verified["message"].as_str().unwrap();
        assert!(told.contains("not decrypted") && told.contains(&needed), "{told}");
        let error = there.json_error(1, &["disk", "create", "again", "--from", id(&copy)]);
        assert_eq!(error["kind"], "condition");
        let told = error["message"].as_str().unwrap();
        assert!(told.contains(&needed) && told.contains(reason), "{told}");
        assert_eq!(there.json(&["disk", "list"]), json!([]));
    }
    // Nor is a disk copied whose key is not there.
    let mut daemon = daemon;
    daemon.stop();
    daemon.change_setup(|setup| setup.master_key(&key('2')));
    daemon.start();
    let error = daemon.json_error(1, &["snapshot", "copy", "secret@one", "--to", "backup"]);
    let told = error["message"].as_str().unwrap();
    assert!(told.contains("encrypted") && told.contains(&needed), "{told}");
}

/// Damage is found without the key. What somebody without the key makes up, with sums that fit, is found by who
/// has it.
#[test]
fn a_copy_that_was_changed_is_never_read() {
    let daemon = secret();
    write(&daemon, "secret", 0, &marked(1, 1100));
    let first = snapshot_and_copy(&daemon, "one");
    let vault = daemon.file("vault");
    let keyless = other(&daemon, None);
    for file in files(&vault.join("chunks")) {
        let good = fs::read(&file).unwrap();
        for at in [0, 40, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file, bad).unwrap();
            keyless.try_ctl(&["copy", "verify", id(&first)]).fails_with(24);
            assert_ne!(daemon.try_ctl(&["disk", "create", "x", "--from", id(&first)]).code, 0);
        }
        fs::write(&file, &good).unwrap();
    }
    // An earlier state told as a later one.
    let header = files(&vault.join("copies")).remove(0);
    let text = fs::read_to_string(&header).unwrap();
    let json = text.lines().next().unwrap().replace(r#""created_at":"#, r#""created_at":1"#);
    fs::write(daemon.file("json"), &json).unwrap();
    let sum = tool::run("sha256sum", &[&daemon.path("json")]).ok().stdout;
    fs::write(&header, format!("{json}\n{}\n", &sum[..64])).unwrap();
    let verified = daemon.try_ctl(&["copy", "verify", id(&first)]);
    verified.fails_with(24).says(&["not what its key was used for"]);
    assert_ne!(daemon.try_ctl(&["disk", "create", "x", "--from", id(&first)]).code, 0);
    // Nothing is built on it either.
    let second = snapshot_and_copy(&daemon, "two");
    assert_eq!(second["detail"]["base"], Value::Null);
    daemon.ctl(&["copy", "verify", id(&second)]);
    assert_eq!(daemon.json(&["disk", "list"]).as_array().unwrap().len(), 1);
}

/// After `key rotate` the next copy of a disk carries the key wrapped by the new master key, and older copies of
/// the disk in this repository are read with it too; so is a copy of an old copy in another repository. Without
/// such a copy the old master key is needed.
#[test]
fn copies_are_read_with_a_new_master_key_once_one_was_made_with_it() {
    let keys = tempfile::TempDir::new().unwrap();
    let place = |name: &str, digit: char| {
        let path = keys.path().join(name);
        fs::write(&path, key(digit)).unwrap();
        tool::run("chmod", &["600", &path.display().to_string()]).ok();
    };
    let text = format!(
        "{SMALL}\n[encryption]\nmaster_key = \"file:{0}/new\"\nprevious_master_key = \"file:{0}/old\"\n",
        keys.path().display()
    );
    place("new", '1');
    let daemon = Setup::default().config(&text).start();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    daemon.ctl(&["disk", "create", "secret", "--size", "16MiB", "--encrypted"]);
    write(&daemon, "secret", 0, &marked(1, 300));
    let first = snapshot_and_copy(&daemon, "one");
    let old = master(&daemon);
    place("new", '2');
    place("old", '1');
    assert_eq!(daemon.json(&["key", "rotate"])["rotated"], 1);
    let there = other(&daemon, Some('2'));
    let error = there.json_error(1, &["disk", "create", "again", "--from", id(&first)]);
    assert!(error["message"].as_str().unwrap().contains(old.as_str().unwrap()), "{error}");
    // A copy of the copy carries the key wrapped by the new one.
    fs::create_dir(daemon.file("far")).unwrap();
    let far = format!("file://{}", daemon.path("far"));
    daemon.ctl(&["repo", "add", "far", &far]);
    let relayed = copied(&daemon, id(&first), "far");
    assert_eq!(relayed["detail"]["master"], master(&daemon));
    there.ctl(&["repo", "add", "far", &far, "--existing"]);
    there.ctl(&["disk", "create", "relayed", "--from", id(&relayed)]);
    assert!(contents(&there, "relayed", SIZE) == contents(&daemon, "secret@one", SIZE));
    write(&daemon, "secret", 8 * MIB, &marked(2, 3));
    let second = snapshot_and_copy(&daemon, "two");
    assert_eq!(second["detail"]["base"], first["id"]);
    assert_eq!(second["detail"]["master"], master(&daemon));
    for (copy, snapshot) in [(&first, "secret@one"), (&second, "secret@two")] {
        let name = snapshot.replace('@', "-");
        there.ctl(&["disk", "create", &name, "--from", id(copy)]);
        assert!(contents(&there, &name, SIZE) == contents(&daemon, snapshot, SIZE), "{snapshot}");
    }
}
