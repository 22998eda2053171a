//! Returning a disk to a snapshot that is only in a repository: at once, by fetching what differs, and back.
//!
//! Absent: histories (the model test has them).

use rowd::faults::VAULT_FAIL_POINTS;
use rowd::nbd::wire::command;
use rowd_tests::client::{Ask, Client};
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::{tool, wait};
use serde_json::{Value, json};

use super::copies::{MIB, contents, copied, id, noise, url, write};
use super::lazy::wait_filled;
use super::life::gone;
use super::proxy::{Mode, Proxy};
use super::server::{S3Server, add};

const SIZE: u64 = 64 * MIB;
/// Bytes of blocks in a chunk.
const CHUNK: u64 = 4 * MIB;

/// A disk that was `first` at `data@one`, which is only in the repository, and is `present` now.
struct World {
    daemon: Daemon,
    proxy: Proxy,
    first: Vec<u8>,
    present: Vec<u8>,
    _server: S3Server,
}

/// Changes what the disk had in two chunks of six, and where it had nothing.
fn change(daemon: &Daemon) {
    write(daemon, "data", 9 * MIB, &noise(2, 1 << 20));
    write(daemon, "data", 40 * MIB, &noise(3, 2 << 20));
    let mut client = Client::connect(&daemon.nbd_socket(), "data");
    client.trim(MIB, 1 << 20);
    client.flush();
    client.disconnect();
}

fn world() -> World {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address);
    let daemon = Daemon::new();
    add(&daemon, "s3", "host", &proxy.endpoint());
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    write(&daemon, "data", 0, &noise(1, 24 << 20));
    let first = contents(&daemon, "data", SIZE);
    daemon.ctl(&["snapshot", "create", "data", "one", "--repo", "s3"]);
    gone(&daemon, "data@one");
    change(&daemon);
    let present = contents(&daemon, "data", SIZE);
    World { daemon, proxy, first, present, _server: server }
}

impl World {
    /// The bytes that came from the repository during something.
    fn fetched<T>(&self, during: impl FnOnce() -> T) -> (u64, T) {
        let before = self.proxy.answered();
        let done = during();
        (self.proxy.answered() - before, done)
    }
}

/// The pool has nothing twice and has lost nothing.
pub fn check(daemon: &mut Daemon) {
    daemon.wait_reclaimed();
    daemon.stop();
    tool::finish(daemon.command().arg("check")).ok();
    daemon.start();
}

/// Promise (SNAP-03, ROLL-01): the disk is the snapshot, only chunks with blocks that differ are fetched, the state
/// before is kept, later snapshots stay, and the next copy follows the changes.
#[test]
fn a_disk_returns_to_a_snapshot_in_a_repository_and_fetches_what_differs() {
    let mut world = world();
    let daemon = &world.daemon;
    daemon.ctl(&["snapshot", "create", "data", "two", "--local"]);
    write(daemon, "data", 50 * MIB, &noise(4, 1 << 20));
    let last = contents(daemon, "data", SIZE);
    let rollback = ["disk", "rollback", "data", "one", "--yes", "--full"];
    let (bytes, done) = world.fetched(|| daemon.json(&rollback));
    assert!((2 * CHUNK..2 * CHUNK + MIB).contains(&bytes), "two chunks of six: {bytes}");
    assert_eq!((&done["to_name"], &done["grown_since"]), (&json!("data@one"), &json!(false)));
    wait_filled(daemon, "data");
    assert!(contents(daemon, "data", SIZE) == world.first);
    let undo = format!("data@{}", done["undo_name"].as_str().unwrap());
    assert!(contents(daemon, &undo, SIZE) == last);
    assert!(contents(daemon, "data@two", SIZE) == world.present);
    assert_eq!(daemon.json(&["disk", "show", "data"])["mapped_bytes"], 24 * MIB);
    let events = daemon.json(&["events"]).to_string();
    for told in ["disk.rollback", "rolled back to one, copy c-", "has all its contents"] {
        assert!(events.contains(told), "{told}: {events}");
    }
    // Back and forth, and the next copy.
    daemon.ctl(&["disk", "rollback", "--undo", "data", "--yes"]);
    assert!(contents(daemon, "data", SIZE) == last);
    daemon.ctl(&["disk", "rollback", "--undo", "data", "--yes"]);
    assert!(contents(daemon, "data", SIZE) == world.first);
    write(daemon, "data", 20 * MIB, &noise(5, 1 << 20));
    let expected = contents(daemon, "data", SIZE);
    daemon.ctl(&["snapshot", "create", "data", "three", "--repo", "s3"]);
    let told = gone(daemon, "data@three");
    let copy = daemon.json(&["copy", "show", told["copy"].as_str().unwrap()]);
    // What was fetched is there already.
    assert_eq!(copy["detail"]["new_bytes"], MIB);
    daemon.ctl(&["disk", "rollback", "data", "one", "--yes", "--full"]);
    daemon.ctl(&["disk", "rollback", "data", "three", "--yes", "--full"]);
    assert!(contents(daemon, "data", SIZE) == expected);
    check(&mut world.daemon);
    assert!(contents(&world.daemon, "data", SIZE) == expected);
}

/// Promise: the disk can be used at once; what does not differ needs no repository, what differs waits for it.
#[test]
fn a_disk_that_returned_is_used_while_it_is_filled() {
    let mut world = world();
    let daemon = &world.daemon;
    world.proxy.set(Mode::Slow);
    let done = daemon.json(&["disk", "rollback", "data", "one", "--yes"]);
    world.proxy.set(Mode::Held);
    let filling = &done["disk"]["filling"];
    assert_eq!(filling["usable"], true, "{done}");
    let mut client = Client::connect(&daemon.nbd_socket(), "data");
    let first = &world.first;
    let at =
        |mib: u64| usize::try_from(mib * MIB).unwrap()..usize::try_from((mib + 1) * MIB).unwrap();
    for mib in [0, 8, 16, 23, 30, 41] {
        assert!(client.read(mib * MIB, 1 << 20) == first[at(mib)], "MiB {mib}");
    }
    client.write(9 * MIB, &noise(7, 4096));
    client.write(40 * MIB, &noise(8, 4096));
    let late =
        Ask { command: command::READ, offset: 9 * MIB + 8192, length: 4096, ..Ask::default() };
    client.send(&late).unwrap();
    for (code, args) in [
        (15, &["disk", "rollback", "data", "one", "--yes", "--force"][..]),
        (21, &["snapshot", "delete", "data@one", "--yes", "--force"]),
    ] {
        daemon.json_error(code, args);
    }
    daemon.ctl(&["snapshot", "create", "data", "early", "--local"]);
    // Of what was kept nothing can be dropped.
    daemon.json_error(15, &["disk", "rollback", "data", "one", "--yes", "--force"]);
    world.proxy.set(Mode::Passes);
    let answer = client.receive(4096).unwrap();
    assert_eq!(answer.error, 0, "nobody has disturbed it");
    client.disconnect();
    wait_filled(daemon, "data");
    let mut expected = world.first.clone();
    expected[9 << 20..(9 << 20) + 4096].copy_from_slice(&noise(7, 4096));
    expected[40 << 20..(40 << 20) + 4096].copy_from_slice(&noise(8, 4096));
    assert!(contents(daemon, "data", SIZE) == expected);
    assert!(contents(daemon, "data@early", SIZE) == expected);
    daemon.ctl(&["snapshot", "create", "data", "late", "--local"]);
    check(&mut world.daemon);
}

/// Promise: when the repository does not give what is missing, the disk can be taken back; what it had become is
/// dropped only if that is said.
#[test]
fn a_return_that_cannot_be_finished_is_taken_back() {
    let mut world = world();
    let daemon = &world.daemon;
    let used = daemon.status("used_bytes");
    world.proxy.set(Mode::Slow);
    daemon.ctl(&["disk", "rollback", "data", "one", "--yes"]);
    world.proxy.set(Mode::Down);
    write(daemon, "data", 60 * MIB, &noise(9, 1 << 20));
    let error = daemon.json_error(15, &["disk", "rollback", "--undo", "data", "--yes"]);
    assert!(error["message"].as_str().unwrap().contains("still being filled"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("--undo data --force"), "{error}");
    let done = daemon.json(&["disk", "rollback", "--undo", "data", "--yes", "--force"]);
    assert_eq!((&done["undo"], &done["disk"]["filling"]), (&Value::Null, &Value::Null));
    assert!(contents(daemon, "data", SIZE) == world.present);
    wait::until("the end of the job", || {
        let jobs = daemon.json(&["job", "list"]);
        jobs.as_array().unwrap().iter().all(|job| job["state"] != "running").then_some(())
    });
    daemon.wait_reclaimed();
    wait::until("the space of what was dropped", || {
        (daemon.status("used_bytes") == used).then_some(())
    });
    // And again, with the repository there.
    world.proxy.set(Mode::Passes);
    daemon.ctl(&["disk", "rollback", "data", "one", "--yes", "--full"]);
    assert!(contents(daemon, "data", SIZE) == world.first);
    check(&mut world.daemon);
    assert!(contents(&world.daemon, "data", SIZE) == world.first);
}

/// Promise: what is refused changes nothing: a repository that is down, a client, a protected disk, the copy of another
/// disk.
#[test]
fn a_return_that_is_refused_changes_nothing() {
    let world = world();
    let daemon = &world.daemon;
    let rollback = |code, more: &[&str]| {
        daemon.json_error(code, &[&["disk", "rollback", "data", "one", "--yes"], more].concat())
    };
    world.proxy.set(Mode::Down);
    rollback(24, &[]);
    world.proxy.set(Mode::Passes);
    let mut client = Client::connect(&daemon.nbd_socket(), "data");
    let error = rollback(21, &[]);
    assert!(error["message"].as_str().unwrap().contains("export data"), "{error}");
    assert!(client.read(9 * MIB, 4096) == noise(2, 4096));
    daemon.ctl(&["disk", "set", "data", "--protect"]);
    let error = rollback(15, &["--force"]);
    assert!(error["message"].as_str().unwrap().contains("protected"), "{error}");
    daemon.ctl(&["disk", "set", "data", "--no-protect"]);
    daemon.ctl(&["disk", "create", "other", "--size", "1MiB"]);
    let copy = daemon.json(&["snapshot", "show", "data@one"])["copy"].clone();
    let copy = copy.as_str().unwrap();
    for to in ["data@one", copy] {
        let error = daemon.json_error(15, &["disk", "rollback", "other", to, "--yes"]);
        assert!(error["hint"].as_str().unwrap().contains("disk create NAME --from"), "{error}");
    }
    daemon.json_error(20, &["disk", "rollback", "data", "c-0000nothing", "--yes"]);
    assert!(client.read(9 * MIB, 4096) == noise(2, 4096), "it was not disturbed");
    daemon.ctl(&["disk", "resize", "data", "80MiB"]);
    let args = ["disk", "rollback", "data", "one", "--yes", "--force"];
    let done = daemon.json(&args);
    assert!(client.is_closed_by_server());
    assert_eq!(done["disconnected"].as_array().unwrap().len(), 1);
    assert_eq!((&done["grown_since"], &done["disk"]["size"]), (&json!(true), &json!(80 * MIB)));
    wait_filled(daemon, "data");
    let mut expected = world.first.clone();
    expected.resize(80 << 20, 0);
    assert!(contents(daemon, "data", 80 * MIB) == expected);
}

/// Promise: a copy that is all there is of a snapshot of the disk does as well, and one whose snapshot is here too.
#[test]
fn a_disk_returns_to_a_copy_of_itself() {
    let daemon = super::copies::daemon();
    let first = noise(1, 24 << 20);
    write(&daemon, "data", 0, &first);
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let copy = copied(&daemon, "data@one", "backup");
    write(&daemon, "data", 4 * MIB, &noise(2, 8 << 20));
    // The snapshot is here: nothing is fetched.
    let done = daemon.json(&["disk", "rollback", "data", id(&copy), "--yes"]);
    assert_eq!(done["disk"]["filling"], Value::Null);
    assert!(contents(&daemon, "data", SIZE)[..24 << 20] == first[..]);
    write(&daemon, "data", 4 * MIB, &noise(3, 8 << 20));
    let before = contents(&daemon, "data", SIZE);
    daemon.ctl(&["snapshot", "delete", "data@one", "--yes"]);
    daemon.wait_reclaimed();
    let done = daemon.json(&["disk", "rollback", "data", id(&copy), "--yes", "--full"]);
    assert_eq!(
        (done["to"].as_str(), &done["to_name"]),
        (copy["snapshot_id"].as_str(), &Value::Null)
    );
    wait_filled(&daemon, "data");
    assert!(contents(&daemon, "data", SIZE)[..24 << 20] == first[..]);
    daemon.ctl(&["disk", "rollback", "--undo", "data", "--yes"]);
    assert!(contents(&daemon, "data", SIZE) == before);
}

/// A daemon that is killed at a fail point when `data` returns to `data@one`, which is in the repository only.
fn killed_at(point: &str, count: u32, encrypted: bool) -> (Daemon, Vec<u8>, Vec<u8>) {
    let faulty = env!("CARGO_BIN_EXE_rowd-faulty");
    let mut daemon = Setup::default().master_key(&"1".repeat(64)).program(faulty).start();
    std::fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    let create = ["disk", "create", "data", "--size", "64MiB", "--encrypted"];
    daemon.ctl(&create[..if encrypted { 6 } else { 5 }]);
    write(&daemon, "data", 0, &noise(1, 24 << 20));
    let first = contents(&daemon, "data", SIZE);
    daemon.ctl(&["snapshot", "create", "data", "one", "--repo", "backup"]);
    gone(&daemon, "data@one");
    change(&daemon);
    let present = contents(&daemon, "data", SIZE);
    daemon.wait_reclaimed();
    daemon.stop();
    let env = format!("{point}:{count}");
    daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", &env));
    daemon.start();
    (daemon, first, present)
}

/// Promise: wherever the daemon is killed, the disk is the one or the other, never a mix; the state before is there;
/// nothing is lost or leaked.
#[test]
fn a_disk_returns_or_stays_wherever_the_daemon_was_killed() {
    let points = VAULT_FAIL_POINTS.iter().filter(|point| point.starts_with("return."));
    let points = points.chain(&["fill.written"]);
    for (number, point) in points.enumerate().filter(|(_, point)| **point != "return.abandoned") {
        let (mut daemon, first, present) = killed_at(point, 1, number % 2 == 0);
        daemon.try_ctl(&["disk", "rollback", "data", "one", "--yes"]);
        daemon.wait_ended();
        daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "copy.marked:1000000"));
        daemon.start();
        // Each of them comes after the record.
        assert!(contents(&daemon, "data", SIZE) == first, "{point}");
        wait_filled(&daemon, "data");
        assert!(contents(&daemon, "data", SIZE) == first, "{point}");
        daemon.ctl(&["disk", "rollback", "--undo", "data", "--yes"]);
        assert!(contents(&daemon, "data", SIZE) == present, "{point}");
        check(&mut daemon);
        assert!(contents(&daemon, "data", SIZE) == present, "{point}");
    }
}

/// Promise: the same holds for taking it back.
#[test]
fn a_return_is_taken_back_wherever_the_daemon_was_killed() {
    let (mut daemon, _, present) = killed_at("return.abandoned", 1, false);
    // Without them it is never filled.
    let chunks = daemon.file("vault").join("chunks");
    std::fs::rename(&chunks, daemon.file("away")).unwrap();
    daemon.ctl(&["disk", "rollback", "data", "one", "--yes"]);
    daemon.try_ctl(&["disk", "rollback", "--undo", "data", "--yes", "--force"]);
    daemon.wait_ended();
    daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "copy.marked:1000000"));
    daemon.start();
    assert!(contents(&daemon, "data", SIZE) == present);
    assert_eq!(daemon.json(&["disk", "show", "data"])["filling"], Value::Null);
    check(&mut daemon);
    assert!(contents(&daemon, "data", SIZE) == present);
}
