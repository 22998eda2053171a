//! Real file systems on a disk, mounted on this host: what a snapshot, a rollback and a clone are
//! worth to them.
//!
//! Absent: freezing them first; these are snapshots as a power failure would leave them.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rowd_tests::mount::{Device, Mounted};
use rowd_tests::process::Daemon;
use rowd_tests::tool;

/// A kind of file system, and how to make, mount and check it.
struct Kind {
    size: &'static str,
    make: &'static [&'static str],
    /// The clone has the UUID of its origin.
    mount: &'static str,
    check: &'static [&'static str],
}

const EXT4: Kind = Kind {
    size: "256MiB",
    make: &["mkfs.ext4", "-q", "-E", "nodiscard"],
    mount: "noatime",
    check: &["e2fsck", "-fn"],
};

const XFS: Kind = Kind {
    size: "320MiB",
    make: &["mkfs.xfs", "-q", "-K"],
    mount: "noatime,nouuid",
    check: &["xfs_repair", "-n"],
};

fn on(device: &Device, command: &[&str]) -> tool::Outcome {
    tool::run(command[0], &[&command[1..], &[device.path()]].concat())
}

/// Makes a disk with a file system and mounts it.
fn made(daemon: &Daemon, disk: &str, kind: &Kind) -> Mounted {
    daemon.ctl(&["disk", "create", disk, "--size", kind.size]);
    let device = Device::attach(daemon, disk);
    on(&device, kind.make).ok();
    device.mount(kind.mount)
}

/// Replays the journal by mounting, then checks every structure.
fn check(daemon: &Daemon, disk: &str, kind: &Kind) {
    let device = Device::attach(daemon, disk).mount(kind.mount).unmount();
    on(&device, kind.check).ok();
}

fn fill(dir: &Path, files: usize, seed: usize) {
    fs::create_dir(dir).unwrap();
    for number in 0..files {
        fs::write(dir.join(number.to_string()), contents(number + seed)).unwrap();
    }
}

#[track_caller]
fn is_filled(dir: &Path, files: usize, seed: usize) {
    for number in 0..files {
        let found = fs::read(dir.join(number.to_string())).unwrap();
        assert_eq!(found, contents(number + seed), "file {number} of {}", dir.display());
    }
}

fn contents(number: usize) -> Vec<u8> {
    (0..1000 + number * 700).map(|i| u8::try_from((i * 7 + number) % 251).unwrap()).collect()
}

/// A snapshot under load is a file system that a journal replay makes whole, with everything that was
/// synced before it; so is the disk after a rollback to it.
fn survives_snapshot_and_rollback_under_load(kind: &Kind) {
    let daemon = Daemon::new();
    let mounted = made(&daemon, "disk", kind);
    fill(&mounted.path().join("before"), 50, 0);
    tool::run("sync", &["-f", mounted.path().to_str().unwrap()]).ok();
    let stop = AtomicBool::new(false);
    let busy = mounted.path().join("busy");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                fill(&busy, 20, rounds);
                fs::remove_dir_all(&busy).unwrap();
                rounds += 1;
            }
            rounds
        });
        for name in ["one", "two", "three"] {
            daemon.ctl(&["snapshot", "create", "disk", name]);
            daemon.ctl(&["disk", "create", name, "--from", &format!("disk@{name}")]);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0, "nothing was written meanwhile");
    });
    fs::remove_dir_all(mounted.path().join("before")).unwrap();
    drop(mounted.unmount());
    for clone in ["one", "two", "three"] {
        check(&daemon, clone, kind);
        let mounted = Device::attach(&daemon, clone).mount(kind.mount);
        is_filled(&mounted.path().join("before"), 50, 0);
    }
    daemon.ctl(&["disk", "rollback", "disk", "two", "--yes"]);
    check(&daemon, "disk", kind);
    let mounted = Device::attach(&daemon, "disk").mount(kind.mount);
    is_filled(&mounted.path().join("before"), 50, 0);
}

#[test]
fn ext4_survives_snapshot_and_rollback_under_load() {
    survives_snapshot_and_rollback_under_load(&EXT4);
}

#[test]
fn xfs_survives_snapshot_and_rollback_under_load() {
    survives_snapshot_and_rollback_under_load(&XFS);
}

/// ROLL-17: the guide's eight steps to get back what a rollback took away. The disk of the later snapshot
/// is mounted beside the first, on the same host.
fn files_are_saved_through_a_disk_of_a_later_snapshot(kind: &Kind) {
    let daemon = Daemon::new();
    let mounted = made(&daemon, "disk", kind);
    fill(&mounted.path().join("old"), 10, 0);
    tool::run("sync", &["-f", mounted.path().to_str().unwrap()]).ok();
    daemon.ctl(&["snapshot", "create", "disk", "aa"]);
    fill(&mounted.path().join("useful"), 10, 5);
    drop(mounted.unmount());
    daemon.ctl(&["snapshot", "create", "disk", "bb"]);
    daemon.ctl(&["disk", "rollback", "disk", "aa", "--yes"]);
    daemon.ctl(&["disk", "create", "saved", "--from", "disk@bb"]);
    let disk = Device::attach(&daemon, "disk").mount("noatime");
    let saved = Device::attach(&daemon, "saved").mount(kind.mount);
    assert!(!disk.path().join("useful").exists(), "the rollback took it away");
    let useful = disk.path().join("useful");
    tool::finish(tool::command("cp").arg("-a").arg(saved.path().join("useful")).arg(&useful)).ok();
    drop(saved.unmount());
    daemon.ctl(&["disk", "delete", "saved", "--yes", "--force"]);
    is_filled(&useful, 10, 5);
    is_filled(&disk.path().join("old"), 10, 0);
    drop(disk.unmount());
    check(&daemon, "disk", kind);
    daemon.ctl(&["disk", "rollback", "disk", "bb", "--yes"]);
    let disk = Device::attach(&daemon, "disk").mount("noatime");
    is_filled(&disk.path().join("useful"), 10, 5);
}

#[test]
fn files_made_after_a_snapshot_are_saved_through_a_disk_of_a_later_one() {
    files_are_saved_through_a_disk_of_a_later_snapshot(&EXT4);
}

#[test]
fn files_of_xfs_are_saved_through_a_disk_of_a_later_snapshot() {
    files_are_saved_through_a_disk_of_a_later_snapshot(&XFS);
}

/// ROLL-18: a clone has the UUID of its origin; XFS mounts the two beside each other with `nouuid` only.
#[test]
fn a_clone_with_xfs_is_mounted_beside_its_origin_with_nouuid() {
    let daemon = Daemon::new();
    drop(made(&daemon, "disk", &XFS).unmount());
    daemon.ctl(&["snapshot", "create", "disk", "aa"]);
    daemon.ctl(&["disk", "create", "clone", "--from", "disk@aa"]);
    let origin = Device::attach(&daemon, "disk").mount("noatime");
    let clone = Device::attach(&daemon, "clone");
    let point = tempfile::tempdir().unwrap();
    let plain = tool::run("mount", &[clone.path(), point.path().to_str().unwrap()]);
    assert_ne!(plain.code, 0, "the kernel mounts one UUID twice: nouuid is not needed any more");
    let clone = clone.mount("noatime,nouuid");
    fill(&clone.path().join("files"), 5, 1);
    assert!(!origin.path().join("files").exists());
}

/// DISK-18, ROLL-15: after a rollback the file system has its old size and can be extended again.
#[test]
fn a_file_system_is_extended_again_after_a_rollback() {
    let daemon = Daemon::new();
    drop(made(&daemon, "disk", &EXT4).unmount());
    daemon.ctl(&["snapshot", "create", "disk", "small"]);
    daemon.ctl(&["disk", "resize", "disk", "512MiB"]);
    let extend = || {
        let device = Device::attach(&daemon, "disk");
        // Exit code 0: nothing was wrong. It notes that it was here, which resize2fs asks for when the mount was in a
        // later second than mkfs.
        on(&device, &["e2fsck", "-fp"]).ok();
        on(&device, &["resize2fs"]).ok().says(&["is now 524288 (1k) blocks long"]);
        on(&device, &["e2fsck", "-fn"]).ok();
    };
    extend();
    daemon.ctl(&["disk", "rollback", "disk", "small", "--yes"]);
    extend();
}

/// A kill of the daemon is a pause for whoever uses its disks, not a loss: the file system is whole
/// after the next start.
#[test]
fn a_file_system_is_whole_after_a_kill_of_the_daemon() {
    let mut daemon = Daemon::new();
    let mounted = made(&daemon, "disk", &EXT4);
    fill(&mounted.path().join("files"), 50, 3);
    tool::run("sync", &["-f", mounted.path().to_str().unwrap()]).ok();
    drop(mounted.unmount());
    daemon.crash();
    check(&daemon, "disk", &EXT4);
    let mounted = Device::attach(&daemon, "disk").mount("noatime");
    is_filled(&mounted.path().join("files"), 50, 3);
}
