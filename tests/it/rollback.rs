//! Rolling a disk back, undoing it, and changing its size.
//!
//! Absent: kills in the middle of it (the crash tests), file systems (`filesystems.rs`).

use rowd_tests::client::Client;
use rowd_tests::process::Daemon;
use serde_json::Value;

const BLOCK: u64 = 4096;

/// A daemon with a disk of 64 MiB that was 1 at the snapshot `one` and is 2 now.
fn daemon() -> Daemon {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    fill(&daemon, "disk", 1);
    daemon.ctl(&["snapshot", "create", "disk", "one"]);
    fill(&daemon, "disk", 2);
    daemon
}

fn fill(daemon: &Daemon, disk: &str, value: u8) {
    Client::connect(&daemon.nbd_socket(), disk).write(0, &[value; 65536]);
    wait_alone(daemon, disk);
}

/// A connection that was dropped takes a moment to be noticed.
fn wait_alone(daemon: &Daemon, disk: &str) {
    rowd_tests::wait::until("nobody is connected", || {
        let clients = daemon.json(&["disk", "show", disk])["clients"].clone();
        (clients == Value::Array(vec![])).then_some(())
    });
}

#[track_caller]
fn is(daemon: &Daemon, export: &str, value: u8) {
    let data = Client::connect(&daemon.nbd_socket(), export).read(0, 65536);
    assert_eq!(data, [value; 65536], "{export}");
    if !export.contains('@') {
        wait_alone(daemon, export);
    }
}

/// ROLL-01, 10, 13, 25: the disk is the snapshot, later snapshots stay, and the next is incremental.
#[test]
fn a_rollback_keeps_later_snapshots_and_the_next_is_incremental() {
    let daemon = daemon();
    daemon.ctl(&["snapshot", "create", "disk", "two"]);
    fill(&daemon, "disk", 3);
    daemon.ctl(&["disk", "rollback", "disk", "one", "--yes"]);
    is(&daemon, "disk", 1);
    is(&daemon, "disk@two", 2);
    Client::connect(&daemon.nbd_socket(), "disk").write(8192, &[4; 4096]);
    let next = daemon.json(&["snapshot", "create", "disk", "next"]);
    assert_eq!(next["stored_bytes"], BLOCK, "one block was written since the rollback");
    wait_alone(&daemon, "disk");
    daemon.ctl(&["disk", "rollback", "disk", "two", "--yes"]);
    is(&daemon, "disk", 2);
    daemon.ctl(&["disk", "rollback", "disk", "next", "--yes"]);
    let data = Client::connect(&daemon.nbd_socket(), "disk").read(4096, 12288);
    assert_eq!((data[0], data[4096], data[8192]), (1, 4, 1));
}

/// ROLL-16, DISK-36: what a disk is called, belongs to and is marked with stays as it is now, however it was then.
#[test]
fn a_rollback_changes_nothing_but_the_contents() {
    let daemon = daemon();
    daemon.ctl(&["policy", "create", "nightly", "--at", "2", "--keep", "7d"]);
    daemon.ctl(&["instance", "add", "vm"]);
    daemon.ctl(&["policy", "apply", "nightly", "disk"]);
    daemon.ctl(&["disk", "rename", "disk", "renamed"]);
    daemon.ctl(&["tag", "set", "renamed", "env=live"]);
    daemon.ctl(&["disk", "set", "renamed", "--delete-auto-snapshot", "on", "--instance", "vm"]);
    let about = || {
        let mut told = daemon.json(&["disk", "show", "renamed"]);
        // What the contents take, and that the state before is kept.
        let counts = |field: &str| field.ends_with("_bytes") || field == "snapshot_count";
        told.as_object_mut().unwrap().retain(|field, _| !counts(field));
        told
    };
    let before = about();
    daemon.ctl(&["disk", "rollback", "renamed", "one", "--yes"]);
    is(&daemon, "renamed", 1);
    assert_eq!(about(), before);
}

/// ROLL-12: one disk at a time; its siblings stay as they are.
#[test]
fn a_rollback_leaves_other_disks_alone_also_those_made_from_the_same_snapshot() {
    let daemon = daemon();
    daemon.ctl(&["disk", "create", "clone", "--from", "disk@one"]);
    daemon.ctl(&["disk", "create", "other", "--size", "64MiB"]);
    fill(&daemon, "clone", 5);
    fill(&daemon, "other", 6);
    daemon.ctl(&["disk", "rollback", "disk", "one", "--yes"]);
    is(&daemon, "disk", 1);
    is(&daemon, "clone", 5);
    is(&daemon, "other", 6);
}

/// Rollback refuses while somebody uses the disk, and says who: program, process, export.
#[test]
fn a_rollback_under_a_client_is_refused_and_names_it() {
    let daemon = daemon();
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    for verb in
        [&["disk", "rollback", "disk", "one", "--yes"][..], &["disk", "reinit", "disk", "--yes"]]
    {
        let error = daemon.json_error(21, verb);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
        let name = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert!(message.contains(&name.trim()[..2]), "{message} names {name}");
        assert!(message.contains("export disk"), "{message}");
        assert!(error["hint"].as_str().unwrap().contains("--force"), "{error}");
    }
    daemon.json_error(21, &["disk", "delete", "disk", "--yes"]);
    assert_eq!(client.read(0, 4096), [2; 4096], "it was not disturbed");
}

/// With --force the clients are disconnected, and a new connection sees the snapshot.
#[test]
fn a_forced_rollback_disconnects_the_clients() {
    let daemon = daemon();
    let mut clients: Vec<_> =
        (0..3).map(|_| Client::connect(&daemon.nbd_socket(), "disk")).collect();
    let done = daemon.json(&["disk", "rollback", "disk", "one", "--yes", "--force"]);
    assert_eq!(done["disconnected"].as_array().unwrap().len(), 3);
    assert!(clients.iter_mut().all(Client::is_closed_by_server));
    is(&daemon, "disk", 1);
}

/// An undo returns to the state before, and can itself be undone.
#[test]
fn a_rollback_can_be_undone_and_the_undo_too() {
    let mut daemon = daemon();
    daemon.json_error(15, &["disk", "rollback", "--undo", "disk", "--yes"]);
    let done = daemon.json(&["disk", "rollback", "disk", "one", "--yes"]);
    let undo = format!("disk@{}", done["undo_name"].as_str().unwrap());
    is(&daemon, &undo, 2);
    assert_ne!(daemon.json(&["snapshot", "show", &undo])["expires_at"], Value::Null);
    daemon.crash();
    daemon.ctl(&["disk", "rollback", "--undo", "disk", "--yes"]);
    is(&daemon, "disk", 2);
    daemon.ctl(&["disk", "rollback", "--undo", "disk", "--yes"]);
    is(&daemon, "disk", 1);
    daemon.ctl(&["disk", "reinit", "disk", "--yes"]);
    is(&daemon, "disk", 0);
    daemon.ctl(&["disk", "rollback", "--undo", "disk", "--yes"]);
    is(&daemon, "disk", 1);
}

/// ROLL-02, 19: only a snapshot of the disk itself will do; of others one makes a disk.
#[test]
fn only_a_snapshot_of_the_disk_itself_rolls_it_back() {
    let daemon = daemon();
    daemon.ctl(&["disk", "create", "other", "--size", "64MiB"]);
    daemon.json_error(20, &["disk", "rollback", "other", "nothing", "--yes"]);
    let error = daemon.json_error(15, &["disk", "rollback", "other", "disk@one", "--yes"]);
    assert!(error["hint"].as_str().unwrap().contains("disk create"), "{error}");
    daemon.ctl(&["disk", "create", "clone", "--from", "disk@one"]);
    daemon.json_error(15, &["disk", "rollback", "clone", "disk@one", "--yes"]);
    is(&daemon, "disk", 2);
}

/// DISK-18, ROLL-15: a disk that has grown since keeps its size; beyond the snapshot it reads zero.
#[test]
fn a_disk_that_has_grown_keeps_its_size_when_rolled_back() {
    let daemon = daemon();
    daemon.ctl(&["disk", "resize", "disk", "128MiB"]);
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    assert_eq!(client.size, 128 << 20);
    client.write(100 << 20, &[8; 4096]);
    client.disconnect();
    wait_alone(&daemon, "disk");
    let done = daemon.try_ctl(&["disk", "rollback", "disk", "one", "--yes"]).ok();
    done.says(&["extend its file system again"]);
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    assert_eq!(client.size, 128 << 20);
    assert_eq!(client.read(100 << 20, 4096), [0; 4096]);
    assert_eq!(client.read(0, 4096), [1; 4096]);
}

/// Growing needs nobody's leave; clients see it when they connect again.
#[test]
fn a_disk_grows_under_its_clients() {
    let daemon = daemon();
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    daemon.ctl(&["disk", "resize", "disk", "1GiB"]);
    client.write(0, &[7; 4096]);
    client.disconnect();
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    assert_eq!(client.size, 1 << 30);
    assert_eq!(client.read((1 << 30) - 4096, 4096), [0; 4096]);
    assert_eq!(client.read(0, 4096), [7; 4096]);
}

/// Shrinking cuts off data: it asks, needs the disk alone, and what was cut off never comes back.
#[test]
fn a_disk_shrinks_only_alone_and_what_it_lost_stays_lost() {
    let daemon = daemon();
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    client.write(48 << 20, &[9; 4096]);
    daemon.json_error(21, &["disk", "resize", "disk", "32MiB", "--yes"]);
    client.disconnect();
    wait_alone(&daemon, "disk");
    daemon.json_error(2, &["disk", "resize", "disk", "32MiB"]);
    daemon.ctl(&["snapshot", "create", "disk", "large"]);
    daemon.ctl(&["disk", "resize", "disk", "32MiB", "--yes"]);
    daemon.ctl(&["disk", "resize", "disk", "64MiB"]);
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    assert_eq!(client.read(48 << 20, 4096), [0; 4096]);
    let mut snapshot = Client::connect(&daemon.nbd_socket(), "disk@large");
    assert_eq!(snapshot.read(48 << 20, 4096), [9; 4096], "the snapshot has it still");
}

/// Deleting under force disconnects too, and the export is gone.
#[test]
fn a_forced_delete_disconnects_and_the_export_is_gone() {
    let daemon = daemon();
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    daemon.ctl(&["disk", "delete", "disk", "--yes", "--force"]);
    assert!(client.is_closed_by_server());
    assert!(Client::try_connect(&daemon.nbd_socket(), "disk", true, &[]).is_err());
}
