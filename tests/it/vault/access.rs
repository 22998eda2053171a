//! Instant access: what it is for, what it holds, its length, its end, and a restart between.
//!
//! Absent: the second at which it ends (`engine/presence.rs` has that as a unit test); how long a snapshot with it takes,
//! and what a rollback to it costs (`tests/bench`, the curves `rollback` and `copy`); the whole life (`life.rs`).

use std::fs;

use rowd_tests::mount::Device;
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::{tool, wait};
use serde_json::{Value, json};

use super::copies::{MIB, contents, daemon, noise, url, write};
use super::server::files;

const DAY: u64 = 24 * 3600;

/// A moment told as `2026-01-31T09:00:00Z`, as seconds since the day it is in began, and that day.
fn day_and_second(time: &Value) -> (&str, &str) {
    time.as_str().unwrap().split_once('T').unwrap()
}

/// IA-10, 13, 15: 1 to 65536 days from the cut on, one unless it is said; at its end the blocks leave the pool, also when
/// the daemon was killed meanwhile, and the snapshot stays.
#[test]
fn instant_access_ends_by_itself_after_its_days() {
    let mut daemon = Setup::default().program(tool::built("rowd-faulty")).prepare();
    let clock = daemon.path("clock");
    daemon.change_setup(|setup| setup.env("ROWD_CLOCK", &clock));
    fs::write(&clock, "0").unwrap();
    daemon.start();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    let bytes = noise(1, 6 << 20);
    write(&daemon, "data", 0, &bytes);
    let create = |name: &str, days: &str| {
        let days = format!("--instant-access{days}");
        daemon.json(&["snapshot", "create", "data", name, "--repo", "backup", &days])
    };
    for days in ["0", "65537"] {
        let wish = format!("--instant-access={days}");
        let args = ["snapshot", "create", "data", "never", "--repo", "backup", &wish];
        let error = daemon.json_error(2, &args);
        assert!(error["message"].as_str().unwrap().contains("65536"), "{error}");
    }
    let (short, long) = (create("short", ""), create("long", "=65536"));
    let (made, until) = (&short["created_at"], &short["instant_access_until"]);
    assert_eq!(day_and_second(made).1, day_and_second(until).1, "whole days");
    assert_ne!(day_and_second(made).0, day_and_second(until).0, "one day");
    assert!(long["instant_access_until"].as_str().unwrap().starts_with("22"), "{long}");
    for name in ["data@short", "data@long"] {
        let told = daemon.json(&["snapshot", "wait", name]);
        assert_eq!(told["presence"], json!(["pool", "repository"]), "{told}");
    }
    daemon.kill();
    fs::write(&clock, (DAY + 60).to_string()).unwrap();
    daemon.start();
    let told = wait::until("the end of instant access", || {
        let told = daemon.json(&["snapshot", "show", "data@short"]);
        (told["presence"] == json!(["repository"])).then_some(told)
    });
    assert_eq!((&told["instant_access"], &told["status"]), (&json!(false), &json!("accomplished")));
    let told = daemon.json(&["snapshot", "show", "data@long"]);
    assert_eq!(told["presence"], json!(["pool", "repository"]), "{told}");
    daemon.ctl(&["disk", "create", "again", "--from", "data@short", "--full"]);
    assert!(contents(&daemon, "again", 64 << 20)[..6 << 20] == bytes[..]);
}

/// A daemon whose repository takes so long that a copy of some MiB outlasts a test, and a disk `data`.
fn slow() -> Daemon {
    let daemon = Daemon::new();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "slow", &url(&daemon), "--bandwidth", "256KiB"]);
    daemon.ctl(&["disk", "create", "data", "--size", "320MiB"]);
    daemon
}

const ACCESS: [&str; 4] = ["--repo", "slow", "--instant-access", "none"];

fn accessible(daemon: &Daemon, name: &str) -> Value {
    daemon.json(&[&["snapshot", "create", "data", name], &ACCESS[..]].concat())
}

#[track_caller]
fn is_under_way(daemon: &Daemon, snapshot: &str) {
    let told = daemon.json(&["snapshot", "show", snapshot]);
    assert_eq!(told["status"], "progressing", "the copy was faster than this test: {told}");
}

/// IA-01, 02, 07, LOC-08, DISK-15, PERF-03: with much data as with little a disk of the snapshot, a rollback and, beyond
/// what the guides allow, a new beginning of the disk need nothing of the repository.
#[test]
fn instant_access_works_at_once_whatever_was_written() {
    let daemon = slow();
    let mut written = Vec::new();
    for (name, mib) in [("little", 8), ("much", 96)] {
        written.push(noise(mib, usize::try_from(mib * MIB).unwrap()));
        let bytes = written.last().unwrap();
        write(&daemon, "data", 0, bytes);
        assert_eq!(accessible(&daemon, name)["progress"], 0);
        write(&daemon, "data", 0, &vec![7; bytes.len()]);
        let clone = format!("of-{name}");
        daemon.ctl(&["disk", "create", &clone, "--from", &format!("data@{name}")]);
        assert!(contents(&daemon, &clone, mib * MIB) == *bytes, "{name}");
        daemon.ctl(&["disk", "rollback", "data", name, "--yes"]);
        assert!(contents(&daemon, "data", mib * MIB) == *bytes, "{name}");
    }
    daemon.ctl(&["disk", "reinit", "data", "--yes"]);
    assert!(contents(&daemon, "data", MIB) == vec![0; 1 << 20]);
    daemon.ctl(&["disk", "rollback", "data", "little", "--yes"]);
    assert!(contents(&daemon, "data", 8 * MIB) == written[0]);
    is_under_way(&daemon, "data@little");
    is_under_way(&daemon, "data@much");
}

/// IA-18, LOC-19: before something risky a snapshot, beside the original a test copy of its file system, and the way
/// back when it went wrong, all of it while the snapshot is still on its way to the repository.
#[test]
fn a_test_copy_is_mounted_and_a_mistake_taken_back_while_the_copy_is_under_way() {
    let daemon = slow();
    let device = Device::attach(&daemon, "data");
    let make = ["-q", "-E", "nodiscard", device.path()];
    tool::finish(tool::command("mkfs.ext4").args(make)).ok();
    let mounted = device.mount("rw");
    let precious = noise(1, 8 << 20);
    fs::write(mounted.path().join("precious"), &precious).unwrap();
    tool::finish(tool::command("sync").arg("-f").arg(mounted.path())).ok();
    accessible(&daemon, "before");
    daemon.ctl(&["disk", "create", "trial", "--from", "data@before"]);
    let trial = Device::attach(&daemon, "trial").mount("rw");
    assert!(fs::read(trial.path().join("precious")).unwrap() == precious);
    fs::remove_file(trial.path().join("precious")).unwrap();
    assert!(fs::read(mounted.path().join("precious")).unwrap() == precious);
    fs::write(mounted.path().join("precious"), "spoilt").unwrap();
    drop(mounted.unmount());
    wait::until("a disk that nobody uses", || {
        let told = daemon.json(&["disk", "show", "data"]);
        (told["clients"] == json!([])).then_some(())
    });
    daemon.ctl(&["disk", "rollback", "data", "before", "--yes"]);
    let mounted = Device::attach(&daemon, "data").mount("rw");
    assert!(fs::read(mounted.path().join("precious")).unwrap() == precious);
    is_under_way(&daemon, "data@before");
}

/// IA-11, DEL-13: a snapshot with instant access is deleted as any: no block stays in the pool, nothing in the repository.
#[test]
fn a_deleted_snapshot_takes_its_instant_access_along() {
    let daemon = daemon();
    write(&daemon, "data", 0, &noise(1, 4 << 20));
    let access = ["--repo", "backup", "--instant-access", "none", "--wait"];
    daemon.ctl(&[&["snapshot", "create", "data", "one"], &access[..]].concat());
    write(&daemon, "data", 0, &noise(2, 4 << 20));
    assert_eq!(daemon.status("used_bytes"), 8 * MIB);
    daemon.ctl(&["snapshot", "delete", "data@one", "--yes"]);
    daemon.wait_reclaimed();
    assert_eq!(daemon.status("used_bytes"), 4 * MIB);
    wait::until("an empty repository", || (files(&daemon.file("vault")).len() == 1).then_some(()));
}

/// IA-19, BILL-02, 03, 05, 09: what is held for instant access is told by itself, now and in the samples, and ends with
/// it; what the copies take is told of the repository.
#[test]
fn usage_tells_what_instant_access_and_copies_hold() {
    let mut daemon = Setup::default().program(tool::built("rowd-faulty")).prepare();
    let clock = daemon.path("clock");
    daemon.change_setup(|setup| setup.env("ROWD_CLOCK", &clock));
    fs::write(&clock, "0").unwrap();
    daemon.start();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    write(&daemon, "data", 0, &noise(1, 4 << 20));
    daemon.ctl(&["snapshot", "create", "data", "local"]);
    write(&daemon, "data", 0, &noise(2, 1 << 20));
    let access = ["--repo", "backup", "--instant-access", "none", "--wait"];
    daemon.ctl(&[&["snapshot", "create", "data", "kept"], &access[..]].concat());
    let held = |usage: &Value| {
        let snapshots = usage["total"]["snapshot_bytes"].as_u64().unwrap();
        (snapshots, usage["instant_access_bytes"].as_u64().unwrap())
    };
    let usage = daemon.json(&["usage"]);
    assert_eq!(held(&usage), (5 * MIB, MIB), "{usage}");
    assert_eq!(usage["disks"][0]["instant_access_bytes"], MIB, "{usage}");
    // An hour later there is a sample that has it; it counts from then on.
    daemon.kill();
    fs::write(&clock, "3600").unwrap();
    daemon.start();
    let sampled = wait::until("the next sample", || {
        let usage = daemon.json(&["usage"]);
        let last = usage["samples"].as_array()?.last()?.clone();
        (last["instant_access_bytes"] == MIB).then_some(usage)
    });
    let copies = &sampled["repos"][0];
    assert_eq!((&copies["name"], &copies["copies"]), (&json!("backup"), &json!(1)));
    // What was sent does not compress: all of the disk, since it is the first.
    assert!(copies["stored_bytes"].as_u64() >= Some(4 * MIB), "{copies}");
    daemon.ctl(&["snapshot", "set", "data@kept", "--no-instant-access"]);
    wait::until("the end of instant access", || {
        let usage = daemon.json(&["usage"]);
        (held(&usage) == (4 * MIB, 0)).then_some(())
    });
    let half = (3600 + 1800).to_string();
    fs::write(&clock, half).unwrap();
    let usage = daemon.json(&["usage"]);
    assert_eq!(usage["instant_access_bytes"], 0);
    let hours = usage["instant_access_byte_hours"].as_u64().unwrap();
    assert!((MIB / 2..MIB).contains(&hours), "half an hour of 1 MiB: {usage}");
    daemon.try_ctl(&["usage"]).ok().says(&["instant access × time"]);
}

/// ENC-10, COPY-20: instant access to an encrypted disk is like that to any; a snapshot on its way to one repository can
/// be copied to another one.
#[test]
fn a_test_copy_of_an_encrypted_disk_is_made_at_once() {
    let daemon = Setup::default().master_key(&"5".repeat(64)).start();
    for name in ["slow", "other"] {
        fs::create_dir(daemon.file(name)).unwrap();
        let url = format!("file://{}", daemon.path(name));
        daemon.ctl(&["repo", "add", name, &url, "--bandwidth", "256KiB"]);
    }
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB", "--encrypted"]);
    let secret = noise(9, 16 << 20);
    write(&daemon, "data", 0, &secret);
    accessible(&daemon, "before");
    daemon.ctl(&["disk", "create", "trial", "--from", "data@before"]);
    assert_eq!(daemon.json(&["disk", "show", "trial"])["encrypted"], true);
    write(&daemon, "data", 0, &noise(1, 16 << 20));
    daemon.ctl(&["disk", "rollback", "data", "before", "--yes"]);
    for disk in ["data", "trial"] {
        assert!(contents(&daemon, disk, 16 * MIB) == secret, "{disk}");
    }
    let copy = daemon.json(&["snapshot", "copy", "data@before", "--to", "other"]);
    assert_eq!(copy["status"], "progressing", "{copy}");
    is_under_way(&daemon, "data@before");
}

/// SNAP-23, CAP-03: what a snapshot can be used for is told, and it is what the verbs do: in the pool, on its way to a
/// repository without and with instant access, in both places, and in the repository alone.
#[test]
fn what_a_snapshot_can_be_used_for_is_told_and_true() {
    let daemon = slow();
    for name in ["fast", "other"] {
        fs::create_dir(daemon.file(name)).unwrap();
        daemon.ctl(&["repo", "add", name, &format!("file://{}", daemon.path(name))]);
    }
    daemon.ctl(&["disk", "delete", "data", "--yes"]);
    let whole = ["rollback", "disk", "image", "copy"];
    let states: [(&str, &[&str], &[&str]); 5] = [
        ("pool", &["--local"], &whole),
        (
            "both",
            &["--repo", "fast", "--instant-access", "--wait"],
            &[&whole[..], &["end_access"]].concat(),
        ),
        ("away", &["--repo", "fast", "--wait"], &["rollback", "disk", "copy"]),
        // Last: what is so slow holds up copies to other repositories too.
        ("waiting", &["--repo", "slow"], &["copy"]),
        ("going", &ACCESS, &whole),
    ];
    for (disk, how, expected) in states {
        daemon.ctl(&["disk", "create", disk, "--size", "64MiB"]);
        write(&daemon, disk, 0, &noise(1, 24 << 20));
        daemon.ctl(&[&["snapshot", "create", disk, "one"], how].concat());
        let one = format!("{disk}@one");
        let shown = wait::until("a snapshot that is where it should be", || {
            let told = daemon.json(&["snapshot", "show", &one]);
            (disk != "away" || told["presence"] == json!(["repository"])).then_some(told)
        });
        assert_eq!(shown["actions"], json!(expected), "{disk}");
        let (clone, image) = (format!("of-{disk}"), format!("image-{disk}"));
        for (action, args) in [
            ("disk", &["disk", "create", &clone, "--from", &one][..]),
            ("image", &["image", "create", &image, "--from", &one]),
            ("rollback", &["disk", "rollback", disk, "one", "--yes"]),
            ("copy", &["snapshot", "copy", &one, "--to", "other"]),
            ("end_access", &["snapshot", "set", &one, "--no-instant-access"]),
        ] {
            // To end what is not there changes nothing, and is no mistake.
            if action == "end_access" && shown["instant_access"] == false {
                continue;
            }
            let done = daemon.try_ctl(args);
            assert_eq!(done.code == 0, expected.contains(&action), "{disk}, {action}: {done}");
        }
    }
}
