//! Snapshots of disks that are still being filled: made at once, right in every byte, filled with their disk, and good
//! for all that snapshots are good for.
//!
//! Absent: any history of them, which the model test has (`model/lazy.rs`); policies (`policies.rs` of the tests).

use rowd_tests::process::{Daemon, Setup};
use rowd_tests::wait;
use serde_json::{Value, json};

use super::copies::{MIB, contents, id, noise, write};
use super::lazy::{DATA, SIZE, World, wait_filled, world, world_with};
use super::proxy::Mode;
use super::returning::check;

/// Writes to a disk, and to what it is expected to hold.
fn change(daemon: &Daemon, disk: &str, mib: u64, seed: u64, expected: &mut [u8]) {
    let bytes = noise(seed, 1 << 20);
    write(daemon, disk, mib * MIB, &bytes);
    let at = usize::try_from(mib * MIB).unwrap();
    expected[at..at + bytes.len()].copy_from_slice(&bytes);
}

fn filling(daemon: &Daemon, snapshot: &str) -> Value {
    daemon.json(&["snapshot", "show", snapshot])["filling"].clone()
}

/// A world with `again`, which is slowly filled and was written to.
fn slow(world: &World) -> Vec<u8> {
    world.proxy.set(Mode::Slow);
    world.make("again");
    let mut expected = contents(&world.daemon, "data@one", SIZE);
    change(&world.daemon, "again", 1, 60, &mut expected);
    expected
}

/// One byte range of an export.
fn piece(daemon: &Daemon, export: &str, mib: u64) -> Vec<u8> {
    let mut client = rowd_tests::client::Client::connect(&daemon.nbd_socket(), export);
    let bytes = client.read(mib * MIB, 1 << 20);
    client.disconnect();
    bytes
}

fn of(expected: &[u8], mib: u64) -> &[u8] {
    let at = usize::try_from(mib * MIB).unwrap();
    &expected[at..at + (1 << 20)]
}

/// Promise (SNAP-01): a disk that is usable can be kept, whatever it lacks; its snapshots are read, cloned and
/// returned to at once, survive kills, and take what is fetched once for all of them.
#[test]
fn a_disk_is_kept_while_it_is_filled_and_all_that_comes_of_it_is_whole() {
    let mut world = world();
    let before = world.daemon.status("used_bytes");
    let early = slow(&world);
    let daemon = &world.daemon;
    let made = daemon.json(&["snapshot", "create", "again", "early"]);
    assert_eq!(
        (&made["filling"]["copy"], &made["filling"]["usable"], &made["status"]),
        (&json!(world.copy), &json!(true), &json!("accomplished"))
    );
    let mut both = early.clone();
    change(daemon, "again", 2, 61, &mut both);
    let group = daemon.json(&["group", "create", "again", "data", "--name", "both"]);
    assert_eq!(group["members"].as_array().unwrap().len(), 2);
    let mut present = both.clone();
    change(daemon, "again", 22, 62, &mut present);
    world.daemon.crash();
    let daemon = &world.daemon;
    assert!(!filling(daemon, "again@early").is_null(), "filled too soon to prove anything");
    // What one of them fetches is there for the others.
    assert!(piece(daemon, "again@early", 23) == of(&early, 23));
    assert!(piece(daemon, "again@early", 2) == of(&early, 2));
    assert!(piece(daemon, "again@both", 22) == of(&both, 22));
    assert!(piece(daemon, "again", 22) == of(&present, 22));
    daemon.ctl(&["disk", "create", "branch", "--from", "again@early"]);
    let mut branch = early.clone();
    change(daemon, "branch", 3, 63, &mut branch);
    let done = daemon.json(&["disk", "rollback", "again", "early", "--yes"]);
    assert_eq!(done["disk"]["filling"]["usable"], true, "{done}");
    assert!(piece(daemon, "again", 2) == of(&early, 2));
    let refused = daemon.json_error(15, &["snapshot", "diff", "again@early", "again@both"]);
    assert!(refused["message"].as_str().unwrap().contains("still being filled"), "{refused}");
    daemon.json_error(21, &["copy", "delete", &world.copy, "--yes"]);
    world.daemon.crash();
    let daemon = &world.daemon;
    daemon.ctl(&["disk", "rollback", "--undo", "again", "--yes"]);
    world.proxy.set(Mode::Passes);
    let all = [("again", &present), ("again@early", &early), ("again@both", &both)];
    for (export, expected) in all.into_iter().chain([("branch", &branch)]) {
        assert!(contents(daemon, export, SIZE) == **expected, "{export}");
    }
    wait_filled(daemon, "again");
    wait_filled(daemon, "branch");
    assert_eq!(filling(daemon, "again@early"), Value::Null);
    assert!(daemon.status("used_bytes") - before < DATA * 3 / 2, "fetched once for all");
    daemon.ctl(&["snapshot", "diff", "again@early", "again@both"]);
    daemon.ctl(&["copy", "delete", &world.copy, "--yes"]);
    check(&mut world.daemon);
    for (export, expected) in all.into_iter().chain([("branch", &branch)]) {
        assert!(contents(&world.daemon, export, SIZE) == **expected, "{export}");
    }
}

/// Promise: a snapshot of such a disk goes to a repository as soon as it has all its contents, and others need
/// not wait for that.
#[test]
fn a_snapshot_that_lacks_blocks_is_copied_when_it_has_them() {
    let world = world();
    let early = slow(&world);
    let daemon = &world.daemon;
    daemon.ctl(&["snapshot", "create", "again", "kept", "--repo", "s3", "--instant-access"]);
    let told = wait::until("a copy that waits", || {
        let jobs = daemon.json(&["job", "list"]);
        let jobs = jobs.as_array().unwrap().clone();
        jobs.into_iter().find(|job| job["message"].to_string().contains("still being filled"))
    });
    assert_eq!(told["state"], "running", "{told}");
    let mut present = early.clone();
    change(daemon, "again", 9, 64, &mut present);
    world.proxy.set(Mode::Passes);
    daemon.ctl(&["snapshot", "wait", "again@kept"]);
    let told = daemon.json(&["snapshot", "show", "again@kept"]);
    daemon.ctl(&["snapshot", "verify", "again@kept"]);
    daemon.ctl(&["disk", "create", "other", "--from", told["copy"].as_str().unwrap()]);
    assert!(contents(daemon, "other", SIZE) == early);
    assert!(contents(daemon, "again@kept", SIZE) == early);
    assert!(contents(daemon, "again", SIZE) == present);
    // The next one follows the changes.
    daemon.ctl(&["snapshot", "create", "again", "next"]);
    let copy = super::copies::copied(daemon, "again@next", "s3");
    assert_eq!(daemon.json(&["copy", "show", id(&copy)])["detail"]["new_bytes"], MIB);
}

/// Promise: a snapshot outlives its disk, and gets what it lacks; when the last that lacks it goes, so does the filling.
#[test]
fn a_snapshot_that_lacks_blocks_outlives_its_disk_and_ends_the_filling() {
    let mut world = world();
    let before = world.daemon.status("used_bytes");
    let early = slow(&world);
    let daemon = &world.daemon;
    daemon.ctl(&["snapshot", "create", "again", "early"]);
    let show = daemon.json(&["snapshot", "show", "again@early"]);
    let early_id = show["id"].as_str().unwrap();
    daemon.ctl(&["disk", "delete", "again", "--yes"]);
    assert!(!filling(daemon, early_id).is_null(), "filled too soon to prove anything");
    daemon.ctl(&["disk", "create", "branch", "--from", early_id]);
    assert!(piece(daemon, "branch", 1) == of(&early, 1));
    daemon.ctl(&["snapshot", "delete", early_id, "--yes", "--force"]);
    assert!(piece(daemon, "branch", 23) == of(&early, 23));
    daemon.ctl(&["snapshot", "create", "branch", "last"]);
    world.daemon.crash();
    let daemon = &world.daemon;
    daemon.ctl(&["disk", "delete", "branch", "--yes"]);
    daemon.json_error(21, &["copy", "delete", &world.copy, "--yes"]);
    let chain = daemon.json(&["chain", "list"]);
    let chain = chain.as_array().unwrap().iter().find(|one| one["disk_name"].is_null()).unwrap();
    let last = format!("{}@last", chain["disk_id"].as_str().unwrap());
    daemon.ctl(&["snapshot", "delete", &last, "--yes"]);
    wait::until("the end of the filling", || {
        let jobs = daemon.json(&["job", "list"]);
        jobs.as_array().unwrap().iter().all(|job| job["state"] != "running").then_some(())
    });
    daemon.wait_reclaimed();
    wait::until("all its space", || (daemon.status("used_bytes") == before).then_some(()));
    daemon.ctl(&["copy", "delete", &world.copy, "--yes"]);
    check(&mut world.daemon);
}

/// Promise: wherever the daemon is killed, all of them are what they were, and become whole.
#[test]
fn snapshots_that_lack_blocks_survive_any_end_of_the_daemon() {
    for (point, encrypted) in [
        ("fill.journaled:1", false),
        ("fill.journaled:3", true),
        ("snapshot.journaled:1", true),
        ("rollback.journaled:1", false),
        ("checkpoint.written:2", false),
    ] {
        let faulty = env!("CARGO_BIN_EXE_rowd-faulty");
        let setup = Setup::default().master_key(&"1".repeat(64)).program(faulty);
        let mut world = world_with(setup);
        world.daemon.stop();
        world.daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", point));
        world.daemon.start();
        world.proxy.set(Mode::Slow);
        let make = ["disk", "create", "again", "--from", &world.copy, "--encrypted"];
        let daemon = &world.daemon;
        daemon.try_ctl(&make[..if encrypted { 6 } else { 5 }]);
        daemon.try_ctl(&["snapshot", "create", "again", "early"]);
        daemon.try_ctl(&["disk", "rollback", "again", "early", "--yes"]);
        daemon.try_ctl(&["snapshot", "create", "again", "late"]);
        world.proxy.set(Mode::Passes);
        world.daemon.wait_ended();
        world.daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "copy.marked:1000000"));
        world.daemon.start();
        let daemon = &world.daemon;
        let expected = contents(daemon, "data@one", SIZE);
        let snapshots = daemon.json(&["snapshot", "list", "again"]);
        for snapshot in snapshots.as_array().unwrap() {
            let name = format!("again@{}", snapshot["name"].as_str().unwrap());
            assert!(contents(daemon, &name, SIZE) == expected, "{point}: {name}");
        }
        assert!(contents(daemon, "again", SIZE) == expected, "{point}");
        wait_filled(daemon, "again");
        check(&mut world.daemon);
        assert!(contents(&world.daemon, "again", SIZE) == expected, "{point}");
    }
}
