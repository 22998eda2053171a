//! Groups with members that are only in a repository: their disks go back with the others, at one instant, or not at
//! all.
//!
//! Absent: single disks (`returning.rs`), groups in the pool (`groups.rs` of the tests).

use rowd::faults::VAULT_FAIL_POINTS;
use rowd_tests::client::Client;
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::wait;
use serde_json::{Value, json};

use super::copies::{MIB, contents, noise, url, write};
use super::lazy::{SIZE, wait_filled};
use super::returning::check;

const DISKS: [&str; 3] = ["da", "db", "dc"];

/// What the disks hold.
type State = Vec<Vec<u8>>;

/// Three disks and a group of them: `da` and `db` are only in the repository, `dc` is in the pool. What they held then.
fn world(daemon: &Daemon) -> (State, State) {
    std::fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(daemon)]);
    for (seed, disk) in (1..).zip(DISKS) {
        daemon.ctl(&["disk", "create", disk, "--size", "64MiB"]);
        write(daemon, disk, 0, &noise(seed, 9 << 20));
    }
    let then = state(daemon);
    let create = ["group", "create", "da", "db", "dc", "--name", "both", "--repo", "backup"];
    daemon.ctl(&[&create[..], &["--instant-access"]].concat());
    for disk in ["da", "db"] {
        let name = format!("{disk}@both");
        daemon.ctl(&["snapshot", "wait", &name]);
        daemon.ctl(&["snapshot", "set", &name, "--no-instant-access"]);
        wait::until("a snapshot that has left the pool", || {
            let told = daemon.json(&["snapshot", "show", &name]);
            (told["presence"] == json!(["repository"])).then_some(())
        });
    }
    for (seed, disk) in (4..).zip(DISKS) {
        write(daemon, disk, 3 * MIB, &noise(seed, 5 << 20));
    }
    (then, state(daemon))
}

fn state(daemon: &Daemon) -> State {
    DISKS.iter().map(|disk| contents(daemon, disk, SIZE)).collect()
}

fn wait_all_filled(daemon: &Daemon) {
    DISKS.iter().for_each(|disk| wait_filled(daemon, disk));
}

/// Promise (GRP-25): the disks are at the instant of the group, wherever its members are; each state before is kept.
#[test]
fn a_group_returns_with_members_that_are_only_in_a_repository() {
    let mut daemon = Daemon::new();
    let (then, present) = world(&daemon);
    let done = daemon.json(&["group", "rollback", "both", "--yes", "--group-first", "before"]);
    let done = done.as_array().unwrap();
    for (one, filled) in done.iter().zip([true, true, false]) {
        assert_eq!(!one["disk"]["filling"].is_null(), filled, "{one}");
        assert!(one["undo_name"].is_string(), "{one}");
    }
    assert!(state(&daemon) == then);
    wait_all_filled(&daemon);
    assert!(state(&daemon) == then);
    // Some of them, and each alone.
    daemon.ctl(&["disk", "rollback", "--undo", "db", "--yes"]);
    assert!(contents(&daemon, "db", SIZE) == present[1]);
    daemon.ctl(&["group", "rollback", "both", "db", "--yes"]);
    assert!(contents(&daemon, "db", SIZE) == then[1]);
    wait_all_filled(&daemon);
    daemon.ctl(&["group", "rollback", "before", "--yes"]);
    assert!(state(&daemon) == present);
    check(&mut daemon);
    assert!(state(&daemon) == present);
}

/// Promise: what is refused for one of them changes none: a client, a repository that is away, a disk that is being
/// filled from elsewhere.
#[test]
fn a_group_that_cannot_return_with_all_its_members_changes_nothing() {
    let daemon = Daemon::new();
    let (then, present) = world(&daemon);
    let client = Client::connect(&daemon.nbd_socket(), "dc");
    let error = daemon.json_error(21, &["group", "rollback", "both", "--yes"]);
    assert!(error["message"].as_str().unwrap().contains("export dc"), "{error}");
    client.disconnect();
    let (vault, away) = (daemon.file("vault"), daemon.file("away"));
    std::fs::rename(&vault, &away).unwrap();
    daemon.try_ctl(&["group", "rollback", "both", "--yes"]).fails_with(20);
    assert!(state(&daemon) == present);
    std::fs::rename(&away, &vault).unwrap();
    // Without them it is never filled.
    let (chunks, gone) = (vault.join("chunks"), daemon.file("gone"));
    std::fs::rename(&chunks, &gone).unwrap();
    daemon.ctl(&["disk", "rollback", "da", "both", "--yes"]);
    let error = daemon.json_error(15, &["group", "rollback", "both", "--yes"]);
    assert!(error["message"].as_str().unwrap().contains("still being filled"), "{error}");
    assert!(
        contents(&daemon, "db", SIZE) == present[1] && contents(&daemon, "dc", SIZE) == present[2]
    );
    std::fs::rename(&gone, &chunks).unwrap();
    wait_all_filled(&daemon);
    daemon.ctl(&["group", "rollback", "both", "--yes"]);
    assert!(state(&daemon) == then);
}

/// Promise: wherever the daemon is killed, all of them are at the instant of the group, or none is.
#[test]
fn a_group_returns_or_stays_wherever_the_daemon_was_killed() {
    let points = VAULT_FAIL_POINTS.iter().filter(|point| point.starts_with("return."));
    let only_single = ["return.journaled", "return.abandoned"];
    let points = points.filter(|point| !only_single.contains(*point));
    for point in points.chain(&["rollback.journaled", "fill.written"]) {
        let mut daemon = Setup::default().program(env!("CARGO_BIN_EXE_rowd-faulty")).start();
        let (then, present) = world(&daemon);
        daemon.stop();
        let env = format!("{point}:1");
        daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", &env));
        daemon.start();
        daemon.try_ctl(&["group", "rollback", "both", "--yes"]);
        daemon.wait_ended();
        daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "copy.marked:1000000"));
        daemon.start();
        // Each of them comes after the record.
        assert!(state(&daemon) == then, "{point}");
        wait_all_filled(&daemon);
        for (disk, present) in DISKS.iter().zip(&present) {
            daemon.ctl(&["disk", "rollback", "--undo", disk, "--yes"]);
            assert!(contents(&daemon, disk, SIZE) == *present, "{point}: {disk}");
        }
        check(&mut daemon);
        let filling: Vec<Value> =
            DISKS.map(|disk| daemon.json(&["disk", "show", disk])["filling"].clone()).into();
        assert_eq!(filling, vec![Value::Null; 3], "{point}");
    }
}
