//! Healing: a damaged block of the pool is read from a copy and stored anew, for all who share it; what no copy has
//! stays an error, never other bytes.
//!
//! Invariants: bits are flipped in the pool file under the running daemon.
//! Absent: bad places that the device itself reports.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use rowd_tests::client::{Ask, Client};
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::{tool, wait};

use super::copies::{MIB, contents, copied, daemon, noise, url, write};

const SIZE: u64 = 64 << 20;
/// Where the blocks of a pool as the tests make it begin.
const DATA: usize = (1 << 20) + (8 << 20);

fn pool(daemon: &Daemon) -> File {
    File::options().read(true).write(true).open(daemon.dir().join("pool")).unwrap()
}

fn flip_at(daemon: &Daemon, offset: u64) {
    let mut byte = [0];
    pool(daemon).read_exact_at(&mut byte, offset + 1000).unwrap();
    pool(daemon).write_all_at(&[byte[0] ^ 8], offset + 1000).unwrap();
}

/// Flips a bit of the only block of the pool file that has these contents. Returns where it is.
#[track_caller]
fn flip(daemon: &Daemon, block: &[u8]) -> u64 {
    let bytes = fs::read(daemon.dir().join("pool")).unwrap();
    let mut found = (DATA..bytes.len()).step_by(4096).filter(|at| &bytes[*at..*at + 4096] == block);
    let at = found.next().expect("the block is in the pool") as u64;
    assert!(found.next().is_none(), "it is there twice");
    flip_at(daemon, at);
    at
}

/// Whether a block of an export can be read.
fn reads(daemon: &Daemon, export: &str, offset: u64) -> bool {
    let mut client = Client::connect(&daemon.nbd_socket(), export);
    let error = client.ask(Ask { offset, length: 4096, ..Ask::default() }).error;
    client.disconnect();
    assert!(error == 0 || error == u32::try_from(libc::EIO).unwrap(), "error {error}");
    error == 0
}

#[track_caller]
fn wait_healed(daemon: &Daemon, count: u64) {
    wait::until("healed blocks", || (daemon.status("healed_blocks") == count).then_some(()));
}

fn scrub_finds_nothing(daemon: &Daemon) {
    daemon.try_ctl(&["scrub", "--wait"]).ok();
}

/// The offline check: map, counters and allocator agree.
fn check(daemon: &mut Daemon) {
    daemon.stop();
    tool::finish(daemon.command().arg("check")).ok();
    daemon.start();
}

/// A read that meets the damage fails, and a moment later it does not: for the disk, its snapshots and a clone. It
/// stays so after a crash, and when snapshots and disks are deleted nothing is freed twice or never.
#[test]
fn a_damaged_block_is_healed_from_a_copy_for_all_who_share_it() {
    let mut daemon = daemon();
    let data = noise(1, 5 << 20);
    write(&daemon, "data", 0, &data);
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    copied(&daemon, "data@one", "backup");
    daemon.ctl(&["disk", "create", "clone", "--from", "data@one"]);
    // Neighbours of the block in its leaf, in every descendant; and another snapshot.
    write(&daemon, "data", 4096 * 4, &noise(2, 4096));
    daemon.ctl(&["snapshot", "create", "data", "two"]);
    write(&daemon, "data", 4096 * 5, &noise(3, 4096));
    write(&daemon, "clone", 4096 * 6, &noise(4, 4096));
    let exports = ["data", "data@one", "data@two", "clone"];
    let expected = exports.map(|export| contents(&daemon, export, SIZE));
    let old = flip(&daemon, &data[4096 * 3..4096 * 4]);
    assert!(exports.iter().any(|export| !reads(&daemon, export, 4096 * 3)), "damage is an error");
    wait_healed(&daemon, 1);
    let unchanged = |daemon: &Daemon| {
        for (export, expected) in exports.iter().zip(&expected) {
            assert!(contents(daemon, export, SIZE) == *expected, "{export}");
        }
        scrub_finds_nothing(daemon);
    };
    unchanged(&daemon);
    let mut bad = [0; 4096];
    pool(&daemon).read_exact_at(&mut bad, old).unwrap();
    assert!(bad[..] != data[4096 * 3..4096 * 4], "nothing is written over it");
    let events = daemon.ctl(&["events"]);
    for part in ["pool.heal", "12288", "clone", "data@one", "data@two", "in backup"] {
        assert!(events.contains(part), "{part:?} is not in {events}");
    }
    daemon.try_ctl(&["status"]).ok().says(&["healed", "1 blocks, from copies"]);
    daemon.crash();
    unchanged(&daemon);
    check(&mut daemon);
    unchanged(&daemon);
    daemon.ctl(&["snapshot", "delete", "data@one", "--force", "--yes"]);
    daemon.ctl(&["disk", "delete", "clone", "--yes"]);
    daemon.wait_reclaimed();
    assert!(contents(&daemon, "data", SIZE) == expected[0]);
    check(&mut daemon);
    daemon.ctl(&["snapshot", "delete", "data@two", "--yes"]);
    daemon.ctl(&["disk", "delete", "data", "--yes"]);
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), 0);
}

/// A scrub finds damage that nobody reads, and it is healed: many blocks, from several copies, one of a snapshot
/// that is no longer here.
#[test]
fn what_a_scrub_finds_is_healed_also_from_copies_of_snapshots_that_are_gone() {
    let mut daemon = daemon();
    let (one, two) = (noise(1, 9 << 20), noise(2, 64 << 10));
    write(&daemon, "data", 0, &one);
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    copied(&daemon, "data@one", "backup");
    write(&daemon, "data", 2 * MIB, &two);
    daemon.ctl(&["snapshot", "create", "data", "two"]);
    copied(&daemon, "data@two", "backup");
    daemon.ctl(&["snapshot", "delete", "data@one", "data@two", "--yes"]);
    daemon.wait_reclaimed();
    let expected = contents(&daemon, "data", SIZE);
    for block in [0, 1, 700, 1200, 2000] {
        flip(&daemon, &one[block * 4096..][..4096]);
    }
    flip(&daemon, &two[4096..8192]);
    daemon.try_ctl(&["scrub", "--wait"]).fails_with(24);
    wait_healed(&daemon, 6);
    scrub_finds_nothing(&daemon);
    assert!(contents(&daemon, "data", SIZE) == expected);
    check(&mut daemon);
}

/// The same for an encrypted disk: what comes back is sealed for its new place.
#[test]
fn a_block_of_an_encrypted_disk_is_healed() {
    let mut daemon = Setup::default().master_key(&"1".repeat(64)).start();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB", "--encrypted"]);
    write(&daemon, "data", 0, &noise(1, 1 << 20));
    let before = fs::read(daemon.dir().join("pool")).unwrap();
    write(&daemon, "data", 2 * MIB, &noise(2, 4096));
    let after = fs::read(daemon.dir().join("pool")).unwrap();
    let end = before.len().min(after.len());
    let is_new = |at: &usize| before[*at..*at + 4096] != after[*at..*at + 4096];
    let written: Vec<usize> = (DATA..end).step_by(4096).filter(is_new).collect();
    assert_eq!(written.len(), 1, "one block is written");
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    copied(&daemon, "data@one", "backup");
    flip_at(&daemon, written[0] as u64);
    assert!(!reads(&daemon, "data", 2 * MIB));
    wait_healed(&daemon, 1);
    for export in ["data", "data@one"] {
        assert!(contents(&daemon, export, SIZE)[2 << 20..][..4096] == noise(2, 4096), "{export}");
    }
    daemon.crash();
    assert!(contents(&daemon, "data", SIZE)[2 << 20..][..4096] == noise(2, 4096));
    check(&mut daemon);
}

/// A snapshot that is in the repository alone, as most are, heals its disk all the same.
#[test]
fn a_block_is_healed_from_a_snapshot_that_has_left_the_pool() {
    let mut daemon = daemon();
    let data = noise(1, 3 << 20);
    write(&daemon, "data", 0, &data);
    daemon.ctl(&["snapshot", "create", "data", "one", "--repo", "backup"]);
    wait::until("a snapshot that has left the pool", || {
        let told = daemon.json(&["snapshot", "show", "data@one"]);
        (told["presence"] == serde_json::json!(["repository"])).then_some(())
    });
    daemon.wait_reclaimed();
    let expected = contents(&daemon, "data", SIZE);
    flip(&daemon, &data[4096 * 7..4096 * 8]);
    assert!(!reads(&daemon, "data", 4096 * 7));
    wait_healed(&daemon, 1);
    assert!(contents(&daemon, "data", SIZE) == expected);
    // The next copy still knows what changed since.
    write(&daemon, "data", 0, &noise(2, 4096));
    daemon.ctl(&["snapshot", "create", "data", "two"]);
    let second = copied(&daemon, "data@two", "backup");
    assert_eq!(second["detail"]["new_bytes"], 4096);
    daemon.ctl(&["copy", "verify", second["id"].as_str().unwrap()]);
    check(&mut daemon);
    assert!(contents(&daemon, "data@two", SIZE)[4096..] == expected[4096..]);
}

/// Without a copy that has the very block, nothing is made up: not from a copy of other contents of that place, nor
/// from another disk, nor from a copy that is damaged itself.
#[test]
fn what_no_copy_has_stays_an_error() {
    let daemon = daemon();
    write(&daemon, "data", 0, &noise(1, 5 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    copied(&daemon, "data@one", "backup");
    write(&daemon, "data", 4096, &noise(2, 4096));
    daemon.ctl(&["disk", "create", "other", "--size", "64MiB"]);
    write(&daemon, "other", 4096, &noise(2, 4096 * 2)[4096..]);
    flip(&daemon, &noise(2, 4096));
    flip(&daemon, &noise(2, 4096 * 2)[4096..]);
    for chunk in super::server::files(&daemon.file("vault").join("chunks")) {
        let mut bytes = fs::read(&chunk).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(&chunk, bytes).unwrap();
    }
    flip(&daemon, &noise(1, 5 << 20)[8192..8192 + 4096]);
    for (export, offset) in [("data", 4096), ("other", 4096), ("data", 8192), ("data@one", 8192)] {
        assert!(!reads(&daemon, export, offset), "{export} {offset}");
    }
    wait::until("an attempt to heal", || {
        let jobs = daemon.json(&["job", "list"]);
        let ended = |job: &serde_json::Value| job["kind"] == "heal" && job["state"] == "done";
        let ended = jobs.as_array().unwrap().iter().any(ended);
        (ended && daemon.log().contains("that no copy has")).then_some(())
    });
    assert_eq!(daemon.status("healed_blocks"), 0);
    for (export, offset) in [("data", 4096), ("other", 4096), ("data", 8192), ("data@one", 8192)] {
        assert!(!reads(&daemon, export, offset), "{export} {offset}");
    }
    assert!(reads(&daemon, "data@one", 4096), "the older contents are whole");
}

/// Killed before or after the record of it, the block is damaged or healed, and the next scrub finishes it.
#[test]
fn a_kill_in_the_middle_of_healing_loses_nothing() {
    for point in ["heal.written", "heal.journaled"] {
        let faulty = Setup::default().program(env!("CARGO_BIN_EXE_rowd-faulty"));
        let mut daemon = faulty.env("ROWD_FAIL_POINT", &format!("{point}:1")).start();
        fs::create_dir(daemon.file("vault")).unwrap();
        daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
        daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
        write(&daemon, "data", 0, &noise(1, 1 << 20));
        daemon.ctl(&["snapshot", "create", "data", "one"]);
        copied(&daemon, "data@one", "backup");
        let expected = contents(&daemon, "data@one", SIZE);
        flip(&daemon, &noise(1, 1 << 20)[8192..8192 + 4096]);
        assert!(!reads(&daemon, "data", 8192));
        daemon.wait_ended();
        daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "heal.written:1000000"));
        daemon.start();
        daemon.try_ctl(&["scrub", "--wait"]);
        wait::until("a whole disk", || reads(&daemon, "data", 8192).then_some(()));
        assert!(contents(&daemon, "data", SIZE) == expected, "{point}");
        assert!(contents(&daemon, "data@one", SIZE) == expected, "{point}");
        scrub_finds_nothing(&daemon);
        check(&mut daemon);
    }
}
