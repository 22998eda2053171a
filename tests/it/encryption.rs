//! Encrypted disks: what is stored says nothing, keys come and go, and everything else works as it does
//! with other disks.
//!
//! Invariants: what must not be in the pool is searched for in every file of its directory.
//! Absent: random histories (`model.rs`) and kills under load (`crash_kill.rs`), half of whose disks are
//! encrypted; copies (`vault/encrypted.rs`); the cipher itself, which has its tests beside it.

use std::fs;
use std::path::Path;

use rowd::pool::file::IoMode;
use rowd_tests::client::{Ask, Client};
use rowd_tests::crash::with_mode;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::tool;

const BLOCK: usize = 4096;
/// What no file of the pool may hold.
const MARKER: &[u8; 32] = b"a secret that nobody must see...";

fn key(digit: char) -> String {
    format!("{}\n", String::from(digit).repeat(64))
}

fn setup() -> Setup {
    Setup::default().master_key(&key('1'))
}

/// A daemon with a master key and an encrypted disk.
fn secret() -> Daemon {
    let daemon = setup().start();
    daemon.ctl(&["disk", "create", "secret", "--size", "16MiB", "--encrypted"]);
    daemon
}

/// `blocks` blocks full of the marker.
fn marked(blocks: usize) -> Vec<u8> {
    MARKER.repeat(blocks * BLOCK / MARKER.len())
}

fn client(daemon: &Daemon, export: &str) -> Client {
    Client::connect(&daemon.nbd_socket(), export)
}

/// How often the marker is in the files below a directory, and how many bytes they have.
fn search(dir: &Path) -> (usize, u64) {
    let (mut found, mut bytes) = (0, 0);
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let below = search(&path);
            (found, bytes) = (found + below.0, bytes + below.1);
        } else if path.is_file() {
            let content = fs::read(&path).unwrap();
            found += content.windows(16).filter(|window| *window == &MARKER[..16]).count();
            bytes += content.len() as u64;
        }
    }
    (found, bytes)
}

fn assert_nothing_seen(daemon: &Daemon) {
    let (found, bytes) = search(&daemon.dir());
    assert!(bytes > 1 << 20, "only {bytes} bytes were searched");
    assert_eq!(found, 0, "plaintext is in the pool");
}

fn scrubbed(daemon: &Daemon) {
    daemon.ctl(&["scrub", "--wait"]);
    assert_eq!(daemon.json(&["status"])["last_scrub"]["bad"].as_array().unwrap().len(), 0);
}

/// Writes of every kind: whole blocks, parts of blocks, across blocks, zeros, trims.
fn write_marks(client: &mut Client) {
    client.write(0, &marked(64));
    client.write(1 << 20, &marked(1));
    client.write((2 << 20) + 100, &marked(1)[..600]);
    client.write((2 << 20) + 50, &marked(1)[..100]);
    client.write((3 << 20) - 100, &marked(1)[..200]);
    client.write(4 << 20, &marked(256));
    client.trim(4 << 20, 64 << 10);
}

fn assert_marks(client: &mut Client) {
    assert_eq!(client.read(0, 64 * 4096), marked(64));
    assert_eq!(client.read(1 << 20, 4096), marked(1));
    let merged = client.read(2 << 20, 4096);
    assert!(merged[..50].iter().chain(&merged[700..]).all(|byte| *byte == 0));
    assert_eq!(merged[50..150], marked(1)[..100]);
    assert_eq!(merged[150..700], marked(1)[50..600]);
    assert_eq!(client.read((3 << 20) - 100, 200), marked(1)[..200]);
    assert_eq!(client.read(4 << 20, 64 << 10), vec![0; 64 << 10]);
    assert_eq!(client.read((4 << 20) + (64 << 10), 4096), marked(1));
    assert_eq!(client.read(15 << 20, 4096), vec![0; 4096], "what was never written reads as zeros");
}

/// Nothing a client writes to an encrypted disk is in the pool file, the journal or the map: not after
/// merges of parts of blocks, not after a kill, not after a checkpoint. It reads back all the same.
#[test]
fn plaintext_is_nowhere_in_the_pool() {
    for mode in [IoMode::Buffered, IoMode::Direct] {
        let mut daemon = setup().config(&with_mode(SMALL, mode)).start();
        daemon.ctl(&["disk", "create", "secret", "--size", "16MiB", "--encrypted"]);
        let mut writer = client(&daemon, "secret");
        write_marks(&mut writer);
        writer.flush();
        assert_marks(&mut writer);
        assert_nothing_seen(&daemon);
        daemon.kill();
        assert_nothing_seen(&daemon);
        daemon.start();
        assert_marks(&mut client(&daemon, "secret"));
        scrubbed(&daemon);
        daemon.stop();
        assert_nothing_seen(&daemon);
        // The search does find what is there.
        daemon.start();
        daemon.ctl(&["disk", "create", "plain", "--size", "16MiB"]);
        let mut plain = client(&daemon, "plain");
        plain.write(0, &marked(1));
        plain.flush();
        assert!(search(&daemon.dir()).0 > 0);
    }
}

/// The same contents twice, at two places of one disk and at one place at two times, are stored as
/// different bytes each time.
#[test]
fn equal_contents_are_stored_differently() {
    let mut daemon = secret();
    let mut writer = client(&daemon, "secret");
    for _ in 0..8 {
        writer.write(0, &marked(32));
        writer.flush();
    }
    daemon.stop();
    let pool = fs::read(daemon.dir().join("pool")).unwrap();
    let journal_end = (1 << 20) + (8 << 20);
    let blocks: Vec<&[u8]> = pool[journal_end..].chunks_exact(BLOCK).collect();
    let mut written: Vec<_> = blocks.into_iter().filter(|b| b.iter().any(|x| *x != 0)).collect();
    assert!(written.len() >= 64, "only {} blocks are written", written.len());
    let count = written.len();
    written.sort_unstable();
    written.dedup();
    assert_eq!(written.len(), count, "two blocks are the same");
}

/// Snapshots, disks made from them and rollbacks of an encrypted disk are encrypted with its key, and hold
/// what they should, after a kill too.
#[test]
fn snapshots_clones_and_rollbacks_are_encrypted_too() {
    let mut daemon = secret();
    let mut writer = client(&daemon, "secret");
    write_marks(&mut writer);
    daemon.ctl(&["snapshot", "create", "secret", "first"]);
    writer.write(0, &vec![7; 64 * BLOCK]);
    writer.write((2 << 20) + 60, &[9; 10]);
    daemon.ctl(&["disk", "create", "copy", "--from", "secret@first"]);
    assert_marks(&mut client(&daemon, "copy"));
    assert_marks(&mut client(&daemon, "secret@first"));
    let mut copy = client(&daemon, "copy");
    copy.write(0, &vec![8; BLOCK]);
    copy.write(8 << 20, &marked(16));
    drop((writer, copy));
    daemon.crash();
    for (object, kind) in [("secret", "disk"), ("copy", "disk"), ("secret@first", "snapshot")] {
        assert_eq!(daemon.json(&[kind, "show", object])["encrypted"], true, "{object}");
    }
    assert_eq!(client(&daemon, "secret").read(0, 4096), vec![7; BLOCK]);
    assert_eq!(client(&daemon, "copy").read(0, 4096), vec![8; BLOCK]);
    assert_eq!(client(&daemon, "copy").read(4096, 4096), marked(1));
    assert_eq!(client(&daemon, "copy").read(8 << 20, 4096), marked(1));
    daemon.ctl(&["disk", "rollback", "secret", "first", "--yes", "--force"]);
    assert_marks(&mut client(&daemon, "secret"));
    scrubbed(&daemon);
    daemon.stop();
    tool::finish(daemon.command().arg("check")).ok();
    assert_nothing_seen(&daemon);
}

/// Export and import go through the key; tools of others read the export as it is.
#[test]
fn an_encrypted_disk_is_exported_and_imported() {
    let daemon = secret();
    write_marks(&mut client(&daemon, "secret"));
    daemon.ctl(&["snapshot", "create", "secret", "first"]);
    let file = daemon.path("image");
    daemon.ctl(&["disk", "export", "secret@first", &file]);
    assert_eq!(fs::read(&file).unwrap()[..64 * BLOCK], marked(64));
    daemon.ctl(&["disk", "import", "again", &file, "--encrypted"]);
    assert_marks(&mut client(&daemon, "again"));
    let info = tool::run("nbdinfo", &["--json", &daemon.uri("again")]).ok();
    assert_eq!(info.json()["exports"][0]["export-size"], 16 << 20);
    assert_nothing_seen(&daemon);
}

/// Zeroing and trimming leave nothing stored, as with any disk.
#[test]
fn zeros_take_no_space_on_an_encrypted_disk() {
    let daemon = secret();
    let mut writer = client(&daemon, "secret");
    writer.write(0, &marked(256));
    assert_eq!(daemon.json(&["disk", "show", "secret"])["mapped_bytes"], 1 << 20);
    let zeroes = rowd::nbd::wire::command::WRITE_ZEROES;
    let answer = writer.ask(Ask { command: zeroes, length: 1 << 20, ..Ask::default() });
    assert_eq!(answer.error, 0);
    assert_eq!(daemon.json(&["disk", "show", "secret"])["mapped_bytes"], 0);
    assert_eq!(writer.read(0, 4096), vec![0; BLOCK]);
}

/// Without a master key an encrypted disk cannot be made, and what to do is said. Nothing changes.
#[test]
fn without_a_master_key_no_disk_is_encrypted() {
    let daemon = Daemon::new();
    let create = ["disk", "create", "secret", "--size", "16MiB", "--encrypted"];
    let error = daemon.json_error(1, &create);
    assert_eq!(error["kind"], "condition");
    assert!(error["message"].as_str().unwrap().contains("no master key"), "{error}");
    let hint = error["hint"].as_str().unwrap();
    assert!(hint.contains("openssl rand") && hint.contains("credential:rowd-master-key"), "{hint}");
    assert_eq!(daemon.json(&["disk", "list"]).as_array().unwrap().len(), 0);
    let shown = daemon.json(&["key", "show"]);
    assert!(shown["master"].is_null() && shown["trouble"].is_string(), "{shown}");
    // A disk that is not encrypted needs none.
    daemon.ctl(&["disk", "create", "plain", "--size", "16MiB"]);
}

/// With no master key, or the wrong one, the daemon starts, other disks work, and the encrypted ones are
/// refused with the reason. With the right one everything is there again.
#[test]
fn a_wrong_master_key_locks_encrypted_disks_and_no_others() {
    let mut daemon = secret();
    daemon.ctl(&["disk", "create", "plain", "--size", "16MiB"]);
    write_marks(&mut client(&daemon, "secret"));
    write_marks(&mut client(&daemon, "plain"));
    daemon.ctl(&["snapshot", "create", "secret", "first"]);
    for (key, reason) in [(String::new(), "no master key"), (key('2'), "another one")] {
        daemon.kill();
        daemon.change_setup(|setup| setup.master_key(&key));
        daemon.start();
        assert_marks(&mut client(&daemon, "plain"));
        for export in ["secret", "secret@first"] {
            let refused = Client::try_connect(&daemon.nbd_socket(), export, true, &[]);
            let told = refused.expect_err("an export without its key").to_string();
            assert!(told.contains(reason), "{export}: {told}");
        }
        let shown = daemon.json(&["disk", "show", "secret"]);
        assert_eq!(shown["encrypted"], true);
        assert!(shown["locked"].as_str().unwrap().contains(reason), "{shown}");
        daemon.try_ctl(&["disk", "list"]).ok().says(&["encrypted, no key"]);
        daemon.try_ctl(&["key", "show"]).ok().says(&["secret", reason]);
        daemon.try_ctl(&["check"]).fails_with(1).says(&["locked: secret", reason]);
        // Neither damage nor a reason to fail: what is stored is checked without a key.
        scrubbed(&daemon);
        daemon.ctl(&["snapshot", "create", "secret"]);
        let export = daemon.try_ctl(&["disk", "export", "secret", &daemon.path("image")]);
        assert!(export.code != 0 && export.stderr.contains(reason), "{export}");
    }
    daemon.kill();
    daemon.change_setup(|setup| setup.master_key(&key('1')));
    daemon.start();
    assert_marks(&mut client(&daemon, "secret"));
    assert_marks(&mut client(&daemon, "secret@first"));
}

/// A disk is encrypted from its first block on or never.
#[test]
fn nothing_is_converted_in_place() {
    let daemon = secret();
    daemon.ctl(&["disk", "create", "plain", "--size", "16MiB"]);
    daemon.ctl(&["snapshot", "create", "plain", "first"]);
    daemon.ctl(&["snapshot", "create", "secret", "first"]);
    let create = ["disk", "create", "new", "--from", "plain@first", "--encrypted"];
    let error = daemon.json_error(2, &create);
    assert_eq!(error["kind"], "invalid");
    assert!(error["hint"].as_str().unwrap().contains("import"), "{error}");
    // Of an encrypted snapshot the word says what is so anyway.
    daemon.ctl(&["disk", "create", "new", "--from", "secret@first", "--encrypted"]);
    assert_eq!(daemon.json(&["disk", "show", "new"])["encrypted"], true);
    assert_eq!(daemon.json(&["disk", "show", "plain"])["encrypted"], false);
    // ENC-07: lists tell which is which, and a snapshot is as its disk.
    for (noun, names) in [("disk", ["secret", "plain"]), ("snapshot", ["secret@", "plain@"])] {
        let table = daemon.ctl(&[noun, "list"]);
        let row = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(row(names[0]).contains("encrypted"), "{table}");
        assert!(!row(names[1]).contains("encrypted"), "{table}");
        for one in daemon.json(&[noun, "list"]).as_array().unwrap() {
            let of = one["disk_name"].as_str().or(one["name"].as_str()).unwrap();
            assert_eq!(one["encrypted"], of != "plain", "{one}");
        }
    }
}

/// All keys are wrapped anew in one change: before it only the old master key opens the disks, after it only
/// the new one. A client that is connected notices nothing.
#[test]
fn keys_are_wrapped_with_a_new_master_key() {
    let config = |dir: &Path| {
        format!(
            "{SMALL}\n[encryption]\nmaster_key = \"file:{0}/new\"\nprevious_master_key = \"file:{0}/old\"\n",
            dir.display()
        )
    };
    let keys = tempfile::TempDir::new().unwrap();
    let place = |name: &str, content: &str| {
        let path = keys.path().join(name);
        fs::write(&path, content).unwrap();
        tool::run("chmod", &["600", &path.display().to_string()]).ok();
    };
    place("new", &key('1'));
    let mut daemon = Setup::default().config(&config(keys.path())).start();
    for name in ["one", "two"] {
        daemon.ctl(&["disk", "create", name, "--size", "16MiB", "--encrypted"]);
        write_marks(&mut client(&daemon, name));
    }
    let mut connected = client(&daemon, "one");
    let first = daemon.json(&["key", "show"])["master"].clone();
    fs::remove_file(keys.path().join("new")).unwrap();
    let error = daemon.json_error(1, &["key", "rotate"]);
    assert_eq!(error["kind"], "condition");
    place("new", &key('2'));
    let error = daemon.json_error(1, &["key", "rotate"]);
    assert!(error["message"].as_str().unwrap().contains("another one"), "{error}");
    place("old", &key('1'));
    assert_eq!(daemon.json(&["key", "rotate"])["rotated"], 2);
    assert_eq!(daemon.json(&["key", "rotate"])["rotated"], 0);
    assert_marks(&mut connected);
    let shown = daemon.json(&["key", "show"]);
    assert_ne!(shown["master"], first);
    for key in shown["keys"].as_array().unwrap() {
        assert_eq!(key["master"], shown["master"]);
    }
    drop(connected);
    fs::remove_file(keys.path().join("old")).unwrap();
    daemon.crash();
    assert_marks(&mut client(&daemon, "one"));
    assert_marks(&mut client(&daemon, "two"));
    daemon.kill();
    place("new", &key('1'));
    daemon.start();
    assert!(Client::try_connect(&daemon.nbd_socket(), "one", true, &[]).is_err());
    // The right key opens them without another start.
    place("new", &key('2'));
    assert_eq!(daemon.json(&["key", "rotate"])["rotated"], 0);
    assert_marks(&mut client(&daemon, "one"));
}

/// The key outlives its disk as long as a snapshot or a clone needs it, and goes with the last of them.
#[test]
fn a_key_goes_with_the_last_that_needs_it() {
    let mut daemon = secret();
    write_marks(&mut client(&daemon, "secret"));
    daemon.ctl(&["snapshot", "create", "secret", "first"]);
    daemon.ctl(&["disk", "create", "copy", "--from", "secret@first"]);
    let snapshot = daemon.json(&["snapshot", "show", "secret@first"])["id"].clone();
    let count = |daemon: &Daemon| daemon.json(&["key", "show"])["keys"].as_array().unwrap().len();
    daemon.ctl(&["disk", "delete", "secret", "--yes"]);
    daemon.ctl(&["snapshot", "delete", snapshot.as_str().unwrap(), "--force", "--yes"]);
    daemon.wait_reclaimed();
    assert_eq!(count(&daemon), 1);
    daemon.crash();
    assert_marks(&mut client(&daemon, "copy"));
    daemon.ctl(&["disk", "delete", "copy", "--yes"]);
    assert_eq!(count(&daemon), 0);
    daemon.crash();
    assert_eq!(count(&daemon), 0);
}

/// A pool with an encrypted disk says so in its superblock: an older rowd would take ciphertext for data.
#[test]
fn a_pool_with_encrypted_disks_has_a_format_of_its_own() {
    let version = |daemon: &Daemon| {
        let pool = fs::read(daemon.dir().join("pool")).unwrap();
        let of = |at: usize| u32::from_le_bytes(pool[at + 8..at + 12].try_into().unwrap());
        (of(0), of(BLOCK))
    };
    let mut daemon = setup().start();
    daemon.ctl(&["disk", "create", "plain", "--size", "16MiB"]);
    daemon.stop();
    assert_eq!(version(&daemon), (1, 1));
    daemon.start();
    daemon.ctl(&["disk", "create", "secret", "--size", "16MiB", "--encrypted"]);
    daemon.stop();
    assert_eq!(version(&daemon), (2, 2));
}
